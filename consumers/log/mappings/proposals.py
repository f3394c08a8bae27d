"""Proposals: a mapping for a log that no preset fits, derived from the names of its fields.

Rules:
* A field is chosen by its name only if its values fit: a time must be readable, a client must be a word or a number.
* Each choice states how certain it is. A proposal is meant to be read and edited.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgspec

from consumers.errors import BadRecord
from consumers.log.mappings import bodies
from consumers.log.mappings.mapping import LogMapping, mapping_of
from consumers.log.mappings.moments import moment
from consumers.log.mappings.paths import opened
from consumers.log.mappings.records import Translator
from consumers.log.mappings.sources import Source, View

Sure = Literal["certain", "likely", "guess", "unknown"]
Sample = Sequence[tuple[bytes, Source]]
DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a log is understood as.

    format   ``native``, ``dead-letters``, a preset's name, ``proposal`` or ``unknown``
    mapping  how to read it; None for native logs and dead letters
    why      reasons, for people
    """

    format: str
    sure: Sure
    mapping: LogMapping | None = None
    why: tuple[str, ...] = ()


def views_of(mapping: LogMapping, sample: Sample) -> Iterator[list[View]]:
    """The items of each record; none of one that cannot be read."""
    translator = Translator(mapping, lambda credential: "")
    for value, source in sample:
        found: list[View] = []
        with contextlib.suppress(BadRecord, RecursionError):
            found.extend(translator.views(value, source))
        yield found


class _Role(NamedTuple):
    """A part of an event and the names that fields with it have, the most telling first."""

    part: str
    names: tuple[str, ...]


_CREDENTIALS = ("api_key", "apikey", "x_api_key", "authorization", "token", "key")
_ROLES = (
    _Role("time", (
        "timestamp", "event_time", "request_time", "time", "ts", "datetime", "logged_at", "created_at", "start_time", "date", "when",
    )),
    _Role("client", (
        "client_id", "customer_id", "account_id", "user_id", "consumer_id", "tenant_id", "requester", "principal", "consumer", "caller",
        "client", "customer", "account", "user", "username", *_CREDENTIALS, "org_id", "organization", "client_ip", "remote_addr", "ip",
    )),
    _Role("answer", (
        "prediction", "predictions", "output", "outputs", "response", "response_body", "result", "answer", "label", "score", "probability",
        "class", "y", "y_pred", "completion",
    )),
    _Role("input", (
        "features", "instances", "inputs", "input", "request", "request_body", "body", "payload", "row", "data", "x", "query", "prompt",
        "messages",
    )),
    _Role("model", ("model_id", "model_name", "model", "deployment", "endpoint")),
    _Role("id", ("event_id", "request_id", "id", "uuid", "trace_id")),
    _Role("status", ("status_code", "http_status", "status", "code")),
)  # fmt: skip
"""In the order in which fields are given away: what has been taken is not looked at again."""


@dataclass(slots=True)
class _Field:
    """What stands at one path of the sampled objects."""

    path: str
    name: str
    values: list[Any] = field(default_factory=list)

    @property
    def scalars(self) -> list[Any]:
        return [value for value in self.values if isinstance(value, str | int | float)]

    def plausible(self, part: str) -> bool:
        """Whether the values can be what the name says."""
        scalars = self.scalars
        if part in ("input", "answer"):
            return bool(self.values)
        if len(scalars) < max(1, 0.5 * len(self.values)):
            return False
        if part == "time":
            return all(_is_time(value) for value in scalars[:50])
        if part == "status":
            return all(isinstance(bodies.cell(str(value)), int) for value in scalars[:50])
        return part != "client" or not any(isinstance(value, float) for value in scalars)


def propose(sample: Sample) -> Recognised:
    """A mapping for a log of JSON objects that no preset fits, from the names of its fields."""
    views = [view for found in views_of(LogMapping(name="own"), sample) for view in found]
    objects = [view.item for view in views if isinstance(view.item, dict)]
    if not objects:
        return Recognised("unknown", "unknown", why=("neither JSON objects nor CSV with names in its first line",))
    return proposal(objects)


def proposal(objects: Sequence[Mapping[str, Any]]) -> Recognised:
    fields: dict[str, _Field] = {}
    for item in objects:
        for path, name, value in _flat(item):
            fields.setdefault(path, _Field(path, name)).values.append(value)
    taken: dict[str, _Field] = {}
    ranks: list[int] = []
    why: list[str] = []
    for part, names in _ROLES:
        left = [one for one in fields.values() if not any(_within(one, other) for other in taken.values())]
        ranked = [(rank, one) for one in left if (rank := _rank(one.name, names)) is not None and one.plausible(part)]
        if ranked:
            rank, best = min(ranked, key=lambda found: (found[0], found[1].path.count(".")))
            taken[part] = best
            ranks.append(rank)
            why.append(f"{part} is {best.path}: {'its name says so' if rank < 3 else 'a guess by its name'}")
    content = _content(taken, fields, why)
    needed = ("client", "time", "answer")
    if not content.get("input"):
        return Recognised("unknown", "unknown", why=("no field that looks like an input", *why))
    why += [f"{part}: no field that looks like it" for part in needed if part not in taken]
    sure: Sure = "likely" if all(part in taken for part in needed) and max(ranks) < 5 else "guess"
    return Recognised("proposal", sure, mapping_of({"name": "own", **content}, "proposal"), tuple(why))


def _content(taken: Mapping[str, _Field], fields: Mapping[str, _Field], why: list[str]) -> dict[str, Any]:
    """A mapping file's content by what was found; the input may be the columns that are left."""
    content: dict[str, Any] = {part: {"paths": [one.path]} for part, one in taken.items() if part != "client"}
    if "client" in taken:
        one = taken["client"]
        kind = (
            "credential"
            if _rank(one.name, _CREDENTIALS) is not None
            else "ip"
            if one.name.endswith(("ip", "addr"))
            else "id"
        )
        content["client"] = {"paths": [{"path": one.path, "kind": kind}]}
    if "time" in taken:
        content["time"]["utc"] = True
    if "id" not in taken:
        content["id"] = {"paths": ["$place"]}
    if "input" not in content:
        used = {one.path for one in taken.values()}
        columns = [one.path for one in fields.values() if one.path not in used and "." not in one.path and one.scalars]
        if columns:
            content["input"] = {"form": "columns", "columns": [name.strip('"') for name in columns]}
            why.append(f"input is the {len(columns)} fields that are left: check them")
    return content


def _flat(item: Mapping[str, Any], above: str = "", depth: int = 1) -> Iterator[tuple[str, str, Any]]:
    """(path, name in lower case, value) of every field of an object, of what nested objects hold too."""
    for key, value in item.items():
        plain = key and not any(mark in key for mark in '."[]$')
        if '"' in key or value is None:
            continue
        path = f"{above}{key}" if plain else f'{above}"{key}"'
        yield path, key.lower().replace("-", "_").rpartition(".")[2], value
        inner = opened(value)
        if isinstance(inner, dict) and depth < DEEPEST:
            yield from _flat(inner, f"{path}.", depth + 1)


def _within(one: _Field, other: _Field) -> bool:
    """Whether a field is another, or a part of it."""
    return one.path == other.path or one.path.startswith(f"{other.path}.")


def _rank(name: str, names: Sequence[str]) -> int | None:
    return names.index(name) if name in names else None


def _is_time(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    when = moment(value, utc=True)
    if not isinstance(when, str) or when[4:5] != "-" or "T" not in when:
        return False
    return not isinstance(value, int | float) or when[:2] == "20"


def settled(mapping: LogMapping, predictions: Sequence[Mapping[str, Any]]) -> tuple[LogMapping, str]:
    """The mapping with the kind of its answers, where all that were seen say the same, and why.

    A lone number with a fraction may be the value of a regression or the probability of a class. Where all lie between 0 and 1, the
    second is likelier.
    """
    if mapping.answer.kind != "auto" or not predictions:
        return mapping, ""
    kinds = Counter(name for prediction in predictions for name in prediction)
    if set(kinds) == {"value"}:
        values = [prediction["value"] for prediction in predictions]
        unit = all(isinstance(value, float) and 0 <= value <= 1 for value in values)
        answer = msgspec.structs.replace(mapping.answer, kind="probabilities" if unit else "value")
        told = 'all lie between 0 and 1, so they are read as probabilities of the second class; for a regression: kind = "value"'
        return msgspec.structs.replace(mapping, answer=answer), told if unit else ""
    return mapping, ""
