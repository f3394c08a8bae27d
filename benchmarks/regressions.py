"""Three models that answer with a number, on data of the other victims, and what copies of them are worth.

Rules of the file:

* A model answers with a value; honest clients and thieves of the simulation are told the two probabilities whose log odds it is, in units
  of the range that holds nine of ten answers (`detector/simulation/answers.py`). The log holds the value alone.
* A copy agrees with the model at a row if its value is no further off than a tenth of that range. Copies learn from values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.victims import Recipe, Victim, dealt, health_visits, segments, shuttle_values
from detector.query import UNKNOWN_LABEL, QueryBatch
from detector.simulation.answers import HELD, TOLERANCE
from detector.simulation.copies import Surrogate, softmax
from detector.simulation.domain import Rows


class Regressor:
    """A regression behind the face of a classifier of two classes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.middle, self.unit = 0.0, 1.0

    def fit(self, rows: Rows, values: Rows) -> Regressor:
        self.model.fit(rows, values)
        told = np.asarray(self.model.predict(rows), np.float64)
        low, high = np.quantile(told, HELD).tolist()
        self.middle, self.unit = float(np.median(told)), high - low
        return self

    def predict(self, rows: Rows) -> Rows:
        return (self.predict_proba(rows)[:, 1] > 0.5).astype(np.float64)

    def predict_proba(self, rows: Rows) -> Rows:
        odds = (np.asarray(self.model.predict(rows), np.float64) - self.middle) / self.unit
        return softmax(np.column_stack([np.zeros(len(odds)), odds]))


@dataclass(frozen=True)
class Valued(Victim):
    """A victim that answers with a number."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", replace(self.schema, task="regression", labels=()))

    def batch(self, clients: list[str], who: Any, rows: Rows, times_s: Rows, answers: Rows) -> QueryBatch:
        n = len(rows)
        values = self.model.middle + self.model.unit * odds_of(answers)
        return QueryBatch(
            clients, who, rows, np.full(n, UNKNOWN_LABEL, np.int32), np.empty((n, 0), np.float32), values,
            np.round(times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n, dtype=np.int64),
        )  # fmt: skip


def _network(units: int, rounds: int) -> Any:
    network = MLPRegressor(hidden_layer_sizes=(units,), max_iter=rounds, random_state=0)
    return make_pipeline(StandardScaler(), network)


def odds_of(answers: Rows) -> Rows:
    """The log odds of two classes, (n, 2) → (n,)."""
    out: Rows = np.log(answers[:, 1]) - np.log(answers[:, 0])
    return out


REGRESSIONS: dict[str, Recipe] = {
    "segments-value": Recipe("numbers, linear regression", lambda: _column(segments(), 9), lambda: Regressor(Ridge()),
                             lambda: shuttle_values()[0], victim=Valued),
    "shuttle-value": Recipe("whole numbers, regression by boosted trees", shuttle_values,
                            lambda: Regressor(HistGradientBoostingRegressor(max_iter=40, random_state=0)), lambda: segments()[0],
                            victim=Valued),
    "health-value": Recipe("codes and numbers, regression by a network", health_visits, lambda: Regressor(_network(48, 60)),
                           lambda: shuttle_values()[0], victim=Valued),
}  # fmt: skip


def _column(data: tuple[Rows, Any, Any], column: int) -> tuple[Rows, Rows, Any]:
    """The other columns of a data set, and this one as what is to be predicted."""
    rows, _, codes = data
    return np.delete(rows, column, 1), rows[:, column], np.delete(codes, column)


def build_regression(name: str) -> Valued:
    """Train a model of `REGRESSIONS` and deal out its items. Raises KeyError for an unknown one."""
    victim = dealt(name, REGRESSIONS[name])
    assert isinstance(victim, Valued)
    return victim


def _units(victim: Victim) -> Callable[[Rows, Rows], Callable[[Rows], Rows]]:
    def learn(rows: Rows, odds: Rows) -> Callable[[Rows], Rows]:
        answers = softmax(np.column_stack([np.zeros(len(odds)), odds]))
        copy = Surrogate(victim.domain, np.random.default_rng(0)).fit(rows, answers)
        return lambda x: np.diff(copy.scores(x), axis=1)[:, 0]

    return learn


def best_value_copy(victim: Valued, rows: Rows, answers: Rows) -> float:
    """Share of held rows on which the best of four copies lies near the victim's value."""
    odds, truth = odds_of(answers), odds_of(victim.predict(victim.held))
    learners: tuple[Callable[[], Any], ...] = (
        lambda: make_pipeline(StandardScaler(), LinearRegression()),
        lambda: ExtraTreesRegressor(40, max_features=0.5, random_state=0, n_jobs=1),
        lambda: _network(64, 200),
    )
    copies = [learner().fit(rows, odds).predict for learner in learners] + [_units(victim)(rows, odds)]
    return max(float((np.abs(copy(victim.held) - truth) <= TOLERANCE).mean()) for copy in copies)
