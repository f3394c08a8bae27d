"""Episodes and findings: a finding is raised once, updated when it rises, and closed when the client is clear again. So are campaigns.

Rules:
* The id of an alert is a hash of tenant, kind, model, subject (keyed hash of the client, or id of the campaign) and episode, so a repeated
  computation gives the same id. Each further alert of the episode is an update of the first, counted from 0.
* A finding is updated when its state rises or a campaign gets new members. A verdict that was sent stays part of it.
* The first alert carries the time of the query that reached the level, if the order of the queries is known, not the time of the
  assessment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import msgspec

from consumers.records.decision import (
    CAMPAIGN,
    FRAMEWORKS,
    StoredDecision,
    exposures_of,
    history_of,
    is_campaign,
    packed_alert,
    rfc3339,
)
from consumers.secrets import Secrets
from consumers.store import OutboxAlert
from detector.baseline import Baseline
from detector.extraction import estimate
from detector.policy import FLAGGED, STATES, Decision, State
from detector.profile import Profile
from detector.query import ClientKey
from detector.scoring import Assessment, rung

TRAIL_SHOWN = 64
EVIDENCE_TOLD = 8
TELLING = 0.5
"""Evidence with a larger p-value tells nothing; the strongest is told all the same."""


def digest_of(*parts: str) -> str:
    """32 hex digits that name what the parts name."""
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()


def kind_of(key: ClientKey) -> str:
    return "campaign" if is_campaign(key) else "client"


def finding_id(key: ClientKey, episode: int) -> str:
    """The id of all alerts of an episode."""
    return digest_of(key.tenant, kind_of(key), key.model, key.client.removeprefix(CAMPAIGN), str(episode))


def previous(before: StoredDecision | None) -> Decision:
    """The decision that a row holds; a clear one for who has no row."""
    if before is None:
        return Decision()
    state, enforced = cast("State", before.state), cast("State", before.enforced)
    return Decision(state, before.reason, before.since_s, before.until_s, before.episode, enforced)


def assessed(
    client_id: str,
    profile: Profile,
    baseline: Baseline,
    assessment: Assessment,
    decision: Decision,
    before: StoredDecision | None,
    persona: str = "",
) -> StoredDecision:
    """The row that an assessment makes: without shards, links and witnesses, which its maker adds, and nothing told yet."""
    copied = estimate(profile, baseline.map, baseline.estimator)
    extraction = None if copied is None else {name: round(share, 4) for name, share in asdict(copied).items()}
    return StoredDecision(
        client_id=client_id,
        state=decision.state,
        reason=decision.reason,
        since_s=decision.since_s,
        until_s=decision.until_s,
        episode=decision.episode,
        enforced=decision.enforced,
        queries=assessment.queries,
        distinct=assessment.distinct,
        misfit=assessment.misfit,
        suspicion=assessment.suspicion,
        p_value=assessment.p_value,
        calibrated=assessment.calibrated,
        in_order=assessment.in_order,
        family=assessment.family if decision.state != "clear" else "unknown",  # a clear client resembles no thief
        evidence=[msgspec.to_builtins(e) for e in assessment.evidence],
        trail=_trail(profile, baseline, assessment, persona),
        cells=[],
        coverage=profile.cell_counts.tolist(),
        last_ms=profile.last_ms,
        first_ms=profile.first_ms,
        update=-1,
        alert=None,
        history=history_of(before, decision, assessment.suspicion),
        exposures=exposures_of(before, extraction, profile.queries, profile.last_ms),
        extraction=extraction,
        persona=persona,
    )


def told(
    key: ClientKey,
    row: StoredDecision,
    before: StoredDecision | None,
    secrets: Secrets,
    began: Callable[[], tuple[int, int] | None] = lambda: None,
) -> tuple[StoredDecision, OutboxAlert | None]:
    """The row with its finding, and the alert if there is news.

    began  (event time in ms, queries seen) of when the level was reached, None where nobody knows
    """
    same = before is not None and before.episode == row.episode
    known = before.alert if before and same else None
    update = before.update if before and same else -1
    alert = None
    if row.state in FLAGGED:
        risen = before is None or STATES.index(row.state) > STATES.index(before.state)
        if known is None or risen or set(row.members) - set(known.get("members", ())):
            update += 1
            time_ms, queries = (None if known is not None else began()) or (row.last_ms, row.queries)
            verdict = {"verdict": known["verdict"]} if known and "verdict" in known else {}
            known = _raised(key, row, update, time_ms, queries) | verdict
            alert = packed_alert(known, time_ms, secrets)
    elif row.state == "clear" and before is not None and before.alert is not None:
        alert = packed_alert(_closed(row, before.alert, before.update + 1), row.last_ms, secrets)
    return msgspec.structs.replace(row, alert=known, update=update), alert


def _raised(key: ClientKey, row: StoredDecision, update: int, time_ms: int, queries: int) -> dict[str, Any]:
    """The finding as it is told while the episode lasts."""
    named = {"members": row.members} if is_campaign(key) else {"client_id": row.client_id}
    return {
        "alert_id": finding_id(key, row.episode),
        "time": rfc3339(time_ms),
        "kind": kind_of(key),
        **named,
        "campaign_id": row.campaign_id,
        "model_id": key.model,
        "state": row.state,
        "suspicion": row.suspicion,
        "queries_seen": queries,
        "extraction": row.extraction,
        "family": row.family,
        "evidence": [e for e in row.evidence if e["p_value"] <= TELLING][:EVIDENCE_TOLD] or row.evidence[:1],
        "witnesses": row.witnesses,
        "update": update,
        "calibrated": row.calibrated,
        "reason": row.reason,
        "enforced": row.enforced,
        "tenant": key.tenant,
        "frameworks": list(FRAMEWORKS),
    }


def _closed(row: StoredDecision, alert: dict[str, Any], update: int) -> dict[str, Any]:
    """The finding as it is told last: the episode is over."""
    return alert | {
        "time": rfc3339(row.last_ms),
        "state": row.state,
        "was": alert["state"],
        "resolved": True,
        "suspicion": row.suspicion,
        "queries_seen": row.queries,
        "evidence": row.evidence[:1],
        "update": update,
        "reason": row.reason,
        "enforced": row.enforced,
    }


def _trail(profile: Profile, baseline: Baseline, assessment: Assessment, persona: str) -> list[list[float]]:
    now: list[float] = [profile.queries, assessment.suspicion, profile.last_ms]
    if not assessment.in_order:
        return [now]
    tail = baseline.tail(True, persona)
    points: list[list[float]] = [
        [int(q), 1 - tail.p(rung(i + 1)), int(ms)]
        for i, (ms, q) in enumerate(zip(profile.trail_ms.tolist(), profile.trail_query.tolist(), strict=True))
    ]
    return [*points[-TRAIL_SHOWN:], now]
