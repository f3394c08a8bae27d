"""How far the estimate of exposure is from what copies reach: real copies of thirteen models, at growing numbers of queries.

    python -m benchmarks.exposure [--short] [--victims digits,tumour]

Rules of the file:

* The estimator learns as `fit` lets it: from a reference and honest traffic with the victim's answers. It never asks the victim.
* A theft asks the victim. At each of `Plan.ends` queries six kinds of copies are trained on its answers (`COPIES`); the truth is the best
  copy's agreement with the victim on rows that nobody else has, for a thief would keep the best one.
* Three models answer with a number (`regressions.py`).
* Victims take no part in one another. Families that the rehearsal knows and those that it does not are told apart.
* The control is a curve over the number of queries alone, fitted on the very same rehearsed thefts: what a query counter would say.
* Figures are kept a point each (victim, family, queries, truth, estimate, interval); pooling is for whoever reads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import progress
from benchmarks.exposure_tables import RESULTS, Point, measured
from benchmarks.ours import HALF_HORIZON_MS, KEY, Tested, as_batch, reference_of
from benchmarks.regressions import REGRESSIONS, Valued, best_value_copy, build_regression
from benchmarks.victims import VICTIMS, Victim, build
from detector.exposure import REGRESSORS, Estimator, describe, estimate
from detector.fitting.feature_map import fit_feature_map
from detector.profile_table import ProfileTable
from detector.signals import signal_table
from detector.simulation.attacks import AttackerKnowledge, steal
from detector.simulation.copies import Surrogate
from detector.simulation.domain import Rows
from detector.simulation.population import simulated_population
from detector.simulation.rehearsal import FAMILIES, rehearsed_points

Labels = NDArray[np.int64]


FAMILIES_TRIED = (
    "noise_uniform",
    "permuted",
    "knockoff_random",
    "knockoff_adaptive",
    "copycat",
    "jbda",
    "line_search",
    "equation_solving",
    "active_kcenter",
    "mixup",
    "data_free",
    "in_domain",
)


@dataclass(frozen=True)
class Plan:
    """What is run. clients: honest ones that the fit sees; tested: honest ones whose copies are trained too."""

    victims: tuple[str, ...] = (*VICTIMS, *REGRESSIONS)
    families: tuple[str, ...] = FAMILIES_TRIED
    ends: tuple[int, ...] = (30, 300)
    clients: int = 100
    tested: int = 5
    seed: int = 2026


SHORT = Plan(victims=("tumour",), families=("noise_uniform", "in_domain", "equation_solving"), ends=(20, 100), tested=2)


# ------------------------------------------------------------------------------------------------------------- copies


def _equations(victim: Victim, rows: Rows, answers: Rows) -> Callable[[Rows], Rows]:
    """Log odds as linear equations, all alike."""
    logs = np.log(np.clip(answers, 1e-6, 1.0))
    model = make_pipeline(StandardScaler(), LinearRegression()).fit(rows, logs - logs.mean(1, keepdims=True))
    return lambda x: np.asarray(model.predict(x))


def _weighted_equations(victim: Victim, rows: Rows, answers: Rows) -> Callable[[Rows], Rows]:
    """Log odds against the commonest class, weighted by what rounding leaves of them."""
    scale = StandardScaler().fit(rows)
    likely, common = np.clip(answers, 1e-6, 1.0), int(answers.sum(0).argmax())
    models = []
    for column in likely.T:
        sure = column * likely[:, common] / (column + likely[:, common])
        odds = np.log(column / likely[:, common])
        models.append(Ridge(1e-6 * float(sure.sum())).fit(scale.transform(rows), odds, sample_weight=sure))
    return lambda x: np.stack([m.predict(scale.transform(x)) for m in models], axis=1)


def _logistic(victim: Victim, rows: Rows, answers: Rows) -> Callable[[Rows], Rows]:
    """Logistic regression on the labels."""
    labels = answers.argmax(1)
    if len(np.unique(labels)) < 2:
        return lambda x: np.tile(answers[0], (len(x), 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200)).fit(rows, labels)
    return lambda x: np.eye(answers.shape[1])[np.asarray(model.predict(x), int)]


def _trees(victim: Victim, rows: Rows, answers: Rows) -> Callable[[Rows], Rows]:
    model = ExtraTreesRegressor(40, max_features=0.5, random_state=0, n_jobs=1).fit(rows, answers)
    return lambda x: np.asarray(model.predict(x))


def _network(victim: Victim, rows: Rows, answers: Rows) -> Callable[[Rows], Rows]:
    model = make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(64,), max_iter=60, random_state=0)).fit(
        rows, answers
    )
    return lambda x: np.asarray(model.predict(x))


def _random_units(victim: Victim, rows: Rows, answers: Rows) -> Callable[[Rows], Rows]:
    return Surrogate(victim.domain, np.random.default_rng(0)).fit(rows, answers).scores


COPIES = {
    "equations": _equations,
    "weighted equations": _weighted_equations,
    "logistic": _logistic,
    "trees": _trees,
    "network": _network,
    "random units": _random_units,
}


def best_copy(victim: Victim, rows: Rows, answers: Rows, truth: Labels) -> float:
    """Share of held rows on which the best copy says what the victim says."""
    if isinstance(victim, Valued):
        return best_value_copy(victim, rows, answers)
    return max(float((copy(victim, rows, answers)(victim.held).argmax(1) == truth).mean()) for copy in COPIES.values())


# ------------------------------------------------------------------------------------------------------------- points


def points_of(name: str, plan: Plan) -> list[Point]:
    """Every point of one victim."""
    victim = build(name) if name in VICTIMS else build_regression(name)
    rng = np.random.default_rng([plan.seed, *name.encode()])
    honest = [
        Tested(s, group, victim.predict(s.inputs), {})
        for group, many in ((0, plan.clients), (1, plan.tested))
        for s in simulated_population(victim.pools[group], victim.predict, rng, clients=many)
    ]
    reference, traffic = reference_of(victim), as_batch(victim, [c for c in honest if c.group == 0])
    feature_map = fit_feature_map(victim.schema, reference.inputs, reference.labels, reference.probabilities, rng)
    rehearsed = rehearsed_points(feature_map, reference, traffic, rng)
    if rehearsed is None:
        raise ValueError(f"{name}: the rehearsal was refused")
    estimator = Estimator.fit(rehearsed.described, rehearsed.fidelity, rehearsed.family, rehearsed.usual)
    counter = Estimator.fit(counted(rehearsed.described), rehearsed.fidelity, rehearsed.family, rehearsed.usual)
    truth = victim.predict(victim.held).argmax(1)
    knowledge = AttackerKnowledge(victim.thieves.domain, victim.thieves.own, victim.thieves.foreign)
    asked = [("honest", c.stream.inputs[: max(plan.ends)]) for c in honest if c.group == 1]
    for family, child in zip(plan.families, rng.spawn(len(plan.families)), strict=True):
        asked.append((family, steal(family, knowledge, victim.predict, max(plan.ends), child)))
    found = []
    for family, rows in asked:
        answers = victim.predict(rows)
        table = ProfileTable(feature_map, signal_table(), "0" * 16, half_horizon_ms=HALF_HORIZON_MS)
        done = 0
        for end in sorted({min(end, len(rows)) for end in plan.ends}):
            part = slice(done, end)
            n = end - done
            batch = victim.batch(["c"], np.zeros(n, np.int32), rows[part], np.zeros(n), answers[part])
            table.add([0], batch, feature_map.measure(batch, KEY))
            done = end
            profile = table.profile(0)
            if (told := estimate(profile, feature_map, estimator)) is not None:
                described = counted(describe(profile, feature_map, estimator.usual)[None])[0]
                real = best_copy(victim, rows[:end], answers[:end], truth)
                control = counter.estimate(described).fidelity
                found.append(Point(name, family, end, real, told.fidelity, told.low, told.high, control))
    return found


def counted(described: Rows) -> Rows:
    """(p, f) descriptions in which nothing but the number of distinct queries is left: what the control knows."""
    kept = [REGRESSORS.index(name) for name in ("one", "distinct", "distinct_after_30", "distinct_after_300")]
    out = np.zeros_like(described)
    out[:, kept] = described[:, kept]
    return out


# ------------------------------------------------------------------------------------------------------------ figures


def figures(points: list[Point]) -> dict[str, Any]:
    """What the table shows, and the rank correlation and bias, to three decimals."""
    truth, told = (np.array([getattr(p, f) for p in points]) for f in ("truth", "fidelity"))
    found = measured(points) | {"bias": (told - truth).mean(), "rank_correlation": spearmanr(told, truth)[0]}
    return {"points": len(points)} | {name: round(float(value), 3) for name, value in found.items()}


def main() -> None:
    warnings.filterwarnings("ignore", category=ConvergenceWarning)
    warnings.filterwarnings("ignore", module="sklearn")
    parser = argparse.ArgumentParser(description="Estimated exposure against real copies.")
    parser.add_argument("--short", action="store_true", help="one victim: under a minute, prints only")
    parser.add_argument("--victims", help="comma-separated names")
    parser.add_argument("--out", type=Path, help="where the figures go (default: benchmarks/results/exposure.json)")
    arguments = parser.parse_args()
    plan = SHORT if arguments.short else Plan()
    if arguments.victims:
        plan = replace(plan, victims=tuple(arguments.victims.split(",")))
    points: list[Point] = []
    for name in plan.victims:
        began = time.process_time()
        points += points_of(name, plan)
        own = [p for p in points if p.victim == name]
        progress.say(name, f"{time.process_time() - began:.0f} s CPU, {figures(own)}")
    known = [p for p in points if p.family in FAMILIES or p.family == "honest"]
    other = [p for p in points if p not in known]
    summary = {"all": figures(points), "rehearsed families": figures(known), "other families": figures(other)}
    print(json.dumps(summary, indent=1))
    out = arguments.out or (None if arguments.short or arguments.victims else RESULTS)
    if out:
        out.write_text(
            json.dumps({"plan": asdict(plan), "summary": summary, "points": [asdict(p) for p in points]}) + "\n"
        )


if __name__ == "__main__":
    main()
