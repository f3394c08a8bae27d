"""`baseline`: a new baseline in shadow beside the live one, compared, promoted, rolled back, dropped, while the service runs.

Rules: as in `entries`. The live baseline is the one that the store names, and otherwise that of the settings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from consumers import atomic_file, config, paths, terminal
from consumers.baselines import baseline_files, load_baselines
from consumers.commands.entries import named
from consumers.commands.options import AsJson, ConfigFile, check_folders
from consumers.errors import Missing, WrongUse
from consumers.operators.audited_write import Actor
from consumers.operators.baseline_switch import BaselineSwitch
from consumers.readers.baseline_comparison import BaselineComparison, OfBaseline, compare, thieves_of
from consumers.records.baselines_in_force import StoredBaselines, stored_file
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.wiring import adapters
from consumers.wiring.operators import baseline_switch_of, baselines_in_force, user_of
from detector.baseline import Baseline
from detector.policy import Policy

app = typer.Typer(
    help="Try a new baseline beside the live one, compare them, promote it, and roll back.", no_args_is_help=True
)

Model = Annotated[str, typer.Option("--model", help="Id of the model; may be left out if the settings name one.")]
SHOWN = 20
"""Clients of a list that are printed."""


class _Opened:
    """The store with the baselines of the settings and those in force."""

    def __init__(self, settings: config.Settings, store: Store, secrets: Secrets) -> None:
        self.settings, self.store, self.secrets = settings, store, secrets
        self.in_force = baselines_in_force(settings, store, secrets)
        self.configured = self.in_force.configured
        self.switch: BaselineSwitch = baseline_switch_of(settings, store, secrets)
        self.actor: Actor = user_of(settings)

    def model(self, given: str) -> str:
        """Raises WrongUse, Missing."""
        if not given and len(self.configured) != 1:
            raise WrongUse(f"the settings name baselines of {len(self.configured)} models: give --model")
        model = given or next(iter(self.configured))
        if model not in self.configured:
            raise Missing(f"the settings name no baseline of model {named(model)}")
        return model

    def blob(self, model: str, baseline: Baseline) -> bytes:
        """The bytes of the file of a baseline in force."""
        if baseline.id != self.configured[model].id:
            return stored_file(self.store, self.settings.tenant, self.secrets, model, baseline.id)
        for file in baseline_files(self.settings.baselines):
            if load_baselines([str(file)]).get(model) is not None:
                return paths.read(file)
        raise Missing(f"no file of baseline {baseline.id}")


@contextlib.contextmanager
def _open(config_file: Path | None) -> Iterator[_Opened]:
    settings = config.load(config_file)
    if not settings.baselines:
        raise WrongUse("no baselines: set QUERYWARDEN_BASELINES or `baselines` to files or folders of *.baseline")
    with adapters.open_store(settings) as store:
        yield _Opened(settings, store, adapters.secrets_of(settings, store))


@app.command("shadow")
def baseline_shadow(
    file: Annotated[Path, typer.Argument(help="Baseline file, as `fit` or `recalibrate` wrote it.")],
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Fold the log for a second baseline too, from now on. Its assessments are compared and used for nothing else."""
    with _open(config_file) as opened:
        ((model, new),) = load_baselines([str(file)]).items()
        live = opened.in_force.live[opened.model(model)]
        made = opened.switch.shadow(opened.actor, (live, opened.blob(model, live)), (new, paths.read(file)))
    _report(made, as_json, f"{model}: {new.id} is in shadow beside {live.id}; processes follow within two seconds")


@app.command("status")
def baseline_status(
    model: Model = "",
    out_path: Annotated[
        Path | None, typer.Option("--out", help="Write the file of the live baseline here as well.")
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Show which baseline is live, which is beside it, and whether every part of the log is folded for both."""
    check_folders(out_path)
    with _open(config_file) as opened:
        name = opened.model(model)
        live = opened.in_force.live[name]
        stored = opened.switch.of(opened.settings.tenant, name)
        cells = opened.switch.cells(opened.settings.tenant, stored) if stored is not None and stored.beside else []
        if out_path is not None:
            blob = opened.blob(name, live)
            with atomic_file.whole(out_path) as draft:
                draft.write_bytes(blob)
        configured = opened.configured[name].id
    row: dict[str, Any] = {
        "model": name,
        "live": live.id,
        "configured": configured,
        "beside": stored.beside if stored else "",
        "promoted": bool(stored and stored.promoted),
        "cells": [cell._asdict() for cell in cells],
    }
    terminal.show([row], as_json, lambda rows: _print_status(rows[0]))


@app.command("compare")
def baseline_compare(model: Model = "", as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Assess all clients under both baselines: scores, flags gained and lost, false alarms, population."""
    with _open(config_file) as opened:
        name, tenant = opened.model(model), opened.settings.tenant
        live, shadow = opened.in_force.live[name], opened.in_force.beside.get(name)
        if shadow is None:
            raise Missing(f"model {name} has no second baseline: begin with `querywarden baseline shadow FILE`")
        thieves = thieves_of(opened.store, tenant, name)
        policy = Policy(opened.settings.false_alarm_budget)
        found = compare(opened.store, opened.secrets, tenant, live, shadow, policy, thieves)
    terminal.show([msgspec.to_builtins(found, str_keys=True)], as_json, lambda _: _print_comparison(found))


@app.command("promote")
def baseline_promote(model: Model = "", as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Make the shadow the live baseline. The earlier one goes on beside it, so that you can roll back."""
    with _open(config_file) as opened:
        made = opened.switch.promote(opened.actor, opened.model(model))
    _report(
        made,
        as_json,
        f"{made.model}: {made.live} is live, {made.beside} is beside it; processes follow within two seconds",
    )


@app.command("rollback")
def baseline_rollback(model: Model = "", as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Make the earlier baseline live again. The promoted one is a shadow again."""
    with _open(config_file) as opened:
        made = opened.switch.roll_back(opened.actor, opened.model(model))
    _report(
        made,
        as_json,
        f"{made.model}: {made.live} is live again, {made.beside} is in shadow; processes follow within two seconds",
    )


@app.command("drop")
def baseline_drop(model: Model = "", as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Drop the baseline beside the live one; its profiles of a client are deleted when the client sends its next query."""
    with _open(config_file) as opened:
        name = opened.model(model)
        made = opened.switch.drop(opened.actor, name, opened.configured[name].id)
    _report(made, as_json, f"{made.model}: {made.live} is live, alone")


def _report(made: StoredBaselines, as_json: bool, words: str) -> None:
    terminal.show([msgspec.to_builtins(made)], as_json, lambda _: terminal.out.print(Text(words), soft_wrap=True))


def _print_status(row: Mapping[str, Any]) -> None:
    out = terminal.out
    where = "the settings" if row["live"] == row["configured"] else "the store; the settings name " + row["configured"]
    out.print(Text(f"{row['model']}: {row['live']} is live, by {where}"), soft_wrap=True)
    if not row["beside"]:
        out.print("no baseline is beside it")
        return
    out.print(f"{row['beside']} is beside it, {'live before' if row['promoted'] else 'in shadow'}")
    terminal.print_table(
        ("part of the log", "offset", "not in both", "folded for both"),
        [(c["cell"], f"{c['offset']:,}", f"{c['missed']:,}", "yes" if c["whole"] else "no") for c in row["cells"]],
        "nothing was read yet",
    )


def _print_comparison(found: BaselineComparison) -> None:
    out = terminal.out
    out.print(
        f"{found.compared:,} clients with the same {found.queries:,} queries under both; {found.older:,} older ones, that only "
        "the live baseline knows from before, are left out",
        soft_wrap=True,
    )
    if not found.compared:
        return

    def cells(one: OfBaseline, what: str) -> tuple[str, ...]:
        alarms = f"{one.honest_flagged} ({one.false_alarms_at_most:.2%} at most)"
        shares = (f"{share:.1%}" for share in one.shares.values())
        return (what, one.id, f"{one.calibration_clients:,}", str(one.flagged), alarms, *shares)

    titles = (
        "",
        "baseline",
        "calibrated on",
        "flagged",
        "not known thieves",
        *(f"p ≤ {p:g}" for p in found.live.shares),
    )
    terminal.print_table(titles, [cells(found.live, "live"), cells(found.shadow, "shadow")], "")
    out.print(
        f"flagged by both {found.both}, by the shadow only {len(found.gained)}, by the live one only {len(found.lost)}; the p-value moves "
        f"by {found.moved[0]:.2f} in the median, by more than 0.1 for {found.moved[1]:.0%}",
        soft_wrap=True,
    )
    for what, clients in (("gained", found.gained), ("lost", found.lost)):
        rows = [
            (
                named(c.client_id),
                f"{c.queries:,}",
                f"{c.p_live:.2g}",
                f"{c.p_shadow:.2g}",
                f"{c.state_live} → {c.state_shadow}",
            )
            for c in clients[:SHOWN]
        ]
        if rows:
            terminal.print_table((what, "queries", "p live", "p shadow", "state"), rows, "")
