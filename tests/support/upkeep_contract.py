"""The other half of the stores' conformance suite: what gateways read, what operators write, what people do to a store."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest
from support.join_contract import JOINED, ONE, hand, take
from support.store_contract import (
    CELL,
    Backing,
    StoreContract,
    alert,
    at_once,
    client,
    clients_in,
    dead,
    nothing_changes,
    profiles,
    row,
)

from consumers.errors import Fenced, Refused, Rewound
from consumers.store import (
    DECISION_CELLS,
    AlertSwap,
    Checkpoint,
    Cursor,
    DecisionRow,
    Enforced,
    Entry,
    Exported,
    FieldSwap,
    Operation,
    Outcome,
    Restriction,
    RowSwap,
    Store,
    decision_cell,
    layout,
)
from detector.policy import State
from detector.query import ClientKey

LATER = int(time.time()) + 86_400


def held(state: State = "block", enforced: Enforced = "block", until_s: int = LATER) -> DecisionRow:
    return DecisionRow(b"r", state, 0.9, until_s, enforced)


class Detector:
    """Owner of one decision cell, who knows its revision."""

    def __init__(self, store: Store, cell: int) -> None:
        self.store, self.cell = store, cell
        self.claim()

    def claim(self) -> None:
        self.revision = self.store.claim_decisions(self.cell, "p", "t", 60_000).revision

    def record(self, **rows: DecisionRow) -> None:
        keys = dict(zip("abcdef", clients_in(self.cell, 6), strict=True))
        self.record_of({keys[name]: row for name, row in rows.items()})

    def record_of(self, rows: dict[ClientKey, DecisionRow]) -> None:
        self.revision = self.store.record("t", self.revision, Outcome(self.cell, rows=rows), "p", 60_000)


def entry(key: str, value: str = "v", kind: str = "allow", tenant: str = "acme", expires_s: int = 0) -> Entry:
    return Entry(tenant, kind, key, value.encode(), expires_s)


class WholeContract(StoreContract):
    """Inherit, and provide the fixture ``backing``."""

    @pytest.fixture(autouse=True)
    def steps_of_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Revisions that can be counted here; `tests/store/test_rolled_back.py` has random ones."""
        monkeypatch.setattr(layout, "OPERATOR_STEP", 1)

    # --- profile cells: what a claim says besides the position

    def test_attempts_are_counted_until_the_offset_moves(self, backing: Backing) -> None:
        store = backing.open()
        assert [store.claim(CELL, "t").attempts for _ in range(3)] == [1, 2, 3]
        store.commit("t", Checkpoint(CELL, None, 5))
        assert [store.claim(CELL, "t").attempts for _ in range(2)] == [1, 2]
        store.commit("t", Checkpoint(CELL, 5, 5, counters={"n": 1}))  # a beacon is no progress
        assert store.claim(CELL, "t").attempts == 3
        store.commit("t", Checkpoint(CELL, 5, 6))
        assert backing.open().claim(CELL, "t").attempts == 1
        assert store.claim("queries:9", "t").attempts == 1

    def test_attempts_of_a_process_that_lives_do_not_count(self, backing: Backing) -> None:
        store = backing.open()
        assert store.claim(CELL, "t", "alive").attempts == 0
        assert [store.claim(CELL, "t", proof).attempts for proof in ("none", "alive", "none", "alive")] == [1, 1, 2, 2]
        assert store.claim(CELL, "t", "folded").attempts == 0
        assert store.claim(CELL, "t").attempts == 1
        with pytest.raises(Fenced):
            store.load(CELL, "s", None, [])

    def test_the_sketch_is_kept_with_the_offset(self, backing: Backing) -> None:
        store = backing.open()
        assert store.claim(CELL, "t").sketch == b""
        blob = bytes(range(256)) * 1024
        store.commit("t", Checkpoint(CELL, None, 5, sketch=blob))
        store.commit("t", Checkpoint(CELL, 5, 6))
        with nothing_changes(backing), pytest.raises(Rewound):
            store.commit("t", Checkpoint(CELL, 5, 9, sketch=b"other"))
        assert backing.open().claim(CELL, "t").sketch == blob
        store.commit("t", Checkpoint(CELL, 6, 7, sketch=b""))
        assert store.claim(CELL, "t").sketch == b""

    # --- bytes that are replaced by others of the same meaning

    def test_fields_are_swapped_only_while_they_are_as_given(self, backing: Backing) -> None:
        store, (a, b, gone) = backing.open(), map(client, ("a", "b", "gone"))
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 5, {a: {"h": b"a", "w:1": b"w"}, b: {"h": b"b"}}))
        before = store.touched(CELL, dict.fromkeys(range(DECISION_CELLS), 0), 10)
        swaps = [
            FieldSwap(a, "h", b"a", b"A"),
            FieldSwap(a, "w:1", b"was another", b"W"),
            FieldSwap(b, "h", b"b", b""),
            FieldSwap(gone, "h", b"", b"x"),
        ]
        assert backing.open().swap_fields(CELL, swaps) == 2
        assert store.swap_fields("queries:7", swaps) == 0
        assert store.shards(CELL, [a, b, gone]).fields == {a: {"h": b"A", "w:1": b"w"}, b: {"h": b""}}
        # The owner goes on, and readers are told nothing.
        assert store.touched(CELL, dict.fromkeys(range(DECISION_CELLS), 0), 10) == before
        store.commit("t", Checkpoint(CELL, 5, 6, {a: {"w:1": b"next"}}))
        assert store.shards(CELL, [a]).fields == {a: {"h": b"A", "w:1": b"next"}}

    def test_rows_and_alerts_are_swapped_only_while_they_are_as_given(self, backing: Backing) -> None:
        store, (a, b) = backing.open(), clients_in(4, 2)
        claim = store.claim_decisions(4, "p", "t", 60_000)
        told = [alert("one/0"), alert("two/0"), alert("three/0")]
        revision = store.record("t", claim.revision, Outcome(4, {}, {a: held(), b: held()}, told), "p", 60_000)
        entries = [entry for entry, _ in store.outbox(4, "here", 9)]
        store.sent(4, "there", entries[0], "one/0")
        position, _ = store.restrictions()
        done = backing.open().swap_decisions(
            4,
            [RowSwap(a, b"r", b"R"), RowSwap(b, b"other", b"R"), RowSwap(client("nobody"), b"", b"R")],
            [AlertSwap("two/0", b"body of two/0", b"BODY"), AlertSwap("three/0", b"other", b"BODY")],
        )
        assert done == 2
        assert store.decided([a, b]) == {a: dataclasses.replace(held(), row=b"R"), b: held()}
        now = store.outbox(4, "here", 9)
        assert [entry for entry, _ in now] == entries
        assert [one.body for _, one in now] == [b"body of one/0", b"BODY", b"body of three/0"]
        assert [one.uid for _, one in store.outbox(4, "there", 9)] == ["two/0", "three/0"]
        assert store.changes(position, 9) == (position, [])
        store.record("t", revision, Outcome(4, {}, {}, [alert("four/0")]), "p", 60_000)
        assert [one.uid for _, one in store.outbox(4, "here", 9)][-1] == "four/0"

    # --- gateways

    def test_rows_say_what_is_enforced(self, backing: Backing) -> None:
        detector = Detector(backing.open(), 4)
        (k,) = clients_in(4, 1)
        detector.record(a=held("block", "watch"))
        assert detector.store.load_decisions(4, "t", detector.revision, [k]) == {k: held("block", "watch")}
        assert detector.store.decided([k]) == {k: held("block", "watch")}
        assert list(detector.store.decisions("acme")) == [(k, held("block", "watch"))]

    def test_restrictions_are_the_throttled_and_the_blocked(self, backing: Backing) -> None:
        store = backing.open()
        assert store.restrictions()[1] == []
        wanted = []
        for cell in (0, 4, 31):
            a, b, *_ = clients_in(cell, 4)
            Detector(store, cell).record(
                a=held("block", "watch"), b=held("throttle", "throttle", 0), c=held("watch", "clear", 0),
                d=held("block", "block", int(time.time()) - 5),
            )  # fmt: skip
            wanted += [Restriction(a, "block", "watch", LATER), Restriction(b, "throttle", "throttle", 0)]
        positions, found = backing.open().restrictions()
        assert sorted(found) == sorted(wanted)
        assert sorted(positions) == list(range(DECISION_CELLS))
        Detector(store, 4).record(a=held("clear", "clear", 0), b=held("watch", "clear", 0), c=held())
        assert sorted(r.client for r in store.restrictions()[1] if decision_cell(r.client, DECISION_CELLS) == 4) == [
            clients_in(4, 3)[2]
        ]

    def test_changes_tell_what_is_new_for_gateways(self, backing: Backing) -> None:
        store = backing.open()
        start, _ = store.restrictions()
        assert store.changes(start, 100) == (start, [])
        detector = Detector(store, 4)
        a, b, *_ = clients_in(4, 4)
        detector.record(a=held(), c=DecisionRow(b"r", "clear", 0.1, 0))
        detector.record(a=held(until_s=LATER + 1))
        detector.record(a=DecisionRow(b"other row", "block", 0.5, LATER + 1, "block"))  # nothing that they care for
        detector.record(a=held("block", "watch", LATER + 1))
        detector.record(b=held("watch", "clear", 7))
        detector.record(b=held("watch", "clear", 9))  # until_s says nothing of an unrestricted client
        detector.record(a=held("clear", "clear", 0))
        wanted = [
            Restriction(a, "block", "block", LATER),
            Restriction(a, "block", "block", LATER + 1),
            Restriction(a, "block", "watch", LATER + 1),
            Restriction(b, "watch", "clear", 7),
            Restriction(a, "clear", "clear", 0),
        ]
        answer = backing.open().changes(start, 100)
        assert answer is not None
        reached, found = answer
        assert found == wanted
        assert {v for v in start if reached[v] != start[v]} == {4}
        assert store.changes(reached, 100) == (reached, [])
        assert reached == store.restrictions()[0]
        # Step by step it is the same.
        position, steps = {4: start[4]}, []
        for _ in range(20):
            answer = store.changes(position, 2)
            assert answer is not None
            assert len(answer[1]) <= 2
            position = answer[0]
            steps += answer[1]
        assert (steps, position) == (wanted, {4: reached[4]})

    def test_reading_once_and_following_misses_nothing(self, backing: Backing) -> None:
        """A reader that begins while detectors write ends with what a reader at the end finds."""
        writer, reader = backing.open(), backing.open()
        cells = (3, 9)
        detectors = [Detector(writer, cell) for cell in cells]

        states: tuple[State, ...] = ("block", "clear", "throttle")

        def write() -> None:
            for turn in range(30):
                for detector in detectors:
                    state = states[turn % 3]
                    name = "abcdef"[turn * 7 % 6]
                    detector.record(**{name: held(state, state, LATER + turn if state != "clear" else 0)})
            done.append(True)

        def read() -> None:
            positions, found = reader.restrictions()
            known.update({r.client: r for r in found})
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                ended = bool(done)
                answer = reader.changes(positions, 3)
                assert answer is not None
                if ended and not answer[1]:
                    return
                positions = answer[0]
                known.update({r.client: r for r in answer[1]})

        known: dict[ClientKey, Restriction] = {}
        done: list[bool] = []
        assert at_once(write, read) == [None, None]
        followed = sorted(r for r in known.values() if r.state in ("throttle", "block"))
        assert followed == sorted(reader.restrictions()[1])
        assert followed

    def test_a_position_of_another_life_is_not_continued(self, backing: Backing) -> None:
        store = backing.open()
        Detector(store, 4).record(a=held())
        reached, _ = store.restrictions()
        for foreign in ("nonsense", "", "x:0", reached[4].replace(":", "0:"), f"{reached[4]}9"):
            assert store.changes({**reached, 4: foreign}, 10) is None, foreign

    def test_a_record_that_was_refused_tells_gateways_nothing(self, backing: Backing) -> None:
        store = backing.open()
        detector = Detector(store, 4)
        before = store.restrictions()
        with pytest.raises(Rewound):
            store.record("t", detector.revision + 1, Outcome(4, rows={clients_in(4, 1)[0]: held()}), "p", 60_000)
        assert store.restrictions() == before

    # --- operators

    def test_operators_start_at_revision_zero(self, backing: Backing) -> None:
        store = backing.open()
        assert store.operator_entries("allow") == (0, [])
        assert store.operator_changes(0, 10) == (0, [])
        assert store.audit_rows(0, 10) == []

    def test_an_operation_is_seen_by_everybody(self, backing: Backing) -> None:
        store, other = backing.open(), backing.open()
        puts = [entry("c2"), entry("c1"), entry("k", kind="key"), entry("c1", tenant="beta"), entry("ä:%\x00", "\x00ÿ")]
        assert store.operate(0, Operation(puts, audit=[b"one", b"two"])) == 1
        assert other.operator_entries("allow") == (1, sorted(puts[:2] + puts[3:]))
        assert other.operator_entries("allow", "beta") == (1, [puts[3]])
        assert other.operator_entries("key") == (1, [puts[2]])
        assert other.operator_entries("none") == (1, [])
        assert other.operate(1, Operation([entry("c1", "new")], [("acme", "allow", "c2")], [b"three"])) == 2
        assert store.operator_entries("allow", "acme") == (2, sorted([entry("c1", "new"), puts[4]]))
        assert store.audit_rows(0, 10) == [(1, b"one"), (2, b"two"), (3, b"three")]
        assert store.audit_rows(1, 1) == [(2, b"two")]
        assert store.audit_rows(3, 10) == []

    def test_an_operation_on_another_revision_is_rewound(self, backing: Backing) -> None:
        store = backing.open()
        store.operate(0, Operation([entry("a")], audit=[b"1"]))
        whole = Operation([entry("a", "x"), entry("b")], [("acme", "key", "k")], [b"2"])
        for revision in (0, 2):
            with nothing_changes(backing), pytest.raises(Rewound) as error:
                store.operate(revision, whole)
            assert error.value.offset == 1
        with nothing_changes(backing), pytest.raises(ValueError, match="twice"):
            store.operate(1, Operation([entry("a"), entry("a", "b")]))
        with nothing_changes(backing), pytest.raises(ValueError, match="empty"):
            store.operate(1, Operation([entry("a", "")]))

    def test_of_two_operations_at_once_one_wins(self, backing: Backing) -> None:
        a, b = backing.open(), backing.open()
        for revision in range(10):
            results = at_once(
                lambda: a.operate(revision, Operation([entry("k", "a")], audit=[b"a%d" % revision])),  # noqa: B023
                lambda: b.operate(revision, Operation([entry("k", "b")], audit=[b"b%d" % revision])),  # noqa: B023
            )
            assert sorted(type(result).__name__ for result in results) == ["Rewound", "int"]
            winner = "ab"[0 if isinstance(results[0], int) else 1]
            assert a.operator_entries("allow") == (revision + 1, [entry("k", winner)])
            assert a.audit_rows(revision, 5) == [(revision + 1, f"{winner}{revision}".encode())]

    def test_operator_changes_never_cut_a_revision(self, backing: Backing) -> None:
        store = backing.open()
        store.operate(0, Operation([entry("a"), entry("b"), entry("c", kind="key")]))
        store.operate(1, Operation(audit=[b"only a row"]))
        store.operate(2, Operation([entry("a", "2")], [("acme", "allow", "b")]))
        every = [entry("a"), entry("b"), entry("c", kind="key"), entry("a", "2"), Entry("acme", "allow", "b", b"")]
        other = backing.open()
        assert other.operator_changes(0, 100) == (3, every)
        assert other.operator_changes(0, 1) == (1, every[:3])
        assert other.operator_changes(0, 3) == (1, every[:3])
        assert other.operator_changes(0, 4) == (3, every)
        assert other.operator_changes(1, 1) == (3, every[3:])
        assert other.operator_changes(2, 10) == (3, every[3:])
        assert other.operator_changes(3, 10) == (3, [])
        assert other.operator_changes(4, 10) is None  # of another history

    def test_operator_changes_end_somewhere(self, backing: Backing) -> None:
        store = backing.open()
        for revision in range(6):
            store.operate(revision, Operation([entry(f"k{revision}.{i}") for i in range(2_500)], audit=[b"row"]))
        assert store.operator_changes(0, 10) is None
        kept = store.operator_changes(3, 1)
        assert kept is not None
        assert kept[0] == 4
        assert [e.key for e in kept[1]] == [f"k3.{i}" for i in range(2_500)]
        assert len(store.operator_entries("allow")[1]) == 15_000
        assert [number for number, _ in store.audit_rows(0, 100)] == [1, 2, 3, 4, 5, 6]

    def test_an_expired_entry_is_gone(self, backing: Backing) -> None:
        store = backing.open()
        soon = int(time.time()) + 2
        store.operate(
            0,
            Operation(
                [entry("old", expires_s=soon - 60), entry("soon", expires_s=soon), entry("later", expires_s=LATER)]
            ),
        )
        assert {e.key for e in store.operator_entries("allow")[1]} <= {"soon", "later"}
        while time.time() <= soon + 0.1:
            time.sleep(0.05)
        assert store.operator_entries("allow") == (1, [entry("later", expires_s=LATER)])
        store.operate(1, Operation(audit=[b"x"]))
        store.operate(2, Operation([entry("old", "again")], forget=True))
        assert "soon" not in str(backing.dump())
        assert store.operator_entries("allow")[1] == [entry("later", expires_s=LATER), entry("old", "again")]

    def test_what_operators_forget_is_told_to_nobody(self, backing: Backing) -> None:
        store = backing.open()
        store.operate(0, Operation([entry("model|leaver"), entry("model|stayer")]))
        store.operate(1, Operation([entry("more")], [("acme", "allow", "model|leaver")], [b"row"], forget=True))
        assert "leaver" not in str(backing.dump())
        assert store.operator_entries("allow") == (2, [entry("model|stayer"), entry("more")])
        assert store.operator_changes(1, 10) is None
        assert store.operator_changes(2, 10) == (2, [])
        store.operate(2, Operation([entry("next")]))
        assert store.operator_changes(2, 10) == (3, [entry("next")])

    def test_nobody_is_disturbed_by_operators(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        detector = Detector(store, 0)
        store.operate(0, Operation([entry("a")]))
        store.commit("t", Checkpoint(CELL, None, 5))
        detector.record(a=held())

    # --- upkeep: erasing

    def test_erasing_drops_the_profile_and_remembers_where(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        gone, stays = client("leaver"), client("stayer")
        store.commit("t", Checkpoint(CELL, None, 9, profiles([gone, stays]), [dead(1)], {"n": 9}, b"sketch"))
        generation = store.claim(CELL, "t").generation
        backing.open().erase(CELL, [gone, client("never seen")])
        with nothing_changes(backing):
            with pytest.raises(Fenced):
                store.load(CELL, "t", 9, [gone])
            with pytest.raises(Fenced):
                store.commit("t", Checkpoint(CELL, 9, 12, profiles([gone])))
        claim = store.claim(CELL, "t2")
        assert (claim.generation, claim.next_offset, claim.counters, claim.sketch) == (
            generation,
            9,
            {"n": 9},
            b"sketch",
        )
        assert claim.erased.get(gone) == 9
        assert claim.erased.get(stays, 0) == 0
        assert (gone in claim.erased, stays in claim.erased, len(claim.erased)) == (True, False, 2)
        assert store.load(CELL, "t2", 9, [gone, stays]) == {stays: {"h": b"x"}}
        assert [k for t in store.touched(CELL, dict.fromkeys(range(32), 0), 10).values() for k in t.clients] == [stays]
        assert gone.client not in str(backing.dump())
        # Whoever comes back begins anew, and can be erased again.
        store.commit("t2", Checkpoint(CELL, 9, 20, profiles([gone])))
        assert store.load(CELL, "t2", 20, [gone]) == {gone: {"h": b"x"}}
        store.erase(CELL, [gone])
        assert store.claim(CELL, "t3").erased.get(gone) == 20
        assert store.shards(CELL, [gone]).fields == {}

    def test_erasing_from_a_cell_without_history(self, backing: Backing) -> None:
        store = backing.open()
        store.erase("queries:7", [client(1)])
        assert store.cells() == []
        store.claim(CELL, "t")
        store.erase(CELL, [client(1)])
        assert len(store.claim(CELL, "t").erased) == 0
        with pytest.raises(Fenced):
            store.commit("an older owner", Checkpoint(CELL, None, 5))

    def test_erased_decisions_leave_nothing(self, backing: Backing) -> None:
        store = backing.open()
        a, b, *_ = clients_in(4, 2)
        store.claim_decisions(4, "p", "t", 60_000)
        alerts = [alert("aa/0"), alert("b/0"), alert("aa/1"), alert("aab/0")]
        store.record("t", 0, Outcome(4, {"q:0": Cursor("g", 7)}, {a: held(), b: held()}, alerts), "p", 60_000)
        for found, one in store.outbox(4, "k", 9)[:2]:
            store.sent(4, "k", found, one.uid)
        positions, _ = store.restrictions()
        backing.open().erase_decisions(4, [a], ["aa"])
        for revision in (1, 2):  # of a history that a failover may bring back
            with nothing_changes(backing), pytest.raises(Fenced):
                store.record("t", revision, Outcome(4, rows={a: held()}), "p", 60_000)
        assert store.changes(positions, 10) is None
        assert [r.client for r in store.restrictions()[1]] == [b]
        assert [k for k, _ in store.decisions("acme")] == [b]
        assert store.decided([a]) == {}
        assert [one.uid for one in store.alerts()] == ["aab/0", "b/0"]
        assert [one.uid for _, one in store.outbox(4, "k", 9)] == ["aab/0"]
        assert [one.uid for _, one in store.outbox(4, "other", 9)] == ["b/0", "aab/0"]
        assert f"'{a.client}'" not in str(backing.dump())
        assert f":{a.client}'" not in str(backing.dump())
        claim = store.claim_decisions(4, "p", "t", 60_000)
        assert (claim.revision, claim.cursors) == (2, {"q:0": Cursor("g", 7)})
        # The same finding, should it come again, is told again.
        store.record("t", 2, Outcome(4, rows={a: held()}, alerts=[alert("aa/0")]), "p", 60_000)
        assert [one.uid for _, one in store.outbox(4, "k", 9)] == ["aab/0", "aa/0"]
        after = store.changes({4: store.restrictions()[0][4]}, 10)
        assert after is not None
        assert store.changes({4: positions[4]}, 10) is None

    def test_erasing_decisions_of_a_cell_without_history(self, backing: Backing) -> None:
        store = backing.open()
        store.erase_decisions(4, [client(1)], ["a"])
        assert store.restrictions()[1] == []
        Detector(store, 4).record(a=held())
        assert len(store.restrictions()[1]) == 1

    def test_scrubbing_keeps_what_is_stored(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 9, profiles([client(1), client(2)])))
        store.erase(CELL, [client(1)])
        with nothing_changes(backing):
            assert store.scrub() in (True, False)

    # --- upkeep: reading again

    def test_a_reset_cell_is_read_again_from_its_beginning(self, backing: Backing) -> None:
        self.reset_and_look(backing, None)

    def test_a_reset_cell_is_read_again_from_zero(self, backing: Backing) -> None:
        self.reset_and_look(backing, 0)

    def test_a_reset_cell_is_read_again_from_anywhere(self, backing: Backing) -> None:
        self.reset_and_look(backing, 40)

    def reset_and_look(self, backing: Backing, offset: int | None) -> None:
        store = backing.open()
        generation = store.claim(CELL, "t").generation
        every = [client(i) for i in range(50)]
        store.commit("t", Checkpoint(CELL, None, 9, profiles(every), [dead(1)], {"n": 9}, b"sketch"))
        store.erase(CELL, [client(1)])
        store.claim(CELL, "t")
        backing.open().reset(CELL, offset)
        with nothing_changes(backing), pytest.raises(Fenced):
            store.commit("t", Checkpoint(CELL, 9, 12))
        claim = store.claim(CELL, "t2")
        assert claim.generation != generation
        assert (claim.next_offset, claim.counters, claim.sketch, claim.attempts) == (offset, {}, b"", 1)
        assert claim.erased.get(client(1)) == 9
        assert store.load(CELL, "t2", offset, every) == {}
        touched = store.touched(CELL, dict.fromkeys(range(32), 0), 100)
        assert [k for t in touched.values() for k in t.clients] == []
        assert len(store.dead_letters(CELL, 9)) == 1  # not shipped yet
        after = (offset or 0) + 2
        store.commit("t2", Checkpoint(CELL, offset, after, profiles(every[:3])))
        assert len(store.load(CELL, "t2", after, every)) == 3

    def test_who_is_erased_during_a_rebuild_is_erased_up_to_where_it_was_read(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 90, profiles([client(1), client(2)])))
        store.reset(CELL, None)
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 30, profiles([client(1), client(2)])))
        store.erase(CELL, [client(1)])
        store.reset(CELL, 10)
        store.erase(CELL, [client(2)])
        erased = store.claim(CELL, "t").erased
        assert (erased.get(client(1)), erased.get(client(2)), erased.get(client(3))) == (90, 90, 0)
        store.commit("t", Checkpoint(CELL, 10, 120))
        store.erase(CELL, [client(3)])
        assert store.claim(CELL, "t").erased.get(client(3)) == 120

    def test_resetting_what_was_never_claimed(self, backing: Backing) -> None:
        store = backing.open()
        store.reset("queries:7", 5)
        assert store.cells() == []
        assert store.claim("queries:7", "t").next_offset is None

    # --- upkeep: snapshots

    def fill(self, store: Store) -> list[ClientKey]:
        """A bit of everything; returns the clients that have decisions."""
        store.prepare("secrets-1")
        for n, cell in enumerate(("queries:0", "t{x}:1", "files:ab")):
            store.claim(cell, "t")
            some: dict[ClientKey, dict[str, bytes | None]] = {
                client(f"c{i}", model=f"m{i % 3}"): {"h": b"\x00%d" % i, "w:1": b"x" * i} for i in range(250 * n)
            }
            store.commit("t", Checkpoint(cell, None, 100 + n, some, [dead(n), dead(9, "size")], {"n": n}, b"s" * n))
            store.commit("t", Checkpoint(cell, 100 + n, 200 + n, profiles([client("c5", model="m2")], b"later")))
        store.erase("t{x}:1", [client("c7", model="m1")])
        store.claim("never:1", "t")
        every = [client(f"c{i}", model=f"m{i % 2} ä") for i in range(60)]
        for v in range(DECISION_CELLS):
            store.claim_decisions(v, "p", "t", 60_000)
            rows = {
                k: row(k.client, 0.1 + i / 3, "block", LATER)
                for i, k in enumerate(every)
                if decision_cell(k, DECISION_CELLS) == v
            }
            alerts = [alert(f"{v}.{i}/0", 1000 + i) for i in range(3)]
            store.record("t", 0, Outcome(v, {"queries:0": Cursor("g", 9)}, rows, alerts), "p", 60_000)
            (_, first), (entry_id, second), _ = store.outbox(v, "kafka:a{b}", 9)
            store.sent(v, "kafka:a{b}", entry_id, second.uid)
            assert first.uid == f"{v}.0/0"
        store.operate(0, Operation([entry("a"), entry("b", kind="key", expires_s=LATER)], audit=[b"1", b"2"]))
        store.operate(1, Operation([entry("ä\x00:", "\x00")], [("acme", "allow", "a")], audit=[b"3"]))
        return every

    def content(self, store: Store) -> dict[str, object]:
        """All that a store would tell, except what belongs to one life of it."""
        keys = [client(f"c{i}", model=f"m{m}") for i in range(500) for m in range(3)]
        found: dict[str, object] = {
            "cells": store.cells(),
            "refused": store.dead_letter_counts(),
            "decisions": list(store.decisions("acme")),
            "restrictions": sorted(store.restrictions()[1]),
            "alerts": store.alerts(),
            "pending": [
                [a for _, a in store.outbox(v, name, 9)]
                for v in range(store.decision_cells)
                for name in ("kafka:a{b}", "other")
            ],
            "entries": [store.operator_entries(kind)[1] for kind in ("allow", "key")],
            "audit": store.audit_rows(0, 9),
        }
        every = range(store.decision_cells)
        for cell in store.cells():
            claim = store.claim(cell, "look")
            found[cell] = (
                claim.next_offset, claim.counters, claim.sketch, [claim.erased.get(k) for k in keys],
                store.load(cell, "look", claim.next_offset, keys),
                [letter for _, letter in store.dead_letters(cell, 9)],
                [store.touched(cell, dict.fromkeys(every, after), 9999)[v].clients for after in (0, 150) for v in every],
            )  # fmt: skip
        return found

    def test_what_is_restored_is_what_was_exported(self, backing: Backing) -> None:
        store = backing.open()
        every = self.fill(store)
        generation = store.claim("queries:0", "t").generation
        positions, _ = store.restrictions()
        before = self.content(store)
        items = list(store.export())
        assert len(before["decisions"]) == len(every)  # type: ignore[arg-type]
        backing.wipe()
        copy = backing.open()
        copy.restore(items)
        copy.prepare("secrets-1")
        with pytest.raises(Refused, match="secrets"):
            copy.prepare("secrets-2")
        assert copy.claim("queries:0", "t").attempts == 1
        assert self.content(copy) == before
        # A new life: no owners, no cursors, no positions of the old one.
        assert copy.claim("queries:0", "t").generation != generation
        claim = copy.claim_decisions(3, "somebody else", "t", 60_000)
        assert claim.cursors == {}
        assert copy.changes(positions, 10) is None
        revision, _ = copy.operator_entries("allow")
        assert revision > 2
        assert copy.operator_changes(2, 10) is None
        assert copy.operator_changes(revision, 10) == (revision, [])
        assert copy.operate(revision, Operation(audit=[b"4"])) == revision + 1
        assert copy.audit_rows(3, 9) == [(4, b"4")]
        # And it can be exported again, to the same.
        again = [item for item in copy.export() if item.table not in ("revision", "audit")]
        assert sorted(again) == sorted(item for item in items if item.table not in ("revision", "audit"))

    def test_exporting_changes_nothing(self, backing: Backing) -> None:
        store = backing.open()
        self.fill(store)
        with nothing_changes(backing):
            items = list(store.export())
        assert {item.table for item in items} == {
            "layout", "cell", "tombstone", "letter", "profile", "decision", "alert", "delivery", "revision", "entry", "audit",
        }  # fmt: skip

    def test_a_join_cell_is_restored_with_what_waits_there(self, backing: Backing) -> None:
        store = backing.open()
        store.prepare("secrets-1")
        hand(store, ONE, None, 5, b"a", b"b", b"c")
        store.claim(JOINED, "t")
        take(store, None, 2 << 16, 1, 0)
        items = list(store.export())
        backing.wipe()
        copy = backing.open()
        copy.restore(items)
        copy.prepare("secrets-1")
        assert copy.sources(JOINED) == {ONE: 5}
        found, numbered = copy.arrivals(JOINED, 0, 10)
        assert ([(one.number, one.content) for one in found], numbered) == ([(1, b"b"), (2, b"c")], 3)
        assert copy.claim(JOINED, "t").next_offset == 2 << 16
        assert hand(copy, ONE, 5, 6, b"d")
        take(copy, 2 << 16, 4 << 16, 3, 1, 2, 3)
        assert copy.arrivals(JOINED, 0, 10) == ([], 4)
        assert sorted(item.table for item in items if item.cell == JOINED) == ["arrival", "arrival", "cell", "join"]

    def test_nothing_is_restored_over_something(self, backing: Backing) -> None:
        full = backing.open()
        self.fill(full)
        items = list(full.export())
        with nothing_changes(backing), pytest.raises(Refused, match="empty"):
            full.restore(items)
        backing.wipe()
        copy = backing.open()
        copy.operate(0, Operation(audit=[b"somebody was here"]))
        with nothing_changes(backing), pytest.raises(Refused, match="empty"):
            copy.restore(items)

    def test_other_secrets_are_not_restored(self, backing: Backing) -> None:
        full = backing.open()
        self.fill(full)
        items = list(full.export())
        backing.wipe()
        copy = backing.open()
        copy.prepare("secrets-2")
        with pytest.raises(Refused, match="secrets"):
            copy.restore(items)
        assert copy.cells() == []
        copy.prepare("secrets-2")

    def test_a_restore_that_broke_off_leaves_no_store_to_work_with(self, backing: Backing) -> None:
        full = backing.open()
        self.fill(full)
        items = list(full.export())
        backing.wipe()

        def broken() -> Iterator[Exported]:
            yield from items[: len(items) // 2]
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="gone"):
            backing.open().restore(broken())
        try:
            backing.open().prepare("secrets-1")
        except Refused as refusal:
            assert "restore" in str(refusal)  # noqa: PT017
        else:
            assert backing.open().cells() == []

    def test_a_cell_is_exported_as_of_one_moment(self, backing: Backing) -> None:
        """Every commit writes its number into all profiles of the cell, every record into all rows: no export may mix two."""
        store, exporter = backing.open(), backing.open()
        keys = clients_in(4, 250)
        store.claim(CELL, "t")
        detector = Detector(store, 4)
        store.commit("t", Checkpoint(CELL, None, 1, profiles(keys, b"n1\n")))
        detector.record_of(dict.fromkeys(keys, row("n1\n")))
        stop: list[bool] = []

        def write() -> None:
            for n in range(2, 400):
                if stop:
                    return
                store.commit("t", Checkpoint(CELL, n - 1, n, profiles(keys, b"n%d\n" % n)))
                detector.record_of(dict.fromkeys(keys, row(f"n{n}\n")))

        def read() -> None:
            try:
                for _ in range(4):
                    for table in ("profile", "decision"):
                        values = [item.value for item in exporter.export() if item.table == table]
                        numbers = {value[value.rindex(b"n") : value.rindex(b"\n")] for value in values}
                        assert (len(values), len(numbers)) == (250, 1), (table, numbers)
            finally:
                stop.append(True)

        assert at_once(write, read) == [None, None]
