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
from consumers.periodic import Periodic
from consumers.store import DecisionStore
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.alerts")

EVERY_S = 60.0


def refresh_periodically(sinks: Sequence[Any], every_s: float = EVERY_S) -> Periodic:
    """What calls `refresh` of every sink that has one, every `every_s` seconds, the first time at once. The caller starts and stops it."""
    refreshed = [sink for sink in sinks if hasattr(sink, "refresh")]

    def once() -> None:
        for sink in refreshed:
            if periodic.ending:
                return
            try:
                sink.refresh()
            except (Unavailable, Undeliverable) as error:
                log.warning("sink not refreshed", extra={"sink": sink.name.partition(":")[0], "why": str(error)})

    periodic = Periodic("alert-rounds", once, every_s)
    return periodic


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
        counted = collections.Counter[tuple[str, str]]((one.client.model, one.state) for one in found)
        for model, state in self._told | set(counted):
            self._metrics.set("querywarden_clients_flagged", counted[model, state], model=model, state=state)
        self._told |= set(counted)
        return len(found)
