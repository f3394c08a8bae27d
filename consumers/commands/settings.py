"""`config`: shows, checks and lists the settings.

Rules: as in cli.py. No secret is printed.
"""

from __future__ import annotations

import typer

from consumers import config, terminal
from consumers.commands.options import ConfigFile

app = typer.Typer(help="Show, check and list the settings.", no_args_is_help=True)


@app.command("show")
def config_show(config_file: ConfigFile = None) -> None:
    """Show the settings in force; secrets are masked."""
    terminal.print_json(config.shown(config.load(config_file)))


@app.command("check")
def config_check(config_file: ConfigFile = None) -> None:
    """Check that the settings are well-formed."""
    config.load(config_file)
    terminal.out.print("settings are well-formed")


@app.command("schema")
def config_schema() -> None:
    """List every setting with its environment variable, default and meaning."""
    terminal.print_table(("TOML", "environment", "default", "meaning"), config.rows())
