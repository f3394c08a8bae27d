"""What each page shows, from read models to plain values: no HTML, no HTTP.

Rules:

* A client is named in addresses by its keyed hash and model, never by its id: addresses end up in logs and histories.
* Everything is bounded: a page of the queue, linked accounts, alerts; what is left out is counted.
* Nothing is decided here, and nothing is hidden: a missing baseline or estimator is said, not guessed around.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from consumers.errors import WrongUse
from consumers.http.dashboard import page_charts
from consumers.legible import legible
from consumers.readers import charts
from consumers.readers.charts import Trace
from consumers.readers.explanation import (
    MODE_WORDS,
    events,
    rarity,
    refusals,
    sentence,
    standings,
    what_would_change,
)
from consumers.readers.models import Campaign, Client, ClientDetail, Model
from consumers.readers.queries import Reader
from consumers.times import day_and_minute, milliseconds, short
from detector.baseline import Baseline
from detector.policy import BLOCK_FACTOR, FLAGGED, REASONS, WATCH_FACTOR

PAGE_ROWS = 50
MOST_SCANNED = 50_000
"""Rows that a search looks at."""
MOST_LINKED = 25
MOST_ALERTS = 200
MOST_SPOTS = 300
BIG, SMALL = 760, 340
STATE_CHOICES = (
    ("suspects", "suspects"), ("flagged", "throttle and block"), ("block", "block"), ("throttle", "throttle"), ("watch", "watch"),
    ("clear", "clear"), ("all", "everyone"),
)  # fmt: skip
_STATES: Mapping[str, tuple[str, ...]] = {
    "suspects": ("watch", "throttle", "block"),
    "flagged": FLAGGED,
    "all": ("clear", "watch", "throttle", "block"),
}


@dataclass(frozen=True, slots=True)
class Filters:
    """What the queue shows: words in the client id, a state choice, a model ("" for all), a page from 0."""

    q: str = ""
    state: str = "suspects"
    model: str = ""
    page: int = 0

    @property
    def states(self) -> tuple[str, ...]:
        return _STATES.get(self.state, (self.state,))

    def address(self, page: int | None = None) -> str:
        """The query part that shows this."""
        kept = {"q": self.q, "state": "" if self.state == "suspects" else self.state, "model": self.model}
        kept["page"] = str(self.page if page is None else page) if (self.page if page is None else page) else ""
        text = urlencode({name: value for name, value in kept.items() if value}, errors="surrogatepass")
        return f"?{text}" if text else ""


@dataclass(frozen=True, slots=True)
class Views:
    """Pages as values. at: where the dashboard is mounted; budget: as detect has it."""

    reader: Reader
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    budget: float = 0.01
    at: str = ""

    # ------------------------------------------------------------------------------------------------- addresses

    def client_address(self, key: str, model: str) -> str:
        return f"{self.at}/client?{urlencode({'client': key, 'model': model}, errors='surrogatepass')}"

    def model_address(self, model: str) -> str:
        return f"{self.at}/model?{urlencode({'id': model}, errors='surrogatepass')}"

    def campaign_address(self, campaign: str) -> str:
        return f"{self.at}/campaign?{urlencode({'id': campaign}, errors='surrogatepass')}"

    # ----------------------------------------------------------------------------------------------------- queue

    def queue(self, filters: Filters) -> dict[str, Any]:
        models = self.reader.models()
        counts = _counts(models)
        shown = [m for m in models if filters.model in ("", m.model_id)]
        start = filters.page * PAGE_ROWS
        if filters.q:
            found = list(itertools.islice(self._search(shown, filters), MOST_SCANNED))
            rows, matching = found[start : start + PAGE_ROWS], len(found)
        else:
            merged = heapq.merge(*(self._ranked(m.model_id, filters.states) for m in shown), key=_order)
            rows = list(itertools.islice(merged, start, start + PAGE_ROWS))
            matching = sum(_counts(shown)[state] for state in filters.states if state in counts)
        total = sum(counts.values())
        end = start + len(rows)
        return {
            "rows": [self._suspect(c) for c in rows],
            "blank": _BLANK | {"gauge": page_charts.gauge(1.0, "clear")},
            "counts": counts,
            "headline": _headline(counts, total),
            "models": [m.model_id for m in models],
            "filters": filters,
            "query": filters.address(),
            "state_choices": STATE_CHOICES,
            "matching": max(matching, end),
            "total": total,
            "previous": f"{self.at}/{filters.address(filters.page - 1)}" if filters.page else "",
            "next": f"{self.at}/{filters.address(filters.page + 1)}" if matching > end and rows else "",
            "mode": self.reader.modes.mode,
            "mode_words": MODE_WORDS[self.reader.modes.mode],
        }

    def queue_live(self, filters: Filters) -> dict[str, Any]:
        """The same rows as text for the script."""
        page = self.queue(filters)
        rows = [
            {
                "key": row["key"],
                "href": row["href"],
                "client": legible(row["client_id"]),
                "state": row["state"],
                "rarity": row["rarity"],
                "steps": row["steps"],
                "copied": row["copied"],
                "queries": f"{row['queries']:,}",
                "model": legible(row["model"]),
                "why": legible(row["why"]),
                "last": short(row["last_ms"]),
            }
            for row in page["rows"]
        ]
        return {"rows": rows, "facts": {state: f"{n:,}" for state, n in page["counts"].items()}}

    def _suspect(self, c: Client) -> dict[str, Any]:
        top = c.evidence[0].text.partition(";")[0] if c.evidence else ""
        return {
            "key": f"{c.client_key}|{c.model_id}",
            "href": self.client_address(c.client_key, c.model_id),
            "client_id": c.client_id,
            "state": c.state,
            "rarity": rarity(c.p_value),
            "steps": page_charts.steps(c.p_value),
            "gauge": page_charts.gauge(c.p_value, c.state),
            "copied": _copied(c),
            "queries": c.queries,
            "model": c.model_id,
            "why": top if c.state != "clear" and top else REASONS.get(c.reason, c.reason),
            "last_ms": c.last_seen_ms,
        }

    def _ranked(self, model: str, states: Sequence[str]) -> Iterator[Client]:
        """Clients of a model in these states, most suspicious first, read page by page."""
        cursor = None
        only = states[0] if len(states) == 1 else None
        while True:
            page = self.reader.clients(model, state=only, cursor=cursor, limit=200)
            yield from (c for c in page.items if c.state in states)
            if page.next is None or (page.items and page.items[-1].suspicion <= 0 and "clear" not in states):
                return
            cursor = page.next

    def _search(self, models: Sequence[Model], filters: Filters) -> Iterator[Client]:
        words = filters.q.casefold()
        for c in heapq.merge(*(self._ranked(m.model_id, filters.states) for m in models), key=_order):
            if words in c.client_id.casefold() or words in legible(c.client_id).casefold() or words == c.client_key:
                yield c

    # ---------------------------------------------------------------------------------------------------- client

    @staticmethod
    def mark(one: ClientDetail) -> str:
        """Changes when there is something new to read about a client."""
        c = one.client
        return f"{c.queries}.{c.state}.{c.last_seen_ms}.{one.in_force}.{len(one.notes)}"

    def client(self, model: str, key: str) -> dict[str, Any] | None:
        one = self.reader.client(model, key)
        if one is None:
            return None
        c, baseline = one.client, self.baselines.get(model)
        alerts = self.reader.alerts(model=model, client=c.client_key, updates=True, limit=50).items
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
            "model_href": self.model_address(model),
            "mark": self.mark(one),
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
                charts.suspicion_figure([trace], self.budget, w, h) for w, h in ((BIG, 270), (SMALL, 240))
            ],
            "signals": signals,
            "honest": baseline.nulls.clients if baseline else 0,
            "signals_figure": [page_charts.signals_figure(bars, w) for w in (BIG, SMALL)],
            "evidence": c.evidence[:8],
            "exposure_figure": self._exposure(one, alerts),
            "revision": one.revision,
            **self._coverage(one.coverage, baseline, trace.look),
            "linked": self._linked(one.links, c),
            "campaign": {"id": c.campaign_id, "href": self.campaign_address(c.campaign_id)} if c.campaign_id else None,
            "verdict": _verdict(one.verdict),
            "alert_id": one.alert_id,
            "notes": [{"at_ms": n.at_s * 1000, "by": n.actor, "text": n.text} for n in reversed(one.notes)],
            "misfit": round(one.misfit),
            "refusals": refusals(one),
            "timeline": list(reversed(events(one, alerts))),
            "change": what_would_change(one, self.budget, baseline),
        }

    def _exposure(self, one: ClientDetail, alerts: Sequence[Any]) -> list[str] | None:
        """Over queries: as it was when the client was looked at, and as alerts had it."""
        c = one.client
        if c.extraction is None:
            return None
        seen: dict[int, Any] = {a.queries_seen: a.extraction for a in alerts if a.extraction is not None}
        seen |= {e.queries: e for e in one.exposures} | {c.queries: c.extraction}
        points = [(q, e.fidelity, e.low, e.high) for q, e in sorted(seen.items())]
        return [page_charts.exposure_figure(points, w, h) for w, h in ((BIG // 2, 240), (SMALL, 230))]

    def _coverage(self, counts: Sequence[int], baseline: Baseline | None, look: str) -> dict[str, Any]:
        if baseline is None or len(counts) != len(baseline.map.cell_share):
            return {"coverage": None, "cells_used": 0, "cells_all": 0}
        asked = max(1, sum(counts))
        cells = [(float(x), float(y)) for x, y in baseline.map.cell_at]
        shares = [n / asked for n in counts]
        usual = baseline.map.cell_share.tolist()
        return {
            "coverage": charts.coverage_figure(cells, usual, shares, look, 320),
            "cells_used": sum(n > 0 for n in counts),
            "cells_all": sum(s > 0 or n > 0 for s, n in zip(usual, counts, strict=True)),
        }

    def _linked(self, links: Sequence[str], c: Client) -> list[dict[str, Any]]:
        """Accounts of the same model that share a link with this one, or are of its campaign; most shared first."""
        found = {other.client_key: (other, len(shared)) for other, shared in self.reader.linked(c.model_id, links)}
        group = self.reader.campaign(c.campaign_id) if c.campaign_id else None
        for member in group.members if group else ():
            found.setdefault(member.client_key, (member, 0))
        found.pop(c.client_key, None)
        nearest = sorted(found.values(), key=lambda f: (-f[1], f[0].p_value, f[0].client_key))[:MOST_LINKED]
        return [
            {
                "client_id": other.client_id,
                "href": self.client_address(other.client_key, c.model_id),
                "state": other.state,
                "rarity": rarity(other.p_value),
                "shared": shared,
                "queries": other.queries,
            }
            for other, shared in nearest
        ]

    # ------------------------------------------------------------------------------------------------- campaigns

    def campaigns(self) -> dict[str, Any]:
        return {"campaigns": [self._campaign(g) for g in self.reader.campaigns()[:MOST_ALERTS]]}

    def campaign(self, campaign_id: str) -> dict[str, Any] | None:
        g = self.reader.campaign(campaign_id)
        if g is None:
            return None
        place = {member.client_key: i for i, member in enumerate(g.members)}
        shared: dict[str, list[int]] = {}
        for client, links in self.reader.linked(g.model_id, g.links):
            for link in sorted(links) if client.client_key in place else ():
                shared.setdefault(link, []).append(place[client.client_key])
        ties = {name[:12]: members for name, members in shared.items() if len(members) > 1}
        nodes = [
            page_charts.Node(legible(m.client_id), m.state, self.client_address(m.client_key, g.model_id))
            for m in g.members
        ]
        alert = next(
            (
                a
                for a in self.reader.alerts(limit=1000).items
                if a.campaign_id == g.campaign_id and a.kind == "campaign"
            ),
            None,
        )
        return {
            "g": self._campaign(g)
            | {
                "figure": [
                    page_charts.campaign_figure(nodes, ties, w, h) for w, h in ((BIG + 320, 440), (SMALL, SMALL))
                ],
                "shared": len(ties),
                "evidence": alert.evidence if alert else (),
                "alert_id": alert.alert_id if alert else "",
                "verdict": _verdict(alert.verdict) if alert else None,
                "extraction": alert.extraction if alert else max(
                    (m.extraction for m in g.members if m.extraction), key=lambda e: e.fidelity, default=None
                ),
            }
        }  # fmt: skip

    def _campaign(self, g: Campaign) -> dict[str, Any]:
        members = [self._suspect(m) | {"state": m.state, "queries": m.queries} for m in g.members]
        worst = g.members[0]
        return {
            "id": g.campaign_id,
            "href": self.campaign_address(g.campaign_id),
            "state": g.state,
            "members": members,
            "rarity": rarity(1 - g.suspicion),
            "queries": g.queries,
            "model": g.model_id,
            "why": worst.evidence[0].text if worst.evidence else REASONS.get(worst.reason, worst.reason),
            "sentence": f"{len(g.members)} linked accounts that together sent {g.queries:,} queries, the last on "
            f"{day_and_minute(g.last_seen_ms)}. The most suspicious account is in state {worst.state}.",
        }  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- models

    def models(self) -> dict[str, Any]:
        return {
            "models": [
                {
                    "id": m.model_id,
                    "href": self.model_address(m.model_id),
                    "calibration": self._calibration(m),
                    "total": m.clients,
                    "counts": _counts([m]),
                    "mode": self.reader.modes.of(m.model_id),
                }
                for m in self.reader.models()
            ]
        }

    def model(self, model: str) -> dict[str, Any] | None:
        m, baseline = self.reader.model(model), self.baselines.get(model)
        if m is None:
            return None
        counts = _counts([m])
        limits = [
            ("watch", self.budget * WATCH_FACTOR),
            ("throttle", self.budget),
            ("block", self.budget * BLOCK_FACTOR),
        ]
        reach = {
            "watch": counts["watch"] + counts["throttle"] + counts["block"],
            "throttle": counts["throttle"] + counts["block"],
            "block": counts["block"],
        }
        page: dict[str, Any] = {
            "id": model,
            "known": baseline is not None,
            "calibrated": bool(m.calibrated),
            "calibration": self._calibration(m),
            "counts": counts,
            "budget": self.budget,
            "mode": self.reader.modes.of(model),
            "mode_words": MODE_WORDS[self.reader.modes.of(model)],
            "figure": None,
            "facts": [],
            "limits": [],
            "expected": [{"state": s, "p": p, "expected": p * m.clients, "seen": reach[s]} for s, p in limits]
            if m.clients
            else [],
            "queue_href": f"{self.at}/{Filters(model=model).address()}",
        }
        if baseline is not None:
            page |= {
                "figure": self._honest(model, baseline, limits),
                "facts": _facts(baseline),
                "limits": self._limits(baseline),
            }
        return {"m": page}

    def _honest(self, model: str, baseline: Baseline, limits: Sequence[tuple[str, float]]) -> list[str]:
        tail = baseline.ordered
        spots = [
            (tail.level(c.p_value), c.state)
            for c in itertools.islice(self._ranked(model, _STATES["all"]), MOST_SPOTS)
            if c.p_value < 1
        ]
        levels = [(state, tail.level(p)) for state, p in limits if p < 1]
        maxima = tail.maxima.tolist()
        return [
            page_charts.honest_figure(maxima, tail.p, levels, spots, w, h) for w, h in ((BIG + 340, 380), (SMALL, 320))
        ]

    def _calibration(self, m: Model) -> str:
        baseline = self.baselines.get(m.model_id)
        if baseline is None:
            return "the baseline is not loaded here"
        return "; ".join(baseline.notes) or "calibrated"

    def _limits(self, baseline: Baseline) -> list[str]:
        nulls, said = baseline.nulls, []
        if nulls.calibrated and not nulls.supports(self.budget * BLOCK_FACTOR):
            need = round(1 / (self.budget * BLOCK_FACTOR))
            said.append(
                f"{nulls.clients:,} honest clients are too few to block at this budget; {need:,} are needed. Detection blocks no client."
            )
        if not nulls.calibrated:
            said.append(
                "Calibrated on simulated clients only: no client is blocked, and the rates are a guess. Fit it again with --traffic."
            )
        return said

    # -------------------------------------------------------------------------------- decisions, alerts and health

    def decisions(self) -> dict[str, Any]:
        models = self.reader.models()
        merged = heapq.merge(*(self._ranked(m.model_id, FLAGGED) for m in models), key=_order)
        manual = self.reader.manual_decisions()
        detected = [
            self._suspect(c)
            | {"gateways": manual.at_gateways(c).text, "since_ms": c.since_s * 1000, "until_ms": c.until_s * 1000}
            for c in itertools.islice(merged, MOST_ALERTS)
        ]
        flagged = sum(_counts(models)[s] for s in FLAGGED)
        revisions = self.reader.revisions()
        return {
            "manual": [
                {
                    "key": d.model_id,
                    "client": d.client_key,
                    "client_id": d.client_id or d.client_key,
                    "model": d.model_id,
                    "href": self.client_address(d.client_key, d.model_id),
                    "state": d.state,
                    "reason": d.reason + (" (dry run)" if d.simulated else ""),
                    "seen": revisions[d.client_key],
                    "by": d.actor,
                    "until_ms": d.until_s * 1000,
                }
                for d in manual.decisions
            ],
            "allowed": [
                {
                    "key": a.model_id,
                    "client": a.client_key,
                    "client_id": a.client_id or a.client_key,
                    "model": a.model_id,
                    "href": self.client_address(a.client_key, a.model_id),
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

    def alerts(self, cursor: str = "") -> dict[str, Any]:
        """A page of findings; a cursor that is none begins anew."""
        try:
            page = self.reader.alerts(limit=MOST_ALERTS, cursor=cursor or None)
        except WrongUse:
            page, cursor = self.reader.alerts(limit=MOST_ALERTS), ""
        return {
            "alerts": [
                {
                    "at_ms": milliseconds(a.time),
                    "who": a.client_id or f"campaign of {len(a.members)} accounts",
                    "href": self.client_address(a.client_key, a.model_id) if a.client_key
                    else self.campaign_address(a.campaign_id) if a.campaign_id else "",
                    "model": a.model_id,
                    "state": "clear" if a.resolved else a.state,
                    "family": a.family,
                    "queries": a.queries_seen,
                    "why": a.evidence[0].text if a.evidence else REASONS.get(a.reason, a.reason),
                    "verdict": (_verdict(a.verdict) or {}).get("words", ""),
                }
                for a in page.items
            ],
            "older": f"{self.at}/alerts?{urlencode({'cursor': page.next})}" if page.next else "",
            "newest": f"{self.at}/alerts" if cursor else "",
        }  # fmt: skip


def _order(c: Client) -> tuple[float, int, str]:
    return c.p_value, -c.queries, c.client_key


def _counts(models: Sequence[Model]) -> dict[str, int]:
    flagged = {state: sum(getattr(m, state) for m in models) for state in ("watch", "throttle", "block")}
    return {"clear": sum(m.clients for m in models) - sum(flagged.values()), **flagged}


def _copied(c: Client) -> str:
    e = c.extraction
    return "–" if e is None else f"{100 * e.fidelity:.0f} % ({100 * e.low:.0f}–{100 * e.high:.0f})"


def _headline(counts: Mapping[str, int], total: int) -> str:
    flagged, watched = counts["block"] + counts["throttle"], counts["watch"]
    if not total:
        return "Clients whose queries look like model extraction, most suspicious first."
    if not flagged and not watched:
        return f"All {total:,} clients behave like honest clients."
    parts = (
        [f"{flagged:,} of {total:,} clients {'send' if flagged != 1 else 'sends'} queries like no honest client"]
        if flagged
        else []
    )
    parts += [f"{watched:,} {'are' if watched != 1 else 'is'} unusual and watched"] if watched else []
    return "; ".join(parts) + ". Most suspicious first."


def _verdict(verdict: Any) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {"words": verdict.verdict.replace("_", " "), "by": verdict.actor}


def _facts(baseline: Baseline) -> list[tuple[str, str]]:
    nulls = baseline.nulls
    return [
        ("honest clients", f"{nulls.clients:,}"),
        ("longest honest client", f"{nulls.days:.1f} days, {nulls.distinct:,.0f} distinct queries"),
        (
            "reference",
            f"{baseline.facts.get('reference_rows', 0):,.0f} rows, {len(baseline.map.schema.columns)} columns",
        ),
        ("feature map", baseline.map_id),
        ("nulls", str(baseline.nulls_version)),
    ]


_BLANK: dict[str, Any] = {
    "key": "", "client_id": "", "state": "clear", "rarity": "", "copied": "", "queries": 0, "model": "", "why": "", "last_ms": 0,
}  # fmt: skip
