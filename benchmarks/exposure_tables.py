"""The table of docs/detection.md about exposure, from the figures of `exposure.py`.

Rules: it reads the committed points and imports nothing that the benchmark needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import table

RESULTS = Path(__file__).parent / "results" / "exposure.json"
Results = Mapping[str, Any]


def read() -> Results:
    found: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def by_model(results: Results) -> str:
    """A row a model and one for all: error of the estimate and of a query counter, share of points inside the interval, its width."""
    names = results["plan"]["victims"]
    rows = [_row(f"`{name}`", [p for p in results["points"] if p["victim"] == name]) for name in names]
    rows.append(_row("all", results["points"]))
    return table(("model", "points", "mean error", "of a query counter", "inside the 90 % interval", "its width"), rows)


def _row(title: str, points: list[dict[str, Any]]) -> tuple[str, ...]:
    truth, told, counter, low, high = (
        np.array([p[name] for p in points]) for name in ("truth", "fidelity", "counter", "low", "high")
    )
    inside = ((low <= truth) & (truth <= high)).mean()
    shares = (np.abs(told - truth).mean(), np.abs(counter - truth).mean(), inside, (high - low).mean())
    return (title, str(len(points)), *(f"{x:.2f}".removeprefix("0") for x in shares))


TABLES: dict[str, Callable[[Results], str]] = {"bench-exposure": by_model}
"""Generated region of docs/detection.md → its table."""
