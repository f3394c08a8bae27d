"""Translation: one record of a foreign log into native events, as bytes.

Rules:
* An event is written as the contract of native events demands, and nothing else is decided here: the decoder of native events finds what
  is missing, unreadable or a misfit, with its own codes.
* A record without any usable part is `BadRecord`. A record that is too large or nested too deeply becomes an event that is too large or
  nested too deeply, if its beginning names the client: it counts for that client, as a native one does.
* Rows of one record get the ids ``ID#0``, ``ID#1``, …, so that a record that was logged twice gives the same events twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from consumers.errors import BadRecord
from consumers.log import MAX_RECORD_BYTES
from consumers.log.halves import ROLES, ROW_BITS, HalfChange, Role
from consumers.log.mappings.answers import answers_of
from consumers.log.mappings.fields import ConditionTest, FieldReader, read_all
from consumers.log.mappings.identity import UNATTRIBUTED, Hash
from consumers.log.mappings.items import ItemReader
from consumers.log.mappings.joins import MOST_BYTES, MOST_BYTES_OF_FILES, Half, Waiting
from consumers.log.mappings.mapping import LogMapping, for_topic
from consumers.log.mappings.sources import FILES, Source, View
from consumers.log.tolerant import head

DEEP = 4000
"""Nesting that the decoder of events refuses as too deep."""


class Translator:
    """Translates the records of one log, in their order, by one mapping.

    fields   reads the fields of events
    counts   records, events, unattributed (events), left_out (items that are no queries)
    joins    halves of queries are joined; False: a record is a whole query
    cells    join cells among which its halves are divided; 1 where each log cell joins its own
    """

    def __init__(self, mapping: LogMapping, hashed: Hash, default_model: str = "") -> None:
        self.mapping = mapping
        self.fields = FieldReader(mapping, hashed, default_model)
        self.counts: Counter[str] = Counter()
        self._http = read_all(mapping.http)
        self._keep = ConditionTest(mapping.keep)
        join = mapping.join
        self._keys = {role: read_all(join.id) for role in ROLES} if join else {}
        if join and join.response_id:
            self._keys["response"] = read_all(join.response_id)
        self._roles: dict[Role, ConditionTest] = (
            {"request": ConditionTest(join.request), "response": ConditionTest(join.response)} if join else {}
        )
        self.cells = 1
        self._waiting: dict[str, Waiting] = {}
        self._unplaced = 0
        self.begin()

    @property
    def joins(self) -> bool:
        return self.mapping.join is not None

    def begin(self) -> None:
        """Start at the beginning of a log: nothing waits, no header of CSV was read."""
        self._reader = ItemReader(self.mapping.read)
        self._waiting.clear()

    def forget(self, cell: str) -> None:
        """Drop what waits of a log cell: it is read again, or is somebody else's now."""
        self._waiting.pop(cell, None)

    def without_partner(self) -> dict[Role, int]:
        """Halves that found no other half, and those that still wait for it, by role."""
        every = self._waiting.values()
        return {role: sum(one.given_up[role] + one.waiting(role) for one in every) for role in ROLES}

    def changes(self, cell: str) -> list[HalfChange]:
        """What changed since the last call about the halves of a cell that wait."""
        waiting = self._waiting.get(cell)
        if waiting is None or not waiting.changes:
            return []
        taken, waiting.changes = waiting.changes, []
        return taken

    def resume(self, cell: str, newest_ms: int) -> None:
        """Begin a cell again of which some halves wait; `restore` gives them."""
        self._waiting_in(cell).newest_ms = newest_ms

    def restore(self, value: bytes, source: Source, wanted: Collection[int]) -> list[int]:
        """Let those halves of a record wait whose places are wanted; returns the places that were found."""
        waiting, found = self._waiting_in(source.cell), list[int]()
        left_out = self.counts["left_out"]
        try:
            for number, (role, view) in enumerate(self._halves(self.views(value, source))):
                place = (source.offset << ROW_BITS) + number
                if place in wanted:
                    waiting.restore(role, self._key_of(role, view), Half(view, len(value), place))
                    found.append(place)
        except (BadRecord, RecursionError):
            pass  # a record may be unreadable behind its first items, as it was when it was first read
        self.counts["left_out"] = left_out
        return found

    def views(self, value: bytes, source: Source) -> Iterator[View]:
        """The items of one record, as paths see them. Raises BadRecord, RecursionError."""
        for item, record, where in self._reader.items(value, source):
            yield View(item, record, where, self._http)

    def events(self, value: bytes, source: Source) -> Iterator[bytes]:
        """The native events of one record, in the order of its rows.

        Parameters
        ----------
        value
            The record as the log has it.
        source
            Where it comes from, and what stands beside it.

        Raises
        ------
        BadRecord
            For a record, or what is left of it, that gives no event.
        """
        self.counts["records"] += 1
        if len(value) > MAX_RECORD_BYTES:
            yield self._of_head(value, source, "too_large")
            return
        if self.joins and source.offset < 0:
            source, self._unplaced = replace(source, offset=self._unplaced), self._unplaced + 1
        try:
            if self.joins:
                yield from self._joined_here(value, source)
            else:
                for view in self.views(value, source):
                    if self._counts(view):
                        yield from self._query(view, view)
        except RecursionError:
            yield self._of_head(value, source, "too_deep")

    def _counts(self, view: View) -> bool:
        keep = self._keep.holds(view)
        self.counts["left_out"] += not keep
        return keep

    def _joined_here(self, value: bytes, source: Source) -> Iterator[bytes]:
        """As `_joined`; what is wrong with a record that several join cells have is said by the first."""
        if self.cells == 1 or number_of(source.cell) == 0:
            yield from self._joined(value, source)
            return
        left_out = self.counts["left_out"]
        with contextlib.suppress(BadRecord, RecursionError):
            yield from self._joined(value, source)
        self.counts["left_out"] = left_out

    def _joined(self, value: bytes, source: Source) -> Iterator[bytes]:
        """The events of the queries whose other half came before this record."""
        waiting = self._waiting_in(source.cell)
        after = (source.offset + 1) << ROW_BITS
        mine = number_of(source.cell) if self.cells > 1 else 0
        for number, (role, view) in enumerate(self._halves(self.views(value, source))):
            half, key = Half(view, len(value), (source.offset << ROW_BITS) + number), self._key_of(role, view)
            if self.cells > 1 and cell_of(key, self.cells) != mine:
                continue
            other = waiting.partner(role, key, half, after)
            if other is not None:
                yield from self._query(*((view, other.view) if role == "request" else (other.view, view)))

    def cells_of(self, value: bytes, source: Source) -> set[int]:
        """The join cells that a record belongs to: those of its halves; the first one also if something in it is no half."""
        if self.cells == 1 or len(value) > MAX_RECORD_BYTES:
            return {0}
        left_out, found = self.counts["left_out"], set[int]()
        try:
            found.update(
                cell_of(self._key_of(role, view), self.cells) for role, view in self._halves(self.views(value, source))
            )
        except (BadRecord, RecursionError):
            found.add(0)
        if self.counts["left_out"] > left_out:
            found.add(0)
        self.counts["left_out"] = left_out
        return found or {0}

    def _halves(self, views: Iterable[View]) -> Iterator[tuple[Role, View]]:
        """Those items that are halves of queries."""
        for view in views:
            role = next((name for name, test in self._roles.items() if test.holds(view)), None)
            if role is not None and self._keep.holds(view):
                yield role, view
            else:
                self.counts["left_out"] += 1

    def _key_of(self, role: Role, view: View) -> tuple[Any, ...]:
        return tuple(_hashable(view.first(path)) for path in self._keys[role])

    def _waiting_in(self, cell: str) -> Waiting:
        waiting = self._waiting.get(cell)
        if waiting is None:
            join = self.mapping.join
            assert join is not None, "only halves wait"
            most_bytes = MOST_BYTES_OF_FILES if cell.startswith(FILES) else MOST_BYTES
            waiting = self._waiting[cell] = Waiting(join.most, join.within_s * 1000, most_bytes)
        return waiting

    def _query(self, request: View, response: View) -> Iterator[bytes]:
        """The events of a query, one a row."""
        shared = self.fields.shared(request, response)
        asked = response if self.mapping.join is not None and self.mapping.join.input == "response" else request
        rows = self.fields.rows(asked)
        answer = self.fields.answer(response)
        client = shared.get("client_id", UNATTRIBUTED)
        if not rows and answer is None and client == UNATTRIBUTED:
            raise BadRecord("foreign_format", f"nothing that the mapping {self.mapping.name} names is in it")
        n = max(len(rows), 1)
        base = shared.get("event_id")
        for i, one in enumerate(answers_of(answer, n)):
            event = dict(shared)
            if i:
                event.pop("usage", None)  # the tokens are those of all rows together
            if base is not None and n > 1:
                event["event_id"] = f"{base}#{i}"
            if rows:
                form, row = rows[i]
                event[form] = row
            prediction = self.fields.prediction(one)
            if prediction is not None:
                event["prediction"] = prediction
            self.counts["events"] += 1
            self.counts["unattributed"] += client == UNATTRIBUTED
            yield encoded(event)

    def _of_head(self, value: bytes, source: Source, reason: str) -> bytes:
        """An event that is refused for the same reason and counts for the same client.

        Raises BadRecord when the record's beginning does not say whose it is.
        """
        item: dict[str, Any] = {}
        for name, raw in head(value).items():
            try:
                item[name] = msgspec.json.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
        view = View(item, item, source, self._http)
        shared = self.fields.shared(view, view)
        if shared.get("client_id", UNATTRIBUTED) == UNATTRIBUTED or "model_id" not in shared:
            raise BadRecord(reason, "its beginning names no client and model")
        self.counts["events"] += 1
        start = encoded(shared)[:-1] + f',"{hashlib.sha256(value).hexdigest()}":'.encode()
        if reason == "too_deep":
            return start + b"[" * DEEP + b"]" * DEEP + b"}"
        return start + b'"' + b" " * MAX_RECORD_BYTES + b'"}'


def encoded(event: Mapping[str, Any]) -> bytes:
    """An event as JSON; NaN and infinity stay, so that the decoder marks them under their own name."""
    try:
        text = msgspec.json.encode(event)
    except (UnicodeError, OverflowError):  # half of a surrogate pair, a number of over 64 bits
        return json.dumps(event, default=_as_text).encode()
    return json.dumps(event, default=_as_text).encode() if b"null" in text else text


def cell_of(key: tuple[Any, ...], cells: int) -> int:
    """The join cell of `cells` in which halves with this key meet: the same for every process and every run."""
    digest = hashlib.blake2b(
        json.dumps(key, default=str).encode("utf-8", "surrogatepass"), digest_size=8, person=b"qw-join"
    ).digest()
    return int.from_bytes(digest, "big") % cells


def number_of(cell: str) -> int:
    """The number of a join cell, the last part of its name."""
    return int(cell.rpartition(":")[2])


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _hashable(value: Any) -> Any:
    """A part of a key; a list or an object as its text."""
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, list | dict) else value


def translators_for(
    setting: str | Mapping[str, str], topics: Iterable[str], hashed: Hash, models: Collection[str] = ()
) -> dict[str, Translator]:
    """Topic → what translates its records, of the topics that are not native; see `translator_for`."""
    found = {topic: translator_for(setting, topic, hashed, models) for topic in topics}
    return {topic: translator for topic, translator in found.items() if translator is not None}


def translator_for(
    setting: str | Mapping[str, str], topic: str, hashed: Hash, models: Collection[str] = ()
) -> Translator | None:
    """Translate a topic's records by the mapping that the setting `log.mapping` gives it; None where they are native.

    models: those with a baseline; a record that names no model is of the only one
    """
    mapping = for_topic(setting, topic)
    if mapping is None:
        return None
    return Translator(mapping, hashed, next(iter(models)) if len(models) == 1 else "")
