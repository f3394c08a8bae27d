"""Redaction: which parts of a refused record may be kept and shown (docs/formats.md, "Dead letters").

Rules:
* Redaction follows structure, not field names. A string becomes its type and length, a number its sign and magnitude; null, true, false and
  the punctuation of JSON stay. Nothing else is kept, whether the record parses or not.
* A key stays readable only if it is on the caller's list. Any other key becomes its length, because a key may be a secret too.
* Of bytes that do not look like JSON only a class and a size stay.
* The work is bounded: at most `READ_BYTES` are read, and at most `HEAD_BYTES` come out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

HEAD_BYTES = 256
READ_BYTES = 4096
MOST_SHOWN = 999
"""Lengths above are not given exactly: four digits could be a part of what must not be shown."""
LONGEST_NAME = 64
LONGEST_NUMBER = 64

EVENT_NAMES = frozenset(
    """event_id timestamp client_id model_id model_version features embedding text messages prediction label probabilities logits
    value status sampled_fraction metadata ip asn org session user_agent ja4""".split()
)
"""Field names of the native event. They are the format's words, so they tell nothing about a record."""

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<mark>[{}\[\]:,])
    |"(?P<double>(?:[^"\\]|\\.)*)(?P<closed>"?)
    |'(?P<single>(?:[^'\\]|\\.)*)(?P<shut>'?)
    |(?P<word>[^\s{}\[\]:,"]+)""",
    re.VERBOSE | re.DOTALL,
)
_KEY_FOLLOWS = re.compile(r"\s*:")
_INTEGER = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_LITERALS = frozenset(("null", "true", "false", "NaN", "Infinity", "-Infinity"))
_MORE = "…"

# First bytes → the class of what follows.
_CLASSES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PAR1": "Parquet",
    b"Obj\x01": "Avro",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


def readable_names(columns: Iterable[str] = ()) -> frozenset[str]:
    """Names that may stay readable: those of the event and of a baseline's columns, each part of a dotted one by itself too."""
    parts = {part for column in columns for part in (column, *column.split("."))}
    return EVENT_NAMES | {part for part in parts if part.isprintable() and 0 < len(part) <= LONGEST_NAME}


def redacted(value: bytes, readable: frozenset[str] = EVENT_NAMES) -> bytes:
    """The shape of a raw record without its values, at most `HEAD_BYTES` of UTF-8."""
    text = value[:READ_BYTES].decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if not text.startswith(("{", "[", '"')) and not _atom(text.strip()):
        return f"<{_class_of(value)}, {_size(len(value))}>".encode()
    whole = len(value) <= READ_BYTES
    pieces: list[str] = []
    room = HEAD_BYTES - len(_MORE.encode())
    for found in _TOKEN.finditer(text):
        piece = _piece(found, text, readable)
        room -= len(piece.encode())
        if room < 0:
            return ("".join(pieces) + _MORE).encode()
        pieces.append(piece)
    return ("".join(pieces) + ("" if whole else _MORE)).encode()


def _piece(found: re.Match[str], text: str, readable: frozenset[str]) -> str:
    """What stands for one token."""
    if found["space"]:
        return " "
    if found["mark"]:
        return found["mark"]
    key = _KEY_FOLLOWS.match(text, found.end()) is not None
    word = found["word"]
    if word is not None:
        return word if key and word in readable else _atom(word) or f"<word {_length(word)}>"
    content = found["double"] if found["double"] is not None else found["single"]
    closed = bool(found["closed"] or found["shut"])
    if key and closed and content in readable:
        return f'"{content}"'
    length = _length(content)
    cut = "" if closed or length.endswith("+") else "+"
    return f'"<{"key" if key else "str"} {length}{cut}>"'


def _atom(word: str) -> str:
    """What stands for a number or a literal; "" for anything else."""
    if word in _LITERALS:
        return word
    sign = "-" if word.startswith("-") else ""
    if _INTEGER.fullmatch(word):
        return f"<{sign}int {_length(word.lstrip('-'))} digits>"
    if not _FLOAT.fullmatch(word):
        return ""
    size = abs(float(word)) if len(word) <= LONGEST_NUMBER else math.inf
    if not math.isfinite(size):
        return f"<{sign}float, large>"
    return f"<{sign}float 10^{math.floor(math.log10(size))}>" if size else "<float 0>"


def _length(content: str) -> str:
    return str(len(content)) if len(content) <= MOST_SHOWN else f"{MOST_SHOWN}+"


def _class_of(value: bytes) -> str:
    if not value:
        return "empty"
    for first, name in _CLASSES.items():
        if value.startswith(first):
            return name
    start = value[:READ_BYTES]
    control = any(byte < 32 and byte not in b"\t\r\n\f" for byte in start)
    # a character that the cut went through is no sign of binary data
    return "binary" if control or "\ufffd" in start.decode("utf-8", "replace")[:-1] else "text"


def _size(n: int) -> str:
    """
    >>> _size(812), _size(4096), _size(3 << 20)
    ('812 bytes', '4 KiB', '3 MiB')
    """
    if n <= MOST_SHOWN:
        return f"{n} bytes"
    return f"{n >> 10 or 1} KiB" if n < 1 << 20 else f"{min(n >> 20, MOST_SHOWN)} MiB"
