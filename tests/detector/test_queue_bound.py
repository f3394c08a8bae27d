"""The bound of the queue: it holds for every line at once in 95 of 100 fleets, and a control shows that the test can fail."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.calibration import Tail
from detector.queue_bound import _beyond, envelope, honest_at_most

FLEETS = 200


def broken(
    rng: np.random.Generator, heavier: float = 1.0, thieves: int = 30, clients: int = 150, known: int = 120
) -> bool:
    """Whether the bound fails at some line of one simulated fleet. heavier: scale of the fleet's honest maxima, 1: exchangeable."""
    calibration = rng.pareto(2.0, size=known)
    honest = heavier * rng.pareto(2.0, size=clients)
    scores = np.r_[honest, 5.0 + rng.pareto(1.0, size=thieves)]
    tail = Tail.fit(calibration)
    p = np.array([tail.p(score) for score in scores])
    order = np.argsort(p, kind="stable")
    true = np.cumsum(order < clients)
    lines = [*range(1, 40), *range(40, len(p) + 1, 20)]
    return any(true[line - 1] > honest_at_most(p, line, known, known) for line in lines)


def test_it_holds_at_every_line_in_95_of_100_fleets() -> None:
    failed = sum(broken(np.random.default_rng([1, i])) for i in range(FLEETS))
    assert failed / FLEETS <= 0.05


def test_it_breaks_where_the_fleet_is_not_exchangeable_with_the_calibration() -> None:
    failed = sum(broken(np.random.default_rng([2, i]), heavier=3.0) for i in range(50))
    assert failed / 50 > 0.5


def test_it_says_something_where_thieves_lead_the_list() -> None:
    rng = np.random.default_rng(3)
    tail = Tail.fit(rng.pareto(2.0, size=500))
    scores = np.r_[rng.pareto(2.0, size=200), np.full(60, 1e4)]
    p = np.array([tail.p(score) for score in scores])
    assert honest_at_most(p, 60, 500, 500) <= 6


@pytest.mark.parametrize(("n", "g"), [(4, 3), (3, 5), (6, 2)])
def test_the_probability_is_that_of_counting_all_orders(n: int, g: int) -> None:
    orders = set(itertools.permutations("t" * n + "c" * g))
    for c, b in itertools.product(range(g), range(n)):
        beyond = sum(_before(order, c) > b for order in orders) / len(orders)
        assert _beyond(n, g, c, b) == pytest.approx(beyond, abs=1e-9)


def _before(order: tuple[str, ...], c: int) -> int:
    """Honest clients before the (c + 1)-th calibration client."""
    seen = 0
    for i, one in enumerate(order):
        seen += one == "c"
        if seen == c + 1:
            return i - c
    return len(order) - seen


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=60), st.integers(1, 80), st.floats(0.5, 0.99))
def test_it_never_exceeds_the_line_and_grows_by_one_a_client(p: list[float], g: int, confidence: float) -> None:
    found = [honest_at_most(np.array(p), line, g, g, confidence) for line in range(len(p) + 1)]
    assert found[0] == 0
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(found))
    assert found[-1] <= len(p)


def test_more_clients_and_more_confidence_never_lower_the_bound() -> None:
    few, many, sure = envelope(100, 300), envelope(1_000, 300), envelope(100, 300, 0.999)
    assert all(a <= b for a, b in zip(few.most, many.most, strict=True))
    assert all(a <= b for a, b in zip(few.most, sure.most, strict=True))
    for wrong in ((10, 0, 0.95), (-1, 5, 0.95), (1, 5, 1.0)):
        with pytest.raises(ValueError, match="bound needs"):
            envelope(*wrong)
