"""Export or erase one client: everything that is stored about it, as a document, or removed for good.

A client leaves traces in these places: profiles in every cell, a decision row for each model, alerts, operators' entries, and the first
bytes of refused records.

Rules:
* Profiles are erased before decisions: a process that assesses at the same time has its record refused, because the second step rewinds it.
* A tombstone stays in every profile cell, a one-way mark with the offset of the cell. The queries in the log below that offset are
  skipped for good, by a replay and a rebuild too. Later queries are counted again; keeping them away is a matter for the gateway.
* A campaign that names the client is erased with it, row and alerts. The next pass finds the rest of it, without the client.
* A decision about a campaign stays in force for the other accounts; the client is taken out of it.
* Inputs that the registry of canaries keeps sealed are no part of the store; the command blanks them (`wiring/watermark.py`).
* What stays: rows of the audit log that name the hash of the client (a chain cannot be cut), counts that name no client, and what receivers
  of alerts keep.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from consumers.errors import CorruptState
from consumers.records.alert import stored_alert, subject_key
from consumers.records.damaged import readable
from consumers.records.decision import is_campaign, stored_decision
from consumers.records.operator_cell import written
from consumers.records.operator_entries import campaign_decision, packed
from consumers.secrets import Secrets
from consumers.store import Entry, Operation, Store, decision_cell
from detector.query import ClientKey

KINDS = ("decision", "allow", "verdict", "case", "note", "idempotency")
"""Kinds of operator entries that may name a client."""
OF_CAMPAIGNS = ("campaign", "proposal")
"""Kinds of operator entries that name clients among others."""

LETTERS = 100_000


@dataclass(frozen=True, slots=True)
class DataSubject:
    """A client of one tenant. client_id: empty when only the hash is known and nothing stored tells the id."""

    tenant: str
    client: str
    client_id: str
    models: tuple[str, ...]

    @property
    def keys(self) -> list[ClientKey]:
        return [ClientKey(self.tenant, model, self.client) for model in self.models]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Operators' entries that go with a client, and those that stay without it, as they will be."""

    drops: tuple[Entry, ...]
    puts: tuple[Entry, ...] = ()

    def __len__(self) -> int:
        return len(self.drops) + len(self.puts)


@dataclass(slots=True)
class Erased:
    """What was there: numbers of profiles, decision rows, alerts, operators' entries, dead letters, sealed inputs of canaries."""

    profiles: int = 0
    decisions: int = 0
    alerts: int = 0
    entries: int = 0
    letters: int = 0
    canaries: int = 0
    scrubbed: bool = False


def models_of(store: Store, tenant: str) -> set[str]:
    """Models that the tenant has decisions for."""
    return {key.model for key, _ in store.decisions(tenant, limit=1)}


def subject_of(
    store: Store, secrets: Secrets, tenant: str, client: str, models: Iterable[str], hashed: bool
) -> DataSubject:
    """A client by its id or, with `hashed`, by its hash as listings show it."""
    known = tuple(sorted(set(models)))
    if not hashed:
        return DataSubject(tenant, secrets.client_hash(tenant, client), client, known)
    rows = store.decided([ClientKey(tenant, model, client) for model in known])
    for key, row in rows.items():
        stored = readable(None, stored_decision, row, secrets, key.tenant)
        if stored is not None:
            return DataSubject(tenant, client, stored.client_id, known)
    return DataSubject(tenant, client, "", known)


def erase(
    store: Store,
    secrets: Secrets,
    subject: DataSubject,
    whole: bool = True,
    say: Callable[[str], None] = lambda text: None,
    drop: Callable[[Callable[[], Forgotten]], int] | None = None,
) -> Erased:
    """Forget the client on its models.

    whole  what operators wrote on all models, and refused records, too
    drop   drops the entries that its argument finds and answers how many; None: without a row in the audit log
    """
    keys, done = subject.keys, Erased()
    for cell in store.cells():
        say(cell)
        done.profiles += len(store.shards(cell, keys).fields)
        store.erase(cell, keys)
        if whole:
            done.letters += _drop_letters(store, cell, subject)
    say("decisions")
    alerts = {alert["alert_id"]: subject_key(alert, secrets) for alert in _alerts(store, secrets, subject)}
    done.decisions, done.alerts = len(store.decided(keys)), len(alerts)
    named = {*keys, *_campaigns(store, secrets, subject), *alerts.values()}
    for v in sorted({decision_cell(key, store.decision_cells) for key in named}):
        mine = {key for key in named if decision_cell(key, store.decision_cells) == v}
        store.erase_decisions(v, sorted(mine), [alert for alert, key in alerts.items() if key in mine])
    say("operators' entries")
    done.entries = (drop or _drop_of(store))(lambda: _entries_of(store, subject, whole, set(alerts)))
    say("disk")
    done.scrubbed = store.scrub()
    return done


def document(store: Store, secrets: Secrets, subject: DataSubject) -> dict[str, Any]:
    """Everything that is kept about a client, as JSON; what only we can read, in base64."""
    keys = subject.keys
    rows = store.decided(keys)
    profiles: dict[str, list[dict[str, Any]]] = {}
    for cell in store.cells():
        shards = store.shards(cell, keys)
        for key, fields in shards.fields.items():
            kept = {name: base64.b64encode(value).decode() for name, value in sorted(fields.items())}
            profiles.setdefault(key.model, []).append({"cell": cell, "offset": shards.offset, "fields": kept})
    alerts = list(_alerts(store, secrets, subject))
    named = {alert["alert_id"] for alert in alerts}
    return {
        "client_id": subject.client_id,
        "client_key": subject.client,
        "tenant": subject.tenant,
        "models": [
            {
                "model_id": key.model,
                "decision": _decision(rows[key], secrets, key) if key in rows else None,
                "profiles": profiles.get(key.model, []),
            }
            for key in keys
            if key in rows or key.model in profiles
        ],
        "alerts": [_alone(alert, secrets, subject) for alert in alerts],
        "operators": [
            {"kind": e.kind, "key": e.key, "expires_s": e.expires_s, "value": _value(e, subject)}
            for e in _entries(store, subject, named)
        ],
        "refused_records": [
            {"place": letter.place, "reason": letter.reason, "head": base64.b64encode(letter.head).decode()}
            for cell in store.cells()
            for _, letter in store.dead_letters(cell, LETTERS)
            if _names(letter.head + letter.detail.encode(), subject)
        ],
    }


def _decision(row: Any, secrets: Secrets, key: ClientKey) -> Any:
    try:
        return stored_decision(row, secrets, key.tenant).document()
    except CorruptState as error:
        return {"damaged": str(error), "state": row.state}


def _value(entry: Entry, subject: DataSubject) -> Any:
    """An entry as this client may read it: other accounts of a campaign are counted, not named."""
    value = _readable(entry.value)
    if entry.kind in OF_CAMPAIGNS and isinstance(value, dict):
        for name in ("confirmed", "joined"):
            others = value.get(name, ())
            value |= {name: [one for one in others if one == subject.client], f"{name}_accounts": len(others)}
        value.pop("joined_s", None)
    return value


def _readable(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, ValueError):
        return base64.b64encode(value).decode()


def _alerts(store: Store, secrets: Secrets, subject: DataSubject) -> Iterator[dict[str, Any]]:
    """Stored alerts about the client on its models."""
    for alert in store.alerts():
        body = readable(None, stored_alert, alert, secrets)
        if body is None:
            continue
        who = body.get("members") or [body.get("client_id")]
        mine = any(name and secrets.client_hash(subject.tenant, name) == subject.client for name in who)
        if mine and body["tenant"] == subject.tenant and body["model_id"] in subject.models:
            yield body


def _alone(alert: dict[str, Any], secrets: Secrets, subject: DataSubject) -> dict[str, Any]:
    """An alert as this client may read it: others are not named, and their queries neither."""
    if alert["kind"] != "campaign":
        return alert
    mine = [m for m in alert["members"] if secrets.client_hash(subject.tenant, m) == subject.client]
    return alert | {"members": mine, "accounts": len(alert["members"]), "witnesses": []}


def _campaigns(store: Store, secrets: Secrets, subject: DataSubject) -> Iterator[ClientKey]:
    """Rows of campaigns that name the client."""
    for model in subject.models:
        for key, row in store.decisions(subject.tenant, model):
            if is_campaign(key):
                stored = readable(None, stored_decision, row, secrets, key.tenant)
                members = stored.members if stored else ()
                if any(secrets.client_hash(subject.tenant, m) == subject.client for m in members):
                    yield key


def _names(content: bytes, subject: DataSubject) -> bool:
    """Whether a refused record shows the client's id."""
    return bool(subject.client_id) and subject.client_id.encode("utf-8", "surrogatepass") in content


def _drop_letters(store: Store, cell: str, subject: DataSubject) -> int:
    mine = [
        entry
        for entry, letter in store.dead_letters(cell, LETTERS)
        if _names(letter.head + letter.detail.encode(), subject)
    ]
    if mine:
        store.dead_letters_shipped(cell, mine)
    return len(mine)


def _entries(store: Store, subject: DataSubject, alerts: set[str]) -> list[Entry]:
    """What operators keep that names the client or one of its alerts."""
    names = [name.encode() for name in (subject.client, *alerts)]
    return [
        entry
        for kind in (*KINDS, *OF_CAMPAIGNS)
        for entry in store.operator_entries(kind, subject.tenant)[1]
        if any(name in entry.value or name in entry.key.encode() for name in names)
    ]


def _entries_of(store: Store, subject: DataSubject, whole: bool, alerts: set[str]) -> Forgotten:
    """The entries that go with the client, and those that stay without it."""
    found = _entries(store, subject, alerts)
    mine = [e for e in found if whole or e.key in alerts or _of_models(e, subject.models)]
    kept = [_without(e, subject) if e.kind in OF_CAMPAIGNS else None for e in mine]
    drops = (e for e, without in zip(mine, kept, strict=True) if without is None)
    return Forgotten(tuple(drops), tuple(e for e in kept if e is not None))


def _without(entry: Entry, subject: DataSubject) -> Entry | None:
    """A decision about a campaign without the client; None for one that cannot be read."""
    decision = readable(None, campaign_decision, entry)
    if decision is None:
        return None
    joined = [(c, s) for c, s in zip(decision.joined, decision.joined_s, strict=True) if c != subject.client]
    kept = replace(
        decision,
        confirmed=tuple(c for c in decision.confirmed if c != subject.client),
        joined=tuple(c for c, _ in joined),
        joined_s=tuple(s for _, s in joined),
    )
    return entry._replace(value=packed(kept))


def _drop_of(store: Store) -> Callable[[Callable[[], Forgotten]], int]:
    def drop(find: Callable[[], Forgotten]) -> int:
        def plan() -> tuple[int, Operation | None, int]:
            revision, _ = store.operator_entries(KINDS[0])
            mine = find()
            drops = [(e.tenant, e.kind, e.key) for e in mine.drops]
            operation = Operation(puts=list(mine.puts), drops=drops, forget=True)
            return revision, operation if len(mine) else None, len(mine)

        return written(store, plan)

    return drop


def _of_models(entry: Entry, models: Sequence[str]) -> bool:
    return any(entry.key.startswith(f"{model}|") for model in models)
