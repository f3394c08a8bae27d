"""`fit`: reference and traffic → a baseline file, and what was understood, refused and odd on the way.

Rules: as in cli.py. The exit status is 1 where so much was refused that the baseline can't be trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consumers import config, paths, terminal
from consumers import fit as fitting
from consumers.baselines import read_personas
from consumers.commands.options import Exclude, MappingName, check_folders
from consumers.commands.recalibrate import print_review
from consumers.commands.understood import print_misfits, print_refused, print_translated, print_understood
from consumers.log.references import lines_of
from consumers.wiring import adapters


def fit(
    out_path: Annotated[Path, typer.Option("--out", help="Baseline file to write.")],
    model_id: Annotated[str, typer.Option("--model-id", help="Id of the model that the baseline is for.")],
    reference: Annotated[
        Path | None, typer.Option(help="Honest inputs with the answers of the model (JSON lines, .gz, .zst, Parquet).")
    ] = None,
    traffic: Annotated[
        list[Path] | None, typer.Option(help="Query log of presumably honest clients; may be given several times.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="JSON file that declares columns: name, kind, lower, upper, grain, categories.")
    ] = None,
    persona: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the declared use of client ids (explainer, qa, …); each use gets null distributions of its own."
        ),
    ] = None,
    exclude: Exclude = None,
    mapping: MappingName = None,
    seed: Annotated[int, typer.Option(help="Seed for the random parts of the fit.")] = 0,
    exposure: Annotated[
        bool,
        typer.Option(
            help="Simulate thefts, so that the exposure of each client (how well a copy from its answers would work) can be estimated."
        ),
    ] = True,
    trust_traffic: Annotated[
        bool,
        typer.Option(
            "--trust-traffic",
            help="Calibrate on every client of the traffic, even on those with more odd queries than any simulated honest tool.",
        ),
    ] = False,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            help="Of texts: compare meanings as well as words, by sentence embeddings (extra `embeddings`), at 9 ms of a core a text.",
        ),
    ] = False,
) -> None:
    """Fit a baseline, a file that describes the honest use of a model."""
    check_folders(out_path)
    declared = paths.read_json(schema) if schema else None
    settings = config.with_mapping(config.load(), mapping)
    translators = [adapters.open_translator(settings, [model_id]) for _ in range(2)]  # of the reference, of the traffic
    with terminal.spinner() as say:
        fitted = fitting.fit(
            model_id,
            lines_of(adapters.open_reference(reference, translators[0])) if reference else None,
            adapters.open_files([str(p) for p in traffic], translator=translators[1]) if traffic else None,
            declared=declared,
            personas=read_personas(persona),
            excluded=fitting.read_excluded(exclude) if exclude else frozenset(),
            seed=seed,
            exposure=exposure,
            trust_traffic=trust_traffic,
            embeddings=embeddings,
            progress=say,
        )
        say("writing")
        fitting.write_baseline(fitted.baseline, out_path)
    baseline = fitted.baseline
    print_understood(fitted.understood)
    for line in fitted.said:
        terminal.err.print(terminal.plain(line), soft_wrap=True)
    for translator in translators:
        print_translated(translator)
    print_review(fitted.review)
    for what, refused in fitted.refused.items():
        print_refused(refused, what)
    print_misfits(fitted.misfits, "the traffic", fitted.expected)
    terminal.out.print(
        f"{out_path}: baseline for {model_id}, map {baseline.map_id}, calibration {baseline.calibration_version}",
        soft_wrap=True,
    )
    if any(refused.hopeless for refused in fitted.refused.values()):
        raise typer.Exit(1)
