"""`recalibrate`, and the list of clients to look at that it shares with `fit`.

Rules: as in cli.py. The store is read, never written; the baseline appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from consumers import config, terminal
from consumers.commands.options import BaselineFiles, ConfigFile, Exclude, check_folders
from consumers.errors import WrongUse
from consumers.wiring import adapters

if TYPE_CHECKING:
    from detector.recalibration import Outlier

SHOWN = 20


def recalibrate(
    out_path: Annotated[Path, typer.Option("--out", help="Where to write the new baseline.")],
    baseline: BaselineFiles = None,
    model: Annotated[str | None, typer.Option(help="The model; needed where there are several baselines.")] = None,
    exclude: Exclude = None,
    include_flagged: Annotated[
        bool,
        typer.Option(
            "--include-flagged", help="Take flagged clients as honest too, except those that a verdict calls thieves."
        ),
    ] = False,
    min_days: Annotated[
        float, typer.Option(min=0, help="At least 20 clients must have been seen for this many days.")
    ] = 7.0,
    config_file: ConfigFile = None,
) -> None:
    """Calibrate a baseline anew on the clients that the service saw; the map and all profiles stay."""
    from consumers import recalibrate as recalibrating
    from consumers.fit import load_baselines, read_excluded, read_personas, write_baseline

    check_folders(out_path)
    settings = config.load(config_file)
    baselines = load_baselines(baseline or list(settings.baselines))
    if model is None and len(baselines) != 1:
        raise WrongUse(f"{len(baselines)} baselines: name one with --baseline FILE or --model")
    old = baselines.get(model) if model is not None else next(iter(baselines.values()))
    if old is None:
        raise WrongUse(f"no baseline of model {model}")
    presumption = recalibrating.Presumption(
        read_personas(Path(settings.personas)) if settings.personas else {},
        read_excluded(exclude) if exclude else frozenset(),
        include_flagged,
    )
    with terminal.spinner() as say, adapters.open_store(settings) as store:
        say("reading what the service saw")
        secrets = adapters.secrets_of(settings, store)
        made = recalibrating.recalibrate(store, secrets, settings.tenant, old, presumption, min_days)
        say("writing")
        write_baseline(made.baseline, out_path)
    new = made.baseline
    for line in new.notes:
        terminal.err.print(Text(line), soft_wrap=True)
    print_review(made.review)
    terminal.err.print(
        "put it where the service finds its baselines and restart ingest and detect; profiles go on", soft_wrap=True
    )
    terminal.out.print(
        Text(f"{out_path}: baseline for {new.model_id}, map {new.map_id}, nulls {new.nulls_version}"), soft_wrap=True
    )


def print_review(review: Sequence[Outlier]) -> None:
    """Clients far beyond the others, for a human to look at."""
    if not review:
        return
    terminal.err.print(
        f"{len(review)} clients are far beyond the others. Check them, and list those that are not honest in a file for --exclude:",
        soft_wrap=True,
    )
    for one in review[:SHOWN]:
        line = f"  {terminal.plain(one.client).plain}: {one.signal} {one.mass:,.0f}, {one.times:.0f} times what nine in ten stay below"
        line += "; left out of the calibration" if one.left_out else ""
        terminal.err.print(Text(line), soft_wrap=True)
    if len(review) > SHOWN:
        terminal.err.print(f"  and {len(review) - SHOWN} more", soft_wrap=True)
