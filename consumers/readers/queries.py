"""Queries on the store that the API, the dashboard and the command line share.

Rules:
* A `Reader` reads for one tenant. Nothing of another tenant is ever returned, whatever is asked for. What does not exist is None.
* Values are frozen and typed. Client ids are unsealed here and nowhere above.
* Long lists come in pages (`pagination`). Clients of equal value are ordered by their hash.
* A damaged row is set aside and logged; it hides no other row.
* Results that need all rows (counts, campaigns) are cached for `REMEMBERED_S`.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from consumers.errors import Unavailable, WrongUse
from consumers.readers.appeal import Appeal, appeal_of
from consumers.readers.gateways import ManualDecisions, Modes
from consumers.readers.indicators import matches
from consumers.readers.models import (
    Alert,
    AlertCase,
    AlertPage,
    Allowed,
    Campaign,
    CampaignDecision,
    Client,
    ClientDetail,
    ClientPage,
    ExposurePoint,
    Health,
    ListBound,
    Model,
    Note,
    OperatorDecision,
    Precision,
    ReportedIndicator,
    SinkHealth,
    StateChange,
    TrailPoint,
    Verdict,
)
from consumers.readers.pagination import Position, asked
from consumers.readers.public import alert_of, campaign_decision_of, campaign_of, client_of, precision_of
from consumers.records import breaker_entries, operator_entries
from consumers.records.alert import stored_alert
from consumers.records.damaged import readable
from consumers.records.decision import RowSummary, StoredDecision, is_campaign, stored_decision, summary_of
from consumers.records.heartbeat import heartbeats, total
from consumers.records.sealing import unsealed
from consumers.secrets import Secrets
from consumers.store import DecisionRow, ServiceStore
from consumers.store.layout import client_text
from detector.baseline import Baseline
from detector.query import ClientKey
from detector.queue_bound import CONFIDENCE, honest_at_most

REMEMBERED_S = 5.0
SORTS = ("suspicion", "queries", "exposure", "last_seen")
_MOST_UPDATES = 10**11
_HASH = re.compile(r"[0-9a-f]{32}")


_VALUES: Mapping[str, Callable[[RowSummary], float]] = {
    "queries": lambda s: float(s.queries),
    "exposure": lambda s: s.extraction.fidelity if s.extraction else -1.0,
    "last_seen": lambda s: float(s.last_ms),
}


@dataclass(slots=True)
class Reader:
    """Reads one tenant of a store. now_s: seconds since the epoch; modes: enforcement modes, as gateways have them."""

    store: ServiceStore
    secrets: Secrets
    tenant: str = "default"
    now_s: Callable[[], float] = time.time
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    modes: Modes = field(default_factory=Modes)
    _kept: dict[str, tuple[float, Any]] = field(default_factory=dict)

    def of(self, tenant: str) -> Reader:
        """The same for another tenant."""
        return self if tenant == self.tenant else replace(self, tenant=tenant, _kept={})

    # ---------------------------------------------------------------------------------------- models and clients

    def models(self) -> tuple[Model, ...]:
        """Models that have clients or a baseline, by name."""
        found: tuple[Model, ...] = self._remembered("models", self._count_models)
        return found

    def model(self, model: str) -> Model | None:
        return next((m for m in self.models() if m.model_id == model), None)

    def clients(
        self,
        model: str,
        *,
        sort: str = "suspicion",
        min_suspicion: float = 0.0,
        state: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> ClientPage:
        """A page of a model's clients, highest first. Raises WrongUse for a cursor or a sort that is none."""
        if sort not in SORTS:
            raise WrongUse(f"sort: {', '.join(SORTS)}")
        page = asked(sort, cursor, limit)
        chosen, more = page.of(
            (r for r in self._rows(model) if r[1].rank >= min_suspicion and state in (None, r[1].state)),
            lambda r: Position(self._value(r[1], sort), client_text(r[0])),
            ordered=sort == "suspicion",  # the store's own order
        )
        items = (self._client(key, row) for key, row in chosen)
        return ClientPage(tuple(c for c in items if c is not None), more)

    def bound(self, model: str, line: int) -> ListBound | None:
        """How many of a model's `line` most suspicious clients are honest at most; None without a calibration on real clients.

        Raises WrongUse for a line beyond the clients. `detector.queue_bound` says when it does not hold.
        """
        baseline = self.baselines.get(model)
        if baseline is None or not baseline.calibration.calibrated:
            return None
        p_values = 1.0 - np.fromiter((row.rank for _, row in self._rows(model)), np.float64)
        if not 1 <= line <= len(p_values):
            raise WrongUse(f"n: 1 to {len(p_values)}, the clients of this model")
        ranked, known = len(baseline.calibration.ordered), baseline.calibration.clients
        most = honest_at_most(np.clip(p_values, 0.0, 1.0), line, known, max(ranked, known))
        return ListBound(line, most, CONFIDENCE)

    def appeal(self, model: str, client: str) -> Appeal | None:
        """What may be told to a client that asks why it was flagged; None for one that is not known."""
        one = self.client(model, client)
        if one is None:
            return None
        return appeal_of(one, (row for _, row in self._rows(model)), self.baselines.get(model))

    def key_of(self, model: str, client: str) -> ClientKey:
        """Key of a client that is named by its id or by its `client_key`; a 32-digit hash that is a client's wins."""
        if _HASH.fullmatch(client):
            key = ClientKey(self.tenant, model, client)
            if model == operator_entries.EVERY_MODEL or self.store.decided([key]):
                return key
        return ClientKey(self.tenant, model, self.secrets.client_hash(self.tenant, client))

    def named(self, model: str, client_key: str) -> str | None:
        """Id of a client by its hash, on one model or (``*``) by what an operator said; None when it is not known here."""
        key = ClientKey(self.tenant, model, client_key)
        row = self.store.decided([key]).get(key)
        stored = self._stored(key, row) if row is not None else None
        if stored is not None:
            return stored.client_id
        said = {d.client_key: d.client_id for d in self.decisions(simulated=True)}
        said |= {a.client_key: a.client_id for a in self.allowlist()}
        return said.get(client_key) or None

    def seen(self, model: str, client_key: str) -> bool:
        """Whether a client was assessed, on a model or (``*``) on any: what is decided about another may be a slip of the pen."""
        models = [m.model_id for m in self.models()] if model == operator_entries.EVERY_MODEL else [model]
        return bool(self.store.decided([ClientKey(self.tenant, m, client_key) for m in models]))

    def client(self, model: str, client: str) -> ClientDetail | None:
        """One client, named by its id or its `client_key`."""
        key = self.key_of(model, client)
        row = self.store.decided([key]).get(key)
        stored = self._stored(key, row) if row is not None else None
        if stored is None:
            return None
        alert_id = stored.alert["alert_id"] if stored.alert else None
        seen, manual = client_of(key.model, key.client, stored), self.manual_decisions()
        now = manual.at_gateways(seen)
        return ClientDetail(
            client=seen,
            in_force=now.state,
            gateways=now,
            mode=self.modes.of(model),
            trail=tuple(TrailPoint(int(p.queries), p.suspicion, int(p.time_ms)) for p in stored.trail),
            exposures=tuple(
                ExposurePoint(int(p.queries), p.fidelity, p.low, p.high, int(p.time_ms)) for p in stored.exposures
            ),
            history=tuple(StateChange(*entered) for entered in stored.history),
            coverage=stored.coverage,
            misfit=stored.assessment.misfit,
            refused=stored.refused,
            misfits=stored.misfits,
            links=stored.links,
            witnesses=stored.witnesses,
            observations=stored.observations,
            indicators=self.reported().get(key, ()),
            alert_id=alert_id,
            decision=manual.decision(seen) or manual.dry_run(seen),
            allowed=manual.allowed(seen),
            verdict=self.verdicts().get(alert_id) if alert_id else None,
            notes=self.notes(key),
            revision=operator_entries.Revisions(self.store, self.tenant)[key.client],
        )

    def manual_decisions(self) -> ManualDecisions:
        """What people decided, to be asked of many clients."""
        held_s = breaker_entries.times(self.store, self.tenant).held_since_s
        campaigns = self.campaign_decisions()
        return ManualDecisions(
            self.decisions(simulated=True), self.allowlist(), self.modes, held_s, self.now_s(), campaigns
        )

    def linked(
        self, model: str, links: Collection[str], limit: int = 1000
    ) -> tuple[tuple[Client, frozenset[str]], ...]:
        """Clients of a model that share some of these links, and which; the most suspicious of them, at most `limit`."""
        wanted, found = frozenset(links), []
        for key, row in self._rows(model) if wanted else ():
            shared = wanted.intersection(self._summary(row).links)
            client = self._client(key, row) if shared else None
            if client is not None:
                found.append((client, shared))
                if len(found) >= limit:
                    break
        return tuple(found)

    def reported(self) -> Mapping[ClientKey, tuple[ReportedIndicator, ...]]:
        """Clients that match indicators of peers, and which."""
        found: Mapping[ClientKey, tuple[ReportedIndicator, ...]] = self._remembered(
            "reported", lambda: matches(self.store, self.tenant, self.now_s())
        )
        return found

    # ------------------------------------------------------------------------------------- alerts and campaigns

    def alerts(
        self,
        *,
        model: str | None = None,
        state: str | None = None,
        client: str | None = None,
        updates: bool = False,
        cursor: str | None = None,
        limit: int = 100,
    ) -> AlertPage:
        """A page of the alerts stored in the last 30 days, newest first: each as last sent, or with `updates` each time it was sent."""
        page = asked("alerts", cursor, limit)
        found: dict[str, tuple[Position, dict[str, Any]]] = {}
        for stored in self.store.alerts():
            body = self._body(stored)
            if body is None or (model is not None and body["model_id"] != model):
                continue
            if client is not None and client not in (body.get("client_id"), self._hash_of(body)):
                continue
            name = stored.uid if updates else body["alert_id"]
            if name not in found or found[name][1]["update"] <= body["update"]:
                newest_first = f"{body['alert_id']}/{_MOST_UPDATES - body['update']:012d}"
                found[name] = (Position(float(stored.time_ms), newest_first), body)
        wanted = (p for p in found.values() if state in (None, p[1]["state"]))
        chosen, more = page.of(wanted, lambda p: p[0])
        verdicts, cases = self.verdicts(), self.cases()
        return AlertPage(tuple(self._alert(body, verdicts, cases) for _, body in chosen), more)

    def alert(self, alert_id: str) -> Alert | None:
        """One finding as last sent."""
        bodies = [b for b in map(self._body, self.store.alerts()) if b is not None and b["alert_id"] == alert_id]
        if not bodies:
            return None
        return self._alert(max(bodies, key=lambda b: b["update"]), self.verdicts(), self.cases())

    def campaigns(self) -> tuple[Campaign, ...]:
        """Groups of accounts that act as one, most suspicious first."""
        found: tuple[Campaign, ...] = self._remembered("campaigns", self._find_campaigns)
        return found

    def campaign(self, campaign_id: str) -> Campaign | None:
        return next((c for c in self.campaigns() if c.campaign_id == campaign_id), None)

    # ------------------------------------------------------------------------------------------------ operators

    def decisions(self, *, simulated: bool = False) -> tuple[OperatorDecision, ...]:
        """Operators' decisions that hold now, newest first; with `simulated` dry runs too."""
        kept = [
            r
            for _, r in self._entries("decision", operator_entries.StoredOperatorDecision)
            if simulated or not r.simulated
        ]
        return tuple(
            OperatorDecision(
                self._unsealed(r.sealed_id), r.client, r.model, r.state, r.until_s, r.simulated, r.reason, r.note,
                r.actor, r.at_s,
            )
            for r in sorted(kept, key=lambda r: (-r.at_s, r.client, r.model))
        )  # fmt: skip

    def campaign_decisions(self) -> tuple[CampaignDecision, ...]:
        """Operators' decisions about campaigns that hold now, with dry runs and proposals, newest first."""
        found = [
            campaign_decision_of(d, waits=kind == "proposal")
            for kind in ("campaign", "proposal")
            for _, d in self._entries(kind, operator_entries.StoredCampaignDecision)
        ]
        return tuple(sorted(found, key=lambda d: (-d.at_s, d.campaign_id, d.model_id, d.waits)))

    def campaign_revision(self, campaign: Campaign) -> str:
        """Tag of a campaign's accounts and of what people decided about it: what the next decision may rest on."""
        key = operator_entries.entry_key(campaign.model_id, campaign.campaign_id)
        said = dict(self._entries("campaign", operator_entries.StoredCampaignDecision)).get(key)
        return operator_entries.campaign_revision([m.client_key for m in campaign.members], said)

    def allowlist(self) -> tuple[Allowed, ...]:
        """Allowlist entries that hold now, newest first."""
        kept = [a for _, a in self._entries("allow", operator_entries.AllowlistEntry)]
        return tuple(
            Allowed(self._unsealed(a.sealed_id), a.client, a.model, a.until_s, a.reason, a.actor, a.at_s, a.origin)
            for a in sorted(kept, key=lambda a: (-a.at_s, a.client, a.model))
        )

    def verdicts(self) -> dict[str, Verdict]:
        """Verdicts by alert."""
        return {
            v.alert_id: Verdict(v.alert_id, v.verdict, v.note, v.actor, v.at_s)
            for _, v in self._entries("verdict", operator_entries.StoredVerdict)
        }

    def cases(self) -> dict[str, AlertCase]:
        """Cases by alert."""
        return {
            c.alert_id: AlertCase(c.alert_id, c.assignee, c.state, c.note, c.actor, c.at_s)
            for _, c in self._entries("case", operator_entries.StoredCase)
        }

    def precision(self) -> tuple[Precision, ...]:
        """How often past findings were right, by model, as far as analysts judged them."""
        said = Counter((v.model, v.verdict) for _, v in self._entries("verdict", operator_entries.StoredVerdict))
        return tuple(
            precision_of(model, said[model, "true_positive"], said[model, "false_positive"])
            for model in sorted({model for model, _ in said})
        )

    def notes(self, key: ClientKey) -> tuple[Note, ...]:
        """Notes about a client, oldest first."""
        mine = [
            n
            for _, n in self._entries("note", operator_entries.StoredNote)
            if (n.model, n.client) == (key.model, key.client)
        ]
        return tuple(
            Note(n.id, self._unsealed(n.sealed_text), n.actor, n.at_s)
            for n in sorted(mine, key=lambda n: (n.at_s, n.id))
        )

    def revisions(self) -> operator_entries.Revisions:
        """Client → tag of what people decided about it."""
        return operator_entries.Revisions(self.store, self.tenant)

    # --------------------------------------------------------------------------------------------------- health

    def health(self) -> Health:
        """Whether the store answers, what it holds for this tenant, and what the processes that live say of themselves."""
        try:
            models = self.models()
            beats = heartbeats(self.store)
            roles = Counter(beat.role for beat in beats)
            alarms = tuple(sorted({alarm for beat in beats for alarm in beat.alarms}))
            lags = [beat.lag for beat in beats if beat.lag is not None]
            sinks = total([sink for beat in beats for sink in beat.sinks])
            return Health(
                store=True,
                cells=len(self.store.cells()),
                models=len(models),
                clients=sum(m.clients for m in models),
                dead_letters=self.store.dead_letter_counts(),
                newest_ms=max((m.last_seen_ms for m in models), default=0),
                breaker="open" if breaker_entries.times(self.store, self.tenant).open else "closed",
                lag=sum(lags) if lags else None,
                alarms=alarms if alarms or roles["ingest"] or roles["detect"] else None,
                sinks=tuple(SinkHealth(s.name, s.waiting, s.away) for s in sinks) if roles["detect"] else None,
                processes={role: roles[role] for role in ("ingest", "detect")},
                stopped={cell: words for beat in beats for cell, words in beat.stopped.items()} if beats else None,
            )
        except Unavailable:
            return Health(False, None, None, None, None, None)

    # --------------------------------------------------------------------------------------------------- inside

    def _remembered(self, name: str, find: Callable[[], Any]) -> Any:
        now = time.monotonic()
        if name not in self._kept or now - self._kept[name][0] > REMEMBERED_S:
            self._kept[name] = (now, find())
        return self._kept[name][1]

    def _count_models(self) -> tuple[Model, ...]:
        counts: dict[str, dict[str, int]] = {model: {} for model in self.baselines}
        for key, row in self._rows():
            mine = counts.setdefault(key.model, {})
            mine[row.state] = mine.get(row.state, 0) + 1
            mine["last"] = max(mine.get("last", 0), self._summary(row).last_ms)
        return tuple(
            Model(
                model, sum(n for state, n in mine.items() if state != "last"), mine.get("watch", 0),
                mine.get("throttle", 0), mine.get("block", 0), mine.get("last", 0), b is not None,
                b.calibration.calibrated if b else None, b.calibration.clients if b else None, b.map_id if b else None,
                str(b.calibration_version) if b else None,
            )
            for model, mine in sorted(counts.items())
            for b in [self.baselines.get(model)]
        )  # fmt: skip

    def _rows(self, model: str | None = None) -> Iterator[tuple[ClientKey, DecisionRow]]:
        """Rows of clients; those of campaigns are none."""
        return ((key, row) for key, row in self.store.decisions(self.tenant, model) if not is_campaign(key))

    def _find_campaigns(self) -> tuple[Campaign, ...]:
        """Campaigns with an open finding, and who else a row says belongs to one."""
        groups: dict[tuple[str, str], list[ClientKey]] = {}
        whole: dict[tuple[str, str], StoredDecision] = {}
        for key, row in self.store.decisions(self.tenant):
            if is_campaign(key):
                stored = self._stored(key, row)
                if stored is not None and stored.alert is not None and stored.decision.state != "clear":
                    whole[stored.client_id, key.model] = stored
            elif name := self._summary(row).campaign_id:
                groups.setdefault((name, key.model), []).append(key)
        for (name, model), stored in whole.items():
            hashes = (self.secrets.client_hash(self.tenant, member) for member in stored.members)
            groups.setdefault((name, model), []).extend(ClientKey(self.tenant, model, one) for one in hashes)
        found = []
        for (name, model), keys in groups.items():
            decided = self.store.decided(list(dict.fromkeys(keys)))
            rows = [(key, stored) for key, row in decided.items() if (stored := self._stored(key, row))]
            if rows:
                found.append(campaign_of(name, model, rows, whole.get((name, model))))
        return tuple(sorted(found, key=lambda c: (-c.suspicion, c.campaign_id)))

    def _value(self, row: DecisionRow, sort: str) -> float:
        return row.rank if sort == "suspicion" else _VALUES[sort](self._summary(row))

    def _summary(self, row: DecisionRow) -> RowSummary:
        """The row's summary; one of zeros for a damaged row, which then sorts last."""
        return readable(None, summary_of, row) or RowSummary()

    def _stored(self, key: ClientKey, row: DecisionRow) -> StoredDecision | None:
        return readable("decision row", stored_decision, row, self.secrets, key.tenant, model=key.model)

    def _client(self, key: ClientKey, row: DecisionRow) -> Client | None:
        stored = self._stored(key, row)
        return client_of(key.model, key.client, stored) if stored else None

    def _body(self, stored: Any) -> dict[str, Any] | None:
        body = readable("alert", stored_alert, stored, self.secrets)
        return body if body is not None and body["tenant"] == self.tenant else None

    def _hash_of(self, body: Mapping[str, Any]) -> str | None:
        client = body.get("client_id")
        return self.secrets.client_hash(self.tenant, client) if client is not None else None

    def _alert(self, body: Mapping[str, Any], verdicts: Mapping[str, Verdict], cases: Mapping[str, AlertCase]) -> Alert:
        return alert_of(body, self._hash_of(body), verdicts.get(body["alert_id"]), cases.get(body["alert_id"]))

    def _entries(
        self, kind: str, as_type: type[operator_entries.Value]
    ) -> Iterator[tuple[str, operator_entries.Value]]:
        for entry in self.store.operator_entries(kind, self.tenant)[1]:
            value = readable("entry", operator_entries.unpacked, entry, as_type, kind=kind)
            if value is not None:
                yield entry.key, value

    def _unsealed(self, text: str) -> str:
        return (readable(None, unsealed, text, self.secrets, self.tenant) or "") if text else ""
