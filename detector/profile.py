"""Profiles: what is kept of a client. A sum, sets, marks and a memory.

* **Sum**: linear counts and moments; merge is ``+``.
* **Sets**: the *sample* of distinct queries, the *odd set* (odd by themselves) and the *path set* (odd by what came before them),
  bottom-k by keyed content hash; merge is union, keep k.
* **Marks and trail**: running maxima of the signals' masses and when the fused one first reached each level; merge is
  maximum and earliest. They belong to one table of signals and one set of nulls (`nulls_version`).
* **Memory**: remembered rows of one shard, scratch; `merge` drops it.

Merge of (sum, sets, marks, trail) is associative, commutative, has the empty profile as zero, and on the sum and the sets equals the
profile of the unsplit stream (float sums within 1e-9). `Profiles` keeps one row a client in flat arrays and folds a whole poll
of many clients in one compiled call; `Profile` is one client's state by itself, for storage, merging and assessment.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.errors import IncompatibleProfile
from detector.features import CELLS, DISTANCE_BINS, MARGIN_BINS, RAW_KEPT, FeatureMap, Measured
from detector.fold import (
    MEMORY_BYTES,
    MOMENT_AXES,
    ODD_KEPT,
    PATH_KEPT,
    SAMPLE_KEPT,
    TRAIL_LEVELS,
    Masses,
    fold_rows,
    kept_estimate,
)
from detector.query import QueryBatch

FORMAT = 1
_HEAD = struct.Struct("<2sB8s8siqdqqHHHBIHB")
_ROOT = np.uint32(1 << 16)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes that a feature map gives its profiles: classes, signals, memory rows (ring and low), code width and type, raw width."""

    classes: int
    signals: int
    ring: int
    low: int
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
            ring=rows // 2,
            low=rows - rows // 2,
            width=width,
            code=code.str,
            raw=feature_map.schema.width if feature_map.wide else 0,
        )


LAYOUT: dict[str, tuple[str, Callable[[Shape], tuple[int, ...]]]] = {
    # sum
    "queries": ("<i8", lambda s: ()),
    "volume": ("<f8", lambda s: ()),
    "first_ms": ("<i8", lambda s: ()),
    "last_ms": ("<i8", lambda s: ()),
    "classes": ("<i8", lambda s: (s.classes,)),
    "cell_counts": ("<i8", lambda s: (CELLS,)),
    "distance_counts": ("<i8", lambda s: (DISTANCE_BINS,)),
    "margin_counts": ("<i8", lambda s: (MARGIN_BINS,)),
    "moments": ("<f8", lambda s: (2, MOMENT_AXES)),
    # sets
    "sample_hash": ("<u8", lambda s: (SAMPLE_KEPT,)),
    "sample_root": ("|b1", lambda s: (SAMPLE_KEPT,)),
    "sample_n": ("<i8", lambda s: ()),
    "odd_hash": ("<u8", lambda s: (ODD_KEPT,)),
    "odd_bits": ("<u4", lambda s: (ODD_KEPT,)),
    "odd_n": ("<i8", lambda s: ()),
    "path_hash": ("<u8", lambda s: (PATH_KEPT,)),
    "path_bits": ("<u4", lambda s: (PATH_KEPT,)),
    "path_n": ("<i8", lambda s: ()),
    "odd_counts": ("<i8", lambda s: (s.signals,)),
    # marks
    "marks": ("<f8", lambda s: (s.signals,)),
    "trail_ms": ("<i8", lambda s: (TRAIL_LEVELS,)),
    "trail_query": ("<i8", lambda s: (TRAIL_LEVELS,)),
    "trail_n": ("<i8", lambda s: ()),
    # memory
    "ring_hash": ("<u8", lambda s: (s.ring,)),
    "ring_label": ("<i4", lambda s: (s.ring,)),
    "ring_codes": ("code", lambda s: (s.ring, s.width)),
    "ring_n": ("<i8", lambda s: ()),
    "low_hash": ("<u8", lambda s: (s.low,)),
    "low_label": ("<i4", lambda s: (s.low,)),
    "low_codes": ("code", lambda s: (s.low, s.width)),
    "low_n": ("<i8", lambda s: ()),
    "raw_ring": ("<u2", lambda s: (RAW_KEPT if s.raw else 1, s.raw)),
}
"""The state of one client: name → type and shape. The order is that of `fold_rows`' arguments."""

MEMORY = ("ring_hash", "ring_label", "ring_codes", "ring_n", "low_hash", "low_label", "low_codes", "low_n", "raw_ring")


@dataclass(slots=True)
class Profile:
    """One client's state, trimmed: sets hold only what is filled. `memory` is None once merged; `parts`: how many were merged."""

    map_id: str
    nulls_version: str
    window: int
    queries: int
    volume: float
    first_ms: int
    last_ms: int
    classes: NDArray[np.int64]
    cell_counts: NDArray[np.int64]
    distance_counts: NDArray[np.int64]
    margin_counts: NDArray[np.int64]
    moments: NDArray[np.float64]
    sample_hash: NDArray[np.uint64]
    sample_root: NDArray[np.bool_]
    odd_hash: NDArray[np.uint64]
    odd_bits: NDArray[np.uint32]
    path_hash: NDArray[np.uint64]
    path_bits: NDArray[np.uint32]
    marks: NDArray[np.float64]
    trail_ms: NDArray[np.int64]
    trail_query: NDArray[np.int64]
    memory: dict[str, Array] | None = field(default=None, repr=False)
    parts: int = 1

    @classmethod
    def empty(cls, map_id: str, nulls_version: str, classes: int, signals: int) -> Profile:
        return cls(
            map_id, nulls_version, 0, 0, 0.0, 0, 0,
            np.zeros(classes, np.int64), np.zeros(CELLS, np.int64), np.zeros(DISTANCE_BINS, np.int64),
            np.zeros(MARGIN_BINS, np.int64), np.zeros((2, MOMENT_AXES)),
            np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros(0, np.uint64), np.zeros(0, np.uint32),
            np.zeros(0, np.uint64), np.zeros(0, np.uint32),
            np.zeros(signals), np.zeros(0, np.int64), np.zeros(0, np.int64),
        )  # fmt: skip

    # ------------------------------------------------------------------ what it knows

    @property
    def distinct(self) -> float:
        """Distinct queries: exact below `SAMPLE_KEPT`, unbiased above."""
        m = len(self.sample_hash)
        return float(kept_estimate(m, self.sample_hash[-1], SAMPLE_KEPT)) if m else 0.0

    @property
    def roots(self) -> float:
        """Distinct queries that were far from everything remembered of the client when they came."""
        m = len(self.sample_hash)
        return self.distinct * int(self.sample_root.sum()) / m if m else 0.0

    def odd_counts(self, table: Masses) -> NDArray[np.float64]:
        """Distinct queries that carry all bits of each signal, (s,)."""
        out = np.zeros(len(table.need))
        for hashes, bits, kept, mine in (
            (self.odd_hash, self.odd_bits, ODD_KEPT, ~table.path),
            (self.path_hash, self.path_bits, PATH_KEPT, table.path),
        ):
            if len(hashes):
                factor = float(kept_estimate(len(hashes), hashes[-1], kept)) / len(hashes)
                out += np.where(mine, factor * ((bits[:, None] & table.need) == table.need).sum(0), 0.0)
        return out

    # ------------------------------------------------------------------ algebra

    def merge(self, other: Profile) -> Profile:
        """The profile of both streams together; raises IncompatibleProfile across maps."""
        if self.map_id != other.map_id:
            raise IncompatibleProfile(f"profiles of maps {self.map_id} and {other.map_id} do not merge")
        if not self.queries or not other.queries:
            full = other if other.queries else self
            return _replace(full, memory=None)
        sample_hash, sample_root = _union(
            SAMPLE_KEPT, (self.sample_hash, self.sample_root), (other.sample_hash, other.sample_root)
        )
        odd_hash, odd_bits = _union_marked(ODD_KEPT, (self.odd_hash, self.odd_bits), (other.odd_hash, other.odd_bits))
        path_hash, path_bits = _union_marked(
            PATH_KEPT, (self.path_hash, self.path_bits), (other.path_hash, other.path_bits)
        )
        same = self.nulls_version == other.nulls_version
        newer = self if self.last_ms >= other.last_ms else other
        trail = _earliest(self, other) if same else (newer.trail_ms, newer.trail_query)
        return Profile(
            map_id=self.map_id,
            nulls_version=newer.nulls_version,
            window=max(self.window, other.window),
            queries=self.queries + other.queries,
            volume=self.volume + other.volume,
            first_ms=min(self.first_ms, other.first_ms),
            last_ms=max(self.last_ms, other.last_ms),
            classes=self.classes + other.classes,
            cell_counts=self.cell_counts + other.cell_counts,
            distance_counts=self.distance_counts + other.distance_counts,
            margin_counts=self.margin_counts + other.margin_counts,
            moments=self.moments + other.moments,
            sample_hash=sample_hash,
            sample_root=sample_root,
            odd_hash=odd_hash,
            odd_bits=odd_bits,
            path_hash=path_hash,
            path_bits=path_bits,
            marks=np.maximum(self.marks, other.marks) if same else newer.marks,
            trail_ms=trail[0],
            trail_query=trail[1],
            memory=None,
            parts=self.parts + other.parts,
        )

    # ------------------------------------------------------------------ bytes

    def to_bytes(self) -> bytes:
        """Compact little-endian form with a checksum; grows with what the client has done, to a bound."""
        memory = self.memory
        head = _HEAD.pack(
            b"QP", FORMAT, bytes.fromhex(self.map_id), bytes.fromhex(self.nulls_version), self.window, self.queries, self.volume,
            self.first_ms, self.last_ms, len(self.sample_hash), len(self.odd_hash), len(self.path_hash), len(self.trail_ms),
            int(memory["ring_n"]) if memory else 0, int(memory["low_n"]) if memory else 0, 1 if memory else 0,
        )  # fmt: skip
        parts = [head]
        parts += [_pack_counts(c) for c in (self.classes, self.cell_counts, self.distance_counts, self.margin_counts)]
        parts.append(
            self.moments.astype("<f8").tobytes() if self.queries > 1 else self.moments[0].astype("<f8").tobytes()
        )
        parts += [_pack_hashes(self.sample_hash), np.packbits(self.sample_root).tobytes()]
        for hashes, bits in ((self.odd_hash, self.odd_bits), (self.path_hash, self.path_bits)):
            parts += [_pack_hashes(hashes), bits.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()]
        parts += [
            _pack_sparse(self.marks),
            self.trail_ms.astype("<i8").tobytes(),
            self.trail_query.astype("<u4").tobytes(),
        ]
        if memory:
            rows = min(int(memory["ring_n"]), len(memory["ring_hash"]))
            low = int(memory["low_n"])
            parts += [_pack_hashes(memory["ring_hash"][:rows]), memory["ring_label"][:rows].astype("<i2").tobytes()]
            parts += [memory["ring_codes"][:rows].tobytes()]
            parts += [_pack_hashes(memory["low_hash"][:low]), memory["low_label"][:low].astype("<i2").tobytes()]
            parts += [memory["low_codes"][:low].tobytes()]
            raw = memory["raw_ring"]
            parts += [raw[: min(int(memory["ring_n"]), len(raw))].tobytes() if raw.shape[-1] else b""]
        body = b"".join(parts)
        return body + zlib.crc32(body).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, blob: bytes, shape: Shape) -> Profile:
        """Raises IncompatibleProfile for anything that `to_bytes` of this format did not write."""
        if (
            len(blob) < _HEAD.size + 4
            or blob[:2] != b"QP"
            or zlib.crc32(blob[:-4]) != int.from_bytes(blob[-4:], "little")
        ):
            raise IncompatibleProfile("not a profile, or damaged")
        if blob[2] != FORMAT:
            raise IncompatibleProfile(f"profile format {blob[2]}, this version reads {FORMAT}")
        (
            _,
            _,
            map_id,
            nulls,
            window,
            queries,
            volume,
            first,
            last,
            n_sample,
            n_odd,
            n_path,
            n_trail,
            ring_n,
            low_n,
            has,
        ) = _HEAD.unpack(blob[: _HEAD.size])
        at = _Reader(blob, _HEAD.size)
        counts: list[Any] = [at.counts(n) for n in (shape.classes, CELLS, DISTANCE_BINS, MARGIN_BINS)]
        moments = np.zeros((2, MOMENT_AXES))
        if queries > 1:
            moments[:] = at.array("<f8", (2, MOMENT_AXES))
        else:
            moments[0] = at.array("<f8", (MOMENT_AXES,))
            moments[1] = moments[0] ** 2
        sample_hash = at.hashes(n_sample)
        sample_root = np.unpackbits(at.array("u1", ((n_sample + 7) // 8,)), count=n_sample).astype(bool)
        odd_hash, odd_bits = at.marked(n_odd)
        path_hash, path_bits = at.marked(n_path)
        marks = at.sparse(shape.signals)
        trail_ms = at.array("<i8", (n_trail,)).astype(np.int64)
        trail_query = at.array("<u4", (n_trail,)).astype(np.int64)
        memory = None
        if has:
            memory = {name: np.zeros(LAYOUT[name][1](shape), _dtype(name, shape)) for name in MEMORY}
            rows = min(ring_n, shape.ring)
            memory["ring_n"] = np.array(ring_n)
            memory["low_n"] = np.array(low_n)
            for kind, count in (("ring", rows), ("low", low_n)):
                memory[f"{kind}_hash"][:count] = at.hashes(count)
                memory[f"{kind}_label"][:count] = at.array("<i2", (count,))
                memory[f"{kind}_codes"][:count] = at.array(shape.code, (count, shape.width))
            if shape.raw:
                kept = min(ring_n, RAW_KEPT)
                memory["raw_ring"][:kept] = at.array("<u2", (kept, shape.raw))
        at.end()
        return cls(
            map_id.hex(), nulls.hex(), window, queries, volume, first, last, *counts, moments,
            sample_hash, sample_root, odd_hash, odd_bits, path_hash, path_bits, marks, trail_ms, trail_query, memory,
        )  # fmt: skip


class Profiles:
    """Many clients' profiles in flat arrays, one row each, for ingest.

    `keys` are whatever names a client (hashable). A client unknown here starts empty: load what is stored first.
    """

    def __init__(
        self, feature_map: FeatureMap, table: Masses, nulls_version: str, half_horizon_ms: int, capacity: int = 64
    ) -> None:
        self.map = feature_map
        self.table = table
        self.map_id = feature_map.map_id
        self.nulls_version = nulls_version
        self.half_horizon_ms = half_horizon_ms
        self.shape = Shape.of(feature_map, len(table.need))
        self.rows: dict[object, int] = {}
        self._free: list[int] = []
        self._window = np.full(capacity, -1, np.int64)
        self._state = {
            name: np.zeros((capacity, *shape(self.shape)), _dtype(name, self.shape))
            for name, (_, shape) in LAYOUT.items()
        }
        low, high = feature_map._bounds()
        self._step = np.maximum(high - low, 1e-9) / 65534.0
        unit = [np.ones(len(low))]
        if np.ptp(feature_map.scale) > 0.5 * feature_map.scale.max():
            unit += [np.maximum(high - low, 1e-9), feature_map.scale]
        self._unit = np.stack(unit)
        self._low, self._high = low, high
        # a step is a matter of numbers: a moved category explains nothing
        category = np.array([c.kind == "categorical" for c in feature_map.schema.columns])
        self._step_high = np.where(category, -np.inf, high)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def put(self, key: object, profile: Profile | None) -> None:
        """Take over a stored profile (None: start empty). One of another map or of other nulls keeps only what still holds."""
        row = self._row(key)
        for array in self._state.values():
            array[row] = 0
        self._window[row] = -1
        if profile is None:
            return
        if profile.map_id != self.map_id:
            raise IncompatibleProfile(f"profile of map {profile.map_id}, this baseline is {self.map_id}")
        state = self._state
        self._window[row] = profile.window
        for name in (
            "queries",
            "volume",
            "first_ms",
            "last_ms",
            "classes",
            "cell_counts",
            "distance_counts",
            "margin_counts",
            "moments",
        ):
            state[name][row] = getattr(profile, name)
        for kind, names in (
            ("sample", ("sample_hash", "sample_root")),
            ("odd", ("odd_hash", "odd_bits")),
            ("path", ("path_hash", "path_bits")),
        ):
            count = len(getattr(profile, names[0]))
            state[f"{kind}_n"][row] = count
            for name in names:
                state[name][row, :count] = getattr(profile, name)
        need, path = self.table.need, self.table.path
        held = [((bits[:, None] & need) == need).sum(0) for bits in (profile.odd_bits, profile.path_bits)]
        state["odd_counts"][row] = np.where(path, held[1], held[0])
        if profile.nulls_version == self.nulls_version:
            state["marks"][row] = profile.marks
            count = len(profile.trail_ms)
            state["trail_n"][row] = count
            state["trail_ms"][row, :count] = profile.trail_ms
            state["trail_query"][row, :count] = profile.trail_query
        for name, values in (profile.memory or {}).items():
            state[name][row] = values

    def drop(self, key: object) -> None:
        """Forget a client (it is stored elsewhere)."""
        row = self.rows.pop(key, None)
        if row is not None:
            self._free.append(row)

    def add(self, keys: list[object], batch: QueryBatch, measured: Measured) -> dict[tuple[object, int], bytes]:
        """Fold the rows of one poll; keys (g,) name the clients of `batch.clients`.

        Returns profiles of windows that ended within this poll: (key, window) → bytes, without their memory.
        """
        slots = np.array([self._row(k) for k in keys], np.int64)[batch.who]
        window = batch.time_ms // self.half_horizon_ms
        effective = _running_maximum(slots, window, self._window)
        ended: dict[tuple[object, int], bytes] = {}
        values = np.unique(effective)
        for value in values.tolist():
            rows = np.flatnonzero(effective == value)
            self._turn(np.unique(slots[rows]), value, ended)
            self._fold(slots[rows], batch, measured, rows if len(values) > 1 else None)
        return ended

    def profile(self, key: object) -> Profile:
        """A copy of one client's state."""
        return self._profile(self.rows[key], memory=True)

    def windows(self, keys: Iterable[object]) -> list[int]:
        return [int(self._window[self.rows[k]]) for k in keys]

    # ------------------------------------------------------------------ rows of the arrays

    def _row(self, key: object) -> int:
        row = self.rows.get(key)
        if row is None:
            if not self._free:
                self._grow()
            row = self._free.pop()
            self.rows[key] = row
            for array in self._state.values():
                array[row] = 0
            self._window[row] = -1
        return row

    def _grow(self) -> None:
        used = len(self.rows)
        capacity = len(self._window)
        if used < capacity:
            self._free = list(range(capacity - 1, used - 1, -1))
            return
        for name, array in self._state.items():
            self._state[name] = np.concatenate([array, np.zeros_like(array)])
        self._window = np.concatenate([self._window, np.full(capacity, -1, np.int64)])
        self._free = list(range(2 * capacity - 1, capacity - 1, -1))

    def _turn(self, slots: NDArray[np.int64], window: int, ended: dict[tuple[object, int], bytes]) -> None:
        late = slots[(self._window[slots] < window) & (self._window[slots] >= 0)]
        if len(late):
            names = {row: key for key, row in self.rows.items()}
            for row in late.tolist():
                ended[names[row], int(self._window[row])] = self._profile(row, memory=False).to_bytes()
                for name, array in self._state.items():
                    if name not in MEMORY:
                        array[row] = 0
        self._window[slots] = window

    def _fold(self, slots: NDArray[np.int64], batch: QueryBatch, m: Measured, rows: NDArray[np.intp] | None) -> None:
        def of(array: Array) -> Array:
            return array if rows is None else array[rows]

        fmap, t = self.map, self.table
        fold_rows(
            slots, of(m.hashes), of(m.bits), of(m.cells), of(m.distance_bins), of(m.margin_bins), of(batch.labels),
            of(batch.weight), of(batch.time_ms), of(m.z), of(m.codes), of(m.raw),
            fmap.code_low, fmap.code_step, fmap.code_weight, fmap.code_category, fmap.near**2, fmap.lattice, fmap.hash_grain,
            self._low, self._step_high, self._step, self._unit, fmap.wide,
            t.need, t.path, t.roots_base, t.form, t.allowance, t.fusing_scale, t.horizon_distinct,
            *self._state.values(),
        )  # fmt: skip

    def _profile(self, row: int, memory: bool) -> Profile:
        state = self._state
        n_sample, n_odd, n_path, n_trail = (int(state[f"{k}_n"][row]) for k in ("sample", "odd", "path", "trail"))
        return Profile(
            map_id=self.map_id,
            nulls_version=self.nulls_version,
            window=int(self._window[row]),
            queries=int(state["queries"][row]),
            volume=float(state["volume"][row]),
            first_ms=int(state["first_ms"][row]),
            last_ms=int(state["last_ms"][row]),
            **{
                n: state[n][row].copy()
                for n in ("classes", "cell_counts", "distance_counts", "margin_counts", "moments")
            },
            sample_hash=state["sample_hash"][row, :n_sample].copy(),
            sample_root=state["sample_root"][row, :n_sample].copy(),
            odd_hash=state["odd_hash"][row, :n_odd].copy(),
            odd_bits=state["odd_bits"][row, :n_odd].copy(),
            path_hash=state["path_hash"][row, :n_path].copy(),
            path_bits=state["path_bits"][row, :n_path].copy(),
            marks=state["marks"][row].copy(),
            trail_ms=state["trail_ms"][row, :n_trail].copy(),
            trail_query=state["trail_query"][row, :n_trail].copy(),
            memory={n: state[n][row].copy() for n in MEMORY} if memory else None,
        )


def _dtype(name: str, shape: Shape) -> np.dtype[np.generic]:
    kind = LAYOUT[name][0]
    return np.dtype(shape.code if kind == "code" else kind)


def _replace(profile: Profile, **changes: object) -> Profile:
    fields = {name: getattr(profile, name) for name in Profile.__dataclass_fields__}
    return Profile(**{**fields, **changes})


def _running_maximum(
    slots: NDArray[np.int64], window: NDArray[np.int64], stored: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Window in which each row is counted: never earlier than the client's newest so far."""
    window = np.maximum(window, stored[slots])
    if (window == window[0]).all():
        return window
    order = np.argsort(slots, kind="stable")
    lifted = window[order] - window.min() + slots[order] * (np.ptp(window) + 1)
    window[order] = np.maximum.accumulate(lifted) - slots[order] * (np.ptp(window) + 1) + window.min()
    return window


def _union(
    kept: int, one: tuple[NDArray[np.uint64], NDArray[np.bool_]], two: tuple[NDArray[np.uint64], NDArray[np.bool_]]
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The smallest `kept` hashes of both sets; a mark stays where both have it."""
    smallest, at = np.unique(np.concatenate([one[0], two[0]]), return_inverse=True)
    every = np.ones(len(smallest), bool)
    np.logical_and.at(every, at, np.concatenate([one[1], two[1]]))
    return smallest[:kept], every[:kept]


def _union_marked(
    kept: int, one: tuple[NDArray[np.uint64], NDArray[np.uint32]], two: tuple[NDArray[np.uint64], NDArray[np.uint32]]
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """The smallest `kept` hashes of both sets; bits are OR-ed, the root bit AND-ed."""
    smallest, at = np.unique(np.concatenate([one[0], two[0]]), return_inverse=True)
    bits = np.concatenate([one[1], two[1]])
    some = np.zeros(len(smallest), np.uint32)
    every = np.full(len(smallest), np.iinfo(np.uint32).max, np.uint32)
    np.bitwise_or.at(some, at, bits)
    np.bitwise_and.at(every, at, bits)
    return smallest[:kept], ((some & ~_ROOT) | (every & _ROOT))[:kept].astype(np.uint32)


def _earliest(one: Profile, two: Profile) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Level by level, the earlier of two trails."""
    long, short = (one, two) if len(one.trail_ms) >= len(two.trail_ms) else (two, one)
    ms, query = long.trail_ms.copy(), long.trail_query.copy()
    k = len(short.trail_ms)
    first = (short.trail_ms < ms[:k]) | ((short.trail_ms == ms[:k]) & (short.trail_query < query[:k]))
    ms[:k] = np.where(first, short.trail_ms, ms[:k])
    query[:k] = np.where(first, short.trail_query, query[:k])
    return ms, query


def _pack_hashes(hashes: Array) -> bytes:
    return hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :6].tobytes()


def _pack_counts(counts: NDArray[np.int64]) -> bytes:
    """Type code, then values; sparse (index, value) when that is shorter. Type 1, 2, 4, 8 bytes; +16 for sparse."""
    top = int(counts.max(initial=0))
    size = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 4 if top < 1 << 32 else 8
    used = np.flatnonzero(counts)
    if 1 + len(used) * (1 + size) < len(counts) * size and len(used) < 256:
        return bytes([16 + size, len(used)]) + used.astype("u1").tobytes() + counts[used].astype(f"<u{size}").tobytes()
    return bytes([size]) + counts.astype(f"<u{size}").tobytes()


def _pack_sparse(values: NDArray[np.float64]) -> bytes:
    used = np.flatnonzero(values)
    return bytes([len(used)]) + used.astype("u1").tobytes() + values[used].astype("<f8").tobytes()


class _Reader:
    """Cursor over a profile's bytes; every read is checked against the end."""

    def __init__(self, blob: bytes, start: int) -> None:
        self.blob = blob
        self.at = start
        self.stop = len(blob) - 4

    def array(self, dtype: str, shape: tuple[int, ...]) -> Array:
        count = int(np.prod(shape))
        size = count * np.dtype(dtype).itemsize
        if self.at + size > self.stop:
            raise IncompatibleProfile("profile ends too early")
        out = np.frombuffer(self.blob, dtype, count, self.at).reshape(shape)
        self.at += size
        return out

    def hashes(self, count: int) -> NDArray[np.uint64]:
        out = np.zeros((count, 8), np.uint8)
        out[:, :6] = self.array("u1", (count, 6))
        return out.reshape(-1).view("<u8").astype(np.uint64)

    def marked(self, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        hashes = self.hashes(count)
        return hashes, self.array("u1", (count, 3)).astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)

    def counts(self, width: int) -> NDArray[np.int64]:
        (code,) = self.array("u1", (1,)).tolist()
        size = code & 15
        if size not in (1, 2, 4, 8):
            raise IncompatibleProfile("profile counts of unknown type")
        if code < 16:
            return self.array(f"<u{size}", (width,)).astype(np.int64)
        (used,) = self.array("u1", (1,)).tolist()
        index = self.array("u1", (used,)).astype(np.int64)
        out = np.zeros(width, np.int64)
        if used and index.max() >= width:
            raise IncompatibleProfile("profile counts outside the map")
        out[index] = self.array(f"<u{size}", (used,)).astype(np.int64)
        return out

    def sparse(self, width: int) -> NDArray[np.float64]:
        (used,) = self.array("u1", (1,)).tolist()
        index = self.array("u1", (used,)).astype(np.int64)
        out = np.zeros(width)
        if used and index.max() >= width:
            raise IncompatibleProfile("profile marks outside the table")
        out[index] = self.array("<f8", (used,))
        return out

    def end(self) -> None:
        if self.at != self.stop:
            raise IncompatibleProfile("profile has trailing bytes")
