"""Protocol Buffers on the wire: fields by number, without a schema compiler.

Rules:
* Malformed bytes raise `ValueError`. Nothing reads beyond its bytes, and at most `MOST_FIELDS` fields of a message are read.
* Source: "Encoding", Protocol Buffers documentation (wire types 0, 1, 2 and 5; groups are refused).
"""

from __future__ import annotations

from collections.abc import Iterator

MOST_FIELDS = 1 << 18
MOST_NUMBER = (1 << 29) - 1
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field, in order: varints and fixed numbers as unsigned integers, the rest as bytes.

    Raises
    ------
    ValueError
        When the bytes are no message.
    """
    return ((number, value) for number, _, value in wire_fields(message))


def wire_fields(message: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """As `fields`, with the wire type of each between the two. Raises ValueError."""
    at = 0
    for _ in range(MOST_FIELDS):
        if at >= len(message):
            return
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= MOST_NUMBER:
            raise ValueError(f"field {number}")
        value: int | bytes
        if wire == VARINT:
            value, at = _varint(message, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
            value, at = int.from_bytes(message[at : at + size], "little"), at + size
        elif wire == BYTES:
            size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(message):
            raise ValueError("cut off")
        yield number, wire, value
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
