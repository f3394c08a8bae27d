"""Exports of OpenTelemetry as items: every span and every log record, with its attributes as an object.

JSON (``otlp_json``) and protobuf (``otlp_proto``, the default of the collector's Kafka exporter) are distinguished by their first byte.
An item has ``attributes`` (name → value), ``tree`` (the same with dotted names taken apart: ``llm.input_messages.0.message`` becomes
nested objects and lists), ``resource``, ``name``, ``start`` and ``end`` (ns), ``trace_id``, ``span_id``, ``failed`` and, for log records,
``body``. A line with a single span as JSON, with ``attributes`` as an object, is accepted as well.

Rules:
* Field numbers and names are those of OTLP 1.x (opentelemetry-proto: trace/v1, logs/v1, common/v1).
* Values are nested at most `DEEPEST` levels; deeper ones are null.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from consumers.errors import BadRecord
from consumers.log.mappings.protobuf import fields
from consumers.log.reasons import why_no_object, why_not_json
from consumers.log.tolerant import parsed

DEEPEST = 16
MOST_ELEMENTS = 4096
"""Highest index of a list that a dotted name may ask for."""
STATUS_ERROR = 2


def items(value: bytes) -> Iterator[dict[str, Any]]:
    """Spans and log records of an export. Raises BadRecord, RecursionError."""
    if value.lstrip()[:1] in (b"{", b"["):
        try:
            export = parsed(value)
        except ValueError as error:
            raise BadRecord(*why_not_json(value, type(error).__name__)) from None
        for one in export if isinstance(export, list) else [export]:
            if not isinstance(one, dict):
                raise BadRecord(*why_no_object(value))
            yield from _of_json(one)
        return
    try:
        yield from list(_of_protobuf(value))
    except (ValueError, struct.error):
        raise BadRecord("not_json", "neither JSON nor protobuf of OTLP") from None


# ------------------------------------------------------------------------------------------------------------- JSON


def _of_json(export: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    groups = [(group, "scopeSpans", "spans") for group in _listed(export.get("resourceSpans"))]
    groups += [(group, "scopeLogs", "logRecords") for group in _listed(export.get("resourceLogs"))]
    if not groups:
        yield _item(_attributes(export.get("attributes")), {}, export)
    for group, scopes, leaves in groups:
        resource = group.get("resource")
        shared = _attributes(resource.get("attributes")) if isinstance(resource, dict) else {}
        for scope in _listed(group.get(scopes)):
            for leaf in _listed(scope.get(leaves)):
                yield _item(_attributes(leaf.get("attributes")), shared, leaf)


def _item(attributes: dict[str, Any], resource: dict[str, Any], leaf: Mapping[str, Any]) -> dict[str, Any]:
    status = leaf.get("status")
    code = status.get("code", status.get("status_code")) if isinstance(status, dict) else None
    found = {
        "attributes": attributes,
        "tree": tree(attributes),
        "resource": resource,
        "name": leaf.get("name"),
        "start": _moment(leaf, "startTimeUnixNano", "timeUnixNano", "observedTimeUnixNano", "start_time"),
        "end": _moment(leaf, "endTimeUnixNano", "end_time"),
        "trace_id": leaf.get("traceId", leaf.get("trace_id")),
        "span_id": leaf.get("spanId", leaf.get("span_id")),
        "body": _any_value(leaf.get("body"), 0),
        "failed": True if code in (STATUS_ERROR, "STATUS_CODE_ERROR", "ERROR") else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _moment(leaf: Mapping[str, Any], *names: str) -> Any:
    """The first of some times that is set: an export writes 0 for one that is not."""
    return next((leaf[name] for name in names if leaf.get(name) not in (None, 0, "0", "")), None)


def _listed(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _attributes(listed: Any, depth: int = 0) -> dict[str, Any]:
    """Attributes as an object: from a list of key and value, or as they are."""
    if isinstance(listed, dict):
        return dict(listed)
    return {str(one["key"]): _any_value(one.get("value"), depth) for one in _listed(listed) if "key" in one}


def _any_value(value: Any, depth: int) -> Any:
    """What an AnyValue holds; a value that is none as it is."""
    if not isinstance(value, dict) or depth > DEEPEST:
        return None if isinstance(value, dict) else value
    if "stringValue" in value:
        return value["stringValue"]
    if "boolValue" in value:
        return value["boolValue"]
    if "intValue" in value:  # 64-bit numbers are texts in protobuf's JSON
        text = value["intValue"]
        return int(text) if isinstance(text, str) and len(text) < 20 and text.lstrip("-").isdecimal() else text
    if "doubleValue" in value:
        return value["doubleValue"]
    if isinstance(value.get("arrayValue"), dict):
        listed = value["arrayValue"].get("values")
        return [_any_value(one, depth + 1) for one in listed] if isinstance(listed, list) else []
    if isinstance(value.get("kvlistValue"), dict):
        return _attributes(value["kvlistValue"].get("values"), depth + 1)
    return value.get("bytesValue")


# ---------------------------------------------------------------------------------------------------------- protobuf


def _of_protobuf(value: bytes) -> Iterator[dict[str, Any]]:
    """ExportTraceServiceRequest and ExportLogsServiceRequest have the same shape; what a leaf is, its fields tell."""
    for group in _messages(value, 1):
        shared: dict[str, Any] = {}
        for resource in _messages(group, 1):
            shared.update(_pairs(_messages(resource, 1), 0))
        for scope in _messages(group, 2):
            for leaf in _messages(scope, 2):
                yield _leaf(leaf, shared)


def _messages(message: bytes, number: int) -> list[bytes]:
    return [value for found, value in fields(message) if found == number and isinstance(value, bytes)]


def _leaf(leaf: bytes, resource: dict[str, Any]) -> dict[str, Any]:
    held: dict[int, list[int | bytes]] = {}
    for number, value in fields(leaf):
        held.setdefault(number, []).append(value)

    def number_of(which: int) -> int | None:
        return next((value for value in held.get(which, []) if isinstance(value, int)), None)

    def text_of(which: int) -> bytes | None:
        return next((value for value in held.get(which, []) if isinstance(value, bytes)), None)

    # a span has ids in fields 1 and 2; a log record has its time in field 1
    span = text_of(1) is not None
    listed = [value for value in held.get(9 if span else 6, []) if isinstance(value, bytes)]
    attributes = _pairs(listed, 0)
    status = text_of(15) if span else None
    failed = status is not None and any(n == 3 and code == STATUS_ERROR for n, code in fields(status))
    body = None if span else text_of(5)
    found: dict[str, Any] = {
        "attributes": attributes,
        "tree": tree(attributes),
        "resource": resource,
        "name": (text_of(5) or b"").decode("utf-8", "replace") if span else None,
        "start": number_of(7) if span else number_of(1) or number_of(11),
        "end": number_of(8) if span else None,
        "trace_id": _hex(text_of(1 if span else 9)),
        "span_id": _hex(text_of(2 if span else 10)),
        "body": None if body is None else _value(body, 0),
        "failed": failed or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _hex(value: bytes | None) -> str | None:
    return value.hex() if value else None


def _pairs(messages: list[bytes], depth: int) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for message in messages:
        key, value = "", None
        for number, part in fields(message):
            if number == 1 and isinstance(part, bytes):
                key = part.decode("utf-8", "replace")
            elif number == 2 and isinstance(part, bytes):
                value = _value(part, depth)
        pairs[key] = value
    return pairs


def _value(message: bytes, depth: int) -> Any:
    """What an AnyValue holds."""
    if depth > DEEPEST:
        return None
    for number, value in fields(message):
        if isinstance(value, int):
            if number == 2:
                return bool(value)
            if number == 3:
                return value - (1 << 64) if value >= 1 << 63 else value
            if number == 4:
                double: float = struct.unpack("<d", value.to_bytes(8, "little"))[0]
                return double if math.isfinite(double) else None
        elif number == 1:
            return value.decode("utf-8", "replace")
        elif number == 5:
            return [_value(one, depth + 1) for one in _messages(value, 1)]
        elif number == 6:
            return _pairs(_messages(value, 1), depth + 1)
        elif number == 7:
            return base64.b64encode(value).decode()
    return None


# ------------------------------------------------------------------------------------------------------ dotted names


def tree(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with their dotted names taken apart; where digits follow a dot, a list.

    >>> tree({"a.0.b": 1, "a.1.b": 2, "c": 3})
    {'a': [{'b': 1}, {'b': 2}], 'c': 3}
    """
    root: dict[str, Any] = {}
    for name, value in attributes.items():
        parts = name.split(".")
        if len(parts) > DEEPEST:
            continue
        node = root
        for part in parts[:-1]:
            inner = node.setdefault(part, {})
            if not isinstance(inner, dict):
                break
            node = inner
        else:
            if not isinstance(node.get(parts[-1]), dict):
                node[parts[-1]] = value
    return {name: _with_lists(node) for name, node in root.items()}


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    built = {name: _with_lists(inner) for name, inner in node.items()}
    if built and all(name.isdecimal() and len(name) < 5 for name in built):
        places = sorted(built, key=int)
        if int(places[-1]) < MOST_ELEMENTS:
            return [built[place] for place in places]
    return built
