"""The named groups of arrays that compiled kernels take, and the sizes of their parts.

Rules:

* A group is a NamedTuple, which Numba passes as it is: each array is known by its name, and no order of arguments is a contract.
* A new array is added here and to the layout in `profile.py` or `archive.py`; a test compares the names.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ODD_KEPT = 512
SEQUENCE_KEPT = 128
SAMPLE_KEPT = 192
MEMORY_BYTES = 6144
LADDER_STEPS = 72
LADDER_FIRST = 0.15
LADDER_GROWTH = 1.08
PARENTS = 3


class PollRows(NamedTuple):
    """The n rows of a poll, in log order.

    slot     (n,) row of each client in `ClientArrays` and `Memory`
    hashes, bits, misfit, regions, distance_bins, codes, raw  as in `features.Measured`
    labels   (n,) predicted class, below 0 where there is none
    time_ms  (n,) time at which the query counts
    """

    slot: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    bits: NDArray[np.uint32]
    misfit: NDArray[np.bool_]
    regions: NDArray[np.int16]
    distance_bins: NDArray[np.uint8]
    labels: NDArray[np.int32]
    time_ms: NDArray[np.int64]
    codes: NDArray[Any]
    raw: NDArray[np.float64]


class MapArrays(NamedTuple):
    """What the fold needs of a feature map of d columns, of which w are remembered as codes.

    missing        code of a missing value; code_low, code_step, code_weight, code_category (w,) as in `features.FeatureMap`
    common_value   (d,), agreement_bits (2, d), agreement_level: as in `features.FeatureMap`
    near2          squared distance up to which a remembered row is a parent
    lattice, grain (d,) lattice of the reference's values, and the smallest difference that a content hash sees
    low, top       (d,) bounds of the reference; high (d,): `top`, −inf for a category, so that no move of it is a step
    raw_step       (d,) one step of the codes in which wide rows are remembered column by column
    unit           (u, d) scales in which a step may be constant
    wide           codes are projections, and columns are remembered for the last rows only
    """

    missing: int
    code_low: NDArray[np.float64]
    code_step: NDArray[np.float64]
    code_weight: NDArray[np.float64]
    code_category: NDArray[np.int64]
    common_value: NDArray[np.float64]
    agreement_bits: NDArray[np.float64]
    agreement_level: float
    near2: float
    lattice: NDArray[np.float64]
    grain: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    top: NDArray[np.float64]
    raw_step: NDArray[np.float64]
    unit: NDArray[np.float64]
    wide: bool


class ClientArrays(NamedTuple):
    """One row a client.

    window   the half-horizon window that it has reached
    span     (…, 2) rows of its long and its short span in `SpanArrays`; −1: there is no short one yet
    archive  its row in `ArchiveArrays`; −1: it has none
    turned   a window began, and what the archive adds was not weighed since
    """

    window: NDArray[np.int64]
    span: NDArray[np.int64]
    archive: NDArray[np.int64]
    turned: NDArray[np.bool_]


class SpanArrays(NamedTuple):
    """One row a span of a client: sum, sets, running maxima, first-passage times. Shapes and types: `profile.span_layout`.

    odd_counts  (…, s) members of the odd set or the sequence set that carry all bits of each signal
    """

    queries: NDArray[np.int64]
    first_ms: NDArray[np.int64]
    last_ms: NDArray[np.int64]
    classes: NDArray[np.int64]
    region_counts: NDArray[np.int64]
    distance_counts: NDArray[np.int64]
    sample_hash: NDArray[np.uint64]
    sample_novel: NDArray[np.bool_]
    sample_misfit: NDArray[np.bool_]
    sample_n: NDArray[np.int64]
    odd_hash: NDArray[np.uint64]
    odd_bits: NDArray[np.uint32]
    odd_n: NDArray[np.int64]
    sequence_hash: NDArray[np.uint64]
    sequence_bits: NDArray[np.uint32]
    sequence_n: NDArray[np.int64]
    odd_counts: NDArray[np.int64]
    maxima: NDArray[np.float64]
    passage_ms: NDArray[np.int64]
    passage_query: NDArray[np.int64]
    passage_n: NDArray[np.int64]


class Memory(NamedTuple):
    """Remembered rows, one row of each array a client; without that axis: those of one client.

    ring_*       the last rows, a ring buffer; `ring_n` counts all that ever entered it
    reservoir_*  of the rows that left the ring buffer those with the smallest content hashes
    raw_ring     wide inputs: the last rows column by column
    """

    ring_hash: NDArray[np.uint64]
    ring_label: NDArray[np.int32]
    ring_codes: NDArray[Any]
    ring_n: NDArray[np.int64]
    reservoir_hash: NDArray[np.uint64]
    reservoir_label: NDArray[np.int32]
    reservoir_codes: NDArray[Any]
    reservoir_n: NDArray[np.int64]
    raw_ring: NDArray[np.uint16]
