"""Sentence embeddings: pieces of words as the model's own tokenizer cuts them, checked weights, and a baseline that needs them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import text_models

from consumers import embeddings
from consumers import fit as fitting
from consumers.baselines import load_baselines
from consumers.embeddings import EMBEDDED, IDENTITY, MOST_TOKENS, SentenceEmbedder, embedder_of, pieces_of
from consumers.errors import InvalidInput, WrongUse
from consumers.log.files import FileLog
from detector.baseline_file import pack_baseline, read_baseline
from detector.errors import CorruptBaseline
from detector.text import AXES, TextEncoder

PIECES = {
    "How do I close my account?": [101, 2129, 2079, 1045, 2485, 2026, 4070, 1029, 102],
    "Überraschung: naïve café, 3.5% of 1,000!": [101, 19169, 8180, 20760, 3070, 1024, 15743, 7668, 1010, 1017, 1012, 1019, 1003, 1997, 1015,
                                                 1010, 2199, 999, 102],
    "日本語 and kanji漢字": [101, 1864, 1876, 1950, 1998, 22827, 4478, 1904, 100, 102],
    "unbelievably hyperparameterised": [101, 4895, 8671, 2666, 3567, 6321, 23760, 28689, 22828, 5084, 102],
    "": [101, 102],
    "a" * 101: [101, 100, 102],
    "tab\there\u200b\x00end": [101, 21628, 2182, 10497, 102],
    "don't e-mail x@y.org": [101, 2123, 1005, 1056, 1041, 1011, 5653, 1060, 1030, 1061, 1012, 8917, 102],
}  # fmt: skip
"""By the package `tokenizers` 0.23.3 with the tokenizer of the model."""


def test_pieces_are_those_of_the_models_tokenizer() -> None:
    assert {text: pieces_of(text) for text in PIECES} == PIECES
    assert len(pieces_of("word " * 300)) == MOST_TOKENS


def test_texts_that_mean_the_same_are_near_without_a_common_word() -> None:
    embedder = SentenceEmbedder()
    asked, same, other = map(
        embedder.embed,
        ("How do I close my account?", "I want to terminate this membership", "Eigenvalues of sparse matrices"),
    )
    assert asked.shape == (EMBEDDED,)
    assert np.linalg.norm(asked) == pytest.approx(1, abs=1e-5)
    assert asked @ same > 0.5 > 0.2 > asked @ other


def test_an_embedding_does_not_depend_on_what_was_asked_before() -> None:
    texts = ["one question", "quite another question that is longer", ""]
    one, other = SentenceEmbedder(), SentenceEmbedder(kept=1)
    first = [one.embed(text) for text in texts]
    for text, known in reversed(list(zip(texts, first, strict=True))):
        assert np.array_equal(other.embed(text), known)
        assert np.array_equal(one.embed(text), known)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(InvalidInput, match=r"querywarden\[embeddings\]"):
        SentenceEmbedder()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hashlib.sha256(embeddings.weights_file().read_bytes()).hexdigest() == embeddings.SHA256
    monkeypatch.setattr(embeddings, "SHA256", "0" * 64)
    with pytest.raises(InvalidInput, match="not those that this version knows"):
        SentenceEmbedder()


def test_a_baseline_with_other_embeddings_is_refused() -> None:
    assert embedder_of(IDENTITY).identity == IDENTITY
    with pytest.raises(InvalidInput, match="fit it again"):
        embedder_of("all-MiniLM-L12/float")


class _Toy:
    """Embeds fast: words that begin alike mean the same."""

    identity = IDENTITY

    def __init__(self, kept: int = 0) -> None:
        self.asked = 0

    def embed(self, text: str) -> NDArray[np.float32]:
        self.asked += 1
        found = np.zeros(EMBEDDED, np.float32)
        for word in text.lower().split():
            found[int.from_bytes(hashlib.blake2b(word[:3].encode(), digest_size=2).digest(), "little") % EMBEDDED] += (
                1.0
            )
        return found / np.float32(max(float(np.linalg.norm(found)), 1.0))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextEncoder]:
    """A baseline with embeddings as a file, and its encoder."""
    folder = tmp_path_factory.mktemp("embedded")
    traffic = folder / "traffic.jsonl"
    traffic.write_bytes(b"\n".join(text_models.log(0, 30)[1]) + b"\n")
    reference = [json.dumps(text_models.event(None, text)).encode() for text in text_models.questions()[:400]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "SentenceEmbedder", _Toy)
        baseline = fitting.fit(
            text_models.MODEL, reference, FileLog([str(traffic)]), exposure=False, embeddings=True
        ).baseline
    file = folder / "assistant.baseline"
    file.write_bytes(pack_baseline(baseline))
    encoder = baseline.map.schema.encoder
    assert encoder is not None
    assert encoder.meaning is not None
    return file, encoder


def test_a_file_gives_the_rows_that_fit_made(files: tuple[Path, TextEncoder]) -> None:
    file, encoder = files
    read = read_baseline(file.read_bytes(), lambda identity: _Toy()).map.schema.encoder
    assert read is not None
    assert read.identity == encoder.identity
    for text in ("how do I close my account", "eigenvalues of a matrix", ""):
        assert np.array_equal(read.row(text), encoder.row(text))
    plain = TextEncoder(encoder.rarity, encoder.domain, encoder.bias)
    assert plain.identity != encoder.identity
    changed = encoder.row("close my account") != plain.row("close my account")
    assert changed[:AXES].any()
    assert not changed[AXES:-1].any()


def test_who_gives_no_embedder_reads_the_file_and_encodes_nothing(files: tuple[Path, TextEncoder]) -> None:
    read = read_baseline(files[0].read_bytes()).map.schema.encoder
    assert read is not None
    assert read.identity == files[1].identity
    with pytest.raises(CorruptBaseline, match="needs sentence embeddings"):
        read.row("anything")


def test_a_service_names_the_extra_that_its_baseline_needs(
    files: tuple[Path, TextEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert text_models.MODEL in load_baselines([str(files[0])])  # the control: with the extra it loads
    monkeypatch.setattr(embeddings, "PACKAGE", "no_such_package_of_weights")
    embedder_of.cache_clear()
    with pytest.raises(InvalidInput, match=r"querywarden\[embeddings\]"):
        load_baselines([str(files[0])])


def test_embeddings_are_for_texts() -> None:
    rows = [
        json.dumps({"model_id": "m", "features": [float(i), 1.0 * i * i], "prediction": {"label": i % 2}}).encode()
        for i in range(60)
    ]
    with pytest.raises(WrongUse, match="inputs are texts"):
        fitting.fit("m", rows, None, exposure=False, embeddings=True)
