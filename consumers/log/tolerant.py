"""Read records that a strict JSON parser rejects, as far as possible, because the model answered them.

Rules:
* A number that JSON does not have (NaN, Infinity), half of a surrogate pair, and a byte that is not UTF-8 are things that clients send and
  common libraries write. `mended` turns them into JSON in such a way that no two different records become equal.
* Of a record that is too large or nested too deeply the top-level fields are read as they stand in its first `HEAD_BYTES` bytes (`head`).
* Everything takes linear time in what it reads.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

HEAD_BYTES = 1 << 16
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are no JSON for us: malformed, not UTF-8, nested too deeply."""

Raw = msgspec.Raw | bytes
"""One value of a record, as it was written."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_MEND = re.compile(_STRING + rb"|-?\b(?:NaN|nan|Infinity|Inf|inf)\b", re.DOTALL)
_HALF = re.compile(
    rb"\\(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)", re.DOTALL
)
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_TOKEN = re.compile(_STRING + rb'|[{}\[\],:]|[^\s{}\[\],:"]++|"', re.DOTALL)
_NUMBERS = {b"N": b"9e9999", b"n": b"9e9999", b"I": b"1e999", b"i": b"1e999", b"-": b"-1e999"}
"""What a double cannot hold says the same as NaN and Infinity, and is JSON."""
_MOST_DIGITS = 400
"""Of a whole number; a longer one is no double."""

_any = msgspec.json.Decoder()


def mended(value: bytes) -> bytes:
    """The record with everything replaced that keeps it from being JSON and that we can read; itself when there is nothing."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("utf-8", "surrogateescape")
        value = _NO_UTF8.sub(lambda byte: f"\ufffd{ord(byte.group()) - 0xDC00:02x}", text).encode()
    return _MEND.sub(_mend, value)


def _mend(match: re.Match[bytes]) -> bytes:
    found = match.group()
    if found[0] != 0x22:
        return _NUMBERS[found[:1]]
    return _HALF.sub(_half, found) if b"\\" in found else found


def _half(match: re.Match[bytes]) -> bytes:
    """Half of a surrogate pair as the replacement character and its digits; other escapes as they are."""
    escape = match.group(1)
    half = len(escape) == 5 and escape[:1] == b"u" and escape[1:2] in b"dD"
    return b"\\ufffd" + escape[1:] if half else match.group()


def head(value: bytes) -> dict[str, bytes]:
    """Top-level fields of an object that stand whole in the first `HEAD_BYTES` bytes; none when it is no object."""
    found: dict[str, bytes] = {}
    awaited, key, start, depth = "object", "", 0, 0
    for match in _TOKEN.finditer(value[:HEAD_BYTES]):
        token = match.group()
        opens, closes = token in b"{[", token in b"}]"
        if token == b'"':
            break  # a text that the end cuts off: what stands in it is the client's, and no structure
        if depth > 1:
            depth += opens - closes
            if depth == 1:
                found[key] = value[start : match.end()]
                awaited = "comma"
        elif awaited == "object" and token == b"{":
            depth, awaited = 1, "key"
        elif awaited == "key" and token[0] == 0x22:
            key, awaited = _key(token), "colon"
        elif awaited == "colon" and token == b":":
            awaited = "value"
        elif awaited == "value" and opens:
            start, depth = match.start(), 2
        elif awaited == "value" and token not in b"}],:":
            # a number at the very end may go on
            if match.end() < min(len(value), HEAD_BYTES):
                found[key] = token
            awaited = "comma"
        elif awaited == "comma" and token == b",":
            awaited = "key"
        else:
            break
    return found


def _key(token: bytes) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        return ""


def parsed(raw: Raw) -> Any:
    """One value as Python objects; a number that a double cannot hold is infinite. Raises ValueError or RecursionError."""
    try:
        return _any.decode(raw)
    except UNREADABLE:
        text = bytes(raw).decode("utf-8", "surrogateescape")
        return json.loads(text, parse_int=whole)


def whole(digits: str) -> int | float:
    """A whole number; infinite when no double could hold it."""
    return int(digits) if len(digits) <= _MOST_DIGITS else math.inf


def is_null(raw: Raw) -> bool:
    return len(raw) == 4 and bytes(raw) == b"null"


def given(event: Mapping[str, Raw], name: str) -> Raw | None:
    """A field of the event; null is as if absent."""
    raw = event.get(name)
    return None if raw is None or is_null(raw) else raw
