"""Which decision cells this process holds: detectors that run at the same time share them.

Rules:
* A claim makes this process the owner of a cell: a lease, a fresh token, a revision, cursors. Whatever is written carries the token.
* None holds more than its part of the cells, or takes more while another one waits. A process reports three times during a lease that
  it is running.
* A cell is dropped as soon as a write is refused: what is in memory may not be what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from consumers.detect.touched import HeldCell
from consumers.errors import LeaseHeld, Unavailable
from consumers.store import DecisionClaim, ServiceStore

RENEWALS = 2
"""A lease that was renewed so often since shows that its holder has looked at everything since."""


@dataclass(slots=True)
class HeldCells:
    """The decision cells of one process.

    clock     monotonic, in s
    balanced  share the cells with the other running detectors; a run that ends when idle takes what is free instead
    held      cell → what was claimed of it
    """

    store: ServiceStore
    process: str
    lease_ms: int
    clock: Callable[[], float]
    new_token: Callable[[], str]
    balanced: bool = True
    held: dict[int, HeldCell] = field(default_factory=dict)
    _share: int = 0
    _attended_s: float = -math.inf
    _leases: dict[int, tuple[int, int]] = field(default_factory=dict)

    def take_part(self) -> None:
        """Report that we are running; let go of what is more than our part of the cells, and claim what is missing of it.

        Raises Unavailable.
        """
        self.attend()
        for cell in range(self.store.decision_cells):
            if cell not in self.held and len(self.held) < self._share:
                self.claim(cell)

    def drop(self, cell: int) -> None:
        """Forget a cell that is not ours any more."""
        self.held.pop(cell, None)

    def idle(self) -> bool:
        """Whether nothing is left to do anywhere: our cells had nothing, and who holds the others has looked at them since."""
        return all(
            cell in self.held or self._leases.get(cell, (0, 0))[1] >= RENEWALS
            for cell in range(self.store.decision_cells)
        )

    def busy(self) -> None:
        """There was something to do: what the others did before does not count any more."""
        self._leases.clear()

    def release(self) -> None:
        """Give the cells back, so that another process need not wait for the leases to run out."""
        for cell in list(self.held):
            try:
                self.store.release_decisions(cell, self.process)
            except Unavailable:
                return
            self.held.pop(cell)
        if self.balanced:
            self._attended_s = -math.inf
            try:
                self.store.attend(self.process, 0)
            except Unavailable:
                return

    def attend(self) -> None:
        """Report that we are running, and let go of what is more than our part of the cells. Raises Unavailable."""
        if not self.balanced:
            self._share = self.store.decision_cells
            return
        if self.clock() - self._attended_s >= self.lease_ms / 3000:
            self._share = math.ceil(self.store.decision_cells / self.store.attend(self.process, self.lease_ms))
            self._attended_s = self.clock()
        for cell in sorted(self.held)[self._share :]:
            self.store.release_decisions(cell, self.process)
            del self.held[cell]

    def claim(self, cell: int) -> None:
        """Claim a cell, unless another process holds it. Raises Unavailable."""
        token = self.new_token()
        try:
            claim: DecisionClaim = self.store.claim_decisions(cell, self.process, token, self.lease_ms)
        except LeaseHeld as held:
            before_ms, renewals = self._leases.get(cell, (held.remaining_ms, 0))
            self._leases[cell] = held.remaining_ms, renewals + (held.remaining_ms > before_ms)
            return
        self._leases.pop(cell, None)
        self.held[cell] = HeldCell(token, claim.revision, dict(claim.cursors))
