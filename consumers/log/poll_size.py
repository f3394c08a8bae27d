"""How many records a poll may hold: as many as were asked for, and no more than fit in `POLL_BYTES`.

Rules:
* A poll is one commit of each of its cells. What is written is a profile a client, so large commits are cheap; wide events must not make
  them large in memory, where a query takes some four times the bytes that it has in the log.
* The size of records is that of the last poll that held any, so the first poll is small. Where records grow at once, Kafka's reader takes
  no further batch for a poll that is full (batches.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from consumers.log.payloads import Payloads

POLL_BYTES = 16 << 20
FIRST = 2_000
"""Records of a poll before the size of any is known."""


@dataclass(slots=True)
class PollSize:
    """The bound of the next poll. fitting: how many records of the size seen last fit in `POLL_BYTES`; left: bytes that it may hold yet."""

    fitting: int = FIRST
    left: int = POLL_BYTES

    def at_most(self, max_records: int) -> int:
        """Number of records that the next poll may hold, at least one; it begins now."""
        self.left = POLL_BYTES
        return min(max_records, self.fitting)

    def note(self, values: Iterable[Payloads]) -> None:
        """Learn the size of records from those of a poll, one `Payloads` a cell."""
        count = size = 0
        for part in values:
            count += len(part)
            size += int((part.ends - part.starts).sum())
        if count:
            self.fitting = max(1, POLL_BYTES * count // max(size, 1))
