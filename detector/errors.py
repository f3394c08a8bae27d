"""Errors of the core, as types.

Rules: each type tells the shell what to do. The core never logs and never exits.
"""


class DetectorError(Exception):
    """Anything the core refuses to do; the message is one clear line."""


class MalformedQuery(DetectorError):
    """A query that the feature map can't take. ``reason`` is a code of the docs' table."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class IncompatibleProfile(DetectorError):
    """Profile bytes that belong to another feature map or another format version."""


class CorruptBaseline(DetectorError):
    """A baseline file that is damaged, of another format version, or not a baseline."""


class UnfittedModel(DetectorError):
    """Too little reference to fit a baseline, and why."""
