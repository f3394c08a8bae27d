"""A simulated log: partitions, and a group whose members may not know yet what the group decided.

Rules:

* The group decides at once who owns what; a member learns it with its next poll. Until then it reads on and believes itself the
  owner – longer than any broker would allow, which is what the store must withstand.
* Offsets have gaps, as transaction markers and compaction leave them; what follows the last record may be a gap, too.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from consumers.errors import Fenced
from consumers.log import Poll, Records
from consumers.log.halves import NOTHING_WAITS, WaitingHalves

if TYPE_CHECKING:
    from simulation.processes import Process


class Topic:
    def __init__(self, cells: list[str], rng: random.Random) -> None:
        self.rng = rng
        self.values: dict[str, list[tuple[int, bytes]]] = {cell: [] for cell in cells}
        self.ends: dict[str, int] = dict.fromkeys(cells, 0)
        self.owners: dict[str, tuple[str, int]] = {}
        self._living: list[str] = []
        self._turns = itertools.count()

    def append(self, cell: str, offset: int, value: bytes, end: int) -> None:
        self.values[cell].append((offset, value))
        self.ends[cell] = end

    def join(self, member: str) -> None:
        if member not in self._living:
            self._living.append(member)
            self.rebalance()

    def leave(self, member: str) -> None:
        if member in self._living:
            self._living.remove(member)
            self.rebalance()

    def rebalance(self) -> None:
        """Everybody living gets a fair share; most stay where they are."""
        cells = list(self.values)
        self.rng.shuffle(cells)
        living = list(self._living)
        self.rng.shuffle(living)
        owners: dict[str, tuple[str, int]] = {}
        if living:
            share = -(-len(cells) // len(living))
            held = dict.fromkeys(living, 0)
            for cell in cells:
                member, _ = before = self.owners.get(cell, ("", 0))
                if held.get(member, share) < share and self.rng.random() < 0.6:
                    owners[cell] = before
                    held[member] += 1
            for cell in cells:
                if cell not in owners:
                    member = min(living, key=held.__getitem__)
                    owners[cell] = (member, next(self._turns))
                    held[member] += 1
        self.owners = owners


class MemberLog:
    """`QueryLog` as one member of the group sees it."""

    def __init__(self, topic: Topic, process: Process, member: str) -> None:
        self._topic, self._process, self._member = topic, process, member
        self._mine: dict[str, int] = {}
        self._positions: dict[str, int] = {}

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        self._process.effect("poll", None, lambda: self._topic.join(self._member), writes=False)
        poll = self._now(max_records)
        if not (poll.batches or poll.assigned or poll.revoked):
            self._process.pause(timeout_s)
            poll = self._now(max_records)
        return poll

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        self._process.effect("seek", None, _nothing, writes=False)
        if cell not in self._mine:
            raise Fenced(cell)
        self._positions[cell] = offset or 0
        return offset or 0

    def pause(self, cell: str) -> None:
        if cell not in self._mine:
            raise Fenced(cell)
        self._positions.pop(cell, None)

    def owns(self, cell: str) -> bool:
        owners = self._topic.owners
        return bool(
            self._process.effect(
                "still ours", None, lambda: owners.get(cell) == (self._member, self._mine.get(cell)), writes=False
            )
        )

    def position(self, cell: str) -> int:
        return self._positions.get(cell, 0)

    def ends(self) -> dict[str, int]:
        return dict(self._topic.ends)

    def is_member(self) -> bool:
        return True

    def topic_id(self, cell: str) -> int:
        return 1

    def lag(self) -> int:
        return sum(self._topic.ends[cell] - position for cell, position in self._positions.items())

    def commit(self, offsets: Mapping[str, int]) -> None:
        pass

    def close(self) -> None:
        pass

    def _now(self, max_records: int) -> Poll:
        poll, topic = Poll(), self._topic
        granted = {cell: turn for cell, (member, turn) in topic.owners.items() if member == self._member}
        for cell, turn in list(self._mine.items()):
            if granted.get(cell) != turn:
                del self._mine[cell]
                self._positions.pop(cell, None)
                poll.revoked.append(cell)
        for cell, turn in granted.items():
            if cell not in self._mine:
                self._mine[cell] = turn
                poll.assigned.append(cell)
        for cell, position in self._positions.items():
            new = [one for one in topic.values[cell] if one[0] >= position][:max_records]
            whole = not new or new[-1] is topic.values[cell][-1]
            after = topic.ends[cell] if whole else new[-1][0] + 1
            if after > position:
                offsets = np.array([offset for offset, _ in new], np.int64)
                poll.batches.append(Records(cell, [value for _, value in new], offsets, after))
                self._positions[cell] = after
        return poll

    def __getattr__(self, name: str) -> Callable[..., None]:
        raise AttributeError(f"the simulated log has no {name}: the port has grown")


def _nothing() -> None:
    pass
