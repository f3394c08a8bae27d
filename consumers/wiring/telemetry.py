"""Start what a process shows of itself: heartbeats in the store, metrics on a port, traces.

Rules: nothing here changes what a process does. Each part ends with the exit stack that it was given.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from consumers import config
from consumers.errors import ConfigError, WrongUse
from consumers.metrics import Metrics, serve_metrics
from consumers.records.heartbeat import Heartbeat, HeartbeatPublisher, SinkState
from consumers.store import OperatorStore
from consumers.tracing import Spans, spans_of

if TYPE_CHECKING:
    from consumers.alarms import Alarms
    from consumers.alerts.delivery import OutboxWorker

log = logging.getLogger("querywarden.wiring")


def start_heartbeat(
    stack: contextlib.ExitStack,
    store: OperatorStore,
    role: str,
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


def start_metrics(
    settings: config.Settings, metrics: Metrics, ready: Callable[[], bool], stack: contextlib.ExitStack
) -> None:
    """Serve metrics and probes on `metrics.bind` until the stack is closed; nothing without an address. Raises WrongUse, ConfigError."""
    if not settings.metrics.bind:
        return
    try:
        server = serve_metrics(settings.metrics.bind, metrics, ready)
    except ValueError as error:
        raise WrongUse(f"metrics.bind: {error}") from error
    except OSError as error:
        raise ConfigError(f"metrics.bind: {settings.metrics.bind}: {error.strerror or error}") from error
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    host, port = server.server_address[:2]
    log.info("metrics", extra={"bind": f"{host!s}:{port}"})


def start_spans(stack: contextlib.ExitStack, service: str) -> Spans | None:
    """Spans as the environment asks for them, flushed when the stack is closed; None when it asks for none."""
    spans, finish = spans_of(os.environ, service)
    stack.callback(finish)
    return spans


def observe_seconds(metrics: Metrics) -> Callable[[str, float], None]:
    """What records how long a call to the store took."""
    return lambda name, seconds: metrics.observe("querywarden_store_seconds", seconds, operation=name)
