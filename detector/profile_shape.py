"""Sizes and types of the arrays that hold profiles, as a feature map gives them.

Rules: a size depends on the feature map and on constants only, so two processes with one baseline have the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from detector.features import DISTANCE_BINS, RAW_KEPT, REGIONS, FeatureMap
from detector.fold_arrays import LADDER_STEPS, MEMORY_BYTES, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT, Memory


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a feature map gives its profiles: classes, signals, rows of ring buffer and reservoir, code width and type, raw width."""

    classes: int
    signals: int
    ring: int
    reservoir: int
    width: int
    code: str
    raw: int

    @classmethod
    def of(cls, feature_map: FeatureMap, signals: int) -> Shape:
        width = len(feature_map.code_low)
        code = np.dtype(feature_map.code_dtype)
        rows = int(np.clip(MEMORY_BYTES // (width * code.itemsize + 8), 48, 256))
        return cls(
            classes=feature_map.classes,
            signals=signals,
            ring=2 * rows // 3,
            reservoir=rows - 2 * rows // 3,
            width=width,
            code=code.str,
            raw=feature_map.schema.width if feature_map.wide else 0,
        )


Layout = dict[str, tuple[tuple[int, ...], DTypeLike]]
"""Shape and type of one row of each array of a group, by name."""


def span_layout(shape: Shape) -> Layout:
    """One span of a client, as in `fold.SpanArrays`."""
    number: tuple[tuple[int, ...], DTypeLike] = ((), np.int64)
    return {
        # sum
        "queries": number,
        "first_ms": number,
        "last_ms": number,
        "classes": ((shape.classes,), np.int64),
        "region_counts": ((REGIONS,), np.int64),
        "distance_counts": ((DISTANCE_BINS,), np.int64),
        # sets
        "sample_hash": ((SAMPLE_KEPT,), np.uint64),
        "sample_novel": ((SAMPLE_KEPT,), np.bool_),
        "sample_misfit": ((SAMPLE_KEPT,), np.bool_),
        "sample_n": number,
        "odd_hash": ((ODD_KEPT,), np.uint64),
        "odd_bits": ((ODD_KEPT,), np.uint32),
        "odd_n": number,
        "sequence_hash": ((SEQUENCE_KEPT,), np.uint64),
        "sequence_bits": ((SEQUENCE_KEPT,), np.uint32),
        "sequence_n": number,
        "odd_counts": ((shape.signals,), np.int64),
        # running maxima and first-passage times
        "maxima": ((shape.signals,), np.float64),
        "passage_ms": ((LADDER_STEPS,), np.int64),
        "passage_query": ((LADDER_STEPS,), np.int64),
        "passage_n": number,
    }


def memory_layout(shape: Shape) -> Layout:
    """The remembered rows of a client, as in `fold.Memory`."""
    return {
        "ring_hash": ((shape.ring,), np.uint64),
        "ring_label": ((shape.ring,), np.int32),
        "ring_codes": ((shape.ring, shape.width), np.dtype(shape.code)),
        "ring_n": ((), np.int64),
        "reservoir_hash": ((shape.reservoir,), np.uint64),
        "reservoir_label": ((shape.reservoir,), np.int32),
        "reservoir_codes": ((shape.reservoir, shape.width), np.dtype(shape.code)),
        "reservoir_n": ((), np.int64),
        "raw_ring": ((RAW_KEPT if shape.raw else 1, shape.raw), np.uint16),
    }


def rows_of(layout: Layout, n: int = 1) -> dict[str, NDArray[Any]]:
    """Arrays of n rows of zeros, by name."""
    return {name: np.zeros((n, *size), kind) for name, (size, kind) in layout.items()}


def empty_memory(shape: Shape) -> Memory:
    """The memory of one client that holds nothing."""
    return Memory(**{name: np.zeros(size, kind) for name, (size, kind) in memory_layout(shape).items()})
