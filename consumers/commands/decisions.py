"""`decisions`: what operators decide about clients and campaigns; who was refused, by the reference of the refusal.

Rules: a client is named by its argument, a campaign by `--campaign`; `entries` has the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from consumers import config, terminal
from consumers.commands.entries import (
    DecisionNote,
    DryRun,
    For,
    ModelOption,
    Reason,
    Yes,
    confirm,
    decision_seconds,
    end_of,
    named,
    on_model,
    report,
    shown,
    subject_of,
)
from consumers.commands.options import AsJson, ConfigFile
from consumers.errors import Missing, WrongUse
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.readers.models import CampaignDecision
from consumers.readers.public import campaign_decision_of
from consumers.readers.refusals import RefusedClient, refused
from consumers.records.operator_entries import EVERY_MODEL, Ruling
from consumers.wiring.operators import Opened, open_for_operator

ClientOrNone = Annotated[str | None, typer.Argument(help="Id of the client, or its hash as listings show it.")]
CampaignOption = Annotated[
    str | None, typer.Option("--campaign", help="Id of a campaign, instead of a client: all its accounts are meant.")
]
app = typer.Typer(help="List, make and withdraw operators' decisions.", no_args_is_help=True)

_CAUSES = {
    "anonymous": "The request named no client, and its route is closed to such requests (gateway.routes).",
    "unsynced": "The service had not read the store yet, and the route is closed until then (gateway.routes).",
    "crowded": "The request named more identities or models than allowed.",
}


# ----------------------------------------------------------------------------------------------------- decisions


@app.command("list")
def decisions_list(as_json: AsJson = False, config_file: ConfigFile = None) -> None:
    """List the operators' decisions in force, the dry runs and the proposals, newest first."""
    with open_for_operator(config.load(config_file)) as opened:
        rows, campaigns = opened.reader.decisions(simulated=True), opened.reader.campaign_decisions()
    if campaigns:
        shown(
            campaigns, as_json, "campaigns", "", ("campaign", "model", "accounts", "joined", "state", "until", "by", "reason"),
            _campaign_cells,
        )  # fmt: skip
    shown(
        rows, as_json, "decisions", "no operator's decision is in force", ("client", "model", "state", "until", "by", "reason"),
        lambda d: (
            terminal.plain(d.client_id or d.client_key).plain, d.model_id, f"{d.state}{' (dry run)' if d.simulated else ''}",
            end_of(d.until_s), d.actor, terminal.plain(d.reason).plain,
        ),
    )  # fmt: skip


def _campaign_cells(d: CampaignDecision) -> tuple[str, ...]:
    kind = " (waits for a second person)" if d.waits else " (dry run)" if d.simulated else ""
    by = f"{d.actor}, {d.second}" if d.second else d.actor
    return (
        named(d.campaign_id), named(d.model_id), str(len(d.confirmed)), str(len(d.joined)), f"{d.state}{kind}",
        end_of(d.until_s), by, named(d.reason),
    )  # fmt: skip


@app.command("reference")
def decisions_reference(
    reference: Annotated[str, typer.Argument(help="Reference id from the refusal, such as 20260131-9f3ab2c4d5e6f708.")],
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Find the client that a gateway refused, by the reference id of the refusal. The exit status is 1 if none is found."""
    with open_for_operator(config.load(config_file)) as opened:
        found = refused(opened.reader, reference)
    if found is None:
        raise Missing("the store knows no client that was refused with this reference")
    report(found, as_json, _refusal(found))


def _refusal(found: RefusedClient) -> str:
    """What a reference stands for, in words."""
    if found.cause:
        return f"{found.answer} on {found.day}: no particular client. {_CAUSES[found.cause]}"
    lines = [f"{found.answer} on {found.day}: {named(found.client_id or found.client_key or '')}. Now:"]
    for one in found.models:
        until = f" until {end_of(one.until_s)}" if one.until_s else ""
        lines.append(f"  {named(one.model_id)}: {one.state}{until}, enforced: {one.enforced}")
    lines += [
        f"  operator {d.actor}: {d.state} {on_model(d.model_id)} until {end_of(d.until_s)}" for d in found.decisions
    ]
    if found.allowed:
        lines.append("  on the allowlist")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  nothing is stored about this client"])


def _decide(
    state: Ruling,
    about: _About,
    ttl: str,
    reason: str,
    note: str,
    dry: bool,
    yes: bool,
    as_json: bool,
    config_file: Path | None,
) -> None:
    client, model, campaign = about
    with open_for_operator(config.load(config_file)) as opened:
        ttl_s = decision_seconds(opened, ttl)
        if campaign is not None:
            _decide_campaign(opened, state, campaign, model, ttl_s, (reason, note, dry), as_json)
            return
        subject = subject_of(opened.reader, client or "", model)
        confirm(opened, subject, client or "", {"clear": "release"}.get(state, state), yes)
        made = opened.operations.decide(
            opened.actor, subject, state, ttl_s=ttl_s, reason=reason, note=note, simulated=dry
        )
        row = next(
            d
            for d in opened.reader.decisions(simulated=True)
            if (d.client_key, d.model_id) == (made.client, made.model)
        )
    words = f"{row.state} {on_model(row.model_id)} until {end_of(row.until_s)}"
    report(row, as_json, f"{named(client or '')}: {words}{', dry run: nothing is enforced' if dry else ''}")


def _decide_campaign(
    opened: Opened, state: Ruling, campaign: str, model: str, ttl_s: int, said: tuple[str, str, bool], as_json: bool
) -> None:
    """Decide about all accounts of a campaign. said: reason, note, whether it is a dry run."""
    reason, note, dry = said
    subject = _campaign(opened, campaign, model)
    made = opened.operations.decide_campaign(
        opened.actor, subject, state, ttl_s=ttl_s, reason=reason, note=note, simulated=dry
    )
    row = campaign_decision_of(made, waits=opened.operations.waits(made))
    more = ", dry run: nothing is enforced" if dry else ""
    if row.waits:
        more = f"; waits until another person runs: querywarden decisions confirm --campaign {named(campaign)}"
    elif state != "clear" and not dry:
        more = f"; up to {len(row.confirmed)} accounts that join it are added"
    allowed = {a.client_key for a in opened.reader.allowlist() if a.model_id in (row.model_id, EVERY_MODEL)}
    if spared := len(allowed.intersection(row.confirmed)):
        more += f"; {spared} on the allowlist {'is' if spared == 1 else 'are'} let through"
    report(row, as_json, f"{_of_campaign(row)}{more}")


def _of_campaign(row: CampaignDecision) -> str:
    accounts = "1 account" if row.accounts == 1 else f"{row.accounts} accounts"
    return f"campaign {named(row.campaign_id)}, {accounts}: {row.state} {on_model(row.model_id)} until {end_of(row.until_s)}"


def _campaign(opened: Opened, campaign: str, model: str) -> CampaignSubject:
    """The campaign with its accounts. Raises Missing, WrongUse."""
    found = opened.reader.campaign(campaign)
    if found is None:
        raise Missing(f"no campaign {named(campaign)!r}: querywarden clients lists the campaigns")
    if model not in (EVERY_MODEL, found.model_id):
        raise WrongUse("--model: the campaign is about another model; leave it out")
    return CampaignSubject(found.campaign_id, found.model_id, tuple(m.client_key for m in found.members))


def _decided_campaign(opened: Opened, campaign: str, model: str) -> CampaignSubject:
    """A campaign that was decided about, even if it is over. Raises Missing."""
    for one in opened.reader.campaign_decisions():
        if one.campaign_id == campaign and model in (EVERY_MODEL, one.model_id):
            return CampaignSubject(campaign, one.model_id, one.confirmed)
    raise Missing(f"no decision of an operator about campaign {named(campaign)!r}")


class _About(NamedTuple):
    """Whom a decision is about: a client, or all accounts of a campaign."""

    client: str | None
    model: str
    campaign: str | None

    @classmethod
    def of(cls, client: str | None, model: str, campaign: str | None) -> _About:
        """Raises WrongUse for none or both."""
        if (client is None) == (campaign is None):
            raise WrongUse("give either a client or --campaign ID")
        return cls(client, model, campaign)


def _add_decision(state: Ruling, words: str) -> None:
    """Add the command that decides `state`; `words`: its help."""

    def decide(
        client: ClientOrNone = None,
        campaign: CampaignOption = None,
        model: ModelOption = "*",
        ttl: For = "24h",
        reason: Reason = "",
        note: DecisionNote = "",
        dry: DryRun = False,
        yes: Yes = False,
        as_json: AsJson = False,
        config_file: ConfigFile = None,
    ) -> None:
        _decide(state, _About.of(client, model, campaign), ttl, reason, note, dry, yes, as_json, config_file)

    app.command(state, help=words)(decide)


_add_decision("block", "Block a client, or all accounts of a campaign, for a while.")
_add_decision("throttle", "Slow a client down, or all accounts of a campaign, for a while.")
_add_decision(
    "degrade",
    "Let a client, or all accounts of a campaign, through to answers with less detail for a while; gateway.degrade names the steps.",
)


@app.command("confirm")
def decisions_confirm(
    campaign: Annotated[str, typer.Option("--campaign", help="Id of the campaign.")],
    model: ModelOption = "*",
    as_json: AsJson = False,
    config_file: ConfigFile = None,
) -> None:
    """Confirm a decision about a campaign that another person proposed."""
    with open_for_operator(config.load(config_file)) as opened:
        made = opened.operations.confirm_campaign(opened.actor, _decided_campaign(opened, campaign, model))
    row = campaign_decision_of(made, waits=False)
    report(row, as_json, f"{_of_campaign(row)}, proposed by {row.actor}, confirmed by {row.second}")


@app.command("release")
def decisions_release(
    client: ClientOrNone = None,
    campaign: CampaignOption = None,
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
    """Let a client, or all accounts of a campaign, through for a while, whatever was detected or decided before."""
    about = _About.of(client, model, campaign)
    if not withdraw:
        _decide("clear", about, ttl, reason, "", False, yes, as_json, config_file)
        return
    with open_for_operator(config.load(config_file)) as opened:
        if campaign is not None:
            over = opened.operations.withdraw_campaign(opened.actor, _decided_campaign(opened, campaign, model))
            row = campaign_decision_of(over, waits=opened.operations.waits(over))
            report(row, as_json, f"withdrawn: {_of_campaign(row)}, by {row.actor}")
            return
        gone = opened.operations.withdraw(opened.actor, subject_of(opened.reader, client or "", model))
    report(gone, as_json, f"{named(client or '')}: withdrawn, {gone.state} {on_model(gone.model)} by {gone.actor}")
