"""The page of one client: where it stands and why, its figures, its links, and what people decided about it.

Rules: as in this folder's `__init__`. Whoever opens the page of a client leaves a row in the audit log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consumers.http.dashboard import page_charts
from consumers.http.dashboard.site import BIG, SMALL, Site, verdict_words
from consumers.legible import legible
from consumers.readers import charts
from consumers.readers.charts import Trace
from consumers.readers.explanation import (
    events,
    rarity,
    refusals,
    reported,
    sentence,
    standings,
    what_would_change,
)
from consumers.readers.models import Client, ClientDetail
from detector.baseline import Baseline
from detector.policy import FLAGGED

MOST_LINKED = 25


def mark(one: ClientDetail) -> str:
    """Changes when there is something new to read about a client."""
    c = one.client
    return f"{c.queries}.{c.state}.{c.last_seen_ms}.{one.in_force}.{len(one.notes)}"


def client(site: Site, model: str, key: str) -> dict[str, Any] | None:
    one = site.reader.client(model, key)
    if one is None:
        return None
    c, baseline = one.client, site.baselines.get(model)
    alerts = site.reader.alerts(model=model, client=c.client_key, updates=True, limit=50).items
    signals = standings(one, baseline)
    bars = [page_charts.SignalBar(s.signal, s.value, s.usual, s.high, s.most, s.p_value) for s in signals[:12]]
    trace = Trace(
        name=legible(c.client_id),
        note="",
        look="caught" if c.state in FLAGGED else "quiet",
        points=[(t.queries, t.suspicion, t.time_ms) for t in one.trail],
    )
    return {
        "client_id": c.client_id,
        "key": c.client_key,
        "model": model,
        "model_href": site.model_address(model),
        "mark": mark(one),
        "state": c.state,
        "allowed": one.allowed,
        "decided": one.decision.state if one.decision and not one.decision.simulated else "",
        "sentence": sentence(one),
        "rarity": rarity(c.p_value),
        "calibrated": c.calibrated,
        "extraction": c.extraction,
        "queries": c.queries,
        "distinct": round(c.distinct),
        "gateways": one.gateways.text,
        "last_ms": c.last_seen_ms,
        "suspicion_figure": [
            charts.suspicion_figure([trace], site.budget, w, h) for w, h in ((BIG, 270), (SMALL, 240))
        ],
        "signals": signals,
        "honest": baseline.calibration.clients if baseline else 0,
        "signals_figure": [page_charts.signals_figure(bars, w) for w in (BIG, SMALL)],
        "evidence": c.evidence[:8],
        "exposure_figure": _exposure(site, one, alerts),
        "revision": one.revision,
        **_coverage(one.coverage, baseline, trace.look),
        "linked": _linked(site, one.links, c),
        "reported": reported(one),
        "observations": [o.text for o in one.observations],
        "campaign": {"id": c.campaign_id, "href": site.campaign_address(c.campaign_id)} if c.campaign_id else None,
        "verdict": verdict_words(one.verdict),
        "alert_id": one.alert_id,
        "notes": [{"at_ms": n.at_s * 1000, "by": n.actor, "text": n.text} for n in reversed(one.notes)],
        "misfit": round(one.misfit),
        "refusals": refusals(one),
        "timeline": list(reversed(events(one, alerts))),
        "change": what_would_change(one, site.budget, baseline),
    }


def _exposure(site: Site, one: ClientDetail, alerts: Sequence[Any]) -> list[str] | None:
    """Over queries: as it was when the client was looked at, and as alerts had it."""
    c = one.client
    if c.extraction is None:
        return None
    seen: dict[int, Any] = {a.queries_seen: a.extraction for a in alerts if a.extraction is not None}
    seen |= {e.queries: e for e in one.exposures} | {c.queries: c.extraction}
    points = [(q, e.fidelity, e.low, e.high) for q, e in sorted(seen.items())]
    return [page_charts.exposure_figure(points, w, h) for w, h in ((BIG // 2, 240), (SMALL, 230))]


def _coverage(counts: Sequence[int], baseline: Baseline | None, look: str) -> dict[str, Any]:
    if baseline is None or len(counts) != len(baseline.map.region_share):
        return {"coverage": None, "cells_used": 0, "cells_all": 0}
    asked = max(1, sum(counts))
    cells = [(float(x), float(y)) for x, y in baseline.map.region_at]
    shares = [n / asked for n in counts]
    usual = baseline.map.region_share.tolist()
    return {
        "coverage": charts.coverage_figure(cells, usual, shares, look, 320),
        "cells_used": sum(n > 0 for n in counts),
        "cells_all": sum(s > 0 or n > 0 for s, n in zip(usual, counts, strict=True)),
    }


def _linked(site: Site, links: Sequence[str], c: Client) -> list[dict[str, Any]]:
    """Accounts of the same model that share a link with this one, or are of its campaign; most shared first."""
    found = {other.client_key: (other, len(shared)) for other, shared in site.reader.linked(c.model_id, links)}
    group = site.reader.campaign(c.campaign_id) if c.campaign_id else None
    for member in group.members if group else ():
        found.setdefault(member.client_key, (member, 0))
    found.pop(c.client_key, None)
    nearest = sorted(found.values(), key=lambda f: (-f[1], f[0].p_value, f[0].client_key))[:MOST_LINKED]
    return [
        {
            "client_id": other.client_id,
            "href": site.client_address(other.client_key, c.model_id),
            "state": other.state,
            "rarity": rarity(other.p_value),
            "shared": shared,
            "queries": other.queries,
        }
        for other, shared in nearest
    ]
