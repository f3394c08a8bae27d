"""Requests in numbers: counted by route and status, bounded whatever callers write, without anybody's name."""

from __future__ import annotations

import pytest
from support.seeded_api import MODEL, OURS, World

from consumers.telemetry.metrics import MAX_SERIES


def counted(world: World) -> dict[tuple[str, str, str], float]:
    found = {}
    for family in world.front.metrics.registry.collect():
        for sample in family.samples:
            if sample.name == "querywarden_http_requests_total":
                labels = sample.labels
                found[labels["method"], labels["route"], labels["status"]] = sample.value
    return found


def test_answers_are_counted_by_route_method_and_status(served: World) -> None:
    with served.client() as client, served.client("viewer") as viewer, served.client(None) as nobody:
        for _ in range(3):
            client.get(f"/v1/models/{MODEL}/clients/thief")
        client.get(f"/v1/models/{MODEL}/clients/nobody")
        viewer.post("/v1/decisions", json={"client_id": "thief", "state": "block"})
        nobody.get("/v1/alerts")
        client.get("/nowhere/at/all")
        client.request("BREW", "/v1/alerts")
        client.get("/healthz")
        client.get("/v1/authz", headers={"x-api-key": "thief"})
    assert counted(served) == {
        ("GET", "/v1/models/{model_id}/clients/{client}", "200"): 3,
        ("GET", "/v1/models/{model_id}/clients/{client}", "404"): 1,
        ("POST", "/v1/decisions", "403"): 1,
        ("GET", "/v1/alerts", "401"): 1,
        ("GET", "other", "404"): 1,
        ("other", "/v1/alerts", "405"): 1,
    }
    times = served.front.metrics.value("querywarden_http_seconds_count", route="/v1/alerts")
    assert times == 2


def test_each_answer_to_a_gateway_is_timed(served: World) -> None:
    with served.client(None) as nobody:
        for path in ("/v1/authz", "/v1/authz/models/x"):
            nobody.get(path, headers={"x-api-key": "thief", "x-querywarden-key": served.keys[OURS, "gateway"]})
        nobody.get("/v1/authz")
    seen = served.front.metrics
    assert seen.value("querywarden_authz_duration_seconds_count") == 3
    assert 0 < (seen.value("querywarden_authz_duration_seconds_sum") or 0) < 3
    assert seen.value("querywarden_authz_duration_seconds_bucket", le="+Inf") == 3


def test_what_callers_write_makes_no_series_and_names_nobody(served: World) -> None:
    with served.client() as client:
        for i in range(60):
            client.get(f"/x{i}/{i}")
            client.get(f"/v1/models/{MODEL}/clients/nobody-{i}")
            client.request(f"M{i}", f"/v1/models/model-{i}")
    assert len(counted(served)) <= 4 < MAX_SERIES
    text = served.front.metrics.text().decode()
    assert not any(word in text for word in ("nobody", "model-1", OURS, "/x1"))


def test_a_failure_is_counted_too(served: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(type(served.reader), "alerts", broken)
    with served.client() as client:
        assert client.get("/v1/alerts").status_code == 500
    assert counted(served) == {("GET", "/v1/alerts", "500"): 1}
