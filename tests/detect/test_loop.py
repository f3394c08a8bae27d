"""Detect against the embedded store: who is assessed, what is decided and stored, what is sent, and when it is not."""

from __future__ import annotations

import contextlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support import victims

from consumers.detect import loop as detect
from consumers.detect.loop import Runner
from consumers.detect.overrides import Overrides
from consumers.detect.step import Detect, Seen
from consumers.errors import CorruptState, Fenced, LeaseHeld, Rewound, Unavailable, WrongUse
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.records import decision
from consumers.records.alert import finding_id, stored_alert
from consumers.records.breaker import BreakerLimits
from consumers.records.decision import StoredDecision, episode_after, stored_decision
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, DecisionRow, Entry, Operation, OutboxAlert, Outcome, decision_cell
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import METRICS, Metrics, serve_metrics
from consumers.times import rfc3339
from detector.baseline import Baseline
from detector.policy import Mode, Policy
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
ATTACKS = [("noise_uniform", "plain"), ("jbda", "plain")]
BUDGET = 0.01


class Sink:
    """A receiver that can be away."""

    def __init__(self, name: str, there: bool = True) -> None:
        self.name = name
        self.there = there
        self.taken: list[OutboxAlert] = []

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        if self.there:
            self.taken += alerts
        return [self.there] * len(alerts)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 honest clients and two thieves."""
    path = tmp_path_factory.mktemp("detect") / "log.jsonl"
    victims.log_of(path, victims.streams(20, ATTACKS, seed=23, kinds=["regular", "light"], queries=(700, 900)))
    return path


@pytest.fixture(scope="module")
def thieves(log: Path) -> set[str]:
    streams = victims.streams(20, ATTACKS, seed=23, kinds=["regular", "light"], queries=(700, 900))
    return {s.client for s in streams if s.role == "attack"}


@pytest.fixture
def judging(baseline: Baseline, secrets: Secrets) -> Detect:
    return Detect({victims.MODEL: baseline}, secrets, Policy(BUDGET, "observe"))


@pytest.fixture
def filled(new_store: NewStore, log: Path, baseline: Baseline, secrets: Secrets) -> EmbeddedStore:
    """A store with all profiles and no decision."""
    store = new_store()
    read(store, log, baseline, secrets)
    return store


def read(store: Any, log: Path, baseline: Baseline, secrets: Secrets, turns: int | None = None) -> None:
    reading = ingest.IngestLoop(FileLog([log]), store, Ingest({victims.MODEL: baseline}, secrets))
    if turns is None:
        ingest.run(reading, lambda: False, until_end=True, poll_timeout_s=0.0)
    for _ in range(turns or 0):
        reading.turn(0.0)


def runner(store: Any, judging: Detect, *sinks: Sink, **more: Any) -> Runner:
    return Runner(store, judging, sinks, **({"now_s": lambda: None, "sleep": lambda s: None} | more))


def idle(one: Runner) -> Runner:
    detect.run(one, lambda: False, until_idle=True)
    return one


def rows(store: EmbeddedStore, secrets: Secrets) -> dict[str, StoredDecision]:
    found = (stored_decision(row, secrets, key.tenant) for key, row in store.decisions("default"))
    return {row.client_id: row for row in found}


def alerts(store: EmbeddedStore, secrets: Secrets) -> list[dict[str, Any]]:
    return [stored_alert(alert, secrets) for alert in store.alerts()]


def test_every_client_is_assessed_and_thieves_are_flagged_once(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    one = idle(runner(filled, judging))
    found = rows(filled, secrets)
    assert len(found) == 22
    flagged = {client for client, row in found.items() if row.decision.state in ("throttle", "block")}
    assert flagged >= thieves
    first = alerts(filled, secrets)
    assert {a["client_id"] for a in first} == flagged
    assert len(first) == len({a["alert_id"] for a in first})
    assert all(a["update"] == 0 for a in first)
    text = one.metrics.text().decode()
    assert f'querywarden_clients_assessed_total{{model="{victims.MODEL}"}} 22.0' in text
    assert f'querywarden_transitions_total{{model="{victims.MODEL}",state="throttle"}} {float(len(flagged))}' in text


def test_an_alert_says_when_who_why_and_how_sure(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    idle(runner(filled, judging))
    found = rows(filled, secrets)
    for alert in alerts(filled, secrets):
        row = found[alert["client_id"]]
        assert alert["kind"] == "client"
        assert alert["model_id"] == victims.MODEL
        assert alert["tenant"] == "default"
        assert 0 < alert["queries_seen"] <= row.assessment.queries
        assert rfc3339(row.last_ms) >= alert["time"] >= "2026-03-09"
        assert alert["suspicion"] >= 1 - BUDGET
        assert alert["calibrated"] is True
        assert alert["enforced"] == "clear", "mode observe enforces nothing"
        assert alert["extraction"] is None
        assert {"signal", "statistic", "p_value", "text"} == set(alert["evidence"][0])
        assert "OWASP:ML05:2023" in alert["frameworks"]


def test_an_idle_detector_writes_nothing_new(filled: EmbeddedStore, judging: Detect, secrets: Secrets) -> None:
    idle(runner(filled, judging))
    before = rows(filled, secrets), alerts(filled, secrets)
    again = runner(filled, judging)
    assert again.turn() == 0
    idle(again)
    assert (rows(filled, secrets), alerts(filled, secrets)) == before


def test_looking_often_or_once_gives_the_same(
    new_store: NewStore,
    log: Path,
    baseline: Baseline,
    judging: Detect,
    secrets: Secrets,
    filled: EmbeddedStore,
) -> None:
    """Lifetime budget: a client is not flagged for being looked at often, nor missed for being looked at late."""
    often, once = new_store(), filled
    reading = ingest.IngestLoop(FileLog([log]), often, Ingest({victims.MODEL: baseline}, secrets), max_poll_records=150)
    looking = runner(often, judging)
    while not reading.log.finished:  # type: ignore[attr-defined]
        reading.turn(0.0)
        looking.turn()
    looking.turn()
    idle(runner(once, judging))
    left, right = rows(often, secrets), rows(once, secrets)
    assert left.keys() == right.keys()
    for client, row in left.items():
        assert (row.assessment.suspicion, row.decision.state, row.assessment.queries) == (
            right[client].assessment.suspicion,
            right[client].decision.state,
            right[client].assessment.queries,
        )
        assert row.assessment.evidence == right[client].assessment.evidence
    moments = [
        {
            a["client_id"]: (a["alert_id"], a["time"], a["queries_seen"])
            for a in alerts(store, secrets)
            if a["update"] == 0
        }
        for store in (often, once)
    ]
    assert moments[0] == moments[1]


def test_looking_often_or_once_gives_the_same_across_the_end_of_a_window(
    new_store: NewStore, tmp_path: Path, baseline: Baseline, judging: Detect, secrets: Secrets
) -> None:
    """Odd queries before the end of a half-horizon window and after it: only both together are above the level."""
    rng = np.random.default_rng(0)
    noise = victims.domain().emit(victims.domain().uniform(400, rng))

    def flagged_at(first_ms: int, rows: Any, poll: int) -> list[int]:
        stamps = (rfc3339(first_ms + i * 60_000) for i in range(len(rows)))
        lines = [victims.line(row, timestamp=stamp) for row, stamp in zip(rows, stamps, strict=True)]
        log = victims.write_lines(tmp_path / "log.jsonl", lines)
        store = new_store()
        reading = ingest.IngestLoop(
            FileLog([log]), store, Ingest({victims.MODEL: baseline}, secrets), max_poll_records=poll
        )
        looking = runner(store, judging)
        while not reading.log.finished:  # type: ignore[attr-defined]
            reading.turn(0.0)
            looking.turn()
        looking.turn()
        return [a["queries_seen"] for a in alerts(store, secrets) if a["update"] == 0]

    end_ms = 1369 * 15 * 86_400_000
    (enough,) = flagged_at(end_ms - 10 * 86_400_000, noise, 400)
    assert flagged_at(end_ms - 10 * 86_400_000, noise, 5) == [enough]
    half = enough // 2 + 2
    across = [*noise[: 2 * half], *victims.items(40, rng)]
    assert flagged_at(end_ms - half * 60_000, across, 1) == flagged_at(end_ms - half * 60_000, across, 400)


# ---------------------------------------------------------------------------------------------- decisions over time


def seen_of(store: EmbeddedStore, key: ClientKey, before: StoredDecision | None) -> Seen:
    (cell,) = store.cells()
    return Seen(key, {cell: store.shards(cell, [key]).fields[key]}, before)


def thief_key(secrets: Secrets, thieves: set[str]) -> ClientKey:
    return ClientKey("default", victims.MODEL, secrets.client_hash("default", min(thieves)))


def decided(
    judge: Detect, store: EmbeddedStore, key: ClientKey, before: StoredDecision | None, now_s: int
) -> tuple[StoredDecision, list[dict[str, Any]]]:
    outcome = judge.step(0, [seen_of(store, key, before)], {}, now_s)
    return (
        stored_decision(outcome.rows[key], judge.secrets, key.tenant),
        [stored_alert(a, judge.secrets) for a in outcome.alerts],
    )


def test_a_decision_holds_for_its_time_and_a_new_finding_is_a_new_episode(
    filled: EmbeddedStore, baseline: Baseline, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    key = thief_key(secrets, thieves)
    lenient = Detect(judging.baselines, secrets, Policy(1e-12, "observe"))
    row, sent = decided(judging, filled, key, None, 1000)
    assert row.decision.state == "throttle"
    assert row.decision.until_s == 1000 + 86_400
    assert [a["update"] for a in sent] == [0]
    held, none = decided(lenient, filled, key, row, 2000)
    assert (held.decision.state, held.decision.reason, held.decision.until_s, none) == (
        "throttle",
        "holds",
        row.decision.until_s,
        [],
    )
    assert held.alert == row.alert
    over, closing = decided(lenient, filled, key, held, row.decision.until_s)
    assert (over.decision.state, over.decision.episode, over.alert) == ("clear", 1, None)
    told = [(a["alert_id"], a["update"], a["state"], a["was"], a["resolved"]) for a in closing]
    assert told == [(sent[0]["alert_id"], 1, "clear", "throttle", True)], (
        "the end of an episode closes its finding, once"
    )
    assert decided(lenient, filled, key, over, row.decision.until_s + 5)[1] == []
    again, new = decided(judging, filled, key, over, row.decision.until_s + 10)
    assert (again.decision.state, again.decision.episode) == ("throttle", 1)
    assert [a["update"] for a in new] == [0]
    assert new[0]["alert_id"] != sent[0]["alert_id"]


def test_an_alert_is_updated_when_the_state_rises_and_keeps_its_id(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = thief_key(secrets, thieves)
    row, sent = decided(judging, filled, key, None, 1000)
    same, none = decided(judging, filled, key, row, 1500)
    assert none == [], "nothing rose"
    assert same.decision.until_s == 1500 + 86_400
    monkeypatch.setattr("detector.calibration.MIN_CLIENTS_A_BUDGET", 0.0)  # as if there were honest clients enough
    risen, more = decided(judging, filled, key, same, 2000)
    assert risen.decision.state == "block"
    assert [(a["alert_id"], a["update"], a["state"]) for a in more] == [(sent[0]["alert_id"], 1, "block")]


def test_an_alert_id_is_stable_and_differs_by_client_and_tenant(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    key = thief_key(secrets, thieves)
    ids = {finding_id(key, 0) for _ in range(3)}
    assert len(ids) == 1
    others = {finding_id(key._replace(client="x"), 0), finding_id(key._replace(tenant="x"), 0),
              finding_id(key._replace(model="x"), 0), finding_id(key, 1)}  # fmt: skip
    assert len(ids | others) == 5
    first = decided(judging, filled, key, None, 10)[1][0]["alert_id"]
    assert first == decided(judging, filled, key, None, 99_999)[1][0]["alert_id"] == ids.pop()


def test_an_uncalibrated_baseline_blocks_nothing_and_marks_its_scores(
    filled: EmbeddedStore, baseline: Baseline, secrets: Secrets, thieves: set[str]
) -> None:
    simulated = replace(baseline, calibration=replace(baseline.calibration, calibrated=False))
    row, (alert,) = decided(
        Detect({victims.MODEL: simulated}, secrets, Policy(BUDGET, "block")),
        filled,
        thief_key(secrets, thieves),
        None,
        5,
    )
    assert (row.decision.state, row.decision.reason, row.assessment.calibrated, row.score(victims.MODEL)["calibrated"]) == (
        "throttle", "uncalibrated", False, False,
    )  # fmt: skip
    assert alert["calibrated"] is False


@pytest.mark.parametrize(
    ("mode", "enforced"), [("observe", "clear"), ("alert", "clear"), ("throttle", "throttle"), ("block", "throttle")]
)
def test_the_mode_bounds_what_is_enforced_and_not_what_is_told(
    mode: Mode, enforced: str, filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    judge = Detect(judging.baselines, secrets, Policy(BUDGET, mode))
    row, (alert,) = decided(judge, filled, thief_key(secrets, thieves), None, 5)
    assert (row.decision.state, row.decision.enforced, alert["state"], alert["enforced"]) == (
        "throttle",
        enforced,
        "throttle",
        enforced,
    )


# --------------------------------------------------------------------------------- what people said, and what time does


def test_changes_of_state_are_remembered_with_time_reason_and_score(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = thief_key(secrets, thieves)
    lenient = Detect(judging.baselines, secrets, Policy(1e-12, "observe"))
    row, _ = decided(judging, filled, key, None, 1000)
    assert row.history == ((1000, "throttle", row.decision.reason, row.assessment.suspicion),)
    held, _ = decided(lenient, filled, key, row, 2000)
    assert held.history == row.history, "nothing changed"
    over, _ = decided(lenient, filled, key, held, row.decision.until_s)
    assert over.history[1:] == ((row.decision.until_s, "clear", "no_evidence", over.assessment.suspicion),)
    monkeypatch.setattr(decision, "HISTORY_KEPT", 1)
    again, _ = decided(judging, filled, key, over, row.decision.until_s + 10)
    assert [entry[1] for entry in again.history] == ["throttle"]


def test_a_restriction_falls_by_itself_without_a_new_query(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    wall, mono = [1000], [0.0]
    filled._now_s = lambda: wall[0]
    judge = Detect(judging.baselines, secrets, Policy(BUDGET, "throttle"))
    one = runner(filled, judge, now_s=lambda: wall[0], clock=lambda: mono[0])
    one.turn()
    restricted = {r.client for r in filled.restrictions()[1]}
    assert {
        filled_row.client_id for filled_row in rows(filled, secrets).values() if filled_row.decision.state == "throttle"
    } == thieves
    assert len(restricted) == len(thieves)
    wall[0] += 86_399
    mono[0] += 61
    one.turn()
    assert {r.client for r in filled.restrictions()[1]} == restricted
    wall[0] += 1
    mono[0] += 61
    one.turn()
    assert filled.restrictions()[1] == []
    fallen = [row for row in rows(filled, secrets).values() if row.client_id in thieves]
    assert {
        (row.decision.state, row.decision.reason, row.decision.enforced, row.decision.until_s) for row in fallen
    } == {("watch", "expired", "clear", 0)}
    mono[0] += 61
    assert one.turn() == 0, "once"


@pytest.mark.parametrize("error", [Unavailable("no route"), Fenced("another"), Rewound("cell", 3)])
def test_a_restriction_whose_end_was_not_recorded_falls_later(
    filled: EmbeddedStore,
    judging: Detect,
    secrets: Secrets,
    thieves: set[str],
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall, mono = [1000], [0.0]
    filled._now_s = lambda: wall[0]
    judge = Detect(judging.baselines, secrets, Policy(BUDGET, "throttle"))
    one = runner(filled, judge, now_s=lambda: wall[0], clock=lambda: mono[0])
    one.turn()
    wall[0] += 86_400
    mono[0] += 61
    record, refused = filled.record, list[Outcome]()

    def once(token: str, revision: int, outcome: Outcome, *more: Any) -> int:
        if outcome.rows and not refused:
            refused.append(outcome)
            raise error
        return record(token, revision, outcome, *more)

    monkeypatch.setattr(filled, "record", once)
    with contextlib.suppress(Unavailable):
        one.turn()
    assert refused
    wall[0] += 61
    mono[0] += 61
    one.turn()
    fallen = [row for row in rows(filled, secrets).values() if row.client_id in thieves]
    assert {(row.decision.state, row.decision.until_s) for row in fallen} == {("watch", 0)}


def test_an_allow_listed_client_is_reported_but_nothing_is_enforced(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    key = thief_key(secrets, thieves)
    allowed = Entry("default", "allow", f"*|{key.client}", b'{"reason":"partner","actor":"alice"}')
    revision, _ = filled.operator_entries("allow")
    filled.operate(revision, Operation(puts=[allowed]))
    judge = Detect(judging.baselines, secrets, Policy(BUDGET, "block"))
    one = runner(filled, judge, now_s=lambda: 1000)
    one.turn()
    found = rows(filled, secrets)
    spared = found[min(thieves)]
    assert (spared.decision.state, spared.decision.enforced, spared.decision.reason) == (
        "throttle",
        "clear",
        "allow_listed",
    )
    assert {found[t].decision.enforced for t in thieves if t != min(thieves)} == {"throttle"}
    assert {a["client_id"] for a in alerts(filled, secrets)} == thieves


def test_a_storm_of_flags_is_told_and_enforced_against_nobody_more(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.policy.MIN_ODD_TO_THROTTLE", 0)
    judge = Detect(judging.baselines, secrets, Policy(0.49, "block"))
    overrides = Overrides(BreakerLimits(most=2, least=2))
    one = runner(filled, judge, now_s=lambda: 1000, overrides=overrides)
    one.turn()
    flagged = [row for row in rows(filled, secrets).values() if row.decision.state in ("throttle", "block")]
    assert len(flagged) > 4
    assert sum(row.decision.enforced != "clear" for row in flagged) == 2
    assert {row.decision.reason for row in flagged if row.decision.enforced == "clear"} == {"breaker"}
    assert len(alerts(filled, secrets)) == len(flagged)
    one.turn()
    assert "breaker" in one.alarms.raised
    assert [entry.key for entry in filled.operator_entries("breaker")[1]] == ["tripped"]


@pytest.mark.parametrize("shift_s", [-31 * 86_400, 31 * 86_400])
def test_a_clock_that_is_a_month_off_changes_no_score(
    shift_s: int, filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    key = thief_key(secrets, thieves)
    right, (alert,) = decided(judging, filled, key, None, 1_773_500_000)
    off, (moved,) = decided(judging, filled, key, None, 1_773_500_000 + shift_s)
    assert off.score(victims.MODEL) == right.score(victims.MODEL)
    assert alert == moved, "an alert tells the log's time"


# ---------------------------------------------------------------------------------------------------------- sinks


def test_alerts_reach_every_sink_once_and_one_that_is_away_gets_them_later(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets
) -> None:
    good, bad = Sink("file:/good"), Sink("kafka:bad", there=False)
    clock = [1000.0]
    one = runner(filled, judging, good, bad, clock=lambda: clock[0])
    one.turn()
    count = len(filled.alerts())
    assert count >= 2
    assert (len(good.taken), len(bad.taken)) == (count, 0)
    clock[0] += 1
    one.turn()
    bad.there = True
    clock[0] += 1.9
    one.turn()
    assert bad.taken == [], "left alone for twice as long"
    clock[0] += 0.2
    one.turn()
    one.turn()
    assert [len(good.taken), len(bad.taken)] == [count, count]
    sent = {alert.uid: msgspec.json.decode(alert.body) for alert in good.taken}
    assert sent == {f"{a['alert_id']}/{a['update']}": a for a in alerts(filled, secrets)}
    text = one.metrics.text().decode()
    assert f'querywarden_alerts_total{{outcome="sent",sink="kafka"}} {float(count)}' in text
    assert 'querywarden_alerts_total{outcome="failed",sink="kafka"} 2.0' in text


def test_a_new_process_sends_what_the_old_one_could_not(filled: EmbeddedStore, judging: Detect) -> None:
    away = Sink("file:/x", there=False)
    idle(runner(filled, judging, away))
    there = Sink("file:/x")
    idle(runner(filled, judging, there))
    idle(runner(filled, judging, there))
    assert len(there.taken) == len(filled.alerts()) > 0


def test_many_alerts_of_a_cell_leave_in_one_turn(
    filled: EmbeddedStore, judging: Detect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.alerts.delivery.ALERTS_AT_ONCE", 1)
    monkeypatch.setattr("detector.policy.MIN_ODD_TO_THROTTLE", 0)
    judge = Detect(judging.baselines, judging.secrets, Policy(0.49, "observe"))
    sink = Sink("file:/x")
    runner(filled, judge, sink).turn()
    assert len(sink.taken) == len(filled.alerts()) > 5


def test_no_client_id_is_stored_in_clear(filled: EmbeddedStore, judging: Detect, tmp_path: Path) -> None:
    idle(runner(filled, judging, Sink("file:/x")))
    assert filled.alerts()
    filled.close()
    files = list(tmp_path.glob("store0.sqlite*"))
    assert files
    for file in files:
        assert b"acct-" not in file.read_bytes()


# --------------------------------------------------------------------------------------------- damage and faults


def test_a_damaged_decision_is_set_aside_and_made_anew(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    key = thief_key(secrets, thieves)
    whole = judging.step(0, [seen_of(filled, key, None)], {}, 10).rows[key]
    for damaged in (b"", b"\xc1", whole.row[:-5], whole.row[: len(whole.row) // 2], msgspec.msgpack.encode({"a": 1})):
        with pytest.raises(CorruptState):
            stored_decision(DecisionRow(damaged, "clear", 0.0, 0), secrets, key.tenant)
    with pytest.raises(CorruptState):
        stored_decision(whole, Secrets.draw(), key.tenant)
    with pytest.raises(CorruptState):
        stored_decision(whole, secrets, "another tenant")
    cell = decision_cell(key, DECISION_CELLS)
    claim = filled.claim_decisions(cell, "p", "t" * 32, 1000)
    bad = DecisionRow(b"\xc1", "clear", 0.0, 0)
    filled.record("t" * 32, claim.revision, Outcome(cell, {}, {key: bad}, []), "p", 1000)
    filled.release_decisions(cell, "p")
    idle(runner(filled, judging))
    anew = rows(filled, secrets)[min(thieves)]
    assert anew.decision.state == "throttle"
    first = stored_decision(whole, secrets, key.tenant)
    assert anew.alert is not None
    assert first.alert is not None
    assert anew.alert["alert_id"] != first.alert["alert_id"], "the first may have been sent, and each is sent once"
    assert anew.alert["alert_id"] in {a["alert_id"] for a in alerts(filled, secrets)}
    again = judging.step(0, [replace(seen_of(filled, key, None), episode=episode_after(bad))], {}, 10).rows[key]
    assert stored_decision(again, secrets, key.tenant).alert == anew.alert, "every detector gives the same number"


@pytest.mark.parametrize("field", ["h", "w"])
def test_a_damaged_profile_is_passed_over_and_nobody_else_suffers(
    field: str, filled: EmbeddedStore, judging: Detect, secrets: Secrets, thieves: set[str]
) -> None:
    key = thief_key(secrets, thieves)
    one = seen_of(filled, key, None)
    ((cell, fields),) = one.fields.items()
    broken = {n: (b"\x01" + b"x" * 60 if n.startswith(field) else blob) for n, blob in fields.items()}
    other = ClientKey("default", victims.MODEL, secrets.client_hash("default", max(thieves)))
    outcome = judging.step(0, [Seen(key, {cell: broken}, None), seen_of(filled, other, None)], {}, 10)
    assert list(outcome.rows) == [other]


def test_clients_of_a_model_without_baseline_are_passed_over(filled: EmbeddedStore, secrets: Secrets) -> None:
    idle(runner(filled, Detect({}, secrets)))
    assert list(filled.decisions("default")) == []


class Faulty:
    """A store that raises once where it is told to."""

    def __init__(self, store: EmbeddedStore, call: str, error: Exception, after: bool) -> None:
        self._store, self._call, self._error, self._after = store, call, error, after
        self.raised = False

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._store, name)
        if name != self._call or self.raised:
            return there

        def fail(*arguments: Any) -> Any:
            self.raised = True
            if self._after:
                there(*arguments)
            raise self._error

        return fail


@pytest.mark.parametrize(
    ("call", "error", "after"),
    [
        ("cells", Unavailable("no route"), False),
        ("touched", Unavailable("no route"), False),
        ("claim_decisions", Unavailable("answer lost"), True),
        ("claim_decisions", LeaseHeld(0, 500), False),
        ("load_decisions", Unavailable("no route"), False),
        ("load_decisions", Fenced("another"), False),
        ("load_decisions", Rewound("cell", 3), False),
        ("shards", Unavailable("no route"), False),
        ("record", Unavailable("no route"), False),
        ("record", Unavailable("answer lost"), True),
        ("record", Fenced("another"), False),
        ("record", Rewound("cell", 3), False),
        ("outbox", Unavailable("no route"), False),
        ("sent", Unavailable("answer lost"), True),
    ],
)
def test_a_fault_changes_no_outcome(
    call: str,
    error: Exception,
    after: bool,
    filled: EmbeddedStore,
    judging: Detect,
    secrets: Secrets,
    thieves: set[str],
) -> None:
    faulty, sink = Faulty(filled, call, error, after), Sink("file:/x")
    idle(runner(faulty, judging, sink))
    assert faulty.raised
    found = rows(filled, secrets)
    assert len(found) == 22
    assert all(found[thief].decision.state == "throttle" for thief in thieves)
    told = alerts(filled, secrets)
    assert len({a["alert_id"] for a in told}) == len(told), "stored once"
    assert {alert.uid for alert in sink.taken} == {f"{a['alert_id']}/0" for a in told}, "sent at least once"


def test_the_store_being_away_is_counted_and_waited_for(filled: EmbeddedStore, judging: Detect) -> None:
    slept: list[float] = []
    faulty = Faulty(filled, "cells", Unavailable("no route"), False)
    one = runner(faulty, judging, sleep=slept.append)
    idle(one)
    assert slept[0] > 0
    assert 'querywarden_store_unavailable_total{process="detect"} 1.0' in one.metrics.text().decode()


# --------------------------------------------------------------------------------------------------------- leases


def test_detectors_that_live_share_the_cells_and_who_stays_takes_over(filled: EmbeddedStore, judging: Detect) -> None:
    clock = [0.0]
    one, other, third = (runner(filled, judging, clock=lambda: clock[0]) for _ in range(3))

    def held(*living: Runner) -> list[int]:
        for _ in range(2):  # one turn to let go, one to take
            clock[0] += 4.0
            for each in living:
                each.turn()
        return [len(each.cells.held) for each in (one, other, third)]

    assert held(one) == [32, 0, 0]
    assert held(one, other) == [16, 16, 0]
    assert held(one, other, third) == [11, 11, 10]
    other.cells.release()
    assert held(one, third) == [16, 0, 16]
    third.cells.release()
    assert held(one) == [32, 0, 0]


def test_a_detector_that_ends_when_idle_ends_beside_one_that_goes_on(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets
) -> None:
    """The other holds every cell and never lets go: it is enough that it looked at them."""
    seconds = [0.0]
    filled._now_s = lambda: 1000.0 + seconds[0]
    one = runner(filled, judging, clock=lambda: seconds[0])
    one.turn()
    assert len(one.cells.held) == DECISION_CELLS

    def meanwhile(s: float) -> None:
        seconds[0] += 1.0
        one.turn()

    batch = runner(filled, judging, clock=lambda: seconds[0], sleep=meanwhile)
    detect.run(batch, lambda: seconds[0] > 60, until_idle=True)
    assert 2 * one.lease_ms / 3000 <= seconds[0] < 15


def test_a_detector_that_ends_when_idle_takes_over_the_leases_of_a_stopped_one(
    filled: EmbeddedStore, judging: Detect
) -> None:
    """Its leases run out and are taken; nothing is left behind."""
    seconds = [0.0]
    filled._now_s = lambda: 1000.0 + seconds[0]
    stopped = runner(filled, judging, clock=lambda: seconds[0])
    for cell in range(DECISION_CELLS):
        stopped.cells.claim(cell)

    def meanwhile(s: float) -> None:
        seconds[0] += 1.0

    batch = runner(filled, judging, clock=lambda: seconds[0], sleep=meanwhile)
    detect.run(batch, lambda: seconds[0] > 60, until_idle=True)
    assert 10 <= seconds[0] < 15
    assert len(list(filled.decisions("default"))) == 22


def test_a_detector_whose_lease_ran_out_is_fenced(filled: EmbeddedStore, judging: Detect, secrets: Secrets) -> None:
    clock = [1000.0]
    filled._now_s = lambda: clock[0]
    one, other = runner(filled, judging), runner(filled, judging)
    for cell in range(DECISION_CELLS):
        one.cells.claim(cell)
    clock[0] += one.lease_ms / 1000 + 1
    assert other.turn() == 22
    assert one.turn() == 0
    assert len(rows(filled, secrets)) == 22
    assert len(alerts(filled, secrets)) == len({a["alert_id"] for a in alerts(filled, secrets)})


def test_two_detectors_that_split_the_cells_both_come_to_an_end(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets
) -> None:
    """Each holds half of the cells when it starts; neither may wait for the other for ever."""
    halves = [runner(filled, judging, sleep=threading.Event().wait) for _ in range(2)]
    for cell in range(DECISION_CELLS):
        halves[cell % 2].cells.claim(cell)
    threads = [threading.Thread(target=idle, args=(half,), daemon=True) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert len(rows(filled, secrets)) == 22
    assert len(alerts(filled, secrets)) == len({a["alert_id"] for a in alerts(filled, secrets)})


def test_stop_leaves_between_two_cells_and_the_rest_is_not_lost(
    filled: EmbeddedStore, judging: Detect, secrets: Secrets
) -> None:
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 5

    detect.run(runner(filled, judging), stop)
    assert len(rows(filled, secrets)) < 22
    idle(runner(filled, judging))
    assert len(rows(filled, secrets)) == 22


# -------------------------------------------------------------------------------------------------------- metrics


def get(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_metrics_server_answers_probes_and_shows_no_client(
    filled: EmbeddedStore, judging: Detect, log: Path, baseline: Baseline, secrets: Secrets
) -> None:
    one = runner(filled, judging, Sink("file:/somewhere/acct-1.jsonl"))
    with contextlib.ExitStack() as stack:
        base = "http://" + serve_metrics("127.0.0.1:0", one.metrics, lambda: one.ready, stack)
        assert get(f"{base}/healthz") == (200, "ok\n")
        assert get(f"{base}/readyz")[0] == 503
        idle(one)
        assert get(f"{base}/readyz") == (200, "ready\n")
        assert get(f"{base}/")[0] == 404
        status, text = get(f"{base}/metrics")
    assert status == 200
    assert "acct-" not in text
    assert secrets.client_hash("default", "acct-1") not in text
    for name in METRICS:
        assert f"# HELP {name.removesuffix('_total')}" in text


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_an_address_that_is_none_is_refused(bind: str) -> None:
    with contextlib.ExitStack() as stack, pytest.raises(WrongUse, match="host:port"):
        serve_metrics(bind, Metrics(), lambda: True, stack)


def test_labels_are_never_of_a_client() -> None:
    labels = {label for _, names, _ in METRICS.values() for label in names}
    assert labels <= {
        "alarm", "cause", "cell", "decision", "method", "model", "operation", "origin", "outcome", "process", "reason", "route",
        "sink", "state", "status", "target", "version",
    }  # fmt: skip
