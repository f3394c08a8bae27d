"""Many profiles in columns: the same numbers however they were stored, and the same assessment as one profile at a time."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import plain_assessment as plain
from support.drawn_profiles import PERSONAS, drawn, with_everything
from support.references import DAY_MS, KEY, REFERENCES, START_MS, fitted_baseline, life

from detector.archive import NOTHING
from detector.baseline import Baseline
from detector.exposure import estimate_columns
from detector.older_profiles import OLDER_FORMATS
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.profile_format import HEAD, read_head
from detector.profile_table import ProfileTable
from detector.scoring import assess, assess_columns, reached, trajectory
from detector.signals import Statistics


@functools.cache
def baseline_of(name: str) -> Baseline:
    return with_everything(fitted_baseline(name))


def grown(name: str, rng: np.random.Generator) -> Profile:
    """One that was folded: it has an archive, and remembers rows."""
    return _grown(name)[int(rng.integers(0, len(_grown(name))))]


@functools.cache
def _grown(name: str) -> list[Profile]:
    baseline = baseline_of(name)
    table = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, DAY_MS, 2, memory_ms=40.0 * DAY_MS)
    batch = life(name, 240, np.random.default_rng(7))
    batch = replace(batch, time_ms=START_MS + np.arange(len(batch), dtype=np.int64) * (DAY_MS // 30))
    found = []
    for rows in np.split(np.arange(240), [3, 40, 90, 170]):
        part = batch.take(rows)
        table.add(["c"], part, baseline.map.measure(part, KEY))
        found += table.spans("c")
    assert any(p.archive for p in found)
    return found


def faded(profile: Profile, baseline: Baseline, rng: np.random.Generator) -> Profile:
    """With an archive: queries of another client, and some of its own that it sent before and again."""
    before = replace(drawn(baseline, rng), window=profile.window - int(rng.integers(0, 6)))
    archive = before.archived() if rng.random() < 0.5 else before.archived().union(profile.archived())
    return replace(profile, archive=archive or NOTHING, decay=float(rng.choice([0.6, 0.9])))


def same(one: ProfileColumns, other: ProfileColumns) -> None:
    for field in ProfileColumns.__slots__:
        left, right = getattr(one, field), getattr(other, field)
        assert np.array_equal(left, right), field


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(REFERENCES), st.integers(1, 12))
def test_profiles_that_are_read_are_the_profiles_that_were_written(seed: int, name: str, n: int) -> None:
    rng, baseline = np.random.default_rng(seed), baseline_of(name)
    profiles = [drawn(baseline, rng) if rng.random() < 0.5 else grown(name, rng) for _ in range(n)]
    profiles = [faded(profile, baseline, rng) if rng.random() < 0.5 else profile for profile in profiles]
    blobs = [profile.to_bytes() for profile in profiles]
    heads = [read_head(blob, OLDER_FORMATS) for blob in blobs]
    read, faults = ProfileColumns.read(blobs, [h for h in heads if h is not None], baseline.shape, baseline.table)
    assert faults == [""] * n
    again = [Profile.from_bytes(blob, baseline.shape) for blob in blobs]
    same(read, ProfileColumns.of(again, baseline.table))
    same(read, ProfileColumns.of(profiles, baseline.table))


def test_a_profile_that_cannot_be_read_says_so_and_leaves_the_others_alone() -> None:
    baseline, rng = baseline_of("people"), np.random.default_rng(3)
    blobs = [drawn(baseline, rng).to_bytes() for _ in range(3)]
    heads = [read_head(blob, OLDER_FORMATS) for blob in blobs]
    short = blobs[1][: HEAD.size + 4]
    columns, faults = ProfileColumns.read(
        [blobs[0], short, blobs[2]], [h for h in heads if h is not None], baseline.shape, baseline.table
    )
    assert [bool(fault) for fault in faults] == [False, True, False]
    for row in (0, 2):
        whole = ProfileColumns.of([Profile.from_bytes(blobs[row], baseline.shape)], baseline.table)
        assert columns.maxima[row].tolist() == whole.maxima[0].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(REFERENCES), st.integers(1, 12))
def test_assessed_together_is_assessed_one_by_one_to_the_last_bit(seed: int, name: str, n: int) -> None:
    """Clients of any size, merged or not, with archives, personas and misfits that are held back."""
    rng, baseline = np.random.default_rng(seed), baseline_of(name)
    profiles = [drawn(baseline, rng) if rng.random() < 0.7 else grown(name, rng) for _ in range(n)]
    profiles = [p.merge(drawn(baseline, rng)) if rng.random() < 0.2 else p for p in profiles]
    shards = rng.integers(1, 3, n).tolist()
    personas = [PERSONAS[i] for i in rng.integers(0, len(PERSONAS), n)]
    held = (rng.random(n) < 0.3).tolist()
    columns = ProfileColumns.of(profiles, baseline.table)
    found = assess_columns(columns, baseline, shards, personas, held)
    exposures = estimate_columns(columns, baseline.map, baseline.estimator)
    for i, (profile, life_of) in enumerate(zip(profiles, columns.lives(), strict=True)):
        slow = plain.assessed(profile, baseline, shards[i], personas[i], held[i])
        assert repr(found[i]) == repr(slow)
        assert assess(profile, baseline, shards[i], personas[i], held[i]) == slow
        trail = plain.trail(profile, baseline, slow, personas[i])
        assert repr(trajectory(life_of, baseline, slow, personas[i])) == repr(trail)
        for budget in (0.3, 0.01):
            assert reached(life_of, baseline, budget) == reached(profile, baseline, budget)
        assert repr(exposures[i]) == repr(plain.exposed(profile, baseline))


def test_the_draws_reach_what_an_assessment_can_be() -> None:
    """Otherwise the equality above says little."""
    rng, baseline = np.random.default_rng(5), baseline_of("people")
    found = [plain.assessed(drawn(baseline, rng), baseline, 1 + i % 2) for i in range(200)]
    assert {a.family for a in found} > {"unknown"}
    assert min(a.p_value for a in found) < 0.01 < 0.9 < max(a.p_value for a in found)
    assert any(a.oddest and a.size_p_value < 0.1 for a in found)
    assert any(a.content_p_value != a.p_value for a in found)
    with_archives = [faded(drawn(baseline, rng), baseline, rng) for _ in range(40)]
    assert sum(bool(p.carry(baseline.table)[0].any()) for p in with_archives) > 10


def test_a_slow_twin_that_adds_up_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: one unit in the last place of one number."""
    rng, baseline = np.random.default_rng(5), baseline_of("people")
    profile = next(
        p for p in (drawn(baseline, rng) for _ in range(50)) if plain.measured(p, baseline.table).value.any()
    )
    monkeypatch.setattr(plain, "measured", lambda p, t: _nudged(p, baseline))
    assert repr(plain.assessed(profile, baseline)) != repr(assess(profile, baseline))


_measured = plain.measured


def _nudged(profile: Profile, baseline: Baseline) -> Statistics:
    found = _measured(profile, baseline.table)
    return replace(found, value=np.nextafter(found.value, np.inf))
