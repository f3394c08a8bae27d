"""Weak pairs on the worlds of the campaign benchmark: campaigns that share two weak links, and organisations whose tools have a software.

    python -m benchmarks.weak_pairs [--short] [--out FILE] [--fresh]

Rules of the file:

* Worlds, campaigns (three of five shapes) and organisations are those of `benchmarks.campaigns`. The rule was chosen on its third victim,
  affairs, which is left out. What is called is what detect calls: `candidates` and `weak_pairs` make groups, `compared` judges,
  `named_of` names.
* Honest accounts have weak links too: one of sixty kinds of software (one in twenty accounts has that of the thieves), one of four plans
  (two in five have that of the thieves), two in five share an address with 2 to 39 others, and each began when it began.
* What a campaign does not share by its scenario it has like an honest account, its start too.
* Found *by single links* is what detect found before there were pairs; found *with pairs* is by either.
* An organisation has an address, each tool in it a software of its own, and its accounts begin within one day: the hardest case, because
  the accounts of one tool then make a pair.
* Three controls must fail. A software and a start are dealt to as many honest accounts of the fleet: nobody is named. The links of a
  fleet with a campaign in it are shuffled, each kind by itself: no pair is left. And the rule without its correction for the number of
  pairs (each is tested at `UNCORRECTED`) proposes groups in honest fleets, where the rule proposes none.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks import progress
from benchmarks.campaign_world import SHAPES, answered, campaign, organisation, stolen_rows
from benchmarks.campaigns import SHORT, Judged, Plan, World, described, write
from benchmarks.fingerprint import link_fingerprint, pair_fingerprint
from benchmarks.weak_pair_tables import RESULTS, TABLES
from detector import weak_pairs as rule
from detector.campaigns import FEWEST, Group, candidates, named_of
from detector.simulation.population import HORIZON_S, Stream
from detector.weak_pairs import starts, weak_pairs

WORLDS = (("segments", 4), ("tumour", 6), ("tumour", 3), ("segments", 1))
PLAN = Plan(worlds=WORLDS, shapes=SHAPES[1:4], covers=(0.0, 0.5), a_world=3, organisations=2)
"""Two victims, each with all six families over two seeds, and campaigns of three shapes: 400, 68 and 190 accounts."""
FLEETS = 20
"""How often the honest links of a world are dealt."""
UNCORRECTED = 0.05
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
    """Accounts that are named: by single links, and with pairs."""

    single: set[int]
    both: set[int]


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
                those = named_of(p_values[list(group.members)], np.zeros(len(group.members), np.bool_))
                named[k].update(i for i, yes in zip(group.members, those, strict=True) if yes)
    return Found(named[0], named[0] | named[1])


def proposed_among(weak: Weak, p_values: NDArray[np.float64], corrected: bool = True) -> int:
    """How many groups pairs propose. corrected: as the rule does; else each pair is tested at `UNCORRECTED`."""
    links = {i: [*mine, *starts(int(weak.first_ms[i]))] for i, mine in weak.links().items()}
    chance = rule.CHANCE
    if not corrected:
        common = Counter(link for seen in links.values() for link in seen)
        kept = [sum(common[link] >= FEWEST for link in seen) for seen in links.values()]
        chance = UNCORRECTED * sum(n * (n - 1) // 2 for n in kept) / FEWEST
    with mock.patch.object(rule, "CHANCE", chance):
        return len(weak_pairs(links, dict(enumerate(p_values.tolist()))))


def shuffled(weak: Weak, rng: np.random.Generator) -> Weak:
    """As common as they are, each kind of link dealt to accounts at random."""
    return Weak(*(rng.permutation(of) for of in (weak.agent, weak.plan, weak.ip, weak.first_ms)))


def honest_fleets(world: World) -> list[list[int]]:
    """For each deal of links to the honest fleet: groups proposed by the rule, and without its correction."""
    found = []
    for i in range(FLEETS):
        weak = honest_links(world.fleet_streams, world.rng(13, i))
        found.append([proposed_among(weak, world.fleet.p_values, corrected) for corrected in (True, False)])
    return found


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
                    mixed = shuffled(others + mine, world.rng(14, f, s, k))
                    rows.append(
                        {"family": family, "shape": shape.name, "cover": cover, "accounts": len(streams), "scenario": scenario,
                         "shuffled": proposed_among(mixed, everybody.p_values)}
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
    fleets = honest_fleets(world)
    progress.say(f"{name} {seed}", "the fleet is judged")
    return {
        "accounts": len(honest.agent),
        "fleets": fleets,
        "control": dealt(world, honest),
        "organisations": organisations(world, honest),
        "campaigns": campaigns(world, honest),
    }


def environment() -> dict[str, str]:
    """What the results depend on: what is done to groups that a link ties, and how pairs are proposed."""
    return {"link_fingerprint": link_fingerprint(), "pair_fingerprint": pair_fingerprint()}


def run(plan: Plan, out: Path | None = None, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All worlds; those of `before` are not measured again. Written to `out` whenever one is done."""
    results: dict[str, Any] = {"environment": environment(), "plan": described(plan)}
    results["worlds"] = dict((before or {}).get("worlds", {}))
    for name, seed in plan.worlds:
        if f"{name} {seed}" not in results["worlds"]:
            results["worlds"][f"{name} {seed}"] = run_world(name, seed, plan)
            if out:
                write(results, out)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Campaigns that share two weak links.")
    parser.add_argument("--short", action="store_true", help="one world, fewer shapes; prints only")
    parser.add_argument("--out", type=Path, help=f"where the figures go (default: {RESULTS}, nowhere if --short)")
    parser.add_argument("--fresh", action="store_true", help="measure worlds again that the file holds")
    arguments = parser.parse_args()
    plan, before = SHORT if arguments.short else PLAN, None
    out = arguments.out or (None if arguments.short else RESULTS)
    if out and out.exists() and not arguments.fresh:
        known = json.loads(out.read_text(encoding="utf-8"))
        same = known["environment"] == environment() and known["plan"] == described(plan)
        before = known if same else None
    results = run(plan, out, before)
    print("\n".join(f"{name}\n{make(results)}" for name, make in TABLES.items()))


if __name__ == "__main__":
    main()
