"""`run`, `ingest`, `detect`, `serve`: the processes of the service, each until SIGTERM.

Rules: as in cli.py. What a process does not need is not loaded: `wiring` imports it when the process is started.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from consumers import config, terminal
from consumers.commands.options import ConfigFile, MappingName
from consumers.telemetry.metrics import Metrics
from consumers.wiring import processes


def ingest(
    config_file: ConfigFile = None,
    mapping: MappingName = None,
    until_end: Annotated[
        bool,
        typer.Option("--until-end", help="Stop as soon as all records that the log held at the start are committed."),
    ] = False,
) -> None:
    """Read the query log and keep statistics of each client. It runs until SIGTERM."""
    _run(processes.run_ingest, config_file, until_end, mapping)


def detect(
    config_file: ConfigFile = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Stop as soon as no client has queries that were not assessed.")
    ] = False,
) -> None:
    """Assess clients with new queries, decide, and send alerts. It runs until SIGTERM."""
    _run(processes.run_detect, config_file, until_idle)


def serve(config_file: ConfigFile = None) -> None:
    """Serve the HTTP API, the dashboard and the answers to gateways. It runs until SIGTERM."""
    settings = _service(config_file)
    with terminal.stopping() as stop, contextlib.ExitStack() as stack:
        processes.run_serve(settings, stack, stop, Metrics())


def run(
    config_file: ConfigFile = None,
    until_end: Annotated[
        bool,
        typer.Option(
            "--until-end", help="Stop as soon as all records that the log held at the start are committed and assessed."
        ),
    ] = False,
) -> None:
    """Run ingest, detect and serve in one process. It runs until SIGTERM."""
    settings = _service(config_file)
    with terminal.stopping() as stop:
        processes.run_all(settings, stop, until_end, Metrics())


def _service(config_file: Path | None) -> config.Settings:
    settings = config.load(config_file)
    terminal.json_logs()
    return settings


def _run(process: Callable[..., None], config_file: Path | None, ends: bool, mapping: str | None = None) -> None:
    """One process of the service, until SIGTERM or, with `ends`, until nothing is left to do."""
    settings = config.with_mapping(_service(config_file), mapping)
    with terminal.stopping() as stop, contextlib.ExitStack() as stack:
        process(settings, stack, stop, ends, Metrics())
