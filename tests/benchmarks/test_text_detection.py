"""The benchmark on texts: shares without a common text, and tables of the committed figures."""

from __future__ import annotations

import pytest

from benchmarks import text_detection, text_tables
from benchmarks.text_detection import Shares


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


def test_the_committed_figures_of_whole_clients_compare_like_with_like() -> None:
    """Ours by words and with embeddings, and the literature on the embeddings, on the same clients of each model."""
    results = text_tables.read_whole_clients()
    assert text_tables.VECTORS in results["victims"]
    assert set(results["embedded"]) == set(results["victims"]) - {text_tables.VECTORS}
    for name, found in results["victims"].items():
        tried = {
            method: {kind: of for kind, (_, of) in cells.items()}
            for method, cells in found.items()
            if "usual" not in method
        }
        assert len({tuple(sorted(one.items())) for one in tried.values()}) == 1
        ours = {text_tables.OURS} if name == text_tables.VECTORS else {text_tables.WORDS, text_tables.BOTH}
        assert {method.partition(" @ ")[0] for method in tried} == ours | {
            "kNN share, embeddings", "Mahalanobis share, embeddings", "MMD as published, embeddings",
        }  # fmt: skip
