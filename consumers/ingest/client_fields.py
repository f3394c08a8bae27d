"""What ingest keeps of a client beside its profile and its event ids: one stored field for each thing.

Rules:
* A `ClientField` says how a field is read from the store, what a poll changes of it, and how it is written. What its values mean is in
  the module of `records` that it is made of.
* A new field is one more entry in `client_fields`. Neither the step nor the cell knows which fields there are.
* The overflow client stands for many clients, so it has no field that ties accounts or shows queries, only what is counted of misfits.
* A field that is missing, damaged or of another feature map is begun anew.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumers.log.formats import Decoded
from consumers.records import links, odd_contents, odd_patches, refusals, sample_events, templates, usage
from consumers.secrets import Secrets
from consumers.sharing_keys import SharingKey
from detector.baseline import Baseline
from detector.features import Measured
from detector.query import ClientKey, QueryBatch

Known = Mapping[ClientKey, Any]
"""Client → the value of one field, of the clients that have one."""


class FoldedBatch(NamedTuple):
    """The queries of one model that a step folds.

    keys      (g,) what `batch.who` points into
    measured  oddness of the batch's rows
    decoded   the whole poll as decoded; rows: (n,) place of each of the batch's rows among those of its model there
    """

    model: str
    batch: QueryBatch
    keys: Sequence[ClientKey]
    measured: Measured
    decoded: Decoded
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClientField:
    """One field of a client.

    name      of the field in the store
    read      bytes as stored → value, None for one that cannot be read
    changed   (values so far, queries) → clients whose value changes, with what it is then
    write     value → bytes
    of_pool   whether the overflow client has it too
    """

    name: str
    read: Callable[[bytes], Any]
    changed: Callable[[Known, FoldedBatch], dict[ClientKey, Any]]
    write: Callable[[Any], bytes]
    of_pool: bool = False


class FieldKeys(NamedTuple):
    """Whose secrets and names the fields of a deployment are made under.

    own      metadata keys that the settings add as links
    sharing  keys that peers share, under which links and contents are hashed once more
    """

    secrets: Secrets
    tenant: str
    own: links.OwnKeys
    sharing: tuple[SharingKey, ...]


def client_fields(baseline: Baseline, keys: FieldKeys, half_horizon_ms: int) -> tuple[ClientField, ...]:
    """Return the fields that clients of a model have; templates only where its input is a text."""
    secrets, sharing = keys.secrets, keys.sharing
    mask = int(np.bitwise_or.reduce(sample_events.masks(baseline.table)))
    contents = odd_contents.Contents(baseline.map.schema)
    sealing: dict[str, Any] = {"secrets": secrets, "tenant": keys.tenant}
    of_map = sealing | {"map_id": baseline.map_id}

    def linked(known: Known, new: FoldedBatch) -> dict[ClientKey, Any]:
        metadata = new.decoded.metadata.get(new.model, {})
        return links.seen(known, new.keys, new.batch, metadata, secrets, keys.own, sharing)

    def told(known: Known, new: FoldedBatch) -> dict[ClientKey, Any]:
        texts, ends = new.decoded.events[new.model]
        return sample_events.seen(known, new.keys, new.batch, new.measured.bits, mask, texts, ends, new.rows)

    def hashed(known: Known, new: FoldedBatch) -> dict[ClientKey, Any]:
        return odd_contents.seen(known, new.keys, new.batch, new.measured.bits, mask, contents, sharing)

    def refused(known: Known, new: FoldedBatch) -> dict[ClientKey, Any]:
        return refusals.seen(known, new.keys, new.batch, new.decoded.notes.get(new.model, {}))

    def used(known: Known, new: FoldedBatch) -> dict[ClientKey, Any]:
        return usage.seen(known, new.keys, new.batch, new.decoded.usage.get(new.model, {}), half_horizon_ms)

    def placed(known: Known, new: FoldedBatch) -> dict[ClientKey, Any]:
        return odd_patches.seen(known, new.keys, new.batch, new.measured.patches)

    def recurring(known: Known, new: FoldedBatch) -> dict[ClientKey, Any]:
        return templates.seen(known, new.keys, new.batch, new.measured)

    bound = functools.partial
    found = [
        ClientField(links.FIELD, links.unpacked, linked, links.packed),
        ClientField(odd_contents.FIELD, odd_contents.unpacked, hashed, odd_contents.packed),
        ClientField(
            sample_events.FIELD,
            bound(sample_events.unpacked, **sealing),
            told,
            bound(sample_events.packed, **sealing),
        ),
        ClientField(
            odd_patches.FIELD, bound(odd_patches.unpacked, **of_map), placed, bound(odd_patches.packed, **of_map)
        ),
        ClientField(refusals.FIELD, refusals.unpacked, refused, refusals.packed, of_pool=True),
        ClientField(usage.FIELD, usage.unpacked, used, usage.packed),
    ]
    if baseline.map.schema.of_texts:
        read, write = bound(templates.unpacked, **of_map), bound(templates.packed, **of_map)
        found.append(ClientField(templates.FIELD, read, recurring, write))
    return tuple(found)
