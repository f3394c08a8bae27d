"""`simulate`: a log of honest clients and of thefts, and the truth beside it.

Rules: as in cli.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consumers import simulate as simulating
from consumers import terminal, text_simulation


def simulate(
    out_path: Annotated[Path, typer.Option("--out", help="Query log to write (.jsonl, .jsonl.gz, .jsonl.zst).")],
    reference: Annotated[
        Path, typer.Option(help="Reference file, of rows or of texts; the simulated queries are drawn from it.")
    ],
    clients: Annotated[int, typer.Option(help="Number of honest clients.")] = 300,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack to simulate, FAMILY or FAMILY/VARIANT; may be given several times; default: every family."
        ),
    ] = None,
    model_id: Annotated[
        str | None, typer.Option(help="Model id of the events; default: the model id of the reference.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for everything random.")] = 0,
    linked: Annotated[
        bool,
        typer.Option(
            "--linked", help="Add metadata to the events; the accounts of one theft then share an organisation."
        ),
    ] = False,
) -> None:
    """Write a query log of simulated honest clients and extraction attacks, and a file with the truth about each client."""
    of_texts = text_simulation.is_of_texts(reference)
    make = text_simulation.simulate_texts if of_texts else simulating.simulate
    chosen = attack or (text_simulation.TEXT_ATTACKS if of_texts else simulating.PLAIN_ATTACKS)
    with terminal.spinner() as say:
        say("simulating")
        truth = make(reference, out_path, model_id=model_id, clients=clients, seed=seed, attacks=chosen, linked=linked)
    thieves = sum(t["role"] == "attack" for t in truth["clients"].values())
    terminal.out.print(
        f"{out_path}: {len(truth['clients'])} clients, {thieves} of them attacking accounts; truth in {simulating.truth_path(out_path)}",
        soft_wrap=True,
    )
