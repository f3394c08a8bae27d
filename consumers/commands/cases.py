"""`cases`: who works on which finding, and what is done.

Rules: as in `entries`. A case is about one finding; its verdict is given through the API or the dashboard.
"""

from __future__ import annotations

from typing import Annotated

import typer

from consumers import config
from consumers.commands.entries import named, report, shown
from consumers.commands.options import AsJson, ConfigFile
from consumers.errors import Missing
from consumers.operators.operate import assignee_of
from consumers.readers.models import AlertCase
from consumers.records.operator_entries import CaseState
from consumers.wiring.operators import Opened, open_for_operator

app = typer.Typer(help="List, assign and close cases: who works on which finding.", no_args_is_help=True)

AlertId = Annotated[str, typer.Argument(help="Id of the alert, as alerts --json shows it.")]
CaseNote = Annotated[str, typer.Option("--note", help="Note; stored with the case.")]


@app.command("list")
def cases_list(
    closed: Annotated[bool, typer.Option("--closed", help="List closed cases too.")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """List the cases that are open, the last changed first."""
    with open_for_operator(config.load(config_file)) as opened:
        found = sorted(opened.reader.cases().values(), key=lambda c: (-c.at_s, c.alert_id))
    shown(
        [c for c in found if closed or c.state == "open"],
        as_json,
        "cases",
        "there is no case",
        ("alert", "state", "assigned to", "by", "note"),
        lambda c: (c.alert_id, c.state, named(c.assignee), named(c.actor), named(c.note)),
    )


@app.command("assign")
def cases_assign(
    alert: AlertId,
    to: Annotated[str, typer.Option("--to", help="Name of the person; default: you.")] = "",
    note: CaseNote = "",
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Assign the case of a finding to a person."""
    with open_for_operator(config.load(config_file)) as opened:
        made = _worked(opened, alert, to or assignee_of(opened.actor.name), None, note)
    report(made, as_json, f"{named(alert)}: {made.state}, assigned to {named(made.assignee)}")


@app.command("close")
def cases_close(alert: AlertId, note: CaseNote = "", as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Close the case of a finding. It changes no decision and no verdict."""
    with open_for_operator(config.load(config_file)) as opened:
        made = _worked(opened, alert, None, "closed", note)
    report(made, as_json, f"{named(alert)}: closed")


@app.command("reopen")
def cases_reopen(alert: AlertId, note: CaseNote = "", as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Open the case of a finding again."""
    with open_for_operator(config.load(config_file)) as opened:
        made = _worked(opened, alert, None, "open", note)
    report(made, as_json, f"{named(alert)}: open")


def _worked(opened: Opened, alert: str, assignee: str | None, state: CaseState | None, note: str) -> AlertCase:
    """Raises Missing for an alert that the store does not hold."""
    if opened.reader.alert(alert) is None:
        raise Missing(f"no alert {named(alert)!r} in the last 30 days")
    made = opened.operations.work_on(opened.actor, alert, assignee=assignee, state=state, note=note)
    return AlertCase(made.alert_id, made.assignee, made.state, made.note, made.actor, made.at_s)
