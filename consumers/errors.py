"""The errors of the shell. The type of an error tells the process what to do next.

    BadRecord     the record becomes a dead letter, the stream goes on
    Unavailable   the outcome is unknown: pause, back off, claim again (never send the same commit twice)
    Fenced        another process owns the cell: drop its cache and its token
    Rewound       the store is at another offset than expected: claim again, seek there
    LogTruncated  the log ends before the offset in the store: the cell stops, an operator must decide
    LogRecreated  the same, because the name now belongs to another log
    CorruptState  a stored value fails its checksum: set it aside, never crash; a whole cell that cannot be read stops
    Undeliverable the receiver refuses this alert for good: set it aside, go on with the next
    LeaseHeld     another running detector works on this decision cell
    WrongUse      the caller's mistake (exit status 2)
    Missing       there is no such thing, or none that the caller may know of
    Conflict      the request contradicts the stored state
    Stale         the stored state is not the one that the caller saw: read it again
    Refused       a clear refusal at start: secrets, schema, baseline (exit status 1)
    StoppedCells  these log cells stopped, all others were read to the end (exit status 1)

Anything else is a bug and ends the process, with the position in its message.
"""

from __future__ import annotations


class QueryWardenError(Exception):
    """Base of all errors below; the message is one clear line."""


class BadRecord(QueryWardenError):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Unavailable(QueryWardenError):
    pass


class Fenced(QueryWardenError):
    pass


class Rewound(QueryWardenError):
    def __init__(self, cell: str, offset: int | None) -> None:
        super().__init__(f"{cell}: the store is at offset {offset}")
        self.cell = cell
        self.offset = offset


class LogTruncated(QueryWardenError):
    pass


class LogRecreated(LogTruncated):
    pass


class CorruptState(QueryWardenError):
    pass


class LeaseHeld(QueryWardenError):
    def __init__(self, cell: int, remaining_ms: int) -> None:
        super().__init__(f"decision cell {cell} is held for another {remaining_ms} ms")
        self.remaining_ms = remaining_ms


class Undeliverable(QueryWardenError):
    pass


class WrongUse(QueryWardenError):
    pass


class Missing(QueryWardenError):
    pass


class Conflict(QueryWardenError):
    pass


class Stale(QueryWardenError):
    pass


class Refused(QueryWardenError):
    pass


class StoppedCells(Refused):
    pass
