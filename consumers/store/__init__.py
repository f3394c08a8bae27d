"""The store: keeps profiles with the offset that they reflect, and decisions with the profiles that they reflect.

Port `Store` has two implementations, Redis (`redis.py` + `*.lua`) and SQLite (`embedded.py`). It is made of five ports, and a process is
typed by those that it uses: `ProfileStore`, `JoinStore`, `DecisionStore`, `OperatorStore` and `UpkeepStore`.
`tests/support/store_contract.py` runs on both.

* A profile cell holds the profiles of one *log cell*; ingest owns it.
* A *decision cell* (0 ≤ v < `decision_cells` of the store) holds the decisions of the clients that `decision_cell` maps to it; detect owns
  it. A store has the number that it was made with for life. Another number needs another store: `renumbering.py`.
* A *join cell* is a profile cell that is no log cell: readers of several logs hand records in, which wait in the cell itself.
* The *operator cell* holds entries that cannot be rebuilt from the log: manual decisions, allowlist entries, verdicts, notes, API keys.

Rules:

* The store is blind: it knows bytes, offsets and decisions, and no statistic.
* A cell is one unit: its keys carry one hash tag, and a step changes one cell only.
* Every claim brings a fresh random token. Every read and write of the owner names the token and the position that it expects, and is
  refused with `Fenced` (other token) or `Rewound` (other position) in the same atomic step (docs/architecture.md).
* Written values are absolute, never increments. The position is written last.
* After an `Unavailable` the outcome is unknown: claim again with a new token, and never send the same commit again.
* A change of an operator's entry is written together with its audit rows. It is refused with `Rewound` if another process changed the
  operator cell in between. Owners of other cells are not disturbed.
* Gateways read `restrictions` once and `changes` from then on. A position that is too old to continue from is answered with None.
* Other writers to an owned cell (`erase`, `erase_decisions`, `reset`) invalidate its owner in the same step. `swap_fields` and
  `swap_decisions` do not: they replace bytes by bytes of the same meaning, and only those that nobody has changed since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

from detector.query import ClientKey

if TYPE_CHECKING:
    from detector.policy import State  # a reader of the store need not load the core

DECISION_CELLS = 32
"""Decision cells of a store, unless `store.decision_cells` says otherwise."""
MOST_DECISION_CELLS = 1024

Enforced = Literal["clear", "watch", "degrade", "throttle", "block"]
"""What gateways may do with a client; nothing that is detected asks for *degrade*."""
ENFORCED: tuple[Enforced, ...] = get_args(Enforced)
"""From the mildest to the most severe."""
Proof = Literal["none", "alive", "folded"]
"""What a claim says for the records that come next. none: it counts as an attempt; alive: the process claimed before and lives, so it does
not count; folded: the process came through their fold, so no earlier attempt counts any more."""
SCHEMA_VERSION = 2


@lru_cache(65_536)  # the same busy clients are written poll after poll
def decision_cell(client: ClientKey, cells: int) -> int:
    """Decision cell of a client in a store of `cells` decision cells: the same for every process and every run."""
    digest = hashlib.blake2b("\x00".join(client).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % cells


class Tombstones:
    """Who was erased from a profile cell, and up to where, without saying who: one-way marks → offsets.

    ``get(client, 0)`` is the offset below which the client's queries are skipped for good. The mark `FLOOR`, which is nobody's, says how
    far a cell that is read anew was read before: who is erased meanwhile is erased up to there.
    """

    __slots__ = ("_marks",)
    FLOOR = ""

    def __init__(self, marks: Mapping[str, int] = MappingProxyType({})) -> None:
        self._marks = marks

    @staticmethod
    def mark(client: ClientKey) -> str:
        """32 hex digits that neither are nor show the client's hash."""
        text = "\x00".join(client).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16, person=b"qw-erased").hexdigest()

    def get(self, client: ClientKey, default: int = 0) -> int:
        return self._marks.get(self.mark(client), default) if self._marks else default

    def __contains__(self, client: ClientKey) -> bool:
        return self.mark(client) in self._marks

    def __len__(self) -> int:
        return len(self._marks)


@dataclass(frozen=True, slots=True)
class Claim:
    """What the owner of a profile cell must know.

    generation   random, new when the cell is rebuilt
    next_offset  where to resume, None if nothing is stored
    attempts     counted claims at this offset since the last commit moved it, this claim included if it counts (`Proof`)
    erased       offsets below which some clients' queries are skipped for good
    sketch       as the last checkpoint left it; opaque
    """

    generation: str
    next_offset: int | None
    counters: Mapping[str, int] = field(default_factory=dict)
    attempts: int = 1
    erased: Tombstones = field(default_factory=Tombstones)
    sketch: bytes = b""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused record: where, why, and enough to recognise it. `head` is its redacted shape, at most 256 bytes."""

    place: str
    offset: int
    reason: str
    detail: str
    sha256: str
    head: bytes


class Arrival(NamedTuple):
    """A record in a join cell. number: its place there; proof: of it and of all that arrived before it; content: opaque."""

    number: int
    proof: str
    content: bytes


@dataclass(frozen=True, slots=True)
class HandIn:
    """Records of a source from one offset to another, for a join cell. Whoever hands them in hands in the same, so there is no token.

    expected     up to where the cell has the source's records; None: the source is new. next_offset: up to where it has them then
    nonce        random, drawn for each attempt
    most         arrivals that may wait to be taken, of at most `most_bytes`; where as much waits, nothing is taken in
    """

    cell: str
    source: str
    expected: int | None
    next_offset: int
    contents: Sequence[bytes] = ()
    nonce: str = ""
    most: int = 10_000
    most_bytes: int = 32 << 20


@dataclass(frozen=True, slots=True)
class Taken:
    """What a checkpoint took of a join cell. last, proof: of the last arrival that was read; done: those that are needed no more."""

    last: int
    proof: str
    done: tuple[int, ...] = ()


@dataclass(slots=True)
class Checkpoint:
    """Everything one ingest step writes to one profile cell: all of it in one atomic step, or nothing.

    The comments say in which order the step checks and writes. The order of the fields is not that order.
    """

    cell: str
    # CHECKED FIRST, with the owner's token: the offset that the profiles in memory reflect, None for a cell that holds nothing. Another
    # token is `Fenced`, another offset `Rewound`, and nothing is written.
    expected_offset: int | None
    # WRITTEN LAST, after everything below. Only when it is stored may refused records be shipped to their topic, and the log be told where
    # reading is. After a commit whose outcome is unknown, this is what the next claim returns if it took effect.
    next_offset: int
    # WRITTEN FIRST: client → field → absolute value; None deletes the field. With it, each client is noted as touched at `next_offset`:
    # detect learns of the change by that.
    profiles: dict[ClientKey, dict[str, bytes | None]] = field(default_factory=dict)
    # WRITTEN SECOND: refused records. They wait in the store until they were shipped: at least once, never before this commit.
    dead: list[DeadLetter] = field(default_factory=list)
    # WRITTEN THIRD: absolute values of the cell's counters and marks, as of `next_offset`. Never increments: a redo writes the same.
    counters: dict[str, int] = field(default_factory=dict)
    # WRITTEN FOURTH: what the owner keeps about new clients of the cell as a whole (opaque); None leaves what is stored.
    sketch: bytes | None = None
    # Not written, but how long the profiles live: those of `lasting` for `memory_s` after this commit, if that is longer than the 30 days
    # of the others.
    lasting: frozenset[ClientKey] = frozenset()
    memory_s: int = 0
    # CHECKED SECOND, of a join cell: the last arrival that was read is still there, otherwise `Rewound`. What is done with is dropped.
    taken: Taken | None = None


@dataclass(frozen=True, slots=True)
class Touched:
    """Clients of one decision cell changed after a cursor. `cursor` is how far this answer is complete."""

    generation: str
    offset: int
    cursor: int
    clients: list[ClientKey]


@dataclass(frozen=True, slots=True)
class Shards:
    """Profile fields of some clients in one profile cell, at one offset."""

    generation: str
    offset: int
    fields: dict[ClientKey, dict[str, bytes]]


class Cursor(NamedTuple):
    generation: str
    offset: int


@dataclass(frozen=True, slots=True)
class DecisionClaim:
    revision: int
    cursors: Mapping[str, Cursor]


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A client's decision as stored.

    row        opaque to the store (detect's encoding: assessment, reason, history)
    state      as detected
    rank       for "highest first" listings of a model
    until_s    when a throttle or block ends, 0 for none
    enforced   what gateways do: `state`, or less
    """

    row: bytes
    state: State
    rank: float
    until_s: int
    enforced: Enforced = "clear"


@dataclass(frozen=True, slots=True)
class OutboxAlert:
    """An alert as stored before it is sent.

    uid     ``alert_id/update``: receivers de-duplicate on it
    tenant  whose key seals the body when it is stored; not stored itself, empty in an answer
    """

    uid: str
    time_ms: int
    body: bytes
    tenant: str = field(default="", compare=False)


@dataclass(slots=True)
class Outcome:
    """Everything one detect step writes to one decision cell; the revision last."""

    cell: int
    cursors: dict[str, Cursor] = field(default_factory=dict)
    rows: dict[ClientKey, DecisionRow] = field(default_factory=dict)
    alerts: list[OutboxAlert] = field(default_factory=list)


class Restriction(NamedTuple):
    """What a gateway needs of a decision. In an answer of `changes`, state *clear* or *watch* lifts an earlier one."""

    client: ClientKey
    state: State
    enforced: Enforced
    until_s: int


class Entry(NamedTuple):
    """Something an operator keeps.

    kind       decision | allow | verdict | note | key | breaker | … ; the store does not care
    key        unique within tenant and kind
    value      opaque; in an answer of `operator_changes`, empty: dropped
    expires_s  when it ends by itself, 0 for never; readers never see an expired entry
    """

    tenant: str
    kind: str
    key: str
    value: bytes
    expires_s: int = 0


@dataclass(slots=True)
class Operation:
    """One change of the operator cell: entries put, (tenant, kind, key) dropped, audit rows appended. All or nothing.

    forget  what was dropped is personal: no change up to this one is told any more, readers begin again
    """

    puts: list[Entry] = field(default_factory=list)
    drops: list[tuple[str, str, str]] = field(default_factory=list)
    audit: list[bytes] = field(default_factory=list)
    forget: bool = False


class Exported(NamedTuple):
    """One item of a snapshot: which table of which cell, and what. Only the stores give it a meaning (`records.py`)."""

    table: str
    cell: str
    value: bytes


class FieldSwap(NamedTuple):
    """A field of a profile that is to be replaced if it is still `before`."""

    client: ClientKey
    field: str
    before: bytes
    after: bytes


class RowSwap(NamedTuple):
    """A decision row, the opaque part, that is to be replaced if it is still `before`."""

    client: ClientKey
    before: bytes
    after: bytes


class AlertSwap(NamedTuple):
    """The body of a stored alert that is to be replaced if it is still `before`."""

    uid: str
    before: bytes
    after: bytes


class ProfileStore(Protocol):
    """Profile cells. Ingest owns them and needs nothing else of the store; detect and readers read them."""

    def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
        """Take a profile cell: whoever held it is fenced from now on."""

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        """Fields of those clients that are stored. Raises Fenced, Rewound, Unavailable."""

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        """Atomic: check token and expected offset, write, offset last. Raises Fenced, Rewound, Unavailable."""

    def dead_letters(self, cell: str, limit: int) -> list[tuple[str, DeadLetter]]:
        """Refused records not yet shipped, oldest first, with their entry ids."""

    def dead_letters_shipped(self, cell: str, entries: Sequence[str]) -> None: ...

    def dead_letter_counts(self) -> dict[str, int]: ...

    def cells(self) -> list[str]:
        """All profile cells that were ever claimed."""

    def touched(self, cell: str, decision_cells: Mapping[int, int], limit: int) -> dict[int, Touched]:
        """For each decision cell → cursor: clients changed at an offset above the cursor, oldest first, at most `limit`
        each. One commit shares one score (its next offset) and is never cut: `cursor` is the highest score returned
        completely, or the cell's offset when nothing was left out."""

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        """Profile fields of some clients, all as of the cell's one offset, for processes that own nothing."""

    def pressure(self) -> float:
        """Share of its memory that the fullest server uses, 0 where there is no limit."""


class JoinStore(Protocol):
    """Join cells. Every reader of a source hands in; the owner of the profile cell of that name takes out (`Checkpoint.taken`).
    The same number may be another arrival in another history, so every `claim` of a join cell begins a new generation."""

    def sources(self, cell: str) -> dict[str, int]:
        """Source → offset up to which its records were handed in."""

    def hand_in(self, records: HandIn) -> bool:
        """Atomic: check the expected offset, append, note the next one. False: the cell is full. Raises Rewound, Unavailable."""

    def arrivals(self, cell: str, first: int, limit: int) -> tuple[list[Arrival], int]:
        """What is there from a number on, in order, at most `limit`; and the number that the next arrival will get."""


class DecisionStore(Protocol):
    """Decision cells. Detect owns them; readers and gateways read them."""

    @property
    def decision_cells(self) -> int:
        """How many there are; the same for every process that opens the store."""

    # --- detect
    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        """Raises LeaseHeld while another process' lease lives."""

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]: ...

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        """Atomic: check token and revision; rows, rank, alerts, outbox, cursors; renew the lease; returns revision + 1."""

    def release_decisions(self, cell: int, process: str) -> None:
        """Give up the lease (only if it is ours)."""

    def attend(self, process: str, duration_ms: int) -> int:
        """Say that a detector lives and will for this long (0: it leaves); returns how many live. Cells are shared by it."""

    def outbox(self, cell: int, destination: str, limit: int) -> list[tuple[str, OutboxAlert]]:
        """Alerts not yet delivered to `destination`, oldest first."""

    def sent(self, cell: int, destination: str, entry: str, uid: str) -> None:
        """Remember the delivery. Unfenced: at worst a duplicate is sent."""

    # --- readers
    def decisions(
        self, tenant: str, model: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[ClientKey, DecisionRow]]:
        """All decision rows of a tenant, highest rank first within a model."""

    def decided(self, clients: Sequence[ClientKey]) -> dict[ClientKey, DecisionRow]:
        """Decision rows of those clients that have one, for processes that own nothing."""

    def alerts(self, limit: int | None = None) -> list[OutboxAlert]:
        """Alerts of the last 30 days, oldest first."""

    # --- gateways
    def restrictions(self) -> tuple[dict[int, str], list[Restriction]]:
        """Every client that is throttled or blocked, and for each decision cell the position in its feed that the answer
        reflects at least: reading `changes` from there misses nothing."""

    def changes(self, positions: Mapping[int, str], limit: int) -> tuple[dict[int, str], list[Restriction]] | None:
        """What changed after those positions, oldest first within a cell, at most `limit` a cell, and the new positions.
        None when a feed no longer goes back that far: read `restrictions` again."""


class OperatorStore(Protocol):
    """The operator cell."""

    def operate(self, revision: int, operation: Operation) -> int:
        """Atomic: check the revision, write entries and audit rows; returns the next revision, which is higher by a random step: one that
        a fail-over lost is not issued again for another content. Raises Rewound, Unavailable."""

    def operator_entries(self, kind: str, tenant: str | None = None) -> tuple[int, list[Entry]]:
        """The revision, and the entries of a kind that have not expired, by tenant and key."""

    def operator_changes(self, after: int, limit: int) -> tuple[int, list[Entry]] | None:
        """Puts and drops of the revisions above `after`, oldest first, and the revision they reach (one is never cut).
        None when they no longer go back that far, or when `after` belongs to a history that is lost."""

    def audit_rows(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """Audit rows numbered above `after` (the first is 1), in order."""


class UpkeepStore(Protocol):
    """The store as a whole: opened, erased from, rebuilt, copied. What changes a cell invalidates the cell's owner in the same step."""

    def prepare(self, secrets_id: str) -> None:
        """Create or check the layout (schema version, number of decision cells, id of the secrets).

        Raises Refused in one line when the stored layout or the secrets id differ.
        """

    def erase(self, cell: str, clients: Sequence[ClientKey]) -> None:
        """Drop these clients' profiles and remember the cell's offset, or how far it was read before it was reset: below it their
        queries are never counted again."""

    def erase_decisions(self, cell: int, clients: Sequence[ClientKey], alerts: Sequence[str]) -> None:
        """Drop rows, restrictions and ranks of these clients, and stored alerts by `alert_id` with the memory of their
        delivery. Positions in the cell's feed are void afterwards, so gateways read `restrictions` again: no entry that
        would name the client has to lift anything."""

    def reset(self, cell: str, offset: int | None) -> None:
        """Drop the cell's profiles; a new generation begins at `offset` (None: as if never read). What was erased stays so."""

    def export(self) -> Iterator[Exported]:
        """Everything, cell by cell, each cell as of one moment."""

    def restore(self, items: Iterable[Exported]) -> None:
        """Fill an empty store (Refused when it is not): positions as exported, new generations, no owners."""

    def swap_fields(self, cell: str, swaps: Sequence[FieldSwap]) -> int:
        """Replace what is still as given, in one step, and answer how many that were. Positions, lifetimes, changes that
        readers are told and the owner stay as they are: the content must mean the same as before."""

    def swap_decisions(self, cell: int, rows: Sequence[RowSwap], alerts: Sequence[AlertSwap]) -> int:
        """As `swap_fields`, for rows and alerts of a decision cell. Entries of the outbox keep their ids."""

    def scrub(self) -> bool:
        """Take off the disk what was erased before, as far as a store can; False: the server's operator has to."""

    def close(self) -> None: ...


class ServiceStore(ProfileStore, JoinStore, DecisionStore, OperatorStore, Protocol):
    """What detect, serve and the readers use: every kind of cell, and nothing that rebuilds one."""


class Store(ServiceStore, UpkeepStore, Protocol):
    """The whole port, as both stores implement it and the commands use it."""
