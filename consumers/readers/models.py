"""Read models: frozen, typed values of clients, findings and decisions. `queries` makes them; API, dashboard and terminal show them.

Rules: times are seconds (``_s``) or milliseconds (``_ms``) since the epoch, UTC; 0 means never. Client ids are those of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from consumers.records.operator_entries import CaseState, Ruling, VerdictValue
from consumers.store import Enforced
from detector.exposure import Exposure
from detector.own_life import Observation
from detector.policy import Mode, State
from detector.scoring import Evidence


@dataclass(frozen=True, slots=True)
class Client:
    """A client of a model as last assessed. client_key: keyed hash of the id, safe in addresses; until_s: 0 for no end."""

    client_id: str
    client_key: str
    model_id: str
    queries: int
    distinct: float
    suspicion: float
    p_value: float
    calibrated: bool
    in_order: bool
    state: State
    reason: str
    enforced: State
    since_s: int
    until_s: int
    last_seen_ms: int
    family: str
    extraction: Exposure | None
    campaign_id: str | None
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class TrailPoint:
    """When suspicion first reached a level."""

    queries: int
    suspicion: float
    time_ms: int


@dataclass(frozen=True, slots=True)
class ExposurePoint:
    """Exposure by then: the fidelity of a copy with its interval, shares of honest inputs."""

    queries: int
    fidelity: float
    low: float
    high: float
    time_ms: int


@dataclass(frozen=True, slots=True)
class StateChange:
    """A change of state."""

    time_s: int
    state: State
    reason: str
    suspicion: float


@dataclass(frozen=True, slots=True)
class OperatorDecision:
    """What an operator decided for a client, on one model or on all (``*``). A simulated one is only shown."""

    client_id: str
    client_key: str
    model_id: str
    state: Ruling
    until_s: int
    simulated: bool
    reason: str
    note: str
    actor: str
    at_s: int


@dataclass(frozen=True, slots=True)
class CampaignDecision:
    """What an operator decided for all accounts of a campaign.

    waits      it is a proposal: nothing is enforced until a second person confirms it
    second     the person that confirmed it, empty where none was needed
    confirmed  client_keys of the accounts that the operator decided about; joined: of those that detection added since, and when
    """

    campaign_id: str
    model_id: str
    state: Ruling
    until_s: int
    simulated: bool
    waits: bool
    reason: str
    note: str
    actor: str
    at_s: int
    second: str
    confirmed: tuple[str, ...]
    joined: tuple[str, ...]
    joined_s: tuple[int, ...]

    @property
    def accounts(self) -> int:
        """How many accounts it is about."""
        return len(self.confirmed) + len(self.joined)


@dataclass(frozen=True, slots=True)
class Allowed:
    """A client that is never throttled or blocked. until_s: 0 for ever; origin: operator | verdict."""

    client_id: str
    client_key: str
    model_id: str
    until_s: int
    reason: str
    actor: str
    at_s: int
    origin: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an analyst found about an alert."""

    alert_id: str
    verdict: VerdictValue
    note: str
    actor: str
    at_s: int


@dataclass(frozen=True, slots=True)
class AlertCase:
    """Who works on a finding, and whether it is done. assignee: empty for nobody; actor, at_s: of the last change."""

    alert_id: str
    assignee: str
    state: CaseState
    note: str
    actor: str
    at_s: int


@dataclass(frozen=True, slots=True)
class Precision:
    """How often findings were right, as far as analysts judged them. model_id: empty for findings whose model is not known.

    precision  true positives among those judged, None without any; low, high: its 95 % interval (Wilson)
    """

    model_id: str
    judged: int
    true_positives: int
    precision: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Note:
    """Words that somebody left about a client."""

    id: str
    text: str
    actor: str
    at_s: int


@dataclass(frozen=True, slots=True)
class SharedLink:
    """A kind of link that ties the accounts of a campaign, and how many of them have one of this kind in common."""

    kind: str
    members: int


@dataclass(frozen=True, slots=True)
class Alert:
    """A finding as last sent. time: RFC 3339, of the event; update: 0 for the first; verdict: None until an analyst gave one.

    policy  detection | exposure: the client has spent its exposure budget, and is no suspect
    """

    alert_id: str
    time: str
    kind: str
    client_id: str | None
    client_key: str | None
    members: tuple[str, ...]
    links: tuple[SharedLink, ...]
    campaign_id: str | None
    model_id: str
    state: State
    suspicion: float
    queries_seen: int
    extraction: Exposure | None
    family: str
    evidence: tuple[Evidence, ...]
    update: int
    calibrated: bool
    reason: str
    enforced: State
    resolved: bool
    frameworks: tuple[str, ...]
    policy: str
    verdict: Verdict | None = None
    case: AlertCase | None = None


Cause: TypeAlias = Literal[
    "allow_list", "operator", "campaign", "detection", "exposure", "mode", "breaker", "ended", "nothing"
]
"""Why gateways do what they do with a client."""


@dataclass(frozen=True, slots=True)
class AtGateways:
    """What gateways do with a client now. until_s: its end, 0 for none or for nothing to end; text: it and its cause, in one sentence."""

    state: Enforced
    cause: Cause
    until_s: int
    text: str


@dataclass(frozen=True, slots=True)
class ReportedIndicator:
    """An indicator of a peer that a client matches; it proposes to look at the client, and is no evidence against it.

    source      whom it was imported from
    kinds       of what the client was seen with, such as ``ip``
    confidence  0 to 100, as the peer gave it; reason, family, techniques: of the peer's finding
    """

    source: str
    indicator_id: str
    kinds: tuple[str, ...]
    confidence: int
    reason: str
    family: str
    techniques: tuple[str, ...]
    valid_until_s: int


@dataclass(frozen=True, slots=True)
class IndicatorSource:
    """Whose indicators were imported, and by whom. until_s: end of the last of them; digest: SHA-256 of the file, in hex."""

    source: str
    indicators: int
    hashes: int
    until_s: int
    actor: str
    at_s: int
    digest: str


@dataclass(frozen=True, slots=True)
class ClientDetail:
    """Everything known of one client of one model.

    in_force   what gateways do: the allowlist, then the operator, then detection, as far as mode and breaker allow
    gateways   the same with its cause, in one sentence
    mode       enforcement mode of the model
    coverage   queries by coverage cell of the baseline
    misfit     distinct queries that did not fit the schema
    refused    reason → queries of which something did not fit or could not be read; misfits: the same by column
    links      keyed hashes of what ties accounts together; witnesses: event ids that the evidence rests on
    observations  what is unusual about when it asked how much; no evidence
    indicators indicators of peers that the client matches, the most confident first
    revision   of what people decided about it: goes into If-Match, so that nobody decides on what is over
    """

    client: Client
    in_force: Enforced
    gateways: AtGateways
    mode: Mode
    trail: tuple[TrailPoint, ...]
    exposures: tuple[ExposurePoint, ...]
    history: tuple[StateChange, ...]
    coverage: tuple[int, ...]
    misfit: float
    refused: dict[str, int]
    misfits: dict[str, dict[str, int]]
    links: tuple[str, ...]
    witnesses: tuple[str, ...]
    observations: tuple[Observation, ...]
    indicators: tuple[ReportedIndicator, ...]
    alert_id: str | None
    decision: OperatorDecision | None
    allowed: Allowed | None
    verdict: Verdict | None
    notes: tuple[Note, ...]
    revision: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its clients by state. calibrated: None without a baseline; last_seen_ms: newest query, 0 for none."""

    model_id: str
    clients: int
    watch: int
    throttle: int
    block: int
    last_seen_ms: int
    has_baseline: bool
    calibrated: bool | None
    calibration_clients: int | None
    map_id: str | None
    nulls_version: str | None


@dataclass(frozen=True, slots=True)
class Campaign:
    """Accounts that act as one. suspicion and state are those of the group, links what ties them (keyed hashes), ties the kinds of it."""

    campaign_id: str
    model_id: str
    members: tuple[Client, ...]
    queries: int
    suspicion: float
    state: State
    first_s: int
    last_seen_ms: int
    links: tuple[str, ...]
    ties: tuple[SharedLink, ...]


@dataclass(frozen=True, slots=True)
class SinkHealth:
    """Where alerts go. waiting: alerts that it has not taken yet; away: it took none when it was last asked."""

    name: str
    waiting: int
    away: bool


@dataclass(frozen=True, slots=True)
class Health:
    """store: whether it answers; the rest is None when it doesn't, or when no process says so.

    dead_letters  refused records by reason
    breaker       open (nothing detected is newly enforced) | closed
    lag           records that wait in the log, by the ingest processes that live
    alarms        that are raised in any process
    stopped       log cells that cannot go on until an operator decides, each with its reason
    sinks         by the detect processes that live
    processes     how many ingest and detect processes live
    """

    store: bool
    cells: int | None
    models: int | None
    clients: int | None
    dead_letters: Mapping[str, int] | None
    newest_ms: int | None
    breaker: str | None = None
    lag: int | None = None
    alarms: tuple[str, ...] | None = None
    sinks: tuple[SinkHealth, ...] | None = None
    processes: Mapping[str, int] | None = None
    stopped: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ListBound:
    """Of the `n` most suspicious clients, at most `honest_at_most` are honest, with this confidence, for every n at once."""

    n: int
    honest_at_most: int
    confidence: float


@dataclass(frozen=True, slots=True)
class ClientPage:
    """items, and the cursor of the next page, None at the end."""

    items: tuple[Client, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class AlertPage:
    """items, newest first, and the cursor of the next page, None at the end."""

    items: tuple[Alert, ...]
    next: str | None
