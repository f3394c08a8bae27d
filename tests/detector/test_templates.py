"""Templates: one hash whatever fills the gaps, counts that are bounded and do not depend on cuts, and slopes that see the fillings only."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive_text

from detector.baseline import Baseline
from detector.baseline_file import pack_baseline, read_baseline
from detector.errors import CorruptBaseline
from detector.patches import UNKNOWN
from detector.templates import (
    COLUMNS,
    FEWEST_HONEST,
    FOREIGN,
    KEPT,
    LEAST,
    NO_SLOPE,
    HonestTemplates,
    Sketches,
    TemplateSketch,
    slopes,
    together,
)
from detector.text import DOMAIN, LENGTH, UNTRAINED, WIDTH

words = st.text("abcdef", min_size=1, max_size=4)
sentences = st.lists(words, max_size=12).map(" ".join)


def rows_of(size: np.ndarray, foreign: np.ndarray) -> np.ndarray:
    """Rows of texts, given the length of each in bytes and how foreign each is as a whole."""
    rows = np.zeros((len(size), WIDTH))
    rows[:, LENGTH], rows[:, DOMAIN] = np.log1p(size), foreign / np.sqrt(size)
    return rows


def sketch_of(hashes: np.ndarray, rows: np.ndarray | None = None) -> TemplateSketch:
    sketches = Sketches([TemplateSketch()])
    n = len(hashes)
    sketches.note(np.zeros(n, np.int32), hashes, np.ones((n, WIDTH)) if rows is None else rows)
    return sketches[0]


def of_one(key: int, n: int) -> np.ndarray:
    return np.full((n, 3), key, np.uint64) + np.arange(3, dtype=np.uint64)


@settings(max_examples=60, deadline=None)
@given(sentences)
def test_the_hashes_are_those_of_the_slow_twin(text: str) -> None:
    assert UNTRAINED.read(text)[1].tolist() == naive_text.templates(text)


@settings(max_examples=40, deadline=None)
@given(st.lists(words, min_size=4, max_size=9), sentences, sentences)
def test_texts_of_one_template_share_a_hash_whatever_fills_it(fixed: list[str], one: str, other: str) -> None:
    template = " ".join(fixed)
    for place, form in ((0, "{template}: {text}"), (1, "{text}. {template}!")):
        hashes = {int(UNTRAINED.read(form.format(template=template, text=text))[1][place]) for text in (one, other)}
        assert len(hashes) == 1
    assert UNTRAINED.read(template.upper())[1].tolist() == UNTRAINED.read(template)[1].tolist()


def test_a_template_between_two_gaps_is_often_found_and_strangers_share_none() -> None:
    rng = np.random.default_rng(3)
    letters = list("abcdefghij")

    def said(n: int) -> str:
        return " ".join("".join(rng.choice(letters, 4)) for _ in range(n))

    found = []
    for fixed in (said(24) for _ in range(20)):
        smallest = [int(UNTRAINED.read(f"{said(3)} {fixed} {said(12)}")[1][2]) for _ in range(40)]
        found.append(Counter(smallest).most_common(1)[0][1] / 40)
    assert np.mean(found) > 0.5
    strangers = Counter(int(h) for _ in range(200) for h in set(UNTRAINED.read(said(12))[1].tolist()))
    assert max(strangers.values()) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=200), st.integers(1, 60))
def test_cuts_and_other_clients_make_no_difference(texts: list[tuple[int, int]], poll: int) -> None:
    who = np.array([client for client, _ in texts], np.int32)
    hashes = np.array([[key, key + 100, key % 7 + 1] if key else [0, 0, 0] for _, key in texts], np.uint64).reshape(
        -1, 3
    )
    rows = rows_of(np.arange(len(texts)) % 50 + 20.0, np.arange(len(texts)) % 13 - 5.0)
    cut = Sketches([TemplateSketch() for _ in range(3)])
    for at in range(0, len(texts), poll):
        cut.note(who[at : at + poll], hashes[at : at + poll], rows[at : at + poll])
        cut = Sketches([TemplateSketch.from_bytes(cut[i].to_bytes()) for i in range(3)])
    for client in range(3):
        mine = np.flatnonzero(who == client)
        assert cut[client].to_bytes() == sketch_of(hashes[mine], rows[mine]).to_bytes()
        assert cut[client].texts == int((hashes[mine, 0] > 0).sum()), "too short a text is not counted"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=300))
def test_what_recurs_is_kept_and_no_count_is_too_large(keys: list[int]) -> None:
    """Space-saving: what more than one hash in `KEPT` is has a place, and a count is between the true one and that less what was missed."""
    hashes = np.array([[key, key + 100, key + 200] for key in keys], np.uint64)
    sketch, true = sketch_of(hashes), Counter(hashes.ravel().tolist())
    held = dict(zip(sketch.keys.tolist(), sketch.sums[:KEPT], strict=True))
    for key, (missed, texts, *_) in held.items():
        assert not key or texts <= true[key] <= texts + missed
    assert {key for key, n in true.items() if n > hashes.size / KEPT} <= set(held)


def test_a_template_is_a_hash_of_several_texts_and_the_commonest_is_told() -> None:
    usual = np.arange(3 * 40, dtype=np.uint64).reshape(-1, 3) + np.uint64(1000)
    sketch = sketch_of(np.vstack([usual, of_one(7, 60)]))
    assert set(sketch.templates) == {7, 8, 9}
    assert sketch.shared == (60, 100)
    assert sketch_of(np.vstack([usual, of_one(7, LEAST - 1)])).templates == []
    assert TemplateSketch().shared == (0, 0)


def test_a_template_moves_the_line_and_its_fillings_turn_it() -> None:
    """The same foreign prompt around texts of the domain, and around foreign ones; and around texts of one length, which say nothing."""
    rng = np.random.default_rng(4)
    size = rng.uniform(60, 400, 80)
    domain, foreign = -0.3 * size + rng.normal(size=80), 0.1 * size + rng.normal(size=80)
    honest = sketch_of(of_one(7, 80), rows_of(size + 90, domain + 70))
    thief = sketch_of(of_one(7, 80), rows_of(size + 90, foreign + 70))
    assert honest.largest_slope == pytest.approx(-0.3, abs=0.01)
    assert (honest.foreign(-0.1), set(thief.foreign(-0.1))) == ([], {7, 8, 9})
    assert sketch_of(of_one(7, 80), rows_of(np.full(80, 90.0), foreign)).foreign(-0.1) == []


def test_few_texts_must_be_clearer() -> None:
    """A slope counts less one standard error of it."""
    rng = np.random.default_rng(5)
    found = []
    for n in (8, 200):
        size = rng.uniform(60, 400, (200, n))
        noisy = 0.05 * size + rng.normal(size=(200, n)) * 30
        found.append(
            np.mean(
                [
                    slopes(sketch_of(of_one(7, n), rows_of(a, b)).sums[:1])[0] > 0.05
                    for a, b in zip(size, noisy, strict=True)
                ]
            )
        )
    assert max(found) < 0.3
    assert slopes(np.zeros((1, COLUMNS)))[0] == NO_SLOPE


def test_parts_of_one_client_are_put_together() -> None:
    rng = np.random.default_rng(6)
    hashes = rng.integers(1, 5, (60, 3)).astype(np.uint64)
    rows = rows_of(rng.uniform(50, 300, 60), rng.normal(size=60))
    parts = [sketch_of(hashes[:25], rows[:25]), sketch_of(hashes[25:], rows[25:])]
    whole, both = sketch_of(hashes, rows), together(iter(parts))
    assert both is not None
    assert sorted(both.templates) == sorted(whole.templates)
    order = [whole.keys.tolist().index(key) for key in both.keys[both.keys > 0].tolist()]
    np.testing.assert_allclose(both.sums[: len(order)], whole.sums[order])
    assert together([]) is None
    assert together(iter(parts[:1])) is parts[0]


def test_stored_bytes_of_another_size_or_without_numbers_are_refused() -> None:
    blob = sketch_of(of_one(7, 9)).to_bytes()
    assert len(blob) == TemplateSketch.BYTES
    for wrong in (b"", blob[:-1], blob + b"\0", blob[:-8] + np.array([np.nan]).tobytes()):
        with pytest.raises(ValueError, match="sketch"):
            TemplateSketch.from_bytes(wrong)


def test_the_level_is_that_of_honest_clients_and_needs_enough_of_them() -> None:
    size = np.linspace(60, 400, 30)
    clients = [sketch_of(of_one(7, 30), rows_of(size, slope * size)) for slope in np.linspace(-0.5, 0.0, 101)]
    honest = HonestTemplates.of([*clients, None])
    assert honest.level == pytest.approx(-0.5 * (1 - FOREIGN), abs=0.01)
    assert honest.hashes[-1, 0] == UNKNOWN
    assert HonestTemplates.of([*clients[: FEWEST_HONEST - 1], None]).level == HonestTemplates().level == np.inf


def test_a_baseline_of_texts_holds_the_templates_of_its_calibration_clients(text_baseline: Baseline) -> None:
    held = text_baseline.calibration.templates
    assert len(held) == text_baseline.calibration.clients
    assert np.isfinite(held.level)
    assert (held.hashes > 0).any(), "applications have one"
    again = read_baseline(pack_baseline(text_baseline)).calibration.templates
    assert (again.hashes.tolist(), again.slopes.tolist()) == (held.hashes.tolist(), held.slopes.tolist())

    def with_templates(templates: HonestTemplates) -> Baseline:
        return replace(text_baseline, calibration=replace(text_baseline.calibration, templates=templates))

    older = with_templates(HonestTemplates())
    assert len(read_baseline(pack_baseline(older)).calibration.templates) == 0
    assert older.calibration_version == text_baseline.calibration_version, "profiles go on"
    for wrong in (
        HonestTemplates(held.hashes[:-1], held.slopes[:-1]), HonestTemplates(held.hashes - 2, held.slopes),
        HonestTemplates(held.hashes, held.slopes[:-1]), HonestTemplates(held.hashes, held.slopes * np.nan),
    ):  # fmt: skip
        with pytest.raises(CorruptBaseline):
            read_baseline(pack_baseline(with_templates(wrong)))
