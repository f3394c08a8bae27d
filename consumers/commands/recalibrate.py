"""The command `recalibrate`, and the list of outliers that it and `fit` print for review.

Rules: as in cli.py. The store is read and never written. The baseline file is written completely or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from consumers import config, terminal
from consumers import recalibrate as recalibrating
from consumers.baselines import load_baselines, read_personas
from consumers.commands.options import BaselineFiles, ConfigFile, Exclude, check_folders
from consumers.errors import WrongUse
from consumers.fit import first_words, read_excluded, write_baseline
from consumers.wiring import adapters
from detector.fitting.recalibration import Outlier

SHOWN = 20


def recalibrate(
    out_path: Annotated[Path, typer.Option("--out", help="Baseline file to write.")],
    baseline: BaselineFiles = None,
    model: Annotated[
        str | None, typer.Option(help="Model to recalibrate; needed if there are several baselines.")
    ] = None,
    exclude: Exclude = None,
    include_flagged: Annotated[
        bool,
        typer.Option(
            "--include-flagged",
            help="Calibrate on flagged clients too, except on those that an analyst's verdict confirmed.",
        ),
    ] = False,
    min_days: Annotated[
        float,
        typer.Option(min=0, help="Refuse to recalibrate unless at least 20 clients were observed for this many days."),
    ] = 7.0,
    config_file: ConfigFile = None,
) -> None:
    """Recalibrate a baseline on the clients that the service observed. The feature map and all profiles stay as they are."""
    check_folders(out_path)
    settings = config.load(config_file)
    baselines = load_baselines(baseline or list(settings.baselines))
    if model is None and len(baselines) != 1:
        raise WrongUse(f"{len(baselines)} baselines: name one with --baseline FILE or --model")
    old = baselines.get(model) if model is not None else next(iter(baselines.values()))
    if old is None:
        raise WrongUse(f"no baseline of model {model}")
    presumption = recalibrating.Presumption(
        read_personas(settings.personas),
        read_excluded(exclude) if exclude else frozenset(),
        include_flagged,
    )
    with terminal.spinner() as say, adapters.open_store(settings) as store:
        say("reading the observed clients")
        secrets = adapters.secrets_of(settings, store)
        made = recalibrating.recalibrate(store, secrets, settings.tenant, old, presumption, min_days)
        say("writing")
        write_baseline(made.baseline, out_path)
    new = made.baseline
    for line in new.notes:
        terminal.err.print(Text(line), soft_wrap=True)
    print_review(made.review)
    if made.first:
        terminal.err.print(terminal.plain(first_words(made.first)), soft_wrap=True)
    terminal.err.print(
        "to use it, put it among the baselines of the service and restart ingest and detect; the profiles stay",
        soft_wrap=True,
    )
    terminal.out.print(
        Text(f"{out_path}: baseline for {new.model_id}, map {new.map_id}, calibration {new.calibration_version}"),
        soft_wrap=True,
    )


def print_review(review: Sequence[Outlier]) -> None:
    """Print the clients whose statistics are far above all others, for review."""
    if not review:
        return
    terminal.err.print(
        f"{len(review)} clients are far above the others. Check them, and list those that are not honest in a file for --exclude:",
        soft_wrap=True,
    )
    for one in review[:SHOWN]:
        times = f"{one.times:.0f} times the 90th percentile of the clients"
        line = f"  {terminal.plain(one.client).plain}: {one.signal} {one.mass:,.0f}, {times}"
        line += "; excluded from the calibration" if one.excluded else ""
        terminal.err.print(Text(line), soft_wrap=True)
    if len(review) > SHOWN:
        terminal.err.print(f"  and {len(review) - SHOWN} more", soft_wrap=True)
