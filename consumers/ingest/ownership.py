"""Ownership: the cells of the log that this process holds, from assignment to claim, drop or stop.

Rules:
* The log assigns a cell; the claim in the store makes this process its owner. What the process knows of the cell begins with the claim,
  and is exactly what was committed.
* A cell is dropped as soon as memory may differ from the store. Nothing is lost: the cell is claimed again.
* A cell that cannot go on stops alone (stopped_cells.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import dataclass, field

from consumers.errors import CorruptState, Fenced, LogRecreated, LogTruncated, Unavailable
from consumers.ingest import cell_wide
from consumers.ingest.cell import Cell
from consumers.ingest.crashes import CrashCounts
from consumers.ingest.dead_letters import DeadLetterShipper
from consumers.ingest.health import StoreHealth
from consumers.ingest.stopped_cells import STOPPING, Stops, generation_of
from consumers.log import Poll, QueryLog
from consumers.store import ProfileStore

log = logging.getLogger("querywarden.ingest")

CAUTIOUS_AFTER = 1
"""How many processes claim at an offset and never come beyond it before the next one tries records in a child process. The one that got
there by reading is not among them, so a batch has killed twice by then."""


@dataclass(slots=True)
class Ownership:
    """The cells of one process.

    cells           owned: claimed, and in step with the store
    waiting         assigned by the log, not claimed yet
    unconfirmed     cells that the group said are not ours and did not take away either → when it was last asked
    stops           cells that cannot go on until an operator decides
    crashes         what claims say about processes that ended
    cautious_after  how many ended at an offset before this process tries records there first
    """

    log: QueryLog
    store: ProfileStore
    health: StoreHealth
    shipper: DeadLetterShipper
    stops: Stops
    cautious_after: int = CAUTIOUS_AFTER
    crashes: CrashCounts = field(default_factory=CrashCounts)
    cells: dict[str, Cell] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    unconfirmed: dict[str, float] = field(default_factory=dict)

    def follow(self, poll: Poll) -> None:
        """Take over what a poll says of the assignment: cells revoked, assigned, stopped by the log."""
        for name in poll.revoked:
            self.cells.pop(name, None)
            self.waiting.discard(name)
            self.unconfirmed.pop(name, None)
            self.shipper.forget(name)
            self.stops.end(name)
        self.waiting.update(poll.assigned)
        for name, why in poll.stopped:
            self.stop(name, LogTruncated(why))

    def claim_waiting(self) -> None:
        """Claim the waiting cells in any order, up to the first that gets no answer: many cells of a store that is away must not
        hold up the poll."""
        waiting = sorted(self.waiting)
        for name in self.health.runtime.rng.sample(waiting, len(waiting)):
            try:
                if not self.claim(name):
                    break
            except STOPPING as error:
                self.stop(name, error)

    def claim(self, name: str) -> bool:
        """Claim a cell and seek to where the store says; False when the store or the log does not answer. Raises what stops a cell."""
        token = self.health.runtime.new_token()
        try:
            claim = self.store.claim(name, token, self.crashes.proof(name))
            admission, halves = cell_wide.unpacked(claim.sketch)
            offset = self.log.seek(name, claim.next_offset, halves)
        except Unavailable as error:
            self.crashes.note_claim(name)
            self.health.error = error
            return False
        except Fenced:
            self.waiting.discard(name)  # the log says that the cell is gone; it will tell when it is back
            return True
        self.health.note_answer()
        self.waiting.discard(name)
        # an earlier owner may have left some
        self.shipper.unshipped.add(name)
        # the position in memory is the store's: None until the first commit, whatever the log started at
        cell = Cell(name, token, claim.next_offset, Counter(claim.counters))
        cell.admission, cell.halves, cell.erased, cell.full = admission, halves, claim.erased, self.health.full
        cell.generation, cell.checked_s = claim.generation, self.health.runtime.clock()
        self.check_topic_id(cell)
        cell.crashes = self.crashes.count(cell, claim.attempts)
        cell.cautious = cell.crashes >= self.cautious_after
        if cell.cautious:
            log.warning("records are tried before they are folded", extra={"cell": cell.name, "offset": cell.offset})
        self.cells[name] = cell
        log.info("cell claimed", extra={"cell": name, "offset": offset})
        return True

    def check_topic_id(self, cell: Cell) -> None:
        """Raises LogRecreated when the offset belongs to a log that is no more."""
        stored, current = cell.counters["log_id"], self.log.topic_id(cell.name)
        if stored and current and stored != current:
            raise LogRecreated(
                f"{cell.name}: the topic was deleted and created again, or a mapping (log.mapping) was set or removed; "
                "the store's offset belongs to the log as it was"
            )
        cell.counters["log_id"] = current or stored

    def drop(self, cell: Cell) -> None:
        """Forget a cell and claim it again: what is in memory may not be what is stored."""
        self.cells.pop(cell.name, None)
        try:
            self.log.pause(cell.name)
        except Fenced:
            return  # revoked since the poll, which will say so
        self.waiting.add(cell.name)

    def stop(self, name: str, error: LogTruncated | CorruptState) -> None:
        """Stop a cell that cannot go on; the others do."""
        cell = self.cells.pop(name, None)
        self.waiting.discard(name)
        self.unconfirmed.pop(name, None)
        self.stops.add(name, error, cell.generation if cell is not None else generation_of(self.store, name))
        with contextlib.suppress(Fenced):  # revoked since the poll, which will say so
            self.log.pause(name)
