"""A campaign is blocked over the API: gateways refuse its accounts, one answer takes it back, and a second person confirms many."""

from __future__ import annotations

import time

import pytest
from support.seeded_api import CAMPAIGN, FOREIGN, MODEL, OURS, World, client_hash

from consumers.enforcement.restrictions import BLOCK as BLOCKED

BLOCK = {"campaign_id": CAMPAIGN, "state": "block", "ttl_s": 600, "reason": "one theft"}
PAGE = f"/v1/campaigns/{CAMPAIGN}"


def answer(served: World, client: str) -> int:
    """What a gateway does with a request of the client."""
    served.refresher.turn()
    return 403 if served.view.standing(OURS, client_hash(client), MODEL, time.time()).strictness == BLOCKED else 200


def in_force(served: World, client: str) -> tuple[str, str]:
    found = served.client("viewer").get(f"/v1/models/{MODEL}/clients/{client}").json()["gateways"]
    return found["state"], found["cause"]


def test_a_campaign_is_blocked_and_released_as_one(served: World) -> None:
    operator = served.client("operator")
    operator.post("/v1/allowlist", json={"client_id": "scraper", "model_id": MODEL})
    operator.post("/v1/decisions", json={"client_id": "clerk", "state": "block"})
    tag = operator.get(PAGE).headers["etag"]
    dry = operator.post("/v1/decisions", json=BLOCK | {"simulated": True})
    assert (dry.status_code, dry.json()["simulated"]) == (201, True)
    stale = operator.post("/v1/decisions", json=BLOCK, headers={"If-Match": tag})
    assert stale.status_code == 412
    headers = {"If-Match": operator.get(PAGE).headers["etag"], "Idempotency-Key": "one"}
    answers = [operator.post("/v1/decisions", json=BLOCK, headers=headers) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    made = answers[0].json()
    assert made["confirmed"] == sorted([client_hash("thief"), client_hash("scraper")])
    assert (made["waits"], made["joined"]) == (False, [])
    assert in_force(served, "thief") == ("block", "campaign")
    assert in_force(served, "scraper") == ("clear", "allow_list")
    assert answer(served, "thief") == 403
    assert answer(served, "scraper") == 200
    (listed,) = operator.get("/v1/decisions/campaigns").json()
    assert listed == made
    gone = operator.delete("/v1/decisions", params={"campaign_id": CAMPAIGN, "withdraw": True})
    assert gone.status_code == 200
    assert operator.get("/v1/decisions/campaigns").json() == []
    assert answer(served, "clerk") == 403, "what was decided about another client stays"


def test_a_release_of_a_campaign_lifts_what_was_detected(served: World) -> None:
    released = served.client("operator").delete("/v1/decisions", params={"campaign_id": CAMPAIGN, "ttl_s": 60})
    assert (released.status_code, released.json()["state"]) == (200, "clear")
    assert in_force(served, "thief") == ("clear", "campaign")


def test_a_second_person_confirms_a_large_campaign(served: World) -> None:
    served.operations.confirm_above = 1
    first = served.client("operator")
    assert first.post("/v1/decisions", json=BLOCK).json()["waits"]
    assert in_force(served, "thief")[1] != "campaign"
    assert first.post("/v1/decisions/confirm", json={"campaign_id": CAMPAIGN}).status_code == 409
    other = served.client("admin").post("/v1/decisions/confirm", json={"campaign_id": CAMPAIGN})
    assert (other.status_code, other.json()["waits"]) == (200, False)
    assert other.json()["second"].startswith("admin-key")
    assert answer(served, "thief") == 403


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"campaign_id": "c-none"}, 404),
        ({"campaign_id": CAMPAIGN, "client_id": "thief"}, 422),
        ({}, 422),
        ({"campaign_id": CAMPAIGN, "model_id": "another"}, 422),
        ({"campaign_id": CAMPAIGN, "model_id": MODEL}, 201),
    ],
)
def test_it_is_about_one_campaign_or_one_client(served: World, body: dict[str, str], status: int) -> None:
    assert served.client("operator").post("/v1/decisions", json=body | {"state": "throttle"}).status_code == status


def test_nobody_decides_about_a_campaign_of_another_tenant(served: World) -> None:
    assert served.client("operator", FOREIGN).post("/v1/decisions", json=BLOCK).status_code == 404
    assert served.client("analyst").post("/v1/decisions", json=BLOCK).status_code == 403
    assert served.client("operator", FOREIGN).get("/v1/decisions/campaigns").json() == []
    assert served.store.operator_entries("campaign", OURS)[1] == []
