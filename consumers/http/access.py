"""Access rules: one row for every method and path of the service, with the roles that may use it.

Rules:
* Deny by default. A route without a row stops the service at its start. A row without a role is open to everybody; there are few.
* Routes, their documentation (docs/api.md, OpenAPI) and the test of every role on every route are all made from this table.
* The roles of people include each other: viewer < analyst < operator < admin. Roles of machines stand alone: a gateway sees decisions but
  no score, and the role that writes queries reads nothing.
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
    Access("GET", "/healthz", EVERYBODY, "whether the process runs"),
    Access("GET", "/readyz", EVERYBODY, "whether the process is ready: it has read API keys and restrictions"),
    Access("GET", "/metrics", EVERYBODY, "metrics for Prometheus; no label holds a client"),
    Access("GET", "/openapi.json", EVERYBODY, "description of this API, OpenAPI 3.1"),
    Access("ANY", "/v1/authz", ("gateway",), "whether a request may pass; also for every path below"),
    Access("GET", "/v1/decisions", BOUNCERS, "restrictions in force, in CrowdSec's format"),
    Access("GET", "/v1/decisions/stream", BOUNCERS, "changes since a cursor, in CrowdSec's format"),
    Access("GET", "/v1/decisions/events", BOUNCERS, "the same changes as server-sent events"),
    Access("GET", "/v1/decisions/operator", VIEWERS, "operators' decisions in force, and dry runs"),
    Access(
        "GET",
        "/v1/decisions/references/{reference}",
        ANALYSTS,
        "the client that was refused, by the reference of the refusal",
    ),
    Access(
        "GET", "/v1/decisions/campaigns", VIEWERS, "operators' decisions about campaigns, with dry runs and proposals"
    ),
    Access("POST", "/v1/decisions", OPERATORS, "block, throttle, degrade or clear a client or a campaign for a while"),
    Access(
        "POST", "/v1/decisions/confirm", OPERATORS, "confirm a decision about a campaign that another person proposed"
    ),
    Access("DELETE", "/v1/decisions", OPERATORS, "release a client or a campaign, or withdraw an operator's decision"),
    Access("GET", "/v1/allowlist", VIEWERS, "clients that are never throttled or blocked"),
    Access("POST", "/v1/allowlist", OPERATORS, "add a client to the allowlist"),
    Access("DELETE", "/v1/allowlist", OPERATORS, "remove a client from the allowlist"),
    Access("POST", "/v1/breaker/reset", OPERATORS, "close the breaker, so that restrictions are enforced again"),
    Access("GET", "/v1/schema-holds", VIEWERS, "columns with a schema hold"),
    Access("POST", "/v1/schema-holds", OPERATORS, "decide on a schema hold: accepted or dismissed"),
    Access("GET", "/v1/indicators", VIEWERS, "peers whose indicators were imported, by whom and until when"),
    Access("DELETE", "/v1/indicators/{source}", OPERATORS, "drop the indicators of a peer"),
    Access("GET", "/v1/models", VIEWERS, "models, with the number of clients in each state"),
    Access("GET", "/v1/models/{model_id}", VIEWERS, "one model"),
    Access("GET", "/v1/models/{model_id}/clients", VIEWERS, "clients of a model, most suspicious first"),
    Access(
        "GET", "/v1/models/{model_id}/bound", VIEWERS, "how many of the n most suspicious clients are honest at most"
    ),
    Access("GET", f"{_CLIENT}/appeal", ANALYSTS, "what may be told to a client that asks why it was flagged"),
    Access("GET", _CLIENT, VIEWERS, "details of one client, by id or by client_key"),
    Access("GET", f"{_CLIENT}/history", VIEWERS, "suspicion, exposure and state of a client over time"),
    Access("POST", f"{_CLIENT}/notes", ANALYSTS, "add a note about a client"),
    Access("GET", "/v1/alerts", VIEWERS, "alerts of the last 30 days, newest first"),
    Access("GET", "/v1/alerts/{alert_id}", VIEWERS, "one finding, as it was last sent"),
    Access("POST", "/v1/alerts/{alert_id}/verdict", ANALYSTS, "judge an alert: true or false positive"),
    Access("POST", "/v1/alerts/{alert_id}/case", ANALYSTS, "assign the case of a finding, close it or open it again"),
    Access("GET", "/v1/precision", VIEWERS, "how often findings were right, by model, as far as analysts judged them"),
    Access("GET", "/v1/campaigns", VIEWERS, "campaigns: linked accounts that look like one attacker"),
    Access("GET", "/v1/campaigns/{campaign_id}", VIEWERS, "one campaign with its members"),
    Access("GET", "/v1/health", VIEWERS, "state of the store and of the processes"),
    Access("POST", "/v1/queries", WRITERS, "write prediction queries to the log", MOST_QUERY_BYTES),
    Access("GET", "/v1/keys", ADMINS, "valid API keys, without their text"),
    Access("POST", "/v1/keys", ADMINS, "create an API key; its text is shown once"),
    Access("DELETE", "/v1/keys/{prefix}", ADMINS, "revoke an API key"),
    Access("GET", "/v1/audit", ADMINS, "rows of the audit log, oldest first"),
)

BY_ROUTE: Mapping[tuple[str, str], Access] = {(row.method, row.path): row for row in TABLE}

LARGE_BODIES: Mapping[str, int] = {row.path: row.most_bytes for row in TABLE if row.most_bytes != MOST_BYTES}
"""Path → how large a body may be there; elsewhere `MOST_BYTES`."""


def methods_by_path() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in TABLE:
        found.setdefault(row.path, []).append(row.method)
    return found
