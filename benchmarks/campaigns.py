"""The campaign benchmark: thefts split over linked accounts, and honest accounts that happen to share a link.

    python -m benchmarks.campaigns [--short] [--out FILE]

Rules of the file:

* Victims, honest clients, splits and held-out kinds are those of the detection benchmark. A split theft sends what a plain one sent, dealt
  out to accounts that share a link, which nobody else has.
* Groups of honest clients, of any kinds and all of one kind (drawn by the kinds' shares), say how often an honest organisation is
  accused. They are the control: a rule that catches every split theft and accuses every second organisation is worth nothing.
* "One account alone" is what there is without a link: any account of the theft flagged by itself.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes on two cores

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import detection, ours
from benchmarks.ours import Tested
from benchmarks.victims import build
from detector.baseline import Baseline
from detector.campaigns import assess_group
from detector.profile import Profile
from detector.scoring import assess
from detector.simulation.attacks import ATTACKS
from detector.simulation.honest import BENIGN
from detector.simulation.population import VARIANTS

RESULTS = Path(__file__).parent / "results" / "campaigns.json"
SPLIT = tuple(name for name, how in VARIANTS.items() if how.accounts > 1)
SIZES = (3, 10, 50)
HONEST_GROUPS = 24
"""Groups of honest clients of each size and make-up that a split assesses."""
PLAN = detection.Plan(
    thefts={"plain": 1}, retold=SPLIT, others=(), families=tuple(f for f in ATTACKS if ATTACKS[f].visible)
)
SHORT = replace(PLAN, clients=60, splits=1, queries=(300, 1000), victims=("tumour",))


def campaigns(
    baseline: Baseline, profiles: Sequence[Profile], clients: Sequence[Tested], budget: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Split thefts, each a group of its accounts, and groups of honest clients.

    → "thefts": family → variant → [caught as a group, caught by one account alone, thefts]; "honest": size and make-up →
    [flagged, groups]
    """
    runs: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    honest: dict[str, list[int]] = defaultdict(list)
    for i, c in enumerate(clients):
        if c.group >= 0:
            honest[c.stream.kind].append(i)
        elif c.stream.variant in SPLIT:
            runs[c.stream.kind, c.stream.variant, c.stream.run].append(i)

    def flagged(members: Sequence[int]) -> bool:
        return assess_group([profiles[i] for i in members], baseline).p_value <= budget

    thefts: dict[str, dict[str, list[int]]] = {}
    for (family, variant, _), members in sorted(runs.items()):
        cell = thefts.setdefault(family, {}).setdefault(variant, [0, 0, 0])
        alone = any(ours.is_flagged(assess(profiles[i], baseline), baseline, budget) for i in members)
        cell[0] += flagged(members)
        cell[1] += alone
        cell[2] += 1
    accused: dict[str, list[int]] = {}
    everybody = [i for members in honest.values() for i in members]
    kinds = sorted(honest)
    shares = np.array([BENIGN[kind].share for kind in kinds])
    for size in SIZES:
        for make_up in ("mixed", "alike"):
            cell = accused.setdefault(f"{size} {make_up}", [0, 0])
            for _ in range(HONEST_GROUPS):
                pool = everybody if make_up == "mixed" else honest[rng.choice(kinds, p=shares / shares.sum())]
                members = rng.choice(pool, size=min(size, len(pool)), replace=False).tolist()
                cell[0] += flagged(members)
                cell[1] += 1
    return {"thefts": thefts, "honest": accused}


def run_victim(name: str, plan: detection.Plan) -> list[dict[str, Any]]:
    """What each split found."""
    warnings.filterwarnings("ignore", module="sklearn")
    began = time.monotonic()
    victim = build(name)
    clients = detection.populate(victim, plan, literature=False)
    rehearsed = ours.rehearsed_for(victim)
    found = []
    for split, (_, calibration, tested) in enumerate(detection.deals(clients, plan.splits)):
        baseline, _ = ours.fitted(victim, calibration, np.random.default_rng(split), rehearsed)
        profiles = ours.profiles_of(victim, baseline, tested)
        found.append(campaigns(baseline, profiles, tested, plan.budget, np.random.default_rng([split, 1])))
    detection.say(name, f"done in {time.monotonic() - began:.0f} s")
    return found


def _one(task: tuple[str, detection.Plan]) -> tuple[str, list[dict[str, Any]]]:
    return task[0], run_victim(*task)


def run(plan: detection.Plan, processes: int = 2) -> dict[str, Any]:
    """victim → split → what was found; see `campaigns`."""
    found = dict(detection.in_processes(_one, [(name, plan) for name in plan.victims], processes))
    return {
        "plan": {"variants": SPLIT, "families": plan.families, "sizes": SIZES, "budget": plan.budget},
        "victims": {name: found[name] for name in plan.victims},
    }


def main() -> None:
    from benchmarks.tables import CAMPAIGN_TABLES

    parser = argparse.ArgumentParser(description="Thefts split over linked accounts, and honest organisations.")
    parser.add_argument("--short", action="store_true", help="one victim, one split; prints only")
    parser.add_argument("--out", type=Path, help=f"where the figures go (default: {RESULTS}, nowhere if --short)")
    arguments = parser.parse_args()
    results = run(SHORT if arguments.short else PLAN)
    out = arguments.out or (None if arguments.short else RESULTS)
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(make(results) for make in CAMPAIGN_TABLES.values()))


if __name__ == "__main__":
    main()
