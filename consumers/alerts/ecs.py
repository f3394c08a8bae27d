"""Alerts as documents of the Elastic Common Schema: one document per HTTP request, or one per line of a file.

Rules:
* Field names are those of ECS 9; dotted names are nested objects. Content without a field in ECS goes to `querywarden`.
* `event.id` is the alert's uid. Over HTTP it is also the document's id: ``/<index>/_create/<id>`` answers 409 for a document that exists,
  which counts as taken.
"""

from __future__ import annotations

import ssl
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

import msgspec

from consumers.alerts import one_by_one, taxonomy
from consumers.alerts.finding import Finding, finding
from consumers.alerts.jsonl import JsonLinesSink
from consumers.alerts.outbound import AllowedHosts, Outbound, RefusedByStatus
from consumers.errors import ConfigError, Unavailable
from consumers.store import OutboxAlert
from consumers.times import rfc3339

VERSION = "9.0.0"
SEVERITY = {"medium": 47, "high": 73, "critical": 99}
ACTIONS = {"created": "finding-created", "updated": "finding-updated", "closed": "finding-closed"}


def document(found: Finding) -> dict[str, Any]:
    """The finding as an ECS document."""
    rows = taxonomy.techniques(found)
    shaped: dict[str, Any] = {
        "@timestamp": found.time,
        "ecs": {"version": VERSION},
        "message": found.text,
        "event": {
            "id": found.uid,
            "kind": "alert",
            "category": ["api", "intrusion_detection"],
            "type": ["info"] if found.resolved else ["indicator"],
            "action": ACTIONS[found.activity],
            "severity": SEVERITY[found.severity],
            "risk_score": round(100 * found.suspicion, 4),
            "module": "querywarden",
            "dataset": "querywarden.alert",
            "provider": "QueryWarden",
        },
        "rule": {"id": found.family or "extraction", "name": found.title, "category": "Model Extraction"},
        "gen_ai": {"request": {"model": found.model_id}},
        "organization": {"id": found.tenant},
        "tags": [value for _, values in taxonomy.tags(found) for value in values],
        "querywarden": dict(found.native),
    }
    if rows:
        shaped["threat"] = {
            "framework": taxonomy.ATLAS,
            "tactic": {"id": [row.tactic_uid for row in rows], "name": [row.tactic for row in rows]},
            "technique": {
                "id": [row.uid for row in rows],
                "name": [row.name for row in rows],
                "subtechnique": {"id": [r.sub_uid for r in rows if r.sub_uid], "name": [r.sub for r in rows if r.sub]},
            },
        }
    if found.kind == "client":
        shaped["user"] = {"id": found.subject}
    if found.sources:
        shaped["source"] = {"ip": found.sources[0]}
    return shaped


class EcsSink:
    """Sink ``ecs:<host>``: documents to ``<url>/_create/<id>``. `url`: of an index or a data stream."""

    def __init__(
        self, url: str, *, api_key: str = "", allow: AllowedHosts | None = None, context: ssl.SSLContext | None = None
    ) -> None:
        if not api_key.isascii() or not (api_key or "-").isprintable():
            raise ConfigError("ecs api_key: it must be printable text")
        self._headers = {"Content-Type": "application/json"}
        self._headers |= {"Authorization": f"ApiKey {api_key}"} if api_key else {}
        self._out = Outbound(url, what="ecs", allow=allow, context=context)

    @property
    def name(self) -> str:
        return f"ecs:{self._out.target.host}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def summary(self, title: str, text: str) -> None:
        """One document about many alerts. Raises Unavailable, Undeliverable."""
        now = rfc3339(time.time_ns() // 1_000_000)
        event = {"kind": "event", "category": ["api"], "type": ["info"], "dataset": "querywarden.digest"}
        shaped = {"@timestamp": now, "ecs": {"version": VERSION}, "message": f"{title}\n{text}", "event": event}
        self._out.post(msgspec.json.encode(shaped), self._headers, f"{self._out.target.path.rstrip('/')}/_doc")

    def close(self) -> None:
        self._out.close()

    def _send(self, alert: OutboxAlert) -> None:
        found = finding(alert)
        path = f"{self._out.target.path.rstrip('/')}/_create/{urllib.parse.quote(found.uid, safe='')}"
        try:
            self._out.post(msgspec.json.encode(document(found)), self._headers, path)
        except RefusedByStatus as error:
            if error.status != 409:
                raise


class EcsFileSink(JsonLinesSink):
    """Sink ``ecs-file:<path>``: the same documents as lines of a file, for Filebeat or Vector to ship."""

    @property
    def name(self) -> str:
        return f"ecs-{super().name}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        return one_by_one(alerts, self._send)

    def _send(self, alert: OutboxAlert) -> None:
        shaped = OutboxAlert(alert.uid, alert.time_ms, msgspec.json.encode(document(finding(alert))))
        if super().send([shaped]) != [True]:
            raise Unavailable("ecs file: it cannot be written")
