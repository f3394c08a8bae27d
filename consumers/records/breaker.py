"""The breaker: a limit on new restrictions. Too many clients restricted at once point to a wrong detection, not to many attackers.

Rules:
* A restriction is new when a gateway would do more than before. More than `Limits.most` of them within `Limits.window_s`, or more than
  `Limits.share` of the active clients, open the breaker. The share alone does not open it for up to `Limits.least` clients, because a few
  attackers among few clients are plausible. While it is open nothing more is enforced; alerts are still raised, and earlier restrictions
  stay until they end.
* Open stays open, over restarts too, until an operator resets it (overrides.py keeps it in the store).
* Each detect process counts what it decides itself, before it is recorded. `serve` counts what all of them enforce together.
* Pure: times come in as `now_s`, seconds since the epoch. A client counts once in a window, so a redo changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from detector.query import ClientKey

WINDOW_S = 600.0
"""New restrictions are counted over this time."""
ACTIVE_S = 3600.0
ACTIVE_COUNTED = 10_000
"""More active clients than that make no difference with any sensible limit."""


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    most: int = 20
    share: float = 0.01
    least: int = 5
    window_s: float = WINDOW_S


@dataclass(slots=True)
class Breaker:
    """restricted: client → when it was newly restricted; open: nothing new is enforced; tripped_s: when it opened, in whole seconds, as
    operators' entries tell time: a reset in the same second closes it."""

    limits: BreakerLimits = field(default_factory=BreakerLimits)
    restricted: dict[ClientKey, float] = field(default_factory=dict)
    active: set[ClientKey] = field(default_factory=set)
    active_before: int = 0
    active_since_s: float = 0.0
    open: bool = False
    tripped_s: float = 0.0

    def seen(self, client: ClientKey, now_s: float) -> None:
        """A client was assessed: it is active."""
        if now_s - self.active_since_s >= ACTIVE_S:
            self.active_before, self.active, self.active_since_s = len(self.active), set(), now_s
        if len(self.active) < ACTIVE_COUNTED:
            self.active.add(client)

    def limit(self) -> int:
        """How many may be newly restricted within the window."""
        limits = self.limits
        return min(limits.most, max(limits.least, int(limits.share * max(len(self.active), self.active_before))))

    def allows(self, client: ClientKey, now_s: float) -> bool:
        """Whether a client may be newly restricted; the one that is too many opens the breaker."""
        if self.open:
            return False
        for other in [c for c, at_s in self.restricted.items() if at_s <= now_s - self.limits.window_s]:
            del self.restricted[other]
        self.restricted.setdefault(client, now_s)
        if len(self.restricted) <= self.limit():
            return True
        del self.restricted[client]
        self.open, self.tripped_s = True, float(int(now_s))
        return False

    def reset(self) -> None:
        """An operator closed it: counting begins anew."""
        self.open = False
        self.restricted.clear()
