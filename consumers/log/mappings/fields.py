"""Fields of a native event, read out of an item by the paths of a mapping.

Rules:
* A field that the item does not have is absent from the event. The decoder of native events decides whether that is an error.
* Of a query in two halves, the request is read first, except for the status, which is better known to the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consumers.log.mappings import bodies, shapes
from consumers.log.mappings.answers import prediction_of
from consumers.log.mappings.identity import UNATTRIBUTED, Hash, address, client_id
from consumers.log.mappings.mapping import Condition, LogMapping, NumberSpec, TextSpec
from consumers.log.mappings.moments import moment
from consumers.log.mappings.paths import RecordPath, parse
from consumers.log.mappings.shapes import TaggedRow
from consumers.log.mappings.sources import Source, View

MOST_DIGITS = 40
LINKS = ("org", "session", "ip", "asn", "ja4")
TOKENS = ("total_tokens", "input_tokens", "output_tokens")


class ConditionTest:
    """A condition of a mapping, with its paths read."""

    def __init__(self, condition: Condition) -> None:
        self._equal = tuple((parse(text), frozenset(words)) for text, words in condition.equal.items())
        self._have = read_all(condition.have)
        self._lack = read_all(condition.lack)

    def holds(self, view: View) -> bool:
        """Whether an item meets it."""
        for path, words in self._equal:
            value = view.first(path)
            if isinstance(value, list | dict) or value not in words:
                return False
        lacking = any(view.first(path) is None for path in self._have)
        return not lacking and all(view.first(path) is None for path in self._lack)


class FieldReader:
    """Reads the fields of native events by one mapping.

    hashed         keyed hash of a credential
    default_model  model of the events that name none; empty: they get none
    """

    def __init__(self, mapping: LogMapping, hashed: Hash, default_model: str = "") -> None:
        self.mapping = mapping
        self.hashed = hashed
        self.default_model = default_model
        self._paths: dict[str, tuple[RecordPath, ...]] = {
            "client": read_all(tuple(place.path for place in mapping.client.paths)),
            "label": read_all(mapping.answer.label),
            "probabilities": read_all(mapping.answer.probabilities),
            **{name: read_all(getattr(mapping.metadata, name)) for name in LINKS},
            **{name: read_all(getattr(mapping.usage, name)) for name in TOKENS},
        }
        for name in ("time", "model", "version", "id", "status", "fraction", "input", "answer"):
            self._paths[name] = read_all(getattr(mapping, name).paths)

    def shared(self, request: View, response: View) -> dict[str, Any]:
        """What all rows of a query have in common."""
        views = (request,) if request is response else (request, response)
        mapping = self.mapping
        when = self._first("time", *views)
        found = {
            "event_id": self._text("id", mapping.id, *views),
            "timestamp": None if when is None else moment(when, mapping.time.unit, mapping.time.utc),
            "client_id": self._client(*views),
            "model_id": self._text("model", mapping.model, *views) or self.default_model or None,
            "model_version": self._text("version", mapping.version, *views),
            "status": self._number("status", mapping.status, *reversed(views)),
            "sampled_fraction": self._number("fraction", mapping.fraction, *views),
            "metadata": self._links(*views) or None,
            "usage": self._usage(*views) or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def rows(self, view: View) -> list[TaggedRow]:
        """The rows that a query asks about; none when the item holds no input."""
        spec = self.mapping.input
        if spec.form == "columns":
            return self._columns(view)
        path, payload = self._payload("input", view)
        if payload is None:
            return []
        if spec.form == "text":
            return [("text", text) for text in (payload if path is not None and path.many else [payload])]
        if spec.form == "messages":
            return [("messages", payload if isinstance(payload, list) else bodies.body(payload))]
        rows = _by_form(bodies.body(payload, spec.encoding), spec.form)
        names = spec.columns
        if not names:
            return rows
        return [
            (form, bodies.columnar(row, names) if isinstance(row, list) and len(row) == len(names) else row)
            for form, row in rows
        ]

    def answer(self, view: View) -> Any:
        """The payload of the answers; None when the item holds none."""
        _, payload = self._payload("answer", view)
        return None if payload is None else bodies.body(payload, self.mapping.answer.encoding)

    def prediction(self, answer: Any) -> dict[str, Any] | None:
        """The prediction of a native event; None where there is no answer."""
        if isinstance(answer, dict) and (self._paths["label"] or self._paths["probabilities"]):
            inner = View(answer, answer, Source())
            found = {name: inner.first(*self._paths[name]) for name in ("label", "probabilities")}
            if any(value is not None for value in found.values()):
                return {name: value for name, value in found.items() if value is not None}
        return prediction_of(answer, self.mapping.answer.kind)

    def found(self, name: str, view: View) -> RecordPath | None:
        """The path of a field that leads somewhere in an item; None: none does."""
        return next((path for path in self._paths[name] if view.first(path) is not None), None)

    # ------------------------------------------------------------------------------------------------- one field each

    def _first(self, name: str, *views: View) -> Any:
        return next((value for view in views if (value := view.first(*self._paths[name])) is not None), None)

    def _text(self, name: str, text: TextSpec, *views: View) -> str | None:
        """A text or a whole number as text."""
        for view in views:
            for path in self._paths[name]:
                value = next(view.values(path), None)
                if isinstance(value, str) and value:
                    return value
                if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**MOST_DIGITS:
                    return str(value)
        return text.constant or None

    def _number(self, name: str, number: NumberSpec, *views: View) -> Any:
        value = self._first(name, *views)
        if isinstance(value, bool):
            value = str(value).lower()
        if isinstance(value, str):
            read = bodies.cell(value) if len(value) <= MOST_DIGITS else None
            value = number.words.get(value, read if isinstance(read, int | float) else None)
        if value is None:
            value = number.constant
        return int(value) if isinstance(value, float) and value.is_integer() and name == "status" else value

    def _client(self, *views: View) -> Any:
        for path, place in zip(self._paths["client"], self.mapping.client.paths, strict=True):
            for view in views:
                found = client_id(next(view.values(path), None), place.kind, self.hashed)
                if found is not None:
                    return found
        return UNATTRIBUTED if self.mapping.client.unattributed else None

    def _links(self, *views: View) -> dict[str, Any]:
        links: dict[str, Any] = {}
        for name in LINKS:
            value = self._first(name, *views) if self._paths[name] else None
            if name == "ip" and isinstance(value, str):
                value = value.split(",", 1)[0].strip() if address(value) is not None else None
            if isinstance(value, str | int) and not isinstance(value, bool):
                links[name] = value
        return links

    def _usage(self, *views: View) -> dict[str, int]:
        """Tokens; whole numbers only, as numbers or as text."""
        found = {}
        for name in TOKENS:
            value = self._first(name, *views) if self._paths[name] else None
            if isinstance(value, str) and len(value) <= MOST_DIGITS and value.isdecimal():
                value = int(value)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**MOST_DIGITS:
                found[name] = value
        return found

    def _columns(self, view: View) -> list[TaggedRow]:
        spec = self.mapping.input
        item: Mapping[str, Any] = view.item if isinstance(view.item, dict) else {}
        without = frozenset(spec.without)
        names = [
            name for name in (item if "*" in spec.columns else spec.columns) if name in item and name not in without
        ]
        return [("features", {name: item[name] for name in names})] if names else []

    def _payload(self, name: str, view: View) -> tuple[RecordPath | None, Any]:
        """What stands at the first path that leads somewhere, and that path; of a path with ``[*]`` the list of all."""
        for path in self._paths[name]:
            every = list(view.values(path)) if path.many else [next(view.values(path), None)]
            if every and every[0] is not None:
                return path, every if path.many else every[0]
        return None, None


def read_all(texts: tuple[str, ...]) -> tuple[RecordPath, ...]:
    """Several paths."""
    return tuple(parse(text) for text in texts)


def _by_form(payload: Any, form: str) -> list[TaggedRow]:
    """Rows of a payload of which the mapping says what it is; ``auto``: by its shape."""
    if form == "embedding":
        several = isinstance(payload, list) and payload and isinstance(payload[0], list)
        return [("embedding", vector) for vector in (payload if several else [payload])]
    if form == "row":
        alone = isinstance(payload, list) and len(payload) == 1 and isinstance(payload[0], list | dict)
        return [("features", payload[0] if alone else payload)]
    if form == "rows":
        return [("features", row) for row in payload] if isinstance(payload, list) else [("features", payload)]
    return shapes.rows_of(payload)
