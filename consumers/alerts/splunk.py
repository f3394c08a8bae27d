"""Alerts to Splunk's HTTP Event Collector, as native JSON or as OCSF.

Rules: the time of the event is the time of the finding's message. `fields.uid` is the alert's uid, by which duplicates are removed.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from consumers.alerts import one_by_one
from consumers.alerts.envelope import content
from consumers.alerts.finding import finding
from consumers.alerts.outbound import AllowedHosts, Outbound
from consumers.errors import ConfigError
from consumers.store import OutboxAlert

PATH = "/services/collector/event"
SOURCETYPES = {"native": "querywarden:alert", "ocsf": "ocsf:detection_finding"}


class SplunkSink:
    """Sink ``splunk:<host>``. `url`: of the collector, without a path."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        index: str = "",
        form: str = "native",
        host: str = "querywarden",
        allow: AllowedHosts | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise ConfigError("splunk token: it must be printable text without spaces")
        self._headers = {"Authorization": f"Splunk {token}", "Content-Type": "application/json"}
        self._index, self._form, self._host = index, form, host
        self._out = Outbound(url.rstrip("/") + PATH, what="splunk", allow=allow, context=context)

    @property
    def name(self) -> str:
        return f"splunk:{self._out.target.host}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def summary(self, title: str, text: str) -> None:
        """One event about many alerts. Raises Unavailable, Undeliverable."""
        self._post("querywarden:digest", time.time(), {"title": title, "text": text}, {})

    def close(self) -> None:
        self._out.close()

    def _send(self, alert: OutboxAlert) -> None:
        found = finding(alert)
        fields = {"uid": found.uid, "severity": found.severity}
        self._post(SOURCETYPES[self._form], found.time_ms / 1000, content(found, self._form), fields)

    def _post(self, sourcetype: str, time_s: float, event: dict[str, Any], fields: dict[str, str]) -> None:
        shaped = {
            "time": time_s,
            "host": self._host,
            "source": "querywarden",
            "sourcetype": sourcetype,
            "event": event,
            "fields": fields,
        } | ({"index": self._index} if self._index else {})
        self._out.post(msgspec.json.encode(shaped), self._headers)
