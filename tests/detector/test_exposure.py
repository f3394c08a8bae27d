"""Exposure: what a copy of a client's queries would be worth, learned on rehearsed thefts."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from support.references import KEY, answered, fitted_baseline, reference_of

from detector.baseline import Baseline
from detector.baseline_file import pack_baseline, read_baseline
from detector.errors import CorruptBaseline
from detector.exposure import EARLIER, FEWEST, KNOTS, REGRESSORS, Estimator, describe, estimate
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signals import signal_table
from detector.simulation.answers import ClassAnswers, ValueAnswers
from detector.simulation.copies import is_linear, softmax, thieves_learners
from detector.simulation.domain import Domain
from detector.simulation.rehearsal import rehearse


def honest(name: str, n: int) -> QueryBatch:
    """One client with the first n honest rows."""
    batch = reference_of(name).traffic.take(np.arange(n))
    return replace(batch, clients=["c"], who=np.zeros(n, np.int32))


@functools.cache
def rehearsed(name: str) -> Estimator:
    baseline, reference = fitted_baseline(name), reference_of(name)
    found = rehearse(baseline.map, reference.batch, reference.traffic, np.random.default_rng(3))
    assert found is not None
    return found


def profile_of(baseline: Baseline, batch: QueryBatch) -> Profile:
    table = ProfileTable(baseline.map, signal_table(), "0" * 16, half_horizon_ms=2**62)
    table.add(["c"], batch, baseline.map.measure(batch, KEY))
    return table.profile("c")


def told(name: str, estimator: Estimator, batch: QueryBatch) -> float:
    baseline = fitted_baseline(name)
    found = estimate(profile_of(baseline, batch), baseline.map, estimator)
    assert found is not None
    assert 0 <= found.low <= found.fidelity <= found.high <= 1
    return found.fidelity


def test_more_honest_queries_copy_more_and_noise_copies_less() -> None:
    estimator, lives = rehearsed("digits"), honest("digits", 400)
    few, many = (told("digits", estimator, lives.take(np.arange(n))) for n in (10, 400))
    low, high = lives.inputs.min(0), lives.inputs.max(0)
    noise = np.random.default_rng(4).uniform(low, high, lives.inputs.shape)
    assert few < many
    assert told("digits", estimator, answered(noise, fitted_baseline("digits").map.classes)) < many


def test_a_group_is_worth_what_its_merged_profile_is() -> None:
    baseline, estimator = fitted_baseline("digits"), rehearsed("digits")
    lives = honest("digits", 300)
    parts = [profile_of(baseline, lives.take(np.arange(i, 300, 3))) for i in range(3)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    whole = estimate(profile_of(baseline, lives), baseline.map, estimator)
    assert estimate(merged, baseline.map, estimator) == whole
    alone = [estimate(part, baseline.map, estimator) for part in parts]
    assert whole is not None
    assert all(one is not None and one.fidelity < whole.fidelity for one in alone)


def test_without_an_estimator_or_with_too_few_queries_there_is_no_estimate() -> None:
    baseline, estimator = fitted_baseline("digits"), rehearsed("digits")
    lives = honest("digits", 40)
    few = profile_of(baseline, lives.take(np.arange(FEWEST - 1)))
    assert few.distinct < FEWEST
    assert estimate(few, baseline.map, estimator) is None
    assert estimate(profile_of(baseline, lives), baseline.map, None) is None


def test_a_regression_is_worth_more_the_more_values_a_copy_lies_near() -> None:
    reference, baseline = reference_of("prices"), fitted_baseline("prices")
    known, traffic = (replace(b, values=np.sin(b.inputs).sum(1)) for b in (reference.batch, reference.traffic))
    estimator = rehearse(baseline.map, known, traffic, np.random.default_rng(0))
    assert estimator is not None
    one = replace(traffic, who=np.zeros_like(traffic.who))
    few, many = (told("prices", estimator, one.take(np.arange(n))) for n in (10, 300))
    assert 0 < few < many <= 1
    silent, asked = (replace(b, values=np.full(len(b), np.nan)) for b in (known, traffic))
    assert rehearse(baseline.map, silent, asked, np.random.default_rng(0)) is None


def test_values_agree_within_a_tenth_of_their_usual_range() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(50, 10, 1000)
    batch = replace(reference_of("prices").traffic.take(np.zeros(1000, np.int64)), values=values)
    kind = ValueAnswers.among([batch])
    assert kind is not None
    truth = kind.of([batch])
    for apart, agree in ((0.09, 1.0), (0.11, 0.0), (-0.09, 1.0), (-0.11, 0.0)):
        moved = kind.of([replace(batch, values=values + apart * kind.unit)])
        assert kind.agreement(np.log(moved), truth) == agree
    assert kind.agreement(np.zeros((1000, 2)), truth) < 0.4, "control: a copy that knows the median only"
    far = kind.of([replace(batch, values=np.repeat([1e4, -1e9, 1e300, np.inf, np.nan], 200))])
    assert np.isfinite(far[:600]).all(), "a value far off is a value, whatever its size"
    assert np.isnan(far[600:]).all()
    perfect = np.log(far[:600])
    assert kind.agreement(perfect, far[:600]) == 1.0, "and a copy that learned it agrees there"
    assert kind.agreement(-perfect, far[:600]) == 0.0
    assert kind.agreement(np.zeros((3, 2)), np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])) == 1 / 3
    assert ValueAnswers.among([replace(batch, values=np.full(1000, 3.0))]) is None
    assert ValueAnswers.among([replace(batch, values=np.full(1000, np.nan))]) is None


def made(rng: np.random.Generator, n: int = 240) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """A population in which fidelity follows size and coverage, with noise; eight families."""
    size = rng.uniform(2, 7, n)
    near, covered, spread, alike = rng.uniform(0, 1, (4, n))
    bends = [np.maximum(size - np.log1p(knot), 0.0) for knot in KNOTS]
    described = np.stack(
        [
            np.ones(n),
            size,
            near,
            covered,
            spread,
            alike,
            size * covered,
            size * near,
            size * spread,
            size * alike,
            *bends,
        ],
        1,
    )
    odds = 0.4 * (size - 4) + 2 * (covered - 0.5) + rng.normal(0, 0.3, n)
    return described, 1 / (1 + np.exp(-odds)), np.arange(n) % 8


def test_the_interval_covers_what_it_promises_and_a_shuffled_control_does_not_learn() -> None:
    described, fidelity, family = made(np.random.default_rng(7))
    fresh, truth, _ = made(np.random.default_rng(8), 2000)
    fitted = Estimator.fit(described, fidelity, family, np.full(2, 0.5))
    found = [fitted.estimate(row) for row in fresh]
    inside = np.mean([f.low <= t <= f.high for f, t in zip(found, truth, strict=True)])
    assert inside >= 0.9
    assert spearmanr([f.fidelity for f in found], truth)[0] > 0.9
    shuffled = Estimator.fit(described, np.random.default_rng(9).permutation(fidelity), family, np.full(2, 0.5))
    assert abs(spearmanr([shuffled.estimate(row).fidelity for row in fresh], truth)[0]) < 0.6


def test_description_has_a_name_for_each_number() -> None:
    baseline = fitted_baseline("digits")
    profile = profile_of(baseline, honest("digits", 30))
    described = describe(profile, baseline.map, np.full(baseline.map.classes, 1 / baseline.map.classes))
    assert described.shape == (len(REGRESSORS),)
    assert np.isfinite(described).all()


def test_a_baseline_from_before_the_curve_could_bend_is_read_and_estimates() -> None:
    baseline, new = fitted_baseline("digits"), rehearsed("digits")
    earlier = replace(baseline, estimator=replace(new, weights=new.weights[:EARLIER].copy()))
    again = read_baseline(pack_baseline(earlier))
    assert again.estimator is not None
    assert 0 < told("digits", again.estimator, honest("digits", 100)) < 1


def linear_traffic(places: int | None) -> tuple[Domain, NDArray[np.float64], NDArray[np.float64]]:
    """A softmax regression of four numbers and a code: its domain, rows and answers; places: None for labels only."""
    rng = np.random.default_rng(5)
    rows = np.column_stack([rng.normal(size=(600, 4)), rng.integers(0, 3, 600)])
    effect = rng.normal(size=(3, 3))
    answers = softmax(rows[:, :4] @ rng.normal(size=(4, 3)) + effect[rows[:, 4].astype(int)])
    shown = np.eye(3)[answers.argmax(1)] if places is None else answers.round(places)
    return Domain.of(rows, np.array([False] * 4 + [True])), rows, shown


def test_a_linear_model_is_recognised_by_its_probabilities_and_priced_by_equations() -> None:
    rng = np.random.default_rng(6)
    for places, found in ((6, True), (3, True), (None, False)):
        domain, rows, answers = linear_traffic(places)
        assert is_linear(domain, rows, answers, rng) is found, places
    domain, rows, answers = linear_traffic(6)
    curved = softmax(np.column_stack([rows[:, 0] * rows[:, 1], rows[:, 2], np.zeros(len(rows))]))
    assert not is_linear(domain, rows, curved, rng), "products are not linear in the columns"
    equations = thieves_learners(domain, wide=True)[0]
    copied = equations(rows[:30], answers[:30], rng)
    assert ClassAnswers(3).agreement(copied(rows[100:]), answers[100:]) > 0.97, "thirty answers, eight unknowns"


def test_the_estimator_survives_the_file_and_a_damaged_one_is_refused() -> None:
    baseline = replace(fitted_baseline("digits"), estimator=rehearsed("digits"))
    again = read_baseline(pack_baseline(baseline))
    assert again.estimator is not None
    for name in ("weights", "errors", "sizes", "usual"):
        np.testing.assert_array_equal(getattr(again.estimator, name), getattr(baseline.estimator, name))
    good = rehearsed("digits")
    for broken in (
        replace(good, weights=good.weights[:-1]),
        replace(good, sizes=good.sizes[::-1].copy()),
        replace(good, errors=np.full_like(good.errors, np.nan)),
        replace(good, usual=good.usual[1:]),
    ):
        with pytest.raises(CorruptBaseline, match="extraction"):
            read_baseline(pack_baseline(replace(baseline, estimator=broken)))
