"""Stored results of the benchmarks belong to what the detector does today, not to how its sources are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fingerprint import fingerprint, group_fingerprint, link_fingerprint, pair_fingerprint
from detector import group_statistic, signals, weak_pairs

STORED = Path(__file__).parents[2] / "benchmarks/results"
RESULTS = json.loads((STORED / "detection.json").read_text())
CARRIED = json.loads((STORED / "carry_over.json").read_text())
CAMPAIGNS = json.loads((STORED / "campaigns.json").read_text())
WEAK_PAIRS = json.loads((STORED / "weak_pairs.json").read_text())


def test_the_stored_results_were_measured_with_this_behaviour() -> None:
    """If this fails and the change is meant: `make bench-detection`, `make bench-carry-over`."""
    assert fingerprint() == RESULTS["environment"]["detector_fingerprint"] == CARRIED["detector_fingerprint"]


@pytest.mark.soak
def test_a_small_change_of_behaviour_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the allowance of one signal, from 2 % to 3 %."""
    at = signals.SIGNAL_NAMES.index("novelty_roots")
    table = (*signals.SIGNALS[:at], replace(signals.SIGNALS[at], allowance=0.03), *signals.SIGNALS[at + 1 :])
    monkeypatch.setattr(signals, "SIGNALS", table)
    assert fingerprint() != RESULTS["environment"]["detector_fingerprint"]


def test_the_stored_campaigns_were_measured_with_this_group_statistic(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails and the change is meant: `make bench-campaigns`. The control: a tenth is left out of a sum instead of a fifth."""
    assert group_fingerprint() == CAMPAIGNS["environment"]["group_fingerprint"]
    monkeypatch.setattr(group_statistic, "TRIMMED", 0.1)
    assert group_fingerprint() != CAMPAIGNS["environment"]["group_fingerprint"]


def test_the_stored_weak_pairs_were_measured_with_today_s_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails and the change is meant: `make bench-weak-pairs`. The control: a pair is expected by chance."""
    environment = WEAK_PAIRS["environment"]
    assert (link_fingerprint(), pair_fingerprint()) == (
        environment["link_fingerprint"],
        environment["pair_fingerprint"],
    )
    monkeypatch.setattr(weak_pairs, "CHANCE", 1.0)
    assert pair_fingerprint() != environment["pair_fingerprint"]
