"""Alerts to PagerDuty, Events API v2: one incident per finding.

Rules:

* `dedup_key` is the id of the finding, so a repeated event changes nothing.
* A change of the finding updates the incident, its end resolves it. The verdict true positive acknowledges the incident, false positive
  resolves it.
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Sequence
from typing import Any

import msgspec

from consumers.alerts import one_by_one
from consumers.alerts.finding import Finding, finding, visible
from consumers.alerts.outbound import AllowedHosts, Outbound
from consumers.store import OutboxAlert

URL = "https://events.pagerduty.com/v2/enqueue"
SEVERITIES = {"medium": "warning", "high": "error", "critical": "critical"}
SOURCE = "querywarden"
SUMMARY_LENGTH = 1024


class PagerDutySink:
    """Sink ``pagerduty``. `url`: the Events API, for the EU service region its own."""

    name = "pagerduty"

    def __init__(
        self,
        routing_key: str,
        *,
        url: str = URL,
        dashboard_url: str = "",
        allow: AllowedHosts | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._key = routing_key
        self._dashboard_url = dashboard_url
        self._out = Outbound(url, what="pagerduty", allow=allow, context=context)

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def summary(self, title: str, text: str) -> None:
        """One incident a day about the alerts over the cap. Raises Unavailable, Undeliverable."""
        event = {
            "routing_key": self._key,
            "event_action": "trigger",
            "dedup_key": f"querywarden-digest-{dt.datetime.now(dt.UTC):%Y-%m-%d}",
            "payload": {
                "summary": title[:SUMMARY_LENGTH],
                "source": SOURCE,
                "severity": "warning",
                "custom_details": {"text": text},
            },
        }
        self._out.post(msgspec.json.encode(event), {"Content-Type": "application/json"})

    def close(self) -> None:
        self._out.close()

    def _send(self, alert: OutboxAlert) -> None:
        body = msgspec.json.encode(self._event(finding(alert)))
        self._out.post(body, {"Content-Type": "application/json"})

    def _event(self, found: Finding) -> dict[str, Any]:
        event: dict[str, Any] = {
            "routing_key": self._key,
            "event_action": action(found),
            "dedup_key": found.alert_id,
            "client": "QueryWarden",
            "payload": {
                "summary": f"{found.title}: {found.text}"[:SUMMARY_LENGTH],
                "source": SOURCE,
                "severity": SEVERITIES[found.severity],
                "timestamp": found.time,
                "component": visible(found.model_id),
                "group": visible(found.tenant),
                "class": "model extraction",
                "custom_details": {
                    "subject": visible(found.subject),
                    "state": found.state,
                    "suspicion": found.suspicion,
                    "queries_seen": found.queries_seen,
                    "enforced": found.enforced,
                    "evidence": [visible(str(e.get("text", ""))) for e in found.evidence],
                },
            },
        }
        return event | ({"client_url": self._dashboard_url} if self._dashboard_url else {})


def action(found: Finding) -> str:
    """trigger | acknowledge | resolve."""
    verdict = found.judged.verdict if found.judged else ""
    if found.resolved or verdict == "false_positive":
        return "resolve"
    return "acknowledge" if verdict == "true_positive" else "trigger"
