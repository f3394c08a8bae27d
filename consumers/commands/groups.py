"""The order of commands in `--help`: grouped by task, the main task first.

Rules:
* Plain text, no markup. A command's line is the whole first sentence of its help.
* A command that `PANELS` does not name appears under *Other*, and a test fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperGroup

PANELS: Mapping[str, Sequence[str]] = {
    "Find clients that copy a model": (
        "fit", "replay", "explain", "clients", "alerts", "evidence", "verify-evidence", "backtest", "simulate", "evaluate", "inspect",
    ),
    "Run the service": ("run", "ingest", "detect", "serve", "gateway"),
    "Act as an operator": ("decisions", "allowlist", "schema", "keys", "audit"),
    "Maintain the service": (
        "doctor", "config", "secrets", "recalibrate", "snapshot", "restore", "rebuild", "export", "erase", "indicators", "watermark",
    ),
}  # fmt: skip
"""Title → commands in the order of the listing. A command that this version does not have is skipped."""


class Grouped(TyperGroup):
    """The root command. Its help has one section per panel."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel."""
        left = {name: command for name in self.list_commands(ctx) if (command := self.get_command(ctx, name))}
        sections = {
            title: [(name, left.pop(name)) for name in names if name in left] for title, names in PANELS.items()
        }
        sections["Other"] = list(left.items())
        width = max(len(name) for found in sections.values() for name, _ in found)
        for title, found in sections.items():
            if found:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(width), _line(command)) for name, command in found])


def _line(command: Any) -> str:
    """Return the first sentence of a command's help."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return text.partition(". ")[0].removesuffix(".") + "."
