"""A process that delivers alerts from a store to a webhook until none waits, or until it is killed.

    python outbox_worker_process.py STORE URL DEADLINE_S [careless]

`careless` forgets an alert before it sends it: a test's proof that it would notice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from consumers.alerts.delivery import OutboxWorker
from consumers.alerts.outbound import AllowedHosts
from consumers.alerts.webhook import WebhookSink
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, OutboxAlert
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics

SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
KEY = "whsec_" + "b29v" * 11
FASTER = 500
"""How much faster than the clock the back-off runs: its waits are tested elsewhere."""


class Careless:
    """Says that an alert is delivered, then tries."""

    def __init__(self, sink: WebhookSink) -> None:
        self.sink, self.name = sink, sink.name

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        self.sink.send(alerts)
        return [True] * len(alerts)

    def close(self) -> None: ...


def main(path: str, url: str, deadline_s: str, *how: str) -> None:
    store = EmbeddedStore(Path(path))
    sink = WebhookSink(url, KEY, allow=AllowedHosts.of("127.0.0.1"), deadline_s=float(deadline_s))
    worker = OutboxWorker(
        Careless(sink) if how else sink, store, SECRETS, Metrics(), clock=lambda: time.monotonic() * FASTER
    )
    while any(store.outbox(cell, sink.name, 1) for cell in range(DECISION_CELLS)):
        worker.deliver(range(DECISION_CELLS))
        time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
