"""What accounts of the campaign benchmark have come to, in a world: a victim with one seed, its calibration and its honest fleet.

Rules of the file:

* What is called is what detect calls: the group statistic judges (`compared`, of at most `MOST_JUDGED` members), `fleet_cells` and
  `patch_groups` find what no link ties.
* A world is judged with two calibrations. The smaller is the law of the benchmark: about 240 clients, one honest kind kept out. An owner of
  a fleet of 2,000 has more clients to calibrate on, and a sample of 1,000 holds every kind that 3 % of the accounts are of: so the larger
  one has about 1,050 clients, and no kind is kept out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks import detection, ours
from benchmarks.campaign_world import COVERS, ORGANISATIONS, SHAPES, Shape, answered, honest_fleet
from benchmarks.ours import Accounts, Tested
from benchmarks.victims import Victim, build
from detector.baseline import Baseline
from detector.campaigns import SAME
from detector.fleet import fleet_cells
from detector.group_statistic import MOST_JUDGED, GroupTest, Members, compared
from detector.patch_groups import OddAccounts, patch_groups
from detector.patches import listed
from detector.signals import Statistics, measure
from detector.simulation.attacks import ATTACKS


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything.

    worlds     (victim, seed); fleet: honest accounts of a world; calibration: honest clients of each of two groups
    families   of campaigns: `a_world` of them in each world, in turn; split: of split thefts
    larger     as calibration, of the larger one, from which no kind is kept out
    groups     honest groups of each size and make-up that links deal out at random; organisations: of each kind
    """

    worlds: tuple[tuple[str, int], ...] = tuple((v, i + 1) for i, v in enumerate(2 * ("segments", "affairs", "tumour")))
    fleet: int = 2000
    calibration: int = 126
    shapes: tuple[Shape, ...] = SHAPES
    covers: tuple[float, ...] = COVERS
    families: tuple[str, ...] = ("knockoff_random", "jbda", "permuted", "mixup", "active_kcenter", "copycat")
    a_world: int = 2
    split: tuple[str, ...] = tuple(f for f in ATTACKS if ATTACKS[f].visible)
    queries: tuple[int, int] = (400, 1500)
    groups: int = 24
    organisations: int = 3
    kinds: tuple[str, ...] = tuple(ORGANISATIONS)
    budget: float = 0.01
    calibrating: tuple[int, int] = field(default=(0, 1))
    larger: int = 526


SHORT = Plan(
    worlds=(("segments", 1),),
    fleet=600,
    shapes=SHAPES[1:4],
    covers=(0.0, 0.5),
    a_world=1,
    split=("knockoff_random", "jbda", "permuted", "mixup"),
    groups=8,
    organisations=1,
    larger=250,
)


@dataclass(frozen=True, slots=True)
class Judged:
    """What accounts have come to: statistics, p-values among honest clients of their sizes, the oddest signal and odd patches of each."""

    statistics: list[Statistics]
    p_values: NDArray[np.float64]
    oddest: list[str]
    patches: list[tuple[str, ...]]

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            self.statistics + other.statistics,
            np.concatenate([self.p_values, other.p_values]),
            self.oddest + other.oddest,
            self.patches + other.patches,
        )


class World:
    """One victim with one seed. larger: with the larger calibration."""

    def __init__(self, name: str, seed: int, plan: Plan, larger: bool = False) -> None:
        self.name, self.seed, self.plan = name, seed, plan
        self.victim: Victim = build(name)
        self.others = tuple(g for g in range(4) if g not in plan.calibrating)
        streams = honest_fleet(
            self.victim, plan.calibrating, 2 * (plan.larger if larger else plan.calibration), self.rng(0)
        )
        held = "" if larger else detection.HELD_OUT[seed % len(detection.HELD_OUT)]
        calibration = [c for c in answered(self.victim, streams, 0) if c.stream.kind != held]
        self.baseline: Baseline = ours.fitted(
            self.victim, calibration, self.rng(1), ours.rehearsed_for(self.victim)
        )[0]  # fmt: skip
        self.calibrated_on = len(calibration)
        self.fleet_streams = honest_fleet(self.victim, self.others, plan.fleet, self.rng(2))
        self.fleet = self.judged(self.accounts(answered(self.victim, self.fleet_streams, 1)))
        known = [_named(some or ()) for some in listed(self.baseline.calibration.patches)]
        self.calibration = OddAccounts.of(self.baseline.size_null.honest_p_values()[0], known)

    def rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([*what, self.seed, *self.name.encode()])

    def accounts(self, clients: Sequence[Tested]) -> Accounts:
        return ours.accounts_of(self.victim, self.baseline, clients)

    def judged(self, accounts: Accounts) -> Judged:
        statistics = [measure(profile, self.baseline.table) for profile in accounts.profiles]
        size = self.baseline.size_null
        found = [size.p_value(one) for one in statistics]
        return Judged(
            statistics,
            np.array([p for p, _ in found]),
            [oddest for _, oddest in found],
            list(map(_named, accounts.patches)),
        )

    def test(self, accounts: Judged, rows: Sequence[int]) -> GroupTest:
        """The group test of some accounts, a sample of them where they are many."""
        judged = np.asarray(rows)
        if len(judged) > MOST_JUDGED:
            judged = self.rng(3).choice(judged, MOST_JUDGED, replace=False)
        some = [accounts.statistics[i] for i in judged.tolist()]
        return compared(Members(some, np.ones(len(some), np.bool_)), self.baseline)

    def flags(self, accounts: Judged, rows: Sequence[int], by_content: bool = False) -> bool:
        test = self.test(accounts, rows)
        return (test.by_content if by_content else test.p_value) <= self.plan.budget


def told_by_content(world: World, others: Judged) -> list[tuple[NDArray[np.int64], int]]:
    """Groups of the fleet, with these accounts in it, that would be alerted: their accounts, and how many may be honest.

    As in detect, a group that odd patches tie is not told of if half of it is in a larger one that is.
    """
    everybody = world.fleet + others
    cells = fleet_cells(everybody.p_values, everybody.oddest, world.baseline.size_null)
    told = [
        (cell.accounts, cell.honest_at_most)
        for cell in cells
        if world.flags(everybody, cell.accounts.tolist(), by_content=True)
    ]
    for group in patch_groups(OddAccounts.of(everybody.p_values, everybody.patches), world.calibration):
        mine = group.accounts
        inside = any(len(larger) > len(mine) and np.isin(mine, larger).mean() >= SAME for larger, _ in told)
        if not inside and world.flags(everybody, mine.tolist(), by_content=True):
            told.append((mine, group.honest_at_most))
    return told


def _named(patches: Sequence[int]) -> tuple[str, ...]:
    return tuple(map(str, patches))
