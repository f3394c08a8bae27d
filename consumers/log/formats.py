"""The native query event: bytes in, columns out (contract: docs/formats.md).

Rules of this file
* A record is taken whole or not at all; a refused one has a reason code of `REASONS` and changes nothing.
* Parsed with msgspec, strictly: no NaN, no numbers in strings, no booleans as numbers. Standard json is used only to say *why*
  something was refused.
* Unknown keys are ignored and counted. 401, 403 and 429 count as volume, other failures as outcomes; neither becomes a query.
* Past this file there is no per-query object: `decode` returns `QueryBatch` columns, one batch a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import BadRecord
from consumers.log import MAX_RECORD_BYTES, Records
from consumers.store import DeadLetter
from detector.errors import MalformedQuery
from detector.features import Schema
from detector.query import UNKNOWN_LABEL, QueryBatch

REASONS: dict[str, str] = {
    "not_json": "the record is not one JSON object in UTF-8",
    "too_large": "the record is over 1 MiB",
    "not_finite": "a number is NaN, infinite or too large for a double",
    "out_of_range": "an absolute value is over 1e12",
    "wrong_type": "a field has another type than the format says",
    "wrong_dimension": "the input has another number of columns than the baseline",
    "wrong_output": "the prediction has another shape than the baseline's",
    "unknown_category": "a value is not among the categories of its column",
    "missing_column": "a named column is missing",
    "missing_client": "there is no client_id",
    "malformed_client": "client_id is empty, over 256 bytes, or holds control characters",
    "missing_model": "there is no model_id",
    "unknown_model": "no baseline was loaded for this model_id",
    "bad_timestamp": "timestamp is missing, not RFC 3339 with an offset, or outside the years 1970 to 9999",
    "missing_input": "there is none of features, embedding or text",
    "unsupported_input": "the input has another form than the baseline's (text is not assessed yet)",
    "missing_prediction": "a successful query without a prediction",
    "bad_sampled_fraction": "sampled_fraction is not in [1e-9, 1]",
    "poison": "the record ends the process that reads it",
    "unreadable_batch": "the log could not give the records of a batch (corrupt, or a decompression bomb)",
}
"""Reason codes of the dead letter and what they mean."""

KNOWN_KEYS = frozenset(
    "event_id timestamp client_id model_id model_version features embedding text prediction status sampled_fraction metadata".split()
)
MAX_ABSOLUTE = 1e12
MAX_CLIENT_BYTES = 256
HEAD_BYTES = 256
LEAST_FRACTION = 1e-9
"""A smaller sampled fraction would make one row stand for more queries than a float32 volume can tell apart."""
TIMES_MS = range(253_402_214_400_000)
"""Event times that we take, in ms: from 1970 to the last day but one of 9999; what lies beyond can't be printed."""
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")
_PERSONAL = re.compile(rb"""(client_id["']?\s*[:=]\s*)("(?:[^"\\]|\\.)*"?|[^,}\]]*)""", re.DOTALL)
_METADATA = re.compile(rb"""(metadata["']?\s*[:=]).*""", re.DOTALL)

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_number = msgspec.json.Decoder(float)
_status = msgspec.json.Decoder(int | None)
_numbers = msgspec.json.Decoder(list[float])
_named = msgspec.json.Decoder(dict[str, float | str])
_features = msgspec.json.Decoder(list[float | str] | dict[str, float | str])
_time = msgspec.json.Decoder(datetime)


class _Prediction(msgspec.Struct):
    label: int | str | None = None
    probabilities: list[float] | None = None
    logits: list[float] | None = None
    value: float | list[float] | None = None
    text: str | None = None


_prediction = msgspec.json.Decoder(_Prediction)


class _ReferenceEvent(msgspec.Struct):
    """Types of a reference's fields, where it has them: what a schema can be inferred from."""

    features: list[float | str] | dict[str, float | str] | None = None
    embedding: list[float] | None = None
    text: str | None = None
    prediction: _Prediction | None = None


_typed = msgspec.json.Decoder(_ReferenceEvent)


class InputReader:
    """Turns one event's input and prediction into a row of a schema. Built once a model."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.width = schema.width
        self.classes = len(schema.labels) if schema.task == "classification" else 0
        self._labels = {label: i for i, label in enumerate(schema.labels)}
        self._names = [c.name for c in schema.columns]
        self._codes: dict[int, dict[str, int]] = {
            j: {category: k for k, category in enumerate(c.categories)}
            for j, c in enumerate(schema.columns)
            if c.kind == "categorical"
        }

    def row(self, event: Mapping[str, msgspec.Raw]) -> list[float]:
        """Input of one event as d numbers; raises MalformedQuery."""
        form = self.schema.input_form
        raw = event.get(form)
        if raw is None:
            other = [k for k in ("features", "embedding", "text") if k in event]
            raise MalformedQuery("unsupported_input" if other else "missing_input", ", ".join(other))
        values = self._coded(raw) if self.schema.named or self._codes else _numbers.decode(raw)
        if len(values) != self.width:
            raise MalformedQuery("wrong_dimension", f"{len(values)} columns, not {self.width}")
        return values

    def _coded(self, raw: msgspec.Raw) -> list[float]:
        given = _features.decode(raw)
        if isinstance(given, dict):
            try:
                given = [given[name] for name in self._names]
            except KeyError as error:
                raise MalformedQuery("missing_column", str(error.args[0])[:64]) from None
        if len(given) != self.width:
            raise MalformedQuery("wrong_dimension", f"{len(given)} columns, not {self.width}")
        values = []
        for j, value in enumerate(given):
            codes = self._codes.get(j)
            if codes is not None:
                code = codes.get(_category(value))
                if code is None:
                    raise MalformedQuery("unknown_category", f"column {self._names[j]}")
                values.append(float(code))
            elif isinstance(value, str):
                raise MalformedQuery("wrong_type", f"column {self._names[j]} is a number")
            else:
                values.append(value)
        return values

    def answer(self, raw: msgspec.Raw) -> tuple[int, list[float] | None, float]:
        """Label index, probabilities (c) or None, regression value or NaN; raises MalformedQuery."""
        given = _prediction.decode(raw)
        if self.schema.task == "regression":
            value = given.value[0] if isinstance(given.value, list) and given.value else given.value
            if not isinstance(value, float | int):
                raise MalformedQuery("wrong_output", "a regression needs prediction.value")
            return UNKNOWN_LABEL, None, float(value)
        probabilities = given.probabilities
        if probabilities is None and given.logits is not None:
            probabilities = _softmax(given.logits)
        if probabilities is not None and len(probabilities) != self.classes:
            raise MalformedQuery("wrong_output", f"{len(probabilities)} probabilities, not {self.classes}")
        label = UNKNOWN_LABEL
        if given.label is not None:
            label = self._labels.get(str(given.label), UNKNOWN_LABEL)
        elif probabilities is not None:
            label = max(range(self.classes), key=probabilities.__getitem__)
        elif given.text is None and given.value is None:
            raise MalformedQuery("missing_prediction")
        return label, probabilities, math.nan


def _category(value: float | str) -> str:
    """Categories given as numbers are named like JSON prints whole numbers."""
    return value if isinstance(value, str) else str(int(value)) if value == int(value) else repr(value)


def _softmax(logits: list[float]) -> list[float]:
    top = max(logits, default=0.0)
    powers = [math.exp(v - top) for v in logits]
    total = sum(powers)
    return [p / total for p in powers]


@dataclass(slots=True)
class Decoded:
    """What one batch of records holds.

    batches   model id → its queries, in log order
    events    model id → its event ids: (their JSON texts end to end, where each ends); an empty text: there is none
    metadata  model id → offset → metadata of the events that have some, not read yet (links.py)
    dead      refused records
    counters  produced = queries + dead + unmodelled + denied + failed, and unknown_keys
    last_ms   newest event time seen, 0 if none
    """

    batches: dict[str, QueryBatch] = field(default_factory=dict)
    events: dict[str, tuple[bytearray, NDArray[np.int64]]] = field(default_factory=dict)
    metadata: dict[str, dict[int, msgspec.Raw]] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    last_ms: int = 0


@dataclass(slots=True)
class _Columns:
    clients: dict[str, int] = field(default_factory=dict)
    who: array[int] = field(default_factory=lambda: array("i"))
    inputs: array[float] = field(default_factory=lambda: array("d"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    probabilities: array[float] = field(default_factory=lambda: array("f"))
    values: array[float] = field(default_factory=lambda: array("d"))
    time_ms: array[int] = field(default_factory=lambda: array("q"))
    weight: array[float] = field(default_factory=lambda: array("f"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    event_ids: bytearray = field(default_factory=bytearray)
    event_ends: array[int] = field(default_factory=lambda: array("q"))
    metadata: dict[int, msgspec.Raw] = field(default_factory=dict)

    def batch(self, reader: InputReader) -> QueryBatch:
        n, c = len(self.who), reader.classes
        return QueryBatch(
            clients=list(self.clients),
            who=np.frombuffer(self.who, np.int32),
            inputs=np.frombuffer(self.inputs, np.float64).reshape(n, reader.width),
            labels=np.frombuffer(self.labels, np.int32),
            probabilities=np.frombuffer(self.probabilities, np.float32).reshape(n, c)
            if c
            else np.empty((n, 0), np.float32),
            values=np.frombuffer(self.values, np.float64),
            time_ms=np.frombuffer(self.time_ms, np.int64),
            weight=np.frombuffer(self.weight, np.float32),
            offsets=np.frombuffer(self.offsets, np.int64),
        )


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON for us: malformed, not UTF-8, nested too deeply."""


class NativeFormat:
    """Decoder of the native event for a set of models.

    readers         model id → reader of its inputs
    admit_unknown   count events of models without a baseline instead of refusing them
    """

    def __init__(self, readers: Mapping[str, InputReader], admit_unknown: bool = False) -> None:
        self.readers = dict(readers)
        self.admit_unknown = admit_unknown
        self._good_clients: set[str] = set()

    def decode(self, records: Records) -> Decoded:
        """Columns of one batch of records. Never raises for content."""
        out = Decoded()
        columns: dict[str, _Columns] = {}
        counters = out.counters
        counters["produced"] += len(records.values)
        for i, value in enumerate(records.values):
            refused = records.refused.get(i)
            if refused is not None:
                reason, detail = refused
                if reason not in REASONS:
                    reason, detail = "unreadable_batch", f"{reason}: {detail}"
                out.dead.append(_dead(records, i, reason, detail))
                continue
            try:
                self._one(value, int(records.offsets[i]), columns, out)
            except BadRecord as error:
                out.dead.append(_dead(records, i, error.reason, error.detail))
            except MalformedQuery as error:
                out.dead.append(_dead(records, i, error.reason, str(error).partition(": ")[2]))
            except msgspec.ValidationError as error:
                out.dead.append(_dead(records, i, _mistyped(error), str(error)))
            except UNREADABLE as error:
                out.dead.append(_dead(records, i, *_why_not_json(value, _cause(error))))
        counters["dead"] += len(out.dead)
        out.batches = {model: c.batch(self.readers[model]) for model, c in columns.items()}
        out.events = {model: (c.event_ids, np.frombuffer(c.event_ends, np.int64)) for model, c in columns.items()}
        out.metadata = {model: c.metadata for model, c in columns.items()}
        counters["queries"] += sum(len(b) for b in out.batches.values())
        return out

    def _one(self, value: bytes, offset: int, columns: dict[str, _Columns], out: Decoded) -> None:
        if len(value) > MAX_RECORD_BYTES:
            raise BadRecord("too_large")
        event = _fields.decode(value)
        unknown = event.keys() - KNOWN_KEYS
        client = self._client(event)
        model = event.get("model_id")
        if model is None:
            raise BadRecord("missing_model")
        model_id = _string.decode(model)
        time_ms = _time_ms(event)
        status = _status.decode(event["status"]) if "status" in event else None
        weight = _weight(event)
        reader = self.readers.get(model_id)
        if reader is None:
            if not self.admit_unknown:
                raise BadRecord("unknown_model", model_id[:64])
            out.counters["unmodelled"] += 1
            return
        if status is not None and not 200 <= status < 300:
            out.counters["denied" if status in (401, 403, 429) else "failed"] += 1
            return
        row = reader.row(event)
        # the parser knows neither NaN nor infinity, so the extremes speak for all
        if max(row) > MAX_ABSOLUTE or min(row) < -MAX_ABSOLUTE:
            raise BadRecord("out_of_range")
        if "prediction" not in event:
            raise BadRecord("missing_prediction")
        label, probabilities, answer = reader.answer(event["prediction"])
        if probabilities is not None and not (min(probabilities) >= -1e-6 and max(probabilities) <= 1 + 1e-3):
            raise BadRecord("wrong_output", "a probability outside [0, 1]")
        if abs(answer) > MAX_ABSOLUTE:
            raise BadRecord("out_of_range", "prediction.value")
        # from here on nothing can fail: a record is taken whole or not at all
        mine = columns.get(model_id)
        if mine is None:
            mine = columns[model_id] = _Columns()
        mine.who.append(mine.clients.setdefault(client, len(mine.clients)))
        mine.inputs.fromlist(row)
        mine.labels.append(label)
        if reader.classes:
            mine.probabilities.fromlist(probabilities if probabilities is not None else [math.nan] * reader.classes)
        mine.values.append(answer)
        mine.time_ms.append(time_ms)
        mine.weight.append(weight)
        mine.offsets.append(offset)
        mine.event_ids += event.get("event_id", b"")  # as it is written: a producer repeats an event byte by byte
        mine.event_ends.append(len(mine.event_ids))
        if "metadata" in event:
            mine.metadata[offset] = event["metadata"]
        out.last_ms = max(out.last_ms, time_ms)
        if unknown:
            out.counters["unknown_keys"] += len(unknown)

    def _client(self, event: Mapping[str, msgspec.Raw]) -> str:
        raw = event.get("client_id")
        if raw is None:
            raise BadRecord("missing_client")
        client = _string.decode(raw)
        if client not in self._good_clients:
            if (
                not client
                or len(client.encode("utf-8", "surrogatepass")) > MAX_CLIENT_BYTES
                or _UNPRINTABLE.search(client)
            ):
                raise BadRecord("malformed_client")
            if len(self._good_clients) < 100_000:
                self._good_clients.add(client)
        return client


def _time_ms(event: Mapping[str, msgspec.Raw]) -> int:
    raw = event.get("timestamp")
    if raw is None:
        raise BadRecord("bad_timestamp", "missing")
    try:
        when = _time.decode(raw)
    except (msgspec.ValidationError, ValueError):
        raise BadRecord("bad_timestamp") from None
    if when.tzinfo is None:
        raise BadRecord("bad_timestamp", "no offset")
    time_ms = round(when.timestamp() * 1000)
    if time_ms not in TIMES_MS:
        raise BadRecord("bad_timestamp", "outside the years 1970 to 9999")
    return time_ms


def _weight(event: Mapping[str, msgspec.Raw]) -> float:
    raw = event.get("sampled_fraction")
    if raw is None:
        return 1.0
    fraction = _number.decode(raw)
    if not LEAST_FRACTION <= fraction <= 1:
        raise BadRecord("bad_sampled_fraction")
    return 1 / fraction


def _dead(records: Records, i: int, reason: str, detail: str) -> DeadLetter:
    value = records.values[i]
    return DeadLetter(
        place=records.place(i),
        offset=int(records.offsets[i]),
        reason=reason,
        detail=_UNPRINTABLE.sub("?", detail)[:200],
        sha256=hashlib.sha256(value).hexdigest(),
        head=_METADATA.sub(rb"\1 ...", _PERSONAL.sub(rb"\1...", value[:HEAD_BYTES])),
    )


def _mistyped(error: msgspec.ValidationError) -> str:
    """msgspec says "(Number|Integer value) out of range" of what a double, or 4,300 digits, can't hold."""
    return "not_finite" if "out of range" in str(error) else "wrong_type"


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _why_not_json(value: bytes, detail: str) -> tuple[str, str]:
    """Tell a number that JSON does not have from a line that is not JSON."""

    def refuse(token: str) -> float:
        raise BadRecord("not_finite", token[:16])

    def whole(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refuse(text)

    try:
        json.loads(value.decode("utf-8"), parse_constant=refuse, parse_float=whole)
    except BadRecord as error:
        return error.reason, error.detail
    except (ValueError, RecursionError):
        return "not_json", detail
    return "not_json", detail


# ---------------------------------------------------------------------------------------------------- references


@dataclass(frozen=True, slots=True)
class RawReference:
    """A reference before there is a schema: its events, parsed loosely, and what was refused."""

    events: list[dict[str, Any]]
    refused: Counter[str]


def read_reference(lines: Iterable[bytes], model_id: str) -> RawReference:
    """Events of a reference file; lines of other models are left out and counted."""
    decoder = msgspec.json.Decoder(dict[str, Any])
    events: list[dict[str, Any]] = []
    refused: Counter[str] = Counter()
    for line in lines:
        if not line.strip():
            continue
        try:
            event = decoder.decode(line)
            _typed.decode(line)
        except msgspec.ValidationError as error:
            refused[_mistyped(error)] += 1
            continue
        except UNREADABLE as error:
            refused[_why_not_json(line, _cause(error))[0]] += 1
            continue
        if event.get("model_id", model_id) != model_id:
            refused["unknown_model"] += 1
            continue
        events.append(event)
    return RawReference(events, refused)


def reference_batch(raw: RawReference, schema: Schema) -> tuple[QueryBatch, Counter[str]]:
    """The reference's events as columns of one anonymous client, and why the others were refused."""
    reader = InputReader(schema)
    native = NativeFormat({"reference": reader})
    encode = msgspec.json.encode
    values = [
        encode(
            {**e, "client_id": "reference", "timestamp": "1970-01-01T00:00:00Z", "model_id": "reference", "status": 200}
        )
        for e in raw.events
    ]
    decoded = native.decode(Records("reference", values, np.arange(len(values), dtype=np.int64), len(values)))
    refused = Counter(letter.reason for letter in decoded.dead)
    batch = decoded.batches.get("reference") or _Columns().batch(reader)
    return batch, refused


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
    )  # fmt: skip
