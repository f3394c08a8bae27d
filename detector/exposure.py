"""Exposure: the fidelity of the copy that a client could train on the answers it received.

Suspicion and exposure are two numbers that are never mixed: an honest batch scorer may well hold half of the model. Exposure is the
expected *fidelity* of a copy: the share of honest inputs on which copy and model agree (`simulation/answers.py` says when).

Method (cf. Kesarwani et al. 2018, who monitor coverage; Juuti et al. 2019, who measure copies): when a baseline is fitted, thefts of many
families are rehearsed against a stand-in for the model (`simulation/rehearsal.py`) and copies are trained at growing numbers of queries.
Their fidelity is regressed on quantities that a profile holds: how many distinct queries, how many of them near real inputs, how much of
the input space they cover, how evenly the answers spread.

Rules:

* Only the sums and the *sample* of a profile are used, so the exposure of a group is that of its merged profile.
* The interval comes from leaving out whole families, and is widened by the error of a stand-in against a real model.
* Below `FEWEST` distinct queries, and where a baseline holds no estimator, there is no estimate: None, never a guess.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.features import DISTANCE_BINS, FeatureMap
from detector.profile import Profile
from detector.profile_columns import ProfileColumns

FEWEST = 5
STAND_IN_ERROR = 0.25
"""Log odds added to both ends of an interval: a rehearsal against a stand-in differs from the model itself by as much."""
COPY_ERROR = 0.04
"""Share added to both ends on top: near 0 and 1 log odds are far apart where copies of one size differ by a few rows in a hundred. Both
were set on real copies of seven models. Set on six of them, they hold for 89 % of the copies of the seventh (docs/decisions/0043)."""
INTERVAL = 0.9
ROUGH = 0.3
"""An interval that is wider than this is called rough wherever exposure is shown."""
RIDGE = 1.0
EDGE = 0.02
"""Fidelities are kept this far from 0 and 1 before their log odds are taken."""

Vector = NDArray[np.float64]

REGRESSORS = (
    "one",
    "distinct",
    "near",
    "covered",
    "spread",
    "alike",
    "distinct_covered",
    "distinct_near",
    "distinct_spread",
    "distinct_alike",
    "distinct_after_30",
    "distinct_after_300",
)
KNOTS = (30, 300)
"""Distinct queries at which the curve over their logarithm may bend: a model that is solved stays solved."""
EARLIER = len(REGRESSORS) - len(KNOTS)
"""Weights of a baseline that was fitted before the curve could bend."""


@dataclass(frozen=True, slots=True)
class Exposure:
    """Expected fidelity of a copy, with the interval that holds for nine unseen thefts of ten; all in [0, 1]."""

    fidelity: float
    low: float
    high: float

    @property
    def rough(self) -> bool:
        """Whether the interval is too wide to act on the middle of it.

        >>> Exposure(0.6, 0.4, 0.8).rough, Exposure(0.9, 0.8, 0.95).rough
        (True, False)
        """
        return self.high - self.low > ROUGH


@dataclass(frozen=True, slots=True)
class Estimator:
    """Ridge regression of the fidelity's log odds.

    weights  (f,) of `describe`, or of its first `EARLIER` numbers
    errors   (b, 2) low and high quantile of the held-out error, by size of the theft (`sizes`), in log odds
    sizes    (b,) log distinct queries at the middle of each band, rising
    usual    (c,) how the model's answers to honest inputs spread over the classes
    """

    weights: Vector
    errors: Vector
    sizes: Vector
    usual: Vector

    @classmethod
    def fit(cls, described: Vector, fidelity: Vector, family: NDArray[np.int64], usual: Vector) -> Estimator:
        """Fit the regression on rehearsed thefts.

        Parameters
        ----------
        described : (n, f) float64
            `describe` of the profile of each theft, at each number of queries.
        fidelity : (n,) float64
            Share of honest inputs on which copy and model agree, in [0, 1].
        family : (n,) int64
            Which rows are left out together for the interval.
        usual : (c,) float64
            How the model's answers to honest inputs spread over the classes.
        """
        target = log_odds(np.clip(fidelity, EDGE, 1 - EDGE))
        weights = _ridge(described, target)
        held_out = np.empty(len(target))
        for one in np.unique(family):
            out = family == one
            held_out[out] = described[out] @ _ridge(described[~out], target[~out])
        error = target - held_out
        size = described[:, REGRESSORS.index("distinct")]
        edges = np.quantile(size, np.linspace(0, 1, 5))
        sizes: list[float] = []
        errors: list[Vector] = []
        for low, high in itertools.pairwise(edges):
            band = (size >= low) & (size <= high)
            if band.any() and (not sizes or float(size[band].mean()) > sizes[-1]):
                sizes.append(float(size[band].mean()))
                errors.append(np.quantile(error[band], [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]))
        return cls(weights, np.array(errors), np.array(sizes), usual)

    def estimate(self, described: Vector) -> Exposure:
        """Return the exposure of one profile, described as (f,)."""
        return self.estimates(described[None])[0]

    def estimates(self, described: Vector) -> list[Exposure]:
        """Return the exposure of each of n profiles, described as (n, f).

        The interval is that of whole families left out, widened by `STAND_IN_ERROR` and `COPY_ERROR`.
        """
        # one product a row: that of a matrix adds up in another order
        middle = np.array([row[: len(self.weights)] @ self.weights for row in described])
        size = described[:, REGRESSORS.index("distinct")]
        low, high = (np.interp(size, self.sizes, self.errors[:, side]) for side in (0, 1))
        low, high = np.minimum(low, 0.0) - STAND_IN_ERROR, np.maximum(high, 0.0) + STAND_IN_ERROR
        fidelity = np.clip(share_of(middle), EDGE, 1 - EDGE)
        low = np.minimum(np.maximum(share_of(middle + low) - COPY_ERROR, 0.0), fidelity)
        high = np.maximum(np.minimum(share_of(middle + high) + COPY_ERROR, 1.0), fidelity)
        return [Exposure(*shares) for shares in zip(fidelity.tolist(), low.tolist(), high.tolist(), strict=True)]


def log_odds(shares: Vector) -> Vector:
    """Return the log odds of shares in (0, 1). Written here because `scipy.special` costs a starting service 25 MB."""
    return np.asarray(np.log(shares / (1.0 - shares)), np.float64)


def share_of(log_odds: Vector) -> Vector:
    """Return the shares whose log odds are given; the inverse of `log_odds`."""
    return 1.0 / (1.0 + np.exp(-log_odds))


def _ridge(described: Vector, target: Vector) -> Vector:
    """Weights (f,); the constant is not shrunk."""
    shrink = np.full(described.shape[1], RIDGE)
    shrink[0] = 1e-9
    return np.asarray(np.linalg.solve(described.T @ described + np.diag(shrink), described.T @ target), np.float64)


def describe(profile: Profile, feature_map: FeatureMap, usual: Vector) -> Vector:
    """Return what a profile says about a copy made of it, (f,) in the order of `REGRESSORS`."""
    regions, distances, classes = profile.region_counts[None], profile.distance_counts[None], profile.classes[None]
    one: Vector = _described(np.array([profile.distinct]), regions, distances, classes, feature_map, usual)[0]
    return one


def _described(
    distinct: Vector,
    region_counts: NDArray[np.int64],
    distance_counts: NDArray[np.int64],
    classes: NDArray[np.int64],
    feature_map: FeatureMap,
    usual: Vector,
) -> Vector:
    """`describe` of n profiles, (n, f)."""
    n = np.log1p(distinct)
    covered = (feature_map.region_share * (1.0 - np.exp(-region_counts.astype(np.float64) / 2.0))).sum(1)
    near = distance_counts[:, :NEAR_BINS].sum(1) / np.maximum(distance_counts.sum(1), 1.0)
    shares = classes.astype(np.float64) / np.maximum(classes.sum(1), 1.0)[:, None]
    spread = _spread(shares) / np.log(max(shares.shape[1], 2))
    alike = np.minimum(shares, usual).sum(1)
    bends = np.maximum(n[:, None] - np.log1p(KNOTS), 0.0)
    columns = (np.ones(len(n)), n, near, covered, spread, alike, n * covered, n * near, n * spread, n * alike, *bends.T)
    return np.stack(columns, axis=1)


def _spread(shares: Vector) -> Vector:
    """The entropy of each row of shares (n, c). Those of as many occupied classes are added up together, each without its empty ones."""
    found, occupied = np.zeros(len(shares)), shares > 0
    for count in np.unique(occupied.sum(1)[occupied.any(1)]).tolist():
        rows = np.flatnonzero(occupied.sum(1) == count)
        of_rows = shares[rows][occupied[rows]].reshape(len(rows), count)
        found[rows] = -(of_rows * np.log(of_rows)).sum(1)
    return found


NEAR_BINS = DISTANCE_BINS * 3 // 4


def estimate(profile: Profile, feature_map: FeatureMap, estimator: Estimator | None) -> Exposure | None:
    """Estimate the exposure of a client, or of a group from its merged profile.

    Parameters
    ----------
    profile : Profile
    feature_map : FeatureMap
        The map that the profile was folded under.
    estimator : Estimator or None
        None: the baseline was fitted without a rehearsal of thefts.

    Returns
    -------
    Exposure or None
        Fidelities in [0, 1]; None without an estimator and below `FEWEST` distinct queries.

    Notes
    -----
    Coverage as a bound on what was learned: Kesarwani et al. 2018; fidelity of copies: Juuti et al. 2019. It says nothing about intent: an
    honest batch scorer may hold half of the model. The thefts are rehearsed against a stand-in of the model, not against the model.
    """
    if estimator is None or profile.distinct < FEWEST:
        return None
    return estimator.estimate(describe(profile, feature_map, estimator.usual))


def estimate_columns(
    profiles: ProfileColumns, feature_map: FeatureMap, estimator: Estimator | None
) -> list[Exposure | None]:
    """Return what `estimate` says of each of n profiles."""
    found: list[Exposure | None] = [None] * len(profiles)
    rows = np.flatnonzero(profiles.distinct >= FEWEST)
    if estimator is None or not len(rows):
        return found
    described = _described(
        profiles.distinct[rows],
        profiles.region_counts[rows],
        profiles.distance_counts[rows],
        profiles.classes[rows],
        feature_map,
        estimator.usual,
    )
    for row, exposure in zip(rows.tolist(), estimator.estimates(described), strict=True):
        found[row] = exposure
    return found
