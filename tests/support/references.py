"""Small references, and streams over them, for the tests of the core.

A map is fitted once a session (`fitted_map`, `fitted_baseline` are cached) with few boosting rounds and one thread: the tests are
about what is done with trees, not about how good they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_digits

from detector.baseline import Baseline
from detector.features import DISTANCE_BINS, ODD, REGIONS, Column, FeatureMap, Measured, Schema, infer_grain
from detector.fitting import discriminators
from detector.fitting.baseline import fit_baseline
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import UNKNOWN_LABEL, Misfit, QueryBatch

Rows = NDArray[np.float64]
KEY = bytes(range(16))
DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
ROUNDS = 5
FOREVER = 2**62


@dataclass(frozen=True)
class Reference:
    """Honest inputs of one model with its answers, and honest traffic drawn from the same population."""

    name: str
    schema: Schema
    batch: QueryBatch
    traffic: QueryBatch


def schema_of(x: Rows, labels: Sequence[str], categories: dict[int, int] | None = None, **changes: object) -> Schema:
    """Schema as `fit` infers it; categories: column → number of levels."""
    columns = []
    for j, values in enumerate(x.T):
        levels = (categories or {}).get(j, 0)
        if levels:
            names = tuple(f"level {k}" for k in range(levels))
            columns.append(Column(f"x{j}", "categorical", 0.0, levels - 1.0, 1.0, names))
        else:
            columns.append(Column(f"x{j}", "numeric", float(values.min()), float(values.max()), infer_grain(values)))
    schema = Schema(tuple(columns), "features", False, "classification" if labels else "regression", tuple(labels))
    return replace(schema, **changes) if changes else schema  # type: ignore[arg-type]


def answers(x: Rows, classes: int) -> NDArray[np.float32]:
    """A fixed smooth model over standardised columns, (n, classes) probabilities."""
    z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    logits = z @ np.random.default_rng(11).normal(size=(x.shape[1], classes)) / np.sqrt(x.shape[1]) * 2
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True), np.float32)


def batch_of(
    inputs: Rows,
    *,
    who: NDArray[np.int32] | None = None,
    labels: NDArray[np.int32] | None = None,
    probabilities: NDArray[np.float32] | None = None,
    time_ms: NDArray[np.int64] | None = None,
    weight: NDArray[np.float32] | None = None,
) -> QueryBatch:
    """A batch over inputs (n, d); by default one client, no answers, a query a second."""
    n = len(inputs)
    who = np.zeros(n, np.int32) if who is None else who
    return QueryBatch(
        clients=[f"client {k}" for k in range(int(who.max(initial=-1)) + 1)],
        who=who,
        inputs=np.ascontiguousarray(inputs, np.float64),
        labels=np.full(n, UNKNOWN_LABEL, np.int32) if labels is None else labels,
        probabilities=np.zeros((n, 0), np.float32) if probabilities is None else probabilities,
        values=np.full(n, np.nan),
        time_ms=START_MS + 1000 * np.arange(n, dtype=np.int64) if time_ms is None else time_ms,
        weight=np.ones(n, np.float32) if weight is None else weight,
        offsets=np.arange(n, dtype=np.int64),
    )


def answered(x: Rows, classes: int, who: NDArray[np.int32] | None = None) -> QueryBatch:
    p = answers(x, classes)
    return batch_of(x, who=who, labels=p.argmax(1).astype(np.int32), probabilities=p)


def honest(x: Rows, rng: np.random.Generator, clients: int = 40, rows: int = 50) -> tuple[Rows, NDArray[np.int32]]:
    """Clients who ask about rows of the population, some of them again and again."""
    picked = [x[rng.integers(0, len(x), max(2, int(rows * rng.uniform(0.2, 1))))] for _ in range(clients)]
    who = np.repeat(np.arange(clients), [len(p) for p in picked]).astype(np.int32)
    order = rng.permutation(len(who))
    return np.concatenate(picked)[order], who[order]


def people(n: int, rng: np.random.Generator) -> tuple[Rows, dict[int, int]]:
    """14 columns: whole numbers, cents, a mostly empty one, continuous ones, two constant ones, five categories."""
    age = rng.integers(17, 91, n)
    wealth = rng.gamma(2.0, 2.0, n)
    columns = [
        age,
        np.clip(np.rint(40 + 10 * rng.normal(size=n)), 1, 99),
        np.where(rng.random(n) < 0.9, 0, rng.integers(100, 99_999, n)),
        np.round(wealth * 20 + age, 2),
        wealth + 0.1 * rng.normal(size=n),
        rng.normal(size=n) * 3 + age / 10,
        np.exp(rng.normal(size=n)),
        np.full(n, 7.0),
        np.full(n, 0.1234567),
        *(rng.integers(0, levels, n) for levels in (2, 2, 5, 8)),
        np.minimum(age // 12, 6),
    ]
    return np.stack(columns, axis=1).astype(np.float64), {9: 2, 10: 2, 11: 5, 12: 8, 13: 7}


def embeddings(n: int, d: int, rng: np.random.Generator) -> Rows:
    """Unit rows of a 12-dimensional population in d columns."""
    axes = np.random.default_rng(5).normal(size=(12, d))
    x = rng.normal(size=(n, 12)) * np.geomspace(1, 0.2, 12) @ axes + 0.02 * rng.normal(size=(n, d))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def _people() -> Reference:
    x, categories = people(650, np.random.default_rng(1))
    more, who = honest(x[250:], np.random.default_rng(2))
    schema = schema_of(x[:250], ("no", "yes"), categories)
    return Reference("people", schema, answered(x[:250], 2), answered(more, 2, who))


def _digits() -> Reference:
    x = load_digits().data / 16
    more, who = honest(x[600:], np.random.default_rng(3))
    schema = schema_of(x[:600], tuple("0123456789"))
    return Reference("digits", schema, answered(x[:600], 10), answered(more, 10, who))


def _cancer() -> Reference:
    """Labels only."""
    x = load_breast_cancer().data
    more, who = honest(x[250:], np.random.default_rng(4))

    def only_labels(batch: QueryBatch) -> QueryBatch:
        return replace(batch, probabilities=np.full((len(batch), 2), np.nan, np.float32))

    schema = schema_of(x[:250], ("benign", "malignant"))
    return Reference("cancer", schema, only_labels(answered(x[:250], 2)), only_labels(answered(more, 2, who)))


def _prices() -> Reference:
    """A regression: no label, no probabilities, a value."""
    rng = np.random.default_rng(6)
    x = np.round(rng.normal(size=(650, 6)) @ rng.normal(size=(6, 6)), 3)
    more, who = honest(x[250:], rng)
    reference, traffic = batch_of(x[:250]), batch_of(more, who=who)
    reference.values, traffic.values = x[:250].sum(1), more.sum(1)
    return Reference("prices", schema_of(x[:250], ()), reference, traffic)


def _texts() -> Reference:
    """Wide: 96 embedding columns."""
    x = embeddings(650, 96, np.random.default_rng(7))
    more, who = honest(x[250:], np.random.default_rng(8))
    schema = schema_of(x[:250], ("a", "b", "c"), input_form="embedding")
    embedded = tuple(replace(c, kind="embedding", grain=0.0) for c in schema.columns)
    return Reference("texts", replace(schema, columns=embedded), answered(x[:250], 3), answered(more, 3, who))


_MAKERS: dict[str, Callable[[], Reference]] = {
    "people": _people,
    "digits": _digits,
    "cancer": _cancer,
    "prices": _prices,
    "texts": _texts,
}
REFERENCES = tuple(_MAKERS)


@contextmanager
def quick_training() -> Iterator[None]:
    before = discriminators.ROUNDS
    discriminators.ROUNDS = ROUNDS
    try:
        yield
    finally:
        discriminators.ROUNDS = before


@functools.cache
def reference_of(name: str) -> Reference:
    return _MAKERS[name]()


@functools.cache
def fitted_baseline(name: str) -> Baseline:
    """Baseline of a reference, calibrated on its traffic as if real. Shared: never change it."""
    reference = reference_of(name)
    with quick_training():
        return fit_baseline(name, reference.schema, reference.batch, reference.traffic, rng=np.random.default_rng(9))[0]


def fitted_map(name: str) -> FeatureMap:
    return fitted_baseline(name).map


def life(name: str, n: int, rng: np.random.Generator) -> QueryBatch:
    """One client that does everything: honest rows and repeats, what-if moves, noise, one-magnitude steps, lines, turns, rubbish."""
    reference = reference_of(name)
    x = reference.traffic.inputs
    columns = reference.schema.columns
    low, high = np.array([c.lower for c in columns]), np.array([c.upper for c in columns])
    categories = np.array([len(c.categories) for c in columns])
    spread = np.maximum(x.std(0), 1e-9)
    rows: list[Rows] = []
    while len(rows) < n:
        seed = x[rng.integers(len(x))].copy()
        kind = rng.integers(9)
        if kind == 0 and rows:
            rows += [rows[rng.integers(len(rows))]] * int(rng.integers(1, 4))
        elif kind == 1:
            for _ in range(4):
                j = rng.integers(len(seed))
                seed = seed.copy()
                seed[j] = x[rng.integers(len(x)), j]
                rows.append(seed)
        elif kind == 2:
            rows += [seed, *(seed + rng.normal(size=len(seed)) * spread * 0.2 for _ in range(3))]
        elif kind == 3:
            unit = 0.1 * (high - low) if rng.random() < 0.5 else np.full(len(seed), 0.5 * np.median(spread))
            rows += [seed, *(seed + rng.choice([-1.0, 1.0], len(seed)) * unit for _ in range(2))]
        elif kind == 4:
            other = x[rng.integers(len(x))]
            rows += [seed + t * (other - seed) for t in (0.0, 0.2, 0.4, 0.6)]
        elif kind == 5:
            rows.append(rng.uniform(low - 0.2 * spread, high + 0.2 * spread))
        elif kind == 6:
            rows += [low, high, np.where(rng.random(len(seed)) < 0.5, low, seed)]
        elif kind == 7:
            # two entities that take turns, each changing a little
            other = x[rng.integers(len(x))]
            rows += [who + rng.normal(size=len(seed)) * spread * 0.02 for who in (seed, other, seed, other)]
        else:
            rows.append(seed)
    made = np.array(rows[:n])
    # a category is a code, known or not; a value may be missing or out of range, and an input unreadable
    made = np.where(categories > 0, np.clip(np.rint(made), 0, categories), made)
    classes = len(reference.schema.labels)
    batch = answered(made, classes) if classes else batch_of(made)
    batch.time_ms = START_MS + np.cumsum(rng.integers(0, 60_000, n))
    spoil(batch, categories, rng)
    batch.weight = rng.choice(np.array([1, 1, 1, 10], np.float32), n)
    return batch


def spoil(batch: QueryBatch, categories: NDArray[np.int64], rng: np.random.Generator) -> None:
    """One query in six does not fit the schema, in every way."""
    n, d = batch.inputs.shape
    rows = np.flatnonzero(rng.random(n) < 1 / 6)
    for i in rows.tolist():
        kind = rng.integers(5)
        j = int(rng.integers(d))
        if kind == 0:
            batch.inputs[i, rng.random(d) < 0.2] = np.nan
            batch.misfit[i] = Misfit.MISSING
        elif kind == 1 and not categories[j]:
            batch.inputs[i, j] = rng.choice([-np.inf, np.inf])
            batch.misfit[i], batch.salt[i] = Misfit.OUT_OF_RANGE, rng.integers(1, 5)
        elif kind == 2:
            batch.inputs[i] = np.nan
            batch.misfit[i], batch.salt[i] = Misfit.UNREADABLE, rng.integers(1, 50)
        else:
            batch.misfit[i] = rng.choice([Misfit.RETYPED, Misfit.ANSWER])
    batch.misfit[(batch.misfit == 0) & ((categories > 0) & (batch.inputs >= categories)).any(1)] = Misfit.OTHER


def invented(
    fmap: FeatureMap, n: int, rng: np.random.Generator, alphabet: int, contents: int, stride: int = 1
) -> tuple[QueryBatch, Measured]:
    """Queries on few code values and few contents, so that ties, repeats and re-appearances abound; bits, labels and bins at random."""
    width, d = len(fmap.code_low), fmap.schema.width
    content_hash = np.unique(rng.integers(0, 2**48, contents, np.uint64))
    rng.shuffle(content_hash)
    codes = 1000 + rng.integers(0, alphabet, (contents, width)) * stride
    raw = (
        np.stack([fmap.code_low + c * fmap.code_step for c in codes]) if width == d else rng.normal(size=(contents, d))
    )
    at = rng.integers(0, contents, n)
    batch = QueryBatch(
        clients=["a"],
        who=np.zeros(n, np.int32),
        inputs=raw[at],
        labels=rng.integers(-1, 4, n).astype(np.int32),
        probabilities=np.zeros((n, 0), np.float32),
        values=np.full(n, np.nan),
        time_ms=rng.integers(0, 10**9, n),
        weight=np.ones(n, np.float32),
        offsets=np.arange(n),
    )
    bits = np.where(rng.random(n) < 0.4, rng.integers(0, ODD + 1, n), 0).astype(np.uint32)
    measured = Measured(
        hashes=content_hash[at],
        bits=bits,
        misfit=rng.random(n) < 0.1,
        regions=rng.integers(0, REGIONS, n).astype(np.int16),
        distance_bins=rng.integers(0, DISTANCE_BINS, n).astype(np.uint8),
        patches=np.zeros(n, np.uint64),
        templates=batch.templates,
        codes=codes[at].astype(fmap.code_dtype),
        raw=raw[at],
    )
    return batch, measured


def rows_of(m: Measured, rows: NDArray[np.intp]) -> Measured:
    return Measured(**{f.name: getattr(m, f.name)[rows] for f in fields(m)})


def fold(name: str, batch: QueryBatch, cuts: list[int] | None = None) -> Profile:
    """The profile of one client's stream, cut into polls."""
    baseline = fitted_baseline(name)
    profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, FOREVER, capacity=2)
    for rows in np.split(np.arange(len(batch)), cuts or []):
        if len(rows):
            part = batch.take(rows)
            profiles.add(list(batch.clients), part, baseline.map.measure(part, KEY))
    return profiles.profile("client 0")


@functools.cache
def noise(name: str, n: int = 300) -> QueryBatch:
    """A thief without data: uniform between the bounds."""
    columns = reference_of(name).schema.columns
    low, high = np.array([c.lower for c in columns]), np.array([c.upper for c in columns])
    grain = np.array([c.grain for c in columns])
    rows = np.random.default_rng(70).uniform(low, high, (n, len(columns)))
    rows = np.where(grain > 0, np.rint(rows / np.where(grain > 0, grain, 1)) * grain, rows)
    return batch_of(rows)
