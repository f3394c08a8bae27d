"""The audit log, row by row, of the caller's tenant.

Rules: rows of other tenants are read past and never shown. One request reads at most `MOST_AUDIT_ROWS` rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query

from consumers.http.api.context import Api
from consumers.http.api.parameters import Limit
from consumers.http.routes import Caller, route
from consumers.operators.audit import stored_rows

MOST_AUDIT_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of the audit log. before, after: hashes of what was there and of what is."""

    n: int
    ts: str
    actor: str
    role: str
    ip: str
    action: str
    object: str
    before: str
    after: str
    request_id: str
    hash: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Rows of one's own tenant; `next` is to be given as `after`."""

    items: tuple[AuditRow, ...]
    next: int | None


def audit_routes(app: FastAPI, api: Api) -> None:
    @route(app, "GET", "/v1/audit")
    def audit(who: Caller, after: Annotated[int, Query(ge=0, le=2**53)] = 0, limit: Limit = 100) -> AuditPage:
        items: list[AuditRow] = []
        for read, (number, line) in enumerate(stored_rows(api.operations.store, after), 1):
            row: dict[str, Any] = msgspec.json.decode(line)
            if row["tenant"] == who.tenant:
                items.append(AuditRow(**{name: row[name] for name in AuditRow.__dataclass_fields__}))
            if len(items) == limit or read == MOST_AUDIT_ROWS:
                return AuditPage(tuple(items), number)
        return AuditPage(tuple(items), None)
