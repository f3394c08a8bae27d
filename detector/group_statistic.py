"""The group statistic: whether the members of a group, each by itself, are odder than honest clients of their sizes.

A heap of honest clients holds several testers with hundreds of odd queries each, so fifty thieves with thirty queries each are lost in
it. What an honest group never is: odd in nearly every member. So each member is judged by its own excess of each signal, and a signal's
*group statistic* is the sum over the members without the largest fifth of them.

The null distribution has three parts. In a mixed honest group each member is replaced by one of the `NEAREST` honest clients of the
calibration that are nearest in the number of distinct queries. In an alike group all members are replaced by the same honest client,
because colleagues use the same tools; in a one-tool group by the same rehearsed tool. A client with more distinct queries than the
member that it replaces counts in proportion.

Weights alone cannot hold the groups of one kind apart: a kind of which half the groups reach a theft's fused statistic is a small part
of the null. So a group must also be unlike every kind: in one of the signals in which it is large, hardly an honest client and hardly
a run of any rehearsed tool, all alone, comes to as much (`GroupTest.like`).

Rules:

* A signal is measured in units of the mean of the upper hundredth of its null, and never below the signal's floor. The fused statistic is
  the largest over the signals, and its p-value the weighted share of null groups that reach it.
* The p-value is never below the square of the likeness to one kind, which is the smallest over the signals that reach their unit: at .01
  at most one honest client in ten, and one run in ten of each tool, may be like the group. Low margins are not asked about: they depend
  on the model's answers, and rehearsed tools come to none.
* A group found by what its members ask is of one kind by construction, so it is also compared with groups of one kind alone
  (`GroupTest.of_one`), in its own direction: how far each comes along the group's sums, in units, low margins apart. By the fused
  statistic an explainer that is loud in steps would hide a theft that takes none. It must be `STRICTER` times as rare there: at a budget of
  .01 none of 240 calibration clients, and none of their rehearsed runs, may come as far. Below a budget of `STRICTER` draws of the null no
  group is found by content.
* Draws depend on the members' sizes and on the baseline alone: every process computes the same p-value.
* The ordered signals are used where most members were seen in log order (a member that was not counts as not odd), the order-free ones
  otherwise: explainers and robustness testers vary few inputs, so they are odd in many queries and in few novel ones.
* Dense signals repeat others, and misfits are often a broken release that a whole organisation uses: neither takes part.
* Of more than `MOST_JUDGED` members a sample is judged. Its p-value is as valid, only less sharp.

It does not work for in-domain theft, and not for a group in which all use a tool that is neither in the traffic nor rehearsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.baseline import Baseline
from detector.calibration import FinalExcess
from detector.signals import FLOOR, FREE, GROUPED, SIGNAL_NAMES, SIGNALS, Statistics, measure_of

TRIMMED = 0.2
NEAREST = 40
DRAWS = 2000
"""Mixed groups that are drawn."""
ALIKE, ONE_TOOL = 0.05, 0.01
"""Weights of the groups in which all members are the same honest client, and the same rehearsed tool (docs/decisions)."""
ALIKE_IN_UNITS = 0.05
"""Weight of the former in the units of the signals, the rest being mixed: what is rare in few groups must not hide it in all."""
NOT_SHARED = ("misrouted",)
"""Rehearsed kinds that are a mistake of one client and not a tool of many."""
MOST_ALIKE = 1000
"""Honest clients that are tried as the one that all members are."""
MOST_JUDGED = 400
UPPER = 0.01
STRICTER = 5.0
"""How many times as rare as the budget asks a group found by content must be among groups of one kind."""
ROUNDED = 1e-6
"""Part of a projection that rounding may take from a group that is as large."""
CHUNK = 4_000_000
"""Numbers that are held at a time."""

_BY_ANSWERS = np.array([measure_of(name) == "margin" for name in SIGNAL_NAMES])
_ORDERED, _FREE = np.flatnonzero(GROUPED & ~FREE), np.flatnonzero(GROUPED & FREE)


@dataclass(frozen=True, slots=True)
class Members:
    """What the judged members of a group have come to.

    measured  (m,) statistics of each
    in_order  (m,) bool, whether each was seen in one log cell
    """

    measured: Sequence[Statistics]
    in_order: NDArray[np.bool_]

    @property
    def signals(self) -> NDArray[np.int64]:
        """Signals that they are judged by."""
        return _ORDERED if 2 * self.in_order.sum() > len(self.in_order) else _FREE

    @property
    def distinct(self) -> NDArray[np.float64]:
        """(m,) distinct queries."""
        return np.array([s.distinct for s in self.measured])

    def excess(self) -> NDArray[np.float32]:
        """(m, s) excess by now; ordered signals say nothing about a member that was not seen in order."""
        excess = np.array([s.excess for s in self.measured], np.float32).reshape(-1, len(SIGNALS))
        return np.where(self.in_order[:, None] | FREE, excess, np.float32(0.0))


@dataclass(frozen=True, slots=True)
class GroupTest:
    """How rare a group is among honest groups of its members' sizes.

    signals   that were used (u,); sums: (u,) trimmed sum of each; units: (u,) what it is measured in
    fused     the largest ratio of the two
    p_value   among honest groups of all three parts, and never below the square of `like`
    of_one    p-value among groups in which all members are the same client or tool, in the direction of the group's own sums
    like      share of honest clients, or of the runs of one tool, that alone come to as much, in the signal where it is smallest
    signal_p  (u,) p-value of each signal by itself
    """

    signals: NDArray[np.int64]
    sums: NDArray[np.float64]
    units: NDArray[np.float64]
    fused: float
    p_value: float
    of_one: float
    like: float
    signal_p: NDArray[np.float64]

    @property
    def by_content(self) -> float:
        """The p-value of a group that was found by what its members ask: such a group is of one kind by construction."""
        return max(self.p_value, min(1.0, STRICTER * self.of_one))


@dataclass(frozen=True, slots=True)
class GroupNull:
    """Honest groups of given sizes.

    sums         (d, u) trimmed sum of each signal
    weight       (d,) what part of the null each group stands for, 1 in all
    unit_weight  (d,) the same for the units of the signals
    kind         (d,) who all members are: 0 one honest client, 1 and above a tool of that kind; -1 different clients
    """

    sums: NDArray[np.float32]
    weight: NDArray[np.float64]
    unit_weight: NDArray[np.float64]
    kind: NDArray[np.int64]

    @property
    def of_one(self) -> NDArray[np.bool_]:
        """(d,) whether all members are the same client or tool."""
        return self.kind >= 0

    def like(self, sums: NDArray[np.float64], large: NDArray[np.bool_]) -> float:
        """Likeness of a group to one kind. sums (u,): its trimmed sums; large (u,): signals that are asked about; 1.0 for none."""
        if not large.any():
            return 1.0
        reached = self.sums[:, large] >= sums[large]
        kinds = [reached[self.kind == kind].mean(axis=0) for kind in np.unique(self.kind[self.of_one])]
        return float(np.max(kinds, axis=0).min())

    def units(self, floor: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean of the upper hundredth of each signal, never below its floor, (u,)."""
        order = np.argsort(-self.sums, axis=0, kind="stable")
        weight = self.unit_weight[order]
        upper = np.clip(UPPER - (np.cumsum(weight, axis=0) - weight), 0.0, weight)
        mean = (np.take_along_axis(self.sums, order, axis=0) * upper).sum(0) / UPPER
        return np.asarray(np.maximum(mean, floor), np.float64)

    def p(self, value: float, reached: NDArray[np.floating], only: NDArray[np.bool_] | None = None) -> float:
        """Weighted share of the groups whose value is at least `value`; 1.0 for a value of 0. reached (d,): theirs."""
        if value <= 0:
            return 1.0
        weight = self.weight if only is None else np.where(only, self.weight, 0.0)
        share = float(weight[reached >= value].sum() / weight.sum()) if weight.any() else 1.0
        return min(1.0, (1 + DRAWS * share) / (1 + DRAWS))


def trimmed(members: int) -> int:
    """Return how many of a group's members are left out of a sum.

    >>> [trimmed(m) for m in (1, 3, 10, 51)]
    [1, 1, 2, 11]
    """
    return int(np.ceil(TRIMMED * members))


def trimmed_sums(excess: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum over the last axis without its largest fifth, at least one member.

    >>> trimmed_sums(np.array([1.0, 2.0, 3.0, 4.0, 90.0], np.float32)).item()
    10.0
    """
    kept = excess.shape[-1] - trimmed(excess.shape[-1])
    if kept <= 0:
        return np.zeros(excess.shape[:-1], np.float32)
    return np.asarray(np.partition(excess, kept - 1, axis=-1)[..., :kept].sum(-1), np.float32)


def null_of(sizes: NDArray[np.float64], signals: NDArray[np.int64], baseline: Baseline) -> GroupNull:
    """Draw honest groups of the given sizes.

    Parameters
    ----------
    sizes : (m,) float64
        Distinct queries of each member.
    signals : (u,) int64
        Rows of `SIGNALS`.
    baseline : Baseline
        With `calibration.final`: at least one client.

    Returns
    -------
    GroupNull
        `DRAWS` mixed groups, one for each honest client (at most `MOST_ALIKE`) and one for each rehearsed tool.
    """
    sizes = np.sort(sizes)
    rng = np.random.default_rng(len(sizes))
    final = baseline.calibration.final
    tools, kinds = shared_tools(baseline)
    near = _nearest(sizes, final)
    mixed = near[np.arange(len(sizes)), rng.integers(near.shape[1], size=(DRAWS, len(sizes)))]
    clients = np.arange(len(final)) if len(final) <= MOST_ALIKE else rng.choice(len(final), MOST_ALIKE, replace=False)
    one_tool = ONE_TOOL if len(tools) else 0.0
    parts = [
        _Makeup(mixed, final, 1.0 - ALIKE - one_tool, 1.0 - ALIKE_IN_UNITS, np.full(DRAWS, -1)),
        _Makeup(_same(clients, sizes), final, ALIKE, ALIKE_IN_UNITS, np.zeros(len(clients), np.int64)),
        _Makeup(_same(np.arange(len(tools)), sizes), tools, one_tool, 0.0, kinds),
    ]
    parts = [part for part in parts if len(part.rows)]
    return GroupNull(
        np.vstack([_sums_of(part.rows, sizes, part.pool, signals) for part in parts]),
        np.concatenate([np.full(len(part.rows), part.weight / len(part.rows)) for part in parts]),
        np.concatenate([np.full(len(part.rows), part.unit_weight / len(part.rows)) for part in parts]),
        np.concatenate([part.kind for part in parts]),
    )


class _Makeup(NamedTuple):
    """Groups of one make-up: rows (d, m) of the pool that stand for their members, the weight of all of them together, kind (d,)."""

    rows: NDArray[np.int64]
    pool: FinalExcess
    weight: float
    unit_weight: float
    kind: NDArray[np.int64]


def _same(clients: NDArray[np.int64], sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.broadcast_to(clients[:, None], (len(clients), len(sizes)))


def shared_tools(baseline: Baseline) -> tuple[FinalExcess, NDArray[np.int64]]:
    """Runs of the rehearsed kinds that the members of an organisation may share, and the number of each run's kind, from 1."""
    tools = baseline.calibration.tools
    shared = np.array([kind not in NOT_SHARED for kind in tools.kinds], np.bool_)[: len(tools.final)]
    number = {kind: i + 1 for i, kind in enumerate(dict.fromkeys(tools.kinds))}
    kinds = np.array([number[kind] for kind in tools.kinds], np.int64)[: len(tools.final)]
    return FinalExcess(tools.final.distinct[shared], tools.final.excess[shared]), kinds[shared]


def _nearest(sizes: NDArray[np.float64], pool: FinalExcess) -> NDArray[np.int64]:
    """Rows of the pool's clients that are nearest in log distinct queries to each size, (m, k)."""
    k = min(NEAREST, len(pool))
    away = np.abs(np.log(np.maximum(sizes, 1.0))[:, None] - np.log(np.maximum(pool.distinct, 1.0)))
    return np.argsort(away, axis=1, kind="stable")[:, :k]


def _sums_of(
    rows: NDArray[np.int64], sizes: NDArray[np.float64], pool: FinalExcess, signals: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Trimmed sums of groups, (d, u). rows (d, m): of the pool; sizes (m,): the members'."""
    excess = np.ascontiguousarray(pool.excess[:, signals].T)
    out = np.empty((len(rows), len(signals)), np.float32)
    step = max(1, CHUNK // max(1, len(signals) * len(sizes)))
    for at in range(0, len(rows), step):
        some = rows[at : at + step]
        share = np.minimum(1.0, np.maximum(sizes, 1.0) / np.maximum(pool.distinct[some], 1.0)).astype(np.float32)
        out[at : at + step] = trimmed_sums(excess[:, some] * share).T
    return out


def compared(members: Members, baseline: Baseline) -> GroupTest:
    """Compare a group with honest groups of its members' sizes.

    Parameters
    ----------
    members : Members
        At most `MOST_JUDGED`; of a larger group a random sample.
    baseline : Baseline

    Returns
    -------
    GroupTest
        p-values in (0, 1], never below 1 / (1 + `DRAWS`). 1.0 where the baseline knows no honest client for groups.

    Notes
    -----
    The p-value is that of a draw of the null (Davison & Hinkley 1997, §4.2), for groups exchangeable with honest clients drawn at random,
    or all alike, in the weights stated. A trimmed sum as a robust statistic: Huber 1964.
    """
    signals = members.signals
    sums = trimmed_sums(np.ascontiguousarray(members.excess()[:, signals].T)).astype(np.float64)
    floor = FLOOR[signals]
    if not len(baseline.calibration.final):
        return GroupTest(signals, sums, floor, 0.0, 1.0, 1.0, 1.0, np.ones(len(signals)))
    null = null_of(members.distinct, signals, baseline)
    units = null.units(floor)
    fused, reached = float((sums / units).max()), (null.sums / units).max(1)
    signal_p = np.array([null.p(float(one), null.sums[:, i]) for i, one in enumerate(sums)])
    like = null.like(sums, (sums >= units) & ~_BY_ANSWERS[signals])
    p_value = max(null.p(fused, reached), like**2)
    toward = np.where(_BY_ANSWERS[signals], 0.0, sums / units)
    of_one = null.p(float(toward @ toward) * (1.0 - ROUNDED), null.sums / units @ toward, only=null.of_one)
    return GroupTest(signals, sums, units, fused, p_value, of_one, like, signal_p)
