"""Weaker protocols, each one rule short of ours: the simulation must catch them, or it proves nothing about ours.

Rules:

* A variant is a store that checks less. The production classes run on it unchanged and ask for what they always ask for.
* What a variant knows of a token (the number of its claim) it keeps beside the store, as a client library would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulation.cells import DecisionCell, Nodes, ProfileCell
from simulation.model import ModelStore, page
from simulation.world import AS_DRAWN, Workload

from consumers import store as port
from consumers.errors import Fenced, Rewound
from consumers.store import Checkpoint, DecisionRow, HandIn, Outcome, Shards, Touched
from detector.query import ClientKey

FAR = 2**53 - 1


class _Plain(ModelStore):
    """Reads whatever is there now."""

    def readable(self, cell: str, token: str, offset: int | None) -> ProfileCell:
        return self.nodes.profile_cell(cell) or ProfileCell()


class Naive(_Plain):
    """At least once: writes what it is told to write."""

    def owned(self, cell: str, token: str, offset: int | None) -> ProfileCell:
        return self.nodes.profile_cell(cell) or ProfileCell(generation=self._generation())

    def owned_decisions(self, cell: int, token: str, revision: int) -> DecisionCell:
        return self.nodes.decision_cell(cell)


class _Counted(ModelStore):
    """Claims are counted in the cell; a token is worth its number."""

    def __init__(self, nodes: Nodes, now_s: Callable[[], float]) -> None:
        super().__init__(nodes, now_s)
        self.numbers: dict[str, int] = {}


class EpochOnly(_Plain, _Counted):
    def claimed(self, cell: str, token: str, state: ProfileCell) -> None:
        self.numbers[token] = state.epoch + 1

    def owned(self, cell: str, token: str, offset: int | None) -> ProfileCell:
        state = self.nodes.profile_cell(cell)
        if state is None or state.epoch != self.numbers.get(token):
            raise Fenced(cell)
        return state


class CasOnly(_Plain):
    def owned(self, cell: str, token: str, offset: int | None) -> ProfileCell:
        state = self.nodes.profile_cell(cell) or ProfileCell(generation=self._generation())
        if state.offset != offset:
            raise Rewound(cell, state.offset)
        return state


class EpochCasWatermark(EpochOnly):
    def owned(self, cell: str, token: str, offset: int | None) -> ProfileCell:
        state = super().owned(cell, token, offset)
        if state.offset != offset:
            raise Rewound(cell, state.offset)
        return state

    def replaces(self, state: ProfileCell, client: ClientKey, next_offset: int) -> bool:
        return state.profiles.get(client, ({}, -1))[1] < next_offset


class PlainReads(_Plain):
    """Token and offset are checked by commits, not by reads."""


class IdleUnseen(ModelStore):
    """A cell that nobody writes to is never asked whether it is still where it was."""

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        return super().load(cell, token, offset, clients) if clients else {}


class TouchedSet(ModelStore):
    """Detect takes clients from a set and removes them after it recorded; the lease and each row's version guard the record."""

    takes = True

    def __init__(self, nodes: Nodes, now_s: Callable[[], float]) -> None:
        super().__init__(nodes, now_s)
        self._read: dict[str, dict[ClientKey, DecisionRow | None]] = {}

    def touched(self, cell: str, decision_cells: Mapping[int, int], limit: int) -> dict[int, Touched]:
        state = self.nodes.profile_cell(cell) or ProfileCell()
        found: dict[int, list[tuple[int, ClientKey]]] = {v: [] for v in decision_cells}
        for client in state.untaken:
            v = port.decision_cell(client, self.decision_cells)
            if v in found:
                found[v].append((0, client))
        return {v: Touched(state.generation, FAR, FAR, page(sorted(rows), 10**6, FAR)[1]) for v, rows in found.items()}

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        return replace(super().shards(cell, clients), offset=FAR)

    def owned_decisions(self, cell: int, token: str, revision: int) -> DecisionCell:
        return self.nodes.decision_cell(cell)

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]:
        rows = super().load_decisions(cell, token, revision, clients)
        self._read[token] = {c: rows.get(c) for c in clients}
        return rows

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        state = self.nodes.decision_cell(outcome.cell)
        if state.process != process or state.lease_until_ms < self.now_s() * 1000:
            raise Fenced(str(outcome.cell))
        read = self._read.get(token, {})
        if any(state.rows.get(c) is not read.get(c) for c in outcome.rows):
            raise Rewound(str(outcome.cell), state.revision)
        super().record(token, revision, outcome, process, lease_ms)
        return revision + 1

    def take(self, cell: str, clients: Sequence[ClientKey]) -> None:
        state = self.nodes.profile_cell(cell)
        if state is not None:
            state = state.copy()
            state.untaken = state.untaken - frozenset(clients)
            self.nodes.put(("profiles", cell), state)


class OffsetUnchecked(ModelStore):
    """Detect believes that what it reads is never older than what it was told."""

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        return replace(super().shards(cell, clients), offset=FAR)


class CounterTokens(_Counted):
    """Detect's claims are counted in the decision cell."""

    def claimed_decisions(self, cell: int, token: str, state: DecisionCell) -> None:
        self.numbers[token] = state.epoch + 1

    def owned_decisions(self, cell: int, token: str, revision: int) -> DecisionCell:
        state = self.nodes.decision_cell(cell)
        if state.epoch != self.numbers.get(token):
            raise Fenced(str(cell))
        if state.revision != revision:
            raise Rewound(str(cell), state.revision)
        return state


class EraseByRevision(ModelStore):
    """Whoever erases decisions raises the revision and leaves the token."""

    def erase_decisions(self, cell: int, clients: Sequence[ClientKey], alerts: Sequence[str]) -> None:
        token = self.nodes.decision_cell(cell).token
        super().erase_decisions(cell, clients, alerts)
        state: Any = self.nodes.states["decisions", cell]
        state.token = token


class RestoreKeepsOffset(ModelStore):
    """Who restores a snapshot leaves each cell's position where it was: what came after the snapshot is never read again."""

    def restored(self, state: Any, before: Any) -> Any:
        new = super().restored(state, before)
        if isinstance(new, ProfileCell) and before is not None:
            new.offset = max((at for at in (new.offset, before.offset) if at is not None), default=None)
        return new


class RestoreKeepsGenerations(ModelStore):
    """A restored cell goes on as the same generation, and decisions keep how far they had read it."""

    def restored(self, state: Any, before: Any) -> Any:
        new = super().restored(state, before)
        if isinstance(new, ProfileCell):
            new.generation = state.generation
        elif isinstance(new, DecisionCell) and before is not None:
            new.cursors = before.cursors
        return new


class HandedInTwice(ModelStore):
    """A join cell takes records wherever its source is: at least once."""

    def handed_in(self, state: ProfileCell, records: HandIn) -> None:
        pass


class ArrivalsUnproved(ModelStore):
    """A commit does not ask whether what was read is still there."""

    def there(self, state: ProfileCell, checkpoint: Checkpoint) -> bool:
        return True


class SameGeneration(ModelStore):
    """A join cell that is claimed again goes on as the same generation, though its arrivals may be others."""

    def renewed(self, state: ProfileCell) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Variant:
    """store: what runs; detects: with detect processes, without, or None: as the seed says; seeds: enough to see it fail in CI, from
    `first` on; workload: what it is tried with more often than others are, where the fault needs a rare meeting."""

    title: str
    store: Callable[[Nodes, Callable[[], float]], ModelStore]
    detects: bool | None
    seeds: int
    first: int = 0
    workload: Workload = AS_DRAWN


RESTORES = Workload(deeds=("snapshot", "restore", "restore"), pauses=(0.4, 1.0), always=("operator",), rate=0.01)
"""A snapshot is restored again and again, each time further behind what detect has read; few other faults, or none is left for it."""
ERASURES = Workload(
    deeds=("erase",),
    pauses=(0.2, 0.4),
    theme=("slow", "rollback after", "rollback before"),
    always=("operator", "rollback"),
    rate=0.02,
)
"""Decisions are erased while detect holds their cells and servers fail over, so that a revision is issued again."""

OURS = "ours"
JOINED = "joined"
APART = "apart"
MET = Workload(halves="apart")
VARIANTS: dict[str, Variant] = {
    OURS: Variant("unique token + offset CAS + versioned reads, cursors", ModelStore, None, 2000),
    JOINED: Variant(
        "halves of queries, stored with the offset", ModelStore, None, 150, workload=Workload(halves="joined")
    ),
    APART: Variant("halves in several topics, through the store", ModelStore, None, 150, workload=MET),
    "apart-in-memory": Variant(
        "through the store, what waits in memory only",
        ModelStore,
        None,
        20,
        workload=Workload(halves="apart, in memory"),
    ),
    "apart-twice": Variant("through the store, handed in at least once", HandedInTwice, False, 20, workload=MET),
    "apart-unproved": Variant("through the store, arrivals unproved", ArrivalsUnproved, False, 300, 50, workload=MET),
    "apart-generation": Variant("through the store, one generation", SameGeneration, True, 300, 90, workload=MET),
    "joined-in-memory": Variant(
        "halves of queries, in memory only", ModelStore, None, 20, workload=Workload(halves="in memory")
    ),
    "naive": Variant("naive at-least-once", Naive, False, 10),
    "naive-detect": Variant("naive at-least-once, ingest and detect with a lease", Naive, True, 10),
    "epoch": Variant("epoch counter only", EpochOnly, False, 60),
    "cas": Variant("offset CAS only", CasOnly, False, 200),
    "epoch-cas-watermark": Variant("epoch counter + CAS + client watermark", EpochCasWatermark, False, 600, 350),
    "plain-reads": Variant("unique token + CAS, plain reads", PlainReads, False, 600, 500),
    "idle-unseen": Variant("idle cells are not asked", IdleUnseen, False, 60),
    "touched-set": Variant("detect: touched set + lease + row version", TouchedSet, True, 60),
    "offset-unchecked": Variant("detect: cursor, offset of reads unchecked", OffsetUnchecked, True, 600),
    "counter-tokens": Variant("detect: cursor, counter tokens", CounterTokens, True, 200),
    "restore-keeps-offset": Variant("restore leaves positions where they were", RestoreKeepsOffset, False, 300),
    "restore-keeps-generations": Variant(
        "restore goes on with old generations and cursors", RestoreKeepsGenerations, True, 200, workload=RESTORES
    ),
    "erase-by-revision": Variant("detect: erased under the same token", EraseByRevision, True, 200, workload=ERASURES),
}

GOOD = (OURS, JOINED, APART)
"""Those that must lose nothing and double nothing."""
