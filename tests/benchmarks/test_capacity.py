"""The plan follows from its constants: it grows where they grow, its simulated process keeps up, and what is too small is seen to fail."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import capacity
from benchmarks.capacity import BUSY, Constants, line, partitions, plan, simulate, touched_a_second

MADE = Constants(20.0, 30.0, 2.0, 6.0, 3.0, 200.0, 800.0, 6000.0, 5000.0, 4000.0)


def test_two_points_give_the_line_through_them() -> None:
    few, every = {"written_a_query": 0.1, "us": 13.0}, {"written_a_query": 0.9, "us": 29.0}
    assert line(few, every, "us") == pytest.approx((11.0, 20.0))
    assert line(every, few, "us") == pytest.approx((11.0, 20.0))
    assert line(few, {**every, "us": 5.0}, "us") == (13.0, 0.0), "noise must not make a client cheaper than nothing"


def test_a_simulated_process_is_as_busy_as_its_rate_asks() -> None:
    one = simulate(MADE, 5000, 1e9, np.random.default_rng(0), seconds=5)
    assert one.busy == pytest.approx(5000 * (20 + 30) / 1e6, rel=0.05), (
        "everybody asks once: each query writes a client"
    )
    few = simulate(MADE, 5000, 10, np.random.default_rng(0), seconds=5)
    assert few.busy == pytest.approx(5000 * 20 / 1e6, rel=0.1)
    assert few.written < 0.1 < 0.9 < one.written


def test_control_a_process_with_too_much_to_do_falls_behind() -> None:
    behind = simulate(MADE, 60_000, 1e6, np.random.default_rng(0), seconds=10)
    assert behind.busy > 0.95
    assert behind.end_lag_s > 3
    assert simulate(MADE, 10_000, 1e6, np.random.default_rng(0), seconds=10).end_lag_s < 1


def test_a_plan_is_the_smallest_that_keeps_up() -> None:
    found = plan(MADE, 50_000, 1e6)
    assert found.one.busy <= BUSY
    less = simulate(MADE, 50_000 / (found.ingest - 1), 1e6 / (found.ingest - 1), np.random.default_rng(0), seconds=10)
    assert less.busy > BUSY
    assert found.burst.end_lag_s < 1
    assert found.burst.most_lag_s > found.one.most_lag_s
    assert found.partitions == partitions(found.ingest) >= 2 * found.ingest
    assert 32 <= found.decision_cells <= 1024


def test_a_plan_grows_with_what_it_serves() -> None:
    small, dear = plan(MADE, 100_000, 1e6), plan(replace(MADE, query_us=60.0), 100_000, 1e6)
    assert dear.ingest > 1.5 * small.ingest
    assert plan(MADE, 50_000, 1e7).store_gib == pytest.approx(10 * small.store_gib)
    assert small.month < dear.month


def test_detect_sees_a_client_once_however_much_it_asks() -> None:
    rng = np.random.default_rng(0)
    assert touched_a_second(1e9, 1e5, 100, rng) == pytest.approx(1000, rel=0.05)
    assert touched_a_second(10, 1e9, 100, rng) == pytest.approx(10, rel=0.05)


def test_the_committed_plans_follow_from_the_committed_constants() -> None:
    stored = json.loads(capacity.PLANS.read_text())
    again = capacity.plans(Constants.read())
    assert [row["ingest"] for row in stored] == pytest.approx([row["ingest"] for row in again], rel=0.02)
    assert [row["shards"] for row in stored] == pytest.approx([row["shards"] for row in again], rel=0.02)
    assert [(row["queries_a_second"], row["clients"]) for row in stored] == list(capacity.SIZES)
