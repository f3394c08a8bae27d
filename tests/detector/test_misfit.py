"""What does not fit the schema counts: it is seen, it never hides the rest, and honest misfits accuse nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support.references import FOREVER, KEY, answered, fitted_baseline, fold, noise, quick_training, reference_of

from detector.baseline_file import pack_baseline, read_baseline
from detector.features import BITS
from detector.fitting.baseline import fit_baseline
from detector.misfit import Donors
from detector.policy import FLAGGED, Policy, wanted
from detector.profile_table import ProfileTable
from detector.query import Misfit, QueryBatch
from detector.scoring import assess, reached
from detector.signals import MISFIT, SIGNALS

NAME = "people"
Spoil = Callable[[QueryBatch, np.random.Generator], None]


def null(q: QueryBatch, rng: np.random.Generator) -> None:
    q.inputs[:, 0], q.misfit[:] = np.nan, Misfit.MISSING


def half_null(q: QueryBatch, rng: np.random.Generator) -> None:
    q.inputs[:, :7], q.misfit[:] = np.nan, Misfit.MISSING


def unseen(q: QueryBatch, rng: np.random.Generator) -> None:
    q.inputs[:, 11], q.misfit[:], q.salt[:] = 5, Misfit.OTHER, 77


def huge(q: QueryBatch, rng: np.random.Generator) -> None:
    q.inputs[:, 4], q.misfit[:], q.salt[:] = np.inf, Misfit.OUT_OF_RANGE, np.arange(1, len(q) + 1)


def retyped(q: QueryBatch, rng: np.random.Generator) -> None:
    q.misfit[:] = Misfit.RETYPED


def unreadable(q: QueryBatch, rng: np.random.Generator) -> None:
    q.inputs[:], q.misfit[:], q.salt[:] = np.nan, Misfit.UNREADABLE, np.arange(1, len(q) + 1)


def no_answer(q: QueryBatch, rng: np.random.Generator) -> None:
    q.misfit[:], q.labels[:], q.probabilities = Misfit.ANSWER, -1, np.full((len(q), 2), np.nan, np.float32)


def mixed(q: QueryBatch, rng: np.random.Generator) -> None:
    ways = list(WAYS.values())[:-1]
    for i in range(len(q)):
        one = q.take(np.array([i]))
        ways[rng.integers(len(ways))](one, rng)
        q.inputs[i], q.misfit[i], q.salt[i] = one.inputs[0], one.misfit[0], one.salt[0] + i
        q.labels[i], q.probabilities[i] = one.labels[0], one.probabilities[0]


WAYS: dict[str, Spoil] = {f.__name__: f for f in (null, half_null, unseen, huge, retyped, unreadable, no_answer, mixed)}


def honest_rows(n: int, seed: int) -> QueryBatch:
    traffic = reference_of(NAME).traffic.inputs
    return answered(traffic[np.random.default_rng(seed).integers(0, len(traffic), n)].copy(), 2)


def stolen(way: str | None, seed: int = 1) -> QueryBatch:
    q = noise(NAME).take(np.arange(300))
    q = replace(answered(q.inputs, 2), clients=["client 0"])
    if way:
        WAYS[way](q, np.random.default_rng(seed))
    return q


@pytest.mark.parametrize("way", WAYS)
def test_a_spoilt_theft_is_flagged_within_twice_the_queries(way: str) -> None:
    baseline = fitted_baseline(NAME)
    plain, spoilt = fold(NAME, stolen(None)), fold(NAME, stolen(way))
    assert wanted(assess(spoilt, baseline), baseline.calibration, Policy())[0] in FLAGGED
    before, after = (reached(p, baseline, 0.01) for p in (plain, spoilt))
    assert before is not None
    assert after is not None
    assert after[1] <= 2 * before[1]
    assert spoilt.misfit == pytest.approx(spoilt.distinct)


@pytest.mark.parametrize("way", ["null", "half_null", "unseen", "retyped", "unreadable", "no_answer"])
def test_honest_rows_that_do_not_fit_are_never_blocked_for_it(way: str) -> None:
    q = honest_rows(300, 3)
    WAYS[way](q, np.random.default_rng(4))
    baseline = fitted_baseline(NAME)
    sure = replace(
        baseline.calibration, lifetime_maxima=np.zeros((5000, len(SIGNALS)), np.float32)
    )  # clients enough to support a block
    state, reason = wanted(assess(fold(NAME, q), baseline), sure, Policy(budget=0.01, mode="block"))
    assert (state, reason) == ("throttle", "misfit_only")
    held = assess(fold(NAME, q), baseline, misfits_held=True)
    assert held.held
    assert held.p_value == held.content_p_value > 0.001


def with_honest_nulls(share: float, seed: int) -> QueryBatch:
    """The traffic of a fleet whose clients leave out a column in a share of their queries."""
    traffic = reference_of(NAME).traffic
    q = traffic.take(np.arange(len(traffic)))
    rows = np.random.default_rng(seed).random(len(q)) < share
    q.inputs[rows, 0], q.misfit[rows] = np.nan, Misfit.MISSING
    return q


def test_a_fleet_that_sends_nulls_is_not_accused_for_nulls() -> None:
    reference = reference_of(NAME)
    with quick_training():
        baseline, _ = fit_baseline(
            NAME,
            reference.schema,
            reference.batch,
            with_honest_nulls(0.3, 5),
            rng=np.random.default_rng(9),
        )
    at = [i for i in range(len(SIGNALS)) if MISFIT[i]]
    q = honest_rows(300, 6)
    q.inputs[::3, 0], q.misfit[::3] = np.nan, Misfit.MISSING
    measured = baseline.map.measure(q, KEY)
    assert not (measured.bits & np.uint32(BITS["misfit_rare"] | BITS["misfit_beyond"])).any()
    null(q, np.random.default_rng(0))  # another column is another matter
    q.inputs[:, 0], q.inputs[:, 3] = honest_rows(300, 6).inputs[:, 0], np.nan
    assert (baseline.map.measure(q, KEY).bits & np.uint32(BITS["misfit_beyond"])).all()
    assert baseline.calibration.lifetime_maxima[:, at].max() <= 12


def test_a_missing_value_ties_queries_to_nothing() -> None:
    """Rows that lack the same columns agree in nothing, so each is still unrelated to the others."""
    profile = fold(NAME, stolen("half_null"))
    assert profile.novel >= 0.9 * profile.distinct


def test_unreadable_inputs_are_distinct_by_content_and_cover_nothing() -> None:
    q = stolen("unreadable")
    q.salt[:] = np.arange(1, len(q) + 1) % 50 + 1
    profile = fold(NAME, q)
    assert (profile.queries, profile.distinct, profile.novel, profile.misfit) == (300, 50.0, 50.0, 50.0)
    assert profile.region_counts.sum() == profile.distance_counts.sum() == 0


def test_a_donor_is_the_nearest_row_in_the_columns_that_are_there() -> None:
    rows = np.array([[0.0, 10.0, 0], [1.0, 20.0, 1], [2.0, 30.0, 2]] * 20)
    donors = Donors.of(rows, np.array([0, 0, 3]))
    asked = np.array([[1.1, np.nan, 1], [np.nan, 29.0, 3], [0.0, np.inf, 0], [2.0, 30.0, 2]])
    want = [[1.1, 20.0, 1], [2.0, 29.0, 2], [0.0, 1e12, 0], [2.0, 30.0, 2]]
    assert donors.complete(asked).tolist() == want
    assert donors.complete(rows) is rows


def test_a_reference_may_lack_values() -> None:
    reference = reference_of(NAME)
    batch = reference.batch.take(np.arange(len(reference.batch)))
    rng = np.random.default_rng(8)
    batch.inputs[rng.random(batch.inputs.shape) < 0.1] = np.nan
    batch.misfit[np.isnan(batch.inputs).any(1)] = Misfit.MISSING
    with quick_training():
        baseline, _ = fit_baseline(NAME, reference.schema, batch, reference.traffic, rng=np.random.default_rng(9))
    again = read_baseline(pack_baseline(baseline))
    assert again.map_id == baseline.map_id
    (thief,) = ProfileTable(again.map, again.table, again.calibration_version, FOREVER).of_log(stolen(None), KEY)
    assert assess(thief, again).suspicion > 0.99
    measured = again.map.measure(batch, KEY)
    rare = measured.bits & np.uint32(BITS["misfit_rare"])
    assert 0 < np.count_nonzero(rare) <= 0.02 * len(batch) + 1
