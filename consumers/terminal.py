"""What people see on a terminal: tables, progress, log lines.

Rules: results go to standard output, everything else to standard error; a bar on a terminal, JSON lines otherwise; whatever came from
a log or from a person is printed as text, never as markup, and `legible`. The consoles see to that themselves: what reaches them holds no
escape sequence but their own.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import structlog
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from consumers.legible import json_safe, legible

_OURS = "\n\t"
"""What our own sentences may hold; in the text of others a line break is written out, too."""


class _SafeConsole(Console):
    """A console that writes out whatever is invisible in a text before it lays the text out."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, str):
            chosen = options or self.options
            renderable = self.render_str(renderable, highlight=chosen.highlight, markup=chosen.markup)
        if isinstance(renderable, Text):
            renderable = _safe(renderable)
        return super().render(renderable, options)


def _safe(text: Text) -> Text:
    said = legible(text.plain, keep=_OURS)
    if said == text.plain:
        return text
    safe = text.blank_copy(said)  # as a whole in one style: positions of others moved
    safe.end = text.end
    return safe


def plain(text: str) -> Text:
    """Text of a log or of a person: no markup, and no character that turns or hides what stands beside it."""
    return Text(legible(text))


err = _SafeConsole(stderr=True, highlight=False, markup=False, emoji=False)
out = _SafeConsole(highlight=False, markup=False, emoji=False)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], nothing: str = "") -> None:
    """nothing: what is said instead of a table without rows."""
    rows = list(rows)
    if nothing and not rows:
        out.print(Text(nothing), soft_wrap=True)
        return
    table = Table(box=None, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(plain(cell) for cell in row))
    out.print(table)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """A question that turns true on SIGTERM or SIGINT: finish the batch in hand, commit, leave."""
    asked = threading.Event()
    before = {s: signal.signal(s, lambda *_: asked.set()) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def json_logs() -> None:
    """One JSON object a line on standard error, control characters escaped."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("querywarden").setLevel(logging.INFO)


@contextlib.contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    if not err.is_terminal:
        yield lambda text: err.print(Text(text + " …"))
        return
    with err.status("") as status:
        yield lambda text: status.update(text + " …")


@contextlib.contextmanager
def bar(what: str) -> Iterator[Callable[[Any], None]]:
    """Progress of a replay: a bar on a terminal, a JSON line each tenth otherwise."""
    if not err.is_terminal:
        said = [-1]

        def tell(p: Any) -> None:
            tenth = int((p.fraction or 0) * 10)
            if tenth > said[0]:
                said[0] = tenth
                line = {
                    "event": what,
                    "percent": tenth * 10,
                    "queries": p.queries,
                    "dead": p.dead,
                    "flagged": p.flagged,
                }
                err.print(Text(json.dumps(line)), soft_wrap=True)

        yield tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.fields[queries]:,} queries · {task.fields[flagged]} flagged · {task.fields[dead]:,} refused"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=1.0, queries=0, flagged=0, dead=0)

        def show(p: Any) -> None:
            bar.update(task, completed=p.fraction or 0.0, queries=p.queries, flagged=p.flagged, dead=p.dead)

        yield show


def show(rows: list[dict[str, Any]], as_json: bool, table: Callable[[list[dict[str, Any]]], None]) -> None:
    if as_json:
        print_json_lines(rows)
    else:
        table(rows)


def print_json_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line; what is invisible in them stands as JSON escapes."""
    sys.stdout.writelines(json_safe(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def print_json(value: Any) -> None:
    """One JSON value over several lines; what is invisible in it stands as JSON escapes."""
    sys.stdout.write(json_safe(json.dumps(value, ensure_ascii=False, indent=2)) + "\n")


_STYLE = {"block": "bold red", "throttle": "red", "watch": "yellow", "clear": ""}


def suspicion(value: float) -> str:
    """Four decimals, and as many more as it takes to tell it from 1.

    >>> suspicion(0.5), suspicion(0.9999949), suspicion(1.0)
    ('0.5000', '0.999995', '1.0000')
    """
    left = 1 - value
    decimals = 4 if not 0 < left < 1e-4 else min(12, math.ceil(-math.log10(left)))
    return f"{value:.{decimals}f}"


def short(text: str) -> str:
    """A sentence of evidence without what it is compared with: `explain` says that."""
    return text.partition("; ")[0]


def minute(time: str) -> str:
    """RFC 3339 → ``2026-03-02 09:14``, UTC."""
    return f"{dt.datetime.fromisoformat(time).astimezone(dt.UTC):%Y-%m-%d %H:%M}"


def print_ranked(rows: list[dict[str, Any]], most: int = 20) -> None:
    table = Table(box=None, header_style="bold")
    for title, right in (
        ("client", False),
        ("model", False),
        ("state", False),
        ("suspicion", True),
        ("queries", True),
        ("why", False),
    ):
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    interesting = [r for r in rows if r["state"] != "clear"] or rows[:5]
    for r in interesting[:most]:
        why = short(r["evidence"][0]["text"]) if r["evidence"] else "nothing unusual"
        mark = "" if r["calibrated"] else " (uncalibrated)"
        table.add_row(
            plain(r["client_id"]), plain(r["model_id"]), Text(r["state"], style=_STYLE[r["state"]]), suspicion(r["suspicion"]) + mark,
            f"{r['queries']:,}", plain(why),
        )  # fmt: skip
    out.print(table)
    flagged = sum(r["state"] in ("throttle", "block") for r in rows)
    hidden = max(0, len(interesting) - most)
    out.print(f"{len(rows):,} clients, {flagged} flagged{f', {hidden} more rows not shown' if hidden else ''}")


def print_alerts(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("no alerts")
        return
    table = Table(box=None, header_style="bold")
    for title, right in (
        ("time (UTC)", False),
        ("client", False),
        ("model", False),
        ("state", False),
        ("suspicion", True),
        ("queries", True),
        ("resembles", False),
        ("why", False),
    ):
        table.add_column(
            title, justify="right" if right else "left", overflow="fold", no_wrap=title in ("time (UTC)", "suspicion")
        )
    for a in rows:
        who = a.get("client_id") or f"campaign of {len(a['members'])} accounts"
        table.add_row(
            minute(a["time"]), plain(who), plain(a["model_id"]), Text(a["state"], style=_STYLE[a["state"]]),
            suspicion(a["suspicion"]), f"{a['queries_seen']:,}", a["family"],
            plain(short(a["evidence"][0]["text"]) if a["evidence"] else ""),
        )  # fmt: skip
    out.print(table)
    out.print(f"{len(rows):,} alerts")


def print_counters(
    counters: Mapping[str, int], reasons: Mapping[str, int], first: Sequence[tuple[str, str, str]]
) -> None:
    out.print(", ".join(f"{name} {count:,}" for name, count in counters.items() if count), style="dim")
    for reason, count in sorted(reasons.items(), key=lambda r: -r[1]):
        out.print(Text(f"refused, {reason}: {count:,}"))
    for place, reason, detail in first:
        out.print(plain(f"  {place}: {reason}{f' ({detail})' if detail else ''}"), style="dim", soft_wrap=True)
