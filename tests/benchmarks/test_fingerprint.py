"""Stored results of the detection benchmark belong to what the detector does today, not to how its sources are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fingerprint import fingerprint
from detector import signals

RESULTS = json.loads((Path(__file__).parents[2] / "benchmarks/results/detection.json").read_text())


def test_the_stored_results_were_measured_with_this_behaviour() -> None:
    """If this fails and the change is meant: `make bench-detection`."""
    assert fingerprint() == RESULTS["environment"]["detector_fingerprint"]


def test_a_small_change_of_behaviour_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the allowance of one signal, from 2 % to 3 %."""
    at = signals.SIGNAL_NAMES.index("novelty_roots")
    table = (*signals.SIGNALS[:at], replace(signals.SIGNALS[at], allowance=0.03), *signals.SIGNALS[at + 1 :])
    monkeypatch.setattr(signals, "SIGNALS", table)
    assert fingerprint() != RESULTS["environment"]["detector_fingerprint"]
