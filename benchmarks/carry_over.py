"""Do the figures carry over? Other people's victims, and honest clients of a generator that calibration never saw.

    python -m benchmarks.carry_over [--victims alarm,vowels] [--short] [--out FILE] [--fresh]

Two generators of honest clients, written apart: that of the simulator (`first`) and `benchmarks.second_generator` (`second`). On each
victim every calibration is tested on the honest clients of both: *within* a generator, and *across*, leave-one-generator-out.

Rules of the file:

* A *fleet* is a victim with a seed, which deals the items out and draws the clients.
* Items come in four groups, clients in two halves of two groups. Half of the clients calibrates and the other half is tested, then the
  other way round: no item and no client is on both sides.
* Calibrations are of one generator, or of both in equal parts and as many clients in all (`both`).
* The population has each generator's own shares of kinds. Kinds that are rare in it get more tested clients; these count by kind only.
* What if a kind is missing, or if two clients of it calibrate? Then the same map is calibrated anew on the clients that are left.
* `fit` rehearses honest tools, which are the simulator's. So each calibration is also tried without them (`unaided`): only then is a
  calibration on the second generator free of the first.
* Controls: a calibration asked about its own clients must stay within the budget; honest clients labelled as thieves must be caught as
  seldom as honest ones are; `in_domain`, honest rows from a thief's account, too.
* A fleet that is in the results file already is kept, so a run can be cut short and resumed; `--fresh` measures all anew.
* Cost: linear in fleets and in queries, `cpu_s` of each stands in the results; most of it goes into the six fits of a fleet.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours
from benchmarks.budget import answered
from benchmarks.carry_tables import BOTH, FIRST, GENERATORS, LEVELS, RESULTS, TABLES
from benchmarks.fingerprint import fingerprint
from benchmarks.other_victims import VICTIMS, build
from benchmarks.ours import Tested, visible
from benchmarks.progress import say
from benchmarks.second_generator import KINDS, second_population
from benchmarks.victims import Victim
from detector.baseline import Baseline
from detector.fitting.baseline import FittedClients, Rehearsed
from detector.profile import Profile
from detector.scoring import Assessment
from detector.simulation.attacks import ATTACKS
from detector.simulation.domain import HonestPools
from detector.simulation.honest import BENIGN
from detector.simulation.population import Stream, honest_stream, simulated_population

HALVES = ((0, 1), (2, 3))
FEW = 2
Count = list[int]
"""[flagged, clients]"""
Population = Callable[[HonestPools, np.random.Generator, int], list[Stream]]


@dataclass(frozen=True, slots=True)
class Plan:
    """clients: honest ones of a generator and a group; a_kind: tested of each kind at least; thefts: variant → runs of each family.

    real_items: no honest client asks for blends of items.
    """

    victims: tuple[str, ...] = tuple(VICTIMS)
    seeds: tuple[int, ...] = (1, 2)
    clients: int = 126
    a_kind: int = 36
    thefts: dict[str, int] = field(default_factory=lambda: {"plain": 2, "drip50": 1, "drip10": 1})
    queries: tuple[int, int] = (400, 3000)
    drip_queries: dict[str, int] = field(default_factory=lambda: {"0.5": 1000, "0.1": 300})
    families: tuple[str, ...] = tuple(
        family for family, attack in ATTACKS.items() if attack.visible or family == "in_domain"
    )
    budget: float = 0.01
    real_items: bool = True


SHORT = Plan(victims=("vowels",), seeds=(0,), clients=40, a_kind=0, thefts={"plain": 1}, queries=(300, 800))


@dataclass(frozen=True, slots=True)
class Honest:
    """A generator's clients of one half: the population, and more of its rare kinds."""

    population: list[Tested]
    more: list[Tested]


def first_population(pools: HonestPools, rng: np.random.Generator, clients: int) -> list[Stream]:
    return simulated_population(pools, lambda rows: rows, rng, clients=clients)


def populated(victim: Victim, generator: str, half: int, plan: Plan, rng: np.random.Generator) -> Honest:
    """The clients of one generator in one half, answered."""
    groups = [victim.pools[g] for g in HALVES[half]]
    if generator == FIRST:
        made = [first_population(pools, rng, plan.clients) for pools in groups]
    else:
        made = [second_population(pools, victim.predict, rng, plan.clients) for pools in groups]
    streams = [s for some in made for s in some]
    more: list[Stream] = []
    for kind in BENIGN if generator == FIRST else KINDS:
        short = plan.a_kind // 2 - sum(s.kind == kind for s in streams)
        for i in range(short):
            pools = groups[i % 2]
            if generator == FIRST:
                more.append(honest_stream(kind, pools, rng.spawn(1)[0]))
            else:
                more += second_population(pools, victim.predict, rng, 1, (kind,))
    known = answered(victim, streams + more)
    return Honest(known[: len(streams)], known[len(streams) :])


def thefts_of(victim: Victim, plan: Plan, rng: np.random.Generator) -> list[Tested]:
    wanted = [
        (family, variant) for variant, runs in plan.thefts.items() for family in plan.families for _ in range(runs)
    ]
    most = {float(share): queries for share, queries in plan.drip_queries.items()}
    streams = simulated_population(
        victim.thieves, victim.predict, rng, clients=0, attacks=wanted, queries=plan.queries, drip_queries=most
    )
    return answered(victim, streams)


def calibrating(
    honest: Mapping[tuple[str, int], Honest], source: str, half: int, rng: np.random.Generator
) -> list[Tested]:
    """The clients that calibrate: of one generator, or half as many of each."""
    if source != BOTH:
        return honest[source, half].population
    chosen: list[Tested] = []
    for generator in GENERATORS:
        clients = honest[generator, half].population
        chosen += [clients[i] for i in rng.permutation(len(clients))[: len(clients) // 2]]
    return chosen


@dataclass(frozen=True, slots=True)
class Judged:
    """Clients and whether each is flagged by a baseline."""

    clients: Sequence[Tested]
    profiles: Sequence[Profile]
    said: Sequence[Assessment]
    flagged: NDArray[np.bool_]


def judged(victim: Victim, baseline: Baseline, clients: Sequence[Tested], budget: float) -> Judged:
    profiles = ours.profiles_of(victim, baseline, clients)
    return again(baseline, clients, profiles, budget)


def again(baseline: Baseline, clients: Sequence[Tested], profiles: Sequence[Profile], budget: float) -> Judged:
    """Clients that are folded already."""
    said = ours.assessed(baseline, profiles)
    return Judged(clients, profiles, said, np.array([ours.is_flagged(one, baseline, budget) for one in said], np.bool_))


def by_kind(clients: Sequence[Tested], flagged: NDArray[np.bool_]) -> dict[str, Count]:
    found: dict[str, Count] = defaultdict(lambda: [0, 0])
    for client, is_flagged in zip(clients, flagged, strict=True):
        found[client.stream.kind][0] += bool(is_flagged)
        found[client.stream.kind][1] += 1
    return dict(sorted(found.items()))


def total(counts: Mapping[str, Count]) -> Count:
    return [sum(c[0] for c in counts.values()), sum(c[1] for c in counts.values())]


def without_kinds(
    baseline: Baseline, fitted: FittedClients, calibration: Sequence[Tested], seen: Judged, population: int, plan: Plan,
    rng: np.random.Generator,
) -> dict[str, dict[str, Count]]:  # fmt: skip
    """kind → flagged of it and of all others if no client of it calibrates, and of it if `FEW` do. population: the first of `seen`."""
    kinds = np.array([c.stream.kind for c in calibration])
    tested = np.array([c.stream.kind for c in seen.clients])
    found: dict[str, dict[str, Count]] = {}
    for kind in sorted(set(kinds.tolist())):
        mine = np.flatnonzero(kinds == kind)
        others = [i for i in range(population) if tested[i] != kind]
        own = np.flatnonzero(tested == kind).tolist()
        cell: dict[str, Count] = {}
        for name, left, asked in (("none", 0, own), ("others", 0, others), ("few", FEW, own)):
            kept = np.ones(len(kinds), np.bool_)
            kept[rng.permutation(mine)[left:]] = False
            less = ours.on_clients(baseline, fitted, kept)
            result = again(less, [seen.clients[i] for i in asked], [seen.profiles[i] for i in asked], plan.budget)
            cell[name] = [int(result.flagged.sum()), len(asked)]
        found[kind] = cell
    return found


def run_calibration(
    victim: Victim, source: str, half: int, honest: Mapping[tuple[str, int], Honest], thefts: Sequence[Tested], rehearsed: Rehearsed,
    plan: Plan,
) -> dict[str, Any]:  # fmt: skip
    """All that one calibration says."""
    rng = np.random.default_rng([half, (*GENERATORS, BOTH).index(source)])
    calibration = calibrating(honest, source, half, rng)
    baseline, fitted = ours.fitted(victim, calibration, rng, rehearsed)
    unaided = ours.without_pseudo_clients(baseline, fitted)
    itself = judged(victim, baseline, calibration, plan.budget)
    found: dict[str, Any] = {
        "clients": len(calibration),
        "excluded": int(fitted.excluded.sum()),
        "itself": [int(itself.flagged.sum()), len(calibration)],
        "honest": {},
        "more": {},
        "unaided": {},
        "below": {},
        "alarms": [],
    }
    flags: list[NDArray[np.bool_]] = []
    for generator in GENERATORS:
        other = honest[generator, 1 - half]
        seen = judged(victim, baseline, [*other.population, *other.more], plan.budget)
        n = len(other.population)
        flags.append(seen.flagged[:n])
        found["honest"][generator] = by_kind(other.population, seen.flagged[:n])
        p_values = np.array([one.p_value for one in seen.said[:n]])
        found["below"][generator] = [int((p_values <= level).sum()) for level in LEVELS]
        found["more"][generator] = by_kind(other.more, seen.flagged[n:])
        alone = again(unaided, other.population, seen.profiles[:n], plan.budget)
        found["unaided"][generator] = by_kind(other.population, alone.flagged)
        for i in np.flatnonzero(seen.flagged).tolist():
            one = seen.said[i]
            found["alarms"].append(
                [generator, seen.clients[i].stream.kind, one.strongest, round(one.odd), round(one.distinct)]
            )
        if generator == source:
            found["kinds"] = without_kinds(baseline, fitted, calibration, seen, n, plan, rng)
    stolen = judged(victim, baseline, thefts, plan.budget)
    cells: dict[str, dict[str, Count]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for client, is_flagged in zip(thefts, stolen.flagged, strict=True):
        cell = cells[client.stream.kind][client.stream.variant]
        cell[0] += bool(is_flagged)
        cell[1] += 1
    found["thefts"] = {family: dict(each) for family, each in sorted(cells.items())}
    pretended = rng.permutation(np.concatenate(flags))[: sum(visible(c) for c in thefts)]
    found["pretended"] = [int(pretended.sum()), len(pretended)]
    return found


def run_fleet(name: str, seed: int, plan: Plan) -> dict[str, Any]:
    """All figures of one victim with one seed."""
    warnings.filterwarnings("ignore", module="sklearn")
    began = time.process_time()
    rng = np.random.default_rng([seed, *name.encode()])
    victim = build(name, seed, plan.real_items)
    honest = {(g, h): populated(victim, g, h, plan, rng) for g in GENERATORS for h in range(len(HALVES))}
    thefts = thefts_of(victim, plan, rng)
    rehearsed = ours.rehearsed_for(victim)
    queries = sum(len(c.stream.inputs) for one in honest.values() for c in (*one.population, *one.more))
    say(f"{name} {seed}", f"{queries:,} honest queries after {time.process_time() - began:.0f} s")
    found: dict[str, Any] = {}
    for source in (*GENERATORS, BOTH):
        for half in range(len(HALVES)):
            found[f"{source} {half}"] = run_calibration(victim, source, half, honest, thefts, rehearsed, plan)
        say(f"{name} {seed}", f"calibrated on {source} after {time.process_time() - began:.0f} s")
    return {
        "text": VICTIMS[name].text if name in VICTIMS else name,
        "columns": victim.domain.width,
        "reference": len(victim.reference),
        "honest_queries": queries,
        "calibrations": found,
        "cpu_s": round(time.process_time() - began),
    }


def described(plan: Plan) -> dict[str, Any]:
    """The plan as the results file keeps it."""
    return json.loads(json.dumps({k: v for k, v in asdict(plan).items() if k not in ("victims", "seeds")}))  # type: ignore[no-any-return]


def write(results: Mapping[str, Any], path: Path) -> None:
    """JSON with a line a calibration, so that a diff can be read."""
    head = {key: value for key, value in results.items() if key != "fleets"}
    lines = [json.dumps(head, indent=1)[:-2] + ',\n "fleets": {']
    for i, (name, found) in enumerate(results["fleets"].items()):
        rest = {key: value for key, value in found.items() if key != "calibrations"}
        lines.append(f'  {json.dumps(name)}: {json.dumps(rest)[:-1]}, "calibrations": {{')
        lines.append(",\n".join(f"   {json.dumps(k)}: {json.dumps(c)}" for k, c in found["calibrations"].items()))
        lines.append("  }}" + ("," if i + 1 < len(results["fleets"]) else ""))
    path.write_text("\n".join(lines) + "\n }\n}\n", encoding="utf-8")


def run(plan: Plan, out: Path | None = None, fresh: bool = False) -> dict[str, Any]:
    """All fleets; those that `out` holds are not measured again, if the plan and the detector are the same."""
    head = {"detector_fingerprint": fingerprint(), "plan": described(plan)}
    fleets: dict[str, Any] = {}
    if out and out.exists() and not fresh:
        known = json.loads(out.read_text(encoding="utf-8"))
        if {key: known.get(key) for key in head} == head:
            fleets = known["fleets"]
    for seed in plan.seeds:
        for name in plan.victims:
            if f"{name} {seed}" not in fleets:
                fleets[f"{name} {seed}"] = run_fleet(name, seed, plan)
                if out:
                    write({**head, "fleets": fleets}, out)
    return {**head, "fleets": fleets}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="False alarms and recall across victims and generators of honest clients."
    )
    parser.add_argument("--short", action="store_true", help="one victim, few clients; prints only")
    parser.add_argument("--victims", help="comma-separated names, also of the detection benchmark")
    parser.add_argument(
        "--out", type=Path, help=f"where the figures go (default: {RESULTS}, nowhere if --short or --victims)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure victims again that the file holds")
    arguments = parser.parse_args()
    plan = SHORT if arguments.short else Plan()
    if arguments.victims:
        plan = replace(plan, victims=tuple(arguments.victims.split(",")))
    out = arguments.out or (None if arguments.short or arguments.victims else RESULTS)
    results = run(plan, out, arguments.fresh)
    print("\n".join(f"{name}\n{make(results)}" for name, make in TABLES.items()))


if __name__ == "__main__":
    main()
