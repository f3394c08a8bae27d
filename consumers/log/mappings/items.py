"""Items: takes the bytes of a record apart, until each item is one query or one half of it.

These layers are removed, in this order: the line of a topic that `kcat -J` wrote, the bytes of a schema registry, the envelope of
CloudEvents, the list or path in which a record holds several items.

Rules:
* Only JSON, CSV, OTLP, Avro and Protocol Buffers are read. Other data is refused with the reasons of native records.
* CSV without declared columns: the first line of each file names them. A topic has no first line, so there they must be declared.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from consumers.errors import BadRecord
from consumers.log.mappings import bodies, otlp, paths
from consumers.log.mappings.mapping import ReadSpec, schema_reader
from consumers.log.mappings.sources import Source
from consumers.log.reasons import why_no_object, why_not_json
from consumers.log.tolerant import parsed

FRAME_BYTES = 5
ANY_SCHEMA = "*"
KCAT = frozenset(("topic", "partition", "offset", "payload"))
"""Keys of a line that `kcat -J` writes for each record of a topic."""
CLOUD_EVENT_TYPE = b"application/cloudevents"

Item = tuple[Any, Any, Source]
"""An item, the record that it is of, and where that comes from."""


@dataclass(slots=True)
class ItemReader:
    """Bytes → items, as a mapping says how to read. Keeps the header of the CSV file that is being read."""

    reading: ReadSpec
    _each: paths.RecordPath | None = field(init=False)
    _by_schema: dict[str, Callable[[bytes], Any]] = field(init=False)
    _file: str = ""
    _line: int = 0
    _columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._each = paths.parse(self.reading.each) if self.reading.each else None
        self._by_schema = {name: schema_reader(self.reading, schema) for name, schema in self.reading.schemas.items()}

    def items(self, value: bytes, source: Source) -> Iterator[Item]:
        """The items of a record. Raises BadRecord, RecursionError."""
        if self.reading.format == "csv":
            row = self._csv(value, source)
            if row is not None:
                yield row, row, source
            return
        value, source = _without_kcat(value, source)
        schema = ANY_SCHEMA
        if self.reading.framing == "schema-registry":
            if len(value) <= FRAME_BYTES or value[0] != 0:
                raise BadRecord("framed", "no magic byte 0 and schema id stand before the record")
            schema, value = str(int.from_bytes(value[1:FRAME_BYTES], "big")), value[FRAME_BYTES:]
        if self.reading.format == "otlp":
            yield from ((item, item, source) for item in otlp.items(value))
            return
        if self.reading.format in ("avro", "protobuf"):
            yield from self._of(self._decoded(value, schema), source)
            return
        yield from self._json(value, source)

    def _decoded(self, value: bytes, schema: str) -> dict[str, Any]:
        """A record of Avro or Protocol Buffers. Raises BadRecord."""
        read = self._by_schema.get(schema, self._by_schema.get(ANY_SCHEMA))
        if read is None:
            raise BadRecord("framed", f"the mapping has no schema {schema}")
        try:
            record = read(value)
        except (ValueError, OverflowError) as error:
            raise BadRecord("framed", f"no record of the schema: {error}") from None
        if not isinstance(record, dict):
            raise BadRecord("framed", "the schema is none of a record")
        return record

    def _json(self, value: bytes, source: Source) -> Iterator[Item]:
        enveloped = self.reading.envelope == "cloudevents"
        if enveloped and source.headers and not _structured(source.headers):
            attributes = {_attribute(name): text.decode("utf-8", "replace") for name, text in source.headers.items()}
            item: Any = {**attributes, "data": value}
            yield item, item, source
            return
        yield from self._of(_parsed(value), source, value)

    def _of(self, record: Any, source: Source, value: bytes = b"") -> Iterator[Item]:
        """The items of a record that was read."""
        if self._each is not None:
            found = list(paths.walk(self._each.steps, record))
        elif isinstance(record, list):
            found = record
        else:
            found = [record]
        if not all(isinstance(item, dict) for item in found) or not isinstance(record, dict | list):
            raise BadRecord(
                *why_no_object(value) if not isinstance(record, dict) else ("wrong_type", "an item is no object")
            )
        for item in found:
            yield _unwrapped(item) if self.reading.envelope == "cloudevents" else item, record, source

    def _csv(self, value: bytes, source: Source) -> dict[str, Any] | None:
        """One line by columns; None for the line that names them."""
        text = value.decode("utf-8", "replace").lstrip("\ufeff").rstrip("\r\n")
        cells = bodies.line(text, self.reading.delimiter)
        began = bool(source.file) and (source.file != self._file or source.line <= self._line)
        self._file, self._line = source.file, source.line
        if began and (not self.reading.columns or tuple(map(str.strip, cells)) == self.reading.columns):
            self._columns = tuple(map(str.strip, cells))
            return None
        names = self.reading.columns or self._columns
        if not names:
            raise BadRecord("foreign_format", "CSV of a topic: declare read.columns in the mapping")
        if not cells:
            raise BadRecord("not_json", "not a CSV line")
        return bodies.columnar([bodies.cell(part) for part in cells], names)


def _parsed(value: bytes) -> Any:
    if value.startswith(b"\xef\xbb\xbf"):
        value = value[3:]
    if value.lstrip()[:1] not in (b"{", b"["):
        raise BadRecord(*why_not_json(value, "no object and no list"))
    try:
        return parsed(value)
    except ValueError as error:
        raise BadRecord(*why_not_json(value, type(error).__name__)) from None


def _without_kcat(value: bytes, source: Source) -> tuple[bytes, Source]:
    """The record that a line of `kcat -J` holds; any other value as it is."""
    if not source.file or b'"payload"' not in value:
        return value, source
    try:
        line = parsed(value)
    except ValueError:
        return value, source
    if not isinstance(line, dict) or not line.keys() >= KCAT:
        return value, source
    listed = line.get("headers") or []
    names = [str(name).lower() for name in listed[::2]] if isinstance(listed, list) else []
    texts = [str(text).encode("utf-8", "surrogatepass") for text in listed[1::2]] if isinstance(listed, list) else []
    key, payload, ts = line.get("key"), line.get("payload"), line.get("ts")
    inner = replace(
        source,
        headers=dict(zip(names, texts, strict=False)),
        key=key.encode("utf-8", "surrogatepass") if isinstance(key, str) else None,
        time_ms=ts if isinstance(ts, int) and not isinstance(ts, bool) else source.time_ms,
    )
    if payload is None:
        raise BadRecord("not_json", "the value is empty")
    return payload.encode("utf-8", "surrogatepass") if isinstance(payload, str) else value, inner


def _structured(headers: Mapping[str, bytes]) -> bool:
    """Whether the value itself is the CloudEvent."""
    return headers.get("content-type", b"").lower().startswith(CLOUD_EVENT_TYPE)


def _attribute(name: str) -> str:
    """A CloudEvents attribute by the name of its header."""
    return name[3:] if name.startswith(("ce_", "ce-")) else name


def _unwrapped(event: dict[str, Any]) -> dict[str, Any]:
    """A structured CloudEvent whose data may be in base64."""
    encoded = event.get("data_base64")
    if not isinstance(encoded, str) or "data" in event:
        return event
    try:
        return {**event, "data": base64.b64decode(encoded, validate=True)}
    except (binascii.Error, ValueError):
        return {**event, "data": encoded}
