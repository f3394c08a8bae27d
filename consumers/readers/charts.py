"""The plots of the report and the dashboard, drawn as SVG text on the server: no script, no font, no picture from elsewhere.

Rules:
* A figure is a function of plain values and a size. Colours are CSS classes, so that light and dark are the page's matter.
* Text from a log is made `legible` and escaped here. The template prints figures as they are.
* Nothing is shown by colour alone: flagged, missed and honest clients differ in dash and marker too.
* Figures are bounded: a line keeps only points that can be distinguished on the page, a timeline and a map show the first few clients.
"""

from __future__ import annotations

import datetime as dt
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from consumers.legible import legible
from consumers.times import day_and_minute

LEAST_P = 1e-6
"""The plot's ceiling: smaller p-values are drawn there."""
MOST_QUIET_LINES = 400
MOST_ROWS = 24
STEPS_MIN = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, *(1440 * days for days in (1, 2, 3, 5, 7, 14, 30, 60, 180)))

Point = tuple[int, float, int]
"""(queries seen, suspicion, event time in ms)."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One client to draw.

    look: caught | false | missed | quiet; note: what it really is, if known; first_ms, last_ms: its life.
    """

    name: str
    note: str
    look: str
    points: Sequence[Point]
    marks: Sequence[tuple[int, str]] = ()
    first_ms: int = 0
    last_ms: int = 0


def depth(suspicion: float) -> float:
    """−log10 of the p-value behind a suspicion, at most 6: makes the tail readable."""
    return -math.log10(min(max(1.0 - suspicion, LEAST_P), 1.0))


def suspicion_figure(traces: Sequence[Trace], budget: float, width: int, height: int) -> str:
    """Suspicion (as −log10 p) against queries (log), as steps, for each client; with the thresholds of the budget."""
    left, right, top, bottom = 46, 70 if width > 500 else 8, 14, 40
    most = max([2.0, *(p[0] for t in traces for p in t.points)])
    steps = [("watch", 5 * budget), ("throttle", budget), ("block", budget / 10)]
    deepest = max(
        [1.0, *(depth(p[1]) for t in traces for p in t.points), *(-math.log10(min(p, 1.0)) for _, p in steps)]
    )
    roof = min(6.0, deepest + 0.35)
    decades = math.log10(most) or 1.0

    def at_x(queries: float) -> float:
        return left + (width - left - right) * math.log10(max(queries, 1.0)) / decades

    def at_y(value: float) -> float:
        return height - bottom - (height - top - bottom) * min(value, roof) / roof

    out = [_open(width, height, "Suspicion against queries for each client")]
    for k in range(int(roof) + 1):
        y = at_y(k)
        out.append(f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_odds(k)}</text>')
    for x, label in _decades(most, width):
        out.append(f'<line class="grid" x1="{at_x(x):.1f}" y1="{top}" x2="{at_x(x):.1f}" y2="{height - bottom}"/>')
        out.append(
            f'<text class="tick" x="{at_x(x):.1f}" y="{height - bottom + 16}" text-anchor="middle">{label}</text>'
        )
    out.append(_caption((left + width - right) / 2, height - 6, "queries of the client (log)"))
    for name, p in steps:
        if p < 1:
            y = at_y(-math.log10(p))
            out.append(f'<line class="limit {name}" x1="{left}" y1="{y:.1f}" x2="{width - right}" y2="{y:.1f}"/>')
            if width > 500:
                out.append(f'<text class="limit-name {name}" x="{width - right + 6}" y="{y + 4:.1f}">{name}</text>')
            else:
                out.append(f'<text class="limit-name {name}" x="{left + 4}" y="{y - 3:.1f}">{name}</text>')
    order = {"quiet": 0, "missed": 1, "false": 2, "caught": 3}
    quiet = 0
    for trace in sorted(traces, key=lambda t: order[t.look]):
        quiet += trace.look == "quiet"
        if not trace.points or (trace.look == "quiet" and quiet > MOST_QUIET_LINES):
            continue
        dots = _thin([(at_x(p[0]), at_y(depth(p[1]))) for p in trace.points])
        before = [at_y(0), *(y for _, y in dots)]
        steps_up = "".join(f" {x:.1f},{before[i]:.1f} {x:.1f},{y:.1f}" for i, (x, y) in enumerate(dots))
        line = f'<polyline points="{steps_up}"/>' if len(dots) > 1 else ""  # one point: nobody knows when it rose
        title = f"<title>{_hover(trace)}</title>"
        out.append(f'<g class="trace {trace.look}">{title}{line}{_marker(trace.look, *dots[-1])}</g>')
    out.append("</svg>")
    return "".join(out)


def coverage_figure(
    cells: Sequence[tuple[float, float]], usual: Sequence[float], client: Sequence[float], look: str, size: int
) -> str:
    """Where a client asks (filled) against where honest traffic lies (rings); areas are shares of the queries."""
    out = [_open(size, size, "Coverage of the input space")]
    if cells:
        xs, ys = [c[0] for c in cells], [c[1] for c in cells]
        pad = 30
        wide, tall = (max(xs) - min(xs)) or 1.0, (max(ys) - min(ys)) or 1.0
        area = size * size / 10
        for (x, y), reference, share in sorted(zip(cells, usual, client, strict=True), key=lambda c: -c[2]):
            cx = pad + (size - 2 * pad) * (x - min(xs)) / wide
            cy = size - pad - (size - 2 * pad) * (y - min(ys)) / tall
            ring, disc = (max(1.2, min(math.sqrt(area * s / math.pi), pad)) for s in (reference, share))
            if share > 0:
                out.append(f'<circle class="disc {look}" cx="{cx:.1f}" cy="{cy:.1f}" r="{disc:.1f}"/>')
            if reference > 0:
                out.append(f'<circle class="ring" cx="{cx:.1f}" cy="{cy:.1f}" r="{ring:.1f}"/>')
    out.append("</svg>")
    return "".join(out)


def timeline_figure(traces: Sequence[Trace], width: int) -> str:
    """When flagged clients were active (bar) and when their states rose (marks); the first 24, earliest mark first."""
    shown = [t for t in traces if t.look in ("caught", "false") and t.marks][:MOST_ROWS]
    shown.sort(key=lambda t: t.marks[0][0])
    names = width > 500
    left, right, row, top = 250 if names else 12, 12, 22 if names else 34, 8
    height = top + row * max(len(shown), 1) + 30
    out = [_open(width, height, "When clients were flagged")]
    if not shown:
        out.append(_caption(width / 2, height / 2, "nobody was flagged"))
        return "".join([*out, "</svg>"])
    begin = min(t.first_ms for t in shown)
    end = max(max(t.last_ms for t in shown), begin + 1)

    def at_x(time_ms: float) -> float:
        return left + (width - left - right) * (time_ms - begin) / (end - begin)

    for time_ms, label in _moments(begin, end, 6 if names else 3):
        x = at_x(time_ms)
        out.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{height - 24}"/>')
        out.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{label}</text>')
    for i, trace in enumerate(shown):
        y = top + row * i + row - 9
        note = f'<tspan class="note-name">{escape(_short(trace.note, 18))}</tspan> ' if trace.note else ""
        name = note + escape(_short(trace.name, 18))
        if names:
            out.append(f'<text class="name" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{name}</text>')
        else:
            out.append(f'<text class="name" x="{left}" y="{y - 9:.1f}">{name}</text>')
        first, last = at_x(trace.first_ms), at_x(trace.last_ms)
        out.append(f'<g class="trace {trace.look}"><title>{_hover(trace)}</title>')
        out.append(
            f'<rect class="life" x="{first:.1f}" y="{y - 3}" width="{max(last - first, 2):.1f}" height="6" rx="3"/>'
        )
        for time_ms, state in trace.marks:
            title = f"<title>{escape(state)} · {day_and_minute(time_ms)}</title>"
            out.append(f'<circle class="mark {escape(state)}" cx="{at_x(time_ms):.1f}" cy="{y}" r="5">{title}</circle>')
        out.append("</g>")
    out.append("</svg>")
    return "".join(out)


def _hover(trace: Trace) -> str:
    return escape(f"{trace.name} · {trace.note}" if trace.note else trace.name)


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _open(width: int, height: int, label: str) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">'


def _caption(x: float, y: float, words: str) -> str:
    return f'<text class="caption" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{escape(words)}</text>'


def _odds(k: int) -> str:
    """How often an honest client goes that far: 1, 1/10, 1/100 …"""
    return "1" if k == 0 else f"1/{10**k}" if k < 4 else f"10<tspan dy='-4' font-size='8'>−{k}</tspan>"


def _decades(most: float, width: int) -> list[tuple[float, str]]:
    marks: list[tuple[float, str]] = []
    factors = (1, 2, 5) if most < 1000 and width > 500 else (1, 3) if width > 500 else (1,)
    for power in range(int(math.log10(most)) + 1):
        marks += [(f * 10.0**power, f"{f * 10**power:,}") for f in factors if f * 10**power <= most]
    return marks


def escape(text: str) -> str:
    """Text of a log as markup may hold it."""
    return html.escape(legible(text, keep="\N{NO-BREAK SPACE}"))


def _moments(begin_ms: int, end_ms: int, most: int) -> list[tuple[int, str]]:
    """Round moments between two times: days if there are enough, else hours or minutes."""
    step = next(
        (m * 60_000 for m in STEPS_MIN if (end_ms - begin_ms) // (m * 60_000) <= most), (end_ms - begin_ms) // 2
    )
    form = "%H:%M" if step < 1440 * 60_000 else "%-d %b"
    times = range(-(-begin_ms // step) * step, end_ms + 1, step)
    return [(t, dt.datetime.fromtimestamp(t / 1000, dt.UTC).strftime(form)) for t in times]


def _marker(look: str, x: float, y: float) -> str:
    if look == "quiet":
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>'
    if look == "false":
        return f'<rect class="dot" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if look == "missed":
        return f'<path class="dot" d="M{x:.1f} {y - 5:.1f}l5 9h-10z"/>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'


def _thin(dots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """First, last, and every point at least 1.5 pixels from the one kept before it."""
    kept = [dots[0]]
    for x, y in dots[1:-1]:
        if abs(x - kept[-1][0]) + abs(y - kept[-1][1]) >= 1.5:
            kept.append((x, y))
    return kept if len(dots) == 1 else [*kept, dots[-1]]
