"""Commands for schema holds: columns in which many clients began to send the same value that does not fit the schema.

Rules: the commands work on the store directly. Each decision leaves a row in the audit log.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.text import Text

from consumers import config, terminal
from consumers.commands.options import AsJson, ConfigFile
from consumers.records.schema_holds import holds_of
from consumers.wiring import adapters
from consumers.wiring.operators import operations_of, user_of

app = typer.Typer(
    help="List and decide schema holds: columns in which many clients began to send values that do not fit.",
    no_args_is_help=True,
)
Model = Annotated[str, typer.Argument(help="Id of the model.")]
Column = Annotated[str, typer.Argument(help="Column, as `schema list` shows it.")]
Reason = Annotated[str, typer.Option(help="Reason; stored in the audit log.")]


@app.command("list")
def schema_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the columns with a schema hold, and the operators' decisions on them."""
    settings = config.load(config_file)
    with adapters.open_store(settings) as store:
        rows = holds_of(store, settings.tenant)
    terminal.show(
        [msgspec.to_builtins(row) for row in rows],
        as_json,
        lambda _: terminal.print_table(
            ("model", "column", "clients", "decision", "by"),
            [(row.model, row.column, f"{row.clients} of {row.of_clients}", row.ruling, row.actor) for row in rows],
            "no column has a schema hold",
        ),
    )


@app.command("accept")
def schema_accept(model: Model, column: Column, reason: Reason = "", config_file: ConfigFile = None) -> None:
    """Accept a change of a column that was intended. Its misfits do not count as evidence until the model is fitted again."""
    _rule(model, column, "accepted", reason, config_file)


@app.command("dismiss")
def schema_dismiss(model: Model, column: Column, reason: Reason = "", config_file: ConfigFile = None) -> None:
    """Dismiss a change of a column that was not intended. Its misfits count as evidence again."""
    _rule(model, column, "dismissed", reason, config_file)


def _rule(model: str, column: str, ruling: str, reason: str, config_file: ConfigFile) -> None:
    settings = config.load(config_file)
    with adapters.open_store(settings) as store:
        operations = operations_of(settings, store, adapters.secrets_of(settings, store))
        made = operations.rule_on_schema(user_of(settings), model, column, ruling, reason)  # type: ignore[arg-type]
    terminal.out.print(Text(f"{made.model}, column {made.column}: {made.ruling}"), soft_wrap=True)
