"""Odd patches as stored: bounded, sealed, of one map, and the same however polls and cells are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consumers.records import odd_patches
from consumers.secrets import Secrets
from detector.patches import KEPT
from detector.query import ClientKey, QueryBatch

SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
MAP = "00ff" * 4
KEYS = [ClientKey("default", "m", f"c{i}") for i in range(3)]


def batch_of(who: list[int]) -> QueryBatch:
    n = len(who)
    return QueryBatch(
        clients=[key.client for key in KEYS], who=np.array(who, np.int32), inputs=np.zeros((n, 1)), labels=np.zeros(n, np.int32),
        probabilities=np.zeros((n, 0), np.float32), values=np.zeros(n), time_ms=np.zeros(n, np.int64), weight=np.ones(n, np.float32),
        offsets=np.arange(n),
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 99)), max_size=120), st.integers(1, 50))
def test_polls_make_no_difference(queries: list[tuple[int, int]], poll: int) -> None:
    known: dict[ClientKey, tuple[int, ...]] = {}
    for at in range(0, len(queries), poll):
        some = queries[at : at + poll]
        patches = np.array([patch for _, patch in some], np.uint64)
        changed = odd_patches.seen(known, KEYS, batch_of([who for who, _ in some]), patches)
        assert all(known.get(key) != now for key, now in changed.items()), "only what changed"
        known |= changed
    for i, key in enumerate(KEYS):
        mine = sorted({patch for who, patch in queries if who == i and patch})
        assert list(known.get(key, ())) == mine[:KEPT]


def test_a_field_is_sealed_and_of_one_map_and_tenant() -> None:
    mine = tuple(range(10**9, 10**9 + KEPT))
    blob = odd_patches.packed(mine, MAP, SECRETS, "default")
    assert odd_patches.unpacked(blob, MAP, SECRETS, "default") == mine
    assert str(10**9).encode() not in blob
    assert len(blob) < 400
    for damaged in (None, blob[:-1], b"", blob + b"x"):
        assert odd_patches.unpacked(damaged, MAP, SECRETS, "default") is None
    assert odd_patches.unpacked(blob, "0" * 16, SECRETS, "default") is None
    assert odd_patches.unpacked(blob, MAP, SECRETS, "other") is None
    long = odd_patches.packed(list(range(100)), MAP, SECRETS, "default")
    assert odd_patches.unpacked(long, MAP, SECRETS, "default") == tuple(range(KEPT)), "bounded, whatever was stored"


def test_cells_are_united_and_a_client_without_any_is_not_known() -> None:
    blobs = [odd_patches.packed(some, MAP, SECRETS, "t") for some in ((1, 5), (2, 5))]
    assert odd_patches.together([*blobs, None], MAP, SECRETS, "t") == (1, 2, 5)
    assert odd_patches.together([None], MAP, SECRETS, "t") is None


def test_links_are_keyed_by_tenant_and_map() -> None:
    links = {
        odd_patches.hashed([7], MAP, SECRETS, "a"), odd_patches.hashed([7], MAP, SECRETS, "b"),
        odd_patches.hashed([7], "0" * 16, SECRETS, "a"), odd_patches.hashed([7], MAP, Secrets(b"s" * 16, b"q" * 32, b"k" * 32), "a"),
    }  # fmt: skip
    assert len(links) == 4
    assert all(link.startswith("odd_patch:") and len(link) == 26 for (link,) in links)
