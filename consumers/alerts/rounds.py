"""What is done on a timer, apart from detection: repeat open findings, send digests, count the flagged. One thread for all.

Rules: a sink that is away is tried again in the next round, and only that one misses it; `stop` ends the thread within one call
to a receiver (5 s).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from consumers.errors import Unavailable, Undeliverable
from consumers.metrics import Metrics
from consumers.store import Store

log = logging.getLogger("querywarden.alerts")

EVERY_S = 60.0


class PeriodicRefresh:
    """Calls `refresh` of every sink that has one, every `every_s` seconds, the first time at once."""

    def __init__(
        self, sinks: Sequence[Any], every_s: float = EVERY_S, heard: Callable[[str, bool], None] | None = None
    ):
        self._sinks = [sink for sink in sinks if hasattr(sink, "refresh")]
        self._every_s = every_s
        self._heard = heard or (lambda sink, ok: None)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._sinks:
            self._thread = threading.Thread(target=self._run, name="alert-rounds", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def once(self) -> None:
        for sink in self._sinks:
            if self._stop.is_set():
                return
            kind = sink.name.partition(":")[0]
            try:
                sink.refresh()
            except (Unavailable, Undeliverable) as error:
                log.warning("sink not refreshed", extra={"sink": kind, "why": str(error)})
                self._heard(kind, False)
            else:
                self._heard(kind, True)

    def _run(self) -> None:
        while True:
            self.once()
            if self._stop.wait(self._every_s):
                return


class FlaggedClientsGauge:
    """How many clients are throttled or blocked, by model and state, as a gauge. `opened`: a store, for one look."""

    name = "census"

    def __init__(self, opened: Callable[[], contextlib.AbstractContextManager[Store]], metrics: Metrics) -> None:
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
