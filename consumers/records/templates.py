"""Templates of a client's texts as they are stored: what recurs in them, so that accounts that share one fixed prompt are found.

Rules:
* What a template is, and what is kept, is said in `detector.templates`. Clients of a model of texts have a sketch of them, no others.
* Ingest keeps it in field ``p`` of the profile, sealed, with the feature map that it belongs to. A field of another map, or one that
  cannot be read, is started again.
* Detect keeps keyed hashes in the row of a client that is odd for its size: ``template:`` and 16 hex digits of those that are filled with
  what is more foreign than with honest clients, ``usual_template:`` of the others. Only the former are links.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from consumers.errors import CorruptState
from consumers.secrets import Secrets
from detector.features import Measured
from detector.query import ClientKey, QueryBatch
from detector.templates import Sketches, TemplateSketch
from detector.templates import together as merged

FIELD = "p"
KIND = "template"
"""Kind of link."""
USUAL = "usual_template"
"""What accounts of one application have in common: it ties nobody."""


def seen(
    known: Mapping[ClientKey, TemplateSketch],
    keys: Sequence[ClientKey],
    batch: QueryBatch,
    measured: Measured,
) -> dict[ClientKey, TemplateSketch]:
    """Clients whose sketch changes, and what it is then.

    known     sketches so far
    keys      (g,) what `batch.who` points into
    measured  the batch's rows
    """
    if not measured.templates.any():
        return {}
    sketches = Sketches([known.get(key) or TemplateSketch() for key in keys])
    sketches.note(batch.who, measured.templates, measured.raw)
    told = np.unique(batch.who[measured.templates[:, 0] != 0]).tolist()
    return {keys[who]: sketches[who] for who in told}


def packed(mine: TemplateSketch, map_id: str, secrets: Secrets, tenant: str) -> bytes:
    return secrets.seal_bytes(map_id.encode() + mine.to_bytes(), tenant)


def unpacked(blob: bytes | None, map_id: str, secrets: Secrets, tenant: str) -> TemplateSketch | None:
    """A sketch as stored; None for a field that is missing, damaged or of another map."""
    if not blob:
        return None
    try:
        content = secrets.unseal_bytes(blob, tenant)
        return TemplateSketch.from_bytes(content[len(map_id) :]) if content.startswith(map_id.encode()) else None
    except (CorruptState, ValueError):
        return None


def together(blobs: Iterable[bytes | None], map_id: str, secrets: Secrets, tenant: str) -> TemplateSketch | None:
    """The sketch of one client from all its profile cells, None where no cell has one."""
    found = (unpacked(blob, map_id, secrets, tenant) for blob in blobs)
    return merged(one for one in found if one is not None)


def hashed(templates: Iterable[int], map_id: str, secrets: Secrets, tenant: str, kind: str = KIND) -> tuple[str, ...]:
    """Templates as links, or as what is no link (`USUAL`)."""
    values = (f"link\x00{KIND}\x00{map_id}:{template}" for template in templates)
    return tuple(f"{kind}:{secrets.client_hash(tenant, value)[:16]}" for value in values)
