"""Marks and graded steps: what they change, what they never change, and that a suspect's answer shows them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.watermark.answers import Answer, answer_of
from consumers.watermark.degradation import Degradation, Step, degradation_of, degraded, without_canaries
from consumers.watermark.marks import Flip, kind_of, marked, marks_for, shows
from consumers.watermark.wording import PAIRS, Exchange, exchange, exchanged, uses

KEY = bytes(32)
PROBABILITIES = st.lists(st.floats(0.001, 1), min_size=2, max_size=6).map(
    lambda w: tuple(round(x / sum(w), 9) for x in w)
)
DRAWS = st.integers(0, 2**64 - 1)


# --- steps


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Degradation()),
        ("none", Degradation()),
        ("round=2", Degradation((Step("round", 2),))),
        (" topk=3 , label,noise=0.1", Degradation((Step("topk", 3), Step("label"), Step("noise", 0.1)))),
        ("round=x, what=3, noise=nan, noise=-1, topk", Degradation()),
        ("canary=abc,top1", Degradation((Step("top1"),), ("abc",))),
    ],
)
def test_a_header_is_read(header: str, expected: Degradation) -> None:
    assert degradation_of(header) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("round=1", (0.6, 0.3, 0.1)),
        ("topk=2", (0.61234, 0.28766, 0.0)),
        ("topk=0", (0.61234, 0.0, 0.0)),
        ("top1", (1.0, 0.0, 0.0)),
        ("noise=0", (0.61234, 0.28766, 0.1)),
        ("topk=1,round=0", (1.0, 0.0, 0.0)),
    ],
)
def test_what_a_step_leaves(steps: str, expected: tuple[float, ...]) -> None:
    answer = degraded(Answer(0, (0.61234, 0.28766, 0.1)), degradation_of(steps).steps, KEY, b"x")
    assert answer.probabilities == pytest.approx(expected)


def test_label_only_and_no_reasoning() -> None:
    assert degraded(Answer(None, (0.2, 0.8)), (Step("label"),), KEY, b"x") == Answer(1, None)
    assert degraded(Answer("fraud", (0.2, 0.8)), (Step("label"),), KEY, b"x") == Answer("fraud", None)
    thought = Answer(text="<think>two and two\nis four</think>\nFour.")
    assert degraded(thought, (Step("noreasoning"),), KEY, b"x").text == "Four."
    assert degraded(Answer(text="<thinking>cut off"), (Step("noreasoning"),), KEY, b"x").text == ""
    assert degraded(Answer(value=1.23456), (Step("round", 2),), KEY, b"x").value == 1.23


@given(PROBABILITIES, st.lists(st.sampled_from(["round=0", "round=1", "noise=0.3", "top1", "topk=1", "topk=2", "?"])))
def test_no_step_changes_the_likeliest_class(p: tuple[float, ...], steps: list[str]) -> None:
    answer = degraded(Answer(None, p), degradation_of(",".join(steps)).steps, KEY, b"x")
    assert answer.probabilities is not None
    top = p.index(max(p))
    assert answer.probabilities[top] == max(answer.probabilities)
    assert all(0 <= x <= 1 for x in answer.probabilities)


def test_noise_is_the_same_for_the_same_input_and_has_the_size_that_was_asked() -> None:
    p = (0.4, 0.35, 0.25)
    noisy = [degraded(Answer(None, p), (Step("noise", 0.02),), KEY, str(n).encode()).probabilities for n in range(2000)]
    assert noisy[7] == degraded(Answer(None, p), (Step("noise", 0.02),), KEY, b"7").probabilities
    shift = [q[0] - p[0] for q in noisy if q is not None]
    assert 0.01 < (sum(x * x for x in shift) / len(shift)) ** 0.5 < 0.03


def test_canaries_are_taken_out_of_a_header() -> None:
    assert without_canaries("canary=a,round=2,canary=b, top1") == "round=2,top1"


# --- marks


@given(PROBABILITIES, DRAWS, st.booleans())
def test_a_flip_gives_another_label_and_keeps_the_numbers(p: tuple[float, ...], draw: int, labelled: bool) -> None:
    top = p.index(max(p))
    truth = Answer(top if labelled else None, p)
    marks = marks_for(truth, "flip", draw, 6, ())
    if not marks:
        assert not labelled
        assert p.count(max(p)) > 1, "a tie"
        return
    (flip,) = marks
    answer = marked(truth, marks)
    assert shows(flip, answer)
    assert sorted(answer.probabilities or ()) == sorted(p)
    if labelled:
        assert answer.label != truth.label
        assert not shows(flip, truth)
    assert shows(flip, Answer()) is None


def test_a_flip_speaks_the_models_labels_and_needs_to_know_them() -> None:
    truth = Answer("honest")
    assert marks_for(truth, "flip", 5, 6, ()) == ()
    (flip,) = marks_for(truth, "flip", 5, 6, ("honest", "fraud"))
    assert flip == Flip("fraud", 1, 0)
    assert marked(truth, (flip,)) == Answer("fraud")
    assert shows(flip, Answer("fraud"))
    assert marks_for(Answer("unheard of"), "flip", 5, 6, ("honest", "fraud")) == ()


@given(PROBABILITIES, DRAWS)
def test_milder_marks_keep_the_label_and_are_recognised(p: tuple[float, ...], draw: int) -> None:
    top = p.index(max(p))
    if max(p) - sorted(p)[-2] < 3e-6:  # so near to a tie that a decimal decides
        return
    truth = Answer(top, p)
    marks = marks_for(truth, "mark", draw, 6, ())
    answer = marked(truth, marks)
    assert answer.label == top
    assert answer.probabilities is not None
    assert answer.probabilities.index(max(answer.probabilities)) == top
    assert all(shows(mark, answer) for mark in marks)
    assert abs(sum(answer.probabilities) - sum(p)) <= 2e-6
    assert {kind_of(m) for m in marks} <= {"order", "decimal"}
    if len(p) == 2:
        assert "order" not in {kind_of(m) for m in marks}


def test_a_mark_of_order_is_not_shown_by_the_truth_and_a_parity_by_half_of_all() -> None:
    p = (0.7, 0.2, 0.1)
    shown = {"order": 0, "decimal": 0}
    draws = random.Random(1)
    for _ in range(400):
        for mark in marks_for(Answer(0, p), "mark", draws.getrandbits(64), 6, ()):
            shown[kind_of(mark)] += bool(shows(mark, Answer(0, p)))
    assert shown["order"] == 0
    assert 150 < shown["decimal"] < 250


def test_a_degraded_answer_carries_what_is_left_to_carry() -> None:
    assert marks_for(Answer(1, None), "mark", 3, 6, ()) == ()
    assert marks_for(Answer(1, (0.0, 1.0)), "mark", 3, 6, ()) == ()
    (flip,) = marks_for(Answer(1, None), "flip", 3, 6, (0, 1, 2))
    assert kind_of(flip) == "flip"
    assert degradation_of("round=2").decimals(6) == 2


# --- wording


@given(
    st.lists(st.sampled_from([w for pair in PAIRS for w in pair] + ["the model", "is", "a `since` b"]), max_size=8),
    DRAWS,
)
def test_an_exchange_is_shown_afterwards_and_not_before(words: list[str], draw: int) -> None:
    text = " ".join(words)
    chosen = exchange(text, draw)
    if chosen is None:
        return
    changed = exchanged(text, chosen)
    assert not uses(text, chosen)
    assert changed != text
    if sum(word == chosen.source for word in words) == 1:
        assert uses(changed, chosen)


def test_an_exchange_keeps_capitals_and_leaves_code_alone() -> None:
    chosen = Exchange("however", "nevertheless")
    assert exchanged("However, `however` stays.", chosen) == "Nevertheless, `however` stays."
    assert exchanged("`however` only", chosen) == "`however` only"
    assert exchange("nothing here", 1) is None
    assert exchange("however: nevertheless", 1) is None


def test_fields_of_the_query_log_are_an_answer() -> None:
    assert answer_of({"label": 1, "probabilities": [0.2, 0.8]}) == Answer(1, (0.2, 0.8))
    assert answer_of({"label": True, "probabilities": ["x"], "value": False}) is None
