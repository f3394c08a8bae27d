"""The benchmark of detect, tiny: every figure stands beside its twin, and what is committed is what the page shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import detecting

NAMES = ["read and assess", "touched to committed, SQLite", "touched to committed, Redis"]


@pytest.mark.soak
def test_every_figure_stands_beside_one_client_a_step() -> None:
    found = detecting.run(short=True, say=lambda line: None)
    assert [(row["life"], row["name"]) for row in found["rows"]] == [
        (life, n) for life in detecting.LIVES for n in NAMES
    ]
    assert all(row["ratio"] > 1 for row in found["rows"]), "one client a step is the control"


def test_the_committed_figures_are_of_a_full_run_and_on_the_page() -> None:
    found = json.loads(detecting.RESULTS.read_text())
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert [row["name"] for row in found["rows"]] == NAMES * len(detecting.LIVES)
    for row in found["rows"]:
        assert row["clients"] >= 1000
        assert f"| {row['life']} | {row['name']} | {row['ours_us']:,.0f} | {row['a_second']:,} |" in page
