"""Pass analysts' verdicts on to the sinks: a verdict becomes an update of its finding.

Rules:
* The entry in the operator cell is the truth, the update is derived from it. The process that holds the decision cell of the client writes
  the update in the same fenced record as everything else there, so that no update number is given twice (`records.alert.following`).
* The only memory of what was sent is the finding itself: as last sent, it carries the verdict. A process that claims a cell looks at
  every verdict again and finds nothing left to do.
* While a finding is current, the row of its client counts the updates. A closed one is continued from the stored alerts, and from those
  that the same outcome is about to store: it may be what closes the finding. After 30 days it is gone, and no update is sent any more.
* Findings of campaigns are treated like those of clients: a campaign has a row of its own under a key that no client can have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from consumers.records.alert import following, judged, named, packed_alert, stored_alert
from consumers.records.damaged import readable
from consumers.records.decision import StoredDecision, packed_decision, stored_decision
from consumers.records.operator_entries import StoredVerdict, unpacked
from consumers.secrets import Secrets
from consumers.store import DecisionRow, DecisionStore, Entry, OutboxAlert, Outcome, decision_cell
from detector.query import ClientKey

KEPT_S = 30 * 86_400
"""As long as the store keeps alerts."""


@dataclass(frozen=True, slots=True)
class PendingVerdict:
    """A verdict, and whose finding it is about: a client's or a campaign's key."""

    client: ClientKey
    verdict: StoredVerdict


@dataclass(slots=True)
class Verdicts:
    """known: (tenant, alert id) → what was said last."""

    known: dict[tuple[str, str], PendingVerdict] = field(default_factory=dict)
    _by_cell: dict[int, list[PendingVerdict]] | None = None

    def take(self, entry: Entry) -> None:
        """An entry of kind *verdict*; one that cannot be read is passed over."""
        self._by_cell = None
        if not entry.value:
            self.known.pop((entry.tenant, entry.key), None)
            return
        verdict = readable("entry", unpacked, entry, StoredVerdict, kind=entry.kind)
        if verdict is not None and verdict.client:
            client = ClientKey(entry.tenant, verdict.model, verdict.client)
            self.known[entry.tenant, entry.key] = PendingVerdict(client, verdict)

    def due(self, cell: int, decision_cells: int, told: set[PendingVerdict], now_s: float) -> list[PendingVerdict]:
        """What the owner of a cell, one of `decision_cells`, has not looked at since it claimed the cell."""
        if self._by_cell is None:
            self._by_cell = {}
            for one in self.known.values():
                self._by_cell.setdefault(decision_cell(one.client, decision_cells), []).append(one)
        oldest_s = now_s - KEPT_S
        return [one for one in self._by_cell.get(cell, ()) if one not in told and one.verdict.at_s > oldest_s]


def tell(
    outcome: Outcome,
    due: Iterable[PendingVerdict],
    rows: Mapping[ClientKey, DecisionRow],
    store: DecisionStore,
    secrets: Secrets,
) -> None:
    """Add the updates to what is about to be recorded. rows: as stored, of the clients at least. Raises Unavailable."""
    over = []
    for said in due:
        row = _row(outcome, rows, said, secrets)
        if row is None or row.alert is None or row.alert["alert_id"] != said.verdict.alert_id:
            over.append(said)
        elif (body := _judged(row.alert, said.verdict, row.update, outcome.alerts)) is not None:
            _add(outcome, said, body, replace(row, alert=body, update=body["update"]), secrets)
    sent = _sent(store, {said.verdict.alert_id for said in over}) if over else {}
    for said in over:
        theirs = [*sent.get(said.verdict.alert_id, ()), *outcome.alerts]
        last = _last(said, theirs, secrets)
        row = _row(outcome, rows, said, secrets)
        spent = row.budget if row is not None else None
        if spent is not None and spent.alert_id != said.verdict.alert_id:
            row = spent = None
        if last is None or (body := _judged(last, said.verdict, spent.update if spent else -1, theirs)) is None:
            continue
        if row is not None and spent is not None:
            row = replace(row, budget=spent._replace(update=body["update"], verdict=body["verdict"]))
        _add(outcome, said, body, row if spent is not None else None, secrets)


def _judged(
    body: Mapping[str, Any], verdict: StoredVerdict, counted: int, others: Iterable[OutboxAlert]
) -> dict[str, Any] | None:
    update = following(verdict.alert_id, counted, others)
    return judged(body, update, verdict.verdict, verdict.actor, verdict.note, verdict.at_s * 1000)


def _add(
    outcome: Outcome, said: PendingVerdict, body: dict[str, Any], row: StoredDecision | None, secrets: Secrets
) -> None:
    """The alert, and the row that counts it, if one does."""
    outcome.alerts.append(packed_alert(body, said.verdict.at_s * 1000, secrets))
    if row is not None:
        outcome.rows[said.client] = packed_decision(row, secrets, said.client.tenant)


def _row(
    outcome: Outcome, rows: Mapping[ClientKey, DecisionRow], said: PendingVerdict, secrets: Secrets
) -> StoredDecision | None:
    """The client's row as it is about to be recorded, else as stored."""
    row = outcome.rows.get(said.client) or rows.get(said.client)
    return readable(None, stored_decision, row, secrets, said.client.tenant) if row is not None else None


def _sent(store: DecisionStore, wanted: set[str]) -> dict[str, list[OutboxAlert]]:
    """Finding → its stored alerts."""
    found: dict[str, list[OutboxAlert]] = {}
    for alert in store.alerts():
        alert_id, _ = named(alert)
        if alert_id in wanted:
            found.setdefault(alert_id, []).append(alert)
    return found


def _last(said: PendingVerdict, alerts: Iterable[OutboxAlert], secrets: Secrets) -> dict[str, Any] | None:
    """The body with the highest number of those that can be read; None where the finding is unknown or another tenant's."""
    theirs = [alert for alert in alerts if named(alert)[0] == said.verdict.alert_id]
    for alert in sorted(theirs, key=named, reverse=True):
        body = readable("alert", stored_alert, alert, secrets)
        if body is not None:
            return body if body["tenant"] == said.client.tenant else None
    return None
