"""Methods of the literature on texts: they tell other rows from the reference, and MMD needs a full window."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.text_others import WIDTHS, WINDOW, Client, Others, OthersOnEmbeddings
from detector.simulation.text_population import TextStream


def client(rows: np.ndarray) -> Client:
    n = len(rows)
    return Client(TextStream("c", "benign", "free", "", "", [""] * n, np.zeros(n, np.bool_), np.arange(float(n))), rows)


@pytest.mark.parametrize("made", [Others, OthersOnEmbeddings])
def test_others_tell_other_rows_from_the_reference_and_mmd_needs_a_window(made: type[Others]) -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(700, 8))
    others = made(reference, [client(rng.normal(size=(200, 8))) for _ in range(5)])
    usual, odd = client(rng.normal(size=(WINDOW, 8))), client(rng.normal(size=(WINDOW, 8)) + 3)
    assert others.mmd(odd) > 5 * others.mmd(usual)
    assert others.mmd(client(odd.rows[:-1])) == -np.inf
    for measure in ("knn", "mahalanobis"):
        assert others.share(measure, odd) > 0.5 > 0.05 > others.share(measure, usual)


def test_the_published_mmd_is_the_unbiased_mean_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against its definition, pair by pair."""
    monkeypatch.setattr("benchmarks.text_others.WINDOW", 12)
    rng = np.random.default_rng(1)
    reference, rows = rng.normal(size=(620, 3)), rng.normal(size=(12, 3)) + 0.5
    others = OthersOnEmbeddings(reference, [client(rng.normal(size=(60, 3)))])
    others.reference, reference = others.reference[:40], reference[:40]

    def mean(a: np.ndarray, b: np.ndarray, apart: bool) -> float:
        pairs = [(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (apart and i == j)]
        return float(np.mean([
            np.exp(-((x - y) @ (x - y)) / (2 * (width**2) * others.width)) for x, y in pairs for width in WIDTHS
        ]))  # fmt: skip

    slow = mean(rows, rows, True) + mean(reference, reference, True) - 2 * mean(rows, reference, False)
    assert others.mmd(client(rows)) == pytest.approx(slow, rel=1e-9)
