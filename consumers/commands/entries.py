"""What the commands about operators' entries share: the options of an entry, its checks, and how it is shown.

Rules:
* The commands work on the store directly, with the secrets file. A user with access to both is an administrator. The audit log
  records the user name on this machine.
* `--json` prints one JSON object per line, the same object that the API answers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from consumers import terminal
from consumers.errors import NotPermitted, WrongUse
from consumers.operators.audited_write import Subject
from consumers.readers.queries import Reader
from consumers.times import minute
from consumers.wiring.operators import Opened

ModelOption = Annotated[str, typer.Option("--model", help="Model that it holds for; *: all models.")]
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


def subject_of(reader: Reader, client: str, model: str) -> Subject:
    """The client of an entry, given by its id or its hash."""
    key = reader.key_of(model, client)
    return Subject(key.client, model, "" if key.client == client else client)


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


def decision_seconds(opened: Opened, text: str) -> int:
    """Length of a decision. Raises WrongUse beyond what the settings allow."""
    length, longest = seconds(text), opened.operations.longest_s
    if not 1 <= length <= longest:
        raise WrongUse(
            f"--for {text}: a decision holds for 1s to {longest // 86_400}d (setting http.longest_decision_s)"
        )
    return length


def confirm(opened: Opened, subject: Subject, client: str, what: str, yes: bool) -> None:
    """Ask before something is decided about a client that nobody has seen: its name may be misspelt. Raises WrongUse, Abort."""
    if yes or opened.reader.seen(subject.model, subject.client):
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
