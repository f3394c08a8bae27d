"""Apache Avro in its binary encoding: the bytes of a record by a schema that the mapping holds.

Rules:
* Read by the schema that the record was written with; there is no resolution of schemas, and nothing is fetched from a registry.
* Malformed bytes raise `ValueError`. No length or count that the bytes state is believed: nothing reads beyond them, at most
  `MOST_VALUES` values of a record are read, and values are nested at most `DEEPEST` levels.
* Logical types are left as the number or bytes that they are. A union gives its value alone.
* Source: Apache Avro 1.12 specification, "Binary Encoding".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

DEEPEST = 32
MOST_VALUES = 1 << 18
PRIMITIVES = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))

AvroSchema = Any
"""As JSON gives it: a name, an object, or a list (a union)."""


class AvroReader:
    """Reads records of one schema.

    Raises
    ------
    ValueError
        For a schema that is none.
    """

    def __init__(self, schema: str) -> None:
        try:
            self._schema: AvroSchema = json.loads(schema)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        self._named: dict[str, AvroSchema] = {}
        self._check(self._schema, 0)

    def record(self, value: bytes) -> Any:
        """The value that the bytes hold. Raises ValueError for bytes that are none, or more."""
        walk = _Walk(value, self._named)
        found = walk.value(self._schema, 0)
        if walk.at != len(value):
            raise ValueError(f"{len(value) - walk.at} bytes too many")
        return found

    def _check(self, schema: AvroSchema, depth: int) -> None:
        """Note the named types, and refuse what is no schema."""
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if isinstance(schema, list):
            for one in schema:
                self._check(one, depth + 1)
            return
        if isinstance(schema, str):
            if schema not in PRIMITIVES and schema not in self._named:
                raise ValueError(f"no type {schema!r}")
            return
        kind = schema.get("type") if isinstance(schema, dict) else None
        if kind in ("record", "enum", "fixed"):
            name = str(schema.get("name", ""))
            self._named |= {name: schema, f"{schema.get('namespace', '')}.{name}": schema}
        for inner in _parts(schema, kind):
            self._check(inner, depth + 1)


def _parts(schema: Any, kind: Any) -> list[AvroSchema]:
    """The schemas that a schema is made of. Raises ValueError for one that is none."""
    if kind == "record" and isinstance(schema.get("fields"), list):
        fields = schema["fields"]
        if not all(isinstance(f, dict) and isinstance(f.get("name"), str) and "type" in f for f in fields):
            raise ValueError("a field without name or type")
        return [field["type"] for field in fields]
    if kind in ("array", "map"):
        inner = schema.get("items" if kind == "array" else "values")
        if inner is not None:
            return [inner]
    if kind == "enum" and isinstance(schema.get("symbols"), list):
        return []
    if kind == "fixed" and type(schema.get("size")) is int and schema["size"] >= 0:
        return []
    if (isinstance(kind, str) and kind in PRIMITIVES) or isinstance(kind, dict | list):
        return [kind]
    raise ValueError(f"no schema: {json.dumps(schema)[:60]}")


class _Walk:
    """One walk over the bytes of a record."""

    def __init__(self, value: bytes, named: dict[str, AvroSchema]) -> None:
        self.at = 0
        self._bytes, self._named, self._left = value, named, MOST_VALUES

    def value(self, schema: AvroSchema, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        if isinstance(schema, list):
            return self.value(_at(schema, self._long()), depth + 1)
        if isinstance(schema, str):
            read = _READ.get(schema)
            return read(self) if read is not None else self.value(self._named[schema], depth + 1)
        kind = schema["type"]
        if kind == "record":
            return {field["name"]: self.value(field["type"], depth + 1) for field in schema["fields"]}
        if kind == "enum":
            return _at(schema["symbols"], self._long())
        if kind == "fixed":
            return self._take(schema["size"])
        if kind == "array":
            return [self.value(schema["items"], depth + 1) for _ in self._blocks()]
        if kind == "map":
            return {self._string(): self.value(schema["values"], depth + 1) for _ in self._blocks()}
        return self.value(kind, depth + 1)

    def _blocks(self) -> Any:
        """Once for each element of an array or a map."""
        while count := self._long():
            if count < 0:  # the size of the block follows
                count = -count
                self._long()
            if count > self._left:
                raise ValueError(f"more than {MOST_VALUES:,} values")
            yield from range(count)

    def _take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self._bytes):
            raise ValueError("cut off")
        self.at += size
        return self._bytes[self.at - size : self.at]

    def _long(self) -> int:
        number = shift = 0
        while shift < 70:
            byte = self._take(1)[0]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (number >> 1) ^ -(number & 1)
            shift += 7
        raise ValueError("a number of more than 64 bits")

    def _string(self) -> str:
        return self._take(self._long()).decode("utf-8")

    def _boolean(self) -> bool:
        byte = self._take(1)[0]
        if byte > 1:
            raise ValueError("no boolean")
        return byte == 1


_READ: dict[str, Callable[[_Walk], Any]] = {
    "null": lambda walk: None,
    "boolean": _Walk._boolean,
    "int": _Walk._long,
    "long": _Walk._long,
    "float": lambda walk: struct.unpack("<f", walk._take(4))[0],
    "double": lambda walk: struct.unpack("<d", walk._take(8))[0],
    "bytes": lambda walk: walk._take(walk._long()),
    "string": _Walk._string,
}


def _at(options: list[Any], i: int) -> Any:
    if not 0 <= i < len(options):
        raise ValueError(f"no option {i} of {len(options)}")
    return options[i]
