"""The operations of operators on the store: decide, allow, judge, note, create keys. `records.operator_entries` describes their entries.
Decisions about campaigns are in `campaign_decisions`.

Rules:
* Each operation is one atomic step (`audited_write`).
* A decision ends at most `longest_s` from now, 30 days by default. So a mistake does not lock a client out for ever.
* A dry run (`simulated`) is stored, shown and audited like a real decision, and enforced nowhere.
* The text of an API key is returned once; only a digest is stored (`api_keys`).

Errors: `WrongUse` for a value out of bounds, `Missing` and `Conflict` for the stored state, `Unavailable` if the store does not answer
(the outcome is unknown: send the request again with the same idempotency key).
"""

from __future__ import annotations

import logging
import secrets as entropy
from collections.abc import Callable
from dataclasses import dataclass, replace

from consumers.errors import Conflict, Missing, WrongUse
from consumers.operators.api_keys import key_digest, new_key
from consumers.operators.audited_write import DAY_S, Actor, Plan, Subject
from consumers.operators.bounds import check_length, check_model, check_name, check_words, name_of, one_of
from consumers.operators.campaign_decisions import CampaignDecisions, check_dry_run, person
from consumers.operators.erasure import Forgotten
from consumers.records import breaker_entries, operator_entries, schema_holds, sealing
from consumers.records.operator_entries import (
    ROLES,
    RULINGS,
    VERDICTS,
    AllowlistEntry,
    ApiKey,
    CaseState,
    Ended,
    LastBundle,
    Reset,
    Revoked,
    StoredCase,
    StoredNote,
    StoredOperatorDecision,
    StoredVerdict,
)
from consumers.records.schema_holds import SchemaHold, SchemaRuling
from consumers.store import Entry
from detector.query import ClientKey

log = logging.getLogger("querywarden.operate")

FALSE_POSITIVE_DAYS = 30
MOST_NOTES = 100
LIVE_KEYS = 2
LONGEST_KEY_S = 3650 * DAY_S
NOTE_KEPT_S = 365 * DAY_S


@dataclass(slots=True)
class Operations(CampaignDecisions):
    """What may be done, on one store. env: goes into API keys, so that a test key is seen to be one."""

    env: str = "live"

    def subject(self, tenant: str, model: str, client_id: str) -> Subject:
        """A client named by its id."""
        return Subject(self.secrets.client_hash(tenant, client_id), model, client_id)

    # ------------------------------------------------------------------------------------------------- decisions

    def decide(
        self,
        actor: Actor,
        subject: Subject,
        state: str,
        *,
        ttl_s: int = DAY_S,
        reason: str = "",
        note: str = "",
        simulated: bool = False,
        once: str | None = None,
        seen: str | None = None,
    ) -> StoredOperatorDecision:
        """Block, throttle or clear a client for a while. once: idempotency key; seen: `revision` that the caller decided on.

        Raises Conflict for a dry run where a decision holds (it would take its place), Stale when `seen` is over.
        """
        ruling = one_of("state", state, RULINGS)
        check_length(ttl_s, self.longest_s)
        check_model(subject.model)
        check_words(reason, note)
        asked = (subject, state, ttl_s, reason, note, simulated)

        def plan() -> Plan[StoredOperatorDecision]:
            now = int(self.now_s())
            made = StoredOperatorDecision(
                subject.client, subject.model, ruling, now + ttl_s, simulated, reason, note, actor.name, now,
                self._sealed(subject, actor.tenant),
            )  # fmt: skip
            self._unchanged(actor.tenant, subject, seen)
            key = operator_entries.entry_key(subject.model, subject.client)
            before = self._entry("decision", key, actor.tenant, StoredOperatorDecision)
            check_dry_run("this client and model", simulated, before)
            plan = Plan(made, f"client:{subject.client} model:{subject.model}", before)
            if state == "clear" and subject.model == operator_entries.EVERY_MODEL and not simulated:
                mine = self._of_client("decision", subject.client, actor.tenant)
                plan.drops = [(actor.tenant, "decision", other) for other in mine if other != key]
            plan.puts = [Entry(actor.tenant, "decision", key, operator_entries.packed(made), made.until_s)]
            return plan

        action = f"decision.{state}{'.simulated' if simulated else ''}"
        return self._apply(actor, action, plan, StoredOperatorDecision, once, asked)

    def withdraw(
        self, actor: Actor, subject: Subject, *, once: str | None = None, seen: str | None = None
    ) -> StoredOperatorDecision:
        """Take an operator's decision back: what was detected holds again. Raises Missing, Stale."""
        missing = "no decision of an operator for this client and model"
        return self._remove(
            actor, "decision.withdraw", subject, "decision", StoredOperatorDecision, missing, once, seen
        )

    # ------------------------------------------------------------------------------------------------ allowlist

    def allow(
        self,
        actor: Actor,
        subject: Subject,
        *,
        ttl_s: int = 0,
        reason: str = "",
        once: str | None = None,
        seen: str | None = None,
    ) -> AllowlistEntry:
        """Never throttle or block this client; ttl_s 0: until it is removed. Raises Stale."""
        if ttl_s < 0:
            raise WrongUse("ttl_s: it must be 0 or more")
        check_model(subject.model)
        check_words(reason)

        def plan() -> Plan[AllowlistEntry]:
            self._unchanged(actor.tenant, subject, seen)
            now = int(self.now_s())
            made = AllowlistEntry(
                subject.client, subject.model, now + ttl_s if ttl_s else 0, reason, actor.name, now, "operator",
                self._sealed(subject, actor.tenant),
            )  # fmt: skip
            key = operator_entries.entry_key(subject.model, subject.client)
            before = self._entry("allow", key, actor.tenant, AllowlistEntry)
            put = Entry(actor.tenant, "allow", key, operator_entries.packed(made), made.until_s)
            return Plan(made, f"client:{subject.client} model:{subject.model}", before, [put])

        return self._apply(actor, "allow.add", plan, AllowlistEntry, once, (subject, ttl_s, reason))

    def disallow(
        self, actor: Actor, subject: Subject, *, once: str | None = None, seen: str | None = None
    ) -> AllowlistEntry:
        """Take a client off the allowlist. Raises Missing, Stale."""
        missing = "this client is not on the allowlist for this model"
        return self._remove(actor, "allow.remove", subject, "allow", AllowlistEntry, missing, once, seen)

    # ----------------------------------------------------------------------------------------- verdicts and notes

    def record_verdict(
        self,
        actor: Actor,
        alert_id: str,
        verdict: str,
        subject: Subject | None,
        *,
        campaign: ClientKey | None = None,
        note: str = "",
        once: str | None = None,
    ) -> StoredVerdict:
        """An analyst's verdict. A false positive puts the alert's client on the allowlist for 30 days; another verdict takes it off.

        campaign: key of the campaign that the alert is about. Its accounts are not allowlisted: each may be a thief by itself.
        """
        value = one_of("verdict", verdict, VERDICTS)
        check_words(note)

        def plan() -> Plan[StoredVerdict]:
            now = int(self.now_s())
            about = subject or campaign
            model, client = (about.model, about.client) if about else ("", "")
            made = StoredVerdict(alert_id, value, note, actor.name, now, model, client)
            before = self._entry("verdict", alert_id, actor.tenant, StoredVerdict)
            plan = Plan(
                made,
                f"alert:{alert_id}",
                before,
                [Entry(actor.tenant, "verdict", alert_id, operator_entries.packed(made))],
            )
            if subject is not None:
                self._allow_by_verdict(plan, actor, subject, made, now)
            return plan

        return self._apply(actor, f"verdict.{verdict}", plan, StoredVerdict, once, (alert_id, verdict, note))

    def _allow_by_verdict(
        self, plan: Plan[StoredVerdict], actor: Actor, subject: Subject, made: StoredVerdict, now: int
    ) -> None:
        key = operator_entries.entry_key(subject.model, subject.client)
        listed = self._entry("allow", key, actor.tenant, AllowlistEntry)
        if made.verdict == "false_positive":
            until = now + FALSE_POSITIVE_DAYS * DAY_S
            if listed is None or (listed.until_s and listed.until_s < until):
                words = f"false positive: alert {made.alert_id}"
                sealed = self._sealed(subject, actor.tenant)
                allowed = AllowlistEntry(
                    subject.client, subject.model, until, words, actor.name, now, "verdict", sealed
                )
                plan.puts.append(Entry(actor.tenant, "allow", key, operator_entries.packed(allowed), until))
        elif listed is not None and listed.origin == "verdict":
            plan.drops.append((actor.tenant, "allow", key))

    def work_on(
        self,
        actor: Actor,
        alert_id: str,
        *,
        assignee: str | None = None,
        state: CaseState | None = None,
        note: str = "",
        once: str | None = None,
    ) -> StoredCase:
        """Assign the case of a finding, close it or open it again. assignee: "" for nobody; None and state None: as before."""
        check_words(note)
        if assignee:
            check_name("assignee", assignee)
        if assignee is None and state is None:
            raise WrongUse("give an assignee, a state, or both")

        def plan() -> Plan[StoredCase]:
            now = int(self.now_s())
            before = self._entry("case", alert_id, actor.tenant, StoredCase)
            known = before or StoredCase(alert_id, "", "open", "", "", 0)
            made = replace(
                known, assignee=known.assignee if assignee is None else assignee, state=state or known.state,
                note=note or known.note, actor=actor.name, at_s=now,
            )  # fmt: skip
            put = Entry(actor.tenant, "case", alert_id, operator_entries.packed(made), now + NOTE_KEPT_S)
            return Plan(made, f"alert:{alert_id}", before, [put])

        action = "case.assign" if state is None else f"case.{'close' if state == 'closed' else 'open'}"
        return self._apply(actor, action, plan, StoredCase, once, (alert_id, assignee, state, note))

    def note(self, actor: Actor, key: ClientKey, text: str, *, once: str | None = None) -> StoredNote:
        """Leave words about a client; kept for a year. Raises Conflict when there are too many."""
        if not text.strip():
            raise WrongUse("text: it is empty")
        check_words(text)

        def plan() -> Plan[StoredNote]:
            now = int(self.now_s())
            above = f"{key.model}|{key.client}|"
            mine = [e for e in self._all("note", actor.tenant) if e.key.startswith(above)]
            if len(mine) >= MOST_NOTES:
                raise Conflict(f"{MOST_NOTES} notes about this client exist already; no more can be added")
            sealed = sealing.sealed(text, self.secrets, actor.tenant)
            made = StoredNote(entropy.token_hex(8), key.client, key.model, sealed, actor.name, now)
            put = Entry(actor.tenant, "note", above + made.id, operator_entries.packed(made), now + NOTE_KEPT_S)
            return Plan(made, f"client:{key.client} model:{key.model}", puts=[put])

        return self._apply(actor, "note.add", plan, StoredNote, once, (key, text))

    # ------------------------------------------------------------------------------------------ keys and the rest

    def create_key(
        self, actor: Actor, name: str, role: str, *, ttl_s: int = 365 * DAY_S, once: str | None = None
    ) -> tuple[ApiKey, str | None]:
        """A new API key and its text, which is never shown again (None when an idempotency key brought the first answer back).

        At most two keys of a name live at once: the old and the new one of a rotation. Raises Conflict.
        """
        known_role = next((one for one in ROLES if one == role), None)
        if known_role is None:
            raise WrongUse(f"role: {', '.join(ROLES)}")
        check_name("name", name)
        if not 1 <= ttl_s <= LONGEST_KEY_S:
            raise WrongUse("ttl_s: it must be 1 s to ten years")
        shown: list[str] = []

        def plan() -> Plan[ApiKey]:
            now = int(self.now_s())
            live = [k for k in self._keys(actor.tenant) if k.name == name]
            if len(live) >= LIVE_KEYS:
                raise Conflict(f"{LIVE_KEYS} keys of this name are valid; revoke one of them first")
            prefix, text = new_key(self.env)
            shown[:] = [text]
            made = ApiKey(prefix, key_digest(self.secrets, text), name, known_role, now, now + ttl_s, actor.name)
            put = Entry(actor.tenant, "key", prefix, operator_entries.packed(made), made.expires_s)
            return Plan(made, f"key:{prefix} name:{name} role:{role}", puts=[put])

        made = self._apply(actor, "key.create", plan, ApiKey, once, (name, role, ttl_s))
        fresh = shown and shown[0].split("_")[2] == made.prefix
        return made, shown[0] if fresh else None

    def revoke_key(self, actor: Actor, prefix: str, *, lost: ApiKey | None = None, once: str | None = None) -> ApiKey:
        """End a key at once. Raises Missing.

        lost: what is known of the key when the store has lost it; services that remember it refuse it from then on.
        """

        def plan() -> Plan[ApiKey]:
            before = self._entry("key", prefix, actor.tenant, ApiKey) or lost
            if before is None:
                raise Missing("the store holds no valid key with this prefix")
            mark = Revoked(actor.name, int(self.now_s()))
            put = Entry(actor.tenant, "revoked", prefix, operator_entries.packed(mark), before.expires_s)
            drops = [(actor.tenant, "key", prefix)]
            return Plan(before, f"key:{prefix} name:{before.name}", before, [put], drops, ends=True)

        return self._apply(actor, "key.revoke", plan, ApiKey, once, (prefix,))

    def end_session(self, actor: Actor, ticket: str, ends_s: int) -> None:
        """Remember that somebody signed out, until the session would have ended. ticket: hash of the session's own."""
        put = Entry(
            actor.tenant, "session", ticket, operator_entries.packed(Ended(actor.name, int(self.now_s()))), ends_s
        )
        self._apply(actor, "dashboard.logout", lambda: Plan(None, "session", puts=[put]), type(None), None, ())

    def keys(self, tenant: str) -> tuple[ApiKey, ...]:
        """Live keys of a tenant, by name and age."""
        return tuple(sorted(self._keys(tenant), key=lambda k: (k.name, k.created_s, k.prefix)))

    def reset_breaker(self, actor: Actor, reason: str = "", *, once: str | None = None) -> Reset:
        """Close the tenant's breakers by hand, detect's and the gateways': enforcement begins anew."""
        check_words(reason)

        def plan() -> Plan[Reset]:
            kind, entries = breaker_entries.KIND, self.store.operator_entries(breaker_entries.KIND, actor.tenant)[1]
            opened_s = breaker_entries.times_of(entries, actor.tenant).opened_s
            now = max(int(self.now_s()), opened_s)  # whatever the clocks say, it is later than what it closes
            made = Reset(actor.name, now, reason)
            put = Entry(actor.tenant, kind, breaker_entries.RESET, operator_entries.packed(made))
            drops = [(actor.tenant, kind, entry.key) for entry in entries if entry.key != breaker_entries.RESET]
            return Plan(made, "breaker", puts=[put], drops=drops)

        return self._apply(actor, "breaker.reset", plan, Reset, once, (reason,))

    def rule_on_schema(
        self, actor: Actor, model: str, column: str, ruling: SchemaRuling, reason: str = "", *, once: str | None = None
    ) -> SchemaHold:
        """Rule on a held column: *accepted*, the change is ours; *dismissed*, its misfits are evidence. Raises Missing."""
        check_words(reason)
        key = schema_holds.hold_key(model, column)

        def plan() -> Plan[SchemaHold]:
            before = self._entry(schema_holds.KIND, key, actor.tenant, SchemaHold)
            if before is None:
                raise Missing("this column of this model has no schema hold")
            now = int(self.now_s())
            made = replace(before, ruling=ruling, actor=actor.name, at_s=now)
            until_s = now + schema_holds.DISMISSED_S if ruling == "dismissed" else 0
            put = Entry(actor.tenant, schema_holds.KIND, key, operator_entries.packed(made), until_s)
            return Plan(made, f"model:{model} column:{column}", before, [put])

        return self._apply(actor, f"schema.{ruling}", plan, SchemaHold, once, (model, column, ruling))

    def record(self, actor: Actor, action: str, about: str) -> None:
        """An audit row without a change: for what others do (erase, restore, sign in)."""
        self._apply(actor, action, lambda: Plan(None, about), type(None), None, ())

    def chain_evidence(self, actor: Actor, key: ClientKey, make: Callable[[int, str], tuple[bytes, str]]) -> bytes:
        """Make the tenant's next evidence bundle and record it; two that are made at once follow each other.

        make  (number, digest of the bundle before, empty for the first) → (the bundle, its digest); called again after a race
        """
        made: list[bytes] = []

        def plan() -> Plan[LastBundle]:
            before = self._entry("evidence", "last", actor.tenant, LastBundle)
            number, previous = (before.number + 1, before.digest) if before else (1, "")
            bundle, digest = make(number, previous)
            made[:] = [bundle]
            last = LastBundle(number, digest)
            put = Entry(actor.tenant, "evidence", "last", operator_entries.packed(last))
            about = (
                f"client:{key.client} model:{key.model} number:{number} digest:{digest} previous:{previous or 'none'}"
            )
            return Plan(last, about, before, [put])

        self._apply(actor, "evidence.make", plan, LastBundle, None, (key,))
        return made[0]

    def drop(self, actor: Actor, action: str, about: str, find: Callable[[], Forgotten]) -> int:
        """Drop or rewrite the entries that `find` names, for good; the answer is how many (erasing a client)."""

        def plan() -> Plan[int]:
            mine = find()
            drops = [(e.tenant, e.kind, e.key) for e in mine.drops]
            return Plan(len(mine), about, puts=list(mine.puts), drops=drops, forget=bool(len(mine)))

        return self._apply(actor, action, plan, int, None, ())

    def _keys(self, tenant: str) -> list[ApiKey]:
        return [operator_entries.unpacked(e, ApiKey) for e in self._all("key", tenant)]


def assignee_of(name: str) -> str:
    """The name of who acts as an assignee may be called: other characters become ``_``.

    >>> assignee_of("maria [key:ab12]")
    'maria'
    """
    return name_of(person(name))
