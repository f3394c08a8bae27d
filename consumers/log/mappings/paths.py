"""Paths: how a mapping names the place of a value in a record.

``a.b`` is a key of a nested object, ``a."b.c"`` a key that holds a dot, ``a[0]`` and ``a[-1]`` an element of a list, ``a[*]`` every
element. A path that begins with ``$`` starts beside the record instead of in it (`ROOTS`).

Rules:
* A text that holds a JSON object or list is searched like that object or list: many logs keep payloads and headers as texts.
* Under ``$header`` and ``$http`` names are compared without regard to case, as in HTTP.
* Nothing that a record holds makes this file raise; a path that leads nowhere gives nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from consumers.errors import WrongUse
from consumers.log.tolerant import parsed

Root = Literal["item", "record", "header", "http", "key", "time", "place"]
ROOTS: dict[str, Root] = {
    "$record": "record",
    "$header": "header",
    "$http": "http",
    "$key": "key",
    "$time": "time",
    "$place": "place",
}
"""Where a path may start: the whole record (of which the item is a part), a header of the Kafka record, an HTTP header that the log
holds, the key and the time (ms since the epoch) of the Kafka record, and the place of the record in its log."""
EVERY = object()
"""The step ``[*]``."""

_STEP = re.compile(r'\.?(?:"(?P<quoted>[^"]*)"|(?P<plain>[^."\[\]]+)|\[(?P<index>-?\d{1,9}|\*)\])')


@dataclass(frozen=True, slots=True)
class RecordPath:
    """A path, read. root: where it starts; steps: keys (str), places in a list (int) and `EVERY`."""

    text: str
    root: Root
    steps: tuple[Any, ...]

    @property
    def many(self) -> bool:
        """Whether it may lead to more than one value."""
        return EVERY in self.steps


def parse(text: str) -> RecordPath:
    """Read a path.

    Raises
    ------
    WrongUse
        When the text is no path; the message is one line.

    Examples
    --------
    >>> parse('a."b.c"[0]').steps
    ('a', 'b.c', 0)
    """
    steps: list[Any] = []
    at = 0
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or (at == 0 and text.startswith(".")) or (at and match.group()[0] not in ".["):
            raise WrongUse(f'mapping: {text!r} is no path (a.b, a."b.c", a[0], a[*])')
        at = match.end()
        if match["index"] is not None:
            steps.append(EVERY if match["index"] == "*" else int(match["index"]))
        else:
            steps.append(match["quoted"] if match["quoted"] is not None else match["plain"])
    root: Root = "item"
    if steps and isinstance(steps[0], str) and steps[0].startswith("$"):
        if steps[0] not in ROOTS:
            raise WrongUse(f"mapping: {text!r} starts with {steps[0]}; there are {', '.join(ROOTS)}")
        root = ROOTS[steps.pop(0)]
    if root in ("header", "http"):
        # a header's name may hold dots
        steps = [".".join(str(step) for step in steps).lower()] if steps else []
        if not steps:
            raise WrongUse(f"mapping: {text!r} names no header")
    return RecordPath(text, root, tuple(steps))


def find(path: RecordPath, start: Any) -> Any:
    """The first value at the end of a path, None when it leads nowhere."""
    return next(walk(path.steps, start), None)


def walk(steps: tuple[Any, ...], start: Any) -> Iterator[Any]:
    """Every value at the end of some steps, in order; nulls are left out."""
    value = start
    for i, step in enumerate(steps):
        value = opened(value)
        if step is EVERY:
            rest = steps[i + 1 :]
            for element in value if isinstance(value, list) else ():
                yield from walk(rest, element)
            return
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and -len(value) <= step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is None:
            return
    if value is not None:
        yield value


def opened(value: Any) -> Any:
    """What a text holds, if that is a JSON object or list; any other value as it is."""
    if not isinstance(value, str) or value[:1] not in ("{", "["):
        return value
    try:
        return parsed(value.encode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return value
