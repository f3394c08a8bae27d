"""The answers of a reference: the task, the names of the classes, and which probability belongs to which name.

Rules:
* The names of the classes are the labels in the log. A label need not be the class with the highest probability, because models decide at
  thresholds of their own. A label belongs to the probability that is higher where the label is given than elsewhere.
* A single probability (or logit) of two classes is that of the second class, the label that is given where the value is high.
* A label or probability that cannot be matched is reported, never guessed silently.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from consumers.errors import InvalidInput

Task = Literal["classification", "regression", "generation", "embedding"]

SEPARATED = 0.95
"""Share of the rows of each label that one threshold on one probability must explain, if that probability is the second class's."""
CLEARLY_BETTER = 0.1
"""An order of names that fits by so much better than 0, 1, 2, … is believed instead of it."""
FEW_ROWS = 5
SHOWN = 6


@dataclass(frozen=True, slots=True)
class Answers:
    """Task, class names in the order of the probabilities, and what there is to say about them."""

    task: Task
    labels: tuple[str, ...]
    said: list[str] = field(default_factory=list)


def label_name(value: Any) -> str | None:
    """How a label is called in a schema: as it is, whole numbers without a fraction, booleans as in JSON; None: it is none.

    >>> label_name(1.0), label_name(True), label_name("a"), label_name([2]), label_name(None)
    ('1', 'true', 'a', '2', None)
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return (str(int(value)) if value == int(value) else repr(value)) if math.isfinite(value) else None
    return str(value) if isinstance(value, int | str) else None


def infer_answers(predictions: Sequence[Mapping[str, Any]]) -> Answers:
    """Task and class names of logged predictions. Raises InvalidInput where the answers cannot be understood."""
    labels = [label_name(p.get("label")) for p in predictions]
    scores = [_scores(p) for p in predictions]
    width = _width(scores)
    listed = _listed(predictions)
    names = sorted({label for label in (*labels, *listed) if label is not None}, key=_natural)
    if not width:
        if names:
            told = "the probabilities name the classes" if listed else "no probabilities: the classes are the labels"
            return Answers("classification", tuple(names), [told])
        if any(_valued(p.get("value")) for p in predictions):
            return Answers("regression", ())
        if any(isinstance(p.get("text"), str) for p in predictions):
            return Answers("generation", (), ["answers are texts: of each only its length is kept"])
        if any(isinstance(p.get("embedding"), list) for p in predictions):
            return Answers("embedding", (), ["answers are embeddings: of each only its length is kept"])
        raise InvalidInput(
            "no row of the reference says what the model answered (label, probabilities, logits, value, text or embedding)"
        )
    if width == 1:
        return _of_one_probability(labels, scores, names)
    rows = [(label, s) for label, s in zip(labels, scores, strict=True) if s is not None and len(s) == width]
    given = np.array([s for _, s in rows], np.float64)
    return _matched([label for label, _ in rows], given, names)


def _listed(predictions: Iterable[Mapping[str, Any]]) -> set[str | None]:
    """Classes that probabilities or logits name: objects label → number."""
    given = (p.get(name) for p in predictions for name in ("probabilities", "logits"))
    return {label_name(label) for one in given if isinstance(one, dict) for label in one}


def _scores(prediction: Mapping[str, Any]) -> list[float] | None:
    """Probabilities of one answer, those of logits through the soft maximum; None: it has none."""
    for name in ("probabilities", "logits"):
        value = prediction.get(name)
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
            value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = [value]
        if isinstance(value, list) and value:
            numbers = [float(v) if isinstance(v, int | float) else math.nan for v in value]
            if not all(map(math.isfinite, numbers)):
                return None
            return numbers if name == "probabilities" or len(numbers) == 1 else _softmax(numbers)
    return None


def _softmax(logits: Sequence[float]) -> list[float]:
    powers = np.exp(np.asarray(logits) - max(logits))
    return list(map(float, powers / powers.sum()))


def _width(scores: Sequence[Sequence[float] | None]) -> int:
    """How many probabilities most answers have; 0: none."""
    widths = Counter(len(s) for s in scores if s)
    return widths.most_common(1)[0][0] if widths else 0


def _valued(value: Any) -> bool:
    return isinstance(value, int | float | list) and not isinstance(value, bool)


def _natural(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


# ------------------------------------------------------------------------------------------------ one probability


def _of_one_probability(
    labels: Sequence[str | None], scores: Sequence[Sequence[float] | None], names: Sequence[str]
) -> Answers:
    given = [(label, s[0]) for label, s in zip(labels, scores, strict=True) if s and len(s) == 1]
    if len(names) > 2:
        raise InvalidInput(
            f"the answers hold one probability and {len(names)} labels ({_some(names)}): log the probability of every class, or labels only"
        )
    if len(names) < 2:
        pair = _completed(names, [s for _, s in given])
        unsure = "no row has a label" if not names else f"only the label {names[0]} occurs"
        return Answers(
            "classification", pair, [_one_probability(pair), f"{unsure}: the classes are called {_some(pair)}"]
        )
    by_label = {name: np.array([s for label, s in given if label == name]) for name in names}
    if not all(len(values) for values in by_label.values()):
        raise InvalidInput(
            "the answers hold one probability, but not with both labels: log both probabilities, or labels only"
        )
    low, high = sorted(names, key=lambda name: float(by_label[name].mean()))
    threshold, explained = _threshold(by_label[low], by_label[high])
    if explained < SEPARATED:
        raise InvalidInput(
            f"the answers hold one probability, and it does not decide between the labels {low} and {high} "
            "(it may be that of the label that was given): log both probabilities, or labels only"
        )
    return Answers("classification", (low, high), [_one_probability((low, high)), _from(high, threshold)])


def _one_probability(pair: Sequence[str]) -> str:
    return f"one probability is that of class {pair[1]}; it is read as 1 - p, p"


def _completed(names: Sequence[str], scores: Sequence[float]) -> tuple[str, str]:
    """Two names where only one label, or none, was seen."""
    opposites = {"0": "1", "false": "true", "False": "True", "no": "yes", "No": "Yes", "-1": "1"}
    if not names:
        return "0", "1"
    (name,) = names
    if name in opposites:
        return name, opposites[name]
    for first, second in opposites.items():
        if name == second:
            return first, second
    other = f"not {name}"
    return (other, name) if sum(scores) >= len(scores) / 2 else (name, other)


def _threshold(low: NDArray[np.float64], high: NDArray[np.float64]) -> tuple[float, float]:
    """The threshold that tells the scores of two labels apart best, and the mean share of each label's rows that it explains."""
    values = np.concatenate([low, high])
    order = np.argsort(values, kind="stable")
    # both labels count alike, however rare one of them is
    weight = np.concatenate([np.full(len(low), 0.5 / len(low)), np.full(len(high), -0.5 / len(high))])[order]
    # rows below the cut should be low, those above it high
    right = 0.5 + np.concatenate([[0.0], np.cumsum(weight)])
    cut = int(right.argmax())
    ordered = values[order]
    edges = (ordered[max(cut - 1, 0)], ordered[min(cut, len(ordered) - 1)])
    return float(np.mean(edges)), float(right[cut])


def _from(name: str, threshold: float) -> str:
    return f"label {name} is given from a score of about {threshold:.2g} on"


# ------------------------------------------------------------------------------------------- as many as there are


def _matched(labels: Sequence[str | None], scores: NDArray[np.float64], names: Sequence[str]) -> Answers:
    """Names of the classes in the order of the probabilities."""
    width = scores.shape[1]
    if not names:
        return Answers(
            "classification", tuple(map(str, range(width))), ["no row has a label: the classes are numbered"]
        )
    seen = [name for name in names if name in set(labels)]
    lift = np.array([scores[[label == name for label in labels]].mean(0) for name in seen]).reshape(-1, width)
    lift -= scores.mean(0)
    place = _order(seen, lift, scores.mean(0))
    said: list[str] = []
    unmatched = [name for name in names if name not in place]
    if unmatched:
        said.append(
            f"labels that belong to no probability ({width} there are): {_some(unmatched)}; they count as no answer"
        )
    found = _named(place, width)
    unseen = [found[k] for k in range(width) if k not in place.values()]
    if unseen:
        said.append(
            f"no row has a label for {len(unseen)} of the {width} probabilities: they are called {_some(unseen)}"
        )
    often = Counter(labels)
    doubtful = [n for i, n in enumerate(seen) if n in place and lift[i, place[n]] <= 0 and often[n] >= FEW_ROWS]
    if doubtful and len(seen) > 1:
        said.append(f"labels that do not go with their probability: {_some(doubtful)}; check the order of the classes")
    if width == 2 and len(place) == 2:
        low, high = (scores[[label == found[k] for label in labels], 1] for k in (0, 1))
        said.append(_from(found[1], _threshold(low, high)[0]))
    return Answers("classification", found, said)


def _order(names: Sequence[str], lift: NDArray[np.float64], usual: NDArray[np.float64]) -> dict[str, int]:
    """Name → index of its probability. lift: by how much each probability is higher where the label is given."""
    from scipy.optimize import linear_sum_assignment

    width = lift.shape[1]
    numbered = all(name.isdigit() and str(int(name)) == name and int(name) < width for name in names)
    if len(names) == 1 and not numbered:
        return {names[0]: int(usual.argmax())}
    rows, at = linear_sum_assignment(-lift)
    best = {names[i]: int(k) for i, k in zip(rows, at, strict=True)}
    if numbered:
        plain = {name: int(name) for name in names}
        gained = sum(lift[i, k] for i, k in zip(rows, at, strict=True)) - sum(
            lift[i, int(n)] for i, n in enumerate(names)
        )
        if gained <= CLEARLY_BETTER * len(names):
            return plain
    return best


def _named(place: Mapping[str, int], width: int) -> tuple[str, ...]:
    """Every class by name; one without a label by its number, counted as the labels count."""
    by_index = {k: name for name, k in place.items()}
    shifts = {int(name) - k for name, k in place.items() if name.lstrip("-").isdigit()}
    shift = shifts.pop() if len(shifts) == 1 and all(n.lstrip("-").isdigit() for n in place) else 0
    found: list[str] = []
    for k in range(width):
        name = by_index.get(k, str(k + shift))
        found.append(name if k in by_index or name not in place else f"class {k}")
    return tuple(found)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown + (", …" if len(names) > SHOWN else "")
