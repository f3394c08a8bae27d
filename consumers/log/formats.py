"""The native query event: bytes in, columns out (contract: docs/formats.md).

Rules:
* What was answered counts: an event with a readable client, a known model and a 2xx status (or none) is a query of its client, whatever
  its input and its answer look like. What does not fit is encoded and marked (`inputs.py`), never refused.
* Parsed with msgspec, strictly; what that refuses is read again with care. Both give the same columns.
* Some records are a dead letter and a query of their client all the same (`lettered` in `reasons.py`): somebody must look at them, and
  the client must not go uncounted.
* Unknown keys and columns are ignored and counted. 401, 403 and 429 count as volume, other failures as outcomes, unless there is an
  answer: then it is a query, whatever the status says.
* Past this file there is no per-query object: `decode` returns `QueryBatch` columns, one batch a model.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import BadRecord
from consumers.log import MAX_RECORD_BYTES, Records
from consumers.log.columns import Marks, ModelColumns, RowColumns, merged
from consumers.log.inputs import ANSWER, CARE, FORMS, MEMBERS, CarefulAnswer, CarefulRow, InputReader, Values
from consumers.log.plain_events import plain_events
from consumers.log.reasons import FATES, REASONS, MisfitNote, why_no_object, why_not_json, without_client
from consumers.log.redaction import readable_names, redacted
from consumers.log.tolerant import UNREADABLE, Raw, given, head, is_null, mended, parsed
from consumers.store import DeadLetter
from detector.query import TIMES_MS, UNKNOWN_MS, Misfit, QueryBatch

__all__ = ["FATES", "KNOWN_KEYS", "REASONS", "Decoded", "InputReader", "NativeFormat", "MisfitNote"]

KNOWN_KEYS = frozenset(
    "event_id timestamp client_id model_id model_version features embedding text messages prediction status sampled_fraction"
    " metadata usage canary".split()
)
MAX_CLIENT_BYTES = 256
COMPARED = (*FORMS, ANSWER)
"""What two events with one id must have in common, beside the id, to be one event that was sent twice."""
STATUSES = range(100, 600)
LEAST_FRACTION = 1e-9
"""A smaller sampled fraction would make one row stand for more queries than a float32 volume can tell apart."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")
_LEAP = re.compile(rb"(:\d\d):60(?:\.\d*)?")

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_status = msgspec.json.Decoder(int | float | None)
_time = msgspec.json.Decoder(datetime)


@dataclass(slots=True)
class Decoded:
    """What one batch of records holds.

    batches   model id → its queries, in log order
    events    model id → its event ids: (their JSON texts end to end, where each ends); an empty text: there is none
    contents  model id → what a repetition must have in common, laid out alike: event id, input and prediction as they were written;
              empty where there is no event id
    metadata  model id → offset → metadata of the events that have some, not read yet (links.py)
    usage     model id → offset → token usage of the events that have some, not read yet (usage.py)
    notes     model id → offset → what about the query does not fit
    dead      refused records
    counted   offsets of those among them that are queries of their client all the same
    counters  produced = queries + dead − dead_counted + unmodelled + denied + failed; unknown_keys, extra_columns,
              canaries (queries whose client got a marked answer; the event holds the truthful one)
    last_ms   newest event time seen, 0 if none
    stated_ms model id → (n,) event times as the records state them, where `batches` has those at which they count
    halves    what changed about halves of queries that wait (`Records.halves`)
    arrival   the last record of a join cell that was read (`Records.arrival`)
    clock     state of the log's own time after these records, by name; empty: as before (ingest/step.py sets it)
    """

    batches: dict[str, QueryBatch] = field(default_factory=dict)
    events: dict[str, tuple[bytearray, NDArray[np.int64]]] = field(default_factory=dict)
    contents: dict[str, tuple[bytearray, NDArray[np.int64]]] = field(default_factory=dict)
    metadata: dict[str, dict[int, Raw]] = field(default_factory=dict)
    usage: dict[str, dict[int, Raw]] = field(default_factory=dict)
    notes: dict[str, dict[int, tuple[MisfitNote, ...]]] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)
    counters: Counter[str] = field(default_factory=Counter)
    last_ms: int = 0
    stated_ms: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    halves: NDArray[np.int64] | None = None
    arrival: tuple[int, str] | None = None
    clock: dict[str, int] = field(default_factory=dict)

    def misfits(self) -> Counter[str]:
        """Queries of which something did not fit, by reason."""
        every = (notes for mine in self.notes.values() for notes in mine.values())
        return Counter(reason for notes in every for reason in {note.reason for note in notes})


def empty(reader: InputReader) -> QueryBatch:
    """No queries of a model."""
    return RowColumns().done(reader).batch


class NativeFormat:
    """Decoder of the native event for a set of models.

    readers         model id → reader of its inputs
    admit_unknown   count events of models without a baseline instead of refusing them
    """

    def __init__(self, readers: Mapping[str, InputReader], admit_unknown: bool = False) -> None:
        self.readers = dict(readers)
        self.admit_unknown = admit_unknown
        self._good_clients: set[str] = set()
        self._shown = readable_names(c.name for reader in self.readers.values() for c in reader.schema.columns)

    def decode(self, records: Records) -> Decoded:
        """Columns of one batch of records. Never raises for content."""
        out = Decoded()
        columns: dict[str, RowColumns] = {}
        counters = out.counters
        counters["produced"] += len(records.values)
        shown = self._shown
        ignored = sum(reader.ignored for reader in self.readers.values())
        plain = plain_events(records, self.readers, self._names_a_client)
        for i in _others(len(records.values), plain.values()):
            value = records.values[i]
            refused = records.refused.get(i)
            if refused is not None:
                reason, detail = refused
                if reason not in REASONS:
                    reason, detail = "unreadable_batch", f"{reason}: {detail}"
                out.dead.append(_dead(records, i, reason, detail, shown))
                continue
            offset = int(records.offsets[i])
            try:
                letter = self._one(value, i, offset, columns, out)
                if letter is not None:
                    out.dead.append(_dead(records, i, *letter, shown))
                    out.counted.add(offset)
            except BadRecord as error:
                out.dead.append(_dead(records, i, error.reason, error.detail, shown))
            except UNREADABLE as error:
                out.dead.append(_dead(records, i, *why_not_json(value, _cause(error)), shown))
        counters["dead_counted"] += len(out.counted)
        counters["extra_columns"] += sum(reader.ignored for reader in self.readers.values()) - ignored
        counters["dead"] += len(out.dead)
        for model in {**plain, **columns}:
            rest = columns.get(model)
            part, other = plain.get(model), rest.done(self.readers[model]) if rest is not None else None
            _give(out, model, merged(part, other) if part and other else part or other)
        counters["queries"] += sum(len(b) for b in out.batches.values())
        return out

    def client(self, value: bytes) -> str:
        """Client id of a record. Raises BadRecord for one that names none."""
        event, _ = _opened(value)
        return self._client(event)

    def _one(
        self, value: bytes, place: int, offset: int, columns: dict[str, RowColumns], out: Decoded
    ) -> tuple[str, str] | None:
        """Take up one record; (reason, detail) when it is a dead letter all the same. Raises BadRecord for one that counts for nobody."""
        event, letter = _opened(value)
        client = self._client(event)
        model_id = _model(event)
        reader = self.readers.get(model_id)
        if reader is None:
            self._unmodelled(model_id, out)
            return None
        if "status" in event and (outcome := _outcome(event)):
            if letter is not None:
                raise BadRecord(*letter)
            out.counters[outcome] += 1
            return None
        marks = None
        time_ms = _time_ms(event)
        weight = _weight(event) if "sampled_fraction" in event else 1.0
        values = reader.strictly(event) if letter is None else None
        if values is None or not weight or time_ms == UNKNOWN_MS:
            values, marks, letter = _carefully(reader, event, values, value, letter)
        # from here on nothing can fail: a record is taken whole or not at all
        mine = columns.get(model_id)
        if mine is None:
            mine = columns[model_id] = RowColumns()
        if marks is not None and (marks.notes or marks.salt):
            mine.mark(offset, marks)
        mine.add(place, offset, client, time_ms, weight or 1.0, values)
        if "event_id" in event:
            mine.repeatable(event["event_id"], [event[name] for name in COMPARED if name in event])
        mine.close()
        if "metadata" in event:
            mine.metadata[offset] = event["metadata"]
        if "usage" in event:
            mine.usage[offset] = event["usage"]
        if "canary" in event and bytes(event["canary"]) == b"true":
            out.counters["canaries"] += 1
        if not event.keys() <= KNOWN_KEYS:
            out.counters["unknown_keys"] += len(event.keys() - KNOWN_KEYS)
        return letter

    def _names_a_client(self, client: str) -> bool:
        """Whether a text can be a client id."""
        if client in self._good_clients:
            return True
        if not client or len(client.encode("utf-8", "surrogatepass")) > MAX_CLIENT_BYTES or _UNPRINTABLE.search(client):
            return False
        if len(self._good_clients) < 100_000:
            self._good_clients.add(client)
        return True

    def _unmodelled(self, model_id: str, out: Decoded) -> None:
        if not self.admit_unknown:
            raise BadRecord("unknown_model", f"a name of {len(model_id)} characters")
        out.counters["unmodelled"] += 1

    def _client(self, event: Mapping[str, Raw]) -> str:
        raw = event.get("client_id")
        if raw is None:
            raise without_client(frozenset(event), "missing_client")
        try:
            client = _string.decode(raw)
        except msgspec.ValidationError:
            client = _client_of_another_type(raw)
        if not self._names_a_client(client):
            raise BadRecord("malformed_client")
        return client


def _others(n: int, plain: Iterable[ModelColumns]) -> list[int]:
    """The records of a poll that are not among the plain ones."""
    left = np.ones(n, np.bool_)
    for columns in plain:
        left[columns.places] = False
    return np.flatnonzero(left).tolist()


def _give(out: Decoded, model: str, columns: ModelColumns | None) -> None:
    """Put the columns of a model where the caller finds them."""
    if columns is None:
        return
    out.batches[model] = columns.batch
    out.events[model], out.contents[model] = columns.event_ids, columns.contents
    out.metadata[model] = columns.metadata
    if columns.usage:
        out.usage[model] = columns.usage
    if columns.notes:
        out.notes[model] = columns.notes
    out.last_ms = max(out.last_ms, int(columns.batch.time_ms.max(initial=0)))


def _opened(value: bytes) -> tuple[Mapping[str, Raw], tuple[str, str] | None]:
    """Top-level fields of a record; (reason, detail) when only its head could be read. Raises BadRecord."""
    if len(value) > MAX_RECORD_BYTES:
        return _head(value, "too_large", "")
    try:
        return _fields.decode(value), None
    except msgspec.ValidationError:
        raise BadRecord(*why_no_object(value)) from None
    except RecursionError:
        return _head(value, "too_deep", "")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = mended(value)
        cause = _cause(error)
    try:
        event = _fields.decode(text)
    except RecursionError:
        return _head(value, "too_deep", "")
    except UNREADABLE:
        raise BadRecord(*why_not_json(value, cause)) from None
    if b"\\ufffd" in bytes(event.get("client_id", b"")):
        raise BadRecord("malformed_client", "half of a surrogate pair")
    return event, None


def _head(value: bytes, reason: str, detail: str) -> tuple[Mapping[str, Raw], tuple[str, str]]:
    event = head(value)
    if given(event, "client_id") is None or given(event, "model_id") is None:
        raise BadRecord(reason, "its beginning names no client and model")
    return event, (reason, detail)


def _client_of_another_type(raw: Raw) -> str:
    """A whole number as text. Raises BadRecord for anything else."""
    if is_null(raw):
        raise BadRecord("missing_client")
    try:
        number = parsed(raw)
    except (ValueError, RecursionError):
        number = None
    if isinstance(number, float) and number.is_integer() and abs(number) < 2**53:
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        raise BadRecord("malformed_client", "neither text nor a whole number")
    return str(number)


def _model(event: Mapping[str, Raw]) -> str:
    """The model id; a whole number as text. Raises BadRecord."""
    try:
        return _string.decode(event["model_id"])
    except (KeyError, msgspec.ValidationError):
        number = bytes(given(event, "model_id") or b"")
    if not number:
        raise without_client(frozenset(event), "missing_model")
    if not number.isdigit():
        raise BadRecord("unknown_model", "model_id is neither text nor a whole number")
    return number.decode()


def _carefully(
    reader: InputReader, event: Mapping[str, Raw], values: Values | None, value: bytes, letter: tuple[str, str] | None
) -> tuple[Values, Marks, tuple[str, str] | None]:
    """What an event asks and was answered, what of it does not fit, and (reason, detail) when it is a dead letter all the same.

    values  input and answer, when they fit
    letter  why only the head of the record `value` could be read
    """
    misfit, salt = 0, 0
    templates: tuple[int, ...] = ()
    notes: tuple[MisfitNote, ...] = ()
    if values is None:
        if letter is None:
            row, answer = reader.careful_row(event), reader.careful_answer(given(event, ANSWER))
        else:
            row, answer = _of_head(reader, event, value, letter[0])
        notes = row.notes + answer.notes
        misfit, salt = row.misfit | (int(Misfit.ANSWER) if answer.notes else 0), row.salt
        templates = row.templates
        values = row.values, answer[:3]
    if _time_ms(event) == UNKNOWN_MS:
        notes = (MisfitNote("bad_timestamp"), *notes)
        letter = letter or ("bad_timestamp", _why_untimed(event))
    if letter is None and notes and notes[0].reason == "missing_input":
        letter = ("missing_input", "")
    if not _weight(event):
        notes += (MisfitNote("bad_sampled_fraction"),)
    return values, Marks(misfit, salt, notes, templates), letter


def _of_head(
    reader: InputReader, event: Mapping[str, Raw], value: bytes, reason: str
) -> tuple[CarefulRow, CarefulAnswer]:
    """Of a record of which only the head could be read: its answer may stand there, its input is told by its bytes."""
    raw = given(event, ANSWER)
    return reader.unreadable(reason, value), reader.unanswered if raw is None else reader.careful_answer(raw)


def _outcome(event: Mapping[str, Raw]) -> str:
    """`denied` or `failed` for a status that says so when there is no answer; empty: a query.

    A status that HTTP does not have says nothing.
    """
    try:
        status = _status.decode(event["status"])
    except CARE:
        return ""
    if status is None or 200 <= status < 300 or status not in STATUSES or _answered(given(event, ANSWER)):
        return ""
    return "denied" if status in (401, 403, 429) else "failed"


def _answered(raw: Raw | None) -> bool:
    """Whether a prediction says anything."""
    if raw is None:
        return False
    try:
        found = parsed(raw)
    except (ValueError, RecursionError):
        return True
    if isinstance(found, dict):
        return any(found.get(name) not in (None, "", []) for name in MEMBERS)
    return found not in ("", [])


def _time_ms(event: Mapping[str, Raw]) -> int:
    """Event time, or `UNKNOWN_MS`."""
    raw = event.get("timestamp")
    if raw is None:
        return UNKNOWN_MS
    try:
        when = _time.decode(raw)
    except (*UNREADABLE, ValueError):
        found = _leap_second(raw)
        if found is None:
            return UNKNOWN_MS
        when = found
    time_ms = UNKNOWN_MS if when.tzinfo is None else round(when.timestamp() * 1000)
    return time_ms if time_ms in TIMES_MS else UNKNOWN_MS


def _leap_second(raw: Raw) -> datetime | None:
    """The last moment before a leap second; None for what is none."""
    try:
        return _time.decode(_LEAP.sub(rb"\1:59.999", bytes(raw), count=1)) if _LEAP.search(bytes(raw)) else None
    except (*UNREADABLE, ValueError):
        return None


def _why_untimed(event: Mapping[str, Raw]) -> str:
    """Why there is no event time, in words."""
    try:
        found = parsed(event.get("timestamp", b"null"))
    except (ValueError, RecursionError):
        found = ""
    if found is None:
        return "missing"
    if isinstance(found, int | float):
        return "a number, perhaps since the epoch: RFC 3339 is needed"
    if not isinstance(found, str):
        return "no text"
    return "not RFC 3339, without an offset, or outside the years 1970 to 9999"


def _weight(event: Mapping[str, Raw]) -> float:
    """1 / sampled_fraction; 0 for a fraction that cannot be."""
    raw = event.get("sampled_fraction")
    if raw is None or is_null(raw):
        return 1.0
    try:
        fraction = parsed(raw)
    except (ValueError, RecursionError):
        return 0.0
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not LEAST_FRACTION <= fraction <= 1:
        return 0.0
    return 1 / fraction


def _dead(records: Records, i: int, reason: str, detail: str, readable: frozenset[str]) -> DeadLetter:
    value = records.values[i]
    return DeadLetter(
        place=records.place(i),
        offset=int(records.offsets[i]),
        reason=reason,
        detail=_UNPRINTABLE.sub("?", detail)[:200],
        sha256=hashlib.sha256(value).hexdigest(),
        head=redacted(value, readable),
    )


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
