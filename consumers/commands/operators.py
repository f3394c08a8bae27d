"""Commands for operators: decisions, the allowlist, API keys, the audit log, and `doctor`.

Rules:
* The commands work on the store directly, with the secrets file. A user with access to both is an administrator. The audit log
  records the user name on this machine.
* `--json` prints one JSON object per line, the same object that the API answers.
"""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from consumers import config, terminal
from consumers.commands.options import AsJson, Client, ConfigFile
from consumers.errors import Missing, NotPermitted, Unavailable, WrongUse
from consumers.operators import audit
from consumers.operators.api_keys import without_digest
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.operate import LONGEST_KEY_S, Operations
from consumers.readers.queries import Reader
from consumers.readers.refusals import RefusedClient, refused
from consumers.records.heartbeat import services
from consumers.records.operator_entries import ApiKey
from consumers.store import OperatorStore
from consumers.times import minute
from consumers.wiring import adapters
from consumers.wiring.operators import mirror_of, operations_of, user_of

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

decisions_app = typer.Typer(help="List, make and withdraw operators' decisions.", no_args_is_help=True)
allowlist_app = typer.Typer(
    help="List and change the allowlist: clients that are never throttled or blocked.", no_args_is_help=True
)
keys_app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
audit_app = typer.Typer(help="Check the audit log.", no_args_is_help=True)

_CAUSES = {
    "anonymous": "The request named no client, and its route is closed to such requests (gateway.routes).",
    "unsynced": "The service had not read the store yet, and the route is closed until then (gateway.routes).",
    "crowded": "The request named more identities than allowed.",
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST_S = 3650 * 86_400


class _Desk:
    """A store that is open for an operator."""

    def __init__(self, operations: Operations, reader: Reader, actor: Actor) -> None:
        self.operations, self.reader, self.actor = operations, reader, actor

    def subject(self, client: str, model: str) -> Subject:

        key = self.reader.key_of(model, client)
        return Subject(key.client, model, "" if key.client == client else client)


@contextlib.contextmanager
def _desk(config_file: Path | None) -> Iterator[_Desk]:
    settings = config.load(config_file)
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        reader = Reader(store, secrets, settings.tenant)
        yield _Desk(operations_of(settings, store, secrets), reader, user_of(settings))


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


def _decision_seconds(desk: _Desk, text: str) -> int:
    """Length of a decision. Raises WrongUse beyond what the settings allow."""
    length, longest = seconds(text), desk.operations.longest_s
    if not 1 <= length <= longest:
        raise WrongUse(
            f"--for {text}: a decision holds for 1s to {longest // 86_400}d (setting http.longest_decision_s)"
        )
    return length


def _confirm(desk: _Desk, subject: Subject, client: str, what: str, yes: bool) -> None:
    """Ask before something is decided about a client that nobody has seen: its name may be misspelt. Raises WrongUse, Abort."""
    if yes or desk.reader.seen(subject.model, subject.client):
        return
    where = "any model" if subject.model == "*" else f"model {subject.model}"
    words = f"no client {_named(client)!r} was seen on {where}"
    if not sys.stdin.isatty():
        raise WrongUse(f"{words}; give --yes to {what} it anyway")
    terminal.err.print(Text(f"{words}; {what} it anyway? [y/N] "), end="", soft_wrap=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise NotPermitted("nothing was done")


def _shown(
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


def _until(time_s: int) -> str:
    return minute(time_s * 1000) if time_s else "for ever"


def _where(model: str) -> str:
    return "on every model" if model == "*" else f"on {model}"


# ----------------------------------------------------------------------------------------------------- decisions


@decisions_app.command("list")
def decisions_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the operators' decisions in force and the dry runs, newest first."""
    with _desk(config_file) as desk:
        rows = desk.reader.decisions(simulated=True)
    _shown(
        rows, as_json, "decisions", "no operator's decision is in force", ("client", "model", "state", "until", "by", "reason"),
        lambda d: (
            terminal.plain(d.client_id or d.client_key).plain, d.model_id, f"{d.state}{' (dry run)' if d.simulated else ''}",
            _until(d.until_s), d.actor, terminal.plain(d.reason).plain,
        ),
    )  # fmt: skip


@decisions_app.command("reference")
def decisions_reference(
    reference: Annotated[str, typer.Argument(help="Reference id from the refusal, such as 20260131-9f3ab2c4d5e6f708.")],
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Find the client that a gateway refused, by the reference id of the refusal. The exit status is 1 if none is found."""
    with _desk(config_file) as desk:
        found = refused(desk.reader, reference)
    if found is None:
        raise Missing("the store knows no client that was refused with this reference")
    _said(found, as_json, _refusal(found))


def _refusal(found: RefusedClient) -> str:
    """What a reference stands for, in words."""
    if found.cause:
        return f"{found.answer} on {found.day}: no particular client. {_CAUSES[found.cause]}"
    lines = [f"{found.answer} on {found.day}: {_named(found.client_id or found.client_key or '')}. Now:"]
    for one in found.models:
        until = f" until {_until(one.until_s)}" if one.until_s else ""
        lines.append(f"  {_named(one.model_id)}: {one.state}{until}, enforced: {one.enforced}")
    lines += [
        f"  operator {d.actor}: {d.state} {_where(d.model_id)} until {_until(d.until_s)}" for d in found.decisions
    ]
    if found.allowed:
        lines.append("  on the allowlist")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing is stored about this client"])


def _decide(
    state: str,
    client: str,
    model: str,
    ttl: str,
    reason: str,
    note: str,
    dry: bool,
    yes: bool,
    as_json: bool,
    config_file: Path | None,
) -> None:
    with _desk(config_file) as desk:
        subject, ttl_s = desk.subject(client, model), _decision_seconds(desk, ttl)
        _confirm(desk, subject, client, {"clear": "release"}.get(state, state), yes)
        made = desk.operations.decide(desk.actor, subject, state, ttl_s=ttl_s, reason=reason, note=note, simulated=dry)
        row = next(
            d for d in desk.reader.decisions(simulated=True) if (d.client_key, d.model_id) == (made.client, made.model)
        )
    words = f"{row.state} {_where(row.model_id)} until {_until(row.until_s)}"
    _said(row, as_json, f"{_named(client)}: {words}{', dry run: nothing is enforced' if dry else ''}")


@decisions_app.command("block")
def decisions_block(
    client: Client,
    model: ModelOption = "*",
    ttl: For = "24h",
    reason: Reason = "",
    note: DecisionNote = "",
    dry: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Block a client for a while."""
    _decide("block", client, model, ttl, reason, note, dry, yes, as_json, config_file)


@decisions_app.command("throttle")
def decisions_throttle(
    client: Client,
    model: ModelOption = "*",
    ttl: For = "24h",
    reason: Reason = "",
    note: DecisionNote = "",
    dry: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Slow a client down for a while."""
    _decide("throttle", client, model, ttl, reason, note, dry, yes, as_json, config_file)


@decisions_app.command("degrade")
def decisions_degrade(
    client: Client,
    model: ModelOption = "*",
    ttl: For = "24h",
    reason: Reason = "",
    note: DecisionNote = "",
    dry: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Let a client through to answers with less detail for a while; gateway.degrade names the steps."""
    _decide("degrade", client, model, ttl, reason, note, dry, yes, as_json, config_file)


@decisions_app.command("release")
def decisions_release(
    client: Client,
    model: ModelOption = "*",
    ttl: For = "24h",
    reason: Reason = "",
    withdraw: Annotated[
        bool,
        typer.Option(
            "--withdraw", help="Only withdraw the operator's decision; the detected decision is in force again."
        ),
    ] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Let a client through for a while, whatever was detected or decided before."""
    if not withdraw:
        _decide("clear", client, model, ttl, reason, "", False, yes, as_json, config_file)
        return
    with _desk(config_file) as desk:
        gone = desk.operations.withdraw(desk.actor, desk.subject(client, model))
    _said(gone, as_json, f"{_named(client)}: withdrawn, {gone.state} {_where(gone.model)} by {gone.actor}")


# ----------------------------------------------------------------------------------------------------- allowlist


@allowlist_app.command("list")
def allowlist_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the entries of the allowlist, newest first."""
    with _desk(config_file) as desk:
        rows = desk.reader.allowlist()
    _shown(
        rows, as_json, "entries", "the allowlist is empty", ("client", "model", "until", "by", "origin", "reason"),
        lambda a: (
            terminal.plain(a.client_id or a.client_key).plain, a.model_id, _until(a.until_s), a.actor, a.origin,
            terminal.plain(a.reason).plain,
        ),
    )  # fmt: skip


@allowlist_app.command("add")
def allowlist_add(
    client: Client,
    model: ModelOption = "*",
    ttl: Annotated[str, typer.Option("--for", help="Duration: 7d, 2w; 0: until the entry is removed.")] = "0",
    reason: Reason = "",
    yes: Yes = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Add a client to the allowlist: it is never throttled or blocked."""
    with _desk(config_file) as desk:
        subject, ttl_s = desk.subject(client, model), seconds(ttl)
        _confirm(desk, subject, client, "allowlist", yes)
        made = desk.operations.allow(desk.actor, subject, ttl_s=ttl_s, reason=reason)
    until = f" until {_until(made.until_s)}" if made.until_s else ""
    _said(made, as_json, f"{_named(client)}: on the allowlist {_where(made.model)}{until}")


@allowlist_app.command("remove")
def allowlist_remove(
    client: Client, model: ModelOption = "*", as_json: AsJson = False, config_file: ConfigFile = None
) -> None:
    """Remove a client from the allowlist."""
    with _desk(config_file) as desk:
        gone = desk.operations.disallow(desk.actor, desk.subject(client, model))
    _said(gone, as_json, f"{_named(client)}: removed from the allowlist {_where(gone.model)}")


# ---------------------------------------------------------------------------------------------------------- keys


@keys_app.command("create")
def keys_create(
    role: Annotated[str, typer.Option(help="Role of the key: gateway, viewer, analyst, operator, admin or ingest.")],
    name: Annotated[
        str, typer.Option(help="Name of the owner. Two keys of the same name may be valid at once, for a rotation.")
    ] = "",
    ttl: Annotated[str, typer.Option("--for", help="Validity of the key: 90d, 52w.")] = "365d",
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Create an API key. Its text is printed once, on standard output; the store keeps only a digest."""
    with _desk(config_file) as desk:
        made, text = desk.operations.create_key(desk.actor, name or role, role, ttl_s=seconds(ttl))
        said = _told(desk.operations.store)
    if as_json:
        terminal.show([{**msgspec.to_builtins(without_digest(made)), "key": text}], True, lambda rows: None)
        return
    terminal.out.print(Text(text or ""), soft_wrap=True)
    terminal.err.print(
        f"{made.role} key {made.prefix} for {made.name}, until {_until(made.expires_s)}{said}", soft_wrap=True
    )


def _told(store: OperatorStore) -> str:
    """Wait until live services know the keys as they are, a second at most; what to say of it."""
    try:
        know, live = services(store)
    except Unavailable:
        return ""
    if know < live:
        return f"; {live - know} of {live} services have not confirmed it within a second"
    return f"; {live} {'service knows' if live == 1 else 'services know'} it" if live else ""


@keys_app.command("list")
def keys_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the API keys that are valid now."""
    with _desk(config_file) as desk:
        rows = [without_digest(key) for key in desk.operations.keys(desk.actor.tenant)]
    _shown(
        rows, as_json, "keys", "there is no valid API key", ("prefix", "name", "role", "until", "made by"),
        lambda k: (k.prefix, k.name, k.role, _until(k.expires_s), k.actor),
    )  # fmt: skip


@keys_app.command("revoke")
def keys_revoke(
    prefix: Annotated[str, typer.Argument(help="Prefix of the key: the eight characters that `keys list` shows.")],
    lost: Annotated[
        bool,
        typer.Option(
            "--lost", help="Revoke a key that the store lost but that services still accept (alarm keys_lost)."
        ),
    ] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Revoke an API key. Running services refuse it within a second."""
    with _desk(config_file) as desk:
        known = _lost_key(prefix) if lost else None
        try:
            gone = without_digest(desk.operations.revoke_key(desk.actor, prefix, lost=known))
        except Missing as error:
            raise Missing(f"{error}; give --lost for a key that the store has lost") from error
        said = _told(desk.operations.store)
    _said(gone, as_json, f"revoked: {gone.name}{said}")


def _lost_key(prefix: str) -> ApiKey:
    """What is known of a key that the store has lost: its prefix. Raises WrongUse."""
    if not re.fullmatch(r"[0-9A-Za-z]{8}", prefix):
        raise WrongUse("prefix: give the eight letters and digits after qw_<env>_")
    now = int(time.time())
    return ApiKey(prefix, "", f"lost key {prefix}", "", now, now + LONGEST_KEY_S, "")


# --------------------------------------------------------------------------------------------------------- audit


@audit_app.command("verify")
def audit_verify(
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            help="Head of the audit log that was noted elsewhere, as number:hash; may be given several times."
        ),
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Check the audit log and the copy on this machine for changed, deleted, swapped and cut-off rows. The exit status is 1 on findings."""
    settings = config.load(config_file)
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        found = audit.verify(store, audit.Seal(secrets), mirror_of(settings), audit.heads_of(anchor or ()))
    row = {"rows": found.rows, "last": found.last, "findings": found.findings}

    def table(_: Any) -> None:
        for finding in found.findings:
            terminal.out.print(Text(finding, style="red"), soft_wrap=True)
        terminal.out.print(
            f"{found.rows:,} rows, {len(found.findings) or 'no'} findings, last {found.last}", soft_wrap=True
        )

    terminal.show([row], as_json, table)
    if found.findings:
        raise typer.Exit(1)


def _named(client: str) -> str:
    return terminal.plain(client).plain


def _said(row: Any, as_json: bool, words: str) -> None:
    terminal.show([msgspec.to_builtins(row)], as_json, lambda _: terminal.out.print(Text(words), soft_wrap=True))
