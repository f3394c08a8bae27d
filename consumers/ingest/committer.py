"""Fold the records of one cell, commit them to the store, and count them.

Rules:
* The field comments of `consumers.store.Checkpoint` give the order of a checkpoint's effects.
* The cache holds only what was committed. A commit that is refused drops the cell.
* A commit whose outcome is unknown is never sent twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from consumers.errors import Fenced, Rewound, Unavailable
from consumers.ingest.cell import Cell
from consumers.ingest.recovery import Recovery
from consumers.ingest.reporting import Reporter
from consumers.ingest.step import MAX_CACHED, Ingest
from consumers.log import Records, prefix
from consumers.log.formats import Decoded
from consumers.store import Checkpoint


@dataclass(slots=True)
class Committer:
    """Folds and commits.

    on_commit  called after each commit, with what was written and what was read
    """

    ingest: Ingest
    recovery: Recovery
    reporter: Reporter
    on_commit: Callable[[Checkpoint, Decoded], None] = lambda checkpoint, decoded: None

    def commit(self, cell: Cell, records: Records) -> bool:
        """Fold and commit records, in one commit unless they are of more clients than memory is meant for.

        False when the last commit wrote nothing, or nobody knows what: the cell is then dropped.
        """
        ingest, ownership = self.ingest, self.recovery.ownership
        store, shipper = ownership.store, ownership.shipper
        before, folded = cell.counters.copy(), False
        prefix.note(cell.counters, records.from_offset(cell.offset or 0))
        try:
            decoded, keys = ingest.decode(cell, records)
            clients = sum(map(len, keys.values()))
            if clients > MAX_CACHED and len(records.values) > 1:
                cell.counters = before
                # from where the store is: a commit cannot end before it
                rest = records.from_offset(cell.offset or 0)
                return all(self.commit(cell, part) for part in _parts(rest, -(-clients // MAX_CACHED)))
            ingest.trim(cell, keys, len(ownership.cells))
            wanted = ingest.missing(cell, keys)
            if wanted:
                ingest.take(cell, store.load(cell.name, cell.token, cell.offset, wanted), wanted)
            checkpoint = ingest.step(cell, decoded, keys, records.next_offset)
            folded = True
            dropped = len(checkpoint.dead) - shipper.room(cell.name)
            if dropped > 0:
                checkpoint.dead = checkpoint.dead[:-dropped]
            store.commit(cell.token, checkpoint)
        except (Fenced, Rewound, Unavailable) as error:
            if folded and not isinstance(error, Rewound):
                ownership.crashes.note_fold(cell.name)
            self.recovery.refused(cell, error)
            return False
        ownership.health.note_answer()
        ownership.crashes.note_commit(cell.name)
        cell.offset, cell.checked_s = checkpoint.next_offset, ownership.health.runtime.clock()
        cell.counters.update({name: n - cell.counters[name] for name, n in checkpoint.counters.items()})
        self.reporter.count(ownership.health.runtime.clock(), cell.counters - before, decoded, max(0, dropped))
        shipper.wrote(cell.name, len(checkpoint.dead))
        self.on_commit(checkpoint, decoded)
        return True


def _parts(records: Records, count: int) -> Iterator[Records]:
    """The records in some parts of equal numbers, in order."""
    ends = np.linspace(0, len(records.values), min(count, len(records.values)) + 1).astype(int).tolist()
    return (records.part(first, last) for first, last in itertools.pairwise(ends))
