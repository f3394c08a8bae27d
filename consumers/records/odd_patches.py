"""Odd patches of a client as they are stored: where its odd queries lie, so that accounts that share a theft are found by what they ask.

Rules:
* What a patch is, and how many are kept, is said in `detector.patches`. They are links by content, and the only ones of their kind.
* Ingest keeps them in field ``o`` of the profile, sealed as one, with the feature map that they belong to. A field of another map, or
  one that cannot be read, is started again.
* Detect keeps keyed hashes of them in the row of a client that is odd for its size, and of no other: ``odd_patch:`` and 16 hex digits.
* They are union and smallest, so they do not depend on how the log was cut into polls or cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import CorruptState
from consumers.secrets import Secrets
from detector.patches import KEPT, smallest, united
from detector.query import ClientKey, QueryBatch

FIELD = "o"
KIND = "odd_patch"
"""Kind of link."""
_ANY = 2**63
_stored = msgspec.json.Decoder(tuple[str, list[int]])


def seen(
    known: Mapping[ClientKey, Sequence[int]],
    keys: Sequence[ClientKey],
    batch: QueryBatch,
    patches: NDArray[np.uint64],
) -> dict[ClientKey, tuple[int, ...]]:
    """Clients whose patches change, and what they are then.

    known    patches so far
    keys     (g,) what `batch.who` points into
    patches  (n,) of the batch's rows, 0: none
    """
    if not patches.any():
        return {}
    mine = [known.get(key, ()) for key in keys]
    limit = np.array([some[-1] if len(some) == KEPT else _ANY for some in mine], np.uint64)
    found = {}
    for who, new in smallest(batch.who, np.where(patches < limit[batch.who], patches, 0)).items():
        now = united(mine[who], new)
        if now != mine[who]:
            found[keys[who]] = now
    return found


def packed(mine: Sequence[int], map_id: str, secrets: Secrets, tenant: str) -> bytes:
    return secrets.seal(msgspec.json.encode((map_id, mine)).decode(), tenant)


def unpacked(blob: bytes | None, map_id: str, secrets: Secrets, tenant: str) -> tuple[int, ...] | None:
    """Patches as stored; None for a field that is missing, damaged or of another map."""
    if not blob:
        return None
    try:
        of_map, mine = _stored.decode(secrets.unseal(blob, tenant))
    except (CorruptState, msgspec.DecodeError, ValueError):
        return None
    return united(mine, ()) if of_map == map_id else None


def together(blobs: Iterable[bytes | None], map_id: str, secrets: Secrets, tenant: str) -> tuple[int, ...] | None:
    """Patches of one client from all its profile cells, None where no cell has any."""
    found: tuple[int, ...] | None = None
    for blob in blobs:
        mine = unpacked(blob, map_id, secrets, tenant)
        if mine is not None:
            found = united(found or (), mine)
    return found


def hashed(patches: Iterable[int], map_id: str, secrets: Secrets, tenant: str) -> tuple[str, ...]:
    """Patches as links."""
    values = (f"link\x00{KIND}\x00{map_id}:{patch}" for patch in patches)
    return tuple(f"{KIND}:{secrets.client_hash(tenant, value)[:16]}" for value in values)
