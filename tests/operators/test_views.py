"""Who looked at a client: one row a person and hour, found again by client, and no look lost to a full memory or an outage."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.errors import Unavailable
from consumers.operators import views
from consumers.operators.audit import stored_rows
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.operators.views import EVERY_S, MOST_FOUND, Views, views_of
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.query import ClientKey

ANN, BOB = Actor("ann", "analyst", "default", "192.0.2.1"), Actor("bob", "viewer", "default")
KEY, OTHER = ClientKey("default", "m", "a" * 32), ClientKey("default", "m", "b" * 32)


@pytest.fixture
def store(new_store: Callable[[], EmbeddedStore]) -> EmbeddedStore:
    return new_store()


def looks(store: EmbeddedStore, key: ClientKey = KEY, tenant: str = "default") -> list[tuple[str, str]]:
    return [(row["actor"], row["object"].split("how:")[-1]) for row in views_of(stored_rows(store), tenant, key.client)]


def test_one_row_a_person_client_and_hour(store: EmbeddedStore, secrets: Secrets) -> None:
    now = [0.0]
    one = Views(Operations(store, secrets), clock=lambda: now[0])
    one.note(ANN, KEY, "page")
    one.note(ANN, KEY, "api")
    one.note(BOB, KEY, "api")
    one.note(ANN, OTHER, "page")
    now[0] = EVERY_S
    one.note(ANN, KEY, "explain")
    assert looks(store) == [("ann", "page"), ("bob", "api"), ("ann", "explain")]
    assert looks(store, OTHER) == [("ann", "page")]
    assert looks(store, tenant="acme") == []
    assert views_of(stored_rows(store), "default", "a" * 31) == []
    (first, *_) = views_of(stored_rows(store), "default", KEY.client)
    assert (first["ip"], first["role"], first["action"]) == ("192.0.2.1", "analyst", "client.view")


def test_a_full_memory_writes_a_row_too_many_and_none_too_few(
    store: EmbeddedStore, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "REMEMBERED", 1)
    one = Views(Operations(store, secrets), clock=lambda: 0.0)
    for key in (KEY, OTHER, KEY):
        one.note(ANN, key, "api")
    assert len(looks(store)) == 2
    assert len(looks(store, OTHER)) == 1


def test_a_look_that_cannot_be_recorded_is_recorded_with_the_next(
    store: EmbeddedStore, secrets: Secrets, caplog: pytest.LogCaptureFixture
) -> None:
    operations = Operations(store, secrets)
    one, away = Views(operations, clock=lambda: 0.0), [True]
    record = operations.record

    class Sometimes:
        def record(self, *arguments: str) -> None:
            if away[0]:
                raise Unavailable("away")
            record(*arguments)  # type: ignore[arg-type]

    one._operations = Sometimes()  # type: ignore[assignment]
    one.note(ANN, KEY, "page")
    assert "not in the audit log" in caplog.text
    away[0] = False
    one.note(ANN, KEY, "page")
    assert looks(store) == [("ann", "page")]


def test_what_is_found_is_bounded(store: EmbeddedStore, secrets: Secrets) -> None:
    one = Views(Operations(store, secrets), clock=lambda: 0.0)
    one.note(ANN, KEY, "page")
    ((_, row),) = stored_rows(store)
    found = views_of(((n, row) for n in range(MOST_FOUND + 5)), "default", KEY.client)
    assert len(found) == MOST_FOUND
