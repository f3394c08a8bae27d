"""Shapes of requests: the rows of a payload.

They are recognised by their keys: the V1 protocol (``instances``), V2 or Open Inference Protocol (``inputs`` of named tensors),
``dataframe_split`` and ``dataframe_records`` of MLflow, ``data.ndarray`` and ``data.tensor`` of Seldon, chat and completion requests, and
plain lists.

Rules:
* A request is as many queries as it has rows. A request whose rows cannot be separated is one query, with its input as it was logged.
* Nothing raises, and nothing is dropped: an unknown shape is passed on as it is, for the decoder of events to mark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Form = Literal["features", "embedding", "text", "messages"]
TaggedRow = tuple[Form, Any]
"""What an input is called in a native event, and the input."""

_ROW_KEYS = (
    "instances",
    "dataframe_records",
    "dataframe_split",
    "inputs",
    "input_data",
    "data",
    "input",
    "rows",
    "features",
)


def rows_of(payload: Any) -> list[TaggedRow]:
    """The rows of a request, each with what it is called in a native event; never none."""
    if isinstance(payload, dict):
        return _rows_of_object(payload)
    if isinstance(payload, list) and payload:
        if all(isinstance(row, list | dict) for row in payload):
            return _rows_of_list(payload)
        if all(isinstance(row, str) for row in payload) and any(" " in row for row in payload):
            return [("text", row) for row in payload]
        return [("features", payload)]
    if isinstance(payload, str):
        return [("text", payload)]
    return [("features", payload)]


def _rows_of_list(rows: Sequence[Any]) -> list[TaggedRow]:
    if all(isinstance(row, dict) and "role" in row and ("content" in row or "parts" in row) for row in rows):
        return [("messages", list(rows))]
    if len(rows) == 1 and isinstance(rows[0], list) and rows[0] and all(isinstance(r, list | dict) for r in rows[0]):
        return _rows_of_list(rows[0])
    if all(isinstance(row, dict) and is_tensor(row) for row in rows):
        return _of_tensors(rows)
    if any(isinstance(row, dict) and set(row) & {"instances", "inputs", "dataframe_split"} for row in rows):
        return [tagged for row in rows for tagged in rows_of(row)]
    return [("features", row) for row in rows]


def _rows_of_object(payload: Mapping[str, Any]) -> list[TaggedRow]:
    if isinstance(payload.get("messages"), list):
        return [("messages", payload["messages"])]
    if isinstance(payload.get("prompt"), str):
        return [("text", payload["prompt"])]
    if isinstance(payload.get("prompt"), list):
        return rows_of(payload["prompt"])
    split = _table(payload)
    if split is not None:
        return [("features", row) for row in split]
    for key in _ROW_KEYS:
        inner = payload.get(key)
        if inner is None:
            continue
        if key == "data" and isinstance(inner, dict):
            return _of_seldon(inner)
        if isinstance(inner, dict):
            return columnar_rows(inner) or rows_of(inner)
        if (
            isinstance(inner, list)
            and key == "inputs"
            and inner
            and all(isinstance(t, dict) and is_tensor(t) for t in inner)
        ):
            return _of_tensors(inner)
        if isinstance(inner, list) and inner and not any(isinstance(row, list | dict) for row in inner):
            # V1 with one column: each element is a row; a bare list of numbers elsewhere is one row
            words = all(isinstance(row, str) for row in inner)
            if key == "instances" and not words:
                return [("features", [row]) for row in inner]
            return [("text", row) for row in inner] if words else [("features", inner)]
        if isinstance(inner, list):
            return _rows_of_list(inner) if inner else [("features", inner)]
        if isinstance(inner, str):
            return [("text", inner)]
    return [("features", dict(payload))]


def _table(payload: Mapping[str, Any]) -> list[Any] | None:
    """Rows of ``{"columns": [...], "data": [[...]]}``, by name; None: it is no such table."""
    split = payload.get("dataframe_split", payload)
    if isinstance(payload.get("input_data"), dict):
        split = payload["input_data"]
    if not isinstance(split, dict):
        return None
    names, data = split.get("columns"), split.get("data")
    if not (isinstance(names, list) and isinstance(data, list) and data):
        return None
    if not all(isinstance(name, str) for name in names) or not all(isinstance(row, list) for row in data):
        return None
    return [dict(zip(names, row, strict=False)) if len(row) == len(names) else row for row in data]


def columnar_rows(payload: Mapping[str, Any]) -> list[TaggedRow]:
    """Rows of ``{"name": [...], …}``, lists of one length; none when it is no such table."""
    columns = list(payload.values())
    if not columns or not all(isinstance(column, list) for column in columns):
        return []
    n = len(columns[0])
    if not n or any(len(column) != n for column in columns):
        return []
    flat = [[single(value) for value in column] for column in columns]
    return [("features", dict(zip(payload, values, strict=True))) for values in zip(*flat, strict=True)]


def _of_seldon(data: Mapping[str, Any]) -> list[TaggedRow]:
    table = seldon_table(data)
    if table is None:
        return [("features", dict(data))]
    names = data.get("names")
    if isinstance(names, list) and all(isinstance(row, list) and len(row) == len(names) for row in table):
        return [("features", dict(zip(map(str, names), row, strict=True))) for row in table]
    return [("features", row) for row in table]


def seldon_table(data: Mapping[str, Any]) -> list[Any] | None:
    array, tensor = data.get("ndarray"), data.get("tensor")
    if isinstance(array, list) and array:
        return array if all(isinstance(row, list) for row in array) else [array]
    if isinstance(tensor, dict):
        return reshaped(tensor.get("values"), tensor.get("shape"))
    return None


# ------------------------------------------------------------------------------------------- Open Inference Protocol


def is_tensor(value: Mapping[str, Any]) -> bool:
    return "name" in value and "shape" in value and "data" in value


def _of_tensors(tensors: Sequence[Mapping[str, Any]]) -> list[TaggedRow]:
    """Rows of named tensors: one tensor of several columns gives lists, several tensors give objects."""
    read = {str(tensor["name"]): reshaped(tensor["data"], tensor["shape"]) for tensor in tensors}
    rows = [found for found in read.values() if found is not None]
    if len(rows) != len(tensors) or len({len(found) for found in rows}) != 1:
        return [("features", list(tensors))]
    if len(read) == 1:
        (table,) = rows
        words = all(len(row) == 1 and isinstance(row[0], str) for row in table)
        return [("text", row[0]) if words else ("features", row) for row in table]
    return [("features", _named(read, i)) for i in range(len(rows[0]))]


def _named(read: Mapping[str, list[Any] | None], i: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, table in read.items():
        values = (table or [])[i]
        if len(values) == 1:
            row[name] = values[0]
        else:
            row.update({f"{name}.{j}": value for j, value in enumerate(values)})
    return row


def reshaped(data: Any, shape: Any) -> list[Any] | None:
    """The rows of a tensor (its first axis), each a flat list; None when data and shape do not agree."""
    if not isinstance(data, list) or not isinstance(shape, list) or not shape:
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape):
        return None
    flat = list(_flat(data))
    n = shape[0]
    if math.prod(shape[:8]) != len(flat) or len(shape) > 8 or n == 0:
        return None
    width = len(flat) // n
    return [flat[i * width : (i + 1) * width] for i in range(n)] if width else None


def _flat(data: list[Any]) -> list[Any]:
    """Elements of nested lists, in order; without recursion, for lists are nested as deeply as a client likes."""
    flat: list[Any] = []
    pending: list[Any] = [iter(data)]
    while pending:
        for value in pending[-1]:
            if isinstance(value, list):
                pending.append(iter(value))
                break
            flat.append(value)
        else:
            pending.pop()
    return flat


def single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
