"""The demo on texts, small: it ends well, and what it prints is the truth."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from examples import demo, text_demo

pytestmark = pytest.mark.soak  # it trains, fits and replays; the parts have short tests of their own


def test_a_small_demo_ends_with_a_report_and_the_truth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    console = Console(file=(said := io.StringIO()), width=200, highlight=False)
    for module in (demo, text_demo):
        monkeypatch.setattr(module, "OUT", tmp_path)
        monkeypatch.setattr(module, "console", console)
    monkeypatch.setattr(text_demo, "CALIBRATION_CLIENTS", 40)
    monkeypatch.setattr(text_demo, "TEST_CLIENTS", 12)
    monkeypatch.setattr(text_demo, "THEFTS", [("knockoff", "plain"), ("in_domain", "plain")])
    monkeypatch.setenv("ONCE", "1")
    assert text_demo.main() == 0
    truth = json.loads((tmp_path / "manuals-test.truth.json").read_text())["clients"]
    thieves = {client for client, known in truth.items() if known["role"] == "attack"}
    page = (tmp_path / "text-report" / "index.html").read_text(encoding="utf-8")
    assert len(thieves) == 2
    for thief in thieves:
        assert thief in said.getvalue()
        assert thief in page
    assert "of 2 accounts of thieves were flagged, " in said.getvalue()
