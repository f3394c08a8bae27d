"""A record from the far future counts at the log's time: it clears no profile, stops no admission and blinds no metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims
from support.references import batch_of

from consumers.ingest import loop as ingest
from consumers.ingest.admission import AdmissionLimits
from consumers.ingest.cell import Cell
from consumers.ingest.health import Runtime
from consumers.ingest.loop import IngestLoop
from consumers.ingest.step import Ingest, shape_of
from consumers.log import Poll, Records
from consumers.log.files import FileLog
from consumers.records.ledger import imbalance
from consumers.records.spans import spans_in_force, together
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.profile import Profile
from detector.query import ClientKey
from detector.signals import measure

NewStore = Callable[[], EmbeddedStore]
DAY_MS = 86_400_000
START_MS = 1368 * 15 * DAY_MS
"""The beginning of a half-horizon window."""


@pytest.fixture
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({victims.MODEL: baseline}, secrets)


def at(day: float, client: str, seed: int) -> bytes:
    """An honest query so many days after `START_MS`."""
    stamp = np.datetime_as_string(np.datetime64(START_MS + round(day * DAY_MS), "ms"), unit="ms", timezone="UTC")
    return victims.line(victims.items(1, np.random.default_rng(seed))[0], client_id=client, timestamp=str(stamp))


def through(log: Any, store: EmbeddedStore, reading: Ingest, poll: int = 5000) -> IngestLoop:
    one = IngestLoop(log, store, reading, runtime=Runtime(sleep=lambda s: None), max_poll_records=poll)
    ingest.run(one, lambda: False, until_end=True, poll_timeout_s=0.0)
    return one


def read(
    path: Path, lines: Sequence[bytes], store: EmbeddedStore, reading: Ingest, poll: int = 5000
) -> tuple[IngestLoop, dict[str, dict[int, Profile]]]:
    """Ingest a file; each client's spans by first window, counted from `START_MS`."""
    one = through(FileLog([victims.write_lines(path, lines)]), store, reading, poll)
    return one, spans_of(store, reading)


def spans_of(store: EmbeddedStore, reading: Ingest) -> dict[str, dict[int, Profile]]:
    (cell,) = store.cells()
    shape = shape_of(reading.baselines[victims.MODEL])
    keys = {ClientKey("default", victims.MODEL, reading.secrets.client_hash("default", c)): c for c in "abcdt"}
    fields: Mapping[ClientKey, Mapping[str, bytes]] = store.shards(cell, list(keys)).fields
    return {
        keys[key]: {
            int(name[2:]) - 1368: Profile.from_bytes(blob, shape) for name, blob in some.items() if name[:2] == "w:"
        }
        for key, some in fields.items()
        if some
    }


@pytest.mark.parametrize("poll", [1, 7, 5000])
def test_records_of_a_future_year_clear_no_profile_and_turn_no_window(
    poll: int, tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    """C1: a thief that dates one query in 60 far ahead is counted as if it had not."""
    lines = [at(i / 100, "abc"[i % 3], i) for i in range(90)]
    for i in range(180):
        lines.append(at(0.9 + i / 1000, "t", 1000 + i))
        if i % 60 == 59:
            lines.append(at(45 * (i + 1), "t", 2000 + i))
    one, spans = read(tmp_path / "log.jsonl", lines, new_store(), reading, poll)
    assert {w: p.queries for w, p in spans["t"].items()} == {0: 183}
    assert spans["t"][0].last_ms < START_MS + 2 * DAY_MS
    (cell,) = one.ownership.cells.values()
    assert (cell.counters["ahead"], cell.counters["dead"], imbalance(cell.counters)) == (3, 0, 0)
    assert "querywarden_ahead_queries_total 3.0" in one.reporter.metrics.text().decode()


def test_a_record_of_the_year_9998_stops_no_admission(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets
) -> None:
    """C2: each horizon takes up its new clients, as without it."""
    pooled = []
    for future in ([], [at(365 * 7000, "a", 1)]):
        reading = Ingest({victims.MODEL: baseline}, secrets, limits=AdmissionLimits(new_an_hour=5000, clients=25))
        lines = [at(0.1, c, ord(c)) for c in "abc"] + future
        for month in range(4):
            lines += [at(45 * month + 1, c, ord(c)) for c in "abc"]
            lines += [at(45 * month + 2 + i / 100, f"new-{month}-{i}", i) for i in range(20)]
        name = f"log{len(future)}.jsonl"
        one, _ = read(tmp_path / name, lines, new_store(), reading)
        (cell,) = one.ownership.cells.values()
        pooled.append(cell.counters["pooled"])
    assert pooled == [0, 0]


def test_a_record_of_a_future_year_does_not_blind_the_metric_of_event_time(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    """C3: "far behind the clock" can be told still."""
    lines = [at(0.1, c, ord(c)) for c in "abc"] + [at(365 * 7000, c, 1) for c in "ab"]
    one, spans = read(tmp_path / "log.jsonl", lines, new_store(), reading)
    assert one.reporter.metrics.value("querywarden_event_time_seconds") == START_MS / 1000 + 8640
    assert max(p.last_ms for mine in spans.values() for p in mine.values()) == START_MS + 8_640_000


def test_a_restart_goes_on_with_the_same_log_time(tmp_path: Path, new_store: NewStore, reading: Ingest) -> None:
    lines = [at(i / 100, "abc"[i % 3], i) for i in range(30)] + [at(40 + i, "t", 100 + i) for i in range(30)]
    _, whole = read(tmp_path / "log.jsonl", lines, new_store(), reading)
    store = new_store()
    for end in (20, 35, 60):
        one = IngestLoop(
            FileLog([tmp_path / "log.jsonl"]), store, reading, runtime=Runtime(sleep=lambda s: None), max_poll_records=1
        )
        while all((c.offset or 0) < end for c in one.ownership.cells.values()):
            one.turn(0.0)
    resumed = spans_of(store, reading)
    assert {c: {w: p.to_bytes() for w, p in mine.items()} for c, mine in resumed.items()} == {
        c: {w: p.to_bytes() for w, p in mine.items()} for c, mine in whole.items()
    }
    assert whole["t"][0].last_ms < START_MS + DAY_MS


def test_erasing_a_client_removes_what_it_did_beyond_the_horizon(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    rng = np.random.default_rng(8)
    lines = []
    for day in range(0, 120, 2):
        lines += [at(day, c, day) for c in "abc"]
        stamp = str(np.datetime64(START_MS + day * DAY_MS, "ms")) + "Z"
        lines.append(victims.line(rng.uniform(-9, 9, victims.WIDTH).round(2), client_id="t", timestamp=stamp))
    store = new_store()
    read(tmp_path / "log.jsonl", lines, store, reading)
    mine = spans_of(store, reading)["t"]
    assert mine[min(mine)].archive
    key = ClientKey("default", victims.MODEL, reading.secrets.client_hash("default", "t"))
    (cell,) = store.cells()
    store.erase(cell, [key])
    assert not store.shards(cell, [key]).fields.get(key)
    again = IngestLoop(FileLog([tmp_path / "log.jsonl"]), store, reading, runtime=Runtime(sleep=lambda s: None))
    ingest.run(again, lambda: False, until_end=True, poll_timeout_s=0.0)
    assert "t" not in spans_of(store, reading)


def test_a_client_that_moved_to_another_cell_takes_its_faded_evidence_along(
    baseline: Baseline, reading: Ingest
) -> None:
    rng = np.random.default_rng(8)
    first, second = "topic:0", "topic:1"
    fields: dict[str, dict[str, bytes]] = {}
    for cell, days in ((first, range(40)), (second, range(100, 110))):
        profiles = reading.of_model(Cell(cell, "t", 0, Counter()), victims.MODEL)
        rows = rng.uniform(-9, 9, (len(days), victims.WIDTH))
        batch = batch_of(rows, time_ms=START_MS + np.array(days, np.int64) * DAY_MS)
        profiles.add(["t"], batch, profiles.map.measure(batch, b"k" * 16))
        fields[cell] = {f"w:{span.window}": span.to_bytes() for span in profiles.spans("t")}
    both, alone = (together(spans_in_force(some, baseline)) for some in (fields, {second: fields[second]}))
    assert both is not None
    assert alone is not None
    assert (both.queries, alone.queries, bool(both.archive), bool(alone.archive)) == (10, 10, True, False)
    more = measure(both, baseline.table).count - measure(alone, baseline.table).count
    assert more.min() >= 0
    assert 10 < more.max() < 40


class BrokerLog(FileLog):
    """A file whose records all have one broker time."""

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        poll = super().poll(timeout_s, max_records)
        for records in poll.batches:
            assert isinstance(records, Records)
            records.broker_ms = np.full(len(records.offsets), START_MS + DAY_MS, np.int64)
        return poll


def test_no_record_counts_more_than_a_day_after_the_time_of_the_broker(
    tmp_path: Path, new_store: NewStore, reading: Ingest
) -> None:
    lines = [at(400 + i / 100, "abc"[i % 3], i) for i in range(30)]
    store = new_store()
    one = through(BrokerLog([victims.write_lines(tmp_path / "log.jsonl", lines)]), store, reading)
    (cell,) = one.ownership.cells.values()
    assert cell.counters["ahead"] == 30
    assert {p.last_ms for mine in spans_of(store, reading).values() for p in mine.values()} == {START_MS + 2 * DAY_MS}
