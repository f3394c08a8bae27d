"""Ship dead letters from the store, where a commit put them, to a topic.

Rules:
* A dead letter leaves the store only after the topic took it: at least once.
* No number of waiting dead letters is unbounded. Without a topic the first `KEPT` of a cell stay in the store and the others are only
  counted. While a topic is away, up to `WAITING` of a cell wait; further ones are counted and dropped
  (`querywarden_letters_dropped_total`). The alarm ``letters_wait`` is raised at four fifths of that.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

from consumers.errors import CorruptState, Unavailable
from consumers.store import DeadLetter, ProfileStore

log = logging.getLogger("querywarden.ingest")

AT_ONCE = 1000
KEPT = 500
WAITING = 10_000


class DeadLetterShip(Protocol):
    """Where refused records go besides the store."""

    def ship(self, letters: list[DeadLetter]) -> list[bool]: ...


@dataclass(slots=True)
class DeadLetterShipper:
    """The dead letters of the cells that a process owns.

    topic      where they are shipped to; None: the first of each cell stay in the store
    unshipped  cells that may hold letters which were not handed on yet
    waiting    cell → how many of its letters wait while the topic is away
    """

    store: ProfileStore
    topic: DeadLetterShip | None = None
    unshipped: set[str] = field(default_factory=set)
    waiting: dict[str, int] = field(default_factory=dict)

    def room(self, cell: str) -> int:
        """How many more letters of the cell may wait."""
        return max(0, WAITING - self.waiting.get(cell, 0))

    def wrote(self, cell: str, letters: int) -> None:
        """Note how many letters of the cell a commit put into the store."""
        if letters:
            self.unshipped.add(cell)
            if cell in self.waiting:
                self.waiting[cell] += letters

    def forget(self, cell: str) -> None:
        self.unshipped.discard(cell)
        self.waiting.pop(cell, None)

    def fullest(self) -> float:
        """Share of its room that the fullest cell uses."""
        return max(self.waiting.values(), default=0) / WAITING

    def hand_on(self) -> None:
        """Every cell in turn, up to the first that finds the topic or the store away."""
        for cell in sorted(self.unshipped):
            if not self._ship(cell):
                break

    def _ship(self, name: str) -> bool:
        """False: some were not taken, and are tried again with a later turn."""
        try:
            while True:
                pending = self.store.dead_letters(name, AT_ONCE)
                letters = [letter for _, letter in pending]
                delivered = self._take(letters)
                done = [entry for (entry, _), ok in zip(pending, delivered, strict=True) if ok]
                if done:
                    self.store.dead_letters_shipped(name, done)
                    if name in self.waiting:
                        self.waiting[name] -= len(done)
                if self.topic is not None and len(done) < len(pending):
                    if name not in self.waiting:
                        self.waiting[name] = len(self.store.dead_letters(name, WAITING))
                    return False
                if len(pending) < AT_ONCE:
                    self.forget(name)
                    return True
        except CorruptState as error:  # its next commit finds the same, and stops the cell
            log.error("dead letters cannot be read", extra={"cell": name, "why": str(error)})
            self.forget(name)
            return True
        except Unavailable as error:
            log.warning("dead letters wait", extra={"cell": name, "why": str(error)})
            return False

    def _take(self, letters: list[DeadLetter]) -> list[bool]:
        if self.topic is None:
            return [i >= KEPT for i in range(len(letters))]
        return self.topic.ship(letters) if letters else []
