"""What is read: pages that neither repeat nor lose a row, values by tenant, damaged rows set aside."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.seeded_api import (
    CAMPAIGN,
    FOREIGN,
    MODEL,
    OURS,
    SECRETS,
    World,
    alert_id,
    alert_of,
    client_hash,
    decided,
    keep,
    seed,
)

from consumers.errors import Unavailable, WrongUse
from consumers.operators.audited_write import Actor
from consumers.readers import explanation
from consumers.readers.models import Client
from consumers.readers.queries import SORTS, Reader
from consumers.store import DECISION_CELLS, DecisionRow, Outcome, decision_cell
from consumers.store.embedded import EmbeddedStore
from detector.query import ClientKey

EXPOSURE = [None, {"fidelity": 0.5, "low": 0.4, "high": 0.6}, {"fidelity": 0.9, "low": 0.8, "high": 0.95}]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    store = EmbeddedStore(tmp_path / "read.sqlite")
    store.prepare(SECRETS.key_id)
    return Reader(store, SECRETS, OURS)


def fill(read: Reader, n: int, start: int = 0) -> list[str]:
    """Clients with many equal values, so that the order has ties everywhere."""
    names = [f"client-{i}" for i in range(start, start + n)]
    keep(
        read.store, OURS,
        [decided(c, [0.5, 0.01, 0.5, 0.2][i % 4], "watch", queries=i % 3, extraction=EXPOSURE[i % 3], last_ms=1000 * (i % 2))
         for i, c in enumerate(names, start)],
    )  # fmt: skip
    return names


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("limit", [1, 7, 40, 1000])
def test_pages_hold_every_client_once_in_order(read: Reader, sort: str, limit: int) -> None:
    names = fill(read, 40)
    seen: list[Client] = []
    cursor = None
    while True:
        page = read.clients(MODEL, sort=sort, cursor=cursor, limit=limit)
        assert len(page.items) <= limit
        seen += page.items
        cursor = page.next
        if cursor is None:
            break
    assert sorted(c.client_id for c in seen) == sorted(names)
    orders: dict[str, list[float]] = {
        "suspicion": [c.suspicion for c in seen],
        "queries": [c.queries for c in seen],
        "exposure": [c.extraction.fidelity if c.extraction else -1 for c in seen],
        "last_seen": [c.last_seen_ms for c in seen],
    }
    assert orders[sort] == sorted(orders[sort], reverse=True)


@pytest.mark.parametrize("sort", SORTS)
def test_rows_that_come_in_between_neither_repeat_nor_hide_others(read: Reader, sort: str) -> None:
    names = fill(read, 20)
    seen: list[str] = []
    cursor = None
    for turn in range(100):
        page = read.clients(MODEL, sort=sort, cursor=cursor, limit=3)
        seen += [c.client_id for c in page.items]
        cursor = page.next
        if cursor is None:
            break
        fill(read, 2, start=100 + 2 * turn)
    assert len(seen) == len(set(seen))
    assert set(names) <= set(seen)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.sampled_from(["WyJzdXNwaWNpb24iLDFd", "bnVsbA", "W10", "WyJhIiwxLCJiIl0"]))
def test_no_text_is_mistaken_for_a_cursor(cursor: str) -> None:
    nobody = Reader(None, SECRETS, OURS)  # type: ignore[arg-type]  # nothing may be read for it
    with pytest.raises(WrongUse):
        nobody.clients(MODEL, cursor=cursor)
    with pytest.raises(WrongUse):
        nobody.alerts(cursor=cursor)


def test_a_cursor_belongs_to_its_order(read: Reader) -> None:
    fill(read, 4)
    cursor = read.clients(MODEL, sort="queries", limit=2).next
    with pytest.raises(WrongUse, match="another order"):
        read.clients(MODEL, sort="suspicion", cursor=cursor)


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_limits(read: Reader, limit: int) -> None:
    with pytest.raises(WrongUse):
        read.clients(MODEL, limit=limit)
    with pytest.raises(WrongUse):
        read.alerts(limit=limit)


def test_filters(read: Reader) -> None:
    seed(read.store)
    assert [c.client_id for c in read.clients(MODEL, min_suspicion=0.9995).items] == ["thief", "scraper"]
    assert [c.client_id for c in read.clients(MODEL, state="watch").items] == ["clerk"]
    assert read.clients("unknown").items == ()
    assert [a.client_id for a in read.alerts(state="throttle").items] == ["scraper"]
    assert [a.client_id for a in read.alerts(client="thief").items] == ["thief"]
    assert [a.client_id for a in read.alerts(client=client_hash("thief")).items] == ["thief"]
    assert read.alerts(model="unknown").items == ()


def test_one_client_by_id_and_by_hash(read: Reader) -> None:
    seed(read.store)
    by_id, by_hash = read.client(MODEL, "thief"), read.client(MODEL, client_hash("thief"))
    assert by_id is not None
    assert by_id == by_hash
    assert by_id.client.client_key == client_hash("thief")
    assert [(p.queries, p.suspicion, p.time_ms) for p in by_id.trail] == [(10, 0.5, 1000), (40, 1 - 1e-5, 2000)]
    assert by_id.coverage == (3, 0, 1)
    assert read.client(MODEL, "nobody") is None
    odd = "0123456789abcdef0123456789abcdef"  # an id that looks like a hash
    keep(read.store, OURS, [decided(odd, 0.5, "clear")])
    found = read.client(MODEL, odd)
    assert found is not None
    assert found.client.client_id == odd


def test_tenants(read: Reader) -> None:
    seed(read.store)
    seed(read.store, FOREIGN)
    theirs = read.of(FOREIGN)
    assert [m.model_id for m in read.models()] == [MODEL]
    assert [m.model_id for m in theirs.models()] == ["churn-v1"]
    assert theirs.client(MODEL, "thief") is None
    assert theirs.client(MODEL, client_hash("thief")) is None
    assert theirs.alert(alert_id("thief")) is None
    assert {a.client_id for a in theirs.alerts().items} == {f"thief@{FOREIGN}", f"scraper@{FOREIGN}"}


def test_alerts_newest_first_once_or_with_updates(read: Reader) -> None:
    one = decided("thief", 0.001, "block")
    keep(read.store, OURS, [one], [alert_of(one, OURS, 0, suspicion=0.9), alert_of(one, OURS, 1, suspicion=0.99)])
    (last,) = read.alerts().items
    assert (last.update, last.suspicion) == (1, 0.99)
    assert [a.update for a in read.alerts(updates=True).items] == [1, 0]
    first = read.alerts(updates=True, limit=1)
    assert [a.update for a in read.alerts(updates=True, cursor=first.next).items] == [0]


def test_campaigns(read: Reader) -> None:
    seed(read.store)
    (group,) = read.campaigns()
    assert (group.campaign_id, group.queries, len(group.members)) == (CAMPAIGN, 80, 2)
    assert group.suspicion == max(m.suspicion for m in group.members)
    assert read.campaign(CAMPAIGN) == group
    assert read.campaign("c-9") is None


def test_models_are_counted(read: Reader) -> None:
    seed(read.store)
    (model,) = read.models()
    assert (model.clients, model.watch, model.throttle, model.block) == (4, 1, 1, 1)
    assert (model.has_baseline, model.calibrated) == (False, None)
    assert read.model("unknown") is None


def test_a_damaged_row_hides_no_other(read: Reader) -> None:
    seed(read.store)
    key = ClientKey(OURS, MODEL, "f" * 32)
    cell = decision_cell(key, DECISION_CELLS)
    claim = read.store.claim_decisions(cell, "seed", "0" * 32, 1000)
    read.store.record(
        "0" * 32, claim.revision, Outcome(cell, rows={key: DecisionRow(b"nonsense", "block", 2.0, 0)}), "seed", 1000
    )
    assert [c.client_id for c in read.clients(MODEL).items] == ["thief", "scraper", "clerk", "robot"]
    assert read.client(MODEL, "f" * 32) is None
    assert len(read.campaigns()) == 1


def test_health_without_a_store(read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    seed(read.store)
    good = read.health()
    assert (good.store, good.clients, good.models) == (True, 4, 1)

    def silent(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(type(read.store), "cells", silent)
    assert read.health().store is False


def test_what_is_in_force(served: World) -> None:
    """Allowlist, then operator, then detection."""
    actor = Actor("maria", "operator", OURS)
    keep(served.store, OURS, [decided("thief", 0.001, "block", enforced="block", until_s=math.floor(2e9))])

    def in_force() -> str:
        found = served.reader.client(MODEL, "thief")
        assert found is not None
        return found.in_force

    assert in_force() == "block"
    subject = served.operations.subject(OURS, MODEL, "thief")
    served.operations.decide(actor, subject, "clear", simulated=True)
    assert in_force() == "block"
    served.operations.decide(actor, subject, "throttle")
    assert in_force() == "throttle"
    served.operations.allow(actor, served.operations.subject(OURS, "*", "thief"))
    assert in_force() == "clear"
    keep(served.store, OURS, [decided("robot", 0.001, "block", enforced="block", until_s=1)])
    over = served.reader.client(MODEL, "robot")
    assert over is not None
    assert over.in_force == "clear", "its time is over"
    assert over.gateways.text.startswith("Gateways let it through: the detected decision ended on 1970-01-01")


def test_the_api_and_explain_say_the_same_of_gateways(served: World) -> None:
    actor = Actor("maria", "operator", OURS)
    served.operations.decide(actor, served.operations.subject(OURS, "*", "clerk"), "block")
    answer = served.client("viewer").get(f"/v1/models/{MODEL}/clients/clerk").json()
    one = served.reader.client(MODEL, "clerk")
    assert one is not None
    told = explanation.account(one, 0.01, None)
    assert answer["gateways"]["text"] == told["gateways"]
    assert answer["in_force"] == answer["gateways"]["state"] == "block"
    assert (answer["client"]["state"], answer["gateways"]["cause"], answer["mode"]) == ("watch", "operator", "block")
    assert told["gateways"].endswith("operator maria blocked it.")
    assert (
        "Gateways follow the state again when the operator's decision ends or is withdrawn."
        in told["what_would_change_it"]
    )
