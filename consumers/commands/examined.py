"""What the checks of `doctor` share: the settings, answers of servers, and the three results that a check may have.

Rules: each server is asked once, however many checks want to know its answer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from consumers import config
from consumers.commands import connections
from consumers.errors import QueryWardenError
from consumers.http.server import is_loopback
from consumers.wiring import adapters

State = Literal["ok", "look", "not checked"]


class CheckResult(NamedTuple):
    """Result of a check: its state and a sentence."""

    state: State
    words: str


Check = Callable[["Examined"], CheckResult]


class Examined:
    """The settings, and answers of servers that several checks share. Each server is asked once."""

    def __init__(self, settings: config.Settings, file: Path | None = None) -> None:
        self.settings, self.file = settings, file

    @functools.cached_property
    def topics(self) -> frozenset[str] | str:
        """Topics of the brokers, or the error text."""
        try:
            return connections.topics(adapters.kafka_connection(self.settings))
        except (QueryWardenError, OSError) as error:
            return str(error)

    @property
    def on_kafka(self) -> bool:
        return adapters.on_kafka(self.settings)

    @property
    def on_redis(self) -> bool:
        return urlsplit(self.settings.store_url).scheme.startswith("redis")

    @property
    def protocol(self) -> str:
        return self.settings.kafka.security_protocol or "PLAINTEXT"

    @property
    def brokers_away(self) -> list[str]:
        servers = self.settings.kafka.bootstrap_servers.split(",")
        return [one.strip() for one in servers if not is_loopback(one.strip())]


def ok(words: str) -> CheckResult:
    """Tried and found good."""
    return CheckResult("ok", words)


def look(words: str) -> CheckResult:
    """A finding."""
    return CheckResult("look", words)


def unchecked(words: str) -> CheckResult:
    """It cannot be tried from here."""
    return CheckResult("not checked", words)
