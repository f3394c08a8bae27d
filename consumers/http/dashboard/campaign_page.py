"""The pages of campaigns: all of them in a list, and one with its accounts and the values that they share.

Rules: as in this folder's `__init__`. What accounts share is known, and shown, as keyed hashes only.
"""

from __future__ import annotations

from typing import Any

from consumers.http.dashboard import page_charts
from consumers.http.dashboard.site import BIG, MOST_ROWS, SMALL, Site, client_row, verdict_words
from consumers.legible import legible
from consumers.readers.explanation import rarity
from consumers.readers.models import Campaign, CampaignDecision
from consumers.times import day_and_minute
from detector.policy import REASONS

TIED_BY = {"org": "organisation", "session": "session", "payment": "means of payment", "device": "device",
           "registration": "registration", "ip": "address", "asn_ja4": "network and fingerprint",
           "agent": "client software", "plan": "plan", "start": "first query on the same day",
           "content": "what they ask", "odd_patch": "odd queries close together", "template": "one prompt template",
           "handover": "one starts when another stops", "peer": "an indicator of a peer",
           "content_peer": "queries that a peer reported"}  # fmt: skip
"""Kinds of links in words."""


def campaigns(site: Site) -> dict[str, Any]:
    return {"campaigns": [_campaign(site, g) for g in site.reader.campaigns()[:MOST_ROWS]]}


def campaign(site: Site, campaign_id: str) -> dict[str, Any] | None:
    g = site.reader.campaign(campaign_id)
    if g is None:
        return None
    place = {member.client_key: i for i, member in enumerate(g.members)}
    shared: dict[str, list[int]] = {}
    for client, links in site.reader.linked(g.model_id, g.links):
        for link in sorted(links) if client.client_key in place else ():
            shared.setdefault(link, []).append(place[client.client_key])
    ties = {name[:12]: members for name, members in shared.items() if len(members) > 1}
    nodes = [
        page_charts.Node(legible(m.client_id), m.state, site.client_address(m.client_key, g.model_id))
        for m in g.members
    ]
    alert = next(
        (a for a in site.reader.alerts(limit=1000).items if a.campaign_id == g.campaign_id and a.kind == "campaign"),
        None,
    )
    return {
        "g": _campaign(site, g)
        | {
            "figure": [
                page_charts.campaign_figure(nodes, ties, w, h) for w, h in ((BIG + 320, 440), (SMALL, SMALL))
            ],
            "shared": len(ties),
            "evidence": alert.evidence if alert else (),
            "alert_id": alert.alert_id if alert else "",
            "verdict": verdict_words(alert.verdict) if alert else None,
            "decisions": [_decision(d) for d in site.reader.campaign_decisions() if d.campaign_id == g.campaign_id],
            "revision": site.reader.campaign_revision(g),
            "extraction": alert.extraction if alert else max(
                (m.extraction for m in g.members if m.extraction), key=lambda e: e.fidelity, default=None
            ),
        }
    }  # fmt: skip


def _decision(d: CampaignDecision) -> dict[str, Any]:
    kind = "proposal, waits for a second person" if d.waits else "dry run" if d.simulated else "in force"
    return {
        "state": d.state,
        "kind": kind,
        "waits": d.waits,
        "accounts": d.accounts,
        "joined": len(d.joined),
        "by": d.actor,
        "second": d.second,
        "reason": d.reason,
        "until_ms": d.until_s * 1000,
    }


def _tied(g: Campaign) -> str:
    """What ties the accounts, as the end of a sentence."""
    ties = ", ".join(f"{TIED_BY.get(tie.kind, tie.kind)} ({tie.members:,} accounts)" for tie in g.ties)
    return f" What connects them: {ties}." if ties else ""


def _campaign(site: Site, g: Campaign) -> dict[str, Any]:
    members = [client_row(site, m) for m in g.members]
    worst = g.members[0]
    return {
        "id": g.campaign_id,
        "href": site.campaign_address(g.campaign_id),
        "state": g.state,
        "members": members,
        "rarity": rarity(1 - g.suspicion),
        "queries": g.queries,
        "model": g.model_id,
        "why": worst.evidence[0].text if worst.evidence else REASONS.get(worst.reason, worst.reason),
        "sentence": f"{len(g.members)} accounts that together sent {g.queries:,} queries, the last on "
        f"{day_and_minute(g.last_seen_ms)}. The most suspicious account is in state {worst.state}.{_tied(g)}",
    }  # fmt: skip
