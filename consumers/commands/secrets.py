"""The commands `secrets`: create the secrets file of an installation, and the keys of its tenants.

Rules: as in cli.py. No secret is printed, only ids of keys. An existing file is never replaced; `rotate`, `drop` and `erase-tenant` change
the keys of one tenant in it, as a whole, and write a row to the audit log. No key is dropped while a record is left under it.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from consumers import config, keyring, terminal
from consumers.commands.options import AsJson, ConfigFile
from consumers.errors import Refused, WrongUse
from consumers.operators.erasure import KINDS, OF_CAMPAIGNS, Forgotten
from consumers.records.baselines_in_force import FILE_KIND, KIND
from consumers.secrets import Secrets
from consumers.store.sealed import counted
from consumers.times import rfc3339
from consumers.wiring.adapters import resealing
from consumers.wiring.operators import Opened, open_for_operator

app = typer.Typer(help="Create the secrets file, and rotate or destroy the keys of a tenant.", no_args_is_help=True)

Tenant = Annotated[str | None, typer.Option("--tenant", help="Tenant; default: the setting `tenant`.")]


@app.command("create")
def create(
    file: Annotated[
        Path | None,
        typer.Option("--secrets", metavar="FILE", help="Secrets file to write; default: secrets.file of the settings."),
    ] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(
            help="Tenant that gets a key for its records; may be given several times; default: the setting `tenant`."
        ),
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Draw new secrets and write them to a file that only its owner can read. An existing file is never replaced."""
    settings = config.load(config_file)
    path = file if file is not None else settings.secrets_path
    row = {"file": str(path.absolute()), "key_id": Secrets.create(path, tenant or [settings.tenant]).key_id}

    def say(_: object) -> None:
        terminal.out.print(Text(f"{row['file']}: secrets {row['key_id']}"), soft_wrap=True)
        terminal.err.print(
            "Give this file to every process of the installation (secrets.file). Back it up, but not together with the snapshots: "
            "without it no snapshot can be restored and no client id can be read.",
            soft_wrap=True,
        )

    terminal.show([row], as_json, say)


@app.command("rotate")
def rotate(
    tenant: Tenant = None,
    after_s: Annotated[
        int,
        typer.Option(
            "--after-s",
            min=0,
            help="Seconds until new records are sealed with the new key: time to bring the file to every machine.",
        ),
    ] = 0,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Give a tenant a new key, while the service runs. Older keys still open what they sealed."""
    settings = config.load(config_file)
    name = tenant or settings.tenant
    with open_for_operator(settings) as opened:
        key = keyring.rotate(settings.secrets_path, name, int(time.time()) + after_s)
        opened.operations.record(opened.actor, "secrets.rotate", f"tenant:{name} key:{key.id.hex()}")
    row = {"tenant": name, "key": key.id.hex(), "from": rfc3339(key.from_s * 1000)}

    def say(_: object) -> None:
        terminal.out.print(
            Text(f"tenant {name}: key {row['key']} seals new records from {row['from']} on"), soft_wrap=True
        )
        terminal.err.print(
            f"Bring {settings.secrets_path} to every machine before that time. Running processes read it again by themselves. "
            "Older records are sealed anew when they are next written, the others by querywarden secrets reseal; querywarden secrets "
            "status counts those that are left.",
            soft_wrap=True,
        )

    terminal.show([row], as_json, say)


@app.command("status")
def status(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Count the stored records by tenant and by the key that sealed them; keys that seal none too. Reads the whole store."""
    settings = config.load(config_file)
    with open_for_operator(settings) as opened, terminal.spinner() as say:
        say("reading the store")
        rows = _status(settings, opened)

    def table(found: list[dict[str, Any]]) -> None:
        for row in found:
            key = f"key {row['key']}" if row["key"] else "not sealed"
            terminal.out.print(
                Text(f"{row['tenant']}: {row['records']:,} records, {key} ({row['state']})"), soft_wrap=True
            )
        if not found:
            terminal.out.print("no records", soft_wrap=True)

    terminal.show(rows, as_json, table)


@app.command("reseal")
def reseal(
    per_s: Annotated[
        float, typer.Option("--per-s", min=0.1, help="Records that are sealed anew in a second, at most.")
    ] = 1000.0,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Seal all stored records under the newest key of their tenant, while the service runs. Stop it at any time, and begin it again."""
    settings = config.load(config_file)
    if settings.store.sealing == "off":
        raise Refused("store.sealing is off: new records are stored in clear, so there is nothing to seal anew")
    with open_for_operator(settings) as opened, terminal.spinner() as say:
        say("sealing records anew")
        done = resealing(opened.store, per_s).run()
        about = f"replaced:{done.replaced} changed:{done.changed} unreadable:{done.unreadable}"
        opened.operations.record(opened.actor, "secrets.reseal", about)

    def show(_: object) -> None:
        terminal.out.print(
            Text(f"{done.replaced:,} records sealed anew, {done.changed:,} were written by others meanwhile"),
            soft_wrap=True,
        )
        if done.unreadable:
            terminal.err.print(f"{done.unreadable:,} records do not open and stay until they expire", soft_wrap=True)

    terminal.show([dataclasses.asdict(done)], as_json, show)


@app.command("drop")
def drop(
    key: Annotated[str, typer.Argument(help="Id of the key, as querywarden secrets status shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Destroy an older key under which no record is left. Refused while there is one: querywarden secrets reseal seals them anew."""
    settings = config.load(config_file)
    if not re.fullmatch(rf"[0-9a-f]{{{2 * keyring.ID_BYTES}}}", key):
        raise WrongUse(f"KEY: an id has {2 * keyring.ID_BYTES} hexadecimal digits")
    with open_for_operator(settings) as opened, terminal.spinner() as say:
        say("reading the store")
        left = sum(row["records"] for row in _status(settings, opened) if row["key"] == key)
        if left:
            raise Refused(f"{left:,} records are sealed with key {key}: run querywarden secrets reseal first")
        if not yes:
            typer.confirm(
                f"Destroy key {key}? Snapshots that were made before are unreadable where it sealed them.",
                abort=True,
                err=True,
            )
        gone = keyring.drop(settings.secrets_path, bytes.fromhex(key), int(time.time()))
        opened.operations.record(opened.actor, "secrets.drop", f"tenant:{gone.tenant} key:{key}")

    def show(_: object) -> None:
        terminal.out.print(Text(f"tenant {gone.tenant}: key {key} is destroyed"), soft_wrap=True)
        terminal.err.print(
            "Bring the file to every machine, destroy its older copies, and make a new snapshot: older ones hold records under this key.",
            soft_wrap=True,
        )

    terminal.show([{"tenant": gone.tenant, "key": key}], as_json, show)


@app.command("erase-tenant")
def erase_tenant(
    tenant: Annotated[str, typer.Argument(help="Tenant whose keys are destroyed.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Destroy the keys of a tenant: its sealed profiles, decisions and alerts can never be read again, in no snapshot either."""
    settings = config.load(config_file)
    with open_for_operator(settings) as opened, terminal.spinner() as say:
        say("reading the store")
        before = [row for row in _status(settings, opened) if row["tenant"] == tenant]
        sealed = sum(row["records"] for row in before if row["key"])
        clear = sum(row["records"] for row in before if not row["key"])
        if not yes:
            typer.confirm(
                f"Destroy the keys of tenant {tenant}? {sealed:,} sealed records become unreadable for good.",
                abort=True,
                err=True,
            )
        gone = _destroyed(settings.secrets_path, tenant)
        dropped = opened.operations.drop(
            opened.actor,
            "tenant.erase",
            f"tenant:{tenant} keys:{','.join(gone)} unreadable:{sealed} clear:{clear}",
            lambda: Forgotten(
                tuple(
                    e
                    for kind in (*KINDS, *OF_CAMPAIGNS, KIND, FILE_KIND)
                    for e in opened.store.operator_entries(kind, tenant)[1]
                )
            ),
        )
    row = {"tenant": tenant, "keys": gone, "unreadable": sealed, "not_sealed": clear, "entries": dropped}

    def show(_: object) -> None:
        terminal.out.print(
            Text(
                f"tenant {tenant}: {len(gone)} keys destroyed, {sealed:,} records are unreadable, {dropped} operators' entries dropped"
            ),
            soft_wrap=True,
        )
        if clear:
            terminal.err.print(
                f"{clear:,} records were stored before encryption and can still be read; they expire by themselves, or erase their "
                "clients",
                soft_wrap=True,
            )
        terminal.err.print(
            "Destroy other copies of the secrets file too: backups and other machines still hold the keys. What stays in clear: hashes "
            "of clients, states, ranks and times of records (30 days), counters, dead letters' redacted heads, and rows of the audit log.",
            soft_wrap=True,
        )

    terminal.show([row], as_json, show)


def _destroyed(path: Path, tenant: str) -> list[str]:
    """Destroy a tenant's keys, or find those that an interrupted call destroyed before. Returns their ids, hex."""
    ring = keyring.Keyring(path).ring()
    if tenant in ring.erased:
        return sorted(name.hex() for name, whose in ring.destroyed.items() if whose == tenant)
    return [name.hex() for name in keyring.destroy(path, tenant, int(time.time()))]


def _status(settings: config.Settings, opened: Opened) -> list[dict[str, Any]]:
    """One row for each tenant and key: how many records it sealed, and whether it is in use."""
    ring = keyring.Keyring(settings.secrets_path).ring()
    active = ring.active(time.time())

    def state(key: bytes) -> str:
        if not key:
            return "in clear"
        if key in active:
            return "in use"
        return "older" if key in ring.by_id else "destroyed" if key in ring.destroyed else "unknown"

    found = counted(opened.store.export(), ring)
    for key in ring.by_id.values():
        found.setdefault(key.tenant, Counter()).setdefault(key.id.hex(), 0)
    return [
        {"tenant": tenant, "key": key, "records": n, "state": state(bytes.fromhex(key))}
        for tenant, counts in sorted(found.items())
        for key, n in sorted(counts.items())
    ]
