"""What the commands of operators share: the open store, the options of an entry, and how an entry is shown.

Rules:
* The commands work on the store directly, with the secrets file. A user with access to both is an administrator. The audit log
  records the user name on this machine.
* `--json` prints one JSON object per line, the same object that the API answers.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from consumers import config, terminal
from consumers.errors import NotPermitted, WrongUse
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.times import minute
from consumers.wiring import adapters
from consumers.wiring.operators import operations_of, user_of

ModelOption = Annotated[str, typer.Option("--model", help="Model that the entry is for; *: all models.")]
For = Annotated[
    str,
    typer.Option(
        "--for", help="Duration: 90s, 15m, 4h, 7d, 2w; at most 30 days, or http.longest_decision_s of the settings."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation if the client was never seen.")]
Reason = Annotated[str, typer.Option(help="Reason; stored with the entry.")]
DecisionNote = Annotated[str, typer.Option("--note", help="Longer explanation; stored with the decision.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Store and show the decision, but do not enforce it.")]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST_S = 3650 * 86_400


class Desk:
    """A store that is open for an operator."""

    def __init__(self, operations: Operations, reader: Reader, actor: Actor) -> None:
        self.operations, self.reader, self.actor = operations, reader, actor

    def subject(self, client: str, model: str) -> Subject:

        key = self.reader.key_of(model, client)
        return Subject(key.client, model, "" if key.client == client else client)


@contextlib.contextmanager
def open_desk(config_file: Path | None) -> Iterator[Desk]:
    settings = config.load(config_file)
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        reader = Reader(store, secrets, settings.tenant)
        yield Desk(operations_of(settings, store, secrets), reader, user_of(settings))


def seconds(text: str) -> int:
    """``4h`` → 14,400. Raises WrongUse."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw]?)", text.strip())
    if not found:
        raise WrongUse(
            f"--for {text!r} is not a duration: give a whole number with s, m, h, d or w, such as 90s, 15m, 4h, 7d, 2w"
        )
    length = int(found[1]) * _UNITS[found[2] or "s"]
    if length > _LONGEST_S:
        raise WrongUse(f"--for {text}: at most ten years")
    return length


def decision_seconds(desk: Desk, text: str) -> int:
    """Length of a decision. Raises WrongUse beyond what the settings allow."""
    length, longest = seconds(text), desk.operations.longest_s
    if not 1 <= length <= longest:
        raise WrongUse(
            f"--for {text}: a decision holds for 1s to {longest // 86_400}d (setting http.longest_decision_s)"
        )
    return length


def confirm(desk: Desk, subject: Subject, client: str, what: str, yes: bool) -> None:
    """Ask before something is decided about a client that nobody has seen: its name may be misspelt. Raises WrongUse, Abort."""
    if yes or desk.reader.seen(subject.model, subject.client):
        return
    where = "any model" if subject.model == "*" else f"model {subject.model}"
    words = f"no client {named(client)!r} was seen on {where}"
    if not sys.stdin.isatty():
        raise WrongUse(f"{words}; give --yes to {what} it anyway")
    terminal.err.print(Text(f"{words}; {what} it anyway? [y/N] "), end="", soft_wrap=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotPermitted("nothing was done")


def shown(
    rows: Sequence[Any],
    as_json: bool,
    what: str,
    nothing: str,
    titles: Sequence[str],
    cells: Callable[[Any], Sequence[str]],
) -> None:
    def table(_: Any) -> None:
        terminal.print_table(titles, [cells(r) for r in rows], nothing)
        if rows:
            terminal.out.print(terminal.counted(len(rows), len(rows), what))

    terminal.show([msgspec.to_builtins(row) for row in rows], as_json, table)


def end_of(time_s: int) -> str:
    return minute(time_s * 1000) if time_s else "for ever"


def on_model(model: str) -> str:
    return "on every model" if model == "*" else f"on {model}"


def named(client: str) -> str:
    return terminal.plain(client).plain


def report(row: Any, as_json: bool, words: str) -> None:
    terminal.show([msgspec.to_builtins(row)], as_json, lambda _: terminal.out.print(Text(words), soft_wrap=True))
