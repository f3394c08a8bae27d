"""A verdict reaches every sink as one update of its finding, whatever happens in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.seeded_api import MODEL, OURS, SECRETS, alert_id, alert_of, client_hash, decided, keep

from consumers.alerts.finding import finding
from consumers.alerts.ocsf import detection_finding
from consumers.detect.loop import Runner
from consumers.detect.step import Detect
from consumers.detect.verdicts import PendingVerdict, tell
from consumers.errors import Rewound
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.operate import Operations
from consumers.records import alert as alerts
from consumers.records.decision import StoredDecision, stored_decision
from consumers.records.operator_entries import StoredVerdict, VerdictValue
from consumers.store import DecisionRow, OutboxAlert, Outcome, decision_cell
from consumers.store.embedded import EmbeddedStore
from detector.policy import Decision, ExposureBudget, Spent, State, news
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
    turns(one).cells.release()
    turns(detector(store, sink)).cells.release()
    assert [a.uid for a in sink.taken[2:]] == [f"{alert_id('thief')}/2"]
    found = finding(sink.taken[-1])
    assert (found.activity, found.client_id, found.state) == ("updated", "thief", "block")
    told = detection_finding(found)
    assert (told["verdict_id"], told["verdict"], told["assignee"]["name"]) == (2, "True Positive", "alice")
    judge(store, "false_positive")
    turns(detector(store, sink)).cells.release()
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
    turns(detector(store, sink)).cells.release()
    turns(detector(store, sink)).cells.release()
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


BUDGET = ExposureBudget(alert=0.5, throttle=0.8)
VERDICTS: tuple[VerdictValue, ...] = ("true_positive", "false_positive")


class Turns:
    """Turns of detect about one client, as `step` and `loop` put them together, and all alerts that were recorded."""

    def __init__(self) -> None:
        self.stored: DecisionRow | None = None
        self.alerts: list[OutboxAlert] = []

    def turn(self, state: State, exposed: Spent, verdict: StoredVerdict | None = None) -> Outcome:
        before = None if self.stored is None else stored_decision(self.stored, SECRETS, OURS)
        row = following(before, state, exposed)
        outcome = Outcome(decision_cell(KEY, 32))
        telling = news(
            before.decision if before else Decision(), row.decision, before is not None and before.alert is not None
        )
        row, spent = alerts.spent_told(KEY, row, before, BUDGET, "exposure_budget", SECRETS)
        outcome.rows[KEY], told = alerts.told(KEY, row, before, telling, SECRETS)
        outcome.alerts += [one for one in (told, spent) if one is not None]
        rows = {} if self.stored is None else {KEY: self.stored}
        store: Any = SimpleNamespace(alerts=lambda: self.alerts)
        if verdict is not None:
            tell(outcome, [PendingVerdict(KEY, verdict)], rows, store, SECRETS)
        self.stored = outcome.rows[KEY]
        self.alerts = [*self.alerts, *outcome.alerts]
        return outcome

    def bodies(self, alert_id: str = "") -> list[dict[str, Any]]:
        found = [alerts.stored_alert(one, SECRETS) for one in self.alerts]
        return [body for body in found if alert_id in ("", body["alert_id"])]


def following(before: StoredDecision | None, state: State, exposed: Spent) -> StoredDecision:
    """The row that follows, as `decided` makes it: a client that is clear again begins a new episode, without a finding."""
    earlier = before.decision if before is not None else Decision()
    episode = earlier.episode + int(state == "clear" != earlier.state)
    row = decided("thief", 1e-5, state, episode=episode, exposed=exposed)
    if before is None:
        return row
    same = episode == earlier.episode
    return replace(
        row,
        alert=before.alert if same else None,
        update=before.update if same else -1,
        budget=before.budget,
    )


def said(alert_id: str, verdict: VerdictValue = "false_positive", note: str = "") -> StoredVerdict:
    return StoredVerdict(alert_id, verdict, note, "ann", int(time.time()), MODEL, KEY.client)


@pytest.mark.parametrize("page", [1, 100])
def test_a_verdict_and_the_end_of_its_finding_in_one_turn_are_two_updates(new_store: NewStore, page: int) -> None:
    turns = Turns()
    turns.turn("block", "none")
    outcome = turns.turn("clear", "none", said(turns.bodies()[0]["alert_id"]))
    store = new_store()
    store.prepare(SECRETS.key_id)
    claim = store.claim_decisions(outcome.cell, "p", "0" * 32, 60_000)
    store.record("0" * 32, claim.revision, Outcome(outcome.cell, alerts=turns.alerts), "p", 60_000)
    sent: list[dict[str, Any]] = []
    while pending := store.outbox(outcome.cell, "sink", page):
        for entry, one in pending:
            sent.append(alerts.stored_alert(one, SECRETS))
            store.sent(outcome.cell, "sink", entry, one.uid)
    assert [(b["update"], b.get("resolved", False), "verdict" in b) for b in sent] == [
        (0, False, False),
        (1, True, False),
        (2, True, True),
    ], "the verdict leaves the finding closed"


def test_a_verdict_about_the_budget_takes_no_number_of_what_follows() -> None:
    turns = Turns()
    turns.turn("clear", "alert")
    (first,) = turns.bodies()
    turns.turn("clear", "alert", said(first["alert_id"]))
    turns.turn("clear", "throttle")
    turns.turn("clear", "none")
    assert [
        (b["update"], b["state"], b.get("verdict", {}).get("verdict")) for b in turns.bodies(first["alert_id"])
    ] == [
        (0, "watch", None),
        (1, "watch", "false_positive"),
        (2, "throttle", "false_positive"),
        (3, "clear", "false_positive"),
    ]
    turns.turn("clear", "none", said(first["alert_id"]))
    assert len(turns.alerts) == 4, "who claims the cell again finds nothing to do"
    turns.turn("clear", "none", said(first["alert_id"], "true_positive"))
    assert [b["update"] for b in turns.bodies(first["alert_id"])] == [0, 1, 2, 3, 4]


TURN = st.tuples(
    st.sampled_from(["clear", "throttle", "block"]),
    st.sampled_from(["none", "alert", "throttle"]),
    st.one_of(st.none(), st.tuples(st.integers(0, 99), st.sampled_from(VERDICTS), st.sampled_from(["", "a", "b"]))),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=14))
def test_whatever_happens_in_whatever_order_each_number_of_a_finding_is_given_once(drawn: list[Any]) -> None:
    """States, budgets and verdicts about any finding that was told, open or closed, of this turn's making or an old one's."""
    turns, known = Turns(), list[str]()
    for state, exposed, judging in drawn:
        verdict = None
        if judging is not None and known:
            which, value, note = judging
            verdict = said(known[which % len(known)], value, note)
        turns.turn(state, exposed, verdict)
        known = list(dict.fromkeys(body["alert_id"] for body in turns.bodies()))
        if verdict is not None:
            last = turns.bodies(verdict.alert_id)[-1]
            assert last["verdict"]["verdict"] == verdict.verdict, "it was sent, or had been"
    for name in known:
        bodies = turns.bodies(name)
        assert [body["update"] for body in bodies] == list(range(len(bodies)))
        over = [body.get("resolved", False) for body in bodies]
        assert over == sorted(over), "nothing re-opens a finding that was closed"
    spent = any(body.get("policy") == "exposure" for body in turns.bodies())
    assert spent == any(exposed != "none" for _, exposed, _ in drawn)
