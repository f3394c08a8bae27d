"""The group statistic against a slow twin, and its null distribution on honest groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.references import fitted_baseline

from detector.baseline import Baseline
from detector.calibration import NO_CLIENTS, NO_TOOLS, FinalExcess, Tools
from detector.group_statistic import (
    ALIKE,
    DRAWS,
    NEAREST,
    GroupNull,
    GroupTest,
    Members,
    compared,
    null_of,
    shared_tools,
    trimmed_sums,
)
from detector.signals import FREE, GROUPED, SIGNALS, Statistics

ORDERED = np.flatnonzero(GROUPED & ~FREE)
S = len(SIGNALS)


def measured(distinct: float, excess: NDArray[np.float64]) -> Statistics:
    return Statistics(excess, excess, np.full(S, distinct), excess, excess, distinct)


def fleet(clients: int, seed: int, odd: float = 0.02) -> FinalExcess:
    """Honest clients of many sizes, a few of them testers."""
    rng = np.random.default_rng(seed)
    distinct = np.asarray(np.round(np.exp(rng.uniform(2.5, 6.0, clients))), np.float64)
    share = np.where(rng.uniform(size=clients) < 0.05, 0.6, odd)
    excess = np.maximum(
        0.0, rng.binomial(distinct.astype(int)[:, None], share[:, None], (clients, S)) - 0.02 * distinct[:, None]
    )
    return FinalExcess(distinct, excess.astype(np.float32))


def baseline_with(final: FinalExcess, tools: Tools = NO_TOOLS) -> Baseline:
    known = fitted_baseline("digits")
    return replace(known, calibration=replace(known.calibration, final=final, tools=tools))


def members_of(final: FinalExcess, rows: NDArray[np.int64]) -> Members:
    some = [measured(float(final.distinct[i]), final.excess[i].astype(np.float64)) for i in rows]
    return Members(some, np.ones(len(rows), np.bool_))


@given(st.lists(st.floats(0.0, 1000.0, width=32), min_size=1, max_size=40))
def test_a_trimmed_sum_leaves_out_the_largest_fifth(excess: list[float]) -> None:
    kept = sorted(excess)[: len(excess) - -(-len(excess) // 5)]
    assert trimmed_sums(np.array(excess, np.float32)) == pytest.approx(sum(kept), rel=1e-5, abs=1e-3)


def test_the_null_is_that_of_a_slow_twin() -> None:
    """The same draws, member by member: a client of about its size, in proportion where it has more queries."""
    final, sizes = fleet(90, 1), np.array([400.0, 15.0, 60.0, 61.0, 12.0, 220.0, 30.0])
    null = null_of(sizes, ORDERED, baseline_with(final))
    sizes = np.sort(sizes)
    picks = np.random.default_rng(len(sizes)).integers(NEAREST, size=(DRAWS, len(sizes)))

    def group(rows: list[int]) -> list[float]:
        found = []
        for signal in ORDERED.tolist():
            excess = [
                float(final.excess[i, signal]) * min(1.0, n / final.distinct[i])
                for i, n in zip(rows, sizes, strict=True)
            ]
            found.append(sum(sorted(excess)[:5]))
        return found

    near = [sorted(range(90), key=lambda i: abs(np.log(n) - np.log(final.distinct[i])))[:NEAREST] for n in sizes]
    for draw in range(0, DRAWS, 100):
        rows = [near[j][picks[draw, j]] for j in range(len(sizes))]
        np.testing.assert_allclose(null.sums[draw], group(rows), rtol=1e-4, atol=1e-3)
    for client in range(0, 90, 10):
        np.testing.assert_allclose(null.sums[DRAWS + client], group([client] * len(sizes)), rtol=1e-4, atol=1e-3)
    assert null.weight.sum() == pytest.approx(1.0)
    assert null.weight[null.of_one].sum() == pytest.approx(ALIKE)


def test_a_p_value_is_the_weight_of_the_groups_that_are_as_odd() -> None:
    null = GroupNull(
        np.arange(4, dtype=np.float32)[:, None], np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.4, 0.3, 0.2, 0.1]),
        np.array([-1, -1, 0, 1]),
    )  # fmt: skip
    reached = null.sums[:, 0]
    assert null.p(2.0, reached) == pytest.approx((1 + DRAWS * 0.3) / (1 + DRAWS))
    assert null.p(3.0, reached, only=null.of_one) == pytest.approx((1 + DRAWS / 3) / (1 + DRAWS))
    assert null.like(np.array([2.5]), np.array([True])) == 1.0
    assert null.like(np.array([3.5]), np.array([True])) == 0.0
    assert null.like(np.array([3.5]), np.array([False])) == 1.0
    assert null.p(9.0, reached) == 1 / (1 + DRAWS)
    assert null.p(0.0, reached) == 1.0
    assert null.units(np.zeros(1)).tolist() == [3.0]


def test_honest_groups_are_accused_as_rarely_as_the_budget_says() -> None:
    """Groups of clients that the calibration has not seen, of every size; the weights of alike groups make it stricter."""
    baseline, others = baseline_with(fleet(200, 2)), fleet(400, 3)
    rng = np.random.default_rng(4)
    p = np.array([compared(members_of(others, rng.choice(400, size, replace=False)), baseline).p_value
                  for size in (3, 8, 20, 60) for _ in range(25)])  # fmt: skip
    assert (p <= 0.01).mean() <= 0.02
    assert (p <= 0.1).mean() <= 0.15, p


def test_a_group_that_is_odd_in_every_member_is_rare_in_any_order() -> None:
    baseline = baseline_with(fleet(200, 2))
    excess = np.zeros(S)
    excess[ORDERED[3]] = 24.0
    odd = [measured(30.0, excess) for _ in range(20)]
    plain = [measured(float(20 + i), np.zeros(S)) for i in range(5)]
    test = compared(Members([*odd, *plain], np.ones(25, np.bool_)), baseline)
    again = compared(Members([*plain, *odd], np.ones(25, np.bool_)), baseline)
    assert test.p_value <= 0.002
    assert (test.p_value, test.fused) == (again.p_value, again.fused)
    assert test.signal_p.argmin() == 3
    few = compared(Members([*odd[:4], *plain, *plain, *plain, *plain], np.ones(24, np.bool_)), baseline)
    assert few.fused == 0.0
    assert few.p_value == 1.0


def test_a_theft_is_not_hidden_by_tools_that_are_loud_in_other_signals() -> None:
    """Of one kind: in the direction of the group's own sums, as a slow twin adds them up."""
    final = fleet(200, 2)
    loud = FinalExcess(np.full(24, 30.0), np.zeros((24, S), np.float32))
    loud.excess[:, ORDERED[4]] = np.linspace(10.0, 30.0, 24)
    baseline = baseline_with(final, Tools(("explainer",) * 24, np.zeros((24, S)), np.zeros((24, S)), loud))

    def of_one(signal: int) -> GroupTest:
        excess = np.zeros(S)
        excess[signal] = 24.0
        return compared(Members([measured(30.0, excess) for _ in range(20)], np.ones(20, np.bool_)), baseline)

    theft, tool = of_one(ORDERED[0]), of_one(ORDERED[4])
    for test in (theft, tool):
        null = null_of(np.full(20, 30.0), ORDERED, baseline)
        toward = [
            0.0 if SIGNALS[i].name == "margin_roots" else s / u
            for i, s, u in zip(ORDERED, test.sums, test.units, strict=True)
        ]
        far = sum(t * t for t in toward) * (1 - 1e-6)
        share = sum(
            w for sums, w, kind in zip(null.sums, null.weight, null.kind, strict=True)
            if kind >= 0 and sum(t * s / u for t, s, u in zip(toward, sums.tolist(), test.units, strict=True)) >= far
        ) / null.weight[null.of_one].sum()  # fmt: skip
        assert test.of_one == pytest.approx((1 + DRAWS * share) / (1 + DRAWS))
    assert theft.by_content <= 0.01 < tool.of_one < tool.by_content


def test_without_order_the_order_free_signals_judge() -> None:
    baseline = baseline_with(fleet(200, 2))
    excess = np.zeros(S)
    excess[ORDERED[3]] = 24.0
    unordered = Members([measured(30.0, excess) for _ in range(20)], np.zeros(20, np.bool_))
    assert compared(unordered, baseline).p_value == 1.0
    excess[np.flatnonzero(GROUPED & FREE)[0]] = 24.0
    unordered = Members([measured(30.0, excess) for _ in range(20)], np.zeros(20, np.bool_))
    assert compared(unordered, baseline).p_value <= 0.002


def test_a_group_that_is_no_odder_than_a_rehearsed_tool_passes() -> None:
    """All members use the same tool: its runs weigh more than the budget."""
    runs = FinalExcess(np.full(40, 50.0), np.full((40, S), 40.0, np.float32))
    tools = Tools(("explainer",) * 40, np.zeros((40, S)), np.zeros((40, S)), runs)
    excess = np.zeros(S)
    excess[ORDERED[0]] = 35.0
    group = Members([measured(50.0, excess)] * 10, np.ones(10, np.bool_))
    assert compared(group, baseline_with(fleet(200, 2))).p_value <= 0.002
    with_tools = compared(group, baseline_with(fleet(200, 2), tools))
    assert with_tools.like == 1.0
    assert with_tools.p_value == 1.0
    assert with_tools.by_content == 1.0
    mistakes = baseline_with(fleet(200, 2), replace(tools, kinds=("misrouted",) * 40))
    assert len(shared_tools(mistakes)[0]) == 0


def test_a_group_may_be_like_a_tool_in_all_but_one_signal() -> None:
    """A tool that is loud in one measure hides no theft that is loud in another; a kind is asked by itself, however few its runs."""
    loud = np.zeros((40, S), np.float32)
    loud[:2, ORDERED[0]] = 40.0  # what both runs of the first kind come to, and none of the other's
    kinds = ("explainer",) * 2 + ("what_if",) * 38
    tools = Tools(kinds, np.zeros((40, S)), np.zeros((40, S)), FinalExcess(np.full(40, 50.0), loud))
    baseline = baseline_with(fleet(200, 2), tools)

    def test_of(*signals: int) -> GroupTest:
        excess = np.zeros(S)
        excess[list(signals)] = 35.0
        return compared(Members([measured(50.0, excess)] * 10, np.ones(10, np.bool_)), baseline)

    assert (alike := test_of(ORDERED[0])).like == 1.0
    assert alike.p_value == 1.0
    assert test_of(ORDERED[0], ORDERED[1]).p_value <= 0.002


def test_a_baseline_without_clients_for_groups_suspects_no_group() -> None:
    group = Members([measured(50.0, np.full(S, 40.0))] * 10, np.ones(10, np.bool_))
    assert compared(group, baseline_with(NO_CLIENTS)).p_value == 1.0
