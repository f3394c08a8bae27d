"""What operators keep in the store's operator cell: entries as values, and the way to bytes and back.

Rules: an entry's value is one JSON object with a ``format``; another format than ours is `CorruptState`, unknown fields are skipped. Client
ids and notes are sealed, never in clear. The kinds:

    kind         key                          value                      ends
    decision     <model or *>|<client hash>   StoredOperatorDecision     with until_s
    allow        <model or *>|<client hash>   AllowlistEntry             with its own end, or never
    campaign     <model>|<campaign id>        StoredCampaignDecision     with until_s
    proposal     <model>|<campaign id>        StoredCampaignDecision     with until_s: waits for a second person
    verdict      <alert id>                   Verdict                    never: it enters the next calibration
    case         <alert id>                   StoredCase                 a year after its last change
    note         <model>|<client hash>|<id>   Note                       after a year
    key          <public prefix>              ApiKey                     with its own end
    revoked      <public prefix>              Revoked                    when the key would have ended
    session      <hash of its ticket>         Ended                      when the session would have ended
    breaker      reset                        Reset                      never: the next one replaces it
                 tripped                      breaker_entries.Tripped    with a reset
                 held                         breaker_entries.Held       with a reset
    heartbeat    <process>                    heartbeat.Heartbeat        after a minute
    idempotency  <hash of the request's key>  Answered                   after a day
    audit        head                         audit.Head                 never
    baseline     <model>                      baselines_in_force         when it is dropped; so with baseline_file
    indicators   <source>                     indicators                 with the last of them

Code that enforces reads ``decision``, ``campaign`` and ``allow`` (`operator_decision`, `campaign_decision`, `allowlist_entry`): an
allowlist entry beats a decision about the client, and this a decision about its campaign. A decision about the client beats what was
detected; one about its campaign lifts it with `clear`, and adds to it otherwise: the more severe of the two holds. What is said of one
model beats what is said of all (``*``). A simulated decision is only shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import msgspec

from consumers.errors import CorruptState
from consumers.store import Entry, OperatorStore

FORMAT = 1
EVERY_MODEL = "*"
Ruling = Literal["clear", "degrade", "throttle", "block"]
"""What an operator may decide; *clear* releases a client whatever was detected, *degrade* lets it through to answers with less detail."""
RULINGS: tuple[Ruling, ...] = get_args(Ruling)
Role = Literal["gateway", "viewer", "analyst", "operator", "admin", "ingest"]
"""What a credential may do; see `http.access`."""
ROLES: tuple[Role, ...] = get_args(Role)
VerdictValue = Literal["true_positive", "false_positive"]
"""What an analyst may say of an alert."""
VERDICTS: tuple[VerdictValue, ...] = get_args(VerdictValue)


@dataclass(frozen=True, slots=True)
class StoredOperatorDecision:
    """An operator's decision. client: keyed hash; sealed_id: the client's id, sealed, empty when only the hash was known."""

    client: str
    model: str
    state: Ruling
    until_s: int
    simulated: bool
    reason: str
    note: str
    actor: str
    at_s: int
    sealed_id: str = ""
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class StoredCampaignDecision:
    """An operator's decision about all accounts of a campaign; it begins, ends and is withdrawn as one.

    confirmed   keyed hashes of the accounts that were members when the operator decided
    joined      those that detection added since; at most as many; joined_s: when, in the same order
    second      the person that confirmed it, where a second one was needed
    """

    campaign: str
    model: str
    state: Ruling
    until_s: int
    simulated: bool
    reason: str
    note: str
    actor: str
    at_s: int
    confirmed: tuple[str, ...]
    joined: tuple[str, ...] = ()
    joined_s: tuple[int, ...] = ()
    second: str = ""
    format: int = FORMAT

    @property
    def accounts(self) -> tuple[str, ...]:
        """All accounts that it is about."""
        return self.confirmed + self.joined


@dataclass(frozen=True, slots=True)
class AllowlistEntry:
    """An allowlist entry. until_s: 0 for never; origin: operator | verdict."""

    client: str
    model: str
    until_s: int
    reason: str
    actor: str
    at_s: int
    origin: Literal["operator", "verdict"] = "operator"
    sealed_id: str = ""
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """What an analyst found: true_positive | false_positive."""

    alert_id: str
    verdict: VerdictValue
    note: str
    actor: str
    at_s: int
    model: str = ""
    client: str = ""
    format: int = FORMAT


CaseState = Literal["open", "closed"]
"""Whether somebody still works on a finding."""


@dataclass(frozen=True, slots=True)
class StoredCase:
    """Who works on a finding, and whether it is done. assignee: empty for nobody; actor: who said so last."""

    alert_id: str
    assignee: str
    state: CaseState
    note: str
    actor: str
    at_s: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class StoredNote:
    """Words about a client; sealed_text holds them sealed."""

    id: str
    client: str
    model: str
    sealed_text: str
    actor: str
    at_s: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without the key: digest is HMAC-SHA256 of it, in hex. The role of a key that the store has lost is not known."""

    prefix: str
    digest: str
    name: str
    role: Role | Literal[""]
    created_s: int
    expires_s: int
    actor: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Revoked:
    """A key was ended by hand: it stays so, whatever else the store loses."""

    actor: str
    at_s: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Ended:
    """Somebody signed out: the session's cookie is good for nothing any more."""

    actor: str
    at_s: int
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Reset:
    """The breaker was closed by hand."""

    actor: str
    at_s: int
    reason: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class LastBundle:
    """The last evidence bundle of a tenant. number: from 1; digest: SHA-256 of its manifest, in hex."""

    number: int
    digest: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a request that may come again. request: hash of what was asked; body: JSON text."""

    request: str
    body: str
    format: int = FORMAT


Value = TypeVar("Value")


def entry_key(model: str, client: str) -> str:
    """Key of a decision or an allowlist entry. A client hash holds no bar; a model may."""
    return f"{model}|{client}"


def last_verdicts(store: OperatorStore, tenant: str) -> dict[str, StoredVerdict]:
    """The last word on an alert, and on a client of a model, by ``alert_id`` and by `entry_key`. Raises CorruptState, Unavailable."""
    found: dict[str, StoredVerdict] = {}
    said = (unpacked(entry, StoredVerdict) for entry in store.operator_entries("verdict", tenant)[1])
    for verdict in sorted(said, key=lambda one: one.at_s):
        found[verdict.alert_id] = verdict
        if verdict.client:
            found[entry_key(verdict.model, verdict.client)] = verdict
    return found


def campaign_revision(members: Iterable[str], decision: StoredCampaignDecision | None) -> str:
    """Tag of a campaign's members (hashes) and of what people decided about it: 32 hex digits, others after any change of either."""
    said = (sorted(members), None if decision is None else replace(decision, joined=(), joined_s=()))
    return hashlib.blake2b(msgspec.msgpack.encode(said), digest_size=16).hexdigest()


class Revisions(dict[str, str]):
    """Client → tag of what people decided and allowlisted for it, on whatever model: 32 hex digits, others after any change."""

    def __init__(self, store: OperatorStore, tenant: str) -> None:
        said: dict[str, Any] = {}
        for kind in ("decision", "allow"):
            for entry in store.operator_entries(kind, tenant)[1]:
                digest = said.setdefault(entry.key.rpartition("|")[2], hashlib.blake2b(digest_size=16))
                digest.update(msgspec.msgpack.encode((kind, entry.key, entry.value)))
        super().__init__({client: digest.hexdigest() for client, digest in said.items()})

    def __missing__(self, client: str) -> str:
        return hashlib.blake2b(digest_size=16).hexdigest()


def packed(value: object) -> bytes:
    return msgspec.json.encode(value)


def unpacked(entry: Entry, kind: type[Value]) -> Value:
    """Raises CorruptState."""
    try:
        value = msgspec.json.decode(entry.value, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptState(f"entry {entry.kind}: {error}") from error
    if (found := getattr(value, "format", FORMAT)) != FORMAT:
        raise CorruptState(f"entry {entry.kind}: format {found}, this version reads format {FORMAT}")
    return value


def operator_decision(entry: Entry) -> StoredOperatorDecision:
    """The value of a *decision* entry. Raises CorruptState."""
    return unpacked(entry, StoredOperatorDecision)


def campaign_decision(entry: Entry) -> StoredCampaignDecision:
    """The value of a *campaign* or *proposal* entry. Raises CorruptState."""
    return unpacked(entry, StoredCampaignDecision)


def allowlist_entry(entry: Entry) -> AllowlistEntry:
    """The value of an *allow* entry. Raises CorruptState."""
    return unpacked(entry, AllowlistEntry)
