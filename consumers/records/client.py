"""A client as ingest left it: all fields of its profile in all cells, read once and put together.

Detect reads a touched client here and assesses what it gets; it does not know what the fields are called.

Rules:

* The cells are read in the order of their names, so whoever reads the same bytes gets the same record.
* What cannot be read is passed over with a warning. A client without any readable profile, or without a readable id, has no record.
* Values come back unsealed. They are sealed again when a row is stored (`decision`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from consumers.records import links, odd_contents, odd_patches, refusals, sample_events, templates, usage
from consumers.records.damaged import readable
from consumers.records.refusals import Refusals
from consumers.records.sample_events import SampleEvent
from consumers.records.spans import Fields, profiles_in_force, spans_in_force, together
from consumers.secrets import Secrets
from detector.baseline import Baseline
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.query import ClientKey
from detector.scoring import Passages

log = logging.getLogger("querywarden.detect")

HEADER = "h"
"""Field with the client's id, sealed."""


class Tie(NamedTuple):
    """A kind of link, and how many accounts of a campaign have one of this kind in common."""

    kind: str
    members: int


class Lived(Passages, Protocol):
    """What a row tells of a client's life, and what it was assessed by: a `Profile`, or `ProfileColumns.lives`."""

    @property
    def first_ms(self) -> int: ...

    @property
    def region_counts(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """What ingest stored of one client, or of the accounts of a campaign put together.

    client_id      the client's id; for a campaign, the campaign's
    profile        what is told of its life, merged over one horizon
    cells          profile cells that hold a part of it, in the order of their names; empty for a campaign
    links          keyed hashes of what ties accounts together
    sample_events  event ids of the last odd queries, oldest first
    refusals       what about the client's queries did not fit
    members        client ids of a campaign's accounts; empty for a client
    ties           kinds of links that tie a campaign's accounts, and how many accounts each ties; empty for a client
    shared         hashes under sharing keys, ``KEYID.kind:hash``; empty for a campaign
    patches        the client's odd patches as stored, by cell; empty for a campaign; templates: of its texts, likewise
    tokens         of its queries and their answers, as far as the log says; 0 for a campaign
    """

    client_id: str
    profile: Lived
    cells: tuple[str, ...]
    links: tuple[str, ...]
    sample_events: tuple[SampleEvent, ...]
    refusals: Refusals
    members: tuple[str, ...] = ()
    ties: tuple[Tie, ...] = ()
    shared: tuple[str, ...] = ()
    patches: tuple[bytes | None, ...] = ()
    templates: tuple[bytes | None, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ReadClients:
    """Clients that could be read. keys, records: (n,) each; profiles: their n rows, None for no client; changes: (n, 4), of each against
    its own earlier life."""

    keys: list[ClientKey]
    records: list[ClientRecord]
    profiles: ProfileColumns | None
    changes: NDArray[np.float64]


def read_clients(clients: Sequence[tuple[ClientKey, Fields]], baseline: Baseline, secrets: Secrets) -> ReadClients:
    """Return the records of some clients of one model from their fields by profile cell, in no particular order.

    A client of which no id or no profile can be read has none.
    """
    known = [
        (key, fields, client_id, _beside_profiles(key, fields, secrets))
        for key, fields in clients
        if (client_id := _client_id(key, fields, secrets)) is not None
    ]

    def damaged(client: int, cell: str, error: Exception) -> None:
        _damaged(known[client][0], cell, error)

    found = profiles_in_force([fields for _, fields, _, _ in known], baseline, damaged)
    lives = found.columns.lives() if found.columns is not None else []
    keys, records = list[ClientKey](), list[ClientRecord]()
    for i, life in zip(found.whose, lives, strict=True):
        key, fields, client_id, (cells, linked, shared, events, counted, tokens) = known[i]
        patches = tuple(fields[cell].get(odd_patches.FIELD) for cell in cells)
        recurring = tuple(fields[cell].get(templates.FIELD) for cell in cells)
        keys.append(key)
        record = ClientRecord(
            client_id, life, cells, linked, events, counted, shared=shared, patches=patches, templates=recurring,
            tokens=tokens,
        )  # fmt: skip
        records.append(record)
    return ReadClients(keys, records, found.columns, found.changes)


def _beside_profiles(
    key: ClientKey, fields: Fields, secrets: Secrets
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[SampleEvent, ...], Refusals, int]:
    """Cells, links, hashes under sharing keys, sample events, refusals and tokens of a client."""
    cells = tuple(sorted(fields))
    shards = [fields[cell] for cell in cells]
    counted = refusals.together([shard.get(refusals.FIELD) for shard in shards])
    linked, shared = links.together([shard.get(links.FIELD) for shard in shards])
    shared += odd_contents.together([shard.get(odd_contents.FIELD) for shard in shards])
    events = sample_events.together([shard.get(sample_events.FIELD) for shard in shards], secrets, key.tenant)
    return cells, linked, shared, events, counted, usage.together([shard.get(usage.FIELD) for shard in shards])


def read_profile(key: ClientKey, fields: Fields, baseline: Baseline, secrets: Secrets) -> tuple[Profile, str] | None:
    """Return only the profile and the id of a client: enough for a member of a campaign."""
    client_id = _client_id(key, fields, secrets)
    profile = _profile(key, fields, baseline) if client_id is not None else None
    return None if profile is None or client_id is None else (profile, client_id)


def _profile(key: ClientKey, fields: Fields, baseline: Baseline) -> Profile | None:
    return together(spans_in_force(fields, baseline, functools.partial(_damaged, key)))


def _damaged(key: ClientKey, cell: str, error: Exception) -> None:
    log.warning("profile not read", extra={"cell": cell, "model": key.model, "why": str(error)})


def _client_id(key: ClientKey, fields: Fields, secrets: Secrets) -> str | None:
    """The id in the last cell whose header can be read."""
    client_id = None
    for cell, shard in sorted(fields.items()):
        if HEADER in shard:
            client_id = (
                readable("header", secrets.unseal, shard[HEADER], key.tenant, cell=cell, model=key.model) or client_id
            )
    return client_id
