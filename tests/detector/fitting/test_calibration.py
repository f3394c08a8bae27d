"""Calibration by client: p-values that keep their promise on exchangeable clients, and a tail that joins them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detector.calibration import (
    LARGEST_AVERAGED,
    LEAST_SHARE,
    MOST_LEFT_OUT,
    PLAUSIBLE,
    SMALLEST_TAIL,
    SPOILT,
    SPOILT_CLIENTS,
    SPOILT_PLAUSIBLE,
    TAIL_INDEX_PRIOR,
    UNREHEARSED,
    Calibration,
    Tail,
    Tools,
    implausible,
    scale_of,
)

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]

POPULATIONS: dict[str, Draw] = {
    "exponential": lambda rng, n: rng.exponential(1.0, n),
    "lognormal": lambda rng, n: rng.lognormal(-1.0, 1.0, n),
    "pareto 2": lambda rng, n: 0.3 * (1 + rng.pareto(2.0, n)),
    "mostly nothing": lambda rng, n: np.where(rng.random(n) < 0.7, 0.0, rng.exponential(0.5, n)),
    "whole counts": lambda rng, n: rng.poisson(1.5, n) / 4.0,
    "two kinds": lambda rng, n: np.where(rng.random(n) < 0.9, rng.uniform(0, 0.4, n), rng.uniform(0.5, 3.0, n)),
}
MAXIMA = st.lists(st.floats(0, 50), min_size=1, max_size=80)


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("clients", [40, 150, 500])
def test_the_realised_rate_is_at_most_the_budget(population: str, clients: int) -> None:
    """Conformal validity, counted: 400 calibrations × 50 new clients of the same population each."""
    rng = np.random.default_rng(60)
    draw = POPULATIONS[population]
    trials, hits = 0, dict.fromkeys((0.2, 0.1, 0.05, 0.01), 0)
    for _ in range(400):
        tail = Tail.fit(draw(rng, clients))
        p = np.array([tail.p(float(v)) for v in draw(rng, 50)])
        trials += len(p)
        for budget in hits:
            hits[budget] += int((p <= budget).sum())
    for budget, count in hits.items():
        # new clients of one calibration go together: 4 standard errors of 400 calibrations' rates
        spread = np.sqrt(budget / trials + budget / (400 * clients))
        assert count / trials <= budget + 4 * spread, budget


@pytest.mark.parametrize("population", ["exponential", "lognormal", "pareto 2"])
def test_beyond_the_ranks_the_tail_is_no_bolder_than_its_prior(population: str) -> None:
    """At a budget that 150 clients can't show by rank, the Pareto tail decides. It holds for tails up to the prior's own weight."""
    rng = np.random.default_rng(61)
    draw = POPULATIONS[population]
    hits = trials = 0
    for _ in range(300):
        tail = Tail.fit(draw(rng, 150))
        level = tail.level(0.001)
        new = draw(rng, 400)
        hits += int((new >= level).sum())
        trials += len(new)
    assert hits / trials <= 0.002


@pytest.mark.parametrize("population", POPULATIONS)
def test_a_budget_is_spent_not_saved(population: str) -> None:
    """Valid p-values of 1 would be valid too: at the tenth, at least a third of what is allowed is used."""
    rng = np.random.default_rng(62)
    draw = POPULATIONS[population]
    p = [tail.p(float(v)) for tail in (Tail.fit(draw(rng, 500)) for _ in range(20)) for v in draw(rng, 100)]
    assert np.mean(np.array(p) <= 0.1) >= 0.033


@settings(max_examples=100, deadline=None)
@given(MAXIMA, st.lists(st.floats(0, 1e6), min_size=2, max_size=30))
def test_p_never_rises_with_the_value(maxima: list[float], values: list[float]) -> None:
    tail = Tail.fit(np.array(maxima))
    ordered = sorted([*values, *maxima, tail.u, np.nextafter(max(maxima), np.inf)])
    p = [tail.p(v) for v in ordered]
    assert all(0 < q <= 1 for q in p)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(p))


@settings(max_examples=100, deadline=None)
@given(MAXIMA, st.floats(0, 60))
def test_within_the_honest_maxima_p_is_the_larger_of_rank_and_tail(maxima: list[float], value: float) -> None:
    tail = Tail.fit(np.array(maxima))
    rank = (1 + sum(m >= value for m in maxima)) / (len(maxima) + 1)
    if value <= 0:
        assert tail.p(value) == 1.0
    elif value <= max(maxima):
        beyond = tail.share * (value / tail.u) ** -tail.index if value > tail.u else 0.0
        assert tail.p(value) == pytest.approx(max(rank, beyond))
    else:
        assert tail.p(value) <= 1 / (len(maxima) + 1) + 1e-12


def test_the_tail_may_give_the_largest_honest_maxima_a_larger_p_than_their_rank() -> None:
    tail = Tail.fit(np.random.default_rng(66).exponential(1.0, 500))
    largest = [v for v in tail.maxima.tolist() if v > tail.u]
    ranks = [(len(largest) - i + 1) / 501 for i in range(len(largest))]
    beyond = [tail.share * (v / tail.u) ** -tail.index for v in largest]
    assert any(b > r for b, r in zip(beyond, ranks, strict=True))
    assert [tail.p(v) for v in largest] == pytest.approx([max(b, r) for b, r in zip(beyond, ranks, strict=True)])


@settings(max_examples=80, deadline=None)
@given(MAXIMA)
def test_beyond_all_honest_maxima_p_falls_without_a_jump(maxima: list[float]) -> None:
    """The rank stops at 1 / (g + 1); from there p falls as the tail does, from that very value and towards nothing."""
    tail = Tail.fit(np.array(maxima))
    end = max(*maxima, tail.u)
    just = tail.p(float(np.nextafter(end, np.inf)))
    assert just == pytest.approx(min(1 / (len(maxima) + 1), tail.p(end)), rel=1e-6)
    for factor in (1.001, 1.5, 3.0, 100.0):
        assert tail.p(end * factor) == pytest.approx(just * factor**-tail.index, rel=1e-6)
    assert tail.p(1e12) < 1e-6


@settings(max_examples=80, deadline=None)
@given(MAXIMA, st.floats(1e-5, 0.9))
def test_the_level_is_the_inverse_of_p(maxima: list[float], budget: float) -> None:
    tail = Tail.fit(np.array(maxima))
    level = tail.level(budget)
    assert tail.p(level) <= budget
    assert tail.p(level * (1 - 1e-6) - 1e-12) > budget


@pytest.mark.parametrize(("budget", "other"), [(0.001, 0.01), (0.01, 0.1)])
def test_a_smaller_budget_asks_for_more(budget: float, other: float) -> None:
    tail = Tail.fit(np.random.default_rng(63).exponential(1.0, 200))
    assert tail.level(budget) > tail.level(other)


def test_without_honest_clients_nothing_is_rare() -> None:
    tail = Tail.fit(np.zeros(0))
    assert [tail.p(v) for v in (0.0, 1.0, 1e9)] == [1.0, 1.0, 1.0]
    assert tail.level(0.01) >= 1e12


def test_the_order_of_the_maxima_does_not_matter() -> None:
    rng = np.random.default_rng(64)
    maxima = rng.exponential(1.0, 99)
    one, two = Tail.fit(maxima), Tail.fit(rng.permutation(maxima))
    assert (one.u, one.share, one.index) == (two.u, two.share, two.index)
    assert (one.maxima == two.maxima).all()


def test_the_tail_begins_above_nothing_and_its_index_is_shrunk_to_the_prior() -> None:
    flat = Tail.fit(np.zeros(150))
    assert flat.u == SMALLEST_TAIL
    assert flat.index == TAIL_INDEX_PRIOR
    rng = np.random.default_rng(65)
    light, heavy = Tail.fit(rng.uniform(0.9, 1.1, 2000)), Tail.fit(1 + rng.pareto(0.7, 2000))
    assert heavy.index < TAIL_INDEX_PRIOR < light.index
    # 150 clients give 15 tail values against a prior worth 10, 3,000 clients give 300
    few = np.mean([abs(Tail.fit(1 + rng.pareto(5.0, 150)).index - 5.0) for _ in range(30)])
    many = np.mean([abs(Tail.fit(1 + rng.pareto(5.0, 3000)).index - 5.0) for _ in range(30)])
    assert many < few


# ------------------------------------------------------------------ scales


def test_the_scale_is_the_mean_of_the_largest_lives_and_never_below_the_floor() -> None:
    maxima = np.array([[1.0, 0.0], [2.0, 0.0], [30.0, 1.0], [40.0, 0.0], [50.0, 0.0], [60.0, 0.0]])
    assert LARGEST_AVERAGED == 4
    assert scale_of(maxima, np.array([12.0, 8.0])).tolist() == [45.0, 8.0]
    assert scale_of(maxima[:2], np.array([1.0, 8.0])).tolist() == [1.5, 8.0]
    floor = np.array([12.0, 8.0])
    empty = scale_of(maxima[:0], floor)
    assert empty.tolist() == floor.tolist()
    assert empty is not floor


# ------------------------------------------------------------------ budgets


def calibration(clients: int, calibrated: bool = True) -> Calibration:
    maxima = np.arange(float(clients))
    return Calibration(np.zeros((clients, 2), np.float32), np.ones(2), maxima, maxima, 10.0, 1.0, calibrated)


@pytest.mark.parametrize(
    ("clients", "budget", "supported"),
    [(100, 0.01, True), (99, 0.01, False), (1000, 0.001, True), (150, 0.001, False), (10, 0.5, True), (0, 0.5, False)],
)
def test_a_budget_needs_a_client_that_could_spend_it(clients: int, budget: float, supported: bool) -> None:
    assert calibration(clients).supports(budget) is supported
    assert calibration(clients).clients == clients


def test_simulated_clients_support_no_budget() -> None:
    assert not calibration(100_000, calibrated=False).supports(0.5)


# ---------------------------------------------------------------------------------------------------- influence


@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 5))
def test_clients_beyond_the_rehearsal_bound_are_excluded_but_never_too_many(
    seed: int, clients: int, signals: int
) -> None:
    rng = np.random.default_rng(seed)
    maxima, shares = rng.pareto(rng.uniform(0.5, 2), (clients, signals)) * 10, rng.uniform(0, 0.5, (clients, signals))
    bound = rng.uniform(5, 50, signals)

    def beyond(times: float) -> list[bool]:
        return [
            any(maxima[i, j] > times * bound[j] and shares[i, j] >= LEAST_SHARE for j in range(signals))
            for i in range(clients)
        ]

    far, nearer, most = beyond(PLAUSIBLE), beyond(SPOILT_PLAUSIBLE), MOST_LEFT_OUT * clients
    if sum(far) > most:
        want = [False] * clients
    elif sum(far) >= max(SPOILT_CLIENTS, SPOILT * clients) and sum(nearer) <= most:
        want = nearer
    else:
        want = far
    assert implausible(maxima, shares, bound).tolist() == want


def test_a_client_a_little_beyond_is_excluded_where_others_are_far_beyond() -> None:
    """One client that is far beyond may be an odd honest one; three in two hundred are not."""
    maxima, shares, bound = np.full((200, 1), 1.0), np.full((200, 1), 0.5), np.array([10.0])
    maxima[:5] = 20.0
    assert implausible(maxima, shares, bound).sum() == 0
    maxima[10:12] = 30.0
    assert implausible(maxima, shares, bound).nonzero()[0].tolist() == [10, 11]
    maxima[12] = 30.0
    assert implausible(maxima, shares, bound).nonzero()[0].tolist() == [0, 1, 2, 3, 4, 10, 11, 12]


def test_nobody_is_excluded_without_a_rehearsal_or_for_a_small_part_of_its_queries() -> None:
    maxima, shares = np.full((20, 2), 1.0), np.full((20, 2), 0.5)
    maxima[3] = 1e9
    assert not implausible(maxima, shares, UNREHEARSED).any()
    assert not implausible(maxima, shares, np.full(2, np.inf)).any()
    assert implausible(maxima, shares, np.array([np.inf, 1.0])).nonzero()[0].tolist() == [3]
    shares[3] = 0.1
    assert not implausible(maxima, shares, np.array([np.inf, 1.0])).any()


def test_each_kind_of_tool_adds_pseudo_clients_in_proportion_to_the_clients() -> None:
    kinds = ("explainer", "robustness") * 20
    maxima = np.arange(40.0)[:, None] * np.array([[1.0, 0.0, 100.0]])
    held = Tools(kinds, maxima, maxima / 2)
    found = held.pseudo_client_rows(np.ones(3), np.array([True, True, False]), 1000).tolist()
    assert found == [36] * 8 + [37] * 8  # of each twenty the last but one; 0.75 % of 1,000 each
    assert len(found) == held.pseudo_clients(1000)
    assert held.pseudo_clients(30) == 4
    np.testing.assert_array_equal(held.percentile_maxima(), [maxima[36], maxima[37]])
    assert (
        Tools((), np.empty((0, 3)), np.empty((0, 3))).pseudo_client_rows(np.ones(3), np.ones(3, bool), 1000).tolist()
        == []
    )
