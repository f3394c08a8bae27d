"""Who may do what: one row for every method and path of the service.

Rules:

* Deny by default. A route without a row stops the service at its start; a row without a role is open to everybody, and there are few.
* Routes, their documentation (docs/api.md, OpenAPI) and the test of every role on every route all come from this table.
* No role implies another, except that a person's roles each include the ones before: viewer < analyst < operator < admin. Machines'
  roles stand alone: a gateway sees decisions and no score, whoever writes queries reads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

VIEWERS = ("viewer", "analyst", "operator", "admin")
ANALYSTS = VIEWERS[1:]
OPERATORS = VIEWERS[2:]
ADMINS = VIEWERS[3:]
BOUNCERS = ("gateway", *VIEWERS)
WRITERS = ("ingest",)
EVERYBODY: tuple[str, ...] = ()
MOST_BYTES, MOST_QUERY_BYTES = 1 << 16, 1 << 20


@dataclass(frozen=True, slots=True)
class Access:
    """A method and path, the roles that may use it (none: open to everybody), and one line of what it does.

    most_bytes: how large a body may be that a known caller sends.
    """

    method: str
    path: str
    roles: tuple[str, ...]
    text: str
    most_bytes: int = MOST_BYTES

    @property
    def open(self) -> bool:
        return not self.roles


_CLIENT = "/v1/models/{model_id}/clients/{client}"

TABLE: tuple[Access, ...] = (
    Access("GET", "/healthz", EVERYBODY, "the process lives"),
    Access("GET", "/readyz", EVERYBODY, "the store answers and gateways can be answered from memory"),
    Access("GET", "/metrics", EVERYBODY, "Prometheus metrics; never a client in a label"),
    Access("GET", "/openapi.json", EVERYBODY, "this API, OpenAPI 3.1"),
    Access("ANY", "/v1/authz", ("gateway",), "may this request pass? (also any path below)"),
    Access("GET", "/v1/decisions", BOUNCERS, "restrictions in force, in CrowdSec's shape"),
    Access("GET", "/v1/decisions/stream", BOUNCERS, "what changed since a cursor, in CrowdSec's shape"),
    Access("GET", "/v1/decisions/events", BOUNCERS, "the same as server-sent events"),
    Access("GET", "/v1/decisions/operator", VIEWERS, "operators' decisions that hold, dry runs too"),
    Access("GET", "/v1/decisions/references/{reference}", ANALYSTS, "who was refused, by the reference of a refusal"),
    Access("POST", "/v1/decisions", OPERATORS, "block, throttle or clear a client for a while"),
    Access("DELETE", "/v1/decisions", OPERATORS, "release a client, or take an operator's decision back"),
    Access("GET", "/v1/allowlist", VIEWERS, "clients that are never throttled or blocked"),
    Access("POST", "/v1/allowlist", OPERATORS, "put a client on the allowlist"),
    Access("DELETE", "/v1/allowlist", OPERATORS, "take a client off the allowlist"),
    Access("POST", "/v1/breaker/reset", OPERATORS, "enforce again after a flag storm"),
    Access("GET", "/v1/schema-holds", VIEWERS, "columns whose misfits are held back as evidence"),
    Access("POST", "/v1/schema-holds", OPERATORS, "rule on such a column: accepted or dismissed"),
    Access("GET", "/v1/models", VIEWERS, "models, and their clients by state"),
    Access("GET", "/v1/models/{model_id}", VIEWERS, "one model"),
    Access("GET", "/v1/models/{model_id}/clients", VIEWERS, "clients of a model, most suspicious first"),
    Access("GET", _CLIENT, VIEWERS, "everything known of one client: by id or by client_key"),
    Access("GET", f"{_CLIENT}/history", VIEWERS, "how its suspicion rose and its state changed"),
    Access("POST", f"{_CLIENT}/notes", ANALYSTS, "leave words about a client"),
    Access("GET", "/v1/alerts", VIEWERS, "alerts stored in the last 30 days, newest first"),
    Access("GET", "/v1/alerts/{alert_id}", VIEWERS, "one finding as last sent"),
    Access("POST", "/v1/alerts/{alert_id}/verdict", ANALYSTS, "true or false positive"),
    Access("GET", "/v1/campaigns", VIEWERS, "accounts that act as one"),
    Access("GET", "/v1/campaigns/{campaign_id}", VIEWERS, "one campaign with its members"),
    Access("GET", "/v1/health", VIEWERS, "what the store holds, and whether it answers"),
    Access("POST", "/v1/queries", WRITERS, "write prediction queries to the log", MOST_QUERY_BYTES),
    Access("GET", "/v1/keys", ADMINS, "live API keys, without their text"),
    Access("POST", "/v1/keys", ADMINS, "make an API key; its text is shown once"),
    Access("DELETE", "/v1/keys/{prefix}", ADMINS, "revoke an API key"),
    Access("GET", "/v1/audit", ADMINS, "who did what, oldest first"),
)

BY_ROUTE: Mapping[tuple[str, str], Access] = {(row.method, row.path): row for row in TABLE}

LARGE_BODIES: Mapping[str, int] = {row.path: row.most_bytes for row in TABLE if row.most_bytes != MOST_BYTES}
"""Path → how large a body may be there; elsewhere `MOST_BYTES`."""


def methods_by_path() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in TABLE:
        found.setdefault(row.path, []).append(row.method)
    return found
