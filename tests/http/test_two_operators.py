"""Two operators who decide about one client: nobody decides on what is over (ETag, If-Match), and a dry run ends no decision."""

from __future__ import annotations

from typing import Any

import pytest
from support.seeded_api import CAMPAIGN, MODEL, OURS, World, alert_of, client_hash, decided, keep

from consumers.operators.audit import stored_rows
from consumers.operators.views import views_of
from consumers.records.decision import campaign_key
from consumers.records.operator_entries import StoredVerdict, unpacked

THIEF = {"model_id": MODEL, "client_id": "thief"}
PAGE = f"/v1/models/{MODEL}/clients/thief"
BLOCK = THIEF | {"state": "block", "ttl_s": 600}


def tag_of(served: World) -> str:
    return str(served.client("viewer").get(PAGE).headers["etag"])


CHANGES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("POST", "/v1/decisions", THIEF | {"state": "throttle"}, {}),
    ("DELETE", "/v1/decisions", {}, THIEF),
    ("DELETE", "/v1/decisions", {}, THIEF | {"withdraw": True}),
    ("POST", "/v1/allowlist", THIEF | {"model_id": "*"}, {}),
    ("DELETE", "/v1/allowlist", {}, THIEF),
]


@pytest.mark.parametrize(("method", "path", "body", "query"), CHANGES, ids=lambda v: str(v)[:40])
def test_who_decides_on_what_is_over_is_told_and_nothing_happens(
    served: World, method: str, path: str, body: dict[str, Any], query: dict[str, Any]
) -> None:
    tab = served.client("operator")
    assert tab.post("/v1/allowlist", json=THIEF | {"reason": "so that there is one"}).status_code == 201
    old = tag_of(served)
    other = tab.post("/v1/decisions", json=BLOCK, headers={"If-Match": old})
    assert other.status_code == 201
    assert other.headers["etag"] == tag_of(served) != old
    before = served.store.operator_entries("decision", OURS), served.store.operator_entries("allow", OURS)
    how: dict[str, Any] = {"params": query} if method == "DELETE" else {"json": body}
    late = tab.request(method, path, headers={"If-Match": old}, **how)
    assert (late.status_code, late.json()["type"]) == (412, "urn:querywarden:changed")
    assert before == (served.store.operator_entries("decision", OURS), served.store.operator_entries("allow", OURS))
    again = tab.request(method, path, headers={"If-Match": tag_of(served)}, **how)
    assert again.status_code in (200, 201)
    assert again.headers["etag"] == tag_of(served)


def test_the_tag_is_of_one_client_and_of_what_people_said(served: World) -> None:
    operator, old = served.client("operator"), tag_of(served)
    operator.post("/v1/decisions", json=BLOCK | {"client_id": "scraper"})
    assert tag_of(served) == old, "another client"
    keep(served.store, OURS, [decided("thief", 1e-7, "block", queries=99)])
    assert tag_of(served) == old, "detection is nobody's decision"
    operator.post("/v1/decisions", json=BLOCK | {"model_id": "*"})
    assert tag_of(served) != old, "a decision on every model is about this one, too"


def test_a_repeated_request_gets_its_first_answer_though_the_tag_is_over(served: World) -> None:
    operator = served.client("operator")
    headers = {"If-Match": tag_of(served), "Idempotency-Key": "once"}
    answers = [operator.post("/v1/decisions", json=BLOCK, headers=headers) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize("header", ["*", "thief", f'W/"{"0" * 32}"', '"0"'])
def test_a_tag_that_is_none_is_refused(served: World, header: str) -> None:
    assert served.client("operator").post("/v1/decisions", json=BLOCK, headers={"If-Match": header}).status_code == 422


def test_a_dry_run_ends_no_decision_that_holds(served: World) -> None:
    operator = served.client("operator")
    operator.post("/v1/decisions", json=BLOCK)
    dry = THIEF | {"state": "throttle", "simulated": True}
    refused = operator.post("/v1/decisions", json=dry)
    assert refused.status_code == 409
    assert operator.get(PAGE).json()["in_force"] == "block"
    operator.delete("/v1/decisions", params=THIEF | {"withdraw": True})
    assert operator.post("/v1/decisions", json=dry).status_code == 201
    assert operator.post("/v1/decisions", json=BLOCK).status_code == 201, "a decision takes a dry run's place"


def test_a_dry_run_on_the_model_does_not_hide_a_block_on_all(served: World) -> None:
    """Gateways block; whoever looks must read so."""
    operator = served.client("operator")
    keep(served.store, OURS, [decided("thief", 0.5, "clear")])
    operator.post("/v1/decisions", json=BLOCK | {"model_id": "*"})
    operator.post("/v1/decisions", json=THIEF | {"state": "throttle", "simulated": True})
    page = operator.get(PAGE).json()
    assert (page["in_force"], page["decision"]["state"], page["decision"]["simulated"]) == ("block", "block", False)
    served.refresher.turn()
    asked = served.client("gateway").get("/v1/authz/x", headers={"X-QueryWarden-Key": served.keys[OURS, "gateway"],
                                                                  "X-Api-Key": "thief"})  # fmt: skip
    assert asked.status_code == 403


def test_the_stream_says_unchanged_without_a_body(served: World) -> None:
    bouncer = served.client("gateway")
    first = bouncer.get("/v1/decisions/stream", params={"startup": True})
    cursor, tag = first.json()["cursor"], first.headers["etag"]
    same = bouncer.get("/v1/decisions/stream", params={"since": cursor}, headers={"If-None-Match": tag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    served.client("operator").post("/v1/decisions", json=BLOCK)
    served.refresher.turn()
    news = bouncer.get("/v1/decisions/stream", params={"since": cursor}, headers={"If-None-Match": tag})
    assert [i["type"] for i in news.json()["new"]] == ["ban"]
    assert news.headers["etag"] != tag


def test_a_campaign_is_judged_and_no_account_of_it_is_allow_listed(served: World) -> None:
    whole = alert_of(decided("thief", 1e-6, "throttle"), OURS, alert_id="e" * 32) | {
        "kind": "campaign", "campaign_id": CAMPAIGN, "members": ["thief", "scraper"],
    }  # fmt: skip
    del whole["client_id"]
    row = decided(CAMPAIGN, 1e-6, "throttle", campaign_id=CAMPAIGN, members=["thief", "scraper"], alert=whole)
    served.keep_campaign(row, whole)
    answer = served.client("analyst").post(f"/v1/alerts/{'e' * 32}/verdict", json={"verdict": "false_positive"})
    assert answer.status_code == 200
    assert served.client("viewer").get(f"/v1/alerts/{'e' * 32}").json()["verdict"]["verdict"] == "false_positive"
    assert served.client("viewer").get("/v1/allowlist").json() == []
    (entry,) = served.store.operator_entries("verdict", OURS)[1]
    said = unpacked(entry, StoredVerdict)
    assert (said.model, said.client) == (MODEL, campaign_key(OURS, MODEL, CAMPAIGN).client)
    assert client_hash("thief") not in said.client


def test_who_looks_at_a_client_is_in_the_audit_log_once(served: World) -> None:
    for role in ("viewer", "viewer", "analyst"):
        assert served.client(role).get(PAGE).status_code == 200
    assert served.client("viewer").get(PAGE + "/history").status_code == 200
    assert served.client("viewer").get("/v1/models").status_code == 200
    rows = views_of(stored_rows(served.store), OURS, client_hash("thief"))
    assert [row["role"] for row in rows] == ["viewer", "analyst"]
    assert all("key:" in row["actor"] for row in rows)
