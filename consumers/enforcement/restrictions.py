"""Restrictions: the clients that gateways must throttle or block, in the memory of the process that answers gateways.

Rules:
* An answer never waits: it reads dictionaries that one thread (refresher.py) changes. While the store is down, slow or paused, the last
  known restrictions hold until their own end, and `stale_since_s` says since when nothing new was read.
* An operator's decision about a client overrides a detected one. An entry for one model overrides an entry for all models (``*``). An
  allowlist entry overrides both. A simulated decision is never enforced.
* An operator's decision about a campaign counts for each of its accounts that has no decision of its own. `clear` lifts what was detected;
  otherwise the more severe of the two holds. The most severe of several campaigns counts. An account that joined by itself counts as
  detected: the breaker of this process counts it and holds it back.
* Detected restrictions are enforced as far as the breaker of detect, the breaker of this process and the mode of the model allow. A
  flagged client that is not restricted shows as ``watch``, in mode observe as ``clear``. Operators' decisions always count.
* While the breaker of a tenant is open in this process (`hold`), a detected restriction of the tenant stays as it was before, until it
  ends; none begins or rises.
"""

from __future__ import annotations

import heapq
import logging
import secrets
import sys
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

from consumers.errors import CorruptState
from consumers.records.breaker_entries import held_back
from consumers.records.operator_entries import (
    EVERY_MODEL,
    StoredCampaignDecision,
    allowlist_entry,
    campaign_decision,
    operator_decision,
)
from consumers.store import ENFORCED, Entry, Restriction
from detector.query import ClientKey

log = logging.getLogger("querywarden.restrictions")

CLEAR, WATCH, DEGRADE, THROTTLE, BLOCK = range(len(ENFORCED))
KEPT_CHANGES = 20_000
"""How many changes a reader may fall behind before it must begin again."""

_CAPS = {"observe": CLEAR, "alert": WATCH, "throttle": THROTTLE, "block": BLOCK}
OPERATOR_KINDS = ("decision", "allow", "campaign")
_SLICE = 200
_PAUSE_S = 0.0001

Key: TypeAlias = tuple[str, str]
"""(tenant, client hash)"""

V = TypeVar("V")


class Standing(NamedTuple):
    """What holds for a client. strictness: index in ENFORCED; until_s: its end, 0 for none; origin: detected | operator.

    An account that joined a campaign under decision is *detected* there: no person named it.
    """

    strictness: int
    until_s: int = 0
    origin: str = "detected"


class Change(NamedTuple):
    """A restriction that began, changed or (`lifted`) ended, for one model or ``*``."""

    number: int
    tenant: str
    model: str
    client: str
    standing: Standing
    lifted: bool


class _Ruled(NamedTuple):
    """An operator's decision."""

    strictness: int
    until_s: int
    simulated: bool


class _OfCampaign(NamedTuple):
    """An operator's decision about a campaign of the client. joined_s: when detection added the account, or None."""

    model: str
    strictness: int
    until_s: int
    joined_s: int | None

    @property
    def joined(self) -> bool:
        return self.joined_s is not None


NOTHING = Standing(CLEAR)

_OfModel: TypeAlias = tuple[str, int, int, int]
_Detected = tuple[_OfModel, ...]
"""(model, strictness of the state, strictness enforced, until_s), …: plain tuples, which the garbage collector leaves alone."""


@dataclass(slots=True)
class _Tables:
    """Everything known, by (tenant, client) and then model; of campaigns by (tenant, client) and then the entry's key.

    accounts  (tenant, key of a campaign's entry) → hashes of its accounts
    """

    detected: dict[Key, _Detected] = field(default_factory=dict)
    said: dict[Key, dict[str, _Ruled]] = field(default_factory=dict)
    allowed: dict[Key, dict[str, int]] = field(default_factory=dict)
    grouped: dict[Key, dict[str, _OfCampaign]] = field(default_factory=dict)
    accounts: dict[Key, tuple[str, ...]] = field(default_factory=dict)

    def models_of(self, key: Key) -> set[str]:
        """Models on which something is known of a client, ``*`` among them."""
        grouped = {one.model for one in self.grouped.get(key, {}).values()}
        return {m for m, *_ in self.detected.get(key, ())} | grouped | {*self.said.get(key, ())}

    def of_campaigns(self, key: Key, model: str, now_s: float) -> list[_OfCampaign]:
        """Decisions about campaigns of a client that hold on a model."""
        return [o for o in self.grouped.get(key, {}).values() if o.model == model and o.until_s > now_s]


class Restrictions:
    """The view; `standing` may be called from any thread, everything that changes it from one.

    mode, modes  the strongest state that is enforced, and for some models another
    counts       restrictions in force by (origin, state)
    """

    def __init__(self, mode: str = "observe", modes: Mapping[str, str] | None = None) -> None:
        self._cap = _CAPS[mode]
        self._caps = {model: _CAPS[m] for model, m in (modes or {}).items()}
        self._tables = _Tables()
        self._published: dict[Key, dict[str, Standing]] = {}
        self._ends: list[tuple[int, Key]] = []
        self._changes: deque[Change] = deque(maxlen=KEPT_CHANGES)
        self.epoch = secrets.token_hex(4)
        self.number = 0
        self.synced = False
        self.stale_since_s: float | None = None
        self._before: dict[str, dict[ClientKey, int]] = {}
        self.counts = Counter[tuple[str, str]]()

    @property
    def held(self) -> bool:
        """Whether the breaker of any tenant keeps new detected restrictions from being enforced."""
        return bool(self._before)

    def held_of(self, tenant: str) -> bool:
        """Whether the breaker of a tenant does."""
        return tenant in self._before

    # ------------------------------------------------------------------------------------------------- asking

    def standing(self, tenant: str, client: str, model: str | None, now_s: float) -> Standing:
        """What holds for a client on a model; None or ``*``: the most severe over all models."""
        return self.worst(tenant, client, (EVERY_MODEL if model is None else model,), now_s)

    def worst(self, tenant: str, client: str, models: Collection[str], now_s: float) -> Standing:
        """The most severe that holds for a client on any of some models; ``*`` stands for all models."""
        key = (tenant, client)
        tables = self._tables
        if key not in tables.detected and key not in tables.said and key not in tables.grouped:
            return NOTHING
        asked = {*models, *tables.models_of(key)} if EVERY_MODEL in models else models
        return max((self._of_model(tables, key, m, now_s) for m in asked), key=lambda s: s.strictness)

    def enforced(self, now_s: float) -> Iterator[tuple[Key, str, Standing]]:
        """Every restriction in force: ((tenant, client), model or ``*``, standing)."""
        for key, models in list(self._published.items()):
            for model, standing in models.items():
                if not standing.until_s or standing.until_s > now_s:
                    yield key, model, standing

    def detected(self, tenant: str, now_s: float) -> dict[ClientKey, int]:
        """Client → strictness of everything of a tenant that was detected, or joined a campaign under decision.

        Neither operators' decisions nor the breaker count.
        """
        found = {}
        for (whose, client), entries in _slices(list(self._tables.detected.items())):
            for model, _, enforced, until_s in entries:
                strictness = min(enforced, self._caps.get(model, self._cap))
                if whose == tenant and strictness >= THROTTLE and (not until_s or until_s > now_s):
                    found[ClientKey(tenant, model, client)] = strictness
        for (whose, client), campaigns in _slices(list(self._tables.grouped.items())):
            for one in campaigns.values():
                key = ClientKey(tenant, one.model, client)
                if whose == tenant and one.joined and one.strictness >= THROTTLE and one.until_s > now_s:
                    found[key] = max(one.strictness, found.get(key, CLEAR))
        return found

    def joined(self, client: ClientKey, opened_s: float, now_s: float) -> int:
        """Level of the decisions about campaigns that a client had joined before a burst, as far as they hold now.

        opened_s: when the burst opened the breaker.
        """
        found = self._tables.of_campaigns((client.tenant, client.client), client.model, now_s)
        return max(
            (one.strictness for one in found if one.joined_s is not None and not held_back(one.joined_s, opened_s)),
            default=CLEAR,
        )

    def since(self, number: int, epoch: str) -> list[Change] | None:
        """Changes after a number, oldest first; None when they are not known any more: read `enforced` again."""
        if epoch != self.epoch or number > self.number:
            return None
        if number == self.number:
            return []
        kept = list(self._changes)
        if not kept or kept[0].number > number + 1:
            return None
        return kept[number - kept[0].number + 1 :]

    def _of_model(self, tables: _Tables, key: Key, model: str, now_s: float) -> Standing:
        if (allowed := tables.allowed.get(key)) and any(
            m in allowed and (not allowed[m] or allowed[m] > now_s) for m in (model, EVERY_MODEL)
        ):
            return NOTHING
        if said := tables.said.get(key):
            for m in (model, EVERY_MODEL):
                if (one := said.get(m)) and not one.simulated and (not one.until_s or one.until_s > now_s):
                    return Standing(one.strictness, one.until_s, "operator")
        detected = self._by_detection(tables, key, model, now_s)
        if key not in tables.grouped:
            return detected
        return self._by_campaigns(tables, key, model, now_s, detected)

    def _by_campaigns(self, tables: _Tables, key: Key, model: str, now_s: float, detected: Standing) -> Standing:
        """What holds for a client whose campaigns an operator decided about. detected: what holds without that."""
        found = []
        for one in tables.of_campaigns(key, model, now_s):
            strictness = self._allowed(key, model, one.strictness) if one.joined else one.strictness
            found.append(Standing(strictness, one.until_s, "detected" if one.joined else "operator"))
        if not found:
            return detected
        worst = max(found, key=lambda s: (s.strictness, s.origin == "operator", s.until_s))
        return worst if worst.strictness == CLEAR or worst.strictness >= detected.strictness else detected

    def _by_detection(self, tables: _Tables, key: Key, model: str, now_s: float) -> Standing:
        for m, state, enforced, until_s in tables.detected.get(key, ()):
            if m == model and (not until_s or until_s > now_s):
                cap = self._caps.get(model, self._cap)
                strictness = self._allowed(key, model, min(enforced, cap))
                return Standing(min(cap, WATCH) if strictness < THROTTLE <= state else strictness, until_s)
        return NOTHING

    def _allowed(self, key: Key, model: str, strictness: int) -> int:
        """A detected level, no higher than before a burst while the breaker is open."""
        before = self._before.get(key[0])
        return strictness if before is None else min(strictness, before.get(ClientKey(key[0], model, key[1]), WATCH))

    # ----------------------------------------------------------------------------------------------- learning

    def replace(self, restrictions: Iterable[Restriction], entries: Iterable[Entry], now_s: float) -> None:
        """Everything, as a full sync found it. entries: operators', of `OPERATOR_KINDS`."""
        tables = _Tables()
        for r in _slices(restrictions):
            _put(tables.detected, r)
        for entry in entries:
            _said(tables, entry)
        for client in [client for before in self._before.values() for client in before]:
            self._settle(client, _detected(tables, client), now_s, tables)
        self._tables = tables
        self.publish(now_s)
        self.synced = True

    def learn(self, restrictions: Iterable[Restriction], entries: Iterable[Entry], now_s: float) -> None:
        """What changed since."""
        tables, touched = self._tables, set()
        for r in _slices(restrictions):
            after = (r.client.model, ENFORCED.index(r.state), ENFORCED.index(r.enforced), r.until_s)
            self._settle(r.client, after, now_s, tables)
            _put(tables.detected, r)
            touched.add((r.client.tenant, r.client.client))
        for entry in entries:
            if entry.kind in OPERATOR_KINDS:
                touched |= _said(tables, entry)
        for key in _slices(touched):
            self._publish(key, now_s)

    def publish(self, now_s: float) -> None:
        """Number everything that differs from what was published; needed when a rule changed, not a client."""
        tables, self._ends = self._tables, []
        for key in _slices({*tables.detected, *tables.said, *tables.grouped, *self._published}):
            self._publish(key, now_s)

    def hold(self, before: Mapping[str, dict[ClientKey, int]], now_s: float) -> None:
        """Enforce of what was detected only what stood before a burst: tenant → client → strictness; for other tenants all.

        The same objects again change nothing; what ends meanwhile is taken out of them.
        """
        if any(before.get(tenant) is not self._before.get(tenant) for tenant in {*before, *self._before}):
            self._before = dict(before)
            self.publish(now_s)

    def _settle(self, client: ClientKey, after: _OfModel | None, now_s: float, tables: _Tables) -> None:
        """What stood before a burst stands no higher than it does now; what ended does not stand any more. tables: as they will be."""
        stood = self._before.get(client.tenant)
        if not stood or client not in stood:
            return
        was = _detected(self._tables, client)
        ended = was is None or after is None or 0 < was[3] <= now_s
        strictness = CLEAR if ended or after is None else min(stood[client], after[2])
        joined = tables.of_campaigns((client.tenant, client.client), client.model, now_s)
        strictness = max([strictness, *(min(stood[client], one.strictness) for one in joined if one.joined)])
        if strictness < THROTTLE:
            del stood[client]
        else:
            stood[client] = strictness

    def expire(self, now_s: float) -> None:
        """Publish what ended by itself."""
        while self._ends and self._ends[0][0] <= now_s:
            self._publish(heapq.heappop(self._ends)[1], now_s)

    def _publish(self, key: Key, now_s: float) -> None:
        tables = self._tables
        models = sorted(tables.models_of(key))
        found = {m: self._of_model(tables, key, m, now_s) for m in models}
        after = {m: s for m, s in found.items() if s.strictness >= THROTTLE}
        before = self._published.get(key, {})
        for model in [*before, *(m for m in after if m not in before)]:
            if before.get(model) != after.get(model):
                standing = after.get(model) or before[model]
                change = Change(self.number + 1, key[0], model, key[1], standing, model not in after)
                self._changes.append(change)
                for one, step in ((before.get(model), -1), (after.get(model), 1)):
                    if one is not None:
                        self.counts[one.origin, ENFORCED[one.strictness]] += step
                self.number = change.number
        if after:
            self._published[key] = after
        else:
            self._published.pop(key, None)
        self._remember_ends(key, tables, now_s)

    def _remember_ends(self, key: Key, tables: _Tables, now_s: float) -> None:
        ends = [until_s for *_, until_s in tables.detected.get(key, ())]
        ends += [one.until_s for one in tables.said.get(key, {}).values()]
        ends += [one.until_s for one in tables.grouped.get(key, {}).values()]
        ends += tables.allowed.get(key, {}).values()
        if coming := [until_s for until_s in ends if until_s > now_s]:
            heapq.heappush(self._ends, (min(coming), key))


def _slices(items: Iterable[V]) -> Iterator[V]:
    """The items, with a pause now and then in which other threads run."""
    for n, item in enumerate(items, 1):
        yield item
        if not n % _SLICE:
            time.sleep(_PAUSE_S)


def _detected(tables: _Tables, client: ClientKey) -> _OfModel | None:
    entries = tables.detected.get((client.tenant, client.client), ())
    return next((entry for entry in entries if entry[0] == client.model), None)


def _put(detected: dict[Key, _Detected], r: Restriction) -> None:
    key = (sys.intern(r.client.tenant), r.client.client)
    others = tuple(entry for entry in detected.get(key, ()) if entry[0] != r.client.model)
    state = ENFORCED.index(r.state)
    if state >= THROTTLE:
        detected[key] = (*others, (sys.intern(r.client.model), state, ENFORCED.index(r.enforced), r.until_s))
    elif others:
        detected[key] = others
    else:
        detected.pop(key, None)


def _said(tables: _Tables, entry: Entry) -> set[Key]:
    """Take in an operator's entry and return whom it concerns; one that cannot be read is reported and counts as dropped."""
    if entry.kind == "campaign":
        return _said_of_campaign(tables, entry)
    model, _, client = entry.key.rpartition("|")
    key = (entry.tenant, client)
    ruled: _Ruled | None = None
    allowed_until_s: int | None = None
    if entry.value:
        try:
            if entry.kind == "allow":
                allowed_until_s = allowlist_entry(entry).until_s or entry.expires_s
            else:
                value = operator_decision(entry)
                ruled = _Ruled(ENFORCED.index(value.state), value.until_s or entry.expires_s, value.simulated)
        except (CorruptState, ValueError) as error:
            log.error("an operator's entry cannot be read and does not count", extra={"error": str(error)})
    if entry.kind == "allow":
        _drop_or_set(tables.allowed, key, model, allowed_until_s)
    else:
        _drop_or_set(tables.said, key, model, ruled)
    return {key}


def _said_of_campaign(tables: _Tables, entry: Entry) -> set[Key]:
    """The same for a decision about a campaign: of all accounts that it names or named before."""
    decision: StoredCampaignDecision | None = None
    strictness = CLEAR
    if entry.value:
        try:
            decision = campaign_decision(entry)
            strictness = ENFORCED.index(decision.state)
        except (CorruptState, ValueError) as error:
            log.error("an operator's entry cannot be read and does not count", extra={"error": str(error)})
    place = (entry.tenant, entry.key)
    before = tables.accounts.pop(place, ())
    for client in before:
        _drop_or_set(tables.grouped, (entry.tenant, client), entry.key, None)
    if decision is None or decision.simulated:
        return {(entry.tenant, client) for client in before}
    model = sys.intern(decision.model)
    whole = _OfCampaign(model, strictness, decision.until_s, None)
    for client in decision.confirmed:
        _drop_or_set(tables.grouped, (entry.tenant, client), entry.key, whole)
    for client, joined_s in zip(decision.joined, decision.joined_s, strict=False):
        _drop_or_set(tables.grouped, (entry.tenant, client), entry.key, whole._replace(joined_s=joined_s))
    tables.accounts[place] = decision.accounts
    return {(entry.tenant, client) for client in (*before, *decision.accounts)}


def _drop_or_set(table: dict[Key, dict[str, V]], key: Key, model: str, value: V | None) -> None:
    kept = {m: v for m, v in table.get(key, {}).items() if m != model}
    if value is not None:
        kept[model] = value
    if kept:
        table[key] = kept
    else:
        table.pop(key, None)
