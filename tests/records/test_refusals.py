"""Counts of what did not fit, by reason and column: exact, bounded, stored with the profile, and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import victims

from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.ingest.loop import IngestLoop, run
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.log.reasons import MisfitNote
from consumers.readers.explanation import refusals as said
from consumers.readers.queries import Reader
from consumers.records import refusals
from consumers.records.decision import stored_decision
from consumers.records.refusals import MOST_COLUMNS, OTHERS, Refusals
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.policy import Policy
from detector.query import ClientKey

MODEL = victims.MODEL
NewStore = Callable[[], EmbeddedStore]

NOTES = st.lists(
    st.builds(MisfitNote, st.sampled_from(["missing_value", "retyped"]), st.sampled_from(["", "a", "b", "prediction"])),
    max_size=4,
)


@pytest.fixture(scope="module")
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({MODEL: baseline}, secrets)


def log_of(folder: Path, lines: Sequence[bytes]) -> FileLog:
    return FileLog([victims.write_lines(folder / "log.jsonl", lines)])


def lines() -> list[bytes]:
    """60 events of two clients: `fits`, and `odd` with a null every third time, one value too few every fifth, no time every tenth."""
    rows = victims.items(60, np.random.default_rng(2)).tolist()
    out = []
    for i, row in enumerate(rows):
        features: list[Any] = [None, *row[1:]] if i % 3 == 0 else row[:-1] if i % 5 == 0 else row
        changes: dict[str, Any] = {"features": features} | ({"timestamp": "soon"} if i % 10 == 0 else {})
        out.append(victims.line(rows[i], client_id="fits"))
        out.append(victims.line(rows[i], client_id="odd", event_id=f"o-{i}", **changes))
    return out


ODD = Refusals(
    {"missing_value": 20, "wrong_dimension": 8, "bad_timestamp": 6},
    {"x0": {"missing_value": 20}},
)


def test_refusals_of_a_client_are_counted_exactly_however_polls_are_cut(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    every = lines()
    log = [*every, *every[1::4]]  # some come twice, and count once
    for poll, restart in ((1000, 0), (7, 3), (1, 0)):
        store = new_store()
        for _ in range(len(log) // poll // restart if restart else 0):
            one = IngestLoop(log_of(tmp_path, log), store, reading, max_poll_records=poll, cautious_after=99)
            for _ in range(restart):
                one.turn(0.0)
        last = IngestLoop(log_of(tmp_path, log), store, reading, max_poll_records=poll, cautious_after=99)
        run(last, lambda: False, until_end=True, poll_timeout_s=0.0)
        (cell,) = store.cells()
        keys = [ClientKey("default", MODEL, reading.secrets.client_hash("default", c)) for c in ("odd", "fits")]
        found = store.shards(cell, keys).fields
        assert refusals.unpacked(found[keys[0]]["r"]) == ODD
        assert "r" not in found[keys[1]]


def test_scores_account_and_readers_show_them(
    tmp_path: Path, new_store: NewStore, reading: Ingest, baseline: Baseline
) -> None:
    store = new_store()
    store.prepare(reading.secrets.key_id)
    run(IngestLoop(log_of(tmp_path, lines()), store, reading), lambda: False, until_end=True, poll_timeout_s=0.0)
    judging = Detect({MODEL: baseline}, reading.secrets, Policy(0.01, "block"))
    detect.run(detect.Runner(store, judging, now_s=lambda: None), lambda: False, until_idle=True)
    rows = {
        r.client_id: r
        for r in (stored_decision(row, reading.secrets, "default") for _, row in store.decisions("default"))
    }
    score = rows["odd"].score(MODEL)
    assert score["queries"] == 60
    assert score["refused"] == ODD.reasons
    assert score["misfit"] == 28
    assert (rows["fits"].score(MODEL)["refused"], rows["fits"].score(MODEL)["misfit"]) == ({}, 0)
    key = reading.secrets.client_hash("default", "odd")
    one = Reader(store, reading.secrets, baselines={MODEL: baseline}).client(MODEL, key)
    assert one is not None
    assert (one.refused, one.misfits, one.misfit) == (ODD.reasons, ODD.columns, 28)
    assert said(one) == [
        "missing_value: 20 queries",
        "wrong_dimension: 8 queries",
        "bad_timestamp: 6 queries",
        "column x0: missing_value 20",
    ]


@given(st.lists(NOTES, max_size=30), st.integers(0, 30))
def test_counts_of_two_cells_are_those_of_one(notes: list[list[MisfitNote]], cut: int) -> None:
    whole, first, second = Refusals(), Refusals(), Refusals()
    for i, mine in enumerate(notes):
        whole.add(mine)
        (first if i < cut else second).add(mine)
    assert refusals.together([refusals.packed(first), None, b"damaged", refusals.packed(second)]) == whole
    assert sum(whole.reasons.values()) == sum(len({note.reason for note in mine}) for mine in notes)


def test_a_client_cannot_make_its_counts_grow() -> None:
    counts = Refusals()
    for i in range(5000):
        counts.add([MisfitNote("missing_column", f"{i}" + "é" * 500)])
    assert len(counts.columns) == MOST_COLUMNS + 1
    assert counts.columns[OTHERS] == {"missing_column": 5000 - MOST_COLUMNS}
    assert len(refusals.packed(counts)) < 12_000
    assert json.dumps(counts.reasons) == '{"missing_column": 5000}'
