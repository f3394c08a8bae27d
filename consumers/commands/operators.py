"""Commands for operators: the allowlist, API keys and the audit log.

Rules: as in `entries`, which has what they share; decisions are in `decisions`. The text of a new API key is printed once and never stored.
"""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from consumers import config, terminal
from consumers.commands.entries import (
    ModelOption,
    Reason,
    Yes,
    confirm,
    end_of,
    named,
    on_model,
    report,
    seconds,
    shown,
    subject_of,
)
from consumers.commands.options import AsJson, Client, ConfigFile
from consumers.errors import Missing, Unavailable, WrongUse
from consumers.operators import audit
from consumers.operators.api_keys import without_digest
from consumers.operators.operate import LONGEST_KEY_S
from consumers.operators.views import views_of
from consumers.records.heartbeat import services
from consumers.records.operator_entries import EVERY_MODEL, ApiKey
from consumers.store import OperatorStore
from consumers.wiring import adapters
from consumers.wiring.operators import mirror_of, open_for_operator

allowlist_app = typer.Typer(
    help="List and change the allowlist: clients that are never throttled or blocked.", no_args_is_help=True
)
keys_app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
audit_app = typer.Typer(help="Check the audit log, and list who looked at a client.", no_args_is_help=True)


# ----------------------------------------------------------------------------------------------------- allowlist


@allowlist_app.command("list")
def allowlist_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the entries of the allowlist, newest first."""
    with open_for_operator(config.load(config_file)) as opened:
        rows = opened.reader.allowlist()
    shown(
        rows, as_json, "entries", "the allowlist is empty", ("client", "model", "until", "by", "origin", "reason"),
        lambda a: (
            terminal.plain(a.client_id or a.client_key).plain, a.model_id, end_of(a.until_s), a.actor, a.origin,
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
    with open_for_operator(config.load(config_file)) as opened:
        subject, ttl_s = subject_of(opened.reader, client, model), seconds(ttl)
        confirm(opened, subject, client, "allowlist", yes)
        made = opened.operations.allow(opened.actor, subject, ttl_s=ttl_s, reason=reason)
    until = f" until {end_of(made.until_s)}" if made.until_s else ""
    report(made, as_json, f"{named(client)}: on the allowlist {on_model(made.model)}{until}")


@allowlist_app.command("remove")
def allowlist_remove(
    client: Client, model: ModelOption = "*", as_json: AsJson = False, config_file: ConfigFile = None
) -> None:
    """Remove a client from the allowlist."""
    with open_for_operator(config.load(config_file)) as opened:
        gone = opened.operations.disallow(opened.actor, subject_of(opened.reader, client, model))
    report(gone, as_json, f"{named(client)}: removed from the allowlist {on_model(gone.model)}")


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
    with open_for_operator(config.load(config_file)) as opened:
        made, text = opened.operations.create_key(opened.actor, name or role, role, ttl_s=seconds(ttl))
        said = _told(opened.operations.store)
    if as_json:
        terminal.show([{**msgspec.to_builtins(without_digest(made)), "key": text}], True, lambda rows: None)
        return
    terminal.out.print(Text(text or ""), soft_wrap=True)
    terminal.err.print(
        f"{made.role} key {made.prefix} for {made.name}, until {end_of(made.expires_s)}{said}", soft_wrap=True
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
    with open_for_operator(config.load(config_file)) as opened:
        rows = [without_digest(key) for key in opened.operations.keys(opened.actor.tenant)]
    shown(
        rows, as_json, "keys", "there is no valid API key", ("prefix", "name", "role", "until", "made by"),
        lambda k: (k.prefix, k.name, k.role, end_of(k.expires_s), k.actor),
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
    with open_for_operator(config.load(config_file)) as opened:
        known = _lost_key(prefix) if lost else None
        try:
            gone = without_digest(opened.operations.revoke_key(opened.actor, prefix, lost=known))
        except Missing as error:
            raise Missing(f"{error}; give --lost for a key that the store has lost") from error
        said = _told(opened.operations.store)
    report(gone, as_json, f"revoked: {gone.name}{said}")


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


@audit_app.command("views")
def audit_views(client: Client, as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List who looked at a client: its page, the API, explain, export and evidence. The last 1,000 looks, oldest first."""
    settings = config.load(config_file)
    with open_for_operator(settings) as opened:
        key = opened.reader.key_of(EVERY_MODEL, client)
        rows = views_of(audit.stored_rows(opened.store), settings.tenant, key.client)

    def table(found: list[dict[str, Any]]) -> None:
        names = ("ts", "actor", "role", "ip", "action", "object")
        terminal.print_table(
            ("time", "who", "role", "address", "what", "about"),
            [tuple(str(row[name]) for name in names) for row in found],
            "nobody looked at this client since looks are recorded",
        )

    terminal.show(rows, as_json, table)
