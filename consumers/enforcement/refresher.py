"""The thread that keeps `Restrictions` up to date from the store.

Rules:

* It asks for changes every `refresh_s`, and for everything at the start, every `full_sync_s`, and when the store no longer
  goes back as far as we are.
* A store that does not answer is asked again after 50 ms, then less often, at most every second, with jitter. Nothing that was
  known is forgotten meanwhile: `Restrictions.stale_since_s` and a metric say how old it is.
* Whatever else goes wrong is logged and tried again: a gateway's answers do not depend on this thread's luck.
"""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping

from consumers.enforcement.breaker import GatewayBreaker
from consumers.enforcement.restrictions import OPERATOR_KINDS, Restrictions
from consumers.errors import Unavailable
from consumers.periodic import Backoff, Periodic
from consumers.records import breaker_entries
from consumers.store import Entry, ServiceStore
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.refresher")

_PAGE = 1000
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 1.0
_SWITCH_INTERVAL_S = 0.0005
"""How long a thread may hold the interpreter while another waits: Python's 5 ms would show in the gateway's answers."""


class Refresher:
    """Keeps `view` up to date; `start` and `stop` it.

    breaker    the tenants' breakers; None: nothing holds restrictions back
    each_turn  called after every turn, successful or not: counters to flush, files to look at
    """

    def __init__(
        self,
        store: ServiceStore,
        view: Restrictions,
        metrics: Metrics,
        *,
        refresh_s: float = 0.25,
        full_sync_s: float = 300.0,
        breaker: GatewayBreaker | None = None,
        each_turn: tuple[Callable[[], None], ...] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._view = view
        self._metrics = metrics
        self._full_sync_s = full_sync_s
        self._breaker = breaker
        self._each_turn = each_turn
        self._clock = clock
        self._positions: Mapping[int, str] | None = None
        self._revision = 0
        self._learned_s: float | None = None
        self._full_due_s = 0.0
        backoff = Backoff(_FIRST_BACKOFF_S, _LAST_BACKOFF_S)
        self._periodic = Periodic("restrictions", self.turn, refresh_s, backoff=backoff)

    def start(self) -> None:
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
        self._periodic.start()

    def stop(self) -> None:
        """Ends the thread after its turn; a store that hangs is not waited for longer than its own time-out."""
        self._periodic.stop()

    def turn(self) -> bool:
        """Ask the store once; False when it did not answer."""
        try:
            self._learn()
            good = True
        except Unavailable as error:
            self._metrics.add("querywarden_store_unavailable_total", process="serve")
            if self._view.stale_since_s is None:
                log.warning("the store does not answer; restrictions stay as they are", extra={"error": str(error)})
            good = False
        except Exception:  # a bug or a damaged entry must not end the thread: old restrictions would stay for ever
            log.exception("restrictions could not be read")
            self._positions = None
            good = False
        now_s = self._clock()
        if good:
            self._learned_s, self._view.stale_since_s = now_s, None
        elif self._view.stale_since_s is None:
            self._view.stale_since_s = self._learned_s or now_s
        self._check_breaker(now_s)
        return good

    def _learn(self) -> None:
        now_s = self._clock()
        if self._positions is None or now_s >= self._full_due_s or now_s < self._full_due_s - self._full_sync_s:
            self._learn_all(now_s)
        while True:
            changes = self._store.changes(self._positions or {}, _PAGE)
            entries = self._store.operator_changes(self._revision, _PAGE)
            if changes is None or entries is None:
                self._positions = None
                self._learn_all(now_s)
                return
            positions, restrictions = changes
            revision, said = entries
            if restrictions or said:
                self._view.learn(restrictions, said, now_s)
                self._hear(said)
            moved = revision != self._revision or len(restrictions) >= _PAGE
            self._positions, self._revision = positions, revision
            if not moved:
                return

    def _learn_all(self, now_s: float) -> None:
        # The operators' revision first: what changes after it is learned again, and twice is no harm.
        said = [self._store.operator_entries(kind) for kind in OPERATOR_KINDS]
        positions, restrictions = self._store.restrictions()
        if self._breaker is not None:
            self._hear(self._store.operator_entries(breaker_entries.KIND)[1])
        self._view.replace(restrictions, [entry for _, entries in said for entry in entries], now_s)
        self._positions, self._revision = positions, min(revision for revision, _ in said)
        self._full_due_s = now_s + self._full_sync_s
        gc.freeze()  # long-lived from here on: a collection that walks through them would be seen in the answers

    def _hear(self, entries: Iterable[Entry]) -> None:
        if self._breaker is not None:
            for entry in entries:
                self._breaker.hear(entry)

    def _check_breaker(self, now_s: float) -> None:
        try:
            view = self._view
            view.expire(now_s)
            if self._breaker is not None:
                view.hold(self._breaker.judge(now_s), now_s)
            self._metrics.set("querywarden_restrictions_held", view.held)
            for (origin, state), count in view.counts.items():
                self._metrics.set("querywarden_restrictions", count, origin=origin, state=state)
            self._metrics.set("querywarden_restrictions_stale_seconds", now_s - (view.stale_since_s or now_s))
            for call in self._each_turn:
                call()
        except Exception:
            log.exception("after reading restrictions")
