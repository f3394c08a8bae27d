"""What ingest and detect say of themselves, and what the health of the whole makes of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.seeded_api import OURS, SECRETS, alert_of, decided, keep

from consumers.alerts.delivery import OutboxWorker
from consumers.errors import Unavailable
from consumers.http.dashboard.health_page import Pulse, health_page
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.records import heartbeat
from consumers.records.heartbeat import EVERY_TENANT, KIND, LASTS_S, Heartbeat, HeartbeatPublisher, SinkState
from consumers.records.operator_entries import packed
from consumers.store import Entry, Operation, OutboxAlert
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.alarms import Alarms
from consumers.telemetry.metrics import Metrics
from consumers.wiring import heartbeats

NewStore = Callable[[], EmbeddedStore]
ALICE = Actor("alice", "admin", OURS)


class Away:
    name = "webhook:soc.example"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        raise Unavailable("503")

    def close(self) -> None: ...


@pytest.fixture
def store(new_store: NewStore) -> EmbeddedStore:
    made = new_store()
    made.prepare(SECRETS.key_id)
    return made


def page(store: EmbeddedStore) -> dict[str, Any]:
    return health_page(Reader(store, SECRETS, OURS), Pulse(), "block", int(time.time() * 1000))


def facts(store: EmbeddedStore) -> dict[str, str]:
    return {fact["name"]: fact["value"] for fact in page(store)["facts"]}


def test_what_nobody_says_is_not_known_rather_than_none(store: EmbeddedStore) -> None:
    health = Reader(store, SECRETS, OURS).health()
    assert (health.lag, health.alarms, health.sinks) == (None, None, None)
    assert health.processes == {"ingest": 0, "detect": 0}
    assert page(store)["detecting"] is False
    assert not {"log lag", "alarms"} & set(facts(store))
    assert HeartbeatPublisher(store, lambda: Heartbeat("detect@a/1", "detect")).once()
    health = Reader(store, SECRETS, OURS).health()
    assert (health.lag, health.alarms, health.sinks) == (None, (), ())
    assert page(store)["detecting"] is True


def test_health_adds_up_what_the_processes_say(store: EmbeddedStore) -> None:
    beats = [
        Heartbeat("ingest@a/1", "ingest", 0, 70, ["lag"]),
        Heartbeat("ingest@b/1", "ingest", 0, 2_030, ["lag", "silent_tap"]),
        Heartbeat("detect@a/2", "detect", 0, None, [], [SinkState("kafka:alerts", 0), SinkState("webhook:soc", 3)]),
        Heartbeat("detect@b/2", "detect", 0, None, ["outbox"], [SinkState("webhook:soc", 4, True)]),
    ]
    for beat in beats:
        assert HeartbeatPublisher(store, lambda beat=beat: beat).once()  # type: ignore[misc]
    health = Reader(store, SECRETS, OURS).health()
    assert (health.lag, health.alarms) == (2_100, ("lag", "outbox", "silent_tap"))
    assert [(s.name, s.waiting, s.away) for s in health.sinks or ()] == [
        ("kafka:alerts", 0, False),
        ("webhook:soc", 7, True),
    ]
    assert facts(store)["log lag"] == "2,100"
    assert facts(store)["alarms"] == "3"
    shown = page(store)
    assert {"name": "webhook:soc", "state": "away", "waiting": "7"} in shown["sinks"]
    assert any("query for 10 minutes" in warning["text"] for warning in shown["warnings"])


def test_a_process_says_what_its_sinks_have_not_taken_until_it_stops(store: EmbeddedStore) -> None:
    row = decided("thief", 1e-5, "block")
    keep(store, OURS, [row], [alert_of(row, OURS), alert_of(row, OURS, update=1)])
    metrics = Metrics()
    alarms, worker = Alarms(metrics), OutboxWorker(Away(), store, SECRETS, metrics)
    worker.deliver(range(32))
    alarms.show("breaker", True)
    with contextlib.ExitStack() as stack:
        heartbeats.start_heartbeat(stack, store, "detect", lambda: (None, alarms, [worker]))
        heartbeats.start_heartbeat(
            stack, store, "ingest", lambda: (metrics.value("querywarden_lag_records"), alarms, [])
        )
        deadline_s = time.monotonic() + 10
        while len(found := heartbeat.heartbeats(store)) < 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        assert [beat.role for beat in found] == ["detect", "ingest"]
        assert found[0].sinks == [SinkState("webhook:soc.example", 2, True)]
        assert (found[0].alarms, found[1].lag) == (["breaker"], 0)
    assert heartbeat.heartbeats(store) == ()


def test_a_heartbeat_is_no_deed_and_hinders_none(store: EmbeddedStore) -> None:
    operations = Operations(store, SECRETS)
    operations.record(ALICE, "test", "before")
    heart = HeartbeatPublisher(store, lambda: Heartbeat("ingest@a/1", "ingest"))
    for _ in range(50):
        assert heart.once()
    operations.record(ALICE, "test", "after")
    assert len(store.audit_rows(0, 1000)) == 2
    assert len(store.operator_entries(KIND)[1]) == 1


def test_who_is_silent_for_a_minute_is_not_counted(new_store: NewStore, store: EmbeddedStore) -> None:
    long_ago = time.time() - LASTS_S - 1
    heart = HeartbeatPublisher(store, lambda: Heartbeat("ingest@a/1", "ingest"), now_s=lambda: long_ago)
    assert heart.once()
    assert heartbeat.heartbeats(store) == ()


def test_an_absent_store_costs_one_heartbeat_and_an_unreadable_entry_is_skipped(
    store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision, _ = store.operator_entries(KIND)
    store.operate(
        revision,
        Operation(
            [
                Entry(EVERY_TENANT, KIND, "x", b"{"),
                Entry(EVERY_TENANT, KIND, "y", packed(Heartbeat("y", "detect", format=2))),
            ]
        ),
    )
    heart = HeartbeatPublisher(store, lambda: Heartbeat("detect@a/1", "detect"))
    assert heart.once()
    assert [beat.process for beat in heartbeat.heartbeats(store)] == ["detect@a/1"]

    def silent(*_: object) -> int:
        raise Unavailable("away")

    monkeypatch.setattr(store, "operate", silent, raising=False)
    assert not heart.once()
    heart.stop()
