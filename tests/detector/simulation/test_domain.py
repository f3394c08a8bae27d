"""The domain: what a service accepts, read off a reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detector.simulation.domain import Domain, HonestPools, Rows, misrouted_rows, strangers

AGES = np.array([[18, 0, 0.25, 1], [44, 0, 0.5, 3], [71, 2500, 0.75, 1], [30, 0, 0.1, 7]], dtype=np.float64)


def test_bounds_decimals_and_codes_are_those_of_the_reference() -> None:
    domain = Domain.of(AGES)
    assert domain.low.tolist() == [18, 0, 0.1, 1]
    assert domain.high.tolist() == [71, 2500, 0.75, 7]
    assert domain.decimals.tolist() == [0, 0, 2, 0]
    assert domain.coded.tolist() == [True, True, False, True]
    assert domain.mode.tolist()[1] == 0
    assert not domain.homogeneous


def test_declared_codes_win_over_the_guess() -> None:
    domain = Domain.of(AGES, coded=np.array([False, False, False, True]))
    assert domain.coded.tolist() == [False, False, False, True]
    assert domain.emit(np.array([[200.0, -3.0, 0.333, 4.4]])).tolist() == [[71.0, 0.0, 0.33, 3.0]]


def test_values_that_went_through_float32_keep_their_decimals() -> None:
    column = np.round(np.random.default_rng(0).random(500), 4).astype(np.float32).astype(np.float64)
    assert Domain.of(column[:, None]).decimals.tolist() == [4]


def test_pixels_share_one_range_even_at_the_dark_border() -> None:
    rows = np.zeros((50, 16))
    rows[:, 4:] = np.random.default_rng(0).integers(0, 17, size=(50, 12)) / 16
    domain = Domain.of(rows)
    assert domain.homogeneous
    assert domain.high.tolist() == [1.0] * 16
    assert not domain.coded.any()
    assert (domain.spread > 0).all()


def test_unit_rows_are_scaled_back_to_length_one() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    domain = Domain.of(rows)
    assert domain.unit
    np.testing.assert_allclose(np.linalg.norm(domain.emit(rows * 3.0), axis=1), 1.0, atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(domain.emit(np.zeros((1, 8))), axis=1), 1.0, atol=2e-3)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.zeros(3)])
def test_no_reference_no_domain(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="reference"):
        Domain.of(bad)


@settings(deadline=None, max_examples=60)
@example(np.array([[-2e-39, 0, 0, 0], [2, 0, 0, 0], *([[0] * 4] * 5)], dtype=np.float64), np.ones((5, 4)))
@given(
    arrays(np.float64, (7, 4), elements=st.floats(-1e6, 1e6, allow_nan=False)),
    arrays(np.float64, (5, 4), elements=st.floats(-1e9, 1e9)),
)
def test_emit_is_idempotent_and_in_bounds(reference: np.ndarray, wish: np.ndarray) -> None:
    domain = Domain.of(reference)
    rows = domain.emit(wish)
    np.testing.assert_array_equal(domain.emit(rows), rows)
    slack = 0.5 * domain.grain + 1e-9  # a bound finer than six decimals is rounded like any value
    assert (rows >= domain.low - slack).all()
    assert (rows <= domain.high + slack).all()


def test_items_come_from_the_pool_first_and_keep_codes_and_zeros_afterwards() -> None:
    rng = np.random.default_rng(0)
    gain = np.where(rng.random(60) < 0.8, 0, rng.integers(100, 9000, 60))
    pool = np.stack([rng.integers(18, 80, 60), gain, rng.choice([1, 4, 9], 60)], axis=1).astype(np.float64)
    pools = HonestPools(Domain.of(pool), pool, rng.integers(0, 2, 60), pool[:5], pool[:5])
    known = {row.tobytes() for row in pool}
    assert {row.tobytes() for row in pools.items(500, rng, repeats=1.0)} <= known
    fresh = pools.items(500, rng)
    assert len(np.unique(fresh, axis=0)) > 2 * len(known)
    assert np.isin(fresh[:, 2], [1, 4, 9]).all()
    assert 0.6 < (fresh[:, 1] == 0).mean() < 0.95


def test_strangers_are_accepted_rows_far_from_the_pool() -> None:
    rng = np.random.default_rng(0)
    pool = np.stack([rng.integers(18, 30, 200), rng.integers(700, 1000, 200), rng.choice([0, 0, 0, 5], 200)], axis=1)
    domain = Domain.of(pool.astype(np.float64))
    rows = strangers(domain, pool.astype(np.float64), rng, most=50)
    assert rows.shape == (50, 3)
    np.testing.assert_array_equal(rows, domain.emit(rows))
    assert not {row.tobytes() for row in rows} <= {row.tobytes() for row in pool.astype(np.float64)}


def test_misrouted_rows_have_codes_of_other_columns_under_other_names() -> None:
    """A row is renamed as a whole, so equal rows stay equal; what hardly anybody sends is usual among them."""
    rng = np.random.default_rng(1)
    some = np.where(rng.random((200, 30)) < 0.1, rng.integers(1, 4, size=(200, 30)), 0).astype(np.float64)
    pool: Rows = np.vstack([some, some])
    domain = Domain.of(pool, np.ones(30, bool))
    rows = misrouted_rows(domain, pool, np.random.default_rng(3))
    assert len(np.unique(rows, axis=0)) == len(np.unique(pool, axis=0))
    assert (pool == domain.mode).mean() > 0.85
    assert (rows == domain.mode).mean() < 0.5
    assert all(set(column) <= set(pool[:, j]) for j, column in enumerate(rows.T))
    numbers = Domain.of(pool, np.zeros(30, bool))
    before, now = (each(numbers, pool, np.random.default_rng(3)) for each in (strangers, misrouted_rows))
    np.testing.assert_array_equal(now, before, "numbers are as before")


def test_the_numbers_and_codes_of_a_misrouted_row_are_of_one_row() -> None:
    """What a code says of a number is still said, under another name: here, in which ten it lies."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 3, 600).astype(np.float64)
    pool: Rows = np.stack([codes * 10 + rng.random(600), codes], 1)
    domain = Domain.of(pool, np.array([False, True]))
    rows = misrouted_rows(domain, pool, np.random.default_rng(3))
    back = domain.low[0] + domain.high[0] - rows[:, 0]
    mirrored = np.isclose(back[:, None], np.sort(pool[:, 0])[1:-1], atol=1e-9).any(
        1
    )  # the ends are rows of columns in another order, too
    assert mirrored.sum() > 200
    tens = [set((back[mirrored & (rows[:, 1] == code)] // 10).tolist()) for code in range(3)]
    assert sorted(tens, key=min) == [{0.0}, {1.0}, {2.0}]


def test_class_mix_steers_the_items() -> None:
    rng = np.random.default_rng(0)
    pool = np.arange(40, dtype=np.float64)[:, None]
    pools = HonestPools(Domain.of(pool, np.array([False])), pool, np.arange(40) % 2, pool, pool)
    rows = pools.items(30, rng, mix=np.array([0.0, 1.0]), repeats=1.0)
    assert (rows[:, 0] % 2 == 1).all()
