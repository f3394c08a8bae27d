"""The command line: it turns arguments into calls, and results into tables and exit statuses.

Each command has a module in `commands/`, listed in the table `commands.groups.PANELS`; `wiring` opens what a command needs.

Rules:
* Exit status 0 means done, 1 failed, 2 wrong call. An error is one clear line on standard error.
* Results go to standard output, everything else to standard error. A terminal gets progress bars, anything else gets JSON log lines.
* A command is imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text
from typer._click.exceptions import ClickException, NoArgsIsHelpError

from consumers import terminal
from consumers.commands.groups import Grouped
from consumers.errors import QueryWardenError, WrongUse
from detector.errors import DetectorError

app = typer.Typer(
    name="querywarden",
    cls=Grouped,
    help="Flags clients whose prediction queries look like model extraction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with the exit status of the contract."""
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except WrongUse as error:
        code = terminal.complain(str(error), 2)
    except (QueryWardenError, DetectorError) as error:
        code = terminal.complain(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = terminal.complain("interrupted", 130)
    except BrokenPipeError:
        code = 141
    except OSError as error:
        if error.filename is None:  # no file that somebody named: a bug, or the machine
            raise
        code = terminal.complain(f"{error.filename}: {error.strerror}", 1)
    except NoArgsIsHelpError as error:
        terminal.err.print(Text(error.format_message()), soft_wrap=True)
        code = 2
    except ClickException as error:  # the framework's own: wrong options and arguments
        code = terminal.complain(error.format_message(), 2)
    sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        terminal.out.print(f"querywarden {importlib.metadata.version('querywarden')}")
        raise typer.Exit
