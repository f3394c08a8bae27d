"""The benchmark of small fleets: what is committed is a full run, and what `fit` says of small fleets covers what it found."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.small_fleets import RESULTS, WAYS, Plan, overall, run_victim
from detector.fitting.baseline import SMALL_FLEETS


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


def test_what_is_committed_is_a_full_run_and_adds_up(stored: dict[str, Any]) -> None:
    assert stored["plan"] == json.loads(json.dumps(asdict(Plan())))
    assert stored["overall"] == {way: overall(stored["victims"], way) for way in WAYS}


def test_fit_promises_no_less_than_was_measured(stored: dict[str, Any]) -> None:
    beside = stored["overall"]["beside"]
    assert SMALL_FLEETS[0] <= beside["least"]
    assert beside["most"] <= SMALL_FLEETS[1]


def test_twelve_alone_vary_more_than_twelve_beside_simulated_ones(stored: dict[str, Any]) -> None:
    """The control is seen to be worse: its worst fleet catches fewer thefts."""
    assert stored["overall"]["alone"]["caught_least"] < stored["overall"]["beside"]["caught_least"]


@pytest.mark.soak
def test_a_short_run_judges_every_client() -> None:
    found = run_victim("tumour", Plan(victims=("tumour",), draws=1, tested=60))
    assert found["tested"] == 60
    assert all(0 <= n <= 60 for way in WAYS for n in found["ways"][way]["false_alarms"])
    assert found["ways"]["many"]["caught"][0] > found["thefts"] / 2
