"""Reads profiles of formats 4 and 5, which older processes left in the store; they are written anew in the present format.

Rules:

* Format 4 has three sums that nothing reads (volume, counts by margin, moments): they are passed over.
* Both have the parts of format 6, with the sample's hashes always, and codes and answers of remembered rows always row by row.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.archive import ALL, KEPT, NONE, NOTHING, Archive, Faded
from detector.errors import IncompatibleProfile
from detector.features import DISTANCE_BINS, RAW_KEPT, REGIONS
from detector.fold_arrays import LADDER_STEPS, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT, Memory
from detector.packing import PackedReader
from detector.profile_shape import Shape, memory_layout

OLDER_FORMATS = (4, 5)
"""Versions that are read beside the present one."""
_HEAD = struct.Struct("<2sB8s8siqqqHHHBIHBd")
_HEAD_4 = struct.Struct("<2sB8s8siqdqqHHHBIHBd")
_VOLUME_4 = 6
_MARGIN_BINS_4 = 8
_MOMENTS_4 = 8
_ARCHIVE_HEAD = struct.Struct("<iBBB")


class OlderProfile(NamedTuple):
    """Fields of `profile.Profile`, in its order, as the bytes hold them."""

    map_id: str
    calibration_version: str
    window: int
    queries: int
    first_ms: int
    last_ms: int
    classes: NDArray[np.int64]
    region_counts: NDArray[np.int64]
    distance_counts: NDArray[np.int64]
    sample_hash: NDArray[np.uint64]
    sample_novel: NDArray[np.bool_]
    sample_misfit: NDArray[np.bool_]
    odd_hash: NDArray[np.uint64]
    odd_bits: NDArray[np.uint32]
    sequence_hash: NDArray[np.uint64]
    sequence_bits: NDArray[np.uint32]
    maxima: NDArray[np.float64]
    passage_ms: NDArray[np.int64]
    passage_query: NDArray[np.int64]
    memory: Memory | None
    parts: int
    decay: float
    archive: Archive


def read_older(blob: bytes, shape: Shape) -> OlderProfile:
    """Read a profile of format 4 or 5 whose checksum is right.

    Raises
    ------
    IncompatibleProfile
        The bytes end too early, or hold what nobody packed.
    """
    version = blob[2]
    form = _HEAD if version > 4 else _HEAD_4
    if len(blob) < form.size + 4:
        raise IncompatibleProfile("not a profile, or damaged")
    head = list(form.unpack(blob[: form.size]))
    if version == 4:
        del head[_VOLUME_4]
    (
        _,
        _,
        map_id,
        calibration,
        window,
        queries,
        first,
        last,
        n_sample,
        n_odd,
        n_sequence,
        n_passage,
        ring_n,
        reservoir_n,
        has,
        decay,
    ) = head
    if (
        n_sample > SAMPLE_KEPT
        or n_odd > ODD_KEPT
        or n_sequence > SEQUENCE_KEPT
        or n_passage > LADDER_STEPS
        or reservoir_n > shape.reservoir
        or not 0.0 <= decay < 1.0
    ):
        raise IncompatibleProfile("profile holds more than this map's profiles do")
    at = PackedReader(blob, form.size)
    classes, regions, distances = at.counts(shape.classes), at.counts(REGIONS), at.counts(DISTANCE_BINS)
    if version == 4:
        at.counts(_MARGIN_BINS_4)
        at.array("<f8", ((2 if queries > 1 else 1) * _MOMENTS_4,))
    sample_hash = at.hashes(n_sample)
    sample_novel, sample_misfit = at.flags(n_sample), at.flags(n_sample)
    odd_hash, odd_bits = at.marked(n_odd)
    sequence_hash, sequence_bits = at.marked(n_sequence)
    maxima = at.sparse(shape.signals)
    passage_ms = at.array("<i8", (n_passage,)).astype(np.int64)
    passage_query = at.array("<u4", (n_passage,)).astype(np.int64)
    memory = _read_memory(at, shape, ring_n, reservoir_n) if has & 1 else None
    archive = _read_archive(at) if has & 2 else NOTHING
    at.end()
    return OlderProfile(
        map_id.hex(), calibration.hex(), window, queries, first, last, classes, regions, distances,
        sample_hash, sample_novel, sample_misfit, odd_hash, odd_bits, sequence_hash, sequence_bits,
        maxima, passage_ms, passage_query, memory, 1, decay, archive,
    )  # fmt: skip


def _read_memory(at: PackedReader, shape: Shape, ring_n: int, reservoir_n: int) -> Memory:
    arrays = {name: np.zeros(size, kind) for name, (size, kind) in memory_layout(shape).items()}
    arrays["ring_n"], arrays["reservoir_n"] = np.array(ring_n), np.array(reservoir_n)
    for kind, count in (("ring", min(ring_n, shape.ring)), ("reservoir", reservoir_n)):
        arrays[f"{kind}_hash"][:count] = at.hashes(count)
        arrays[f"{kind}_label"][:count] = at.array("<i2", (count,))
        arrays[f"{kind}_codes"][:count] = at.array(shape.code, (count, shape.width))
    if shape.raw:
        kept = min(ring_n, RAW_KEPT)
        arrays["raw_ring"][:kept] = at.array("<u2", (kept, shape.raw))
    return Memory(**arrays)


def _read_archive(at: PackedReader) -> Archive:
    window, *sizes = _ARCHIVE_HEAD.unpack(at.array("u1", (_ARCHIVE_HEAD.size,)).tobytes())
    sets = []
    for size, kept in zip(sizes, KEPT, strict=True):
        limit = int.from_bytes(at.array("u1", (7,)).tobytes(), "little")
        hashes, bits = at.marked(size)
        ago = at.array("<u2", (size,)).astype(np.int64)
        if size > kept or not 0 < limit <= ALL or (size and int(hashes.max()) >= limit):
            raise IncompatibleProfile("profile archives more than it may hold")
        sets.append(Faded(hashes, bits, window - ago, limit) if size or limit < ALL else NONE)
    return Archive(window, (sets[0], sets[1], sets[2]))
