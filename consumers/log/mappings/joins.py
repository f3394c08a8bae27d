"""Joins: requests wait for their responses, where a tool logs the two in separate records.

Rules:
* A query counts when both halves have arrived. Its event has the position of the later half.
* Each log cell has a memory of its own, and what waits there is a function of the log below: how polls, commits and processes cut the log
  changes nothing. What changes is told (`changes`), so that it is stored with the offset; `restore` puts back what waits there.
* The memory is bounded: at most `most` halves and `most_bytes` of their records in a cell, and none longer than `within_ms` of log time.
  What waited longest is given up first, and counted.
* In KServe the client chooses the id. Several halves with one id are joined in their order, so that no client can displace another
  client's request by using its id.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from consumers.log.halves import GIVEN_UP, ROLES, WAITS, Fate, HalfChange, Role
from consumers.log.mappings.sources import View
from detector.query import UNKNOWN_MS

MOST_BYTES = 16 << 20
MOST_BYTES_OF_FILES = 256 << 20
"""Two logs may stand one behind the other in files."""


class Half(NamedTuple):
    """One half of a query. size: bytes of its record; place: see `consumers.log.halves`."""

    view: View
    size: int
    place: int


class _Waiting(NamedTuple):
    role: Role
    key: Hashable
    half: Half


class Waiting:
    """Halves of one log cell that wait for the other half.

    most       halves that may wait at once; most_bytes: of their records
    within_ms  how long one may wait, by the log's own time; what has no log time waits on
    joined, given_up   queries that found both halves; halves that found none, by role
    changes    what changed since somebody took it
    """

    def __init__(self, most: int, within_ms: int, most_bytes: int) -> None:
        self.most, self.within_ms, self.most_bytes = most, within_ms, most_bytes
        self.joined = 0
        self.given_up: dict[Role, int] = dict.fromkeys(ROLES, 0)
        self.changes: list[HalfChange] = []
        self.newest_ms = UNKNOWN_MS
        self._waiting: dict[int, _Waiting] = {}  # by place, in the order in which they came
        self._places: dict[tuple[Role, Hashable], list[int]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, role: Role) -> int:
        """Halves of a role that wait now."""
        return sum(one.role == role for one in self._waiting.values())

    def partner(self, role: Role, key: Hashable, half: Half, after: int) -> Half | None:
        """The other half of a query, which waits no more; None: there is none yet, and this one waits from now on.

        after: where the record of this half ends, so that the change takes effect
        """
        time_ms = half.view.source.time_ms
        self.newest_ms = max(self.newest_ms, time_ms) if self._waiting else time_ms
        self._expire(after)
        others = self._places.get(("response" if role == "request" else "request", key))
        if others:
            found = self._take(others[0])
            self.joined += 1
            self._note(after, found.place, Fate.JOINED)
            return found
        self.restore(role, key, half)
        self._note(after, half.place, WAITS[role])
        while len(self._waiting) > self.most or (self._bytes > self.most_bytes and len(self._waiting) > 1):
            self._give_up(next(iter(self._waiting)), after)
        return None

    def restore(self, role: Role, key: Hashable, half: Half) -> None:
        """Let a half wait of which it is known that it does."""
        self._waiting[half.place] = _Waiting(role, key, half)
        self._places.setdefault((role, key), []).append(half.place)
        self._bytes += half.size

    def _expire(self, after: int) -> None:
        while self._waiting:
            oldest = next(iter(self._waiting.values())).half
            time_ms = oldest.view.source.time_ms
            if time_ms == UNKNOWN_MS or self.newest_ms - time_ms <= self.within_ms:
                return
            self._give_up(oldest.place, after)

    def _give_up(self, place: int, after: int) -> None:
        role = self._waiting[place].role
        self._take(place)
        self.given_up[role] += 1
        self._note(after, place, GIVEN_UP[role])

    def _take(self, place: int) -> Half:
        role, key, half = self._waiting.pop(place)
        places = self._places[role, key]
        places.remove(place)
        if not places:
            del self._places[role, key]
        self._bytes -= half.size
        return half

    def _note(self, after: int, place: int, fate: Fate) -> None:
        self.changes.append(HalfChange(after, place, fate, self.newest_ms))
