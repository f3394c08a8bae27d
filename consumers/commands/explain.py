"""Commands that explain decisions: explain, evidence, verify-evidence, backtest.

Rules:
* These commands read the store and change nothing in it, but for rows of the audit log: who looked at whom.
* A client is named by its id or its hash. If it was assessed on several models, ``--model`` chooses one.
* Results go to standard output. ``--json`` prints one object per line.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from consumers import atomic_file, config, paths, terminal
from consumers.baselines import baseline_files, load_baselines
from consumers.commands.options import AsJson, BaselineFiles, Client, ConfigFile, check_folders
from consumers.errors import InvalidInput, Missing, WrongUse
from consumers.operators import audit
from consumers.operators.views import Views
from consumers.readers import custody, custody_report, explanation, timestamps
from consumers.readers import evidence as bundling
from consumers.readers.appeal import Appeal
from consumers.readers.custody_report import Examination
from consumers.readers.models import ClientDetail
from consumers.readers.queries import Reader
from consumers.records.alert import exposure_text, stored_alert
from consumers.records.baselines_in_force import stored_file
from consumers.records.decision import stored_decision
from consumers.records.sealing import sealed
from consumers.records.spans import fields_of, spans_in_force
from consumers.times import rfc3339
from consumers.wiring.operators import baselines_in_force, modes_of, open_for_operator, user_name
from consumers.wiring.timestamps import stamped_bundle
from detector.baseline import Baseline
from detector.exposure import Exposure
from detector.query import ClientKey

ModelOption = Annotated[
    str | None, typer.Option("--model", help="Id of the model; needed if the client was assessed on several models.")
]
MOST_EVIDENCE = 8
"""Number of signals that are shown as sentences."""


def explain(
    client: Client,
    model: ModelOption = None,
    appeal: Annotated[
        bool,
        typer.Option(
            "--appeal", help="Print what may be told to the client itself: it names no threshold and no other client."
        ),
    ] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Explain the state of a client: its signals, its history, and what would change the state."""
    settings = config.load(config_file)
    with open_for_operator(settings) as opened:
        baselines = baselines_in_force(settings, opened.store, opened.secrets).live
        reader = dataclasses.replace(opened.reader, baselines=baselines, modes=modes_of(settings))
        one = _found(reader, client, model)
        c = one.client
        Views(opened.operations).note(opened.actor, ClientKey(settings.tenant, c.model_id, c.client_key), "explain")
        if appeal and (pack := reader.appeal(c.model_id, c.client_key)) is not None:
            terminal.show([msgspec.to_builtins(pack)], as_json, lambda _: _print_appeal(pack))
            return
        alerts = reader.alerts(model=c.model_id, client=c.client_key, updates=True, limit=100).items
        told = explanation.account(one, settings.false_alarm_budget, baselines.get(c.model_id), reversed(alerts))
    terminal.show([told], as_json, lambda rows: _print_account(rows[0]))


def evidence(
    client: Client,
    out_path: Annotated[Path, typer.Option("--out", help="Bundle to write (.zip).")],
    model: ModelOption = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Write the client's id in clear; by default it is sealed.")
    ] = False,
    baseline: BaselineFiles = None,
    canaries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Output of `watermark verify --json`: its result for this client goes into the bundle."
        ),
    ] = None,
    request: Annotated[
        Path | None,
        typer.Option(
            "--timestamp-request",
            metavar="F.tsq",
            help="Write a request for a time stamp of the bundle (RFC 3161) too.",
        ),
    ] = None,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Write a signed evidence bundle: decision, alerts, profile, audit rows and method. With the baseline it can be verified."""
    check_folders(out_path, request)
    settings = config.load(config_file)
    files = _baseline_files(baseline or list(settings.baselines))
    with open_for_operator(settings) as opened:
        store, secrets = opened.store, opened.secrets
        c = _found(opened.reader, client, model).client
        if c.model_id not in files:
            raise WrongUse(f"no baseline of model {c.model_id}: give --baseline FILE")
        known, blob = files[c.model_id]
        live = baselines_in_force(settings, store, secrets).live.get(c.model_id, known)
        if not baseline and live.id != known.id:
            known, blob = live, stored_file(store, settings.tenant, secrets, live.model_id, live.id)
        key = opened.reader.key_of(c.model_id, c.client_key)
        fields = fields_of(store, [key])[key]
        bodies = (stored_alert(a, secrets) for a in store.alerts())
        case = bundling.EvidenceCase(
            tenant=key.tenant,
            model=key.model,
            client=key.client,
            sealed_id=sealed(c.client_id, secrets, key.tenant),
            decision=stored_decision(store.decided([key])[key], secrets, key.tenant),
            alerts=[b for b in bodies if (b["tenant"], b["model_id"], b.get("client_id")) == (key.tenant, key.model, c.client_id)],
            spans=spans_in_force(fields, known),
            cells=len(fields),
            baseline=known,
            baseline_file=blob,
            audit=[row for _, row in audit.stored_rows(store) if f"client:{key.client} ".encode() in row],
            budget=settings.false_alarm_budget,
            made_ms=int(time.time() * 1000),
            version=importlib.metadata.version("querywarden"),
            canaries=None if canaries is None else _canaries_of(canaries, (c.client_id, c.client_key)),
        )  # fmt: skip
        signing = bundling.signing_key(secrets)

        def make(number: int, previous: str) -> tuple[bytes, str]:
            made = bundling.bundle(case, signing, clear, number, previous)
            return made, bundling.verify(made).digest

        packed = opened.operations.chain_evidence(opened.actor, key, make)
    with atomic_file.whole(out_path) as draft:
        draft.write_bytes(packed)
    whole = bundling.verify(packed)
    if request is not None:
        with atomic_file.whole(request) as draft:
            draft.write_bytes(timestamps.request_of(whole))
    response = stamped_bundle(settings, whole, out_path) if settings.evidence.timestamp_url else None
    signer = whole.signer
    row = {
        "file": str(out_path),
        "bytes": len(packed),
        "client_id": "clear" if clear else "sealed",
        "signer": signer,
        "number": whole.manifest.number,
        "digest": whole.digest,
        "timestamp": "" if response is None else str(response),
    }
    how = "in clear" if clear else "sealed"
    said = f"{out_path}: bundle {whole.manifest.number}, {len(packed):,} bytes, client id {how}, signed by key {signer}"
    terminal.show([row], as_json, lambda _: terminal.out.print(Text(said), soft_wrap=True))


def verify_evidence(
    file: Annotated[Path, typer.Argument(help="Evidence bundle to check.")],
    baseline: Annotated[Path | None, typer.Option(help="Baseline; with it the profile is assessed again.")] = None,
    signer: Annotated[str | None, typer.Option(help="Fingerprint of the key that must have signed the bundle.")] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            help="Another bundle of the same tenant; may be given several times: each must follow from the one before."
        ),
    ] = None,
    audit_log: Annotated[
        Path | None, typer.Option("--audit", help="Copy of the audit log (audit.jsonl): it must hold the bundle.")
    ] = None,
    response: Annotated[
        Path | None,
        typer.Option(
            "--timestamp-response", metavar="F.tsr", help="Time stamp of an outside authority on the bundle (RFC 3161)."
        ),
    ] = None,
    authority: Annotated[
        Path | None,
        typer.Option("--timestamp-ca", metavar="F.pem", help="Certificates of the authority that you trust."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="F.html", help="Write the check as a page for people who must judge it.")
    ] = None,
    by: Annotated[str, typer.Option(help="Who checks, for the report; default: the user of this machine.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check an evidence bundle: signature, hashes, scores, its place in the chain, the audit log."""
    check_folders(report)
    if (response is None) != (authority is None):
        raise WrongUse(
            "--timestamp-response and --timestamp-ca belong together: a stamp holds under an authority that you trust"
        )
    blob = paths.read(file)
    checked = bundling.verify(blob, paths.read(baseline) if baseline else None, signer)
    others = [bundling.verify(paths.read(one), None, signer) for one in earlier or ()]
    missing = custody.follow([*others, checked]) if others else []
    recorded = custody.recorded(checked, paths.read(audit_log).splitlines()) if audit_log else None
    stamp = (
        timestamps.stamp_of(checked, paths.read(response), paths.read(authority)) if response and authority else None
    )
    if report is not None:
        examined = Examination(
            file.name, blob, checked, signer is not None, (len(others), missing) if others else None, recorded,
            by or user_name(), int(time.time() * 1000), stamp,
        )  # fmt: skip
        custody_report.write(report, examined)
    said = {
        "client": checked.manifest.client,
        "model_id": checked.manifest.model_id,
        "made_ms": checked.manifest.made_ms,
        "signer": checked.signer,
        "signer_checked": signer is not None,
        "assessed_again": checked.assessed,
        "differences": list(checked.differences),
        "number": checked.manifest.number,
        "digest": checked.digest,
        "chained_with": len(others),
        "missing": missing,
        "audit_row": None if recorded is None else recorded.row,
        "stamped_ms": None if stamp is None else stamp.time_ms,
    }
    terminal.show([said], as_json, lambda rows: _print_checked(rows[0]))
    if checked.differences:
        raise InvalidInput("evidence: the profile gives other scores than the bundle states")


# ------------------------------------------------------------------------------------------------------- pieces


def _found(reader: Reader, client: str, model: str | None) -> ClientDetail:
    """The client on the one model that is meant. Raises InvalidInput, WrongUse."""
    names = [model] if model is not None else [m.model_id for m in reader.models()]
    found = [one for one in (reader.client(name, client) for name in names) if one is not None]
    if not found:
        raise Missing(f"no client {client!r} was assessed{f' on model {model}' if model else ''}")
    if len(found) > 1:
        raise WrongUse(
            f"this client was assessed on several models: give --model ({', '.join(o.client.model_id for o in found)})"
        )
    return found[0]


def _canaries_of(file: Path, names: tuple[str, str]) -> dict[str, Any]:
    """A client's row in the output of `watermark verify --json`. Raises InvalidInput, WrongUse."""
    rows = paths.read_json(file)
    mine = (
        [row for row in rows if isinstance(row, dict) and row.get("client_id") in names]
        if isinstance(rows, list)
        else []
    )
    if not mine:
        raise WrongUse(f"{file}: no result about this client")
    found: dict[str, Any] = mine[0]
    return found


def _baseline_files(given: Iterable[str]) -> dict[str, tuple[Baseline, bytes]]:
    """Model → (baseline, bytes of its file)."""
    found = {}
    for file in baseline_files(given):
        for model, one in load_baselines([str(file)]).items():
            found[model] = (one, paths.read(file))
    return found


def _print_account(told: Mapping[str, Any]) -> None:
    out = terminal.out
    out.print(
        terminal.plain(f"{told['client_id']} on {told['model_id']}: {told['state']}"), style="bold", soft_wrap=True
    )
    out.print(terminal.plain(told["summary"]))
    copied = told["extraction"]
    known = exposure_text(None if copied is None else Exposure(**copied))
    out.print(
        f"\nqueries {told['queries']:,} ({told['distinct']:,.0f} distinct) · p {told['p_value']:.2g}, {told['rarity']}"
        f"{'' if told['calibrated'] else ', not calibrated'} · exposure: {known}"
    )
    out.print(terminal.plain(told["gateways"]))
    out.print()
    if told["signals"]:
        out.print(Text("signals, in units of the honest clients with the highest values", style="italic"))
        titles = ("this client", "honest median", "99th percentile", "highest", "p")
        terminal.print_rows(
            [terminal.TableColumn("signal"), *(terminal.TableColumn(title, True) for title in titles)],
            [
                [Text(s["signal"]), *(Text(f"{s[k]:.2f}") for k in ("value", "usual", "high", "most")), Text(f"{s['p_value']:.2g}")]
                for s in told["signals"]
            ],
        )  # fmt: skip
    excesses = [e for e in told["evidence"] if e["statistic"] > 0]
    for e in excesses[:MOST_EVIDENCE]:
        out.print(terminal.plain(f"· {e['text']}"))
    if more := len(told["evidence"]) - min(len(excesses), MOST_EVIDENCE):
        out.print(f"· {more} weaker signal{'s' if more > 1 else ''}; --json shows all")
    for title, lines in (
        ("values that did not fit the schema", told["what_did_not_fit"]),
        ("when it asked how much (no evidence)", [o["text"] for o in told["observations"]]),
        ("indicators of peers that it matches (no evidence)", told["reported_by_peers"]),
        ("history", [f"{t['time']}  {t['what']}" for t in told["timeline"]]),
        ("what would change it", told["what_would_change_it"]),
    ):
        if lines:
            out.print(f"\n{title}", style="bold")
            for line in lines:
                out.print(terminal.plain(f"  {line}"))


def _print_appeal(pack: Appeal) -> None:
    out, further = terminal.out, pack.never_flagged_further
    out.print("what was counted", style="bold")
    for one in pack.counted:
        more = (
            f"; {one.never_flagged_further:,} clients that were never flagged have more"
            if one.signal != "queries"
            else ""
        )
        out.print(terminal.plain(f"  {one.text}{more}"))
    out.print("\nclients that went further", style="bold")
    out.print(f"  {further.in_store:,} of {further.of_store:,} clients of this model that were never flagged")
    if further.in_calibration is not None and further.of_calibration is not None:
        out.print(
            f"  {further.in_calibration:,} of {further.of_calibration:,} honest clients that it was compared with"
        )
    out.print("\nwhat the owner of the key can show", style="bold")
    for line in pack.can_show:
        out.print(terminal.plain(f"  {line}"))


def _print_checked(said: Mapping[str, Any]) -> None:
    known = "the key of --signer" if said["signer_checked"] else "give --signer to check that it is the right key"
    terminal.out.print(f"complete, and signed by key {said['signer']} ({known})", soft_wrap=True)
    if said["stamped_ms"] is not None:
        terminal.out.print(f"stamped by an outside authority at {rfc3339(said['stamped_ms'])}", soft_wrap=True)
    if not said["assessed_again"]:
        terminal.out.print("not assessed again: give --baseline FILE", soft_wrap=True)
    elif not said["differences"]:
        terminal.out.print("assessed again: the scores are the same")
    for line in said["differences"]:
        terminal.out.print(terminal.plain(f"differs: {line}"), soft_wrap=True)
