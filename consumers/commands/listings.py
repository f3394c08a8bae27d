"""`clients` and `alerts`: what the store lists.

Of `clients`: the most suspicious clients of a store, their number, and the campaigns.

Rules:
* Every row is counted, but only the rows that are shown are unsealed.
* The caller sets a damaged row aside, so that it hides no other row.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from consumers import config, terminal
from consumers.alerts import stix
from consumers.baselines import load_baselines
from consumers.commands.options import BaselineFiles, ConfigFile, check_folders
from consumers.errors import CorruptState, Missing, WrongUse
from consumers.readers.public import precision_words
from consumers.readers.queries import Reader
from consumers.records.alert import stored_alert
from consumers.records.decision import is_campaign, ranked, stored_decision
from consumers.secrets import Secrets
from consumers.store import DecisionRow, ServiceStore
from consumers.wiring import adapters
from consumers.wiring.operators import open_reader
from consumers.wiring.sinks import stored_alerts
from detector.policy import FLAGGED
from detector.query import ClientKey

Row = tuple[ClientKey, DecisionRow]


@dataclass(slots=True)
class Listing:
    """Scores of the listed clients and campaigns. total, flagged: of all clients, listed or not."""

    clients: list[dict[str, Any]] = field(default_factory=list)
    campaigns: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    flagged: int = 0


def read(
    store: ServiceStore,
    secrets: Secrets,
    tenant: str,
    model: str | None,
    limit: int | None,
) -> Listing:
    """Read the clients of a tenant, the most suspicious `limit` of them, and its campaigns. Raises Unavailable."""
    listing, groups = Listing(), list[Row]()

    def counted() -> Iterator[Row]:
        for key, row in store.decisions(tenant, model):
            if is_campaign(key):
                groups.append((key, row))
                continue
            listing.total += 1
            listing.flagged += row.state in FLAGGED
            yield key, row

    rows = list(counted()) if limit is None else heapq.nlargest(limit, counted(), key=lambda r: r[1].rank)
    for wanted, out in ((rows, listing.clients), (groups, listing.campaigns)):
        found = []
        for key, row in wanted:
            with set_aside():
                found.append((key.model, stored_decision(row, secrets, key.tenant)))
        out += [
            one.score(name) | ({"members": one.members, "ties": dict(one.ties)} if one.members else {})
            for name, one in ranked(found)
        ]
    listing.campaigns = [one for one in listing.campaigns if one["state"] != "clear"]
    return listing


def clients(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, in the format of replay --scores.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="List clients of this model only.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="List only the N most suspicious clients, whatever their state.")
    ] = None,
    bound: Annotated[
        int | None,
        typer.Option(
            "--bound",
            min=1,
            help="Instead of a list, print how many of the N most suspicious clients are honest at most (95 % confidence).",
        ),
    ] = None,
    baseline: BaselineFiles = None,
    config_file: ConfigFile = None,
) -> None:
    """List the clients of the store, most suspicious first, and the campaigns."""
    settings = config.load(config_file)
    if bound is not None:
        _bound(settings, baseline, model, bound, as_json)
        return
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        found = read(store, secrets, settings.tenant, model, limit)
    if as_json:
        terminal.show(found.clients, True, lambda rows: None)
        if len(found.clients) < found.total:
            terminal.err.print(terminal.counted(len(found.clients), found.total, "clients"))
    elif limit is None:
        terminal.print_ranked(found.clients, found.campaigns)
    else:
        terminal.print_clients(found.clients, found.total, found.flagged, "--limit N shows more")
        terminal.print_campaigns(found.campaigns)


def _bound(settings: config.Settings, baseline: list[str] | None, model: str | None, line: int, as_json: bool) -> None:
    """Print the bound of the queue at a line. Raises WrongUse, Missing."""
    baselines = load_baselines(baseline or list(settings.baselines))
    with open_reader(settings, baselines) as reader:
        names = [model] if model is not None else [m.model_id for m in reader.models() if m.clients]
        if len(names) != 1:
            raise WrongUse(f"the store has clients of {len(names)} models: give --model")
        found = reader.bound(names[0], line)
    if found is None:
        raise Missing(f"no bound for model {names[0]}: it needs its baseline (--baseline), calibrated on real clients")
    said = f"of the {found.n} most suspicious clients at most {found.honest_at_most} are honest, with {found.confidence:.0%} confidence"
    more = "it holds for every line at once, for clients that are like those of the calibration (docs/theory.md)"
    terminal.show(
        [msgspec.to_builtins(found)], as_json, lambda _: terminal.out.print(f"{said}; {more}", soft_wrap=True)
    )


def alerts(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, in the format of replay --alerts.")
    ] = False,
    updates: Annotated[bool, typer.Option("--updates", help="List later alerts of the same finding too.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="List only the N newest alerts.")] = None,
    stix_path: Annotated[
        Path | None,
        typer.Option(
            "--stix",
            help="Write the alerts to this file as a STIX 2.1 bundle instead of listing them (needs the extra [stix]).",
        ),
    ] = None,
    config_file: ConfigFile = None,
) -> None:
    """List the alerts of the last 30 days, oldest first."""
    check_folders(stix_path)
    settings = config.load(config_file)
    found = []
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        for alert in store.alerts():
            with set_aside():
                found.append(stored_alert(alert, secrets))
        right = Reader(store, secrets, settings.tenant).precision()
    found = sorted(
        (a for a in found if updates or a["update"] == 0), key=lambda a: (a["time"], a["alert_id"], a["update"])
    )
    if stix_path is not None:
        told = stix.write(stix_path, stored_alerts(settings))
        terminal.out.print(f"{stix_path}: {told} findings", soft_wrap=True)
        return
    shown = found if limit is None else found[-limit:]
    if as_json and len(shown) < len(found):
        terminal.err.print(terminal.counted(len(shown), len(found), "alerts"))
    terminal.show(shown, as_json, lambda rows: terminal.print_alerts(rows, len(found)))
    if not as_json:
        for line in map(precision_words, right):
            terminal.out.print(terminal.plain(line), soft_wrap=True)


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """One damaged row must not hide the others: say so and go on."""
    try:
        yield
    except CorruptState as error:
        terminal.complain(f"set aside: {error}")
