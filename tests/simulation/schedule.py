"""One thread, many processes: greenlets that take turns, and a clock that only this file moves.

Rules:

* A process runs until it pauses; every effect pauses (`processes.Process.effect`). Who goes on next is a matter of drawn latencies
  alone, so a seed gives the same run on every machine.
* Actions without a process (a late write that arrives, a node that fails over) are calls at a time; they never pause.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from greenlet import getcurrent, greenlet

EPOCH_S = 1_773_014_400.0


class Schedule:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.steps = 0
        self._hub = getcurrent()
        self._heap: list[tuple[float, int, greenlet | Callable[[], None]]] = []
        self._ties = itertools.count()

    def wall_s(self) -> float:
        return EPOCH_S + self.now_s

    def monotonic(self) -> float:
        return self.now_s

    def at(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` so many seconds from now."""
        heapq.heappush(self._heap, (self.now_s + seconds, next(self._ties), action))

    def spawn(self, body: Callable[[], None]) -> greenlet:
        process = greenlet(body, parent=self._hub)
        heapq.heappush(self._heap, (self.now_s, next(self._ties), process))
        return process

    def pause(self, seconds: float) -> None:
        """Called by a process: go on so many seconds later."""
        heapq.heappush(self._heap, (self.now_s + seconds, next(self._ties), getcurrent()))
        self._hub.switch()

    def run(self, done: Callable[[], bool], until_s: float) -> bool:
        """Run until `done` (asked after every step) or until the clock would pass `until_s`; False then."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self.now_s, _, what = heapq.heappop(heap)
            self.steps += 1
            if isinstance(what, greenlet):
                what.switch()
            else:
                what()
            if done():
                return True
        self.now_s = until_s
        return False
