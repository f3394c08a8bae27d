"""Alerts: the body that a finding is told with, built here and nowhere else, and the way to its bytes and back.

An episode of a client or a campaign has one finding. It is raised when the state rises to throttle or block, updated when the state
rises further, when a campaign gets new members or when an analyst gives a verdict, and closed when the client is clear again.

A client that spends its *exposure budget* has a finding of its own, marked ``"policy": "exposure"``: it is no suspect. The finding of a
campaign is updated instead, with ``exposure_budget``.

Rules:
* The id of an alert is a hash of tenant, kind, model, subject (keyed hash of the client, or id of the campaign) and episode, so a repeated
  computation gives the same id. Each further alert of the episode is an update of the first, counted from 0. A finding about the exposure
  budget has a count of its own in place of the episode (`BudgetFinding.number`, from the episode on): it opens and closes when
  detection sees nothing. After a row that cannot be read no number is used again (`decision.episode_after`).
* `following` alone gives update numbers. The outbox sends each ``alert_id/update`` once in 30 days, so a number that is given twice is an
  alert that nobody gets. While a finding is open its row counts; a finding that the row no longer holds is continued from what the same
  outcome is about to send, and from the alerts of the store.
* Keys and their order are the native format (docs/formats.md). The row keeps the body as it was last sent, so a verdict stays part of it.
* The first alert carries the time of the query that reached the level, if the order of the queries is known, not the time of the
  assessment.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import msgspec

from consumers.errors import CorruptState
from consumers.records.decision import (
    CAMPAIGN,
    BudgetFinding,
    StoredDecision,
    campaign_key,
    is_campaign,
    packed_row,
)
from consumers.records.frameworks import LIMIT, frameworks_of
from consumers.records.sealing import sealed, unsealed, with_ids
from consumers.secrets import Secrets
from consumers.store import DecisionRow, OutboxAlert
from consumers.times import rfc3339
from detector.exposure import Exposure
from detector.policy import BUDGETS, QUERIES, SPENT, TOKENS, ExposureBudget, News, Spent
from detector.query import ClientKey

Kind = Literal["client", "campaign"]
"""Whose finding it is."""

EVIDENCE_TOLD = 8
MEMBERS_TOLD = 10_000
"""Members that an alert names; receivers refuse messages of more than a megabyte. The rows of the others name the campaign."""
UNCOUNTED = 99
"""More updates than a budget's finding had in versions that did not count them: its next one is numbered above."""
TELLING = 0.5
"""Evidence with a larger p-value tells nothing; the strongest is told all the same."""


def digest_of(*parts: str) -> str:
    """Return 32 hex digits that name what the parts name."""
    return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).hexdigest()


def kind_of(key: ClientKey) -> Kind:
    """Return whose finding a row's is."""
    return "campaign" if is_campaign(key) else "client"


def finding_id(key: ClientKey, episode: int) -> str:
    """Return the id of all alerts of an episode."""
    return digest_of(key.tenant, kind_of(key), key.model, key.client.removeprefix(CAMPAIGN), str(episode))


def following(alert_id: str, counted: int, others: Iterable[OutboxAlert] = ()) -> int:
    """Return the number of the next alert of a finding.

    counted  the last number that the finding's row knows, -1 for none
    others   alerts that may be of this finding, too: of the outcome that is about to be recorded, and of the store
    """
    return 1 + max([counted, *(update for name, update in map(named, others) if name == alert_id)])


def named(alert: OutboxAlert) -> tuple[str, int]:
    """Return the finding's id and the number of an alert, which its uid consists of."""
    alert_id, _, update = alert.uid.rpartition("/")
    return alert_id, int(update) if update.isdecimal() else -1


def told(
    key: ClientKey,
    row: StoredDecision,
    before: StoredDecision | None,
    news: News,
    secrets: Secrets,
    began: tuple[int, int] | None = None,
) -> tuple[DecisionRow, OutboxAlert | None]:
    """Return the row as it is stored, and the alert if there is news.

    before  the row that `row` follows
    began   (event time in ms, queries seen) of when the level was first reached, None where that is not known
    """
    body, time_ms = None, row.last_ms
    if news == "raised":
        queries = row.assessment.queries
        if row.alert is None and began is not None:
            time_ms, queries = began
        number = following(finding_id(key, row.decision.episode), row.update)
        body = _raised(key, row, time_ms, queries, number)
        row = dataclasses.replace(row, alert=body, update=body["update"])
    elif news == "closed" and before is not None and before.alert is not None:
        body = _closed(row, before.alert, following(before.alert["alert_id"], before.update))
    seal: Callable[[str], str] = functools.partial(sealed, secrets=secrets, tenant=key.tenant)
    if body is None:
        return packed_row(row, seal), None
    seal = functools.cache(seal)  # row and alert hold the same ids
    return packed_row(row, seal), _packed(body, time_ms, seal)


def spent_told(
    key: ClientKey,
    row: StoredDecision,
    before: StoredDecision | None,
    budget: ExposureBudget,
    why: str,
    secrets: Secrets,
) -> tuple[StoredDecision, OutboxAlert | None]:
    """Return the row with its finding about the budget, and the alert that the client has spent more of it than was told, or is within
    it again; None where there is no news. A client that wavers about the upper limit is told of once, until it is within the budget.

    row    as decided, with `exposed` as it is now; before: the row that it follows; why: reason code of the budget that asks for
    the more, the exposure's or that in queries
    """
    known = _budget_finding(key, before)
    was: Spent = known.told if known is not None else "none"
    if row.exposed == was or (row.exposed != "none" and SPENT.index(row.exposed) < SPENT.index(was)):
        return (row if known is row.budget else dataclasses.replace(row, budget=known)), None
    if row.exposed == "none" and before is not None and before.decision.reason in BUDGETS:
        why = before.decision.reason  # of budgets that are both kept again, the one that was told
    if known is None or was == "none":
        number = known.number + 1 if known is not None else row.decision.episode
        known = BudgetFinding(digest_of(key.tenant, "budget", key.model, key.client, str(number)), number, -1, "none")
    known = known._replace(told=row.exposed, update=following(known.alert_id, known.update))
    body = _raised(key, row, row.last_ms, row.assessment.queries, known.update)
    body.pop("verdict", None)  # it was about the other finding
    body |= {"verdict": known.verdict} if known.verdict is not None else {}
    share = row.exposure.fidelity if row.exposure is not None else 0.0
    throttled = row.exposed == "throttle"
    if why == QUERIES:
        most = budget.queries_throttle if throttled else budget.queries_alert or budget.queries_throttle
        share = row.assessment.distinct
        text = f"it asked {share:,.0f} distinct queries; the query budget allows {most:,}"
    elif why == TOKENS:
        most = budget.tokens_throttle if throttled else budget.tokens_alert or budget.tokens_throttle
        share = float(row.tokens)
        text = f"its queries and their answers had {row.tokens:,} tokens; the token budget allows {most:,}"
    else:
        limit = budget.throttle if throttled else budget.alert or budget.throttle
        text = f"the estimated exposure is {exposure_text(row.exposure)}; the exposure budget allows {limit:.0%}"
    body |= {
        "alert_id": known.alert_id,
        "policy": "exposure",
        "state": {"none": "clear", "alert": "watch", "throttle": "throttle"}[row.exposed],
        "reason": why,
        "frameworks": list(LIMIT),
        "family": "unknown",
        "evidence": [
            {
                "signal": {QUERIES: "queries", TOKENS: "tokens"}.get(why, "exposure"),
                "statistic": share,
                "p_value": 1.0,
                "text": text,
            }
        ],
    }
    if row.exposed == "none":
        body |= {"resolved": True, "was": "watch"}
    packed = _packed(body, row.last_ms, functools.partial(sealed, secrets=secrets, tenant=key.tenant))
    return dataclasses.replace(row, budget=known), packed


def _budget_finding(key: ClientKey, before: StoredDecision | None) -> BudgetFinding | None:
    """The last finding about the client's budget. Of an open one, earlier versions stored neither id nor count."""
    if before is None or before.budget is not None or before.exposed == "none":
        return before.budget if before is not None else None
    alert_id = digest_of(key.tenant, "exposure", key.model, key.client, str(before.decision.episode))
    return BudgetFinding(alert_id, -1, UNCOUNTED, before.exposed)


def exposure_text(exposure: Exposure | None) -> str:
    """Exposure with its interval, in words: ``62 % (41 to 80 %, rough)``."""
    if exposure is None:
        return "not known"
    rough = ", rough" if exposure.rough else ""
    return f"{exposure.fidelity:.0%} ({exposure.low:.0%} to {exposure.high:.0%}{rough})"


def judged(
    body: Mapping[str, Any], update: int, verdict: str, actor: str, note: str, time_ms: int
) -> dict[str, Any] | None:
    """Return the finding with an analyst's verdict, as its update number `update`; None when it carries this verdict already."""
    given = {"verdict": verdict, "by": actor, "note": note}
    if body.get("verdict") == given:
        return None
    return {**body, "verdict": given, "time": rfc3339(time_ms), "update": update}


def _raised(key: ClientKey, row: StoredDecision, time_ms: int, queries: int, update: int) -> dict[str, Any]:
    """The finding as it is told while the episode lasts."""
    named: dict[str, Any] = {"client_id": row.client_id}
    if is_campaign(key):
        named = {"members": list(row.members[:MEMBERS_TOLD])}
        named |= {"links": [tie._asdict() for tie in row.ties]} if row.ties else {}
    evidence = row.assessment.evidence
    verdict = {"verdict": row.alert["verdict"]} if row.alert and "verdict" in row.alert else {}
    exposed: dict[str, Any] = {} if row.exposed == "none" else {"exposure_budget": row.exposed}
    if row.observations:
        exposed["observations"] = msgspec.to_builtins(list(row.observations))
    return (
        {
            "alert_id": finding_id(key, row.decision.episode),
            "time": rfc3339(time_ms),
            "kind": kind_of(key),
            **named,
            "campaign_id": row.campaign_id,
            "model_id": key.model,
            "state": row.decision.state,
            "suspicion": row.assessment.suspicion,
            "queries_seen": queries,
            "extraction": msgspec.to_builtins(row.exposure),
            "family": row.assessment.family,
            "evidence": msgspec.to_builtins(
                [e for e in evidence if e.p_value <= TELLING][:EVIDENCE_TOLD] or evidence[:1]
            ),
            "witnesses": list(row.witnesses),
            "update": update,
            "calibrated": row.assessment.calibrated,
            "reason": row.decision.reason,
            "enforced": row.decision.enforced,
            "tenant": key.tenant,
            "frameworks": frameworks_of(kind_of(key), row.decision.reason),
        }
        | verdict
        | exposed
    )


def _closed(row: StoredDecision, body: dict[str, Any], update: int) -> dict[str, Any]:
    """The finding as it is told last: the episode is over."""
    return body | {
        "time": rfc3339(row.last_ms),
        "state": row.decision.state,
        "was": body["state"],
        "resolved": True,
        "suspicion": row.assessment.suspicion,
        "queries_seen": row.assessment.queries,
        "evidence": msgspec.to_builtins(row.assessment.evidence[:1]),
        "update": update,
        "reason": row.decision.reason,
        "enforced": row.decision.enforced,
    }


def packed_alert(body: Mapping[str, Any], time_ms: int, secrets: Secrets) -> OutboxAlert:
    """Return the alert as it is stored, ids sealed."""
    return _packed(body, time_ms, functools.partial(sealed, secrets=secrets, tenant=body["tenant"]))


def _packed(body: Mapping[str, Any], time_ms: int, seal: Callable[[str], str]) -> OutboxAlert:
    uid = f"{body['alert_id']}/{body['update']}"
    return OutboxAlert(uid, time_ms, msgspec.json.encode(with_ids(body, seal)), body["tenant"])


def subject_key(body: Mapping[str, Any], secrets: Secrets) -> ClientKey:
    """Return whose row the finding belongs to: a client's or a campaign's. body: as `stored_alert` reads it."""
    tenant, model = body["tenant"], body["model_id"]
    if body["kind"] == "campaign":
        return campaign_key(tenant, model, body["campaign_id"])
    return ClientKey(tenant, model, secrets.client_hash(tenant, body["client_id"]))


def stored_alert(alert: OutboxAlert, secrets: Secrets) -> dict[str, Any]:
    """Read a stored alert as its receivers see it. Raises CorruptState."""
    try:
        body: dict[str, Any] = msgspec.json.decode(alert.body)
        return with_ids(body, lambda text: unsealed(text, secrets, body["tenant"]))
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"alert {alert.uid}: {error}") from error
