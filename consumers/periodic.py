"""Work that is repeated in a thread of its own, and the pauses between tries that fail.

Every loop of the service that repeats something, or waits for something that is away, uses the two classes of this file:

    Periodic   calls a function every so often from `start` to `stop`; a failure never ends it unless its owner says so
    Backoff    tells how long to pause after the first, second, third … failure in a row

Rules:

* A pause after a failure is drawn, not computed: processes that lost the same store at the same moment must not come back in step. With
  ``Backoff(0.05, 1.0)`` the pauses are at most 0.05 s, 0.1 s, 0.2 s, … 1 s, each drawn between half of that and the whole ("equal jitter",
  Brooker 2015: Exponential Backoff and Jitter).
* `stop` asks the thread to end and waits for it, but not for ever: a thread that hangs in a call is left behind (it is a daemon).
* Whoever wants to be quick calls `wake`: the pause ends, the next turn begins.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("querywarden.periodic")

STOP_S = 5.0
"""How long `stop` waits for a turn that has begun."""
_MOST_DOUBLINGS = 32


@dataclass(slots=True)
class Backoff:
    """Pauses that double with every failure in a row.

    first_s, longest_s  the longest pause after the first failure, and after very many
    spread              share of a pause that is drawn: 0 none, 0.5 between half and the whole, 1 between nothing and the whole
    least_s             no pause is shorter
    failures            in a row, so far
    """

    first_s: float
    longest_s: float
    spread: float = 0.5
    least_s: float = 0.0
    rng: random.Random = field(default_factory=random.Random)
    failures: int = 0

    def next_s(self) -> float:
        """Count a failure; return how long to pause before the next try, in seconds."""
        whole_s = min(self.longest_s, self.first_s * 2 ** min(self.failures, _MOST_DOUBLINGS))
        self.failures += 1
        return self.rng.uniform(max(self.least_s, whole_s * (1 - self.spread)), whole_s)

    def reset(self) -> None:
        """Forget the failures: something succeeded."""
        self.failures = 0


def log_and_go_on(name: str) -> Callable[[Exception], bool]:
    """The usual answer to an error that nobody foresaw: it is logged with its traceback, and the thread goes on."""

    def failed(error: Exception) -> bool:
        log.error("%s failed; trying again", name, exc_info=error)
        return True

    return failed


class Periodic:
    """Call `work` again and again, in a thread of its own.

    name     of the thread
    work     one turn; False means that it failed, anything else that it succeeded
    every_s  pause after a turn that succeeded
    backoff  pauses after turns that failed; None: as after the others
    spread   the pause after a success is drawn from ``every_s · (1 ± spread)``
    at_once  whether the first turn comes before the first pause
    failed   gets an exception of `work`; returns whether to go on. The default logs it and goes on
    event    what pauses wait for; tests give one that does not wait
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        every_s: float,
        *,
        backoff: Backoff | None = None,
        spread: float = 0.0,
        at_once: bool = True,
        failed: Callable[[Exception], bool] | None = None,
        event: threading.Event | None = None,
    ) -> None:
        self.name, self.every_s = name, every_s
        self._work, self._backoff, self._spread, self._at_once = work, backoff, spread, at_once
        self._failed = failed or log_and_go_on(name)
        self._wake = event or threading.Event()
        self._ending = False
        self._rng = random.Random()  # noqa: S311 — spreads load, hides nothing
        self._thread: threading.Thread | None = None

    @property
    def ending(self) -> bool:
        """Whether the end was asked for: a turn of several steps may look between two of them."""
        return self._ending

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = threading.Thread(target=self.run, name=self.name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Begin the next turn now."""
        self._wake.set()

    def end(self) -> None:
        """Ask the thread to end after its turn; see `stop`."""
        self._ending = True
        self._wake.set()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Ask the thread to end and wait for it, `timeout_s` at most."""
        self.end()
        self.join(timeout_s)

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, `timeout_s` at most, without asking it to."""
        if self._thread is not None:
            self._thread.join(timeout=timeout_s)

    def run(self) -> None:
        """Repeat until the end is asked for; what the thread does."""
        if not self._at_once:
            self._pause(self._usual_s())
        while not self._ending:
            try:
                succeeded = self._work() is not False
            except Exception as error:  # noqa: BLE001 — what ends the thread is its owner's decision
                if not self._failed(error):
                    return
                succeeded = False
            self._pause(self._next_s(succeeded))

    def _pause(self, pause_s: float) -> None:
        self._wake.wait(pause_s)
        self._wake.clear()

    def _next_s(self, succeeded: bool) -> float:
        if self._backoff is None:
            return self._usual_s()
        if not succeeded:
            return self._backoff.next_s()
        self._backoff.reset()
        return self._usual_s()

    def _usual_s(self) -> float:
        return self.every_s * self._rng.uniform(1 - self._spread, 1 + self._spread) if self._spread else self.every_s
