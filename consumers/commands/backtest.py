"""`backtest`: old logs → who would be flagged, at which budget and in which mode.

Rules: as in cli.py. Nothing is written.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from consumers import config, terminal
from consumers import replay as replaying
from consumers.baselines import limits_of, load_baselines, read_personas
from consumers.commands.options import AsJson, BaselineFiles, ConfigFile, MappingName
from consumers.errors import WrongUse
from consumers.readers import backtest as testing
from consumers.records.decision import is_campaign
from consumers.records.spans import fields_of, spans_in_force, together
from consumers.wiring import adapters, processes

MOST_FLAGGED = 40
"""Flagged clients that `backtest` lists in a terminal."""


def backtest(
    logs: Annotated[list[str], typer.Argument(help="Query logs in the order of time; - reads standard input.")],
    baseline: BaselineFiles = None,
    budget: Annotated[
        list[float] | None, typer.Option("--budget", help="False-alarm budget to try; may be given several times.")
    ] = None,
    as_json: AsJson = False,
    mapping: MappingName = None,
    config_file: ConfigFile = None,
) -> None:
    """Show which clients of old logs would be flagged, for several budgets and modes. Nothing is written."""
    settings = config.with_mapping(config.load(config_file), mapping)
    baselines = load_baselines(baseline or list(settings.baselines))
    budgets = sorted(budget or testing.BUDGETS, reverse=True)
    if not baselines:
        raise WrongUse("no baseline: give --baseline FILE (querywarden fit creates one)")
    if not all(0 < b < 0.5 for b in budgets):
        raise WrongUse("--budget: it must be above 0 and below 0.5")
    terminal.warn(limits_of(baselines, settings.false_alarm_budget))
    clients = []
    source = adapters.open_files(logs, translator=adapters.open_translator(settings, baselines))
    with adapters.open_sqlite(settings) as store, contextlib.closing(source):
        reading, judging = processes.pure_steps(settings, baselines, read_personas(settings.personas))
        store.prepare(reading.secrets.key_id)
        with terminal.bar("backtest") as advance:
            result = replaying.replay(source, store, reading, judging, progress=advance)
        for key, _ in store.decisions(settings.tenant):
            if is_campaign(key):
                continue
            row, known = result.scores[key.model, key.client], baselines[key.model]
            fields = fields_of(store, [key])[key]
            profile = together(spans_in_force(fields, known))
            if profile is not None:
                clients.append(testing.ClientAtEnd.of(row.client_id, key.model, profile, len(fields), known))
    rows = testing.at_budgets(clients, baselines, budgets)
    flagged = testing.flagged(clients, baselines, budgets)
    if as_json:
        lines = [{"kind": "budget"} | asdict(r) for r in rows] + [{"kind": "client"} | asdict(f) for f in flagged]
        terminal.print_json_lines(lines)
        return
    _print_backtest(rows, flagged, len(clients))


def _print_backtest(rows: list[Any], flagged: list[Any], clients: int) -> None:
    terminal.print_table(
        ("budget", "watch", "throttle", "block", "flagged", "if all were honest", "mode throttle", "mode block", ""),
        [
            (
                f"{r.budget:g}", f"{r.states['watch']:,}", f"{r.states['throttle']:,}", f"{r.states['block']:,}", f"{r.flagged:,}",
                f"{r.expected:.1f}", f"{r.enforced['throttle']['throttle']:,} slowed",
                f"{r.enforced['block']['throttle']:,} slowed, {r.enforced['block']['block']:,} blocked",
                "" if r.supported else "too few honest clients in the calibration",
            )
            for r in rows
        ],
    )  # fmt: skip
    terminal.print_table(
        ("client", "model", "queries", "p", "smallest budget", "alarm at query", "why"),
        [
            (
                terminal.plain(f.client_id).plain, terminal.plain(f.model).plain, f"{f.queries:,}",
                f"{f.p_value:.2g}", f"{f.smallest_budget:g}",
                f"{f.alarm_at_query:,}" if f.alarm_at_query else "–", f.why,
            )
            for f in flagged[:MOST_FLAGGED]
        ],
    )  # fmt: skip
    shown = terminal.counted(min(len(flagged), MOST_FLAGGED), len(flagged), "flagged clients", "--json shows all")
    terminal.out.print(Text(f"{shown}, of {clients:,} clients in total; nothing was written"), soft_wrap=True)
