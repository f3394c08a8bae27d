"""The profiles of many clients in flat arrays, one row each: ingest folds a poll into them.

Rules:

* One compiled call folds a whole poll of many clients (`fold.fold_rows`). A Python object for a client exists only on its way to or from
  storage (`Profile`).
* Event time is cut into *windows* of half a horizon. A client is kept over two *spans*: the long one covers the window before and the
  current one and is assessed; the short one began with the current window and takes over when the next one begins. So running maxima and
  first passages are exact over the whole span, whenever a client is assessed, and nothing is merged over time.
* While a client's first query lies in the current window, both spans would be equal, and only the long one is kept. An older row counts
  in the newest window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from detector import archive as archives
from detector.archive import NOTHING, SAMPLE_SET, Archive, ArchiveArrays
from detector.errors import IncompatibleProfile
from detector.features import FeatureMap, Measured
from detector.fold import fold_rows
from detector.fold_arrays import ClientArrays, MapArrays, Memory, PollRows, SpanArrays
from detector.older_profiles import OLDER_FORMATS
from detector.profile import Profile
from detector.profile_format import ProfileHead, read_head
from detector.profile_reader import read_profiles
from detector.profile_shape import Shape, memory_layout, span_layout
from detector.profile_writer import PackJob, pack_profiles
from detector.query import QueryBatch
from detector.row_pool import RowPool
from detector.signal_table import SignalTable

LONG, SHORT = 0, 1

SUM = ("queries", "first_ms", "last_ms", "classes", "region_counts", "distance_counts")


class PackedClient(NamedTuple):
    """What is stored of one client. spans: first window → bytes; fades: whether something of it stays beyond the horizon."""

    spans: dict[int, bytes]
    fades: bool


class ProfileTable:
    """The table; `keys` name its rows.

    `keys` are whatever names a client (hashable). A client unknown here starts empty: load what is stored first.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        table: SignalTable,
        calibration_version: str,
        half_horizon_ms: int,
        capacity: int = 64,
        memory_ms: float = 0.0,
    ) -> None:
        self.map = feature_map
        self.table = table
        self.map_id = feature_map.map_id
        self.calibration_version = calibration_version
        self.half_horizon_ms = half_horizon_ms
        self.decay = archives.decay_of(half_horizon_ms, memory_ms)
        self.shape = Shape.of(feature_map, len(table.need))
        self.rows: dict[object, int] = {}
        clients: dict[str, tuple[tuple[int, ...], DTypeLike]] = {
            "window": ((), np.int64),
            "span": ((2,), np.int64),
            "archive": ((), np.int64),
            "turned": ((), np.bool_),
        }
        self._clients = RowPool(clients | memory_layout(self.shape), capacity)
        self._spans = RowPool(span_layout(self.shape), capacity)
        self._archives = RowPool(archives.layout(len(table.need)), 4)
        self._arrays = arrays_of(feature_map)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, key: object) -> bool:
        return key in self.rows

    def put(self, key: object, long: Profile | None, short: Profile | None = None) -> None:
        """Take over stored spans (None: start empty). One of another map is refused; running maxima of another calibration begin anew."""
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
        for name, values in long.memory._asdict().items() if long.memory else ():
            self._clients.arrays[name][row] = values

    def _take(self, at: int, profile: Profile) -> None:
        state = self._spans.arrays
        for name in SUM:
            state[name][at] = getattr(profile, name)
        for kind, names in (
            ("sample", ("sample_hash", "sample_novel", "sample_misfit")),
            ("odd", ("odd_hash", "odd_bits")),
            ("sequence", ("sequence_hash", "sequence_bits")),
        ):
            count = len(getattr(profile, names[0]))
            state[f"{kind}_n"][at] = count
            for name in names:
                state[name][at, :count] = getattr(profile, name)
        need, sequence = self.table.need, self.table.sequence
        held = [((bits[:, None] & need) == need).sum(0) for bits in (profile.odd_bits, profile.sequence_bits)]
        state["odd_counts"][at] = np.where(sequence, held[1], held[0])
        if profile.calibration_version == self.calibration_version:
            state["maxima"][at] = profile.maxima
            count = len(profile.passage_ms)
            state["passage_n"][at] = count
            state["passage_ms"][at, :count] = profile.passage_ms
            state["passage_query"][at, :count] = profile.passage_query

    def put_packed(self, stored: Mapping[object, Sequence[bytes]]) -> dict[object, str]:
        """Take over the stored spans of many clients from their bytes; one compiled call reads them all.

        Parameters
        ----------
        stored
            Client → bytes of its spans, the long one first (none: start empty).

        Returns
        -------
        faults
            Client → why its bytes are no profiles of this map. Such a client is unknown here.
        """
        faults: dict[object, str] = {}
        read: list[tuple[object, int, bytes, ProfileHead]] = []
        for key, blobs in stored.items():
            self.drop(key)
            try:
                heads = [self._head(blob, first=i == 0) for i, blob in enumerate(blobs)]
                if not blobs or any(head is None for head in heads):
                    spans = [Profile.from_bytes(blob, self.shape) for blob in blobs]
                    self.put(key, *spans or (None,))
                    continue
            except IncompatibleProfile as error:
                self.drop(key)
                faults[key] = str(error)
                continue
            read += [(key, i, blob, head) for i, (blob, head) in enumerate(zip(blobs, heads, strict=True)) if head]
        if read:
            self._rows([key for key, span, _, _ in read if span == LONG])
            two = [self.rows[key] for key, span, _, _ in read if span == SHORT]
            opened = self._spans.take_many(len(two))
            self._clients.arrays["span"][two, SHORT] = opened
            faults |= self._read(read)
        return faults

    def _head(self, blob: bytes, first: bool) -> ProfileHead | None:
        """The head of a profile that the compiled reader takes; None for one that takes the long way. Raises IncompatibleProfile.

        That is an older one, one with an archive, or one with remembered rows that is not the client's first.
        """
        head = read_head(blob, OLDER_FORMATS)
        if head is None or head.has_archive or (head.has_memory and not first):
            return None
        if head.map_id != self.map_id:
            raise IncompatibleProfile(f"profile of map {head.map_id}, this baseline is {self.map_id}")
        return head

    def _read(self, read: Sequence[tuple[object, int, bytes, ProfileHead]]) -> dict[object, str]:
        """Read profiles into rows that were opened for them: (client, span, bytes, head) of each. Returns what is wrong with some."""
        clients, state = self._clients.arrays, self._spans.arrays
        keys, spans, blobs, heads = zip(*read, strict=True)
        rows = np.array([self.rows[key] for key in keys], np.int64)
        at = clients["span"][rows, list(spans)]
        memory = Memory(**{name: clients[name] for name in Memory._fields})
        found = read_profiles(
            blobs, heads, at, rows, SpanArrays(**state), memory, ArchiveArrays(**self._archives.arrays), self.table
        ).faults
        clients["window"][rows] = [head.window for head in heads]  # of the short span, where there is one
        other = at[[head.calibration_version != self.calibration_version for head in heads]]
        state["maxima"][other], state["passage_n"][other] = 0.0, 0
        faults = {key: fault for key, fault in zip(keys, found, strict=True) if fault}
        for key in faults:
            self.drop(key)
        return faults

    def packed(self, keys: Sequence[object]) -> list[PackedClient]:
        """Return the bytes of the spans of n clients, in the order of `keys`; one compiled call writes them all."""
        rows = np.array([self.rows[key] for key in keys], np.int64)
        clients, spans = self._clients.arrays, self._spans.arrays
        kept_arrays = ArchiveArrays(**self._archives.arrays)
        held, reached, kept = clients["span"][rows], clients["window"][rows], clients["archive"][rows]
        archived = (kept >= 0) & (kept_arrays.n[np.maximum(kept, 0), :SAMPLE_SET] > 0).any(1)
        kept = np.where(archived, kept, -1)
        long, two = held[:, LONG], held[:, SHORT] >= 0
        fading = (spans["odd_n"][long] > 0) | (spans["sequence_n"][long] > 0) | archived
        short = np.flatnonzero(two)
        none = np.full(len(short), -1, np.int64)
        job = PackJob(
            span=np.concatenate([long, held[short, SHORT]]),
            memory=np.concatenate([rows, none]),
            archive=np.concatenate([kept, none]),
            window=np.concatenate([reached - two, reached[short]]),
            reached=np.concatenate([reached, reached[short]]),
        )
        memory = Memory(**{name: clients[name] for name in Memory._fields})
        blobs = pack_profiles(
            job, SpanArrays(**spans), memory, kept_arrays, self.map_id, self.calibration_version, self.decay
        )
        windows = job.window.tolist()
        found = [
            PackedClient({window: blob}, self.decay > archives.OFF and fades)
            for window, blob, fades in zip(windows, blobs, fading.tolist(), strict=False)
        ]
        for at, (i, window) in enumerate(zip(short.tolist(), windows[len(rows) :], strict=True), len(rows)):
            found[i].spans[window] = blobs[at]
        return found

    def drop(self, key: object) -> None:
        """Forget a client (it is stored elsewhere)."""
        row = self.rows.pop(key, None)
        if row is not None:
            self._close(row, SHORT)
            self._close(row, LONG)
            self._archive(row, NOTHING)
            self._clients.give_back(row)

    def add(self, keys: list[object], batch: QueryBatch, measured: Measured) -> None:
        """Fold the rows of one poll into the profiles of their clients.

        Parameters
        ----------
        keys : (g,) list
            Names of the clients of `batch.clients`, in that order. A client that is unknown here starts empty: `put` what is stored first.
        batch : QueryBatch
            n queries in log order.
        measured : Measured
            `FeatureMap.measure` of the same rows, under the sampling key.

        Notes
        -----
        The result does not depend on how polls cut a log. Rows of a window that has passed count in the client's present one.
        """
        slots = self._rows(keys)[batch.who]
        window = batch.time_ms // self.half_horizon_ms
        effective = _running_maximum(slots, window, self._clients.arrays["window"])
        values = np.unique(effective)
        for value in values.tolist():
            rows = np.flatnonzero(effective == value)
            self._turn(np.unique(slots[rows]), value)
            self._fold(slots[rows], batch, measured, rows if len(values) > 1 else None)

    def of_log(
        self,
        queries: QueryBatch,
        key: bytes,
        at_once: int = 4096,
        measured: Callable[[QueryBatch, Measured], None] | None = None,
    ) -> list[Profile]:
        """Return the profile of each client of a log, in the order of `queries.clients`, folded poll by poll.

        Parameters
        ----------
        queries : QueryBatch
        key : bytes
            16 bytes, the sampling key.
        at_once : int
            Rows in a poll.
        measured : Callable or None
            Gets each poll with what was measured of it.
        """
        clients: list[object] = list(queries.clients)
        for rows in np.array_split(np.arange(len(queries)), max(1, len(queries) // at_once)):
            part = queries.take(rows)
            found = self.map.measure(part, key)
            self.add(clients, part, found)
            if measured is not None:
                measured(part, found)
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
        return int(self._rows([key])[0])

    def _rows(self, keys: Sequence[object]) -> NDArray[np.int64]:
        """Rows of clients; those that are unknown here start empty."""
        unknown = list(dict.fromkeys(key for key in keys if key not in self.rows))
        if unknown:
            rows, spans = self._clients.take_many(len(unknown)), self._spans.take_many(len(unknown))
            clients = self._clients.arrays
            clients["window"][rows] = -1
            clients["span"][rows, LONG], clients["span"][rows, SHORT] = spans, -1
            clients["archive"][rows] = -1
            self.rows.update(zip(unknown, rows.tolist(), strict=True))
        return np.array([self.rows[key] for key in keys], np.int64)

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
        if not (known or state["odd_n"][long] or state["sequence_n"][long]):
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
        return Archive.of(ArchiveArrays(**self._archives.arrays), at, int(self._clients.arrays["window"][row]))

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
        arrays = archive.arrays(len(self.table.need))
        archives.add_up(arrays, 0, archive.window, self.decay, self.table)
        for name, values in arrays._asdict().items():
            self._archives.arrays[name][where[row]] = values[0]
        self._clients.arrays["turned"][row] = window is not None

    def _fold(self, slots: NDArray[np.int64], batch: QueryBatch, m: Measured, rows: NDArray[np.intp] | None) -> None:
        def of(array: NDArray[Any]) -> NDArray[Any]:
            return array if rows is None else array[rows]

        rows_of_poll = PollRows(
            slot=slots,
            hashes=of(m.hashes),
            bits=of(m.bits),
            misfit=of(m.misfit),
            regions=of(m.regions),
            distance_bins=of(m.distance_bins),
            labels=of(batch.labels),
            time_ms=of(batch.time_ms),
            codes=of(m.codes),
            raw=of(m.raw),
        )
        clients, spans, kept = self._clients.arrays, self._spans.arrays, self._archives.arrays
        fold_rows(
            rows_of_poll,
            self._arrays,
            self.table,
            ClientArrays(**{name: clients[name] for name in ClientArrays._fields}),
            SpanArrays(**spans),
            Memory(**{name: clients[name] for name in Memory._fields}),
            ArchiveArrays(**kept),
            self.decay,
        )

    def _profile(self, row: int, span: int, memory: bool = True) -> Profile:
        state, at = self._spans.arrays, self._span(row, span)
        n_sample, n_odd, n_sequence, n_passage = (
            int(state[f"{k}_n"][at]) for k in ("sample", "odd", "sequence", "passage")
        )
        return Profile(
            map_id=self.map_id,
            calibration_version=self.calibration_version,
            window=int(self._clients.arrays["window"][row])
            - (1 if span == LONG and self._span(row, SHORT) >= 0 else 0),
            queries=int(state["queries"][at]),
            first_ms=int(state["first_ms"][at]),
            last_ms=int(state["last_ms"][at]),
            **{n: state[n][at].copy() for n in ("classes", "region_counts", "distance_counts")},
            sample_hash=state["sample_hash"][at, :n_sample].copy(),
            sample_novel=state["sample_novel"][at, :n_sample].copy(),
            sample_misfit=state["sample_misfit"][at, :n_sample].copy(),
            odd_hash=state["odd_hash"][at, :n_odd].copy(),
            odd_bits=state["odd_bits"][at, :n_odd].copy(),
            sequence_hash=state["sequence_hash"][at, :n_sequence].copy(),
            sequence_bits=state["sequence_bits"][at, :n_sequence].copy(),
            maxima=state["maxima"][at].copy(),
            passage_ms=state["passage_ms"][at, :n_passage].copy(),
            passage_query=state["passage_query"][at, :n_passage].copy(),
            memory=Memory(**{n: self._clients.arrays[n][row].copy() for n in Memory._fields})
            if span == LONG and memory
            else None,
            decay=self.decay,
            archive=self._archived(row) if span == LONG and memory else NOTHING,
        )


def arrays_of(feature_map: FeatureMap) -> MapArrays:
    """What the fold needs of a feature map."""
    low, high = feature_map.bounds()
    unit = [np.ones(len(low))]
    if np.ptp(feature_map.scale) > 0.5 * feature_map.scale.max():
        unit += [np.maximum(high - low, 1e-9), feature_map.scale]
    # a step is a matter of numbers: a moved category explains nothing
    category = feature_map.schema.categorical
    return MapArrays(
        missing=feature_map.missing_code,
        code_low=feature_map.code_low,
        code_step=feature_map.code_step,
        code_weight=feature_map.code_weight,
        code_category=feature_map.code_category,
        common_value=feature_map.common_value,
        agreement_bits=feature_map.agreement_bits,
        agreement_level=feature_map.agreement_level,
        near2=feature_map.near**2,
        lattice=feature_map.lattice,
        grain=feature_map.hash_grain,
        low=low,
        high=np.where(category, -np.inf, high),
        top=high,
        raw_step=np.maximum(high - low, 1e-9) / 65534.0,
        unit=np.stack(unit),
        wide=feature_map.wide,
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
