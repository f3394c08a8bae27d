"""Simulated processes: what happens to one at an effect, and the store as it sees it.

Rules:

* Every call of a port that leaves the process goes through `Process.effect`: it travels, takes effect in one step, its answer
  travels. Others run in between; a fault may hit.
* `Port` also watches, beside the protocol and without using it: which content (`cells`: lineage) the process has claimed and read.
  A commit that is accepted on any other content is a stale commit, whatever token and offset it came with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from simulation.cells import Place

from consumers.errors import QueryWardenError, Unavailable
from consumers.store import (
    Checkpoint,
    Claim,
    DeadLetter,
    DecisionClaim,
    DecisionRow,
    HandIn,
    OutboxAlert,
    Outcome,
    Proof,
)
from detector.query import ClientKey

if TYPE_CHECKING:
    from simulation.model import Saved
    from simulation.world import World

MIXED = -1
"""Content of more than one history."""


class Crash(BaseException):
    """The process ended here."""


class Process:
    def __init__(self, world: World, name: str, body: Callable[[Process], None]) -> None:
        self.world, self.name, self._body = world, name, body
        self.dead = False
        self.lives = 0
        self.stopped = False

    @property
    def identity(self) -> str:
        return f"{self.name}.{self.lives}"

    def live(self) -> None:
        """Run, and after a crash run again as another process."""
        world = self.world
        while not world.over:
            self.lives += 1
            with contextlib.suppress(Crash):
                self._body(self)
            world.schedule.at(world.session_s, partial(world.topic.leave, self.identity))
            if not world.over:
                self.dead = False
                with contextlib.suppress(Crash):
                    self.pause(world.rng.choice([0.01, 0.3, 1.0]))

    def pause(self, seconds: float) -> None:
        if self.dead or self.world.over:
            raise Crash
        self.world.schedule.pause(seconds)
        if self.world.over:
            raise Crash

    def effect(
        self, what: str, place: Place | None, call: Callable[[], Any], writes: bool = True, sink: bool = False
    ) -> Any:
        """One call that leaves the process."""
        if self.dead or self.world.over:
            raise Crash
        world = self.world
        fault = world.faults.draw(writes, sink)
        kind = fault.kind if fault else ""
        if kind == "again" and what.startswith("claim"):
            kind = "slow"  # each attempt to claim draws its own token, and no transport repeats a call by itself
        if kind in _BEFORE:
            self._before(kind, place)
        self.pause(world.rng.random() * (0.1 if kind == "slow" else 0.004))
        hit = f"#{fault.number} {kind}" if fault else ""
        if kind in _NOT_NOW:
            world.note(self.identity, what, place, hit)
            self._unanswered(kind, what, place, call)
        error: QueryWardenError | None = None
        answer = None
        try:
            answer = call()
        except QueryWardenError as refusal:
            error = refusal
        if world.trace is not None:
            world.note(self.identity, what + (f" → {type(error).__name__}" if error else ""), place, hit)
        if kind in _AFTER:
            self._after(kind, what, place, call)
        self.pause(world.rng.random() * 0.004)
        if kind == "lost":
            raise Unavailable("simulated: the answer was lost")
        if error is not None:
            raise error
        return answer

    def _before(self, kind: str, place: Place | None) -> None:
        if kind == "stop before":
            self._stop(self.world.faults.stop_s())
        else:
            self.world.roll_back(place)

    def _unanswered(self, kind: str, what: str, place: Place | None, call: Callable[[], Any]) -> NoReturn:
        if kind in _LATER:
            for _ in range(2 if kind == "twice late" else 1):
                self.world.later(self, what, place, call)
        if kind in _CRASH:
            self.dead = True
            raise Crash
        raise Unavailable("simulated: no answer")

    def _after(self, kind: str, what: str, place: Place | None, call: Callable[[], Any]) -> None:
        if kind == "crash after":
            self.dead = True
            raise Crash
        if kind == "rollback after":
            self.world.roll_back(place)
        elif kind == "stop after":
            self._stop(self.world.faults.stop_s())
        else:
            self.world.later(self, what, place, call)

    def _stop(self, seconds: float) -> None:
        """SIGSTOP: the group notices when it lasts; the process does not."""
        world, identity = self.world, self.identity
        if seconds > world.session_s:
            world.schedule.at(world.session_s, lambda: world.topic.leave(identity))
        self.pause(seconds)


_CRASH = {"crash before", "crash, late"}
_LATER = {"late", "twice late", "crash, late"}
_BEFORE = {"stop before", "rollback before"}
_AFTER = {"crash after", "rollback after", "stop after", "again"}
_NOT_NOW = {"refused", "takes nothing"} | _CRASH | _LATER


class Port:
    """The store as one process sees it."""

    def __init__(self, process: Process) -> None:
        self._process, self._world = process, process.world
        self._store = process.world.store
        self._nodes = process.world.nodes
        self._profiles: dict[str, int] = {}
        self._decisions: dict[int, int] = {}
        self.decision_cells: int = process.world.store.decision_cells

    def _effect(self, what: str, place: Place | None, call: Callable[[], Any], writes: bool = True) -> Any:
        return self._process.effect(what, place, call, writes)

    # --- ingest

    def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
        def call() -> tuple[Claim, int]:
            return self._store.claim(cell, token, proof), self._lineage(cell)

        claim, self._profiles[cell] = self._effect("claim", ("profiles", cell), call)
        return claim  # type: ignore[no-any-return]

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        def call() -> tuple[dict[ClientKey, dict[str, bytes]], int]:
            return self._store.load(cell, token, offset, clients), self._lineage(cell)

        found, lineage = self._effect("load", ("profiles", cell), call, writes=False)
        if self._profiles.get(cell) != lineage:
            self._profiles[cell] = MIXED
        return found  # type: ignore[no-any-return]

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        cell, basis = checkpoint.cell, self._profiles.get(checkpoint.cell)

        def call() -> int:
            before = self._lineage(cell)
            self._store.commit(token, checkpoint)
            if before != basis and checkpoint.next_offset != checkpoint.expected_offset:
                self._world.stale_commit(self._process.identity, cell)
            return self._lineage(cell)

        self._profiles[cell] = self._effect("commit", ("profiles", cell), call)

    def dead_letters(self, cell: str, limit: int) -> list[tuple[str, DeadLetter]]:
        return self._effect(  # type: ignore[no-any-return]
            "dead letters", ("profiles", cell), lambda: self._store.dead_letters(cell, limit), writes=False
        )

    def dead_letters_shipped(self, cell: str, entries: Sequence[str]) -> None:
        self._effect("shipped", ("profiles", cell), lambda: self._store.dead_letters_shipped(cell, entries))

    def hand_in(self, records: HandIn) -> bool:
        return self._effect("hand in", ("profiles", records.cell), lambda: self._store.hand_in(records))  # type: ignore[no-any-return]

    # --- detect

    def cells(self) -> list[str]:
        return self._effect("cells", None, self._store.cells, writes=False)  # type: ignore[no-any-return]

    def touched(self, cell: str, decision_cells: dict[int, int], limit: int) -> Any:
        wanted = dict(decision_cells)
        return self._effect(
            "touched", ("profiles", cell), lambda: self._store.touched(cell, wanted, limit), writes=False
        )

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Any:
        return self._effect("shards", ("profiles", cell), lambda: self._store.shards(cell, clients), writes=False)

    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        def call() -> tuple[DecisionClaim, int]:
            return self._store.claim_decisions(cell, process, token, lease_ms), self._row_lineage(cell)

        claim, self._decisions[cell] = self._effect("claim decisions", ("decisions", cell), call)
        return claim  # type: ignore[no-any-return]

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]:
        def call() -> tuple[dict[ClientKey, DecisionRow], int]:
            return self._store.load_decisions(cell, token, revision, clients), self._row_lineage(cell)

        found, lineage = self._effect("load decisions", ("decisions", cell), call, writes=False)
        if self._decisions.get(cell) != lineage:
            self._decisions[cell] = MIXED
        return found  # type: ignore[no-any-return]

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        cell, basis = outcome.cell, self._decisions.get(outcome.cell)

        def call() -> tuple[int, int]:
            before = self._nodes.decision_cell(cell)
            after = self._store.record(token, revision, outcome, process, lease_ms)
            if before.lineage != basis:
                self._world.stale_commit(self._process.identity, str(cell))
            there = {alert.uid for _, alert, _ in before.alerts}
            for alert in outcome.alerts:
                if alert.uid in there:
                    self._world.doubled_alert(alert.uid)
            return after, self._row_lineage(cell)

        after, self._decisions[cell] = self._effect("record", ("decisions", cell), call)
        take = getattr(self._store, "take", None)
        if take is not None:  # a weaker variant: who was touched is struck off afterwards
            for name in outcome.cursors:
                self._effect("take", ("profiles", name), partial(take, name, list(outcome.rows)))
        return after  # type: ignore[no-any-return]

    def release_decisions(self, cell: int, process: str) -> None:
        self._effect("release", ("decisions", cell), lambda: self._store.release_decisions(cell, process))

    def attend(self, process: str, duration_ms: int) -> int:
        return self._effect("attend", None, lambda: self._store.attend(process, duration_ms))  # type: ignore[no-any-return]

    def outbox(self, cell: int, destination: str, limit: int) -> list[tuple[str, OutboxAlert]]:
        return self._effect(  # type: ignore[no-any-return]
            "outbox", ("decisions", cell), lambda: self._store.outbox(cell, destination, limit), writes=False
        )

    def sent(self, cell: int, destination: str, entry: str, uid: str) -> None:
        self._effect("sent", ("decisions", cell), lambda: self._store.sent(cell, destination, entry, uid))

    # --- operators

    def erase(self, cell: str, clients: Sequence[ClientKey]) -> None:
        self._effect("erase", ("profiles", cell), lambda: self._store.erase(cell, clients))

    def erase_decisions(self, cell: int, clients: Sequence[ClientKey], alerts: Sequence[str]) -> None:
        self._effect("erase decisions", ("decisions", cell), lambda: self._store.erase_decisions(cell, clients, alerts))

    def reset(self, cell: str, offset: int | None) -> None:
        self._effect("reset", ("profiles", cell), lambda: self._store.reset(cell, offset))

    def operate(self, revision: int, operation: Any) -> int:
        return self._effect("operate", ("operators", ""), lambda: self._store.operate(revision, operation))  # type: ignore[no-any-return]

    def saved(self, place: Place) -> Any:
        return self._effect("snapshot", place, lambda: self._store.saved(place), writes=False)

    def restore_saved(self, saved: Saved) -> None:
        def call() -> None:
            self._store.restore_saved(saved)
            self._world.restores += 1

        self._effect("restore", None, call)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Everything else only reads."""
        there = getattr(self._store, name)
        return lambda *arguments: self._effect(name, None, lambda: there(*arguments), writes=False)

    # --- the watch

    def _lineage(self, cell: str) -> int:
        state = self._nodes.profile_cell(cell)
        return state.lineage if state else 0

    def _row_lineage(self, cell: int) -> int:
        return self._nodes.decision_cell(cell).lineage
