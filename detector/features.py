"""The feature map: measures everything about a query that needs no memory of its client, in one pass over a poll's rows.

`FeatureMap.measure` turns a `QueryBatch` into `Measured` columns: content hash, oddness bits, *region*, distance bin, remembered codes.
The map is fitted on the reference alone (`fitting/feature_map.py`). `BITS` names the oddness bits, `BLOCKS` the blocks of the linear sum.

Rules:

* Every number is computed row by row (`kernels.py`): a bit never depends on the batch.
* ``x`` is float64 throughout; a category is its code in the schema.
* A level decides whether a query is odd. Each measure has two: ``rare`` (about 1 % of honest queries) and ``beyond`` (farther than the
  reference ever goes).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector import kernels, misfit, patches
from detector.query import Misfit, QueryBatch
from detector.text import TextEncoder, text_measures
from detector.trees import Forest, Trees

Codes = NDArray[np.uint8 | np.uint16]

MEASURES = ("novelty", "residual", "part", "mix", "step", "jitter", "margin", "lattice", "misfit")
"""What is odd about one query, alone; bit 2i is measure i's *rare* level, bit 2i + 1 its *beyond* level."""

BITS: dict[str, int] = {
    **{f"{m}_rare": 1 << 2 * i for i, m in enumerate(MEASURES)},
    **{f"{m}_beyond": 1 << 2 * i + 1 for i, m in enumerate(MEASURES)},
    # set by the fold, which remembers earlier rows of the client
    **{b: 1 << 2 * len(MEASURES) + i for i, b in enumerate(("novel", "stepped", "flipped", "collinear", "distant"))},
    # a misfit that fewer than half of the honest queries have; how often is too often is learned (`misfit_allowance`)
    "misfit": 1 << 23,
}
"""Bits of one odd query. They are stored in 24 bits."""

ODD = sum(1 << b for b in range(2 * len(MEASURES))) | BITS["misfit"]
"""A query with any of these bits enters the odd set: it is odd by itself, in whatever order it came."""

PATCHED = sum(3 << 2 * i for i, m in enumerate(MEASURES) if m not in ("margin", "misfit"))
"""A query with any of these bits has an odd patch (patches.py): how sure the model is of an answer is no place, nor is a misfit."""

SEQUENCE = BITS["stepped"] | BITS["flipped"] | BITS["collinear"]
"""A query with any of these bits enters the path set: it is odd by what came before it."""

REGIONS = 64
DISTANCE_BINS = 16
MAX_CLASSES = 256
WIDE = 64
"""Above this many columns the client's memory keeps quantised projections instead of codes of the columns."""

_UNREADABLE = int(Misfit.UNREADABLE)

RAW_KEPT = 16
"""Wide inputs: the last rows that are remembered column by column."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the input.

    name          a dotted name is a path into nested objects
    kind          numeric | boolean | categorical | embedding | text
    lower, upper  bounds of the reference
    grain         lattice of the reference's values, 0 when they are continuous
    categories    names in the order of their codes
    missing       share of the reference's rows that have no value here
    """

    name: str
    kind: str
    lower: float
    upper: float
    grain: float
    categories: tuple[str, ...] = ()
    missing: float = 0.0


@dataclass(frozen=True, slots=True)
class Schema:
    """Columns of the input and shape of the answer.

    input_form  features | embedding | text
    named       the log gives features as an object, name → value
    task        classification | regression | generation | embedding
    labels      class names as logged, in the order of the probabilities
    encoder     of texts: what turns an input into the columns; None: inputs are the columns
    """

    columns: tuple[Column, ...]
    input_form: str
    named: bool
    task: str
    labels: tuple[str, ...]
    encoder: TextEncoder | None = field(default=None, repr=False, compare=False)

    @property
    def of_texts(self) -> bool:
        return self.input_form == "text"

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def categorical(self) -> NDArray[np.bool_]:
        """Whether each column holds categories, (d,)."""
        return np.array([c.kind == "categorical" for c in self.columns])

    @property
    def category_counts(self) -> NDArray[np.int64]:
        """Number of categories of each column, 0 for a column of numbers, (d,)."""
        return np.array([len(c.categories) if c.kind == "categorical" else 0 for c in self.columns], np.int64)


def infer_grain(values: NDArray[np.float64]) -> float:
    """Largest g such that all values are multiples of g, 0 when they look continuous.

    >>> infer_grain(np.array([0.0, 0.25, 0.75]))
    0.25
    """
    distinct = np.unique(values)
    if len(distinct) < 2:
        return 0.0
    for places in range(7):
        scaled = distinct * 10.0**places
        whole = np.rint(scaled)
        if np.abs(whole).max() > 2**53:
            return 0.0
        if np.allclose(scaled, whole, rtol=0, atol=1e-4):
            step = int(np.gcd.reduce(np.abs(whole).astype(np.int64)))
            span = float(distinct[-1] - distinct[0])
            grain = step / 10.0**places
            # a lattice finer than the sample could show is no lattice
            return grain if grain > 0 and span / grain <= 65_536 else 0.0
    return 0.0


@dataclass(slots=True)
class Measured:
    """What is known of n queries without the client's memory.

    hashes    (n,) uint64, 48-bit keyed content hash
    bits      (n,) uint32, oddness bits of `BITS`
    misfit    (n,) bool, whether the query does not fit the schema
    regions   (n,) int16 coverage region, −1 for an unreadable input: it has no place in the input space
    distance_bins  (n,) uint8, by distance to the nearest reference row
    patches   (n,) uint64, hash of the odd patch, 0 for a query that is not odd (patches.py)
    templates  as of `QueryBatch`
    codes     (n, w) uint8 or uint16 remembered codes
    raw       (n, d) float64 inputs as logged: NaN is a missing value
    """

    hashes: NDArray[np.uint64]
    bits: NDArray[np.uint32]
    misfit: NDArray[np.bool_]
    regions: NDArray[np.int16]
    distance_bins: NDArray[np.uint8]
    patches: NDArray[np.uint64]
    templates: NDArray[np.uint64]
    codes: Codes
    raw: NDArray[np.float64]


@dataclass(slots=True)
class FeatureMap:
    """Fitted on the reference; plain arrays only.

    Shapes: d columns, e expanded columns, m axes, r neighbours, w remembered codes, c classes.
    """

    schema: Schema
    center: NDArray[np.float64]  # (d,)
    scale: NDArray[np.float64]  # (d,)
    start: NDArray[np.int64]  # (d,) first expanded column
    category_counts: NDArray[np.int64]  # (d,) number of categories, 0: a number
    lattice: NDArray[np.float64]  # (d,) 0: continuous
    hash_grain: NDArray[np.float64]  # (d,)
    basis: NDArray[np.float64]  # (e, m)
    spread: NDArray[np.float64]  # (m,)
    neighbours: NDArray[np.float32]  # (m, r)
    region_of: NDArray[np.int16]  # (r,) coverage region of each neighbour
    region_at: NDArray[np.float64]  # (REGIONS, 2) where a region is drawn
    region_share: NDArray[np.float64]  # (REGIONS,) of the reference
    distance_edges: NDArray[np.float64]  # (DISTANCE_BINS - 1,)
    levels: NDArray[np.float64]  # (len(MEASURES), 2) rare, beyond; margin: negated, per label below
    margin_levels: NDArray[np.float64]  # (c or 1, 2) low margin by label: rare, beyond
    code_low: NDArray[np.float64]  # (w,)
    code_step: NDArray[np.float64]  # (w,)
    code_weight: NDArray[np.float64]  # (w,) of a squared code difference
    code_category: NDArray[np.int64]  # (w,) 1: differ or not
    common_value: NDArray[np.float64]  # (d,) most frequent value of a column
    agreement_bits: NDArray[np.float64]  # (2, d) surprise of agreeing in it, and in any other value
    donors: NDArray[np.float64]  # (r, d) reference rows whose values stand in for missing ones
    donor_weight: NDArray[np.float64]  # (d,) of a squared difference to a donor
    misfit_bits: NDArray[np.float64]  # (3, d) surprise of a missing, unseen, out-of-range value
    misfit_kinds: NDArray[
        np.float64
    ]  # (3,) surprise of a retyped value, an unreadable input, an answer that does not fit
    misfit_allowance: float  # share of its queries that an honest client may send as misfits
    agreement_level: float  # bits of agreement with a remembered row above which a query derives from it
    near: float  # distance below which a remembered row is a parent, not a stranger
    trees: dict[str, Trees] = field(default_factory=dict)
    # these are derived, and made when they are first asked for
    _patch_axes: NDArray[np.float64] | None = field(default=None, init=False, repr=False, compare=False)
    _forest: Forest | None = field(default=None, init=False, repr=False, compare=False)
    _code_dtype: type[np.uint8 | np.uint16] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def wide(self) -> bool:
        return self.schema.width > WIDE

    @property
    def code_dtype(self) -> type[np.uint8 | np.uint16]:
        """One byte a code where the reference's lattice fits into it, or for projections."""
        if self._code_dtype is None:
            self._code_dtype = np.uint8 if self.wide or self._fits_a_byte() else np.uint16
        return self._code_dtype

    def _fits_a_byte(self) -> bool:
        low, high = self.bounds()
        steps = np.where(self.lattice > 0, (high - low) / np.where(self.lattice > 0, self.lattice, 1.0), np.inf)
        steps = np.where(high > low, steps, 0.0)  # a constant column fits into anything
        most = np.where(self.category_counts > 0, 253, 255)  # categories leave a code for those that were never seen
        return bool(np.all(steps <= most)) and self.schema.width > 24

    @property
    def classes(self) -> int:
        return min(MAX_CLASSES, max(1, len(self.schema.labels)))

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        columns = self.schema.columns
        return np.array([c.lower for c in columns]), np.array([c.upper for c in columns])

    def measure(self, batch: QueryBatch, key: bytes) -> Measured:
        """Measure each query, in one pass over the rows.

        Parameters
        ----------
        batch : QueryBatch
            n queries of this model, d columns.
        key : bytes
            16 bytes, the sampling key of the content hash.

        Returns
        -------
        Measured
            n rows; none depends on any other row of the batch.

        Notes
        -----
        The measure ``margin`` needs probabilities: where answers are labels only it says nothing. Of an unreadable input only its misfit is
        known.
        """
        raw = np.ascontiguousarray(batch.inputs)
        n = len(raw)
        hashes = np.empty(n, np.uint64)
        k0, k1 = np.frombuffer(key, "<u8", 2)
        told = 0 if self.schema.of_texts else raw.shape[1]  # what identifies a text is its digest, which is the salt
        kernels.hash_rows(
            np.ascontiguousarray(raw[:, :told]), self.hash_grain[:told], misfit.salt_of(batch), k0, k1, hashes
        )
        x = self.complete(raw)
        z, residual, distance, nearest = self.locate(x)
        unreadable, nowhere = (batch.misfit & _UNREADABLE) != 0, np.zeros(n, bool)
        surprise = self.surprise(batch)
        bits = np.where(surprise >= misfit.WORTH_COUNTING, np.uint32(BITS["misfit"]), np.uint32(0))
        for i, odd in enumerate(self.oddness(x, distance, residual, surprise)):
            if odd is not None:
                # of an unreadable input nothing is known but that
                unknown = nowhere if MEASURES[i] == "misfit" else unreadable
                kernels.mark_levels(odd, unknown, self.levels[i], np.uint32(1 << 2 * i), bits)
        margin = margins(batch.probabilities)
        label = np.clip(batch.labels, 0, len(self.margin_levels) - 1)
        at = 2 * MEASURES.index("margin")
        with np.errstate(invalid="ignore"):
            bits |= np.where(margin < self.margin_levels[label, 0], np.uint32(1 << at), np.uint32(0))
            bits |= np.where(margin < self.margin_levels[label, 1], np.uint32(1 << at + 1), np.uint32(0))
        return Measured(
            hashes=hashes,
            bits=bits,
            misfit=batch.misfit != 0,
            regions=np.where(unreadable, np.int16(-1), self.region_of[nearest]),
            distance_bins=np.searchsorted(self.distance_edges, distance).astype(np.uint8),
            patches=patches.patches_of(z, np.flatnonzero(bits & np.uint32(PATCHED)), self.patch_axes),
            templates=batch.templates,
            codes=self.encode(raw, z, unreadable),
            raw=raw,
        )

    def complete(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows (n, d) as everything that computes with distances wants them: a known value in every place."""
        return misfit.Donors(self.donors, self.donor_weight, self.category_counts).complete(
            np.ascontiguousarray(inputs)
        )

    def surprise(self, batch: QueryBatch) -> NDArray[np.float64]:
        """Bits of surprise of each query's misfits, (n,)."""
        return misfit.surprise(batch, self.category_counts, self.misfit_bits, self.misfit_kinds)

    def locate(self, x: NDArray[np.float64], skip: NDArray[np.int64] | None = None) -> tuple[
        NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]
    ]:  # fmt: skip
        """Whitened coordinates (n, m), residual (n,), distance to the nearest reference row (n,), its index (n,). x is complete."""
        n = len(x)
        z = np.empty((n, self.basis.shape[1]))
        residual = np.empty(n)
        kernels.project_rows(
            x, self.center, self.scale, self.start, self.category_counts, self.basis, self.spread, z, residual
        )
        distance = np.empty(n)
        nearest = np.empty(n, np.int64)
        kernels.nearest_rows(z, self.neighbours, np.full(n, -1) if skip is None else skip, distance, nearest)
        return z, residual, distance, nearest

    def oddness(
        self,
        x: NDArray[np.float64],
        distance: NDArray[np.float64],
        residual: NDArray[np.float64],
        surprise: NDArray[np.float64] | None = None,
    ) -> list[NDArray[np.float64] | None]:
        """One column (n,) a measure of `MEASURES`, the larger the odder; None where the map has none (margin is by label).

        x is complete; surprise (n,) of the misfits, None where every row fits.
        """
        lattice = np.empty(len(x))
        kernels.off_lattice(x, self.lattice, lattice)
        table: dict[str, NDArray[np.float64]] = {
            "novelty": distance,
            "residual": residual,
            "lattice": lattice,
            "misfit": np.zeros(len(x)) if surprise is None else surprise,
            **dict(zip(self.trees, self.forest.score(x), strict=True)),
        }
        if self.schema.of_texts:
            table |= text_measures(x)
        return [table.get(m) for m in MEASURES]

    @property
    def forest(self) -> Forest:
        """All trees side by side; made when it is first asked for, and anew after a change of the trees."""
        if self._forest is None or not self._forest.is_of(self.trees.values()):
            self._forest = Forest.of(self.trees.values())
        return self._forest

    @property
    def patch_axes(self) -> NDArray[np.float64]:
        """Directions of the grid of patches, (m, `patches.AXES`)."""
        if self._patch_axes is None:
            self._patch_axes = patches.directions(self.basis.shape[1])
        return self._patch_axes

    @property
    def missing_code(self) -> int:
        """The remembered code of a missing value; no number and no category has it."""
        return int(np.iinfo(self.code_dtype).max)

    def encode(
        self, inputs: NDArray[np.float64], z: NDArray[np.float64], unreadable: NDArray[np.bool_] | None = None
    ) -> Codes:
        """Remembered codes (n, w) of rows as logged, with their coordinates; unreadable (n,): rows that have no value at all."""
        source = z[:, : len(self.code_low)] if self.wide else inputs
        codes: Codes = np.empty(source.shape, self.code_dtype)
        kernels.encode_rows(np.ascontiguousarray(source), self.code_low, self.code_step, self.missing_code - 1, codes)
        if unreadable is not None and unreadable.any():
            codes[unreadable] = self.missing_code
        return codes

    @property
    def map_id(self) -> str:
        """Identity of the map: profiles of another map are refused."""
        digest = hashlib.sha256()
        for name in ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        for name, t in sorted(self.trees.items()):
            digest.update(name.encode() + t.threshold.tobytes() + t.value.tobytes() + t.feature.tobytes())
        digest.update(repr((self.schema, self.near, self.agreement_level, self.misfit_allowance)).encode())
        if self.schema.encoder is not None:
            digest.update(self.schema.encoder.identity.encode())
        return digest.hexdigest()[:16]


ARRAYS = (
    "center", "scale", "start", "category_counts", "lattice", "hash_grain", "basis", "spread", "neighbours", "region_of", "region_at",
    "region_share", "distance_edges", "levels", "margin_levels", "code_low", "code_step", "code_weight", "code_category",
    "common_value", "agreement_bits", "donors", "donor_weight", "misfit_bits", "misfit_kinds",
)  # fmt: skip
"""The arrays of a map, as stored in a baseline file."""

BLOCKS: dict[str, str] = {
    "classes": "queries by predicted class",
    "regions": "queries by region",
    "distances": "queries by distance to the nearest reference row",
}
"""Blocks of the linear sum; merge is addition."""


def margins(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return p1 − p2 of each answer, (n,), in [0, 1]; NaN where it was a label only or there are fewer than two classes.

    >>> margins(np.array([[0.75, 0.25]], np.float32)).tolist()
    [0.5]
    """
    n, c = probabilities.shape
    if c < 2:
        return np.full(n, np.nan)
    top = np.partition(probabilities, c - 2, axis=1)[:, c - 2 :]
    return (top[:, 1] - top[:, 0]).astype(np.float64)
