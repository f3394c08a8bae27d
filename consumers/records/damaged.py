"""One way to read a record, or a profile cell, that may be damaged: it is set aside, and the log says so.

Rules:
* `readable` gives None for a record that cannot be read. The caller says what a missing record means; it never lifts or imposes anything.
* Each read says so again, with what it is and where it lies, never with its content. A caller whose record another reader has reported
  passes no name and says nothing.
* A profile cell is read again in every turn: that it cannot be read is said once, and once more when it was repaired and breaks again
  (`UnreadableCells`). None means that the cell is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from consumers.errors import CorruptState

log = logging.getLogger("querywarden.records")

R = TypeVar("R")


def readable(what: str | None, read: Callable[..., R], *arguments: Any, **where: str) -> R | None:
    """Return ``read(*arguments)``, or None where it raises CorruptState.

    Parameters
    ----------
    what : str or None
        What the record is, for the log; None: say nothing.
    read : callable
        Reads the record.
    **where : str
        More for the log: the model, the kind of entry.
    """
    try:
        return read(*arguments)
    except CorruptState as error:
        if what is not None:
            log.warning("%s set aside", what, extra={**where, "why": str(error)})
        return None


@dataclass(slots=True)
class UnreadableCells:
    """Reads profile cells, and says which cannot be read. known: (cell, what could not be read) since when it was last readable."""

    known: set[tuple[str, str]] = field(default_factory=set)

    def read(self, name: str, what: str, reading: Callable[[], R]) -> R | None:
        """Return what `reading` gives; None where it raises CorruptState."""
        try:
            found = reading()
        except CorruptState as error:
            if (name, what) not in self.known:
                self.known.add((name, what))
                log.error("profile cell cannot be read", extra={"cell": name, "why": str(error)})
            return None
        self.known.discard((name, what))
        return found
