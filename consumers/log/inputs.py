"""One event's input and answer as a row of a schema.

Rules:
* What was answered counts. What fits the schema is read by strict parsers (`InputReader.row`, `InputReader.answer`); what they refuse is
  read again with care (`careful_row`, `careful_answer`), encoded, and marked with what does not fit. The careful half never raises, and
  gives the same row as the strict one for whatever that takes.
* Codes are those of `detector.query`: NaN is missing, ±inf out of range, `len(categories)` an unseen category; an unreadable input is all
  NaN. `salt` keeps distinct inputs distinct where the codes do not.
* Values are matched by value, not by JSON type: `1.0`, `1`, `true` and `"true"` are one label.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from consumers.log.reasons import MisfitNote
from consumers.log.texts import TEXT_FORMS, written
from consumers.log.tolerant import UNREADABLE, Raw, given, parsed
from detector.errors import MalformedQuery
from detector.features import Schema
from detector.misfit import OUT_OF_RANGE
from detector.query import UNKNOWN_LABEL, Misfit

FORMS = ("features", "embedding", "text", "messages")
"""What an input may be called."""
MEMBERS = ("label", "probabilities", "logits", "value", "text", "embedding")
"""What a prediction may hold."""
ANSWER = "prediction"
"""Column of the notes about an answer."""
MOST_NOTES = 64
"""Of one query."""
PROBABLE = (-1e-6, 1 + 1e-3)
"""Least and most that a probability may be, rounding allowed for."""
CARE = (MalformedQuery, KeyError, TypeError, *UNREADABLE)
"""What the strict half raises for whatever the careful half must read."""

_ABSENT: Any = object()
_TEXT_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = frozenset(("nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"))
_TRUTHS = {"true": 1.0, "false": 0.0}

_SIZED = {"generation": "text", "embedding": "embedding"}
"""Tasks whose answer is kept as its size, and the member of the prediction that holds it."""
_BARE = {"regression": "value", "generation": "text"}
"""What a bare answer is, by task; a label for any other."""

_numbers = msgspec.json.Decoder(list[float])
_features = msgspec.json.Decoder(list[float | str] | dict[str, float | str])


class _Prediction(msgspec.Struct):
    label: int | str | None = None
    probabilities: list[float] | None = None
    logits: list[float] | None = None
    value: float | list[float] | None = None
    text: str | None = None


_prediction = msgspec.json.Decoder(_Prediction)


Answered = tuple[int, list[float], float]
"""Label, probabilities (as many as there are classes, NaN where they are not known), value of a regression or NaN."""
Values = tuple[list[float], Answered]
"""Input (d numbers) and answer."""


class CarefulRow(NamedTuple):
    """An input that was read with care. values: d numbers; misfit, salt, templates: as of `QueryBatch`."""

    values: list[float]
    misfit: int = 0
    salt: int = 0
    notes: tuple[MisfitNote, ...] = ()
    templates: tuple[int, ...] = ()


class CarefulAnswer(NamedTuple):
    """A prediction that was read with care."""

    label: int
    probabilities: list[float]
    value: float
    notes: tuple[MisfitNote, ...] = ()


class _Cell(NamedTuple):
    """One value of a row. named: what `salt` takes up of it."""

    code: float
    misfit: int = 0
    reason: str = ""
    named: str | None = None


class _Nested(Exception):
    """A list or an object where a value should be."""


_MISSING = int(Misfit.MISSING)
_NULL = _Cell(math.nan, _MISSING, "missing_value")
_GONE = _Cell(math.nan, _MISSING, "missing_column")
_BOUNDLESS = _Cell(math.nan, _MISSING, "not_finite")
_WORD = _Cell(math.nan, _MISSING, "wrong_type")


class InputReader:
    """Turns one event's input and prediction into a row of a schema. Built once a model."""

    def __init__(self, schema: Schema) -> None:
        self.ignored = 0
        """Values of columns that the schema does not have, in all inputs so far."""
        self.schema = schema
        self.width = schema.width
        self.classes = len(schema.labels) if schema.task == "classification" else 0
        self._labels = {label: i for i, label in enumerate(schema.labels)}
        self._by_value = _unambiguous(schema.labels)
        self._names = [c.name for c in schema.columns]
        self._kinds = [c.kind for c in schema.columns]
        self._paths = [c.name.split(".") if schema.named and "." in c.name else None for c in schema.columns]
        self._heads = set(self._names) | {path[0] for path in self._paths if path}
        self._codes: dict[int, dict[str, int]] = {
            j: {category: k for k, category in enumerate(c.categories)}
            for j, c in enumerate(schema.columns)
            if c.kind == "categorical"
        }
        self._coded = schema.named or bool(self._codes)
        self.plain = self.classes > 0 and self.width > 0 and not self._coded and not schema.of_texts
        """Whether an input is a list of numbers and an answer one of several classes."""
        self._no_probabilities = [math.nan] * self.classes
        self.unanswered = CarefulAnswer(UNKNOWN_LABEL, self._no_probabilities, math.nan)

    # ------------------------------------------------------------------------------------------------- the input

    def strictly(self, event: Mapping[str, Raw]) -> Values | None:
        """One event that fits the schema; None: read it with care, as every text is."""
        if self.schema.of_texts:
            return None
        ignored = self.ignored
        try:
            return self.row(event), self.answer(event[ANSWER])
        except CARE:
            self.ignored = ignored
            return None

    def row(self, event: Mapping[str, Raw]) -> list[float]:
        """Input of one event that fits the schema; raises one of `CARE` for any other."""
        raw = event.get(self.schema.input_form)
        if raw is None:
            raise MalformedQuery("missing_input")
        values = self._strict(raw) if self._coded else _numbers.decode(raw)
        # the parser knows neither NaN nor infinity, so the extremes speak for all
        if len(values) != self.width or max(values) > OUT_OF_RANGE or min(values) < -OUT_OF_RANGE:
            raise MalformedQuery("wrong_dimension")
        return values

    def _strict(self, raw: Raw) -> list[Any]:
        found: list[Any] | dict[str, Any] = _features.decode(raw)
        more = 0
        if isinstance(found, dict):
            more = len(found) - self.width
            found = [found[name] for name in self._names]
        if len(found) != self.width:
            raise MalformedQuery("wrong_dimension")
        for j, codes in self._codes.items():
            found[j] = float(codes[_category(found[j])])
        self.ignored += more
        return found  # a word among the numbers does not compare to one

    def careful_row(self, event: Mapping[str, Raw]) -> CarefulRow:
        """Input of one event, whatever it looks like. Never raises."""
        if self.schema.of_texts:
            return self._text_row(event)
        raw = given(event, self.schema.input_form)
        if raw is None:
            others = [other for form in FORMS if (other := given(event, form)) is not None]
            if others:
                return self.unreadable("unsupported_input", *others)
            # without an input, the answer alone tells queries apart
            return self.unreadable("missing_input", event.get(ANSWER, b""))
        try:
            found = parsed(raw)
        except (ValueError, RecursionError):
            return self.unreadable("wrong_type", raw)
        if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list | dict):
            found = found[0]
        strange = False
        if isinstance(found, dict):
            ignored = len(found.keys() - self._heads)
            self.ignored += ignored
            found = self._picked(found)
            absent = sum(cell is _ABSENT for cell in found)
            if absent == self.width:
                return self.unreadable("missing_column", raw)
            strange = bool(absent and ignored)
        if not isinstance(found, list):
            return self.unreadable("wrong_type", raw)
        if len(found) != self.width:
            return self.unreadable("wrong_dimension", raw)
        try:
            cells = [self._cell(j, value) for j, value in enumerate(found)]
        except _Nested:
            return self.unreadable("wrong_type", raw)
        named = [f"{j}:{len(cell.named)}:{cell.named}" for j, cell in enumerate(cells) if cell.named is not None]
        # a column under a name that only the model's server knows: it tells queries apart
        salt = digest(raw) if strange else digest("".join(named).encode("utf-8", "surrogatepass")) if named else 0
        misfit = 0
        for cell in cells:
            misfit |= cell.misfit
        notes = [MisfitNote(cell.reason, self._names[j]) for j, cell in enumerate(cells) if cell.reason]
        return CarefulRow([cell.code for cell in cells], misfit, salt, tuple(notes[:MOST_NOTES]))

    def _text_row(self, event: Mapping[str, Raw]) -> CarefulRow:
        """A text as the schema's encoder reads it; the salt is the text's digest."""
        form = next((form for form in TEXT_FORMS if given(event, form) is not None), None)
        if form is None or self.schema.encoder is None:
            others = [other for name in FORMS if (other := given(event, name)) is not None]
            if others:
                return self.unreadable("unsupported_input", *others)
            return self.unreadable("missing_input", event.get(ANSWER, b""))
        try:
            found = written(form, parsed(event[form]))
        except (ValueError, RecursionError):
            found = None
        if found is None:
            return self.unreadable("wrong_type", event[form])
        row, templates = self.schema.encoder.read(found.text)
        return CarefulRow(row.tolist(), 0, found.digest, (), tuple(templates.tolist()))

    def unreadable(self, reason: str, *raws: Raw) -> CarefulRow:
        """The row of an input that cannot be read. raws: what tells it from others."""
        return CarefulRow([math.nan] * self.width, int(Misfit.UNREADABLE), digest(*raws), (MisfitNote(reason),))

    def _picked(self, found: Mapping[str, Any]) -> list[Any]:
        """Values of the columns; of a dotted name what stands in the nested objects, unless a key is called so."""
        values = []
        for name, path in zip(self._names, self._paths, strict=True):
            value = found.get(name, _ABSENT)
            if value is _ABSENT and path is not None:
                value = found
                for key in path:
                    value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
            values.append(value)
        return values

    def _cell(self, j: int, value: Any) -> _Cell:
        if value is _ABSENT:
            return _GONE
        if value is None:
            return _NULL
        if isinstance(value, list | dict):
            raise _Nested
        codes = self._codes.get(j)
        if codes is not None:
            return _coded(value, codes)
        if isinstance(value, str):
            return _of_text(value.strip(), self._kinds[j])
        if isinstance(value, bool):
            return _Cell(float(value)) if self._kinds[j] == "boolean" else _retyped(_Cell(float(value)))
        return _of_number(value)

    # ------------------------------------------------------------------------------------------------ the answer

    def answer(self, raw: Raw) -> Answered:
        """A prediction that fits the schema; raises one of `CARE` for any other."""
        if self.schema.task in _SIZED:
            raise MalformedQuery("wrong_output")  # the careful half measures it
        found = _prediction.decode(raw)
        if self.schema.task == "regression":
            value = found.value[0] if isinstance(found.value, list) and found.value else found.value
            if not isinstance(value, float | int) or abs(value) > OUT_OF_RANGE:
                raise MalformedQuery("wrong_output")
            return UNKNOWN_LABEL, self._no_probabilities, float(value)
        probabilities = found.probabilities
        if probabilities is None and found.logits is not None:
            probabilities = _softmax(found.logits)
        if probabilities is not None and (len(probabilities) != self.classes or not _probable(probabilities)):
            raise MalformedQuery("wrong_output")
        if found.label is not None:
            label = self.label_index(found.label)
            if label is None:
                raise MalformedQuery("wrong_output")
            return label, self._no_probabilities if probabilities is None else probabilities, math.nan
        if probabilities is None:
            raise MalformedQuery("missing_prediction")
        return max(range(self.classes), key=probabilities.__getitem__), probabilities, math.nan

    def label_index(self, label: int | str) -> int | None:
        """The class that a label names; None where it must be read with care."""
        return self._labels.get(str(label))

    def careful_answer(self, raw: Raw | None) -> CarefulAnswer:
        """A prediction, whatever it looks like; what cannot be read of it is missing. Never raises."""
        try:
            found = None if raw is None else _alone(parsed(raw))
        except (ValueError, RecursionError):
            return self._unanswered("wrong_output")
        if isinstance(found, dict):
            members = {name: found[name] for name in MEMBERS if found.get(name) is not None}
        elif found is None or isinstance(found, list):
            members = {}
        else:  # a bare answer
            members = {_BARE.get(self.schema.task, "label"): found}
        if not members:
            return self._unanswered("wrong_output" if isinstance(found, list) else "missing_prediction")
        if self.schema.task in _SIZED:
            return self._sized(members.get(_SIZED[self.schema.task]))
        return self._valued(members) if self.schema.task == "regression" else self._labelled(members)

    def _sized(self, answer: Any) -> CarefulAnswer:
        """An answer that is a text or an embedding: only its size is kept."""
        if not isinstance(answer, str if self.schema.task == "generation" else list):
            return self._unanswered("wrong_output")
        return CarefulAnswer(UNKNOWN_LABEL, self._no_probabilities, float(len(answer)))

    def _unanswered(self, reason: str) -> CarefulAnswer:
        return self.unanswered._replace(notes=(MisfitNote(reason, ANSWER),))

    def _valued(self, members: Mapping[str, Any]) -> CarefulAnswer:
        value = members.get("value")
        if isinstance(value, list) and value:
            value = value[0]
        number = _number(value)
        if not abs(number) <= OUT_OF_RANGE:
            return self._unanswered("wrong_output")
        return CarefulAnswer(UNKNOWN_LABEL, self._no_probabilities, number)

    def _labelled(self, members: Mapping[str, Any]) -> CarefulAnswer:
        wrong = False
        probabilities = None
        if "probabilities" in members:
            probabilities = self._scores(members["probabilities"], lambda p: [1 - p, p])
            wrong = probabilities is None or not _probable(probabilities)
        elif "logits" in members:
            logits = self._scores(members["logits"], lambda z: [0.0, z])
            wrong = logits is None or not all(map(math.isfinite, logits))
            probabilities = None if wrong or logits is None else _softmax(logits)
        if wrong:
            probabilities = None
        label = UNKNOWN_LABEL
        if "label" in members:
            label = self._label(_alone(members["label"]))
            wrong = wrong or label == UNKNOWN_LABEL
        elif probabilities is not None:
            label = max(range(self.classes), key=probabilities.__getitem__)
        else:
            wrong = True
        notes = (MisfitNote("wrong_output", ANSWER),) if wrong else ()
        return CarefulAnswer(label, self._no_probabilities if probabilities is None else probabilities, math.nan, notes)

    def _label(self, value: Any) -> int:
        if isinstance(value, list | dict) or value is None:
            return UNKNOWN_LABEL
        exact = self._labels.get(value if isinstance(value, str) else _category(value))
        return self._by_value.get(_by_value(value), UNKNOWN_LABEL) if exact is None else exact

    def _scores(self, value: Any, pair: Any) -> list[float] | None:
        """As many numbers as there are classes; of two classes the second's alone is enough. None when it is anything else."""
        value = _alone(value)
        if isinstance(value, dict):
            by_label = {self._label(name): score for name, score in value.items()}
            if len(value) != self.classes or by_label.keys() != set(range(self.classes)):
                return None
            value = [by_label[i] for i in range(self.classes)]
        listed = value if isinstance(value, list) else [value]
        scores = [_number(score) for score in listed]
        if len(scores) == 1 and self.classes == 2:
            scores = pair(scores[0])
        return scores if len(scores) == self.classes and not any(map(math.isnan, scores)) else None


# ---------------------------------------------------------------------------------------------------------- values


def digest(*raws: Raw) -> int:
    """64 bits of what was logged; never 0."""
    hashed = hashlib.blake2b(digest_size=8)
    for raw in raws:
        hashed.update(raw)
    return int.from_bytes(hashed.digest(), "little") or 1


def _coded(value: Any, codes: Mapping[str, int]) -> _Cell:
    if isinstance(value, float) and not math.isfinite(value):
        return _BOUNDLESS
    names = (
        ("true", "True", "1") if value is True else ("false", "False", "0") if value is False else (_category(value),)
    )
    for name in names:
        if name in codes:
            return _Cell(float(codes[name]))
    return _Cell(float(len(codes)), int(Misfit.OTHER), "unknown_category", names[0])


def _of_number(value: float) -> _Cell:
    try:
        number = float(value)
    except OverflowError:
        return _BOUNDLESS
    if not math.isfinite(number):
        return _BOUNDLESS
    if abs(number) > OUT_OF_RANGE:
        whole = int(value) if number.is_integer() else value
        return _Cell(math.copysign(math.inf, number), int(Misfit.OUT_OF_RANGE), "out_of_range", repr(whole))
    return _Cell(number)


def _of_text(text: str, kind: str) -> _Cell:
    if not text:
        return _NULL
    if _TEXT_NUMBER.fullmatch(text):
        return _retyped(_of_number(float(text)))
    if text.lower() in _NOT_FINITE:
        return _BOUNDLESS
    if kind == "boolean" and text.lower() in _TRUTHS:
        return _retyped(_Cell(_TRUTHS[text.lower()]))
    return _WORD


def _retyped(cell: _Cell) -> _Cell:
    if cell.misfit & _MISSING:
        return cell
    return cell._replace(misfit=cell.misfit | int(Misfit.RETYPED), reason=cell.reason or "retyped")


def _category(value: Any) -> str:
    """Categories given as numbers are named like JSON prints whole numbers."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return str(int(value))
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(value)


def _by_value(value: Any) -> str:
    """One name for whatever says the same: 1, 1.0, "1.0", true, "True"."""
    text = value.strip().lower() if isinstance(value, str) else _category(value)
    if text in _TRUTHS:
        return str(int(_TRUTHS[text]))
    return _category(float(text)) if _TEXT_NUMBER.fullmatch(text) else text


def _unambiguous(labels: Sequence[str]) -> dict[str, int]:
    """Labels by value, without those that say the same as another."""
    found: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        found.setdefault(_by_value(label), []).append(i)
    return {name: mine[0] for name, mine in found.items() if len(mine) == 1}


def _alone(value: Any) -> Any:
    """What stands alone in a list."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _number(value: Any) -> float:
    """A number, or one written as text; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value) if not isinstance(value, str) or _TEXT_NUMBER.fullmatch(value.strip()) else math.nan
    except OverflowError:
        return math.nan


def _probable(probabilities: Sequence[float]) -> bool:
    return min(probabilities, default=-1.0) >= PROBABLE[0] and max(probabilities) <= PROBABLE[1]


def _softmax(logits: Iterable[float]) -> list[float]:
    listed = list(logits)
    top = max(listed, default=0.0)
    powers = [math.exp(v - top) for v in listed]
    total = sum(powers)
    return [p / total for p in powers]
