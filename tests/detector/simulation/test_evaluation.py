"""Evaluation of a baseline: what is caught is caught at that query and not before; and nothing is said that was not simulated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.references import fitted_baseline, reference_of

from detector.baseline import PUBLIC_KEY, Baseline
from detector.profile_table import ProfileTable
from detector.scoring import assess
from detector.simulation import evaluation
from detector.simulation.evaluation import BLIND, Scene, evaluate
from detector.simulation.population import Stream, theft_streams
from detector.simulation.rehearsal import rehearse, stand_ins

BUDGET = 0.01


@pytest.fixture(scope="module")
def scene(baseline: Baseline) -> Scene:
    return Scene.of_map(baseline, np.random.default_rng(0))


def p_after(stream: Stream, baseline: Baseline, n: int) -> float:
    """The slow twin: the p-value of the first n queries, folded by themselves."""
    batch = evaluation._queries(stream.inputs[:n], baseline, None)
    table = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms=2**62)
    table.add([0], batch, baseline.map.measure(batch, PUBLIC_KEY))
    return assess(table.profile(0), baseline).p_value


@pytest.mark.parametrize("variant", ["plain", "drip50"])
def test_a_theft_is_caught_at_the_query_that_brings_it_below_the_budget(
    variant: str, baseline: Baseline, scene: Scene
) -> None:
    (found,) = evaluate(
        baseline,
        scene,
        np.random.default_rng(3),
        families=["noise_uniform"],
        variants=[variant],
        repeats=1,
        queries=60,
        budget=BUDGET,
    )
    (child,) = np.random.default_rng(3).spawn(1)
    (stream,) = theft_streams("noise_uniform", variant, scene.pools, evaluation._silent(2), child, 60)
    assert found.caught_at is not None
    assert p_after(stream, baseline, found.caught_at - 1) > BUDGET >= p_after(stream, baseline, found.caught_at)
    assert found.stolen_by_then == stream.is_attack[: found.caught_at].sum()
    assert (found.queries, found.stolen) == (len(stream.inputs), 60)


def test_a_split_theft_is_caught_at_the_first_look_that_finds_its_accounts_together(
    baseline: Baseline, scene: Scene
) -> None:
    """Each of the accounts alone stays below the budget. The control: accounts that send real rows are no campaign."""
    split, honest = evaluate(
        baseline, scene, np.random.default_rng(3), families=["noise_uniform", "in_domain"], variants=["sybil50"], repeats=1, queries=300
    )  # fmt: skip
    assert split.accounts == honest.accounts == 50
    assert split.caught_at in [round(share * 300) for share in evaluation.LOOKS]
    assert split.stolen_by_then == split.caught_at
    (child, _) = np.random.default_rng(3).spawn(2)
    streams = theft_streams("noise_uniform", "sybil50", scene.pools, evaluation._silent(2), child, 300)
    assert min(p_after(stream, baseline, len(stream.inputs)) for stream in streams) > BUDGET
    assert (honest.caught_at, honest.state) == (None, "clear")


def test_who_sends_only_real_rows_is_not_caught_and_that_is_said(baseline: Baseline, scene: Scene) -> None:
    found = evaluate(
        baseline, scene, np.random.default_rng(5), families=["in_domain"], variants=["plain"], repeats=2, queries=100
    )
    assert [theft.caught_at for theft in found] == [None, None]
    assert [theft.state for theft in found] == ["clear", "clear"]


def test_without_answers_only_families_that_look_at_none_are_simulated(baseline: Baseline, scene: Scene) -> None:
    assert scene.families == BLIND
    assert baseline.estimator is None or all(
        theft.exposure is None
        for theft in evaluate(baseline, scene, np.random.default_rng(1), families=["permuted"], repeats=1, queries=20)
    )
    for family in BLIND:
        rows = []
        for answer in (evaluation._silent(2), lambda asked: np.eye(2)[(asked.sum(1) > 0).astype(int)]):
            (child,) = np.random.default_rng(7).spawn(1)
            rows.append(theft_streams(family, "plain", scene.pools, answer, child, 200)[0].inputs)
        assert np.array_equal(rows[0], rows[1]), f"{family} looks at answers"


def test_thefts_of_a_regression_get_answers_and_are_priced() -> None:
    """Thieves that look at answers need some; what is folded of a regression has no label that could change."""
    reference, model = reference_of("prices"), fitted_baseline("prices")
    known, traffic = (replace(b, values=np.sin(b.inputs).sum(1)) for b in (reference.batch, reference.traffic))
    estimator = rehearse(model.map, known, traffic, np.random.default_rng(0))
    found = stand_ins(model.map, known, traffic, np.random.default_rng(1))
    assert found is not None
    asked = replace(model, estimator=estimator)
    noise, chosen = evaluate(
        asked, Scene.of_stand_ins(found), np.random.default_rng(2), families=["noise_uniform", "active_uncertainty"],
        variants=["plain"], repeats=1, queries=80,
    )  # fmt: skip
    assert noise.caught_at is not None
    assert chosen.exposure is not None
    assert 0 < chosen.exposure.low < chosen.exposure.high < 1
