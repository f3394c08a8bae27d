"""Restrictions that come to their end while their client asks nothing.

Rules:
* The store does not list a restriction that has ended. So what stands is read now and then, and its end is remembered here.
* An end is remembered until a decision that follows it is recorded: a store that is away, or a cell that is lost, must not leave a client
  restricted in every list for ever. It is forgotten `KEPT_S` after its time at last.
* The clients of all cells are remembered: who takes over a cell looks at what its former owner has not recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from consumers.store import DecisionRow, DecisionStore, decision_cell
from detector.query import ClientKey

EVERY_S = 60.0
"""How often decisions are looked for whose time is over."""
KEPT_S = 86_400
"""How long after its end a restriction is remembered that nobody here could follow up: its cell is another's, or its profile unreadable."""


@dataclass(slots=True)
class Lapses:
    """until: client → when its throttle or block ends, in s."""

    until: dict[ClientKey, int] = field(default_factory=dict)
    _looked_s: float = -math.inf

    def ended(self, store: DecisionStore, now_s: int, clock_s: float) -> dict[int, list[ClientKey]]:
        """Decision cell → clients whose restriction has come to its end; nothing more often than `EVERY_S`. Raises Unavailable.

        now_s    wall clock, which restrictions end by; clock_s: monotonic
        """
        if clock_s - self._looked_s < EVERY_S:
            return {}
        self._looked_s = clock_s
        found: dict[int, list[ClientKey]] = {}
        for client, until_s in list(self.until.items()):
            if until_s <= now_s - KEPT_S:
                del self.until[client]
            elif until_s <= now_s:
                found.setdefault(decision_cell(client, store.decision_cells), []).append(client)
        self.until |= {r.client: r.until_s for r in store.restrictions()[1] if r.until_s}
        return found

    def recorded(self, rows: Mapping[ClientKey, DecisionRow]) -> None:
        """Take up what was recorded: a restriction that stands, or one that is over."""
        for client, row in rows.items():
            if row.until_s:
                self.until[client] = row.until_s
            else:
                self.until.pop(client, None)
