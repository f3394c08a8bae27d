"""What a simulated store keeps: cells on nodes, each with one history that a failover can cut.

Rules:

* A state is never changed in place. A write puts a new state and remembers the old one, so that undoing the last k writes of a
  node – what a failover to a replica that lagged by k does – costs k assignments. Cells of one node roll back together, to one
  prefix; cells of different nodes independently.
* `lineage` names the content: what a write makes of a lineage is a new one that no other write ever makes. It goes back with a
  rollback. The oracle uses it to tell by itself, without tokens and offsets, whether a write was built on what it replaced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consumers.store import Cursor, DeadLetter, DecisionRow, Entry, OutboxAlert
from detector.query import ClientKey

Place = tuple[str, str | int]
"""("profiles", cell name) | ("decisions", cell number) | ("operators", "")"""


@dataclass(slots=True)
class ProfileCell:
    """profiles: client → (fields, touched at); base: where this generation began to count, None: at the log's start.

    arrivals: number → (proof, content) of those that wait; handed: source → offset; numbered, taken: see `JoinState`; proof: the newest.
    history: every arrival of this history, for the oracle, as is refused: offset → reason of every dead letter.
    epoch counts claims and untaken names who was
    touched and not taken yet: only weaker variants look at them.
    """

    token: str = ""
    generation: str = ""
    offset: int | None = None
    attempts: int = 0
    sketch: bytes = b""
    base: int | None = None
    epoch: int = 0
    lineage: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    profiles: dict[ClientKey, tuple[dict[str, bytes], int]] = field(default_factory=dict)
    dead: tuple[tuple[int, DeadLetter], ...] = ()
    letters: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    erased: dict[str, int] = field(default_factory=dict)
    untaken: frozenset[ClientKey] = frozenset()
    arrivals: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    handed: dict[str, int] = field(default_factory=dict)
    numbered: int | None = None
    taken: int = 0
    proof: str = ""
    history: tuple[bytes, ...] = ()

    def copy(self) -> ProfileCell:
        return ProfileCell(
            self.token, self.generation, self.offset, self.attempts, self.sketch, self.base, self.epoch, self.lineage,
            self.counters, self.profiles, self.dead, self.letters, self.reasons, self.refused, self.erased, self.untaken,
            self.arrivals, self.handed, self.numbered, self.taken, self.proof, self.history,
        )  # fmt: skip


@dataclass(slots=True)
class DecisionCell:
    """alerts: (entry, alert, stored at in ms), oldest first; sent: (destination, uid) → entry; feed: (entry, client, row)."""

    token: str = ""
    revision: int = 0
    process: str = ""
    lease_until_ms: float = 0.0
    epoch: int = 0
    lineage: int = 0
    cursors: dict[str, Cursor] = field(default_factory=dict)
    rows: dict[ClientKey, DecisionRow] = field(default_factory=dict)
    alerts: tuple[tuple[int, OutboxAlert, int], ...] = ()
    entries: int = 0
    sent: dict[tuple[str, str], int] = field(default_factory=dict)
    feed: tuple[tuple[int, ClientKey, DecisionRow], ...] = ()
    feed_generation: str = ""
    fed: int = 0

    def copy(self) -> DecisionCell:
        return DecisionCell(
            self.token, self.revision, self.process, self.lease_until_ms, self.epoch, self.lineage, self.cursors,
            self.rows, self.alerts, self.entries, self.sent, self.feed, self.feed_generation, self.fed,
        )  # fmt: skip


@dataclass(slots=True)
class OperatorCell:
    revision: int = 0
    gone: int = 0
    entries: dict[tuple[str, str, str], Entry] = field(default_factory=dict)
    changes: tuple[tuple[int, Entry], ...] = ()
    audit: tuple[bytes, ...] = ()
    known: tuple[int, ...] = ()

    def copy(self) -> OperatorCell:
        return OperatorCell(self.revision, self.gone, self.entries, self.changes, self.audit, self.known)


class Nodes:
    """Storage of several nodes; `node_of` says where a cell lives."""

    def __init__(self, count: int = 1, node_of: Callable[[Place], int] = lambda place: 0) -> None:
        self.states: dict[Place, Any] = {}
        self.layout: dict[str, str] = {}
        self.detectors: dict[str, float] = {}
        self._logs: list[list[tuple[Place, Any]]] = [[] for _ in range(count)]
        self._node_of = node_of
        self._numbers = itertools.count(1)
        self._successors: dict[tuple[int, int], tuple[int, object]] = {}

    @property
    def count(self) -> int:
        return len(self._logs)

    def number(self) -> int:
        """One that was never given before, in any history."""
        return next(self._numbers)

    def after(self, lineage: int, written: object) -> int:
        """Lineage of what `written` makes of `lineage`: the very same write, arriving again, makes the same of it."""
        found = self._successors.get((lineage, id(written)))
        if found is None:  # it keeps the object, so that its id belongs to nobody else
            found = self._successors[lineage, id(written)] = (self.number(), written)
        return found[0]

    def writes(self, node: int) -> int:
        return len(self._logs[node])

    def put(self, place: Place, state: Any) -> None:
        self._logs[self._node_of(place)].append((place, self.states.get(place)))
        self.states[place] = state

    def roll_back(self, node: int, writes: int) -> int:
        """Undo the last writes of a node; returns how many there were to undo."""
        log = self._logs[node]
        undone = min(writes, len(log))
        for _ in range(undone):
            place, before = log.pop()
            if before is None:
                del self.states[place]
            else:
                self.states[place] = before
        return undone

    def replaced(self) -> None:
        """Another store stands here from now on, an empty one: no failover brings back what the old one held."""
        self.states.clear()
        self.layout.clear()
        self.detectors.clear()
        for log in self._logs:
            log.clear()

    def profile_cell(self, cell: str) -> ProfileCell | None:
        found: ProfileCell | None = self.states.get(("profiles", cell))
        return found

    def decision_cell(self, cell: int) -> DecisionCell:
        found: DecisionCell | None = self.states.get(("decisions", cell))
        return found or DecisionCell()

    def operators(self) -> OperatorCell:
        found: OperatorCell | None = self.states.get(("operators", ""))
        return found or OperatorCell()
