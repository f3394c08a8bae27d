"""Compare the rows of the audit log with the entries that they recorded: are the entries still there?

The chain reveals a changed row. An entry beside it could still be removed, changed or added by somebody who can write to the store.

Rules:
* A row lists what it wrote and dropped (``wrote``): kind, a one-way digest of the entry's name, a digest of its value, and its end. So the
  row of an erased client names no client.
* Only entries of people are compared. Entries of processes (heartbeats, the opening of a breaker) have no row.
* An entry that has expired may be gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from consumers.store import Entry, OperatorStore

KINDS = (
    "decision",
    "allow",
    "campaign",
    "proposal",
    "verdict",
    "case",
    "note",
    "key",
    "revoked",
    "breaker",
    "evidence",
    "baseline",
    "baseline_file",
    "indicators",
)
NOT_BY_PEOPLE = {("breaker", "tripped"), ("breaker", "held")}
SKEW_S = 60
"""How far the store's clock may be ahead of ours."""


class _AuditedRow(msgspec.Struct):
    n: int
    action: str = ""
    object: str = ""
    wrote: list[str] | None = None


_row = msgspec.json.Decoder(_AuditedRow)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last row about an entry says; value: digest, empty when it was dropped."""

    kind: str
    value: str
    expires_s: int
    row: _AuditedRow


def wrote(puts: Iterable[Entry], drops: Iterable[tuple[str, str, str]]) -> list[str]:
    """What a row says of the entries of its operation."""
    gone = [f"{kind}:{_name(tenant, kind, key)}::0" for tenant, kind, key in drops if kind in KINDS]
    return gone + [
        f"{e.kind}:{_name(e.tenant, e.kind, e.key)}:{_digest(e.value)}:{e.expires_s}" for e in puts if e.kind in KINDS
    ]


def stored(store: OperatorStore) -> list[Entry]:
    """The entries that rows tell of. Raises Unavailable."""
    return [
        entry
        for kind in KINDS
        for entry in store.operator_entries(kind)[1]
        if entry.kind == kind and (kind, entry.key) not in NOT_BY_PEOPLE
    ]


@dataclass(slots=True)
class Kept:
    """Rows read one after another, then compared. silent: there is a row that does not say what it wrote, of an earlier version."""

    known: dict[str, _Known] = field(default_factory=dict)
    silent: bool = False

    def read(self, line: bytes) -> None:
        """Take the next row; one that can't be read is the chain's matter."""
        try:
            row = _row.decode(line)
        except (msgspec.DecodeError, ValueError):
            return
        if row.wrote is None:
            self.silent = True
        for one in row.wrote or ():
            kind, name, value, expires_s = [*one.split(":"), "", "", ""][:4]
            self.known[name] = _Known(kind, value, int(expires_s) if expires_s.isdecimal() else 0, row)

    def differences(self, entries: Sequence[Entry], now_s: float) -> list[str]:
        """Entries that are gone, that are not what their row says, or that no row tells of."""
        there = {_name(e.tenant, e.kind, e.key): e for e in entries}
        found = [
            f"row {one.row.n} ({one.row.action} {one.row.object}) wrote an entry of kind {one.kind} that is gone"
            for name, one in self.known.items()
            if one.value and name not in there and not 0 < one.expires_s <= now_s + SKEW_S
        ]
        for name, entry in there.items():
            told = self.known.get(name)
            if told is None or not told.value:
                if told is not None or not self.silent:
                    found.append(f"entry {entry.kind} {entry.key} of tenant {entry.tenant} was written by no row")
            elif (told.value, told.expires_s) != (_digest(entry.value), entry.expires_s):
                found.append(
                    f"entry {entry.kind} {entry.key} of tenant {entry.tenant} is not what row {told.row.n} wrote"
                )
        return found


def _name(tenant: str, kind: str, key: str) -> str:
    return hashlib.sha256(f"{tenant}\0{kind}\0{key}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:32]
