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
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ours import reference_of, rehearsed_for
from benchmarks.victims import Victim, build
from detector.attacks import ATTACKS
from detector.baseline import Baseline
from detector.evaluation import Rate
from detector.policy import FLAGGED, Policy, wanted
from detector.profiles import Profiles
from detector.query import QueryBatch
from detector.scoring import assess
from detector.worlds import Stream, world

RESULTS = Path(__file__).parent / "results" / "budget.json"
BUDGETS = (0.01, 0.001)
KEY = bytes(range(16))
HALF_HORIZON_MS = 15 * 86_400_000


@dataclass(frozen=True, slots=True)
class Plan:
    """clients: honest ones to calibrate on, and as many to test on."""

    victims: tuple[str, ...] = ("tumour", "segments")
    clients: int = 5000
    runs: int = 2
    seed: int = 1963


def batch_of(victim: Victim, streams: list[Stream]) -> QueryBatch:
    lengths = [len(s.inputs) for s in streams]
    rows = np.vstack([s.inputs for s in streams])
    answers = np.vstack([victim.predict(part) for part in np.array_split(rows, max(1, len(rows) // 50_000))])
    return victim.batch(
        [f"{s.client}-{i}" for i, s in enumerate(streams)], np.repeat(np.arange(len(streams), dtype=np.int32), lengths),
        rows, np.concatenate([s.times_s for s in streams]), answers,
    )  # fmt: skip


def honest(victim: Victim, groups: tuple[int, ...], clients: int, rng: np.random.Generator) -> list[Stream]:
    return [s for g in groups for s in world(victim.scenes[g], victim.predict, rng, clients=clients // len(groups))]


def p_and_state(
    victim: Victim, baseline: Baseline, streams: list[Stream]
) -> tuple[NDArray[np.float64], list[list[str]]]:
    """Lifetime p-value of each client, and its state at each budget."""
    p, states = [], []
    for some in (streams[i : i + 200] for i in range(0, len(streams), 200)):
        batch = batch_of(victim, some)
        profiles = Profiles(baseline.map, baseline.table, baseline.nulls_version, HALF_HORIZON_MS, capacity=200)
        profiles.add(list(batch.clients), batch, baseline.map.measure(batch, KEY))
        for client in batch.clients:
            assessment = assess(profiles.profile(client), baseline)
            p.append(assessment.p_value)
            states.append([wanted(assessment, baseline.nulls, Policy(b))[0] for b in BUDGETS])
    return np.array(p), states


def run_victim(name: str, plan: Plan) -> dict[str, Any]:
    began = time.monotonic()
    rng = np.random.default_rng([plan.seed, *name.encode()])
    victim = build(name)
    calibration = honest(victim, (0, 1), plan.clients, rng)
    tested = honest(victim, (2, 3), plan.clients, rng)
    thefts = world(
        victim.thieves, victim.predict, rng, clients=0, attacks=[(f, "plain") for f in ATTACKS for _ in range(plan.runs)],
        queries=(400, 3000),
    )  # fmt: skip
    say(name, f"{sum(len(s.inputs) for s in calibration):,} queries to calibrate on")
    baseline, _ = Baseline.fit(
        name, victim.schema, reference_of(victim), batch_of(victim, calibration), real_clients=True, rng=rng,
        rehearsed=rehearsed_for(victim),
    )  # fmt: skip
    say(name, "testing")
    _, honest_states = p_and_state(victim, baseline, tested)
    _, theft_states = p_and_state(victim, baseline, thefts)
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


def say(victim: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {victim}: {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="False alarms at the 1 % and the .1 % budget, with thousands of honest clients."
    )
    parser.add_argument("--short", action="store_true", help="one victim, 500 clients; prints only")
    plan = Plan(victims=("tumour",), clients=500, runs=1) if parser.parse_args().short else Plan()
    results = {"plan": asdict(plan), "victims": {name: run_victim(name, plan) for name in plan.victims}}
    text = json.dumps(results, indent=1)
    print(text)
    if plan == Plan():
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
