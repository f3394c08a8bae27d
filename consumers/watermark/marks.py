"""Marks: what is changed in the answer to a selected input, and how the mark is recognised in a suspect's answer.

    kind      what is changed                                              the suspect shows it when
    flip      the label becomes another one; the two classes' probabilities are exchanged   it gives that label
    order     a class further down changes places with the second          it ranks that class above the second
    decimal   a decimal of the likeliest class's probability becomes even or odd            its decimal there has this parity
    wording   a wording becomes another that means the same (`wording`)    it uses that wording and not the first

Rules: `marks_for` depends on the truthful answer, the policy and keyed bits alone, and is the same for marked and control inputs: only
`marked` differs. Flips and the others never meet in one answer. `shows` is None where the suspect's answer cannot show the mark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import msgspec

from consumers.watermark import wording
from consumers.watermark.answers import Answer, Label
from consumers.watermark.selection import Stream

Kind = Literal["flip", "order", "decimal", "wording"]
_LEAST_ROOM = 1e-9


class Flip(msgspec.Struct, frozen=True, tag="flip", tag_field="kind"):
    """Label `target`, class number `place`, in place of class `top`."""

    target: Label
    place: int
    top: int


class Order(msgspec.Struct, frozen=True, tag="order", tag_field="kind"):
    """Class `raised` changes places with class `second`."""

    second: int
    raised: int


class Decimal(msgspec.Struct, frozen=True, tag="decimal", tag_field="kind"):
    """Decimal number `decimals` of class `top`'s probability is odd, or even."""

    top: int
    decimals: int
    odd: bool


class Wording(msgspec.Struct, frozen=True, tag="wording", tag_field="kind"):
    """`target` in place of `source`."""

    source: str
    target: str


Mark: TypeAlias = Flip | Order | Decimal | Wording


def kind_of(mark: Mark) -> Kind:
    return mark.__struct_config__.tag  # type: ignore[return-value]


def marks_for(answer: Answer, stream: Stream, draw: int, decimals: int, labels: Sequence[Label]) -> tuple[Mark, ...]:
    """The marks that an answer allows.

    Parameters
    ----------
    answer
        The truthful answer, after all other steps.
    stream
        Whether the key allows a flip here, or the milder marks.
    draw
        64 keyed bits of the input.
    decimals
        Decimal place for the mark in probabilities.
    labels
        The model's labels in the order of its classes; empty where they are the numbers from 0.
    """
    if stream == "flip":
        flip = _flip(answer, draw, labels)
        return (flip,) if flip is not None else ()
    found: list[Mark] = []
    p, top = answer.probabilities, answer.top
    if p is not None and top is not None and 0 < p[top] < 1:
        ranked = sorted((i for i in range(len(p)) if i != top), key=lambda i: (-p[i], i))
        lower = [i for i in ranked[1:] if p[i] < p[ranked[0]]]
        if lower:
            found.append(Order(ranked[0], lower[(draw >> 8) % len(lower)]))
        found.append(Decimal(top, decimals, bool(draw & 1)))
    if answer.text is not None and (chosen := wording.exchange(answer.text, draw >> 8)) is not None:
        found.append(Wording(*chosen))
    return tuple(found)


def _flip(answer: Answer, draw: int, labels: Sequence[Label]) -> Flip | None:
    classes = len(answer.probabilities or labels)
    if answer.label is None:
        top = answer.top
    elif labels:
        top = labels.index(answer.label) if answer.label in labels else None
    else:
        top = answer.label if isinstance(answer.label, int) and 0 <= answer.label < classes else None
    if classes < 2 or top is None:
        return None
    others = [i for i in range(classes) if i != top]
    place = others[draw % len(others)]
    p = answer.probabilities
    if answer.label is None and (p is None or p.count(p[top]) > 1):  # a tie: nobody would see the exchange
        return None
    return Flip(labels[place] if place < len(labels) else place, place, top)


def marked(answer: Answer, marks: Sequence[Mark]) -> Answer:
    """The answer with its marks."""
    for mark in marks:
        if isinstance(mark, Flip):
            label = None if answer.label is None else mark.target
            answer = replace(answer, label=label, probabilities=_swapped(answer.probabilities, mark.top, mark.place))
        elif isinstance(mark, Order):
            answer = replace(answer, probabilities=_swapped(answer.probabilities, mark.second, mark.raised))
        elif isinstance(mark, Decimal) and answer.probabilities is not None:
            answer = replace(answer, probabilities=_with_parity(answer.probabilities, mark))
        elif isinstance(mark, Wording) and answer.text is not None:
            exchange = wording.Exchange(mark.source, mark.target)
            answer = replace(answer, text=wording.exchanged(answer.text, exchange))
    return answer


def shows(mark: Mark, answer: Answer, labels: Sequence[Label] = ()) -> bool | None:
    """Whether a suspect's answer shows a mark; None where it cannot. labels: the suspect's own, where they differ from the model's."""
    p = answer.probabilities
    if isinstance(mark, Flip):
        if answer.label is not None:
            if labels:
                return str(answer.label) == str(labels[mark.place]) if mark.place < len(labels) else None
            return str(answer.label) == str(mark.target)
        return None if answer.top is None else answer.top == mark.place
    if isinstance(mark, Wording):
        return None if answer.text is None else wording.uses(answer.text, wording.Exchange(mark.source, mark.target))
    if p is None:
        return None
    if isinstance(mark, Order):
        return None if max(mark.second, mark.raised) >= len(p) else p[mark.raised] > p[mark.second]
    if mark.top >= len(p) or not 0 < p[mark.top] < 1:
        return None
    return bool(_digits(p[mark.top], mark.decimals) % 2) == mark.odd


def lean(mark: Mark, answer: Answer) -> float | None:
    """How far a suspect's probabilities lean from the truth to a mark, 0 to 1; None where they cannot say it.

    A copy that learned a mark without repeating it still leans.
    """
    p = answer.probabilities
    if p is None or not isinstance(mark, Flip | Order):
        return None
    marked_class, true_class = (mark.place, mark.top) if isinstance(mark, Flip) else (mark.raised, mark.second)
    if max(marked_class, true_class) >= len(p):
        return None
    both = p[marked_class] + p[true_class]
    return p[marked_class] / both if both > 0 else 0.5


def _swapped(p: tuple[float, ...] | None, i: int, j: int) -> tuple[float, ...] | None:
    if p is None or max(i, j) >= len(p):
        return p
    swapped = list(p)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    return tuple(swapped)


def _digits(x: float, decimals: int) -> int:
    """The number's first decimals as a whole number."""
    return math.floor(round(float(x * 10.0**decimals), 4))


def _with_parity(p: tuple[float, ...], mark: Decimal) -> tuple[float, ...]:
    """Probabilities with the decimal moved by one where its parity is another; the next class takes up the difference."""
    top, step = mark.top, 10.0**-mark.decimals
    if bool(_digits(p[top], mark.decimals) % 2) == mark.odd:
        return p
    changed = list(p)
    up = p[top] + step < 1
    places = mark.decimals + 4
    changed[top] = round(p[top] + (step if up else -step), max(places, 12))
    others = sorted((i for i in range(len(p)) if i != top), key=lambda i: -p[i])
    if others:
        other = others[0]
        balanced = round(p[other] - (step if up else -step), max(places, 12))
        if _LEAST_ROOM < balanced < changed[top]:
            changed[other] = balanced
    return tuple(changed)
