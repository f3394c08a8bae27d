"""Embeddings on disk: a run that was stopped goes on with the same bits, a torn record is dropped, and no text is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import embedding_cache
from benchmarks.embedding_cache import RECORD, CachedEmbedder
from consumers.embeddings import EMBEDDED

TEXTS = [f"question {i} about a secret" for i in range(7)]


class CountingEmbedder:
    """Says something else of each text, and how often it was asked."""

    asked = 0

    def __init__(self, kept: int) -> None:
        assert kept == 1

    def embed(self, text: str) -> np.ndarray:
        type(self).asked += 1
        return np.random.default_rng([*text.encode()]).normal(size=EMBEDDED).astype(np.float32)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_cache, "SentenceEmbedder", CountingEmbedder)
    monkeypatch.setattr(embedding_cache, "EVERY", 3)
    CountingEmbedder.asked = 0


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "victim.embeddings"
    first = CachedEmbedder(file).rows(TEXTS)  # six of seven are written
    with file.open("ab") as torn:
        torn.write(b"half a record")
    again = CachedEmbedder(file)
    assert np.array_equal(again.rows(TEXTS), first)
    assert np.array_equal(again.rows(TEXTS[:2]), first[:2])
    again.write()
    assert (CountingEmbedder.asked, len(again.asked)) == (8, 7)
    assert file.stat().st_size == 7 * RECORD.itemsize
    assert np.array_equal(CachedEmbedder(file).rows(TEXTS), first)
    assert CountingEmbedder.asked == 8


def test_no_text_is_on_disk(tmp_path: Path) -> None:
    embedder = CachedEmbedder(tmp_path / "victim.embeddings")
    embedder.rows(TEXTS)
    embedder.write()
    assert b"secret" not in embedder.file.read_bytes()
