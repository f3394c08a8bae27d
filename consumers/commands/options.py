"""Arguments and options that several commands share, and the check that output folders exist before the work begins.

Rules: an option that two commands take stands here once, so that it has one name and one help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consumers.errors import WrongUse

ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML). Environment variables override it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Client = Annotated[str, typer.Argument(help="Id of the client, or its hash as listings show it.")]
BaselineFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline", help="Baseline file or folder; may be given several times; default: the setting `baselines`."
    ),
]
MappingName = Annotated[
    str | None,
    typer.Option(
        "--mapping",
        metavar="NAME|FILE",
        help="Format of the log: native, a preset, or a mapping file; default: the setting `log.mapping`.",
    ),
]
Exclude = Annotated[
    Path | None,
    typer.Option(help="Text file with one client id per line; these clients are excluded from the calibration."),
]


def check_folders(*paths: Path | None) -> None:
    """Check that the folders of all output files exist, before the work begins. Raises WrongUse."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise WrongUse(f"{path}: no such folder")
