"""A log read through a mapping: offsets of rows, bounded polls, resumption, cells. The same events score the same in any format."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from support import foreign_logs, loans
from support.kafka_producer import produce

from consumers import replay
from consumers.detect.step import Detect
from consumers.errors import Fenced, LogTruncated, Refused
from consumers.ingest.step import Ingest
from consumers.log import Poll, QueryLog, Records
from consumers.log.files import FileLog
from consumers.log.followed import FollowedFile
from consumers.log.halves import NOTHING_WAITS, ROW_BITS, WaitingHalves
from consumers.log.kafka import KafkaLog, connection
from consumers.log.mappings.mapped import ROWS, MappedFiles, MappedLog
from consumers.log.mappings.mapping import LogMapping, mapping_of, preset
from consumers.log.mappings.records import Translator
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.policy import Policy

BATCHES = mapping_of({
    "name": "own", "client": {"paths": [{"path": "who"}]}, "id": {"paths": ["id", "$place"]}, "input": {"paths": ["rows"], "form": "rows"},
}, "own")  # fmt: skip


def translator(mapping: LogMapping = BATCHES, secrets: Secrets | None = None) -> Translator:
    hashed = (lambda raw: secrets.client_hash("default", raw)) if secrets else (lambda raw: "0" * 32)
    return Translator(mapping, hashed, loans.MODEL)


def batch(i: int, rows: int) -> bytes:
    return json.dumps({"id": f"b{i}", "who": "c", "rows": [[i, j] for j in range(rows)]}).encode()


def files(folder: Path, lines: Sequence[bytes], mapping: LogMapping = BATCHES, resumable: bool = False) -> MappedFiles:
    path = folder / "log.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return MappedFiles(FileLog([path], resumable=resumable), translator(mapping))


def read(log: QueryLog, most: int = 1000, offset: int | None = None, polls: int = 200) -> list[Records]:
    """Every batch of a log up to its end."""
    found: list[Records] = []
    sought: set[str] = set()
    for _ in range(polls):
        poll = log.poll(0.05, most)
        for cell in poll.assigned:
            log.seek(cell, offset)
            sought.add(cell)
        found += poll.batches
        if sought and not poll.assigned and all(log.position(cell) >= end for cell, end in log.ends().items()):
            break
    return found


def rows_of(batches: Sequence[Records]) -> list[list[int] | None]:
    return [json.loads(value).get("features") for b in batches for value in b.values]


# --- offsets and polls


def test_each_row_has_an_offset_of_its_own_and_polls_are_bounded(tmp_path: Path) -> None:
    sizes = [3, 1, 40, 2]
    log = files(tmp_path, [batch(i, n) for i, n in enumerate(sizes)])
    batches = read(log, most=7)
    offsets = [int(offset) for b in batches for offset in b.offsets]
    assert offsets == [(i << ROW_BITS) + j for i, n in enumerate(sizes) for j in range(n)]
    assert max(len(b.values) for b in batches) <= 7
    assert rows_of(batches) == [[i, j] for i, n in enumerate(sizes) for j in range(n)]
    for before, after in itertools.pairwise(batches):
        assert before.next_offset <= (int(after.offsets[0]) if len(after.offsets) else after.next_offset)
    assert batches[-1].next_offset == len(sizes) << ROW_BITS
    assert log.finished
    assert batches[0].place(0) == "log.jsonl:1"
    assert batches[0].place(2) == "log.jsonl:1#2"


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_reading_on_from_any_offset_loses_and_doubles_nothing(tmp_path: Path, most: int) -> None:
    lines = [batch(i, n) for i, n in enumerate([3, 0, 5, 1])]
    whole = read(files(tmp_path, lines))
    rows = rows_of(whole)
    stops = [b.next_offset for b in read(files(tmp_path, lines), most=2)]
    for stop in stops:
        rest = read(files(tmp_path, lines), most=most, offset=stop)
        done = sum(int(offset) < stop for b in whole for offset in b.offsets)
        assert rows_of(rest) == rows[done:]


def test_seeking_beyond_the_end_is_said(tmp_path: Path) -> None:
    log = files(tmp_path, [batch(0, 1)])
    log.poll(0.0, 10)
    with pytest.raises(LogTruncated):
        log.seek(log.cell, 5 << ROW_BITS)
    with pytest.raises(Fenced):
        log.position("files:other")


def test_more_rows_than_a_record_has_offsets_are_one_dead_letter(tmp_path: Path) -> None:
    line = b'{"who": "c", "rows": [' + b",".join([b"[1]"] * (ROWS + 5)) + b"]}"
    batches = read(files(tmp_path, [line, batch(1, 1)]), most=ROWS)
    assert sum(len(b.values) for b in batches) == ROWS + 1
    ((reason, detail),) = [why for b in batches for why in b.refused.values()]
    assert reason == "too_large"
    assert "rows" in detail


def test_a_record_that_is_refused_is_given_as_it_is(tmp_path: Path) -> None:
    (found,) = read(files(tmp_path, [b"garbage", batch(1, 1)]))
    assert found.values[0] == b"garbage"
    assert {i: reason for i, (reason, _) in found.refused.items()} == {0: "not_json"}


def test_a_row_that_was_refused_after_others_leaves_those(tmp_path: Path) -> None:
    """The second item of an array is no object that the mapping knows."""
    line = b'[{"who": "c", "rows": [[1]]}, {"other": 1}]'
    (found,) = read(files(tmp_path, [line]))
    assert len(found.values) == 2
    assert found.refused[1][0] == "foreign_format"


def test_without_a_mapping_the_offsets_of_a_store_are_not_taken_for_ours(tmp_path: Path) -> None:
    log = files(tmp_path, [batch(0, 1)])
    assert log.topic_id(log.cell) != FileLog([tmp_path / "log.jsonl"]).topic_id(log.cell)


# --- other logs


def test_a_table_in_parquet_is_read_through_a_preset(tmp_path: Path) -> None:
    made = loans.in_order(loans.life("c-0", loans.person, 20, np.random.default_rng(2)))
    rows = [json.loads(line) for line in foreign_logs.databricks(made)]
    for row, event in zip(rows, made, strict=True):
        row["request_time"] = dt.datetime.fromisoformat(event["timestamp"])
        row["request_date"] = row["request_time"].date()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "log.parquet")
    log = MappedFiles(FileLog([tmp_path / "log.parquet"]), translator(preset("databricks")))
    events = [json.loads(value) for b in read(log) for value in b.values]
    assert [event["features"] for event in events] == [event["features"] for event in made]
    assert [event["prediction"] for event in events] == [event["prediction"] for event in made]
    stated = [dt.datetime.fromisoformat(event["timestamp"]) for event in events]
    assert stated == [dt.datetime.fromisoformat(event["timestamp"]) for event in made]


def test_a_followed_file_is_read_through_a_mapping_under_a_name_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "grows.jsonl"
    path.write_bytes(batch(0, 2) + b"\n" + batch(1, 1) + b"\n")
    log = MappedLog(FollowedFile(path, poll_interval_s=0.01), translator())
    batches = read(log)
    assert rows_of(batches) == [[0, 0], [0, 1], [1, 0]]
    assert batches[0].cell.startswith("file:mapped-")
    assert log.owns(batches[0].cell)


class _Held:
    """A log of one cell that hands out what it is given; remembers calls."""

    def __init__(self, batches: list[Records]) -> None:
        self.left = batches
        self.calls: list[tuple[str, object]] = []
        self.polled = 0

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        self.polled += 1
        paused = self.calls and self.calls[-1][0] == "pause"
        return Poll(batches=[] if paused or not self.left else [self.left.pop(0)])

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        self.calls.append(("seek", offset))
        return offset or 0

    def pause(self, cell: str) -> None:
        self.calls.append(("pause", cell))

    def lag(self) -> int:
        return 0

    def commit(self, offsets: dict[str, int]) -> None:
        self.calls.append(("commit", dict(offsets)))


def test_a_cell_with_events_left_is_held_and_fetched_again_where_it_was() -> None:
    records = Records(
        "t:0", [batch(0, 5), batch(1, 1)], np.array([10, 12]), 13, nulls=np.array([11]), broker_ms=np.array([1, 2])
    )
    inner: Any = _Held([records, Records("t:0", [batch(2, 1)], np.array([13]), 14, broker_ms=np.array([3]))])
    told: Counter[str] = Counter()
    log = MappedLog(inner, translator(), told.update)
    log.seek("t:0", None)
    found = [b for _ in range(12) for b in log.poll(0.0, 2).batches]
    assert rows_of(found) == [[0, j] for j in range(5)] + [[1, 0], [2, 0]]
    assert [call for call in inner.calls if call[0] != "commit"] == [("seek", None), ("pause", "t:0"), ("seek", 13)]
    assert inner.polled == 12  # a group keeps a member that polls
    assert [int(n) >> ROW_BITS for b in found if b.nulls is not None for n in b.nulls] == [11]
    assert sum(b.tombstones for b in found) == 1
    log.commit({"t:0": (12 << ROW_BITS) + 1})
    assert inner.calls[-1] == ("commit", {"t:0": 12})
    assert told["events"] == 7


@pytest.mark.kafka
def test_a_topic_with_headers_is_read_through_a_preset(kafka_bootstrap: str, topic: Any) -> None:
    from kafka import KafkaProducer

    name = topic(partitions=1)
    made = loans.in_order(loans.life("c-0", loans.person, 6, np.random.default_rng(2)))
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap)
    for i, event in enumerate(made):
        for half, body in (
            ("request", {"instances": [event["features"]]}),
            ("response", {"predictions": [event["prediction"]]}),
        ):
            headers = {
                "ce_specversion": "1.0", "ce_type": f"org.kubeflow.serving.inference.{half}", "ce_id": f"r-{i}", "ce_source": "http://k",
                "ce_inferenceservicename": loans.MODEL, "ce_time": event["timestamp"], "content-type": "application/json",
                "ce_metadata": json.dumps({"X-Consumer-Id": ["c-0"]}),
            }  # fmt: skip
            producer.send(
                name, json.dumps(body).encode(), key=b"k", headers=[(k, v.encode()) for k, v in headers.items()]
            )
    producer.flush()
    producer.close()
    inner = KafkaLog(connection(kafka_bootstrap), topics=[name], group_id=name, session_timeout_ms=6000, headers=True)
    log = MappedLog(inner, translator(preset("kserve")))
    try:
        events = [json.loads(value) for b in read(log) for value in b.values]
    finally:
        log.close()
    assert [event["features"] for event in events] == [event["features"] for event in made]
    assert {event["client_id"] for event in events} == {"c-0"}
    assert [event["prediction"] for event in events] == [event["prediction"] for event in made]


@pytest.mark.kafka
def test_without_a_mapping_nobody_reads_headers(kafka_bootstrap: str, topic: Any) -> None:
    name = topic(partitions=1)
    produce(kafka_bootstrap, name, [b"{}"])
    log = KafkaLog(connection(kafka_bootstrap), topics=[name], group_id=name, session_timeout_ms=6000)
    try:
        (found,) = [b for b in read(log) if b.values]
    finally:
        log.close()
    assert found.beside is None


# --- joins

HALVES = mapping_of(
    {
        "name": "halves",
        "join": {
            "id": ["id"], "request": {"have": ["rows"]}, "response": {"have": ["said"]}, "most": 6, "within_s": 20,
        },
        "client": {"paths": [{"path": "who"}]},
        "input": {"paths": ["rows"], "form": "rows"},
        "answer": {"paths": ["said"]},
    },
    "halves",
)  # fmt: skip


class _Listed:
    """A log of one cell, from a list of values."""

    def __init__(self, values: list[bytes], times_ms: list[int]) -> None:
        self.values, self.times_ms, self.at = values, times_ms, -1
        self.first = 0  # what is below was deleted

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        if self.at < 0:
            return Poll()
        at, self.at = max(self.at, self.first), min(max(self.at, self.first) + max_records, len(self.values))
        some = range(at, self.at)
        return Poll(
            [
                Records(
                    "t:0", [self.values[i] for i in some], np.array(some, np.int64), self.at,
                    broker_ms=np.array([self.times_ms[i] for i in some], np.int64),
                )
            ]
        )  # fmt: skip

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        self.at = offset or 0
        return self.at

    def pause(self, cell: str) -> None:
        self.at = -1

    def lag(self) -> int:
        return 0


def halves(rng: np.random.Generator, queries: int) -> tuple[list[bytes], list[int]]:
    """Records of one half or several, in disorder, some missing or twice, some ids used twice."""
    made = list[tuple[float, dict[str, Any]]]()
    for i in range(queries):
        name = "same" if rng.random() < 0.1 else f"q{i}"
        request = {"id": name, "who": f"c{i}", "rows": [[i, j] for j in range(rng.integers(1, 4))]}
        for half in (request, {"id": name, "said": [[0.5, 0.5]] * len(request["rows"])}):
            made += [(i + rng.random() * 6, half)] * int(rng.choice([0, 1, 1, 1, 1, 1, 2]))
    made.sort(key=lambda one: one[0])
    values, times = list[bytes](), list[int]()
    while made:
        some, made = made[: (n := int(rng.integers(1, 4)))], made[n:]
        values.append(json.dumps([half for _, half in some]).encode())
        times.append(int(some[0][0] * 2000) + int(rng.integers(0, 3000)))
    return values, times


def consumed(
    log: _Listed, rng: np.random.Generator | None
) -> tuple[list[tuple[int, bytes]], Counter[str], WaitingHalves]:
    """Events of a log, what its join counts, and what waits at the end; with `rng`, by ever new owners that know what was committed."""
    events, counted, waiting, offset = list[tuple[int, bytes]](), Counter[str](), WaitingHalves(), 0
    end = len(log.values) << ROW_BITS
    mapped = MappedLog(cast(QueryLog, log), translator(HALVES))
    mapped.seek("t:0", 0)
    for _ in range(2000):
        if offset >= end:
            return events, counted, waiting
        for records in mapped.poll(0.0, 2).batches:
            records = records.from_offset(offset)
            events += zip(records.offsets.tolist(), records.values, strict=True)
            if records.halves is not None:
                counted += waiting.apply(records.halves)
            offset = records.next_offset
        if rng is not None and rng.random() < 0.4:
            waiting = WaitingHalves.from_bytes(waiting.to_bytes())
            mapped = MappedLog(cast(QueryLog, log), translator(HALVES))
            mapped.seek("t:0", offset, waiting)
    raise AssertionError("the log was not read to its end")


def test_a_join_goes_on_as_it_was_wherever_its_cell_is_resumed() -> None:
    total = Counter[str]()
    for seed in range(30):
        log = _Listed(*halves(np.random.default_rng(seed), 30))
        whole = consumed(log, None)
        assert consumed(log, np.random.default_rng(seed)) == whole
        total += whole[1]
    assert min(total[name] for name in ("joined", "lone_requests", "lone_responses")) > 50


def test_a_half_that_the_log_holds_no_longer_is_given_up_and_counted() -> None:
    values = [json.dumps({"id": i, "who": "c", "rows": [[1]]}).encode() for i in range(3)]
    values += [json.dumps({"id": i, "said": [0.5]}).encode() for i in range(3)]
    log = _Listed(values, [0] * 6)
    log.first = 2
    mapped = MappedLog(cast(QueryLog, log), translator(HALVES))
    waiting = WaitingHalves({0: "request", 1 << ROW_BITS: "request", 2 << ROW_BITS: "request"}, 0)
    mapped.seek("t:0", 3 << ROW_BITS, waiting)
    records = mapped.poll(0.0, 10).batches[0]
    assert len(records.values) == 1
    assert records.halves is not None
    assert waiting.apply(records.halves) == {"joined": 1, "lone_requests": 2}
    assert list(waiting.roles) == [3 << ROW_BITS, 4 << ROW_BITS]


# --- replays


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Baseline, list[loans.Event]]:
    """A baseline, and a log of honest clients and one that sends noise."""
    rng = np.random.default_rng(11)
    honest = [e for k in range(6) for e in loans.life(f"c-{k}", loans.person, 60, rng)]
    log = loans.in_order([*honest, *loans.life("noise", loans.noise, 300, rng)])
    return loans.fitted(tmp_path_factory.mktemp("people"), loans.usual_traffic()), log


def scores(
    folder: Path, baseline: Baseline, lines: Sequence[bytes], mapping: LogMapping | None
) -> list[dict[str, Any]]:
    folder.mkdir()
    path = folder / "log"
    path.write_bytes(b"\n".join(lines) + b"\n")
    secrets = Secrets.load(folder.parent / "secrets", create=True)
    files_of = FileLog([path])
    log = files_of if mapping is None else MappedFiles(files_of, translator(mapping, secrets))
    known = {loans.MODEL: baseline}
    store = EmbeddedStore(folder / "store.sqlite")
    try:
        result = replay.replay(log, store, Ingest(known, secrets), Detect(known, secrets, Policy(0.01)))
    finally:
        store.close()
    return sorted((row.score(model) for (model, _), row in result.scores.items()), key=lambda s: str(s["client_id"]))


@pytest.mark.parametrize("name", ["kserve", "seldon", "databricks", "apisix", "kong"])
def test_the_same_events_score_the_same_in_a_foreign_format(
    name: str, people: tuple[Baseline, list[loans.Event]], tmp_path: Path
) -> None:
    baseline, log = people
    if name in ("seldon", "apisix", "kong"):  # these log milliseconds
        log = [{**e, "timestamp": e["timestamp"][:23].rstrip("Z") + "Z"} for e in log]
    expected = scores(tmp_path / "native", baseline, foreign_logs.native(log), None)
    found = scores(tmp_path / name, baseline, foreign_logs.TABLES[name](log), preset(name))
    assert found == expected
    assert next(s for s in found if s["client_id"] == "noise")["state"] == "throttle"


def test_a_mapped_log_that_grew_is_resumed_and_one_that_changed_is_refused(
    people: tuple[Baseline, list[loans.Event]], tmp_path: Path
) -> None:
    baseline, log = people
    lines = foreign_logs.kserve(log)
    secrets = Secrets.load(tmp_path / "secrets", create=True)
    known = {loans.MODEL: baseline}
    path = tmp_path / "log.jsonl"

    def run(some: Sequence[bytes]) -> replay.Replayed:
        path.write_bytes(b"".join(line + b"\n" for line in some))
        store = EmbeddedStore(tmp_path / "store.sqlite")
        try:
            mapped = MappedFiles(FileLog([path], resumable=True), translator(preset("kserve"), secrets))
            return replay.replay(mapped, store, Ingest(known, secrets), Detect(known, secrets, Policy(0.01)))
        finally:
            store.close()

    cut = 2 * 201 + 1  # between a request and its response
    first = run(lines[:cut])
    again = run(lines)
    assert again.resumed is not None
    assert first.counters["queries"] == 201
    assert again.counters["queries"] == len(log)
    with pytest.raises(Refused, match="does not begin with"):
        run([*lines[:2], lines[2].replace(b'"age"', b'"Age"'), *lines[3:]])
