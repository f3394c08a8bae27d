"""The breakers of the gateways: if too many clients of a tenant, over all cells, are newly restricted at once, no new one is enforced.

Rules:
* Every detect process counts what it decides (records/breaker.py). This breaker counts what all of them enforce together, on the
  answering side, and so it also works against a detector that does not count.
* Each tenant has a breaker of its own, though one object watches the view of all: nothing is counted, held back or reset across tenants.
* A restriction is new when a gateway does more than before: it begins, or a throttle becomes a block. Restrictions that were in force when
  this process started are not new. Operators' decisions are not counted, and stay in force while the breaker is open. Accounts that
  joined a campaign under decision are counted and held back like any detected restriction.
* While it is open, restrictions that became new within the breaker's window are not enforced, nor are later ones: each of these clients
  stands as it did before. Older restrictions stay until they end, so that no client can lift its block by causing many others.
* A process that starts while the breaker is open reads the earlier restrictions from the history of decisions. Until it has, no detected
  restriction is enforced.
* An open breaker stays open, over restarts too: an entry of the operator cell says so (`records.breaker_entries`) until an operator of the
  tenant resets it. Only entries later than that reset count, as often as they are read. A store that is away delays the entry, but not the
  breaker.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from consumers.enforcement.restrictions import CLEAR, THROTTLE, Restrictions
from consumers.errors import Unavailable
from consumers.records.breaker import Breaker, BreakerLimits
from consumers.records.breaker_entries import (
    HELD,
    KIND,
    BreakerTimes,
    Held,
    held_back,
    open_since_s,
    opened_after,
    times_of,
)
from consumers.records.operator_cell import written
from consumers.records.operator_entries import packed
from consumers.store import ENFORCED, DecisionRow, Entry, Operation, ServiceStore
from detector.query import ClientKey

log = logging.getLogger("querywarden.restrictions")

_AT_ONCE = 1000
_NOTHING: dict[ClientKey, int] = {}


class _Past(msgspec.Struct):
    """The little of a decision row that says how a client stood."""

    state: str = "clear"
    since_s: int = 0
    history: list[list[Any]] = []


_past = msgspec.msgpack.Decoder(_Past)


@dataclass(slots=True)
class _OfTenant:
    """The breaker of one tenant.

    times   what the operator cell says of it
    known   client → strictness of what was enforced when we last looked; None: what is enforced at the next look is not new
    risen   clients newly restricted within the window: when, and the strictness before
    before  client → strictness before the burst, for `Restrictions.hold`; None while it is closed, or open and not yet known
    unsaid  it opened here, and the store does not say so yet
    """

    breaker: Breaker
    times: BreakerTimes = field(default_factory=BreakerTimes)
    known: dict[ClientKey, int] | None = None
    risen: dict[ClientKey, tuple[float, int]] = field(default_factory=dict)
    before: dict[ClientKey, int] | None = None
    unsaid: bool = False

    def count(self, news: Mapping[ClientKey, int], now_s: float) -> bool:
        """Count what is new. news: client → strictness now. False when there was one too many."""
        known = self.known
        if known is None:
            return True
        since_s = now_s - self.breaker.limits.window_s
        self.risen = {client: was for client, was in self.risen.items() if was[0] > since_s}
        few = True
        for client, strictness in news.items():
            if strictness > known.get(client, CLEAR):
                few = self.breaker.allows(client, now_s) and few
                self.risen.setdefault(client, (now_s, known.get(client, CLEAR)))
            known[client] = strictness
        return few


class GatewayBreaker:
    """Watches a view for all tenants. most: clients of a tenant that may be newly restricted within the breaker's window."""

    def __init__(self, store: ServiceStore, view: Restrictions, most: int = 20) -> None:
        self._store, self._view = store, view
        self._limits = BreakerLimits(most=most, least=most)
        self._tenants: dict[str, _OfTenant] = {}
        self._number: int | None = None
        """Of the view's last change that was looked at; None: the view was not read yet."""

    def hear(self, entry: Entry) -> None:
        """An entry of the operator cell: a reset, or that gateways hold back already. `judge` acts on it."""
        if entry.kind != KIND:
            return
        one = self._of(entry.tenant)
        reset_s = one.times.reset_s
        one.times.take(entry)
        if one.times.reset_s > reset_s:  # whichever breaker was open: what was restricted until now was looked at
            one.breaker.restricted.clear()
            one.risen.clear()

    def judge(self, now_s: float) -> dict[str, dict[ClientKey, int]]:
        """Count what is new. Tenant → what may be enforced meanwhile, for `Restrictions.hold`; only tenants whose breaker is open."""
        for one in self._tenants.values():
            if one.times.held_since_s:
                # What is stored counts, also where we opened by ourselves: a reset is not earlier.
                one.breaker.open, one.breaker.tripped_s = True, one.times.held_s
        news = self._look(now_s)
        held = {}
        for tenant, one in self._tenants.items():
            before = self._judge(tenant, one, news.get(tenant, {}), now_s)
            if before is not None:
                held[tenant] = before
        return held

    def _of(self, tenant: str) -> _OfTenant:
        if tenant not in self._tenants:
            # Of a tenant that appears later, nothing was in force when we began.
            known: dict[ClientKey, int] | None = None if self._number is None else {}
            self._tenants[tenant] = _OfTenant(Breaker(self._limits), known=known)
        return self._tenants[tenant]

    def _look(self, now_s: float) -> dict[str, dict[ClientKey, int]]:
        """Tenant → client → strictness now, of what changed since the last look."""
        view = self._view
        if not view.synced:
            return {}
        news = {} if self._number is None else _by_tenant(self._news(self._number, now_s))
        if self._number is None or any(one.known is None and not one.breaker.open for one in self._tenants.values()):
            enforced = _by_tenant(_enforced(view, now_s))
            for tenant in {*enforced, *self._tenants}:
                one = self._of(tenant)
                if one.known is None and not one.breaker.open:
                    one.known = dict(enforced.get(tenant, {}))
                    news.pop(tenant, None)
        for tenant in news:
            self._of(tenant)
        self._number = view.number
        return news

    def _news(self, number: int, now_s: float) -> dict[ClientKey, int]:
        """Client → strictness now, of what changed since a number; by comparison where the view no longer goes back so far."""
        changes = self._view.since(number, self._view.epoch)
        if changes is None:
            known = [client for one in self._tenants.values() for client in one.known or ()]
            return {**dict.fromkeys(known, CLEAR), **_enforced(self._view, now_s)}
        return {
            ClientKey(c.tenant, c.model, c.client): CLEAR if c.lifted else c.standing.strictness
            for c in changes
            if c.lifted or c.standing.origin == "detected"
        }

    def _judge(
        self, tenant: str, one: _OfTenant, news: Mapping[ClientKey, int], now_s: float
    ) -> dict[ClientKey, int] | None:
        """What the tenant's breaker lets be enforced; None while it is closed."""
        breaker, times = one.breaker, one.times
        if breaker.open and not open_since_s(breaker.tripped_s, times.reset_s):
            log.warning("breaker reset: what was detected is enforced again", extra={"tenant": tenant})
            breaker.reset()
            one.known, one.before, one.unsaid = None, None, False  # what comes back now is not new
            return None
        if one.before is None:
            elsewhere, began = breaker.open, one.known is None
            if not one.count(news, now_s) and not elsewhere:
                log.error(
                    "breaker opened: nothing newly detected is enforced",
                    extra={"tenant": tenant, "limit": breaker.limit()},
                )
                breaker.tripped_s = opened_after(breaker.tripped_s, times.reset_s)
                one.unsaid = True
            if breaker.open:
                one.before = self._recorded(tenant, one, now_s) if began else self._remembered(tenant, one, now_s)
        if one.unsaid:
            self._say(tenant, one)
        return one.before if one.before is not None or not breaker.open else _NOTHING

    def _remembered(self, tenant: str, one: _OfTenant, now_s: float) -> dict[ClientKey, int]:
        """What stood before the burst, as this process saw it."""
        detected = self._view.detected(tenant, now_s)
        detected |= {client: before for client, (_, before) in one.risen.items() if client in detected}
        return {client: strictness for client, strictness in detected.items() if strictness >= THROTTLE}

    def _recorded(self, tenant: str, one: _OfTenant, now_s: float) -> dict[ClientKey, int] | None:
        """The same by the decisions' history, for a process that was not there. None: not known yet."""
        if not self._view.synced:
            return None
        detected, opened_s = self._view.detected(tenant, now_s), one.breaker.tripped_s
        clients = list(detected)
        joined = {client: self._view.joined(client, opened_s, now_s) for client in clients}
        found = {client: strictness for client, strictness in joined.items() if strictness >= THROTTLE}
        try:
            for first in range(0, len(clients), _AT_ONCE):
                for client, row in self._store.decided(clients[first : first + _AT_ONCE]).items():
                    strictness = min(detected[client], _strictness_before(row, opened_s))
                    if strictness >= THROTTLE:
                        found[client] = max(strictness, joined[client])
        except Unavailable:
            return None  # asked again with the next turn
        return found

    def _say(self, tenant: str, one: _OfTenant) -> None:
        """Store that it opened, unless another process did, or an operator closed it since."""

        def plan() -> tuple[int, Operation | None, None]:
            revision, entries = self._store.operator_entries(KIND, tenant)
            stored, opened_s = times_of(entries, tenant), one.breaker.tripped_s
            if stored.held_since_s or not open_since_s(opened_s, stored.reset_s):
                return revision, None, None
            value = Held(int(opened_s), one.breaker.limit())
            return revision, Operation(puts=[Entry(tenant, KIND, HELD, packed(value))]), None

        with contextlib.suppress(Unavailable):  # said again with the next turn
            written(self._store, plan, tries=1)
            one.unsaid = False


def _by_tenant(levels: Mapping[ClientKey, int]) -> dict[str, dict[ClientKey, int]]:
    found: dict[str, dict[ClientKey, int]] = {}
    for client, strictness in levels.items():
        found.setdefault(client.tenant, {})[client] = strictness
    return found


def _enforced(view: Restrictions, now_s: float) -> dict[ClientKey, int]:
    """Client → strictness of what was detected and is enforced."""
    detected = (item for item in view.enforced(now_s) if item[2].origin == "detected")
    return {ClientKey(tenant, model, client): standing.strictness for (tenant, client), model, standing in detected}


def _strictness_before(row: DecisionRow, opened_s: float) -> int:
    """Level of a client's state before a burst, by its history; clear for a row that cannot be read."""
    try:
        past = _past.decode(row.row)
        known = [str(state) for at_s, state, *_ in past.history if not held_back(at_s, opened_s)]
        if not past.history and past.since_s > 0 and not held_back(past.since_s, opened_s):
            known = [past.state]
        return ENFORCED.index(known[-1]) if known else CLEAR
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        log.warning("decision row set aside", extra={"why": str(error)})
        return CLEAR
