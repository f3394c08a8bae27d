"""Sources: the values in and beside a record: the item, its record, the record's Kafka headers, key and time, and HTTP headers in it.

Rules:
* A `View` answers paths. It is built for every item, so it looks up nothing before it is asked.
* Names of headers are compared without regard to case. Of a header that was sent several times, the first value counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from consumers.log import Beside, Records
from consumers.log.mappings.paths import RecordPath, opened, walk
from detector.query import UNKNOWN_MS

FILES, FOLLOWED = "files:", "file:"
"""How the names of cells begin that are files."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record comes from.

    place    for people ("file.jsonl:12", "topic:0@5")
    cell     of the log
    file     name of the file; empty: the record is of a topic
    line     number of the line in the file, counted from 1; of a followed file the byte it begins at, plus 1
    time_ms  the log's own time of the record, `UNKNOWN_MS` where it has none
    key      of a Kafka record; None: it has none
    headers  of a Kafka record, names in lower case
    offset   of the record in its cell; -1: nobody said
    """

    place: str = ""
    cell: str = ""
    file: str = ""
    line: int = 0
    time_ms: int = UNKNOWN_MS
    key: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)
    offset: int = -1


def source_of(records: Records, i: int) -> Source:
    """Where the i-th of some records comes from."""
    cell, place = records.cell, records.place(i)
    beside = records.beside[i] if records.beside is not None else Beside()
    file, line = "", 0
    if cell.startswith((FILES, FOLLOWED)):
        file, _, number = place.rpartition("@" if cell.startswith(FOLLOWED) else ":")
        line = int(number) + cell.startswith(FOLLOWED) if number.isdecimal() else 0
    headers: dict[str, bytes] = {}
    for name, value in beside.headers:
        headers.setdefault(name.lower(), value)
    time_ms = UNKNOWN_MS if records.broker_ms is None else int(records.broker_ms[i])
    return Source(place, cell, file, line, time_ms, beside.key, headers, int(records.offsets[i]))


@dataclass(slots=True)
class View:
    """One item of a record, to be asked for values. record: what the item is a part of; http: paths of HTTP headers."""

    item: Any
    record: Any
    source: Source
    http: tuple[RecordPath, ...] = ()
    _headers: dict[str, Any] | None = None

    def values(self, path: RecordPath) -> Iterator[Any]:
        """Every value at the end of a path, in order."""
        if path.root == "item":
            return walk(path.steps, self.item)
        if path.root == "record":
            return walk(path.steps, self.record)
        return (value for value in (self._beside(path),) if value is not None)

    def first(self, *paths: RecordPath) -> Any:
        """The first value that any of the paths leads to; None: none does."""
        return next((value for path in paths for value in self.values(path)), None)

    def _beside(self, path: RecordPath) -> Any:
        source = self.source
        if path.root == "place":
            return source.place or None
        if path.root == "time":
            return source.time_ms if source.time_ms >= 0 else None
        if path.root == "key":
            return None if source.key is None else source.key.decode("utf-8", "replace")
        name = path.steps[0]
        if path.root == "header":
            value = source.headers.get(name)
            return None if value is None else value.decode("utf-8", "replace")
        if self._headers is None:
            self._headers = {}
            for where in self.http:
                for found in self.values(where):
                    for key, value in _pairs(opened(found)):
                        self._headers.setdefault(key, value)
        return self._headers.get(name)


def _pairs(headers: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of HTTP headers, logged as an object or as a list of pairs."""
    if isinstance(headers, dict):
        pairs = list(headers.items())
    elif isinstance(headers, list):
        pairs = [
            (one.get("name", one.get("key")), one.get("value")) if isinstance(one, dict) else tuple(one)
            for one in headers
            if isinstance(one, dict) or (isinstance(one, list) and len(one) == 2)
        ]
    else:
        return
    for name, value in pairs:
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(name, str) and isinstance(first, str | int | float):
            yield name.lower(), first
