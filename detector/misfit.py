"""Misfits: how surprising the parts of a query are that do not fit the schema, and which values stand in for them.

A query that does not fit the schema was answered, so it counts. `inputs` carries codes of its own for values that are missing, unseen or
out of range (`query.QueryBatch`).

Rules:

* `complete` puts a plausible value in their place for every computation of distances: that of the reference row that is nearest in the
  columns that are present (nearest-neighbour hot-deck imputation; Andridge & Little, Int. Stat. Rev. 2010). So the other measures judge
  what was sent and nothing else. The content hash, the remembered codes and the measure ``misfit`` still see the codes: nothing is
  replaced silently.
* The measure ``misfit`` is the surprise of a query's misfits in bits: −log2 of the share of honest queries that have this misfit in this
  column, summed over columns (self-information; columns are taken as independent). Empty values that a fleet sends all day cost nothing.

It does not work where honest clients have not been seen yet: the first client of a new integration that sends empty values looks like a
thief that sends empty values. So a misfit alone never blocks (`policy.py`), and a misfit that many clients share raises a schema alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector import kernels
from detector.query import Misfit, QueryBatch

OUT_OF_RANGE = 1e12
"""Absolute values above this are out of range; they compute as this."""
WORTH_COUNTING = 1.0
"""Bits of surprise from which a misfit counts: more than half of the honest queries do not have it."""
LEAST_ALLOWANCE, MOST_ALLOWANCE = 0.02, 0.9
HONEST_CLIENTS = 0.9
"""Share of the honest clients whose own share of misfits the allowance covers."""
FEWEST_QUERIES = 20
MAX_DONORS = 256
FEWEST_DONORS = 50
STATES = (Misfit.MISSING, Misfit.OTHER, Misfit.OUT_OF_RANGE)
"""Misfits of one value, by column; the rows of `column_bits`."""
KINDS = (Misfit.RETYPED, Misfit.UNREADABLE, Misfit.ANSWER)
"""Misfits of a whole query; the entries of `kind_bits`."""
_WHOLE = int(Misfit.RETYPED | Misfit.ANSWER)

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Donors:
    """Reference rows whose values stand in for what is missing.

    rows    (r, d) complete reference rows, r ≤ `MAX_DONORS`
    weight  (d,) of a squared difference; a category that differs counts as one
    category_counts  (d,) number of categories, 0 for a number
    """

    rows: Numbers
    weight: Numbers
    category_counts: NDArray[np.int64]

    @classmethod
    def of(cls, inputs: Numbers, category_counts: NDArray[np.int64]) -> Donors:
        """Donors of a reference (n, d); rows that lack a value are donors only where there are too few others."""
        known = ~(np.isnan(inputs) | np.isinf(inputs) | ((category_counts > 0) & (inputs >= category_counts)))
        middle = np.zeros(len(category_counts))
        for j in np.flatnonzero(known.any(0)).tolist():
            ordered = np.sort(inputs[known[:, j], j])
            middle[j] = ordered[(len(ordered) - 1) // 2]
        whole = np.where(known, inputs, middle)
        usable = whole[known.all(1)] if known.all(1).sum() >= FEWEST_DONORS else whole
        rows = usable[np.unique(np.linspace(0, len(usable) - 1, MAX_DONORS).astype(int))]
        spread = whole.std(0)
        weight = np.where(
            spread > 1e-9, 1.0 / np.maximum(spread, 1e-9) ** 2, 0.0
        )  # a constant column tells no donor from another
        return cls(np.ascontiguousarray(rows), np.where(category_counts > 0, 1.0, weight), category_counts)

    def complete(self, inputs: Numbers) -> Numbers:
        """Rows (n, d) with a known value in every place; the same array where there is one already."""
        if not kernels.any_misfit(inputs, self.category_counts):
            return inputs
        out = np.empty_like(inputs)
        kernels.complete_rows(inputs, self.rows, self.weight, self.category_counts, OUT_OF_RANGE, out)
        return out


def states(inputs: Numbers, category_counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are missing, unseen, out of range: (3, n, d), in the order of `STATES`."""
    return np.stack(
        [np.isnan(inputs), (category_counts > 0) & (inputs >= category_counts), np.isinf(inputs) & (category_counts == 0)]
    )  # fmt: skip


def learn(batches: Sequence[QueryBatch], category_counts: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
    """Surprise of each misfit among honest queries: by column (3, d) and of whole queries (3,), in bits.

    Every client weighs the same. What no honest query had gets the bits of one query among all that were seen.
    """
    column, kind = np.zeros((3, len(category_counts))), np.zeros(3)
    weights = rows = 0.0
    for batch in batches:
        count = np.bincount(batch.who, minlength=1).astype(np.float64)
        weight = 1.0 / count[batch.who]
        readable = weight * ((batch.misfit & Misfit.UNREADABLE) == 0)
        for i, found in enumerate(states(batch.inputs, category_counts)):
            column[i] += readable @ found
        for i, flag in enumerate(KINDS):
            kind[i] += weight @ ((batch.misfit & flag) != 0)
        weights += float(weight.sum())
        rows += len(batch)
    least = 1.0 / (rows + 2.0)
    return tuple(-np.log2(np.clip(seen / max(weights, 1.0), least, 1.0)) + 0.0 for seen in (column, kind))  # type: ignore[return-value]


def allowance_of(honest: Sequence[QueryBatch], surprises: Sequence[Numbers]) -> float:
    """Share of its queries that an honest client may send as misfits.

    honest, surprises  queries and the surprise of each; clients with fewer than `FEWEST_QUERIES` say nothing
    """
    shares = []
    for batch, bits in zip(honest, surprises, strict=True):
        count = np.bincount(batch.who, minlength=1)
        misfits = np.bincount(batch.who, bits >= WORTH_COUNTING, minlength=1)
        shares += (misfits[count >= FEWEST_QUERIES] / count[count >= FEWEST_QUERIES]).tolist()
    usual = float(np.quantile(shares, HONEST_CLIENTS)) if shares else 0.0
    return min(MOST_ALLOWANCE, max(LEAST_ALLOWANCE, usual))


def salt_of(batch: QueryBatch) -> NDArray[np.uint64]:
    """What the content hash takes beside the inputs, (n,): a query's misfits must follow from its hash."""
    whole = (batch.misfit & _WHOLE).astype(np.uint64)
    return batch.salt + (whole << np.uint64(56))


def surprise(
    batch: QueryBatch, category_counts: NDArray[np.int64], column_bits: Numbers, kind_bits: Numbers
) -> Numbers:
    """Bits of surprise of each query's misfits, (n,); 0 for one that fits. Only queries with a flag are looked at."""
    out = np.zeros(len(batch))
    if batch.misfit.any():
        inputs = np.ascontiguousarray(batch.inputs)
        kernels.misfit_rows(inputs, batch.misfit, category_counts, column_bits, kind_bits, out)
    return out
