"""What is done on a timer, apart from detection: repeat open findings, send digests, count the flagged. One thread for all.

Rules: a sink that is away is tried again in the next round, and only that one misses it; `stop` ends the thread within one call
to a receiver (5 s).
"""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from consumers.errors import Unavailable, Undeliverable
from consumers.metrics import Metrics
from consumers.periodic import Periodic
from consumers.store import DecisionStore

log = logging.getLogger("querywarden.alerts")

EVERY_S = 60.0


class PeriodicRefresh:
    """Calls `refresh` of every sink that has one, every `every_s` seconds, the first time at once."""

    def __init__(self, sinks: Sequence[Any], every_s: float = EVERY_S) -> None:
        self._sinks = [sink for sink in sinks if hasattr(sink, "refresh")]
        self._periodic = Periodic("alert-rounds", self.once, every_s)

    def start(self) -> None:
        """Begin, where a sink has something to refresh."""
        if self._sinks:
            self._periodic.start()

    def stop(self) -> None:
        """End the thread after the call that it is in."""
        self._periodic.stop(10)

    def once(self) -> None:
        """Refresh every sink once, unless the end was asked for."""
        for sink in self._sinks:
            if self._periodic.ending:
                return
            kind = sink.name.partition(":")[0]
            try:
                sink.refresh()
            except (Unavailable, Undeliverable) as error:
                log.warning("sink not refreshed", extra={"sink": kind, "why": str(error)})


class FlaggedClientsGauge:
    """How many clients are throttled or blocked, by model and state, as a gauge. `opened`: a store, for one look."""

    name = "census"

    def __init__(
        self, opened: Callable[[], contextlib.AbstractContextManager[DecisionStore]], metrics: Metrics
    ) -> None:
        self._opened, self._metrics = opened, metrics
        self._told: set[tuple[str, str]] = set()

    def refresh(self) -> int:
        with self._opened() as store:
            _, found = store.restrictions()
        counted = collections.Counter((one.client.model, one.state) for one in found)
        for model, state in self._told | set(counted):
            self._metrics.set("querywarden_clients_flagged", counted[model, state], model=model, state=state)
        self._told |= set(counted)
        return len(found)
