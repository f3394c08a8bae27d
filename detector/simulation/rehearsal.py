"""Rehearsal: simulates thefts from a stand-in for the model, to learn how the fidelity of a copy grows (`exposure.py`).

It runs once, when a baseline is fitted, on the reference, the honest traffic and the model's answers to both:

1. Learners of three kinds (`_learners`) learn to answer as the model did. The two that do best on held-out rows are its stand-ins: two,
   because a stand-in may be easier or harder to copy than the model, and the interval should cover that.
2. Thieves of the families of `FAMILIES` steal from a stand-in; honest clients of the traffic ask it what they asked the model.
3. At each of `CHECKPOINTS` queries, copies of both kinds are trained. The better one's agreement with the stand-in on held-out honest
   rows is the fidelity, because a thief would choose the better one.
4. The profile of the same queries is folded by the code that the service runs, and described.

Rules: scikit-learn is imported here and in `fitting/discriminators.py` only; a service never loads it.

Cost: some seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.baseline import PUBLIC_KEY
from detector.exposure import FEWEST, REGRESSORS, Estimator, describe
from detector.features import FeatureMap
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signals import signal_table
from detector.simulation.attacks import AttackerKnowledge, steal
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
TREES = 16
MOST_ROWS = 1000
"""Rows that the smooth copy uses."""

Learner = Callable[[Rows, Rows, np.random.Generator], Predict]


def rehearse(
    feature_map: FeatureMap, reference: QueryBatch, traffic: QueryBatch, rng: np.random.Generator
) -> Estimator | None:
    """The estimator of a model, None where fidelity is not defined (regression, one class only) or rows are too few."""
    found = stand_ins(feature_map, reference, traffic, rng)
    if found is None:
        return None
    test, knowledge, best = found.test, found.knowledge, found.learners
    truths = [stand_in(test).argmax(1) for stand_in in found.models]
    usual = np.bincount(truths[0], minlength=feature_map.classes) / len(test)
    described: list[NDArray[np.float64]] = []
    fidelity: list[float] = []
    group: list[int] = []

    def study(life: Rows, family: int, which: int) -> None:
        answered = found.models[which](life)
        table = ProfileTable(feature_map, signal_table(), "0" * 16, half_horizon_ms=2**62)
        done = 0
        for n in (*(c for c in CHECKPOINTS if c < len(life)), len(life)):
            batch = batch_of(life[done:n], answered[done:n])
            table.add([0], batch, feature_map.measure(batch, PUBLIC_KEY))
            done = n
            profile = table.profile(0)
            if profile.distinct >= FEWEST:
                copies = [_agreement(learner, life[:n], answered[:n], test, truths[which], rng) for learner in best]
                described.append(describe(profile, feature_map, usual))
                fidelity.append(max(copies))
                group.append(family)

    for number, family in enumerate(FAMILIES):
        which = number % 2
        study(steal(family, knowledge, found.models[which], CHECKPOINTS[-1], rng), number, which)
    count = np.bincount(traffic.who, minlength=len(traffic.clients))
    # honest clients of all sizes, not the largest only
    chosen = np.argsort(count)[np.unique(np.linspace(0, len(count) - 1, HONEST_LIVES).astype(int))]
    for number, client in enumerate(chosen[count[chosen] > 0]):
        life = traffic.inputs[traffic.who == client][: CHECKPOINTS[-1]]
        study(life, len(FAMILIES) + number % 4, number // 4 % 2)
    if len(fidelity) < len(REGRESSORS):
        return None
    return Estimator.fit(np.array(described), np.array(fidelity), np.array(group), usual)


@dataclass(frozen=True, slots=True)
class StandIns:
    """What takes the model's place in a rehearsal.

    models     two of them, (n, d) rows → (n, c) probabilities
    learners   what they were made with, and what thieves train
    knowledge  the accepted domain, rows that a thief owns, foreign rows
    known      (k, d) honest rows that the models learned from, with their answers (k, c)
    test       (t, d) honest rows that neither models nor thieves saw
    """

    models: tuple[Predict, ...]
    learners: tuple[Learner, ...]
    knowledge: AttackerKnowledge
    known: Rows
    answers: Rows
    test: Rows


def stand_ins(
    feature_map: FeatureMap, reference: QueryBatch, traffic: QueryBatch, rng: np.random.Generator
) -> StandIns | None:
    """Fit stand-ins for a model on its answers; None for a regression, one class only, or fewer than 100 distinct answered rows."""
    schema = feature_map.schema
    rows, answers = _answered(reference, traffic, max(2, feature_map.classes), rng)
    if schema.task != "classification" or len(rows) < 100 or len(np.unique(answers.argmax(1))) < 2:
        return None
    coded = schema.categorical
    domain = Domain.of(reference.inputs, coded if coded.any() else None)
    order = rng.permutation(len(rows))
    test, own, known = np.split(order, [min(TEST_ROWS, len(rows) // 4), len(rows) // 2])
    learners = _learners(domain, feature_map.wide)
    labels = answers[test].argmax(1)
    alike = [_agreement(learner, rows[known], answers[known], rows[test], labels, rng) for learner in learners]
    best = tuple(learners[i] for i in np.argsort(alike)[:-3:-1])
    models = tuple(_likely_answers(learner(rows[known], answers[known], rng)) for learner in best)
    knowledge = AttackerKnowledge(domain, rows[own], strangers(domain, rows[known], rng))
    return StandIns(models, best, knowledge, rows[known], answers[known], rows[test])


def _answered(reference: QueryBatch, traffic: QueryBatch, classes: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Distinct rows with the model's answers as probabilities, (n, d) and (n, c); the whole reference, some of the traffic."""
    some = rng.permutation(len(traffic))[:STAND_IN_ROWS]
    rows = np.vstack([reference.inputs, traffic.inputs[some]])
    labels = np.concatenate([reference.labels, traffic.labels[some]])
    answers = np.zeros((len(rows), classes))
    answers[np.arange(len(rows)), np.clip(labels, 0, classes - 1)] = 1.0
    if reference.probabilities.shape[1] == classes == traffic.probabilities.shape[1]:
        likely = np.vstack([reference.probabilities, traffic.probabilities[some]]).astype(np.float64)
        told = np.isfinite(likely).all(1)
        answers[told] = likely[told]
    first = first_of_each(rows)
    first = first[(labels[first] >= 0) & (labels[first] < classes)]
    return rows[first], answers[first]


def _learners(domain: Domain, wide: bool) -> tuple[Learner, ...]:
    """What thieves train: equations for linear models, a smooth interpolator, trees (of no use on embeddings, and slow there)."""

    def equations(rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
        return _linear(domain, rows, answers)

    def smooth(rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
        return _kernel(domain, rows, answers, rng)

    return (equations, smooth) if wide else (equations, smooth, _trees)


def _log_odds(answers: Rows, least: float) -> Rows:
    logs = np.log(np.clip(answers, least, 1.0))
    centred: Rows = logs - logs.mean(1, keepdims=True)
    return centred


def _linear(domain: Domain, rows: Rows, answers: Rows) -> Predict:
    """Log odds as linear equations (Tramèr et al., USENIX 2016, §4.1): exact once a linear model's unknowns are outnumbered."""

    def design(x: Rows) -> Rows:
        return np.hstack([domain.standardise(x), np.ones((len(x), 1))])

    a = design(rows)
    weights = np.linalg.solve(
        a.T @ a + 1e-4 * len(rows) * np.eye(a.shape[1]) / a.shape[1], a.T @ _log_odds(answers, 1e-6)
    )
    return lambda x: design(x) @ weights


def _kernel(domain: Domain, rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
    """Kernel ridge regression of the log odds; the width is the median distance of two rows."""
    z = domain.standardise(rows)[:MOST_ROWS]
    some = z[rng.permutation(len(z))[:256]]
    width = max(float(np.median(_squared(some, some)[np.triu_indices(len(some), 1)])) if len(some) > 1 else 1.0, 1e-9)
    weights = np.linalg.solve(
        np.exp(-_squared(z, z) / width) + 1e-2 * np.eye(len(z)), _log_odds(answers[: len(z)], 1e-3)
    )
    return lambda x: np.exp(-_squared(domain.standardise(x), z) / width) @ weights


def _squared(a: Rows, b: Rows) -> Rows:
    out: Rows = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * a @ b.T, 0.0)
    return out


def _trees(rows: Rows, answers: Rows, rng: np.random.Generator) -> Predict:
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(TREES, max_features=0.5, random_state=int(rng.integers(2**31)), n_jobs=1)
    forest.fit(rows, answers)

    def predict(asked: Rows) -> Rows:
        out: Rows = np.asarray(forest.predict(asked), np.float64).reshape(len(asked), -1)
        return np.log(np.maximum(out, 1e-6))

    return predict


def _agreement(
    learner: Learner, rows: Rows, answers: Rows, test: Rows, truth: NDArray[np.int64], rng: np.random.Generator
) -> float:
    """Fidelity of one copy. A copy of one answer only knows that answer."""
    return float((learner(rows, answers, rng)(test).argmax(1) == truth).mean())


def _likely_answers(scores: Predict) -> Predict:
    """A stand-in's probabilities out of a learner's scores."""

    def answer(rows: Rows) -> Rows:
        raw = scores(rows)
        likely = np.exp(raw - raw.max(1, keepdims=True))
        out: Rows = likely / likely.sum(1, keepdims=True)
        return out

    return answer


def batch_of(rows: Rows, answers: Rows) -> QueryBatch:
    """(n, d) rows and their (n, c) answers as the queries of one client."""
    n = len(rows)
    return QueryBatch(
        ["rehearsal"], np.zeros(n, np.int32), np.ascontiguousarray(rows), answers.argmax(1).astype(np.int32), answers.astype(np.float32),
        np.full(n, np.nan), np.zeros(n, np.int64), np.ones(n, np.float32), np.arange(n),
    )  # fmt: skip
