"""Fitting a feature map: from a reference with its answers to everything that measures one query.

Rules:

* The map is fitted on the reference alone. `learn_misfits` and `raise_levels` then settle its levels on honest traffic.
* Each model of corruption is trained here, by `discriminators.py`, so that a service never loads scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector import misfit
from detector.errors import UnfittedModel
from detector.features import (
    DISTANCE_BINS,
    MEASURES,
    RAW_KEPT,
    REGIONS,
    WIDE,
    FeatureMap,
    Schema,
    margins,
)  # fmt: skip
from detector.fitting.axes import expand, principal_axes, spread_out
from detector.fitting.discriminators import CORRUPTIONS, Bounds, RewordedRows, train, train_reworded
from detector.query import QueryBatch
from detector.text import text_measures

MAX_NEIGHBOURS = 1024
MAX_TRAINING_ROWS = 3000


def fit_feature_map(
    schema: Schema,
    inputs: NDArray[np.float64],
    labels: NDArray[np.int32],
    probabilities: NDArray[np.float32],
    rng: np.random.Generator,
    reworded: RewordedRows | None = None,
) -> FeatureMap:
    """Fit the feature map of one model on its reference.

    Parameters
    ----------
    schema : Schema
        Of d columns.
    inputs : (n, d) float64
        NaN: a missing value.
    labels : (n,) int32
    probabilities : (n, c) float32
        NaN where an answer was a label only.
    rng : Generator
        The same state gives the same map.
    reworded : RewordedRows or None
        Of texts: what the measure ``jitter`` learns from; None: it says nothing.

    Raises
    ------
    UnfittedModel
        The reference has fewer than 50 distinct rows.

    Notes
    -----
    A reference of some hundred rows says little about its own upper percent (docs/decisions/0004): `raise_levels` settles the levels on
    honest traffic afterwards.
    """
    logged = np.ascontiguousarray(inputs, np.float64)
    category_counts = schema.category_counts
    donors = misfit.Donors.of(logged, category_counts)
    inputs = donors.complete(logged)
    if len(np.unique(inputs, axis=0)) < 50:
        raise UnfittedModel("the reference has fewer than 50 distinct rows")
    category = schema.categorical
    lattice = np.array([0.0 if c.kind in ("embedding", "text") else c.grain for c in schema.columns])
    center, scale = inputs.mean(0), inputs.std(0)
    span = np.ptp(inputs, axis=0)
    # a column that hardly ever moves must not turn one move into the whole distance
    scale = np.maximum(scale, np.maximum(span * 0.05, 1e-9))
    scale = np.where((span == 0) & (lattice <= 0), 1.0, np.where(span == 0, np.maximum(lattice, 1e-9), scale))
    width_of = np.where(category_counts > 0, category_counts, 1)
    start = np.concatenate([[0], np.cumsum(width_of)[:-1]]).astype(np.int64)
    scale = np.where(category, np.sqrt(2.0), scale)
    center = np.where(category, 0.0, center)
    basis, spread = principal_axes(expand(inputs, center, scale, start, category_counts))
    m = basis.shape[1]
    wide = schema.width > WIDE
    low, high = inputs.min(0), inputs.max(0)
    if wide:
        keep = min(m, 32)
        code_low, code_step = np.full(keep, -12.7), np.full(keep, 0.1)
        code_weight, code_category = np.full(keep, 0.01), np.zeros(keep, np.int64)
    else:
        code_low, code_category = low, category.astype(np.int64)
        code_step, code_weight = np.ones(len(low)), np.ones(len(low))
    fmap = FeatureMap(
        schema=schema, center=center, scale=scale, start=start, category_counts=category_counts, lattice=lattice,
        hash_grain=np.where(lattice > 0, np.minimum(lattice, scale * 1e-3), scale * 1e-3),
        basis=basis, spread=spread, neighbours=np.zeros((m, 1), np.float32), region_of=np.zeros(1, np.int16),
        region_at=np.zeros((REGIONS, 2)), region_share=np.zeros(REGIONS), distance_edges=np.zeros(DISTANCE_BINS - 1),
        levels=np.full((len(MEASURES), 2), np.inf), margin_levels=np.full((1, 2), -np.inf),
        code_low=code_low, code_step=code_step, code_weight=code_weight, code_category=code_category,
        common_value=np.zeros(len(low)), agreement_bits=np.zeros((2, len(low))), agreement_level=np.inf, near=0.0,
        donors=donors.rows, donor_weight=donors.weight, misfit_bits=np.zeros((3, len(low))), misfit_kinds=np.zeros(3),
        misfit_allowance=misfit.LEAST_ALLOWANCE,
    )  # fmt: skip
    if not wide:
        top = float(np.iinfo(fmap.code_dtype).max)
        fmap.code_step = np.where(category, 1.0, np.maximum(high - low, 1e-9) / (top - 1))
        fmap.code_weight = np.where(category, 1.0, (fmap.code_step / scale) ** 2)
    _fit_agreement(fmap, logged, rng)
    _fit_neighbours(fmap, inputs, rng)
    _fit_levels(fmap, inputs, labels, probabilities, rng, reworded)
    fmap.near = _nearest_memory_distance(fmap, logged, rng) * 0.5
    n = len(logged)
    learn_misfits(fmap, [
        QueryBatch(["reference"], np.zeros(n, np.int32), logged, labels, probabilities, np.full(n, np.nan),
                   np.zeros(n, np.int64), np.ones(n, np.float32), np.arange(n)),
    ])  # fmt: skip
    return fmap


def learn_misfits(fmap: FeatureMap, honest: Sequence[QueryBatch]) -> None:
    """Learn how usual each misfit is among honest queries, and the levels of the measure: rare and never seen.

    honest  the reference first, then honest traffic
    """
    fmap.misfit_bits, fmap.misfit_kinds = misfit.learn(honest, fmap.category_counts)
    seen = [fmap.surprise(batch) for batch in honest]
    fmap.misfit_allowance = misfit.allowance_of(honest, seen)
    rare = float(np.quantile(seen[0], 0.99)) if len(seen[0]) else 0.0
    fmap.levels[MEASURES.index("misfit")] = rare, max(float(s.max(initial=0.0)) for s in seen)


def _fit_agreement(fmap: FeatureMap, inputs: NDArray[np.float64], rng: np.random.Generator) -> None:
    """How surprising it is that two independent rows agree exactly (record linkage, Fellegi & Sunter 1969).

    A bound surprises nobody, whoever asks: an image of anything may be black or white in a corner.
    """
    n, d = inputs.shape
    for j in range(d):
        values, counts = np.unique(inputs[np.isfinite(inputs[:, j]), j], return_counts=True)
        if not len(values):
            continue
        top = int(counts.argmax())
        rest = np.delete(counts, top)
        collision = float((rest**2).sum()) / max(float(rest.sum()) ** 2, 1.0)
        fmap.common_value[j] = values[top]
        # what the reference hardly ever held can't be called rare: its k other rows vouch for log2(k + 1) bits at most
        fmap.agreement_bits[:, j] = -np.log2(counts[top] / n), -np.log2(max(collision, 1 / (rest.sum() + 1)))
    kept = RAW_KEPT if fmap.wide else 128
    rows = inputs[rng.permutation(n)]
    remembered, others = rows[: min(kept, n // 2)], rows[n // 2 :][:400]
    agree = np.where(others == fmap.common_value, fmap.agreement_bits[0], fmap.agreement_bits[1])
    low, high = fmap.bounds()
    agree[(others <= low) | (others >= high)] = 0.0  # rows that lack the same value agree in nothing
    bits = np.zeros(len(others))
    for row in remembered:
        bits = np.maximum(bits, np.where(others == row, agree, 0.0).sum(1))
    fmap.agreement_level = float(np.quantile(bits, 0.99)) + 1.0


def _fit_neighbours(fmap: FeatureMap, inputs: NDArray[np.float64], rng: np.random.Generator) -> None:
    z, *_ = fmap.locate(inputs)
    chosen = rng.permutation(len(z))[:MAX_NEIGHBOURS]
    fmap.neighbours = np.ascontiguousarray(z[chosen].T, np.float32)
    centers = spread_out(z[chosen], REGIONS)
    fmap.region_of = np.argmin(((z[chosen][:, None] - centers[None]) ** 2).sum(-1), 1).astype(np.int16)
    fmap.region_at = np.zeros((REGIONS, 2))
    fmap.region_at[: len(centers), : min(2, z.shape[1])] = centers[:, :2]
    _, _, _, nearest = fmap.locate(inputs)
    fmap.region_share = np.bincount(fmap.region_of[nearest], minlength=REGIONS) / len(inputs)


def _fit_levels(
    fmap: FeatureMap,
    inputs: NDArray[np.float64],
    labels: NDArray[np.int32],
    probabilities: NDArray[np.float32],
    rng: np.random.Generator,
    reworded: RewordedRows | None,
) -> None:
    rows = inputs[rng.permutation(len(inputs))[:MAX_TRAINING_ROWS]]
    bounds = Bounds(*fmap.bounds(), fmap.lattice, fmap.scale, fmap.schema.categorical)
    held_out: dict[str, NDArray[np.float64]] = {}
    for name in () if fmap.schema.of_texts else CORRUPTIONS:
        fmap.trees[name], held_out[name] = train(rows, bounds, name, rng)
    if reworded is not None:
        fmap.trees["jitter"], held_out["jitter"] = train_reworded(reworded, inputs, rng)
    # a reference row's own copy among the neighbours is left out
    _, residual, distance, nearest = fmap.locate(inputs)
    same = np.where(distance < 1e-6, nearest, -1)
    _, residual, distance, _ = fmap.locate(inputs, same)
    held_out |= {"novelty": distance, "residual": residual}
    for name, scores in held_out.items():
        i = MEASURES.index(name)
        fmap.levels[i] = np.quantile(scores, 0.99), scores.max()
    # nothing of the reference is off its own lattice, so one value off it is odd
    fmap.levels[MEASURES.index("lattice")] = (0.0, 0.25) if np.any(fmap.lattice > 0) else (np.inf, np.inf)
    if fmap.schema.of_texts:
        for name, values in text_measures(inputs).items():
            fmap.levels[MEASURES.index(name)] = np.quantile(values, 0.99), values.max()
    fmap.distance_edges = np.quantile(distance, np.linspace(0, 1, DISTANCE_BINS - 1) ** 0.5)
    margin = margins(probabilities)
    if probabilities.shape[1] >= 2 and np.isfinite(margin).any():
        pooled = np.nanquantile(margin, [0.05, 0.01])
        fmap.margin_levels = np.tile(pooled, (fmap.classes, 1))
        for k in range(fmap.classes):
            mine = margin[(labels == k) & np.isfinite(margin)]
            if len(mine) >= 40:
                fmap.margin_levels[k] = np.quantile(mine, [0.05, 0.01])


def _nearest_memory_distance(fmap: FeatureMap, inputs: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Median leave-one-out nearest distance of the reference, in the metric of the client's memory."""
    rows = inputs[rng.permutation(len(inputs))[:800]]
    z, *_ = fmap.locate(fmap.complete(rows))
    codes = fmap.encode(rows, z).astype(np.float64)
    missing = codes == fmap.missing_code
    best = np.empty(len(codes))
    for i, mine in enumerate(codes):
        delta = codes - mine
        one_is = missing != missing[i]
        squares = np.where((fmap.code_category == 1) | one_is, delta != 0, delta * delta) @ fmap.code_weight
        squares += (one_is * (1.0 - fmap.code_weight)).sum(
            1
        )  # a value and none are one unit apart, whatever the column
        squares[i] = np.inf
        best[i] = np.sqrt(squares.min())
    return float(np.median(best[best > 0])) if np.any(best > 0) else 1.0


def raise_levels(
    fmap: FeatureMap, oddness: Sequence[NDArray[np.float64] | None], weight: NDArray[np.float64], share: float
) -> None:
    """Raise each rare level until at most `share` of the weighted honest queries exceed it. No level is ever lowered.

    Parameters
    ----------
    oddness : one (n,) float64 or None for each of `MEASURES`
    weight : (n,) float64
        Of each query.
    share : float
        In [0, 1].
    """
    for i, odd in enumerate(oddness):
        if odd is None or (MEASURES[i] == "lattice" and not fmap.schema.of_texts):
            continue
        order = np.argsort(odd)
        above = 1 - np.cumsum(weight[order]) / weight.sum()
        at = int(np.searchsorted(-above, -share))
        level = float(odd[order[min(at, len(odd) - 1)]])
        fmap.levels[i, 0] = max(fmap.levels[i, 0], level)
        fmap.levels[i, 1] = max(fmap.levels[i, 1], fmap.levels[i, 0])
