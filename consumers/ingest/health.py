"""Health: whether store and log answer, how long the process pauses when they do not, and how full the store is.

Rules:
* The first call of a turn that gets no answer sets `StoreHealth.error`. For the rest of the turn the process asks for nothing that can
  wait, and it pauses once, at the turn's end.
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
from consumers.ingest.cell import Cell
from consumers.periodic import Backoff
from consumers.store import ProfileStore
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.ingest")

BACK_OFF_S = (0.05, 5.0)
"""The shortest and the longest pause after a turn without an answer."""
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
    backoff            pauses, by the turns in a row without an answer; full jitter, so that processes in step do not hammer the store
    answered_s         when the store last answered, by the monotonic clock
    full               the store has no room for new clients
    memory_checked_s   when it was last asked how full it is
    """

    store: ProfileStore
    metrics: Metrics
    runtime: Runtime
    error: Unavailable | None = None
    answered_s: float = -math.inf
    full: bool = False
    memory_checked_s: float = -math.inf
    backoff: Backoff = field(init=False)

    def __post_init__(self) -> None:
        least_s, longest_s = BACK_OFF_S
        self.backoff = Backoff(2 * least_s, longest_s, spread=1.0, least_s=least_s, rng=self.runtime.rng)

    def note_answer(self) -> None:
        """Note that the store answered just now."""
        self.answered_s = self.runtime.clock()
        self.backoff.reset()

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
        """Wait after a turn without an answer."""
        pause_s = self.backoff.next_s()
        failures = self.backoff.failures
        self.metrics.add("querywarden_store_unavailable_total", process="ingest")
        if failures in (1, 10) or failures % 100 == 0:
            log.warning("store or log unavailable", extra={"why": str(error), "failures": failures})
        self.runtime.sleep(pause_s)
