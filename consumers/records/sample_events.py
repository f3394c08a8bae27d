"""Sample events: the event ids of the last odd queries of a client, so that an analyst can look them up in the query log.

Rules:
* A query is a sample event when it is odd by itself, in a way that the fused score counts (`masks`). A query that is odd only by
  what came before it (steps, lines, flips), or as a tenth of honest queries are (near a boundary), is none.
* The last `KEPT` are kept, in the order of the client's queries, whatever cut them into polls. A query without an event id, or with
  one over `MOST_BYTES` bytes, is passed over.
* An event id may say whose it is: stored sample events, field ``x`` of the profile, are sealed as one; a field that cannot be read is
  begun anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import CorruptState
from consumers.secrets import Secrets
from detector.features import ODD
from detector.query import ClientKey, QueryBatch
from detector.signal_table import SignalTable
from detector.signals import FUSED, SIGNAL_PLACES

FIELD = "x"
KEPT = 5
MOST_BYTES = 128
MOST_ALLOWED = 0.1
"""A signal that allows honest clients a larger share than this names no sample event."""

SampleEvent = tuple[int, int, str]
"""Event time in ms, oddness bits, event id."""

_id = msgspec.json.Decoder(int | str)
_list = msgspec.json.Decoder(list[SampleEvent])


def masks(table: SignalTable) -> NDArray[np.uint32]:
    """(s,) the bits of each signal that a query can carry by itself; 0 where it names no sample event."""
    alone = table.need & np.uint32(ODD)
    return np.where(FUSED & (table.allowance <= MOST_ALLOWED), alone, np.uint32(0)).astype(np.uint32)


def seen(
    known: Mapping[ClientKey, Sequence[SampleEvent]],
    keys: Sequence[ClientKey],
    batch: QueryBatch,
    bits: NDArray[np.uint32],
    mask: int,
    texts: bytearray,
    ends: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> dict[ClientKey, tuple[SampleEvent, ...]]:
    """Clients with a new sample event, and what their sample events are then.

    bits         (n,) oddness of the batch's rows
    mask         bits that make a sample event
    texts, ends  event ids of the records as decoded, their JSON texts end to end
    rows         (n,) where the batch's rows are among those
    """
    if not texts:
        return {}
    found: dict[int, list[SampleEvent]] = {}
    who = batch.who.tolist()
    for i in np.flatnonzero(bits & np.uint32(mask))[::-1].tolist():
        mine = found.setdefault(who[i], [])
        if len(mine) < KEPT and (name := _event_id(texts, ends, int(rows[i]))):
            mine.append((int(batch.time_ms[i]), int(bits[i]), name))
    return {
        keys[client]: (*known.get(keys[client], ()), *reversed(mine))[-KEPT:]
        for client, mine in sorted(found.items())
        if mine
    }


def _event_id(texts: bytearray, ends: NDArray[np.int64], row: int) -> str:
    """Empty when there is none that can be kept."""
    first, last = int(ends[row - 1]) if row else 0, int(ends[row])
    if not 0 < last - first <= 6 * MOST_BYTES + 2:
        return ""
    try:
        name = str(_id.decode(texts[first:last]))
        return name if len(name.encode()) <= MOST_BYTES else ""
    except (msgspec.DecodeError, ValueError):
        return ""


def packed(mine: Sequence[SampleEvent], secrets: Secrets, tenant: str) -> bytes:
    return secrets.seal(msgspec.json.encode(mine).decode(), tenant)


def unpacked(blob: bytes | None, secrets: Secrets, tenant: str) -> tuple[SampleEvent, ...]:
    """Sample events as stored; none for a field that is missing or damaged."""
    if not blob:
        return ()
    try:
        return tuple(_list.decode(secrets.unseal(blob, tenant)))[-KEPT:]
    except (CorruptState, msgspec.DecodeError, ValueError):
        return ()


def together(blobs: Iterable[bytes | None], secrets: Secrets, tenant: str) -> tuple[SampleEvent, ...]:
    """Sample events of one client from all its profile cells, or of several clients, the newest last."""
    return tuple(sorted({event for blob in blobs for event in unpacked(blob, secrets, tenant)}))


def chosen(events: Sequence[SampleEvent], signal: str, table: SignalTable) -> list[str]:
    """Event ids of at most `KEPT` sample events, the newest last: those of one signal where there are any."""
    if not events:
        return []
    wanted = int(masks(table)[SIGNAL_PLACES[signal]]) if signal in SIGNAL_PLACES else 0
    of_signal = [event for event in events if event[1] & wanted] or events
    return [name for _, _, name in of_signal[-KEPT:]]
