"""Whether the store and the log answer, how long a process waits when they do not, and how full the store is.

Rules:
* The first call of a turn that gets no answer sets `StoreHealth.error`. The turn then asks for nothing more that can wait, and the process
  backs off once, at the turn's end.
* Every answer ends the run of failures.
"""

from __future__ import annotations

import logging
import math
import random
import secrets as entropy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from consumers.errors import Unavailable
from consumers.ingest.admission import FULL_SHARE
from consumers.ingest.step import Cell
from consumers.metrics import Metrics
from consumers.store import ProfileStore

log = logging.getLogger("querywarden.ingest")

BACK_OFF_S = (0.05, 5.0)
KEEPALIVE_S = 5.0
"""How long nothing is asked of the store, or of a cell in it, before an idle process asks."""


@dataclass(slots=True)
class Runtime:
    """What a process takes from its machine: clocks, sleep and chance. A simulation gives its own."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = field(default_factory=random.Random)
    new_token: Callable[[], str] = lambda: entropy.token_hex(16)


@dataclass(slots=True)
class StoreHealth:
    """What one process knows of the store's answers.

    error              why this turn got no answer from store or log; None: it did
    failures           turns in a row without an answer
    answered_s         when the store last answered, by the monotonic clock
    full               the store has no room for new clients
    memory_checked_s   when it was last asked how full it is
    """

    store: ProfileStore
    metrics: Metrics
    runtime: Runtime
    error: Unavailable | None = None
    failures: int = 0
    answered_s: float = -math.inf
    full: bool = False
    memory_checked_s: float = -math.inf

    def note_answer(self) -> None:
        """Note that the store answered just now."""
        self.answered_s = self.runtime.clock()
        self.failures = 0

    def check_memory(self, cells: Iterable[Cell]) -> None:
        """Ask now and then how full the store is, and tell the cells."""
        if self.error is not None or self.runtime.clock() - self.memory_checked_s < KEEPALIVE_S:
            return
        self.memory_checked_s = self.runtime.clock()
        try:
            self.full = self.store.pressure() >= FULL_SHARE
        except Unavailable as error:
            self.error = error
        for cell in cells:
            cell.full = self.full

    def back_off(self, error: Unavailable) -> None:
        """Wait with full jitter (Brooker 2015): the store is not hammered by processes in step."""
        self.failures += 1
        self.metrics.add("querywarden_store_unavailable_total", process="ingest")
        if self.failures in (1, 10) or self.failures % 100 == 0:
            log.warning("store or log unavailable", extra={"why": str(error), "failures": self.failures})
        low, high = BACK_OFF_S
        self.runtime.sleep(self.runtime.rng.uniform(low, min(high, low * 2 ** min(self.failures, 10))))
