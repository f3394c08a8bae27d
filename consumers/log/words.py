"""Bytes of a text, one and eight at a time, for compiled scanners.

A compiled function that is given an array counts a reference to it, at each call, even where it is inlined; and an index may count
from the end, which costs a choice for each byte. So scanners pass on the address of a text, a plain number, and the functions here read
the memory itself: one byte, or eight as a little-endian word, whose digits are counted and valued together (Lemire, "Quickly parsing
eight digits", 2018).

Rules:

* Nothing is checked: `byte_at` needs 0 ≤ at < b, `word_at` needs 0 ≤ at ≤ b − 8, for b bytes. The caller compares first.
* Who takes the address (`text.ctypes.data`) holds the array for as long as the address is used: a kernel does, for its arguments.
* Inside compiled code only, and inlined into it: after a change here remove the caches of the modules that use it
  (``consumers/log/__pycache__/*.nb*``).
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD_BYTES = 8
_ZEROS = np.uint64(0x3030303030303030)
_ABOVE_NINE = np.uint64(0x7676767676767676)
_HIGH_BITS = np.uint64(0x8080808080808080)
_TEN_POWERS = 10 ** np.arange(WORD_BYTES + 1, dtype=np.uint64)


def _reader(kind: types.Type) -> Any:
    """Code that reads a number at an index of a text, at any alignment."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = context.get_value_type(kind).as_pointer()
        return builder.load(builder.inttoptr(builder.add(*arguments), pointer), align=1)

    return codegen


@intrinsic
def _byte_at(typing_context: Any, address: Any, at: Any) -> Any:
    return types.uint8(types.int64, types.int64), _reader(types.uint8)


@intrinsic
def _word_at(typing_context: Any, address: Any, at: Any) -> Any:
    return types.uint64(types.int64, types.int64), _reader(types.uint64)


@intrinsic
def _zeros_below(typing_context: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], cgutils.false_bit)

    return types.uint64(types.uint64), codegen


byte_at: Any = _byte_at
"""(address of a text, index) → the byte there."""
word_at: Any = _word_at
"""(address of a text, index) → the eight bytes from there on, the first in the lowest bits."""
_trailing_zeros: Any = _zeros_below
"""word → how many of its lowest bits are 0; 64 where all are."""


@nb.njit(inline="always")
def leading_digits(word):  # type: ignore[no-untyped-def]
    """How many of the eight bytes are ASCII digits before the first that is none."""
    values = word ^ _ZEROS
    others = ((values + _ABOVE_NINE) | values) & _HIGH_BITS  # an exact bit up to and at the first that is no digit
    return np.int64(_trailing_zeros(others) >> np.uint64(3))


@nb.njit(inline="always")
def value_of_digits(word, n):  # type: ignore[no-untyped-def]
    """The number that the first n bytes write, which are digits; 1 ≤ n ≤ 8."""
    values = (word ^ _ZEROS) << np.uint64(8 * (8 - n))
    values = values * np.uint64(10) + (values >> np.uint64(8))
    low = (values & np.uint64(0x000000FF000000FF)) * np.uint64(0x000F424000000064)
    high = ((values >> np.uint64(16)) & np.uint64(0x000000FF000000FF)) * np.uint64(0x0000271000000001)
    return (low + high) >> np.uint64(32)


@nb.njit(inline="always")
def add_digits(text, at, end, w):  # type: ignore[no-untyped-def]
    """Append the digits in text[at:end] to the decimal number w; (the number modulo 2**64, the place of the first other byte)."""
    while at + 8 <= end:
        word = word_at(text, at)
        n = leading_digits(word)
        if n == 0:
            return w, at
        w = w * _TEN_POWERS[n] + value_of_digits(word, n)
        at += n
        if n < 8:
            return w, at
    while at < end:
        digit = np.uint64(byte_at(text, at)) - np.uint64(48)
        if digit > np.uint64(9):
            break
        w = w * np.uint64(10) + digit
        at += 1
    return w, at
