"""Indicators, both ways: what of our findings peers may be told, and which clients match what peers reported.

Rules:

* A finding is exported while it is open, or if an analyst confirmed it; never one that was judged wrong, or of a client that an operator
  released or allowlisted. A campaign is exported as a whole, its members not once more.
* What is found by content alone is exported only if an analyst confirmed it: a person must confirm its members anyway.
* Of a campaign only hashes are exported that two of its members share: a campaign may name an honest account.
* A hash is exported if at least half of the accounts that have it belong to exported findings: what honest accounts share says nothing.
* How sure we are goes into the confidence (`confidence_of`): a p-value is no probability that a client is a thief.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from consumers.alerts.indicators import MOST_HASHES, indicator_id
from consumers.readers.models import IndicatorSource, ReportedIndicator
from consumers.records import odd_contents
from consumers.records.damaged import readable
from consumers.records.decision import StoredDecision, is_campaign, stored_decision, summary_of
from consumers.records.frameworks import frameworks_of, techniques_of
from consumers.records.indicators import Indicator, Match, Reported, StoredIndicators, imports_of
from consumers.records.operator_entries import VerdictValue
from consumers.secrets import Secrets
from consumers.sharing_keys import SharingKey
from consumers.store import OperatorStore, ServiceStore
from detector.policy import FLAGGED, REASONS
from detector.query import ClientKey

LEAST_SHARE = 0.5
"""Share of a hash's accounts that must belong to exported findings."""
_NOT_SURE = ("allow_listed", "campaign_content")
"""Reasons of findings that are exported only once they are confirmed."""


@dataclass(frozen=True, slots=True)
class ExportedIndicators:
    """What peers may be told.

    described  id of an indicator → a sentence about it that names nobody
    withheld   findings without any hash that may be told
    """

    indicators: tuple[Indicator, ...]
    described: Mapping[str, str]
    withheld: int


@dataclass(frozen=True, slots=True)
class Told:
    """What people said, as far as it decides what is exported. verdicts: alert id → verdict; spared: keyed hashes of clients."""

    verdicts: Mapping[str, VerdictValue]
    spared: Collection[str]


@dataclass(frozen=True, slots=True)
class _Finding:
    """A finding that may be exported, and the accounts whose hashes it has."""

    row: StoredDecision
    accounts: tuple[ClientKey, ...]
    confirmed: bool


def confidence_of(row: StoredDecision, confirmed: bool) -> int:
    """Return the confidence of a finding, 0 to 100.

    90 if an analyst confirmed it; otherwise 70 for a block, 50 for a throttle, 30 on an uncalibrated baseline.
    """
    if confirmed:
        return 90
    if not row.assessment.calibrated:
        return 30
    return 70 if row.decision.state == "block" else 50


def exported(
    store: ServiceStore,
    secrets: Secrets,
    tenant: str,
    key: SharingKey,
    told: Told,
    now_s: int,
    keep_s: int,
    confirmed_only: bool = False,
) -> ExportedIndicators:
    """Return the indicators of a tenant's findings under a sharing key.

    keep_s  how long an indicator holds after the client's last query. Raises Unavailable.
    """
    shared: dict[ClientKey, tuple[str, ...]] = {}
    findings = list(_findings(store, secrets, tenant, told, shared, f"{key.key_id}."))
    findings = [one for one in findings if one.confirmed or not confirmed_only]
    everywhere = Counter(hashed for hashes in shared.values() for hashed in hashes)
    ours = Counter(
        hashed for account in {a for one in findings for a in one.accounts} for hashed in shared.get(account, ())
    )
    made: dict[str, Indicator] = {}
    described: dict[str, str] = {}
    withheld = 0
    for one in findings:
        until_s = one.row.last_ms // 1000 + keep_s
        hashes = Counter(h for account in one.accounts for h in shared.get(account, ()))
        telling = [h for h, n in hashes.items() if n >= _least(one, h) and ours[h] >= LEAST_SHARE * everywhere[h]]
        if not telling or until_s <= now_s:
            withheld += 1
            continue
        indicator = _indicator(one, key, sorted(telling, key=lambda h: (-hashes[h], h))[:MOST_HASHES], until_s)
        made[indicator.id] = indicator
        described[indicator.id] = _described(one)
    return ExportedIndicators(tuple(made.values()), described, withheld)


def _findings(
    store: ServiceStore,
    secrets: Secrets,
    tenant: str,
    told: Told,
    shared: dict[ClientKey, tuple[str, ...]],
    ours: str,
) -> Iterator[_Finding]:
    """Findings that may be exported, campaigns first. Fills `shared` with the hashes of all accounts, without the key's id `ours`."""
    clients: list[tuple[ClientKey, StoredDecision, bool]] = []
    campaigns: list[tuple[ClientKey, StoredDecision, bool]] = []
    for key, row in store.decisions(tenant):
        summary = readable("decision row", summary_of, row, model=key.model)
        if summary is None:
            continue
        if not is_campaign(key):
            shared[key] = tuple(h.removeprefix(ours) for h in summary.shared if h.startswith(ours))
        stored = readable("decision row", stored_decision, row, secrets, tenant, model=key.model)
        if stored is None or stored.alert is None or key.client in told.spared:
            continue
        verdict = told.verdicts.get(stored.alert["alert_id"])
        open_now = stored.decision.state in FLAGGED and stored.decision.reason not in _NOT_SURE
        if verdict != "false_positive" and (open_now or verdict == "true_positive"):
            (campaigns if is_campaign(key) else clients).append((key, stored, verdict == "true_positive"))
    told_of: set[ClientKey] = set()
    for key, stored, confirmed in campaigns:
        members = (ClientKey(tenant, key.model, secrets.client_hash(tenant, name)) for name in stored.members)
        accounts = tuple(account for account in members if account.client not in told.spared)
        told_of.update(accounts)
        yield _Finding(stored, accounts, confirmed)
    for key, stored, confirmed in clients:
        if key not in told_of:
            yield _Finding(stored, (key,), confirmed)


def _least(one: _Finding, hashed: str) -> int:
    """How many of the finding's accounts must have a hash. Accounts that share a theft seldom ask the same query."""
    return 2 if one.row.members and not hashed.startswith(f"{odd_contents.KIND}:") else 1


def _indicator(one: _Finding, key: SharingKey, hashes: list[str], until_s: int) -> Indicator:
    row = one.row
    named = techniques_of(frameworks_of("campaign" if row.members else "client", row.decision.reason))
    alert = row.alert or {}
    return Indicator(
        id=indicator_id(alert["alert_id"], key),
        key_id=key.key_id,
        hashes=tuple(sorted(hashes)),
        confidence=confidence_of(row, one.confirmed),
        reason=row.decision.reason,
        family=row.assessment.family,
        techniques=tuple(technique.id for technique in named),
        valid_from_s=min(row.decision.since_s or row.last_ms // 1000, until_s - 1),
        valid_until_s=until_s,
    )


def _described(one: _Finding) -> str:
    """A sentence that names nobody."""
    row, many = one.row, len(one.accounts)
    who = f"A campaign of {many:,} accounts" if row.members else "A client"
    why = REASONS.get(row.decision.reason, row.decision.reason)
    confirmed = "; an analyst confirmed it" if one.confirmed else ""
    return f"{who} of a model was flagged: {why}{confirmed}. What matches may be linked to it; a match alone is no evidence."


# ---------------------------------------------------------------------------------------------------- of peers


def sources(store: OperatorStore, tenant: str) -> tuple[IndicatorSource, ...]:
    """Return whose indicators hold, by name. Raises Unavailable."""
    return tuple(source_of(stored) for stored in imports_of(store, tenant))


def source_of(stored: StoredIndicators) -> IndicatorSource:
    """Return the public shape of an import."""
    hashes = sum(len(one.hashes) for one in stored.indicators)
    return IndicatorSource(
        source=stored.source,
        indicators=len(stored.indicators),
        hashes=hashes,
        until_s=stored.until_s,
        actor=stored.actor,
        at_s=stored.at_s,
        digest=stored.digest,
    )


def matches(store: ServiceStore, tenant: str, now_s: float) -> dict[ClientKey, tuple[ReportedIndicator, ...]]:
    """Return the clients of a tenant that match indicators of peers. Raises Unavailable."""
    imports = imports_of(store, tenant)
    if not imports:
        return {}
    rows = ((key, row) for key, row in store.decisions(tenant) if not is_campaign(key))
    found = ((key, readable(None, summary_of, row)) for key, row in rows)
    among = Reported(imports, now_s).among((key, one.shared) for key, one in found if one is not None)
    return {key: tuple(map(reported_of, mine)) for key, mine in among.items()}


def reported_of(match: Match) -> ReportedIndicator:
    """Return the public shape of a match."""
    one = match.indicator
    return ReportedIndicator(
        source=match.source,
        indicator_id=one.id,
        kinds=match.kinds,
        confidence=one.confidence,
        reason=one.reason,
        family=one.family,
        techniques=one.techniques,
        valid_until_s=one.valid_until_s,
    )
