"""Real servers for the tests, installed by `tests/install-servers.sh`: those of `examples/servers.py`, and more of the kind.

* The log file outlives a failed session: `keep_log`.
* ``QUERYWARDEN_TEST_KAFKA`` / ``_REDIS`` / ``_VALKEY`` name running servers to use instead.
* A test reaches a server through a fixture, never by itself: `tests/conftest.py` marks tests by their fixtures, so that `make check` can
  leave out those that need one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from examples.servers import (
    INSTALL,
    KAFKA_VERSION,
    PORTS,
    Kafka,
    MissingServer,
    Redis,
    Server,
    Valkey,
    cache,
    die_with_parent,
    free_port,
)
from examples.servers import listens as _listens

__all__ = [
    "INSTALL",
    "KAFKA_VERSION",
    "PORTS",
    "Alertmanager",
    "Kafka",
    "MissingServer",
    "NewServer",
    "Prometheus",
    "Redis",
    "Server",
    "Valkey",
    "_listens",
    "cache",
    "die_with_parent",
    "found",
    "free_port",
    "or_skip",
    "started",
    "wait_until",
]

S = TypeVar("S", bound=Server)
T = TypeVar("T")


class NewServer(Protocol):
    """Make a server of a test's own, which is not started yet. What is not installed skips the test, or fails it under ``CI=true``."""

    def __call__(self, kind: Callable[..., T], *arguments: Any, **options: Any) -> T: ...


def or_skip(kind: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """`NewServer`, for fixtures: tests take the fixture `new_server`."""
    try:
        return kind(*arguments, **options)
    except MissingServer as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@contextlib.contextmanager
def started(server: S) -> Iterator[S]:
    """Run a server for as long as the block lasts. The end of its log is in the error when it dies at once."""
    try:
        server.start()
        yield server
    finally:
        server.remove()


class Prometheus(Server):
    """A real Prometheus. `config`: its configuration file; rule files are named relative to it."""

    name = "prometheus"

    def __init__(self, config: Path, folder: Path | None = None, port: int | None = None) -> None:
        self.binary = found("prometheus")
        super().__init__(folder, port)
        self.config = config

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        where = [f"--config.file={self.config}", f"--storage.tsdb.path={self.folder / 'data'}"]
        return [self.binary, *where, f"--web.listen-address=127.0.0.1:{self.port}"]

    def probe(self) -> bool:
        return _answers(f"{self.url}/-/ready")


class Alertmanager(Server):
    """A real Alertmanager without a cluster."""

    name = "alertmanager"

    def __init__(self, config: Path, folder: Path | None = None, port: int | None = None) -> None:
        self.binary = found("prometheus-alertmanager", "alertmanager")
        super().__init__(folder, port)
        self.config = config

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        where = [f"--config.file={self.config}", f"--storage.path={self.folder / 'data'}", "--cluster.listen-address="]
        return [self.binary, *where, f"--web.listen-address=127.0.0.1:{self.port}"]

    def probe(self) -> bool:
        return _answers(f"{self.url}/-/ready")


def found(*names: str) -> str:
    """Path of the first of these programs that is installed. Raises MissingServer."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    raise MissingServer(f"{names[0]} is not installed: run {INSTALL}")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], within_s: float = 20.0, what: str = "the condition") -> None:
    """Poll `condition` until it holds; raises AssertionError after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {within_s} s")
        time.sleep(0.02)
