"""Alert sinks: the receivers to which alerts are sent once the store holds them.

Port `AlertSink`. Every implementation is one file, named by one row of `consumers.wiring.sinks.SINKS`.

Rules:
* At least once. An alert leaves the outbox only after `send` returned True for it. A receiver removes duplicates by ``uid``, which is the
  same when an alert is sent again.
* Progress or an exception. `send` answers alert by alert; after the first failure the rest is False and is sent again. If it could
  not even deliver the first alert it may say why: `Unavailable` (away or overloaded: back off, send again) or `Undeliverable`
  (this first alert is refused for good: set it aside, go on with the next).
* Sinks get bytes. The content of an alert was decided before it was stored.
* No secret (key, token, secret path of a URL) appears in `name`, in an error or in a log line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from consumers.errors import Unavailable, Undeliverable
from consumers.store import OutboxAlert


class AlertSink(Protocol):
    @property
    def name(self) -> str:
        """The destination in the store's ledger of what was sent: keep it, or everything is sent again."""

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        """For each alert whether the receiver has it for good. Order is kept among those that were taken.

        Raises Unavailable or Undeliverable, about the first alert, when it took none.
        """

    def close(self) -> None: ...


def one_by_one(alerts: Sequence[OutboxAlert], send: Callable[[OutboxAlert], None]) -> list[bool]:
    """`AlertSink.send` by way of a function that takes one alert or raises Unavailable or Undeliverable."""
    taken = 0
    for alert in alerts:
        try:
            send(alert)
        except (Unavailable, Undeliverable):
            if not taken:
                raise
            break
        taken += 1
    return [i < taken for i in range(len(alerts))]
