"""`indicators`: exchange indicators with peers, as keyed hashes in a STIX bundle.

Rules: as in `entries`. A sharing key comes from the settings (`links.sharing_keys`); the first one signs what is exported.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from consumers import atomic_file, config, paths, terminal
from consumers.alerts.indicators import MOST_BYTES, bundle_of, read_bundle
from consumers.commands.entries import named, report, seconds, shown
from consumers.commands.options import AsJson, ConfigFile, check_folders
from consumers.errors import InvalidInput, WrongUse
from consumers.operators.bounds import name_of
from consumers.operators.indicators import LONGEST_S
from consumers.readers.indicators import Told, exported, sources
from consumers.sharing_keys import SharingKey, load_sharing_keys
from consumers.times import minute
from consumers.wiring.operators import indicator_imports_of, open_for_operator

app = typer.Typer(
    help="Exchange indicators with peers: keyed hashes of what flagged clients were seen with.", no_args_is_help=True
)
Source = Annotated[str, typer.Argument(help="Source, as `indicators list` shows it.")]


@app.command("create-key")
def create_key(
    out_path: Annotated[Path, typer.Option("--out", metavar="FILE", help="The key's file; hand a copy to your peers.")],
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Create a sharing key in a new file, and record its key id in the audit log."""
    check_folders(out_path)
    with open_for_operator(config.load(config_file)) as opened:
        key = SharingKey.create(out_path)
        opened.operations.record(opened.actor, "indicators.key", f"key:{key.key_id}")
    row = {"file": str(out_path.absolute()), "key_id": key.key_id}
    words = f"{out_path}: sharing key {key.key_id}; name the file in the setting links.sharing_keys of ingest"
    terminal.show([row], as_json, lambda _: terminal.out.print(Text(words), soft_wrap=True))


@app.command("export")
def export(
    out_path: Annotated[Path, typer.Argument(metavar="FILE", help="File for the bundle (STIX 2.1, JSON).")],
    ttl: Annotated[
        str, typer.Option("--for", help="How long an indicator holds after the last query: 7d, 30d; at most 90d.")
    ] = "30d",
    confirmed: Annotated[
        bool, typer.Option("--confirmed", help="Only findings that an analyst judged a true positive.")
    ] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Write indicators of the flagged clients and campaigns for peers (needs the extra [stix])."""
    check_folders(out_path)
    keep_s = seconds(ttl)
    if not 1 <= keep_s <= LONGEST_S:
        raise WrongUse("--for: an indicator holds for 1s to 90d")
    settings = config.load(config_file)
    key = _keys(settings)[0]
    with open_for_operator(settings) as opened:
        reader = opened.reader
        spared = {one.client_key for one in reader.allowlist()}
        spared |= {one.client_key for one in reader.decisions() if one.state == "clear"}
        told = Told({one.alert_id: one.verdict for one in reader.verdicts().values()}, spared)
        made = exported(opened.store, opened.secrets, settings.tenant, key, told, int(time.time()), keep_s, confirmed)
        text = bundle_of(made.indicators, key, made.described) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        about = f"key:{key.key_id} indicators:{len(made.indicators)} digest:{digest}"
        opened.operations.record(opened.actor, "indicators.export", about)
        with atomic_file.whole(out_path) as draft:
            draft.write_text(text, encoding="utf-8")
    row = {
        "file": str(out_path), "key_id": key.key_id, "indicators": len(made.indicators), "withheld": made.withheld,
        "digest": digest,
    }  # fmt: skip
    words = f"{out_path}: {len(made.indicators)} indicators under sharing key {key.key_id}"
    words += f"; {made.withheld} findings have nothing that may be told" if made.withheld else ""
    terminal.show([row], as_json, lambda _: terminal.out.print(Text(words), soft_wrap=True))


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="Bundle of a peer.")],
    source: Annotated[
        str, typer.Option("--from", metavar="NAME", help="Whose indicators they are; default: the file's name.")
    ] = "",
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Import the indicators of a peer in the place of its earlier ones. Clients that match are linked, never flagged by it."""
    settings = config.load(config_file)
    keys = _keys(settings)
    blob = paths.read(file, "indicators", MOST_BYTES)
    found = read_bundle(blob, keys, time.time())
    why = ", ".join(f"{n:,} {reason}" for reason, n in sorted(found.left_out.items()))
    if not found.indicators:
        raise InvalidInput(f"indicators: {named(str(file))}: nothing to import{f' (left out: {why})' if why else ''}")
    name = source or name_of(file.stem)
    with open_for_operator(settings) as opened:
        imports = indicator_imports_of(settings, opened.store, opened.secrets)
        made = imports.take(opened.actor, name, found.indicators, hashlib.sha256(blob).hexdigest())
    row = {"source": name, "indicators": len(made.indicators), "left_out": found.left_out, "until_s": made.until_s}
    words = f"{name}: {len(made.indicators):,} indicators, the last until {minute(made.until_s * 1000)}"
    words += f"; left out: {why}" if why else ""
    terminal.show([row], as_json, lambda _: terminal.out.print(Text(words), soft_wrap=True))


@app.command("list")
def list_(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the sources whose indicators hold, who imported them, and until when."""
    settings = config.load(config_file)
    with open_for_operator(settings) as opened:
        rows = sources(opened.store, settings.tenant)
    shown(
        rows, as_json, "sources", "no indicators were imported", ("source", "indicators", "hashes", "until", "by", "imported"),
        lambda r: (
            r.source, f"{r.indicators:,}", f"{r.hashes:,}", minute(r.until_s * 1000), r.actor, minute(r.at_s * 1000),
        ),
    )  # fmt: skip


@app.command("matches")
def matches(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the clients that match an indicator of a peer, most suspicious first. A match is no evidence."""
    with open_for_operator(config.load(config_file)) as opened:
        found = opened.reader.reported()
        clients = [(opened.reader.client(key.model, key.client), mine) for key, mine in found.items()]
    rows: list[dict[str, Any]] = [
        {
            "client_id": one.client.client_id, "model_id": one.client.model_id, "state": one.client.state,
            "p_value": one.client.p_value, "indicators": msgspec.to_builtins(mine),
        }
        for one, mine in clients
        if one is not None
    ]  # fmt: skip
    rows.sort(key=lambda row: (row["p_value"], row["client_id"]))
    shown(
        rows, as_json, "clients", "no client matches an indicator",
        ("client", "model", "state", "p-value", "source", "same", "confidence"),
        lambda r: (
            named(r["client_id"]), named(r["model_id"]), r["state"], f"{r['p_value']:.2g}", r["indicators"][0]["source"],
            ", ".join(r["indicators"][0]["kinds"]), str(r["indicators"][0]["confidence"]),
        ),
    )  # fmt: skip


@app.command("drop")
def drop(source: Source, as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """Drop the indicators of a source."""
    settings = config.load(config_file)
    with open_for_operator(settings) as opened:
        gone = indicator_imports_of(settings, opened.store, opened.secrets).drop(opened.actor, source)
    report(gone, as_json, f"{named(source)}: {len(gone.indicators):,} indicators dropped")


def _keys(settings: config.Settings) -> tuple[SharingKey, ...]:
    keys = load_sharing_keys(settings.links.sharing_keys)
    if not keys:
        raise WrongUse(
            "no sharing key: name its file in the setting links.sharing_keys (indicators create-key makes one)"
        )
    return keys
