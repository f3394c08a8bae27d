"""Commands that maintain the store: snapshot, restore, rebuild from the log, and erase or export a client.

Rules: as in cli.py.
* A command that cannot be undone asks for confirmation, unless ``--yes`` is given.
* Each of these commands writes a row to the audit log.
* They work on the store directly; access to the store and to the secrets file is all that they need.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from consumers import config, paths, terminal
from consumers.baselines import load_baselines
from consumers.commands.options import ConfigFile
from consumers.errors import InvalidInput, WrongUse
from consumers.log.halves import JOINED
from consumers.operators import erasure
from consumers.operators.erasure import DataSubject
from consumers.secrets import Secrets
from consumers.store import Store, Tombstones
from consumers.store import snapshot as files
from consumers.store.renumbering import renumbered
from consumers.wiring import adapters
from consumers.wiring.operators import operations_of, user_of
from consumers.wiring.watermark import forget_canaries

Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")]
Client = Annotated[str, typer.Argument(help="Id of the client.")]
Hashed = Annotated[bool, typer.Option("--hashed", help="CLIENT is the hash that listings show, not the id.")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only on this model; may be given several times.")]

FILE_CELLS = ("files:", "file:")
REPLAYED_CELLS = "files:"


def snapshot(
    out_path: Annotated[Path, typer.Argument(metavar="FILE", help="Snapshot file to write; it must not exist.")],
    config_file: ConfigFile = None,
) -> None:
    """Write the whole content of the store to a file, while the service runs."""
    if out_path.exists():
        raise InvalidInput(f"{out_path}: the file exists; a snapshot never replaces a file")
    with _open(config_file) as (settings, store, secrets), terminal.spinner() as say:
        say("reading the store")
        # The row comes first, so that the snapshot holds it: what is restored continues the same chain.
        _note(settings, store, secrets, "store.snapshot", f"file:{out_path.name}")
        made = files.write(out_path, store.export(), secrets, importlib.metadata.version("querywarden"))
    counts = ", ".join(f"{made.records[table]:,} {table}" for table in sorted(made.records))
    terminal.out.print(f"{out_path}: {made.size:,} bytes: {counts}", soft_wrap=True)


def restore(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Snapshot file to read.")], config_file: ConfigFile = None
) -> None:
    """Fill an empty store from a snapshot. Then start the service: it reads on from the position of the snapshot.

    The store gets as many decision cells as ``store.decision_cells`` says, whatever number the snapshot's store had.
    """
    settings = config.load(config_file)
    paths.check_regular(path)
    secrets = Secrets.load(settings.secrets_path)
    with (
        files.opened(path, secrets) as (header, items),
        adapters.open_store(settings) as store,
        terminal.spinner() as say,
    ):
        say("restoring")
        store.restore(renumbered(items, store.decision_cells, adapters.subject_reader(settings, secrets)))
        adapters.prepare(store, secrets)
        _note(settings, store, secrets, "store.restore", f"created_s:{header.created_s}")
        cells, decided = store.cells(), store.decision_cells
    terminal.out.print(f"restored {len(cells)} cells from {path} ({decided} decision cells)", soft_wrap=True)


def rebuild(
    start: Annotated[
        str,
        typer.Option(
            "--from", help="Where to start reading again: earliest, an offset, or an RFC 3339 time (Kafka only)."
        ),
    ],
    cell: Annotated[
        list[str] | None, typer.Option(help="Only this log cell (topic:partition); may be given several times.")
    ] = None,
    yes: Yes = False,
    config_file: ConfigFile = None,
) -> None:
    """Drop profiles, so that ingest reads the log again. Decisions stay in force until detect has assessed the clients again."""
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
    keep_canaries: Annotated[
        bool,
        typer.Option("--keep-canaries", help="Leave its inputs in the registry of canaries, as proof for a claim."),
    ] = False,
    yes: Yes = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    config_file: ConfigFile = None,
) -> None:
    """Erase a client for good: profiles, decisions, alerts, operators' entries, canaries. Replays and rebuilds skip its queries."""
    import msgspec

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
            registry = Path(settings.watermark.registry) if settings.watermark.registry else None
            if registry is not None and registry.exists() and not keep_canaries:
                say("registry of canaries")
                done.canaries = forget_canaries(
                    settings, operations, user, registry, subject.client, set(model) if model else None
                )
    if as_json:
        terminal.out.print_json(json.dumps(msgspec.to_builtins(done)))
        return
    terminal.out.print(
        f"erased {done.profiles} profiles, {done.decisions} decisions, {done.alerts} alerts, {done.entries} operators' entries, "
        f"{done.letters} refused records, {done.canaries} inputs of canaries",
        soft_wrap=True,
    )
    if not done.scrubbed:
        terminal.err.print(
            "the files of the Redis server may still hold its data: have BGREWRITEAOF (and BGSAVE) run there, and remove old snapshots",
            soft_wrap=True,
        )


def export(client: Client, model: Models = None, hashed: Hashed = False, config_file: ConfigFile = None) -> None:
    """Print all stored data about a client, as JSON."""
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
    operations_of(settings, store, secrets).record(user_of(settings), action, about)


def _subject(
    settings: config.Settings, store: Store, secrets: Secrets, client: str, model: list[str] | None, hashed: bool
) -> DataSubject:
    if hashed and not re.fullmatch(r"[0-9a-f]{32}", client):
        raise WrongUse("CLIENT: a hash has 32 hexadecimal digits")
    models = set(model or ()) or erasure.models_of(store, settings.tenant) | set(load_baselines(settings.baselines))
    if not models:
        raise WrongUse("the store knows no model; give --model")
    return erasure.subject_of(store, secrets, settings.tenant, client, models, hashed)


def _offsets(settings: config.Settings, cells: list[str], start: str) -> dict[str, int | None]:
    """Where each cell is to be read from; None: its beginning."""
    joined = [name for name in cells if name.startswith(JOINED)]
    if joined and start != "earliest":
        raise WrongUse(f"--from {start}: {joined[0]} is a join cell, whose topics can be read again only from earliest")
    if start.isdecimal():
        offset = int(start)
        read = {name: offset for name in cells if not name.startswith(REPLAYED_CELLS)}
        stored = adapters.stored_offsets(settings, read)
        return {name: stored.get(name, offset) for name in cells}
    on_kafka = settings.log.url.startswith("kafka:")
    mine = [name for name in cells if on_kafka and not name.startswith((*FILE_CELLS, JOINED))]
    others = [name for name in cells if name not in mine]
    if others and start != "earliest":
        raise WrongUse(
            f"--from {start}: {others[0]} is a file and can be read again only from earliest or from an offset"
        )
    if not mine:
        return dict.fromkeys(others)
    return {**dict.fromkeys(others), **adapters.offsets_at(settings, mine, start)}
