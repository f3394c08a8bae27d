"""The mutation score counts what was tried, and only that; a sample is chosen before, and its score has an interval."""

from __future__ import annotations

import json

import pytest

from benchmarks.mutation import RESULTS, chosen, counted, interval, row_of

NAMES = [f"consumers.x_{i}" for i in range(500)]


def test_what_was_not_tried_is_not_counted_and_a_time_out_is_noticed() -> None:
    statuses = {"killed": 1, "survived": 0, "timed out": -24, "not tried": None}
    assert counted(statuses) == {"mutants": 4, "tried": 3, "noticed": 2}


def test_a_fault_that_no_test_reaches_is_not_noticed() -> None:
    assert counted({"no test": 33, "none collected": 5, "killed": 1})["noticed"] == 1


def test_a_sample_depends_on_the_seed_and_on_nothing_else() -> None:
    assert chosen(NAMES, 60) == chosen(NAMES[::-1], 60) == chosen(NAMES, 80)[:60]
    other = chosen(NAMES, 60, seed=2)
    assert other != chosen(NAMES, 60)
    assert len({*other} & {*chosen(NAMES, 60)}) < 20, "about seven by chance"


def test_only_the_sample_counts_and_only_when_all_of_it_was_tried() -> None:
    statuses: dict[str, int | None] = dict.fromkeys(NAMES, 0)
    sample = chosen(NAMES, 60)
    statuses |= dict.fromkeys(sample[3:], 1)
    before = {"survived": {sample[0]: "changes nothing", "gone": "was noticed since"}}
    row = row_of(statuses, 60, 1, before)
    assert row is not None
    assert {key: row[key] for key in ("mutants", "tried", "noticed", "seed")} == {
        "mutants": 500, "tried": 60, "noticed": 57, "seed": 1,
    }  # fmt: skip
    assert row["survived"] == {sample[0]: "changes nothing", sample[1]: "", sample[2]: ""}
    assert row_of(statuses | {sample[7]: None}, 60, 1, {}) is None
    assert row_of(dict.fromkeys(NAMES, 1), None, 1, {}) == {
        "mutants": 500, "tried": 500, "noticed": 500, "seed": None, "survived": {},
    }  # fmt: skip


def test_the_interval_of_a_sample_is_that_of_clopper_and_pearson() -> None:
    low, high = interval({"tried": 60, "noticed": 57, "seed": 1})
    assert (low, high) == pytest.approx((0.8608, 0.9896), abs=5e-4)
    assert interval({"tried": 60, "noticed": 60, "seed": 1})[1] == 1


def test_every_survivor_of_the_stored_samples_is_in_the_count() -> None:
    for module, row in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        assert row["noticed"] <= row["tried"] <= row["mutants"], module
        if "survived" in row:
            assert row["tried"] - row["noticed"] == len(row["survived"]), module
