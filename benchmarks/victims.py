"""Ten victims on real data that comes inside installed packages, with items dealt out disjointly.

Rules of the file:

* Nothing is fetched: rows are read from files inside scikit-learn, statsmodels and river, and sentences from the docstrings
  of SciPy, Matplotlib and NumPy. No package is imported for its data.
* Every item is in one share only: the victim's training, the reference, one of `GROUPS` honest pools (which of them calibrate
  and which test is up to the split), the cover of diluted thefts, the thieves' own rows, a hold-out for fidelity.
* Foreign rows are real rows of another data set, mapped to the victim's columns.
* A victim answers as its log shows it: probabilities of six decimals, or a label only.
"""

from __future__ import annotations

import csv
import gzip
import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits, load_sample_images
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.inside import inside
from benchmarks.real_items import RealItems
from benchmarks.texts import corpus, played
from detector.features import Column, Schema, infer_grain
from detector.query import QueryBatch
from detector.simulation.domain import Domain, Generate, HonestPools, Rows

Labels = NDArray[np.int64]
GROUPS = 4
EPOCHS = 10
"""Stages of training that are kept of a neural victim, for hardness."""


@dataclass(frozen=True)
class Victim:
    """A trained model with its reference and the shares of the items.

    pools      one a group of honest clients; `thieves` those of thefts: cover, own rows, foreign rows
    reference  (n, d) rows, and `held` (h, d) rows that nobody else has, for fidelity
    stages     earlier states of the model, for HODA; empty where it was not trained step by step
    """

    name: str
    text: str
    schema: Schema
    domain: Domain
    model: Any
    reference: Rows
    pools: tuple[HonestPools, ...]
    thieves: HonestPools
    held: Rows
    label_only: bool = False
    stages: tuple[Any, ...] = ()

    def predict(self, rows: Rows) -> Rows:
        """(n, d) → (n, c) probabilities as a client sees them: a one-hot label where the answer is a label only."""
        likely = np.asarray(self.model.predict_proba(rows), dtype=np.float64).round(6)
        return np.eye(likely.shape[1])[likely.argmax(axis=1)] if self.label_only else likely

    def batch(self, clients: list[str], who: NDArray[np.int32], rows: Rows, times_s: Rows, answers: Rows) -> QueryBatch:
        """Queries as the decoder would give them."""
        hidden = np.full(answers.shape, np.nan) if self.label_only else answers
        n = len(rows)
        return QueryBatch(
            clients, who, rows, answers.argmax(axis=1).astype(np.int32), hidden.astype(np.float32), np.full(n, np.nan),
            np.round(times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n, dtype=np.int64),
        )  # fmt: skip

    def hardness(self, rows: Rows) -> Labels:
        """(n,) first stage of training from which on the label stays what it is in the end (0 to `EPOCHS` - 1)."""
        labels = np.stack([stage.predict(rows) for stage in self.stages])
        stays = np.logical_and.accumulate((labels == labels[-1])[::-1], axis=0)[::-1]
        return np.asarray(stays.argmax(axis=0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Recipe:
    """data: → rows (n, d), labels (n,), codes (d,) bool; model: an estimator; foreign: → rows of any width.

    reference  most rows of it (a small data set gives a fifth); most: items used; seed: deals the items out otherwise
    played     who owns such rows → honest kinds that are played in a way of their own
    victim     how it answers
    halves     the first two groups share one pool and so do the others; they hold items beyond `most` too; no honest query is a blend
    """

    text: str
    data: Callable[[], tuple[Rows, NDArray[Any], NDArray[np.bool_]]]
    model: Callable[[], Any]
    foreign: Callable[[], Rows]
    reference: int = 1000
    label_only: bool = False
    most: int = 9000
    embedding: bool = False
    seed: int = 0
    played: Callable[[Rows], Mapping[str, Generate]] = lambda rows: {}
    victim: type[Victim] = Victim
    halves: bool = False


def build(name: str) -> Victim:
    """Train a victim of `VICTIMS` and deal out its items. Raises KeyError for an unknown one."""
    return dealt(name, VICTIMS[name])


def dealt(name: str, recipe: Recipe) -> Victim:
    """Train the victim of a recipe and deal out its items."""
    rng = np.random.default_rng([recipe.seed, *name.encode()])
    rows, labels, codes = recipe.data()
    order = rng.permutation(len(rows))
    left = np.array_split(rows[order[recipe.most :]], 2)
    rows, labels = rows[order[: recipe.most]], labels[order[: recipe.most]]
    reference_share = min(0.2, recipe.reference / len(rows))
    shares = {"train": 0.25, "reference": reference_share, "cover": 0.06, "own": 0.12, "held": 0.08}
    shares |= {f"group{g}": (1.0 - sum(shares.values())) / GROUPS for g in range(GROUPS)}
    ends = np.round(np.cumsum([0.0, *shares.values()]) * len(rows)).astype(int)
    part = {share: slice(ends[i], ends[i + 1]) for i, share in enumerate(shares)}
    domain = Domain.of(rows[part["reference"]], codes if codes.any() else None)
    model, stages = _trained(recipe.model(), rows[part["train"]], labels[part["train"]])
    own, foreign = domain.emit(rows[part["own"]]), _mapped(recipe.foreign(), domain, rng)

    def pools(items: Rows, of: type[HonestPools] = HonestPools) -> HonestPools:
        pool = domain.emit(items)
        classes = np.asarray(model.predict(pool), dtype=np.int64)
        return of(domain, pool, classes, own, foreign, played=recipe.played(items))

    groups = [rows[part[f"group{g}"]] for g in range(GROUPS)]
    thieves = pools(rows[part["cover"]], RealItems if recipe.halves else HonestPools)
    if recipe.halves:
        halves = (pools(np.vstack([*groups[2 * h : 2 * h + 2], left[h]]), RealItems) for h in range(2))
        honest = [half for half in halves for _ in range(GROUPS // 2)]
    else:
        honest = [pools(group) for group in groups]
    return recipe.victim(
        name, recipe.text, _schema(rows[part["reference"]], codes, domain, int(labels.max()) + 1, recipe.embedding), domain, model,
        domain.emit(rows[part["reference"]]), tuple(honest), thieves,
        domain.emit(rows[part["held"]]), recipe.label_only, stages,
    )  # fmt: skip


def _trained(model: Any, rows: Rows, labels: Labels) -> tuple[Any, tuple[Any, ...]]:
    """The fitted model; a network is trained in `EPOCHS` stages that are kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not isinstance(model, MLPClassifier):
            return model.fit(rows, labels), ()
        stages = []
        for stage in range(EPOCHS):
            model.set_params(warm_start=True, max_iter=1 + 2 * stage)
            model.fit(rows, labels)
            stages.append(_frozen(model))
        return model, tuple(stages)


def _frozen(model: MLPClassifier) -> MLPClassifier:
    still = MLPClassifier()
    still.__dict__.update(model.__dict__)
    still.coefs_, still.intercepts_ = [c.copy() for c in model.coefs_], [b.copy() for b in model.intercepts_]
    return still


def _schema(reference: Rows, codes: NDArray[np.bool_], domain: Domain, classes: int, embedding: bool) -> Schema:
    """Columns as `querywarden fit` infers them: whole numbers stay numbers, a code too, unless a schema is declared."""
    kind = "embedding" if embedding else "numeric"
    rows = domain.emit(reference)
    columns = tuple(
        Column(f"c{j}", kind, float(c.min()), float(c.max()), 0.0 if embedding else infer_grain(c))
        for j, c in enumerate(rows.T)
    )
    return Schema(
        columns, "embedding" if embedding else "features", False, "classification", tuple(map(str, range(classes)))
    )


def _mapped(rows: Rows, domain: Domain, rng: np.random.Generator, most: int = 2000) -> Rows:
    """Rows of another data set in this one's columns: drawn columns, stretched to the accepted range where widths differ."""
    rows = rows[rng.permutation(len(rows))[:most]]
    if rows.shape[1] != domain.width or not domain.homogeneous:
        rows = rows[:, rng.choice(rows.shape[1], size=domain.width, replace=rows.shape[1] < domain.width)]
        low, high = np.quantile(rows, [0.01, 0.99], axis=0)
        rows = domain.low + (rows - low) / np.maximum(high - low, 1e-9) * (domain.high - domain.low)
    return rng.permutation(np.unique(domain.emit(rows), axis=0))


# ---------------------------------------------------------------------------------------------------- real data


def _table(text: str, delimiter: str = ",") -> tuple[list[str], list[list[str]]]:
    head, *body = csv.reader(io.StringIO(text), delimiter=delimiter)
    return head, [line for line in body if line]


def digits() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    rows, labels = load_digits(return_X_y=True)
    return rows / 16, labels, np.zeros(64, bool)


@cache
def patches() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """8 × 8 grey patches of two photographs, none overlapping; the class is photograph and upper or lower half."""
    rng, rows, labels = np.random.default_rng(5), [], []
    for photo, image in enumerate(load_sample_images().images):
        grey = image.mean(axis=2)
        places = [(i, j) for i in range(0, len(grey) - 8, 8) for j in range(0, grey.shape[1] - 8, 8)]
        for i, j in (places[k] for k in rng.permutation(len(places))):
            rows.append(np.round(grey[i : i + 8, j : j + 8] / 255 * 16).ravel() / 16)
            labels.append(2 * photo + int(i >= len(grey) // 2))
    return np.array(rows), np.array(labels), np.zeros(64, bool)


def tumour() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    rows, labels = load_breast_cancer(return_X_y=True)
    return rows, labels, np.zeros(30, bool)


@cache
def segments() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """Outdoor image regions (UCI), 18 numbers, seven classes; rounded to four decimals as a service would log them."""
    with zipfile.ZipFile(inside("river", "datasets/segment.csv.zip")) as archive:
        _, body = _table(archive.read(archive.namelist()[0]).decode())
    names = sorted({line[-1] for line in body})
    rows = np.array([[float(v) for v in line[:-1]] for line in body]).round(4)
    return rows, np.array([names.index(line[-1]) for line in body]), np.zeros(rows.shape[1], bool)


@cache
def shuttle_values() -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """Space shuttle sensors (UCI), normal operation: eight whole numbers, and a ninth."""
    _, body = _table(gzip.decompress(inside("river", "datasets/shuttle.csv.gz").read_bytes()).decode())
    values = np.array([[float(v) for v in line] for line in body])
    kept = values[values[:, -1] == 0]
    return kept[:, :8], kept[:, 8], np.zeros(8, bool)


def shuttle() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """The class is the third in which the ninth sensor lies."""
    rows, ninth, codes = shuttle_values()
    return rows, np.digitize(ninth, [2, 24]), codes


@cache
def affairs() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """Fair's survey (1978): eight columns, most of them codes; was there an affair?"""
    _, body = _table(inside("statsmodels", "datasets/fair/fair.csv").read_text())
    values = np.array([[float(v) for v in line] for line in body])
    return values[:, :-1], (values[:, -1] > 0).astype(np.int64), np.array([1, 0, 0, 0, 1, 0, 1, 1], bool)


@cache
def health_visits() -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """RAND health insurance experiment: nine columns, codes and numbers; visits to a doctor."""
    _, body = _table(inside("statsmodels", "datasets/randhie/randhie.csv").read_text())
    values = np.array([[float(v) for v in line] for line in body])
    return values[:, 1:].round(3), values[:, 0], np.array([0, 1, 0, 0, 1, 0, 1, 1, 1], bool)


def health() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """No, a few or many visits."""
    rows, visits, codes = health_visits()
    return rows, np.digitize(visits, [1, 4]), codes


def texts() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    known = corpus()
    return known.rows, known.labels, np.zeros(known.rows.shape[1], bool)


# ------------------------------------------------------------------------------------------------------ victims


def network() -> MLPClassifier:
    return MLPClassifier((48,), random_state=0, learning_rate_init=0.004, batch_size=64)


def linear() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


VICTIMS: dict[str, Recipe] = {
    "digits": Recipe("images, network", digits, network, lambda: patches()[0], reference=400),
    "digits-250": Recipe("images, forest, reference of 250", digits, lambda: RandomForestClassifier(25, random_state=0),
                         lambda: patches()[0], reference=250, seed=1),
    "patches": Recipe("photograph patches, network", patches, network, lambda: digits()[0]),
    "tumour": Recipe("numbers, linear, 569 rows in all", tumour, linear, lambda: segments()[0], reference=114),
    "segments": Recipe("numbers, extra trees", segments, lambda: ExtraTreesClassifier(25, random_state=0), lambda: shuttle()[0]),
    "shuttle": Recipe("whole numbers, boosted trees", shuttle,
                      lambda: HistGradientBoostingClassifier(max_iter=40, random_state=0), lambda: segments()[0]),
    "affairs": Recipe("codes and numbers, forest", affairs, lambda: RandomForestClassifier(25, min_samples_leaf=3, random_state=0),
                      lambda: health()[0]),
    "affairs-labels": Recipe("codes and numbers, label only, reference of 250", affairs, linear, lambda: health()[0],
                             reference=250, label_only=True, seed=1),
    "health": Recipe("codes and numbers, boosted trees", health,
                     lambda: HistGradientBoostingClassifier(max_iter=60, random_state=0), lambda: affairs()[0]),
    "texts": Recipe("text embeddings, linear", texts, lambda: LogisticRegression(C=20.0, max_iter=500), lambda: corpus().foreign,
                    embedding=True, played=played),
}  # fmt: skip
