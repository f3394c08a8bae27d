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
from numpy.typing import DTypeLike, NDArray

from detector import archive as archives
from detector.archive import NOTHING, SAMPLE_SET, Archive, Faded
from detector.errors import IncompatibleProfile
from detector.features import FeatureMap, Measured
from detector.fold import Masses, fold_rows
from detector.profile import LAYOUT, MEMORY, Array, Profile, Shape, dtype_of
from detector.query import QueryBatch
from detector.rows import Rows

LONG, SHORT = 0, 1

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
        self,
        feature_map: FeatureMap,
        table: Masses,
        nulls_version: str,
        half_horizon_ms: int,
        capacity: int = 64,
        memory_ms: float = 0.0,
    ) -> None:
        self.map = feature_map
        self.table = table
        self.map_id = feature_map.map_id
        self.nulls_version = nulls_version
        self.half_horizon_ms = half_horizon_ms
        self.decay = archives.decay_of(half_horizon_ms, memory_ms)
        self.shape = Shape.of(feature_map, len(table.need))
        self.rows: dict[object, int] = {}
        width = {n: (shape(self.shape), dtype_of(n, self.shape)) for n, (_, shape) in LAYOUT.items()}
        # window: the current one of each client; span: the rows of its long and its short span, archive: that of its archive, -1 where
        # there is none; turned: a window began, and what the archive adds was not weighed yet
        clients = {
            "window": ((), np.int64),
            "span": ((2,), np.int64),
            "archive": ((), np.int64),
            "turned": ((), np.bool_),
        }
        self._clients = Rows(clients | {n: width[n] for n in MEMORY}, capacity)
        self._spans = Rows({n: width[n] for n in LAYOUT if n not in MEMORY}, capacity)
        kept: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            n: (shape, kind) for n, (kind, shape) in archives.LAYOUT.items()
        }
        kept |= {"carry": ((len(table.need),), np.float64), "carry_base": ((2,), np.float64)}
        self._archives = Rows(kept, 4)
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
        self.drop(key)
        row = self._row(key)
        if long is None:
            return
        for profile in (long, short):
            if profile is not None and profile.map_id != self.map_id:
                raise IncompatibleProfile(f"profile of map {profile.map_id}, this baseline is {self.map_id}")
        self._clients.arrays["window"][row] = long.window if short is None else short.window
        self._take(self._span(row, LONG), long)
        if short is not None:
            self._open(row)
            self._take(self._span(row, SHORT), short)
        if self.decay > archives.OFF and long.archive:
            self._archive(row, long.archive)
        for name, values in (long.memory or {}).items():
            self._clients.arrays[name][row] = values

    def _take(self, at: int, profile: Profile) -> None:
        state = self._spans.arrays
        for name in SUM:
            state[name][at] = getattr(profile, name)
        for kind, names in (
            ("sample", ("sample_hash", "sample_root", "sample_misfit")),
            ("odd", ("odd_hash", "odd_bits")),
            ("path", ("path_hash", "path_bits")),
        ):
            count = len(getattr(profile, names[0]))
            state[f"{kind}_n"][at] = count
            for name in names:
                state[name][at, :count] = getattr(profile, name)
        need, path = self.table.need, self.table.path
        held = [((bits[:, None] & need) == need).sum(0) for bits in (profile.odd_bits, profile.path_bits)]
        state["odd_counts"][at] = np.where(path, held[1], held[0])
        if profile.nulls_version == self.nulls_version:
            state["marks"][at] = profile.marks
            count = len(profile.trail_ms)
            state["trail_n"][at] = count
            state["trail_ms"][at, :count] = profile.trail_ms
            state["trail_query"][at, :count] = profile.trail_query

    def drop(self, key: object) -> None:
        """Forget a client (it is stored elsewhere)."""
        row = self.rows.pop(key, None)
        if row is not None:
            self._close(row, SHORT)
            self._close(row, LONG)
            self._archive(row, NOTHING)
            self._clients.give_back(row)

    def add(self, keys: list[object], batch: QueryBatch, measured: Measured) -> None:
        """Fold the rows of one poll; keys (g,) name the clients of `batch.clients`."""
        slots = np.array([self._row(k) for k in keys], np.int64)[batch.who]
        window = batch.time_ms // self.half_horizon_ms
        effective = _running_maximum(slots, window, self._clients.arrays["window"])
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
        return self._profile(self.rows[key], LONG)

    def spans(self, key: object) -> list[Profile]:
        """Copies of a client's spans: the long one with the memory, and the short one where it differs."""
        row = self.rows[key]
        return [self._profile(row, span) for span in (LONG, SHORT) if self._span(row, span) >= 0]

    # ------------------------------------------------------------------ rows of the arrays

    def _row(self, key: object) -> int:
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = self._clients.take()
            self._clients.arrays["window"][row] = -1
            self._clients.arrays["span"][row] = self._spans.take(), -1
            self._clients.arrays["archive"][row] = -1
        return row

    def _span(self, row: int, span: int) -> int:
        """Where a client's span is; -1 if it has none."""
        return int(self._clients.arrays["span"][row, span])

    def _open(self, row: int) -> None:
        """An empty short span."""
        self._clients.arrays["span"][row, SHORT] = self._spans.take()

    def _close(self, row: int, span: int) -> None:
        if self._span(row, span) >= 0:
            self._spans.give_back(self._span(row, span))
            self._clients.arrays["span"][row, span] = -1

    def _turn(self, slots: NDArray[np.int64], window: int) -> None:
        """Begin a window: the short span becomes the long one; a life that began in the window before goes on in it."""
        current, span = (self._clients.arrays[name] for name in ("window", "span"))
        opened = slots[(current[slots] < window) & (current[slots] >= 0)]
        for row in opened.tolist():
            if self.decay > archives.OFF:
                self._fade(row, window)
            if current[row] != window - 1:  # so long ago that neither span counts
                self._close(row, SHORT)
                self._spans.clear(self._span(row, LONG))
                continue
            if self._span(row, SHORT) >= 0:
                span[row] = span[row, SHORT], span[row, LONG]
                self._close(row, SHORT)
            self._open(row)
        current[slots] = window

    def _fade(self, row: int, window: int) -> None:
        """What is in the long span and will not be any more goes into the archive."""
        long, short = self._span(row, LONG), self._span(row, SHORT)
        state, known = self._spans.arrays, self._clients.arrays["archive"][row] >= 0
        if not (known or state["odd_n"][long] or state["path_n"][long]):
            return
        archive = self._archived(row)
        gone = self._clients.arrays["window"][row] != window - 1
        if gone or short >= 0:
            of_long = self._profile(row, LONG, memory=False)
            of_short = self._profile(row, SHORT) if short >= 0 else None
            left = of_long.archived(of_short)
            if gone and of_short is not None:
                left = left.union(of_short.archived())
            if known or left:
                archive = archive.union(left)
        self._archive(row, archive.at(window, self.decay), window)

    def _archived(self, row: int) -> Archive:
        """A copy of a client's archive."""
        at = int(self._clients.arrays["archive"][row])
        if at < 0:
            return NOTHING
        hashes, bits, seen, n, limit = (self._archives.arrays[name][at] for name in archives.LAYOUT)
        a, b, c = (
            Faded(hashes[k, : n[k]].copy(), bits[k, : n[k]].copy(), seen[k, : n[k]].copy(), int(limit[k]))
            for k in range(SAMPLE_SET + 1)
        )
        archive = Archive(int(self._clients.arrays["window"][row]), (a, b, c))
        return archive or NOTHING

    def _archive(self, row: int, archive: Archive, window: int | None = None) -> None:
        """Keep a client's archive; window: the one that begins, None: it goes on in its own."""
        where = self._clients.arrays["archive"]
        if not archive:
            if where[row] >= 0:
                self._archives.give_back(int(where[row]))
                where[row] = -1
            return
        if where[row] < 0:
            where[row] = self._archives.take()
        at, kept = int(where[row]), self._archives.arrays
        for name, values in zip(archives.LAYOUT, archive.arrays(), strict=True):
            kept[name][at] = values
        kept["carry"][at], kept["carry_base"][at] = archive.carry(
            archive.window, self.decay, self.table.need, self.table.path
        )
        self._clients.arrays["turned"][row] = window is not None

    def _fold(self, slots: NDArray[np.int64], batch: QueryBatch, m: Measured, rows: NDArray[np.intp] | None) -> None:
        def of(array: Array) -> Array:
            return array if rows is None else array[rows]

        fmap, t = self.map, self.table
        where = (self._clients.arrays[n] for n in ("archive", "turned", "window"))
        beyond = (*where, self.decay, *self._archives.arrays.values())
        fold_rows(
            slots, of(m.hashes), of(m.bits), of(m.misfit), of(m.cells), of(m.distance_bins), of(m.margin_bins), of(batch.labels),
            of(batch.weight), of(batch.time_ms), of(m.z), of(m.codes), of(m.raw),
            fmap.missing_code, fmap.code_low, fmap.code_step, fmap.code_weight, fmap.code_category,
            fmap.link_mode, fmap.link_bits, fmap.link_level, fmap.near**2, fmap.lattice, fmap.hash_grain,
            self._low, self._step_high, self._high, self._step, self._unit, fmap.wide,
            t.need, t.path, t.roots_base, t.form, t.allowance, t.fusing_scale, t.horizon_distinct,
            self._clients.arrays["span"], *self._spans.arrays.values(), *(self._clients.arrays[n] for n in MEMORY), *beyond,
        )  # fmt: skip

    def _profile(self, row: int, span: int, memory: bool = True) -> Profile:
        state, at = self._spans.arrays, self._span(row, span)
        n_sample, n_odd, n_path, n_trail = (int(state[f"{k}_n"][at]) for k in ("sample", "odd", "path", "trail"))
        return Profile(
            map_id=self.map_id,
            nulls_version=self.nulls_version,
            window=int(self._clients.arrays["window"][row])
            - (1 if span == LONG and self._span(row, SHORT) >= 0 else 0),
            queries=int(state["queries"][at]),
            volume=float(state["volume"][at]),
            first_ms=int(state["first_ms"][at]),
            last_ms=int(state["last_ms"][at]),
            **{
                n: state[n][at].copy()
                for n in ("classes", "cell_counts", "distance_counts", "margin_counts", "moments")
            },
            sample_hash=state["sample_hash"][at, :n_sample].copy(),
            sample_root=state["sample_root"][at, :n_sample].copy(),
            sample_misfit=state["sample_misfit"][at, :n_sample].copy(),
            odd_hash=state["odd_hash"][at, :n_odd].copy(),
            odd_bits=state["odd_bits"][at, :n_odd].copy(),
            path_hash=state["path_hash"][at, :n_path].copy(),
            path_bits=state["path_bits"][at, :n_path].copy(),
            marks=state["marks"][at].copy(),
            trail_ms=state["trail_ms"][at, :n_trail].copy(),
            trail_query=state["trail_query"][at, :n_trail].copy(),
            memory={n: self._clients.arrays[n][row].copy() for n in MEMORY} if span == LONG and memory else None,
            decay=self.decay,
            archive=self._archived(row) if span == LONG and memory else NOTHING,
        )


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
