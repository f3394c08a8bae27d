"""The .1 % budget: what it takes to calibrate it, and what it then comes to.

One honest client in a thousand may ever be flagged. That needs thousands of honest lives to calibrate on, so here are `CLIENTS` of them,
and as many others that were never seen, on victims that are cheap to ask. The items of both are disjoint. Thefts are run beside
them, so that a budget that is held by flagging nobody would show. The control flags at random at the budget's rate: it holds the
budget too and catches nobody.

    python -m benchmarks.budget            writes benchmarks/results/budget.json (about 15 minutes)
    python -m benchmarks.budget --short    a tenth of the clients, one victim, prints only
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ours
from benchmarks.evaluation import Rate
from benchmarks.ours import Tested
from benchmarks.progress import publish, say
from benchmarks.victims import Victim, build
from detector.baseline import Baseline
from detector.policy import FLAGGED, Policy, State, wanted
from detector.simulation.attacks import ATTACKS
from detector.simulation.population import Stream, simulated_population

RESULTS = Path(__file__).parent / "results" / "budget.json"
BUDGETS = (0.01, 0.001)


@dataclass(frozen=True, slots=True)
class Plan:
    """clients: honest ones to calibrate on, and as many to test on."""

    victims: tuple[str, ...] = ("tumour", "segments")
    clients: int = 5000
    runs: int = 2
    seed: int = 1963


def answered(victim: Victim, streams: list[Stream]) -> list[Tested]:
    """The streams with what the victim answers."""
    rows = np.vstack([s.inputs for s in streams])
    answers = np.vstack([victim.predict(part) for part in np.array_split(rows, max(1, len(rows) // 50_000))])
    ends = np.cumsum([len(s.inputs) for s in streams])[:-1]
    each = zip(streams, np.split(answers, ends), strict=True)
    return [Tested(stream, 0 if stream.role == "benign" else -1, own, {}) for stream, own in each]


def honest(victim: Victim, groups: tuple[int, ...], clients: int, rng: np.random.Generator) -> list[Stream]:
    return [
        s
        for g in groups
        for s in simulated_population(victim.pools[g], victim.predict, rng, clients=clients // len(groups))
    ]


def states_of(victim: Victim, baseline: Baseline, streams: list[Stream]) -> list[list[State]]:
    """The state of each client at each budget."""
    states = []
    for some in (streams[i : i + 200] for i in range(0, len(streams), 200)):
        profiles = ours.profiles_of(victim, baseline, answered(victim, some))
        said = ours.assessed(baseline, profiles)
        states += [[wanted(one, baseline.calibration, Policy(b))[0] for b in BUDGETS] for one in said]
    return states


def run_victim(name: str, plan: Plan) -> dict[str, Any]:
    began = time.monotonic()
    rng = np.random.default_rng([plan.seed, *name.encode()])
    victim = build(name)
    calibration = honest(victim, (0, 1), plan.clients, rng)
    tested = honest(victim, (2, 3), plan.clients, rng)
    thefts = simulated_population(
        victim.thieves, victim.predict, rng, clients=0, attacks=[(f, "plain") for f in ATTACKS for _ in range(plan.runs)],
        queries=(400, 3000),
    )  # fmt: skip
    say(name, f"{sum(len(s.inputs) for s in calibration):,} queries to calibrate on")
    baseline, _ = ours.fitted(victim, answered(victim, calibration), rng, ours.rehearsed_for(victim))
    say(name, "testing")
    honest_states, theft_states = (states_of(victim, baseline, streams) for streams in (tested, thefts))
    found: dict[str, Any] = {"calibration_clients": len(calibration), "tested_clients": len(tested), "budgets": {}}
    for i, budget in enumerate(BUDGETS):
        flagged = [states[i] in FLAGGED for states in honest_states]
        caught = [s[i] in FLAGGED for s, t in zip(theft_states, thefts, strict=True) if ATTACKS[t.kind].visible]
        random = rng.random(len(tested)) < budget
        low, high = Rate(sum(flagged), len(flagged)).interval
        kinds = sorted({s.kind for s in tested})
        found["budgets"][str(budget)] = {
            "false_alarms": sum(flagged),
            "rate": round(sum(flagged) / len(flagged), 6),
            "interval": [round(low, 6), round(high, 6)],
            "caught_of_visible": [sum(caught), len(caught)],
            "control_false_alarms": int(random.sum()),
            "control_caught": int((rng.random(len(caught)) < budget).sum()),
            "by_kind": {
                k: [
                    sum(f for f, s in zip(flagged, tested, strict=True) if s.kind == k),
                    sum(s.kind == k for s in tested),
                ]
                for k in kinds
            },
        }
    say(name, f"done in {time.monotonic() - began:.0f} s")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description="False alarms at the 1 % and the .1 % budget, with thousands of honest clients."
    )
    parser.add_argument("--short", action="store_true", help="one victim, 500 clients; prints only")
    plan = Plan(victims=("tumour",), clients=500, runs=1) if parser.parse_args().short else Plan()
    results = {"plan": asdict(plan), "victims": {name: run_victim(name, plan) for name in plan.victims}}
    publish(results, RESULTS if plan == Plan() else None)


if __name__ == "__main__":
    main()
