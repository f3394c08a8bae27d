"""Simulated thieves: every family stays in the domain, depends on `rng` only, and does what its name says."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from detector.simulation.attacks import ATTACKS, SEEDS, AttackerKnowledge, steal
from detector.simulation.copies import Surrogate
from detector.simulation.domain import Domain, Rows

CLASSES = 3


def table(n: int, rng: np.random.Generator) -> Rows:
    """A table: two whole numbers, an amount that is mostly zero, two codes, one fraction."""
    age, hours = rng.integers(17, 90, n), rng.integers(1, 99, n)
    gain = np.where(rng.random(n) < 0.85, 0, rng.integers(1, 20_000, n))
    job, region = rng.choice([0, 1, 2, 5], n), rng.integers(0, 6, n)
    out: Rows = np.stack([age, hours, gain, job, region, np.round(rng.random(n), 2)], axis=1).astype(np.float64)
    return out


def images(n: int, rng: np.random.Generator) -> Rows:
    """5 × 5 pixels in sixteenths: a bright bar somewhere."""
    rows = np.zeros((n, 5, 5))
    where = rng.integers(0, 5, n)
    rows[np.arange(n), where] = rng.integers(8, 17, size=(n, 5)) / 16
    out: Rows = rows.reshape(n, 25)
    return out


def sentences(n: int, rng: np.random.Generator) -> Rows:
    rows = rng.normal(size=(n, 12)) + 2.0 * np.eye(12)[rng.integers(0, 4, n)]
    out: Rows = np.round(rows / np.linalg.norm(rows, axis=1, keepdims=True), 4)
    return out


@functools.cache
def knowledge_of(kind: str) -> AttackerKnowledge:
    rng = np.random.default_rng(7)
    make = {"table": table, "images": images, "sentences": sentences}[kind]
    domain = Domain.of(make(500, rng))
    return AttackerKnowledge(domain, make(160, rng), domain.emit(domain.low + domain.high - domain.marginal(300, rng)))


@functools.cache
def victim_of(kind: str) -> Surrogate:
    """Any smooth model with three classes."""
    domain = knowledge_of(kind).domain
    rng = np.random.default_rng(3)
    rows = domain.emit(domain.marginal(400, rng))
    hidden = domain.standardise(rows) @ rng.normal(size=(domain.width, CLASSES))
    answers = np.exp(hidden - hidden.max(axis=1, keepdims=True))
    return Surrogate(domain, rng).fit(rows, answers / answers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", ["table", "images", "sentences"])
@pytest.mark.parametrize("family", ATTACKS)
def test_every_family_stays_in_the_domain_and_depends_on_rng_only(family: str, kind: str) -> None:
    knowledge, predict = knowledge_of(kind), victim_of(kind).predict
    rows = steal(family, knowledge, predict, 333, np.random.default_rng(5))
    again = steal(family, knowledge, predict, 333, np.random.default_rng(5))
    other = steal(family, knowledge, predict, 333, np.random.default_rng(6))
    assert rows.shape == (333, knowledge.domain.width)
    assert np.isfinite(rows).all()
    assert (rows >= knowledge.domain.low).all()
    assert (rows <= knowledge.domain.high).all()
    np.testing.assert_array_equal(rows, again)
    assert not np.array_equal(rows, other)
    if knowledge.domain.unit:
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=2e-3)
    else:
        np.testing.assert_array_equal(rows, knowledge.domain.emit(rows))
    for j, levels in enumerate(knowledge.domain.codes):
        assert levels is None or np.isin(rows[:, j], levels).all()


@pytest.mark.parametrize("family", set(ATTACKS) - {"in_domain"})
def test_thieves_ask_distinct_queries(family: str) -> None:
    knowledge = knowledge_of("images")
    rows = steal(family, knowledge, victim_of("images").predict, 400, np.random.default_rng(5))
    assert len(np.unique(rows, axis=0)) >= 200


def test_jbda_children_are_one_constant_step_from_a_parent() -> None:
    knowledge = knowledge_of("images")
    rows = steal("jbda", knowledge, victim_of("images").predict, SEEDS + 60, np.random.default_rng(1))
    parents, children = rows[:SEEDS], rows[SEEDS:]
    constant = 0
    for child in children:
        move = np.abs(child - parents)
        free = (child > knowledge.domain.low) & (child < knowledge.domain.high)
        constant += bool((np.abs(move[:, free] - 0.1).max(axis=1) < 1e-9).any())
    assert constant == len(children)


def test_trnd_steps_differ_from_child_to_child() -> None:
    knowledge = knowledge_of("images")
    rows = steal("trnd", knowledge, victim_of("images").predict, SEEDS + 60, np.random.default_rng(1))
    sizes = set()
    for child in rows[SEEDS:]:
        free = (child > knowledge.domain.low) & (child < knowledge.domain.high)
        move = np.abs(child - rows[:SEEDS])[:, free]
        nearest = move[np.ptp(move, axis=1).argmin()]
        assert np.ptp(nearest) < 1e-9
        sizes.add(round(float(nearest[0]), 3))
    assert len(sizes) > 30


def test_in_domain_thieves_send_their_own_rows() -> None:
    knowledge = knowledge_of("table")
    rows = steal("in_domain", knowledge, victim_of("table").predict, 300, np.random.default_rng(1))
    assert {row.tobytes() for row in rows} <= {row.tobytes() for row in knowledge.own + 0.0}


def test_line_search_ends_at_the_decision_boundary() -> None:
    knowledge = knowledge_of("images")
    model = victim_of("images")
    rows = steal("line_search", knowledge, model.predict, 600, np.random.default_rng(1))
    assert np.median(model.margin(rows[SEEDS:])) < 0.5 * np.median(model.margin(knowledge.own))


def test_equation_solving_moves_one_column_at_a_time() -> None:
    knowledge = knowledge_of("table")
    d = knowledge.domain.width
    rows = steal("equation_solving", knowledge, victim_of("table").predict, 1 + d, np.random.default_rng(1))
    changed = rows[1:] != rows[0]
    assert (changed.sum(axis=1) <= 1).all()
    assert changed.sum() >= d - 2  # a code may be redrawn as itself


def test_tree_path_finds_the_thresholds_of_a_tree() -> None:
    knowledge = knowledge_of("table")

    def tree(rows: Rows) -> Rows:
        high = np.where(rows[:, 0] > 41.5, 0.9, np.where(rows[:, 1] > 30.5, 0.6, 0.2))
        return np.stack([1 - high, high], axis=1)

    rows = steal("tree_path", knowledge, tree, 400, np.random.default_rng(1))
    assert {41.0, 42.0} <= set(rows[:, 0])
    assert {30.0, 31.0} <= set(rows[:, 1])


def test_active_learning_asks_where_its_copy_is_unsure() -> None:
    knowledge = knowledge_of("sentences")
    model = victim_of("sentences")
    margin = {f: np.median(model.margin(steal(f, knowledge, model.predict, 600, np.random.default_rng(1))[SEEDS:])) for f in
              ("active_uncertainty", "knockoff_random")}  # fmt: skip
    assert margin["active_uncertainty"] < 0.7 * margin["knockoff_random"]


def test_column_shuffling_breaks_the_dependence_between_columns() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 100, 800).astype(np.float64)
    reference = np.stack([first, 100 - first, rng.integers(0, 100, 800)], axis=1)
    knowledge = AttackerKnowledge(Domain.of(reference), reference[:100], reference[:100])
    rows = steal("permuted", knowledge, lambda x: np.full((len(x), 2), 0.5), 800, rng)
    assert abs(np.corrcoef(rows[:, 0], rows[:, 1])[0, 1]) < 0.15
    assert abs(rows[:, 0].mean() - first.mean()) < 5


def test_unknown_family_is_a_key_error() -> None:
    knowledge = knowledge_of("table")
    with pytest.raises(KeyError):
        steal("telepathy", knowledge, victim_of("table").predict, 10, np.random.default_rng(0))


def test_a_surrogate_learns_its_victim() -> None:
    knowledge = knowledge_of("images")
    model = victim_of("images")
    rng = np.random.default_rng(2)
    rows, fresh = (
        knowledge.domain.emit(knowledge.domain.uniform(1500, rng)),
        knowledge.domain.emit(knowledge.domain.uniform(500, rng)),
    )
    copy = Surrogate(knowledge.domain, rng).fit(rows, model.predict(rows))
    assert (copy.predict(fresh).argmax(axis=1) == model.predict(fresh).argmax(axis=1)).mean() > 0.8


def test_a_surrogates_slope_is_its_gradient() -> None:
    knowledge = knowledge_of("table")
    model = victim_of("table")
    row, classes = knowledge.own[:4], np.array([0, 1, 2, 1])
    slope = model.slope(row, classes)
    for j in range(knowledge.domain.width):
        ahead = row.copy()
        ahead[:, j] += 1e-5 * knowledge.domain.spread[j]
        by_hand = (model.scores(ahead) - model.scores(row))[np.arange(4), classes] / 1e-5
        np.testing.assert_allclose(slope[:, j], by_hand, atol=1e-3)
