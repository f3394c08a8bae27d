"""What detect leaves for others: decisions and alerts as stored, and the way back.

Client ids, members of campaigns and event ids are sealed in everything that is stored: rows and alerts hold none in clear, readers
get them back. Detect writes these values; the command line, the API and the sinks read them.

A campaign has a row like a client's, under a key that no client can have (`campaign_key`). It is nobody's decision: the store is told
that it is clear, so that no gateway, breaker or count ever meets it, and who lists clients asks `is_campaign`.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from consumers.errors import CorruptState
from consumers.secrets import Secrets
from consumers.store import DecisionRow, OutboxAlert
from detector.policy import Decision
from detector.query import ClientKey

CAMPAIGN: Final = "campaign:"
"""What the key of a campaign begins with; a client's is 32 hex digits."""

BEHIND_ALL = -1.0
"""Rank of a campaign's row: a listing of the highest never gets there."""

HISTORY_KEPT = 64

FRAMEWORKS = ("OWASP:ML05:2023", "MITRE-ATLAS:AML.T0024.002", "OWASP-AISVS:C11.3.1", "NIST-AI-100-2:NISTAML.031")


class StoredDecision(msgspec.Struct, frozen=True):
    """A decision row as the store keeps it (msgpack): decision, assessment, first alert and history.

    trail       [[queries seen, suspicion, event time in ms], …] when the score first reached each level
    cells       profile cells that hold a shard of the client
    history     [[time in s, state, reason, suspicion], …] of the last changes of state, newest last
    extraction  fidelity, low, high of what could be copied by now; None without an estimator
    links       keyed hashes of what ties accounts together (address, organisation, session, fingerprint)
    persona     the use that its owner declared
    witnesses   event ids of the last queries that the evidence rests on
    first_ms    event time of the first query that the profile holds, 0 in rows of earlier versions
    members     client ids, where the row is a campaign's; its `client_id` is then the campaign's id
    misfit      distinct queries that did not fit the schema
    refused     reason → queries of which something did not fit or could not be read; misfits: column → reason → queries
    """

    client_id: str
    state: str
    reason: str
    since_s: int
    until_s: int
    episode: int
    enforced: str
    queries: int
    distinct: float
    suspicion: float
    p_value: float
    calibrated: bool
    in_order: bool
    family: str
    evidence: list[dict[str, Any]]
    trail: list[list[float]]
    cells: list[str]
    coverage: list[int]
    last_ms: int
    update: int
    alert: dict[str, Any] | None
    history: list[list[Any]] = []
    extraction: dict[str, float] | None = None
    campaign_id: str | None = None
    links: list[str] = []
    witnesses: list[str] = []
    persona: str = ""
    members: list[str] = []
    exposures: list[list[float]] = []
    misfit: float = 0.0
    refused: dict[str, int] = {}
    misfits: dict[str, dict[str, int]] = {}
    first_ms: int = 0

    def score(self, model: str) -> dict[str, Any]:
        """The object of ``--scores`` and ``clients --json``."""
        return {
            "client_id": self.client_id,
            "model_id": model,
            "queries": self.queries,
            "misfit": round(self.misfit),
            "refused": self.refused,
            "suspicion": self.suspicion,
            "state": self.state,
            "extraction": self.extraction,
            "campaign_id": self.campaign_id,
            "evidence": self.evidence,
            "distinct": self.distinct,
            "calibrated": self.calibrated,
            "in_order": self.in_order,
            "family": self.family,
            "reason": self.reason,
            "enforced": self.enforced,
            "persona": self.persona,
        }


_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(StoredDecision)


def stored_decision(row: DecisionRow, secrets: Secrets, tenant: str) -> StoredDecision:
    """The row as it was before it was stored. Raises CorruptState."""
    try:
        sealed = _unpack.decode(row.row)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptState(f"decision row: {error}") from error
    return _renamed(sealed, lambda text: _unsealed(text, secrets, tenant))


def stored_alert(alert: OutboxAlert, secrets: Secrets) -> dict[str, Any]:
    """The alert as its receivers see it. Raises CorruptState."""
    try:
        body: dict[str, Any] = msgspec.json.decode(alert.body)
        return _shown(body, lambda sealed: _unsealed(sealed, secrets, body["tenant"]))
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"alert {alert.uid}: {error}") from error


def ranked(rows: Iterable[tuple[str, StoredDecision]]) -> list[tuple[str, StoredDecision]]:
    """(model, decision), most suspicious first: the order of ``--scores`` and ``clients``."""
    return sorted(rows, key=lambda r: (r[1].p_value, -r[1].queries, r[1].client_id))


def packed_decision(row: StoredDecision, secrets: Secrets, tenant: str) -> DecisionRow:
    """The row as it is stored, ids sealed; a campaign's restricts nobody and ranks behind all clients."""
    kept = _pack.encode(_renamed(row, lambda text: _sealed(text, secrets, tenant)))
    if row.members:
        return DecisionRow(kept, "clear", BEHIND_ALL, 0)
    return DecisionRow(kept, row.state, row.suspicion, row.until_s, row.enforced)


def packed_alert(body: Mapping[str, Any], time_ms: int, secrets: Secrets) -> OutboxAlert:
    """The alert as it is stored, ids sealed."""
    kept = _shown(body, lambda text: _sealed(text, secrets, body["tenant"]))
    return OutboxAlert(f"{body['alert_id']}/{body['update']}", time_ms, msgspec.json.encode(kept))


def history_of(before: StoredDecision | None, decision: Decision, suspicion: float) -> list[list[Any]]:
    """The last changes of state, newest last; who was never anything but clear has none."""
    history = list(before.history) if before else []
    if decision.state != (before.state if before else "clear"):
        history.append([decision.since_s, decision.state, decision.reason, suspicion])
    return history[-HISTORY_KEPT:]


def exposures_of(
    before: StoredDecision | None, extraction: Mapping[str, float] | None, queries: int, last_ms: int
) -> list[list[float]]:
    """What could be copied, over queries: [queries, fidelity, low, high, ms], oldest first.

    One point for each half octave of queries, the first that was looked at in it: some forty for ten million queries.
    """
    points = list(before.exposures) if before else []
    if extraction is None or queries < 1 or (points and _half_octave(points[-1][0]) >= _half_octave(queries)):
        return points
    return [*points, [queries, extraction["fidelity"], extraction["low"], extraction["high"], last_ms]]


def _half_octave(queries: float) -> int:
    return int(2 * math.log2(queries))


def campaign_key(tenant: str, model: str, campaign_id: str) -> ClientKey:
    return ClientKey(tenant, model, CAMPAIGN + campaign_id)


def is_campaign(key: ClientKey) -> bool:
    """Whether a decision row is a campaign's, which is no client."""
    return key.client.startswith(CAMPAIGN)


def _sealed(text: str, secrets: Secrets, tenant: str) -> str:
    return base64.b64encode(secrets.seal(text, tenant)).decode()


def _unsealed(sealed: str, secrets: Secrets, tenant: str) -> str:
    try:
        return secrets.unseal(base64.b64decode(sealed, validate=True), tenant)
    except ValueError as error:
        raise CorruptState(f"sealed id: {error}") from error


def _shown(body: Mapping[str, Any], turn: Callable[[str], str]) -> dict[str, Any]:
    """An alert with every id turned: the client's, or those of a campaign's members, and those of events."""
    turned = dict(body)
    if body["kind"] == "client":
        turned["client_id"] = turn(body["client_id"])
    for name in ("members", "witnesses"):
        if body.get(name):
            turned[name] = [turn(one) for one in body[name]]
    return turned


def _renamed(row: StoredDecision, turn: Callable[[str], str]) -> StoredDecision:
    return msgspec.structs.replace(
        row,
        client_id=turn(row.client_id),
        witnesses=[turn(one) for one in row.witnesses],
        members=[turn(one) for one in row.members],
        alert=None if row.alert is None else _shown(row.alert, turn),
    )


def rfc3339(time_ms: int) -> str:
    when = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
