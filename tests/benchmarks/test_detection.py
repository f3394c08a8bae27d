"""The detection benchmark, tiny: one victim and few clients go through every method, and the control fails.

The figures mean nothing at this size; what is tested is that a method that looks at queries can be told from one that draws lots,
that shares of items are disjoint, and that every table can be made from what is written. It tests the benchmark, not the product:
`make soak` runs it. `make test` makes every table of the docs from the committed results (`tests/test_docs.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import art_attacks, detection, tables
from benchmarks.foreign import FOREIGN
from benchmarks.leak import describe, leak
from benchmarks.literature import METHODS, Known, _prada_distances, looks
from benchmarks.texts import AXES, Corpus, TextTools
from benchmarks.victims import GROUPS, VICTIMS, Victim, build
from detector.simulation.attacks import ATTACKS, AttackerKnowledge
from detector.simulation.domain import Domain, HonestPools
from detector.simulation.honest import BENIGN
from detector.simulation.population import clock

pytestmark = pytest.mark.soak

FAMILIES = ("noise_uniform", "knockoff_random", "data_free", "in_domain")
LOUD = FAMILIES[:3]
PLAN = detection.Plan(
    clients=20, splits=1, thefts={"plain": 2}, queries=(300, 500), victims=("tumour",), families=FAMILIES, budget=0.06,
    kinds=("regular", "light", "what_if", "explainer", "misrouted", "entity_stream"),
)  # fmt: skip


@pytest.fixture(scope="module")
def victim() -> Victim:
    return build("tumour")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return detection.run(PLAN, processes=1)


def test_ours_catches_what_is_loud_and_the_control_does_not(results: dict[str, Any]) -> None:
    caught, control = (
        [tables.caught(results, method, "equal", family, "plain").share for family in LOUD]
        for method in (tables.OURS, tables.CONTROL)
    )
    assert min(caught) >= 0.75
    assert np.mean(control) <= 0.3
    assert tables.caught(results, tables.OURS, "equal", "in_domain", "plain").share <= 0.5


def test_the_control_flags_honest_clients_as_often_as_the_budget_says(results: dict[str, Any]) -> None:
    low, _ = tables.honest(results, tables.CONTROL, "equal").interval
    assert low <= PLAN.budget


def test_every_method_meets_the_same_clients(results: dict[str, Any]) -> None:
    found = dict(results["victims"]["tumour"]["methods"])
    otherwise = [found.pop(name) for name in tables.OURS_OTHERWISE]
    assert [set(rules) for rules in otherwise] == 4 * [{"equal"}]
    assert set(found) == {tables.OURS, *METHODS} - {"HODA"}  # the victim is no network
    tested = {
        sum(runs[1] for runs in kinds)
        for m in found.values()
        for kinds in [[c for k in m["equal"]["honest"].values() for c in k]]
    }
    assert tested == {2 * PLAN.clients}
    assert {f for m in found.values() for f in m["equal"]["thefts"]} == {*FAMILIES, *FOREIGN}


def test_one_honest_kind_a_split_is_held_out(results: dict[str, Any]) -> None:
    assert set(detection.HELD_OUT) <= set(BENIGN)
    assert len(set(detection.HELD_OUT)) == len(detection.SPLITS)
    assert tuple(results["plan"]["held_out"]) == detection.HELD_OUT[:1]
    assert tables.honest(results, tables.OURS, "equal", "explainer", seen=False).trials > 0


def test_pseudo_clients_spare_clients_of_a_kind_missing_from_the_calibration(results: dict[str, Any]) -> None:
    """Each of three calibrations has more of them: without any, without the kind held out, with all."""
    spared = [
        tables.honest(results, m, "equal", "explainer", seen=False).share
        for m in (tables.UNAIDED, tables.UNEXPECTED, tables.OURS)
    ]
    assert spared[0] >= spared[1] >= spared[2]
    assert all(tables.mean_caught(results, m, "equal", "plain") >= 0.3 for m in (tables.UNAIDED, tables.OURS))


def test_thieves_among_the_honest_cost_less_where_influence_is_bounded(results: dict[str, Any]) -> None:
    ((thieves, harmless, there),) = results["victims"]["tumour"]["left_out"]
    assert there == 2
    assert 1 <= thieves <= there
    assert harmless <= 1
    assert tables.without_say(results) == (thieves, harmless, there)
    bounded, trusting = (
        np.mean([tables.caught(results, m, "equal", f, "plain").share for f in LOUD])
        for m in (tables.SPOILT, tables.TRUSTING)
    )
    assert bounded >= trusting


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_can_be_made_from_the_file(results: dict[str, Any], name: str, tmp_path: Path) -> None:
    detection.write(results, tmp_path / "figures.json")
    text = tables.TABLES[name](tables.read(tmp_path / "figures.json"))
    rows = text.splitlines()
    assert len(rows) >= 3 or name == "bench-unseen"
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_each_pair_of_splits_tests_every_group_once() -> None:
    for one, two in zip(detection.SPLITS[::2], detection.SPLITS[1::2], strict=True):
        assert sorted([*({*range(GROUPS)} - {*one}), *({*range(GROUPS)} - {*two})]) == list(range(GROUPS))


def test_items_are_dealt_out_disjointly(victim: Victim) -> None:
    shares = [victim.reference, victim.held, victim.thieves.own, victim.thieves.pool, *(s.pool for s in victim.pools)]
    rows = np.vstack(shares)
    assert len(np.unique(rows, axis=0)) == len(rows)


def small_corpus() -> tuple[Corpus, HonestPools]:
    """300 sentences of 12 out of 90 words, and who owns a third of them."""
    rng = np.random.default_rng(3)
    vocabulary = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("ran", "lim", "sto", "ve")][:90]
    texts = [" ".join(vocabulary[i] for i in rng.zipf(1.4, 12) % 90) for _ in range(300)]
    corpus = Corpus(texts, rng.integers(0, 3, 300).tolist(), texts[:20])
    pool = corpus.rows[:100]
    return corpus, HonestPools(Domain.of(corpus.rows), pool, corpus.labels[:100], pool[:5], corpus.foreign)


def test_who_varies_a_text_changes_words_and_the_rows_stay_embeddings() -> None:
    corpus, pools = small_corpus()
    tools = TextTools(corpus, corpus.words(pools.pool))
    assert set(tools.kinds) < set(BENIGN)
    for kind, generate in tools.kinds.items():
        rows = generate(pools, 150, np.random.default_rng(1))
        assert rows.shape == (150, AXES), kind
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-3, kind
        assert (np.abs(np.diff(rows, axis=0)) > 1e-6).sum(axis=1).max() > AXES / 2, kind  # never a number by itself
        np.testing.assert_array_equal(rows, generate(pools, 150, np.random.default_rng(1)), kind)
    by_number = BENIGN["what_if"].generate(pools, 150, np.random.default_rng(1))
    assert np.median((np.abs(np.diff(by_number, axis=0)) > 0.05).sum(axis=1)) <= 2  # what this is there to replace


def test_a_text_without_a_known_word_is_one_row() -> None:
    corpus, pools = small_corpus()
    rows = pools.domain.emit(corpus.embed(["", "nobody knows these words"]))
    assert len(np.unique(rows, axis=0)) == 1


def test_the_victims_are_of_many_kinds() -> None:
    texts = " ".join(recipe.text for recipe in VICTIMS.values())
    assert len(VICTIMS) >= 8
    for word in ("images", "codes", "linear", "trees", "250", "label only", "text"):
        assert word in texts
    assert len(ATTACKS) >= 12


@pytest.mark.parametrize("family", sorted(FOREIGN))
def test_attack_code_of_others_asks_the_victim_as_an_api_would_have_it(victim: Victim, family: str) -> None:
    thief, asked = victim.thieves, []

    def predict(rows: np.ndarray) -> np.ndarray:
        asked.append(rows)
        return victim.predict(rows)

    knowledge = AttackerKnowledge(thief.domain, thief.own, thief.foreign)
    stolen = art_attacks.steal(family, knowledge, predict, 90, np.random.default_rng(1))
    assert np.array_equal(stolen, np.vstack(asked[1:])[:90])  # the first was about the number of classes
    assert np.array_equal(stolen, thief.domain.emit(stolen))
    again = art_attacks.steal(family, knowledge, predict, 90, np.random.default_rng(1))
    assert np.array_equal(stolen, again)
    assert set(art_attacks.RUNS) == set(FOREIGN)


# --- methods of the literature


def test_the_growing_set_of_prada_is_that_of_the_paper() -> None:
    """By hand: class 0 at 0, 3, 3.5, 9; class 1 at 100."""
    rows = np.array([[0.0], [3.0], [100.0], [3.5], [9.0]])
    distances = _prada_distances(rows, np.array([0, 0, 1, 0, 0]), 2)
    assert distances.tolist() == [-1.0, 3.0, -1.0, 0.5, 6.0]


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"control"}))
def test_a_method_looks_in_order_and_never_at_the_truth(victim: Victim, name: str) -> None:
    known = Known(victim, victim.reference, np.random.default_rng(0))
    rows = victim.domain.uniform(400, np.random.default_rng(1))
    at, values = METHODS[name].statistic(known.life(rows, victim.predict(rows)), known)
    if name == "HODA":
        assert len(at) == 0
        return
    assert at[-1] <= 400
    assert np.all(np.diff(at) > 0)
    assert np.isfinite(values).all()
    again = METHODS[name].statistic(known.life(rows, victim.predict(rows)), known)[1]
    assert np.array_equal(values, again) or name == "SENTRY"


@pytest.mark.parametrize("name", ["ADD", "MMD", "Mahalanobis share", "kNN share", "SENTRY"])
def test_noise_looks_worse_than_the_reference(victim: Victim, name: str) -> None:
    known = Known(victim, victim.reference, np.random.default_rng(0))
    rng = np.random.default_rng(2)
    noise = victim.domain.uniform(400, rng)
    usual = victim.pools[0].items(400, rng)
    worst = [METHODS[name].statistic(known.life(rows, victim.predict(rows)), known)[1].max() for rows in (noise, usual)]
    assert worst[0] > worst[1]


def test_looks_end_with_the_life() -> None:
    assert looks(19).tolist() == []
    assert looks(20).tolist() == [20]
    assert looks(300)[-1] == 300


# --- the leak check


def test_the_leak_check_finds_a_leak_and_none_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    one_law = np.array([describe(clock(200, rng), i % 4 == 0) for i in range(160)])
    paced = np.array([describe(np.arange(200.0) * (1.0 if i % 4 == 0 else 400.0), i % 4 == 0) for i in range(160)])
    assert leak(one_law)["timing"]["auroc"] < 0.75
    assert leak(paced)["timing"]["detection"] > 0.9
