"""The public shape of what is stored: made here and nowhere else, for API, dashboard, command line and report.

Rules:

* One function for each thing: a row becomes a `Client`, a campaign's rows a `Campaign`, an alert's body an `Alert`.
* A field of the stored shape that people should see gets a field in `models` and one line here. Both have no defaults, so that a field
  that is forgotten fails at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from consumers.readers.models import (
    Alert,
    AlertCase,
    Campaign,
    CampaignDecision,
    Client,
    Precision,
    SharedLink,
    Verdict,
)
from consumers.records.decision import StoredDecision
from consumers.records.operator_entries import StoredCampaignDecision
from detector.exposure import Exposure
from detector.query import ClientKey
from detector.scoring import Evidence


def client_of(model: str, client_key: str, row: StoredDecision) -> Client:
    """Return the public shape of a stored row, a campaign's too. client_key: keyed hash of the client's id."""
    found, decision = row.assessment, row.decision
    return Client(
        client_id=row.client_id,
        client_key=client_key,
        model_id=model,
        queries=found.queries,
        distinct=found.distinct,
        suspicion=found.suspicion,
        p_value=found.p_value,
        calibrated=found.calibrated,
        in_order=found.in_order,
        state=decision.state,
        reason=decision.reason,
        enforced=decision.enforced,
        since_s=decision.since_s,
        until_s=decision.until_s,
        last_seen_ms=row.last_ms,
        family=found.family,
        extraction=row.exposure,
        campaign_id=row.campaign_id,
        evidence=found.evidence,
    )


def campaign_of(
    name: str, model: str, rows: list[tuple[ClientKey, StoredDecision]], whole: StoredDecision | None
) -> Campaign:
    """Return a campaign from its accounts' rows. whole: its own row; without one, what its accounts say."""
    rows.sort(key=lambda r: (-r[1].assessment.suspicion, r[0].client))
    first = [row.decision.since_s for _, row in rows if row.decision.since_s]
    worst = whole or rows[0][1]
    return Campaign(
        campaign_id=name,
        model_id=model,
        members=tuple(client_of(key.model, key.client, row) for key, row in rows),
        queries=sum(row.assessment.queries for _, row in rows),
        suspicion=worst.assessment.suspicion,
        state=worst.decision.state,
        first_s=whole.decision.since_s if whole else min(first, default=0),
        last_seen_ms=max(row.last_ms for _, row in rows),
        links=tuple(whole.links if whole else sorted({link for _, row in rows for link in row.links})),
        ties=tuple(SharedLink(*tie) for tie in whole.ties) if whole else (),
    )


def campaign_decision_of(stored: StoredCampaignDecision, waits: bool) -> CampaignDecision:
    """Return an operator's decision about a campaign. waits: it is a proposal."""
    return CampaignDecision(
        campaign_id=stored.campaign,
        model_id=stored.model,
        state=stored.state,
        until_s=stored.until_s,
        simulated=stored.simulated,
        waits=waits,
        reason=stored.reason,
        note=stored.note,
        actor=stored.actor,
        at_s=stored.at_s,
        second=stored.second,
        confirmed=stored.confirmed,
        joined=stored.joined,
        joined_s=stored.joined_s,
    )


def precision_of(model: str, true: int, false: int) -> Precision:
    """Return the precision of judged findings, with Wilson's interval (1927).

    >>> found = precision_of("m", 8, 2)
    >>> found.precision, round(found.low, 2), round(found.high, 2)
    (0.8, 0.49, 0.94)
    """
    judged = true + false
    if not judged:
        return Precision(model, 0, 0, None, None, None)
    share, z = true / judged, 1.959964
    middle = (share + z * z / (2 * judged)) / (1 + z * z / judged)
    half = z / (1 + z * z / judged) * math.sqrt(share * (1 - share) / judged + z * z / (4 * judged * judged))
    return Precision(model, judged, true, share, max(0.0, middle - half), min(1.0, middle + half))


def precision_words(found: Precision) -> str:
    """Return the precision in words: one sentence."""
    name, judged = found.model_id or "other models", found.judged
    if found.precision is None or found.low is None or found.high is None:
        return f"{name}: no finding was judged"
    share = f"{found.precision:.0%}, {found.low:.0%} to {found.high:.0%}"
    return f"{name}: {found.true_positives:,} of {judged:,} judged findings were right ({share})"


def alert_of(body: Mapping[str, Any], client_key: str | None, verdict: Verdict | None, case: AlertCase | None) -> Alert:
    """Return an alert from its body, as last sent. client_key: keyed hash of its client, None for a campaign's."""
    return Alert(
        alert_id=body["alert_id"],
        time=body["time"],
        kind=body["kind"],
        client_id=body.get("client_id"),
        client_key=client_key,
        members=tuple(body.get("members") or ()),
        links=tuple(SharedLink(link["kind"], link["members"]) for link in body.get("links") or ()),
        campaign_id=body.get("campaign_id"),
        model_id=body["model_id"],
        state=body["state"],
        suspicion=body["suspicion"],
        queries_seen=body["queries_seen"],
        extraction=Exposure(**body["extraction"]) if body.get("extraction") else None,
        family=body["family"],
        evidence=tuple(Evidence(**e) for e in body["evidence"]),
        update=body["update"],
        calibrated=body.get("calibrated", False),
        reason=body.get("reason", ""),
        enforced=body.get("enforced", "clear"),
        resolved=body.get("resolved", False),
        frameworks=tuple(body.get("frameworks") or ()),
        policy=body.get("policy", "detection"),
        verdict=verdict,
        case=case,
    )
