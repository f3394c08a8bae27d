"""Schema watch: counts of clients by column merge without counting one twice, by day, and watch only what honest clients hardly send."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references import batch_of, fitted_map, reference_of

from consumers.records.schema_watch import KEPT, Distinct, SchemaWatch, watched
from detector.clock import DAY_MS
from detector.query import Misfit, QueryBatch

FMAP = fitted_map("people")


def hashed(client: int) -> str:
    return hashlib.blake2b(b"%d" % client, digest_size=16).hexdigest()


def poll(clients: list[int], nulls: set[int], day: int, column: int = 0) -> tuple[QueryBatch, list[str]]:
    """One query of each client; some lack a value in a column."""
    known = sorted(set(clients))
    rows = reference_of("people").batch.inputs[: len(clients)].copy()
    batch = batch_of(rows, who=np.array([known.index(c) for c in clients], np.int32))
    batch.time_ms[:] = day * DAY_MS
    for i, client in enumerate(clients):
        if client in nulls:
            batch.inputs[i, column], batch.misfit[i] = np.nan, Misfit.MISSING
    return batch, [hashed(c) for c in known]


def counts(watch: SchemaWatch) -> tuple[float, dict[str, float]]:
    return watch.clients.estimate(), {name: one.estimate() for name, one in watch.columns.items()}


CLIENTS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(CLIENTS, st.sets(st.integers(1, 60)), st.lists(st.integers(0, 80), max_size=3))
def test_polls_and_cells_cut_as_they_like_count_each_client_once(
    clients: list[int], nulls: set[int], cuts: list[int]
) -> None:
    whole, parts = SchemaWatch(), [SchemaWatch(), SchemaWatch()]
    whole.add(*poll(clients, nulls, 7), FMAP)
    edges = [0, *sorted(min(c, len(clients)) for c in cuts), len(clients)]
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        if start < end:
            part = SchemaWatch.from_bytes(parts[i % 2].to_bytes())
            part.add(*poll(clients[start:end], nulls, 7), FMAP)
            parts[i % 2] = part
    merged = parts[0].merge(parts[1])
    assert counts(merged) == counts(whole)
    want = len(set(clients) & nulls)
    assert counts(whole) == (len(set(clients)), {"x0": want} if want else {})


def test_a_new_day_begins_anew_and_an_older_one_adds_nothing_to_it() -> None:
    watch = SchemaWatch()
    assert watch.add(*poll([1, 2, 3], {1, 2}, 7), FMAP)
    assert not watch.add(*poll([1, 4], set(), 8), FMAP)
    assert counts(watch) == (2, {})
    older = SchemaWatch()
    older.add(*poll([9], {9}, 7), FMAP)
    assert counts(watch.merge(older)) == counts(older.merge(watch)) == (2, {})


def test_a_poll_over_midnight_counts_as_two_polls() -> None:
    eve, day = poll([1, 2, 3], {1, 2}, 7), poll([3, 4, 5], {3}, 8)
    apart, joined = SchemaWatch(), SchemaWatch()
    for each in (eve, day):
        apart.add(*each, FMAP)
    both, hashes = poll([1, 2, 3, 3, 4, 5], set(), 8)
    both.inputs[:], both.misfit[:] = (
        np.concatenate([eve[0].inputs, day[0].inputs]),
        np.concatenate([eve[0].misfit, day[0].misfit]),
    )
    both.time_ms[:3] = 8 * DAY_MS - 1
    for order in (np.arange(6), np.arange(6)[::-1]):
        joined = SchemaWatch()
        joined.add(both.take(order), hashes, FMAP)
        assert counts(joined) == counts(apart) == (3, {"x0": 1})
    late = SchemaWatch()
    late.add(*day, FMAP)
    assert not late.add(*eve, FMAP), "what comes late belongs to a day that is gone"


def test_many_clients_are_estimated_from_bounded_state() -> None:
    some = Distinct()
    rng = np.random.default_rng(3)
    for _ in range(20):
        some.add(rng.integers(0, 2**48, 500, np.uint64))
    assert len(some.smallest) == KEPT
    assert 0.7 < some.estimate() / 10_000 < 1.4


def test_what_a_fleet_sends_all_day_is_not_watched() -> None:
    usual = replace(FMAP, misfit_bits=np.zeros_like(FMAP.misfit_bits), misfit_kinds=np.zeros(3))
    batch, _ = poll([1, 2], {1, 2}, 7)
    batch.misfit[:] |= np.uint8(Misfit.ANSWER)
    assert [name for name, _ in watched(batch, FMAP)] == ["x0", "(answer)"]
    assert list(watched(batch, usual)) == []


def test_an_unreadable_input_is_no_missing_value_of_every_column() -> None:
    batch, _ = poll([1], set(), 7)
    batch.inputs[:], batch.misfit[:] = np.nan, Misfit.UNREADABLE
    assert [name for name, _ in watched(batch, FMAP)] == ["(input)"]


def test_damaged_state_begins_anew() -> None:
    for damaged in (None, b"", b"x", SchemaWatch().to_bytes()[:-1]):
        assert counts(SchemaWatch.from_bytes(damaged)) == (0, {})
