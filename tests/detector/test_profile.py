"""Profiles: the algebra of merging, bytes, bounds, memory and windows."""

from __future__ import annotations

import functools
import zlib
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references import (
    DAY_MS,
    KEY,
    REFERENCES,
    START_MS,
    batch_of,
    fitted_baseline,
    fitted_map,
    invented,
    life,
    reference_of,
)

from detector.archive import KEPT as ARCHIVED
from detector.archive import NOTHING, Archive, Faded
from detector.bottom_k import kept_estimate
from detector.errors import IncompatibleProfile
from detector.features import BITS, ODD
from detector.fold_arrays import ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT
from detector.profile import Profile
from detector.profile_format import FORMAT
from detector.profile_shape import Shape
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signals import FREE

FOREVER = 2**62
SUMS = (
    "queries",
    "first_ms",
    "last_ms",
    "classes",
    "region_counts",
    "distance_counts",
)
SETS = ("sample_hash", "sample_novel", "sample_misfit", "odd_hash", "odd_bits", "sequence_hash", "sequence_bits")
MAXIMA = ("maxima", "passage_ms", "passage_query")
IDENTITY = ("map_id", "calibration_version", "window", "parts", "decay", "archive")


def table_of(name: str, half_horizon_ms: int = FOREVER, capacity: int = 2) -> ProfileTable:
    baseline = fitted_baseline(name)
    return ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms, capacity)


def fold(profiles: ProfileTable, batch: QueryBatch, size: int = 2000, key: bytes = KEY) -> None:
    """Fold a stream in polls of `size` rows."""
    for start in range(0, len(batch), size):
        part = batch.take(np.arange(start, min(len(batch), start + size)))
        profiles.add(list(batch.clients), part, profiles.map.measure(part, key))


def profile_of(name: str, batch: QueryBatch, key: bytes = KEY) -> Profile:
    profiles = table_of(name)
    if not len(batch):
        return empty(name)
    fold(profiles, batch, key=key)
    return profiles.profile("client 0")


def empty(name: str) -> Profile:
    baseline = fitted_baseline(name)
    return Profile.empty(baseline.map_id, baseline.calibration_version, baseline.map.classes, len(baseline.table.need))


def shape_of(name: str) -> Shape:
    baseline = fitted_baseline(name)
    return Shape.of(baseline.map, len(baseline.table.need))


def contents_of(archive: Archive) -> tuple[object, ...]:
    sets = ((s.hashes.tolist(), s.bits.tolist(), s.seen.tolist(), s.limit) for s in archive.sets)
    return (archive.window, *sets)


def differences(one: Profile, two: Profile, names: tuple[str, ...]) -> list[str]:
    """Fields that differ."""
    wrong = []
    for name in names:
        if name == "archive":
            wrong += [name] if contents_of(one.archive) != contents_of(two.archive) else []
            continue
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(two, name))
        if a.shape != b.shape or not (a == b).all():
            wrong.append(name)
    return wrong


def test_every_field_is_compared() -> None:
    assert {*SUMS, *SETS, *MAXIMA, *IDENTITY, "memory"} == {f.name for f in fields(Profile)}


# ------------------------------------------------------------------ algebra


@functools.cache
def part(seed: int, contents: int, n: int) -> Profile:
    """A profile of invented queries. Parts of one `contents` share most of their contents, so that sets meet."""
    baseline = fitted_baseline("prices")
    batch, measured = invented(baseline.map, n, np.random.default_rng(seed), 5, contents)
    shared = np.unique(np.random.default_rng(contents).integers(0, 2**48, contents, np.uint64))
    measured.hashes = shared[np.random.default_rng(seed).integers(0, len(shared), n)]
    profiles = table_of("prices")
    profiles.add(["a"], batch, measured)
    return replace(profiles.profile("a"), window=seed, decay=0.9, archive=archive_of(seed, contents, n))


def archive_of(seed: int, contents: int, n: int) -> Archive:
    """An archive of queries that other parts of the same `contents` share; full sets have a limit."""
    rng = np.random.default_rng([seed, n])
    shared = np.unique(np.random.default_rng(contents).integers(0, 2**48, contents, np.uint64))
    sets = []
    for kept in ARCHIVED:
        hashes = np.unique(rng.choice(shared, min(n, len(shared))))
        bits = rng.integers(1, 1 << 23, len(hashes)).astype(np.uint32)
        seen = rng.integers(seed - 30, seed - 1, len(hashes))
        sets.append(Faded(hashes, bits, seen).union(Faded(hashes, bits, seen), kept))
    return Archive(seed, (sets[0], sets[1], sets[2])) if n > 1 else NOTHING


PARTS = st.builds(part, st.integers(0, 8), st.sampled_from([40, 900, 4000]), st.sampled_from([1, 3, 150, 1100]))
MAYBE_EMPTY = st.one_of(PARTS, st.builds(empty, st.just("prices")))
EVERYTHING = (*SUMS, *SETS, *MAXIMA, *IDENTITY)


@settings(max_examples=60, deadline=None)
@given(MAYBE_EMPTY, MAYBE_EMPTY, MAYBE_EMPTY)
def test_merge_is_associative(a: Profile, b: Profile, c: Profile) -> None:
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert differences(left, right, EVERYTHING) == []
    assert left.memory is right.memory is None


@settings(max_examples=60, deadline=None)
@given(MAYBE_EMPTY, MAYBE_EMPTY)
def test_merge_is_commutative(a: Profile, b: Profile) -> None:
    assert differences(a.merge(b), b.merge(a), EVERYTHING) == []


@settings(max_examples=20, deadline=None)
@given(MAYBE_EMPTY)
def test_the_empty_profile_is_the_zero(a: Profile) -> None:
    zero = empty("prices")
    for merged in (a.merge(zero), zero.merge(a)):
        assert differences(merged, a, EVERYTHING) == []
        assert merged.memory is None


@settings(max_examples=30, deadline=None)
@given(PARTS, PARTS)
def test_sets_and_marks_are_idempotent(a: Profile, b: Profile) -> None:
    assert differences(a.merge(a), a, (*SETS, *MAXIMA)) == []
    both = a.merge(b)
    assert differences(both.merge(b).merge(a), both, (*SETS, *MAXIMA)) == []


def test_merging_changes_neither_side() -> None:
    a, b = part(1, 900, 150), part(2, 900, 150)
    before = a.to_bytes(), b.to_bytes()
    a.merge(b)
    assert (a.to_bytes(), b.to_bytes()) == before


def test_merging_shards_joins_the_bits_of_a_query_and_keeps_novel_only_if_in_both() -> None:
    root, odd = BITS["novel"], BITS["part_rare"]
    a = replace(
        part(1, 40, 1), odd_hash=np.array([5, 9], np.uint64), odd_bits=np.array([odd | root, root | odd], np.uint32)
    )
    b = replace(
        part(2, 40, 1), odd_hash=np.array([5, 7], np.uint64), odd_bits=np.array([odd | 2, odd | root], np.uint32)
    )
    merged = a.merge(b)
    assert merged.odd_hash.tolist() == [5, 7, 9]
    assert merged.odd_bits.tolist() == [odd | 2, odd | root, odd | root]


def test_a_trail_is_the_earliest_of_both() -> None:
    a = replace(part(1, 40, 1), passage_ms=np.array([5, 9, 12]), passage_query=np.array([1, 2, 3]))
    b = replace(part(2, 40, 1), passage_ms=np.array([7, 8]), passage_query=np.array([4, 5]))
    merged = b.merge(a)
    assert (merged.passage_ms.tolist(), merged.passage_query.tolist()) == ([5, 8, 12], [1, 5, 3])


def test_maxima_of_another_calibration_are_not_mixed() -> None:
    a = part(1, 900, 1100)
    b = replace(part(2, 900, 1100), calibration_version="ff" * 8, last_ms=a.last_ms + 1)
    for merged in (a.merge(b), b.merge(a)):
        assert merged.calibration_version == b.calibration_version
        assert differences(merged, b, MAXIMA) == []
        assert len(merged.odd_hash) >= len(b.odd_hash)
    tie = replace(b, last_ms=a.last_ms)
    assert differences(a.merge(tie), tie.merge(a), EVERYTHING) == []


# ------------------------------------------------------------------ equals the unsplit stream


@functools.cache
def stream(name: str) -> QueryBatch:
    return life(name, 1200, np.random.default_rng(40))


@functools.cache
def unsplit(name: str) -> Profile:
    return profile_of(name, stream(name))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from(["people", "digits", "texts"]))
def test_merged_shards_equal_the_unsplit_stream_in_all_that_needs_no_order(seed: int, shards: int, name: str) -> None:
    """Un-keyed partitions: counts and sets exactly, float sums within 1e-9, whatever row went where."""
    batch, whole = stream(name), unsplit(name)
    where = np.random.default_rng(seed).integers(0, shards, len(batch))
    pieces = [profile_of(name, batch.take(np.flatnonzero(where == k))) for k in range(shards)]
    merged = functools.reduce(Profile.merge, pieces)
    assert differences(merged, whole, (*SUMS, "sample_hash", "odd_hash")) == []
    assert (merged.odd_bits & ODD).tolist() == (whole.odd_bits & ODD).tolist()
    assert merged.distinct == whole.distinct
    table = fitted_baseline(name).table
    assert merged.odd_counts(table)[FREE].tolist() == whole.odd_counts(table)[FREE].tolist()


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("polls", [1, 90, 2000])
def test_a_span_is_what_its_own_rows_give_with_the_memory_of_those_before(name: str, polls: int) -> None:
    """Nothing is merged over time: marks and trail too are those of one fold over exactly the rows of the span's windows."""
    batch = stream(name) if polls > 1 else stream(name).take(np.arange(150))
    half = int(np.ptp(batch.time_ms)) // 7
    profiles = table_of(name, half_horizon_ms=half)
    fold(profiles, batch, polls)
    window = batch.time_ms // half
    assert window.max() >= window.min() + 2
    spans = profiles.spans("client 0")
    assert [span.window for span in spans] == [window.max() - 1, window.max()]
    assert [span.memory is None for span in spans] == [False, True]
    for span in spans:
        before = profile_of(name, batch.take(np.flatnonzero(window < span.window)))
        alone = table_of(name)
        alone.put("client 0", replace(empty(name), calibration_version=alone.calibration_version, memory=before.memory))
        fold(alone, batch.take(np.flatnonzero(window >= span.window)))
        assert differences(span, alone.profile("client 0"), (*SUMS, *SETS, *MAXIMA)) == []


# ------------------------------------------------------------------ bytes


def same_memory(one: Profile, two: Profile) -> bool:
    if one.memory is None or two.memory is None:
        return one.memory is two.memory is None
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one.memory, two.memory, strict=True))


@pytest.mark.parametrize("n", [0, 1, 2, 30, 300, 1200])
@pytest.mark.parametrize("name", REFERENCES)
def test_bytes_round_trip_exactly(name: str, n: int) -> None:
    profile = profile_of(name, stream(name).take(np.arange(n)))
    for written in (profile, profile.merge(empty(name)), replace(profile, window=-3), profile.merge(profile)):
        blob = written.to_bytes()
        read = Profile.from_bytes(blob, shape_of(name))
        assert read.to_bytes() == blob
        exact = [
            f
            for f in EVERYTHING
            if f not in ("parts", "archive")
            and np.asarray(getattr(read, f)).tobytes() != np.asarray(getattr(written, f)).tobytes()
        ]
        assert exact == []
        assert same_memory(read, written)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_loaded_profile_is_the_profile(name: str) -> None:
    blob = unsplit(name).to_bytes()
    profiles = table_of(name)
    profiles.put("x", Profile.from_bytes(blob, profiles.shape))
    assert profiles.profile("x").to_bytes() == blob


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(1, 399), min_size=1, max_size=6, unique=True),
    st.sampled_from(REFERENCES),
    st.sampled_from([FOREVER, DAY_MS // 12]),
)
def test_a_client_that_is_stored_and_loaded_goes_on_as_if_it_never_left(
    cuts: list[int], name: str, half_horizon_ms: int
) -> None:
    batch = stream(name).take(np.arange(400))
    whole = table_of(name, half_horizon_ms)
    fold(whole, batch)
    stored: list[bytes] = []
    for rows in np.split(np.arange(400), sorted(cuts)):
        profiles = table_of(name, half_horizon_ms)
        spans = [Profile.from_bytes(blob, profiles.shape) for blob in stored]
        profiles.put("client 0", spans[0] if spans else None, spans[1] if len(spans) > 1 else None)
        fold(profiles, batch.take(rows))
        stored = [span.to_bytes() for span in profiles.spans("client 0")]
    assert stored == [span.to_bytes() for span in whole.spans("client 0")]


def small() -> bytes:
    return profile_of("prices", stream("prices").take(np.arange(3))).to_bytes()


def refused(blob: bytes, shape: Shape) -> bool:
    """Whether the bytes are refused, in one line."""
    said = ""
    try:
        Profile.from_bytes(blob, shape)
    except IncompatibleProfile as error:
        said = str(error)
    assert "\n" not in said
    return bool(said)


def test_every_flipped_bit_is_refused() -> None:
    blob, shape = small(), shape_of("prices")
    assert not refused(blob, shape)
    for at in range(8 * len(blob)):
        damaged = bytearray(blob)
        damaged[at // 8] ^= 1 << at % 8
        assert refused(bytes(damaged), shape), f"bit {at}"


def test_every_truncation_and_every_addition_is_refused() -> None:
    blob, shape = small(), shape_of("prices")
    assert all(refused(blob[:length], shape) for length in range(len(blob)))
    assert all(refused(blob[start:], shape) for start in range(1, len(blob)))
    assert refused(blob + b"\0", shape)
    assert refused(blob + blob, shape)


@functools.cache
def twenty(name: str) -> bytes:
    """Bytes of a profile of 20 queries, without their checksum."""
    return profile_of(name, stream(name).take(np.arange(20))).to_bytes()[:-4]


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_another_format_version_is_refused_by_both_numbers() -> None:
    body = bytearray(small()[:-4])
    body[2] = 9
    with pytest.raises(IncompatibleProfile, match=rf"format 9.*reads {FORMAT}"):
        Profile.from_bytes(sealed(bytes(body)), shape_of("prices"))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_wrong_bytes_under_a_right_checksum_do_no_harm(data: st.DataObject) -> None:
    """Refused with the one error there is, or a profile that the table takes: never another error, never more than the bounds."""
    name = data.draw(st.sampled_from(["prices", "texts"]))
    body = bytearray(twenty(name))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    try:
        profile = Profile.from_bytes(sealed(bytes(body)), shape_of(name))
        profiles = table_of(name)
        profiles.put("x", profile)
    except IncompatibleProfile:
        return
    assert len(profile.odd_hash) <= ODD_KEPT
    assert len(profile.sequence_hash) <= SEQUENCE_KEPT
    assert len(profile.sample_hash) <= SAMPLE_KEPT


@pytest.mark.parametrize("reader", [n for n in REFERENCES if n != "people"])
def test_bytes_of_another_map_are_refused(reader: str) -> None:
    profile = unsplit("people")
    assert refused(profile.to_bytes(), shape_of(reader))


def test_profiles_of_other_maps_neither_merge_nor_load() -> None:
    other = replace(part(1, 40, 3), map_id="ab" * 8)
    with pytest.raises(IncompatibleProfile, match="ab" * 8):
        other.merge(part(1, 40, 3))
    profiles = table_of("prices")
    with pytest.raises(IncompatibleProfile, match="ab" * 8):
        profiles.put("x", other)


def test_a_profile_of_another_calibration_keeps_its_sets_and_restarts_its_maxima() -> None:
    whole = unsplit("people")
    profiles = table_of("people")
    profiles.put("x", replace(whole, calibration_version="ee" * 8))
    loaded = profiles.profile("x")
    assert differences(loaded, whole, (*SUMS, *SETS)) == []
    assert same_memory(loaded, whole)
    assert not loaded.maxima.any()
    assert len(loaded.passage_ms) == 0
    assert loaded.calibration_version == fitted_baseline("people").calibration_version


# ------------------------------------------------------------------ size


def diverse(name: str, n: int, rng: np.random.Generator) -> QueryBatch:
    """n distinct queries from everywhere between the bounds and beyond."""
    columns = reference_of(name).schema.columns
    low, high = np.array([c.lower for c in columns]), np.array([c.upper for c in columns])
    return batch_of(
        rng.uniform(low - 0.1, high + 0.1, (n, len(columns))), labels=rng.integers(0, 2, n).astype(np.int32)
    )


@pytest.mark.parametrize(
    ("name", "most"), [("digits", 24 * 1024), ("people", 24 * 1024), ("texts", 24 * 1024 + 40 * 256)]
)
def test_a_heavy_client_stays_within_the_bound(name: str, most: int) -> None:
    """100,000 distinct odd queries at 64 features; fewer elsewhere, where the sets are as full."""
    rng = np.random.default_rng(41)
    profiles = table_of(name)
    sizes = []
    for _ in range(20 if name == "digits" else 4):
        batch = diverse(name, 5000, rng)
        fold(profiles, batch, 5000)
        sizes.append(len(profiles.profile("client 0").to_bytes()))
    profile = profiles.profile("client 0")
    assert (len(profile.odd_hash), len(profile.sample_hash)) == (ODD_KEPT, SAMPLE_KEPT)
    assert max(sizes) <= most
    assert sizes[-1] <= sizes[0] * 1.2


@pytest.mark.parametrize("name", ["people", "digits"])
def test_a_client_of_30_queries_takes_2_kilobytes(name: str) -> None:
    traffic = reference_of(name).traffic
    one = batch_of(traffic.inputs[:30], labels=traffic.labels[:30], probabilities=traffic.probabilities[:30])
    assert len(profile_of(name, one).to_bytes()) <= 2048


def test_an_empty_profile_is_tiny() -> None:
    assert len(empty("people").to_bytes()) < 256


# ------------------------------------------------------------------ windows


def at_days(days: list[float]) -> QueryBatch:
    rows = stream("people").inputs[: len(days)]
    return batch_of(rows, time_ms=np.array([START_MS // DAY_MS * DAY_MS + int(d * DAY_MS) for d in days]))


def spans_of(profiles: ProfileTable, client: str = "client 0") -> list[tuple[int, int]]:
    """(first window, counted from the stream's first; queries) of each span."""
    return [(span.window - START_MS // DAY_MS, span.queries) for span in profiles.spans(client)]


@pytest.mark.parametrize(
    ("days", "spans"),
    [
        ([0.1, 0.2], [(0, 2)]),  # a life that began in the current window: both spans would be equal
        ([0.1, 0.2, 1.1], [(0, 3), (1, 1)]),
        ([0.1, 0.2, 1.1, 2.5, 2.6], [(1, 3), (2, 2)]),
        ([0.1, 0.2, 1.1, 3.5, 3.6], [(3, 2)]),  # nothing in the window before: begun anew
    ],
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_long_span_covers_the_window_before_and_the_current_one(
    days: list[float], spans: list[tuple[int, int]], size: int
) -> None:
    profiles = table_of("people", DAY_MS)
    fold(profiles, at_days(days), size)
    assert spans_of(profiles) == spans
    memory = profiles.profile("client 0").memory
    assert memory is not None
    assert int(memory.ring_n) == len(days)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_late_row_counts_in_the_newest_window(size: int) -> None:
    profiles = table_of("people", DAY_MS)
    fold(profiles, at_days([0.1, 1.1, 0.2, 1.2, 0.3]), size)
    assert spans_of(profiles) == [(0, 5), (1, 4)]
    assert profiles.spans("client 0")[1].first_ms == START_MS // DAY_MS * DAY_MS + int(0.2 * DAY_MS)


def test_a_window_begins_for_its_own_client_only() -> None:
    batch = at_days([0.1, 0.2, 1.1, 0.3])
    batch.clients, batch.who = ["a", "b"], np.array([0, 1, 0, 1], np.int32)
    profiles = table_of("people", DAY_MS)
    fold(profiles, batch)
    assert spans_of(profiles, "a") == [(0, 2), (1, 1)]
    assert spans_of(profiles, "b") == [(0, 2)]


# ------------------------------------------------------------------ estimates


def test_estimates_are_exact_below_k_and_unbiased_above() -> None:
    rng = np.random.default_rng(42)
    for n in (1, 50, SAMPLE_KEPT - 1):
        hashes = np.sort(rng.integers(0, 2**48, n, np.uint64))
        assert kept_estimate(n, hashes[-1], SAMPLE_KEPT) == n
    for n in (SAMPLE_KEPT, 300, 2000):
        trials = []
        for _ in range(600):
            hashes = np.partition(rng.integers(0, 2**48, n, np.uint64), SAMPLE_KEPT - 1)[:SAMPLE_KEPT]
            trials.append(kept_estimate(SAMPLE_KEPT, hashes.max(), SAMPLE_KEPT))
        error = np.std(trials) / np.sqrt(len(trials))
        assert abs(np.mean(trials) - n) < 4 * error + 1e-9
        assert np.std(trials) <= 1.2 * n / np.sqrt(SAMPLE_KEPT - 2)


def test_a_profiles_own_counts_are_unbiased_over_sampling_keys() -> None:
    """The same 1,000 distinct queries under 60 keys: the mean of the estimates is the truth, which no key changes."""
    batch = diverse("prices", 1000, np.random.default_rng(43))
    fmap = fitted_map("prices")
    odd_ones = fmap.measure(batch, KEY).bits & ODD
    truth = np.count_nonzero(odd_ones)
    table = fitted_baseline("prices").table
    one = table._replace(need=np.full_like(table.need, BITS["novelty_rare"]), sequence=np.zeros_like(table.sequence))
    carried = np.count_nonzero(odd_ones & BITS["novelty_rare"])
    assert truth > ODD_KEPT < carried
    distinct, odd = [], []
    for k in range(60):
        profile = profile_of("prices", batch, key=k.to_bytes(16, "little"))
        distinct.append(kept_estimate(SAMPLE_KEPT, profile.sample_hash[-1], SAMPLE_KEPT))
        odd.append(profile.odd_counts(one)[0])
        assert profile.distinct <= 1000
    for estimates, true in ((distinct, 1000), (odd, carried)):
        assert abs(np.mean(estimates) - true) < 4 * np.std(estimates) / np.sqrt(60)


def test_below_k_everything_is_exact() -> None:
    batch = diverse("prices", 190, np.random.default_rng(44))
    profile = profile_of("prices", batch)
    bits = fitted_map("prices").measure(batch, KEY).bits
    assert profile.distinct == 190
    assert len(profile.odd_hash) == np.count_nonzero(bits & ODD)


def test_a_client_that_cycles_1000_rows_is_counted_once() -> None:
    """No gain from asking again: sets and distinct counts of one cycle, though the memory holds a few of the rows only."""
    cycle = diverse("prices", 1000, np.random.default_rng(45))
    once = profile_of("prices", cycle)
    five = profile_of("prices", cycle.take(np.tile(np.arange(1000), 5)))
    assert five.queries == 5000
    assert differences(five, once, ("sample_hash", "odd_hash")) == []
    assert (five.odd_bits & ODD).tolist() == (once.odd_bits & ODD).tolist()
    assert kept_estimate(SAMPLE_KEPT, five.sample_hash[-1], SAMPLE_KEPT) == pytest.approx(1000, rel=0.25)
    assert five.novel <= five.distinct
    assert five.sample_novel.sum() <= once.sample_novel.sum()


def test_a_repeat_that_is_remembered_adds_to_volume_and_to_nothing_else() -> None:
    rows = stream("people").take(np.arange(40))
    once = profile_of("people", rows)
    again = profile_of("people", rows.take(np.concatenate([np.arange(40), np.full(60, 39)])))
    assert again.queries == 100
    assert differences(again, once, (*SETS, *MAXIMA)) == []
    assert same_memory(again, once)


# ------------------------------------------------------------------ the table of clients


def test_the_table_grows_and_a_dropped_row_begins_anew() -> None:
    batch = life("people", 300, np.random.default_rng(46))
    batch.clients = [f"c{k}" for k in range(30)]
    batch.who = (np.arange(300) % 30).astype(np.int32)
    profiles = table_of("people", capacity=2)
    fold(profiles, batch)
    assert len(profiles) == 30
    assert all(profiles.profile(c).queries == 10 for c in batch.clients)
    profiles.drop("c3")
    profiles.drop("nobody")
    assert "c3" not in profiles
    assert len(profiles) == 29
    alone = batch.take(np.flatnonzero(batch.who == 5))
    alone = replace(alone, clients=["new"], who=np.zeros(len(alone), np.int32))
    fold(profiles, alone)
    assert profiles.profile("new").to_bytes() == profiles.profile("c5").to_bytes()


def test_a_profile_is_a_copy() -> None:
    profiles = table_of("people")
    fold(profiles, stream("people").take(np.arange(50)))
    taken = profiles.profile("client 0")
    before = taken.to_bytes()
    fold(profiles, stream("people").take(np.arange(50, 90)))
    assert taken.to_bytes() == before
    assert profiles.profile("client 0").queries == 90
