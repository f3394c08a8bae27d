"""``python -m simulation``: seeds in several processes, variants side by side, one seed with its trace."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulation import remembered, scene, shrink
from simulation.oracle import Verdict, judge
from simulation.variants import GOOD, OURS, VARIANTS
from simulation.world import World

SUMS = ("faults", "effects", "records", "restores", "lost", "doubled", "wrong", "missing", "old_rows", "uid_twice", "stale", "undrained",
        "quarantined", "errors")  # fmt: skip


@dataclass(slots=True)
class Tally:
    """Of many seeds, from `first` on. bad: the first bad ones, each with what is wrong."""

    variant: str
    first: int = 0
    seeds: int = 0
    bad_seeds: int = 0
    slowest_drain_s: float = 0.0
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUMS, 0))
    bad: list[tuple[int, list[str]]] = field(default_factory=list)

    def add(self, v: Verdict) -> None:
        self.seeds += 1
        self.slowest_drain_s = max(self.slowest_drain_s, v.drained_s)
        for name in SUMS:
            self.sums[name] += getattr(v, name)
        if v.bad:
            self.bad_seeds += 1
            if len(self.bad) < 20:
                self.bad.append((v.seed, v.notes[:4]))

    def merge(self, other: Tally) -> None:
        self.seeds += other.seeds
        self.bad_seeds += other.bad_seeds
        self.slowest_drain_s = max(self.slowest_drain_s, other.slowest_drain_s)
        for name in SUMS:
            self.sums[name] += other.sums[name]
        self.bad = sorted(self.bad + other.bad)[:20]


def run_seed(seed: int, variant: str = OURS) -> Verdict:
    kind = VARIANTS[variant]
    world = World(seed, kind.store, with_detect=kind.detects, workload=kind.workload)
    world.run()
    return judge(world)


_caught = multiprocessing.get_context("fork").Array("b", len(VARIANTS))
"""Which variants were seen to fail."""


def _chunk(task: tuple[str, int, int, bool]) -> Tally:
    variant, first, after, until_bad = task
    tally, which = Tally(variant, first), list(VARIANTS).index(variant)
    for seed in range(first, after):
        if until_bad and variant not in GOOD and _caught[which]:
            break
        tally.add(run_seed(seed, variant))
        if tally.bad_seeds:
            _caught[which] = 1
    return tally


def run(
    variants: Sequence[str],
    first: int,
    seeds: int | None,
    processes: int,
    until_bad: bool = False,
    progress: Path | None = None,
) -> dict[str, Tally]:
    """All variants, `seeds` each (None: as many as each may need in CI); `until_bad`: weaker ones only until one fails.
    progress: a file that gets a line for each part that is done, so that a run that is broken off leaves its figures."""
    prepare()
    tasks = []
    for variant in variants:
        count = VARIANTS[variant].seeds if seeds is None else seeds
        step = max(1, min(25, count // (4 * processes)))
        start = first + (VARIANTS[variant].first if seeds is None else 0)
        tasks += [(variant, at, min(at + step, start + count), until_bad) for at in range(start, start + count, step)]
    tallies = {variant: Tally(variant) for variant in variants}
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for tally in pool.imap_unordered(_chunk, tasks):
            tallies[tally.variant].merge(tally)
            if progress is not None:
                with progress.open("a") as file:
                    file.write(json.dumps(_figures(tally)) + "\n")
    return tallies


def _figures(t: Tally) -> dict[str, Any]:
    return {"variant": t.variant, "first": t.first, "seeds": t.seeds, "bad_seeds": t.bad_seeds,
            "drain_s": t.slowest_drain_s, "bad": t.bad, **t.sums}  # fmt: skip


@functools.cache
def prepare() -> None:
    """What every seed needs, once: fitted, compiled, written. Forked processes inherit it."""
    logging.disable(logging.CRITICAL)
    remembered.remember(scene.baseline().map)
    for number in range(scene.SCRIPTS):
        script = scene.script(number)
        for cell in script.cells:
            script.fold(cell, None, {}, frozenset())
    for seed in (2, 3):
        run_seed(seed)


COLUMNS: tuple[tuple[str, Callable[[Tally], int]], ...] = (
    ("seeds", lambda t: t.seeds), ("faults", lambda t: t.sums["faults"]), ("lost", lambda t: t.sums["lost"]),
    ("doubled", lambda t: t.sums["doubled"]), ("missing alerts", lambda t: t.sums["missing"]),
    ("old rows", lambda t: t.sums["old_rows"]), ("uid twice", lambda t: t.sums["uid_twice"]),
    ("stale commits", lambda t: t.sums["stale"]), ("bad seeds", lambda t: t.bad_seeds),
)  # fmt: skip


def table(tallies: Iterable[Tally]) -> str:
    lines = ["| variant | " + " | ".join(name for name, _ in COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for tally in tallies:
        cells = " | ".join(f"{value(tally):,}" for _, value in COLUMNS)
        lines.append(f"| {VARIANTS[tally.variant].title} | {cells} |")
    return "\n".join(lines)


def explain(seed: int, variant: str = OURS, whole: bool = False) -> tuple[Verdict, str]:
    """One seed again: its verdict and a readable trace; of a bad one, of the fewest faults that make it bad."""
    prepare()
    return shrink.explain(seed, VARIANTS[variant], whole)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, help="so many seeds of each variant (default: as many as CI runs)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="one seed, with its trace")
    parser.add_argument("--whole", action="store_true", help="with --seed: the whole trace, nothing left out")
    parser.add_argument("--variant", action="append", choices=[*VARIANTS, "all", "controls"], help="default: ours")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--until-bad", action="store_true", help="weaker variants: only until a seed fails")
    parser.add_argument("--progress", type=Path, help="append a line of JSON for each part that is done")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    asked = given.variant or [OURS]
    variants = [v for v in VARIANTS if v in asked or "all" in asked or ("controls" in asked and v not in GOOD)]
    if given.seed is not None:
        verdict, trace = explain(given.seed, variants[0], given.whole)
        print(trace)
        return int(verdict.bad)
    began = time.monotonic()
    tallies = run(variants, given.first, given.seeds, given.processes, given.until_bad, given.progress)
    if given.json:
        print(json.dumps({variant: _figures(tally) for variant, tally in tallies.items()}))
    else:
        print(table(tallies.values()))
        total = sum(t.sums["faults"] for t in tallies.values())
        print(f"\n{total:,} faults in {time.monotonic() - began:.0f} s; slowest drain "
              f"{max(t.slowest_drain_s for t in tallies.values()):.1f} s of simulated time")  # fmt: skip
        ours = tallies.get(OURS)
        if ours:
            print(f"healthy records quarantined: {ours.sums['quarantined']:,} of {ours.sums['records']:,}")
    ours = tallies.get(OURS)
    if ours and ours.bad_seeds:
        for seed, notes in ours.bad:
            print(f"seed {seed}: {'; '.join(notes)}", file=sys.stderr)
        if not given.json:
            print(explain(ours.bad[0][0])[1])
    return int(bool(ours and ours.bad_seeds))


if __name__ == "__main__":
    sys.exit(main())
