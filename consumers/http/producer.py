"""``POST /v1/queries``: the query log for model servers that cannot write to Kafka.

Rules:
* One request holds one event or many: NDJSON, a JSON array, one JSON object, CloudEvents (binary, structured or batch). An event is checked
  like ingest checks it, and what ingest would refuse is refused here, with the same reason, record by record.
* An accepted event is in the log when the answer leaves: acknowledged by all replicas, or in the followed file and on its disk.
* The tenant is that of the credential. A producer writes the log of one tenant; another's is refused as a whole.
* An event is written as it came; of a CloudEvent its data, with ``id`` and ``time`` where the event says no `event_id` and `timestamp`.
* When writing fails half-way, the answer names what was not written: send that again.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from consumers.log import Records
from consumers.log.formats import NativeFormat

MOST_RECORDS = 10_000
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
JSON = "application/json"
CLOUD_EVENT = "application/cloudevents+json"
CLOUD_BATCH = "application/cloudevents-batch+json"

Write = Callable[[Sequence[tuple[bytes, bytes]]], list[bool]]
"""(key, value) of each → whether it is in the log for good."""

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])
_client = msgspec.json.Decoder(str)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Unreadable(Exception):
    """The body as a whole is not what its type says."""


class UnknownType(Exception):
    """A content type that is not taken."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that was refused. index: from 0 in the request; reason: a code of the dead letter."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """accepted: records that are in the log; rejected: those that ingest would refuse."""

    accepted: int
    rejected: tuple[Rejected, ...]


class NotWritten(Exception):
    """Some accepted records are not in the log. indexes: which; receipt: of the others."""

    def __init__(self, indexes: list[int], receipt: Receipt) -> None:
        super().__init__(f"{len(indexes)} records were not written")
        self.indexes = indexes
        self.receipt = receipt


def records(content_type: str, headers: Mapping[str, str], body: bytes) -> list[bytes]:
    """Events of a request, one JSON text each. Raises Unreadable, UnknownType."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in NDJSON:
        found = [line for line in body.split(b"\n") if line and not line.isspace()]
    elif kind == CLOUD_EVENT:
        found = [_of_cloud_event(body)]
    elif kind == CLOUD_BATCH:
        found = [_of_cloud_event(bytes(one)) for one in _listed(body)]
    elif kind == JSON and "ce-specversion" in headers:
        found = [_completed(body, headers.get("ce-id"), headers.get("ce-time"))]
    elif kind == JSON:
        found = [bytes(one) for one in _listed(body)] if body.lstrip()[:1] == b"[" else [body]
    else:
        raise UnknownType(kind)
    if not found:
        raise Unreadable("no records")
    if len(found) > MOST_RECORDS:
        raise Unreadable(f"at most {MOST_RECORDS} records")
    # A line of the log is one record; outside of strings a line break means as much as a space.
    return [one.strip().replace(b"\r", b" ").replace(b"\n", b" ") for one in found]


def _listed(body: bytes) -> list[msgspec.Raw]:
    try:
        return _array.decode(body)
    except _UNREADABLE:
        raise Unreadable("not a JSON array") from None


def _of_cloud_event(body: bytes) -> bytes:
    try:
        event = _object.decode(body)
        texts = {name: _client.decode(event[name]) for name in ("specversion", "id", "time") if name in event}
        encoded = event.get("data_base64")
        data = base64.b64decode(_client.decode(encoded), validate=True) if encoded else bytes(event["data"])
    except (*_UNREADABLE, KeyError, binascii.Error, ValueError):
        raise Unreadable("not a CloudEvent with data") from None
    if texts.get("specversion") != "1.0":
        raise Unreadable("not a CloudEvent of version 1.0")
    return _completed(data, texts.get("id"), texts.get("time"))


def _completed(data: bytes, event_id: str | None, time: str | None) -> bytes:
    """The event with the envelope's id and time, where it has none of its own; unreadable ones stay as they are."""
    try:
        event = _object.decode(data)
    except _UNREADABLE:
        return data
    added = {"event_id": event_id, "timestamp": time}
    for name, text in added.items():
        if text is not None and name not in event:
            event[name] = msgspec.Raw(json.dumps(text).encode())
    return msgspec.json.encode(event)


@dataclass(slots=True)
class LogProducer:
    """Checks events and writes them. format: what ingest reads them with; tenant: whose log it is."""

    format: NativeFormat
    write: Write
    tenant: str = "default"

    def take(self, values: list[bytes]) -> Receipt:
        """Write what ingest would take. Raises NotWritten."""
        offsets = np.arange(len(values), dtype=np.int64)
        decoded = self.format.decode(Records("bridge", values, offsets, len(values)))
        # what counts for its client must get into the log, where ingest counts it
        refused = [letter for letter in decoded.dead if letter.offset not in decoded.counted]
        rejected = {letter.offset: Rejected(letter.offset, letter.reason, letter.detail) for letter in refused}
        good = [i for i in range(len(values)) if i not in rejected]
        written = self.write([(self.format.client(values[i]).encode(), values[i]) for i in good]) if good else []
        failed = [i for i, ok in zip(good, written, strict=True) if not ok]
        receipt = Receipt(len(good) - len(failed), tuple(rejected[i] for i in sorted(rejected)))
        if failed:
            raise NotWritten(failed, receipt)
        return receipt
