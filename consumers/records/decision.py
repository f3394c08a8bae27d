"""A decision row: what detect leaves of a client, and the way to its bytes and back.

`StoredDecision` is the stored shape of a finding. There are two more, each made in one place from this one: the public shape
(`readers.models`: API, dashboard, command line, report) and the sink shape (`alerts.finding`: what a receiver of alerts reads).

Rules:

* The row is composed of the detector's values (`Decision`, `AssessmentSummary`, `Exposure`) and of what the record adds. Nothing copies
  their fields by hand: the stored bytes are flat (`_Row`), and one function goes either way.
* `_Row` is the format. A new field goes to its end with a default, which says what rows of earlier versions meant by its absence.
* Client ids, members of campaigns and event ids are sealed in the bytes and in clear in the value.
* A campaign has a row like a client's, under a key that no client can have (`campaign_key`). It is nobody's decision: the store is told
  that it is clear, so that no gateway, breaker or count ever meets it, and who lists clients asks `is_campaign`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from consumers.errors import CorruptState
from consumers.records.client import ClientRecord, Tie
from consumers.records.sealing import sealed, unsealed, with_ids
from consumers.secrets import Secrets
from consumers.store import DecisionRow
from detector.exposure import Exposure
from detector.own_life import Observation
from detector.policy import FLAGGED, Decision, Spent, State
from detector.query import ClientKey
from detector.scoring import AssessmentSummary, Evidence

CAMPAIGN: Final = "campaign:"
"""What the key of a campaign begins with; a client's is 32 hex digits."""

BELOW_ALL = -1.0
"""Rank of a campaign's row: a listing of the highest never gets there."""

HISTORY_KEPT = 64
COUNTED = 1 << 32
"""Above every episode that was counted from 0."""


class LevelReached(NamedTuple):
    """When suspicion first reached a level: queries seen by then, the level, event time in ms."""

    queries: float
    suspicion: float
    time_ms: float


class ExposureMeasured(NamedTuple):
    """Exposure as it was after a number of queries, with its interval, and the event time in ms."""

    queries: float
    fidelity: float
    low: float
    high: float
    time_ms: float


class BudgetFinding(NamedTuple):
    """A client's last finding about its exposure budget.

    number   which of the client's it is: a finding that was closed is not opened again, the next one has another id
    update   number of the last alert that was sent of it
    told     the most that was told of it; ``none`` once it was closed
    verdict  what an analyst said of it, as its alerts carry it
    """

    alert_id: str
    number: int
    update: int
    told: Spent
    verdict: dict[str, Any] | None = None


class StateEntered(NamedTuple):
    """A change of state: time in s, the state, why, and the suspicion at that moment."""

    time_s: int
    state: State
    reason: str
    suspicion: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDecision:
    """All that detect keeps of one client or campaign.

    client_id   for a campaign, the campaign's id
    decision    state, why, until when, and what gateways do
    assessment  what the profile said when the decision was taken
    exposure    fidelity of a copy that the client could have made by then, with its interval; None without an estimator
    persona     the use that the client's owner declared; empty for none
    trail       when suspicion first reached each level, oldest first
    exposures   exposure over queries, oldest first
    history     the last changes of state, newest last
    coverage    queries by region of the input space
    first_ms    event time of the first query that the profile holds, 0 in rows of earlier versions; last_ms: of the last
    cells       profile cells that hold a part of the client
    links       keyed hashes of what ties accounts together (address, organisation, session, fingerprint)
    witnesses   event ids of the last queries that the evidence rests on
    refused     reason → queries of which something did not fit or could not be read; misfits: column → reason → queries
    campaign_id the flagged campaign that names the client; members: client ids, where the row is a campaign's
    alert       body of the open finding as it was last sent; update: its number, -1 for none
    exposed     how much of its exposure budget is spent
    ties        kinds of links that tie a campaign's accounts, and how many accounts each ties
    baseline    id of the baseline that the client was assessed on, empty in rows of earlier versions
    observations  what is unusual about when the client asked how much; shown, and never counted
    tokens      of its queries and their answers, as far as the log says
    shared      hashes under sharing keys, ``KEYID.kind:hash``, which indicators of peers are compared with
    patches     of a client that is odd for its size, keyed hashes of where its odd queries lie and of its templates
    budget      the last finding about the exposure budget; None for a client that never had one, and in rows of earlier versions
    """

    client_id: str
    decision: Decision
    assessment: AssessmentSummary
    exposure: Exposure | None
    persona: str
    trail: tuple[LevelReached, ...]
    exposures: tuple[ExposureMeasured, ...]
    history: tuple[StateEntered, ...]
    coverage: tuple[int, ...]
    first_ms: int
    last_ms: int
    cells: tuple[str, ...]
    links: tuple[str, ...]
    witnesses: tuple[str, ...]
    refused: dict[str, int]
    misfits: dict[str, dict[str, int]]
    campaign_id: str | None
    members: tuple[str, ...]
    alert: dict[str, Any] | None
    update: int
    exposed: Spent
    ties: tuple[Tie, ...]
    baseline: str = ""
    shared: tuple[str, ...] = ()
    observations: tuple[Observation, ...] = ()
    patches: tuple[str, ...] = ()
    tokens: int = 0
    budget: BudgetFinding | None = None

    def score(self, model: str) -> dict[str, Any]:
        """Return the object of ``--scores`` and ``clients --json``."""
        found, decision = self.assessment, self.decision
        return {
            "client_id": self.client_id,
            "model_id": model,
            "queries": found.queries,
            "misfit": round(found.misfit),
            "refused": self.refused,
            "suspicion": found.suspicion,
            "state": decision.state,
            "extraction": msgspec.to_builtins(self.exposure),
            "campaign_id": self.campaign_id,
            "evidence": msgspec.to_builtins(list(found.evidence)),
            "distinct": found.distinct,
            "calibrated": found.calibrated,
            "in_order": found.in_order,
            "family": found.family,
            "reason": decision.reason,
            "enforced": decision.enforced,
            "persona": self.persona,
        } | self._where_known()

    def _where_known(self) -> dict[str, Any]:
        """Keys that a score has only where they say something."""
        found: dict[str, Any] = {"tokens": self.tokens} if self.tokens else {}
        return found | ({"observations": msgspec.to_builtins(list(self.observations))} if self.observations else {})

    def document(self) -> dict[str, Any]:
        """Return the row as one flat JSON object, ids in clear: for evidence bundles and the export of a client's data."""
        document: dict[str, Any] = msgspec.to_builtins(_flat(self, str))
        return document


class RowSummary(msgspec.Struct):
    """The little of a row that grouping, sorting and counting need, read without unsealing; client_id is sealed."""

    client_id: str = ""
    queries: int = 0
    suspicion: float = 0.0
    last_ms: int = 0
    extraction: Exposure | None = None
    campaign_id: str | None = None
    links: list[str] = []
    distinct: float = 0.0
    first_ms: int = 0
    size_p_value: float = 1.0
    oddest: str = ""
    shared: list[str] = []
    patches: list[str] = []


class _Row(msgspec.Struct, frozen=True):
    """The stored row, field by field in the order of its bytes (msgpack map)."""

    client_id: str
    state: State
    reason: str
    since_s: int
    until_s: int
    episode: int
    enforced: State
    queries: int
    distinct: float
    suspicion: float
    p_value: float
    calibrated: bool
    in_order: bool
    family: str
    evidence: tuple[Evidence, ...]
    trail: tuple[LevelReached, ...]
    cells: tuple[str, ...]
    coverage: tuple[int, ...]
    last_ms: int
    update: int
    alert: dict[str, Any] | None
    history: tuple[StateEntered, ...] = ()
    extraction: Exposure | None = None
    campaign_id: str | None = None
    links: tuple[str, ...] = ()
    witnesses: tuple[str, ...] = ()
    persona: str = ""
    members: tuple[str, ...] = ()
    exposures: tuple[ExposureMeasured, ...] = ()
    misfit: float = 0.0
    refused: dict[str, int] = {}
    misfits: dict[str, dict[str, int]] = {}
    first_ms: int = 0
    exposed: Spent | msgspec.UnsetType = msgspec.UNSET
    size_p_value: float | msgspec.UnsetType = msgspec.UNSET
    oddest: str | msgspec.UnsetType = msgspec.UNSET
    ties: tuple[Tie, ...] | msgspec.UnsetType = msgspec.UNSET
    baseline: str | msgspec.UnsetType = msgspec.UNSET
    shared: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    observations: tuple[Observation, ...] | msgspec.UnsetType = msgspec.UNSET
    patches: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    tokens: int | msgspec.UnsetType = msgspec.UNSET
    budget: BudgetFinding | msgspec.UnsetType = msgspec.UNSET


_OMITTED: dict[str, Any] = {
    "exposed": "none",
    "size_p_value": 1.0,
    "oddest": "",
    "ties": (),
    "baseline": "",
    "shared": (),
    "observations": (),
    "patches": (),
    "tokens": 0,
    "budget": None,
}
"""Fields that are written only where they say something, and what their absence means."""
_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(_Row)
_summary = msgspec.msgpack.Decoder(RowSummary)
_DECISION = tuple(f.name for f in dataclasses.fields(Decision))
_ASSESSMENT = tuple(f.name for f in dataclasses.fields(AssessmentSummary))
_OWN = tuple(
    f.name
    for f in dataclasses.fields(StoredDecision)
    if f.name not in ("decision", "assessment", "exposure")  # the parts; exposure is stored as `extraction`
)
_OMITTED_OF_ASSESSMENT, _OMITTED_OF_OWN = (tuple(n for n in names if n in _OMITTED) for names in (_ASSESSMENT, _OWN))
_of_decision, _of_assessment, _of_own = (operator.attrgetter(*names) for names in (_DECISION, _ASSESSMENT, _OWN))


def _flat(row: StoredDecision, seal: Callable[[str], str]) -> _Row:
    """The row as it is stored, ids passed through `seal`."""
    values = dict(zip(_OWN, _of_own(row), strict=True))
    values.update(zip(_DECISION, _of_decision(row.decision), strict=True))
    values.update(zip(_ASSESSMENT, _of_assessment(row.assessment), strict=True))
    for name, nothing in _OMITTED.items():
        if values[name] == nothing:
            values[name] = msgspec.UNSET
    return _Row(extraction=row.exposure, **_with_ids(values, seal))


def _composed(flat: _Row, unseal: Callable[[str], str]) -> StoredDecision:
    """The row as a value, ids passed through `unseal`."""
    parts = ((_DECISION, _of_decision), (_ASSESSMENT, _of_assessment), (_OWN, _of_own))
    decision, assessment, own = (dict(zip(names, get(flat), strict=True)) for names, get in parts)
    for values, omitted in ((assessment, _OMITTED_OF_ASSESSMENT), (own, _OMITTED_OF_OWN)):
        for name in omitted:
            if values[name] is msgspec.UNSET:
                values[name] = _OMITTED[name]
    return StoredDecision(
        decision=Decision(**decision),
        assessment=AssessmentSummary(**assessment),
        exposure=flat.extraction,
        **_with_ids(own, unseal),
    )


def packed_decision(row: StoredDecision, secrets: Secrets, tenant: str) -> DecisionRow:
    """Return the row as it is stored, ids sealed."""
    return packed_row(row, functools.partial(sealed, secrets=secrets, tenant=tenant))


def packed_row(row: StoredDecision, seal: Callable[[str], str]) -> DecisionRow:
    """Return the row as it is stored, ids passed through `seal`; a campaign's restricts nobody and ranks behind all clients."""
    packed = _pack.encode(_flat(row, seal))
    if row.members:
        return DecisionRow(packed, "clear", BELOW_ALL, 0)
    decision = row.decision
    # a client that has spent its exposure budget is restricted without being flagged
    restricted = decision.enforced if decision.enforced in FLAGGED else decision.state
    state = decision.state if decision.state in FLAGGED else restricted
    return DecisionRow(packed, state, row.assessment.suspicion, decision.until_s, decision.enforced)


def stored_decision(row: DecisionRow, secrets: Secrets, tenant: str) -> StoredDecision:
    """Read a stored row. Raises CorruptState."""
    try:
        flat = _unpack.decode(row.row)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptState(f"decision row: {error}") from error
    return _composed(flat, functools.partial(unsealed, secrets=secrets, tenant=tenant))


def summary_of(row: DecisionRow) -> RowSummary:
    """Read the summary of a stored row. Raises CorruptState."""
    try:
        return _summary.decode(row.row)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptState(f"decision row: {error}") from error


def _with_ids(values: dict[str, Any], turn: Callable[[str], str]) -> dict[str, Any]:
    """The fields of a row, every id passed through `turn`; in place."""
    values["client_id"] = turn(values["client_id"])
    for name in ("witnesses", "members"):
        if values[name]:
            values[name] = tuple(map(turn, values[name]))
    if values["alert"] is not None:
        values["alert"] = with_ids(values["alert"], turn)
    return values


def decided(
    record: ClientRecord,
    before: StoredDecision | None,
    decision: Decision,
    assessment: AssessmentSummary,
    exposure: Exposure | None,
    trail: Iterable[tuple[int, float, int]],
    witnesses: Iterable[str],
    persona: str = "",
    exposed: Spent | None = None,
    baseline: str = "",
    observations: tuple[Observation, ...] = (),
    patches: tuple[str, ...] = (),
) -> StoredDecision:
    """Return the row that follows `before`, with its finding as it was: `alert.told` says what becomes of that.

    record    what ingest stored of the client
    trail     (queries seen, suspicion, event time in ms) when suspicion first reached each level, oldest first
    exposed   how much of its exposure budget is spent; None: as before
    """
    profile = record.profile
    if exposure is not None:
        exposure = Exposure(*(round(share, 4) for share in (exposure.fidelity, exposure.low, exposure.high)))
    if decision.state == "clear" and assessment.family != "unknown":
        assessment = dataclasses.replace(assessment, family="unknown")  # a clear client resembles no thief
    same = before is not None and before.decision.episode == decision.episode
    return StoredDecision(
        client_id=record.client_id,
        decision=decision,
        assessment=assessment,
        exposure=exposure,
        persona=persona,
        trail=tuple(LevelReached(*point) for point in trail),
        exposures=exposures_of(before, exposure, profile.queries, profile.last_ms),
        history=_history(before, decision, assessment.suspicion),
        coverage=tuple(profile.region_counts.tolist()),
        first_ms=profile.first_ms,
        last_ms=profile.last_ms,
        cells=record.cells,
        links=record.links,
        witnesses=tuple(witnesses),
        refused=record.refusals.reasons,
        misfits=record.refusals.columns,
        campaign_id=record.client_id if record.members else before.campaign_id if before else None,
        members=record.members,
        alert=before.alert if before and same else None,
        update=before.update if before and same else -1,
        exposed=exposed or (before.exposed if before else "none"),
        ties=record.ties,
        baseline=baseline,
        patches=patches,
        shared=record.shared,
        observations=observations,
        tokens=record.tokens,
        budget=before.budget if before else None,
    )


def with_decision(before: StoredDecision, decision: Decision) -> StoredDecision:
    """Return the row under another decision, where nothing was assessed anew; a new episode begins without a finding."""
    history = _history(before, decision, before.assessment.suspicion)
    row = dataclasses.replace(before, decision=decision, history=history)
    if decision.episode == before.decision.episode:
        return row
    return dataclasses.replace(row, alert=None, update=-1)


def _history(before: StoredDecision | None, decision: Decision, suspicion: float) -> tuple[StateEntered, ...]:
    """The last changes of state, newest last; a client that was never anything but clear has none."""
    history = before.history if before else ()
    if decision.state != (before.decision.state if before else "clear"):
        history = (*history, StateEntered(decision.since_s, decision.state, decision.reason, suspicion))
    return history[-HISTORY_KEPT:]


def exposures_of(
    before: StoredDecision | None, exposure: Exposure | None, queries: int, last_ms: int
) -> tuple[ExposureMeasured, ...]:
    """Return exposure over queries: the first that was measured in each half octave of queries, some forty for ten million."""
    points = before.exposures if before else ()
    if exposure is None or queries < 1 or (points and _half_octave(points[-1].queries) >= _half_octave(queries)):
        return points
    return (*points, ExposureMeasured(queries, exposure.fidelity, exposure.low, exposure.high, last_ms))


def _half_octave(queries: float) -> int:
    return int(2 * math.log2(queries))


def previous(before: StoredDecision | None, episode: int = 0) -> Decision:
    """Return the decision that a row holds; a clear one for a client without a row, whose first episode is `episode`."""
    return Decision(episode=episode) if before is None else before.decision


def episode_after(damaged: DecisionRow) -> int:
    """Return the number of the first episode after a row that cannot be read.

    Ids of alerts follow from episodes, so none may be counted twice, and which were counted is lost with the row. The number follows from
    the row as it is stored, so that all detectors give the same, and lies above all that are counted from 0.
    """
    stored = f"{damaged.state} {damaged.rank!r} {damaged.until_s} {damaged.enforced} ".encode() + damaged.row
    return COUNTED + int.from_bytes(hashlib.blake2b(stored, digest_size=4).digest(), "big")


def ranked(rows: Iterable[tuple[str, StoredDecision]]) -> list[tuple[str, StoredDecision]]:
    """Return (model, row) with the most suspicious first: the order of ``--scores`` and ``clients``."""
    return sorted(rows, key=lambda named: rank_of(named[1]))


def rank_of(row: StoredDecision) -> tuple[float, int, str]:
    """Return what rows are sorted by: the most suspicious first, then the one with the most queries."""
    return row.assessment.p_value, -row.assessment.queries, row.client_id


def campaign_key(tenant: str, model: str, campaign_id: str) -> ClientKey:
    """Return the key of a campaign's row."""
    return ClientKey(tenant, model, CAMPAIGN + campaign_id)


def is_campaign(key: ClientKey) -> bool:
    """Whether a decision row is a campaign's, which is no client."""
    return key.client.startswith(CAMPAIGN)
