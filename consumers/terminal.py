"""Output on a terminal: tables, progress bars and log lines.

Rules:
* Results go to standard output, everything else to standard error. A terminal gets a progress bar, anything else gets JSON lines.
* Text from a log or from a person is printed as text, never as markup, and made `legible`. The consoles ensure this: their output contains
  no escape sequence but their own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from consumers import times
from consumers.legible import json_safe, legible
from detector.exposure import ROUGH

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


def complain(text: str, status: int = 1) -> int:
    """Print an error as one line on standard error; return the exit status that goes with it."""
    err.print(Text(f"querywarden: {' '.join(text.split())}", style="red" if err.is_terminal else ""), soft_wrap=True)
    return status


def warn(lines: Iterable[str]) -> None:
    """Print each line on standard error."""
    for line in lines:
        err.print(line, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a table. right: numbers stand there; whole: its cells are never wrapped."""

    title: str
    right: bool = False
    whole: bool = False


def print_rows(columns: Sequence[TableColumn], rows: Sequence[Sequence[Text]], to: Console | None = None) -> None:
    """Print a table or, where its columns would get too narrow to read, each row on lines of its own.

    No word is ever cut: an id that is longer than the terminal is wide goes on in the next line.
    """
    to = to or out
    widths = _widths(columns, rows, to.width - _BETWEEN * (len(columns) - 1))
    if widths is None:
        _print_stacked(columns, rows, to)
        return
    table = Table(box=None, header_style="bold", padding=(0, _BETWEEN, 0, 0), pad_edge=False)
    for column, width in zip(columns, widths, strict=True):
        table.add_column(column.title, justify="right" if column.right else "left", overflow="fold", width=width)
    for row in rows:
        table.add_row(*row)
    to.print(table)


def _widths(columns: Sequence[TableColumn], rows: Sequence[Sequence[Text]], room: int) -> list[int] | None:
    """Width of each column: its longest cell, or less for the widest ones; None where not even the least widths fit."""
    widths, least = [], []
    for i, column in enumerate(columns):
        cells = [row[i].plain for row in rows]
        whole = max(map(cell_len, (column.title, *cells)))
        word = max(map(_longest_word, (column.title, *cells)))
        widths.append(whole)
        least.append(whole if column.whole else max(word, min(_READABLE, max(map(cell_len, cells), default=0))))
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max((i for i, width in enumerate(widths) if width > least[i]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _print_stacked(columns: Sequence[TableColumn], rows: Sequence[Sequence[Text]], to: Console) -> None:
    for n, (first, *others) in enumerate(rows):
        if n:
            to.print()
        to.print(first, style="bold", overflow="fold")
        for column, cell in zip(columns[1:], others, strict=True):
            if cell.plain:
                line = Text.assemble((f"{column.title}: " if column.title else "", "dim"), cell)
                to.print(Padding(line, (0, 0, 0, 2), expand=False), overflow="fold")


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], nothing: str = "") -> None:
    """nothing: what is said instead of a table without rows."""
    rows = list(rows)
    if nothing and not rows:
        out.print(Text(nothing), soft_wrap=True)
        return
    print_rows([TableColumn(title) for title in titles], [[plain(cell) for cell in row] for row in rows])


def counted(shown: int, of: int, what: str, more: str = "") -> str:
    """What stands below a list: how many there are, and how many of them it shows.

    more  how to see the others

    >>> counted(3, 3, "alerts"), counted(1, 1, "alerts"), counted(20, 345, "clients", "--limit N shows more")
    ('3 alerts', '1 alert', '20 of 345 clients shown; --limit N shows more')
    """
    if shown >= of:
        return f"{of:,} {what.removesuffix('s') if of == 1 else what}"
    return f"{shown:,} of {of:,} {what} shown" + (f"; {more}" if more else "")


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
    """One JSON object a line on standard error, control characters escaped; warnings of libraries too."""
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
    logging.captureWarnings(True)


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


FLAGGED = ("throttle", "block")
MOST_SHOWN, FEWEST_SHOWN, MEMBERS_SHOWN = 20, 5, 8
"""Rows of a table of suspects, rows where nobody is suspect, and accounts of a campaign."""
_BETWEEN, _READABLE = 2, 16
"""Characters between two columns of a table, and to which sentences may shrink."""
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
    return times.minute(times.milliseconds(time)).removesuffix(" UTC")


def exposure(found: Mapping[str, float] | None) -> str:
    """Exposure with its interval, marked ``~`` where it is rough; a dash where nothing estimates it."""
    if not found:
        return "–"
    low, high = found["low"], found["high"]
    rough = "~" if high - low > ROUGH else ""
    return f"{rough}{100 * found['fidelity']:.0f}% ({100 * low:.0f}–{100 * high:.0f})"


def print_ranked(rows: Sequence[Mapping[str, Any]], campaigns: Sequence[Mapping[str, Any]] = ()) -> None:
    """Print the suspects among all clients and the campaigns, and how many clients there are.

    rows  scores of every client, the most suspicious first
    """
    suspects = [r for r in rows if r["state"] != "clear"] or rows[:FEWEST_SHOWN]
    flagged = sum(r["state"] in FLAGGED for r in rows)
    print_clients(suspects[:MOST_SHOWN], len(rows), flagged)
    print_campaigns(campaigns)


def print_clients(rows: Sequence[Mapping[str, Any]], of: int, flagged: int, more: str = "") -> None:
    """Print these clients. of: how many there are; flagged: how many of those are flagged; more: how to see the others."""
    columns = (
        TableColumn("client"), TableColumn("model"), TableColumn("state"), TableColumn("suspicion", True), TableColumn("queries", True),
        TableColumn("exposure", True), TableColumn("why"),
    )  # fmt: skip
    print_rows(columns, [_client_cells(r) for r in rows])
    out.print(Text(f"{counted(len(rows), of, 'clients', more)}; {flagged:,} flagged"), soft_wrap=True)


def _client_cells(r: Mapping[str, Any]) -> list[Text]:
    why = short(r["evidence"][0]["text"]) if r["evidence"] else "nothing unusual"
    mark = "" if r["calibrated"] else " (uncalibrated)"
    return [
        plain(r["client_id"]), plain(r["model_id"]), Text(r["state"], style=_STYLE[r["state"]]),
        Text(suspicion(r["suspicion"]) + mark), Text(f"{r['queries']:,}"), Text(exposure(r["extraction"])), plain(why),
    ]  # fmt: skip


def print_campaigns(rows: Sequence[Mapping[str, Any]], to: Console | None = None) -> None:
    """Print accounts that act as one, with their names; nothing where there are none. `truth`: shown where the rows have it."""
    if not rows:
        return
    to = to or out
    columns = [
        TableColumn("campaign"), TableColumn("model"), TableColumn("state"), TableColumn("suspicion", True), TableColumn("queries", True),
        TableColumn("exposure", True), TableColumn("accounts"), TableColumn("links"), TableColumn("why"),
    ]  # fmt: skip
    if "truth" in rows[0]:
        columns.append(TableColumn("what it really is"))
    to.print()
    print_rows(columns, [_campaign_cells(r) for r in rows[:MOST_SHOWN]], to)
    to.print(Text(counted(min(len(rows), MOST_SHOWN), len(rows), "campaigns")), soft_wrap=True)


def _campaign_cells(r: Mapping[str, Any]) -> list[Text]:
    members = list(r["members"])
    names = ", ".join(members[:MEMBERS_SHOWN])
    more = f" and {len(members) - MEMBERS_SHOWN} more" if len(members) > MEMBERS_SHOWN else ""
    return [
        plain(r["campaign_id"]), plain(r["model_id"]), Text(r["state"], style=_STYLE[r["state"]]), Text(suspicion(r["suspicion"])),
        Text(f"{r['queries']:,}"), Text(exposure(r["extraction"])), plain(f"{len(members)}: {names}{more}"),
        plain(", ".join(f"{kind} {tied:,}" for kind, tied in r.get("ties", {}).items())),
        plain(short(r["evidence"][0]["text"]) if r["evidence"] else ""), *([plain(r["truth"])] if "truth" in r else []),
    ]  # fmt: skip


def print_alerts(rows: Sequence[Mapping[str, Any]], of: int | None = None) -> None:
    """Print these alerts. of: how many there are, where not all are given."""
    if not rows:
        out.print("no alerts")
        return
    columns = (
        TableColumn("time (UTC)", whole=True), TableColumn("client"), TableColumn("model"), TableColumn("state"),
        TableColumn("suspicion", True), TableColumn("queries", True), TableColumn("resembles"), TableColumn("why"),
    )  # fmt: skip
    print_rows(columns, [_alert_cells(a) for a in rows])
    out.print(counted(len(rows), len(rows) if of is None else of, "alerts", "--limit N shows more"))


def _alert_cells(a: Mapping[str, Any]) -> list[Text]:
    who = a.get("client_id") or f"campaign of {len(a['members'])} accounts"
    resembles = "" if a["state"] == "clear" or a["family"] == "unknown" else a["family"]
    return [
        Text(minute(a["time"])), plain(who), plain(a["model_id"]),
        Text(a["state"], style=_STYLE[a["state"]]), Text(suspicion(a["suspicion"])), Text(f"{a['queries_seen']:,}"), Text(resembles),
        plain(short(a["evidence"][0]["text"]) if a["evidence"] else ""),
    ]  # fmt: skip


def print_counters(
    counters: Mapping[str, int], reasons: Mapping[str, int], first: Sequence[tuple[str, str, str]]
) -> None:
    out.print(", ".join(f"{name} {count:,}" for name, count in counters.items() if count), style="dim")
    for reason, count in sorted(reasons.items(), key=lambda r: -r[1]):
        out.print(Text(f"refused, {reason}: {count:,}"))
    for place, reason, detail in first:
        out.print(plain(f"  {place}: {reason}{f' ({detail})' if detail else ''}"), style="dim", soft_wrap=True)
