"""Commands that compute values for the configuration of a gateway: client hashes, and the key that makes them.

Rules: ids and API keys come from standard input, never as arguments, which other users of the machine can see. Nothing is stored.
"""

from __future__ import annotations

import base64
import sys

import typer

from consumers import config, terminal
from consumers.commands.options import ConfigFile
from consumers.errors import WrongUse
from consumers.secrets import Secrets

app = typer.Typer(help="Compute values for the configuration of a gateway.", no_args_is_help=True)


@app.command("hash")
def hash_of(config_file: ConfigFile = None) -> None:
    """Print the client hash of each line of standard input, for gateway.client_map or to find a client in a gateway's map."""
    settings = config.load(config_file)
    secrets = Secrets.load(settings.secrets_path)
    if sys.stdin.isatty():
        raise WrongUse(
            "give ids or keys on standard input, one per line; other users of this machine could see arguments"
        )
    for line in sys.stdin:
        if text := line.rstrip("\r\n"):
            terminal.out.print(secrets.client_hash(settings.tenant, text))


@app.command("edge-key")
def edge_key(config_file: ConfigFile = None) -> None:
    """Print the key, in base64, with which HAProxy turns an API key into a client hash. Keep it secret: its owner can guess ids."""
    settings = config.load(config_file)
    secrets = Secrets.load(settings.secrets_path)
    terminal.out.print(base64.b64encode(secrets.edge_key(settings.tenant)).decode())
