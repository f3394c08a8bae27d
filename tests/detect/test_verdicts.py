"""A verdict reaches every sink as one update of its finding, whatever happens in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.seeded_api import MODEL, OURS, SECRETS, alert_id, alert_of, client_hash, decided, keep

from consumers.alerts.finding import finding
from consumers.alerts.ocsf import detection_finding
from consumers.detect.loop import Runner
from consumers.detect.step import Detect
from consumers.errors import Rewound
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.operate import Operations
from consumers.records.decision import stored_decision
from consumers.store import OutboxAlert
from consumers.store.embedded import EmbeddedStore
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
WHO = Actor("alice", "analyst", OURS)
THIEF = Subject(client_hash("thief"), MODEL, "thief")
KEY = ClientKey(OURS, MODEL, THIEF.client)


class Sink:
    name = "kafka:alerts"

    def __init__(self) -> None:
        self.taken: list[OutboxAlert] = []

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        self.taken += alerts
        return [True] * len(alerts)

    def close(self) -> None: ...


@pytest.fixture
def store(new_store: NewStore) -> EmbeddedStore:
    """A client with a finding that was told, one update old; rows, no profiles, no baselines: nothing is assessed."""
    made = new_store()
    made.prepare(SECRETS.key_id)
    row = decided("thief", 1e-5, "block", update=1)
    alert = alert_of(row, OURS, update=1)
    keep(made, OURS, [decided("thief", 1e-5, "block", update=1, alert=alert)], [alert_of(row, OURS), alert])
    return made


def detector(store: Any, sink: Sink) -> Runner:
    return Runner(store, Detect({}, SECRETS), [sink], sleep=lambda s: None, process=f"p{time.monotonic_ns()}")


def judge(store: EmbeddedStore, verdict: str, note: str = "looked", alert: str = "") -> None:
    Operations(store, SECRETS).record_verdict(WHO, alert or alert_id("thief"), verdict, THIEF, note=note)


def turns(one: Runner, n: int = 3) -> Runner:
    for _ in range(n):
        one.turn()
    return one


def test_a_verdict_is_the_next_update_of_its_finding_told_once_over_restarts(store: EmbeddedStore) -> None:
    sink = Sink()
    one = turns(detector(store, sink))
    assert [a.uid.rpartition("/")[2] for a in sink.taken] == ["0", "1"]
    judge(store, "true_positive")
    turns(one).release()
    turns(detector(store, sink)).release()
    assert [a.uid for a in sink.taken[2:]] == [f"{alert_id('thief')}/2"]
    found = finding(sink.taken[-1])
    assert (found.activity, found.client_id, found.state) == ("updated", "thief", "block")
    told = detection_finding(found)
    assert (told["verdict_id"], told["verdict"], told["assignee"]["name"]) == (2, "True Positive", "alice")
    judge(store, "false_positive")
    turns(detector(store, sink)).release()
    assert [a.uid.rpartition("/")[2] for a in sink.taken] == ["0", "1", "2", "3"]
    assert detection_finding(finding(sink.taken[-1]))["verdict_id"] == 1
    assert len(store.alerts()) == 4
    row = stored_decision(store.decided([KEY])[KEY], SECRETS, OURS)
    assert row.update == 3, "detect counts on from here"
    assert row.alert is not None
    assert row.alert["verdict"]["verdict"] == "false_positive"


def test_a_verdict_that_says_what_was_said_tells_nobody_again(store: EmbeddedStore) -> None:
    sink = Sink()
    judge(store, "true_positive")
    one = turns(detector(store, sink))
    judge(store, "true_positive")
    turns(one)
    assert len(sink.taken) == 3


def test_a_finding_that_is_over_is_continued_from_what_was_sent(store: EmbeddedStore) -> None:
    """The client's row belongs to a later episode by now."""
    keep(store, OURS, [decided("thief", 0.4, "clear", episode=1)])
    sink = Sink()
    judge(store, "false_positive")
    turns(detector(store, sink)).release()
    turns(detector(store, sink)).release()
    assert [a.uid.rpartition("/")[2] for a in sink.taken] == ["0", "1", "2"]
    assert stored_decision(store.decided([KEY])[KEY], SECRETS, OURS).update == -1


def test_a_verdict_about_a_finding_that_nobody_has_any_more_tells_nothing(store: EmbeddedStore) -> None:
    sink = Sink()
    judge(store, "true_positive", alert="0" * 32)
    turns(detector(store, sink))
    assert len(sink.taken) == 2


class Overtaken:
    """A store whose first record is refused, after another one has written."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store, self.left = store, 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def record(self, *args: Any) -> int:
        if args[2].alerts and self.left:
            self.left -= 1
            raise Rewound("elsewhere", 9)
        return self._store.record(*args)


def test_a_record_that_is_refused_is_written_by_whoever_claims_next(store: EmbeddedStore) -> None:
    sink, overtaken = Sink(), Overtaken(store)
    judge(store, "true_positive")
    one = turns(detector(overtaken, sink), 1)
    assert (overtaken.left, len(store.alerts())) == (0, 2)
    turns(one)
    assert [a.uid.rpartition("/")[2] for a in sink.taken] == ["0", "1", "2"]
