"""What detect leaves for others: decisions and alerts as stored, and the way back.

Client ids are sealed in everything that is stored: rows and alerts hold no id in clear, readers get it back. Detect writes these
values; the command line, the API and the sinks read them.
"""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from consumers.errors import CorruptState
from consumers.secrets import Secrets
from consumers.store import DecisionRow, OutboxAlert

FRAMEWORKS = ("OWASP:ML05:2023", "MITRE-ATLAS:AML.T0024.002", "OWASP-AISVS:C11.3.1", "NIST-AI-100-2:NISTAML.031")


class StoredDecision(msgspec.Struct, frozen=True):
    """A decision row as the store keeps it (msgpack): decision, assessment, first alert and history.

    trail       [[queries seen, suspicion, event time in ms], …] when the score first reached each level
    cells       profile cells that hold a shard of the client
    history     [[time in s, state, reason, suspicion], …] of the last changes of state, newest last
    extraction  fidelity, low, high of what could be copied by now; None without an estimator
    links       keyed hashes of what ties accounts together (address, organisation, session, fingerprint)
    persona     the use that its owner declared
    witnesses   event ids of queries that the evidence rests on
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

    def score(self, model: str) -> dict[str, Any]:
        """The object of ``--scores`` and ``clients --json``."""
        return {
            "client_id": self.client_id,
            "model_id": model,
            "queries": self.queries,
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
    return _renamed(sealed, _unsealed(sealed.client_id, secrets, tenant))


def stored_alert(alert: OutboxAlert, secrets: Secrets) -> dict[str, Any]:
    """The alert as its receivers see it. Raises CorruptState."""
    try:
        body: dict[str, Any] = msgspec.json.decode(alert.body)
        return body | {"client_id": _unsealed(body["client_id"], secrets, body["tenant"])}
    except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
        raise CorruptState(f"alert {alert.uid}: {error}") from error


def ranked(rows: Iterable[tuple[str, StoredDecision]]) -> list[tuple[str, StoredDecision]]:
    """(model, decision), most suspicious first: the order of ``--scores`` and ``clients``."""
    return sorted(rows, key=lambda r: (r[1].p_value, -r[1].queries, r[1].client_id))


def packed_decision(row: StoredDecision, secrets: Secrets, tenant: str) -> DecisionRow:
    """The row as it is stored, the client id sealed."""
    kept = _pack.encode(_renamed(row, _sealed(row.client_id, secrets, tenant)))
    return DecisionRow(kept, row.state, row.suspicion, row.until_s, row.enforced)


def packed_alert(body: Mapping[str, Any], time_ms: int, secrets: Secrets) -> OutboxAlert:
    """The alert as it is stored, the client id sealed."""
    kept = dict(body) | {"client_id": _sealed(body["client_id"], secrets, body["tenant"])}
    return OutboxAlert(f"{body['alert_id']}/{body['update']}", time_ms, msgspec.json.encode(kept))


def _sealed(client_id: str, secrets: Secrets, tenant: str) -> str:
    return base64.b64encode(secrets.seal(client_id, tenant)).decode()


def _unsealed(sealed: str, secrets: Secrets, tenant: str) -> str:
    try:
        return secrets.unseal(base64.b64decode(sealed, validate=True), tenant)
    except ValueError as error:
        raise CorruptState(f"sealed client id: {error}") from error


def _renamed(row: StoredDecision, client_id: str) -> StoredDecision:
    alert = None if row.alert is None else row.alert | {"client_id": client_id}
    return msgspec.structs.replace(row, client_id=client_id, alert=alert)


def rfc3339(time_ms: int) -> str:
    when = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
