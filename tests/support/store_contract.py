"""What every store must do, whatever it is made of: the conformance suite of the port `Store`.

A test class inherits `StoreContract` and gives it a fixture ``backing``: fresh, empty storage that can be opened
several times at once and read in full. `failures` runs the same tests by hand, which is how the suite itself is
tested.

"Nothing changes" always means a full dump before and after, not the few fields that a test happens to know.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import pytest
from support.join_contract import JoinContract

from consumers.errors import Fenced, LeaseHeld, QueryWardenError, Refused, Rewound
from consumers.store import (
    DECISION_CELLS,
    Checkpoint,
    Cursor,
    DeadLetter,
    DecisionRow,
    OutboxAlert,
    Outcome,
    Store,
    decision_cell,
    layout,
)
from detector.policy import State
from detector.query import ClientKey

CELL = "queries:3"
ALL_CELLS = dict.fromkeys(range(DECISION_CELLS), 0)


class Backing(Protocol):
    """Where stores keep things: empty at first."""

    def open(self) -> Store:
        """One more store on the same storage, as another process would have it."""

    def dump(self) -> object:
        """Everything that is stored, comparable."""

    def wipe(self) -> None:
        """Empty it; stores that are open do not survive this."""


def client(name: object, tenant: str = "acme", model: str = "fraud") -> ClientKey:
    return ClientKey(tenant, model, str(name))


def clients_in(cell: int, count: int) -> list[ClientKey]:
    """Clients that belong to one decision cell."""
    every = (client(f"c{i}") for i in itertools.count())
    return list(itertools.islice((c for c in every if decision_cell(c, DECISION_CELLS) == cell), count))


def profiles(clients: Sequence[ClientKey], value: bytes = b"x") -> dict[ClientKey, dict[str, bytes | None]]:
    return {c: {"h": value} for c in clients}


def dead(i: int, reason: str = "nan") -> DeadLetter:
    return DeadLetter(f"file.jsonl:{i}", i, reason, f"detail {i}", f"{i:064x}", bytes([0, 255, i % 256]))


def row(text: str = "r", rank: float = 0.5, state: State = "watch", until_s: int = 0) -> DecisionRow:
    return DecisionRow(text.encode(), state, rank, until_s)


def alert(uid: str, time_ms: int = 1_000) -> OutboxAlert:
    return OutboxAlert(uid, time_ms, f"body of {uid}".encode())


@contextmanager
def nothing_changes(backing: Backing) -> Iterator[None]:
    before = backing.dump()
    yield
    assert backing.dump() == before


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Run the calls in threads that start together; returns results and errors in the order of the calls."""
    gate = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def run(i: int, call: Callable[[], object]) -> None:
        gate.wait(10)
        try:
            results[i] = call()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i, call)) for i, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, QueryWardenError):
            raise result
    return results


def failures(
    fresh: Callable[[], Backing],
    at_most: int | None = None,
    suite: StoreContract | None = None,
    only: Sequence[str] = ("",),
) -> list[str]:
    """Names of the contract's tests that fail, each on storage of its own; stops after `at_most`.

    only  parts of the names of the tests to run
    """
    failed: list[str] = []
    suite = suite or StoreContract()
    for name in (name for name in dir(suite) if name.startswith("test_") and any(part in name for part in only)):
        if at_most is not None and len(failed) >= at_most:
            break
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layout, "OPERATOR_STEP", 1)  # as the suite's own fixture does
            try:
                getattr(suite, name)(fresh())
            except (Exception, pytest.fail.Exception):
                failed.append(name)
    return failed


class StoreContract(JoinContract):
    """Inherit, and provide the fixture ``backing``."""

    # --- who lives

    def test_detectors_are_counted_while_they_say_that_they_live(self, backing: Backing) -> None:
        one, other = backing.open(), backing.open()
        assert [one.attend("a", 60_000), other.attend("b", 60_000), one.attend("a", 60_000)] == [1, 2, 2]
        assert [one.attend("a", 0), other.attend("c", 1)] == [1, 2]
        time.sleep(0.05)
        assert other.attend("b", 60_000) == 1

    def test_pressure_is_a_share(self, backing: Backing) -> None:
        assert 0.0 <= backing.open().pressure() <= 1.5

    # --- layout and secrets

    def test_prepare_accepts_the_same_layout_again(self, backing: Backing) -> None:
        backing.open().prepare("secrets-1")
        with nothing_changes(backing):
            backing.open().prepare("secrets-1")

    def test_prepare_refuses_other_secrets_in_one_line(self, backing: Backing) -> None:
        backing.open().prepare("secrets-1")
        with nothing_changes(backing), pytest.raises(Refused, match="secrets") as refusal:
            backing.open().prepare("secrets-2")
        assert "\n" not in str(refusal.value)
        backing.open().prepare("secrets-1")

    def test_prepare_at_once_agrees_on_one(self, backing: Backing) -> None:
        stores = [backing.open() for _ in range(4)]
        names = ["a", "b", "a", "b"]
        calls = [lambda s=s, n=n: s.prepare(n) for s, n in zip(stores, names, strict=True)]
        outcomes = [isinstance(result, Refused) for result in at_once(*calls)]
        assert outcomes in ([False, True, False, True], [True, False, True, False])

    # --- claim and resume

    def test_a_new_cell_has_no_position(self, backing: Backing) -> None:
        claim = backing.open().claim(CELL, "t1")
        assert claim.next_offset is None
        assert claim.counters == {}
        assert claim.generation

    def test_claim_says_where_to_resume(self, backing: Backing) -> None:
        store = backing.open()
        first = store.claim(CELL, "t1")
        store.commit("t1", Checkpoint(CELL, None, 17, counters={"processed": 15, "dead": 2}))
        again = backing.open().claim(CELL, "t2")
        assert again.next_offset == 17
        assert again.counters == {"processed": 15, "dead": 2}
        assert again.generation == first.generation

    def test_counters_are_absolute_and_stay(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 5, counters={"processed": 5, "dead": 1}))
        store.commit("t", Checkpoint(CELL, 5, 9, counters={"processed": 8}))
        assert store.claim(CELL, "t2").counters == {"processed": 8, "dead": 1}

    def test_cells_are_apart(self, backing: Backing) -> None:
        store = backing.open()
        a, b = store.claim("queries:0", "t0"), store.claim("files:0f3c", "t1")
        assert a.generation != b.generation
        store.commit("t0", Checkpoint("queries:0", None, 4, profiles([client(1)]), [dead(1)], {"n": 1}))
        assert store.claim("files:0f3c", "t2").next_offset is None
        assert store.load("files:0f3c", "t2", None, [client(1)]) == {}
        assert store.dead_letters("files:0f3c", 10) == []
        assert store.shards("files:0f3c", [client(1)]).fields == {}

    def test_every_claimed_cell_is_listed(self, backing: Backing) -> None:
        store = backing.open()
        assert store.cells() == []
        for cell in ("queries:1", "queries:0", "files:ab", "queries:0"):
            store.claim(cell, "t")
        assert sorted(backing.open().cells()) == ["files:ab", "queries:0", "queries:1"]

    # --- reading and writing profiles

    def test_load_gives_what_was_committed(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        assert store.load(CELL, "t", None, [client(1)]) == {}
        store.commit("t", Checkpoint(CELL, None, 3, {client(1): {"h": b"1", "s:0": b"2"}, client(2): {"h": b"3"}}))
        found = backing.open().load(CELL, "t", 3, [client(2), client(1), client("nobody")])
        assert found == {client(1): {"h": b"1", "s:0": b"2"}, client(2): {"h": b"3"}}
        assert store.load(CELL, "t", 3, []) == {}

    def test_fields_are_replaced_kept_and_deleted(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 3, {client(1): {"a": b"1", "b": b"2", "c": b"3"}}))
        store.commit("t", Checkpoint(CELL, 3, 6, {client(1): {"a": b"9", "b": None, "never": None, "d": b"4"}}))
        assert store.load(CELL, "t", 6, [client(1)]) == {client(1): {"a": b"9", "c": b"3", "d": b"4"}}
        store.commit("t", Checkpoint(CELL, 6, 9, {client(1): {"a": None, "c": None, "d": None}}))
        assert store.load(CELL, "t", 9, [client(1)]) == {}
        assert store.shards(CELL, [client(1)]).fields == {}
        # The reader of the touched list must still learn that something happened to this client.
        v = decision_cell(client(1), DECISION_CELLS)
        assert store.touched(CELL, {v: 6}, 10)[v].clients == [client(1)]
        store.commit("t", Checkpoint(CELL, 9, 12, {client(1): {"e": b"5"}}))
        assert store.load(CELL, "t", 12, [client(1)]) == {client(1): {"e": b"5"}}

    def test_fields_are_binary_safe(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        every = {
            "all": bytes(range(256)),
            "empty": b"",
            "crlf": b"\r\n$-1\r\n",
            "nul": b"\x00" * 9,
            "not utf-8": b"\xff\xfe",
        }
        store.commit("t", Checkpoint(CELL, None, 1, {client(1): dict(every)}))
        assert store.load(CELL, "t", 1, [client(1)]) == {client(1): every}

    def test_names_never_meet(self, backing: Backing) -> None:
        parts = ["a", "a:b", "b", ":", "", "%3A", "ä", "a b\n", "{x}", "*", "p:", "\x00", "😀", "A"]
        keys = [ClientKey(tenant, model, name) for tenant in parts for model in parts[:5] for name in parts]
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 1, {k: {"h": repr(k).encode()} for k in keys}))
        assert store.load(CELL, "t", 1, keys) == {k: {"h": repr(k).encode()} for k in keys}
        seen = [k for answer in store.touched(CELL, ALL_CELLS, 10_000).values() for k in answer.clients]
        assert sorted(seen) == sorted(keys)

    def test_field_and_cell_names_may_be_odd(self, backing: Backing) -> None:
        store = backing.open()
        for cell in ("a:b:0", "t{x}:1", "t}:2", "ä:3", "no number", "x" * 249 + ":4"):
            store.claim(cell, "t")
            store.commit("t", Checkpoint(cell, None, 1, {client(1): {"s:1 ä\n": cell.encode()}}))
        for cell in store.cells():
            assert store.load(cell, "t", 1, [client(1)]) == {client(1): {"s:1 ä\n": cell.encode()}}

    def test_a_big_checkpoint(self, backing: Backing) -> None:
        """300 clients of 24 KB in one commit, read back whole."""
        rng = random.Random(1)
        keys = [client(i) for i in range(300)]
        blobs = {k: {"h": rng.randbytes(64), "s:1": rng.randbytes(12_000), "b:1": rng.randbytes(12_000)} for k in keys}
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 300, {k: dict(v) for k, v in blobs.items()}))
        assert store.load(CELL, "t", 300, keys) == blobs

    def test_more_than_one_call_can_carry(self, backing: Backing) -> None:
        """12,000 fields of one client, 12,000 deletions, 9,000 clients of one commit: whole or not at all."""
        store = backing.open()
        store.claim(CELL, "t")
        many = {f"f{i}": b"%d" % i for i in range(12_000)}
        store.commit("t", Checkpoint(CELL, None, 1, {client(1): dict(many)}))
        assert store.load(CELL, "t", 1, [client(1)]) == {client(1): many}
        store.commit("t", Checkpoint(CELL, 1, 2, {client(1): {**dict.fromkeys(many), "left": b"y"}}))
        assert store.load(CELL, "t", 2, [client(1)]) == {client(1): {"left": b"y"}}
        crowd = [client(f"crowd{i}") for i in range(9_000)]
        store.commit("t", Checkpoint(CELL, 2, 3, profiles(crowd)))
        touched = store.touched(CELL, dict.fromkeys(range(DECISION_CELLS), 2), 10_000)
        assert sorted(k for answer in touched.values() for k in answer.clients) == sorted(crowd)
        assert len(store.load(CELL, "t", 3, crowd)) == 9_000

    # --- who may write: tokens

    def test_nobody_writes_without_a_claim(self, backing: Backing) -> None:
        store = backing.open()
        with nothing_changes(backing):
            with pytest.raises(Fenced):
                store.load(CELL, "t", None, [client(1)])
            with pytest.raises(Fenced):
                store.commit("t", Checkpoint(CELL, None, 1, profiles([client(1)])))

    def test_a_new_claim_fences_the_old_owner(self, backing: Backing) -> None:
        old, new = backing.open(), backing.open()
        old.claim(CELL, "t1")
        old.commit("t1", Checkpoint(CELL, None, 4, profiles([client(1)])))
        new.claim(CELL, "t2")
        with nothing_changes(backing):
            with pytest.raises(Fenced):
                old.load(CELL, "t1", 4, [client(1)])
            with pytest.raises(Fenced):
                old.commit("t1", Checkpoint(CELL, 4, 8, profiles([client(1)], b"stolen")))
            with pytest.raises(Fenced):
                old.commit("t1", Checkpoint(CELL, 4, 4))
        new.commit("t2", Checkpoint(CELL, 4, 8, profiles([client(1)], b"mine")))
        assert new.load(CELL, "t2", 8, [client(1)]) == {client(1): {"h": b"mine"}}

    def test_a_rejected_commit_changes_nothing_at_all(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 4, {client(1): {"a": b"1", "b": b"2"}}, [dead(0)], {"processed": 3}))
        whole: dict[ClientKey, dict[str, bytes | None]] = {client(1): {"a": b"9", "b": None}, client(2): {"h": b"x"}}
        for token, expected in (("other", 4), ("t", 3), ("t", 5), ("t", None), ("other", None)):
            with nothing_changes(backing), pytest.raises((Fenced, Rewound)):
                store.commit(token, Checkpoint(CELL, expected, 9, whole, [dead(1)], {"processed": 8}))

    # --- at which position: offsets

    def test_another_position_is_rewound(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 4, profiles([client(1)])))
        for believed in (None, 0, 3, 5):
            with nothing_changes(backing):
                with pytest.raises(Rewound) as on_load:
                    store.load(CELL, "t", believed, [client(1)])
                with pytest.raises(Rewound) as on_commit:
                    store.commit("t", Checkpoint(CELL, believed, 9, profiles([client(1)], b"y")))
            for error in (on_load.value, on_commit.value):
                assert (error.cell, error.offset) == (CELL, 4)

    def test_a_position_that_was_never_stored_is_none(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        with nothing_changes(backing), pytest.raises(Rewound) as error:
            store.commit("t", Checkpoint(CELL, 0, 1))
        assert error.value.offset is None
        with pytest.raises(Rewound):
            store.load(CELL, "t", 0, [])

    def test_a_beacon_keeps_the_position(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 4))
        store.commit("t", Checkpoint(CELL, 4, 4))
        with pytest.raises(Rewound):
            store.commit("t", Checkpoint(CELL, 3, 3))
        assert store.claim(CELL, "t2").next_offset == 4

    def test_the_position_never_goes_back(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 4))
        with nothing_changes(backing):
            for before, after in ((4, 3), (4, 2**53), (-1, 5)):
                with pytest.raises(ValueError):
                    store.commit("t", Checkpoint(CELL, before, after))
            with pytest.raises(ValueError, match="stays"):
                store.commit("t", Checkpoint(CELL, 4, 4, profiles([client(1)])))

    def test_large_offsets_keep_their_digits(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        high = 2**53 - 1
        (k,) = clients_in(7, 1)
        store.commit("t", Checkpoint(CELL, None, high - 1, profiles([k])))
        store.commit("t", Checkpoint(CELL, high - 1, high, profiles([client(2)])))
        assert store.claim(CELL, "t2").next_offset == high
        assert store.touched(CELL, {7: high - 2}, 5)[7].clients == [k]
        assert store.touched(CELL, {7: high - 1}, 5)[7].clients == []

    # --- lost answers

    def test_a_commit_whose_answer_was_lost(self, backing: Backing) -> None:
        """It was stored: the next claim resumes after it, and the same commit cannot be stored again."""
        store = backing.open()
        store.claim(CELL, "t1")
        sent = Checkpoint(CELL, None, 5, profiles([client(1)], b"once"), [dead(1)], {"processed": 4})
        store.commit("t1", sent)
        assert store.claim(CELL, "t2").next_offset == 5
        with nothing_changes(backing):
            with pytest.raises(Fenced):
                store.commit("t1", sent)
            with pytest.raises(Rewound):
                store.commit("t2", sent)
        assert store.load(CELL, "t2", 5, [client(1)]) == {client(1): {"h": b"once"}}

    def test_a_commit_that_arrives_late(self, backing: Backing) -> None:
        """It was on its way when its sender claimed again: whatever happened since, it is fenced."""
        store = backing.open()
        store.claim(CELL, "t1")
        late = Checkpoint(CELL, None, 5, profiles([client(1)], b"late"))
        assert store.claim(CELL, "t2").next_offset is None
        with nothing_changes(backing), pytest.raises(Fenced):
            store.commit("t1", late)
        store.commit("t2", Checkpoint(CELL, None, 5, profiles([client(1)], b"again")))
        with nothing_changes(backing), pytest.raises(Fenced):
            store.commit("t1", late)

    # --- races

    def test_of_two_commits_at_once_one_wins(self, backing: Backing) -> None:
        a, b = backing.open(), backing.open()
        a.claim(CELL, "t")
        offset: int | None = None
        for turn in range(20):
            after = (offset or 0) + 1 + turn % 3
            rivals = [
                Checkpoint(CELL, offset, after, {client(who): {"h": b"%d" % turn}, client("both"): {"h": who.encode()}})
                for who in ("a", "b")
            ]
            results = at_once(lambda: a.commit("t", rivals[0]), lambda: b.commit("t", rivals[1]))  # noqa: B023
            assert sorted(type(result).__name__ for result in results) == ["NoneType", "Rewound"]
            winner = "ab"[results.index(None)]
            offset = after
            found = a.load(CELL, "t", offset, [client("both"), client("a"), client("b")])
            assert found[client("both")] == {"h": winner.encode()}
            loser = client("b" if winner == "a" else "a")
            assert found.get(loser, {}).get("h") != b"%d" % turn
        assert backing.open().claim(CELL, "t2").next_offset == offset

    def test_claims_and_commits_at_once_keep_one_history(self, backing: Backing) -> None:
        """Three owners that steal the cell from each other: the stored count equals the stored position."""
        stores = [backing.open() for _ in range(3)]

        def work(store: Store, name: str) -> None:
            for turn in range(15):
                token = f"{name}{turn}"
                offset = store.claim(CELL, token).next_offset
                try:
                    found = store.load(CELL, token, offset, [client(1)])
                    count = int(found[client(1)]["n"]) if found else 0
                    fields: dict[str, bytes | None] = {"n": b"%d" % (count + 1)}
                    store.commit(token, Checkpoint(CELL, offset, (offset or 0) + 1, {client(1): fields}))
                except (Fenced, Rewound):
                    continue

        assert at_once(*(lambda s=s, i=i: work(s, f"w{i}") for i, s in enumerate(stores))) == [None] * 3
        offset = stores[0].claim(CELL, "end").next_offset
        assert offset is not None
        assert stores[1].load(CELL, "end", offset, [client(1)]) == {client(1): {"n": b"%d" % offset}}

    # --- the touched list

    def test_touched_is_ordered_by_position(self, backing: Backing) -> None:
        store = backing.open()
        generation = store.claim(CELL, "t").generation
        a, b, c = clients_in(5, 3)
        (other,) = clients_in(6, 1)
        store.commit("t", Checkpoint(CELL, None, 10, profiles([c])))
        store.commit("t", Checkpoint(CELL, 10, 20, profiles([a, other])))
        store.commit("t", Checkpoint(CELL, 20, 30, profiles([b])))
        found = backing.open().touched(CELL, {5: 0, 6: 0, 7: 0}, 100)
        assert [found[v].clients for v in (5, 6, 7)] == [[c, a, b], [other], []]
        assert {(t.generation, t.offset, t.cursor) for t in found.values()} == {(generation, 30, 30)}
        assert store.touched(CELL, {5: 10}, 100)[5].clients == [a, b]
        assert store.touched(CELL, {5: 30}, 100)[5].clients == []
        # Touched again: it moves to the end and is there once.
        store.commit("t", Checkpoint(CELL, 30, 40, profiles([c])))
        assert store.touched(CELL, {5: 0}, 100)[5].clients == [a, b, c]

    def test_a_limit_never_cuts_a_commit(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        keys = clients_in(9, 9)
        store.commit("t", Checkpoint(CELL, None, 10, profiles(keys[:2])))
        store.commit("t", Checkpoint(CELL, 10, 20, profiles(keys[2:5])))
        store.commit("t", Checkpoint(CELL, 20, 30, profiles(keys[5:])))
        store.commit("t", Checkpoint(CELL, 30, 50, profiles([client("elsewhere")])))
        wanted = {  # limit → cursor, how many clients, starting from 0
            1: (10, 2), 2: (10, 2), 3: (10, 2), 4: (10, 2), 5: (20, 5), 8: (20, 5), 9: (50, 9), 10: (50, 9),
        }  # fmt: skip
        for limit, (cursor, count) in wanted.items():
            found = store.touched(CELL, {9: 0}, limit)[9]
            assert (found.cursor, sorted(found.clients)) == (cursor, sorted(keys[:count])), limit
            assert found.offset == 50
        last = store.touched(CELL, {9: 20}, 1)[9]
        assert (last.cursor, sorted(last.clients)) == (50, sorted(keys[5:]))
        with pytest.raises(ValueError):
            store.touched(CELL, {9: 0}, 0)

    def test_paging_through_touched_misses_nobody(self, backing: Backing) -> None:
        """Random commits, every limit: what lies at or below the cursor has been given, each time."""
        rng = random.Random(7)
        store = backing.open()
        store.claim(CELL, "t")
        cells = (3, 4)
        keys = {v: clients_in(v, 12) for v in cells}
        latest: dict[ClientKey, int] = {}
        offset: int | None = None
        for _ in range(25):
            after = (offset or 0) + rng.randint(1, 5)
            some = [k for v in cells for k in rng.sample(keys[v], rng.randint(0, 4))]
            store.commit("t", Checkpoint(CELL, offset, after, profiles(some)))
            latest.update(dict.fromkeys(some, after))
            offset = after
        for limit in (1, 2, 3, 5, 8, 30):
            cursors, given = dict.fromkeys(cells, 0), {v: list[ClientKey]() for v in cells}
            for _ in range(200):
                for v, found in store.touched(CELL, cursors, limit).items():
                    given[v] += found.clients
                    assert found.cursor >= cursors[v]
                    assert {k for k in keys[v] if 0 < latest.get(k, 0) <= found.cursor} == set(given[v])
                    cursors[v] = found.cursor
                if set(cursors.values()) == {offset}:
                    break
            for v in cells:
                assert sorted(given[v]) == sorted(k for k in keys[v] if k in latest)
                assert [latest[k] for k in given[v]] == sorted(latest[k] for k in given[v])

    def test_touched_and_shards_of_a_cell_without_history(self, backing: Backing) -> None:
        store = backing.open()
        for generation in ("", store.claim("queries:5", "t").generation):
            cell = "queries:5" if generation else "queries:4"
            found = store.touched(cell, {0: 0, 31: 7}, 10)
            assert {v: (t.generation, t.offset, t.cursor, t.clients) for v, t in found.items()} == {
                0: (generation, 0, 0, []), 31: (generation, 0, 0, []),
            }  # fmt: skip
            shards = store.shards(cell, [client(1)])
            assert (shards.generation, shards.offset, shards.fields) == (generation, 0, {})

    def test_a_cursor_ahead_of_the_cell_is_told_the_truth(self, backing: Backing) -> None:
        """That is what a reader sees after a rollback: the cell's own position, and nobody."""
        store = backing.open()
        store.claim(CELL, "t")
        (k,) = clients_in(2, 1)
        store.commit("t", Checkpoint(CELL, None, 10, profiles([k])))
        found = store.touched(CELL, {2: 99}, 10)[2]
        assert (found.offset, found.cursor, found.clients) == (10, 10, [])

    def test_shards_name_the_state_they_come_from(self, backing: Backing) -> None:
        store = backing.open()
        generation = store.claim(CELL, "t").generation
        store.commit("t", Checkpoint(CELL, None, 10, {client(1): {"h": b"1", "s:1": b"\x00"}}))
        shards = backing.open().shards(CELL, [client(2), client(1)])
        assert (shards.generation, shards.offset) == (generation, 10)
        assert shards.fields == {client(1): {"h": b"1", "s:1": b"\x00"}}

    # --- dead letters

    def test_dead_letters_wait_until_they_are_shipped(self, backing: Backing) -> None:
        store = backing.open()
        store.claim(CELL, "t")
        store.commit("t", Checkpoint(CELL, None, 10, dead=[dead(1), dead(2, "dimension")]))
        store.commit("t", Checkpoint(CELL, 10, 20, dead=[dead(12)]))
        found = backing.open().dead_letters(CELL, 10)
        assert [letter for _, letter in found] == [dead(1), dead(2, "dimension"), dead(12)]
        assert store.dead_letters(CELL, 2) == found[:2]
        store.dead_letters_shipped(CELL, [found[0][0], found[2][0]])
        store.dead_letters_shipped(CELL, [found[0][0]])
        store.dead_letters_shipped(CELL, [])
        assert store.dead_letters(CELL, 10) == [found[1]]
        assert store.dead_letter_counts() == {"nan": 2, "dimension": 1}

    # --- decision cells: lease, token, revision

    def test_decisions_start_at_revision_zero(self, backing: Backing) -> None:
        claim = backing.open().claim_decisions(4, "p1", "t1", 60_000)
        assert (claim.revision, claim.cursors) == (0, {})

    def test_a_living_lease_keeps_others_out(self, backing: Backing) -> None:
        store, other = backing.open(), backing.open()
        store.claim_decisions(4, "p1", "t1", 60_000)
        with nothing_changes(backing), pytest.raises(LeaseHeld) as held:
            other.claim_decisions(4, "p2", "t2", 60_000)
        assert 0 < held.value.remaining_ms <= 60_000
        other.claim_decisions(5, "p2", "t2", 60_000)
        store.claim_decisions(4, "p1", "t3", 60_000)

    def test_a_lease_ends_by_itself(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p1", "t1", 1)
        for _ in range(500):
            try:
                backing.open().claim_decisions(4, "p2", "t2", 60_000)
                break
            except LeaseHeld:
                time.sleep(0.01)
        else:
            pytest.fail("a lease of 1 ms outlived 5 s")
        with pytest.raises(Fenced):
            store.record("t1", 0, Outcome(4), "p1", 60_000)

    def test_recording_renews_the_lease(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p1", "t1", 1)
        time.sleep(0.02)
        store.record("t1", 0, Outcome(4), "p1", 60_000)
        with pytest.raises(LeaseHeld):
            backing.open().claim_decisions(4, "p2", "t2", 60_000)

    def test_a_lease_is_released_by_its_holder_only(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p1", "t1", 60_000)
        with nothing_changes(backing):
            store.release_decisions(4, "p2")
        with pytest.raises(LeaseHeld):
            store.claim_decisions(4, "p2", "t2", 60_000)
        store.release_decisions(4, "p1")
        store.claim_decisions(4, "p2", "t2", 60_000)
        with pytest.raises(Fenced):
            store.record("t1", 0, Outcome(4), "p1", 60_000)

    def test_one_of_two_claims_gets_the_lease(self, backing: Backing) -> None:
        stores = [backing.open(), backing.open()]
        for cell in range(10):
            results = at_once(
                lambda: stores[0].claim_decisions(cell, "p1", "t1", 60_000),  # noqa: B023
                lambda: stores[1].claim_decisions(cell, "p2", "t2", 60_000),  # noqa: B023
            )
            assert sorted(type(result).__name__ for result in results) == ["DecisionClaim", "LeaseHeld"]

    def test_record_moves_the_revision(self, backing: Backing) -> None:
        store = backing.open()
        k, other = clients_in(4, 2)
        store.claim_decisions(4, "p", "t", 60_000)
        assert store.load_decisions(4, "t", 0, [k]) == {}
        cursors = {"queries:0": Cursor("g0", 7), "a:b:1": Cursor("g1", 0)}
        outcome = Outcome(4, cursors, {k: row("one", 0.25, "block", 99)})
        assert store.record("t", 0, outcome, "p", 60_000) == 1
        assert store.load_decisions(4, "t", 1, [k, other]) == {k: row("one", 0.25, "block", 99)}
        later = Outcome(4, {"queries:0": Cursor("g2", 9)}, {k: row("two"), other: row("\x00ÿ", -0.1)})
        assert store.record("t", 1, later, "p", 60_000) == 2
        claim = backing.open().claim_decisions(4, "p", "t2", 60_000)
        assert claim.revision == 2
        assert claim.cursors == {"queries:0": Cursor("g2", 9), "a:b:1": Cursor("g1", 0)}
        assert store.load_decisions(4, "t2", 2, [k, other]) == {k: row("two"), other: row("\x00ÿ", -0.1)}

    def test_a_rejected_record_changes_nothing_at_all(self, backing: Backing) -> None:
        store = backing.open()
        (k,) = clients_in(4, 1)
        store.claim_decisions(4, "p", "t", 60_000)
        store.record("t", 0, Outcome(4, rows={k: row("one")}), "p", 60_000)
        whole = Outcome(4, {"queries:0": Cursor("g", 7)}, {k: row("two", 0.9)}, [alert("a/0")])
        for token, revision, error in (("x", 1, Fenced), ("t", 0, Rewound), ("t", 2, Rewound), ("x", 0, Fenced)):
            with nothing_changes(backing):
                with pytest.raises(error):
                    store.record(token, revision, whole, "p", 60_000)
                with pytest.raises(error):
                    store.load_decisions(4, token, revision, [k])
        with nothing_changes(backing):
            with pytest.raises(ValueError):
                store.record("t", 1, Outcome(4, rows={k: row(rank=float("nan"))}), "p", 60_000)
            with pytest.raises(ValueError):
                store.record("t", 1, whole, "p", 0)
            with pytest.raises(ValueError):
                store.record("t", 1, Outcome(DECISION_CELLS), "p", 60_000)

    def test_rewound_decisions_tell_the_revision(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p", "t", 60_000)
        store.record("t", 0, Outcome(4), "p", 60_000)
        with pytest.raises(Rewound) as error:
            store.record("t", 0, Outcome(4), "p", 60_000)
        assert error.value.offset == 1

    def test_of_two_records_at_once_one_wins(self, backing: Backing) -> None:
        a, b = backing.open(), backing.open()
        (k,) = clients_in(4, 1)
        a.claim_decisions(4, "p", "t", 60_000)
        for revision in range(15):
            rivals = [Outcome(4, rows={k: row(who)}, alerts=[alert(f"{who}/{revision}")]) for who in "ab"]
            results = at_once(
                lambda: a.record("t", revision, rivals[0], "p", 60_000),  # noqa: B023
                lambda: b.record("t", revision, rivals[1], "p", 60_000),  # noqa: B023
            )
            won = [result == revision + 1 for result in results]
            assert sorted(won) == [False, True]
            assert isinstance(results[won.index(False)], Rewound)
            assert a.load_decisions(4, "t", revision + 1, [k]) == {k: row("ab"[won.index(True)])}
        assert len(a.alerts()) == 15

    # --- outbox

    def test_the_outbox_is_kept_for_each_destination(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p", "t", 60_000)
        alerts = [alert(f"a{i}/0", 1000 - i) for i in range(5)]
        store.record("t", 0, Outcome(4, alerts=alerts[:3]), "p", 60_000)
        store.record("t", 1, Outcome(4, alerts=alerts[3:]), "p", 60_000)
        found = backing.open().outbox(4, "kafka:alerts", 10)
        assert [a for _, a in found] == alerts
        assert store.outbox(4, "kafka:alerts", 2) == found[:2]
        assert store.outbox(5, "kafka:alerts", 10) == []
        store.sent(4, "kafka:alerts", found[0][0], "a0/0")
        store.sent(4, "kafka:alerts", found[0][0], "a0/0")
        assert store.outbox(4, "kafka:alerts", 10) == found[1:]
        assert store.outbox(4, "file:a.jsonl", 10) == found
        # Out of order: a later one went out first.
        store.sent(4, "kafka:alerts", found[3][0], "a3/0")
        assert store.outbox(4, "kafka:alerts", 10) == [found[1], found[2], found[4]]
        assert store.outbox(4, "kafka:alerts", 2) == [found[1], found[2]]
        for i in (1, 2, 4):
            store.sent(4, "kafka:alerts", found[i][0], f"a{i}/0")
        assert store.outbox(4, "kafka:alerts", 10) == []
        assert store.outbox(4, "file:a.jsonl", 10) == found
        store.record("t", 2, Outcome(4, alerts=[alert("a9/1")]), "p", 60_000)
        assert [a.uid for _, a in store.outbox(4, "kafka:alerts", 10)] == ["a9/1"]

    def test_sending_the_same_again_changes_nothing(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p", "t", 60_000)
        store.record("t", 0, Outcome(4, alerts=[alert("a/0"), alert("b/0")]), "p", 60_000)
        (entry, _), _ = store.outbox(4, "k", 10)
        store.sent(4, "k", entry, "a/0")
        with nothing_changes(backing):
            store.sent(4, "k", entry, "a/0")

    def test_a_uid_is_not_delivered_twice(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p", "t", 60_000)
        store.record("t", 0, Outcome(4, alerts=[alert("a/0")]), "p", 60_000)
        store.sent(4, "k", store.outbox(4, "k", 1)[0][0], "a/0")
        store.record("t", 1, Outcome(4, alerts=[alert("a/0"), alert("a/1")]), "p", 60_000)
        assert [a.uid for _, a in store.outbox(4, "k", 10)] == ["a/1"]

    def test_one_stuck_alert_holds_up_no_other(self, backing: Backing) -> None:
        store = backing.open()
        store.claim_decisions(4, "p", "t", 60_000)
        store.record("t", 0, Outcome(4, alerts=[alert(f"a{i}/0") for i in range(350)]), "p", 60_000)
        entries = store.outbox(4, "k", 1000)
        assert [a.uid for _, a in entries] == [f"a{i}/0" for i in range(350)]
        for entry, a in entries[1:330]:
            store.sent(4, "k", entry, a.uid)
        assert store.outbox(4, "k", 1000) == [entries[0], *entries[330:]]
        assert store.outbox(4, "k", 2) == [entries[0], entries[330]]
        assert store.outbox(4, "other", 1000) == entries
        store.sent(4, "k", entries[0][0], entries[0][1].uid)
        assert store.outbox(4, "k", 1000) == entries[330:]
        assert store.outbox(4, "other", 1000) == entries

    # --- readers

    def test_decisions_are_listed_highest_first(self, backing: Backing) -> None:
        rng = random.Random(3)
        wanted: dict[str, list[tuple[ClientKey, DecisionRow]]] = {}
        by_cell: dict[int, dict[ClientKey, DecisionRow]] = {}
        for model in ("fraud", "a:b", "vision ä"):
            for i in range(60):
                k = client(f"c{i}", model=model)
                r = row(f"{model}{i}", rng.choice([0.0, 0.5, 1.0, -2.5, 1e-9, 0.1 + 0.2, rng.random()]), "clear", i)
                wanted.setdefault(model, []).append((k, r))
                by_cell.setdefault(decision_cell(k, DECISION_CELLS), {})[k] = r
        stranger = client("c1", tenant="other")
        by_cell.setdefault(decision_cell(stranger, DECISION_CELLS), {})[stranger] = row("stranger", 9.0)
        store = backing.open()
        for cell, rows in by_cell.items():
            store.claim_decisions(cell, "p", "t", 60_000)
            store.record("t", 0, Outcome(cell, rows=rows), "p", 60_000)
        for rows_of in wanted.values():
            rows_of.sort(key=lambda item: (-item[1].rank, item[0].client))
        reader = backing.open()
        assert list(reader.decisions("acme", "fraud")) == wanted["fraud"]
        assert list(reader.decisions("acme", "fraud", 7)) == wanted["fraud"][:7]
        assert list(reader.decisions("acme", "fraud", 0)) == []
        everything = list(reader.decisions("acme"))
        assert len(everything) == 180
        for model, rows_of in wanted.items():
            assert [item for item in everything if item[0].model == model] == rows_of
        assert [k for k, _ in reader.decisions("other")] == [stranger]
        assert list(reader.decisions("acme", "unknown")) == []
        assert list(reader.decisions("nobody")) == []
        assert len(list(reader.decisions("acme", limit=5))) == 15

    def test_a_new_rank_moves_the_client(self, backing: Backing) -> None:
        store = backing.open()
        a, b = clients_in(4, 2)
        store.claim_decisions(4, "p", "t", 60_000)
        store.record("t", 0, Outcome(4, rows={a: row("a", 0.9), b: row("b", 0.5)}), "p", 60_000)
        store.record("t", 1, Outcome(4, rows={b: row("b2", 0.95)}), "p", 60_000)
        assert list(store.decisions("acme", "fraud")) == [(b, row("b2", 0.95)), (a, row("a", 0.9))]

    def test_alerts_are_listed_oldest_first(self, backing: Backing) -> None:
        store = backing.open()
        for cell in (0, 31, 7):
            store.claim_decisions(cell, "p", "t", 60_000)
            batch = [alert(f"{cell}/{i}", 10_000 + 100 * i + cell) for i in range(3)]
            store.record("t", 0, Outcome(cell, alerts=batch), "p", 60_000)
        everything = backing.open().alerts()
        assert [a.uid for a in everything] == ["0/0", "7/0", "31/0", "0/1", "7/1", "31/1", "0/2", "7/2", "31/2"]
        assert everything[0] == alert("0/0", 10_000)
        assert store.alerts(4) == everything[-4:]
        assert store.alerts(0) == []
        store.sent(0, "k", store.outbox(0, "k", 1)[0][0], "0/0")
        assert store.alerts() == everything
