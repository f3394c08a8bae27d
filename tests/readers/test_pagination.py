"""Lists that are arrays: the header ``Link`` leads through all of them, and nobody is shown twice or left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from support.seeded_api import MODEL, World, world

from consumers.errors import WrongUse
from consumers.readers.pagination import Position, asked

LISTS = {
    "/v1/models": "model_id",
    "/v1/campaigns": "campaign_id",
    "/v1/decisions/operator": "client_key",
    "/v1/allowlist": "client_key",
    "/v1/keys": "prefix",
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as one:
        yield one


def walk(client: TestClient, path: str, limit: int) -> list[Any]:
    """The pages of a list, by their links."""
    pages, where = [], f"{path}?limit={limit}"
    while True:
        answer = client.get(where)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        link = answer.headers.get("link")
        if link is None:
            return pages
        found = re.fullmatch(r'<(\?[^>]+)>; rel="next"', link)
        assert found is not None
        where = path + found[1]


def fill(client: TestClient, n: int) -> None:
    for i in range(n):
        about = {"client_id": f"client-{i}", "model_id": MODEL}
        assert client.post("/v1/decisions", json=about | {"state": "throttle", "ttl_s": 60}).status_code == 201
        assert client.post("/v1/allowlist", json=about | {"reason": "known"}).status_code == 201


@pytest.mark.parametrize("path", LISTS)
def test_the_links_lead_through_the_whole_list(served: World, path: str) -> None:
    client = served.client()
    fill(client, 5)
    whole = client.get(path)
    assert "link" not in whole.headers, "everything is on one page"
    assert len(whole.json()) >= (1 if path in ("/v1/models", "/v1/campaigns") else 5)
    for limit in (1, 2, len(whole.json())):
        pages = walk(client, path, limit)
        assert [row for page in pages for row in page] == whole.json()
        assert all(len(page) <= limit for page in pages)
        assert len(pages) == -(-len(whole.json()) // limit)


def test_a_row_that_comes_in_between_hides_no_other(served: World) -> None:
    client = served.client()
    fill(client, 3)
    first = client.get("/v1/allowlist?limit=2")
    where = first.headers["link"].split(">")[0][1:]
    assert client.post("/v1/allowlist", json={"client_id": "late", "model_id": MODEL, "reason": "x"}).status_code == 201
    rest = client.get("/v1/allowlist" + where).json()
    shown = [row["client_id"] for row in first.json() + rest]
    assert len(shown) == len(set(shown))
    assert {f"client-{i}" for i in range(3)} <= set(shown)


@pytest.mark.parametrize("path", LISTS)
def test_a_cursor_of_another_list_is_refused(served: World, path: str) -> None:
    client = served.client()
    fill(client, 2)
    other = "/v1/keys" if path != "/v1/keys" else "/v1/allowlist"
    cursor = client.get(f"{other}?limit=1").headers["link"].split(">")[0][1:]
    assert client.get(path + cursor).status_code == 422
    assert client.get(path + "?cursor=!!").status_code == 422
    assert client.get(path + "?limit=1001").status_code == 422


def test_the_document_names_the_header(served: World) -> None:
    paths = served.client().get("/openapi.json").json()["paths"]
    assert all("Link" in paths[path]["get"]["responses"]["200"]["headers"] for path in LISTS)
    assert all("schema" in paths[path]["get"]["responses"]["200"]["content"]["application/json"] for path in LISTS)


rows = st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.text(max_size=3)), unique=True, max_size=30)


@given(rows=rows, limit=st.integers(1, 7), ordered=st.booleans())
def test_pages_put_together_are_the_sorted_list(rows: list[tuple[float, str]], limit: int, ordered: bool) -> None:
    wanted = sorted(rows, key=lambda row: (-row[0], row[1]))
    got: list[tuple[float, str]] = []
    cursor = None
    while True:
        source = wanted if ordered else rows
        page, cursor = asked("o", cursor, limit).of(source, lambda row: Position(*row), ordered=ordered)
        got += page
        if cursor is None:
            break
    assert got == wanted


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_limit_has_limits(limit: int) -> None:
    with pytest.raises(WrongUse, match="limit"):
        asked("o", None, limit)
