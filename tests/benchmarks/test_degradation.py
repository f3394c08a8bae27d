"""The benchmark of graded answers and marks: the short run on one victim, and what is committed is a full run."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from benchmarks import degradation
from consumers.watermark.keys import WatermarkKey


@pytest.fixture(scope="module")
def short() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return degradation.run(degradation.SHORT)


@pytest.mark.soak
def test_a_tree_ensemble_is_recognised_and_innocent_models_are_not(short: dict[str, Any]) -> None:
    (victim,) = short["victims"].values()
    for row in victim["marks"]:
        assert max(row["copies"]["extra trees"]) < 1e-6
        assert min(row["innocent"]) > 1e-3
    flips = victim["marks"][0]
    assert 0 < flips["labels_changed"][0] < 0.01


@pytest.mark.soak
def test_steps_keep_labels_and_blur_what_a_linear_model_can_be_solved_from(short: dict[str, Any]) -> None:
    (victim,) = short["victims"].values()
    rows = {row["steps"]: row for row in victim["steps"]}
    assert all(row["labels_changed"] == 0 for row in rows.values())
    assert rows["none"]["probability_moved"] == 0 < rows["top1"]["probability_moved"]
    solved = short["linear"]["equations"]
    assert solved["none"] > 0.85 > solved["top1"]
    assert short["linear"]["reasons"]["with"] > short["linear"]["reasons"]["without"]


def test_reason_codes_give_weights_back() -> None:
    weights = np.array([1.5, -2.0, 0.25])
    rows = np.array([[1.0, 2.0, -1.0], [-0.5, 1.0, 3.0]])
    text = [degradation.reasons(weights, row) for row in rows]
    assert degradation.read_weights(text, rows) == pytest.approx(weights, abs=0.01)


def test_what_a_client_is_given_is_consistent() -> None:
    key = WatermarkKey(bytes(32))
    rows = np.random.default_rng(0).normal(size=(300, 4)).round(3)
    likely = np.full((300, 3), [0.6, 0.3, 0.1])
    policy = degradation.POLICIES["marks that keep the label"]
    first, again = (degradation.given(likely, rows, key, "noise=0.05", policy) for _ in range(2))
    assert first.answers == again.answers
    assert {len(first.targets(3)), len(first.labels())} == {300}


def test_the_committed_figures_are_of_a_full_run() -> None:
    committed = json.loads(degradation.RESULTS.read_text())
    plan = json.loads(json.dumps(asdict(degradation.Plan())))
    assert committed["plan"] == plan
    assert list(committed["victims"]) == plan["victims"]
    assert committed["cpu_s"] < 300
    page = (Path(__file__).parents[2] / "docs" / "watermark.md").read_text()
    for victim in committed["victims"].values():
        for row in victim["marks"]:
            assert min(row["innocent"]) > 1e-3
            assert f"{min(row['canaries'])} – {max(row['canaries'])}" in page
