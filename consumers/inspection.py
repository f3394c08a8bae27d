"""Inspection: what a log is understood as. Records in, a description for people and programs out.

Rules:
* No value of a record is shown as it is: categories and clients are shortened, credentials are hashed, heads are redacted. Names of
  models, fields and columns are shown.
* What is said about columns is what `fit` would say (schemas.py); what is refused is what ingest would refuse.
* A log of dead letters is described by their reasons: their records are not in it.
"""

from __future__ import annotations

import base64
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from consumers.errors import BadRecord, InvalidInput, Refused
from consumers.log import Records
from consumers.log.formats import NativeFormat
from consumers.log.inputs import InputReader
from consumers.log.mappings.fields import FieldReader
from consumers.log.mappings.identity import UNATTRIBUTED, Hash
from consumers.log.mappings.mapping import LogMapping
from consumers.log.mappings.proposals import Recognised, settled, views_of
from consumers.log.mappings.recognition import MOST_SAMPLED, recognise
from consumers.log.mappings.records import Translator
from consumers.log.mappings.sources import Source
from consumers.log.redaction import redacted
from consumers.log.references import ReferenceLine, read_reference
from consumers.refused_lines import RefusedLines
from consumers.schemas import Understood, shortened, understand

PARTS = ("client", "time", "model", "input", "answer", "id", "status", "fraction")
KEYS = {
    "client": "client_id", "time": "timestamp", "model": "model_id", "answer": "prediction", "id": "event_id", "status": "status",
    "fraction": "sampled_fraction",
}  # fmt: skip
"""Part of an event → its key in a native one; an input has several."""
INPUTS = ("features", "embedding", "text", "messages")
MOST_EXAMPLES = 3
NAMELESS = "named by --model-id"
"""Stands for the model of records that name none."""
PRESET_OF = {
    "a KServe inference log (CloudEvents)": "kserve", "SageMaker data capture": "sagemaker", "a Databricks inference table": "databricks",
    "an Azure ML data collection": "azureml", "a LiteLLM log": "litellm", "an OpenTelemetry export": "otel-genai",
    "a Vertex AI request log": "vertex",
}  # fmt: skip
"""Detail of a dead letter of the reason `foreign_format` → the preset that reads it."""


@dataclass(frozen=True, slots=True)
class FieldUse:
    """Where a part of the events comes from.

    path      that leads somewhere in most records; empty: none does
    missing   share of the events without it
    distinct  number of different values
    examples  masked
    """

    part: str
    path: str
    missing: float
    distinct: int = 0
    examples: tuple[str, ...] = ()


@dataclass(slots=True)
class Inspection:
    """What a log is understood as.

    recognised  its format
    records     read
    counts      of the translation; empty for native logs
    waiting     role → halves of queries that found no other half
    events      queries
    fields      where the parts of events come from
    model       the model of most events; its columns are described
    understood  columns, task and classes; None: why_not says why
    refused     records and events that ingest would refuse
    misfits     reason → queries that do not fit the columns
    letters     (reason, detail) → dead letters, of a log that holds such
    notes       what else there is to say
    """

    recognised: Recognised
    records: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    waiting: dict[str, int] = field(default_factory=dict)
    events: int = 0
    fields: list[FieldUse] = field(default_factory=list)
    model: str = ""
    understood: Understood | None = None
    why_not: str = ""
    refused: RefusedLines = field(default_factory=RefusedLines)
    misfits: Counter[str] = field(default_factory=Counter)
    letters: Counter[tuple[str, str]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def inspect(sample: Sequence[tuple[bytes, Source]], mapping: LogMapping | None, hashed: Hash) -> Inspection:
    """Describe the records of a log.

    Parameters
    ----------
    sample
        Records and where they come from, in their order.
    mapping
        How to read them; None: it is found out.
    hashed
        Keyed hash of a credential.
    """
    recognised = (
        Recognised(mapping.name, "certain", mapping, ("given",)) if mapping else recognise(sample[:MOST_SAMPLED])
    )
    found = Inspection(recognised, len(sample))
    if recognised.format == "dead-letters":
        _letters(found, sample)
        return found
    events: list[ReferenceLine] = []
    if recognised.mapping is not None:
        events = _translated(found, sample, hashed)
        kind = _settle(found, events)
        if kind is not None:
            found = Inspection(kind, len(sample), notes=found.notes)
            events = _translated(found, sample, hashed)
    elif recognised.format == "native":
        events = [ReferenceLine(source.place, value) for value, source in sample]
    _describe(found, events, sample)
    return found


def _translated(found: Inspection, sample: Sequence[tuple[bytes, Source]], hashed: Hash) -> list[ReferenceLine]:
    mapping = found.recognised.mapping
    assert mapping is not None, "only mapped logs are translated"
    translator = Translator(mapping, hashed, NAMELESS)
    events: list[ReferenceLine] = []
    for value, source in sample:
        try:
            for i, event in enumerate(translator.events(value, source)):
                events.append(ReferenceLine(f"{source.place}#{i}" if i else source.place, event))
        except BadRecord as error:
            found.refused.refuse(error.reason, source.place, error.detail, redacted(value).decode())
    found.counts = translator.counts
    if translator.joins:
        found.waiting = dict(translator.without_partner().items())
    return events


def _settle(found: Inspection, events: Sequence[ReferenceLine]) -> Recognised | None:
    """The format with the kind of its answers made plain; None where nothing changes."""
    mapping = found.recognised.mapping
    if mapping is None:
        return None
    predictions = [event["prediction"] for event in _objects(events) if isinstance(event.get("prediction"), dict)]
    changed, why = settled(mapping, predictions)
    if why:
        found.notes.append(f"answers: {why}")
    if changed == mapping:
        return None
    return Recognised(found.recognised.format, found.recognised.sure, changed, found.recognised.why)


def _objects(events: Sequence[ReferenceLine]) -> Iterator[dict[str, Any]]:
    for event in events:
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            content = msgspec.json.decode(event.value)
            if isinstance(content, dict):
                yield content


# --------------------------------------------------------------------------------------------------------- the events


def _describe(found: Inspection, events: Sequence[ReferenceLine], sample: Sequence[tuple[bytes, Source]]) -> None:
    """Fields, columns and refusals of some events."""
    objects = list(_objects(events))
    found.events = len(events)
    found.fields = _uses(found.recognised.mapping, objects, _paths(found.recognised.mapping, sample))
    models = Counter(str(event["model_id"]) for event in objects if event.get("model_id") is not None)
    found.model = models.most_common(1)[0][0] if models else ""
    if len(models) > 1:
        found.notes.append(f"{len(models):,} models; the columns are those of {found.model}")
    try:
        if not events:
            raise InvalidInput("there is no query in it")
        found.understood = understand(read_reference(events, found.model))
    except Refused as error:
        found.why_not = str(error)
    readers = {found.model: InputReader(found.understood.schema)} if found.understood is not None else {}
    places = [event.place for event in events]
    records = Records("inspect", [event.value for event in events], np.arange(len(events)), len(events), places)
    decoded = NativeFormat(readers, admit_unknown=True).decode(records)
    for letter in decoded.dead:
        found.refused.refuse(letter.reason, letter.place, letter.detail, letter.head.decode("utf-8", "replace"))
    found.refused.lines = max(found.records, len(events))
    found.misfits = decoded.misfits()


def _uses(mapping: LogMapping | None, objects: Sequence[Mapping[str, Any]], paths: Mapping[str, str]) -> list[FieldUse]:
    uses = []
    for part in PARTS:
        keys = (KEYS[part],) if part in KEYS else INPUTS
        values = [
            value
            for event in objects
            if (value := next((event[k] for k in keys if event.get(k) is not None), None)) is not None
        ]
        if not values and part in ("id", "status", "fraction"):
            continue
        if part in ("client", "model"):
            values = [value for value in values if value not in (UNATTRIBUTED, NAMELESS)]
        missing = 1 - len(values) / len(objects) if objects else 1.0
        native = " | ".join(k for k in keys if any(k in event for event in objects))
        path = native if mapping is None else paths.get(part, "")
        texts = [v if isinstance(v, str | int | float) else msgspec.json.encode(v).decode() for v in values]
        uses.append(FieldUse(part, path, round(missing, 4), len(set(texts)), _examples(part, values)))
    return uses


def _paths(mapping: LogMapping | None, sample: Sequence[tuple[bytes, Source]]) -> dict[str, str]:
    """The path of each part that leads somewhere in most of the first records."""
    if mapping is None:
        return {}
    fields = FieldReader(mapping, lambda credential: "")
    found: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for views in views_of(mapping, sample[:MOST_SAMPLED]):
        for view in views:
            for part in PARTS:
                path = fields.found(part, view)
                if path is not None:
                    found[part][path.text] += 1
    chosen = {part: paths.most_common(1)[0][0] for part, paths in found.items() if paths}
    kinds = {place.path: place.kind for place in mapping.client.paths}
    if kinds.get(chosen.get("client", ""), "id") != "id":
        chosen["client"] += f" ({kinds[chosen['client']]})"
    if mapping.input.form == "columns":
        chosen["input"] = "columns: " + ", ".join(mapping.input.columns)
    return chosen


def _examples(part: str, values: Sequence[Any]) -> tuple[str, ...]:
    if part == "client":
        return tuple(shortened(str(v)) for v, _ in Counter(map(str, values)).most_common(MOST_EXAMPLES))
    if part == "time":
        texts = sorted(str(v) for v in values if isinstance(v, str))
        return (texts[0], texts[-1]) if texts else ()
    if part == "model":
        return tuple(v for v, _ in Counter(map(str, values)).most_common(MOST_EXAMPLES))
    if part == "answer":
        kinds = Counter(name for v in values if isinstance(v, dict) for name in v)
        return tuple(f"{name} {n:,}" for name, n in kinds.most_common(MOST_EXAMPLES))
    if part == "input":
        kinds = Counter(_shape(v) for v in values)
        return tuple(f"{name} {n:,}" for name, n in kinds.most_common(MOST_EXAMPLES))
    return ()


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return f"object of {len(value)}"
    return f"list of {len(value)}" if isinstance(value, list) else "text"


# ------------------------------------------------------------------------------------------------------- dead letters


def _letters(found: Inspection, sample: Sequence[tuple[bytes, Source]]) -> None:
    """Count dead letters by reason and detail; the head of the first of each reason is its example."""
    for letter in _objects([ReferenceLine(source.place, value) for value, source in sample]):
        reason, detail = str(letter.get("reason", "")), str(letter.get("detail", ""))
        found.letters[reason, detail] += 1
        with contextlib.suppress(ValueError, TypeError, KeyError):
            head = base64.b64decode(letter["head"])  # redacted when it was written
            found.refused.refuse(reason, str(letter.get("place", "")), detail, head.decode("utf-8", "replace"))
    found.refused.lines = len(sample)
    presets = {
        PRESET_OF[detail] for reason, detail in found.letters if reason == "foreign_format" and detail in PRESET_OF
    }
    found.notes += [f"read the log that they come from with --mapping {name}" for name in sorted(presets)]
    if any(reason == "framed" for reason, _ in found.letters):
        found.notes.append(
            'records with the bytes of a schema registry: a mapping with read.framing = "schema-registry" takes them off'
        )


def summary(found: Inspection) -> dict[str, Any]:
    """The inspection as one JSON object."""
    understood = found.understood
    recognised = found.recognised
    return {
        "format": recognised.format, "sure": recognised.sure, "why": list(recognised.why), "records": found.records,
        "queries": found.events, "unattributed": found.counts["unattributed"], "left_out": found.counts["left_out"],
        "unmatched": found.waiting, "fields": [msgspec.to_builtins(use) for use in found.fields], "model_id": found.model,
        "task": understood.schema.task if understood else None, "labels": list(understood.schema.labels) if understood else [],
        "columns": [msgspec.to_builtins(column) for column in understood.columns] if understood else [],
        "extras": [{"column": name, "note": why} for name, why in understood.extras] if understood else [],
        "not_understood": found.why_not, "refused": dict(found.refused.reasons), "misfits": dict(found.misfits),
        "dead_letters": [{"reason": reason, "detail": detail, "letters": n} for (reason, detail), n in found.letters.most_common()],
        "notes": [*found.notes, *(understood.answers.said if understood else ())],
    }  # fmt: skip
