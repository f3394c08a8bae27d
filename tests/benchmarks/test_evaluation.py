"""Intervals cover what they say, conformal levels hold their budget, repeated lives count once."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks import evaluation
from benchmarks.evaluation import Rate, clopper_pearson, first_alarm, lifetime_level, median_or_none, rates


def test_the_examples_hold() -> None:
    tried = doctest.testmod(evaluation)
    assert tried.attempted > 0
    assert tried.failed == 0


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (1, 20), (7, 50), (49, 50), (50, 50), (3, 5000)])
def test_at_the_ends_of_the_interval_what_was_seen_is_just_unlikely(hits: int, trials: int) -> None:
    low, high = clopper_pearson(hits, trials)
    assert low <= hits / trials <= high
    if hits:
        assert binom.sf(hits - 1, trials, low) == pytest.approx(0.025)
    if hits < trials:
        assert binom.cdf(hits, trials, high) == pytest.approx(0.025)


def test_fractions_of_hits_lie_between_whole_ones() -> None:
    assert clopper_pearson(2, 90)[1] < clopper_pearson(2.5, 90)[1] < clopper_pearson(3, 90)[1]


@pytest.mark.parametrize(("hits", "trials"), [(-1, 3), (4, 3)])
def test_more_hits_than_trials_are_refused(hits: int, trials: int) -> None:
    with pytest.raises(ValueError, match="of 3"):
        clopper_pearson(hits, trials)


def test_nothing_tried_says_nothing() -> None:
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert np.isnan(Rate(0, 0).share)


def test_lives_that_are_tested_twice_count_once() -> None:
    found = rates([("qa", True), ("qa", False), ("light", False), ("light", False)], repeats=2)
    assert found == {"qa": Rate(0.5, 1.0), "light": Rate(0.0, 1.0)}


@pytest.mark.parametrize(
    ("clients", "budget"), [(99, 0.01), (150, 0.01), (250, 0.01), (400, 0.05), (399, 0.05), (30, 0.1)]
)
def test_the_level_is_the_smallest_with_a_conformal_p_within_the_budget(clients: int, budget: float) -> None:
    maxima = np.random.default_rng(clients).permutation(clients).astype(float)
    level = lifetime_level(maxima, budget)

    def p(value: float) -> float:
        return (1 + int((maxima >= value).sum())) / (clients + 1)

    assert p(np.nextafter(level, np.inf)) <= budget
    assert p(level) > budget


def test_ties_never_break_the_budget() -> None:
    maxima = np.array([0.0] * 90 + [5.0] * 20)
    assert lifetime_level(maxima, 0.05) == 5.0


def test_too_few_clients_flag_nobody_and_a_budget_of_one_everybody() -> None:
    assert lifetime_level(np.arange(98.0), 0.01) == np.inf
    assert lifetime_level(np.arange(98.0), 1.0) == -np.inf


def test_the_first_alarm_is_the_first_look_beyond_the_level() -> None:
    values = np.array([1.0, 2.0, 2.0, 9.0])
    assert first_alarm([10, 20, 30, 40], values, 1.5) == 20
    assert first_alarm([10, 20, 30, 40], values, 2.0) == 40
    assert first_alarm([10, 20, 30, 40], values, 9.0) is None


def test_the_median_of_nothing_is_none() -> None:
    assert median_or_none([]) is None
    assert median_or_none([3, 1, 2]) == 2.0
