"""The command `secrets create`, which writes the secrets file of an installation.

Rules: as in cli.py. No secret is printed, only the id of the file's keys. An existing file is never replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from consumers import config, terminal
from consumers.commands.options import AsJson, ConfigFile
from consumers.secrets import Secrets

app = typer.Typer(help="Create the secrets file: sampling key, pepper and sealing key.", no_args_is_help=True)


@app.command("create")
def create(
    file: Annotated[
        Path | None,
        typer.Option("--secrets", metavar="FILE", help="Secrets file to write; default: secrets.file of the settings."),
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Draw new secrets and write them to a file that only its owner can read. An existing file is never replaced."""
    path = file if file is not None else config.load(config_file).secrets_path
    row = {"file": str(path.absolute()), "key_id": Secrets.create(path).key_id}

    def say(_: object) -> None:
        terminal.out.print(Text(f"{row['file']}: secrets {row['key_id']}"), soft_wrap=True)
        terminal.err.print(
            "Give this file to every process of the installation (secrets.file). Back it up, but not together with the snapshots: "
            "without it no snapshot can be restored and no client id can be read.",
            soft_wrap=True,
        )

    terminal.show([row], as_json, say)
