"""What odd queries say, under sharing keys: the same for a list asked elsewhere, bounded, and nothing under another key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references import batch_of

from consumers.records.odd_contents import KEPT, MOST_STORED, Contents, packed, seen, together, unpacked
from consumers.sharing_keys import SharingKey
from detector.baseline import Baseline
from detector.features import Column, Schema
from detector.query import ClientKey, Misfit
from detector.text import digest

OURS, OTHER = SharingKey(b"a" * 32), SharingKey(b"b" * 32)
CLIENT = ClientKey("t", "m", "c")
JOB = Column("job", "categorical", 0.0, 2.0, 1.0, ("baker", "clerk"))
AGE = Column("age", "numeric", 0.0, 99.0, 1.0)
SCHEMA = Schema((AGE, JOB), "features", True, "classification", ("no", "yes"))
ROWS = np.random.default_rng(3).integers(0, 2, (200, 2)) + np.arange(200)[:, None] * np.array([1.0, 0.0])


def hashes(
    rows: np.ndarray, *sharing: SharingKey, schema: Schema = SCHEMA, known: tuple[str, ...] = ()
) -> tuple[str, ...]:
    found = seen({CLIENT: known}, [CLIENT], batch_of(rows), np.ones(len(rows), np.uint32), 1, Contents(schema), sharing)
    return found.get(CLIENT, known)


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(60)), st.lists(st.integers(0, 60), max_size=4))
def test_neither_order_nor_cuts_change_what_is_kept(order: list[int], cuts: list[int]) -> None:
    whole = hashes(ROWS[:60], OURS, OTHER)
    kept: tuple[str, ...] = ()
    parts = []
    for piece in np.split(ROWS[order], sorted(cuts)):
        kept = hashes(piece, OURS, OTHER, known=kept)
        parts.append(packed(hashes(piece, OURS, OTHER)))
    assert kept == whole == together(parts)
    assert len(whole) == 2 * KEPT <= MOST_STORED


def test_peers_who_were_asked_one_list_keep_much_the_same_of_it() -> None:
    one, other = set(hashes(ROWS[:150], OURS)), set(hashes(ROWS[30:], OURS))
    assert len(one & other) >= KEPT // 2
    assert not one & set(hashes(ROWS[:150], OTHER)), "the control: another key"
    assert not one & set(hashes(ROWS[:150] + 1000.0 * np.array([1.0, 0.0]), OURS)), "the control: other rows"


def test_a_row_is_told_by_its_columns_not_by_their_order_or_codes() -> None:
    there = Schema(
        (replace(JOB, categories=("clerk", "baker")), AGE), "features", True, "classification", ("no", "yes")
    )
    turned = np.column_stack([1.0 - ROWS[:, 1], ROWS[:, 0]])
    assert hashes(turned, OURS, schema=there) == hashes(ROWS, OURS)
    renamed = Schema((replace(AGE, name="years"), JOB), "features", True, "classification", ("no", "yes"))
    assert not set(hashes(ROWS, OURS, schema=renamed)) & set(hashes(ROWS, OURS)), "the control: another column"


def test_a_text_counts_without_capitals_and_spaces(text_baseline: Baseline) -> None:
    contents = Contents(text_baseline.map.schema)
    row = np.zeros(text_baseline.map.schema.width)
    assert contents.of(row, 0, digest("How do I")) == contents.of(row, 0, digest("how  DO i")) != ""
    assert contents.of(row, 0, digest("How do you")) != contents.of(row, 0, digest("How do I"))
    assert contents.of(row, int(Misfit.UNREADABLE), 7) == ""


def test_what_does_not_fit_is_not_odd_or_has_no_key_leaves_nothing() -> None:
    batch = batch_of(ROWS[:3])
    batch.misfit[:], batch.salt[:] = [Misfit.MISSING, 0, 0], [0, 5, 0]
    contents = Contents(SCHEMA)
    mine = seen({}, [CLIENT], batch, np.ones(3, np.uint32), 1, contents, [OURS])
    assert mine == {CLIENT: hashes(ROWS[2:3], OURS)}
    assert seen({}, [CLIENT], batch, np.zeros(3, np.uint32), 1, contents, [OURS]) == {}
    assert seen({}, [CLIENT], batch, np.ones(3, np.uint32), 1, contents, []) == {}
    assert hashes(ROWS[:1], OURS, known=hashes(ROWS[:1], OTHER)) == hashes(ROWS[:1], OURS), "a key that is gone"


@pytest.mark.parametrize("blob", [None, b"", b"x", packed(["k.content:1"])[:-1]])
def test_damaged_hashes_begin_anew(blob: bytes | None) -> None:
    assert unpacked(blob) == ()
