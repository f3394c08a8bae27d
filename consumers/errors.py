"""The errors of the shell. The type of an error tells the process what to do next.

    QueryWardenError
    ├── BadRecord         the record becomes a dead letter, the stream goes on
    ├── Unavailable       pause, back off, claim again
    ├── Fenced            drop the cell's cache and token
    ├── Rewound           claim again, seek to the store's offset
    ├── LogTruncated      the cell stops, an operator must decide
    │   └── LogRecreated
    ├── CorruptState      set the value aside; a whole cell that cannot be read stops
    ├── Undeliverable     set the alert aside, go on with the next
    ├── LeaseHeld         try another decision cell
    ├── WrongUse          exit status 2
    ├── Missing           exit status 1, HTTP 404
    ├── Conflict          exit status 1, HTTP 409
    ├── Stale             exit status 1, HTTP 412
    └── Refused           exit status 1; nothing was begun
        ├── ConfigError
        ├── InvalidInput
        ├── NotPermitted
        └── StoppedCells

Rules: code raises the leaf that fits, and catches the branch that it can handle. Anything else is a bug and ends the process, with the
position in its message. The message of an error is one clear line: it may be shown to whoever called, so it holds no secret.
"""

from __future__ import annotations


class QueryWardenError(Exception):
    """Base of all errors below; the message is one clear line."""


class BadRecord(QueryWardenError):
    """A record of the log that cannot be counted. reason: a code of the dead letter; detail: for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Unavailable(QueryWardenError):
    """A server did not answer, or not in time. Whether it did what was asked is unknown: the same commit is never sent twice."""


class Fenced(QueryWardenError):
    """Another process owns the cell by now."""


class Rewound(QueryWardenError):
    """The store is at another offset than this process expected. offset: the store's, None for none."""

    def __init__(self, cell: str, offset: int | None) -> None:
        super().__init__(f"{cell}: the store is at offset {offset}")
        self.cell = cell
        self.offset = offset


class LogTruncated(QueryWardenError):
    """The log ends before the offset in the store: records were lost."""


class LogRecreated(LogTruncated):
    """The log's name now belongs to another log, whose offsets mean something else."""


class CorruptState(QueryWardenError):
    """A stored value fails its checksum or cannot be decoded."""


class LeaseHeld(QueryWardenError):
    """Another running detector works on this decision cell. remaining_ms: of its lease."""

    def __init__(self, cell: int, remaining_ms: int) -> None:
        super().__init__(f"decision cell {cell} is held for another {remaining_ms} ms")
        self.remaining_ms = remaining_ms


class Undeliverable(QueryWardenError):
    """The receiver refuses this alert for good."""


class WrongUse(QueryWardenError):
    """The caller's mistake: an option, an argument, a setting that is malformed."""


class Missing(QueryWardenError):
    """There is no such thing, or none that the caller may know of."""


class Conflict(QueryWardenError):
    """The request contradicts the stored state."""


class Stale(QueryWardenError):
    """The stored state is not the one that the caller saw: read it again."""


class Refused(QueryWardenError):
    """What was asked for is not begun; the leaves say why."""


class ConfigError(Refused):
    """The installation does not fit: a setting, a file that a setting names, a package, the state of a server."""


class InvalidInput(Refused):
    """A file or a value that somebody gave cannot be used: reference, schema, log, baseline, snapshot, evidence."""


class NotPermitted(Refused):
    """A server does not let this account do it, or the person who was asked said no."""


class StoppedCells(Refused):
    """These log cells stopped; all others were read to their end."""
