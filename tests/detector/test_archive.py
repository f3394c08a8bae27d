"""Beyond the horizon: what an archive holds and adds equals its slow twin; evidence fades, is bounded, and is counted once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import naive, naive_archive
from support.references import (
    DAY_MS,
    KEY,
    START_MS,
    answered,
    fitted_baseline,
    fitted_map,
    invented,
    life,
    reference_of,
    rows_of,
)
from support.twins import asks, check, small_table, way_of

from detector.archive import ALL, NOTHING, decay_of, lasting
from detector.features import BITS
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import Assessment, assess
from detector.signals import SIGNAL_NAMES, measure

HALF_MS = 15 * DAY_MS
MEMORY_MS = 365.0 * DAY_MS


def table_of(name: str, memory_ms: float = MEMORY_MS, half_ms: int = HALF_MS) -> ProfileTable:
    baseline = fitted_baseline(name)
    return ProfileTable(
        baseline.map, baseline.table, baseline.calibration_version, half_ms, capacity=2, memory_ms=memory_ms
    )


def fold(profiles: ProfileTable, batch: QueryBatch, size: int = 2000) -> ProfileTable:
    for start in range(0, len(batch), size):
        part = batch.take(np.arange(start, min(len(batch), start + size)))
        profiles.add(list(batch.clients), part, profiles.map.measure(part, KEY))
    return profiles


def queries(name: str, n: int, days: float, odd: float, seed: int = 0) -> QueryBatch:
    """Honest rows, a share of them replaced by noise between the bounds, spread evenly over so many days."""
    rng, reference = np.random.default_rng(seed), reference_of(name)
    columns = reference.schema.columns
    low, high = np.array([c.lower for c in columns]), np.array([c.upper for c in columns])
    rows = reference.traffic.inputs[rng.integers(0, len(reference.traffic.inputs), n)].copy()
    noise = rng.random(n) < odd
    rows[noise] = rng.uniform(low, high, (int(noise.sum()), len(columns)))
    batch = answered(rows, len(reference.schema.labels))
    batch.time_ms = START_MS + np.linspace(0, days * DAY_MS, n).astype(np.int64)
    return batch


def assessed(name: str, batch: QueryBatch, memory_ms: float = MEMORY_MS) -> Assessment:
    return assess(fold(table_of(name, memory_ms), batch).profile("client 0"), fitted_baseline(name))


# ------------------------------------------------------------------ equal to the twin


def compared(profiles: ProfileTable, twin: naive_archive.NaiveLife) -> None:
    """Spans, archive and carry."""
    profile = profiles.profile("a")
    for members, limit, mine in zip(twin.archive, twin.limits, profile.archive.sets, strict=True):
        found = dict(zip(mine.hashes.tolist(), zip(mine.bits.tolist(), mine.seen.tolist(), strict=True), strict=True))
        assert found == members
        assert mine.limit == limit or not profile.archive
    check(profile, twin.long)


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.integers(0, 2**32),
    st.sampled_from([5, 60, 3000]),
    st.lists(st.integers(0, 400), max_size=4),
    st.sampled_from([0.4, 3.0]),
    st.sampled_from([1, 3]),
)
def test_a_life_over_many_windows_equals_the_twin_however_polls_cut(
    seed: int, contents: int, cuts: list[int], half_life: float, stride: int
) -> None:
    """Gaps, contents that come back out of the archive, windows without an odd query, sets that are full."""
    rng = np.random.default_rng(seed)
    fmap, table = replace(fitted_map("prices"), near=0.05), small_table(rng)
    batch, measured = invented(fmap, 400, rng, 3, contents)
    gaps = np.where(rng.random(400) < 0.05, rng.choice([300, 600, 2600, 9000], 400), rng.integers(0, 30, 400))
    batch.time_ms = 10**9 + np.cumsum(gaps)
    quiet = batch.time_ms // (2000 * stride) % 2 == 1
    measured.bits = np.where(quiet & (rng.random(400) < 0.9), 0, measured.bits).astype(np.uint32)
    half = 1000
    profiles = ProfileTable(fmap, table, "00" * 8, half, capacity=2, memory_ms=4 * half_life * half)
    for rows in np.split(np.arange(400), sorted(cuts)):
        if len(rows):
            profiles.add(["a"], batch.take(rows), rows_of(measured, rows))
    twin = naive_archive.live(naive_archive.NaiveLife(way_of(fmap, table), half, half_life), asks(batch, measured))
    compared(profiles, twin)


def test_sets_that_overflow_in_the_archive_equal_the_twin() -> None:
    rng = np.random.default_rng(3)
    fmap, table = replace(fitted_map("prices"), near=0.01), small_table(rng)
    batch, measured = invented(fmap, 3000, rng, 4, 2500)
    measured.bits |= np.uint32(BITS["part_rare"])
    batch.time_ms = 10**9 + np.arange(3000)
    profiles = ProfileTable(fmap, table, "00" * 8, 1000, capacity=2, memory_ms=12_000.0)
    profiles.add(["a"], batch, measured)
    twin = naive_archive.live(naive_archive.NaiveLife(way_of(fmap, table), 1000, 3.0), asks(batch, measured))
    assert all(s.limit < ALL for s in profiles.profile("a").archive.sets)
    compared(profiles, twin)


def test_polls_and_stores_change_nothing() -> None:
    """Polls of 1, 7 and 2,000 rows, and a client that is stored and loaded after each poll."""
    batch = life("people", 1500, np.random.default_rng(30))
    blobs = []
    for size, stored in ((2000, False), (7, True), (1, False), (90, True)):
        profiles = table_of("people", 8 * 3_600_000.0, 3_600_000)
        for start in range(0, len(batch), size):
            part = batch.take(np.arange(start, min(len(batch), start + size)))
            profiles.add(["client 0"], part, profiles.map.measure(part, KEY))
            if stored:
                spans = [Profile.from_bytes(s.to_bytes(), profiles.shape) for s in profiles.spans("client 0")]
                profiles.put("client 0", *spans)
        blobs.append([span.to_bytes() for span in profiles.spans("client 0")])
        assert profiles.profile("client 0").archive
    assert all(blob == blobs[0] for blob in blobs)


# ------------------------------------------------------------------ what it is for


def noise_of(batch: QueryBatch, memory_ms: float = MEMORY_MS) -> float:
    """Distinct queries off the lattice, which all noise is."""
    profile = fold(table_of("people", memory_ms), batch).profile("client 0")
    return float(measure(profile, fitted_baseline("people").table).count[SIGNAL_NAMES.index("lattice_rare")])


def test_the_same_noise_over_300_days_counts_like_that_over_60() -> None:
    spread, dense = (assessed("people", queries("people", 600, days, 1.0)) for days in (300, 60))
    assert max(spread.p_value, dense.p_value) <= 0.01
    counts = [noise_of(queries("people", 600, days, 1.0)) for days in (60, 300)]
    forgetful = noise_of(queries("people", 600, 300, 1.0), 0.0)
    assert counts[1] >= 0.4 * counts[0] > 4 * forgetful


def test_a_thief_mixed_with_a_real_user_is_flagged_over_300_days_too() -> None:
    """Six in a hundred odd: what one horizon holds of 300 days is too little."""
    p = {
        (days, memory): assessed("people", queries("people", 600, days, 0.06, seed=5), memory).p_value
        for days, memory in ((60, MEMORY_MS), (300, MEMORY_MS), (300, 0.0))
    }
    assert p[300, MEMORY_MS] <= 0.01 < p[300, 0.0]
    assert p[60, MEMORY_MS] <= 0.01


@pytest.mark.parametrize("per_day", [2, 20])
def test_a_constant_small_rate_of_odd_queries_is_not_flagged_over_300_days(per_day: int) -> None:
    seen = assessed("people", queries("people", 300 * per_day, 300, 0.005, seed=2))
    assert seen.p_value > 0.01


def test_a_test_suite_repeated_every_month_is_counted_once() -> None:
    suite = queries("people", 12, 0.1, 1.0, seed=3)
    months = []
    for month in range(10):
        quiet = queries("people", 60, 30, 0.0, seed=100 + month)
        quiet.time_ms += month * 30 * DAY_MS
        again = replace(suite, time_ms=suite.time_ms + month * 30 * DAY_MS)
        months += [again, quiet]
    profiles = table_of("people")
    for part in months:
        fold(profiles, part)
    once = assessed("people", months[0])
    now = assess(profiles.profile("client 0"), fitted_baseline("people"))
    assert now.odd <= once.odd + 1
    assert now.p_value > 0.01 or once.p_value <= 0.01


def test_without_memory_the_old_forgetting_is_back() -> None:
    batch = queries("people", 300, 100, 1.0)
    profile = fold(table_of("people", 0.0), batch).profile("client 0")
    assert (profile.archive, profile.decay, profile.fades) == (NOTHING, 0.0, False)
    within = batch.take(np.flatnonzero(batch.time_ms // HALF_MS >= batch.time_ms[-1] // HALF_MS - 1))
    assert profile.queries == len(within)
    with_memory = fold(table_of("people"), batch)
    stored = [Profile.from_bytes(s.to_bytes(), with_memory.shape) for s in with_memory.spans("client 0")]
    assert stored[0].archive
    forgetful = table_of("people", 0.0)
    forgetful.put("client 0", *stored)
    assert forgetful.profile("client 0").archive == NOTHING


def test_a_client_without_odd_queries_has_no_archive() -> None:
    batch = queries("people", 200, 100, 0.0)
    profiles = table_of("people")
    measured = profiles.map.measure(batch, KEY)
    measured.bits[:] = 0
    measured.codes[:] = np.arange(200, dtype=measured.codes.dtype)[
        :, None
    ]  # nothing is a neighbour, a step or a line of another
    profiles.add(["client 0"], batch, measured)
    profile = profiles.profile("client 0")
    assert not len(profile.odd_hash)
    if not len(profile.sequence_hash):
        assert (profile.archive, profile.fades) == (NOTHING, False)


def test_everything_is_gone_a_memory_after_it_left_the_horizon() -> None:
    burst = queries("people", 50, 1, 1.0)
    steps = 3 + lasting(decay_of(HALF_MS, MEMORY_MS))
    ages = {}
    for windows in (2, 4, steps - 1, steps):
        later = queries("people", 1, 1, 0.0)
        later.time_ms = burst.time_ms[-1:] + windows * HALF_MS
        profile = fold(fold(table_of("people"), burst), later).profile("client 0")
        _, base = profile.carry(fitted_baseline("people").table)
        ages[windows] = float(base[0])
    assert ages[2] >= ages[4] > ages[steps - 1] > 0 == ages[steps]
    assert ages[4] == pytest.approx(ages[2] * 2 ** (-2 * 15 / 91.25), rel=1e-9)
    assert (steps - 3) * 15 <= 365 < (steps - 2) * 15


def test_faded_counts_are_unbiased_beyond_what_an_archive_keeps() -> None:
    """1,500 odd queries that left the horizon: the mean of the estimates under 40 keys is the truth."""
    batch = queries("people", 1500, 10, 1.0)
    batch.time_ms = np.full(1500, START_MS)
    later = queries("people", 1, 1, 0.0)
    later.time_ms = np.array([START_MS + 2 * HALF_MS])
    distinct, odd = [], []
    table = fitted_baseline("people").table
    lattice = table._replace(
        need=np.full_like(table.need, BITS["lattice_rare"]), sequence=np.zeros_like(table.sequence)
    )
    true = np.count_nonzero(fitted_map("people").measure(batch, KEY).bits & BITS["lattice_rare"])
    for k in range(40):
        profiles = table_of("people")
        for part in (batch, later):
            profiles.add(["a"], part, profiles.map.measure(part, k.to_bytes(16, "little")))
        counts, base = profiles.profile("a").carry(lattice)
        assert all(s.limit < ALL for s in profiles.profile("a").archive.sets[:1])
        odd.append(counts[0])
        distinct.append(base[0])
    for estimates, truth in ((distinct, 1500), (odd, true)):
        assert abs(np.mean(estimates) - truth) < 4 * np.std(estimates) / np.sqrt(40) + 1e-9


def test_what_is_seen_in_another_cell_meanwhile_counts_faded_and_once() -> None:
    """A client that moved to another partition: its old cell's queries are beyond the horizon there, and counted with their weight."""
    old = fold(table_of("people"), queries("people", 60, 20, 1.0)).spans("client 0")
    newer = queries("people", 40, 5, 1.0, seed=9)
    newer.time_ms += 100 * DAY_MS
    new = fold(table_of("people"), newer).profile("client 0")
    left = old[0].left_behind(old[1] if len(old) > 1 else None, new.window)
    assert (left.queries, bool(left.archive)) == (0, True)
    both = new.merge(left)
    table = fitted_baseline("people").table
    alone, merged = measure(new, table), measure(both, table)
    assert (merged.count >= alone.count - 1e-9).all()
    assert merged.count.max() > alone.count.max() + 20
    again = new.merge(new.left_behind(None, new.window))
    assert again.queries == 2 * new.queries
    assert measure(again, table).count == pytest.approx(alone.count)
    assert naive.estimate(both.sample_hash.tolist(), 192) == new.distinct
