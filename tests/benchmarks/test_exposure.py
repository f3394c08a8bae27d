"""The benchmark of exposure: its copies learn, its committed figures keep the promise, and its control is worse."""

from __future__ import annotations

import numpy as np

from benchmarks import exposure_tables
from benchmarks.exposure import COPIES, best_copy, counted, figures
from benchmarks.victims import build
from detector.exposure import REGRESSORS


def test_the_committed_interval_holds_for_nine_of_ten_and_the_query_counter_is_worse() -> None:
    results = exposure_tables.read()
    points = [exposure_tables.Point(**p) for p in results["points"]]
    found = figures(points)
    assert found == results["summary"]["all"], "the summary is that of the points"
    assert 0.87 <= found["covered"] <= 0.93
    assert found["counter_error"] > found["mean_absolute_error"] + 0.02
    assert {p.victim for p in points} == set(results["plan"]["victims"])


def test_a_linear_model_is_copied_and_the_control_knows_the_count_only() -> None:
    victim = build("tumour")
    rows = victim.reference
    truth = victim.predict(victim.held).argmax(1)
    assert best_copy(victim, rows[:100], victim.predict(rows[:100]), truth) > 0.95
    assert len(COPIES) == 6
    described = np.arange(1.0, len(REGRESSORS) + 1)[None]
    assert np.count_nonzero(counted(described)) == 4
