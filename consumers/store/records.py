"""The records of a snapshot: one typed record for each thing that a store holds, whatever the store.

Rules:

* Generations, tokens, leases, cursors, feeds and changes are not part of it: they belong to one installation of a store. A restored store
  begins with new ones; detect assesses every client again, gateways and readers begin again.
* A record is msgpack with its field names left out (an array): reading one with more or fewer fields is refused.
* Names within a record are sorted, so that equal content has equal bytes.
* A cell's `ProfileCell` comes before everything else of that cell, the `JoinState` of a join cell next; an alert before its deliveries.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from consumers.errors import CorruptState
from consumers.store import Exported

REVISION_JUMP = 1 << 20
"""How far the operator cell's revision jumps when it is restored: above any that a reader of the former life knows."""


class _Record(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    pass


class Layout(_Record):
    schema: str
    decision_cells: str
    secrets_id: str


class ProfileCell(_Record):
    """counters: absolute; dead: dead letters by reason, so far."""

    offset: int | None
    counters: dict[str, int]
    dead: dict[str, int]
    sketch: bytes


class JoinState(_Record):
    """Of a join cell. sources: cell of a log → offset up to which it was handed in; numbered: arrivals so far; taken: of them."""

    numbered: int
    taken: int
    sources: dict[str, int]


class StoredArrival(_Record):
    number: int
    content: bytes


class Tombstone(_Record):
    mark: str
    below: int


class StoredLetter(_Record):
    place: str
    offset: int
    reason: str
    detail: str
    sha256: str
    head: bytes


class StoredProfile(_Record):
    """client: as in `layout.client_text`; touched: offset of the last commit that changed it."""

    client: str
    touched: int
    expires_s: int
    fields: dict[str, bytes]


class StoredRow(_Record):
    client: str
    row: bytes
    state: str
    rank: float
    until_s: int
    enforced: str
    expires_s: int


class AlertRecord(_Record):
    uid: str
    time_ms: int
    body: bytes
    stored_ms: int


class Delivery(_Record):
    """An alert that a destination has got."""

    destination: str
    uid: str
    stored_ms: int


class OperatorRevision(_Record):
    revision: int


class OperatorEntry(_Record):
    tenant: str
    kind: str
    key: str
    value: bytes
    expires_s: int


class AuditRecord(_Record):
    number: int
    row: bytes


Record: TypeAlias = (
    Layout
    | ProfileCell
    | JoinState
    | StoredArrival
    | Tombstone
    | StoredLetter
    | StoredProfile
    | StoredRow
    | AlertRecord
    | Delivery
    | OperatorRevision
    | OperatorEntry
    | AuditRecord
)

_TABLES: dict[str, type[Record]] = {
    "layout": Layout,
    "cell": ProfileCell,
    "join": JoinState,
    "arrival": StoredArrival,
    "tombstone": Tombstone,
    "letter": StoredLetter,
    "profile": StoredProfile,
    "decision": StoredRow,
    "alert": AlertRecord,
    "delivery": Delivery,
    "revision": OperatorRevision,
    "entry": OperatorEntry,
    "audit": AuditRecord,
}
_NAMES = {kind: name for name, kind in _TABLES.items()}

_pack = msgspec.msgpack.Encoder(order="deterministic")
_unpack = {name: msgspec.msgpack.Decoder(kind) for name, kind in _TABLES.items()}


def exported(cell: str, record: Record) -> Exported:
    """The record as an item of a snapshot."""
    return Exported(_NAMES[type(record)], cell, _pack.encode(record))


def record_of(item: Exported) -> tuple[str, Record]:
    """Cell and record of an item. Raises CorruptState."""
    try:
        return item.cell, _unpack[item.table].decode(item.value)
    except (KeyError, msgspec.DecodeError, ValueError) as error:
        raise CorruptState(f"snapshot: a record of table {item.table!r} is damaged or unknown") from error
