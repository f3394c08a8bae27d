"""Every role on every route, every route with a foreign tenant's credential; the table of access is what is served."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi import FastAPI
from records.test_indicators import indicator
from support.seeded_api import CAMPAIGN, FOREIGN, MODEL, OURS, SECRETS, World, alert_id, client_hash, world

from consumers.http.access import BY_ROUTE, TABLE, Access
from consumers.http.api.application import ELSEWHERE
from consumers.http.routes import complete, route
from consumers.operators.audited_write import Actor
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.operators.indicators import IndicatorImports
from consumers.operators.operate import Operations
from consumers.operators.references import References
from consumers.records.operator_entries import ROLES, packed
from consumers.records.schema_holds import KIND, SchemaHold, hold_key
from consumers.store import Entry, Operation

_numbers = itertools.count()
QUERY = b'{"timestamp":"2026-03-02T09:00:00Z","client_id":"a","model_id":"m","features":[1],"prediction":{"label":1}}'


@dataclass(frozen=True)
class Sample:
    """A call that succeeds for who may: path, and what goes with it. before: what must be there first."""

    path: str
    more: Callable[[World], dict[str, Any]] = lambda world: {}
    before: Callable[[World, str], str] = lambda world, path: path


def _json(body: dict[str, Any]) -> Callable[[World], dict[str, Any]]:
    return lambda world: {"json": body}


def _fresh_key(world: World, path: str) -> str:
    made, _ = world.operations.create_key(Actor("setup", "admin", OURS), f"k{next(_numbers)}", "viewer")
    return path.format(prefix=made.prefix)


def _refused(world: World, path: str) -> str:
    return path.format(reference=References(SECRETS).of(OURS, "block", client_hash("thief"), 0.0))


def _listed(world: World, path: str) -> str:
    world.operations.allow(Actor("setup", "admin", OURS), world.operations.subject(OURS, "*", "thief"))
    return path


def _held(world: World, path: str) -> str:
    hold = SchemaHold(MODEL, "age", "00" * 8, 40, 400, 20_000, 0)
    put = Entry(OURS, KIND, hold_key(MODEL, "age"), packed(hold))
    world.store.operate(world.store.operator_entries(KIND)[0], Operation(puts=[put]))
    return path


def _imported(world: World, path: str) -> str:
    imports = IndicatorImports(world.store, SECRETS)
    ends = {"valid_until_s": int(imports.now_s()) + 600}
    imports.take(Actor("setup", "admin", OURS), "scraper", [indicator("i", "ip:1", **ends)], "digest")
    return path


def _proposed(world: World, path: str) -> str:
    subject = CampaignSubject(CAMPAIGN, MODEL, (client_hash("thief"), client_hash("scraper")))
    desk = Operations(world.store, SECRETS, confirm_above=1)
    desk.decide_campaign(Actor("setup", "admin", OURS), subject, "throttle")
    return path


_CLIENT = f"/v1/models/{MODEL}/clients/{client_hash('thief')}"
SAMPLES: dict[tuple[str, str], Sample] = {
    ("GET", "/healthz"): Sample("/healthz"),
    ("GET", "/readyz"): Sample("/readyz"),
    ("GET", "/metrics"): Sample("/metrics"),
    ("GET", "/openapi.json"): Sample("/openapi.json"),
    ("GET", "/v1/decisions"): Sample("/v1/decisions"),
    ("GET", "/v1/decisions/stream"): Sample("/v1/decisions/stream?startup=true"),
    ("GET", "/v1/decisions/operator"): Sample("/v1/decisions/operator"),
    ("GET", "/v1/decisions/references/{reference}"): Sample("/v1/decisions/references/{reference}", before=_refused),
    ("GET", "/v1/decisions/campaigns"): Sample("/v1/decisions/campaigns"),
    ("POST", "/v1/decisions/confirm"): Sample(
        "/v1/decisions/confirm", _json({"campaign_id": CAMPAIGN}), before=_proposed
    ),
    ("POST", "/v1/decisions"): Sample("/v1/decisions", _json({"client_id": "thief", "state": "block"})),
    ("DELETE", "/v1/decisions"): Sample("/v1/decisions?client_id=thief"),
    ("GET", "/v1/allowlist"): Sample("/v1/allowlist"),
    ("POST", "/v1/allowlist"): Sample("/v1/allowlist", _json({"client_id": "thief"})),
    ("DELETE", "/v1/allowlist"): Sample("/v1/allowlist?client_id=thief", before=_listed),
    ("POST", "/v1/breaker/reset"): Sample("/v1/breaker/reset", _json({})),
    ("GET", "/v1/schema-holds"): Sample("/v1/schema-holds"),
    ("POST", "/v1/schema-holds"): Sample(
        "/v1/schema-holds", _json({"model_id": MODEL, "column": "age", "ruling": "accepted"}), before=_held
    ),
    ("GET", "/v1/indicators"): Sample("/v1/indicators"),
    ("DELETE", "/v1/indicators/{source}"): Sample("/v1/indicators/scraper", before=_imported),
    ("GET", "/v1/models"): Sample("/v1/models"),
    ("GET", "/v1/models/{model_id}"): Sample(f"/v1/models/{MODEL}"),
    ("GET", "/v1/models/{model_id}/clients"): Sample(f"/v1/models/{MODEL}/clients"),
    ("GET", "/v1/models/{model_id}/clients/{client}"): Sample(_CLIENT),
    ("GET", "/v1/models/{model_id}/clients/{client}/appeal"): Sample(f"{_CLIENT}/appeal"),
    ("GET", "/v1/models/{model_id}/clients/{client}/history"): Sample(f"{_CLIENT}/history"),
    ("POST", "/v1/models/{model_id}/clients/{client}/notes"): Sample(f"{_CLIENT}/notes", _json({"text": "seen before"})),
    ("GET", "/v1/alerts"): Sample("/v1/alerts"),
    ("GET", "/v1/alerts/{alert_id}"): Sample(f"/v1/alerts/{alert_id('thief')}"),
    ("POST", "/v1/alerts/{alert_id}/verdict"): Sample(f"/v1/alerts/{alert_id('thief')}/verdict", _json({"verdict": "true_positive"})),
    ("POST", "/v1/alerts/{alert_id}/case"): Sample(f"/v1/alerts/{alert_id('thief')}/case", _json({"assignee": "maria"})),
    ("GET", "/v1/precision"): Sample("/v1/precision"),
    ("GET", "/v1/campaigns"): Sample("/v1/campaigns"),
    ("GET", "/v1/campaigns/{campaign_id}"): Sample(f"/v1/campaigns/{CAMPAIGN}"),
    ("GET", "/v1/health"): Sample("/v1/health"),
    ("POST", "/v1/queries"): Sample(
        "/v1/queries", lambda world: {"content": QUERY, "headers": {"content-type": "application/x-ndjson"}}
    ),
    ("GET", "/v1/keys"): Sample("/v1/keys"),
    ("POST", "/v1/keys"): Sample("/v1/keys", lambda world: {"json": {"name": f"n{next(_numbers)}", "role": "viewer"}}),
    ("DELETE", "/v1/keys/{prefix}"): Sample("/v1/keys/{prefix}", before=_fresh_key),
    ("GET", "/v1/audit"): Sample("/v1/audit"),
}  # fmt: skip
APART = {("ANY", "/v1/authz"), ("GET", "/v1/decisions/events"), ("GET", "/v1/models/{model_id}/bound")}
"""Routes with tests of their own: one asks with another header, one never ends, and one needs a baseline (tests/readers/test_appeal.py)."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all: the samples leave nothing behind that another one minds."""
    with world(tmp_path_factory.mktemp("access")) as made:
        yield made


WHO: tuple[str | None, ...] = (None, *ROLES)


def call(world: World, row: Access, role: str | None, tenant: str = OURS) -> Any:
    sample = SAMPLES[row.method, row.path]
    path = sample.before(world, sample.path)
    return world.client(role, tenant).request(row.method, path, **sample.more(world))


def test_every_row_has_a_sample() -> None:
    assert SAMPLES.keys() | APART == BY_ROUTE.keys()
    assert len(BY_ROUTE) == len(TABLE)


@pytest.mark.parametrize(
    "row", [r for r in TABLE if (r.method, r.path) not in APART], ids=lambda r: f"{r.method} {r.path}"
)
def test_every_role_on_every_route(served: World, row: Access) -> None:
    for role in WHO:
        answer = call(served, row, role)
        if row.open or role in row.roles:
            assert 200 <= answer.status_code < 300, (role, answer.text)
        else:
            assert answer.status_code == (401 if role is None else 403), (role, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


def test_the_matrix_is_what_the_threats_ask_for() -> None:
    """Written out once by hand, so that a slip in the table is seen."""
    rows = {key: set(row.roles) for key, row in BY_ROUTE.items()}
    scores = {
        key
        for key in rows
        if key[0] == "GET" and ("/clients" in key[1] or "/alerts" in key[1] or "/campaigns" in key[1])
    }
    for key in scores:
        assert not rows[key] & {"gateway", "ingest"}, key
    changes = {key for key in rows if key[0] in ("POST", "DELETE")}
    for key in changes:
        assert "viewer" not in rows[key], key
        assert "gateway" not in rows[key], key
    assert {key for key, roles in rows.items() if "ingest" in roles} == {("POST", "/v1/queries")}
    assert {key[1] for key, roles in rows.items() if roles == {"admin"}} == {
        "/v1/keys",
        "/v1/keys/{prefix}",
        "/v1/audit",
    }
    assert {key[1] for key, roles in rows.items() if not roles} == {"/healthz", "/readyz", "/metrics", "/openapi.json"}
    assert rows["POST", "/v1/decisions"] == {"operator", "admin"}


@pytest.mark.parametrize("role", WHO)
def test_who_may_ask_for_gateways(served: World, role: str | None) -> None:
    headers = {"x-api-key": "thief"} | ({} if role is None else {"x-querywarden-key": served.keys[OURS, role]})
    answer = served.client(None).get("/v1/authz/some/path", headers=headers)
    assert answer.status_code == (200 if role == "gateway" else 401)


@pytest.mark.parametrize("role", WHO)
def test_who_may_follow_events(served: World, role: str | None) -> None:
    """The stream never ends, so nothing but who is refused is looked at here; tests/gateways follow it."""
    if role is not None and role in BY_ROUTE["GET", "/v1/decisions/events"].roles:
        return
    assert served.client(role).get("/v1/decisions/events").status_code == (401 if role is None else 403)


FOREIGN_ROWS = [
    row
    for row in TABLE
    if (row.method, row.path) not in APART and not row.open and ("{" in row.path or row.method == "DELETE")
]


@pytest.mark.parametrize("row", FOREIGN_ROWS, ids=lambda r: f"{r.method} {r.path}")
def test_what_is_another_tenants_is_not_there(served: World, row: Access) -> None:
    if (row.method, row.path) == ("DELETE", "/v1/decisions"):
        answer = served.client("admin", FOREIGN).delete(f"/v1/decisions?client_key={client_hash('thief')}")
    else:
        for role in row.roles:
            assert call(served, row, role, FOREIGN).status_code == 404
        answer = call(served, row, row.roles[-1], FOREIGN)
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:querywarden:not-found"


@pytest.mark.parametrize("body", [{"state": "block"}, {}], ids=["decisions", "allowlist"])
def test_a_foreign_client_cannot_be_named_by_its_hash(served: World, body: dict[str, str]) -> None:
    path = "/v1/decisions" if body else "/v1/allowlist"
    ours = {"client_key": client_hash("thief"), **body}
    assert served.client("operator", FOREIGN).post(path, json=ours).status_code == 404
    assert served.client("operator", OURS).post(path, json=ours).status_code == 201
    assert served.client("operator", FOREIGN).post(path, json={**ours, "model_id": MODEL}).status_code == 404


LISTS = [
    row
    for row in TABLE
    if row.method == "GET" and "{" not in row.path and not row.open and (row.method, row.path) not in APART
]


@pytest.mark.parametrize("row", LISTS, ids=lambda r: r.path)
def test_lists_hold_nothing_of_another_tenant(served: World, row: Access) -> None:
    actor = Actor("secret-operator", "admin", OURS)
    subject = served.operations.subject(OURS, "*", "scraper")
    served.operations.decide(actor, subject, "block", reason="secret-reason")
    served.operations.allow(actor, served.operations.subject(OURS, "*", "clerk"))
    _imported(served, "")
    served.refresher.turn()
    answer = served.client("admin", FOREIGN).get(SAMPLES[row.method, row.path].path)
    assert answer.status_code == 200
    for secret in ("secret-", client_hash("scraper"), client_hash("clerk"), alert_id("thief"), '"thief"'):
        assert secret not in answer.text
    ours = served.client("admin", OURS).get(SAMPLES[row.method, row.path].path)
    known = ("scraper", client_hash("scraper"), "clerk")
    assert row.path in (
        "/v1/models",
        "/v1/health",
        "/v1/keys",
        "/v1/schema-holds",
        "/v1/precision",
        "/v1/decisions/campaigns",
    ) or any(word in ours.text for word in known)


def test_a_route_without_a_row_stops_the_start() -> None:
    app = FastAPI(docs_url=None, redoc_url=None)
    for row in TABLE:
        if (row.method, row.path) not in ELSEWHERE and row.path != "/openapi.json":
            route(app, row.method, row.path)(lambda: None)
    complete(app, ELSEWHERE)
    with pytest.raises(ValueError, match="without a route"):
        complete(app, frozenset())
    app.get("/v1/forgotten")(lambda: None)
    with pytest.raises(ValueError, match="/v1/forgotten"):
        complete(app, ELSEWHERE)
    with pytest.raises(KeyError):
        route(app, "PUT", "/v1/decisions")


def test_who_may_not_ask_learns_nothing_from_a_wrong_request(served: World) -> None:
    for role, status in ((None, 401), ("viewer", 403), ("operator", 422)):
        assert served.client(role).post("/v1/decisions", json={"nonsense": 1}).status_code == status
    assert (
        served.client(None)
        .post("/v1/decisions", content=b"{", headers={"content-type": "application/json"})
        .status_code
        == 401
    )


def test_a_reference_is_looked_up_in_ones_own_tenant(served: World) -> None:
    references = References(SECRETS)
    ours = references.of(OURS, "throttle", client_hash("scraper"), 1_764_374_399.0)
    nobody = references.of(OURS, "block", "anonymous", 1_764_374_399.0)
    found = served.client("analyst").get(f"/v1/decisions/references/{ours}").json()
    assert (found["client_id"], found["day"], found["answer"], found["cause"]) == (
        "scraper",
        "2025-11-28",
        "throttle",
        "",
    )
    assert [(m["model_id"], m["state"]) for m in found["models"]] == [(MODEL, "throttle")]
    found = served.client("operator").get(f"/v1/decisions/references/{nobody}").json()
    assert (found["client_id"], found["cause"]) == (None, "anonymous")
    for tenant, reference in ((FOREIGN, ours), (FOREIGN, nobody), (OURS, "nonsense"), (OURS, f"{ours[:-1]}0")):
        answer = served.client("analyst", tenant).get(f"/v1/decisions/references/{reference}")
        assert answer.status_code == (200 if reference == ours and tenant == OURS else 404), (tenant, reference)
