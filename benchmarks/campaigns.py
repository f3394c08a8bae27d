"""The campaign benchmark: campaigns as they were reported, split thefts, and honest organisations that must not be accused.

    python -m benchmarks.campaigns [--short] [--out FILE] [--fresh]

Rules of the file:

* A *world* is one victim with one seed: honest clients that calibrate, a fleet of others (one kind never seen in calibration),
  organisations, split thefts and campaigns. Worlds that are in the results file already are kept, so a run can be cut short and resumed;
  `--fresh` measures all anew.
* What is called is what detect calls: links make groups (`candidates`), the group statistic judges (`compared`, of at most `MOST_JUDGED`
  members), `named_of` names the members, `fleet_cells` and `patch_groups` find what no link ties.
* The queries of a campaign do not depend on its links. So every campaign is tried under each scenario of `LINKS`: who shares what.
* Each world is measured again with a larger calibration (`campaign_accounts`): organisations, the fleet, and campaigns over one strong link
  and with none, covers up to `MOST_COVER` (nothing is found above). A file that lacks it gets it, and keeps the rest.
* The control deals a link at random to as many honest accounts of the fleet. A rule that flags those is worth nothing.
* Thefts that content cannot show (`in_domain`) stand beside the others and are counted apart.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes on two cores

import argparse
import json
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import detection, ours, progress
from benchmarks.campaign_accounts import SHORT, Judged, Plan, World, told_by_content
from benchmarks.campaign_tables import HIDDEN, JOIN_LEVELS, RESULTS, TABLES
from benchmarks.campaign_world import answered, campaign, organisation, stolen_rows
from benchmarks.fingerprint import group_fingerprint
from benchmarks.victims import Victim
from detector.campaigns import candidates, named_of
from detector.scoring import assess
from detector.simulation.copies import Surrogate
from detector.simulation.domain import Rows
from detector.simulation.population import VARIANTS, Stream, theft_streams

__all__ = ["LINKS", "SHORT", "Judged", "Plan", "World", "described", "linked", "run", "write"]

SPLIT = tuple(name for name, how in VARIANTS.items() if how.accounts > 1)
SIZES = (3, 10, 50)
LOOKS = (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0)
"""Parts of a campaign's time after which it is looked at, for the time to detection."""
MOST_LEARNED = 4_000
"""Answers from which a copy is trained, to say how much was exposed."""
MOST_ASSESSED = 60
NOBODY = Judged([], np.empty(0), [], [])
WITH_LARGER = ("strong", "none")
"""Scenarios that are tried with the larger calibration."""
MOST_COVER = 0.5
LINKS = ("strong", "25 organisations", "software", "6 addresses", "plan", "dealt at random", "none")


class Case(NamedTuple):
    """A campaign of the benchmark: family of the theft, name of its shape, share of cover."""

    family: str
    shape: str
    cover: float


# --------------------------------------------------------------------------------------------------- split thefts


def splits(world: World) -> dict[str, Any]:
    """family → variant → [found as a group, the plain theft is flagged, found although it is not]."""
    plan, victim, rng = world.plan, world.victim, world.rng(4)
    found: dict[str, Any] = {}
    for family in plan.split:
        queries = round(float(np.exp(rng.uniform(*np.log(plan.queries)))))
        stolen = stolen_rows(victim, family, queries, rng)
        plain = theft_streams(family, "plain", victim.thieves, victim.predict, rng, len(stolen), stolen=stolen)
        (whole,) = world.accounts(answered(victim, plain)).profiles
        alone = ours.is_flagged(assess(whole, world.baseline), world.baseline, plan.budget)
        for variant in SPLIT:
            dealt = theft_streams(family, variant, victim.thieves, victim.predict, rng, len(stolen), stolen=stolen)
            accounts = world.judged(world.accounts(answered(victim, dealt)))
            caught = world.flags(accounts, range(len(dealt)))
            found.setdefault(family, {})[variant] = [int(caught), int(alone), int(caught and alone)]
    return found


# -------------------------------------------------------------------------------------------- honest organisations


def accused_groups(world: World) -> dict[str, list[int]]:
    """Size and make-up → [flagged, groups]: honest accounts of the fleet, put together as if they shared a link."""
    rng, kinds = world.rng(5), np.array([s.kind for s in world.fleet_streams])
    found = {}
    for size in SIZES:
        for make_up in ("mixed", "alike"):
            flagged = 0
            for _ in range(world.plan.groups):
                pool = np.arange(len(kinds)) if make_up == "mixed" else np.flatnonzero(kinds == rng.choice(kinds))
                rows = rng.choice(pool, size=min(size, len(pool)), replace=False)
                flagged += world.flags(world.fleet, rows.tolist())
            found[f"{size} {make_up}"] = [flagged, world.plan.groups]
    return found


def organisations(world: World) -> dict[str, list[int]]:
    """Kind → [accused over a link, accused over an address or found by content, organisations, accounts named, accounts]."""
    found: dict[str, list[int]] = {}
    for k, kind in enumerate(world.plan.kinds):
        cell = found[kind] = [0, 0, 0, 0, 0]
        for i in range(world.plan.organisations):
            rng = world.rng(6, k, i)
            streams = organisation(kind, world.victim.pools[world.others[i % 2]], rng)
            seen = world.accounts(answered(world.victim, streams))
            accounts = world.judged(seen)
            seats = list(range(len(streams)))
            if len(seats) == 1:
                flagged = ours.is_flagged(assess(seen.profiles[0], world.baseline), world.baseline, world.plan.budget)
            else:
                flagged = world.flags(accounts, seats)
            weak = np.zeros(len(seats), np.bool_)
            named = named_of(accounts.p_values, weak) if flagged else weak
            told = told_by_content(world, accounts)
            cell[0] += flagged
            cell[1] += bool(told)
            cell[2] += 1
            cell[3] += int(named.sum())
            cell[4] += len(seats)
    return found


# ------------------------------------------------------------------------------------------------------ campaigns


def linked(scenario: str, thieves: int, honest: int, rng: np.random.Generator) -> Mapping[int, list[str]]:
    """Account → its links; the honest accounts of the fleet come first.

    strong            an organisation, session, payment, device or registration that only the campaign has
    25 organisations  as many, each a twenty-fifth of the accounts
    software          client software: everybody in the campaign, and one honest account in twenty
    6 addresses       each account of the campaign behind one of six, with twenty honest neighbours each
    plan              everybody in the campaign, and four honest accounts in ten
    """
    links: dict[int, list[str]] = {i: [] for i in range(honest + thieves)}
    theirs = range(honest, honest + thieves)
    for i in theirs:
        if scenario == "strong":
            links[i] = ["payment:1"]
        elif scenario == "25 organisations":
            links[i] = [f"org:{i % 25}"]
        elif scenario == "software":
            links[i] = ["agent:1"]
        elif scenario == "plan":
            links[i] = ["plan:1"]
        elif scenario == "6 addresses":
            links[i] = [f"ip:{i % 6}"]
    if scenario in ("software", "plan"):
        for i in rng.choice(honest, size=round({"software": 0.05, "plan": 0.4}[scenario] * honest), replace=False):
            links[int(i)] = ["agent:1" if scenario == "software" else "plan:1"]
    if scenario == "6 addresses":
        for k, i in enumerate(rng.choice(honest, size=min(honest, 120), replace=False)):
            links[int(i)] = [f"ip:{k % 6}"]
    if scenario == "dealt at random":
        for i in rng.choice(honest, size=min(thieves, honest // 3), replace=False):
            links[int(i)] = ["payment:1"]
    return links


def found_by(world: World, scenario: str, others: Judged, rng: np.random.Generator) -> dict[str, Any]:
    """What detect would alert of a campaign under a scenario of links."""
    honest = len(world.fleet.statistics)
    everybody = world.fleet + others
    named: set[int] = set()
    kept = None
    if scenario == "none":
        for cell, at_most in told_by_content(world, others):
            named.update(cell.tolist())
            kept = kept is not False and int((cell < honest).sum()) <= at_most
    else:
        links = linked(scenario, len(others.statistics), honest, rng)
        for group in candidates(links):
            if world.flags(everybody, group.members):
                bound = group.bound(links[i] for i in group.members)
                those = named_of(everybody.p_values[list(group.members)], bound)
                named.update(i for i, yes in zip(group.members, those, strict=True) if yes)
    right = sum(i >= honest for i in named)
    told = right if scenario != "dealt at random" else len(named)
    return {"link": scenario, "found": int(told > 0), "named": len(named), "right": right, "bound": kept}


def time_to_detection(world: World, streams: Sequence[Stream], accounts: Judged) -> list[float] | None:
    """When a campaign is first found over a strong link, None if never.

    → part of its time, stolen queries, fidelity of a copy trained on them (on rows that nobody else has), and of one trained on all
    """
    last = max(s.times_s[-1] for s in streams)
    for part in LOOKS:
        seen = [_until(s, part * last) for s in streams if s.times_s[0] <= part * last]
        if len(seen) < 3:
            continue
        at = accounts if part == 1.0 else world.judged(world.accounts(answered(world.victim, seen)))
        if world.flags(at, range(len(seen))):
            stolen, everything = (_stolen(some) for some in (seen, streams))
            return [part, float(len(stolen)), *(_fidelity(world.victim, rows) for rows in (stolen, everything))]
    return None


def _stolen(streams: Sequence[Stream]) -> Rows:
    return np.vstack([s.inputs[s.is_attack] for s in streams])


def _fidelity(victim: Victim, stolen: Rows) -> float:
    if len(stolen) < 2:
        return 0.0
    rng = np.random.default_rng(0)
    stolen = stolen[rng.permutation(len(stolen))[:MOST_LEARNED]]
    copy = Surrogate(victim.domain, rng).fit(stolen, victim.predict(stolen))
    labels = copy.scores(victim.held).argmax(axis=1)
    return round(float(np.mean(labels == victim.predict(victim.held).argmax(axis=1))), 3)


def _until(stream: Stream, time_s: float) -> Stream:
    n = int(np.searchsorted(stream.times_s, time_s, "right"))
    return Stream(
        stream.client, stream.role, stream.kind, stream.variant, stream.run, stream.inputs[:n], stream.is_attack[:n],
        stream.times_s[:n],
    )  # fmt: skip


def sent(
    world: World, covers: Sequence[float], hidden: bool
) -> Iterator[tuple[Case, list[Stream], np.random.Generator]]:
    """The campaigns of a world, and what they send; hidden: those that content cannot show as well."""
    plan = world.plan
    at = (plan.worlds.index((world.name, world.seed)) * plan.a_world) % len(plan.families)
    families = [plan.families[(at + i) % len(plan.families)] for i in range(plan.a_world)]
    most = max(round(s.a_day * s.scaled_accounts * s.scaled_days) for s in plan.shapes) + 2000
    for f, family in enumerate((*families, *(HIDDEN if hidden else ()))):
        stolen = stolen_rows(world.victim, family, most, world.rng(7, f))
        for s, shape in enumerate(plan.shapes):
            for cover in covers if family not in HIDDEN else (0.0,):
                rng = world.rng(8, f, s, round(100 * cover))
                yield (
                    Case(family, shape.name, cover),
                    campaign(shape, cover, family, stolen, world.victim.thieves, rng),
                    rng,
                )


def campaigns(world: World) -> Iterator[dict[str, Any]]:
    """A row for each campaign: family, shape, cover, accounts, when it was found, and what each scenario of links found."""
    for case, streams, rng in sent(world, world.plan.covers, hidden=True):
        seen = world.accounts(answered(world.victim, streams))
        accounts = world.judged(seen)
        lifetime = [assess(profile, world.baseline).p_value for profile in seen.profiles[:MOST_ASSESSED]]
        yield {
            **case._asdict(), "accounts": len(streams),
            "joining": [[round(float(np.mean(p <= level)), 4) for level in JOIN_LEVELS]
                        for p in (accounts.p_values, np.array(lifetime))],
            "at": time_to_detection(world, streams, accounts),
            "links": [found_by(world, scenario, accounts, rng) for scenario in LINKS],
        }  # fmt: skip


def with_larger(name: str, seed: int, plan: Plan) -> dict[str, Any]:
    """The figures of a world with the larger calibration."""
    world = World(name, seed, plan, larger=True)
    progress.say(f"{name} {seed}", f"{world.calibrated_on:,} clients calibrate")
    rows = []
    for case, streams, rng in sent(world, [c for c in plan.covers if c <= MOST_COVER], hidden=False):
        accounts = world.judged(world.accounts(answered(world.victim, streams)))
        links = [found_by(world, scenario, accounts, rng) for scenario in WITH_LARGER]
        rows.append({**case._asdict(), "accounts": len(streams), "links": links})
    return {
        "clients": world.calibrated_on,
        "cells": len(told_by_content(world, NOBODY)),
        "organisations": organisations(world),
        "campaigns": rows,
    }


def run_world(name: str, seed: int, plan: Plan, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All figures of one world. kept: what is known of it already, all but the larger calibration."""
    warnings.filterwarnings("ignore", module="sklearn")
    began = time.process_time()
    say = f"{name} {seed}"
    found = dict(kept or _with_smaller(name, seed, plan, began))
    found["larger"] = with_larger(name, seed, plan)
    found["cpu_s"] = found.get("cpu_s", 0) + round(time.process_time() - began)
    progress.say(say, f"done after {found['cpu_s']} s of CPU time")
    return found


def _with_smaller(name: str, seed: int, plan: Plan, began: float) -> dict[str, Any]:
    world = World(name, seed, plan)
    say = f"{name} {seed}"
    progress.say(say, f"{len(world.fleet.statistics):,} accounts after {time.process_time() - began:.0f} s")
    found: dict[str, Any] = {
        "splits": splits(world),
        "groups": accused_groups(world),
        "organisations": organisations(world),
    }
    progress.say(say, f"split thefts and organisations after {time.process_time() - began:.0f} s")
    known = world.baseline.size_null.honest_p_values()[0]
    found["fleet"] = {
        "accounts": len(world.fleet.statistics),
        "below": [float(np.mean(world.fleet.p_values <= level)) for level in JOIN_LEVELS],
        "calibration": [float(np.mean(known <= level)) for level in JOIN_LEVELS],
        "cells": len(told_by_content(world, NOBODY)),
    }
    found["campaigns"] = list(campaigns(world))
    return found


def _one(task: tuple[str, int, Plan, Mapping[str, Any] | None]) -> tuple[str, dict[str, Any]]:
    return f"{task[0]} {task[1]}", run_world(*task)


def described(plan: Plan) -> dict[str, Any]:
    """The plan as the results file keeps it."""
    return json.loads(json.dumps(asdict(plan)))  # type: ignore[no-any-return]


def run(
    plan: Plan, processes: int = 2, out: Path | None = None, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All worlds; what `before` has of them is not measured again. Written to `out` whenever one is done."""
    worlds = dict((before or {}).get("worlds", {}))
    tasks = [
        (name, seed, plan, worlds.get(f"{name} {seed}"))
        for name, seed in plan.worlds
        if "larger" not in worlds.get(f"{name} {seed}", {})
    ]
    results = _results(plan, worlds)
    for name, found in detection.in_processes(_one, tasks, processes):
        worlds[name] = found
        results = _results(plan, worlds)
        if out:
            write(results, out)
    return results


def _results(plan: Plan, worlds: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "environment": {
            "python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count(),
            "group_fingerprint": group_fingerprint(),
        },
        "plan": described(plan),
        "worlds": {f"{v} {s}": worlds[f"{v} {s}"] for v, s in plan.worlds if f"{v} {s}" in worlds},
    }  # fmt: skip


def write(results: Mapping[str, Any], path: Path) -> None:
    """JSON with a line a campaign, so that a diff can be read."""
    head = {key: value for key, value in results.items() if key != "worlds"}
    lines = [json.dumps(head, indent=1)[:-2] + ',\n "worlds": {']
    for i, (name, found) in enumerate(results["worlds"].items()):
        rest = {key: value for key, value in found.items() if key != "campaigns"}
        lines.append(f'  {json.dumps(name)}: {json.dumps(rest)[:-1]}, "campaigns": [')
        lines.append(",\n".join(f"   {json.dumps(row)}" for row in found["campaigns"]))
        lines.append("  ]}" + ("," if i + 1 < len(results["worlds"]) else ""))
    path.write_text("\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Campaigns as reported, split thefts, and honest organisations.")
    parser.add_argument("--short", action="store_true", help="one world, fewer shapes; prints only")
    parser.add_argument("--out", type=Path, help=f"where the figures go (default: {RESULTS}, nowhere if --short)")
    parser.add_argument("--fresh", action="store_true", help="measure worlds again that the file holds")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    plan = SHORT if arguments.short else Plan()
    out = arguments.out or (None if arguments.short else RESULTS)
    before = None
    if out and out.exists() and not arguments.fresh:
        known = json.loads(out.read_text(encoding="utf-8"))
        plan_known = {"larger": plan.larger} | known.get("plan", {})
        same = plan_known == described(plan) and known["environment"]["group_fingerprint"] == group_fingerprint()
        before = known if same else None
    results = run(plan, 1 if len(plan.worlds) == 1 else arguments.processes, out, before)
    print("\n".join(f"{name}\n{make(results)}" for name, make in TABLES.items()))


if __name__ == "__main__":
    main()
