"""Delivery: each sink by itself, in bounded room, and left alone while it is away."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from consumers.alerts import delivery
from consumers.alerts.delivery import OutboxWorker, OutboxWorkers
from consumers.errors import Unavailable, Undeliverable
from consumers.records.alert import packed_alert
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, OutboxAlert, Outcome
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.alarms import Alarms
from consumers.telemetry.metrics import Metrics

NewStore = Callable[[], EmbeddedStore]


class Sink:
    def __init__(self, name: str, act: Callable[[Sequence[OutboxAlert]], list[bool]] | None = None) -> None:
        self.name, self.act = name, act
        self.taken: list[str] = []

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        delivered = self.act(alerts) if self.act else [True] * len(alerts)
        self.taken += [alert.uid for alert, ok in zip(alerts, delivered, strict=True) if ok]
        return delivered

    def close(self) -> None: ...


def filled(store: EmbeddedStore, secrets: Secrets, count: int, cell: int = 0) -> EmbeddedStore:
    bodies = [
        {"alert_id": f"{i:04d}", "update": 0, "kind": "client", "client_id": "acct", "tenant": "default"}
        for i in range(count)
    ]
    claim = store.claim_decisions(cell, "p", "t" * 32, 1000)
    alerts = [packed_alert(body, i, secrets) for i, body in enumerate(bodies)]
    store.record("t" * 32, claim.revision, Outcome(cell, alerts=alerts), "p", 1000)
    return store


def worker(store: Any, secrets: Secrets, sink: Sink, **more: Any) -> OutboxWorker:
    return OutboxWorker(sink, store, secrets, Metrics(), **more)


def outcomes(one: OutboxWorker) -> dict[str, float]:
    text = one.metrics.text().decode().splitlines()
    return {
        line.split('outcome="')[1].split('"')[0]: float(line.split()[-1])
        for line in text
        if line.startswith("querywarden_alerts_total{")
    }


def test_a_sink_that_is_away_is_retried_with_backoff_of_at_most_5_minutes(
    new_store: NewStore, secrets: Secrets
) -> None:
    asked: list[float] = []
    clock = [0.0]

    def away(alerts: Sequence[OutboxAlert]) -> list[bool]:
        asked.append(clock[0])
        raise Unavailable("503")

    one = worker(filled(new_store(), secrets, 3), secrets, Sink("webhook:x", away), clock=lambda: clock[0])
    while clock[0] < 2000:
        one.deliver([0])
        clock[0] += 0.5
    gaps = [b - a for a, b in itertools.pairwise(asked)]
    assert gaps[:6] == [1, 2, 4, 8, 16, 32]
    assert max(gaps) == 300
    one.sink = good = Sink("webhook:x")
    clock[0] += 300
    one.deliver([0])
    assert good.taken == ["0000/0", "0001/0", "0002/0"]
    assert one.failures == 0


def test_one_that_is_refused_for_good_is_set_aside_and_the_next_ones_arrive(
    new_store: NewStore, secrets: Secrets
) -> None:
    def picky(alerts: Sequence[OutboxAlert]) -> list[bool]:
        if alerts[0].uid == "0001/0":
            raise Undeliverable("400")
        return [True] + [False] * (len(alerts) - 1)

    store = filled(new_store(), secrets, 4)
    sink = Sink("webhook:x", picky)
    one = worker(store, secrets, sink)
    one.deliver([0])
    assert sink.taken == ["0000/0", "0002/0", "0003/0"]
    assert outcomes(one)["refused"] == 1
    assert store.outbox(0, "webhook:x", 10) == []
    assert len(store.alerts()) == 4, "what was set aside can still be read"


def test_what_waits_is_bounded_and_an_alarm_comes_before(
    new_store: NewStore, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "ROOM", 100 * DECISION_CELLS)

    def away(alerts: Sequence[OutboxAlert]) -> list[bool]:
        raise Unavailable("503")

    for count, dropped, alarm in ((79, 0, False), (80, 0, True), (130, 30, True)):
        store = filled(new_store(), secrets, count)
        one = worker(store, secrets, Sink("webhook:x", away), clock=lambda: 100.0)
        all_of_them = OutboxWorkers([one], Alarms(one.metrics))
        all_of_them.offer([0])
        assert ("outbox" in all_of_them.alarms.raised) is alarm
        waiting = [alert.uid for _, alert in store.outbox(0, "webhook:x", 1000)]
        assert waiting == [f"{i:04d}/0" for i in range(dropped, count)], "the oldest go first"
        assert outcomes(one).get("dropped", 0) == dropped


def test_a_slow_sink_delays_neither_the_others_nor_the_turn(new_store: NewStore, secrets: Secrets) -> None:
    """Threads: the slow one hangs until it is let go, the fast one has everything meanwhile."""
    gate = threading.Event()

    def hangs(alerts: Sequence[OutboxAlert]) -> list[bool]:
        gate.wait(30)
        return [True] * len(alerts)

    store = filled(new_store(), secrets, 5)
    slow, fast = Sink("webhook:slow", hangs), Sink("file:fast")
    both = OutboxWorkers([worker(store, secrets, slow), worker(store, secrets, fast)], Alarms(Metrics()))
    both.start()
    try:
        both.offer([0])
        deadline = time.monotonic() + 20
        while len(fast.taken) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (len(fast.taken), slow.taken) == (5, [])
        gate.set()
        both.drain(20)
        assert len(slow.taken) == 5
    finally:
        gate.set()
        both.stop(5)
    assert both.threads == []


def test_without_threads_the_slow_one_would_delay_the_fast_one(new_store: NewStore, secrets: Secrets) -> None:
    """The control of the test above."""
    order: list[str] = []

    def noted(name: str) -> Callable[[Sequence[OutboxAlert]], list[bool]]:
        def act(alerts: Sequence[OutboxAlert]) -> list[bool]:
            order.append(name)
            return [True] * len(alerts)

        return act

    store = filled(new_store(), secrets, 1)
    sinks = [Sink("a", noted("slow")), Sink("b", noted("fast"))]
    OutboxWorkers([worker(store, secrets, sink) for sink in sinks], Alarms(Metrics())).offer([0])
    assert order == ["slow", "fast"]


def test_a_bug_in_a_sink_ends_the_process_not_only_its_thread(new_store: NewStore, secrets: Secrets) -> None:
    def broken(alerts: Sequence[OutboxAlert]) -> list[bool]:
        raise KeyError("a bug")

    store = filled(new_store(), secrets, 1)
    one = OutboxWorkers([worker(store, secrets, Sink("x", broken))], Alarms(Metrics()))
    one.start()
    one.offer([0])
    one.threads[0].periodic.join(20)
    with pytest.raises(KeyError, match="a bug"):
        one.offer([0])
    one.stop(5)
