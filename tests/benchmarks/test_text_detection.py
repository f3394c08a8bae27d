"""The benchmark on texts: shares without a common text, a window of MMD, and tables of the committed figures."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import text_detection, text_tables
from benchmarks.text_detection import WINDOW, Client, Others, Shares
from detector.simulation.text_population import TextStream


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> Shares:
    def made(name: str) -> list[str]:
        return [f"a sentence of {name} that is number {i} of them all" for i in range(4000)]

    monkeypatch.setattr(text_detection, "VICTIMS", {name: lambda name=name: made(name) for name in ("first", "second")})
    return text_detection.deal("first")


def test_no_text_is_in_two_shares(shares: Shares) -> None:
    parts = [shares.reference, *shares.groups, shares.own, shares.foreign]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert all("second" in text for text in shares.foreign)


def client(rows: np.ndarray) -> Client:
    n = len(rows)
    return Client(TextStream("c", "benign", "free", "", "", [""] * n, np.zeros(n, np.bool_), np.arange(float(n))), rows)


def test_others_tell_other_rows_from_the_reference_and_mmd_needs_a_window() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(700, 8))
    others = Others(reference, [client(rng.normal(size=(200, 8))) for _ in range(5)])
    usual, odd = client(rng.normal(size=(WINDOW, 8))), client(rng.normal(size=(WINDOW, 8)) + 3)
    assert others.mmd(odd) > 5 * others.mmd(usual)
    assert others.mmd(client(odd.rows[:-1])) == -np.inf
    for measure in ("knn", "mahalanobis"):
        assert others.share(measure, odd) > 0.5 > 0.05 > others.share(measure, usual)


def test_the_committed_figures_hold_every_victim_and_the_control() -> None:
    results = text_tables.read()
    assert sorted(results["victims"]) == ["chat", "manuals", "reviews"]
    for methods in results["victims"].values():
        assert {method.partition(" @ ")[0] for method in methods} >= {"QueryWarden", "MMD, window 1,500"}
        assert all("in_domain/plain" in cells for cells in methods.values())


def test_the_committed_figures_of_embeddings_hold_the_control() -> None:
    """Honest texts of a thief are beyond the level as often as the level says."""
    results = text_tables.read_embeddings()
    assert results["texts"]
    for found in results["texts"].values():
        assert {how: one["beyond"]["in_domain"] <= 0.05 * results["each"] for how, one in found.items()} == {
            "words": True, "words and embeddings": True,
        }  # fmt: skip
