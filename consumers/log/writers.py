"""Where the bridge writes events: a Kafka topic, or the followed file.

Rules:

* `write` answers for each event whether it is in the log for good; it may be called from several threads.
* Kafka: acknowledged by all in-sync replicas, idempotent; the connection is made with the first event, so that a broker that is away does
  not keep the service from starting, and anew after a failure.
* File: one write and one flush to the disk a call, under a lock that other writers of this kind respect. What could not be written whole is
  cut off again, and a line that somebody left unfinished is ended first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaProducer, errors

log = logging.getLogger("querywarden.bridge")

Events = Sequence[tuple[bytes, bytes]]
"""(key, value) of each event; the value is one line of JSON."""


class KafkaWriter:
    """Writes to a topic. brokers: arguments for the client, as the query log's `connection` returns them."""

    def __init__(self, brokers: Mapping[str, Any], topic: str, timeout_s: float = 10.0) -> None:
        timeout_ms = int(timeout_s * 1000)
        self._topic = topic
        self._timeout_s = timeout_s
        self._settings: dict[str, Any] = {
            "acks": "all",
            "enable_idempotence": True,
            "compression_type": "gzip",
            "linger_ms": 5,
            "max_request_size": 1 << 21,
            "metrics_enabled": False,
            **brokers,
            "max_block_ms": timeout_ms,
            "request_timeout_ms": timeout_ms,
            "delivery_timeout_ms": timeout_ms + 1000,
            "bootstrap_timeout_ms": timeout_ms,
        }
        self._lock = threading.Lock()
        self._producer: KafkaProducer | None = None

    def write(self, events: Events) -> list[bool]:
        deadline_s = time.monotonic() + self._timeout_s
        sent: list[Any] = []
        try:
            producer = self._connected()
            for key, value in events:
                sent.append(producer.send(self._topic, value, key=key))
        except errors.KafkaError as error:  # the others would only wait as long again
            log.warning("events not written", extra={"why": type(error).__name__})
        done = []
        for future in sent:
            try:
                future.get(timeout=max(0.0, deadline_s - time.monotonic()))
                done.append(True)
            except errors.KafkaError as error:
                log.warning("event not acknowledged", extra={"why": type(error).__name__})
                done.append(False)
        return done + [False] * (len(events) - len(sent))

    def close(self) -> None:
        with self._lock:
            producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=self._timeout_s)

    def _connected(self) -> KafkaProducer:
        with self._lock:
            if self._producer is None:
                self._producer = KafkaProducer(**self._settings)
            return self._producer


class FileWriter:
    """Appends lines to a file, which is created readable by its owner only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, events: Events) -> list[bool]:
        lines = b"".join(value + b"\n" for _, value in events)
        try:
            with self._lock:
                self._append(lines)
        except OSError as error:
            log.error("events not written", extra={"why": error.strerror})
            return [False] * len(events)
        return [True] * len(events)

    def close(self) -> None:
        """Nothing stays open."""

    def _append(self, lines: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                lines = b"\n" + lines
            try:
                view = memoryview(lines)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
