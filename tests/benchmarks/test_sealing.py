"""The benchmark of sealing: what is committed keeps the promise, its control is dearer, and the page shows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sealing

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
PROMISED = 0.05
"""By how much sealing may make ingest dearer."""


def test_what_is_committed_keeps_the_promise_and_its_control_is_dearer() -> None:
    committed = json.loads(sealing.RESULTS.read_text())
    sealed, twice = committed["dearer"]["sealed"], committed["dearer"]["twice"]
    assert sealed[1] <= sealed[0] <= sealed[2] < PROMISED
    assert twice[0] > sealed[0]
    assert twice[1] > 0, "the benchmark sees what it is to see"
    assert committed["conditions"]["turns"] >= 200
    for ratio, low, high in (sealed, twice):
        assert f"{ratio:.1%} ({low:.1%} to {high:.1%})".replace("%", " %").replace("-", "−") in PAGE


def test_the_interval_of_a_ratio_covers_the_truth_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for blocks in (10, 40):
        for _ in range(40):
            took = rng.normal([1.0, 1.03, 1.06], 0.05, (blocks, 3))
            _, low, high = sealing.dearer(took, rng)["sealed"]
            covered += low <= 0.03 <= high
            widths.append((blocks, high - low))
    assert covered >= 66
    assert np.mean([w for n, w in widths if n == 40]) < 0.7 * np.mean([w for n, w in widths if n == 10])


@pytest.mark.soak
def test_a_short_run_measures_all_three() -> None:
    found = sealing.run(short=True, say=lambda line: None)
    assert set(found["us_a_query"]) == set(sealing.MODES)
