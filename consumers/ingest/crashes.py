"""Crash counts: how many processes ended at an offset, as far as claims can tell. A process that continues, or was refused, is not counted.

Rules:
* The store counts claims at an offset that led to no commit. A process that claims again states that it is alive: that claim is not
  counted.
* A process that completed the fold of the next records, and whose commit was refused (the store is full, read-only or away) or fenced,
  has shown that those records end no process: with its next claim nothing is counted against them any more.
* A claim whose answer was lost may have been counted, although its process continued.
* A process that found that others ended at an offset stays in *cautious mode* there, whatever the store forgets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consumers.ingest.cell import Cell
from consumers.store import Proof


@dataclass(slots=True)
class CrashCounts:
    """What one process knows of the claims that led nowhere.

    proofs  cell → what this process can say for itself with its next claim
    seen    cell → offset, and how many others ended there when this process first looked
    """

    proofs: dict[str, Proof] = field(default_factory=dict)
    seen: dict[str, tuple[int | None, int]] = field(default_factory=dict)

    def proof(self, cell: str) -> Proof:
        """Say what the next claim of the cell proves."""
        return self.proofs.get(cell, "none")

    def note_claim(self, cell: str) -> None:
        """Note a claim by this process, answered or not."""
        self.proofs.setdefault(cell, "alive")

    def note_fold(self, cell: str) -> None:
        """Note that this process folded what is next, and that nothing of it was written."""
        self.proofs[cell] = "folded"

    def note_commit(self, cell: str) -> None:
        """Note a commit: nobody has tried what comes next."""
        self.proofs.pop(cell, None)

    def count(self, cell: Cell, attempts: int) -> int:
        """Count the others that claimed where the cell is now and never came beyond; `attempts` as the store answered this claim."""
        offset, seen = self.seen.get(cell.name, (None, 0))
        crashes = max(0, attempts - 1)
        crashes = max(crashes, seen) if offset == cell.offset else crashes
        self.seen[cell.name] = (cell.offset, crashes)
        self.note_claim(cell.name)
        return crashes
