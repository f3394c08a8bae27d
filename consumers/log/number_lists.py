"""JSON lists of numbers, parsed for a whole poll at once by one compiled kernel.

Rules: the kernel walks over the bytes of the poll and writes doubles into the rows of a matrix. It never guesses: a list that it cannot
read exactly as a strict JSON parser would is reported as not read, and the caller reads it in the slow way, which also knows the
reason codes.

Exactness. A number is a decimal significand w and a power of ten q. Up to 2**53 for w and 10**22 for the power, one
multiplication or division of two exact doubles rounds correctly (Clinger 1990). Otherwise the product of w with a 128-bit
approximation of 5**q gives the correctly rounded double, or tells that it cannot (Lemire, "Number parsing at a gigabyte per
second", 2021). Not read are: more than 19 significant digits, subnormal and infinite results, minus zero, and whatever is no number.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numpy.typing import NDArray

from consumers.log.json_scan import is_digit, past_spaces
from consumers.log.words import add_digits, byte_at

_LEAST, _MOST = -300, 300
"""Powers of ten in the table. Beyond them a result may be subnormal or infinite."""
_EXACT_POWERS = 10.0 ** np.arange(23)
_MANTISSA_BITS = 52
_LOW_32 = np.uint64(0xFFFFFFFF)


def _powers_of_five() -> NDArray[np.uint64]:
    """(n, 2) the 128 most significant bits of 5**q, rounded down for q ≥ 0 and up for q < 0; high word first."""
    table = np.empty((_MOST - _LEAST + 1, 2), np.uint64)
    for i, q in enumerate(range(_LEAST, _MOST + 1)):
        if q >= 0:
            power = 5**q
            excess = power.bit_length() - 128
            bits = power >> excess if excess > 0 else power << -excess
        else:
            divisor = 5**-q
            bits = (1 << (divisor.bit_length() + 127)) // divisor + 1
            bits >>= max(0, bits.bit_length() - 128)
        table[i] = bits >> 64, bits & (2**64 - 1)
    return table


_FIVES = _powers_of_five()


@nb.njit(inline="always")
def _product(a, b):  # type: ignore[no-untyped-def]
    """High and low word of the product of two 64-bit words."""
    s32 = np.uint64(32)
    a_low, a_high = a & _LOW_32, a >> s32
    b_low, b_high = b & _LOW_32, b >> s32
    low = a_low * b_low
    middle = a_high * b_low + (low >> s32)
    middle_low = (middle & _LOW_32) + a_low * b_high
    high = a_high * b_high + (middle >> s32) + (middle_low >> s32)
    return high, (middle_low << s32) | (low & _LOW_32)


@nb.njit(inline="always")
def _leading_zeros(word):  # type: ignore[no-untyped-def]
    zeros = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word >> np.uint64(64 - step) == np.uint64(0):
            word <<= np.uint64(step)
            zeros += step
    return zeros


@nb.njit(cache=True, nogil=True)
def _double_bits(w, q, fives):  # type: ignore[no-untyped-def]
    """(bits, whether they are certain) of the double next to w × 10**q, for w > 0."""
    zeros = _leading_zeros(w)
    shifted = w << np.uint64(zeros)
    high, low = _product(shifted, fives[q - _LEAST, 0])
    if high & np.uint64(0x1FF) == np.uint64(0x1FF):
        more, _ = _product(shifted, fives[q - _LEAST, 1])
        low += more
        if more > low:
            high += np.uint64(1)
    if low == np.uint64(0xFFFFFFFFFFFFFFFF) and not -27 <= q <= 55:
        return np.uint64(0), False
    upper = high >> np.uint64(63)
    shift = upper + np.uint64(64 - _MANTISSA_BITS - 3)
    mantissa = high >> shift
    exponent = ((217706 * q) >> 16) + 63 + np.int64(upper) - zeros + 1023
    if not 0 < exponent < 2046:
        return np.uint64(0), False
    if (
        low <= np.uint64(1)
        and -4 <= q <= 23
        and mantissa & np.uint64(3) == np.uint64(1)
        and (mantissa << shift) == high
    ):
        mantissa &= ~np.uint64(1)  # exactly half way: to the even neighbour
    mantissa = (mantissa + (mantissa & np.uint64(1))) >> np.uint64(1)
    if mantissa >= np.uint64(2) << np.uint64(_MANTISSA_BITS):
        mantissa = np.uint64(1) << np.uint64(_MANTISSA_BITS)
        exponent += 1
    mantissa &= ~(np.uint64(1) << np.uint64(_MANTISSA_BITS))
    return mantissa | (np.uint64(exponent) << np.uint64(_MANTISSA_BITS)), True


@nb.njit(cache=True, nogil=True)
def _most_significant(text, at, end):  # type: ignore[no-untyped-def]
    """How many digits of a number count: those from the first that is not 0. text[at:end] holds digits and at most one point."""
    while at < end and (byte_at(text, at) == 48 or byte_at(text, at) == 46):
        at += 1
    count = end - at
    for i in range(at, end):
        if byte_at(text, i) == 46:
            count -= 1
    return count


@nb.njit(inline="always")
def _significand(text, at, end):  # type: ignore[no-untyped-def]
    """(significand, power of ten, next place) of the digits that begin at `at`; next place -1 for what is no number or too long."""
    begin, w, q = at, np.uint64(0), 0
    if at >= end or not is_digit(byte_at(text, at)):
        return w, q, np.int64(-1)
    w, at = np.uint64(byte_at(text, at)) - np.uint64(48), at + 1
    if at < end and is_digit(byte_at(text, at)):
        if w == np.uint64(0):
            return w, q, np.int64(-1)  # JSON knows no leading zero
        w, at = add_digits(text, at, end, w)
    if at < end and byte_at(text, at) == 46:
        point = at + 1
        w, at = add_digits(text, point, end, w)
        if at == point:
            return w, q, np.int64(-1)
        q = point - at
    if at - begin > 19 and _most_significant(text, begin, at) > 19:
        return w, q, np.int64(-1)  # more than 64 bits hold
    return w, q, at


@nb.njit(cache=True, nogil=True)
def _exponent(text, at, end):  # type: ignore[no-untyped-def]
    """(exponent, next place) of what follows an ``e``; next place -1 for what is no exponent or too long."""
    negative = at < end and byte_at(text, at) == 45
    if at < end and (byte_at(text, at) == 45 or byte_at(text, at) == 43):
        at += 1
    if at >= end or not is_digit(byte_at(text, at)):
        return 0, -1
    value, first = np.int64(0), at
    while at < end and is_digit(byte_at(text, at)):
        value = value * 10 + np.int64(byte_at(text, at) - 48)
        at += 1
        if at - first > 4:
            return 0, -1
    return -value if negative else value, at


@nb.njit(cache=True, nogil=True)
def _parse_row(text, at, end, powers, fives, row, row_bits):  # type: ignore[no-untyped-def]
    """Whether text[at:end] is a list of as many numbers as the row has places, each of them certain."""
    at = past_spaces(text, at, end)
    if at >= end or byte_at(text, at) != 91:
        return False
    at += 1
    for j in range(row.shape[0]):
        at = past_spaces(text, at, end)
        negative = at < end and byte_at(text, at) == 45
        at += np.int64(negative)
        w, q, at = _significand(text, at, end)
        if at < 0:
            return False
        if at < end and (byte_at(text, at) | 32) == 101:
            more, at = _exponent(text, at + 1, end)
            if at < 0:
                return False
            q += more
        if w == np.uint64(0):
            if negative:
                return False
            row[j] = 0.0
        elif w <= np.uint64(1 << 53) and -22 <= q <= 22:
            value = np.float64(w)
            value = value / powers[-q] if q < 0 else value * powers[q]
            row[j] = -value if negative else value
        else:
            if not _LEAST <= q <= _MOST - 20:
                return False
            bits, certain = _double_bits(w, q, fives)
            if not certain:
                return False
            row_bits[j] = bits | (np.uint64(1) << np.uint64(63)) if negative else bits
        at = past_spaces(text, at, end)
        if at >= end or byte_at(text, at) != (93 if j == row.shape[0] - 1 else 44):
            return False
        at += 1
    return past_spaces(text, at, end) == end


@nb.njit(cache=True, nogil=True)
def _parse(text, starts, ends, powers, fives, out, bits, read):  # type: ignore[no-untyped-def]
    address = text.ctypes.data
    for i in range(starts.shape[0]):
        read[i] = _parse_row(address, starts[i], ends[i], powers, fives, out[i], bits[i])


def parse_number_lists(
    text: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], width: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Parse n JSON lists of d numbers each.

    Parameters
    ----------
    text
        (b,) bytes that hold the lists.
    starts, ends
        (n,) where each list begins and ends.
    width
        d, at least 1.

    Returns
    -------
    numbers
        (n, d) doubles; a row whose list was not read has no meaning. What was read is the double that a correct strict JSON
        parser gives, bit for bit.
    read
        (n,) whether each list was read.

    Examples
    --------
    >>> text = np.frombuffer(b"[1, -2.5e-3][1, null]", np.uint8)
    >>> numbers, read = parse_number_lists(text, np.array([0, 12]), np.array([12, 21]), 2)
    >>> read.tolist(), numbers[0].tolist()
    ([True, False], [1.0, -0.0025])
    """
    out = np.empty((len(starts), width))
    read = np.zeros(len(starts), np.bool_)
    _parse(text, starts, ends, _EXACT_POWERS, _FIVES, out, out.view(np.uint64), read)
    return out, read


@nb.njit(cache=True, nogil=True)
def _within(numbers, low, high, out):  # type: ignore[no-untyped-def]
    for i in range(numbers.shape[0]):
        good = True
        for j in range(numbers.shape[1]):
            good &= low <= numbers[i, j] <= high
        out[i] = good


def rows_within(numbers: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    """(n,) whether all numbers of a row, (n, d), lie in [low, high]; a NaN does not.

    >>> rows_within(np.array([[0.0, 1.0], [0.5, 2.0]]), 0.0, 1.0).tolist()
    [True, False]
    """
    out = np.empty(len(numbers), np.bool_)
    _within(numbers, float(low), float(high), out)
    return out
