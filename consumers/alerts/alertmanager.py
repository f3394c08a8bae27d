"""Alerts to the Alertmanager of Prometheus, API v2.

Rules:
* Alertmanager forgets everything when it restarts, so every open finding is sent again and again (`refresh`) until it is resolved.
* An alert fires until its `endsAt`, which is `firing_s` after its last change. So an outage of ours does not look like a resolution.
* Alertmanager identifies an alert by its labels. They stay the same for a whole finding, except the severity: each message resolves the
  other severities of the finding. The client is an annotation, not a label, and control characters are removed from it.
* Findings of other processes, and of earlier ones, are read from the store (`stored`) at each refresh.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from consumers.alerts import one_by_one, taxonomy
from consumers.alerts.finding import SEVERITIES, Finding, finding, visible
from consumers.alerts.outbound import AllowedHosts, Outbound
from consumers.errors import Undeliverable
from consumers.store import OutboxAlert
from consumers.times import milliseconds, rfc3339

ALERTNAME = "ModelExtractionSuspected"
CAPPED = "ModelExtractionAlertsCapped"
AT_ONCE = 100
MIN_FIRING_S = 60
MAX_OPEN = 10_000
EARLIER_MS = 1000
DIGEST_MS = 3_600_000
"""How long the alert about a digest fires."""


class Open(NamedTuple):
    """A finding that fires: its last news, when that was heard, when the finding began."""

    news: Finding
    heard_s: float
    starts: str


class AlertmanagerSink:
    """Sink ``alertmanager:<host>``. `url`: of the server, without the path of the API."""

    def __init__(
        self,
        url: str,
        *,
        allow: AllowedHosts | None = None,
        firing_s: float = 86_400.0,
        dashboard_url: str = "",
        headers: dict[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        stored: Callable[[], Iterable[OutboxAlert]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._out = Outbound(f"{url.rstrip('/')}/api/v2/alerts", what="alertmanager", allow=allow, context=context)
        self._headers = {"Content-Type": "application/json"} | (headers or {})
        self._firing_s = max(firing_s, MIN_FIRING_S)
        self._dashboard_url = dashboard_url
        self._clock = clock
        self._stored = stored
        self._open: dict[str, Open] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"alertmanager:{self._out.target.host}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def refresh(self) -> int:
        """Send every open finding again; returns how many. Raises Unavailable, Undeliverable."""
        with self._lock:
            self._restore(self._stored())
            self._prune()
            bodies = [self._shape(one, one.news.severity) for one in self._open.values()]
            for at in range(0, len(bodies), AT_ONCE):
                self._out.post(msgspec.json.encode(bodies[at : at + AT_ONCE]), self._headers)
            return len(bodies)

    def summary(self, title: str, text: str) -> None:
        """An alert of its own about the alerts over the cap; fires for an hour. Raises Unavailable, Undeliverable."""
        now_ms = round(self._clock() * 1000)
        alert = {
            "labels": {"alertname": CAPPED, "severity": "medium"},
            "annotations": {"summary": title, "description": text},
            "startsAt": rfc3339(now_ms),
            "endsAt": rfc3339(now_ms + DIGEST_MS),
        }
        self._out.post(msgspec.json.encode([alert]), self._headers)

    def close(self) -> None:
        self._out.close()

    def _send(self, alert: OutboxAlert) -> None:
        found = finding(alert)
        with self._lock:
            known = self._open.get(found.alert_id)
            if known is not None and known.news.update > found.update:
                return  # an older message of the same finding, delivered late
            one = Open(found, self._clock(), known.starts if known else found.time)
            self._out.post(msgspec.json.encode([self._shape(one, s) for s in SEVERITIES]), self._headers)
            self._keep(one)

    def _keep(self, one: Open) -> None:
        if one.news.resolved:
            self._open.pop(one.news.alert_id, None)
        else:
            self._open[one.news.alert_id] = one

    def _restore(self, alerts: Iterable[OutboxAlert]) -> None:
        found = []
        for alert in alerts:
            if alert.time_ms / 1000 + self._firing_s > self._clock():
                with contextlib.suppress(Undeliverable):
                    found.append(finding(alert))
        # an earlier version gave the end of a finding and a verdict the same number: the end is the later one
        for news in sorted(found, key=lambda f: (f.update, f.resolved)):
            known = self._open.get(news.alert_id)
            if known is None or (known.news.update, known.news.resolved) < (news.update, news.resolved):
                self._keep(Open(news, news.time_ms / 1000, known.starts if known else news.time))

    def _prune(self) -> None:
        oldest_s = self._clock() - self._firing_s
        alive = sorted((o for o in self._open.values() if o.heard_s > oldest_s), key=lambda o: o.heard_s)
        self._open = {o.news.alert_id: o for o in alive[-MAX_OPEN:]}

    def _shape(self, one: Open, severity: str) -> dict[str, Any]:
        """One alert of the API; fires only under the finding's own severity, and only while it is open."""
        found = one.news
        fires = severity == found.severity and not found.resolved
        now_ms = round(self._clock() * 1000)
        ends_ms = round((one.heard_s + self._firing_s) * 1000) if fires else now_ms
        begins_ms = min(milliseconds(one.starts), now_ms - EARLIER_MS)
        return {
            "labels": {
                "alertname": ALERTNAME,
                "alert_id": found.alert_id,
                "kind": found.kind,
                "model": visible(found.model_id),
                "tenant": visible(found.tenant),
                "severity": severity,
                "technique": taxonomy.EXTRACTION.sub_uid,
            },
            "annotations": {
                "summary": found.title,
                "description": found.text,
                "subject": visible(found.subject),
                "state": found.state,
                "update": str(found.update),
                "techniques": " ".join(row.id for row in taxonomy.techniques(found)),
            },
            "startsAt": rfc3339(begins_ms),
            "endsAt": rfc3339(ends_ms),
        } | ({"generatorURL": self._dashboard_url} if self._dashboard_url else {})
