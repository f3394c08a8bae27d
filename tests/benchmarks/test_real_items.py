"""Pools without blends: what is asked for is in the pool, all of it before anything comes again; pools with blends are seen to fail."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.real_items import RealItems
from detector.simulation.domain import Domain, HonestPools, Rows, first_of_each
from detector.simulation.honest import batch_scorer

ITEMS = 80


def pools(of: type[HonestPools]) -> HonestPools:
    rows = np.random.default_rng(1).normal(size=(ITEMS, 5)).round(3)
    return of(Domain.of(rows), rows, np.arange(ITEMS) % 3, rows[:0], rows[:0])


def made_up(sent: Rows, known: Rows) -> int:
    """Rows sent that are no item of the pool."""
    items = {row.tobytes() for row in known}
    return sum(row.tobytes() not in items for row in sent)


@pytest.mark.parametrize("queries", [40, ITEMS, 500])
def test_a_table_of_real_items_is_scored_once_and_then_again(queries: int) -> None:
    real, blended = pools(RealItems), pools(HonestPools)
    sent = batch_scorer(real, queries, np.random.default_rng(2))
    assert len(sent) == queries
    assert made_up(sent, real.pool) == 0
    assert len(first_of_each(sent)) >= 0.95 * min(queries, ITEMS)
    assert made_up(batch_scorer(blended, queries, np.random.default_rng(2)), blended.pool) > 0


def test_an_item_of_a_class_is_replaced_by_one_of_the_same_class() -> None:
    real = pools(RealItems)
    sent = real.items(200, np.random.default_rng(3), np.array([1.0, 0.0, 0.0]))
    label = {row.tobytes(): int(k) for row, k in zip(real.pool, real.labels, strict=True)}
    assert {label[row.tobytes()] for row in sent} == {0}
    assert len(first_of_each(sent)) == np.sum(real.labels == 0)


def test_what_comes_again_is_sent_again_where_the_client_repeats_itself() -> None:
    real = pools(RealItems)
    rng = np.random.default_rng(4)
    kept = len(first_of_each(real.items(60, rng, repeats=1.0)))
    assert kept < len(first_of_each(real.items(60, rng))) == 60
