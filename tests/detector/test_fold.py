"""The fold equals its slow twin in every field, whatever polls cut the stream and whoever else is in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import naive
from support.references import DAY_MS, KEY, REFERENCES, batch_of, fitted_baseline, fitted_map, invented, life, rows_of
from support.twins import asks, check, small_table, way_of

from detector.bottom_k import find_sorted, keep_marked, kept_estimate, mass_of
from detector.features import BITS, FeatureMap, Measured
from detector.fold_arrays import LADDER_STEPS, SAMPLE_KEPT
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signal_table import SignalTable

FOREVER = 2**62
NULLS = "00" * 8


def table_of(fmap: FeatureMap, table: SignalTable) -> ProfileTable:
    return ProfileTable(fmap, table, NULLS, FOREVER, capacity=2)


def both(
    fmap: FeatureMap, table: SignalTable, batch: QueryBatch, measured: Measured, cuts: list[int]
) -> tuple[Profile, naive.NaiveClient]:
    profiles = table_of(fmap, table)
    for rows in np.split(np.arange(len(batch)), cuts):
        profiles.add(["a"], batch.take(rows), rows_of(measured, rows)) if len(rows) else None
    twin = naive.NaiveClient(way_of(fmap, table))
    for q in asks(batch, measured):
        twin.ask(q)
    return profiles.profile("a"), twin


# ------------------------------------------------------------------ equal to the twin


@pytest.mark.parametrize("name", REFERENCES)
def test_a_whole_life_equals_the_twin(name: str) -> None:
    baseline = fitted_baseline(name)
    batch = life(name, 500, np.random.default_rng(20))
    measured = baseline.map.measure(batch, KEY)
    profile, twin = both(baseline.map, baseline.table, batch, measured, [7, 8, 200])
    check(profile, twin)
    seen = 0
    for bits in profile.sequence_bits.tolist():
        seen |= bits
    expected = ("stepped", "collinear") if name == "prices" else ("stepped", "flipped", "collinear")
    assert all(seen & BITS[b] for b in expected), "the stream does not exercise the path"
    assert len(profile.passage_ms) > 3


@settings(max_examples=16, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.integers(0, 2**32),
    st.sampled_from([2, 3, 60]),
    st.sampled_from([5, 60, 230, 3000]),
    st.lists(st.integers(0, 400), max_size=4),
    st.sampled_from(["prices", "people"]),
)
def test_invented_lives_equal_the_twin(seed: int, alphabet: int, contents: int, cuts: list[int], name: str) -> None:
    """Ties in distance, repeats, contents that come back after they were forgotten, the same content with other bits."""
    rng = np.random.default_rng(seed)
    fmap = replace(fitted_map(name), near=float(rng.choice([0.0, 0.05, 3.0])))
    batch, measured = invented(fmap, 400, rng, alphabet, contents)
    check(*both(fmap, small_table(rng), batch, measured, sorted(cuts)))


def test_sets_that_overflow_equal_the_twin() -> None:
    """More odd queries and paths than the sets keep, and contents that come back from beyond the memory."""
    rng = np.random.default_rng(3)
    fmap = replace(fitted_map("prices"), near=0.01)
    batch, measured = invented(fmap, 2600, rng, 4, 1500)
    measured.bits |= np.uint32(BITS["part_rare"])
    profile, twin = both(fmap, small_table(rng), batch, measured, [1000])
    check(profile, twin)
    assert (len(profile.sample_hash), len(profile.odd_hash), len(profile.sequence_hash)) == (192, 512, 128)


def test_the_largest_hash_of_a_full_sample_stays_novel_only_if_it_always_was() -> None:
    """A content that comes back after it was forgotten, now near to something remembered: it is not novel any more, wherever it sorts."""
    fmap = replace(fitted_map("prices"), near=1e6)
    batch, measured = invented(fmap, 300, np.random.default_rng(4), 60, 300)
    largest = 10_000
    # 192 distinct ones fill the sample; fillers with larger hashes push the first out of the memory; then it comes back
    measured.hashes[:] = [largest, *range(1, 192), *range(20_000, 20_107), largest]
    profile, twin = both(fmap, small_table(np.random.default_rng(5)), batch, measured, [])
    assert len(profile.sample_hash) == SAMPLE_KEPT
    assert profile.sample_hash[-1] == largest
    check(profile, twin)
    assert not profile.sample_novel[-1]


def test_a_category_has_no_direction() -> None:
    """A client that goes to and fro between the first and the last of many categories does not walk along a line."""
    fmap = fitted_map("people")
    assert fmap.code_category.any()
    widest = int(np.argmax(fmap.category_counts))
    x = np.tile(fmap.center, (12, 1))
    x[:, 4:7] += np.random.default_rng(6).normal(size=(12, 3)) * fmap.scale[4:7]
    x[:, widest] = np.tile([0, fmap.category_counts[widest] - 1], 6)
    # as far apart as forty categories would be
    far_apart = replace(fmap, code_weight=np.where(fmap.code_category == 1, 50.0, fmap.code_weight))
    profiles = table_of(far_apart, fitted_baseline("people").table)
    batch = batch_of(x)
    profiles.add(["a"], batch, fmap.measure(batch, KEY))
    along = profiles.profile("a").sequence_bits & np.uint32(BITS["collinear"])
    assert np.count_nonzero(along) <= 2


# ------------------------------------------------------------------ parts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, unique=True), st.integers(0, 51))
def test_find_sorted_is_the_first_at_or_above(hashes: list[int], h: int) -> None:
    ordered = sorted(hashes)
    at = find_sorted(np.array([*ordered, 0, 0], np.uint64), len(ordered), np.uint64(h))
    assert at == sum(value < h for value in ordered)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 15)), max_size=60), st.integers(1, 8))
def test_marked_sets_keep_the_smallest_and_count_what_they_hold(stream: list[tuple[int, int]], kept: int) -> None:
    root = BITS["novel"]
    need = np.array([1, 2 | 1, 4, root | 1], np.uint32)
    mine = np.array([True, True, False, True])
    hashes, bits, counts = np.zeros(kept, np.uint64), np.zeros(kept, np.uint32), np.zeros(4, np.int64)
    size = 0
    twin: dict[int, int] = {}
    for h, b in stream:
        b = b & 7 | (root if b & 8 else 0)
        before = dict(twin)
        naive._mark(twin, kept, h, b)
        grown = keep_marked(hashes, bits, size, kept, np.uint64(h), np.uint32(b), need, mine, counts)
        assert bool(grown) == (twin != before)
        size = grown or size
        assert dict(zip(hashes[:size].tolist(), bits[:size].tolist(), strict=True)) == twin
        held = [sum(v & int(n) == n for v in twin.values()) if m else 0 for n, m in zip(need, mine, strict=True)]
        assert counts.tolist() == held


def test_masses_are_excess_and_share_weighted_excess_and_never_negative() -> None:
    assert mass_of(0, 30.0, 1000.0, 0.02) == pytest.approx(10.0)
    assert mass_of(1, 30.0, 100.0, 0.02) == pytest.approx(28.0**2 / 100)
    assert mass_of(0, 19.0, 1000.0, 0.02) == 0.0
    assert mass_of(1, 0.0, 0.0, 0.02) == 0.0


def test_the_estimate_of_a_set_that_is_not_full_is_its_size() -> None:
    assert kept_estimate(5, np.uint64(2**47), 6) == 5.0
    assert kept_estimate(6, np.uint64(2**47 - 1), 6) == pytest.approx(10.0)


# ------------------------------------------------------------------ polls and other clients


def folded(name: str, batch: QueryBatch, size: int, half_horizon_ms: int = FOREVER) -> dict[tuple[object, int], bytes]:
    """Every client's bytes, span by span, after a stream cut into polls of `size` rows."""
    baseline = fitted_baseline(name)
    profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms, capacity=2)
    for start in range(0, len(batch), size):
        part = batch.take(np.arange(start, min(len(batch), start + size)))
        profiles.add(list(batch.clients), part, baseline.map.measure(part, KEY))
    return {(key, span.window): span.to_bytes() for key in batch.clients for span in profiles.spans(key)}


@pytest.mark.parametrize("name", ["people", "texts"])
@pytest.mark.parametrize("half_horizon_ms", [FOREVER, DAY_MS // 3])
def test_polls_of_1_7_and_2000_give_the_same_bytes(name: str, half_horizon_ms: int) -> None:
    batch = life(name, 1500, np.random.default_rng(30))
    batch.clients = ["a", "b", "c"]
    batch.who = np.random.default_rng(31).integers(0, 3, 1500).astype(np.int32)
    whole = folded(name, batch, 2000, half_horizon_ms)
    assert folded(name, batch, 7, half_horizon_ms) == whole
    assert folded(name, batch, 1, half_horizon_ms) == whole
    assert (len(whole) > 3) == (half_horizon_ms != FOREVER)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_how_clients_interleave_does_not_matter(seed: int) -> None:
    """Each client's own order is kept; who else comes when is shuffled, or nobody else comes at all."""
    rng = np.random.default_rng(seed)
    batch = life("people", 240, np.random.default_rng(32))
    batch.clients = ["a", "b", "c", "d"]
    batch.who = np.random.default_rng(33).integers(0, 4, 240).astype(np.int32)
    whole = folded("people", batch, 100)
    queues = [np.flatnonzero(batch.who == k).tolist() for k in range(4)]
    turns = rng.permutation(batch.who)
    shuffled = np.array([queues[k].pop(0) for k in turns])
    assert folded("people", batch.take(shuffled), 37) == whole
    alone = batch.take(np.flatnonzero(batch.who == 2))
    assert all(whole[span] == blob for span, blob in folded("people", alone, 50).items() if span[0] == "c")


def test_the_order_of_a_clients_own_queries_does_matter() -> None:
    """Otherwise the tests above would prove nothing: paths are read off the order."""
    batch = life("people", 240, np.random.default_rng(34))
    backwards = replace(batch, time_ms=batch.time_ms.copy())
    backwards = backwards.take(np.arange(240)[::-1])
    assert folded("people", batch, 240) != folded("people", backwards, 240)


def test_first_passage_times_end_with_the_last_step() -> None:
    fmap = fitted_map("prices")
    rng = np.random.default_rng(8)
    batch, measured = invented(fmap, 1200, rng, 60, 100_000)
    measured.bits[:] = BITS["novelty_rare"]
    table = small_table(rng)._replace(fusing_scale=np.full(5, 1e-3), horizon_distinct=np.inf)
    profiles = table_of(fmap, table)
    profiles.add(["a"], batch, measured)
    passages = profiles.profile("a").passage_query
    assert len(passages) == LADDER_STEPS
    assert (np.diff(passages) >= 0).all()
