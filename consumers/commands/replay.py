"""`replay`: query logs → who looks like a thief, and why. The main job on files.

Rules: as in cli.py. Without ``--store`` nothing is left behind.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Annotated

import typer

from consumers import config, terminal
from consumers import replay as replaying
from consumers.baselines import limits_of, load_baselines, read_personas
from consumers.commands.options import ConfigFile, MappingName, check_folders
from consumers.commands.understood import nothing_counted, print_misfits, print_refused, print_translated
from consumers.errors import WrongUse
from consumers.misfits import learned
from consumers.readers.report import write_report
from consumers.wiring import adapters, processes


def replay(
    logs: Annotated[
        list[str],
        typer.Argument(
            help="Query logs in the order of time (JSON lines, .gz, .zst, Parquet); - reads standard input."
        ),
    ],
    baseline: Annotated[
        list[str] | None, typer.Option(help="Baseline file or folder; may be given several times.")
    ] = None,
    alerts: Annotated[
        Path | None,
        typer.Option(help="Write the first alert of each finding to this file: JSON lines in the order of event time."),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write the scores to this file: one JSON object per client and line.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report with plots to this HTML file.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Keep the state in this SQLite file. A log that was read into it before, and may have grown, is resumed."
        ),
    ] = None,
    false_alarm_budget: Annotated[
        float | None, typer.Option(help="Share of honest clients that may be flagged, each over its whole lifetime.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="Strongest decision that gateways would enforce: observe, alert, throttle or block."),
    ] = None,
    mapping: MappingName = None,
    config_file: ConfigFile = None,
) -> None:
    """Read query logs, assess every client, and show which clients look like model extraction, and why."""
    check_folders(alerts, scores, report, store)
    settings = config.load(config_file, false_alarm_budget=false_alarm_budget, mode=mode)
    settings = config.with_mapping(settings, mapping)
    baselines = load_baselines(baseline or list(settings.baselines))
    if not baselines:
        raise WrongUse("no baseline: give --baseline FILE (querywarden fit creates one)")
    terminal.warn(limits_of(baselines, settings.false_alarm_budget))
    translator = adapters.open_translator(settings, baselines)
    source = adapters.open_files(logs, resumable=store is not None, translator=translator)
    with adapters.open_sqlite(settings, store) as kept, contextlib.closing(source):
        ingesting, detecting = processes.pure_steps(settings, baselines, read_personas(settings.personas))
        kept.prepare(ingesting.secrets.key_id)
        gc.freeze()  # what was built lives as long as the process: no collection walks through it
        with terminal.bar("replay") as advance:
            result = replaying.replay(source, kept, ingesting, detecting, progress=advance)
        rows = replaying.ranked(result.scores)
        if result.resumed is not None:
            terminal.err.print(
                f"resumed at line {source.line_of(result.resumed):,}: this log was read before into {store}"
            )
        if source.partial:
            terminal.err.print("the last line is incomplete; the next replay will read it")
        if alerts:
            replaying.write_lines(alerts, result.alerts)
        if scores:
            replaying.write_lines(scores, (row.score(model) for model, row in rows))
        if report:
            write_report(
                report,
                replaying.report_of(
                    result,
                    baselines,
                    settings.false_alarm_budget,
                    title="Replay of " + ", ".join(Path(p).name for p in logs),
                ),
            )
    if rows:
        terminal.print_ranked([row.score(model) for model, row in rows], replaying.campaign_rows(result))
    else:
        terminal.out.print(nothing_counted(result.counters))
    terminal.print_counters(result.counters, result.reasons, [(d.place, d.reason, d.detail) for d in result.dead])
    print_translated(translator)
    print_refused(result.refusals, "the log")
    for model, misfits in result.misfits.items():
        print_misfits(misfits, f"model {model}", learned(baselines[model].map))
    if result.hopeless:
        raise typer.Exit(1)
