"""Records of a cell, cut: what a part holds, and where it ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from consumers.log import Records

BOMB = ("decompression_limit", "over 16 MiB")
WHOLE = Records(
    "t:0", [b"a", b"b", b"c"], np.array([4, 7, 9], np.int64), 15, ["f:1", "f:2", "f:3"], {0: BOMB, 2: ("corrupt_batch", "")},
    np.array([40, -1, 90], np.int64),
)  # fmt: skip


def seen(records: Records) -> tuple[object, ...]:
    return records.cell, records.values, records.offsets.tolist(), records.next_offset, records.places, records.refused


def test_a_part_ends_where_the_next_record_begins() -> None:
    assert seen(WHOLE.part(0, 2)) == ("t:0", [b"a", b"b"], [4, 7], 9, ["f:1", "f:2"], {0: BOMB})
    assert seen(WHOLE.part(1, 2)) == ("t:0", [b"b"], [7], 9, ["f:2"], {})
    assert seen(WHOLE.part(2, 3)) == ("t:0", [b"c"], [9], 15, ["f:3"], {0: ("corrupt_batch", "")})
    assert seen(WHOLE.part(0, 32)) == seen(WHOLE)


def test_beyond_keeps_what_is_at_or_above_an_offset() -> None:
    assert seen(WHOLE.from_offset(5)) == ("t:0", [b"b", b"c"], [7, 9], 15, ["f:2", "f:3"], {1: ("corrupt_batch", "")})
    assert seen(WHOLE.from_offset(7)) == seen(WHOLE.from_offset(5))
    assert seen(WHOLE.from_offset(0)) == seen(WHOLE)
    assert seen(WHOLE.from_offset(10)) == ("t:0", [], [], 15, [], {})


def test_the_broker_s_time_stays_with_its_record() -> None:
    for part, expected in ((WHOLE.part(0, 2), [40, -1]), (WHOLE.part(2, 9), [90]), (WHOLE.from_offset(5), [-1, 90])):
        assert part.broker_ms is not None
        assert part.broker_ms.tolist() == expected


def test_tombstones_go_with_the_part_that_their_offset_lies_in() -> None:
    whole = replace(WHOLE, nulls=np.array([3, 5, 8, 12], np.int64))
    cut = [
        whole.part(0, 1),
        whole.part(1, 2),
        whole.part(2, 3),
        whole.from_offset(5),
        whole.from_offset(6),
        whole.from_offset(13),
    ]
    found = [[] if part.nulls is None else part.nulls.tolist() for part in cut]
    assert found == [[3, 5], [8], [12], [5, 8, 12], [8, 12], []]
    assert [part.tombstones for part in cut] == [2, 1, 1, 3, 2, 0]
    assert WHOLE.tombstones == 0


def test_parts_of_what_has_no_places_have_none() -> None:
    plain = Records("t:0", [b"a", b"b"], np.array([0, 1], np.int64), 2)
    assert plain.part(1, 2).place(0) == "t:0@1"
    assert plain.part(1, 2).broker_ms is None
