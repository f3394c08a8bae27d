"""Fleets too small to calibrate on: a dozen real clients, with simulated ones beside them.

For each victim some draws of `CLIENTS` honest clients are calibrated on in three ways, and hundreds of other honest clients and plain
thefts are judged by each baseline:

* *beside*: as `fit` does it, simulated clients stand beside the real ones (docs/decisions/0046);
* *alone*: the same real clients alone, which `fit` does not do: the control, whose results vary more between draws;
* *many*: `MANY` real clients, what a fleet of its own size would have.

Rules: items of clients to calibrate on, of tested clients and of thieves are disjoint. The simulated clients come from the generator of
the honest clients, but from the reference's items and with answers of the nearest reference row: the figures flatter *beside* as far as
real tools differ from simulated ones.

    python -m benchmarks.small_fleets            writes benchmarks/results/small_fleets.json (about 8 minutes)
    python -m benchmarks.small_fleets --short    one victim, one draw; prints only
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import ours
from benchmarks.budget import answered, honest
from benchmarks.evaluation import Rate
from benchmarks.ours import Tested
from benchmarks.progress import publish, say
from benchmarks.victims import VICTIMS, Victim, build
from consumers.fit import simulated
from consumers.log.references import stack
from detector.baseline import Baseline
from detector.fitting import baseline as fitting
from detector.fitting.baseline import Rehearsed, fit_baseline
from detector.query import QueryBatch
from detector.simulation.attacks import ATTACKS
from detector.simulation.population import simulated_population

RESULTS = Path(__file__).parent / "results" / "small_fleets.json"
CLIENTS, MANY, BUDGET = 12, 150, 0.01
WAYS = ("beside", "alone", "many")


@dataclass(frozen=True, slots=True)
class Plan:
    """draws: small fleets of each victim; tested: honest clients judged by each; thefts: plain ones of each family."""

    victims: tuple[str, ...] = tuple(VICTIMS)
    draws: int = 3
    tested: int = 200
    thefts: int = 1
    seed: int = 1712


def fit_one(
    victim: Victim, real: Sequence[Tested], stand_ins: QueryBatch | None, rehearsed: Rehearsed, rng: np.random.Generator
) -> Baseline:
    """A baseline on these clients, however few. stand_ins: simulated ones beside them."""
    traffic, names = ours.as_batch(victim, real), frozenset[str]()
    if stand_ins is not None:
        traffic, names = stack([traffic, stand_ins]), frozenset(stand_ins.clients)
    with mock.patch.object(fitting, "MIN_CLIENTS", min(fitting.MIN_CLIENTS, len(real))):
        return fit_baseline(
            victim.name,
            victim.schema,
            ours.reference_of(victim),
            traffic,
            rng=rng,
            simulated=names,
            rehearsed=rehearsed,
        )[0]


def flagged(victim: Victim, baseline: Baseline, clients: Sequence[Tested]) -> list[bool]:
    """Whether each client is ever throttled or blocked."""
    said = ours.assessed(baseline, ours.profiles_of(victim, baseline, clients))
    return [ours.is_flagged(one, baseline, BUDGET) for one in said]


def run_victim(name: str, plan: Plan) -> dict[str, Any]:
    """False alarms and thefts caught of each way, all draws together and draw by draw."""
    began = time.monotonic()
    rng = np.random.default_rng([plan.seed, *name.encode()])
    victim = build(name)
    known = answered(victim, honest(victim, (0, 1), MANY, rng))
    tested = answered(victim, honest(victim, (2, 3), plan.tested, rng))
    families = [family for family, attack in ATTACKS.items() if attack.visible]
    streams = simulated_population(
        victim.thieves, victim.predict, rng, clients=0, attacks=[(f, "plain") for f in families for _ in range(plan.thefts)],
        queries=(400, 2000),
    )  # fmt: skip
    thieves = answered(victim, streams)
    rehearsed = ours.rehearsed_for(victim)
    stand_ins = simulated(ours.reference_of(victim), victim.schema, np.random.default_rng([plan.seed, 1]))
    found: dict[str, list[tuple[int, int]]] = {way: [] for way in WAYS}
    for draw in range(plan.draws):
        few = [known[i] for i in np.random.default_rng([plan.seed, draw]).choice(len(known), CLIENTS, replace=False)]
        ways = {"beside": (few, stand_ins), "alone": (few, None)} | ({"many": (known, None)} if draw == 0 else {})
        for way, (real, others) in ways.items():
            baseline = fit_one(victim, real, others, rehearsed, np.random.default_rng([plan.seed, draw, 2]))
            found[way].append((sum(flagged(victim, baseline, tested)), sum(flagged(victim, baseline, thieves))))
    say(name, f"done in {time.monotonic() - began:.0f} s")
    return {
        "tested": len(tested),
        "thefts": len(thieves),
        "ways": {
            way: {"false_alarms": [f for f, _ in each], "caught": [c for _, c in each]} for way, each in found.items()
        },
    }


def overall(victims: dict[str, dict[str, Any]], way: str) -> dict[str, Any]:
    """The way's figures over all victims and draws: shares, the 95 % interval of false alarms, and the largest share in one fleet."""
    false = [(f, v["tested"]) for v in victims.values() for f in v["ways"][way]["false_alarms"]]
    caught = [(c, v["thefts"]) for v in victims.values() for c in v["ways"][way]["caught"]]
    low, high = Rate(sum(f for f, _ in false), sum(n for _, n in false)).interval
    shares = sorted(f / n for f, n in false)
    return {
        "fleets": len(false),
        "false_alarms": round(sum(f for f, _ in false) / sum(n for _, n in false), 4),
        "interval": [round(low, 4), round(high, 4)],
        "least": round(shares[0], 4),
        "most": round(shares[-1], 4),
        "caught": round(sum(c for c, _ in caught) / sum(n for _, n in caught), 4),
        "caught_least": round(min(c / n for c, n in caught), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms and thefts caught in fleets of a dozen real clients.")
    parser.add_argument("--short", action="store_true", help="one victim, one draw; prints only")
    plan = Plan(victims=("tumour",), draws=1, tested=100) if parser.parse_args().short else Plan()
    victims = {name: run_victim(name, plan) for name in plan.victims}
    results = {"plan": asdict(plan), "overall": {way: overall(victims, way) for way in WAYS}, "victims": victims}
    publish(results, RESULTS if plan == Plan() else None)


if __name__ == "__main__":
    main()
