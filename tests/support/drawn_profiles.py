"""Profiles and clients that are drawn: of any size, from nothing to sets that are full, odd or not. Nothing was folded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from support.references import DAY_MS, START_MS

from detector.baseline import Baseline
from detector.calibration import Persona
from detector.exposure import REGRESSORS, Estimator
from detector.features import DISTANCE_BINS, REGIONS
from detector.fold_arrays import LADDER_STEPS, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT
from detector.profile import Profile
from detector.signals import SIGNALS

PERSONAS = ("", "explainer", "nobody")
"""None, one that `with_everything` knows, one that no baseline knows."""


def with_everything(baseline: Baseline) -> Baseline:
    """The baseline, with a persona, and an estimator of whatever weights."""
    rng = np.random.default_rng(8)
    honest = [np.sort(rng.lognormal(0.0, 1.0, 200)) for _ in range(2)]
    usual = rng.dirichlet(np.ones(baseline.map.classes))
    errors = np.array([[-0.8, 0.5], [-0.4, 0.3]])
    estimator = Estimator(rng.normal(0, 0.3, len(REGRESSORS)), errors, np.array([2.0, 6.0]), usual)
    calibration = replace(baseline.calibration, personas=(Persona("explainer", *honest),))
    return replace(baseline, calibration=calibration, estimator=estimator)


def drawn(baseline: Baseline, rng: np.random.Generator, window: int = 1368) -> Profile:
    """A profile of any size, from nothing to sets that are full, odd or not."""
    sizes = [
        (0, 1, int(rng.integers(0, kept + 1)), kept)[rng.integers(0, 4)]
        for kept in (SAMPLE_KEPT, ODD_KEPT, SEQUENCE_KEPT)
    ]
    hashes = [np.sort(rng.choice(2**48 - 1, size, replace=False)).astype(np.uint64) for size in sizes]
    odd, sequence = (
        (rng.integers(0, 2**24, size) & rng.integers(0, 2**24, size)).astype(np.uint32) for size in sizes[1:]
    )
    passages = int(rng.integers(0, LADDER_STEPS + 1)) * int(rng.integers(0, 2))
    first_ms = START_MS + int(rng.integers(0, DAY_MS))
    maxima = np.where(rng.random(len(SIGNALS)) < 0.5, 0.0, rng.lognormal(1.0, 2.0, len(SIGNALS)))
    return Profile(
        baseline.map_id, baseline.calibration_version, window, sizes[0] + int(rng.integers(0, 300)) * bool(sizes[0]),
        first_ms, first_ms + int(rng.integers(0, DAY_MS)),
        rng.integers(0, rng.integers(1, 50), baseline.map.classes), rng.integers(0, 5, REGIONS),
        rng.integers(0, rng.integers(1, 90), DISTANCE_BINS),
        hashes[0], rng.random(sizes[0]) < rng.random(), rng.random(sizes[0]) < 0.1, hashes[1], odd, hashes[2], sequence, maxima,
        first_ms + np.cumsum(rng.integers(0, 1000, passages)), np.cumsum(rng.integers(0, 9, passages)),
    )  # fmt: skip
