"""One way to read a record that may be damaged: it is set aside, and the log says so.

Rules:
* `readable` gives None for a record that cannot be read. The caller says what a missing record means; it never lifts or imposes anything.
* Each read says so again, with what it is and where it lies, never with its content. A caller whose record another reader has reported
  passes no name and says nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
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
