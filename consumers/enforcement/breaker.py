"""The breaker of the gateways: if too many clients over all cells are newly restricted at once, no new detected restriction is enforced.

Rules:
* Every detect process counts what it decides (breaker.py). This breaker counts what all of them enforce together, on the answering side,
  and so it also works against a detector that does not count.
* A restriction is new when a gateway does more than before: it begins, or a throttle becomes a block. Restrictions that were in force when
  this process started are not new. Operators' decisions are not counted, and stay in force while the breaker is open. Accounts that
  joined a campaign under decision are counted and held back like any detected restriction.
* While it is open, restrictions that became new within the breaker's window are not enforced, nor are later ones: each of these clients
  stands as it did before. Older restrictions stay until they end, so that no client can lift its block by causing many others.
* A process that starts while the breaker is open reads the earlier restrictions from the history of decisions. Until it has, no detected
  restriction is enforced.
* An open breaker stays open, over restarts too: an entry of the operator cell says so (`records.breaker_entries`) until an operator resets
  the breaker. Each tenant has its own. A store that is away delays the entry, but not the breaker.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from consumers.enforcement.restrictions import CLEAR, THROTTLE, Restrictions
from consumers.errors import Unavailable
from consumers.records.breaker import Breaker, BreakerLimits
from consumers.records.breaker_entries import HELD, KIND, RESET, opened_after, time_of
from consumers.records.operator_cell import written
from consumers.records.operator_entries import Reset, packed
from consumers.store import ENFORCED, DecisionRow, Entry, Operation, ServiceStore
from detector.query import ClientKey

log = logging.getLogger("querywarden.restrictions")

_AT_ONCE = 1000
_NOTHING_STANDS: dict[ClientKey, int] = {}


class _Past(msgspec.Struct):
    """The little of a decision row that says how a client stood."""

    state: str = "clear"
    since_s: int = 0
    history: list[list[Any]] = []


_past = msgspec.msgpack.Decoder(_Past)


class GatewayBreaker:
    """Watches a view. tenant: in whose name the entry is kept; most: clients newly restricted within the breaker's window."""

    def __init__(self, store: ServiceStore, view: Restrictions, tenant: str, most: int = 20) -> None:
        self._store, self._view, self._tenant = store, view, tenant
        self._breaker = Breaker(BreakerLimits(most=most, least=most))
        self._known: dict[ClientKey, int] | None = None
        self._risen: dict[ClientKey, tuple[float, int]] = {}
        """Clients newly restricted within the window: when, and the strictness before."""
        self._standing: dict[ClientKey, int] | None = None
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
            self._risen.clear()
        elif entry.key == HELD and not self._breaker.open:
            self._breaker.open, self._breaker.tripped_s = True, at_s

    def judge(self, now_s: float) -> dict[ClientKey, int] | None:
        """Count what is new. None: no burst; otherwise what may be enforced meanwhile, for `Restrictions.hold`."""
        if self._breaker.open and self._breaker.tripped_s <= self._reset_s:
            log.warning("breaker reset: what was detected is enforced again")
            self._breaker.reset()
            self._known, self._standing = None, None  # what comes back now is not new
            return None
        if self._standing is None:
            elsewhere, began = self._breaker.open, self._known is None
            if not self._count(now_s) and not elsewhere:
                log.error("breaker opened: nothing newly detected is enforced", extra={"limit": self._breaker.limit()})
                self._breaker.tripped_s = opened_after(self._breaker.tripped_s, self._reset_s)
                self._unsaid = True
            if self._breaker.open:
                self._standing = self._recorded(now_s) if began else self._remembered(now_s)
        if self._unsaid:
            self._say()
        return self._standing if self._standing is not None or not self._breaker.open else _NOTHING_STANDS

    def _count(self, now_s: float) -> bool:
        """False when there was one too many."""
        view, known = self._view, self._known
        news = {} if known is None else _news(view, self._number, known, now_s)
        self._number = view.number
        if known is None:
            self._known = _enforced(view, now_s) if view.synced and not self._breaker.open else None
            return True
        since_s = now_s - self._breaker.limits.window_s
        self._risen = {client: was for client, was in self._risen.items() if was[0] > since_s}
        few = True
        for client, strictness in news.items():
            if strictness > known.get(client, CLEAR):
                few = self._breaker.allows(client, now_s) and few
                self._risen.setdefault(client, (now_s, known.get(client, CLEAR)))
            known[client] = strictness
        return few

    def _remembered(self, now_s: float) -> dict[ClientKey, int]:
        """What stood before the burst, as this process saw it."""
        detected = self._view.detected(now_s)
        detected |= {client: before for client, (_, before) in self._risen.items() if client in detected}
        return {client: strictness for client, strictness in detected.items() if strictness >= THROTTLE}

    def _recorded(self, now_s: float) -> dict[ClientKey, int] | None:
        """The same by the decisions' history, for a process that was not there. None: not known yet."""
        if not self._view.synced:
            return None
        detected = self._view.detected(now_s)
        begun_s = self._breaker.tripped_s - self._breaker.limits.window_s
        clients = list(detected)
        joined = {client: self._view.joined(client, begun_s, now_s) for client in clients}
        found = {client: strictness for client, strictness in joined.items() if strictness >= THROTTLE}
        try:
            for first in range(0, len(clients), _AT_ONCE):
                for client, row in self._store.decided(clients[first : first + _AT_ONCE]).items():
                    strictness = min(detected[client], _strictness_at(row, begun_s))
                    if strictness >= THROTTLE:
                        found[client] = max(strictness, joined[client])
        except Unavailable:
            return None  # asked again with the next turn
        return found

    def _say(self) -> None:
        value = Reset("gateway", int(self._breaker.tripped_s), "too many clients newly restricted at once")
        operation = Operation(puts=[Entry(self._tenant, KIND, HELD, packed(value))])
        with contextlib.suppress(Unavailable):  # said again with the next turn
            written(
                self._store, lambda: (self._store.operator_entries(KIND, self._tenant)[0], operation, None), tries=1
            )
            self._unsaid = False


def _enforced(view: Restrictions, now_s: float) -> dict[ClientKey, int]:
    """Client → strictness of what was detected and is enforced."""
    detected = (item for item in view.enforced(now_s) if item[2].origin == "detected")
    return {ClientKey(tenant, model, client): standing.strictness for (tenant, client), model, standing in detected}


def _news(view: Restrictions, number: int, known: Mapping[ClientKey, int], now_s: float) -> dict[ClientKey, int]:
    """Client → strictness now, of what changed since a number; by comparison where the view no longer goes back so far."""
    changes = view.since(number, view.epoch)
    if changes is None:
        return {**dict.fromkeys(known, CLEAR), **_enforced(view, now_s)}
    return {
        ClientKey(change.tenant, change.model, change.client): CLEAR if change.lifted else change.standing.strictness
        for change in changes
        if change.lifted or change.standing.origin == "detected"
    }


def _strictness_at(row: DecisionRow, time_s: float) -> int:
    """Level of a client's state at a time, by its history; clear for a row that cannot be read."""
    try:
        past = _past.decode(row.row)
        known = [str(state) for at_s, state, *_ in past.history if at_s <= time_s]
        if not past.history and 0 < past.since_s <= time_s:
            known = [past.state]
        return ENFORCED.index(known[-1]) if known else CLEAR
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        log.warning("decision row set aside", extra={"why": str(error)})
        return CLEAR
