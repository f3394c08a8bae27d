"""The benchmark beside others: the control must look slow, and what is committed is a whole run that the page shows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peer_loops, scale, whole_path
from benchmarks.traffic import MODEL, Traffic
from benchmarks.whole_path import CONTROL, LOOPS, OURS, READING, check_control

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_a_control_that_is_not_slow_ends_the_run() -> None:
    check_control([{"name": OURS, "median_us": 10.0}, {"name": CONTROL, "median_us": 15.0}])
    with pytest.raises(SystemExit, match="not seen to be slower"):
        check_control([{"name": OURS, "median_us": 10.0}, {"name": CONTROL, "median_us": 14.9}])


def test_every_loop_that_is_asked_for_is_there() -> None:
    assert set(LOOPS) == set(peer_loops.LOOPS)


def test_traffic_has_its_shape_and_follows_from_its_seed() -> None:
    traffic = Traffic(width=8, classes=3, clients=5)
    lines, keys = traffic.lines(200)
    event = json.loads(lines[0])
    assert (event["model_id"], len(event["features"]), len(event["prediction"]["probabilities"])) == (MODEL, 8, 3)
    assert len(set(keys)) == 5
    assert (lines, keys) == traffic.lines(200)
    assert lines != traffic.lines(200, seed=1)[0]
    busy = Counter(Traffic().who(20_000, np.random.default_rng(0)).tolist()).most_common()
    assert busy[0][1] > 10 * busy[len(busy) // 2][1], "some ask far more than most"


def test_the_committed_figures_are_of_a_whole_run() -> None:
    found = json.loads(whole_path.RESULTS.read_text())
    names = [row["name"] for row in found["beside"]]
    assert names == [OURS, CONTROL, READING, *LOOPS]
    check_control(found["beside"])
    assert [row["size"] for row in found["growth"]["columns"]] == list(whole_path.COLUMNS)
    assert [row["size"] for row in found["growth"]["clients"]] == list(whole_path.CLIENTS)
    page = PAGE.read_text(encoding="utf-8")
    for row in found["beside"]:
        assert f"| {row['name']} |" in page


def test_the_committed_scale_out_is_of_a_whole_run() -> None:
    found = json.loads(scale.RESULTS.read_text())
    assert [row["processes"] for row in found["processes"]] == [1, 2]
    assert all(min(row["shares"]) > 0 for row in found["processes"]), "both processes had work"
    assert (found["cluster"]["shards"], len(found["cluster"]["store_us_each"])) == (scale.SHARDS, scale.SHARDS)
