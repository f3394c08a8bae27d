"""Protocol Buffers on the wire, as far as exports of OpenTelemetry need them: fields by number, without a schema compiler.

Rules:
* Malformed bytes raise `ValueError`. Nothing reads beyond its bytes, and at most `MOST_FIELDS` fields of a message are read.
* Source: "Encoding", Protocol Buffers documentation (wire types 0, 1, 2 and 5; groups are refused).
"""

from __future__ import annotations

from collections.abc import Iterator

MOST_FIELDS = 1 << 18
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field, in order: varints and fixed numbers as unsigned integers, the rest as bytes.

    Raises
    ------
    ValueError
        When the bytes are no message.
    """
    at = 0
    for _ in range(MOST_FIELDS):
        if at >= len(message):
            return
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if not number:
            raise ValueError("field 0")
        value: int | bytes
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
            value, at = int.from_bytes(message[at : at + size], "little"), at + size
        elif wire == _BYTES:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(message):
            raise ValueError("cut off")
        yield number, value
    raise ValueError("too many fields")


def varints(packed: bytes) -> Iterator[int]:
    """The numbers of a packed field, unsigned. Raises ValueError where the bytes do not end with one."""
    at = 0
    while at < len(packed):
        number, at = _varint(packed, at)
        yield number


def _varint(message: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("cut off")
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError("a number of more than 64 bits")
