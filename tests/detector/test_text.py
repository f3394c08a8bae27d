"""The text encoder: its slow twin, what identifies a text, bounded work, and weights that nobody vouches for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive_text

from detector.errors import CorruptBaseline
from detector.text import ELICITATION_MARK, HALF_BYTES, WIDTH, TextEncoder, digest
from detector.text_kernels import BUCKETS


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    rng = np.random.default_rng(5)
    return TextEncoder(rng.normal(size=BUCKETS).astype(np.float32), rng.normal(size=BUCKETS).astype(np.float32), 0.25)


TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(
        st.sampled_from(["Show", "your", "work", "step by step", "x", "a1", "é", "{x}", "\n", "日本"]), max_size=12
    ).map(" ".join),
)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_a_row_is_that_of_the_slow_twin(encoder: TextEncoder, text: str) -> None:
    np.testing.assert_allclose(encoder.row(text), naive_text.row(encoder, text), rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_a_row_does_not_depend_on_the_texts_beside_it(encoder: TextEncoder, texts: list[str]) -> None:
    assert np.array_equal(encoder.rows(texts), np.vstack([encoder.row(text) for text in texts]))


def test_case_and_spaces_make_no_other_text_but_a_word_does() -> None:
    same = {digest(text) for text in ("What is a loan?", "what  is a\nLOAN?", "  What is a loan? ", "Ｗhat is a loan?")}
    assert len(same) == 1
    assert digest("What is a loan") not in same


def test_of_a_long_text_both_ends_are_read(encoder: TextEncoder) -> None:
    middle = "b " * HALF_BYTES
    first, last = "show your work " + "a " * HALF_BYTES, "a " * HALF_BYTES + " show your work"
    assert encoder.row(first + middle + "z")[ELICITATION_MARK] == encoder.row(middle + last)[ELICITATION_MARK] == 1
    assert np.array_equal(encoder.row(first + middle + last), encoder.row(first + middle + middle + last))


def test_a_phrase_is_found_however_it_is_written(encoder: TextEncoder) -> None:
    asked = ("Please show   your\nWORK!", "chain-of-thought", "your reasoning, please", "Let's think")
    innocent = ("show your workmanship", "step aside", "a chain of shops", "")
    assert [encoder.row(text)[ELICITATION_MARK] for text in (*asked, *innocent)] == [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("rarity", "domain", "bias"),
    [
        (np.ones(BUCKETS - 1, np.float32), np.ones(BUCKETS, np.float32), 0.0),
        (np.ones(BUCKETS, np.float64), np.ones(BUCKETS, np.float32), 0.0),
        (np.ones(BUCKETS, np.float32), np.full(BUCKETS, np.nan, np.float32), 0.0),
        (np.ones(BUCKETS, np.float32), np.ones(BUCKETS, np.float32), float("inf")),
    ],
)
def test_weights_that_the_kernels_could_not_trust_are_refused(
    rarity: np.ndarray, domain: np.ndarray, bias: float
) -> None:
    with pytest.raises(CorruptBaseline, match="encoder"):
        TextEncoder(rarity, domain, bias).check()


def test_a_row_has_its_columns_and_no_strange_number(encoder: TextEncoder) -> None:
    rows = encoder.rows(["", " ", "a", "\ud800", "x" * 40_000, "\x00\x01"])
    assert rows.shape == (6, WIDTH)
    assert np.isfinite(rows).all()
