"""What the odd queries of a client say, as hashes under sharing keys: a peer's indicator can tell that the same queries were asked there.

Rules:
* Nothing is kept without a sharing key. With one, the `KEPT` smallest hashes of a client's odd queries are kept under each key (bottom-k
  sampling): two peers who were asked the same list keep much the same of it, however their logs were cut into polls and cells.
* A query counts here when it is odd by itself (`sample_events.masks`). Honest queries that are not odd are never hashed.
* A text counts without capitals and white space, with all messages of a chat. A row of a table counts by its columns' names and values:
  numbers to six digits, categories by name. So rows match only between models with the same columns (an unnamed column counts by its
  place), and a row with a value that does not fit the schema counts nowhere.
* They group nobody here. They are part of what indicators are compared with (`indicators`), under the kind ``content``.
* They are field ``c`` of the profile (a msgpack list). A field that cannot be read is started again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.sharing_keys import MOST_KEYS, SharingKey
from detector.features import Schema
from detector.query import ClientKey, Misfit, QueryBatch

FIELD = "c"
KIND = "content"
KEPT = 16
MOST_STORED = KEPT * MOST_KEYS
_list = msgspec.msgpack.Decoder(list[str])
_pack = msgspec.msgpack.Encoder()


class Contents:
    """How a model's inputs are written to be compared with those of another model."""

    def __init__(self, schema: Schema) -> None:
        self._text = schema.of_texts
        ordered = sorted((column.name, j) for j, column in enumerate(schema.columns))
        self._order = np.array([j for _, j in ordered], np.intp)
        self._categories = [
            (at, schema.columns[j].categories) for at, (_, j) in enumerate(ordered) if schema.columns[j].categories
        ]
        named = {at for at, _ in self._categories}
        cells = (
            f"{name.replace('%', '%%')}\x01%{'s' if at in named else '.6g'}" for at, (name, _) in enumerate(ordered)
        )
        self._row = "row\x00" + "\x00".join(cells)

    def of(self, inputs: NDArray[np.float64], misfit: int, salt: int) -> str:
        """One input as it is compared; empty where it cannot be.

        inputs        (d,) as of `QueryBatch`
        misfit, salt  of the query, as of `QueryBatch`
        """
        if self._text:
            return f"text\x00{salt:016x}" if salt and not misfit & Misfit.UNREADABLE else ""
        if misfit or salt:
            return ""
        values = (inputs[self._order] + 0.0).tolist()  # one zero, whatever its sign
        for at, names in self._categories:
            values[at] = names[int(values[at])]
        return self._row % tuple(values)


def seen(
    known: Mapping[ClientKey, Sequence[str]],
    keys: Sequence[ClientKey],
    batch: QueryBatch,
    bits: NDArray[np.uint32],
    mask: int,
    contents: Contents,
    sharing: Sequence[SharingKey],
) -> dict[ClientKey, tuple[str, ...]]:
    """Clients whose hashes change, with what they are then: ``KEYID.content:hash``.

    known     hashes so far
    keys      (g,) what `batch.who` points into
    bits      (n,) oddness of the batch's rows; mask: bits that make a query count
    contents  of the batch's model
    sharing   keys under which contents are hashed, at most `MOST_KEYS`; hashes under others are dropped
    """
    if not sharing:
        return {}
    mine: dict[int, set[str]] = {}
    for i in np.flatnonzero(bits & np.uint32(mask)).tolist():
        content = contents.of(batch.inputs[i], int(batch.misfit[i]), int(batch.salt[i]))
        if content:
            hashed = mine.setdefault(int(batch.who[i]), set())
            hashed.update(f"{key.key_id}.{KIND}:{key.hash(KIND, content)}" for key in sharing)
    circles = [key.key_id for key in sharing]
    found = {}
    for who, new in sorted(mine.items()):
        before = known.get(keys[who], ())
        now = _smallest((*before, *new), circles)
        if now != tuple(before):
            found[keys[who]] = now
    return found


def _smallest(hashes: Iterable[str], circles: Iterable[str]) -> tuple[str, ...]:
    """The smallest hashes under each key, in order."""
    all_of = sorted(set(hashes))
    return tuple(one for circle in sorted(circles) for one in [h for h in all_of if h.startswith(f"{circle}.")][:KEPT])


def packed(hashes: Sequence[str]) -> bytes:
    return _pack.encode(list(hashes))


def unpacked(blob: bytes | None) -> tuple[str, ...]:
    """Hashes as stored; none for a field that is missing or damaged."""
    if not blob:
        return ()
    try:
        return tuple(_list.decode(blob))[:MOST_STORED]
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return ()


def together(blobs: Iterable[bytes | None]) -> tuple[str, ...]:
    """Hashes of one client from all its profile cells."""
    found = {one for blob in blobs for one in unpacked(blob)}
    return _smallest(found, {one.partition(".")[0] for one in found})
