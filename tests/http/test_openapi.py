"""Generated requests against the documented API: no 5xx, no status and no shape that is not documented.

At least 2,000 requests in `make test`, 20,000 in `make soak`; the number is counted at the door and asserted. `/v1/decisions/events` never
ends and `/v1/authz` is no part of the document; both have tests of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from support.seeded_api import OURS, World, world

from consumers.http.access import TABLE, Access
from consumers.http.api.application import ELSEWHERE

FEWEST, FEWEST_SOAK = 2_000, 20_000
PATIENCE_S = 300
"""For one answer on a machine that has other work: the time of an answer is no matter of these tests."""
OPERATIONS = [
    row
    for row in TABLE
    if (row.method, row.path) not in ELSEWHERE and row.path not in ("/openapi.json", "/v1/decisions/events")
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
_EXAMPLES, _EXAMPLES_SOAK = 85, 850


class Door:
    """Counts what passes."""

    def __init__(self, served: World) -> None:
        self.served, self.count = served, 0
        self.statuses: dict[int, int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.count += 1
                self.statuses[message["status"]] = self.statuses.get(message["status"], 0) + 1
            await send(message)

        await self.served.front(scope, receive, counted)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with world(tmp_path_factory.mktemp("openapi")) as served:
        yield Door(served)


@pytest.fixture(scope="module")
def api(door: Door) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", door)


def ask(row: Access, api: Any, door: Door, examples: int) -> None:
    """Requests for one operation, half of them valid by the document, half not."""
    operation = api[row.path][row.method]
    cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
    role = "ingest" if row.path == "/v1/queries" else "admin"
    headers = {"Authorization": f"Bearer {door.served.keys[OURS, role]}"}

    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )
    @given(case=cases)
    def asked(case: Case[Any]) -> None:
        case.call_and_validate(headers=headers, checks=CHECKS, timeout=PATIENCE_S)

    asked()


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda r: f"{r.method} {r.path}")
def test_generated_requests(row: Access, api: Any, door: Door) -> None:
    ask(row, api, door, _EXAMPLES)


def test_there_were_enough(door: Door, request: pytest.FixtureRequest) -> None:
    """After the tests above, in this file's order."""
    if len(request.session.items) < len(OPERATIONS):
        pytest.skip("only with the tests above")
    assert door.count >= FEWEST, door.statuses
    assert door.statuses.keys() >= {200, 201, 404, 422}, "they got past the validation"


@pytest.mark.soak
@pytest.mark.parametrize("row", OPERATIONS, ids=lambda r: f"{r.method} {r.path}")
def test_many_generated_requests(row: Access, api: Any, door: Door) -> None:
    ask(row, api, door, _EXAMPLES_SOAK)


@pytest.mark.soak
def test_there_were_enough_for_the_soak(door: Door) -> None:
    print(f"\n{door.count:,} generated requests, by status: {sorted(door.statuses.items())}")
    assert door.count >= FEWEST_SOAK, door.statuses


def test_the_document(door: Door) -> None:
    document = door.served.client(None).get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    found = {
        (method.upper(), path): one for path, methods in document["paths"].items() for method, one in methods.items()
    }
    assert found.keys() == {(row.method, row.path) for row in TABLE if (row.method, row.path) not in ELSEWHERE} - {
        ("GET", "/openapi.json")
    }
    for (method, path), one in found.items():
        (row,) = (r for r in TABLE if (r.method, r.path) == (method, path))
        assert one["x-roles"] == list(row.roles)
        assert one["security"]
        assert {"401", "403", "404", "422", "429", "503"} <= one["responses"].keys()
    jsonschema_rs.meta.validate(document["components"]["schemas"]["Client"])


def test_the_checks_see_what_is_not_documented(door: Door) -> None:
    """The control: the same checks fail on a document that lacks a status."""
    document = door.served.client(None).get("/openapi.json").json()
    del document["paths"]["/v1/models/{model_id}"]["get"]["responses"]["404"]
    case = schemathesis.openapi.from_dict(document)["/v1/models/{model_id}"]["GET"].Case(
        path_parameters={"model_id": "nothing"}
    )
    response = door.served.client("admin").get("/v1/models/nothing")
    with pytest.raises(FailureGroup, match="Undocumented"):
        case.validate_response(response, checks=CHECKS)
