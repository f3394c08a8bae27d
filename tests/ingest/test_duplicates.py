"""The window of event ids: against a slow twin, whatever the polls, and through the store."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive

from consumers.ingest import duplicates
from consumers.ingest.duplicates import KEPT, SPAN_MS, Windows, event_hashes

KEY = bytes(range(16))
Row = tuple[int, int, int]  # client, event id (0: none), time in ms


def column(texts: Sequence[str]) -> tuple[bytearray, np.ndarray]:
    joined, ends = bytearray(), []
    for text in texts:
        joined += text.encode()
        ends.append(len(joined))
    return joined, np.array(ends, np.int64)


def twin(rows: Sequence[Row]) -> list[bool]:
    """A list a client; the newest time; nothing clever."""
    windows: dict[int, list[tuple[int, int]]] = {}
    newest: dict[int, int] = {}
    fresh = []
    for who, event, at in rows:
        now = max(newest.get(who, 0), at)
        window = [(e, t) for e, t in windows.get(who, []) if now - t <= SPAN_MS]
        seen = any(e == event for e, _ in window)
        fresh.append(not (event and seen))
        if event and not seen:
            newest[who] = now
            if now - at <= SPAN_MS:
                window.append((event, at))
            windows[who] = window[-KEPT:]
    return fresh


def fold(windows: Windows, rows: Sequence[Row]) -> list[bool]:
    if not rows:
        return []
    who, events, times = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    clients = sorted(set(who.tolist()))
    index = np.array([clients.index(c) for c in who.tolist()], np.int32)
    fresh = windows.unseen(clients, index, events.astype(np.uint64), times, times)
    return [bool(f) for f in fresh]


ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 8).map(lambda t: t * SPAN_MS // 3)), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.lists(st.integers(0, 60), max_size=4))
def test_the_window_does_what_its_twin_does_however_polls_cut(rows: list[Row], cuts: list[int]) -> None:
    windows, fresh = Windows(1), []
    edges = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    for start, end in itertools.pairwise(edges):
        fresh += fold(windows, rows[start:end])
        again = Windows(1)  # through the store between two polls
        for key in windows.rows:
            again.put(key, windows.blob(key))
        windows = again
    assert fresh == twin(rows)


def test_the_last_256_are_remembered_and_no_more() -> None:
    rows = [(0, i, 1000) for i in range(1, KEPT + 2)]
    windows = Windows()
    assert all(fold(windows, rows))
    assert fold(windows, [(0, 2, 1000), (0, KEPT + 1, 1000), (0, 1, 1000)]) == [False, False, True]
    blob = windows.blob(0)
    assert blob is not None
    assert len(blob) == 16 + 16 * KEPT
    again = Windows()
    again.put(0, blob)
    assert again.blob(0) == blob, "a full window is read"


def test_a_stored_window_takes_the_place_of_the_one_at_hand() -> None:
    windows, stored = Windows(), Windows()
    fold(windows, [(0, 7, 1000)])
    fold(stored, [(0, 8, 1000)])
    windows.put(0, stored.blob(0))
    assert fold(windows, [(0, 7, 1000), (0, 8, 1000)]) == [True, False]


@pytest.mark.parametrize(("age_ms", "fresh"), [(SPAN_MS, False), (SPAN_MS + 1, True)])
def test_an_id_is_remembered_for_ten_minutes_of_event_time(age_ms: int, fresh: bool) -> None:
    assert fold(Windows(), [(0, 7, 5000), (0, 8, 5000 + age_ms), (0, 7, 5000)]) == [True, True, fresh]


def test_an_event_from_ahead_of_the_log_is_recognised_when_the_log_arrives() -> None:
    """It counted at 1,000 and states a time two spans later; its repetition states the same and counts there."""
    windows, later = Windows(), 1000 + 2 * SPAN_MS
    who, event = np.zeros(1, np.int32), np.array([7], np.uint64)
    for counted, stated, fresh in ((1000, later, True), (2000, 2000, True), (later, later, False)):
        event[0] = 8 if stated == 2000 else 7
        seen = windows.unseen(["a"], who, event, np.array([counted]), np.array([stated]))
        assert seen.tolist() == [fresh]
        again = Windows()
        again.put("a", windows.blob("a"))
        windows = again


def test_hashes_are_the_keyed_hash_of_the_literature_and_no_text_has_none() -> None:
    texts = ['"a-1"', "", "7", '"' + "x" * 30 + '"', '"a-1"']
    out = event_hashes(*column(texts), KEY)
    twins = [naive.siphash(t.encode(), KEY, 1, 3) for t in texts]
    assert out.tolist() == [twins[0], 0, twins[2], twins[3], twins[0]]
    assert event_hashes(*column(texts), bytes(16))[0] != out[0]


@pytest.mark.parametrize("damaged", [b"", b"\x01", b"x" * 16, b"\x01" + bytes(27), b"\x02\x00\xff\xff" + bytes(12)])
def test_a_damaged_window_begins_anew(damaged: bytes) -> None:
    windows = Windows()
    windows.put("c", damaged)
    assert windows.blob("c") is None
    assert fold(windows, [(0, 3, 9)]) == [True]


def test_a_window_of_another_version_or_with_another_number_of_ids_begins_anew() -> None:
    """Each of the three is wrong alone."""
    windows = Windows()
    fold(windows, [(0, 7, 1000)])
    good = windows.blob(0)
    assert good is not None
    version, count, newest = duplicates._HEAD.unpack_from(good)
    ids = good[duplicates._HEAD.size :]
    for wrong in (
        duplicates._HEAD.pack(version + 1, count, newest) + ids,
        duplicates._HEAD.pack(version, count + 1, newest) + ids,
        duplicates._HEAD.pack(version, KEPT + 1, newest) + ids * (KEPT + 1),
    ):
        windows.put(0, wrong)
        assert windows.blob(0) is None


def test_the_table_grows_and_rows_are_reused_empty() -> None:
    windows = Windows(2)
    for client in range(40):
        assert fold(windows, [(client, 5, 100)]) == [True]
    for client in range(40):
        windows.drop(client)
    for client in range(40, 80):
        assert fold(windows, [(client, 5, 100)]) == [True]
    assert windows._kept.capacity < 80  # forty at a time, never eighty


def test_twin_knows_a_broken_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: a window that forgets to age is told from the twin."""
    rows: list[Row] = [(0, 1, 1), (0, 2, 2 * SPAN_MS), (0, 1, 2 * SPAN_MS)]
    assert twin(rows) == [True, True, True]
    assert fold(Windows(), rows) == twin(rows)
    never_ages = Windows()
    never_ages.put(0, None)
    for h, t in ((1, 2 * SPAN_MS), (2, 2 * SPAN_MS)):
        fold(never_ages, [(0, h, t)])
    assert fold(never_ages, [(0, 1, 2 * SPAN_MS)]) != twin(rows)[-1:]


def test_event_ids_are_compared_as_written() -> None:
    assert len(set(event_hashes(*column([json.dumps("é"), '"é"']), KEY).tolist())) == 2
    assert duplicates.FIELD == "e"
