"""Entries of the operator cell about the breakers: when detect's or the gateways' breaker opened, and when an operator reset both.

Rules:
* The kind is ``breaker``. The key is ``tripped`` for detect's, ``held`` for the gateways', ``reset`` for an operator's reset. A breaker
  is open if it opened after the last reset of the same tenant; tenants do not affect each other. Times are whole seconds: a breaker that
  opens within the second of a reset is dated one second later, so that it is the later event.
* An entry that cannot be read is skipped with a warning; it never opens or closes anything.
"""

from __future__ import annotations

from dataclasses import dataclass

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


def time_of(entry: Entry) -> int | None:
    """When a breaker opened or was closed, in seconds; None for an entry that cannot be read."""
    found = readable("entry", unpacked, entry, Tripped if entry.key == TRIPPED else Reset, kind=KIND, key=entry.key)
    return None if found is None else found.at_s


def times(store: OperatorStore, tenant: str) -> tuple[int, int]:
    """When a breaker of the tenant last opened and when they were last reset, in seconds, 0 for never. Raises Unavailable."""
    opened_s = reset_s = 0
    for entry in store.operator_entries(KIND, tenant)[1]:
        at_s = time_of(entry) or 0
        if entry.key == RESET:
            reset_s = max(reset_s, at_s)
        else:
            opened_s = max(opened_s, at_s)
    return opened_s, reset_s


def held_s(store: OperatorStore) -> int:
    """Since when the gateways' breaker is open, in seconds; 0 while it is closed. Raises Unavailable."""
    at_s = {entry.key: time_of(entry) or 0 for entry in store.operator_entries(KIND)[1]}
    return at_s.get(HELD, 0) if at_s.get(HELD, 0) > at_s.get(RESET, 0) else 0


def opened_after(tripped_s: float, reset_s: float) -> float:
    """When it opened, as an entry says it: after the reset that it follows."""
    return max(tripped_s, reset_s + 1.0)
