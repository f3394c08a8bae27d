"""Infer the schema of a reference: columns with kind, bounds and grain, the form of the input, the task and the classes.

Rules:
* Nothing depends on the first row. The form of the input and the number of columns of a list are those of most rows. The columns of
  objects are the union over all rows, each with the share of rows that lack it.
* A column that hardly any row has, or that never holds a value, is an extra: it is listed but not part of the schema.
* A declared column overrides the inferred one.
* A refusal names the column and what to do about it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.classes import Answers, infer_answers, label_name
from consumers.errors import InvalidInput
from consumers.log.references import RawReference, flattened, input_of
from detector.features import Column, Schema, infer_grain
from detector.misfit import OUT_OF_RANGE
from detector.text import TEXT_COLUMNS, UNTRAINED

KINDS = ("numeric", "boolean", "categorical", "embedding", "ignored")
"""What a schema file may declare."""
RARE = 0.01
FEWEST_ROWS = 3
"""Fewest rows, and smallest share of the rows, that must have a value in a column of the schema."""
MANY_NUMBERS = 20
"""A column with more distinct numbers, and words in at most half of its rows, is a column of numbers with words for what is missing."""
MANY_CATEGORIES = 0.5
"""Above this share of distinct values among at least 50 a categorical column looks like an identifier."""
EXAMPLES = 3
LONGEST_EXAMPLE = 4
SHOWN = 5

_NUMBER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
"""A number written as text. One with leading zeros is a name."""


@dataclass(frozen=True, slots=True)
class Described:
    """One column as it was understood, for people. categories: number of them; examples: shortened; note: what is odd about it."""

    name: str
    kind: str
    missing: float
    lower: float | None = None
    upper: float | None = None
    grain: float | None = None
    categories: int | None = None
    examples: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Understood:
    """A schema and how it came about.

    columns  one entry a column of the schema
    extras   (name, why) of columns that are not in it
    answers  the classes, with what there is to say about them
    """

    schema: Schema
    columns: tuple[Described, ...]
    extras: tuple[tuple[str, str], ...]
    answers: Answers


def infer_schema(raw: RawReference, declared: object = None) -> Schema:
    """Schema of a reference."""
    return understand(raw, declared).schema


def understand(raw: RawReference, declared: object = None) -> Understood:
    """Schema of a reference and what there is to say about it. Raises InvalidInput in one line.

    declared: ``{"columns": [{"name", "kind", "lower", "upper", "grain", "categories"}, …]}``, all but name optional; it wins.
    """
    if not raw.events:
        raise InvalidInput(f"the reference holds no usable event{_why(raw)}")
    given = _columns_of(declared)
    form, named, rows = _inputs(raw.events)
    if form == "text":
        return _of_texts(raw, rows, given)
    if not named:
        width = Counter(map(len, rows)).most_common(1)[0][0]
        rows = [row for row in rows if len(row) == width]
    table = _table_of_objects(rows) if named else _table_of_lists(rows)
    if not table:
        raise InvalidInput("the reference's inputs are empty")
    unknown = sorted(set(given) - set(table))
    if unknown:
        raise InvalidInput(f"the schema names columns that the reference lacks: {', '.join(unknown[:SHOWN])}")
    columns: list[Column] = []
    described: list[Described] = []
    extras: list[tuple[str, str]] = []
    for name, values in table.items():
        values.kind = given.get(name, {}).get("kind", "embedding" if form == "embedding" else "")
        why = _extra(values, len(rows), named, name in given)
        if why:
            extras.append((name, why))
            continue
        column, told = _column(name, values, len(rows), given.get(name, {}))
        columns.append(column)
        described.append(told)
    if not columns:
        raise InvalidInput(f"the reference's inputs hold no column that can be used{_listed(extras)}")
    answers = infer_answers([_prediction(e) for e in raw.events])
    schema = Schema(tuple(columns), form, named, answers.task, answers.labels)
    return Understood(schema, tuple(described), tuple(extras), answers)


def _why(raw: RawReference) -> str:
    if raw.elsewhere and not raw.refused.total:
        return f" (unknown_model: all {raw.elsewhere:,} lines are of other models)"
    return f" ({raw.refused.words()}; {raw.refused.first()})" if raw.refused.total else ""


def _listed(extras: Sequence[tuple[str, str]]) -> str:
    return "".join(f"; {name}: {why}" for name, why in extras[:SHOWN])


def _prediction(event: Mapping[str, Any]) -> Mapping[str, Any]:
    found = event.get("prediction")
    return found if isinstance(found, dict) else {}


# ------------------------------------------------------------------------------------------------------ the table


@dataclass(slots=True)
class _Values:
    """What the rows hold in one column, sorted by what it is.

    kind     declared for the column; empty: to be found out
    numbers  finite, within what is read; booleans and numbers in texts too
    huge     beyond it
    """

    kind: str = ""
    numbers: list[float] = field(default_factory=list)
    booleans: int = 0
    huge: int = 0
    texts: int = 0
    words: int = 0
    nested: int = 0
    names: Counter[str] = field(default_factory=Counter)

    def add(self, value: Any) -> None:
        """Count one value; null and what is no finite number count as nothing."""
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return
        if isinstance(value, list | dict):
            self.nested += 1
            return
        name = label_name(value)
        if name is not None:
            self.names[name] += 1
        if isinstance(value, str):
            self.texts += 1
            value = value.strip()
            if not _NUMBER.fullmatch(value) or not any(map(str.isdigit, value)):
                self.words += 1
                return
        self.booleans += isinstance(value, bool)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if abs(number) <= OUT_OF_RANGE:
            self.numbers.append(number)
        else:
            self.huge += 1

    @property
    def scalars(self) -> int:
        return self.names.total()

    def found_kind(self) -> str:
        """Kind of a column that nobody declared."""
        if self.scalars and self.booleans == self.scalars:
            return "boolean"
        if not self.words:
            return "numeric"
        numbers = len(self.numbers) + self.huge
        return "numeric" if self.words <= numbers and len(set(self.numbers)) > MANY_NUMBERS else "categorical"


def _inputs(events: Iterable[Mapping[str, Any]]) -> tuple[str, bool, list[Any]]:
    """The form that most inputs have, whether it is an object, and the inputs of that form."""
    found = [i for i in map(input_of, events) if i is not None]
    forms = Counter((i.form, i.named) for i in found if isinstance(i.values, dict | list | str))
    if not forms:
        raise InvalidInput("the reference's events have none of features, embedding or text")
    (form, named), _ = forms.most_common(1)[0]
    if form == "embedding" and named:
        raise InvalidInput("embedding must be a list of numbers; log named columns as features")
    return (
        form,
        named,
        [i.values for i in found if (i.form, i.named) == (form, named) and isinstance(i.values, dict | list | str)],
    )


def _of_texts(raw: RawReference, texts: Sequence[str], given: Mapping[str, Any]) -> Understood:
    """A reference of texts: the columns of their encoder, which `text_fitting.py` learns."""
    if given:
        raise InvalidInput("the schema names columns, but the reference's inputs are texts, which have none")
    answers = infer_answers([_prediction(e) for e in raw.events])
    columns = tuple(Column(name, "text", 0.0, 0.0, 0.0) for name in TEXT_COLUMNS)
    sizes = [len(text) for text in texts]
    told = Described("text", "text", 0.0, float(min(sizes)), float(max(sizes)), note="bounds are characters")
    return Understood(Schema(columns, "text", False, answers.task, answers.labels, UNTRAINED), (told,), (), answers)


def _table_of_lists(rows: Sequence[list[Any]]) -> dict[str, _Values]:
    """Columns of lists of one length."""
    columns = [_Values() for _ in rows[0]]
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            column.add(value)
    return {f"x{j}": column for j, column in enumerate(columns)}


def _table_of_objects(rows: Sequence[Mapping[str, Any]]) -> dict[str, _Values]:
    """Columns of objects, in the order that most rows have; what those lack comes after."""
    flat = [dict(flattened(row)) for row in rows]
    usual = Counter(map(tuple, flat)).most_common(1)[0][0]
    table: dict[str, _Values] = {name: _Values() for name in usual}
    for row in flat:
        for name, value in row.items():
            table.setdefault(name, _Values()).add(value)
    return table


def _extra(values: _Values, rows: int, named: bool, declared: bool) -> str:
    """Why a column of objects is not in the schema; empty: it is. A list's columns all are."""
    if values.kind == "ignored":
        if not named:
            raise InvalidInput("a column of a list cannot be ignored: only named columns can")
        return "ignored, as declared"
    if not named or declared:
        return ""
    if values.nested > values.scalars:
        return "holds lists or deeply nested objects"
    if not values.scalars:
        return "never holds a value"
    if values.scalars < max(min(FEWEST_ROWS, rows), RARE * rows):
        return f"only {values.scalars:,} of {rows:,} rows have it"
    return ""


# ------------------------------------------------------------------------------------------------------ one column


class _Declared(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    kind: str | None = None
    lower: float | None = None
    upper: float | None = None
    grain: Annotated[float, msgspec.Meta(ge=0)] | None = None
    categories: list[str] | None = None


class _SchemaFile(msgspec.Struct, forbid_unknown_fields=True):
    columns: list[_Declared] = []


def _columns_of(declared: object) -> dict[str, dict[str, Any]]:
    """What a schema file says, by column. Raises InvalidInput in one line."""
    if declared is None:
        return {}
    try:
        file = msgspec.convert(declared, _SchemaFile)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"schema: {error}") from error
    found = {c.name: {k: v for k, v in msgspec.structs.asdict(c).items() if v is not None} for c in file.columns}
    for name, one in found.items():
        if one.get("kind", KINDS[0]) not in KINDS:
            raise InvalidInput(f"column {name}: unknown kind {one['kind']!r}; there are {', '.join(KINDS)}")
    return found


def _column(name: str, values: _Values, rows: int, given: Mapping[str, Any]) -> tuple[Column, Described]:
    kind = values.kind or values.found_kind()
    if kind == "categorical":
        return _categorical(name, values, rows, given)
    if values.huge > len(values.numbers):
        ignored = f'{{"columns": [{{"name": "{name}", "kind": "ignored"}}]}}'
        raise InvalidInput(
            f"column {name}: {values.huge:,} of {rows:,} values are over {OUT_OF_RANGE:g} in size, beyond what is read. "
            f"Log times in seconds or days; leave identifiers out, or ignore them: fit --schema FILE with {ignored}"
        )
    numbers = np.array(values.numbers, np.float64)
    if not len(numbers):
        holds = "lists or objects" if values.nested else "words" if values.words else "no finite numbers"
        raise InvalidInput(f"column {name} is {kind}, but holds {holds} in the reference")
    missing = (rows - len(numbers) - values.huge) / rows
    if kind == "boolean":
        return Column(name, kind, 0.0, 1.0, 1.0, missing=missing), Described(
            name, kind, missing, 0.0, 1.0, examples=tuple(list(values.names)[:2]), note=_note(values)
        )
    lower, upper, grain = _bounds(name, numbers, given)
    return Column(name, kind, lower, upper, grain, missing=missing), Described(
        name, kind, missing, lower, upper, grain, note=_note(values)
    )


def _bounds(name: str, numbers: NDArray[np.float64], given: Mapping[str, Any]) -> tuple[float, float, float]:
    lower, upper = float(given.get("lower", numbers.min())), float(given.get("upper", numbers.max()))
    if lower > upper:
        raise InvalidInput(f"column {name}: lower bound {lower:g} above upper bound {upper:g}")
    return lower, upper, float(given.get("grain", infer_grain(numbers)))


def _categorical(name: str, values: _Values, rows: int, given: Mapping[str, Any]) -> tuple[Column, Described]:
    categories = tuple(given.get("categories") or sorted(values.names))
    missing = (rows - values.scalars) / rows
    if not categories:
        raise InvalidInput(f"column {name}: no categories in the reference")
    note = ""
    if len(values.names) >= 50 and len(values.names) > MANY_CATEGORIES * values.scalars:
        note = "nearly every value is another one: an identifier? Leave it out, or declare it ignored"
    shown = tuple(shortened(c) for c, _ in values.names.most_common(EXAMPLES))
    column = Column(name, "categorical", 0.0, float(len(categories) - 1), 1.0, categories, missing)
    return column, Described(name, "categorical", missing, categories=len(categories), examples=shown, note=note)


def _note(values: _Values) -> str:
    """What is unusual about a column of numbers."""
    notes = []
    if values.texts - values.words == len(values.numbers) + values.huge:
        notes.append("every value is text that reads as a number; declare it categorical if these are names")
    elif values.texts - values.words:
        notes.append(f"{values.texts - values.words:,} numbers are written as text")
    if values.words:
        notes.append(f"{values.words:,} words count as missing")
    if values.huge:
        notes.append(f"{values.huge:,} values are over {OUT_OF_RANGE:g} in size and count as out of range")
    return "; ".join(notes)


def shortened(text: str) -> str:
    """A category as an example, so that a name or an id does not stand there whole.

    >>> shortened("AT"), shortened("anna@example.org")
    ('AT', 'an…')
    """
    return text if len(text) <= LONGEST_EXAMPLE else text[:2] + "…"
