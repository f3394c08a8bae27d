"""A compiled scanner of native events: where in the bytes of a poll each known field of each record stands.

The records of a poll lie in one buffer. One pass finds the fields of every record that is plain: one JSON object
in ASCII without escapes, with known keys, none of them twice. Whatever is in doubt is not plain, and is read in full by
`formats.py`, which also knows the reason codes. So a record that is plain here is one that a strict JSON parser takes, up to
the numbers in its lists: those are checked by `number_lists.py`, which parses them.

Rules:

* Kernels own no memory and raise nothing: arrays in, arrays out.
* No kernel decides what a field means. Names, labels and models are told apart as bytes (`tell_apart`), and each different
  text is looked at once, in Python.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
from numpy.typing import NDArray

from consumers.log.words import WORD_BYTES, byte_at, word_at

FIELDS: Final = (
    "client_id", "model_id", "timestamp", "prediction", "event_id", "model_version", "features", "embedding", "text",
    "messages", "status", "sampled_fraction", "metadata",
)  # fmt: skip
"""Keys of an event."""
ANSWERS: Final = ("label", "probabilities", "logits", "value", "text")
"""Keys of its prediction that are looked at; others are passed over."""
PLACES: Final = {name: i for i, name in enumerate(FIELDS)} | {
    f"prediction.{name}": len(FIELDS) + i for i, name in enumerate(ANSWERS)
}
"""Field → its column in the spans."""

_LONGEST = 16
_PREDICTION: Final = FIELDS.index("prediction")
_EVENT_KEYS: Final = len(FIELDS)
_ALL_KEYS: Final = len(PLACES)
_KEYS = np.zeros((len(PLACES), _LONGEST), np.uint8)
_KEY_LENGTHS = np.zeros(len(PLACES), np.int64)
_LISTS = np.zeros(len(PLACES), np.bool_)
for _i, _name in enumerate((*FIELDS, *ANSWERS)):
    _KEYS[_i, : len(_name)] = np.frombuffer(_name.encode(), np.uint8)
    _KEY_LENGTHS[_i] = len(_name)
    _LISTS[_i] = _name in ("features", "embedding", "probabilities")

_SPACE: Final = 1
_IN_STRING: Final = 2
_IN_NUMBERS: Final = 4
_KINDS = np.zeros(256, np.uint8)
"""What a byte may be: white space; a character of a plain string; part of a list of numbers."""
_KINDS[list(b" \t\r\n")] |= _SPACE
_KINDS[[byte for byte in range(32, 127) if byte not in b'"\\']] |= _IN_STRING
_KINDS[list(b"0123456789+,-.eE \t\r\n")] |= _IN_NUMBERS

_MOST_DEEP: Final = 60
_EXACT_SECONDS: Final = 2**53 // 1_000_000
"""Up to the year 2255 a double holds microseconds exactly; later times are read in full."""

_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
QUOTE: Final = 34
_COMMA, _COLON, _OPEN_LIST, _CLOSE_LIST, _OPEN, _CLOSE = 44, 58, 91, 93, 123, 125


@nb.njit(inline="always")
def past_spaces(text, at, end):  # type: ignore[no-untyped-def]
    """The next place that holds no white space."""
    while at < end and byte_at(text, at) <= 32 and _KINDS[byte_at(text, at)] & _SPACE:
        at += 1
    return at


@nb.njit(inline="always")
def is_digit(byte):  # type: ignore[no-untyped-def]
    """Whether a byte is an ASCII digit."""
    return 48 <= byte <= 57


@nb.njit(cache=True, nogil=True)
def _past_string(text, at, end):  # type: ignore[no-untyped-def]
    """Past the closing quote of a string whose first character is at `at`; -1 for one that is not plain ASCII."""
    while at < end:
        byte = byte_at(text, at)
        if not _KINDS[byte] & _IN_STRING:
            return at + 1 if byte == QUOTE else -1
        at += 1
    return -1


@nb.njit(cache=True, nogil=True)
def _past_number(text, at, end):  # type: ignore[no-untyped-def]
    if at < end and byte_at(text, at) == 45:
        at += 1
    if at >= end or not is_digit(byte_at(text, at)):
        return -1
    if byte_at(text, at) == 48 and at + 1 < end and is_digit(byte_at(text, at + 1)):
        return -1
    while at < end and is_digit(byte_at(text, at)):
        at += 1
    if at < end and byte_at(text, at) == 46:
        at += 1
        if at >= end or not is_digit(byte_at(text, at)):
            return -1
        while at < end and is_digit(byte_at(text, at)):
            at += 1
    if at < end and (byte_at(text, at) | 32) == 101:
        at += 1
        if at < end and (byte_at(text, at) == 43 or byte_at(text, at) == 45):
            at += 1
        if at >= end or not is_digit(byte_at(text, at)):
            return -1
        while at < end and is_digit(byte_at(text, at)):
            at += 1
    return at


@nb.njit(cache=True, nogil=True)
def _past_word(text, at, end):  # type: ignore[no-untyped-def]
    """Past `true`, `false` or `null`; -1 for anything else."""
    if at + 4 <= end:
        a, b, c, d = byte_at(text, at), byte_at(text, at + 1), byte_at(text, at + 2), byte_at(text, at + 3)
        if (a == 116 and b == 114 and c == 117 and d == 101) or (a == 110 and b == 117 and c == 108 and d == 108):
            return at + 4
        if at + 5 <= end and a == 102 and b == 97 and c == 108 and d == 115 and byte_at(text, at + 4) == 101:
            return at + 5
    return -1


@nb.njit(cache=True, nogil=True)
def _past_key(text, at, end):  # type: ignore[no-untyped-def]
    """Past the key that begins at `at`, and its colon."""
    at = past_spaces(text, at, end)
    if at >= end or byte_at(text, at) != QUOTE:
        return -1
    at = _past_string(text, at + 1, end)
    if at < 0:
        return -1
    at = past_spaces(text, at, end)
    return at + 1 if at < end and byte_at(text, at) == _COLON else -1


@nb.njit(cache=True, nogil=True)
def _past_scalar(text, at, end):  # type: ignore[no-untyped-def]
    byte = byte_at(text, at)
    if byte == QUOTE:
        return _past_string(text, at + 1, end)
    return _past_number(text, at, end) if byte == 45 or is_digit(byte) else _past_word(text, at, end)


@nb.njit(cache=True, nogil=True)
def _past_closed(text, at, end, objects, depth):  # type: ignore[no-untyped-def]
    """After a value: close what closes here. (place of the next value, or past the end at depth 0; objects; depth)."""
    while depth:
        at = past_spaces(text, at, end)
        if at >= end:
            return -1, objects, depth
        inside_object = objects & np.uint64(1)
        if byte_at(text, at) == _COMMA:
            return (_past_key(text, at + 1, end) if inside_object else at + 1), objects, depth
        if byte_at(text, at) != (_CLOSE if inside_object else _CLOSE_LIST):
            return -1, objects, depth
        at += 1
        objects >>= np.uint64(1)
        depth -= 1
    return at, objects, depth


@nb.njit(cache=True, nogil=True)
def _past_value(text, at, end):  # type: ignore[no-untyped-def]
    """Past the JSON value that begins at `at`; -1 for what is not plain. `objects`: a bit for each open level, 1 for an object."""
    objects, depth = np.uint64(0), 0
    while True:
        at = past_spaces(text, at, end)
        if at >= end:
            return -1
        byte = byte_at(text, at)
        if byte in (_OPEN, _OPEN_LIST):
            if depth == _MOST_DEEP:
                return -1
            inner = past_spaces(text, at + 1, end)
            if inner < end and byte_at(text, inner) == (_CLOSE if byte == _OPEN else _CLOSE_LIST):
                at = inner + 1
            else:
                depth += 1
                objects = (objects << np.uint64(1)) | np.uint64(1 if byte == _OPEN else 0)
                at = _past_key(text, inner, end) if byte == _OPEN else inner
                if at < 0:
                    return -1
                continue
        else:
            at = _past_scalar(text, at, end)
        if at < 0:
            return -1
        at, objects, depth = _past_closed(text, at, end, objects, depth)
        if at < 0 or depth == 0:
            return at


@nb.njit(cache=True, nogil=True)
def _past_numbers(text, at, end):  # type: ignore[no-untyped-def]
    """Past a list that holds only what numbers are made of; -1 for any other value. Whether they are numbers is seen later."""
    if byte_at(text, at) != _OPEN_LIST:
        return -1
    at += 1
    while at < end:
        byte = byte_at(text, at)
        if not _KINDS[byte] & _IN_NUMBERS:
            return at + 1 if byte == _CLOSE_LIST else -1
        at += 1
    return -1


@nb.njit(cache=True, nogil=True)
def _key_at(text, begin, end, first, last):  # type: ignore[no-untyped-def]
    """Which of the keys from `first` up to `last` stands at text[begin:end]; -1 for none."""
    n = end - begin
    for k in range(first, last):
        if _KEY_LENGTHS[k] == n:
            same = True
            for j in range(n):
                if byte_at(text, begin + j) != _KEYS[k, j]:
                    same = False
                    break
            if same:
                return k
    return -1


@nb.njit(cache=True, nogil=True)
def _scan_object(text, at, end, first, last, strict, span):  # type: ignore[no-untyped-def]
    """Note the fields of the object at `at`; return the place past it, -1 where it is not plain. strict: other keys are not plain."""
    if at >= end or byte_at(text, at) != _OPEN:
        return -1
    at = past_spaces(text, at + 1, end)
    if at < end and byte_at(text, at) == _CLOSE:
        return at + 1
    while True:
        at = past_spaces(text, at, end)
        if at >= end or byte_at(text, at) != QUOTE:
            return -1
        closed = _past_string(text, at + 1, end)
        if closed < 0:
            return -1
        k = _key_at(text, at + 1, closed - 1, first, last)
        at = past_spaces(text, closed, end)
        if at >= end or byte_at(text, at) != _COLON:
            return -1
        at = past_spaces(text, at + 1, end)
        if at >= end or (k < 0 and strict) or (k >= 0 and span[k, 1]):
            return -1
        begin = at
        at = _past_numbers(text, begin, end) if k >= 0 and _LISTS[k] else -1
        if at < 0:
            at = _past_value(text, begin, end)
        if at < 0:
            return -1
        if k >= 0:
            span[k, 0], span[k, 1] = begin, at
        at = past_spaces(text, at, end)
        if at >= end:
            return -1
        if byte_at(text, at) == _CLOSE:
            return at + 1
        if byte_at(text, at) != _COMMA:
            return -1
        at += 1


@nb.njit(cache=True, nogil=True)
def _scan(text, starts, ends, spans, plain):  # type: ignore[no-untyped-def]
    address = text.ctypes.data
    for i in range(ends.shape[0]):
        begin, end = starts[i], ends[i]
        span = spans[i]
        at = _scan_object(address, past_spaces(address, begin, end), end, 0, _EVENT_KEYS, True, span)
        good = at >= 0 and past_spaces(address, at, end) == end
        if good and span[_PREDICTION, 1]:
            answer = _scan_object(
                address, span[_PREDICTION, 0], span[_PREDICTION, 1], _EVENT_KEYS, _ALL_KEYS, False, span
            )
            good = answer == span[_PREDICTION, 1]
        plain[i] = good


@nb.njit(inline="always")
def _same_bytes(text, a, b, n):  # type: ignore[no-untyped-def]
    """Whether the n bytes from a and from b on are equal."""
    at = 0
    while at + WORD_BYTES <= n:
        if word_at(text, a + at) != word_at(text, b + at):
            return False
        at += WORD_BYTES
    while at < n:
        if byte_at(text, a + at) != byte_at(text, b + at):
            return False
        at += 1
    return True


@nb.njit(inline="always")
def _hashed(text, begin, end, seed):  # type: ignore[no-untyped-def]
    """64 bits of a text, eight bytes at a time; its length counts too, for the last bytes are filled up with zeros."""
    h = (seed ^ np.uint64(end - begin)) * _MULTIPLIER
    h ^= h >> np.uint64(32)
    at = begin
    while at < end:
        word = np.uint64(0)
        if at + WORD_BYTES <= end:
            word = word_at(text, at)
        else:
            for j in range(end - at):
                word |= np.uint64(byte_at(text, at + j)) << np.uint64(8 * j)
        h = (h ^ word) * _MULTIPLIER
        h ^= h >> np.uint64(32)
        at += WORD_BYTES
    return h * _MULTIPLIER  # its upper bits depend on every byte of the last word


@nb.njit(cache=True, nogil=True)
def tell_apart(text, starts, ends, seed, slots, index, first):  # type: ignore[no-untyped-def]
    """Number different texts in the order in which they first appear; return how many there are.

    text (b,) uint8; starts, ends (n,) int64: n texts in it; seed uint64: nobody outside knows it, so that nobody can choose texts that
    meet in one place of the table; slots (2**k,) int64, all -1, 2**k > n: a hash table;
    index (n,) int64, out: the number of each text; first (n,) int64, out: number → where it first appeared.
    """
    address = text.ctypes.data
    mask = np.uint64(slots.shape[0] - 1)
    count = 0
    for i in range(starts.shape[0]):
        n = ends[i] - starts[i]
        if i > 0 and ends[i - 1] - starts[i - 1] == n and _same_bytes(address, starts[i - 1], starts[i], n):
            index[i] = index[i - 1]  # a field that hardly changes costs one comparison
            continue
        h = _hashed(address, starts[i], ends[i], seed)
        slot = (h >> np.uint64(32)) & mask
        while True:
            known = slots[slot]
            if known < 0:
                slots[slot] = count
                first[count] = i
                index[i] = count
                count += 1
                break
            other = first[known]
            if ends[other] - starts[other] == n and _same_bytes(address, starts[other], starts[i], n):
                index[i] = known
                break
            slot = (slot + np.uint64(1)) & mask
    return count


@nb.njit(inline="always")
def _two_digits(text, at):  # type: ignore[no-untyped-def]
    """The number of two digits; some negative number for anything else."""
    return (
        (np.int64(byte_at(text, at)) - 48) * 10 + np.int64(byte_at(text, at + 1)) - 48
        if is_digit(byte_at(text, at)) and is_digit(byte_at(text, at + 1))
        else np.int64(-10_000)
    )


@nb.njit(cache=True, nogil=True)
def _days(year, month, day):  # type: ignore[no-untyped-def]
    """Days since 1970 of a date of the Gregorian calendar (Hinnant, "chrono-compatible low-level date algorithms"); -1 for none."""
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    longest = 31
    if month == 4 or month == 6 or month == 9 or month == 11:
        longest = 30
    elif month == 2:
        longest = 29 if leap else 28
    if not (1 <= month <= 12 and 1 <= day <= longest and year >= 1970):
        return -1
    y = year - 1 if month <= 2 else year
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


@nb.njit(cache=True, nogil=True)
def _time_ms(text, at, end):  # type: ignore[no-untyped-def]
    """Milliseconds since 1970 of an RFC 3339 time in quotes, rounded to microseconds first; -1 for any other text."""
    if end - at < 22 or byte_at(text, at) != QUOTE or byte_at(text, end - 1) != QUOTE:
        return np.int64(-1)
    at, end = at + 1, end - 1
    year = _two_digits(text, at) * 100 + _two_digits(text, at + 2)
    days = _days(year, _two_digits(text, at + 5), _two_digits(text, at + 8))
    hour, minute, second = _two_digits(text, at + 11), _two_digits(text, at + 14), _two_digits(text, at + 17)
    if (
        days < 0 or not (0 <= hour <= 23 and 0 <= minute <= 59 and 0 <= second <= 59)
        or byte_at(text, at + 4) != 45 or byte_at(text, at + 7) != 45 or byte_at(text, at + 10) != 84
        or byte_at(text, at + 13) != 58 or byte_at(text, at + 16) != 58
    ):  # fmt: skip
        return np.int64(-1)
    at += 19
    micro = np.int64(0)
    if byte_at(text, at) == 46:
        digits = 0
        at += 1
        while at < end and is_digit(byte_at(text, at)):
            if digits < 6:
                micro = micro * 10 + np.int64(byte_at(text, at) - 48)
            elif digits == 6 and byte_at(text, at) >= 53:
                micro += 1
            digits += 1
            at += 1
        if digits == 0:
            return np.int64(-1)
        for _ in range(6 - digits):
            micro *= 10
    shift = np.int64(0)
    if end - at == 6 and (byte_at(text, at) == 43 or byte_at(text, at) == 45) and byte_at(text, at + 3) == 58:
        hours, minutes = _two_digits(text, at + 1), _two_digits(text, at + 4)
        if not (0 <= hours <= 23 and 0 <= minutes <= 59):
            return np.int64(-1)
        shift = (hours * 60 + minutes) * (60 if byte_at(text, at) == 43 else -60)
    elif not (end - at == 1 and byte_at(text, at) == 90):
        return np.int64(-1)
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second - shift
    if not 0 <= seconds < _EXACT_SECONDS:
        return np.int64(-1)
    # as `round(datetime.timestamp() * 1000)` does it
    return np.int64(np.rint(np.float64(seconds * 1_000_000 + micro) / 1e6 * 1000.0))


@nb.njit(cache=True, nogil=True)
def times_ms(text, starts, ends, out):  # type: ignore[no-untyped-def]
    """out (n,) int64: event time of each text in ms since 1970, -1 for one that must be read in full."""
    address = text.ctypes.data
    for i in range(starts.shape[0]):
        out[i] = _time_ms(address, starts[i], ends[i])


@nb.njit(cache=True, nogil=True)
def copy_pieces(text, starts, ends, to, out):  # type: ignore[no-untyped-def]
    """Copy n pieces of a text, text[starts[i]:ends[i]], to out[to[i]:]."""
    for i in range(starts.shape[0]):
        n = ends[i] - starts[i]
        out[to[i] : to[i] + n] = text[starts[i] : ends[i]]


def scan_events(
    text: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find the fields of the records of a poll.

    Parameters
    ----------
    text
        (b,) uint8, the records in one text.
    starts, ends
        (n,) int64, where each begins and ends.

    Returns
    -------
    spans
        (n, len(PLACES), 2) int64, begin and end of the value of each field; (0, 0) where there is none. Without meaning where the
        record is not plain.
    plain
        (n,) whether the record is plain.
    """
    spans = np.zeros((len(ends), len(PLACES), 2), np.int64)
    plain = np.zeros(len(ends), np.bool_)
    _scan(text, starts, ends, spans, plain)
    return spans, plain
