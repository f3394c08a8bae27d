"""The operator cell in Redis: operators' entries and their audit rows.

Rules: the keys are meta (rev: a random step higher with every change, rows: number of audit rows, gone: last revision whose changes are
gone), ``entries:<kind>`` (``tenant:key`` → ``expiry:value``), kinds, expiring, revisions (the newest), changes (entries numbered
``<revision>-<n>``), audit (numbered ``<n>-0``).
"""

from __future__ import annotations

import time

from consumers.store import Entry, Operation
from consumers.store.layout import (
    OPERATOR_CHANGES,
    OPERATORS,
    check_limit,
    check_operation,
    operator_prefix,
    operator_step,
    part_text,
)
from consumers.store.redis_server import RedisServer
from consumers.store.redis_values import change, entry, pairs
from consumers.store.scripts import translated


class OperatorCell(RedisServer):
    def operate(self, revision: int, operation: Operation) -> int:
        check_operation(revision, operation)
        arguments: list[str | bytes | int] = [
            revision,
            operator_step(),
            int(time.time()),
            0 if operation.forget else OPERATOR_CHANGES,
        ]
        arguments += [len(operation.puts), len(operation.drops), len(operation.audit)]
        for put in operation.puts:
            arguments += (part_text(put.tenant), part_text(put.kind), part_text(put.key), put.value, put.expires_s)
        for names in operation.drops:
            arguments += map(part_text, names)
        arguments += operation.audit
        (after,) = self._keep("operate", f"{operator_prefix()}meta", arguments, OPERATORS)
        return int(after)

    def operator_entries(self, kind: str, tenant: str | None = None) -> tuple[int, list[Entry]]:
        prefix = operator_prefix()
        # The revision first: it may be older than what follows, never newer.
        revision, stored = self._at_once(
            [("hget", f"{prefix}meta", "rev"), ("hgetall", f"{prefix}entries:{part_text(kind)}")]
        )
        now_s = time.time()
        found = [entry(kind, name, content) for name, content in stored.items()]
        living = [e for e in found if (not e.expires_s or e.expires_s > now_s) and tenant in (None, e.tenant)]
        return int(revision or 0), sorted(living, key=lambda e: (e.tenant, e.key))

    def operator_changes(self, after: int, limit: int) -> tuple[int, list[Entry]] | None:
        check_limit(limit)
        reached, *found = self._scripts.run("operator_changes", f"{operator_prefix()}meta", [after, limit])
        return None if reached is None else (int(reached), [change(dict(pairs(fields))) for _, fields in found])

    def audit_rows(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        with translated():
            found = self._client.xrange(f"{operator_prefix()}audit", f"{after + 1}-0", count=limit) if limit > 0 else []
        return [(int(number.partition(b"-")[0]), fields[b"row"]) for number, fields in found]
