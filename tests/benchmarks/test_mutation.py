"""The mutation score counts what was tried, and only that."""

from __future__ import annotations

from benchmarks.mutation import counted


def test_what_was_not_tried_is_not_counted_and_a_time_out_is_noticed() -> None:
    statuses = {"killed": 1, "survived": 0, "timed out": -24, "not tried": None}
    assert counted(statuses) == {"mutants": 4, "tried": 3, "noticed": 2}
