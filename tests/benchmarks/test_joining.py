"""The benchmark of the join: every query counts once whatever way its halves come, and the committed control is dearer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks import joining
from benchmarks.traffic import Traffic
from consumers.secrets import Secrets


def test_all_ways_count_the_same_queries(tmp_path: Path) -> None:
    traffic = Traffic(width=8, classes=2)
    lines, baseline = traffic.lines(60)[0], traffic.baseline()
    secrets = Secrets.create(tmp_path / "secrets.json")
    for mode in joining.MODES:
        with joining.sqlite() as (store, _):
            assert joining.turn(mode, joining.topics_of(mode, lines), store, baseline, secrets)[1] == 60


def test_differences_are_those_of_the_ways_with_an_interval() -> None:
    took = np.array([[1.0, 3.0, 7.0, 9.0], [1.2, 3.2, 7.4, 9.2]]) * 1e-6
    found = joining.figures(took, np.zeros((2, 4)), 1)
    assert found["us_a_query"] == {"none": 1.1, "partition": 3.1, "store": 7.2, "control": 9.1}
    assert found["differences"]["store - partition"] == [4.1, 4.0, 4.2]


def test_the_committed_control_is_seen_to_be_dearer() -> None:
    committed = json.loads(joining.RESULTS.read_text())
    for store in ("sqlite", "redis"):
        control, part = (
            committed[store]["differences"]["control - store"],
            committed[store]["differences"]["store - partition"],
        )
        assert control[1] > 0
        assert part[1] <= part[0] <= part[2]
