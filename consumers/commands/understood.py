"""Messages of `fit` and `replay` about their input: the columns as they were understood, and the refused lines.

Rules:
* Everything goes to standard error: a table on a terminal, one JSON object per line otherwise.
* Names are printed as text, without markup; long lists of categories are shortened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from consumers import terminal
from consumers.log.formats import REASONS
from consumers.log.mappings.identity import UNATTRIBUTED
from consumers.log.mappings.records import Translator
from consumers.misfits import Misfits, Shares
from consumers.refused_lines import RefusedLines
from consumers.schemas import Described, Understood

MOST_COLUMNS = 40
"""More columns than this are summarised."""
MOST_EXTRAS = 10
MOST_NOTES = 10


def print_understood(understood: Understood) -> None:
    """Columns, extras and classes."""
    columns = understood.columns
    kinds = Counter(c.kind for c in columns)
    schema = understood.schema
    classes = f" into {len(schema.labels)} classes" if schema.labels else ""
    _say(f"schema: {', '.join(f'{n} {kind}' for kind, n in kinds.items())}; {schema.task}{classes}")
    if len(columns) > MOST_COLUMNS:
        _print_summary(columns)
    elif terminal.err.is_terminal:
        _print_columns(columns)
    else:
        for one in columns:
            _say(json.dumps(_line(one), ensure_ascii=False))
    _print_extras(understood.extras)
    if schema.labels:
        names = [schema.labels[k] for k in range(min(len(schema.labels), MOST_NOTES))]
        _say(
            f"classes in the order of the probabilities: {', '.join(names)}{', …' if len(schema.labels) > MOST_NOTES else ''}"
        )
    for line in understood.answers.said:
        _say(f"answers: {line}")


def print_refused(refused: RefusedLines, what: str) -> None:
    """Print a warning when many lines were refused."""
    _warn(refused.warning(what, REASONS))


def print_misfits(misfits: Misfits, what: str, expected: Shares) -> None:
    """Print a warning when more queries misfit the schema than expected."""
    _warn(misfits.warning(what, expected))


def print_translated(translator: Translator | None) -> None:
    """What became of the records of a log in another format."""
    if translator is None or not translator.counts["records"]:
        return
    counts = translator.counts
    told = [f"{counts['records']:,} records", f"{counts['events']:,} queries"]
    if counts["left_out"]:
        told.append(f"{counts['left_out']:,} items that are no queries")
    for role, alone in translator.without_partner().items():
        if alone:
            other = "response" if role == "request" else "request"
            told.append(f"{alone:,} {role}s without a {other}, not counted")
    if counts["unattributed"]:
        told.append(f"{counts['unattributed']:,} queries of nobody known (client {UNATTRIBUTED})")
    _say(f"mapping {translator.mapping.name}: {', '.join(told)}")


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        terminal.err.print(
            terminal.plain(line), style="bold yellow" if terminal.err.is_terminal else "", soft_wrap=True
        )


def nothing_counted(counters: Mapping[str, int]) -> str:
    """Return a sentence that says why a log contained no usable query."""
    read = counters.get("produced", 0)
    if not read:
        return "no query was counted: the log is empty"
    others = [f"{name} {n:,}" for name, n in counters.items() if n and name not in ("produced", "dead", "queries")]
    refused = f"{counters.get('dead', 0):,} refused"
    return f"no query was counted: of {read:,} lines {', '.join([refused, *others])}"


def _say(text: str) -> None:
    terminal.err.print(terminal.plain(text), soft_wrap=True)


def _line(one: Described) -> dict[str, Any]:
    """Return the description of a column, without empty fields."""
    found: dict[str, Any] = {"column": one.name, "kind": one.kind, "missing": round(one.missing, 4)}
    if one.categories is None:
        found |= {"lower": one.lower, "upper": one.upper, "grain": one.grain}
    else:
        found |= {"categories": one.categories, "examples": list(one.examples)}
    return found | ({"note": one.note} if one.note else {})


def _print_columns(columns: tuple[Described, ...]) -> None:
    table = Table(box=None, header_style="bold")
    for title, justify in (
        ("column", "left"),
        ("kind", "left"),
        ("missing", "right"),
        ("values", "left"),
        ("note", "left"),
    ):
        table.add_column(title, justify="right" if justify == "right" else "left", overflow="fold")
    for one in columns:
        missing = f"{one.missing:.1%}" if one.missing > 0 else "–"
        table.add_row(
            terminal.plain(one.name),
            Text(one.kind),
            Text(missing),
            terminal.plain(described_values(one)),
            Text(one.note),
        )
    terminal.err.print(table)


def described_values(one: Described) -> str:
    """The range or the categories of a column, in words."""
    if one.categories is not None:
        return f"{one.categories:,} categories: {', '.join(one.examples)}{', …' if one.categories > len(one.examples) else ''}"
    if one.kind == "boolean":
        return "0 or 1"
    step = f", steps of {one.grain:g}" if one.grain else ""
    return f"{one.lower:g} to {one.upper:g}{step}"


def _print_summary(columns: tuple[Described, ...]) -> None:
    lacking = [c for c in columns if c.missing > 0]
    noted = [c for c in columns if c.note]
    if not terminal.err.is_terminal:
        kinds = Counter(c.kind for c in columns)
        most = max((c.missing for c in lacking), default=0.0)
        _say(
            json.dumps(
                {"columns": len(columns), "kinds": kinds, "with_missing": len(lacking), "most_missing": round(most, 4)}
            )
        )
        for one in noted[:MOST_NOTES]:
            _say(json.dumps(_line(one), ensure_ascii=False))
        return
    if lacking:
        worst = max(lacking, key=lambda c: c.missing)
        _say(f"columns with missing values: {len(lacking):,}; most in {worst.name} ({worst.missing:.1%} of the rows)")
    for one in noted[:MOST_NOTES]:
        _say(f"column {one.name}: {one.note}")
    if len(noted) > MOST_NOTES:
        _say(f"and {len(noted) - MOST_NOTES} more columns with notes")


def _print_extras(extras: tuple[tuple[str, str], ...]) -> None:
    for name, why in extras[:MOST_EXTRAS]:
        if terminal.err.is_terminal:
            _say(f"not in the schema: {name} ({why})")
        else:
            _say(json.dumps({"column": name, "kind": "extra", "note": why}, ensure_ascii=False))
    if len(extras) > MOST_EXTRAS:
        _say(f"and {len(extras) - MOST_EXTRAS} more columns that are not in the schema")
