"""Binary tensors of the Open Inference Protocol (V2), given the form in which its JSON writes them: a name, a shape and a list ``data``.

Read are the binary tensor data extension (a JSON object, then the bytes of the tensors, each as long as ``binary_data_size`` says), the
messages of gRPC as bytes or as JSON (``raw_input_contents``, ``raw_output_contents``, ``contents``), and the same in base64.

Rules:
* Nothing raises. What does not agree in length, shape or type is left as it was logged, and the decoder of events marks it as an input
  that cannot be read.
* No size that a client states is believed: a tensor is read only where its bytes are there, and has at most `MOST_ELEMENTS`.
* Source: "Open Inference Protocol" (HTTP/REST, gRPC and binary tensor data), kserve.github.io; field numbers of its ``inference.proto``.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consumers.log.mappings.protobuf import fields, varints

MOST_ELEMENTS = 1 << 20
MOST_TENSORS = 4096
TENSOR_LISTS = ("inputs", "outputs")
RAW = ("raw_input_contents", "rawInputContents", "raw_output_contents", "rawOutputContents")

_TYPES = {
    "BOOL": "u1", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2",
}  # fmt: skip
_CONTENTS = {1: "BOOL", 2: "INT32", 3: "INT64", 4: "UINT32", 5: "UINT64", 6: "FP32", 7: "FP64"}
"""Field of ``InferTensorContents`` → type of what it holds; 8 holds bytes."""


def of_bytes(body: bytes) -> dict[str, Any] | None:
    """The payload of a body that is not JSON alone; None: it is none of ours."""
    if body.lstrip()[:1] == b"{":
        return _of_extension(body)
    try:
        return _of_message(body)
    except (ValueError, struct.error):
        return None


def opened(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """A payload in JSON with the contents of its tensors as ``data``, where it has them in another form."""
    found = dict(payload)
    for name in TENSOR_LISTS:
        tensors = payload.get(name)
        if not (isinstance(tensors, list) and 0 < len(tensors) <= MOST_TENSORS and all(map(_described, tensors))):
            continue
        raw = next((payload[key] for key in RAW if isinstance(payload.get(key), list)), None)
        if raw is not None and len(raw) == len(tensors):
            read = [_tensor(tensor, base64_bytes(part)) for tensor, part in zip(tensors, raw, strict=True)]
        elif all(isinstance(tensor.get("contents"), dict) for tensor in tensors):
            read = [_with_contents(tensor) for tensor in tensors]
        else:
            continue
        if all(one is not None for one in read):
            found[name] = read
    return found


def _described(tensor: Any) -> bool:
    return isinstance(tensor, dict) and {"name", "datatype", "shape"} <= tensor.keys() and "data" not in tensor


def _of_extension(body: bytes) -> dict[str, Any] | None:
    """A JSON object and what follows it."""
    begin = len(body) - len(body.lstrip())
    try:
        _, length = json.JSONDecoder().raw_decode(body[begin:].decode("latin-1"))  # one character a byte
        payload = json.loads(body[begin : begin + length])
    except (ValueError, RecursionError):
        return None
    rest = body[begin + length :]
    if not isinstance(payload, dict) or not rest:
        return None
    found = dict(payload)
    for name in TENSOR_LISTS:
        tensors = payload.get(name)
        if not isinstance(tensors, list) or len(tensors) > MOST_TENSORS:
            continue
        read = list[Any]()
        for tensor in tensors:
            parameters = tensor.get("parameters") if isinstance(tensor, dict) else None
            size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
            if not (type(size) is int and 0 <= size <= len(rest) and _described(tensor)):
                read.append(tensor)  # a tensor in JSON among others
                continue
            read.append(_tensor(tensor, rest[:size]))
            rest = rest[size:]
        if any(tensor is None for tensor in read):
            return None
        found[name] = read
    return None if rest else found


def _tensor(tensor: Mapping[str, Any], raw: bytes | None) -> dict[str, Any] | None:
    """A tensor with its bytes as values; None where they are no tensor of this shape and type."""
    shape = _shape(tensor.get("shape"))
    if raw is None or shape is None:
        return None
    data = _values(str(tensor["datatype"]), raw, math.prod(shape))
    return (
        None if data is None else {"name": tensor["name"], "shape": shape, "datatype": tensor["datatype"], "data": data}
    )


def _shape(shape: Any) -> list[int] | None:
    """A shape; JSON of gRPC writes numbers of 64 bits as texts."""
    if not isinstance(shape, list) or not 0 < len(shape) <= 8:
        return None
    sizes = [int(n) if isinstance(n, str) and n.isascii() and n.isdecimal() and len(n) < 10 else n for n in shape]
    if not all(type(n) is int and 0 <= n <= MOST_ELEMENTS for n in sizes):
        return None
    return sizes if math.prod(sizes) <= MOST_ELEMENTS else None


def _values(datatype: str, raw: bytes, n: int) -> list[Any] | None:
    if datatype == "BYTES":
        texts = _texts(raw)
        return texts if texts is not None and len(texts) == n else None
    kind = _TYPES.get(datatype)
    if kind is None or len(raw) != n * np.dtype(kind).itemsize:
        return None
    found = np.frombuffer(raw, kind)
    if datatype == "BF16":
        found = (found.astype("<u4") << 16).view("<f4")
    return (found != 0).tolist() if datatype == "BOOL" else found.tolist()  # type: ignore[no-any-return]


def _texts(raw: bytes) -> list[str] | None:
    """Elements of type BYTES, each after its length in four bytes; None where the lengths do not end where the bytes do."""
    texts, at = list[str](), 0
    while at < len(raw):
        if at + 4 > len(raw):
            return None
        size = int.from_bytes(raw[at : at + 4], "little")
        at += 4 + size
        if at > len(raw) or len(texts) >= MOST_ELEMENTS:
            return None
        texts.append(raw[at - size : at].decode("utf-8", "replace"))
    return texts


def base64_bytes(part: Any) -> bytes | None:
    """What a text in base64 holds, of either alphabet; None when it is none."""
    if not isinstance(part, str):
        return None
    try:
        return base64.b64decode(part.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError):
        return None


def _with_contents(tensor: Mapping[str, Any]) -> dict[str, Any] | None:
    """A tensor of gRPC as JSON: its values are in the one field of ``contents`` that its type has."""
    shape = _shape(tensor.get("shape"))
    lists = [values for values in tensor["contents"].values() if isinstance(values, list) and values]
    if shape is None or len(lists) != 1 or math.prod(shape) != len(lists[0]):
        return None
    data = lists[0]
    if tensor["datatype"] == "BYTES":
        raw = [base64_bytes(value) for value in data]
        data = [value.decode("utf-8", "replace") for value in raw if value is not None]
    elif any(isinstance(value, str) for value in data):  # numbers of 64 bits
        data = [int(v) if isinstance(v, str) and v.lstrip("-").isdecimal() and len(v) < 21 else v for v in data]
    return {"name": tensor["name"], "shape": shape, "datatype": tensor["datatype"], "data": data}


# ------------------------------------------------------------------------------------------------------------- gRPC


def _of_message(body: bytes) -> dict[str, Any] | None:
    """A ``ModelInferRequest`` or ``ModelInferResponse``; None: it is neither. Raises ValueError, struct.error.

    Both have their tensors in field 5; their bytes are in field 7 of a request and in field 6 of a response.
    """
    found: dict[int, list[int | bytes]] = {}
    for number, value in fields(body):
        found.setdefault(number, []).append(value)
    tensors = [_message_tensor(part) for part in found.get(5, [])[:MOST_TENSORS] if isinstance(part, bytes)]
    if not tensors or not found.keys() <= set(range(1, 8)) or not all(map(_described, tensors)):
        return None
    raw = next((found[number] for number in (7, 6) if len(found.get(number, ())) == len(tensors)), None)
    read = list[dict[str, Any] | None]()
    for i, tensor in enumerate(tensors):
        contents = tensor.pop("contents")
        if contents:
            shape = _shape(tensor["shape"])
            same = shape is not None and math.prod(shape) == len(contents)
            read.append({**tensor, "data": contents} if same else None)
        else:
            part = None if raw is None else raw[i]
            read.append(_tensor(tensor, part if isinstance(part, bytes) else None))
    if any(one is None for one in read):
        return None
    payload: dict[str, Any] = {"inputs": read, "outputs": read}
    for number, name in ((1, "model_name"), (2, "model_version"), (3, "id")):
        text = next((part for part in found.get(number, ()) if isinstance(part, bytes)), b"")
        payload |= {name: text.decode("utf-8", "replace")} if text else {}
    return payload


def _message_tensor(message: bytes) -> dict[str, Any]:
    tensor: dict[str, Any] = {"shape": [], "contents": []}
    for number, value in fields(message):
        if number in (1, 2) and isinstance(value, bytes):
            tensor["name" if number == 1 else "datatype"] = value.decode("utf-8", "replace")
        elif number == 3:
            tensor["shape"] += list(varints(value)) if isinstance(value, bytes) else [value]
        elif number == 5 and isinstance(value, bytes):
            tensor["contents"] += _contents(value)
    return tensor


def _contents(message: bytes) -> list[Any]:
    values = list[Any]()
    for number, value in fields(message):
        if number == 8 and isinstance(value, bytes):
            values.append(value.decode("utf-8", "replace"))
            continue
        kind = _CONTENTS.get(number)
        if kind is None:
            continue
        if kind in ("FP32", "FP64"):
            raw = value if isinstance(value, bytes) else value.to_bytes(4 if kind == "FP32" else 8, "little")
            values += np.frombuffer(raw, _TYPES[kind]).tolist()
            continue
        numbers: Sequence[int] = list(varints(value)) if isinstance(value, bytes) else [value]
        if kind in ("INT32", "INT64"):
            numbers = [n - (1 << 64) if n >> 63 else n for n in numbers]
        values += [bool(n) for n in numbers] if kind == "BOOL" else numbers
    return values
