"""The query log in Kafka: one member of a consumer group.

Rules:

* Where to resume is the store's to say. A newly assigned partition is paused inside the rebalance callback, which does
  nothing else (store I/O there would block heartbeats), and stays paused until `seek`. Kafka's own committed offsets
  are written for lag dashboards and never read.
* Nothing is skipped silently: no automatic offset reset. Records that retention dropped are reported as a gap, and
  reading goes on at the start of the log; a log that ends before the stored offset is `LogTruncated`. What happens to one
  partition stops that partition only.
* Cooperative rebalancing, committed transactions only, no topic created by reading, checksums verified. Without the
  ``crc32c`` package kafka-python is twelve times slower and says nothing, so we refuse to start.
* Batches are read by `batches.py`, in bounded memory. Errors of the library that are mended here: `kafka_patches.py`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import kafka.errors as errors
import numpy as np
from kafka import (
    ConsumerRebalanceListener,
    KafkaConsumer,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.record.util import crc32c_c

from consumers.errors import ConfigError, Fenced, LogTruncated, WrongUse
from consumers.log import Beside, Poll, Records
from consumers.log.batches import RecordBlock, read_bounded
from consumers.log.halves import NOTHING_WAITS, WaitingHalves
from consumers.log.kafka_patches import check_parked, complete_joins, drop_parked
from consumers.log.payloads import Payloads
from consumers.log.poll_size import PollSize
from consumers.log.refusals import translated

RECONNECT_MS = {"reconnect_backoff_ms": 50, "reconnect_backoff_max_ms": 500}  # the library's 30 s outlast every outage
POLL_SLICE_S = 0.1  # an assignment is reported at once, not when the poll times out
COMMIT_EVERY_S = 1.0
READER = {
    "enable_auto_commit": False,
    "auto_offset_reset": "none",
    "isolation_level": "read_committed",
    "allow_auto_create_topics": False,
    "check_crcs": True,
    "partition_assignment_strategy": (CooperativeStickyAssignor,),
    "fetch_max_bytes": 16 << 20,
    "max_partition_fetch_bytes": 16 << 20,  # a poll holds many records of few cells: a client is written less often
    "receive_message_max_bytes": 17 << 20,
    "metadata_max_age_ms": 5_000,  # a topic or partition that is new is noticed within so long
    "metrics_enabled": False,
}


def connection(
    bootstrap_servers: str | Sequence[str],
    *,
    security_protocol: str | None = None,
    sasl_mechanism: str = "SCRAM-SHA-512",
    sasl_username: str | None = None,
    sasl_password: str | None = None,
    ssl_cafile: str | None = None,
    ssl_certfile: str | None = None,
    ssl_keyfile: str | None = None,
) -> dict[str, Any]:
    """How to reach the brokers: arguments that every Kafka client of this project shares.

    On loopback the protocol is PLAINTEXT unless stated; anywhere else it must be stated. Raises ConfigError if it isn't.
    """
    servers = bootstrap_servers.split(",") if isinstance(bootstrap_servers, str) else list(bootstrap_servers)
    servers = [server.strip() for server in servers if server.strip()]
    if not servers:
        raise WrongUse("kafka.bootstrap_servers is empty")
    if security_protocol is None:
        remote = [server for server in servers if not _loopback(server)]
        if remote:
            raise ConfigError(
                f"kafka.security_protocol must be set for {remote[0]}, because it is not on loopback (SASL_SSL is recommended)"
            )
        security_protocol = "PLAINTEXT"
    arguments: dict[str, Any] = {
        "bootstrap_servers": servers,
        "security_protocol": security_protocol,
        "client_id": "querywarden",
        "bootstrap_timeout_ms": 10_000,
        **RECONNECT_MS,
    }
    if security_protocol.startswith("SASL"):
        arguments |= {
            "sasl_mechanism": sasl_mechanism,
            "sasl_plain_username": sasl_username,
            "sasl_plain_password": sasl_password,
        }
    files = {"ssl_cafile": ssl_cafile, "ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile}
    return arguments | {name: path for name, path in files.items() if path is not None}


class KafkaLog:
    """Port QueryLog on one topic or several. Cells are ``topic:partition``.

    brokers            what `connection` returned
    start              where a cell begins that the store does not know: ``earliest``, ``latest`` or an RFC 3339 time
    group_instance_id  static membership (the pod's name): a restart within the session time-out moves nothing
    headers            give the key and the headers of every record too
    """

    def __init__(
        self,
        brokers: Mapping[str, Any],
        *,
        topics: Sequence[str] = ("prediction-queries",),
        group_id: str = "querywarden",
        start: str = "earliest",
        group_instance_id: str | None = None,
        max_poll_records: int = 10_000,
        session_timeout_ms: int = 10_000,
        heartbeat_interval_ms: int = 3_000,
        max_poll_interval_ms: int = 60_000,
        headers: bool = False,
    ) -> None:
        _check_checksums()
        self.topics = tuple(topics)
        self._group = group_id
        self._start_ms = _start(start)
        self._assignments: deque[tuple[bool, TopicPartition]] = deque()  # filled by the callback, in its thread
        self._waiting: set[TopicPartition] = set()  # assigned, not sought
        self._positions: dict[TopicPartition, int] = {}  # of those that were sought
        self._commits: dict[TopicPartition, int] = {}
        self._committed_at_s = time.monotonic()
        self._size = PollSize()
        settings = {
            "group_id": group_id,
            "group_instance_id": group_instance_id,
            "max_poll_records": max_poll_records,
            "session_timeout_ms": session_timeout_ms,
            "heartbeat_interval_ms": heartbeat_interval_ms,
            "max_poll_interval_ms": max_poll_interval_ms,
        }
        try:
            self._consumer = KafkaConsumer(**READER, **settings, **brokers)
        except errors.KafkaError as error:
            raise translated(error) from error
        read_bounded(self._consumer, self._size, headers)
        self._headers = headers
        complete_joins(self._consumer)
        check_parked(self._consumer)
        self._consumer.subscribe(list(self.topics), listener=_Listener(self._consumer, self._assignments))

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        """Raises ConfigError when the brokers don't let us read. Brokers that are away give nothing."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            poll = Poll()
            left_s = max(0.0, deadline_s - time.monotonic())
            fetched = self._fetch(min(left_s, POLL_SLICE_S), max_records, poll)
            self._reassigned(poll)
            for tp, blocks in fetched.items():
                if tp in self._positions:
                    poll.batches.append(self._batch(tp, blocks))
            poll.batches += self._moved_without_records(set(fetched))
            if poll.batches or poll.assigned or poll.revoked or poll.gaps or poll.stopped or left_s <= POLL_SLICE_S:
                return poll

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        """Raises Fenced for a cell that is not ours any more, LogTruncated when the log ends before `offset`."""
        tp = self._assigned(cell)
        try:
            if offset is None:
                offset = self._first(tp)
            elif (end := self._consumer.end_offsets([tp])[tp]) < offset:
                raise LogTruncated(f"{cell}: the log ends at offset {end}, the store is at {offset}")
            self._consumer.seek(tp, offset)
            drop_parked(self._consumer, tp)
            self._consumer.resume(tp)
        except errors.KafkaError as error:
            raise translated(error) from error
        except (ValueError, KeyError) as error:  # revoked since the last poll, which will report it
            raise Fenced(f"{cell}: not assigned any more") from error
        self._waiting.discard(tp)
        self._positions[tp] = offset
        return offset

    def pause(self, cell: str) -> None:
        """Deliver nothing more of the cell until `seek`; keep polling, or the group takes its partitions away."""
        tp = self._assigned(cell)
        try:
            self._consumer.pause(tp)
        except KeyError:
            return  # revoked since the last poll
        self._positions.pop(tp, None)
        self._waiting.add(tp)

    def position(self, cell: str) -> int:
        tp = self._assigned(cell)
        if tp not in self._positions:
            raise Fenced(f"{cell}: `seek` was not called")
        return self._positions[tp]

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        try:
            return len(self._consumer.partitions_for_topic(topic) or ())
        except errors.KafkaError as error:
            raise translated(error) from error

    def ends(self) -> dict[str, int]:
        """A partition whose records have all expired is left out: nobody will ever read it to its end."""
        try:
            every = [
                TopicPartition(topic, partition)
                for topic in self.topics
                for partition in self._consumer.partitions_for_topic(topic) or ()
            ]
            ends, starts = self._consumer.end_offsets(every), self._consumer.beginning_offsets(every)
        except errors.KafkaError as error:
            raise translated(error) from error
        return {_cell(tp): int(end) for tp, end in ends.items() if end > starts[tp]}

    def owns(self, cell: str) -> bool:
        """Ask the group: a commit that it accepts proves that the cell is this member's in the present generation."""
        tp = self._assigned(cell)
        offset = self._commits.get(tp, self._positions.get(tp))
        if offset is None:
            return True  # nothing to prove before `seek`
        try:
            self._consumer.commit({tp: OffsetAndMetadata(offset, "", -1)}, timeout_ms=5_000)
        except errors.RetriableError as error:
            raise translated(error) from error
        except errors.KafkaError:
            return False
        return True

    def is_member(self) -> bool:
        return bool(self._consumer._coordinator.stable())

    def topic_id(self, cell: str) -> int:
        """From the topic's id; brokers older than 2.8 have none."""
        topic_id = self._consumer._client.cluster.topic_id(_partition(cell).topic)
        return 0 if topic_id is None else int(topic_id.int >> 80)  # 48 bits: exact in every store

    def lag(self) -> int:
        """By the ends that came with the last fetches."""
        waiting = 0
        for tp, position in self._positions.items():
            try:
                end = self._consumer.highwater(tp)
            except errors.IllegalStateError:
                continue  # revoked since the last poll
            waiting += max(0, (end or 0) - position)
        return waiting

    def commit(self, offsets: Mapping[str, int]) -> None:
        for cell, offset in offsets.items():
            tp = _partition(cell)
            if tp in self._positions:
                self._commits[tp] = offset
        if time.monotonic() - self._committed_at_s >= COMMIT_EVERY_S:
            self._committed_at_s = time.monotonic()
            with contextlib.suppress(errors.KafkaError):
                self._consumer.commit_async(self._advisory())

    def close(self) -> None:
        if self._commits:
            with contextlib.suppress(errors.KafkaError):
                self._consumer.commit(self._advisory(), timeout_ms=2_000)
        self._commits.clear()
        self._consumer.close(autocommit=False, timeout_ms=5_000)

    # --- reading

    def _fetch(self, wait_s: float, max_records: int, poll: Poll) -> dict[TopicPartition, list[RecordBlock]]:
        try:
            most = self._size.at_most(max_records)
            fetched: dict[TopicPartition, list[RecordBlock]] = self._consumer.poll(int(wait_s * 1000), most)
            self._size.note(block.values for blocks in fetched.values() for block in blocks)
            return fetched
        except errors.NoOffsetForPartitionError:
            return {}  # assigned a moment ago; the callback is about to pause it
        except errors.OffsetOutOfRangeError as error:
            self._report_gaps(error.args[0], poll)
            return {}
        except errors.LogTruncationError as error:
            self._stop(error.divergent_offsets, poll)
            return {}
        except errors.RetriableError:
            return {}  # the library reconnects by itself, and says so in its log
        except errors.KafkaError as error:
            raise translated(error, self._group) from error

    def _report_gaps(self, positions: Mapping[TopicPartition, int], poll: Poll) -> None:
        try:
            starts = self._consumer.beginning_offsets(list(positions))
        except errors.RetriableError:
            return  # the next poll finds the same
        except errors.KafkaError as error:
            raise translated(error) from error
        for tp, offset in positions.items():
            start = int(starts[tp])
            if start < offset:
                self._stop([tp], poll)
                continue
            try:
                self._consumer.seek(tp, start)
            except ValueError:
                continue  # revoked meanwhile
            if tp in self._positions:
                poll.gaps.append((_cell(tp), offset, start - 1))

    def _stop(self, partitions: Iterable[TopicPartition], poll: Poll) -> None:
        """The log of these partitions was cut back behind where we are in it."""
        for tp in partitions:
            offset = self._positions.pop(tp, None)
            if offset is None:
                continue
            self._waiting.add(tp)
            try:
                self._consumer.pause(tp)
                self._consumer.seek(tp, offset)  # forgets the leader's epoch, or each poll would find the same again
            except (KeyError, ValueError):
                continue  # revoked meanwhile
            poll.stopped.append((_cell(tp), f"{_cell(tp)}: the log no longer reaches offset {offset}"))

    def _reassigned(self, poll: Poll) -> None:
        """What the callback noted, in order: a cell that was lost and regained counts as both."""
        while self._assignments:
            assigned, tp = self._assignments.popleft()
            cell = _cell(tp)
            if assigned:
                self._waiting.add(tp)
                poll.assigned.append(cell)
                continue
            self._waiting.discard(tp)
            self._positions.pop(tp, None)
            self._commits.pop(tp, None)
            if cell in poll.assigned:
                poll.assigned.remove(cell)
            if cell not in poll.revoked:
                poll.revoked.append(cell)

    def _batch(self, tp: TopicPartition, blocks: Sequence[RecordBlock]) -> Records:
        values = Payloads.joined([block.values.trimmed() for block in blocks])
        offsets = np.concatenate([block.offsets for block in blocks])
        broker_ms = np.concatenate([block.broker_ms for block in blocks])
        beside = None
        if self._headers:
            beside = [one for block in blocks for one in block.beside or [Beside()] * len(block)]
        sizes = np.cumsum([0, *(len(block) for block in blocks)]).tolist()
        refused = {at: block.refused for at, block in zip(sizes, blocks, strict=False) if block.refused is not None}
        filled = np.concatenate([block.filled for block in blocks])
        self._positions[tp] = self._next_offset(tp, int(offsets[-1]) + 1)
        nulls = None
        if not filled.all():
            nulls, rows = offsets[~filled], np.flatnonzero(filled)
            refused = {int(np.searchsorted(rows, at)): why for at, why in refused.items()}
            values = values.take(rows)
            offsets, broker_ms = offsets[rows], broker_ms[rows]
            beside = None if beside is None else [beside[i] for i in rows.tolist()]
        return Records(
            _cell(tp), values, offsets, self._positions[tp], refused=refused, broker_ms=broker_ms, nulls=nulls, beside=beside
        )  # fmt: skip

    def _moved_without_records(self, fetched: set[TopicPartition]) -> list[Records]:
        """Transaction markers, aborted records and gaps move the offset and deliver nothing."""
        moved = []
        for tp, before in self._positions.items():
            if tp in fetched:
                continue
            after = self._next_offset(tp, before)
            if after != before:
                self._positions[tp] = after
                moved.append(Records(_cell(tp), [], np.empty(0, np.int64), after))
        return moved

    def _next_offset(self, tp: TopicPartition, otherwise: int) -> int:
        """Not last + 1: the library steps over transaction markers and what compaction removed."""
        try:
            position = self._consumer.position(tp, timeout_ms=0)
        except (errors.IllegalStateError, errors.RetriableError, errors.LogTruncationError):
            return otherwise  # revoked while polling, the brokers are away, or the next fetch says what was cut back
        except errors.KafkaError as error:
            raise translated(error) from error
        return otherwise if position is None else int(position)

    def _first(self, tp: TopicPartition) -> int:
        """Where a cell begins that the store does not know."""
        if self._start_ms == "earliest":
            return int(self._consumer.beginning_offsets([tp])[tp])
        if self._start_ms != "latest":
            found = self._consumer.offsets_for_times({tp: self._start_ms})[tp]
            if found is not None:
                return int(found.offset)
        return int(self._consumer.end_offsets([tp])[tp])

    def _assigned(self, cell: str) -> TopicPartition:
        tp = _partition(cell)
        if tp not in self._waiting and tp not in self._positions:
            raise Fenced(f"{cell}: not assigned to this process")
        return tp

    def _advisory(self) -> dict[TopicPartition, OffsetAndMetadata]:
        return {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in self._commits.items()}


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # untyped library
    """Runs in the client's thread, between heartbeats: pause, take a note, return."""

    def __init__(self, consumer: KafkaConsumer, notes: deque[tuple[bool, TopicPartition]]) -> None:
        self._consumer = consumer
        self._notes = notes

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        for tp in assigned:
            self._consumer.pause(tp)
            self._consumer.seek(tp, 0)  # any position will do: without one the library would look up the committed one
            self._notes.append((True, tp))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._notes.extend((False, tp) for tp in revoked)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self._notes.extend((False, tp) for tp in lost)


def offsets_at(brokers: Mapping[str, Any], cells: Iterable[str], start: str) -> dict[str, int]:
    """Where each cell is at `start` (``earliest``, ``latest`` or an RFC 3339 time); a time after its last record: its end.

    Raises Unavailable, ConfigError, WrongUse.
    """
    moment = _start(start)
    partitions = {_partition(cell): cell for cell in cells}
    try:
        consumer = KafkaConsumer(**brokers)
        try:
            found = {tp: int(offset) for tp, offset in consumer.end_offsets(list(partitions)).items()}
            if moment == "earliest":
                found = {tp: int(offset) for tp, offset in consumer.beginning_offsets(list(partitions)).items()}
            elif moment != "latest":
                dated = consumer.offsets_for_times(dict.fromkeys(partitions, moment))
                found |= {tp: int(one.offset) for tp, one in dated.items() if one is not None}
        finally:
            consumer.close()
    except errors.KafkaError as error:
        raise translated(error) from error
    return {partitions[tp]: offset for tp, offset in found.items()}


def _check_checksums() -> None:
    if crc32c_c is None:
        raise ConfigError("the package crc32c is missing: without it reading Kafka is twelve times slower")


def _start(start: str) -> int | str:
    """``earliest``, ``latest``, or milliseconds since the epoch."""
    if start in ("earliest", "latest"):
        return start
    try:
        moment = datetime.fromisoformat(start)
    except ValueError as error:
        raise WrongUse(f"kafka.start: {start!r} is neither earliest, latest nor an RFC 3339 time") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _loopback(server: str) -> bool:
    host = server.rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cell(tp: TopicPartition) -> str:
    return f"{tp.topic}:{tp.partition}"


def _partition(cell: str) -> TopicPartition:
    topic, _, partition = cell.rpartition(":")
    if not partition.isdigit():
        raise Fenced(f"{cell}: not a partition")
    return TopicPartition(topic, int(partition))
