"""Simulated worlds: kinds do what they say, variants hide thefts as they say, and time gives nobody away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detector.simulation.copies import Surrogate
from detector.simulation.domain import Domain, HonestPools
from detector.simulation.honest import BENIGN
from detector.simulation.population import (
    HORIZON_S,
    VARIANTS,
    Stream,
    clock,
    honest_stream,
    honest_streams,
    interleave,
    population,
    simulated_population,
    theft_streams,
)


def scene_of(pool: int = 300) -> tuple[HonestPools, Surrogate]:
    """Six classes of 6 × 6 images in sixteenths."""
    rng = np.random.default_rng(11)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        label = rng.integers(0, 6, n)
        rows = rng.integers(0, 5, size=(n, 6, 6)) * (rng.random((n, 6, 6)) < 0.4)
        rows[np.arange(n), label] = rng.integers(9, 17, size=(n, 6))
        return rows.reshape(n, 36) / 16, label

    reference, labels = draw(400)
    domain = Domain.of(reference)
    model = Surrogate(domain, rng).fit(reference, np.eye(6)[labels])
    rows, _ = draw(pool)
    own, _ = draw(120)
    foreign = domain.emit(rng.random((100, 36)))
    return HonestPools(domain, rows, model.predict(rows).argmax(axis=1), own, foreign), model


POOLS, MODEL = scene_of()


def distinct(stream: Stream) -> int:
    return len(np.unique(stream.inputs, axis=0))


def test_shares_of_the_kinds_add_up() -> None:
    assert sum(kind.share for kind in BENIGN.values()) == pytest.approx(1.0)
    assert len(BENIGN) >= 9


@pytest.mark.parametrize("kind", BENIGN)
def test_every_kind_stays_in_the_domain_its_size_and_its_seed(kind: str) -> None:
    stream = honest_stream(kind, POOLS, np.random.default_rng(2))
    again = honest_stream(kind, POOLS, np.random.default_rng(2))
    assert BENIGN[kind].least <= len(stream.inputs) <= BENIGN[kind].most
    np.testing.assert_array_equal(stream.inputs, again.inputs)
    np.testing.assert_array_equal(stream.times_s, again.times_s)
    np.testing.assert_array_equal(stream.inputs, POOLS.domain.emit(stream.inputs))
    assert stream.role == "benign"
    assert not stream.is_attack.any()


def test_a_scene_can_play_a_kind_in_its_own_way() -> None:
    only = POOLS.pool[:1]
    pools = replace(POOLS, played={"what_if": lambda pools, n, rng: np.repeat(only, n, axis=0)})
    assert distinct(honest_stream("what_if", pools, np.random.default_rng(4))) == 1
    assert distinct(honest_stream("what_if", POOLS, np.random.default_rng(4))) > 1
    assert distinct(honest_stream("regular", pools, np.random.default_rng(4))) > 1


def test_batch_scorers_are_heavy_and_light_clients_light() -> None:
    assert distinct(honest_stream("batch_scorer", POOLS, np.random.default_rng(0))) > 2000
    assert len(honest_stream("light", POOLS, np.random.default_rng(0)).inputs) <= 60


def test_load_testers_and_monitors_repeat() -> None:
    assert distinct(honest_stream("load_tester", POOLS, np.random.default_rng(0))) <= 40
    assert distinct(honest_stream("monitor", POOLS, np.random.default_rng(0))) < 300


def test_what_if_sweeps_one_feature_at_a_time() -> None:
    rows = honest_stream("what_if", POOLS, np.random.default_rng(0)).inputs
    moved = (rows[1:] != rows[:-1]).sum(axis=1)
    assert (moved <= 1).mean() > 0.7


def test_entity_streams_drift_in_small_steps() -> None:
    rows = honest_stream("entity_stream", POOLS, np.random.default_rng(0)).inputs
    nearest = np.array([np.abs(rows[i] - rows[:i]).max(axis=1).min() for i in range(20, len(rows))])
    assert np.median(nearest) < 0.2


def test_explainers_and_robustness_testers_stay_near_few_items() -> None:
    for kind in ("explainer", "robustness"):
        rows = honest_stream(kind, POOLS, np.random.default_rng(4)).inputs
        pool = np.array([(row[None] == POOLS.pool).mean(axis=1).max() for row in rows])
        assert distinct(honest_stream(kind, POOLS, np.random.default_rng(4))) > 40
        assert pool.mean() > 0.3


def test_most_robustness_testers_go_over_the_whole_set_before_repeating_an_item() -> None:
    returns = []
    for seed in range(40):
        rows = honest_stream("robustness", POOLS, np.random.default_rng(seed)).inputs
        returns.append(1 + int(np.abs(rows[1:] - rows[0]).mean(axis=1).argmin()))
    assert 0.5 < np.mean(np.array(returns) > 5) < 1.0


def test_misrouted_clients_are_few_queries_with_foreign_rows() -> None:
    stream = honest_stream("misrouted", POOLS, np.random.default_rng(0))
    foreign = {row.tobytes() for row in POOLS.foreign + 0.0}
    assert len(stream.inputs) <= 120
    assert sum(row.tobytes() in foreign for row in stream.inputs) > 0.3 * len(stream.inputs)


def test_qa_edge_visits_the_bounds() -> None:
    rows = honest_stream("qa_edge", POOLS, np.random.default_rng(0)).inputs
    assert ((rows == POOLS.domain.high) & (POOLS.domain.high > 0)).any(axis=1).mean() > 0.5


def test_shifted_clients_differ_from_regular_ones() -> None:
    means = [honest_stream("shifted", POOLS, np.random.default_rng(s)).inputs.mean() for s in range(6)]
    usual = [honest_stream("batch_scorer", POOLS, np.random.default_rng(0)).inputs.mean()]
    assert max(abs(m - usual[0]) for m in means) > 0.03


def test_a_population_has_every_kind_and_heavy_clients() -> None:
    kinds = population(300, np.random.default_rng(0))
    assert len(kinds) == 300
    assert set(kinds) == set(BENIGN)
    heavy = sum(BENIGN[kind].least > 2000 for kind in kinds)
    assert heavy >= 0.05 * 300
    assert len(population(5, np.random.default_rng(0))) == 5
    assert set(population(10, np.random.default_rng(0), ["light", "regular"])) == {"light", "regular"}


def test_at_least_one_honest_client_in_twenty_sends_over_2000_distinct_queries() -> None:
    streams = simulated_population(POOLS, MODEL.predict, np.random.default_rng(1), clients=60)
    assert sum(distinct(s) > 2000 for s in streams) >= 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_hide_a_theft_as_they_say(variant: str) -> None:
    how = VARIANTS[variant]
    streams = theft_streams("mixup", variant, POOLS, MODEL.predict, np.random.default_rng(3), queries=500)
    total = sum(len(s.inputs) for s in streams)
    assert len(streams) == how.accounts
    assert len({s.run for s in streams}) == 1
    assert len({s.client for s in streams}) == how.accounts
    assert sum(int(s.is_attack.sum()) for s in streams) == 500
    assert total == round(500 / how.share)
    ends = sorted((s.times_s[0], s.times_s[-1]) for s in streams)
    apart = all(ends[i][1] <= ends[i + 1][0] for i in range(len(ends) - 1))
    assert apart == (how.handover or how.accounts == 1)
    if how.slow:
        assert streams[0].times_s[-1] - streams[0].times_s[0] > 0.3 * HORIZON_S


def test_clock_ascends_within_the_horizon_in_whole_milliseconds() -> None:
    for seed in range(30):
        times = clock(200, np.random.default_rng(seed), 1_000.0, 5_000.0)
        assert (np.diff(times) >= 0).all()
        assert times[0] >= 1_000.0
        assert times[-1] <= 6_000.0
        np.testing.assert_allclose(times * 1000, np.round(times * 1000), atol=1e-3)


def test_timing_is_one_law_for_thieves_and_honest_clients() -> None:
    """The life of a client does not depend on how much it sends: no metadata rule on pace can be better than volume."""
    small = [np.ptp(clock(60, np.random.default_rng(s))) for s in range(300)]
    large = [np.ptp(clock(2000, np.random.default_rng(s + 1000))) for s in range(300)]
    rank = np.searchsorted(np.sort(small), large).mean() / len(small)
    assert 0.4 < rank < 0.65


def test_interleaving_sorts_by_time_and_keeps_each_clients_order() -> None:
    thefts = [("jbda", "plain"), ("noise_uniform", "sybil10")]
    rng = np.random.default_rng(1)
    streams = simulated_population(POOLS, MODEL.predict, rng, clients=12, attacks=thefts, queries=(100, 200))
    log = interleave(streams)
    assert len(streams) == 12 + 1 + 10
    assert (np.diff(log.times_s) >= 0).all()
    assert len(log.who) == sum(len(s.inputs) for s in streams)
    for i, stream in enumerate(streams):
        assert log.clients[i] == stream.client
        np.testing.assert_array_equal(log.inputs[log.who == i], stream.inputs)
        np.testing.assert_array_equal(log.is_attack[log.who == i], stream.is_attack)


def test_a_world_depends_on_its_seed_only() -> None:
    first, again, other = (
        interleave(
            simulated_population(
                POOLS, MODEL.predict, np.random.default_rng(seed), clients=15, attacks=[("copycat", "drip50")]
            )
        )
        for seed in (4, 4, 5)
    )
    assert first.clients == again.clients
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.times_s, again.times_s)
    assert first.clients != other.clients


@pytest.mark.parametrize("task", ["classes", "regression"])
def test_honest_streams_need_a_reference_only(task: str) -> None:
    labels = POOLS.labels if task == "classes" else np.full(len(POOLS.pool), -1, dtype=np.int32)
    streams = honest_streams(POOLS.pool, labels, 24, np.random.default_rng(0))
    assert len(streams) == 24
    assert {s.role for s in streams} == {"benign"}
    assert {s.kind for s in streams} == set(BENIGN)
    assert all(s.inputs.shape == (len(s.times_s), 36) for s in streams)


def test_names_say_nothing_of_the_role() -> None:
    streams = simulated_population(
        POOLS, MODEL.predict, np.random.default_rng(1), clients=12, attacks=[("jbda", "plain")]
    )
    assert all(s.client.startswith("acct-") and len(s.client) == 15 for s in streams)
