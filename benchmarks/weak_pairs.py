"""Weak pairs on the worlds of the campaign benchmark: campaigns that share two weak links, and organisations whose tools have a software.

    python -m benchmarks.weak_pairs [--short] [--out FILE]

Rules of the file:

* Worlds (three of six), campaigns (three of five shapes) and organisations are those of `benchmarks.campaigns`. What is called is what
  detect calls: `candidates` and `weak_pairs` make groups, `compared` judges, `named_of` names.
* Honest accounts have weak links too: one of sixty kinds of software (one in twenty accounts has that of the thieves), one of four plans
  (two in five have that of the thieves), two in five share an address with 2 to 39 others, and each began when it began.
* What a campaign does not share by its scenario it has like an honest account, its start too.
* Found *by single links* is what detect found before there were pairs; found *with pairs* is by either.
* An organisation has an address, each tool in it a software of its own, and its accounts begin within one day: the hardest case, because
  the accounts of one tool then make a pair.
* The control deals a software and a start to as many honest accounts of the fleet.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import progress
from benchmarks.campaign_tables import by_members, with_interval
from benchmarks.campaign_world import SHAPES, answered, campaign, organisation, stolen_rows
from benchmarks.campaigns import SHORT, Judged, Plan, World
from benchmarks.evaluation import Rate
from benchmarks.fingerprint import group_fingerprint, pair_fingerprint
from benchmarks.tables import in_percent, table
from detector.campaigns import Group, candidates, named_of
from detector.simulation.population import HORIZON_S, Stream
from detector.weak_pairs import starts, weak_pairs

PLAN = Plan(worlds=Plan().worlds[3:], shapes=SHAPES[1:4], covers=(0.0, 0.5), organisations=2)
"""Three of the worlds with all six families, and campaigns of three shapes: 400, 68 and 190 accounts."""
DAY_MS = 86_400_000
SOFTWARE, PLANS = 60, (0.4, 0.3, 0.2, 0.1)
THEIR_SOFTWARE = 0.05
BEHIND_ADDRESSES = 0.4
OFFICES = (3, 40)
SCENARIOS: dict[str, tuple[frozenset[str], float]] = {
    "software and plan": (frozenset({"agent", "plan"}), 0.0),
    "software and 6 addresses": (frozenset({"agent", "ip"}), 0.0),
    "software, begun within a day": (frozenset({"agent", "start"}), 1.0),
    "software, begun within three days": (frozenset({"agent", "start"}), 3.0),
    "plan, begun within a day": (frozenset({"plan", "start"}), 1.0),
    "6 addresses, begun within a day": (frozenset({"ip", "start"}), 1.0),
}
"""Scenario → kinds of links that all accounts of a campaign share, and within how many days they begin."""
CONTROL = "software and start dealt at random"


@dataclass(frozen=True, slots=True)
class Weak:
    """Weak links of n accounts; −1: none. agent, plan, ip (n,); first_ms (n,): of the first query."""

    agent: NDArray[np.int64]
    plan: NDArray[np.int64]
    ip: NDArray[np.int64]
    first_ms: NDArray[np.int64]

    def __add__(self, other: Weak) -> Weak:
        return Weak(
            np.concatenate([self.agent, other.agent]),
            np.concatenate([self.plan, other.plan]),
            np.concatenate([self.ip, other.ip]),
            np.concatenate([self.first_ms, other.first_ms]),
        )

    def links(self) -> dict[int, list[str]]:
        """Account → its links without its start."""
        named = {"agent": self.agent, "plan": self.plan, "ip": self.ip}
        return {
            i: [f"{kind}:{values[i]}" for kind, values in named.items() if values[i] >= 0]
            for i in range(len(self.agent))
        }


def honest_links(streams: Sequence[Stream], rng: np.random.Generator) -> Weak:
    """What the honest accounts of a fleet share."""
    n = len(streams)
    weight = 1.0 / np.arange(2, SOFTWARE + 2)
    weight[0] = THEIR_SOFTWARE / (1 - THEIR_SOFTWARE) * weight[1:].sum()
    ip, office = np.full(n, -1), 100
    left = rng.permutation(n)[: round(BEHIND_ADDRESSES * n)]
    while len(left):
        seats = int(np.exp(rng.uniform(*np.log(OFFICES))))
        ip[left[:seats]], left, office = office, left[seats:], office + 1
    first = np.array([stream.times_s[0] * 1000 for stream in streams], np.int64)
    return Weak(rng.choice(SOFTWARE, n, p=weight / weight.sum()), rng.choice(len(PLANS), n, p=PLANS), ip, first)


def campaign_links(scenario: str, accounts: int, honest: Weak, rng: np.random.Generator) -> tuple[Weak, Weak]:
    """Links of a campaign's accounts, and those of the fleet: of 6 addresses each has twenty honest neighbours."""
    shared, days = SCENARIOS[scenario]
    like = rng.integers(0, len(honest.agent), accounts)
    begun = rng.uniform(0, 0.6 * HORIZON_S * 1000) + rng.uniform(0, max(days, 1.0) * DAY_MS, accounts)
    theirs = Weak(
        np.zeros(accounts, np.int64) if "agent" in shared else honest.agent[like],
        np.zeros(accounts, np.int64) if "plan" in shared else honest.plan[like],
        np.arange(accounts) % 6 if "ip" in shared else np.full(accounts, -1),
        begun.astype(np.int64) if "start" in shared else honest.first_ms[like],
    )
    if "ip" not in shared:
        return theirs, honest
    ip, near = honest.ip.copy(), rng.choice(len(honest.ip), min(120, len(honest.ip)), replace=False)
    ip[near] = np.arange(len(near)) % 6
    return theirs, Weak(honest.agent, honest.plan, ip, honest.first_ms)


@dataclass(frozen=True, slots=True)
class Found:
    """Accounts that are named: by single links, and with pairs; proposed: groups that pairs proposed."""

    single: set[int]
    both: set[int]
    proposed: int


def found_among(world: World, everybody: Judged, weak: Weak, of: range) -> Found:
    """What detect would alert of the groups with at least three of some accounts."""
    links, p_values = weak.links(), everybody.p_values
    named: list[set[int]] = [set(), set()]
    proposed = [
        Group(one.links, one.accounts)
        for one in weak_pairs(
            {i: [*mine, *starts(int(weak.first_ms[i]))] for i, mine in links.items()},
            dict(enumerate(p_values.tolist())),
        )
    ]
    for k, groups in enumerate((candidates(links), proposed)):
        for group in groups:
            if sum(i in of for i in group.members) >= 3 and world.flags(everybody, group.members):
                those = named_of(group, p_values[list(group.members)])
                named[k].update(i for i, yes in zip(group.members, those, strict=True) if yes)
    return Found(named[0], named[0] | named[1], len(proposed))


def campaigns(world: World, honest: Weak) -> list[dict[str, Any]]:
    """A row for each campaign and scenario."""
    plan, count = world.plan, len(honest.agent)
    at = (plan.worlds.index((world.name, world.seed)) * plan.a_world) % len(plan.families)
    families = [plan.families[(at + i) % len(plan.families)] for i in range(plan.a_world)]
    most = max(round(s.a_day * s.scaled_accounts * s.scaled_days) for s in plan.shapes) + 2000
    rows = []
    for f, family in enumerate(families):
        stolen = stolen_rows(world.victim, family, most, world.rng(7, f))
        for s, shape in enumerate(plan.shapes):
            for cover in plan.covers:
                streams = campaign(
                    shape, cover, family, stolen, world.victim.thieves, world.rng(8, f, s, round(100 * cover))
                )
                everybody = world.fleet + world.judged(world.accounts(answered(world.victim, streams)))
                theirs = range(count, count + len(streams))
                for k, scenario in enumerate(SCENARIOS):
                    mine, others = campaign_links(scenario, len(streams), honest, world.rng(9, f, s, k))
                    found = found_among(world, everybody, others + mine, theirs)
                    rows.append(
                        {"family": family, "shape": shape.name, "cover": cover, "accounts": len(streams), "scenario": scenario}
                        | {name: [len(of), sum(i in theirs for i in of)] for name, of in (("single", found.single), ("pairs", found.both))}
                    )  # fmt: skip
    return rows


def dealt(world: World, honest: Weak) -> list[list[int]]:
    """The control: for each shape, accounts that got a software and a start, and how many of them are named with pairs."""
    rows = []
    for s, shape in enumerate(world.plan.shapes):
        rng = world.rng(10, s)
        some = rng.choice(len(honest.agent), min(shape.scaled_accounts, len(honest.agent) // 3), replace=False)
        agent, first = honest.agent.copy(), honest.first_ms.copy()
        agent[some], first[some] = 0, 5 * DAY_MS + rng.integers(0, DAY_MS, len(some))
        found = found_among(world, world.fleet, Weak(agent, honest.plan, honest.ip, first), range(len(agent)))
        rows.append([len(some), len(found.both & set(some.tolist()))])
    return rows


def organisations(world: World, honest: Weak) -> dict[str, list[int]]:
    """Kind → [accused over its address, with pairs, organisations]."""
    found: dict[str, list[int]] = {}
    for k, kind in enumerate(world.plan.kinds):
        cell = found[kind] = [0, 0, 0]
        for i in range(world.plan.organisations):
            streams = organisation(kind, world.victim.pools[world.others[i % 2]], world.rng(6, k, i))
            if len(streams) < 3:
                continue
            rng, n = world.rng(11, k, i), len(streams)
            tools = np.unique([stream.kind for stream in streams], return_inverse=True)[1]
            day = rng.integers(0, 8) * DAY_MS + rng.integers(0, DAY_MS, n)
            mine = Weak(SOFTWARE + tools, rng.choice(len(PLANS), n, p=PLANS), np.full(n, 99), day)
            everybody = world.fleet + world.judged(world.accounts(answered(world.victim, streams)))
            seats = range(len(honest.agent), len(honest.agent) + n)
            got = found_among(world, everybody, honest + mine, seats)
            cell[0] += any(i in seats for i in got.single)
            cell[1] += any(i in seats for i in got.both)
            cell[2] += 1
    return found


def run_world(name: str, seed: int, plan: Plan) -> dict[str, Any]:
    """All figures of one world."""
    warnings.filterwarnings("ignore", module="sklearn")
    world = World(name, seed, plan)
    honest = honest_links(world.fleet_streams, world.rng(12))
    alone = found_among(world, world.fleet, honest, range(len(honest.agent)))
    progress.say(f"{name} {seed}", "the fleet is judged")
    return {
        "fleet": {"accounts": len(honest.agent), "proposed": alone.proposed, "named": len(alone.both)},
        "control": dealt(world, honest),
        "organisations": organisations(world, honest),
        "campaigns": campaigns(world, honest),
    }


def by_scenario(results: Mapping[str, Any]) -> str:
    """Scenario and cover → campaigns and accounts found by single links, and with pairs."""
    rows = [row for world in results["worlds"].values() for row in world["campaigns"]]
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        for cover in sorted({row["cover"] for row in rows}):
            mine = [row for row in rows if (row["scenario"], row["cover"]) == (scenario, cover)]
            campaigns_found = (
                with_interval(Rate(sum(r[k][1] > 0 for r in mine), len(mine))) for k in ("single", "pairs")
            )
            members = (by_members([r[k][1] for r in mine], [r["accounts"] for r in mine]) for k in ("single", "pairs"))
            right = by_members([r["pairs"][1] for r in mine], [r["pairs"][0] for r in mine])
            lines.append((scenario, in_percent(cover, 0), *campaigns_found, *members, right))
    titles = (
        "what the accounts share", "cover", "found by single links", "with pairs", "accounts named by single links", "with pairs",
        "of those, thieves",
    )  # fmt: skip
    return table(titles, lines)


def errors(results: Mapping[str, Any]) -> str:
    """Honest fleets, the control, and organisations."""
    worlds = list(results["worlds"].values())
    dealt_out = [row for world in worlds for row in world["control"]]
    single, pairs, groups = np.sum([of for world in worlds for of in world["organisations"].values()], axis=0).tolist()
    fleets = len(worlds)
    proposed, named = (sum(world["fleet"][what] > 0 for world in worlds) for what in ("proposed", "named"))
    lines = [
        ("honest fleets in which a pair proposed a group", f"{proposed} of {fleets}"),
        ("honest fleets in which an account was named", f"{named} of {fleets}"),
        (f"the control: {CONTROL}", f"{sum(named > 0 for _, named in dealt_out)} of {len(dealt_out)} found"),
        ("organisations accused over their address", with_interval(Rate(single, groups))),
        ("… or over a pair, where each tool has a software and all begin on one day", with_interval(Rate(pairs, groups))),
    ]  # fmt: skip
    return table(("honest accounts and weak pairs", "figure"), lines)


TABLES = {"bench-weak-pairs": by_scenario, "bench-weak-pairs-errors": errors}
"""Name → table."""


def environment() -> dict[str, str]:
    """What the results depend on: the group statistic, and how pairs are proposed."""
    return {"group_fingerprint": group_fingerprint(), "pair_fingerprint": pair_fingerprint()}


def run(plan: Plan, out: Path | None = None, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All worlds; those of `before` are not measured again. Written to `out` whenever one is done."""
    results = {"environment": environment(), "worlds": dict((before or {}).get("worlds", {}))}
    for name, seed in plan.worlds:
        if f"{name} {seed}" not in results["worlds"]:
            results["worlds"][f"{name} {seed}"] = run_world(name, seed, plan)
            if out:
                out.write_text(json.dumps(results, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Campaigns that share two weak links.")
    parser.add_argument("--short", action="store_true", help="one world, fewer shapes")
    parser.add_argument("--out", type=Path, help="where the figures are kept, so that a run can be resumed")
    arguments = parser.parse_args()
    out, before = arguments.out, None
    if out and out.exists():
        known = json.loads(out.read_text(encoding="utf-8"))
        before = known if known["environment"] == environment() else None
    results = run(SHORT if arguments.short else PLAN, out, before)
    print("\n".join(f"{name}\n{make(results)}" for name, make in TABLES.items()))


if __name__ == "__main__":
    main()
