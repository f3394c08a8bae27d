"""Arguments and options that several commands share, and what is asked of them before the work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consumers.errors import WrongUse

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML). The environment wins over it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Client = Annotated[str, typer.Argument(help="The client's id, or its hash as listings show it.")]
BaselineFiles = Annotated[
    list[str] | None, typer.Option("--baseline", help="Baseline file or folder; default: the setting `baselines`.")
]
Exclude = Annotated[
    Path | None, typer.Option(help="Text file of client ids, one a line, that are not to be calibrated on.")
]


def check_folders(*paths: Path | None) -> None:
    """Where results go must be there before the work begins, not after it. Raises WrongUse."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise WrongUse(f"{path}: no such folder")
