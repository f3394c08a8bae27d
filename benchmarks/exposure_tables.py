"""The table of docs/detection.md about exposure, from the figures of `exposure.py`.

Rules: it reads the committed points and imports nothing that the benchmark needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables import share, table

RESULTS = Path(__file__).parent / "results" / "exposure.json"
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One theft, or honest client ("honest"), up to some queries. counter: what the control estimates."""

    victim: str
    family: str
    queries: int
    truth: float
    fidelity: float
    low: float
    high: float
    counter: float

    @property
    def inside(self) -> bool:
        return self.low <= self.truth <= self.high


def measured(points: Sequence[Point]) -> dict[str, float]:
    """Mean absolute error of ours and of the counter; share of points inside the interval, and its mean width."""
    truth, told, counter = (np.array([getattr(p, f) for p in points]) for f in ("truth", "fidelity", "counter"))
    return {
        "mean_absolute_error": float(np.abs(told - truth).mean()),
        "counter_error": float(np.abs(counter - truth).mean()),
        "covered": float(np.mean([p.inside for p in points])),
        "width": float(np.mean([p.high - p.low for p in points])),
    }


def read() -> Results:
    found: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def by_model(results: Results) -> str:
    """A row a model and one for all: error of the estimate and of a query counter, share of points inside the interval, its width."""
    points = [Point(**one) for one in results["points"]]
    rows = [_row(f"`{name}`", [p for p in points if p.victim == name]) for name in results["plan"]["victims"]]
    rows.append(_row("all", points))
    return table(("model", "points", "mean error", "of a query counter", "inside the 90 % interval", "its width"), rows)


def _row(title: str, points: Sequence[Point]) -> tuple[str, ...]:
    found = measured(points)
    shown = (found[name] for name in ("mean_absolute_error", "counter_error", "covered", "width"))
    return (title, str(len(points)), *(share(value) for value in shown))


TABLES: dict[str, Callable[[Results], str]] = {"bench-exposure": by_model}
"""Generated region of docs/detection.md → its table."""
