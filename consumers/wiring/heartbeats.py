"""Publish the heartbeats of a process, which show other processes that it runs.

Rules: nothing here changes what a process does. The heartbeats end with the exit stack that is given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from consumers.records.heartbeat import Heartbeat, HeartbeatPublisher, Service, SinkState
from consumers.store import OperatorStore

if TYPE_CHECKING:
    from consumers.alerts.delivery import OutboxWorker
    from consumers.telemetry.alarms import Alarms

log = logging.getLogger("querywarden.wiring")


def start_heartbeat(
    stack: contextlib.ExitStack,
    store: OperatorStore,
    role: Service,
    look: Callable[[], tuple[float | None, Alarms, Sequence[OutboxWorker]]],
    keys: Callable[[], str] = lambda: "",
    stopped: Callable[[], Mapping[str, str]] = dict,
) -> HeartbeatPublisher:
    """Publish heartbeats of this process until the stack is closed.

    look     lag, alarms and workers of the process
    keys     fingerprint of the keys that it knows
    stopped  cells that cannot go on → reason and text
    """
    process = f"{role}@{socket.gethostname()}/{os.getpid()}"

    def heartbeat() -> Heartbeat:
        lag, alarms, workers = look()
        sinks = [SinkState(worker.sink.name, worker.waiting(), worker.failures > 0) for worker in workers]
        raised = sorted(alarms.raised.copy())
        waiting = None if lag is None else int(lag)
        return Heartbeat(process, role, 0, waiting, raised, sinks, dict(stopped()), keys=keys())

    publisher = HeartbeatPublisher(store, heartbeat)
    stack.callback(publisher.stop)
    publisher.start()
    return publisher
