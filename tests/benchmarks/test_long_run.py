"""The long run: memory that rises is told from memory that wavers, and no round repeats a query."""

from __future__ import annotations

import json

import numpy as np

from benchmarks.long_run import MOST_RISE, leaks, round_of
from benchmarks.traffic import Traffic


def test_memory_that_rises_is_told_from_memory_that_wavers() -> None:
    rng = np.random.default_rng(0)
    wavering = 300 + rng.normal(0, 3, 60)
    assert abs(leaks(wavering.tolist())) < MOST_RISE
    assert leaks((wavering + np.arange(60) * 0.5).tolist()) > MOST_RISE, "half a megabyte a round is a leak"
    assert leaks((wavering - np.arange(60)).tolist()) < 0


def test_a_round_asks_other_queries_at_later_times() -> None:
    lines, _ = Traffic(width=4).lines(50)
    rng = np.random.default_rng(1)
    rounds = [[json.loads(line) for line in round_of(lines, start, rng)] for start in (0, 50)]
    for one, two in zip(*rounds, strict=True):
        assert one["features"] != two["features"]
        assert one["features"][1:] == two["features"][1:]
        assert one["client_id"] == two["client_id"]
    stamps = [event["timestamp"] for one in rounds for event in one]
    assert stamps == sorted(stamps)
