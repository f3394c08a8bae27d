"""Entries of the operator cell about the breakers: when detect's or the gateways' breaker opened, and when an operator reset both.

Rules:
* The kind is ``breaker``. The key is ``tripped`` for detect's, ``held`` for the gateways', ``reset`` for an operator's reset. A breaker
  is open if it opened after the last reset of the same tenant (`open_since_s`, the only place that says so); tenants do not affect each
  other. Times are whole seconds: a breaker that opens within the second of a reset is dated one second later, so that it is the later
  event.
* A reset never expires, and drops what it closes in the same operation. Otherwise an old opening would count again after the reset's end.
* An entry that cannot be read is skipped with a warning; it never opens or closes anything.
* Not for times of another tenant: a `BreakerTimes` takes the entries of one, and its owner sees to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from consumers.records.breaker import WINDOW_S
from consumers.records.damaged import readable
from consumers.records.operator_entries import Reset, unpacked
from consumers.store import Entry, OperatorStore

KIND = "breaker"
TRIPPED, HELD, RESET = "tripped", "held", "reset"


@dataclass(frozen=True, slots=True)
class Tripped:
    """Detect's breaker opened. restricted: how many were newly restricted; limit: how many may be."""

    at_s: int
    restricted: int
    limit: int
    format: int = 1


@dataclass(frozen=True, slots=True)
class Held:
    """The gateways' breaker opened. limit: how many may be newly restricted, 0 in entries of earlier versions."""

    at_s: int
    limit: int = 0
    format: int = 1


def open_since_s(opened_s: float, reset_s: float) -> float:
    """Since when a breaker is open that opened and was reset at these times (0 for never); 0 while it is closed."""
    return opened_s if opened_s > reset_s else 0


def opened_after(tripped_s: float, reset_s: float) -> float:
    """When it opened, as an entry says it: after the reset that it follows."""
    return max(tripped_s, reset_s + 1.0)


def held_back(since_s: float, open_s: float) -> bool:
    """Whether gateways hold back a restriction that began at a time. open_s: since when their breaker is open, 0 while it is closed.

    What began in the breaker's window before it opened is a part of the burst.
    """
    return open_s > 0 and since_s > open_s - WINDOW_S


@dataclass(slots=True)
class BreakerTimes:
    """When the breakers of one tenant opened and were last reset, in seconds, 0 for never. tripped_s: detect's; held_s: the gateways'."""

    tripped_s: int = 0
    held_s: int = 0
    reset_s: int = 0

    def take(self, entry: Entry) -> None:
        """Follow an entry of the kind ``breaker``, or its end (an empty value). A reset stays known after its end."""
        at_s = _time_of(entry) if entry.value else 0
        if at_s is None:
            return
        if entry.key == RESET:
            self.reset_s = max(self.reset_s, at_s)
        elif entry.key == TRIPPED:
            self.tripped_s = at_s
        elif entry.key == HELD:
            self.held_s = at_s

    @property
    def opened_s(self) -> int:
        """When the last of them opened, reset since or not."""
        return max(self.tripped_s, self.held_s)

    @property
    def tripped_since_s(self) -> float:
        """Since when detect's breaker is open; 0 while it is closed."""
        return open_since_s(self.tripped_s, self.reset_s)

    @property
    def held_since_s(self) -> float:
        """Since when the gateways' breaker is open; 0 while it is closed."""
        return open_since_s(self.held_s, self.reset_s)

    @property
    def open(self) -> bool:
        """Whether either is open."""
        return bool(open_since_s(self.opened_s, self.reset_s))


def times_of(entries: Iterable[Entry], tenant: str) -> BreakerTimes:
    """What entries of the kind ``breaker`` say of a tenant, in whatever order they come."""
    found = BreakerTimes()
    for entry in entries:
        if entry.tenant == tenant:
            found.take(entry)
    return found


def times(store: OperatorStore, tenant: str) -> BreakerTimes:
    """What the store says of a tenant. Raises Unavailable."""
    return times_of(store.operator_entries(KIND, tenant)[1], tenant)


def _time_of(entry: Entry) -> int | None:
    """When a breaker opened or was closed, in seconds; None for an entry that cannot be read."""
    kinds = {TRIPPED: Tripped, HELD: Held}
    found = readable("entry", unpacked, entry, kinds.get(entry.key, Reset), kind=KIND, key=entry.key)
    return None if found is None else found.at_s
