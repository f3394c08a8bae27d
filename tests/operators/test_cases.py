"""Cases: a finding is assigned, closed and opened again, each with its audit row; and the precision of past findings by verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.seeded_api import OURS, SECRETS, World, alert_id

from consumers.errors import WrongUse
from consumers.operators import audit
from consumers.operators.audited_write import Actor

PAGE = f"/v1/alerts/{alert_id('thief')}"
MARIA = Actor("maria", "analyst", OURS)


def test_a_finding_is_assigned_closed_and_opened_again(served: World) -> None:
    analyst = served.client("analyst")
    assert analyst.get(PAGE).json()["case"] is None
    steps: list[tuple[dict[str, Any], tuple[str, str]]] = [
        ({"assignee": "maria"}, ("maria", "open")),
        ({"state": "closed", "note": "key was revoked"}, ("maria", "closed")),
        ({"state": "open"}, ("maria", "open")),
        ({"assignee": ""}, ("", "open")),
    ]
    made = analyst.get(PAGE)
    for body, expected in steps:
        made = analyst.post(f"{PAGE}/case", json=body)
        assert made.status_code == 200
        assert (made.json()["assignee"], made.json()["state"]) == expected
        assert analyst.get(PAGE).json()["case"] == made.json()
    assert made.json()["note"] == "key was revoked", "words stay until others are given"
    assert sum(one["case"] is not None for one in analyst.get("/v1/alerts").json()["items"]) == 1
    rows = b"".join(line for _, line in audit.stored_rows(served.store))
    assert [rows.count(f'"action":"case.{act}"'.encode()) for act in ("assign", "close", "open")] == [2, 1, 1]
    assert audit.verify(served.store, audit.Seal(SECRETS)).findings == []


def test_who_may_not_and_what_is_none(served: World) -> None:
    assert served.client("viewer").post(f"{PAGE}/case", json={"state": "closed"}).status_code == 403
    assert served.client("analyst").post("/v1/alerts/none/case", json={"state": "closed"}).status_code == 404
    assert served.client("analyst").post(f"{PAGE}/case", json={}).status_code == 422
    assert served.client("analyst").post(f"{PAGE}/case", json={"assignee": "two words"}).status_code == 422
    with pytest.raises(WrongUse):
        served.operations.work_on(MARIA, "a", assignee="<b>")


def test_the_precision_is_that_of_the_verdicts(served: World) -> None:
    analyst = served.client("analyst")
    assert analyst.get("/v1/precision").json() == []
    for client, verdict in (("thief", "true_positive"), ("scraper", "false_positive")):
        analyst.post(f"/v1/alerts/{alert_id(client)}/verdict", json={"verdict": verdict})
    (found,) = analyst.get("/v1/precision").json()
    assert (found["judged"], found["true_positives"], found["precision"]) == (2, 1, 0.5)
    assert 0 < found["low"] < 0.5 < found["high"] < 1
    assert json.dumps(found).count("thief") == 0
