"""`serve`: the HTTP service alone.

Rules: as in cli.py.
"""

from __future__ import annotations

import contextlib

from consumers import config, terminal
from consumers.commands.options import ConfigFile


def serve(config_file: ConfigFile = None) -> None:
    """Serve the HTTP API, the dashboard and the answers to gateways. It runs until SIGTERM."""
    from consumers.metrics import Metrics
    from consumers.wiring.serve import run_serve

    settings = config.load(config_file)
    terminal.json_logs()
    with terminal.stopping() as stop, contextlib.ExitStack() as stack:
        run_serve(settings, stack, stop, Metrics())
