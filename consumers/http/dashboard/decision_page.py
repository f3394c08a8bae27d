"""The pages of decisions and of alerts: what operators and detection decided, and the findings of the last 30 days.

Rules: as in this folder's `__init__`. A dry run, and a decision that waits for a second person, say so beside their reason.
"""

from __future__ import annotations

import heapq
import itertools
from typing import Any
from urllib.parse import urlencode

from consumers.errors import WrongUse
from consumers.http.dashboard.site import MOST_ROWS, Site, by_suspicion, client_row, counts_of, verdict_words
from consumers.readers.public import precision_words
from consumers.times import milliseconds
from detector.policy import FLAGGED, REASONS


def decisions(site: Site) -> dict[str, Any]:
    models = site.reader.models()
    merged = heapq.merge(*(site.ranked(m.model_id, FLAGGED) for m in models), key=by_suspicion)
    manual = site.reader.manual_decisions()
    detected = [
        client_row(site, c)
        | {"gateways": manual.at_gateways(c).text, "since_ms": c.since_s * 1000, "until_ms": c.until_s * 1000}
        for c in itertools.islice(merged, MOST_ROWS)
    ]
    flagged = sum(counts_of(models)[s] for s in FLAGGED)
    revisions = site.reader.revisions()
    return {
        "manual": [
            {
                "key": d.model_id,
                "client": d.client_key,
                "client_id": d.client_id or d.client_key,
                "model": d.model_id,
                "href": site.client_address(d.client_key, d.model_id),
                "state": d.state,
                "reason": d.reason + (" (dry run)" if d.simulated else ""),
                "seen": revisions[d.client_key],
                "by": d.actor,
                "until_ms": d.until_s * 1000,
            }
            for d in manual.decisions
        ],
        "campaigns": [
            {
                "campaign": d.campaign_id,
                "href": site.campaign_address(d.campaign_id),
                "model": d.model_id,
                "state": d.state,
                "accounts": d.accounts,
                "joined": len(d.joined),
                "reason": d.reason
                + (" (dry run)" if d.simulated else " (waits for a second person)" if d.waits else ""),
                "by": d.actor,
                "until_ms": d.until_s * 1000,
            }
            for d in manual.campaigns
        ],
        "allowed": [
            {
                "key": a.model_id,
                "client": a.client_key,
                "client_id": a.client_id or a.client_key,
                "model": a.model_id,
                "href": site.client_address(a.client_key, a.model_id),
                "reason": a.reason,
                "seen": revisions[a.client_key],
                "by": a.actor,
                "until_ms": a.until_s * 1000,
            }
            for a in manual.allowlist
        ],
        "detected": detected,
        "detected_more": flagged if flagged > len(detected) else 0,
    }


def alerts(site: Site, cursor: str = "") -> dict[str, Any]:
    """A page of findings; a cursor that is none begins anew."""
    try:
        page = site.reader.alerts(limit=MOST_ROWS, cursor=cursor or None)
    except WrongUse:
        page, cursor = site.reader.alerts(limit=MOST_ROWS), ""
    return {
        "alerts": [
            {
                "at_ms": milliseconds(a.time),
                "who": a.client_id or f"campaign of {len(a.members)} accounts",
                "href": site.client_address(a.client_key, a.model_id) if a.client_key
                else site.campaign_address(a.campaign_id) if a.campaign_id else "",
                "model": a.model_id,
                "state": "clear" if a.resolved else a.state,
                "family": a.family,
                "queries": a.queries_seen,
                "why": a.evidence[0].text if a.evidence else REASONS.get(a.reason, a.reason),
                "verdict": (verdict_words(a.verdict) or {}).get("words", ""),
                "id": a.alert_id,
                "closed": a.case is not None and a.case.state == "closed",
                "assignee": a.case.assignee if a.case else "",
            }
            for a in page.items
        ],
        "precision": [precision_words(found) for found in site.reader.precision()],
        "older": f"/alerts?{urlencode({'cursor': page.next})}" if page.next else "",
        "newest": "/alerts" if cursor else "",
    }  # fmt: skip
