"""Operators' entries that detect applies: the allowlist, which overrides everything, and the state of the breaker.

Rules:
* A client on the allowlist is assessed, scored and alerted like any other. Nothing is enforced against it (reason ``allow_listed``).
* While the breaker of a tenant is open, no further client of that tenant is restricted (reason ``breaker``). The store keeps the time at
  which it opened (breaker_entries.py) until a later reset of the same tenant, which drops it. Tenants do not affect each other.
* The operator cell is read once and then followed by its changes. It is read before every turn: an entry takes effect with the next
  assessment, and at once at the gateways, which read the same entries.
* Decisions about clients and campaigns are known here only to say whom detection may add to a campaign's (joining.py); gateways enforce
  them by themselves.
* Schema holds are followed for detect (schema_holds.py).
* Verdicts are kept for the sinks (verdicts.py). They change no decision by themselves.
* An entry that cannot be read is skipped with a warning; it never lifts or imposes anything.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from consumers.detect.schema_holds import SchemaHolds
from consumers.detect.verdicts import Verdicts
from consumers.errors import Rewound
from consumers.records import schema_holds
from consumers.records.breaker import Breaker, BreakerLimits
from consumers.records.breaker_entries import KIND, TRIPPED, BreakerTimes, Tripped, open_since_s, opened_after
from consumers.records.damaged import readable
from consumers.records.operator_entries import (
    EVERY_MODEL,
    StoredCampaignDecision,
    campaign_decision,
    entry_key,
    packed,
)
from consumers.store import Entry, Operation, OperatorStore
from detector.policy import FLAGGED, Decision, severity
from detector.query import ClientKey

log = logging.getLogger("querywarden.detect")

CHANGES_AT_ONCE = 1000
FOLLOWED = ("allow", KIND, "verdict", schema_holds.KIND, "campaign", "decision")
"""Kinds of entries that detect follows."""


@dataclass(slots=True)
class Overrides:
    """See above.

    limits    of every tenant's breaker; breakers: by tenant
    revision  of the operator cell as far as it was read, None: not read yet
    times     tenant → when its breakers opened, as stored, and when an operator of it last closed them
    campaigns (tenant, key) → decision about a campaign; clients: (tenant, key) → when the decision about a client ends, in seconds
    """

    limits: BreakerLimits = field(default_factory=BreakerLimits)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    allowed: dict[tuple[str, str], int] = field(default_factory=dict)
    revision: int | None = None
    times: dict[str, BreakerTimes] = field(default_factory=dict)
    verdicts: Verdicts = field(default_factory=Verdicts)
    schema: SchemaHolds | None = None
    campaigns: dict[tuple[str, str], StoredCampaignDecision] = field(default_factory=dict)
    clients: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether any tenant's breaker is open."""
        return any(breaker.open for breaker in self.breakers.values())

    def breaker(self, tenant: str) -> Breaker:
        """The breaker of a tenant."""
        return self.breakers.setdefault(tenant, Breaker(self.limits))

    def _times_of(self, tenant: str) -> BreakerTimes:
        return self.times.setdefault(tenant, BreakerTimes())

    def refresh(self, store: OperatorStore) -> None:
        """Follow the operator cell. Raises Unavailable."""
        found = None if self.revision is None else store.operator_changes(self.revision, CHANGES_AT_ONCE)
        if found is None:
            self.allowed, self.verdicts = {}, Verdicts()
            self.times = {tenant: BreakerTimes(reset_s=known.reset_s) for tenant, known in self.times.items()}
            self.campaigns, self.clients = {}, {}
            if self.schema is not None:
                self.schema.known.clear()
            answers = [store.operator_entries(kind) for kind in FOLLOWED]
            self.revision = min(revision for revision, _ in answers)
            entries = [entry for _, answer in answers for entry in answer]
        else:
            self.revision, entries = found
        for entry in entries:
            self._take(entry)
        if entries or found is None:
            self._settle_breakers(store)

    def _take(self, entry: Entry) -> None:
        ends = {"allow": self.allowed, "decision": self.clients}.get(entry.kind)
        if ends is not None:
            if entry.value:
                ends[entry.tenant, entry.key] = entry.expires_s
            else:
                ends.pop((entry.tenant, entry.key), None)
        elif entry.kind == "campaign":
            self._take_campaign(entry)
        elif entry.kind == "verdict":
            self.verdicts.take(entry)
        elif entry.kind == schema_holds.KIND and self.schema is not None:
            self.schema.take(entry)
        elif entry.kind == KIND:
            times = self._times_of(entry.tenant)
            reset_s = times.reset_s
            times.take(entry)
            if times.reset_s > reset_s:
                self.breaker(entry.tenant).restricted.clear()  # whichever breaker was open: counting begins anew

    def _take_campaign(self, entry: Entry) -> None:
        self.campaigns.pop((entry.tenant, entry.key), None)
        if entry.value:
            decision = readable("entry", campaign_decision, entry, kind=entry.kind, key=entry.key)
            if decision is not None:
                self.campaigns[entry.tenant, entry.key] = decision

    def _settle_breakers(self, store: OperatorStore) -> None:
        """Open or closed, by what is stored."""
        for tenant in {*self.breakers, *self.times}:
            breaker, times = self.breaker(tenant), self._times_of(tenant)
            if times.tripped_since_s:
                breaker.open, breaker.tripped_s = True, times.tripped_s  # what is stored counts: a reset is not earlier
            elif breaker.open and not open_since_s(breaker.tripped_s, times.reset_s):
                breaker.reset()
                log.warning("breaker reset", extra={"tenant": tenant})
        # Of earlier versions, whose resets dropped nothing.
        over = [tenant for tenant, times in self.times.items() if times.tripped_s and not times.tripped_since_s]
        if over:
            self._write(store, Operation(drops=[(tenant, KIND, TRIPPED) for tenant in over]))

    def remember(self, store: OperatorStore, tenant: str) -> None:
        """Store that a tenant's breaker opened, if it did. Raises Unavailable; another writer in between: with the next turn."""
        breaker, times = self.breaker(tenant), self._times_of(tenant)
        if breaker.open and not times.tripped_since_s:
            limit = breaker.limit()
            breaker.tripped_s = opened_after(breaker.tripped_s, times.reset_s)
            value = Tripped(int(breaker.tripped_s), len(breaker.restricted), limit)
            if self._write(store, Operation(puts=[Entry(tenant, KIND, TRIPPED, packed(value))])):
                times.tripped_s = value.at_s
                log.error("breaker opened", extra={"tenant": tenant, "restricted": value.restricted, "limit": limit})

    def _write(self, store: OperatorStore, operation: Operation) -> bool:
        if self.revision is None:
            return False
        try:
            store.operate(self.revision, operation)
        except Rewound:
            log.info("operator cell changed meanwhile")  # read again with the next turn, then tried again
            return False
        return True

    def lists(self, client: ClientKey, now_s: float) -> bool:
        """Whether the client is allowlisted."""
        return _holds(self.allowed, client, now_s)

    def decided(self, client: ClientKey, now_s: float) -> bool:
        """Whether an operator decided about the client itself, a dry run too."""
        return _holds(self.clients, client, now_s)

    def campaign_decisions(self, tenant: str, now_s: float) -> list[StoredCampaignDecision]:
        """Operators' decisions about campaigns of a tenant that hold now."""
        return [d for (whose, _), d in sorted(self.campaigns.items()) if whose == tenant and now_s < d.until_s]

    def overruled(self, client: ClientKey, before: Decision, decision: Decision, now_s: float) -> Decision:
        """The decision as it may be enforced."""
        breaker = self.breaker(client.tenant)
        breaker.seen(client, now_s)
        if decision.enforced not in FLAGGED:
            return decision  # to watch somebody restricts nobody
        if self.lists(client, now_s):
            return replace(decision, enforced="clear", reason="allow_listed")
        rises = severity(decision.enforced) > severity(before.enforced)
        if rises and not breaker.allows(client, now_s):
            return replace(decision, enforced=before.enforced, reason="breaker")
        return decision


def _holds(ends: Mapping[tuple[str, str], int], client: ClientKey, now_s: float) -> bool:
    """Whether an entry about the client holds, for its model or for all. ends: (tenant, key) → its end, 0 for none."""
    for model in (client.model, EVERY_MODEL):
        until_s = ends.get((client.tenant, entry_key(model, client.client)))
        if until_s is not None and (until_s == 0 or now_s < until_s):
            return True
    return False
