"""`inspect`: a log of any tool → what it is understood as, and a mapping to be edited.

Rules: as in cli.py. Nothing is written but the mapping; of a topic no offset is committed.
"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from consumers import atomic_file, config, inspection, terminal
from consumers.commands.options import ConfigFile, check_folders
from consumers.commands.understood import described_values
from consumers.errors import Refused, WrongUse
from consumers.inspection import Inspection
from consumers.log.mappings.mapping import load
from consumers.log.mappings.written import as_toml
from consumers.log.reasons import REASONS
from consumers.wiring import adapters

MOST_SHOWN = 12


def inspect(
    log: Annotated[str, typer.Argument(help="Query log: a file, - for standard input, or kafka:TOPIC.")],
    out_path: Annotated[Path | None, typer.Option("--out", help="Mapping file to write (TOML), to be edited.")] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--mapping", metavar="NAME|FILE", help="Preset or mapping file; default: the one that is recognised."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Look at the first N records.")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config_file: ConfigFile = None,
) -> None:
    """Recognise the format of a query log, and show how its records are read. It reads logs of dead letters, too."""
    check_folders(out_path)
    settings = config.load(config_file)
    given = load(mapping) if mapping else None
    with terminal.spinner() as say:
        say("reading")
        sample = adapters.sample(settings, log, limit)
        say("looking at it")
        found = inspection.inspect(sample, given, adapters.credential_hash(settings))
    if out_path is not None:
        _write(found, out_path, log)
    if as_json:
        terminal.print_json(inspection.summary(found))
    else:
        _print(found, log, out_path)
    if found.recognised.format == "unknown":
        raise typer.Exit(1)


def _write(found: Inspection, path: Path, log: str) -> None:
    mapping = found.recognised.mapping
    if mapping is None:
        what = found.recognised.format
        raise (
            Refused(f"--out: there is nothing to map: the format is {what}")
            if what == "native"
            else WrongUse(f"--out: no mapping can be proposed ({what})")
        )
    comments = [
        f"How {Path(log).name} is read: {found.recognised.format} ({found.recognised.sure}).",
        *found.recognised.why,
        *found.notes,
    ]
    with atomic_file.whole(path) as draft:
        draft.write_text(as_toml(mapping, comments), encoding="utf-8")


def _print(found: Inspection, log: str, out_path: Path | None) -> None:
    recognised = found.recognised
    title = f": {recognised.mapping.title}" if recognised.mapping is not None and recognised.mapping.title else ""
    _say(f"format: {recognised.format} ({recognised.sure}){title}")
    for why in recognised.why:
        _say(f"  {why}")
    counted = (
        [f"{found.records:,} records", f"{found.events:,} queries"]
        if not found.letters
        else [f"{found.records:,} dead letters"]
    )
    counted += [f"{n:,} {role}s without their other half" for role, n in found.waiting.items() if n]
    if found.counts["left_out"]:
        counted.append(f"{found.counts['left_out']:,} items that are no queries")
    if found.counts["unattributed"]:
        counted.append(f"{found.counts['unattributed']:,} queries name no client")
    _say("; ".join(counted))
    if found.fields:
        terminal.print_table(
            ("part", "path", "missing", "distinct", "examples, masked"),
            [
                (u.part, u.path or "–", f"{u.missing:.1%}", f"{u.distinct:,}", ", ".join(u.examples))
                for u in found.fields
            ],
        )
    _print_columns(found)
    _print_refused(found)
    for note in found.notes:
        _say(f"note: {note}")
    if out_path is not None:
        _say(f"{out_path}: mapping written; read it, change it, then use it with --mapping {out_path}")
    elif recognised.mapping is not None:
        name = recognised.format
        with contextlib.suppress(WrongUse):
            load(name)
            _say(f"next: {_fit_of(found, name, log)}")
            return
        _say("next: --out mapping.toml writes the mapping, to be edited and used with --mapping mapping.toml")


def _fit_of(found: Inspection, mapping: str, log: str) -> str:
    """The command that fits a baseline on a log in a file. A log without a caller cannot calibrate: it is a reference."""
    if not Path(log).is_file() or not found.model or found.understood is None:
        return f"querywarden fit --mapping {mapping} …"
    calibrates = found.counts["unattributed"] < found.events
    what = "--traffic" if calibrates else "--reference"
    model = "NAME" if found.model == inspection.NAMELESS else shlex.quote(found.model)
    path = shlex.quote(log)
    return f"querywarden fit --model-id {model} --mapping {mapping} {what} {path} --out {shlex.quote(Path(log).stem)}.baseline"


def _print_columns(found: Inspection) -> None:
    if found.understood is None:
        if found.why_not:
            _say(f"columns: {found.why_not}")
        return
    schema = found.understood.schema
    _say(
        f"model {found.model}: {schema.task}"
        + (f" into {', '.join(schema.labels[:MOST_SHOWN])}" if schema.labels else "")
    )
    columns = found.understood.columns
    terminal.print_table(
        ("column", "kind", "missing", "values", "note"),
        [(c.name, c.kind, f"{c.missing:.1%}", described_values(c), c.note) for c in columns[: 2 * MOST_SHOWN]],
    )
    if len(columns) > 2 * MOST_SHOWN:
        _say(f"and {len(columns) - 2 * MOST_SHOWN} more columns")
    for name, why in found.understood.extras[:MOST_SHOWN]:
        _say(f"not a column: {name} ({why})")
    for line in found.understood.answers.said:
        _say(f"answers: {line}")


def _print_refused(found: Inspection) -> None:
    for (reason, detail), n in found.letters.most_common(MOST_SHOWN):
        _say(f"{n:,} × {reason}: {detail or REASONS.get(reason, '')}")
    if not found.letters:
        for reason, n in found.refused.reasons.most_common(MOST_SHOWN):
            _say(f"refused: {n:,} × {reason}: {REASONS.get(reason, '')}")
    for reason, n in found.misfits.most_common(MOST_SHOWN):
        _say(f"misfit: {n:,} × {reason}: {REASONS.get(reason, '')}")
    if found.refused.total:
        _say(f"for example {found.refused.example()}")


def _say(text: str) -> None:
    terminal.out.print(terminal.plain(text), soft_wrap=True)
