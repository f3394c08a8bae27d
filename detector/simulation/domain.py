"""The inputs that a prediction service accepts, and the sets of rows from which a population is simulated.

Rules:

* A `Domain` is read off a reference matrix: bounds, decimals, coded columns. Everything that is simulated passes `Domain.emit`, so that
  thieves and honest clients alike send rows that the service would accept: clipped, rounded, known codes only.
* The grain is the log's rounding (decimals), not the lattice on which honest values happen to lie: a service that takes 0.25 takes 0.24.
* `HonestPools` holds four sets without a common item; its builder guarantees that.
* Randomness comes in as `rng`, never from a global state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
Predict = Callable[[Rows], Rows]
"""A victim: (n, d) inputs → (n, c) probabilities."""
Freshen = Callable[[Rows, np.random.Generator], Rows]
"""Honest variation: (n, d) items → (n, d) other items of the same population."""

Generate = Callable[["HonestPools", int, np.random.Generator], Rows]
"""One honest client: (pools, n, rng) → (n, d) accepted rows."""

MOST_DECIMALS = 6
MOST_CODES = 32
QUANTILES = 101


@dataclass(frozen=True, slots=True)
class Domain:
    """Bounds and grain of d input columns.

    low, high    (d,) what is accepted; one range for all columns when `homogeneous`
    decimals     (d,) int, digits to which values are rounded
    codes        d entries: known codes of a coded column, else None
    centre       (d,) mean, `spread` (d,) standard deviation (never 0), `mode` (d,) most frequent value
    quantiles    (101, d) per-column quantiles that are values of the reference
    homogeneous  all columns share one unit (pixels, embeddings)
    unit         rows have Euclidean length 1 (sentence embeddings): emitted rows are scaled to it
    """

    low: Rows
    high: Rows
    decimals: NDArray[np.int64]
    codes: tuple[Rows | None, ...]
    centre: Rows
    spread: Rows
    mode: Rows
    quantiles: Rows
    homogeneous: bool
    unit: bool

    @classmethod
    def of(cls, reference: Rows, coded: NDArray[np.bool_] | None = None) -> Domain:
        """Domain of a reference (n, d).

        `coded` (d,) says which columns are categories; without it, whole-number columns of at most 32 codes are,
        unless the columns are homogeneous.
        """
        rows = np.asarray(reference, dtype=np.float64)
        if rows.ndim != 2 or not len(rows):
            raise ValueError("a domain needs a reference of shape (n, d), n >= 1")
        low, high = rows.min(axis=0), rows.max(axis=0)
        unit = rows.shape[1] > 1 and bool(np.all(np.abs(np.linalg.norm(rows, axis=1) - 1.0) < 2e-3))
        homogeneous = unit or _homogeneous(low, high)
        decimals = np.array([decimals_kept(column) for column in rows.T], dtype=np.int64)
        if homogeneous:
            low, high = (
                np.full_like(low, -1.0 if unit else low.min()),
                np.full_like(high, 1.0 if unit else high.max()),
            )
            decimals[:] = decimals.max()
        known_codes: list[Rows | None] = []
        modes = np.empty(rows.shape[1])
        for j, column in enumerate(rows.T):
            values, counts = np.unique(column, return_counts=True)
            modes[j] = values[counts.argmax()]
            few = not homogeneous and decimals[j] == 0 and len(values) <= MOST_CODES
            # as the service would round them: a code that rounding moves could never be sent twice
            codes = np.unique(np.round(values, int(decimals[j])) + 0.0)
            known_codes.append(codes if (few if coded is None else bool(coded[j])) else None)
        spread = rows.std(axis=0)
        floor = float(spread.mean()) * 0.1 if homogeneous and spread.any() else 1.0
        positive = np.maximum(spread, floor) if homogeneous else np.where(spread > 0, spread, floor)
        quantiles = np.quantile(rows, np.linspace(0, 1, QUANTILES), axis=0, method="nearest")
        centre = rows.mean(axis=0)
        return cls(low, high, decimals, tuple(known_codes), centre, positive, modes, quantiles, homogeneous, unit)

    @property
    def width(self) -> int:
        """d, the number of columns."""
        return len(self.low)

    @property
    def coded(self) -> NDArray[np.bool_]:
        """(d,) which columns are categories."""
        return np.array([known_codes is not None for known_codes in self.codes], dtype=bool)

    @property
    def grain(self) -> Rows:
        """(d,) smallest difference that the service can see."""
        return np.power(10.0, -self.decimals)

    @property
    def unit_step(self) -> Rows:
        """(d,) one whole move of a column: the common range if homogeneous, the standard deviation otherwise."""
        return (self.high - self.low) if self.homogeneous and not self.unit else self.spread

    def emit(self, rows: Rows) -> Rows:
        """(n, d) rows as the service accepts them. Idempotent, but for rounding where rows have unit length."""
        out = np.array(rows, dtype=np.float64, ndmin=2)
        if self.unit:
            length = np.linalg.norm(out, axis=1, keepdims=True)
            out = np.where(length > 1e-12, out / np.maximum(length, 1e-12), 1.0 / np.sqrt(self.width))
        out = np.clip(out, self.low, self.high)
        for places in np.unique(self.decimals):
            columns = self.decimals == places
            out[:, columns] = np.round(out[:, columns], int(places))
        for j, known_codes in enumerate(self.codes):
            if known_codes is not None:
                out[:, j] = known_codes[np.abs(out[:, j][:, None] - known_codes).argmin(axis=1)]
        return out + 0.0  # no negative zeros in a log

    def uniform(self, n: int, rng: np.random.Generator) -> Rows:
        """(n, d) uniform noise: any accepted number, any known code."""
        if self.unit:
            return rng.normal(size=(n, self.width))
        out = rng.uniform(self.low, self.high, size=(n, self.width))
        for j, known_codes in enumerate(self.codes):
            if known_codes is not None:
                out[:, j] = rng.choice(known_codes, size=n)
        return out

    def marginal(self, n: int, rng: np.random.Generator) -> Rows:
        """(n, d) every column drawn from its own distribution, independently of the others."""
        return np.take_along_axis(self.quantiles, rng.integers(0, QUANTILES, size=(n, self.width)), axis=0)

    def standardise(self, rows: Rows) -> Rows:
        """(n, d) centred and scaled by column."""
        out: Rows = (rows - self.centre) / self.spread
        return out

    def wobble(self, rows: Rows, size: float, rng: np.random.Generator) -> Rows:
        """(n, d) small honest noise of `size` steps; codes and numbers at a column's mode (empty pixels) stay."""
        moves = rng.normal(size=rows.shape) * size * self.unit_step
        return np.where(self.coded | ((rows == self.mode) & (not self.unit)), rows, rows + moves)


def _homogeneous(low: Rows, high: Rows) -> bool:
    if len(low) < 4:
        return False
    wide = float((high - low).max())
    alike = np.abs(low - np.median(low)) <= 0.25 * wide
    return bool(wide > 0 and alike.mean() >= 0.8 and ((high - low) >= 0.5 * wide).mean() >= 0.5)


def decimals_kept(column: Rows) -> int:
    """Digits after the point that all values of a column keep, at most 6; values may have passed through float32."""
    for places in range(MOST_DECIMALS):
        scaled = column * 10.0**places
        if np.all(np.abs(scaled - np.round(scaled)) <= 1.2e-7 * np.abs(scaled) + 1e-9):
            return places
    return MOST_DECIMALS


@dataclass(frozen=True, slots=True)
class HonestPools:
    """The pools of rows from which clients of a simulated population draw.

    domain   what the service accepts
    pool     (m, d) items that honest clients own, `labels` (m,) the victim's classes of them (for class mixes)
    own      (a, d) in-domain items that thieves own, disjoint from `pool`
    foreign  (f, d) rows of another domain, mapped to this one's columns
    freshen  where honest clients get more items than the pool holds; None: blends of near neighbours of one class
    played   honest kinds that are played otherwise here, as where the log has embeddings and clients change words
    """

    domain: Domain
    pool: Rows
    labels: NDArray[np.int64]
    own: Rows
    foreign: Rows
    freshen: Freshen | None = None
    played: Mapping[str, Generate] = field(default_factory=dict)

    def items(self, n: int, rng: np.random.Generator, mix: Rows | None = None, repeats: float = 0.0) -> Rows:
        """(n, d) honest items with class mix `mix` (c,).

        An item that comes up again is sent again with probability `repeats`, else a fresh one like it is sent.
        """
        odds = np.ones(len(self.pool)) if mix is None else np.maximum(mix[self.labels], 1e-12)
        picks = rng.choice(len(self.pool), size=n, p=odds / odds.sum())
        rows = self.pool[picks].copy()
        again = np.ones(n, dtype=bool)
        again[np.unique(picks, return_index=True)[1]] = False
        fresh = np.flatnonzero(again & (rng.random(n) >= repeats))
        if len(fresh):
            rows[fresh] = self.freshen(rows[fresh], rng) if self.freshen else self._blend(picks[fresh], rng)
        return self.domain.emit(rows)

    def _blend(self, picks: NDArray[np.int64], rng: np.random.Generator) -> Rows:
        """Items between an item and a near one of its class.

        In tables a number that sits at its column's mode in either is taken from one of them: zeros stay zeros.
        """
        domain, rows = self.domain, self.pool[picks]
        partners = rng.integers(0, len(self.pool), size=(len(picks), 24))
        gaps = np.full(partners.shape, np.inf)
        for k in range(partners.shape[1]):
            apart = domain.standardise(self.pool[partners[:, k]]) - domain.standardise(rows)
            stranger = self.labels[partners[:, k]] != self.labels[picks]
            gaps[:, k] = np.square(apart).sum(axis=1) + 1e9 * stranger + 1e12 * (partners[:, k] == picks)
        other = self.pool[partners[np.arange(len(picks)), gaps.argmin(axis=1)]]
        share = rng.uniform(0.05, 0.35, size=(len(picks), 1))
        between: Rows = rows + share * (other - rows)
        if domain.homogeneous:
            return between
        one_of_both = domain.coded | (rows == domain.mode) | (other == domain.mode)
        return np.where(one_of_both, np.where(rng.random(rows.shape) < share, other, rows), between)


def first_of_each(rows: Rows) -> NDArray[np.int64]:
    """Where each distinct row of (n, d) comes first, ascending."""
    return np.asarray(np.sort(np.unique(rows, axis=0, return_index=True)[1]), np.int64)


def strangers(domain: Domain, rows: Rows, rng: np.random.Generator, most: int = 2000) -> Rows:
    """(m, d) stand-ins for rows of another domain, m = min(n, most): mirrored values, or columns in one other order."""
    return _moved(domain, rows[rng.permutation(len(rows))[:most]], rng)


def _moved(domain: Domain, take: Rows, rng: np.random.Generator) -> Rows:
    """(m, d) the rows (m, d), each mirrored or with its columns in one other order."""
    width = np.maximum(domain.high - domain.low, 1e-12)
    order = rng.permutation(domain.width) if domain.homogeneous else np.roll(np.arange(domain.width), 1)
    moved = domain.low + ((take - domain.low) / width)[:, order] * width
    return domain.emit(np.where(rng.random((len(take), 1)) < 0.5, domain.low + domain.high - take, moved))


def misrouted_rows(domain: Domain, rows: Rows, rng: np.random.Generator, most: int = 2000) -> Rows:
    """(m, d) `strangers` for clients that ask the wrong model: codes have other names there.

    A coded column holds the codes of a coded column drawn at random, itself perhaps, under names drawn at random, the same in all rows. So
    what is rare in one model may be usual in another. (Mirrored codes stay too near: a middle code is its own mirror image.)
    """
    take = rows[rng.permutation(len(rows))[:most]]
    found = _moved(domain, take, rng)
    coded = np.flatnonzero(domain.coded)
    for column, other in zip(coded.tolist(), rng.permutation(coded).tolist(), strict=True):
        codes = np.asarray(domain.codes[column])
        known, index = np.unique(take[:, other], return_inverse=True)
        names = rng.permutation(max(len(codes), len(known))) % len(codes)
        found[:, column] = codes[names[index]]
    return domain.emit(found)
