"""The domain discriminator: foreign texts rank above honest ones that it did not learn from, and rows that are judged did not train."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import text_models

from consumers.text_fitting import generic_texts
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline, read_baseline
from detector.errors import CorruptBaseline
from detector.fitting.discriminators import train_reworded
from detector.fitting.texts import FOLDS, FittedTexts, disturb, exchange, fit_texts, fold_of
from detector.text import DOMAIN, UNKNOWN


@pytest.fixture(scope="module")
def fitted() -> FittedTexts:
    asked = text_models.questions()
    traffic = [(f"c{i // 20}", text) for i, text in enumerate(asked[300:1300])]
    return fit_texts(asked[:300], traffic, generic_texts()[::2], np.random.default_rng(0))


def test_foreign_texts_rank_above_unseen_honest_ones(fitted: FittedTexts) -> None:
    honest = fitted.encoder.rows(text_models.questions()[1400:1900])[:, DOMAIN]
    foreign = fitted.encoder.rows([g.text for g in generic_texts()[1:600:2]])[:, DOMAIN]
    assert (foreign > np.quantile(honest, 0.99)).mean() > 0.9


def test_a_frame_says_nothing_of_what_a_text_is_about(fitted: FittedTexts) -> None:
    """The control: foreign texts in the same frame stay foreign."""
    asked, frame = text_models.questions()[1400:1900], "Translate into Spanish: {}"
    honest = fitted.encoder.rows(asked)[:, DOMAIN]
    framed = fitted.encoder.rows([frame.format(text) for text in asked])[:, DOMAIN]
    foreign = fitted.encoder.rows([frame.format(g.text) for g in generic_texts()[1:600:2]])[:, DOMAIN]
    assert (framed > np.quantile(honest, 0.99)).mean() < 0.1
    assert (foreign > np.quantile(honest, 0.99)).mean() > 0.9


def test_made_up_words_are_unknown(fitted: FittedTexts) -> None:
    honest = fitted.encoder.rows(text_models.questions()[1400:1900])[:, UNKNOWN]
    assert fitted.encoder.row("xqzv kjwpq zzkrt vvbnq")[UNKNOWN] > honest.max()


def test_foreign_words_in_a_text_are_odder_than_lost_moved_or_own_words(fitted: FittedTexts) -> None:
    asked, rng = text_models.questions(), np.random.default_rng(0)
    known = asked[:300]
    rows = fitted.held_out(known, np.array([fold_of(text) for text in known]))
    trees, held_out = train_reworded(fitted.reworded_rows(known), rows, rng)
    words, own = [g.word for g in generic_texts()[1::2]], " ".join(asked[1300:1400]).split()
    made = {
        "foreign": [exchange(text, 0.3, words, rng) for text in asked[1400:1700]],
        "own": [disturb(text, 0.3, own, rng) for text in asked[1400:1700]],
        "as it is": asked[1400:1700],
    }
    odd = {
        how: float((trees.score(fitted.encoder.rows(t)) > np.quantile(held_out, 0.99)).mean())
        for how, t in made.items()
    }
    assert odd["foreign"] > 0.8, odd
    assert odd["own"] < 0.6 * odd["foreign"], (
        odd
    )  # so narrow a domain has few words and frames: any disorder in it is rare
    assert odd["as it is"] < 0.02, odd


def test_held_out_rows_come_from_weights_that_have_not_seen_the_text(fitted: FittedTexts) -> None:
    """A text with a word that only one client has: its own fold's encoder does not know the word, every other does."""
    asked = text_models.questions()
    odd = [f"{text} zyxwvutsrq" for text in asked[:30]]
    client = "the only one"
    traffic = [*((f"c{i // 20}", text) for i, text in enumerate(asked[300:900])), *((client, text) for text in odd)]
    learned = fit_texts(asked[:300], traffic, generic_texts()[::4], np.random.default_rng(0))
    unknown = [learned.held_out(odd[:1], np.array([k]))[0, UNKNOWN] for k in range(FOLDS)]
    assert int(np.argmax(unknown)) == fold_of(client)
    assert sum(share > 0.02 for share in unknown) == 1


def test_the_same_texts_give_the_same_weights(fitted: FittedTexts) -> None:
    asked = text_models.questions()
    traffic = [(f"c{i // 20}", text) for i, text in enumerate(asked[300:1300])]
    again = fit_texts(asked[:300], traffic, generic_texts()[::2], np.random.default_rng(0))
    assert again.encoder.identity == fitted.encoder.identity


def test_the_encoder_is_part_of_the_file_and_of_the_map(text_baseline: Baseline) -> None:
    back = read_baseline(pack_baseline(text_baseline))
    assert back.map.schema.encoder is not None
    text = "why was my card declined"
    assert text_baseline.map.schema.encoder is not None
    assert np.array_equal(back.map.schema.encoder.row(text), text_baseline.map.schema.encoder.row(text))
    assert back.map_id == text_baseline.map_id
    encoder = replace(text_baseline.map.schema.encoder, bias=text_baseline.map.schema.encoder.bias + 0.1)
    other = replace(text_baseline.map, schema=replace(text_baseline.map.schema, encoder=encoder))
    assert other.map_id != text_baseline.map_id


def test_texts_without_an_encoder_are_refused(text_baseline: Baseline) -> None:
    bare = replace(
        text_baseline, map=replace(text_baseline.map, schema=replace(text_baseline.map.schema, encoder=None))
    )
    with pytest.raises(CorruptBaseline, match="encoder"):
        read_baseline(pack_baseline(bare))
