"""Accounts that join a campaign which an operator decided about: detection adds them to the decision, within narrow bounds.

Rules: an account must meet all of these.
* It is a member of the flagged campaign: the group's statistic was computed with it (`campaigns`).
* It shares a link of a kind in `JOINING` with the campaign. These say whose an account is or which network it comes from. Any other kind,
  such as the client software, the plan, what its queries contain or what a peer reported, suggests members to an operator but adds none.
* Its own p-value, among honest clients of its size, is at most `JOIN_P`. So an honest account that shares the link of a thief, a new
  colleague for example, does not join because of the thief's queries.
* It is not on the allowlist, and has no decision of an operator of its own.
* The decision has room: at most as many join as were confirmed by a person (`operators.campaign_decisions`).
* The breaker of detect allows it, as for any client that detection restricts. While the breaker is open nobody joins.

The process that holds the campaign's decision cell adds them, in one step with a row of the audit log.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Protocol

from consumers.detect.grouping import Survey
from consumers.detect.overrides import Overrides
from consumers.errors import Missing
from consumers.operators.audited_write import Actor
from consumers.operators.campaign_decisions import CampaignSubject, extends
from consumers.records.decision import StoredDecision, campaign_key
from consumers.records.operator_entries import StoredCampaignDecision
from consumers.secrets import Secrets
from consumers.store import OperatorStore, decision_cell
from consumers.telemetry.metrics import Metrics
from detector.policy import FLAGGED
from detector.query import ClientKey

log = logging.getLogger("querywarden.campaigns")

JOINING = ("org:", "session:", "payment:", "device:", "registration:", "who.", "ip:", "asn_ja4:")
"""Beginnings of links by which an account may join."""
JOIN_P = 0.05
"""An account joins if at most this share of the honest clients of its size is as odd. Over its lifetime, among clients of any size, a
small account is never suspicious: docs/detection.md has both (`make bench-campaigns`)."""


class Joins(Protocol):
    """Who writes that accounts joined: `operators.operate.Operations`."""

    def join_campaign(self, actor: Actor, subject: CampaignSubject, accounts: list[str]) -> StoredCampaignDecision: ...


@dataclass(slots=True)
class Joining:
    """Adds accounts to decisions, after a pass over the campaigns."""

    overrides: Overrides
    operations: Joins
    store: OperatorStore
    secrets: Secrets
    metrics: Metrics
    decision_cells: int

    def look(self, tenant: str, survey: Survey, held: Container[int], now_s: int) -> int:
        """Add the accounts that may join the decisions of a tenant; return how many. Raises Unavailable."""
        added = 0
        for decision in self.overrides.campaign_decisions(tenant, now_s):
            key = campaign_key(tenant, decision.model, decision.campaign)
            row = survey.standing.get(key)
            if decision_cell(key, self.decision_cells) not in held or row is None or not extends(decision):
                continue
            accounts = list(self._allowed(decision, row, survey, tenant, now_s))
            if accounts:
                added += self._join(tenant, decision, accounts)
        if added:
            self.overrides.refresh(self.store)  # past our own entry: who is behind writes nothing
        self.overrides.remember(self.store, tenant)  # a breaker that opened meanwhile
        return added

    def _allowed(
        self, decision: StoredCampaignDecision, row: StoredDecision, survey: Survey, tenant: str, now_s: int
    ) -> Iterator[str]:
        if row.decision.state not in FLAGGED:
            return
        known = frozenset(decision.accounts)
        shared = {link for link in row.links if link.startswith(JOINING)}
        room = len(decision.confirmed) - len(decision.joined)
        members = {self.secrets.client_hash(tenant, member) for member in row.members}
        for account in sorted(members - known):
            client = ClientKey(tenant, decision.model, account)
            summary = survey.clients.get(client)
            if summary is None or summary.size_p_value > JOIN_P or shared.isdisjoint(summary.links):
                continue
            if self.overrides.lists(client, now_s) or self.overrides.decided(client, now_s):
                continue
            if room <= 0 or not self.overrides.breaker(tenant).allows(client, now_s):
                return
            room -= 1
            yield account

    def _join(self, tenant: str, decision: StoredCampaignDecision, accounts: list[str]) -> int:
        subject = CampaignSubject(decision.campaign, decision.model, tuple(accounts))
        try:
            made = self.operations.join_campaign(Actor("detect", "process", tenant), subject, accounts)
        except Missing:
            return 0  # withdrawn or extended meanwhile
        log.warning(
            "accounts joined a campaign under decision",
            extra={"campaign": decision.campaign, "model": decision.model, "accounts": len(accounts)},
        )
        self.metrics.add("querywarden_campaign_joined_total", len(accounts), model=decision.model)
        self.overrides.campaigns[tenant, subject.key] = made
        return len(accounts)
