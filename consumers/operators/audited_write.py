"""One audited step on the operator cell: what an operation changes, its audit row, the signed head and its answer, written together.

Rules:
* An operation is one atomic step: its entries, its audit row, the signed head, and the answer to its idempotency key. If another process
  changed the operator cell in between, the operation is planned again on the new state.
* An idempotency key holds for a day, for one credential and one operation. The same key with another request is a `Conflict`.
* The answer is what was stored.

Errors: `Missing` and `Conflict` for the stored state, `Stale` if another operator decided in between, `Unavailable` if the store does not
answer (the outcome is unknown: send the request again with the same idempotency key).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import msgspec

from consumers.errors import Conflict, CorruptState, Missing, Refused, Stale, Unavailable
from consumers.operators import audit, kept
from consumers.records import operator_entries, sealing
from consumers.records.operator_cell import written
from consumers.records.operator_entries import Answered, Role
from consumers.secrets import Secrets
from consumers.store import Entry, Operation, Store
from consumers.times import rfc3339

log = logging.getLogger("querywarden.operate")

DAY_S = 86_400
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. name: of the credential, never a secret; ip, request_id: for the audit log.

    role: *process* for what a process does by itself, empty for a visitor without a credential.
    """

    name: str
    role: Role | Literal["process", ""]
    tenant: str
    ip: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom an operation is about: a client by hash, on one model or on all (``*``), with its id where that is known."""

    client: str
    model: str
    client_id: str = ""


@dataclass(slots=True)
class Plan(Generic[T]):
    """One operation: what it changes, what it says of itself, what it answers. ends: what was there before is gone, its mark aside."""

    answer: T
    about: str
    before: object = None
    puts: list[Entry] = field(default_factory=list)
    drops: list[tuple[str, str, str]] = field(default_factory=list)
    forget: bool = False
    ends: bool = False


@dataclass(slots=True)
class AuditedWriter:
    """Writes operations to one store.

    mirror     the copy of the audit log that this process keeps, None for none
    """

    store: Store
    secrets: Secrets
    now_s: Callable[[], float] = time.time
    mirror: audit.Mirror | None = None
    sleep: Callable[[float], None] = time.sleep
    seal: audit.Seal = field(init=False)

    def __post_init__(self) -> None:
        self.seal = audit.Seal(self.secrets)

    def _remove(
        self,
        actor: Actor,
        action: str,
        subject: Subject,
        kind: str,
        as_type: type[operator_entries.Value],
        missing: str,
        once: str | None,
        seen: str | None,
    ) -> operator_entries.Value:
        """Drop what stands for a client and model under a kind of entry; it is returned. Raises Missing, Stale."""

        def plan() -> Plan[operator_entries.Value]:
            self._unchanged(actor.tenant, subject, seen)
            key = operator_entries.entry_key(subject.model, subject.client)
            before = self._entry(kind, key, actor.tenant, as_type)
            if before is None:
                raise Missing(missing)
            about = f"client:{subject.client} model:{subject.model}"
            return Plan(before, about, before, drops=[(actor.tenant, kind, key)])

        return self._apply(actor, action, plan, as_type, once, (subject,))

    def _apply(
        self, actor: Actor, action: str, plan: Callable[[], Plan[T]], kind: type[T], once: str | None, asked: object
    ) -> T:
        digest = audit.fingerprint([action, asked])
        answer_key = audit.fingerprint([actor.name, actor.role, once]) if once else ""

        def attempt() -> tuple[int, Operation | None, T]:
            revision, head = audit.stored_head(self.store)
            if answer_key and (before := self._answered(actor.tenant, answer_key, digest)) is not None:
                return revision, None, msgspec.json.decode(before.body, type=kind)
            planned = plan()
            operation = self._operation(actor, action, planned, head)
            if answer_key:
                answered = Answered(digest, msgspec.json.encode(planned.answer).decode())
                ends = int(self.now_s()) + DAY_S
                operation.puts.append(
                    Entry(actor.tenant, "idempotency", answer_key, operator_entries.packed(answered), ends)
                )
            return revision, operation, planned.answer

        def pause(tried: int) -> None:
            self.sleep(random.uniform(0, 0.002 * (tried + 1)))  # noqa: S311 — spreads retries, hides nothing

        answer = written(self.store, attempt, pause=pause)
        self._copy()
        return answer

    def _operation(self, actor: Actor, action: str, planned: Plan[T], head: audit.Head | None) -> Operation:
        now = self.now_s()
        n, previous = (head.n, head.hash) if head else (0, audit.GENESIS)
        if head is not None and not self.seal.holds(head):
            log.error("the head of the audit log carries a wrong signature; run: querywarden audit verify")
        row: Mapping[str, Any] = {
            "n": n + 1,
            "ts": rfc3339(int(now * 1000)),
            "tenant": actor.tenant,
            "actor": actor.name,
            "role": actor.role,
            "ip": actor.ip,
            "action": action,
            "object": planned.about,
            "before": audit.fingerprint(planned.before),
            "after": audit.fingerprint(planned.answer if planned.puts and not planned.ends else None),
            "request_id": actor.request_id,
            "prev": previous,
            "wrote": kept.wrote(planned.puts, planned.drops),
        }
        line, digest = audit.chained(previous, row)
        puts = [*planned.puts, audit.packed_head(self.seal.head(n + 1, digest, int(now)))]
        return Operation(puts=puts, drops=list(planned.drops), audit=[line], forget=planned.forget)

    def _copy(self) -> None:
        if self.mirror is not None:
            try:
                self.mirror.catch_up(self.store, self.seal)
            except (Unavailable, Refused, CorruptState) as error:
                log.error("the copy of the audit log is behind", extra={"why": str(error)})

    def revision(self, tenant: str, subject: Subject) -> str:
        """Of what people decided and allowlisted for a client: changes whenever they do."""
        return operator_entries.Revisions(self.store, tenant)[subject.client]

    def _unchanged(self, tenant: str, subject: Subject, seen: str | None) -> None:
        if seen is not None and self.revision(tenant, subject) != seen:
            raise Stale("somebody decided about this client in the meantime; read its state again")

    def _answered(self, tenant: str, key: str, digest: str) -> Answered | None:
        before = self._entry("idempotency", key, tenant, Answered)
        if before is not None and before.request != digest:
            raise Conflict("this idempotency key was used for another request")
        return before

    def _all(self, kind: str, tenant: str) -> list[Entry]:
        now = self.now_s()
        return [e for e in self.store.operator_entries(kind, tenant)[1] if not e.expires_s or e.expires_s > now]

    def _entry(
        self, kind: str, key: str, tenant: str, as_type: type[operator_entries.Value]
    ) -> operator_entries.Value | None:
        return next((operator_entries.unpacked(e, as_type) for e in self._all(kind, tenant) if e.key == key), None)

    def _of_client(self, kind: str, client: str, tenant: str) -> list[str]:
        return [e.key for e in self._all(kind, tenant) if e.key.rpartition("|")[2] == client]

    def _sealed(self, subject: Subject, tenant: str) -> str:
        return sealing.sealed(subject.client_id, self.secrets, tenant) if subject.client_id else ""
