"""References: honest inputs with the model's answers. They are read loosely first, then by a schema with the same code as the log.

Rules:
* A line is taken or left out with a reason, a place and, where there is one, a column. Nothing is dropped without being counted.
* A strange value is no reason to leave a row out. A strange form is: another form than most rows have (a list among
  objects), another number of columns, a list or an object where a value should be.
* A row in an outer list of one is that row; nested objects give dotted names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import BadRecord
from consumers.log import QueryLog, Records
from consumers.log.formats import NativeFormat, empty
from consumers.log.inputs import InputReader
from consumers.log.reasons import why_no_object, why_not_json
from consumers.log.redaction import readable_names, redacted
from consumers.log.texts import TEXT_FORMS, written
from consumers.log.tolerant import UNREADABLE, whole
from consumers.refused_lines import RefusedLines
from detector.features import Schema
from detector.query import UNKNOWN_LABEL, QueryBatch

FORMS = ("features", "embedding")
DEEPEST = 8
"""Deepest level of nested objects that is read as columns; what is deeper is no value."""
AT_ONCE = 5000


_object = msgspec.json.Decoder(dict[str, Any])


class ReferenceLine(NamedTuple):
    """A line of a file or a row of a Parquet file, and where it is ("reference.jsonl:12")."""

    place: str
    value: bytes


@dataclass(frozen=True, slots=True)
class RawReference:
    """A reference before there is a schema: its events, parsed loosely, where each is, and what was left out.

    elsewhere  lines of other models, which are no matter of this reference
    """

    events: list[dict[str, Any]]
    refused: RefusedLines
    places: list[str] = field(default_factory=list)
    elsewhere: int = 0

    def place(self, i: int) -> str:
        return self.places[i] if self.places else f"row {i + 1}"


def lines_of(log: QueryLog) -> Iterator[ReferenceLine]:
    """Every line of a log up to its end."""
    while True:
        poll = log.poll(1.0, AT_ONCE)
        for cell in poll.assigned:
            log.seek(cell, None)
        for records in poll.batches:
            for i, value in enumerate(records.values):
                yield ReferenceLine(records.place(i), value)
        # nothing for the moment is the end of a file, but not of a pipe
        if not poll.batches and not poll.assigned and all(log.position(c) >= e for c, e in log.ends().items()):
            return


def read_reference(lines: Iterable[bytes | ReferenceLine], model_id: str) -> RawReference:
    """Events of a reference; lines of other models are left out and counted."""
    events: list[dict[str, Any]] = []
    places: list[str] = []
    refused = RefusedLines()
    elsewhere = 0
    for i, one in enumerate(lines, 1):
        place, value = one if isinstance(one, ReferenceLine) else (f"line {i}", one)
        if not value.strip():
            continue
        try:
            event = _event(value)
        except BadRecord as error:
            refused.lines += 1
            refused.refuse(error.reason, place, error.detail, redacted(value).decode())
            continue
        if event.get("model_id") is not None and str(event["model_id"]) != model_id:
            elsewhere += 1
            continue
        refused.lines += 1
        events.append(event)
        places.append(place)
    return RawReference(events, refused, places, elsewhere)


def _event(value: bytes) -> dict[str, Any]:
    """A line as an object, its input and its answer without the list that one of each may stand in. Raises BadRecord."""
    try:
        event = _object.decode(value)
    except (*UNREADABLE, ValueError) as error:
        event = _loosely(value, str(error))
    for form in ("features", "embedding"):
        found = event.get(form)
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list | dict):
            found = event[form] = found[0]
        if found is not None and not isinstance(found, list | dict):
            raise BadRecord("wrong_type", f"{form} is neither a list nor an object")
    if "prediction" in event:
        event["prediction"] = _prediction(event["prediction"])
    return event


def _loosely(line: bytes, cause: str) -> dict[str, Any]:
    """An object with numbers that JSON does not have: NaN and infinity become null, for both are missing values."""
    try:
        event = _finite(json.loads(line.decode("utf-8"), parse_constant=lambda _: None, parse_int=whole))
    except RecursionError:
        raise BadRecord("too_deep") from None
    except ValueError:
        raise BadRecord(*why_not_json(line, cause)) from None
    if not isinstance(event, dict):
        raise BadRecord(*why_no_object(line))
    return event


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _prediction(found: Any) -> dict[str, Any]:
    """An answer as an object: out of a list of one; a bare number with a fraction is a value, any other bare answer a label."""
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, dict):
        return {
            name: value[0] if isinstance(value, list) and len(value) == 1 and name in ("label", "probabilities") and
            (name == "label" or isinstance(value[0], list)) else value
            for name, value in found.items()
        }  # fmt: skip
    if found is None or isinstance(found, list):
        return {}
    return {"value" if isinstance(found, float) and not found.is_integer() else "label": found}


# ------------------------------------------------------------------------------------------------------ the input


class Input(NamedTuple):
    """An input as it was logged. form: features | embedding | text (messages too); values: an object, a list, a text or else."""

    form: str
    values: Any

    @property
    def named(self) -> bool:
        return isinstance(self.values, dict)


def input_of(event: Mapping[str, Any]) -> Input | None:
    """The input of an event; None: it has none."""
    for form in FORMS:
        if event.get(form) is not None:
            return Input(form, event[form])
    for form in TEXT_FORMS:
        if event.get(form) is not None:
            found = written(form, event[form])
            return Input("text", event[form] if found is None else found.text)
    return None


def flattened(values: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    """Names and values of an object; what nested objects hold gets dotted names."""
    for name, value in values.items():
        if isinstance(value, dict) and depth < DEEPEST:
            yield from flattened(value, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", value


def value_at(values: Mapping[str, Any], name: str) -> Any:
    """What stands under a name, or at the end of a dotted one; None: nothing."""
    if name in values or "." not in name:
        return values.get(name)
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


class Oddity(NamedTuple):
    """Why a row is not like the others. column: where, if it is one."""

    reason: str
    detail: str
    column: str = ""


def oddity(event: Mapping[str, Any], schema: Schema) -> Oddity | None:
    """Why a row cannot be among the reference's rows; None: it can."""
    found = input_of(event)
    if found is None:
        return Oddity("missing_input", "")
    if found.form != schema.input_form:
        return Oddity("unsupported_input", f"{found.form} where most rows have {schema.input_form}")
    if schema.of_texts:
        return None if isinstance(found.values, str) else Oddity("wrong_type", "neither a text nor messages")
    names = [c.name for c in schema.columns]
    if found.named != schema.named or not isinstance(found.values, dict | list):
        kinds = ("a list", "an object") if schema.named else ("an object", "a list")
        return Oddity(
            "wrong_type",
            f"{kinds[0] if isinstance(found.values, dict | list) else 'no list'} where most rows have {kinds[1]}",
        )
    if not schema.named and len(found.values) != schema.width:
        return Oddity("wrong_dimension", f"{len(found.values)} columns, not {schema.width}")
    row = found.values
    values = [value_at(row, name) for name in names] if isinstance(row, dict) else row
    for name, value in zip(names, values, strict=True):
        if isinstance(value, list | dict):
            kind = "a list" if isinstance(value, list) else "an object"
            return Oddity("wrong_type", f"column {name} holds {kind}", name)
    if all(value is None or (isinstance(value, float) and not math.isfinite(value)) for value in values):
        return Oddity("missing_column", "no column has a value")
    return None


def reference_batch(raw: RawReference, schema: Schema) -> tuple[QueryBatch, RefusedLines]:
    """The reference's events as columns of one anonymous client, and what was left out."""
    reader = InputReader(schema)
    native = NativeFormat({"reference": reader})
    shown = readable_names(c.name for c in schema.columns)
    refused = RefusedLines(len(raw.events))
    batches: list[QueryBatch] = []
    for start in range(0, max(len(raw.events), 1), AT_ONCE):
        values: list[bytes] = []
        places: list[str] = []
        for i, event in enumerate(raw.events[start : start + AT_ONCE], start):
            odd = oddity(event, schema)
            if odd is not None:
                head = redacted(_encoded(event), shown).decode()
                refused.refuse(odd.reason, raw.place(i), odd.detail, head, odd.column)
                continue
            values.append(_encoded({**event, **_ANONYMOUS}))
            places.append(raw.place(i))
        decoded = native.decode(Records("reference", values, np.arange(len(values)), len(values), places))
        for letter in decoded.dead:
            if letter.offset not in decoded.counted:
                refused.refuse(letter.reason, letter.place, letter.detail, letter.head.decode())
        notes = decoded.notes.get("reference", {})
        for batch in decoded.batches.values():
            answered = (batch.labels != UNKNOWN_LABEL) | np.isfinite(batch.values)
            answered |= np.isfinite(batch.probabilities).any(1)
            for at in batch.offsets[~answered].tolist():
                why = notes[at][-1].reason if at in notes else "missing_prediction"
                refused.refuse(why, places[at], "no answer that can be read", redacted(values[at], shown).decode())
            batches.append(batch.take(np.flatnonzero(answered)))
    return stack(batches) if batches else empty(reader), refused


_ANONYMOUS = {"client_id": "reference", "timestamp": "1970-01-01T00:00:00Z", "model_id": "reference", "status": 200}


def _encoded(event: Mapping[str, Any]) -> bytes:
    """NaN and infinity become null: both are missing values."""
    try:
        return msgspec.json.encode(event)
    except (OverflowError, UnicodeError):  # a number of over 64 bits, half of a surrogate pair
        return json.dumps(event).encode()


def stack(batches: list[QueryBatch]) -> QueryBatch:
    """Several batches of one model as one; clients keep their identity."""
    clients: dict[str, int] = {}
    who = []
    for b in batches:
        index = np.array([clients.setdefault(c, len(clients)) for c in b.clients], np.int32)
        who.append(index[b.who] if len(b) else b.who)

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(b, name) for b in batches])

    return QueryBatch(
        list(clients), np.concatenate(who), joined("inputs"), joined("labels"), joined("probabilities"),
        joined("values"), joined("time_ms"), joined("weight"), joined("offsets"), joined("misfit"), joined("salt"),
        joined("templates"),
    )  # fmt: skip
