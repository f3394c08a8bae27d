"""Upkeep of the store: snapshot and restore, rebuild from the log, erase a client, say what is kept about one.

Rules: as in cli.py. What cannot be undone is asked for, unless ``--yes``; each of these leaves a row in the audit log. They work on the
store directly, so whoever has it and the secrets file may do it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consumers import config, paths, terminal
from consumers.commands.options import ConfigFile
from consumers.errors import Refused, WrongUse
from consumers.wiring import adapters

if TYPE_CHECKING:
    from consumers.operators.erasure import Subject
    from consumers.secrets import Secrets
    from consumers.store import Store

Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
Client = Annotated[str, typer.Argument(help="The client's id.")]
Hashed = Annotated[bool, typer.Option("--hashed", help="CLIENT is the hash that listings show, not the id.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only this model; may be given several times.")]

FILE_CELLS = ("files:", "file:")


def snapshot(
    out_path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; must not exist.")],
    config_file: ConfigFile = None,
) -> None:
    """Write everything that the store holds to a file, while the service runs."""
    from consumers.store import snapshot as files

    if out_path.exists():
        raise Refused(f"{out_path}: exists; a snapshot never replaces another file")
    with _open(config_file) as (settings, store, secrets), terminal.spinner() as say:
        say("reading the store")
        # The row comes first, so that the snapshot holds it: what is restored continues the same chain.
        _note(settings, store, secrets, "store.snapshot", f"file:{out_path.name}")
        made = files.write(out_path, store.export(), secrets, importlib.metadata.version("querywarden"))
    counts = ", ".join(f"{made.records[table]:,} {table}" for table in sorted(made.records))
    terminal.out.print(f"{out_path}: {made.size:,} bytes: {counts}", soft_wrap=True)


def restore(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A snapshot.")], config_file: ConfigFile = None
) -> None:
    """Fill an empty store from a snapshot. Then start the service: it reads on where the snapshot was taken."""
    from consumers.secrets import Secrets
    from consumers.store import snapshot as files

    settings = config.load(config_file)
    paths.check_regular(path)
    secrets = Secrets.load(settings.secrets_path)
    with (
        files.opened(path, secrets) as (header, items),
        adapters.open_store(settings) as store,
        terminal.spinner() as say,
    ):
        say("restoring")
        store.restore(items)
        adapters.prepare(store, secrets)
        _note(settings, store, secrets, "store.restore", f"created_s:{header.created_s}")
        cells = store.cells()
    terminal.out.print(f"restored {len(cells)} cells from {path}", soft_wrap=True)


def rebuild(
    start: Annotated[str, typer.Option("--from", help="earliest, an offset, or an RFC 3339 time (Kafka only).")],
    cell: Annotated[
        list[str] | None, typer.Option(help="Only this cell (topic:partition); may be given several times.")
    ] = None,
    yes: Yes = False,
    config_file: ConfigFile = None,
) -> None:
    """Drop profiles, so that ingest reads the log again from there. Decisions stay until detect has looked again."""
    with _open(config_file) as (settings, store, secrets):
        cells = [name for name in store.cells() if not cell or name in cell]
        if missing := sorted(set(cell or ()) - set(cells)):
            raise WrongUse(f"no such cell: {', '.join(missing)}")
        offsets = _offsets(settings, cells, start)
        if not yes:
            typer.confirm(
                f"Drop the profiles of {len(cells)} cells and read them again from {start}?", abort=True, err=True
            )
        for name, offset in offsets.items():
            store.reset(name, offset)
        _note(settings, store, secrets, "store.rebuild", f"from:{start} cells:{len(cells)}")
    for name, offset in offsets.items():
        terminal.out.print(
            f"{name}: from {'its beginning' if offset is None else f'offset {offset:,}'}", soft_wrap=True
        )


def erase(
    client: Client,
    model: Models = None,
    hashed: Hashed = False,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config_file: ConfigFile = None,
) -> None:
    """Erase a client for good: profiles, decisions, alerts, what operators wrote. Replays and rebuilds skip it."""
    import msgspec

    from consumers.operators import erasure
    from consumers.store import Tombstones
    from consumers.wiring.operators import operations_of, user_of

    with _open(config_file) as (settings, store, secrets):
        subject = _subject(settings, store, secrets, client, model, hashed)
        if not yes:
            typer.confirm(f"Erase this client on {len(subject.models)} models?", abort=True, err=True)
        marks = " ".join(f"{Tombstones.mark(key)}" for key in subject.keys)
        about = f"models:{len(subject.models)} marks:{marks}"
        operations, user = operations_of(settings, store, secrets), user_of(settings)
        with terminal.spinner() as say:
            done = erasure.erase(
                store, secrets, subject, whole=not model, say=say,
                drop=lambda find: operations.drop(user, "client.erase", about, find),
            )  # fmt: skip
    if as_json:
        terminal.out.print_json(json.dumps(msgspec.to_builtins(done)))
        return
    terminal.out.print(
        f"erased {done.profiles} profiles, {done.decisions} decisions, {done.alerts} alerts, {done.entries} operators' entries, "
        f"{done.letters} refused records",
        soft_wrap=True,
    )
    if not done.scrubbed:
        terminal.err.print(
            "the server's files may still hold it: let its operator run BGREWRITEAOF (and BGSAVE), and remove old snapshots",
            soft_wrap=True,
        )


def export(client: Client, model: Models = None, hashed: Hashed = False, config_file: ConfigFile = None) -> None:
    """Print everything that is kept about a client, as JSON."""
    from consumers.operators import erasure

    with _open(config_file) as (settings, store, secrets):
        subject = _subject(settings, store, secrets, client, model, hashed)
        found = erasure.document(store, secrets, subject)
        _note(settings, store, secrets, "client.export", f"client:{subject.client}")
    typer.echo(json.dumps(found, indent=1, ensure_ascii=True))


@contextlib.contextmanager
def _open(config_file: Path | None) -> Iterator[tuple[config.Settings, Store, Secrets]]:
    settings = config.load(config_file)
    with adapters.open_store(settings) as store:
        yield settings, store, adapters.secrets_of(settings, store)


def _note(settings: config.Settings, store: Store, secrets: Secrets, action: str, about: str) -> None:
    """A row in the audit log."""
    from consumers.wiring.operators import operations_of, user_of

    operations_of(settings, store, secrets).record(user_of(settings), action, about)


def _subject(
    settings: config.Settings, store: Store, secrets: Secrets, client: str, model: list[str] | None, hashed: bool
) -> Subject:
    from consumers.fit import load_baselines
    from consumers.operators import erasure

    if hashed and not re.fullmatch(r"[0-9a-f]{32}", client):
        raise WrongUse("CLIENT: a hash has 32 hexadecimal digits")
    models = set(model or ()) or erasure.models_of(store, settings.tenant) | set(load_baselines(settings.baselines))
    if not models:
        raise WrongUse("no model is known: give --model")
    return erasure.subject_of(store, secrets, settings.tenant, client, models, hashed)


def _offsets(settings: config.Settings, cells: list[str], start: str) -> dict[str, int | None]:
    """Where each cell is to be read from; None: its beginning."""
    if start.isdecimal():
        return dict.fromkeys(cells, int(start))
    on_kafka = settings.log.url.startswith("kafka:")
    mine = [name for name in cells if on_kafka and not name.startswith(FILE_CELLS)]
    others = [name for name in cells if name not in mine]
    if others and start != "earliest":
        raise WrongUse(
            f"--from {start}: {others[0]} is a file, which can be read again from earliest or from an offset"
        )
    if not mine:
        return dict.fromkeys(others)
    from consumers.log import kafka

    return {**dict.fromkeys(others), **kafka.offsets_at(adapters.kafka_connection(settings), mine, start)}
