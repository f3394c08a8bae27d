"""The dashboard's drawings: SVG text from plain values, no script, no style attribute.

Rules:

* Colours are CSS classes, geometry is attributes: the content security policy forbids inline styles.
* Every word that is not ours is escaped here; templates print drawings as they are.
* Never colour alone: states are written out, an honest range is a bar and a client a mark.
* What the report draws too (suspicion over queries, coverage) comes from `consumers.readers.charts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from consumers.readers.charts import escape

GAUGE_STEPS = 5
MOST_NODES = 60
ODD_P = 0.05
"""Signals as rare as that among honest clients are drawn as odd."""
_NAME_CHARS = 26


@dataclass(frozen=True, slots=True)
class SignalBar:
    """One signal of a client, in units of its honest scale.

    value: the client's; usual, high, most: median, 99th percentile and maximum of honest lives; p: how rare
    """

    name: str
    value: float
    usual: float
    high: float
    most: float
    p: float


@dataclass(frozen=True, slots=True)
class Node:
    """A member of a campaign: what it is called, its state, where its page is."""

    name: str
    state: str
    href: str


def steps(p_value: float) -> int:
    """How many marks of the gauge are lit: one for each power of ten below 1."""
    if not p_value < 1:
        return 0
    return min(GAUGE_STEPS, int(-math.log10(max(p_value, 1e-12)) + 1e-9))


def gauge(p_value: float, state: str) -> str:
    """Five small marks, lit by powers of ten of the p-value; decoration beside the words, so hidden from readers."""
    lit = steps(p_value)
    marks = "".join(
        f'<rect class="step{" on" if i < lit else ""}" x="{9 * i}" y="{8 - 2 * i}" width="6" height="{6 + 2 * i}" rx="1.5"/>'
        for i in range(GAUGE_STEPS)
    )
    return f'<svg class="gauge {escape(state)}" viewBox="0 0 42 14" width="42" height="14" aria-hidden="true">{marks}</svg>'


def signals_figure(bars: Sequence[SignalBar], width: int) -> str:
    """Each signal of a client as a mark against the honest clients' range, on a logarithmic axis."""
    wide = width > 500
    left, right, row, top = (190, 74, 30, 10) if wide else (10, 10, 46, 8)
    height = top + row * len(bars) + 40
    low, most = 0.05, max([2.0, *(b.value for b in bars), *(b.most for b in bars)])
    span = math.log10(most * 1.25 / low)

    def at(value: float) -> float:
        return left + (width - left - right) * max(0.0, math.log10(max(value, low) / low)) / span

    out = [_open(width, height, "Signals of this client against honest clients")]
    for power in range(-1, int(math.log10(most)) + 1):
        x = at(10.0**power)
        out += [_line("grid", x, top, x, height - 36), _text("tick", x, height - 21, f"{10.0**power:g}×", "middle")]
    caption = "excess, in units of the highest honest clients"
    out.append(_text("caption", (left + width - right) / 2, height - 4, caption, "middle"))
    for i, bar in enumerate(bars):
        y = top + row * i + row / 2 + (0 if wide else 8)
        x = at(bar.value)
        words = (
            f"{bar.name}: {bar.value:.3g} times the honest scale, p {bar.p:.2g}; highest honest client {bar.most:.3g}"
        )
        out.append(f"<g><title>{escape(words)}</title>")
        out.append(_bar(left, y - 5, width - left - right, 10, "track"))
        out.append(_bar(left, y - 5, at(bar.most) - left, 10, "honest"))
        out.append(_line("honest-line", at(bar.high), y - 7, at(bar.high), y + 7))
        if bar.p <= ODD_P:
            out.append(f'<path class="mass odd" d="M{x:.1f} {y - 8:.1f}l7 8l-7 8l-7 -8z"/>')
        else:
            out.append(f'<circle class="mass" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        name, p = bar.name.replace("_", " "), f"p {bar.p:.2g}"
        if wide:
            out += [_text("name", left - 12, y + 4, name, "end"), _text("tick", width - right + 10, y + 4, p)]
        else:
            out += [_text("name", left, y - 12, name), _text("tick", width - right, y - 12, p, "end")]
        out.append("</g>")
    return "".join([*out, "</svg>"])


def exposure_figure(points: Sequence[tuple[int, float, float, float]], width: int, height: int) -> str:
    """Exposure over queries: (queries seen, fidelity, low, high), oldest first; the interval as a band."""
    left, right, top, bottom = 46, 14, 12, 40
    most = max(2.0, *(float(q) for q, *_ in points))

    def at_x(queries: float) -> float:
        return left + (width - left - right) * math.log10(max(queries, 1.0)) / math.log10(most)

    def at_y(share: float) -> float:
        return height - bottom - (height - top - bottom) * min(max(share, 0.0), 1.0)

    out = [_open(width, height, "Exposure: how much of the model the client could have copied")]
    for percent in (0, 25, 50, 75, 100):
        y = at_y(percent / 100)
        out += [_line("grid", left, y, width - right, y), _text("tick", left - 6, y + 4, f"{percent} %", "end")]
    for power in range(int(math.log10(most)) + 1):
        out.append(_text("tick", at_x(10.0**power), height - bottom + 16, f"{10**power:,}", "middle"))
    out.append(_text("caption", (left + width - right) / 2, height - 6, "queries of the client (log)", "middle"))
    if len(points) > 1:
        upper = [f"{at_x(q):.1f},{at_y(high):.1f}" for q, _, _, high in points]
        lower = [f"{at_x(q):.1f},{at_y(least):.1f}" for q, _, least, _ in reversed(points)]
        out.append(f'<polygon class="band" points="{" ".join(upper + lower)}"/>')
        out.append(_path("curve", [(at_x(q), at_y(f)) for q, f, _, _ in points]))
    queries, fidelity, least, high = points[-1]
    out.append(_line("curve", at_x(queries), at_y(least), at_x(queries), at_y(high)))
    out.append(f'<circle class="mass" cx="{at_x(queries):.1f}" cy="{at_y(fidelity):.1f}" r="5"/>')
    return "".join([*out, "</svg>"])


def honest_figure(
    maxima: Sequence[float],
    p_of: Callable[[float], float],
    limits: Sequence[tuple[str, float]],
    clients: Sequence[tuple[float, str]],
    width: int,
    height: int,
) -> str:
    """How far honest clients ever get, and where the live ones stand.

    maxima   sorted lifetime maxima of the fused score of honest clients: the steps
    p_of     the calibrated tail: the dotted line
    limits   (state, score at which it begins)
    clients  (score, state) of live clients: the marks below
    """
    left, right, top, bottom, low, floor = 80 if width > 500 else 40, 20, 24, 66, 0.15, 5
    most = max([2.0, *maxima[-1:], *(level for _, level in limits), *(score for score, _ in clients)]) * 1.15
    decades = math.log10(most / low)

    def at_x(score: float) -> float:
        return left + (width - left - right) * math.log10(max(score, low) / low) / decades

    def at_y(p: float) -> float:
        return top + (height - top - bottom) * min(float(floor), -math.log10(max(p, 1e-9))) / floor

    out = [_open(width, height, "Scores of honest clients and of your clients")]
    for k in range(floor + 1):
        y, label = at_y(10.0**-k), "all" if k == 0 else f"1 in {10**k:,}" if width > 500 else f"1e-{k}"
        out += [_line("grid", left, y, width - right, y), _text("tick", left - 5, y + 4, label, "end")]
    scale = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if width > 500 else (0.2, 1, 5, 20, 100)
    out += [_text("tick", at_x(mark), height - 24, f"{mark:g}", "middle") for mark in scale if low <= mark <= most]
    for i, (state, level) in enumerate(limits):
        x = at_x(level)
        out.append(_line(f"limit {state}", x, top, x, height - bottom + 22))
        out.append(_text(f"limit-name {state}", x + 4, top + 10 + 13 * i, state))
    g = len(maxima)
    steps_down = [(at_x(low), at_y(1.0))]
    for i, value in enumerate(maxima):
        if value > low:
            left_over = max((g - i - 1) / g, 0.5 / g)
            steps_down += [(at_x(value), at_y((g - i) / g)), (at_x(value), at_y(left_over))]
    scores = [low * (most / low) ** (i / 60) for i in range(61)]
    out += [_path("honest-line", steps_down), _path("tail-line", [(at_x(s), at_y(p_of(s))) for s in scores])]
    order = {"clear": 0, "watch": 1, "throttle": 2, "block": 3}
    for score, state in sorted(clients, key=lambda c: order.get(c[1], 0)):
        radius = 3 + 0.8 * order.get(state, 0)
        spot = f'cx="{at_x(score):.1f}" cy="{height - bottom + 14}" r="{radius:.1f}"'
        out.append(f'<circle class="spot {escape(state)}" {spot}/>')
    caption = (
        "highest score of the client (1 = the highest honest clients)" if width > 500 else "highest score of the client"
    )
    out.append(_text("caption", (left + width - right) / 2, height - 5, caption, "middle"))
    return "".join([*out, "</svg>"])


def campaign_figure(nodes: Sequence[Node], links: Mapping[str, Sequence[int]], width: int, height: int) -> str:
    """Accounts on a ring; what they share inside it, joined by lines. links: what is shared → indexes of nodes."""
    shown = list(nodes[:MOST_NODES])
    cx, cy = width / 2, height / 2
    rx, ry = width / 2 - (220 if width > 500 else 26), height / 2 - 34
    angles = [2 * math.pi * i / max(1, len(shown)) - math.pi / 2 for i in range(len(shown))]
    at = [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]
    edges, middles = [], []
    for name, members in links.items():
        known = [m for m in members if m < len(shown)]
        if len(known) < 2:
            continue
        x = cx + 0.42 * (sum(at[m][0] for m in known) / len(known) - cx)
        y = cy + 0.42 * (sum(at[m][1] for m in known) / len(known) - cy)
        edges += [_line("edge", x, y, *at[m]) for m in known]
        title = f"<title>{escape(f'shared by {len(known)} accounts: {name}')}</title>"
        box = f'x="{x - 6:.1f}" y="{y - 6:.1f}" width="12" height="12" rx="3"'
        middles.append(f'<rect class="node link" {box}>{title}</rect>')
    out = [_open(width, height, f"{len(nodes)} accounts and the values that they share", "group"), *edges, *middles]
    for i, (node, (x, y)) in enumerate(zip(shown, at, strict=True)):
        words = escape(f"{node.name} · {node.state}")
        out.append(f'<a href="{escape(node.href)}" aria-label="{words}"><title>{words}</title>')
        out.append(f'<circle class="node {escape(node.state)}" cx="{x:.1f}" cy="{y:.1f}" r="10"/>')
        if width > 500 and len(shown) <= 24:
            right = math.cos(angles[i]) >= -0.01
            out.append(_text("name", x + (16 if right else -16), y + 4, _short(node.name), "start" if right else "end"))
        out.append("</a>")
    return "".join([*out, "</svg>"])


def _text(kind: str, x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text class="{escape(kind)}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{escape(kind)}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _path(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="3"/>'


def _short(words: str) -> str:
    return words if len(words) <= _NAME_CHARS else words[: _NAME_CHARS - 1] + "…"


def _open(width: int, height: int, label: str, role: str = "img") -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<svg {size} role="{role}" aria-label="{escape(label)}">'
