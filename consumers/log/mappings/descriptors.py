"""Messages of Protocol Buffers by a schema of the user's own: a compiled descriptor set (`protoc --include_imports --descriptor_set_out`).

A message becomes an object by the names of its fields. A field without presence that is not there has its default (0, false, empty), as
the language says; one with presence (`optional`, a message, a member of a `oneof`, proto2, editions) is left out. Enums are names, maps
objects, `google.protobuf.Timestamp` is nanoseconds since 1970, and the wrappers of `google.protobuf` are what they wrap.

Rules:
* Malformed bytes raise `ValueError`. No length that the bytes state is believed: nothing reads beyond them, at most `MOST_VALUES` values of
  a message are read, and messages are nested at most `DEEPEST` levels. Groups and texts that are not UTF-8 are malformed, and so is a
  record without a single field of its type.
* A field that the schema does not know, or that is on the wire as another type than the schema says, is passed over.
* The later of two values counts, of a message both together, of a `oneof` the later member.
* It does not read extensions, defaults of proto2, or editions with implicit presence.
* Source: "Encoding" and "descriptor.proto", Protocol Buffers; wire format of Confluent's schema registry (message indexes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consumers.log.mappings.protobuf import BYTES, FIXED32, FIXED64, VARINT, fields, varints, wire_fields

DEEPEST = 32
MOST_VALUES = 1 << 18
MOST_INDEXES = DEEPEST
_REPEATED = 3
_MESSAGE, _ENUM, _STRING, _BYTES, _GROUP = 11, 14, 9, 12, 10
_TIMESTAMP = "google.protobuf.Timestamp"
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
_M32 = (1 << 32) - 1


def _signed(bits: int) -> Callable[[int], int]:
    top, whole = 1 << (bits - 1), (1 << bits) - 1
    return lambda n: ((n & whole) ^ top) - top


def _zigzag(bits: int) -> Callable[[int], int]:
    whole = (1 << bits) - 1
    return lambda n: ((n & whole) >> 1) ^ -(n & 1)


def _real(form: str, size: int) -> Callable[[int], float]:
    return lambda n: float(struct.unpack(form, n.to_bytes(size, "little"))[0])


_NUMBERS: dict[int, tuple[int, Callable[[int], Any]]] = {
    1: (FIXED64, _real("<d", 8)),
    2: (FIXED32, _real("<f", 4)),
    3: (VARINT, _signed(64)),
    4: (VARINT, lambda n: n),
    5: (VARINT, _signed(32)),
    6: (FIXED64, lambda n: n),
    7: (FIXED32, lambda n: n),
    8: (VARINT, bool),
    13: (VARINT, lambda n: n & _M32),
    14: (VARINT, _signed(32)),
    15: (FIXED32, _signed(32)),
    16: (FIXED64, _signed(64)),
    17: (VARINT, _zigzag(32)),
    18: (VARINT, _zigzag(64)),
}
"""Type of a field → its wire type, and what it makes of the unsigned number there."""


@dataclass(slots=True)
class _SchemaField:
    """kind: `type` of the descriptor; oneof: number of its oneof, -1 for none; implicit: it has its default where it is not there."""

    name: str
    kind: int
    repeated: bool
    type_name: str
    oneof: int
    implicit: bool


@dataclass(slots=True)
class _MessageType:
    """fields: by number; entry: of a map; nested: names of the message types within, in their order."""

    name: str
    fields: dict[int, _SchemaField] = field(default_factory=dict)
    entry: bool = False
    nested: list[str] = field(default_factory=list)


class MessageReader:
    """Reads messages of one descriptor set.

    descriptor_set  bytes of a FileDescriptorSet: the file of the schema last, as `protoc` writes it, its imports before it
    message         full name of the message type; empty: the first of the last file, or the one that message indexes name

    Raises
    ------
    ValueError
        For bytes that are no descriptor set, one that lacks an import, and a message that is not in it.
    """

    def __init__(self, descriptor_set: bytes, message: str = "") -> None:
        self._types: dict[str, _MessageType] = {}
        self._enums: dict[str, dict[int, str]] = {}
        self._first: list[str] = []
        for number, file in fields(descriptor_set):
            if number == 1 and isinstance(file, bytes):
                self._file(file)
        if not self._first:
            raise ValueError("no descriptor set with a message type")
        missing = {
            one.type_name
            for kind in self._types.values()
            for one in kind.fields.values()
            if (one.kind == _MESSAGE and one.type_name not in self._types)
            or (one.kind == _ENUM and one.type_name not in self._enums)
        }
        if missing:
            raise ValueError(f"it lacks {min(missing)}: compile with --include_imports")
        if message and message not in self._types:
            raise ValueError(f"it has no message {message}")
        self._message = message

    def record(self, value: bytes) -> dict[str, Any]:
        """The message that the bytes hold. Raises ValueError."""
        return self._read(self._message or self._first[0], value)

    def framed(self, value: bytes) -> dict[str, Any]:
        """As `record`, behind the message indexes of a schema registry. Raises ValueError."""
        indexes, value = _indexes(value)
        name, within = "", self._first
        for index in indexes:
            if not 0 <= index < len(within):
                raise ValueError(f"no message type {index}")
            name = within[index]
            within = self._types[name].nested
        return self._read(self._message or name, value)

    def _read(self, name: str, value: bytes) -> dict[str, Any]:
        known = self._types[name].fields
        if not any(number in known for number, _ in fields(value)):
            raise ValueError(f"no field of {name}")
        found = _MessageWalk(self._types, self._enums).message(self._types[name], value, 0)
        if not isinstance(found, dict):
            raise ValueError(f"{name} is no message with fields")
        return found

    # ----------------------------------------------------------------------------------------------- the descriptors

    def _file(self, file: bytes) -> None:
        package, syntax, messages, enums = "", "proto2", list[bytes](), list[bytes]()
        for number, value in fields(file):
            if not isinstance(value, bytes):
                continue
            if number == 2:
                package = value.decode()
            elif number == 4:
                messages.append(value)
            elif number == 5:
                enums.append(value)
            elif number == 12:
                syntax = value.decode()
        scope = f"{package}." if package else ""
        self._first = [self._message_type(scope, message, syntax == "proto3", 0) for message in messages] or self._first
        for enum in enums:
            self._enum(scope, enum)

    def _message_type(self, scope: str, descriptor: bytes, implicit: bool, depth: int) -> str:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        parts = list(fields(descriptor))
        made = _MessageType(scope + _text(parts, 1))
        self._types[made.name] = made
        for number, value in parts:
            if not isinstance(value, bytes):
                continue
            if number == 2:
                which, one = _field(value, implicit)
                made.fields[which] = one
            elif number == 3:
                made.nested.append(self._message_type(f"{made.name}.", value, implicit, depth + 1))
            elif number == 4:
                self._enum(f"{made.name}.", value)
            elif number == 7:
                made.entry = any(option == 7 and on for option, on in fields(value))
        return made.name

    def _enum(self, scope: str, descriptor: bytes) -> None:
        parts = list(fields(descriptor))
        names: dict[int, str] = {}
        for number, value in parts:
            if number == 2 and isinstance(value, bytes):
                inner = list(fields(value))
                names.setdefault(_signed(32)(_number(inner, 2)), _text(inner, 1))
        self._enums[scope + _text(parts, 1)] = names


def _field(descriptor: bytes, proto3: bool) -> tuple[int, _SchemaField]:
    parts = list(fields(descriptor))
    kind, repeated = _number(parts, 5), _number(parts, 4) == _REPEATED
    oneof = _number(parts, 9) if any(number == 9 for number, _ in parts) else -1
    if kind != _GROUP and kind not in (_MESSAGE, _STRING, _BYTES) and kind not in _NUMBERS:
        raise ValueError(f"a field of type {kind}")
    implicit = repeated or (proto3 and oneof < 0 and kind != _MESSAGE)
    return _number(parts, 3), _SchemaField(
        _text(parts, 1), kind, repeated, _text(parts, 6).removeprefix("."), oneof, implicit
    )


def _text(parts: list[tuple[int, int | bytes]], which: int) -> str:
    return next((value.decode() for number, value in parts if number == which and isinstance(value, bytes)), "")


def _number(parts: list[tuple[int, int | bytes]], which: int) -> int:
    return next((value for number, value in parts if number == which and isinstance(value, int)), 0)


def _indexes(value: bytes) -> tuple[list[int], bytes]:
    """The message indexes that stand before a message, and the message."""
    numbers = list[int]()
    at, wanted = 0, 1
    while len(numbers) < wanted:
        end = next((i + 1 for i in range(at, min(at + 10, len(value))) if value[i] < 0x80), 0)
        if not end:
            raise ValueError("no message indexes")
        numbers.append(_zigzag(64)(next(varints(value[at:end]))))
        at = end
        if len(numbers) == 1:
            wanted += numbers[0]
            if not 0 <= numbers[0] <= MOST_INDEXES:
                raise ValueError(f"{numbers[0]} message indexes")
    return numbers[1:] or [0], value[at:]


class _MessageWalk:
    """One walk over the bytes of a message."""

    def __init__(self, types: dict[str, _MessageType], enums: dict[str, dict[int, str]]) -> None:
        self._types, self._enums, self._left = types, enums, MOST_VALUES

    def message(self, kind: _MessageType, value: bytes, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError("nested too deeply")
        found, members = self._collected(kind, value), dict[int, int]()
        for number in found:  # in the order in which each was last written
            members[kind.fields[number].oneof] = number
        made: dict[str, Any] = {}
        for number, one in kind.fields.items():
            held = found.get(number)
            if held is None or (one.oneof >= 0 and members[one.oneof] != number):
                if one.implicit:
                    made[one.name] = self._default(one)
                continue
            made[one.name] = self._value(one, held, depth)
        if kind.name == _TIMESTAMP:
            return made.get("seconds", 0) * 1_000_000_000 + made.get("nanos", 0)
        return made["value"] if kind.name in _WRAPPERS else made

    def _collected(self, kind: _MessageType, value: bytes) -> dict[int, list[Any]]:
        """Number of each field that is there → its values; of a field that comes again, at its later place."""
        found: dict[int, list[Any]] = {}
        for number, wire, raw in wire_fields(value):
            one = kind.fields.get(number)
            values = None if one is None else _raw_values(one, wire, raw)
            if values is None:
                continue
            self._left -= max(1, len(values))
            if self._left < 0:
                raise ValueError(f"more than {MOST_VALUES:,} values")
            found[number] = _moved(found, number, values)
        return found

    def _value(self, one: _SchemaField, held: list[Any], depth: int) -> Any:
        if one.kind == _MESSAGE:
            kind = self._types[one.type_name]
            if one.repeated:
                read = [self.message(kind, each, depth + 1) for each in held]
                return {_key(pair): pair.get("value") for pair in read} if kind.entry else read
            return self.message(kind, b"".join(held), depth + 1)
        if one.kind == _STRING:
            held = [each.decode("utf-8") for each in held]
        elif one.kind == _ENUM:
            names = self._enums[one.type_name]
            held = [names.get(each, each) for each in held]
        return held if one.repeated else held[-1]

    def _default(self, one: _SchemaField) -> Any:
        if one.repeated:
            return {} if one.kind == _MESSAGE and self._types[one.type_name].entry else []
        if one.kind == _ENUM:
            return self._enums[one.type_name].get(0, 0)
        return {_STRING: "", _BYTES: b"", 8: False, 1: 0.0, 2: 0.0}.get(one.kind, 0)


def _moved(found: dict[int, list[Any]], number: int, values: list[Any]) -> list[Any]:
    """The values of a field with more of them, which then stands last; the list itself grows, so that many cost no more than they are."""
    held = found.pop(number, None)
    if held is None:
        return values
    held.extend(values)
    return held


def _raw_values(one: _SchemaField, wire: int, raw: int | bytes) -> list[Any] | None:
    """What a field holds on the wire; None: it is not of this type."""
    expected, read = _NUMBERS.get(one.kind, (BYTES, None))
    if one.kind == _GROUP:
        return None
    if read is None:
        return [raw] if wire == BYTES else None
    if wire == expected and isinstance(raw, int):
        return [read(raw)]
    if wire == BYTES and one.repeated and isinstance(raw, bytes):
        return [read(number) for number in _packed(raw, expected)]
    return None


def _packed(raw: bytes, wire: int) -> list[int]:
    if wire == VARINT:
        return list(varints(raw))
    size = 8 if wire == FIXED64 else 4
    if len(raw) % size:
        raise ValueError("cut off")
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def _key(pair: dict[str, Any]) -> str:
    """The key of an entry of a map, as JSON writes it."""
    key = pair.get("key", "")
    return str(key).lower() if isinstance(key, bool) else str(key)
