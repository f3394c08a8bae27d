"""The detection benchmark: ours and the literature on the same victims, honest clients, thefts and calibrations.

    python -m benchmarks.detection [--short] [--victims digits,texts] [--out FILE]

Rules of the file:

* Honest clients come in four groups with items of their own. A split calibrates on two groups and tests on the other two; six splits,
  in pairs, so that each pair tests every honest client once. In every split one honest kind is kept out of calibration.
* Every method gets the same calibration clients and the same lifetime budget. Ours runs through the product's own functions:
  see `benchmarks.ours`. Methods of the literature also run at their published thresholds.
* Thefts split over accounts have a benchmark of their own (`benchmarks.campaigns`): no other method puts accounts together.
* A figure is kept by victim, split, kind or family, variant and method; pooling is for whoever reads (`benchmarks.tables`).
* Nothing of the detector was chosen on these results.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two processes on two cores; forests and boosting on few rows gain nothing

import argparse
import json
import multiprocessing
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import art_attacks, ours
from benchmarks.evaluation import first_alarm, lifetime_level
from benchmarks.fingerprint import fingerprint
from benchmarks.foreign import FOREIGN
from benchmarks.leak import describe, leak
from benchmarks.literature import METHODS, Known
from benchmarks.ours import Tested
from benchmarks.progress import say
from benchmarks.tables import CONTROL, OURS, SPOILT, TRUSTING, UNAIDED, UNEXPECTED, read, summary
from benchmarks.victims import GROUPS, VICTIMS, Victim, build
from detector.simulation.attacks import ATTACKS, AttackerKnowledge
from detector.simulation.copies import Surrogate
from detector.simulation.domain import Rows
from detector.simulation.honest import BENIGN
from detector.simulation.population import Stream, simulated_population, theft_streams

RESULTS = Path(__file__).parent / "results" / "detection.json"
SPLITS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))
"""Groups that calibrate; the others test."""
HELD_OUT = ("explainer", "misrouted", "qa_edge", "robustness", "shifted", "what_if")
"""The honest kind that each split keeps out of calibration."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything.

    clients         honest ones a group; kinds: which
    thefts          variant → runs of each family; retold: variants of each family's first plain theft
    queries         size of a theft, from and to; drip_queries: most stolen answers of a drip of that share
    budget          share of honest clients that may ever be flagged
    """

    clients: int = 126
    splits: int = 6
    thefts: dict[str, int] = field(default_factory=lambda: {"plain": 2, "drip50": 1, "drip10": 1})
    retold: tuple[str, ...] = ("slow",)
    queries: tuple[int, int] = (400, 3000)
    drip_queries: dict[float, int] = field(default_factory=lambda: {0.5: 1000, 0.1: 300})
    victims: tuple[str, ...] = tuple(VICTIMS)
    families: tuple[str, ...] = tuple(ATTACKS)
    others: tuple[str, ...] = tuple(FOREIGN)
    kinds: tuple[str, ...] = tuple(BENIGN)
    seed: int = 2026
    budget: float = 0.01


SHORT = Plan(
    clients=60,
    splits=2,
    thefts={"plain": 1, "drip50": 1},
    retold=(),
    queries=(300, 1000),
    victims=("digits", "tumour", "affairs-labels"),
)


def populate(victim: Victim, plan: Plan, literature: bool = True) -> list[Tested]:
    """All honest clients and thefts of one victim, with or without the courses of every method of the literature."""
    rng = np.random.default_rng([plan.seed, *victim.name.encode()])
    streams = [
        (s, g)
        for g in range(GROUPS)
        for s in simulated_population(victim.pools[g], victim.predict, rng, clients=plan.clients, kinds=plan.kinds)
    ]
    wanted = [
        (family, variant) for variant, runs in plan.thefts.items() for family in plan.families for _ in range(runs)
    ]
    stolen = simulated_population(
        victim.thieves,
        victim.predict,
        rng,
        clients=0,
        attacks=wanted,
        queries=plan.queries,
        drip_queries=plan.drip_queries,
    )
    streams += [(s, -1) for s in stolen]
    thief = victim.thieves
    for child, (family, rows) in zip(rng.spawn(len(plan.families)), first_plain(stolen).items(), strict=False):
        for variant in plan.retold:
            made = theft_streams(family, variant, thief, victim.predict, child, len(rows), stolen=rows)
            streams += [(s, -1) for s in made]
    for family in plan.others:
        for child in rng.spawn(plan.thefts["plain"]):
            most = round(float(np.exp(child.uniform(*np.log(plan.queries)))))
            rows = art_attacks.steal(
                family, AttackerKnowledge(thief.domain, thief.own, thief.foreign), victim.predict, most, child
            )
            made = theft_streams(family, "plain", thief, victim.predict, child, len(rows), stolen=rows)
            streams += [(s, -1) for s in made]
    known = Known(victim, victim.reference, rng) if literature else None
    answers = np.split(
        victim.predict(np.vstack([s.inputs for s, _ in streams])), np.cumsum([len(s.inputs) for s, _ in streams])
    )
    out = []
    for (stream, group), answer in zip(streams, answers, strict=False):
        out.append(Tested(stream, group, answer, {} if known is None else _courses(known, stream, answer)))
    return out


def _courses(known: Known, stream: Stream, answer: Rows) -> dict[str, tuple[NDArray[np.int64], Rows]]:
    """Looks and running maxima of one client, by method of the literature."""
    life = known.life(stream.inputs, answer)
    courses = {}
    for name, method in METHODS.items():
        at, values = method.statistic(life, known)
        courses[name] = (at, np.maximum.accumulate(values) if len(values) else values)
    return courses


def deals(clients: list[Tested], splits: int) -> Iterator[tuple[str, list[Tested], list[Tested]]]:
    """Split by split: the honest kind that is held out, who calibrates, who is tested."""
    for groups, held in zip(SPLITS[:splits], HELD_OUT, strict=False):
        calibration = [c for c in clients if c.group in groups and c.stream.kind != held]
        yield held, calibration, [c for c in clients if c.group not in groups]


def theirs(method: str, level: float, window: int, tested: list[Tested]) -> list[int | None]:
    """Queries at which each tested client exceeds the level; looks before `window` queries don't count."""
    alarms = []
    for client in tested:
        at, values = client.courses[method]
        due = at >= window
        alarms.append(first_alarm(at[due], values[due], level))
    return alarms


class Tally:
    """Counts of one victim by method, rule, honest kind or theft; one entry a split."""

    def __init__(self, splits: int) -> None:
        self.honest: dict[tuple[str, str, str], list[list[int]]] = defaultdict(lambda: [[0, 0] for _ in range(splits)])
        self.thefts: dict[tuple[str, str, str, str], list[list[int]]] = defaultdict(
            lambda: [[0, 0] for _ in range(splits)]
        )
        self.queries: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)

    def add(self, method: str, rule: str, split: int, tested: list[Tested], alarms: list[int | None]) -> None:
        for client, at in zip(tested, alarms, strict=True):
            s = client.stream
            cell = (
                self.honest[method, rule, s.kind] if client.group >= 0 else self.thefts[method, rule, s.kind, s.variant]
            )[split]
            cell[0] += at is not None
            cell[1] += 1
            if at is not None and client.group < 0:
                self.queries[method, rule, s.kind, s.variant].append(client.stolen(at))

    def nested(self) -> dict[str, Any]:
        """method → rule → honest: kind → [flagged, tested] by split; thefts: family → variant → the same, with attack queries at alarm."""
        out: dict[str, Any] = {}
        for (method, rule, kind), counts in sorted(self.honest.items()):
            out.setdefault(method, {}).setdefault(rule, {"honest": {}, "thefts": {}})["honest"][kind] = counts
        for (method, rule, family, variant), counts in sorted(self.thefts.items()):
            cell = {"caught": counts, "queries": sorted(self.queries[method, rule, family, variant])}
            out[method][rule]["thefts"].setdefault(family, {})[variant] = cell
        return out


def fidelity(victim: Victim, client: Tested, queries: int, cache: dict[tuple[str, int], float]) -> float:
    """Agreement with the victim, on rows nobody else has, of a copy trained on the theft's first so many answers."""
    if (client.stream.run, queries) not in cache:
        stolen = np.flatnonzero(client.stream.is_attack)[: max(queries, 2)]
        copy = Surrogate(victim.domain, np.random.default_rng(0)).fit(
            client.stream.inputs[stolen], client.answers[stolen]
        )
        labels = copy.scores(victim.held).argmax(axis=1)
        cache[client.stream.run, queries] = float(np.mean(labels == victim.predict(victim.held).argmax(axis=1)))
    return cache[client.stream.run, queries]


def first_plain(thefts: list[Stream]) -> dict[str, Rows]:
    """family → what its first plain theft sent: slow and split thefts send the same, at other times and from other accounts."""
    found: dict[str, Rows] = {}
    for s in thefts:
        if s.variant == "plain":
            found.setdefault(s.kind, s.inputs)
    return dict(sorted(found.items()))


def run_victim(name: str, plan: Plan, literature: bool = True) -> dict[str, Any]:
    """All figures of one victim; without the literature those of ours only."""
    warnings.filterwarnings("ignore", module="sklearn")
    warnings.filterwarnings("ignore", "scipy.stats.shapiro: For N > 5000")  # W is used, not its p
    began = time.monotonic()
    victim = build(name)
    say(name, "honest clients, thefts and the literature's statistics")
    clients = populate(victim, plan, literature)
    rehearsed = ours.rehearsed_for(victim)
    left_out: list[list[int]] = []
    floors: list[dict[str, dict[str, list[int]]]] = []
    able = [m for m in METHODS if literature and (m != "HODA" or victim.stages)]
    half = Known(victim, victim.reference[::2], np.random.default_rng(0)) if able else None
    levels = {m: METHODS[m].threshold(half) for m in able if half is not None}
    tally, cache, copies = Tally(plan.splits), dict[tuple[str, int], float](), defaultdict[str, list[list[float]]](list)
    for split, (held, calibration, tested) in enumerate(deals(clients, plan.splits)):
        say(name, f"calibration split {split + 1} of {plan.splits}, {held} held out")
        baseline, fitted_clients = ours.fitted(victim, calibration, np.random.default_rng(split), rehearsed)
        profiles = ours.profiles_of(victim, baseline, tested)
        said = ours.assessed(baseline, profiles)
        alarms = ours.alarms(baseline, profiles, said, tested, plan.budget)
        tally.add(OURS, "equal", split, tested, alarms)
        for method, kinds in ((UNEXPECTED, (held,)), (UNAIDED, None)):
            other = ours.without_pseudo_clients(baseline, fitted_clients, kinds)
            found = ours.alarms(other, profiles, ours.assessed(other, profiles), tested, plan.budget)
            tally.add(method, "equal", split, tested, found)
        floors.append(ours.by_floor(said, tested, plan.budget, held))
        spoilt = ours.contaminated(
            victim, calibration, tested, plan.budget, np.random.default_rng([split, 2]), rehearsed
        )
        tally.add(SPOILT, "equal", split, spoilt.tested, spoilt.bounded)
        tally.add(TRUSTING, "equal", split, spoilt.tested, spoilt.trusting)
        left_out.append([*spoilt.left_out, spoilt.thieves])
        for client, at in zip(tested, alarms, strict=True):
            if client.group < 0 and at is not None and client.stream.variant == "plain":
                ends = [client.stolen(at), len(client.stream.inputs)]
                copies[client.stream.kind].append([round(fidelity(victim, client, n, cache), 3) for n in ends])
        for method in able:
            maxima = np.array([c.courses[method][1][-1] if len(c.courses[method][1]) else -np.inf for c in calibration])
            tally.add(method, "equal", split, tested, theirs(method, lifetime_level(maxima, plan.budget), 0, tested))
            if (level := levels[method]) is not None:
                tally.add(method, "published", split, tested, theirs(method, level, METHODS[method].window, tested))
    labels = victim.predict(victim.held).argmax(axis=1)
    honest = [c for c in clients if c.group >= 0]
    heavy = np.mean([len(np.unique(c.stream.inputs, axis=0)) > 2000 for c in honest])
    say(name, f"done in {time.monotonic() - began:.0f} s")
    return {
        "facts": {
            "text": VICTIMS[name].text, "columns": victim.domain.width, "classes": int(labels.max()) + 1,
            "reference": len(victim.reference),
            "honest_clients": len(honest), "calibration_clients": len([c for c in honest if c.group in SPLITS[0]]),
            "honest_above_2000_distinct": round(float(heavy), 4), "queries": int(sum(len(c.stream.inputs) for c in clients)),
            "majority": round(float(np.bincount(labels).max() / len(labels)), 3),
        },
        "methods": tally.nested(),
        "fidelity": dict(sorted(copies.items())),
        "left_out": left_out,
        "floors": floors,
        "metadata": [describe(c.stream.times_s, c.group < 0) for c in clients if c.group >= 0 or c.stream.variant == "plain"],
    }  # fmt: skip


def in_processes(
    work: Callable[[Any], tuple[str, Any]], tasks: Sequence[Any], processes: int
) -> Iterator[tuple[str, Any]]:
    """What `work` makes of each task, as it is done; each in a process of its own, or all in this one."""
    if processes == 1:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=os.nice, initargs=(10,), maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(work, tasks, chunksize=1)


def _one(task: tuple[str, Plan, bool]) -> tuple[str, dict[str, Any]]:
    return task[0], run_victim(*task)


def run(plan: Plan, processes: int = 2, keep: Path | None = None, literature: bool = True) -> dict[str, Any]:
    """The whole benchmark: environment, plan and figures of each victim, and the leak check over all.

    Figures are written to `keep` whenever a victim is done, so that a run that is cut short leaves what it had.
    """
    began = time.monotonic()
    tasks = [(name, plan, literature) for name in plan.victims]
    found: dict[str, dict[str, Any]] = {}
    for name, figures in in_processes(_one, tasks, processes):
        found[name] = figures
        if keep:
            write(report(found, plan, began), keep)
    return report(found, plan, began)


def report(found: dict[str, dict[str, Any]], plan: Plan, began: float) -> dict[str, Any]:
    names = [name for name in plan.victims if name in found]
    described = np.array([row for name in names for row in found[name]["metadata"]])
    packages = ("numpy", "scipy", "scikit-learn", "numba", "river", "statsmodels")
    return {
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "detector_fingerprint": fingerprint(),
            **{package: metadata.version(package) for package in packages},
        },
        "plan": {
            **asdict(plan),
            "calibrating_groups": SPLITS[: plan.splits],
            "held_out": HELD_OUT[: plan.splits],
        },
        "seconds": round(time.monotonic() - began),
        "leak": leak(described),
        "victims": {name: {k: v for k, v in found[name].items() if k != "metadata"} for name in names},
    }


def write(results: dict[str, Any], path: Path) -> None:
    """JSON with a line a cell group, so that a diff can be read."""
    body = {k: v for k, v in results.items() if k != "victims"}
    lines = [json.dumps(body, indent=1)[:-2] + ',\n "victims": {']
    for i, (name, found) in enumerate(results["victims"].items()):
        rest = {k: v for k, v in found.items() if k != "methods"}
        lines.append(f'  {json.dumps(name)}: {json.dumps(rest)[:-1]}, "methods": {{')
        cells = [
            f"   {json.dumps(m)}: {json.dumps(rules, separators=(',', ':'))}" for m, rules in found["methods"].items()
        ]
        lines.append(",\n".join(cells))
        lines.append("  }}" + ("," if i + 1 < len(results["victims"]) else ""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def renewed(before: dict[str, Any], ours_only: dict[str, Any]) -> dict[str, Any]:
    """An earlier run with the figures of ours from another one. Both must have tested the same clients: those of a seed are."""
    made = {**ours_only, "seconds": before["seconds"], "victims": {}}
    for name, old in before["victims"].items():
        new = ours_only["victims"][name]
        if _tested(new, OURS) != _tested(old, CONTROL):
            raise ValueError(f"{name}: other clients than in the earlier run; run the whole benchmark")
        made["victims"][name] = {**new, "methods": old["methods"] | new["methods"]}
    return made


def _tested(found: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """How many clients of each kind a method was tested on, split by split."""
    rule = found["methods"][method]["equal"]
    thefts = {f"{f}/{v}": cell["caught"] for f, cells in rule["thefts"].items() for v, cell in cells.items()}
    return {
        name: {k: [c[1] for c in counts] for k, counts in cells.items()}
        for name, cells in (("honest", rule["honest"]), ("thefts", thefts))
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Ours and the literature on the same victims, clients and calibrations."
    )
    parser.add_argument("--short", action="store_true", help="three victims, two splits: under three minutes")
    parser.add_argument("--victims", help="comma-separated names")
    parser.add_argument(
        "--out", type=Path, help="where the figures go (default: benchmarks/results/detection.json, nowhere if --short)"
    )
    parser.add_argument(
        "--ours",
        action="store_true",
        help="only ours, after a change of the detector; the others' figures stay as committed",
    )
    arguments = parser.parse_args()
    plan = SHORT if arguments.short else Plan()
    if arguments.victims:
        plan = Plan(**{**asdict(plan), "victims": tuple(arguments.victims.split(","))})
    out = arguments.out or (None if arguments.short or arguments.victims else RESULTS)
    if arguments.ours:
        results = renewed(read(), run(plan, literature=False))
        write(results, out or RESULTS)
    else:
        results = run(plan, keep=out)
    print(summary(results))


if __name__ == "__main__":
    main()
