"""References: what honest inputs look like, read by the same code as the log.

A reference is the log's lines without clients and times. Its events are parsed loosely, so that a schema can be inferred from them, and
then read by that schema: values that do not fit are codes as in the log; an input or an answer that cannot be read is left out with its
reason.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import BadRecord
from consumers.log import Records
from consumers.log.formats import NativeFormat, empty
from consumers.log.inputs import InputReader
from consumers.log.reasons import why_no_object, why_not_json
from consumers.log.tolerant import UNREADABLE, whole
from detector.features import Schema
from detector.query import UNKNOWN_LABEL, Misfit, QueryBatch

_object = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class RawReference:
    """A reference before there is a schema: its events, parsed loosely, and what was refused."""

    events: list[dict[str, Any]]
    refused: Counter[str]


def read_reference(lines: Iterable[bytes], model_id: str) -> RawReference:
    """Events of a reference file; lines of other models are left out and counted. A number that is not finite is null."""
    events: list[dict[str, Any]] = []
    refused: Counter[str] = Counter()
    for line in lines:
        if not line.strip():
            continue
        try:
            event = _event(line)
        except BadRecord as error:
            refused[error.reason] += 1
            continue
        if event.get("model_id") not in (None, model_id):
            refused["unknown_model"] += 1
            continue
        events.append(event)
    return RawReference(events, refused)


def _event(line: bytes) -> dict[str, Any]:
    """One line, its input and its answer without the list that one of each may stand in. Raises BadRecord."""
    try:
        event = _object.decode(line)
    except (*UNREADABLE, ValueError) as error:
        event = _loosely(line, str(error))
    for form in ("features", "embedding"):
        found = event.get(form)
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list | dict):
            found = found[0]
        if isinstance(found, list) and any(isinstance(value, list | dict) for value in found):
            raise BadRecord("wrong_type", form)
        if isinstance(found, dict):
            found = _without_lists(found)
        elif found is not None and not isinstance(found, list):
            raise BadRecord("wrong_type", form)
        if form in event:
            event[form] = found
    if "prediction" in event:
        event["prediction"] = _prediction(event["prediction"])
    return event


def _loosely(line: bytes, cause: str) -> dict[str, Any]:
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


def _without_lists(found: dict[str, Any]) -> dict[str, Any]:
    """A list is no value that a column could have."""
    return {
        key: _without_lists(value) if isinstance(value, dict) else value
        for key, value in found.items()
        if not isinstance(value, list)
    }


def _prediction(found: Any) -> dict[str, Any]:
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, dict):
        return {
            name: value[0] if isinstance(value, list) and len(value) == 1 and name in ("label", "probabilities") and
            (name == "label" or isinstance(value[0], list)) else value
            for name, value in found.items()
        }  # fmt: skip
    return {} if found is None or isinstance(found, list) else {"label": found}


def reference_batch(raw: RawReference, schema: Schema) -> tuple[QueryBatch, Counter[str]]:
    """The reference's events as columns of one anonymous client, and why the others were left out."""
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
    refused = Counter(letter.reason for letter in decoded.dead if letter.offset not in decoded.counted)
    batch = decoded.batches.get("reference")
    if batch is None:
        return empty(reader), refused
    unread = (batch.misfit & Misfit.UNREADABLE) != 0
    answered = (batch.labels != UNKNOWN_LABEL) | np.isfinite(batch.values) | np.isfinite(batch.probabilities).any(1)
    notes = decoded.notes.get("reference", {})
    for i in np.flatnonzero(unread | ~answered).tolist():
        mine = [note.reason for note in notes[int(batch.offsets[i])]]
        refused[mine[0] if unread[i] else mine[-1]] += 1
    return batch.take(np.flatnonzero(~unread & answered)), refused


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
