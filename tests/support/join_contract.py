"""The part of the stores' conformance suite that is about join cells: what is handed in once is there once, and is taken out once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from consumers.errors import Rewound
from consumers.store import Checkpoint, HandIn, Store, Taken

if TYPE_CHECKING:
    from support.store_contract import Backing

JOINED = "joined.loans:0"
ONE, TWO = "gateway:0", "models:3"


def hand(
    store: Store, source: str, expected: int | None, after: int, *contents: bytes, nonce: str = "n", most: int = 100
) -> bool:
    return store.hand_in(HandIn(JOINED, source, expected, after, contents, nonce, most, 1 << 20))


def take(store: Store, before: int | None, after: int, last: int, *done: int) -> None:
    """As the owner ``t`` does: it reads, then commits."""
    found, _ = store.arrivals(JOINED, last, 1)
    store.commit("t", Checkpoint(JOINED, before, after, taken=Taken(last, found[0].proof, done)))


class JoinContract:
    def test_what_is_handed_in_arrives_in_order(self, backing: Backing) -> None:
        store = backing.open()
        assert store.sources(JOINED) == {}
        assert store.arrivals(JOINED, 0, 10) == ([], 0)
        assert hand(store, ONE, None, 5, b"a", bytes(range(256)))
        assert hand(store, TWO, None, 9)
        assert hand(store, TWO, 9, 12, b"c")
        assert backing.open().sources(JOINED) == {ONE: 5, TWO: 12}
        found, numbered = backing.open().arrivals(JOINED, 0, 10)
        assert [(one.number, one.content) for one in found] == [(0, b"a"), (1, bytes(range(256))), (2, b"c")]
        assert numbered == 3
        assert [one.number for one in store.arrivals(JOINED, 1, 1)[0]] == [1]
        assert store.arrivals(JOINED, 3, 10) == ([], 3)

    def test_the_same_records_are_handed_in_once(self, backing: Backing) -> None:
        store = backing.open()
        assert hand(store, ONE, None, 5, b"a")
        before = backing.dump()
        for expected in (None, 4, 6):
            with pytest.raises(Rewound) as refused:
                hand(store, ONE, expected, 7, b"a", nonce="again")
            assert refused.value.offset == 5
        with pytest.raises(Rewound) as unknown:
            hand(store, TWO, 1, 2, b"b")
        assert unknown.value.offset is None
        assert backing.dump() == before

    def test_a_commit_takes_out_what_it_is_done_with(self, backing: Backing) -> None:
        store = backing.open()
        hand(store, ONE, None, 5, b"a", b"b", b"c")
        store.claim(JOINED, "t")
        take(store, None, 2 << 16, 1, 1)
        assert [one.number for one in store.arrivals(JOINED, 0, 10)[0]] == [0, 2]
        take(store, 2 << 16, 3 << 16, 2, 0, 2)
        assert store.arrivals(JOINED, 0, 10) == ([], 3)
        assert hand(store, ONE, 5, 6, b"d")
        assert [one.number for one in store.arrivals(JOINED, 0, 10)[0]] == [3]

    def test_what_was_read_must_be_what_is_there(self, backing: Backing) -> None:
        store = backing.open()
        hand(store, ONE, None, 5, b"a")
        store.claim(JOINED, "t")
        (held,), _ = store.arrivals(JOINED, 0, 1)
        before = backing.dump()
        for taken in (Taken(0, "another", (0,)), Taken(1, held.proof, (0,))):
            with pytest.raises(Rewound):
                store.commit("t", Checkpoint(JOINED, None, 1 << 16, taken=taken))
        assert backing.dump() == before

    def test_a_proof_is_of_all_that_arrived_before(self, backing: Backing) -> None:
        """The same call after another history gives another proof."""
        store = backing.open()
        hand(store, ONE, None, 5, b"a", nonce="x")
        hand(store, TWO, None, 5, b"b", nonce="y")
        one = store.arrivals(JOINED, 1, 1)[0][0]
        store.claim(JOINED, "t")
        store.reset(JOINED, None)
        hand(store, ONE, None, 5, b"a", nonce="z")
        hand(store, TWO, None, 5, b"b", nonce="y")
        other = store.arrivals(JOINED, 1, 1)[0][0]
        assert (one.number, one.content) == (other.number, other.content)
        assert one.proof != other.proof

    def test_a_full_cell_takes_nothing_in_until_it_is_read(self, backing: Backing) -> None:
        store = backing.open()
        assert hand(store, ONE, None, 5, *[b"x"] * 7, most=3), "an empty cell takes one call of any size"
        before = backing.dump()
        assert not hand(store, ONE, 5, 6, b"y", most=7)
        assert not store.hand_in(HandIn(JOINED, ONE, 5, 6, (b"y" * 20,), "n", 100, 20))
        assert backing.dump() == before
        assert hand(store, ONE, 5, 6, most=7), "a source without records for the cell goes on"
        store.claim(JOINED, "t")
        take(store, None, 7 << 16, 6)  # all were read; those that wait for their other halves stay
        assert len(store.arrivals(JOINED, 0, 100)[0]) == 7
        assert hand(store, ONE, 6, 7, b"y", most=1)
        assert store.hand_in(HandIn(JOINED, ONE, 7, 8, (b"y",), "n", 2, 2)), "what was read is no load any more"
        assert not store.hand_in(HandIn(JOINED, ONE, 8, 9, (b"y",), "n", 9, 2))

    def test_every_claim_of_a_join_cell_begins_a_generation(self, backing: Backing) -> None:
        store = backing.open()
        hand(store, ONE, None, 5, b"a")
        assert len({store.claim(JOINED, "t").generation for _ in range(3)}) == 3
        assert len({store.claim("queries:0", "t").generation for _ in range(3)}) == 1

    def test_a_join_cell_that_begins_anew_knows_no_source(self, backing: Backing) -> None:
        store = backing.open()
        hand(store, ONE, None, 5, b"a")
        store.claim(JOINED, "t")
        store.reset(JOINED, None)
        assert store.sources(JOINED) == {}
        assert store.arrivals(JOINED, 0, 10) == ([], 0)
        assert store.claim(JOINED, "t").next_offset is None
        assert hand(store, ONE, None, 5, b"a")
