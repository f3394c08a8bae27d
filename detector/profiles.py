"""Many clients' profiles in flat arrays, one row each: what ingest folds a poll into.

* One compiled call folds a whole poll of many clients (`fold.fold_rows`); a Python object a client exists only on its way to or from
  storage (`Profile`).
* Event time is cut into half-horizon windows. A client is kept over two *spans*: the long one covers the window before and the
  current one and is what is assessed; the short one began with the current window and takes over when the next one begins.
  So marks and trail are exact over the whole span, whoever looks when, and nothing is merged over time. While a life began in
  the current window the two would be equal, and only the long one is kept. An older row counts in the newest window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from detector.errors import IncompatibleProfile
from detector.features import FeatureMap, Measured
from detector.fold import Masses, fold_rows
from detector.profile import LAYOUT, MEMORY, Array, Profile, Shape, dtype_of
from detector.query import QueryBatch

SUM = (
    "queries",
    "volume",
    "first_ms",
    "last_ms",
    "classes",
    "cell_counts",
    "distance_counts",
    "margin_counts",
    "moments",
)


class Profiles:
    """The table; `keys` name its rows.

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
        self._window = np.full(capacity, -1, np.int64)  # the current one of each client
        self._two = np.zeros(capacity, np.bool_)  # the short span is kept too
        self._state = {
            name: np.zeros((capacity, *_spans(name), *shape(self.shape)), dtype_of(name, self.shape))
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

    def put(self, key: object, long: Profile | None, short: Profile | None = None) -> None:
        """Take over stored spans (None: start empty). One of another map is refused; marks of other nulls begin anew."""
        row = self._row(key)
        self._clear(row)
        if long is None:
            return
        for profile in (long, short):
            if profile is not None and profile.map_id != self.map_id:
                raise IncompatibleProfile(f"profile of map {profile.map_id}, this baseline is {self.map_id}")
        self._window[row] = long.window if short is None else short.window
        self._two[row] = short is not None
        self._take(row, 0, long)
        if short is not None:
            self._take(row, 1, short)
        for name, values in (long.memory or {}).items():
            self._state[name][row] = values

    def _take(self, row: int, span: int, profile: Profile) -> None:
        state, at = self._state, (row, span)
        for name in SUM:
            state[name][at] = getattr(profile, name)
        for kind, names in (
            ("sample", ("sample_hash", "sample_root")),
            ("odd", ("odd_hash", "odd_bits")),
            ("path", ("path_hash", "path_bits")),
        ):
            count = len(getattr(profile, names[0]))
            state[f"{kind}_n"][at] = count
            for name in names:
                state[name][row, span, :count] = getattr(profile, name)
        need, path = self.table.need, self.table.path
        held = [((bits[:, None] & need) == need).sum(0) for bits in (profile.odd_bits, profile.path_bits)]
        state["odd_counts"][at] = np.where(path, held[1], held[0])
        if profile.nulls_version == self.nulls_version:
            state["marks"][at] = profile.marks
            count = len(profile.trail_ms)
            state["trail_n"][at] = count
            state["trail_ms"][row, span, :count] = profile.trail_ms
            state["trail_query"][row, span, :count] = profile.trail_query

    def drop(self, key: object) -> None:
        """Forget a client (it is stored elsewhere)."""
        row = self.rows.pop(key, None)
        if row is not None:
            self._free.append(row)

    def add(self, keys: list[object], batch: QueryBatch, measured: Measured) -> None:
        """Fold the rows of one poll; keys (g,) name the clients of `batch.clients`."""
        slots = np.array([self._row(k) for k in keys], np.int64)[batch.who]
        window = batch.time_ms // self.half_horizon_ms
        effective = _running_maximum(slots, window, self._window)
        values = np.unique(effective)
        for value in values.tolist():
            rows = np.flatnonzero(effective == value)
            self._turn(np.unique(slots[rows]), value)
            self._fold(slots[rows], batch, measured, rows if len(values) > 1 else None)

    def of_log(self, queries: QueryBatch, key: bytes, at_once: int = 4096) -> list[Profile]:
        """Fold a whole log, measured under the sampling key, poll by poll → the profile of each of its clients, whom their ids name."""
        clients: list[object] = list(queries.clients)
        for rows in np.array_split(np.arange(len(queries)), max(1, len(queries) // at_once)):
            part = queries.take(rows)
            self.add(clients, part, self.map.measure(part, key))
        return [self.profile(client) for client in clients]

    def profile(self, key: object) -> Profile:
        """A copy of one client's long span, with its memory."""
        return self._profile(self.rows[key], 0)

    def spans(self, key: object) -> list[Profile]:
        """Copies of a client's spans: the long one with the memory, and the short one where it differs."""
        row = self.rows[key]
        return [self._profile(row, span) for span in range(2 if self._two[row] else 1)]

    # ------------------------------------------------------------------ rows of the arrays

    def _row(self, key: object) -> int:
        row = self.rows.get(key)
        if row is None:
            if not self._free:
                self._grow()
            row = self._free.pop()
            self.rows[key] = row
            self._clear(row)
        return row

    def _clear(self, row: int) -> None:
        for array in self._state.values():
            array[row] = 0
        self._window[row] = -1
        self._two[row] = False

    def _grow(self) -> None:
        used = len(self.rows)
        capacity = len(self._window)
        if used < capacity:
            self._free = list(range(capacity - 1, used - 1, -1))
            return
        for name, array in self._state.items():
            self._state[name] = np.concatenate([array, np.zeros_like(array)])
        self._window = np.concatenate([self._window, np.full(capacity, -1, np.int64)])
        self._two = np.concatenate([self._two, np.zeros(capacity, np.bool_)])
        self._free = list(range(2 * capacity - 1, capacity - 1, -1))

    def _turn(self, slots: NDArray[np.int64], window: int) -> None:
        """Begin a window: the short span becomes the long one; a life that began in the window before goes on in it."""
        opened = slots[(self._window[slots] < window) & (self._window[slots] >= 0)]
        for row in opened.tolist():
            follows = self._window[row] == window - 1
            for name, array in self._state.items():
                if name in MEMORY:
                    continue
                if not follows:
                    array[row] = 0
                elif self._two[row]:
                    array[row, 0] = array[row, 1]
                    array[row, 1] = 0
            self._two[row] = follows
        self._window[slots] = window

    def _fold(self, slots: NDArray[np.int64], batch: QueryBatch, m: Measured, rows: NDArray[np.intp] | None) -> None:
        def of(array: Array) -> Array:
            return array if rows is None else array[rows]

        fmap, t = self.map, self.table
        fold_rows(
            slots, of(m.hashes), of(m.bits), of(m.cells), of(m.distance_bins), of(m.margin_bins), of(batch.labels),
            of(batch.weight), of(batch.time_ms), of(m.z), of(m.codes), of(m.raw),
            fmap.code_low, fmap.code_step, fmap.code_weight, fmap.code_category,
            fmap.link_mode, fmap.link_bits, fmap.link_level, fmap.near**2, fmap.lattice, fmap.hash_grain,
            self._low, self._step_high, self._high, self._step, self._unit, fmap.wide,
            t.need, t.path, t.roots_base, t.form, t.allowance, t.fusing_scale, t.horizon_distinct,
            self._two, *self._state.values(),
        )  # fmt: skip

    def _profile(self, row: int, span: int) -> Profile:
        state, at = self._state, (row, span)
        n_sample, n_odd, n_path, n_trail = (int(state[f"{k}_n"][at]) for k in ("sample", "odd", "path", "trail"))
        return Profile(
            map_id=self.map_id,
            nulls_version=self.nulls_version,
            window=int(self._window[row]) - (1 if span == 0 and self._two[row] else 0),
            queries=int(state["queries"][at]),
            volume=float(state["volume"][at]),
            first_ms=int(state["first_ms"][at]),
            last_ms=int(state["last_ms"][at]),
            **{
                n: state[n][at].copy()
                for n in ("classes", "cell_counts", "distance_counts", "margin_counts", "moments")
            },
            sample_hash=state["sample_hash"][row, span, :n_sample].copy(),
            sample_root=state["sample_root"][row, span, :n_sample].copy(),
            odd_hash=state["odd_hash"][row, span, :n_odd].copy(),
            odd_bits=state["odd_bits"][row, span, :n_odd].copy(),
            path_hash=state["path_hash"][row, span, :n_path].copy(),
            path_bits=state["path_bits"][row, span, :n_path].copy(),
            marks=state["marks"][at].copy(),
            trail_ms=state["trail_ms"][row, span, :n_trail].copy(),
            trail_query=state["trail_query"][row, span, :n_trail].copy(),
            memory={n: state[n][row].copy() for n in MEMORY} if span == 0 else None,
        )


def _spans(name: str) -> tuple[int, ...]:
    return () if name in MEMORY else (2,)


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
