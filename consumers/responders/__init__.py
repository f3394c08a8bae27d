"""Push responders: brings restrictions to gateways that do not ask for them.

Rules:
* A target holds the restrictions in force by client hash: the most severe over all models. Simulated decisions are not in force.
* At the start, after any failure and every `verify_s` the responder reads what the target holds, and changes only the differences. So
  a push that was lost, repeated or undone by another party is repaired. In between, changes are pushed within `every_s`.
* Adding an entry twice, or dropping one that does not exist, is not an error. Each target has a thread of its own, so that a failing target
  does not affect the others.
* Nothing is pushed before the store was read once, because an empty list would lift every restriction.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from consumers.enforcement.restrictions import THROTTLE, Restrictions, Standing
from consumers.errors import QueryWardenError
from consumers.periodic import Backoff, Periodic
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.responders")

_LAST_BACKOFF_S = 10.0

Held = Mapping[str, Standing]
"""Client hash → what holds for it."""


class Target(Protocol):
    """A gateway that is pushed to. All methods raise OSError or Unavailable, and may be repeated after it."""

    name: str

    def held(self) -> dict[str, Standing]:
        """What the target holds of ours now. An until_s that it does not tell is 0."""

    def change(self, put: Held, drop: list[str]) -> None: ...

    def same(self, wanted: Standing, held: Standing) -> bool:
        """Whether the target need not be told again."""

    def close(self) -> None: ...


class Responder:
    """Keeps one target as the view says, in a thread of its own."""

    def __init__(
        self,
        target: Target,
        view: Restrictions,
        tenant: str,
        metrics: Metrics,
        *,
        every_s: float = 0.5,
        verify_s: float = 60.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._target, self._view, self._tenant, self._metrics = target, view, tenant, metrics
        self._verify_s, self._clock = verify_s, clock
        self._position: tuple[int, str] | None = None
        self._verify_due_s = 0.0
        backoff = Backoff(every_s, _LAST_BACKOFF_S)
        self._periodic = Periodic(f"push-{target.name}", self.turn, every_s, backoff=backoff)

    def start(self) -> None:
        """Begin to push, in a thread."""
        self._periodic.start()

    def stop(self) -> None:
        """End the thread after its turn and close the connection."""
        self._periodic.stop()
        self._target.close()

    def turn(self) -> bool:
        """Push what is due; False when the target did not take it."""
        if not self._view.synced:
            return True
        try:
            self._push()
        except (OSError, QueryWardenError) as error:
            self._failed(error)
        except Exception as error:
            log.exception("push failed", extra={"target": self._target.name})
            self._failed(error)
        else:
            return True
        return False

    def _failed(self, error: Exception) -> None:
        if self._position is not None or not self._verify_due_s:
            log.warning("push failed", extra={"target": self._target.name, "error": f"{type(error).__name__}: {error}"})
        self._metrics.add("querywarden_responder_pushes_total", target=self._target.name, outcome="failed")
        self._position, self._verify_due_s = None, self._clock()

    def _push(self) -> None:
        now_s = self._clock()
        position = (self._view.number, self._view.epoch)  # before reading: what changes meanwhile is pushed twice
        changes = None if self._position is None or now_s >= self._verify_due_s else self._view.since(*self._position)
        if changes is None:
            self._compare(now_s)
            self._verify_due_s = now_s + self._verify_s
        elif changes:
            self._tell({c.client for c in changes if c.tenant == self._tenant}, now_s)
        self._position = position

    def _compare(self, now_s: float) -> None:
        clients = {key[1] for key, _, _ in self._view.enforced(now_s) if key[0] == self._tenant}
        wanted = {c: s for c in clients if (s := self._standing(c, now_s)).strictness >= THROTTLE}
        held = self._target.held()
        put = {c: s for c, s in wanted.items() if c not in held or not self._target.same(s, held[c])}
        drop = [c for c in held if c not in wanted]
        if put or drop:
            self._target.change(put, drop)
            outcome = "done" if self._position is None else "repaired"
            self._metrics.add("querywarden_responder_pushes_total", target=self._target.name, outcome=outcome)

    def _tell(self, clients: set[str], now_s: float) -> None:
        standings = {c: self._standing(c, now_s) for c in clients}
        put = {c: s for c, s in standings.items() if s.strictness >= THROTTLE}
        drop = [c for c in clients if c not in put]
        if put or drop:
            self._target.change(put, drop)
            self._metrics.add("querywarden_responder_pushes_total", target=self._target.name, outcome="done")

    def _standing(self, client: str, now_s: float) -> Standing:
        return self._view.standing(self._tenant, client, None, now_s)
