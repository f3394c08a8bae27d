"""Recovery: the actions of ingest after a refused call, after a doubt about a cell's owner, and at records that end the process.

Rules:
* `Fenced`, `Rewound` and `Unavailable` drop the cell, which is then claimed again. A commit whose outcome is unknown is never sent twice.
* The consumer group may deny that this process owns a cell, and still leave the cell with it in its next generation without telling it.
  So the process asks again.
* A record that ends the process (a crash of a library, the machine's out-of-memory killer) must not stop its cell. Where another process
  claimed at this offset and committed nothing beyond it, this process is in *cautious mode*: it tries the records in a child process
  first (poison.py) and refuses those that end it, with the reason ``poison``. This takes two restarts, and no other end of a process
  quarantines a record. (A cell that changed hands twice without a new record is read slowly for one poll, which does no harm.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from consumers.errors import CorruptState, Fenced, Rewound, Unavailable
from consumers.ingest.cell import Cell
from consumers.ingest.health import KEEPALIVE_S
from consumers.ingest.ownership import Ownership
from consumers.ingest.poison import FindPoison, find_poison
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.store.layout import check_checkpoint
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.ingest")

RECHECK_S = 1.0
"""How often the group is asked again about a cell that it said is not ours."""

TRIED_AT_ONCE = 256
SINGLY_AFTER = 4
"""How many processes end at an offset before records are committed one by one: what kills may be no record alone."""
POISON = ("poison", "a process ends when this record is folded")


@dataclass(slots=True)
class Recovery:
    """What becomes of a cell after a failure.

    rebuilt_checked_s  when stopped cells were last looked at
    """

    ownership: Ownership
    metrics: Metrics
    rebuilt_checked_s: float = -math.inf

    def refused(self, cell: Cell, error: Fenced | Rewound | Unavailable) -> None:
        """Drop a cell of which the store did not do what it was asked for: what we know of the cell may not be so."""
        if isinstance(error, Fenced):
            self.lost(cell, "fenced")
            if not self._owns(cell.name) and cell.name in self.ownership.waiting:
                self.ownership.waiting.discard(cell.name)
                self.ownership.unconfirmed[cell.name] = self.ownership.health.runtime.clock()
        elif isinstance(error, Rewound):
            log.warning("store is elsewhere", extra={"cell": cell.name, "offset": error.offset})
            self.lost(cell, "rewound")
        else:
            self.lost(cell, "unavailable")
            self.ownership.health.error = error

    def lost(self, cell: Cell, outcome: str) -> None:
        """Drop a cell, and count why."""
        self.metrics.add("querywarden_commits_total", outcome=outcome)
        self.ownership.drop(cell)

    def recheck_ownership(self) -> None:
        """Ask the group again about the cells that it said are not ours; those that it left with us are claimed again."""
        ownership, clock = self.ownership, self.ownership.health.runtime.clock
        due = clock() - RECHECK_S
        names = [name for name, asked_s in ownership.unconfirmed.items() if asked_s <= due]
        for name in names if ownership.log.is_member() else ():
            ownership.unconfirmed[name] = clock()
            if self._owns(name):
                ownership.unconfirmed.pop(name)
                ownership.waiting.add(name)

    def reclaim_rebuilt(self) -> None:
        """Claim a stopped cell again that an operator began anew."""
        ownership, health = self.ownership, self.ownership.health
        if not ownership.stops.found or health.runtime.clock() - self.rebuilt_checked_s < KEEPALIVE_S:
            return
        self.rebuilt_checked_s = health.runtime.clock()
        try:
            rebuilt = ownership.stops.rebuilt(ownership.store)
        except Unavailable as error:
            health.error = error
            return
        for name in rebuilt:
            ownership.stops.end(name)
            ownership.waiting.add(name)

    def keepalive(self) -> None:
        """Ask an idle store for a sign of life, then about the cells that nobody writes to. Raises Unavailable.

        A cell whose store lost a tail learns it here, and is read again.
        """
        health = self.ownership.health
        due = health.runtime.clock() - KEEPALIVE_S
        if health.error is None and health.answered_s <= due:
            self.ownership.store.cells()
            health.note_answer()
        for cell in [cell for cell in self.ownership.cells.values() if cell.checked_s <= due]:
            if health.error is not None:
                break
            self.check(cell)

    def check(self, cell: Cell) -> None:
        """Ask the store, without writing, whether it still is where we think."""
        try:
            self.ownership.store.load(cell.name, cell.token, cell.offset, [])
        except (Fenced, Rewound, Unavailable) as error:
            self.refused(cell, error)
        except CorruptState as error:
            self.ownership.stop(cell.name, error)
        else:
            self.ownership.health.note_answer()
            cell.checked_s = self.ownership.health.runtime.clock()

    def _owns(self, name: str) -> bool:
        try:
            return self.ownership.log.owns(name)
        except Fenced:
            return False
        except Unavailable:
            return True  # unknown: claim again, at worst the other one is fenced in turn


@dataclass(slots=True)
class CautiousMode:
    """Records of a cell at which processes ended: tried in a child process, then committed without those that end it.

    commit            fold and commit records; False when nothing, or nobody knows what, was written
    find_poison       which records end a process
    max_poll_records  how far the mode lasts beyond the offset at which processes ended
    """

    ingest: Ingest
    recovery: Recovery
    commit: Callable[[Cell, Records], bool]
    max_poll_records: int
    find_poison: FindPoison = find_poison

    def fold(self, cell: Cell, records: Records) -> int:
        """Try the first of the records, then commit them; returns how many were. The others come back with the next poll."""
        if not len(records.offsets):
            self.commit(cell, records)
            return 0
        if not cell.cautious_until:
            cell.cautious_until = max(records.next_offset, int(records.offsets[0]) + self.max_poll_records)
        polled = len(records.offsets)
        records = records.part(0, 1 if cell.crashes >= SINGLY_AFTER else TRIED_AT_ONCE)
        try:
            records = self._without_poison(cell, records)
        except (Fenced, Rewound, Unavailable) as error:
            self.recovery.refused(cell, error)
            return 0
        if not self.commit(cell, records):
            return 0
        if records.next_offset >= cell.cautious_until:
            cell.cautious = False
        if len(records.offsets) < polled:
            try:
                self.recovery.ownership.log.seek(cell.name, cell.offset, cell.halves)
            except (Fenced, Unavailable):
                self.recovery.lost(cell, "unavailable")
        return len(records.offsets)

    def _without_poison(self, cell: Cell, records: Records) -> Records:
        """Refuse the records that end a process: first read, then, with what is stored about their clients, folded."""
        ingest, alone = self.ingest, [records.part(i, i + 1) for i in range(len(records.offsets))]

        def read(i: int) -> None:
            ingest.decode(cell, alone[i])

        def fold(i: int) -> None:
            check_checkpoint(ingest.step(cell, *ingest.decode(cell, alone[i]), alone[i].next_offset))

        records = quarantined(records, self.find_poison(len(alone), read))
        wanted = ingest.missing(cell, ingest.decode(cell, records)[1])
        if wanted:
            store = self.recovery.ownership.store
            ingest.take(cell, store.load(cell.name, cell.token, cell.offset, wanted), wanted)
        alone = [records.part(i, i + 1) for i in range(len(alone))]
        return quarantined(records, self.find_poison(len(alone), fold))


def quarantined(records: Records, poison: list[int]) -> Records:
    """Give the records with those at the indices `poison` refused."""
    for i in poison:
        log.error("record quarantined", extra={"cell": records.cell, "offset": int(records.offsets[i])})
    return replace(records, refused=records.refused | dict.fromkeys(poison, POISON))
