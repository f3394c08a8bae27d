"""Joins: requests wait for their responses, where a tool logs the two in separate records.

Rules:
* A query counts when both halves have arrived. Its event has the position of the later half.
* The memory is bounded: at most `most` halves and `MOST_BYTES` of records. The half that waited longest is dropped and counted.
* Waiting halves are in memory only. After a restart, and after a cell has changed hands, a half whose partner came before is dropped and
  counted. So the join is exact within one file, and on a topic as long as the process runs.
* In KServe the client chooses the id. Several halves with one id are joined in their order, so that no client can displace another
  client's request by using its id.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

from consumers.log.mappings.sources import View

MOST_BYTES = 64 << 20


class Half(NamedTuple):
    """One half of a query. size: bytes of its record."""

    view: View
    size: int


class Waiting:
    """Halves that wait for the other half.

    most       halves that may wait at once
    given_up   halves that were dropped because too many waited, by role
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.given_up = {"request": 0, "response": 0}
        self._halves: OrderedDict[tuple[str, Hashable], list[Half]] = OrderedDict()
        self._count = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, role: str) -> int:
        """Halves of a role that wait now."""
        return sum(len(halves) for (half_role, _), halves in self._halves.items() if half_role == role)

    def partner(self, role: str, key: Hashable, half: Half) -> Half | None:
        """The other half of a query, which waits no more; None: there is none yet, and this one waits from now on."""
        other = ("response" if role == "request" else "request", key)
        halves = self._halves.get(other)
        if halves:
            found = halves.pop(0)
            self._count -= 1
            self._bytes -= found.size
            if not halves:
                del self._halves[other]
            return found
        self._halves.setdefault((role, key), []).append(half)
        self._count += 1
        self._bytes += half.size
        while self._count > self.most or (self._bytes > MOST_BYTES and self._count > 1):
            self._give_up()
        return None

    def forget(self, cell: str) -> None:
        """Drop what waits of a log cell: it is read again, or is somebody else's now."""
        for key, halves in list(self._halves.items()):
            kept = [half for half in halves if half.view.source.cell != cell]
            self._count -= len(halves) - len(kept)
            self._bytes -= sum(half.size for half in halves if half.view.source.cell == cell)
            if kept:
                self._halves[key] = kept
            else:
                del self._halves[key]

    def _give_up(self) -> None:
        (role, key), halves = next(iter(self._halves.items()))
        oldest = halves.pop(0)
        if not halves:
            del self._halves[role, key]
        self._count -= 1
        self._bytes -= oldest.size
        self.given_up[role] += 1
