"""The throughput benchmark, tiny: every step is measured beside its twin, and what is committed is what the page shows.

Figures mean nothing at this size and are not looked at, but for one: a twin that does the same work a row at a time can't be faster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import throughput

FIELDS = {"name", "item", "ours_us", "a_second", "twin", "twin_us", "ratio", "loop"}
STEPS = ["decode", "measure", "fold", "commit, SQLite", "commit, Redis"]
REPLAYS = [f"replay, {variant}" for variant in throughput.VARIANTS]


@pytest.fixture(scope="module")
def short() -> dict[str, Any]:
    return throughput.run(short=True, kafka=False, say=lambda line: None)


@pytest.mark.soak
def test_every_step_stands_beside_a_twin(short: dict[str, Any]) -> None:
    assert [row["name"] for row in short["rows"]] == [*STEPS, *REPLAYS, "replay, bare"]
    for row in short["rows"]:
        assert set(row) == FIELDS
        assert row["ours_us"] > 0
        assert row["ratio"] == pytest.approx(row["twin_us"] / row["ours_us"], rel=0.02, abs=0.01)


@pytest.mark.soak
def test_one_row_a_call_is_dearer(short: dict[str, Any]) -> None:
    ratios = {row["name"]: row["ratio"] for row in short["rows"] if not row["loop"]}
    assert ratios["measure"] > 1.5
    assert ratios["commit, SQLite"] > 1


def test_events_have_ids_and_metadata_only_where_the_variant_says_so() -> None:
    for variant, (ids, linked) in throughput.VARIANTS.items():
        found = [json.loads(line) for line in throughput.events(50, variant, np.random.default_rng(0))]
        assert all(("event_id" in e) == ids and ("metadata" in e) == linked for e in found)
        assert 600 < len(json.dumps(found[0])) < 1300


def test_the_committed_figures_are_of_a_full_run_with_kafka() -> None:
    committed = json.loads(throughput.RESULTS.read_text())
    names = [row["name"] for row in committed["rows"]]
    assert names == [*STEPS, *REPLAYS, "replay, bare", "ingest, Kafka to Redis, bare"]
    assert committed["conditions"]["queries"] >= 10_000
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    for row in committed["rows"]:
        assert f"| {row['ours_us']:,.1f} |" in page
