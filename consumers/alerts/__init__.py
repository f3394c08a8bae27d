"""Alert sinks: where an alert goes once the store holds it.

Port `AlertSink` has two implementations, a JSON lines file (`jsonl.py`) and a Kafka topic (`kafka.py`). Rules:

* At least once. An alert leaves the store's outbox only after `send` said True for it; a receiver de-duplicates on
  ``uid``, which a redo repeats.
* `send` answers alert by alert and does not raise when the receiver is away: what was not taken is sent again later.
* Sinks see bytes. What an alert says was decided before it was stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from consumers.store import OutboxAlert


class AlertSink(Protocol):
    @property
    def name(self) -> str:
        """The destination in the store's ledger of what was sent: keep it, or everything is sent again."""

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        """For each alert whether the receiver has it for good. Order is kept among those that were taken."""

    def close(self) -> None: ...
