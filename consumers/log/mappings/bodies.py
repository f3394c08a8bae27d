"""Bodies: decodes a payload that was logged as JSON, as a text of JSON, as CSV, or as any of them in base64.

Rules:
* Bytes may be binary tensors (tensors.py).
* Nothing raises. A payload that cannot be read stays text, and the decoder of events marks it as an input that cannot be read.
* A CSV cell has no type: text that reads as a number is one, an empty cell is null, anything else is text. A number with leading zeros is
  a name.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from typing import Any

from consumers.log.mappings import tensors
from consumers.log.mappings.mapping import Encoding
from consumers.log.tolerant import parsed

MOST_CELLS = 1 << 20
"""Of one body; a longer one is no table for us."""

_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*)?(?:\.\d*)?(?:[eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*|[A-Za-z0-9_\s-]+={0,2}\s*", re.ASCII)
_WORDS: dict[str, bool] = {"true": True, "false": False}
_NO_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "infinity": math.inf, "-infinity": -math.inf}


def body(value: Any, encoding: Encoding = "auto") -> Any:
    """Read a payload as far as it can be read.

    Parameters
    ----------
    value
        As it stands in the record: an object, a list, a text, or bytes.
    encoding
        What the mapping says about texts; ``auto`` tries JSON, then CSV, then base64 of either.

    Returns
    -------
    Any
        Objects and lists as they are, CSV as a list of rows, a single cell as what it is, other texts as texts.
    """
    found = _read(value, encoding)
    return (
        tensors.opened(found)
        if isinstance(found, dict) and not found.keys().isdisjoint(tensors.TENSOR_LISTS)
        else found
    )


def _read(value: Any, encoding: Encoding) -> Any:
    if isinstance(value, bytes):
        logged, value = value, value.decode("utf-8", "replace")
        found = _json(value)
        if found is not None and encoding in ("auto", "json"):
            return found
        binary = None if found is not None else tensors.of_bytes(logged)
        if binary is not None:
            return binary
    if isinstance(value, list) and value and all(isinstance(part, str) and part[:1] in ("{", "[") for part in value):
        return [body(part, "json") for part in value]
    if not isinstance(value, str):
        return value
    if encoding == "json":
        found = _json(value)
        return value if found is None else found
    if encoding == "csv":
        return table(value)
    if encoding == "base64" or _looks_encoded(value):
        raw = tensors.base64_bytes("".join(value.split()))
        binary = None if raw is None else tensors.of_bytes(raw)
        if binary is not None:
            return binary
        text = None if raw is None else _text(raw)
        if text is not None and (encoding == "base64" or _json(text) is not None or _is_table(text)):
            return _plain(text)
    return _plain(value)


def table(text: str, delimiter: str = ",") -> Any:
    """The rows of a CSV text, each a list of cells; the text itself when it is no table."""
    if text.count(delimiter) > MOST_CELLS:
        return text
    try:
        return [[cell(part) for part in row] for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    except csv.Error:
        return text


def line(text: str, delimiter: str = ",") -> list[str]:
    """The cells of one CSV line, as texts; none when it cannot be read."""
    try:
        return next(csv.reader([text], delimiter=delimiter), [])
    except csv.Error:
        return []


def cell(text: str) -> Any:
    """What one cell of CSV says.

    >>> cell(" 41"), cell("0.5"), cell(""), cell("007"), cell("AT"), cell("true")
    (41, 0.5, None, '007', 'AT', True)
    """
    bare = text.strip()
    if not bare:
        return None
    if _WHOLE.fullmatch(bare):
        return bare if len(bare.lstrip("+-")) > 1 and bare.lstrip("+-")[0] == "0" else int(bare)
    if _NUMBER.fullmatch(bare) and any(map(str.isdigit, bare)):
        return float(bare)
    lowered = bare.lower()
    return _WORDS.get(lowered, _NO_NUMBERS.get(lowered, bare))


def columnar(cells: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """The cells of a row by name; what is beyond the names is left out, what is missing is absent."""
    return dict(zip(names, cells, strict=False))


def _json(text: str) -> Any:
    """An object or a list; None: the text is none."""
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        return None
    try:
        return parsed(text.encode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None


def _plain(text: str) -> Any:
    """A text as JSON, as CSV, or as it is."""
    found = _json(text)
    if found is not None:
        return found
    return table(text) if _is_table(text) else text


def _is_table(text: str) -> bool:
    """Whether a text is CSV: some cell of its first line is no word. A table of words alone must be declared (``encoding = "csv"``)."""
    first = next((part for part in text.splitlines() if part.strip()), "")
    return any(not isinstance(cell(part), str | None) for part in line(first))


def _looks_encoded(text: str) -> bool:
    """Whether a text may be base64: its letters and its length say so, and it is no number."""
    bare = text.strip()
    return len(bare) >= 8 and len(bare) % 4 == 0 and _BASE64.fullmatch(bare) is not None and not _is_table(bare)


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
