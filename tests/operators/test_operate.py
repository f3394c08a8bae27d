"""What operators may do: bounds, time limits, idempotency, verdicts, keys; and that each is one step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.seeded_api import OURS, SECRETS, World

from consumers.errors import Conflict, CorruptState, Missing, Rewound, Unavailable, WrongUse
from consumers.operators.audit import stored_rows
from consumers.operators.audited_write import DAY_S, Actor, Subject
from consumers.operators.operate import MOST_NOTES, Operations
from consumers.readers.queries import Reader
from consumers.records import operator_entries
from consumers.store import Entry, Operation
from consumers.store.embedded import EmbeddedStore
from detector.query import ClientKey

MARIA = Actor("maria", "operator", OURS)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def operations(tmp_path: Path, clock: Clock) -> Iterator[Operations]:
    store = EmbeddedStore(tmp_path / "operate.sqlite", now_s=clock)
    store.prepare(SECRETS.key_id)
    yield Operations(store, SECRETS, clock, sleep=lambda _: None)
    store.close()


def reader(operations: Operations) -> Reader:
    return Reader(operations.store, SECRETS, OURS, operations.now_s)


def thief(operations: Operations, model: str = "*") -> Subject:
    return operations.subject(OURS, model, "thief")


def rows(operations: Operations) -> int:
    return len(list(stored_rows(operations.store)))


def test_a_decision_ends_by_itself(operations: Operations, clock: Clock) -> None:
    made = operations.decide(MARIA, thief(operations), "block", ttl_s=600, reason="r", note="n")
    assert made.until_s == clock.now + 600
    (shown,) = reader(operations).decisions()
    assert (shown.client_id, shown.state, shown.actor, shown.reason, shown.note) == (
        "thief",
        "block",
        "maria",
        "r",
        "n",
    )
    clock.now += 601
    assert reader(operations).decisions() == ()


@pytest.mark.parametrize("ttl_s", [0, -1, 30 * DAY_S + 1])
def test_nobody_is_locked_out_for_ever(operations: Operations, ttl_s: int) -> None:
    with pytest.raises(WrongUse, match="ttl_s"):
        operations.decide(MARIA, thief(operations), "block", ttl_s=ttl_s)
    assert rows(operations) == 0


def test_what_is_stored_holds_no_id_in_clear(operations: Operations) -> None:
    operations.decide(MARIA, thief(operations), "block", reason="because")
    operations.allow(MARIA, thief(operations))
    operations.note(MARIA, ClientKey(OURS, "m", thief(operations).client), "thief was here")
    raw = [
        e.value + e.key.encode()
        for kind in ("decision", "allow", "note")
        for e in operations.store.operator_entries(kind)[1]
    ]
    raw += [line for _, line in stored_rows(operations.store)]
    assert len(raw) == 6
    assert not any(b"thief" in one for one in raw)


def test_release_of_all_models_drops_what_was_said_of_one(operations: Operations) -> None:
    operations.decide(MARIA, thief(operations, "fraud"), "block")
    operations.decide(MARIA, thief(operations), "clear", ttl_s=60)
    assert [(d.model_id, d.state) for d in reader(operations).decisions()] == [("*", "clear")]


def test_a_dry_run_is_only_shown(operations: Operations) -> None:
    operations.decide(MARIA, thief(operations, "fraud"), "block")
    operations.decide(MARIA, thief(operations), "clear", simulated=True)
    kept = reader(operations)
    assert [(d.model_id, d.state) for d in kept.decisions()] == [("fraud", "block")], "the real one stays"
    assert {(d.model_id, d.simulated) for d in kept.decisions(simulated=True)} == {("fraud", False), ("*", True)}
    assert rows(operations) == 2


def test_taking_back(operations: Operations) -> None:
    with pytest.raises(Missing):
        operations.withdraw(MARIA, thief(operations))
    operations.decide(MARIA, thief(operations), "block")
    assert operations.withdraw(MARIA, thief(operations)).state == "block"
    assert reader(operations).decisions() == ()
    with pytest.raises(Missing):
        operations.disallow(MARIA, thief(operations))
    operations.allow(MARIA, thief(operations), reason="ours")
    assert operations.disallow(MARIA, thief(operations)).reason == "ours"
    assert reader(operations).allowlist() == ()


# ------------------------------------------------------------------------------------------------- idempotency


def test_the_same_key_has_one_effect_and_one_row(operations: Operations, clock: Clock) -> None:
    first = operations.decide(MARIA, thief(operations), "block", ttl_s=600, once="a")
    clock.now += 5
    again = operations.decide(MARIA, thief(operations), "block", ttl_s=600, once="a")
    assert again == first, "not a later end"
    assert rows(operations) == 1
    assert operations.decide(MARIA, thief(operations), "block", ttl_s=600).until_s == first.until_s + 5, (
        "without the key: anew"
    )


def test_the_same_key_with_another_request_conflicts(operations: Operations) -> None:
    operations.decide(MARIA, thief(operations), "block", once="a")
    with pytest.raises(Conflict):
        operations.decide(MARIA, thief(operations), "throttle", once="a")
    with pytest.raises(Conflict):
        operations.allow(MARIA, thief(operations), once="a")
    other = Actor("li", "operator", OURS)
    assert operations.decide(other, thief(operations), "throttle", once="a").state == "throttle", (
        "another's key is another key"
    )


def test_a_key_is_forgotten_after_a_day(operations: Operations, clock: Clock) -> None:
    operations.decide(MARIA, thief(operations), "block", ttl_s=60, once="a")
    clock.now += DAY_S + 1
    operations.decide(MARIA, thief(operations), "block", ttl_s=60, once="a")
    assert rows(operations) == 2


def test_a_key_whose_first_answer_was_lost(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store wrote, the answer was lost on the way: the caller sends it again and gets the first answer."""
    real = operations.store.operate

    def lost(revision: int, operation: Operation) -> int:
        real(revision, operation)
        raise Unavailable("the answer was lost")

    monkeypatch.setattr(operations.store, "operate", lost)
    with pytest.raises(Unavailable):
        operations.decide(MARIA, thief(operations), "block", once="a")
    monkeypatch.undo()
    operations.decide(MARIA, thief(operations), "block", once="a")
    assert rows(operations) == 1


def test_two_at_once_with_the_same_key(operations: Operations) -> None:
    made: list[Any] = []
    threads = [
        threading.Thread(target=lambda: made.append(operations.decide(MARIA, thief(operations), "block", once="a")))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 1
    assert len(made) == 6
    assert rows(operations) == 1


def test_what_changes_in_between_is_planned_anew(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = operations.store.operate, []

    def contended(revision: int, operation: Operation) -> int:
        tries.append(revision)
        if len(tries) < 4:
            raise Rewound("operators", revision + 1)
        return real(revision, operation)

    monkeypatch.setattr(operations.store, "operate", contended)
    operations.decide(MARIA, thief(operations), "block")
    assert len(tries) == 4
    assert rows(operations) == 1
    monkeypatch.setattr(operations.store, "operate", _always_rewound)
    with pytest.raises(Unavailable):
        operations.decide(MARIA, thief(operations), "block")


def _always_rewound(revision: int, operation: Operation) -> int:
    raise Rewound("operators", revision + 1)


# -------------------------------------------------------------------------------------------- verdicts and notes


def test_a_false_positive_is_left_alone_for_a_month(operations: Operations, clock: Clock) -> None:
    subject = thief(operations, "fraud")
    operations.record_verdict(MARIA, "alert-1", "false_positive", subject, note="our own test")
    (allowed,) = reader(operations).allowlist()
    assert (allowed.client_id, allowed.model_id, allowed.origin) == ("thief", "fraud", "verdict")
    assert allowed.until_s == clock.now + 30 * DAY_S
    assert reader(operations).verdicts()["alert-1"].verdict == "false_positive"
    operations.record_verdict(MARIA, "alert-1", "true_positive", subject)
    assert reader(operations).allowlist() == ()
    assert reader(operations).verdicts()["alert-1"].verdict == "true_positive"


def test_a_verdict_never_shortens_what_an_operator_allowed(operations: Operations) -> None:
    subject = thief(operations, "fraud")
    operations.allow(MARIA, subject, reason="partner")
    operations.record_verdict(MARIA, "alert-1", "false_positive", subject)
    operations.record_verdict(MARIA, "alert-1", "true_positive", subject)
    (allowed,) = reader(operations).allowlist()
    assert (allowed.reason, allowed.until_s) == ("partner", 0)


def test_notes_are_kept_sealed_and_bounded(operations: Operations) -> None:
    key = ClientKey(OURS, "fraud", thief(operations).client)
    for i in range(MOST_NOTES):
        operations.note(MARIA, key, f"note {i}")
    with pytest.raises(Conflict):
        operations.note(MARIA, key, "one more")
    kept = reader(operations).notes(key)
    assert {n.text for n in kept} == {f"note {i}" for i in range(MOST_NOTES)}
    assert reader(operations).notes(key._replace(client="0" * 32)) == ()


# --------------------------------------------------------------------------------------------------------- keys


def test_two_keys_of_a_name_live_at_most(operations: Operations, clock: Clock) -> None:
    admin = Actor("root", "admin", OURS)
    first, _ = operations.create_key(admin, "bot", "gateway", ttl_s=100)
    operations.create_key(admin, "bot", "gateway", ttl_s=200)
    with pytest.raises(Conflict, match="revoke one of them first"):
        operations.create_key(admin, "bot", "gateway")
    operations.create_key(admin, "other", "gateway")
    clock.now += 101
    operations.create_key(admin, "bot", "gateway")
    with pytest.raises(Missing):
        operations.revoke_key(admin, first.prefix)


def test_a_key_is_shown_once(operations: Operations) -> None:
    admin = Actor("root", "admin", OURS)
    made, text = operations.create_key(admin, "bot", "viewer", once="k")
    again, nothing = operations.create_key(admin, "bot", "viewer", once="k")
    assert text is not None
    assert text.startswith(f"qw_live_{made.prefix}_")
    assert len(text.rpartition("_")[2]) == 43
    assert (again, nothing) == (made, None)
    assert len(operations.keys(OURS)) == 1


WRONG: dict[str, Callable[[Operations], object]] = {
    "state": lambda o: o.decide(MARIA, thief(o), "watch"),
    "model with a bar": lambda o: o.decide(MARIA, thief(o, "a|b"), "block"),
    "model with a line break": lambda o: o.decide(MARIA, thief(o, "a\nb"), "block"),
    "empty model": lambda o: o.decide(MARIA, thief(o, ""), "block"),
    "long reason": lambda o: o.decide(MARIA, thief(o), "block", reason="x" * 2001),
    "verdict": lambda o: o.record_verdict(MARIA, "a", "maybe", None),
    "empty note": lambda o: o.note(MARIA, ClientKey(OURS, "m", "0" * 32), " "),
    "role": lambda o: o.create_key(MARIA, "bot", "root"),
    "key name": lambda o: o.create_key(MARIA, "a b", "viewer"),
    "key ttl": lambda o: o.create_key(MARIA, "bot", "viewer", ttl_s=0),
    "negative allow": lambda o: o.allow(MARIA, thief(o), ttl_s=-1),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_change_nothing(operations: Operations, name: str) -> None:
    with pytest.raises(WrongUse):
        WRONG[name](operations)
    assert rows(operations) == 0


def test_tenants_do_not_see_each_other(operations: Operations) -> None:
    operations.decide(MARIA, thief(operations), "block")
    operations.create_key(MARIA, "bot", "viewer")
    rival = Reader(operations.store, SECRETS, "rival", operations.now_s)
    assert rival.decisions() == ()
    assert operations.keys("rival") == ()
    with pytest.raises(Missing):
        operations.withdraw(Actor("eve", "admin", "rival"), thief(operations))


def test_a_damaged_entry_is_set_aside(operations: Operations) -> None:
    operations.decide(MARIA, thief(operations), "block")
    revision, _ = operations.store.operator_entries("decision")
    bad = [
        Entry(OURS, "decision", "*|" + "0" * 32, b"{", 0),
        Entry(OURS, "decision", "*|" + "1" * 32, b'{"format":9}', 0),
    ]
    operations.store.operate(revision, Operation(puts=bad))
    assert [d.client_id for d in reader(operations).decisions()] == ["thief"]
    with pytest.raises(CorruptState):
        operator_entries.operator_decision(bad[0])


def test_the_answer_to_a_decision_says_whether_the_client_was_ever_seen(served: World) -> None:
    operator = served.client("operator")
    for client, seen in (("thief", True), ("theif", False)):
        for simulated in (True, False):
            asked = {"client_id": client, "state": "block", "simulated": simulated}
            answer = operator.post("/v1/decisions", json=asked)
            assert answer.status_code == 201
            assert answer.json()["seen"] is seen
