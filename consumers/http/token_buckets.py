"""Token buckets: how often a caller may ask, with room for a burst.

Rules:

* A bucket holds at most `burst` tokens and gets `rate_per_s` new ones each second; a request takes one.
* There is one bucket for each name. Beyond `MOST_BUCKETS` the least recently used are forgotten, that is, full again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MOST_BUCKETS = 65_536

K = TypeVar("K", bound=Hashable)


class TokenBuckets(Generic[K]):
    """Buckets by name, for many threads. rate_per_s: 0 for no limit; burst: how many requests at once."""

    def __init__(self, rate_per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate_per_s, float(burst), clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def take(self, name: K, now_s: float | None = None) -> float:
        """Take a token; return how long to wait for the next one in seconds, 0 when there was one. now_s: instead of the clock's time."""
        if self._rate <= 0:
            return 0.0
        now_s = self._clock() if now_s is None else now_s
        with self._lock:
            tokens, last_s = self._buckets.pop(name, (self._burst, now_s))
            tokens = min(self._burst, tokens + max(0.0, now_s - last_s) * self._rate)
            self._buckets[name] = (tokens - 1 if tokens >= 1 else tokens, now_s)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        return 0.0 if tokens >= 1 else (1 - tokens) / self._rate
