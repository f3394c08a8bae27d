"""The table of commands: what `--help` lists, grouped by task, and where each command is.

Rules:
* A command's module is imported when the command is asked for, never before: `--help` loads none of them. This table and the room `wiring`
  are the only places of such imports (tests/test_house.py).
* Plain text, no markup. A command's line is the whole first sentence of its help; a test compares the two.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup


class CommandRow(NamedTuple):
    """place: ``module:name`` in this folder, a function or a group of commands; line: the first sentence of its help."""

    place: str
    line: str


PANELS: Mapping[str, Mapping[str, CommandRow]] = {
    "Find clients that copy a model": {
        "inspect": CommandRow(
            "inspect:inspect", "Recognise the format of a query log, and show how its records are read."
        ),
        "fit": CommandRow("fit:fit", "Fit a baseline, a file that describes the honest use of a model."),
        "replay": CommandRow(
            "replay:replay",
            "Read query logs, assess every client, and show which clients look like model extraction, and why.",
        ),
        "explain": CommandRow(
            "explain:explain",
            "Explain the state of a client: its signals, its history, and what would change the state.",
        ),
        "clients": CommandRow(
            "listings:clients", "List the clients of the store, most suspicious first, and the campaigns."
        ),
        "alerts": CommandRow("listings:alerts", "List the alerts of the last 30 days, oldest first."),
        "evidence": CommandRow(
            "explain:evidence", "Write a signed evidence bundle: decision, alerts, profile, audit rows and method."
        ),
        "verify-evidence": CommandRow(
            "explain:verify_evidence",
            "Check an evidence bundle: signature, hashes, scores, its place in the chain, the audit log.",
        ),
        "backtest": CommandRow(
            "backtest:backtest", "Show which clients of old logs would be flagged, for several budgets and modes."
        ),
        "evaluate": CommandRow(
            "evaluate:evaluate",
            "Simulate thefts of a model, and show which its baseline would catch, after how many queries and at what exposure.",
        ),
        "simulate": CommandRow(
            "simulate:simulate",
            "Write a query log of simulated honest clients and extraction attacks, and a file with the truth about each client.",
        ),
    },
    "Run the service": {
        "run": CommandRow("processes:run", "Run ingest, detect and serve in one process."),
        "ingest": CommandRow("processes:ingest", "Read the query log and keep statistics of each client."),
        "detect": CommandRow("processes:detect", "Assess clients with new queries, decide, and send alerts."),
        "serve": CommandRow("processes:serve", "Serve the HTTP API, the dashboard and the answers to gateways."),
        "gateway": CommandRow("gateways:app", "Compute values for the configuration of a gateway."),
    },
    "Act as an operator": {
        "decisions": CommandRow("decisions:app", "List, make and withdraw operators' decisions."),
        "allowlist": CommandRow(
            "operators:allowlist_app", "List and change the allowlist: clients that are never throttled or blocked."
        ),
        "cases": CommandRow("cases:app", "List, assign and close cases: who works on which finding."),
        "schema": CommandRow(
            "schema:app",
            "List and decide schema holds: columns in which many clients began to send values that do not fit.",
        ),
        "indicators": CommandRow(
            "indicators:app", "Exchange indicators with peers: keyed hashes of what flagged clients were seen with."
        ),
        "watermark": CommandRow(
            "watermark:app",
            "Make watermark keys, record canaries, and test whether a suspected model learned from marked answers.",
        ),
        "keys": CommandRow("operators:keys_app", "Create, list and revoke API keys."),
        "audit": CommandRow("operators:audit_app", "Check the audit log, and list who looked at a client."),
    },
    "Maintain the service": {
        "doctor": CommandRow(
            "doctor:doctor", "Check servers, files and settings, and report what is insecure or does not answer."
        ),
        "config": CommandRow("settings:app", "Show, check and list the settings."),
        "secrets": CommandRow("secrets:app", "Create the secrets file, and rotate or destroy the keys of a tenant."),
        "baseline": CommandRow(
            "baseline:app", "Try a new baseline beside the live one, compare them, promote it, and roll back."
        ),
        "recalibrate": CommandRow(
            "recalibrate:recalibrate", "Recalibrate a baseline on the clients that the service observed."
        ),
        "snapshot": CommandRow(
            "upkeep:snapshot", "Write the whole content of the store to a file, while the service runs."
        ),
        "restore": CommandRow("upkeep:restore", "Fill an empty store from a snapshot."),
        "rebuild": CommandRow("upkeep:rebuild", "Drop profiles, so that ingest reads the log again."),
        "export": CommandRow("upkeep:export", "Print all stored data about a client, as JSON."),
        "erase": CommandRow(
            "upkeep:erase", "Erase a client for good: profiles, decisions, alerts, operators' entries, canaries."
        ),
    },
}
"""Title → command → row, in the order of the listing."""

COMMANDS: Mapping[str, CommandRow] = {name: row for rows in PANELS.values() for name, row in rows.items()}


def loaded(name: str) -> Any:
    """Import a command and return what the framework runs. Raises KeyError for a name that is none."""
    module, _, attribute = COMMANDS[name].place.partition(":")
    command = getattr(importlib.import_module(f"consumers.commands.{module}"), attribute)
    holder = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    if isinstance(command, typer.Typer):
        holder.add_typer(command, name=name)
    else:
        holder.command(name)(command)
    return typer.main.get_group(holder).commands[name]


class Commands(MutableMapping[str, Any]):
    """Name → command, imported when it is asked for."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = loaded(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("the table of commands does not change")

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS


class Grouped(TyperGroup):
    """The root command. Its help has one section per panel; its commands come from the table."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel."""
        width = max(map(len, COMMANDS))
        for title, rows in PANELS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), row.line) for name, row in rows.items()])
