"""Deliver the outbox to every sink, each sink by itself.

Rules:
* At least once, in order within a decision cell: an alert leaves the outbox of a sink only after the sink took it.
* A slow or broken sink delays neither the other sinks nor detection: in the service each sink has one thread (`OutboxWorkers.start`), which
  holds at most `ALERTS_AT_ONCE` alerts in memory. Without threads a turn delivers inline (replay, tests, simulation).
* A sink that takes nothing is left alone for 1 s, then twice as long each time, at most 5 minutes.
* An alert that is refused for good (`Undeliverable`) is set aside: counted, its id logged, kept with the alerts of the store for 30 days.
* The outbox is bounded: at most `ROOM` alerts wait for a sink, equally many a decision cell. Older ones are set aside in the same way, as
  dropped. The alarm ``outbox`` is raised when four fifths are used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from consumers.alerts import AlertSink
from consumers.errors import CorruptState, Unavailable, Undeliverable
from consumers.periodic import Backoff, Periodic
from consumers.records.alert import stored_alert
from consumers.secrets import Secrets
from consumers.store import DecisionStore, OutboxAlert
from consumers.telemetry.alarms import Alarms
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.detect")

ALERTS_AT_ONCE = 100
BACK_OFF_S = (1.0, 300.0)
ROOM = 100_000
"""Alerts that may wait for a sink: each decision cell has an equal part of it."""
COUNTED = 1000
"""Alerts of a cell that wait, as far as somebody is told."""
MEASURED_EVERY_S = 60.0
NEARLY_FULL = 0.8


@dataclass(slots=True)
class OutboxWorker:
    """Carries alerts to one sink.

    backoff                 pauses while the sink takes nothing: no two workers ask the same sink, so nothing is drawn
    not_before_s            when the sink is asked again
    fullest                 share of the room that the fullest cell used when it was last measured
    cells                   which were last delivered
    """

    sink: AlertSink
    store: DecisionStore
    secrets: Secrets
    metrics: Metrics
    clock: Callable[[], float] = time.monotonic
    backoff: Backoff = field(default_factory=lambda: Backoff(*BACK_OFF_S, spread=0.0))
    not_before_s: float = 0.0
    fullest: float = 0.0
    cells: frozenset[int] = frozenset()
    _measured_s: float = 0.0

    @property
    def failures(self) -> int:
        """How often in a row the sink took nothing."""
        return self.backoff.failures

    def waiting(self) -> int:
        """How many alerts of the cells that were last delivered wait; `COUNTED` a cell at most. Raises Unavailable."""
        return sum(len(self.store.outbox(cell, self.sink.name, COUNTED)) for cell in self.cells)

    def deliver(self, cells: Iterable[int]) -> None:
        """Everything that waits in these cells, until the sink takes no more. Raises Unavailable for the store, never for the sink."""
        self.cells = frozenset(cells)
        if self.clock() < self.not_before_s:
            return
        cells = sorted(self.cells)
        failures = self.failures
        for cell in cells:
            while self._some(cell):
                pass
            if self.failures > failures:
                break
            failures = self.failures
        if self.failures and self.clock() - self._measured_s >= MEASURED_EVERY_S:
            self._measured_s = self.clock()
            self.fullest = max((self._bound(cell) for cell in cells), default=0.0)
        elif not self.failures:
            self.fullest = 0.0

    def _some(self, cell: int) -> bool:
        """Some alerts of a cell; True when there may be more to do."""
        pending = self._pending(cell)
        if not pending:
            return False
        try:
            delivered = list(self.sink.send([alert for _, alert in pending]))
        except Undeliverable as error:
            entry, alert = pending[0]
            self._set_aside(cell, entry, alert.uid, "refused", str(error))
            return True
        except Unavailable as error:
            log.warning("sink away", extra={"sink": self._kind, "why": str(error), "failures": self.failures + 1})
            delivered = [False] * len(pending)
        for (entry, alert), taken in zip(pending, delivered, strict=True):
            self._count("sent" if taken else "failed")
            if taken:
                self.store.sent(cell, self.sink.name, entry, alert.uid)
        if any(delivered):
            self.backoff.reset()
        else:
            self.not_before_s = self.clock() + self.backoff.next_s()
        return any(delivered) and (not all(delivered) or len(pending) == ALERTS_AT_ONCE)

    def _pending(self, cell: int) -> list[tuple[str, OutboxAlert]]:
        pending = []
        for entry, alert in self.store.outbox(cell, self.sink.name, ALERTS_AT_ONCE):
            try:
                body = msgspec.json.encode(stored_alert(alert, self.secrets))
            except CorruptState as error:
                self._set_aside(cell, entry, alert.uid, "refused", str(error))
                continue
            pending.append((entry, OutboxAlert(alert.uid, alert.time_ms, body)))
        return pending

    def _bound(self, cell: int) -> float:
        """Set aside what is too much; returns the share of the room in use."""
        room = max(1, ROOM // self.store.decision_cells)
        waiting = self.store.outbox(cell, self.sink.name, room + ALERTS_AT_ONCE)
        for entry, alert in waiting[: max(0, len(waiting) - room)]:
            self._set_aside(cell, entry, alert.uid, "dropped", "no room to wait")
        return min(1.0, len(waiting) / room)

    def _set_aside(self, cell: int, entry: str, uid: str, outcome: str, why: str) -> None:
        log.error("alert set aside", extra={"sink": self._kind, "alert": uid, "outcome": outcome, "why": why})
        self._count(outcome)
        self.store.sent(cell, self.sink.name, entry, uid)

    def _count(self, outcome: str) -> None:
        self.metrics.add("querywarden_alerts_total", sink=self._kind, outcome=outcome)

    @property
    def _kind(self) -> str:
        return self.sink.name.partition(":")[0]


class _DeliveryThread:
    """Runs one worker; `asked` and `done` count passes. error: what ended it, for the main thread to raise."""

    def __init__(self, worker: OutboxWorker, cells: Callable[[], frozenset[int]]) -> None:
        self.worker = worker
        self.cells = cells
        self.asked = self.done = 0
        self.error: Exception | None = None
        self.periodic = Periodic("delivery", self._pass, 1.0, at_once=False, failed=self._end)

    def ask(self) -> None:
        """Ask for a pass now."""
        self.asked += 1
        self.periodic.wake()

    def _pass(self) -> None:
        asked = self.asked
        try:
            self.worker.deliver(self.cells())
        except Unavailable as error:
            log.warning("alerts wait", extra={"why": str(error)})
        finally:
            self.done = asked

    def _end(self, error: Exception) -> bool:
        """A bug: the process must end, and it is the main thread that ends it."""
        self.error = error
        return False


@dataclass(slots=True)
class OutboxWorkers:
    """The workers of a process. `offer` after every turn; what is not offered any more is not delivered by us."""

    workers: Sequence[OutboxWorker]
    alarms: Alarms
    cells: frozenset[int] = frozenset()
    threads: list[_DeliveryThread] = field(default_factory=list)

    def start(self) -> None:
        """From now on each sink has a thread of its own."""
        self.threads = [_DeliveryThread(worker, lambda: self.cells) for worker in self.workers]
        for thread in self.threads:
            thread.periodic.start()

    def offer(self, cells: Iterable[int]) -> None:
        """These cells are ours. Raises what ended a worker."""
        self.cells = frozenset(cells)
        if not self.threads:
            for worker in self.workers:
                worker.deliver(self.cells)
        for thread in self.threads:
            if thread.error is not None:
                raise thread.error
            thread.ask()
        self.alarms.show("outbox", any(worker.fullest >= NEARLY_FULL for worker in self.workers))

    def drain(self, timeout_s: float) -> None:
        """Wait until every worker has looked once more, or the time is over."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.ask()
        for thread in self.threads:
            while thread.done < thread.asked and thread.periodic.alive and time.monotonic() < deadline_s:
                time.sleep(0.005)

    def stop(self, timeout_s: float) -> None:
        """End the threads; one that hangs in its sink is left behind."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self.threads:
            thread.periodic.end()
        for thread in self.threads:
            thread.periodic.stop(max(0.0, deadline_s - time.monotonic()))
        self.threads = []
