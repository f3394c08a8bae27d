"""Values without objects, against lists of bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.log.json_scan import tell_apart
from consumers.log.lines import Lines
from consumers.log.payloads import Payloads

VALUES = st.lists(st.one_of(st.binary(max_size=20), st.text(" \t\r\n\v\fx", max_size=4).map(str.encode)), max_size=30)


@settings(deadline=None)
@given(VALUES)
def test_filled_values_are_those_that_are_not_white_space(values: list[bytes]) -> None:
    assert Payloads.of(values).filled().tolist() == [i for i, v in enumerate(values) if v and not v.isspace()]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([b"", b"a", b"b", b"a" * 8, b"a" * 8 + b"\0", b"a" * 9, b"a" * 16, b"a" * 15 + b"b"]),
        max_size=40,
    )
)
def test_different_texts_are_numbered_as_they_appear(values: list[bytes]) -> None:
    found = Payloads.of(values)
    index, first = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    slots = np.full(1 << (2 * len(values) + 1).bit_length(), -1, np.int64)
    count = tell_apart(found.text, found.starts, found.ends, np.uint64(7), slots, index, first)
    numbers: dict[bytes, int] = {}
    assert index.tolist() == [numbers.setdefault(value, len(numbers)) for value in values]
    assert [values[i] for i in first[:count].tolist()] == list(numbers)


@settings(deadline=None)
@given(st.binary(max_size=200).map(lambda raw: raw.replace(b"\0", b"\n")), st.integers(1, 50), st.integers(1, 7))
def test_lines_are_those_of_split_however_the_blocks_fall(raw: bytes, block: int, at_once: int) -> None:
    lines = Lines(raw[i : i + block] for i in range(0, len(raw), block))
    found: list[bytes] = []
    while taken := lines.take(at_once):
        found += taken
    expected = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n") if block >= 3 else raw.split(b"\n")
    assert found == (expected if expected[-1] else expected[:-1])


def test_texts_that_differ_in_two_bytes_of_one_word_do_not_crowd_the_table() -> None:
    """Clients of one maker's ids; and who may choose its id must not slow down what reads everybody's."""
    some = [bytes([byte]) for byte in range(33, 127)]
    for before, after in ((b"client", b""), (b"clie", b"nt"), (b"", b"client"), (b"client-client", b"-0")):
        found = Payloads.of([before + one + other + after for one in some for other in some])
        n = len(found)
        slots = np.full(1 << (2 * n + 1).bit_length(), -1, np.int64)
        tell_apart(
            found.text, found.starts, found.ends, np.uint64(7), slots, np.empty(n, np.int64), np.empty(n, np.int64)
        )
        free = np.flatnonzero(slots < 0)
        assert np.diff(free).max() < 100, "the longest row of places that are taken"
