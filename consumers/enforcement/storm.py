"""The gateways' own breaker: when too many clients, over all cells, are newly restricted at once, nothing detected is enforced.

Rules:

* Every detect process counts what it decides (breaker.py); this one counts what all of them enforce together, on the answering side,
  and so also holds against a detector that does not count.
* What was in force when this process started is not new. Operators' decisions are not counted, and stay in force while it is open.
* Open stays open, over restarts too: an entry of the operator cell says so (`operators.breakers`) until an operator resets the breakers.
  A store that is away delays the entry, not the holding.
"""

from __future__ import annotations

import contextlib
import logging

from consumers.decisions.breaker import Breaker, Limits
from consumers.enforcement.restrictions import Restrictions
from consumers.errors import Unavailable
from consumers.operators.breakers import HELD, KIND, RESET, opened_after, time_of
from consumers.operators.cell import written
from consumers.operators.entries import Reset, packed
from consumers.store import Entry, Operation, Store
from detector.query import ClientKey

log = logging.getLogger("querywarden.restrictions")


class Storm:
    """Watches a view. tenant: in whose name the entry is kept; most: clients newly restricted within ten minutes."""

    def __init__(self, store: Store, view: Restrictions, tenant: str, most: int = 20) -> None:
        self._store, self._view, self._tenant = store, view, tenant
        self._breaker = Breaker(Limits(most=most, least=most))
        self._known: set[ClientKey] | None = None
        self._number = 0
        self._reset_s = 0.0
        self._unsaid = False

    def hear(self, entry: Entry) -> None:
        """An entry of the operator cell: a reset, or that gateways hold back already."""
        if entry.kind != KIND or entry.key not in (HELD, RESET) or entry.tenant != self._tenant or not entry.value:
            return  # detect's own breaker is detect's own affair
        at_s = time_of(entry)
        if at_s is None:
            return
        if entry.key == RESET and at_s > self._reset_s:
            self._reset_s = at_s
            self._breaker.restricted.clear()  # whichever breaker was open: what was restricted until now was looked at
        elif entry.key == HELD and not self._breaker.open:
            self._breaker.open, self._breaker.tripped_s = True, at_s

    def judge(self, now_s: float) -> bool:
        """Count what is new; whether nothing detected may be enforced."""
        if self._breaker.open and self._breaker.tripped_s <= self._reset_s:
            log.warning("breaker reset: what was detected is enforced again")
            self._breaker.reset()
            self._known = None  # what comes back now is not new
            return False
        if not self._breaker.open and not self._count(now_s):
            log.error("breaker opened: nothing detected is enforced", extra={"limit": self._breaker.limit()})
            self._breaker.tripped_s = opened_after(self._breaker.tripped_s, self._reset_s)
            self._unsaid = True
        if self._unsaid:
            self._say()
        return self._breaker.open

    def _count(self, now_s: float) -> bool:
        """False when there was one too many."""
        view = self._view
        changes = None if self._known is None else view.since(self._number, view.epoch)
        self._number = view.number
        if changes is None or self._known is None:
            detected = (item for item in view.enforced(now_s) if item[2].origin == "detected")
            self._known = {ClientKey(tenant, model, client) for (tenant, client), model, _ in detected}
            if not view.synced or view.held:
                self._known = None  # not the picture to compare with
            return True
        few = True
        for change in changes:
            client = ClientKey(change.tenant, change.model, change.client)
            if change.lifted:
                self._known.discard(client)
            elif change.standing.origin == "detected" and client not in self._known:
                self._known.add(client)
                few = self._breaker.allows(client, now_s) and few
        return few

    def _say(self) -> None:
        value = Reset("gateway", int(self._breaker.tripped_s), "too many clients newly restricted at once")
        operation = Operation(puts=[Entry(self._tenant, KIND, HELD, packed(value))])
        with contextlib.suppress(Unavailable):  # said again with the next turn
            written(
                self._store, lambda: (self._store.operator_entries(KIND, self._tenant)[0], operation, None), tries=1
            )
            self._unsaid = False
