"""Halves: which halves of queries wait for the other half in a log cell, as a log states it and as the store keeps it.

Rules:
* A half is named by its place: the offset of its record as the log's events count offsets, plus its number within the record. Nothing
  of its content is kept: who owns the cell next reads the record again.
* All changes of a record take effect where the next one begins, in order. So a commit between two events of one record leaves what waited
  before that record, and the record is joined anew from there.
* What waits at an offset is a function of the log below it, and is stored in the commit that moves the offset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.query import UNKNOWN_MS

Role = Literal["request", "response"]
ROLES: tuple[Role, Role] = ("request", "response")
JOINED = "joined."
"""How the names of join cells begin, cells of the store in which halves of several topics meet (mappings/handed.py)."""
ROW_BITS = 16
"""Of an event's offset: the row within its record."""
_HEAD = 2
_FORMAT = 1


class Fate(IntEnum):
    """What becomes of a half."""

    REQUEST_WAITS = 0
    RESPONSE_WAITS = 1
    JOINED = 2
    REQUEST_EXPIRED = 3
    RESPONSE_EXPIRED = 4


COUNTED = {Fate.JOINED: "joined", Fate.REQUEST_EXPIRED: "lone_requests", Fate.RESPONSE_EXPIRED: "lone_responses"}
"""Fate → counter of the cell (records/ledger.py)."""


WAITS: dict[Role, Fate] = {"request": Fate.REQUEST_WAITS, "response": Fate.RESPONSE_WAITS}
GIVEN_UP: dict[Role, Fate] = {"request": Fate.REQUEST_EXPIRED, "response": Fate.RESPONSE_EXPIRED}


class HalfChange(NamedTuple):
    """One change. offset: where it takes effect; place: of the half; newest_ms: newest log time of any half so far."""

    offset: int
    place: int
    fate: Fate
    newest_ms: int


def as_array(changes: Iterable[HalfChange]) -> NDArray[np.int64]:
    """Changes as rows (m, 4), as `Records.halves` holds them."""
    return np.array([tuple(change) for change in changes], np.int64).reshape(-1, 4)


@dataclass(slots=True)
class WaitingHalves:
    """What waits in a cell: place → role, in the order in which they came, and the newest log time of any half."""

    roles: dict[int, Role] = field(default_factory=dict)
    newest_ms: int = UNKNOWN_MS

    def apply(self, changes: NDArray[np.int64]) -> Counter[str]:
        """Follow changes of the log; returns what the counters of the cell grow by."""
        counted: Counter[str] = Counter()
        for _, place, fate, newest_ms in changes.tolist():
            if fate <= Fate.RESPONSE_WAITS:
                self.roles[place] = ROLES[fate]
            else:
                self.roles.pop(place, None)
                counted[COUNTED[Fate(fate)]] += 1
            self.newest_ms = newest_ms
        return counted

    def done_with(self, changes: NDArray[np.int64] | None, begin: int, end: int) -> tuple[int, ...]:
        """Records of which no half waits any more, after `apply`: of those between two offsets, and those that changes are about."""
        read = set(range(begin >> ROW_BITS, end >> ROW_BITS))
        if changes is not None:
            read.update((changes[changes[:, 2] >= Fate.JOINED, 1] >> ROW_BITS).tolist())
        return tuple(sorted(read - {place >> ROW_BITS for place in self.roles}))

    def to_bytes(self) -> bytes:
        """Eight bytes each, after a head of sixteen."""
        rows = [_FORMAT, self.newest_ms, *(place << 1 | ROLES.index(role) for place, role in self.roles.items())]
        return np.array(rows, "<i8").tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> WaitingHalves:
        """Nothing waits where nothing readable is stored."""
        if len(blob) < 8 * _HEAD or len(blob) % 8:
            return cls()
        version, newest_ms, *rows = np.frombuffer(blob, "<i8").tolist()
        if version != _FORMAT:
            return cls()
        return cls({row >> 1: ROLES[row & 1] for row in rows}, newest_ms)


NOTHING_WAITS = WaitingHalves()
"""Nobody changes it."""
