"""Assessments: abstain on little, do not depend on polls, looks or shards, and say in words what they count."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.references import FOREVER, KEY, REFERENCES, batch_of, fitted_baseline, fold, life, noise, reference_of

from detector.features import BITS, ODD, SEQUENCE
from detector.fold_arrays import LADDER_FIRST, LADDER_GROWTH, LADDER_STEPS
from detector.ladder import ladder, rung
from detector.policy import Decision, Policy, decide
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import assess, p_of, reached
from detector.signals import FREE, FUSED, SIGNAL_NAMES, SIGNALS, fuse, measure, signal_table


def empty(name: str) -> Profile:
    baseline = fitted_baseline(name)
    return Profile.empty(baseline.map_id, baseline.calibration_version, baseline.map.classes, len(SIGNALS))


def honest(name: str, client: int) -> QueryBatch:
    traffic = reference_of(name).traffic
    mine = traffic.take(np.flatnonzero(traffic.who == client))
    return replace(mine, clients=["client 0"], who=np.zeros(len(mine), np.int32))


# ------------------------------------------------------------------ little evidence


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", REFERENCES)
def test_an_empty_profile_is_not_suspicious(name: str, shards: int) -> None:
    a = assess(empty(name), fitted_baseline(name), shards)
    assert (a.queries, a.distinct, a.p_value, a.suspicion, a.fused, a.odd) == (0, 0.0, 1.0, 0.0, 0.0, 0.0)
    assert (a.evidence, a.family, a.in_order) == ((), "unknown", shards == 1)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", REFERENCES)
def test_one_query_is_never_flagged_however_odd(name: str, shards: int) -> None:
    baseline = fitted_baseline(name)
    for row in range(20):
        a = assess(fold(name, noise(name).take(np.array([row]))), baseline, shards)
        decision = decide(Decision(), a, baseline.calibration, Policy(budget=0.01, mode="block"), 0)
        assert decision.state in ("clear", "watch")
        assert a.odd <= 1.0
        assert a.queries == 1


@pytest.mark.parametrize("name", REFERENCES)
def test_noise_is_suspicious_and_honest_clients_are_not(name: str) -> None:
    baseline = fitted_baseline(name)
    thief = assess(fold(name, noise(name)), baseline)
    assert thief.p_value <= 0.01
    assert thief.odd >= 30
    assert thief.family != "unknown"
    suspicious = [assess(fold(name, honest(name, k)), baseline).suspicion for k in range(12)]
    assert max(suspicious) < thief.suspicion
    assert np.mean(np.array(suspicious) > 0.95) <= 0.2


# ------------------------------------------------------------------ polls and looks


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 299), max_size=8, unique=True), st.sampled_from(["people", "texts"]))
def test_the_moment_a_level_was_reached_does_not_depend_on_polls(cuts: list[int], name: str) -> None:
    baseline = fitted_baseline(name)
    whole, cut = fold(name, noise(name)), fold(name, noise(name), sorted(cuts))
    for budget in (0.2, 0.05, 0.01, 0.001):
        assert reached(cut, baseline, budget) == reached(whole, baseline, budget)
    assert assess(cut, baseline) == assess(whole, baseline)


@pytest.mark.parametrize("name", ["people", "digits"])
def test_the_moment_is_the_first_query_at_which_a_look_would_have_seen_it(name: str) -> None:
    baseline, batch = fitted_baseline(name), noise(name)
    profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, FOREVER)
    p: list[float] = []
    for row in range(120):
        part = batch.take(np.array([row]))
        profiles.add(["client 0"], part, baseline.map.measure(part, KEY))
        p.append(assess(profiles.profile("client 0"), baseline).p_value)
    assert p == sorted(p, reverse=True), "suspicion of a client in order never falls"
    last = profiles.profile("client 0")
    seen = 0
    for budget in (0.05, 0.01, 0.003):
        first = next((row for row, value in enumerate(p) if value <= budget), None)
        if first is not None:
            assert reached(last, baseline, budget) == (int(batch.time_ms[first]), first + 1)
            seen += 1
    assert seen >= 2
    assert reached(last, baseline, 0.0) is None


def test_a_moment_is_read_off_the_first_rung_that_is_rare_enough() -> None:
    baseline = fitted_baseline("people")
    trailed = replace(empty("people"), passage_ms=np.array([5, 6, 9]), passage_query=np.array([1, 2, 4]))
    p = [baseline.ordered.p(rung(steps)) for steps in (1, 2, 3)]
    assert p[0] > p[2]
    assert reached(trailed, baseline, p[0]) == (5, 1)
    assert reached(trailed, baseline, p[2]) in ((6, 2), (9, 4))
    assert reached(trailed, baseline, p[2] / 2) is None


def test_honest_cover_does_not_take_suspicion_back() -> None:
    """SignalTable fall when the allowance grows, marks don't: a thief can't dilute what it did."""
    name = "people"
    baseline = fitted_baseline(name)
    before = fold(name, noise(name, 150))
    traffic = reference_of(name).traffic
    profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, FOREVER)
    profiles.put("client 0", before)
    cover = batch_of(traffic.inputs)
    profiles.add(["client 0"], cover, baseline.map.measure(cover, KEY))
    after = profiles.profile("client 0")
    assert assess(after, baseline).p_value <= assess(before, baseline).p_value
    assert reached(before, baseline, 0.01) is not None
    assert reached(after, baseline, 0.01) == reached(before, baseline, 0.01)


def test_a_look_changes_nothing() -> None:
    profile = fold("people", noise("people"))
    before = profile.to_bytes()
    one, two = assess(profile, fitted_baseline("people")), assess(profile, fitted_baseline("people"))
    assert one == two
    assert profile.to_bytes() == before


# ------------------------------------------------------------------ shards


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["people", "prices"]))
def test_two_shards_are_assessed_alike_however_the_rows_fell(seed: int, name: str) -> None:
    baseline, batch = fitted_baseline(name), noise(name)
    where = np.random.default_rng(seed).integers(0, 2, len(batch)).astype(bool)
    merged = fold(name, batch.take(np.flatnonzero(where))).merge(fold(name, batch.take(np.flatnonzero(~where))))
    one, two = assess(merged, baseline, shards=2), assess(fold(name, batch), baseline, shards=2)
    assert one == two
    assert not one.in_order
    assert one.p_value <= 0.05


def test_the_order_free_block_needs_no_order() -> None:
    batch = noise("people")
    backwards = batch.take(np.arange(len(batch))[::-1])
    baseline = fitted_baseline("people")
    one, two = assess(fold("people", batch), baseline, shards=2), assess(fold("people", backwards), baseline, shards=2)
    assert one == two
    free = {s.name for s in SIGNALS if s.block == "free"}
    assert one.evidence
    assert {e.signal for e in one.evidence} <= free


# ------------------------------------------------------------------ words


@pytest.mark.parametrize("name", REFERENCES)
def test_evidence_is_sorted_counted_and_readable(name: str) -> None:
    baseline = fitted_baseline(name)
    a = assess(fold(name, life(name, 600, np.random.default_rng(71))), baseline)
    assert len(a.evidence) >= 3
    units = [e.statistic / baseline.calibration.scale[SIGNAL_NAMES.index(e.signal)] for e in a.evidence]
    assert units[1:] == sorted(units[1:], reverse=True)  # after the most telling one, by size
    for e in a.evidence:
        assert 0 < e.p_value <= 1
        assert e.statistic > 0
        assert not re.search(r"[{}]", e.text)
        count, base = (int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", e.text)[:2])
        assert 0 <= count <= base <= max(1, round(a.distinct))


def test_suspicion_is_one_less_p_and_says_if_it_is_calibrated() -> None:
    baseline = fitted_baseline("people")
    a = assess(fold("people", noise("people")), baseline)
    assert a.suspicion == 1.0 - a.p_value
    assert a.calibrated
    simulated = replace(baseline, calibration=replace(baseline.calibration, calibrated=False))
    assert not assess(fold("people", noise("people")), simulated).calibrated


# ------------------------------------------------------------------ the ladder


def test_the_ladder_and_its_rungs_are_one_scale() -> None:
    for steps in range(1, LADDER_STEPS + 1):
        assert ladder(rung(steps) * (1 + 1e-12)) == steps
        assert ladder(rung(steps) * (1 - 1e-9)) == steps - 1
        assert rung(steps) == pytest.approx(LADDER_FIRST * LADDER_GROWTH ** (steps - 1))
    assert ladder(0.0) == 0
    assert ladder(1e9) == LADDER_STEPS


@settings(max_examples=80, deadline=None)
@given(st.floats(0, 100), st.floats(0, 100))
def test_p_off_the_ladder_is_never_bolder_than_p_and_never_rises(one: float, two: float) -> None:
    baseline = fitted_baseline("people")
    low, high = sorted((one, two))
    assert p_of(high, baseline) <= p_of(low, baseline)
    assert p_of(low, baseline) >= baseline.ordered.p(low)
    assert p_of(low, baseline, in_order=False) >= baseline.free.p(low)


@pytest.mark.parametrize("name", ["people", "texts"])
def test_the_trail_is_as_long_as_the_fused_score_is_high(name: str) -> None:
    baseline = fitted_baseline(name)
    for n in (1, 5, 20, 60, 300):
        profile = fold(name, noise(name).take(np.arange(n)))
        fused = float(fuse(profile.maxima, baseline.calibration.scale, FUSED))
        assert len(profile.passage_ms) == ladder(fused)
        assert assess(profile, baseline).fused == fused


# ------------------------------------------------------------------ the table of signals


def test_signals_ask_for_bits_that_exist_and_have_room() -> None:
    assert len(set(SIGNAL_NAMES)) == len(SIGNALS) <= 255
    table = signal_table()
    for i, s in enumerate(SIGNALS):
        assert set(s.bits) <= set(BITS), s.name
        assert s.base in ("roots", "distinct")
        assert s.block in ("ordered", "free")
        assert 0 <= s.allowance < 1 < s.floor
        assert "{count}" in s.text
        assert "{base}" in s.text
        # what enters neither set is never counted
        assert int(table.need[i]) & (ODD | SEQUENCE), s.name
        assert bool(table.sequence[i]) == bool(int(table.need[i]) & SEQUENCE)
        # the order-free block may not lean on what only an ordered stream can know
        assert s.block == "ordered" or not int(table.need[i]) & ~ODD
    assert max(BITS.values()) < 1 << 24, "bits are stored in 24"
    assert FUSED.any()
    assert FREE.any()
    assert (FUSED | FREE).all(), "a signal that nobody reads"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 150), st.sampled_from([np.inf, 40.0]))
def test_statistics_are_the_excess_over_the_allowance(seed: int, n: int, horizon: float) -> None:
    """Counted by hand on sets that are not full."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 21, n)
    odd, path = bits & ODD != 0, bits & SEQUENCE != 0
    root = rng.random(n) < 0.5
    hashes = np.arange(1, n + 1, dtype=np.uint64)
    profile = replace(
        empty("people"), queries=n, sample_hash=hashes, sample_novel=root, odd_hash=hashes[odd], sequence_hash=hashes[path][:120],
        odd_bits=bits[odd].astype(np.uint32), sequence_bits=bits[path][:120].astype(np.uint32), parts=2,
    )  # fmt: skip
    got = measure(profile, signal_table(horizon_distinct=horizon))
    for i, s in enumerate(SIGNALS):
        need = sum(BITS[b] for b in s.bits)
        members = bits[path][:120] if need & SEQUENCE else bits[odd]
        base = int(root.sum()) if s.base == "roots" else n
        count = min(base, sum(1 for b in members.tolist() if b & need == need))
        excess = max(0.0, count - s.allowance * base)
        mass = (excess**2 / max(base, 1) if s.form else excess) * min(1.0, horizon / n)
        assert got.count[i] == count
        assert got.base[i] == base
        assert got.value[i] == pytest.approx(mass)


def test_the_fused_score_is_the_largest_in_units_of_its_scale() -> None:
    values: NDArray[np.float64] = np.array([[1.0, 8.0, 100.0], [0.0, 0.0, 0.0]])
    fused = fuse(values, np.array([1.0, 2.0, 10.0]), np.array([True, True, False]))
    assert fused.tolist() == [4.0, 0.0]


def test_an_assessment_is_a_value() -> None:
    a = assess(fold("people", noise("people")), fitted_baseline("people"))
    assert isinstance(hash(a), int)
    assert replace(a) == a
