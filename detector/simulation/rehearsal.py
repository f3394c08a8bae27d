"""Rehearsal: simulates thefts from a stand-in for the model, to learn how the fidelity of a copy grows (`exposure.py`).

It runs once, when a baseline is fitted, on the reference, the honest traffic and the model's answers to both:

1. Learners of several kinds (`copies.py`) learn to answer as the model did. The two that do best on held-out rows are its stand-ins: two,
   because a stand-in may be easier or harder to copy than the model, and the interval should cover that. A model that is recognised as
   linear is its own stand-in: equations give back its weights.
2. Thieves of the families of `FAMILIES` steal from a stand-in; honest clients of the traffic ask it what they asked the model.
3. At each of `CHECKPOINTS` queries, copies of every kind are trained. The best one's agreement with the stand-in on held-out honest
   rows is the fidelity, because a thief would choose the best one.
4. The profile of the same queries is folded by the code that the service runs, and described.

Rules:

* What a stand-in is told and what it answers are the model's kind of answers (`answers.py`); a model of labels only is copied from labels
  only.
* Fidelity is defined for classifiers and for regressions; a model that writes or gives embeddings has none here.

Cost: some seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.baseline import PUBLIC_KEY
from detector.exposure import FEWEST, REGRESSORS, Estimator, describe
from detector.features import FeatureMap
from detector.profile_table import ProfileTable
from detector.query import UNKNOWN_LABEL, QueryBatch
from detector.signals import signal_table
from detector.simulation.answers import AnswerKind, answers_of
from detector.simulation.attacks import AttackerKnowledge, steal
from detector.simulation.copies import Learner, is_linear, stand_in_learners, thieves_learners
from detector.simulation.domain import Domain, Predict, Rows, first_of_each, strangers

FAMILIES = (
    "noise_uniform",
    "permuted",
    "knockoff_random",
    "active_uncertainty",
    "jbda",
    "mixup",
    "data_free",
    "in_domain",
)
CHECKPOINTS = (10, 30, 100, 300, 900)
HONEST_LIVES = 10
STAND_IN_ROWS = 4000
TEST_ROWS = 500
NEAR_LINEAR = 0.05
"""Equations are a stand-in where they agree with the model on no fewer test rows than the best learner, less this share."""


@dataclass(frozen=True, slots=True)
class Points:
    """What a rehearsal saw: p points, each a theft or an honest client up to some queries.

    described  (p, f) `describe` of its profile
    fidelity   (p,) of the best copy
    family     (p,) which points are left out together
    usual      (c,) how the model's answers to honest inputs spread over the classes
    """

    described: Rows
    fidelity: Rows
    family: NDArray[np.int64]
    usual: Rows


def rehearse(
    feature_map: FeatureMap, reference: QueryBatch, traffic: QueryBatch, rng: np.random.Generator
) -> Estimator | None:
    """The estimator of a model, None where fidelity is not defined (texts, embeddings, one answer only) or rows are too few."""
    found = rehearsed_points(feature_map, reference, traffic, rng)
    if found is None or len(found.fidelity) < len(REGRESSORS):
        return None
    return Estimator.fit(found.described, found.fidelity, found.family, found.usual)


def rehearsed_points(
    feature_map: FeatureMap, reference: QueryBatch, traffic: QueryBatch, rng: np.random.Generator
) -> Points | None:
    """The points that an estimator is fitted on; None where fidelity is not defined or rows are too few."""
    found = stand_ins(feature_map, reference, traffic, rng)
    if found is None:
        return None
    truths = [stand_in(found.test) for stand_in in found.models]
    task = feature_map.schema.task
    labels = batch_of(found.test, truths[0], task).labels
    usual = np.bincount(labels[labels >= 0], minlength=feature_map.classes) / len(found.test)
    described: list[NDArray[np.float64]] = []
    fidelity: list[float] = []
    group: list[int] = []

    def study(life: Rows, family: int, which: int) -> None:
        answered = found.models[which](life)
        table = ProfileTable(feature_map, signal_table(), "0" * 16, half_horizon_ms=2**62)
        done = 0
        for n in (*(c for c in CHECKPOINTS if c < len(life)), len(life)):
            batch = batch_of(life[done:n], answered[done:n], task)
            table.add([0], batch, feature_map.measure(batch, PUBLIC_KEY))
            done = n
            profile = table.profile(0)
            if profile.distinct >= FEWEST:
                copies = (learner(life[:n], answered[:n], rng) for learner in found.learners)
                described.append(describe(profile, feature_map, usual))
                fidelity.append(max(found.kind.agreement(copy(found.test), truths[which]) for copy in copies))
                group.append(family)

    for number, family in enumerate(FAMILIES):
        which = number % 2
        study(steal(family, found.knowledge, found.models[which], CHECKPOINTS[-1], rng), number, which)
    count = np.bincount(traffic.who, minlength=len(traffic.clients))
    # honest clients of all sizes, not the largest only
    chosen = np.argsort(count)[np.unique(np.linspace(0, len(count) - 1, HONEST_LIVES).astype(int))]
    for number, client in enumerate(chosen[count[chosen] > 0]):
        life = traffic.inputs[traffic.who == client][: CHECKPOINTS[-1]]
        study(life, len(FAMILIES) + number % 4, number // 4 % 2)
    return Points(np.array(described), np.array(fidelity), np.array(group), usual)


@dataclass(frozen=True, slots=True)
class StandIns:
    """What takes the model's place in a rehearsal.

    kind       how their answers are learned from and compared
    models     two of them, (n, d) rows → (n, c) probabilities
    learners   what thieves train
    knowledge  the accepted domain, rows that a thief owns, foreign rows
    known      (k, d) honest rows that the models learned from, with their answers (k, c)
    test       (t, d) honest rows that neither models nor thieves saw
    """

    kind: AnswerKind
    models: tuple[Predict, ...]
    learners: tuple[Learner, ...]
    knowledge: AttackerKnowledge
    known: Rows
    answers: Rows
    test: Rows


def stand_ins(
    feature_map: FeatureMap, reference: QueryBatch, traffic: QueryBatch, rng: np.random.Generator
) -> StandIns | None:
    """Fit stand-ins for a model on its answers; None for a task without copies, one answer only, or fewer than 100 distinct rows."""
    schema = feature_map.schema
    asked = [reference, traffic.take(rng.permutation(len(traffic))[:STAND_IN_ROWS])]
    kind = answers_of(schema.task, feature_map.classes, asked)
    if kind is None:
        return None
    rows, answers = _answered(asked, kind)
    if len(rows) < 100 or len(np.unique(answers.argmax(1))) < 2:
        return None
    coded = schema.categorical
    domain = Domain.of(reference.inputs, coded if coded.any() else None)
    order = rng.permutation(len(rows))
    test, own, known = np.split(order, [min(TEST_ROWS, len(rows) // 4), len(rows) // 2])
    linear = is_linear(domain, rows[known], answers[known], rng)
    learners = thieves_learners(domain, feature_map.wide)
    chosen = _chosen(stand_in_learners(domain, feature_map.wide, linear), kind, rows, answers, known, test, rng)
    models = tuple(_answering(copy, kind.shown(answers)) for copy in chosen)
    knowledge = AttackerKnowledge(domain, rows[own], strangers(domain, rows[known], rng))
    return StandIns(kind, models, learners, knowledge, rows[known], answers[known], rows[test])


def _answered(asked: Sequence[QueryBatch], kind: AnswerKind) -> tuple[Rows, Rows]:
    """Distinct rows with the model's answers as probabilities, (n, d) and (n, c)."""
    rows, answers = np.vstack([batch.inputs for batch in asked]), kind.of(asked)
    first = first_of_each(rows)
    first = first[np.isfinite(answers[first]).all(1)]
    return rows[first], answers[first]


def _chosen(
    learners: Sequence[Learner],
    kind: AnswerKind,
    rows: Rows,
    answers: Rows,
    known: NDArray[np.int64],
    test: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[Predict, Predict]:
    """Two stand-ins out of the learners, of which equations come first: the best other one, and equations where they come near it.

    Foreign inputs copy a model as far as it is linear: one stand-in says what they teach if it is, the other if it is not.
    """
    copies = [learn(rows[known], answers[known], rng) for learn in learners]
    alike = np.array([kind.agreement(copy(rows[test]), answers[test]) for copy in copies])
    if len(copies) == 1:
        return copies[0], copies[0]
    first, second = 1 + np.argsort(-alike[1:], kind="stable")[:2]
    near_linear = alike[0] >= alike[first] - NEAR_LINEAR
    return copies[first], copies[0] if near_linear else copies[second]


def _answering(scores: Predict, shown: Callable[[Rows], Rows]) -> Predict:
    """A copy that answers as the model does."""
    return lambda rows: shown(scores(rows))


def batch_of(rows: Rows, answers: Rows, task: str = "classification") -> QueryBatch:
    """(n, d) rows and their (n, c) answers as the queries of one client; of a regression nothing is folded but the rows."""
    n = len(rows)
    labels = np.full(n, UNKNOWN_LABEL) if task == "regression" else answers.argmax(1)
    likely = np.empty((n, 0)) if task == "regression" else answers
    return QueryBatch(
        ["rehearsal"], np.zeros(n, np.int32), np.ascontiguousarray(rows), labels.astype(np.int32), likely.astype(np.float32),
        np.full(n, np.nan), np.zeros(n, np.int64), np.ones(n, np.float32), np.arange(n),
    )  # fmt: skip
