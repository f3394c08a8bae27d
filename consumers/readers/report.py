"""The report of a replay: one HTML file that stands alone.

Rules:

* No script, style, font or picture from anywhere else; a content security policy in the page says so to the browser.
* Every word that came from a log (client ids, models, reasons) is made `legible` and escaped by the template; `charts` does so itself.
* Truth is shown only where the caller knew it (demo, benchmark), and then the honest clients that were flagged and the
  thieves that were missed stand as plainly as the successes.
* The file is written beside its name first, so that a reader never sees half of it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from consumers import atomic_file
from consumers.legible import legible
from consumers.readers import charts
from consumers.readers.charts import Point, Trace

FLAGGED = ("throttle", "block")
MOST_TABLE_ROWS = 200
MOST_MEMBERS = 50
"""Accounts of a campaign that are named."""
MAPS = 4
WIDE, NARROW = 1080, 340
STATES = ("clear", "watch", "throttle", "block")


@dataclass(frozen=True, slots=True)
class Evidence:
    """One signal of a client: statistic, lifetime p-value (None while uncalibrated), one sentence."""

    signal: str
    statistic: float
    p_value: float | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRow:
    """One client as the report shows it. No field has a default: a maker that forgets one fails at once.

    suspicion    1 − lifetime p-value, in [0, 1]
    state        clear | watch | throttle | block
    reason       why, in words; family: what kind of theft it resembles ("" when unknown)
    trajectory   (queries seen, suspicion, event time in ms) when it reached each height, in time order
    first_ms     its first query, 0 where that is not known: the first step of the trajectory then
    truth        what it really is, where that is known: a kind; `thief` says which side
    extraction   (fidelity, low, high) of a copy by now, None where the baseline has no estimator
    """

    client_id: str
    model_id: str
    queries: int
    distinct: int
    suspicion: float
    state: str
    reason: str
    family: str
    evidence: Sequence[Evidence]
    trajectory: Sequence[Point]
    truth: str | None
    thief: bool | None
    extraction: tuple[float, float, float] | None
    first_ms: int

    @property
    def flagged(self) -> bool:
        return self.state in FLAGGED

    @property
    def look(self) -> str:
        """caught: flagged and not known to be honest; false: flagged but honest; missed: a thief; quiet: the rest."""
        if self.flagged:
            return "false" if self.thief is False else "caught"
        return "missed" if self.thief else "quiet"


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignRow:
    """Accounts that act as one, as the report shows them: suspicion, state and exposure of all put together.

    thieves  how many of the members are thieves', None where nobody knows
    """

    campaign_id: str
    model_id: str
    members: Sequence[str]
    queries: int
    suspicion: float
    state: str
    reason: str
    family: str
    extraction: tuple[float, float, float] | None
    thieves: int | None


@dataclass(frozen=True, slots=True)
class AlertRow:
    """A state that rose: who, when (event time), to what, after how many queries."""

    client_id: str
    model_id: str
    time_ms: int
    state: str
    queries_seen: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage cells of one model.

    cells      c centres in the first two whitened components
    reference  c shares of the reference, summing to 1
    clients    client id → c shares of its queries
    """

    model_id: str
    cells: Sequence[tuple[float, float]]
    reference: Sequence[float]
    clients: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the page shows.

    models        (model id, one line about its baseline)
    clients       in any order
    campaigns     most suspicious first
    counters      what was read: name → count, shown as given
    dead_letters  reason → count
    budget        allowed share of honest clients flagged over their life
    calibrated    False: scores are not calibrated; `calibration` says in words what they rest on
    notes         sentences below the title (what this run was, what it can't show)
    """

    title: str
    models: Sequence[tuple[str, str]]
    clients: Sequence[ClientRow]
    campaigns: Sequence[CampaignRow]
    budget: float
    calibrated: bool
    calibration: str
    alerts: Sequence[AlertRow] = ()
    coverage: Sequence[Coverage] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the page. Raises Refused when the file can't be written."""
    page = render(report)
    with atomic_file.whole(path) as draft:
        draft.write_text(page, encoding="utf-8")


def render(report: Report) -> str:
    """The page as text."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(thousands=lambda n: f"{n:,}", p=_p_words, when=charts.when, share=_share_words)
    script = (folder / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        report=report, script=script, script_digest=digest, **_view(report)
    )


def _shown(value: Any) -> Any:
    """What an expression of the template becomes; markup is ours, a no-break space too."""
    return legible(value, keep="\N{NO-BREAK SPACE}") if type(value) is str else value


def _view(report: Report) -> dict[str, Any]:
    ranked = sorted(report.clients, key=lambda c: (-STATES.index(c.state), -c.suspicion, -c.queries, c.client_id))
    shown = ranked[:MOST_TABLE_ROWS]
    shown += [c for c in ranked[MOST_TABLE_ROWS:] if c.look in ("false", "missed")]
    marks: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for alert in sorted(report.alerts, key=lambda a: a.time_ms):
        marks.setdefault((alert.client_id, alert.model_id), []).append((alert.time_ms, alert.state))
    for client in ranked:
        marks[client.client_id, client.model_id] = _marks(
            client, marks.get((client.client_id, client.model_id), []), report
        )
    traces = [
        Trace(
            name=c.client_id,
            note=c.truth or "",
            look=c.look,
            points=c.trajectory,
            marks=marks.get((c.client_id, c.model_id), ()),
            first_ms=c.first_ms or (c.trajectory[0][2] if c.trajectory else 0),
            last_ms=c.trajectory[-1][2] if c.trajectory else 0,
        )
        for c in ranked
    ]
    flagged = [c for c in ranked if c.flagged]
    known = any(c.thief is not None for c in ranked)
    thieves = [c for c in ranked if c.thief]
    honest = [c for c in ranked if c.thief is False]
    return {
        "ranked": shown,
        "most_members": MOST_MEMBERS,
        "left_out": len(ranked) - len(shown),
        "flagged": flagged,
        "truth_known": known,
        "thieves": thieves,
        "caught": [c for c in thieves if c.flagged],
        "honest": honest,
        "false_alarms": [c for c in honest if c.flagged],
        "queries": sum(c.queries for c in ranked),
        "suspicion": [charts.suspicion_figure(traces, report.budget, w, h) for w, h in ((WIDE, 430), (NARROW, 300))],
        "timeline": [charts.timeline_figure(traces, width) for width in (WIDE, NARROW)],
        "timeline_rows": charts.MOST_ROWS,
        "maps": _maps(report, ranked),
        "quiet_lines": (sum(c.look == "quiet" for c in ranked), charts.MOST_QUIET_LINES),
    }


def _marks(client: ClientRow, alerts: Sequence[tuple[int, str]], report: Report) -> list[tuple[int, str]]:
    """When each state up to the client's was reached: by its alerts, else where its trajectory passed the threshold."""
    found = {state: time_ms for time_ms, state in reversed(alerts)}
    limits = {"watch": 5 * report.budget, "throttle": report.budget, "block": report.budget / 10}
    for state in STATES[1 : STATES.index(client.state) + 1]:
        passed = next((p[2] for p in client.trajectory if 1 - p[1] <= limits[state]), None)
        if passed is not None:
            found.setdefault(state, passed)
    return sorted((time_ms, state) for state, time_ms in found.items())


def _maps(report: Report, ranked: Sequence[ClientRow]) -> list[dict[str, Any]]:
    """Coverage of the top suspects of each model, and of one quiet client beside them."""
    panels = []
    for coverage in report.coverage:
        of_model = [c for c in ranked if c.model_id == coverage.model_id and c.client_id in coverage.clients]
        quiet = sorted((c for c in of_model if c.look == "quiet"), key=lambda c: -c.distinct)
        for client in [c for c in of_model if c.flagged][: MAPS - 1] + quiet[:1]:
            shares = coverage.clients[client.client_id]
            svg = charts.coverage_figure(coverage.cells, coverage.reference, shares, client.look, 240)
            used = sum(share > 0 for share in shares)
            panels.append({"client": client, "svg": svg, "used": used, "cells": len(shares)})
    return panels


def _p_words(suspicion: float) -> str:
    """How rare: the p-value behind a suspicion, in two figures."""
    p = 1.0 - suspicion
    return (
        "< 10⁻⁶" if p < charts.LEAST_P else f"{p:.6f}".rstrip("0")[: 8 if p < 0.001 else 6] if p < 0.1 else f"{p:.2f}"
    )


def _share_words(share: float) -> str:
    return f"{100 * share:.2g}\N{NO-BREAK SPACE}%" if share < 0.1 else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
