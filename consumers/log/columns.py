"""The columns of one model's queries in a poll, however they were read.

Rules: `ModelColumns` is what comes out: from `plain_events.py` for the records of the common shape, from `RowColumns`, which takes one
query after the other, for the rest. `merged` puts both into the order of the log.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumers.log.inputs import InputReader, Values
from consumers.log.json_scan import copy_pieces
from consumers.log.reasons import MisfitNote
from consumers.log.tolerant import Raw
from detector.query import QueryBatch
from detector.text_kernels import TEMPLATE_HASHES

LONGEST_COMPARED = 1024
"""A value up to this size is kept as it is to be compared with a repetition, a longer one as its digest."""
DIGEST_BYTES = 16

Texts = tuple[bytearray, NDArray[np.int64]]
"""n texts end to end, and where each ends."""


class Marks(NamedTuple):
    """What about a query does not fit. misfit, salt, templates: as of `QueryBatch`."""

    misfit: int
    salt: int
    notes: tuple[MisfitNote, ...]
    templates: tuple[int, ...] = ()


@dataclass(slots=True)
class ModelColumns:
    """n queries of one model, in the order of the log.

    places     (n,) which record of the poll each query stands in
    batch      the queries
    event_ids  event ids as they are written, empty where there is none
    contents   what a repetition must have in common with a query, laid out alike: event id, input and prediction; empty where there
               is no event id
    metadata   log offset → metadata as they are written
    notes      log offset → what about the query does not fit
    usage      log offset → token usage as it is written
    """

    places: NDArray[np.int64]
    batch: QueryBatch
    event_ids: Texts
    contents: Texts
    metadata: dict[int, Raw]
    notes: dict[int, tuple[MisfitNote, ...]] = field(default_factory=dict)
    usage: dict[int, Raw] = field(default_factory=dict)


@dataclass(slots=True)
class RowColumns:
    """Columns that grow by one query at a time: `add`, perhaps `repeatable`, `close`.

    marked  row → misfit, salt and templates, where they are not 0
    """

    clients: dict[str, int] = field(default_factory=dict)
    places: array[int] = field(default_factory=lambda: array("q"))
    who: array[int] = field(default_factory=lambda: array("i"))
    inputs: array[float] = field(default_factory=lambda: array("d"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    probabilities: array[float] = field(default_factory=lambda: array("f"))
    values: array[float] = field(default_factory=lambda: array("d"))
    time_ms: array[int] = field(default_factory=lambda: array("q"))
    weight: array[float] = field(default_factory=lambda: array("f"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    event_ids: bytearray = field(default_factory=bytearray)
    event_ends: array[int] = field(default_factory=lambda: array("q"))
    contents: bytearray = field(default_factory=bytearray)
    content_ends: array[int] = field(default_factory=lambda: array("q"))
    metadata: dict[int, Raw] = field(default_factory=dict)
    usage: dict[int, Raw] = field(default_factory=dict)
    notes: dict[int, tuple[MisfitNote, ...]] = field(default_factory=dict)
    marked: dict[int, tuple[int, int, tuple[int, ...]]] = field(default_factory=dict)

    def mark(self, offset: int, marks: Marks) -> None:
        """Note what about the next query does not fit, and what identifies it beside its input."""
        if marks.notes:
            self.notes[offset] = marks.notes
        if marks.misfit or marks.salt:
            self.marked[len(self.who)] = (marks.misfit, marks.salt, marks.templates)

    def add(self, place: int, offset: int, client: str, time_ms: int, weight: float, values: Values) -> None:
        """Take up a query. It never fails: a query is taken whole or not at all."""
        row, (label, probabilities, answer) = values
        self.places.append(place)
        self.who.append(self.clients.setdefault(client, len(self.clients)))
        self.inputs.fromlist(row)
        self.labels.append(label)
        self.probabilities.fromlist(probabilities)
        self.values.append(answer)
        self.time_ms.append(time_ms)
        self.weight.append(weight)
        self.offsets.append(offset)

    def repeatable(self, event_id: Raw, compared: Iterable[Raw]) -> None:
        """Take up an event id, and what else a repetition of the query must have in common with it."""
        if len(event_id) <= 4 and bytes(event_id) in (b"null", b'""'):
            return
        self.event_ids += event_id  # as it is written: a producer repeats an event byte by byte
        contents = self.contents
        contents += event_id
        for raw in compared:
            contents += raw if len(raw) <= LONGEST_COMPARED else hashlib.blake2b(raw, digest_size=DIGEST_BYTES).digest()

    def close(self) -> None:
        """End a query."""
        self.event_ends.append(len(self.event_ids))
        self.content_ends.append(len(self.contents))

    def done(self, reader: InputReader) -> ModelColumns:
        """All that was taken up."""
        n, c = len(self.who), reader.classes
        misfit, salt = np.zeros(n, np.uint8), np.zeros(n, np.uint64)
        templates = np.zeros((n, TEMPLATE_HASHES if reader.schema.of_texts else 0), np.uint64)
        for i, (flags, salted, hashed) in self.marked.items():
            misfit[i], salt[i] = flags, salted
            if hashed:
                templates[i] = hashed
        batch = QueryBatch(
            clients=list(self.clients),
            who=np.frombuffer(self.who, np.int32),
            inputs=np.frombuffer(self.inputs, np.float64).reshape(n, reader.width),
            labels=np.frombuffer(self.labels, np.int32),
            probabilities=np.frombuffer(self.probabilities, np.float32).reshape(n, c)
            if c
            else np.empty((n, 0), np.float32),
            values=np.frombuffer(self.values, np.float64),
            time_ms=np.frombuffer(self.time_ms, np.int64),
            weight=np.frombuffer(self.weight, np.float32),
            offsets=np.frombuffer(self.offsets, np.int64),
            misfit=misfit,
            salt=salt,
            templates=templates,
        )
        return ModelColumns(
            np.frombuffer(self.places, np.int64),
            batch,
            (self.event_ids, np.frombuffer(self.event_ends, np.int64)),
            (self.contents, np.frombuffer(self.content_ends, np.int64)),
            self.metadata,
            self.notes,
            self.usage,
        )


def merged(one: ModelColumns, other: ModelColumns) -> ModelColumns:
    """Both together, in the order of the log. Mostly one query of thousands is not plain, so no object is made for a query."""
    order = np.argsort(np.concatenate([one.places, other.places]))
    first, second = one.batch, other.batch
    numbers = {client: i for i, client in enumerate(first.clients)}
    others = np.array([numbers.setdefault(client, len(numbers)) for client in second.clients], np.int32)
    who = np.concatenate([first.who, others[second.who]])[order]
    _, appeared = np.unique(who, return_index=True)  # both lists name nobody that has no query
    by_appearance = np.argsort(appeared)
    place = np.empty(len(numbers), np.int32)
    place[by_appearance] = np.arange(len(numbers), dtype=np.int32)
    names = list(numbers)
    batch = QueryBatch(
        clients=[names[i] for i in by_appearance.tolist()],
        who=place[who],
        **{
            name: np.concatenate([getattr(first, name), getattr(second, name)])[order]
            for name in (
                "inputs", "labels", "probabilities", "values", "time_ms", "weight", "offsets", "misfit", "salt",
                "templates",
            )
        },
    )  # fmt: skip
    return ModelColumns(
        np.concatenate([one.places, other.places])[order],
        batch,
        _merged_texts(one.event_ids, other.event_ids, order),
        _merged_texts(one.contents, other.contents, order),
        one.metadata | other.metadata,
        one.notes | other.notes,
        one.usage | other.usage,
    )


def _merged_texts(one: Texts, other: Texts, order: NDArray[np.intp]) -> Texts:
    text = one[0] + other[0]
    ends = np.concatenate([one[1], other[1] + len(one[0])])
    if not text:
        return text, ends
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[order]
    ends = ends[order]
    until = np.cumsum(ends - starts)
    out = bytearray(len(text))
    source = np.frombuffer(text, np.uint8)
    source.setflags(write=False)  # as the text of a poll is: compiled code meets one type
    copy_pieces(source, starts, ends, until - (ends - starts), np.frombuffer(out, np.uint8))
    return out, until
