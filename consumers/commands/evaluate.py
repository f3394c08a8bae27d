"""`evaluate`: a baseline → which simulated thefts of its model would be caught, after how many queries, at what exposure.

Rules: as in cli.py. Nothing is written but the page. The limits are printed with every table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from consumers import config, terminal
from consumers import evaluate as evaluating
from consumers.baselines import load_baselines
from consumers.commands.options import AsJson, BaselineFiles, ConfigFile, check_folders
from consumers.errors import WrongUse
from consumers.log.references import lines_of
from consumers.readers.evaluation import EvaluationReport, share_words, write_page
from consumers.wiring import adapters


def evaluate(
    baseline: BaselineFiles = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Honest inputs with the answers of the model, as for fit; without it, only thieves that look at no answer are simulated."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to evaluate, if there are several baselines.")] = None,
    family: Annotated[
        list[str] | None, typer.Option(help="Family of thefts; may be given several times; default: all.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="How the theft is hidden: plain (not at all), drip50 (half honest cover), sybil10 (split over ten accounts), "
            "or another variant of simulate; may be given several times; default: these three."
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Thefts of each family and variant.")] = 3,
    queries: Annotated[
        int, typer.Option(min=10, max=100_000, help="Stolen answers of each theft; cover queries come on top.")
    ] = 1000,
    budget: Annotated[
        float | None,
        typer.Option("--false-alarm-budget", help="Lifetime false-alarm budget; default: the setting."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write an HTML page with a plot.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for the simulated thefts.")] = 0,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Simulate thefts of a model, and show which its baseline would catch, after how many queries and at what exposure."""
    check_folders(out)
    settings = config.load(config_file)
    known = load_baselines(baseline or list(settings.baselines))
    if model is None and len(known) != 1:
        raise WrongUse("no baseline: give --baseline FILE" if not known else f"give --model: {', '.join(known)}")
    name = model or next(iter(known))
    if name not in known:
        raise WrongUse(f"--model: there is no baseline for it; there are: {', '.join(known)}")
    asked = evaluating.EvaluationRequest(
        families=tuple(family or ()),
        variants=tuple(variant or evaluating.EvaluationRequest().variants),
        repeats=repeats,
        queries=queries,
        budget=settings.false_alarm_budget if budget is None else budget,
        seed=seed,
    )
    translator = adapters.open_translator(settings, [name])
    lines = lines_of(adapters.open_reference(reference, translator)) if reference else None
    with terminal.spinner() as say:

        def tell(done: int, most: int) -> None:
            if not done % max(1, most // 10):
                say(f"simulating thefts, {done} of {most}")

        found = evaluating.evaluate(known[name], lines, asked, tell)
    if out is not None:
        write_page(out, found)
    if as_json:
        rows = [{"kind": "family", **msgspec.to_builtins(row)} for row in found.families]
        run = {"model_id": found.model_id, "budget": found.budget, "stolen": found.stolen, "seed": seed}
        total = {"thefts": found.thefts, "caught": found.caught, "limits": list(found.limits)}
        terminal.print_json_lines([*rows, {"kind": "run", **run, **total}])
        return
    _print(found)
    if out is not None:
        terminal.err.print(f"{out}: page with the plot", soft_wrap=True)


def _print(found: EvaluationReport) -> None:
    terminal.print_table(
        ("family", "variant", "caught", "queries", "exposure when caught", "if not caught", "leading signal"),
        [
            (
                row.family, row.variant, f"{row.caught} of {row.thefts}", f"{row.median:,}" if row.median else "–",
                share_words(row.exposure), share_words(row.missed_exposure), row.signal,
            )
            for row in found.families
        ],
    )  # fmt: skip
    terminal.out.print(
        f"{found.caught} of {found.thefts} simulated thefts of {terminal.plain(found.model_id).plain} were caught at a budget of"
        f" {found.budget:g}; queries: median of those caught",
        soft_wrap=True,
    )
    for line in found.limits:
        terminal.err.print(line, soft_wrap=True)
