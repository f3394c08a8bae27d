"""Reason codes: why a record was refused, or what does not fit about a query.

Rules:
* A code says what is wrong; its detail says which column or which format. Neither holds a value of the record.
* A record has one of three fates: ``refused`` (a dead letter that counts for no client), ``lettered`` (a dead letter that also counts as
  a query of its client), ``marked`` (a query of its client).
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

import msgspec

from consumers.errors import BadRecord
from consumers.log.tolerant import UNREADABLE

Fate = Literal["refused", "lettered", "marked"]


class MisfitNote(NamedTuple):
    """One thing about a query that does not fit. column: its name; `prediction` for the answer; empty: the whole input or record."""

    reason: str
    column: str = ""


_TABLE: tuple[tuple[str, Fate, str], ...] = (
    ("not_json", "refused", "the record is not one JSON object in UTF-8"),
    ("several_objects", "refused", "the line holds several objects"),
    ("encoded_twice", "refused", "the event was encoded as JSON twice: the record is a string that holds it"),
    ("framed", "refused", "the record begins with the five bytes of a schema registry (magic byte 0 and a schema id)"),
    ("connect_envelope", "refused", 'the event is the payload of a Kafka Connect envelope {"schema", "payload"}'),
    (
        "foreign_format",
        "refused",
        "the record is an event of another logger; the detail says which, and `querywarden inspect` how it is read",
    ),
    ("missing_client", "refused", "there is no client_id"),
    (
        "malformed_client",
        "refused",
        "client_id is empty, longer than 256 bytes, contains control characters, or is neither text nor a whole number",
    ),
    ("missing_model", "refused", "there is no model_id"),
    ("unknown_model", "refused", "no baseline was loaded for this model_id"),
    ("poison", "refused", "the record ends the process that reads it"),
    ("unreadable_batch", "refused", "a batch of the log cannot be read (corrupt, or a decompression bomb)"),
    ("too_large", "lettered", "the record is over 1 MiB; client and model are read from its first 64 KiB"),
    (
        "too_deep",
        "lettered",
        "the record is nested too deeply to be read; client and model are read from its first 64 KiB",
    ),
    (
        "bad_timestamp",
        "lettered",
        "timestamp is missing, not RFC 3339 with an offset, or outside the years 1970 to 9999",
    ),
    ("missing_input", "lettered", "the event has none of the keys features, embedding, text and messages"),
    ("unsupported_input", "marked", "the input has another form than the baseline's"),
    ("wrong_dimension", "marked", "the input has another number of columns than the baseline"),
    ("wrong_type", "marked", "a value is a word in a column of numbers, or a list, or an object"),
    ("missing_column", "marked", "a named column is missing"),
    ("missing_value", "marked", "a value is null or empty"),
    ("not_finite", "marked", "a number is NaN, infinite or too large for a double"),
    ("out_of_range", "marked", "an absolute value is over 1e12"),
    ("unknown_category", "marked", "a value is not among the categories of its column"),
    ("retyped", "marked", "a number is written as text, or a column of numbers holds a boolean"),
    ("missing_prediction", "marked", "the query was successful but has no prediction"),
    ("wrong_output", "marked", "the prediction has another shape than the baseline's, or an unknown label"),
    ("bad_sampled_fraction", "marked", "sampled_fraction is not in [1e-9, 1]; the event counts once"),
)
REASONS: dict[str, str] = {reason: text for reason, _, text in _TABLE}
"""Reason codes and what they mean."""
FATES: dict[str, Fate] = {reason: fate for reason, fate, _ in _TABLE}
"""Reason code → what becomes of the record."""

_any = msgspec.json.Decoder()

_FOREIGN: tuple[tuple[str, frozenset[str]], ...] = (
    ("a KServe inference log (CloudEvents)", frozenset(("specversion", "inferenceservicename"))),
    ("a CloudEvent", frozenset(("specversion", "source", "type"))),
    ("SageMaker data capture", frozenset(("captureData", "eventMetadata"))),
    ("a Databricks inference table", frozenset(("databricks_request_id",))),
    ("an Azure ML data collection", frozenset(("specversion", "xms-azureml"))),
    ("a LiteLLM log", frozenset(("call_type", "startTime"))),
    ("an OpenTelemetry export", frozenset(("resourceSpans",))),
    ("an OpenTelemetry export", frozenset(("resourceLogs",))),
    ("an OpenTelemetry span", frozenset(("traceId", "spanId"))),
    ("an OpenTelemetry span", frozenset(("trace_id", "span_id"))),
    ("a Vertex AI request log", frozenset(("request_payload", "response_payload"))),
    ("a Seldon request log", frozenset(("sdepName", "request"))),
    ("a Debezium change event", frozenset(("before", "after", "op"))),
)
"""Keys that tell a foreign format."""


def foreign(keys: frozenset[str]) -> tuple[str, str] | None:
    """(reason, detail) of an object that has no client and no model because it is no event of ours; None: can't tell."""
    if {"schema", "payload"} <= keys <= {"schema", "payload"}:
        return "connect_envelope", "set value.converter.schemas.enable=false"
    return next((("foreign_format", name) for name, mine in _FOREIGN if mine <= keys), None)


def why_not_json(value: bytes, detail: str) -> tuple[str, str]:
    """(reason, detail) of bytes that are not one JSON object. detail: what the parser said."""
    known = _by_first_bytes(value)
    if known is not None:
        return known
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return "not_json", "not UTF-8"
    try:
        first, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return "not_json", detail
    rest = text.lstrip()[end:].lstrip(" \t\r\n,")
    if isinstance(first, dict) and rest.startswith("{"):
        return "several_objects", "write one object a line"
    return "not_json", detail


def _by_first_bytes(value: bytes) -> tuple[str, str] | None:
    if not value.strip():
        return "not_json", "the value is empty"
    if value.startswith(b"\xef\xbb\xbf"):
        return "not_json", "a byte order mark stands before the record"
    if value.startswith(b"\x1f\x8b"):
        return "not_json", "gzip, not JSON"
    if value.startswith(b"\x28\xb5\x2f\xfd"):
        return "not_json", "zstd, not JSON"
    if value.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "not_json", "UTF-16, not UTF-8"
    if value[0] == 0 and len(value) > 5:
        kind = "JSON" if value[5:6] in (b"{", b"[") else "Avro or Protobuf"
        return "framed", f"{kind} of schema {int.from_bytes(value[1:5], 'big')}"
    return None


def why_no_object(value: bytes) -> tuple[str, str]:
    """(reason, detail) of a JSON text that is no object."""
    try:
        given: Any = _any.decode(value)
    except UNREADABLE:
        return "not_json", "not an object"
    if isinstance(given, str):
        try:
            inner = _any.decode(given)
        except UNREADABLE:
            inner = None
        if isinstance(inner, dict):
            return "encoded_twice", ""
        return "not_json", "a text, not an object"
    if isinstance(given, list) and given and all(isinstance(one, dict) for one in given):
        return "several_objects", "a list of objects: write one object a line"
    names = {list: "a list", bool: "a boolean", type(None): "null"}
    return "not_json", f"{names.get(type(given), 'a number')}, not an object"


def without_client(keys: frozenset[str], reason: str) -> BadRecord:
    """What to refuse an object for that lacks a client or a model: its format, when its keys tell it."""
    return BadRecord(*(foreign(keys) or (reason, "")))
