"""The report of a replay: one HTML file that stands alone.

Rules:
* No script, style, font or picture comes from elsewhere. A content security policy in the page enforces this in the browser.
* Text from a log (client ids, models, reasons) is made `legible` and escaped by the template; `charts` does so itself.
* The truth is shown only if the caller knew it (demo, benchmark). Then flagged honest clients and missed attackers are shown as plainly as
  the successes.
* The file is written as a draft first, so that a reader never sees half of it.
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
from consumers.readers.explanation import why
from consumers.readers.models import Alert, Client
from consumers.times import day_and_minute, milliseconds
from detector.policy import FLAGGED, STATES, WATCH_FACTOR, State, severity

MOST_TABLE_ROWS = 200
MOST_MEMBERS = 50
"""Accounts of a campaign that are named."""
MAPS = 4
WIDE, NARROW = 1080, 340


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedClient:
    """A client of a report: its public shape, and what only the report adds. No field has a default: none can be forgotten.

    client       as API and dashboard show it
    trajectory   (queries seen, suspicion, event time in ms) when it reached each height, in time order
    first_ms     its first query, 0 where that is not known: the first step of the trajectory then
    truth        what it really is, where that is known: a kind; `thief` says which side
    """

    client: Client
    trajectory: Sequence[Point]
    first_ms: int
    truth: str | None
    thief: bool | None

    @property
    def flagged(self) -> bool:
        return self.client.state in FLAGGED

    @property
    def look(self) -> str:
        """caught: flagged and not known to be honest; false: flagged but honest; missed: a thief; quiet: the rest."""
        if self.flagged:
            return "false" if self.thief is False else "caught"
        return "missed" if self.thief else "quiet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedCampaign:
    """Accounts that act as one: the campaign's own row in its public shape, its members, and how many of them are thieves'.

    thieves  None where nobody knows
    """

    campaign: Client
    members: Sequence[str]
    thieves: int | None


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
    clients: Sequence[ReportedClient]
    campaigns: Sequence[ReportedCampaign]
    budget: float
    calibrated: bool
    calibration: str
    alerts: Sequence[Alert] = ()
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
    environment.filters.update(
        why=why, thousands=lambda n: f"{n:,}", p=_p_words, when=day_and_minute, share=_share_words
    )
    script = (folder / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        report=report, script=script, script_digest=digest, **_view(report)
    )


def _shown(value: Any) -> Any:
    """What an expression of the template becomes; markup is ours, a no-break space too."""
    return legible(value, keep="\N{NO-BREAK SPACE}") if type(value) is str else value


def _view(report: Report) -> dict[str, Any]:
    ranked = sorted(
        report.clients,
        key=lambda r: (-severity(r.client.state), -r.client.suspicion, -r.client.queries, r.client.client_id),
    )
    shown = ranked[:MOST_TABLE_ROWS]
    shown += [r for r in ranked[MOST_TABLE_ROWS:] if r.look in ("false", "missed")]
    alerts: dict[tuple[str, str], list[tuple[int, State]]] = {}
    for alert in sorted(report.alerts, key=lambda a: milliseconds(a.time)):
        if alert.client_id is not None:
            alerts.setdefault((alert.client_id, alert.model_id), []).append((milliseconds(alert.time), alert.state))
    traces = [
        Trace(
            name=r.client.client_id,
            note=r.truth or "",
            look=r.look,
            points=r.trajectory,
            marks=_marks(r, alerts.get((r.client.client_id, r.client.model_id), []), report),
            first_ms=r.first_ms or (r.trajectory[0][2] if r.trajectory else 0),
            last_ms=r.trajectory[-1][2] if r.trajectory else 0,
        )
        for r in ranked
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
        "queries": sum(r.client.queries for r in ranked),
        "suspicion": [charts.suspicion_figure(traces, report.budget, w, h) for w, h in ((WIDE, 430), (NARROW, 300))],
        "timeline": [charts.timeline_figure(traces, width) for width in (WIDE, NARROW)],
        "timeline_rows": charts.MOST_ROWS,
        "maps": _maps(report, ranked),
        "quiet_lines": (sum(c.look == "quiet" for c in ranked), charts.MOST_QUIET_LINES),
    }


def _marks(reported: ReportedClient, alerts: Sequence[tuple[int, State]], report: Report) -> list[tuple[int, str]]:
    """When each state up to the client's was reached: by its alerts, else where its trajectory passed the threshold."""
    reached: dict[State, int] = {state: time_ms for time_ms, state in reversed(alerts)}
    limits = {"watch": WATCH_FACTOR * report.budget, "throttle": report.budget, "block": report.budget / 10}
    for state in STATES[1 : severity(reported.client.state) + 1]:
        passed = next((p[2] for p in reported.trajectory if 1 - p[1] <= limits[state]), None)
        if passed is not None:
            reached.setdefault(state, passed)
    return sorted((time_ms, state) for state, time_ms in reached.items())


def _maps(report: Report, ranked: Sequence[ReportedClient]) -> list[dict[str, Any]]:
    """Coverage of the top suspects of each model, and of one quiet client beside them."""
    panels = []
    for coverage in report.coverage:
        of_model = [
            r for r in ranked if r.client.model_id == coverage.model_id and r.client.client_id in coverage.clients
        ]
        quiet = sorted((r for r in of_model if r.look == "quiet"), key=lambda r: -round(r.client.distinct))
        for reported in [r for r in of_model if r.flagged][: MAPS - 1] + quiet[:1]:
            shares = coverage.clients[reported.client.client_id]
            svg = charts.coverage_figure(coverage.cells, coverage.reference, shares, reported.look, 240)
            used = sum(share > 0 for share in shares)
            panels.append({"reported": reported, "svg": svg, "used": used, "cells": len(shares)})
    return panels


def _p_words(suspicion: float) -> str:
    """How rare: the p-value behind a suspicion, in two figures."""
    p = 1.0 - suspicion
    return (
        "< 10⁻⁶" if p < charts.LEAST_P else f"{p:.6f}".rstrip("0")[: 8 if p < 0.001 else 6] if p < 0.1 else f"{p:.2f}"
    )


def _share_words(share: float) -> str:
    return f"{100 * share:.2g}\N{NO-BREAK SPACE}%" if share < 0.1 else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
