"""Decisions about a campaign: all its accounts are blocked, throttled or degraded as one, and released as one.

Rules:
* One entry holds the decision with the keyed hashes of the accounts that the operator saw (`confirmed`). It begins, ends and is withdrawn
  as a whole. An account's own decision and the allowlist override it (`enforcement.restrictions`).
* Detection adds accounts that join the campaign later (`joined`, `detect.joining`): at most as many as were confirmed, each with a row of
  the audit log. A dry run and a release are never extended.
* If a campaign has more accounts than `confirm_above`, a restriction of it is a proposal until another person confirms it. A proposal is
  shown and audited, and enforced nowhere. Two keys of one name are one person. 0 needs no second person.
* A decision that a person makes is not counted by the breaker, like any decision of an operator. Accounts that join are counted: they are
  detected, and nobody named them (docs/decisions/0029).

Errors: as in `operate`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from consumers.errors import Conflict, Missing, Stale, WrongUse
from consumers.operators import bounds
from consumers.operators.audited_write import DAY_S, Actor, AuditedWriter, Plan
from consumers.records import operator_entries
from consumers.records.operator_entries import (
    RULINGS,
    StoredCampaignDecision,
    StoredOperatorDecision,
    campaign_revision,
    entry_key,
)
from consumers.store import Entry

FORCE, PROPOSAL = "campaign", "proposal"


@dataclass(frozen=True, slots=True)
class CampaignSubject:
    """A campaign as the operator saw it. accounts: hashes of its members."""

    campaign: str
    model: str
    accounts: tuple[str, ...]

    @property
    def key(self) -> str:
        """Key of its entries."""
        return entry_key(self.model, self.campaign)


def check_dry_run(about: str, simulated: bool, before: StoredOperatorDecision | StoredCampaignDecision | None) -> None:
    """Raises Conflict for a dry run where a decision is in force."""
    if simulated and before is not None and not before.simulated:
        raise Conflict(
            f"a decision about {about} is in force, and a dry run would replace it; withdraw the decision first"
        )


def person(name: str) -> str:
    """Who acts, whatever key was used: the audit log names keys ``name [key:prefix]``."""
    return name.partition(" [")[0]


@dataclass(slots=True)
class CampaignDecisions(AuditedWriter):
    """What may be decided about campaigns.

    longest_s      how long a decision may hold
    confirm_above  a restriction of more accounts waits for a second person; 0: none does
    """

    longest_s: int = bounds.LONGEST_S
    confirm_above: int = 0

    def decide_campaign(
        self,
        actor: Actor,
        subject: CampaignSubject,
        state: str,
        *,
        ttl_s: int = DAY_S,
        reason: str = "",
        note: str = "",
        simulated: bool = False,
        once: str | None = None,
        seen: str | None = None,
    ) -> StoredCampaignDecision:
        """Block, throttle, degrade or release all accounts of a campaign for a while.

        The answer is a proposal (`waits`) where a second person must confirm it. seen: `campaign_revision` that the caller decided on.
        Raises Conflict for a dry run where a decision is in force, Stale when `seen` is over.
        """
        ruling = bounds.one_of("state", state, RULINGS)
        bounds.check_length(ttl_s, self.longest_s)
        bounds.check_words(reason, note)
        if not subject.accounts:
            raise WrongUse("the campaign has no account to decide about")

        def plan() -> Plan[StoredCampaignDecision]:
            now, before = int(self.now_s()), self.campaign_decision(actor.tenant, subject)
            self._seen(subject, before, seen)
            made = StoredCampaignDecision(
                subject.campaign, subject.model, ruling, now + ttl_s, simulated, reason, note, actor.name, now,
                tuple(sorted(set(subject.accounts))),
            )  # fmt: skip
            check_dry_run("this campaign", simulated, before)
            waits = self.waits(made)
            put = Entry(
                actor.tenant, PROPOSAL if waits else FORCE, subject.key, operator_entries.packed(made), made.until_s
            )
            superseded = [] if waits or simulated else self._proposals(actor.tenant, subject)
            return Plan(made, _about(subject, len(made.confirmed)), before, [put], superseded)

        action = f"campaign.{state}{'.simulated' if simulated else ''}"
        asked = (subject.key, state, ttl_s, reason, note, simulated)
        return self._apply(actor, action, plan, StoredCampaignDecision, once, asked)

    def waits(self, made: StoredCampaignDecision) -> bool:
        """Whether a decision is a proposal: it waits for a second person."""
        many = 0 < self.confirm_above < len(made.confirmed)
        return many and made.state != "clear" and not made.simulated and not made.second

    def _proposals(self, tenant: str, subject: CampaignSubject) -> list[tuple[str, str, str]]:
        before = self._entry(PROPOSAL, subject.key, tenant, StoredCampaignDecision)
        return [] if before is None else [(tenant, PROPOSAL, subject.key)]

    def confirm_campaign(
        self, actor: Actor, subject: CampaignSubject, *, once: str | None = None
    ) -> StoredCampaignDecision:
        """Confirm what another person proposed; it is enforced from now on. Raises Missing, and Conflict for the same person."""

        def plan() -> Plan[StoredCampaignDecision]:
            before = self._entry(PROPOSAL, subject.key, actor.tenant, StoredCampaignDecision)
            if before is None:
                raise Missing("no decision about this campaign waits for a second person")
            if person(before.actor) == person(actor.name):
                raise Conflict("another person must confirm this decision: you proposed it")
            made = replace(before, second=actor.name)
            put = Entry(actor.tenant, FORCE, subject.key, operator_entries.packed(made), made.until_s)
            drops = [(actor.tenant, PROPOSAL, subject.key)]
            return Plan(made, _about(subject, len(made.confirmed)), before, [put], drops)

        return self._apply(actor, "campaign.confirm", plan, StoredCampaignDecision, once, subject.key)

    def withdraw_campaign(
        self, actor: Actor, subject: CampaignSubject, *, once: str | None = None, seen: str | None = None
    ) -> StoredCampaignDecision:
        """Take a decision about a campaign and a proposal back: what was detected holds again. Raises Missing, Stale."""

        def plan() -> Plan[StoredCampaignDecision]:
            found = {
                kind: entry
                for kind in (FORCE, PROPOSAL)
                if (entry := self._entry(kind, subject.key, actor.tenant, StoredCampaignDecision)) is not None
            }
            self._seen(subject, found.get(FORCE), seen)
            if not found:
                raise Missing("no decision of an operator about this campaign")
            before = found.get(FORCE) or found[PROPOSAL]
            drops = [(actor.tenant, kind, subject.key) for kind in found]
            return Plan(before, _about(subject, len(before.accounts)), before, drops=drops)

        return self._apply(actor, "campaign.withdraw", plan, StoredCampaignDecision, once, (subject.key, "withdraw"))

    def join_campaign(self, actor: Actor, subject: CampaignSubject, accounts: Iterable[str]) -> StoredCampaignDecision:
        """Add accounts to a decision in force, as many as still fit. For detect alone. Raises Missing where nothing can be added."""
        new = sorted(set(accounts))

        def plan() -> Plan[StoredCampaignDecision]:
            before = self.campaign_decision(actor.tenant, subject)
            if before is None or not extends(before):
                raise Missing("no decision about this campaign can be extended")
            known = frozenset(before.accounts)
            added = [one for one in new if one not in known][: room(before)]
            if not added:
                raise Missing("all of these accounts are in the decision")
            times = (int(self.now_s()),) * len(added)
            made = replace(before, joined=(*before.joined, *added), joined_s=(*before.joined_s, *times))
            put = Entry(actor.tenant, FORCE, subject.key, operator_entries.packed(made), made.until_s)
            return Plan(made, f"{_about(subject, len(made.accounts))} joined:{len(added)}", before, [put])

        return self._apply(actor, "campaign.join", plan, StoredCampaignDecision, None, ())

    def campaign_decision(self, tenant: str, subject: CampaignSubject) -> StoredCampaignDecision | None:
        """The decision in force about a campaign, or its dry run."""
        return self._entry(FORCE, subject.key, tenant, StoredCampaignDecision)

    def _seen(self, subject: CampaignSubject, before: StoredCampaignDecision | None, seen: str | None) -> None:
        if seen is not None and campaign_revision(subject.accounts, before) != seen:
            raise Stale("the campaign has other accounts, or somebody decided about it in the meantime; read it again")


def extends(decision: StoredCampaignDecision) -> bool:
    """Whether accounts may join a decision: a restriction that is enforced, with room left."""
    return decision.state != "clear" and not decision.simulated and room(decision) > 0


def room(decision: StoredCampaignDecision) -> int:
    """How many accounts may still join: as many as were confirmed, in all."""
    return max(0, len(decision.confirmed) - len(decision.joined))


def _about(subject: CampaignSubject, accounts: int) -> str:
    return f"campaign:{subject.campaign} model:{subject.model} accounts:{accounts}"
