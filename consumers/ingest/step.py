"""The pure half of ingest: records come in, a checkpoint goes out.

Rules:
* No I/O, no clock, no random numbers: a redo over the same stored state and the same records gives the same checkpoint.
* What is known of a log cell beforehand is in its `Cell` (cell.py).
* `decode` gives queries the times at which they count (detector/clock.py): a record far ahead of the log time counts at the log time.
* A model may have a second baseline beside the live one. The same batch is then folded for both, in the same checkpoint, so the profiles
  of both reflect the same offset whichever of them decides (docs/decisions/0038).
* A batch is handled in this order: erased clients are left out, clients that are not admitted are pooled (admission.py), duplicates are
  left out (duplicates.py), the rest is folded. Every record is counted once (records/ledger.py).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumers.ingest import cell_wide
from consumers.ingest.admission import AdmissionLimits
from consumers.ingest.cell import Cell
from consumers.ingest.client_fields import ClientField, FieldKeys, FoldedBatch, client_fields
from consumers.ingest.duplicates import FIELD, Windows, event_hashes
from consumers.log import Records, prefix
from consumers.log.formats import Decoded, InputReader, NativeFormat
from consumers.records import links
from consumers.records.baselines_in_force import FIELD as FOLDED_FIELD
from consumers.records.baselines_in_force import FoldedSince, folded_key
from consumers.records.damaged import readable
from consumers.records.ledger import CLOCK, COUNTERS, MARKS, OVERFLOW
from consumers.records.schema_watch import FIELD as WATCH_FIELD
from consumers.records.schema_watch import IDENTITY as WATCH_IDENTITY
from consumers.records.schema_watch import SchemaWatch
from consumers.records.spans import holds_span, long_and_short, span_field
from consumers.secrets import Secrets
from consumers.sharing_keys import SharingKey
from consumers.store import Checkpoint, Taken
from detector.baseline import Baseline
from detector.clock import on_the_clock
from detector.profile_shape import Shape
from detector.profile_table import ProfileTable
from detector.query import ClientKey, QueryBatch

log = logging.getLogger("querywarden.ingest")

MS_A_DAY = 86_400_000
MAX_CACHED = 2048
"""Clients that a process keeps, over all its cells, 20 to 50 KB each; only those of the poll at hand may be more."""


@dataclass(slots=True)
class Ingest:
    """The pure half of ingest: everything it needs to turn records into a checkpoint.

    beside   model → its second baseline
    sharing  keys that peers share, under which links are hashed once more
    """

    baselines: Mapping[str, Baseline]
    secrets: Secrets
    tenant: str = "default"
    horizon_days: float = 30.0
    memory_days: float = 365.0
    admit_unknown: bool = False
    limits: AdmissionLimits = field(default_factory=AdmissionLimits)
    link_keys: links.OwnKeys = links.NO_KEYS
    sharing: tuple[SharingKey, ...] = ()
    beside: Mapping[str, Baseline] = field(default_factory=dict)
    format: NativeFormat = field(init=False)
    _fields: dict[str, tuple[ClientField, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self.use(self.baselines, self.beside)

    def use(self, baselines: Mapping[str, Baseline], beside: Mapping[str, Baseline]) -> None:
        """Fold for other baselines from now on; the caller drops its cells, whose profiles are those of the earlier ones."""
        self.baselines, self.beside = baselines, beside
        keys = FieldKeys(self.secrets, self.tenant, self.link_keys, self.sharing)
        self._fields = {
            m: client_fields(baseline, keys, self.half_horizon_ms) for m, baseline in self.baselines.items()
        }
        readers = {model: InputReader(baseline.map.schema) for model, baseline in self.baselines.items()}
        self.format = NativeFormat(readers, self.admit_unknown)

    @property
    def half_horizon_ms(self) -> int:
        return int(self.horizon_days * MS_A_DAY / 2)

    def decode(self, cell: Cell, records: Records) -> tuple[Decoded, dict[str, list[ClientKey]]]:
        """Columns of the records at or above the cell's offset, and the clients of each model's batch."""
        if cell.offset is not None:
            records = records.from_offset(cell.offset)
        found = self.format.decode(records)
        decoded = replace(
            found, batches=dict(found.batches), counters=Counter(found.counters), stated_ms={}, halves=records.halves,
            arrival=records.arrival,
        )  # fmt: skip
        if records.tombstones:
            decoded.counters.update(produced=records.tombstones, tombstones=records.tombstones)
        keys = {
            model: [ClientKey(self.tenant, model, self.secrets.client_hash(self.tenant, c)) for c in batch.clients]
            for model, batch in decoded.batches.items()
        }
        self._set_clock(cell, decoded, keys, records)
        return decoded, keys

    def missing(self, cell: Cell, keys: Mapping[str, list[ClientKey]]) -> list[ClientKey]:
        """Clients whose profile is not in the cache; the overflow clients too when they may be needed."""
        wanted = [k for model, mine in keys.items() for k in mine if k not in self.of_model(cell, model)]
        if wanted and cell.admission.tight(len(wanted), self.limits, cell.full):
            wanted += [k for k in map(self.overflow, keys) if k not in self.of_model(cell, k.model)]
        wanted += [self.watch_key(model) for model in keys if model not in cell.watches]
        return wanted + [folded_key(self.secrets, self.tenant, m) for m in self.beside if m not in cell.folded]

    def watch_key(self, model: str) -> ClientKey:
        """The client that holds what is watched of the schema; no query can name it."""
        return ClientKey(self.tenant, model, self.secrets.client_hash(self.tenant, WATCH_IDENTITY))

    def overflow(self, model: str) -> ClientKey:
        """The client that takes the queries of those without state."""
        return ClientKey(self.tenant, model, self.secrets.client_hash(self.tenant, OVERFLOW))

    def take(self, cell: Cell, loaded: Mapping[ClientKey, Mapping[str, bytes]], wanted: list[ClientKey]) -> None:
        """Put loaded profiles into the cache. A profile of an older map, or a damaged one, is set aside and begun anew.

        Who is not stored is not put: new clients are those that the cache does not hold.
        """
        watch = self.secrets.client_hash(self.tenant, WATCH_IDENTITY)
        folded = folded_key(self.secrets, self.tenant, "").client
        stored: dict[str, dict[object, list[bytes]]] = {}
        beside: dict[str, dict[object, list[bytes]]] = {}
        for key in wanted:
            fields = loaded.get(key)
            if key.client == watch:
                cell.watches[key.model] = SchemaWatch.from_bytes((fields or {}).get(WATCH_FIELD))
                continue
            if key.client == folded:
                cell.folded[key.model] = FoldedSince.from_bytes((fields or {}).get(FOLDED_FIELD))
                continue
            if not fields:
                continue
            if FIELD in fields:
                self.windows_of(cell, key.model).put(key, fields[FIELD])
            for one in self._fields[key.model]:
                if (blob := fields.get(one.name)) and (value := one.read(blob)) is not None:
                    cell.values(one.name)[key] = value
            stored.setdefault(key.model, {})[key] = long_and_short(fields, self.baselines[key.model])
            if key.model in self.beside:
                beside.setdefault(key.model, {})[key] = long_and_short(fields, self.beside[key.model])
            cell.stored[key] = {name for name in fields if holds_span(name)}
            if not self._names(key, fields.get("h", b"")):
                cell.nameless.add(key)
        for model, spans in stored.items():
            profiles = self.of_model(cell, model)
            for unread, why in profiles.put_packed(spans).items():
                log.warning("profile set aside", extra={"cell": cell.name, "model": model, "why": why})
                profiles.put(unread, None)
        for model, spans in beside.items():
            profiles = self.beside_of(cell, model)
            for unread in profiles.put_packed(spans):  # most often what the live baseline kept before there were two
                profiles.put(unread, None)

    def _names(self, key: ClientKey, header: bytes) -> bool:
        """Whether a stored header can be read; one that cannot is written anew with the client's next query."""
        return readable(None, self.secrets.unseal, header, key.tenant) is not None

    def of_model(self, cell: Cell, model: str) -> ProfileTable:
        if (profiles := cell.profiles.get(model)) is None:
            profiles = cell.profiles[model] = self._table(self.baselines[model])
        return profiles

    def beside_of(self, cell: Cell, model: str) -> ProfileTable:
        """The profiles of a model's second baseline."""
        profiles = cell.beside.get(model)
        if profiles is None:
            profiles = cell.beside[model] = self._table(self.beside[model])
        return profiles

    def _table(self, b: Baseline) -> ProfileTable:
        return ProfileTable(
            b.map, b.table, b.calibration_version, self.half_horizon_ms, memory_ms=self.memory_days * MS_A_DAY
        )

    def windows_of(self, cell: Cell, model: str) -> Windows:
        if (windows := cell.windows.get(model)) is None:
            windows = cell.windows[model] = Windows()
        return windows

    def step(self, cell: Cell, decoded: Decoded, keys: Mapping[str, list[ClientKey]], next_offset: int) -> Checkpoint:
        """Fold the queries and say what must be written. No I/O; the cache must hold every stored client of `keys`."""
        writes: dict[ClientKey, dict[str, bytes | None]] = {}
        lasting: set[ClientKey] = set()
        counted = Counter(decoded.counters)
        if decoded.halves is not None:
            counted.update(cell.halves.apply(decoded.halves))
        for model, batch in decoded.batches.items():
            hashes = event_hashes(*decoded.contents[model], self.secrets.sampling_key)
            counting, mine, hashes = self._admitted(cell, model, batch, keys[model], hashes, counted)
            counting, mine = self._unrepeated(cell, model, counting, mine, hashes, counted, decoded)
            if len(counting):
                self._fold(cell, model, counting, mine, decoded, writes, lasting)
        for model, second in self.beside.items():
            since = cell.folded.get(model, FoldedSince()).after(
                (self.baselines[model].id, second.id), cell.offset or 0, next_offset
            )
            cell.folded[model] = since
            writes[folded_key(self.secrets, self.tenant, model)] = {FOLDED_FIELD: since.to_bytes()}
        return Checkpoint(
            cell=cell.name,
            expected_offset=cell.offset,
            next_offset=next_offset,
            profiles=writes,
            dead=decoded.dead,
            counters={name: cell.counters[name] + counted[name] for name in COUNTERS}
            | {name: cell.counters[name] for name in MARKS}
            | {name: n for name, n in cell.counters.items() if prefix.carried(name)}
            | decoded.clock,
            sketch=cell_wide.packed(cell.admission, cell.halves) if self._cell_changed(cell, decoded) else None,
            lasting=frozenset(lasting),
            memory_s=int(self.memory_days * MS_A_DAY) // 1000,
            taken=_taken(cell, decoded, next_offset),
        )

    def _cell_changed(self, cell: Cell, decoded: Decoded) -> bool:
        return cell.admission.changed or (decoded.halves is not None and len(decoded.halves) > 0)

    def _set_clock(self, cell: Cell, decoded: Decoded, keys: Mapping[str, list[ClientKey]], records: Records) -> None:
        """Give the queries of all models the times at which they count, and say how the clock stands after them."""
        batches = list(decoded.batches.items())
        if not batches:
            return
        offsets = np.concatenate([batch.offsets for _, batch in batches])
        who = np.concatenate(
            [np.array([_voter(k.client) for k in keys[m]], np.int64)[batch.who] for m, batch in batches]
        )
        times = np.concatenate([batch.time_ms for _, batch in batches])
        broker = None
        if records.broker_ms is not None:
            broker = records.broker_ms[np.searchsorted(records.offsets, offsets)]
        order = np.argsort(offsets, kind="stable")
        times[order], ahead, state = on_the_clock(
            who[order], times[order], None if broker is None else broker[order], [cell.counters[name] for name in CLOCK]
        )
        decoded.counters["ahead"] += int(ahead.sum())
        decoded.clock = dict(zip(CLOCK, state, strict=True))
        decoded.last_ms = int(times.max())
        start = 0
        for model, batch in batches:
            counted = times[start : start + len(batch)]
            decoded.stated_ms[model] = np.where(batch.time_ms < 0, counted, batch.time_ms)
            decoded.batches[model] = replace(batch, time_ms=counted)
            start += len(batch)

    def _admitted(
        self,
        cell: Cell,
        model: str,
        batch: QueryBatch,
        keys: list[ClientKey],
        hashes: NDArray[np.uint64],
        counted: Counter[str],
    ) -> tuple[QueryBatch, list[ClientKey], NDArray[np.uint64]]:
        """Without what was erased, and with the queries of clients that get no state under the overflow client."""
        if cell.erased:
            until = np.array([cell.erased.get(key, 0) for key in keys], np.int64)
            keep = batch.offsets >= until[batch.who]
            if not keep.all():
                counted["erased"] += len(keep) - int(keep.sum())
                counted["queries"] -= len(keep) - int(keep.sum())
                batch, keys = _compact(batch.take(np.flatnonzero(keep)), keys)
                hashes = hashes[keep]
        profiles = self.of_model(cell, model)
        known = np.array([key in profiles for key in keys], np.bool_)
        if not known.all():
            pooled = cell.admission.pooled(
                [key.client for key in keys],
                known,
                batch.who,
                batch.time_ms,
                self.half_horizon_ms,
                self.limits,
                cell.full,
            )
            if pooled.any():
                counted["pooled"] += int(pooled.sum())
                who = np.where(pooled, np.int32(len(keys)), batch.who)
                batch = replace(batch, clients=[*batch.clients, OVERFLOW], who=who)
                batch, keys = _compact(batch, [*keys, self.overflow(model)])
        return batch, keys, hashes

    def _unrepeated(
        self,
        cell: Cell,
        model: str,
        batch: QueryBatch,
        keys: list[ClientKey],
        hashes: NDArray[np.uint64],
        counted: Counter[str],
        decoded: Decoded,
    ) -> tuple[QueryBatch, list[ClientKey]]:
        """Without duplicates."""
        if not hashes.any():
            return batch, keys
        stated = decoded.stated_ms[model][np.searchsorted(decoded.batches[model].offsets, batch.offsets)]
        fresh = self.windows_of(cell, model).unseen(keys, batch.who, hashes, batch.time_ms, stated)
        if fresh.all():
            return batch, keys
        repeated = len(fresh) - int(fresh.sum())
        counted["duplicate"] += repeated
        counted["queries"] -= repeated
        return _compact(batch.take(np.flatnonzero(fresh)), keys)

    def _fold(
        self,
        cell: Cell,
        model: str,
        batch: QueryBatch,
        keys: list[ClientKey],
        decoded: Decoded,
        writes: dict[ClientKey, dict[str, bytes | None]],
        lasting: set[ClientKey],
    ) -> None:
        profiles, windows = self.of_model(cell, model), self.windows_of(cell, model)
        measured = profiles.map.measure(batch, self.secrets.sampling_key)
        profiles.add(list(keys), batch, measured)
        watch = cell.watches.setdefault(model, SchemaWatch())
        if watch.add(batch, [key.client for key in keys], profiles.map):
            writes[self.watch_key(model)] = {WATCH_FIELD: watch.to_bytes()}
        for key, display, packed in zip(keys, batch.clients, self._packed(cell, model, batch, keys), strict=True):
            fields = packed.fields
            if packed.fades:
                lasting.add(key)
            kept = set(fields)
            stored = cell.stored.get(key)
            if stored is None or key in cell.nameless:
                fields["h"] = self.secrets.seal(display, self.tenant)
                cell.nameless.discard(key)
            fields |= dict.fromkeys(sorted((stored or set()) - kept))
            if (window := windows.blob(key)) is not None:
                fields[FIELD] = window
            cell.stored[key] = kept
            writes[key] = fields
        rows = np.searchsorted(decoded.batches[model].offsets, batch.offsets).astype(np.int64)
        self._write_fields(cell, FoldedBatch(model, batch, keys, measured, decoded, rows), writes)

    def _write_fields(self, cell: Cell, new: FoldedBatch, writes: dict[ClientKey, dict[str, bytes | None]]) -> None:
        """What changes of the clients beside their spans."""
        pool = self.overflow(new.model)
        for one in self._fields[new.model]:
            known = cell.values(one.name)
            changed = one.changed(known, new)
            if not one.of_pool:
                changed.pop(pool, None)
            known.update(changed)
            for key, value in changed.items():
                writes[key][one.name] = one.write(value)

    def _packed(self, cell: Cell, model: str, batch: QueryBatch, keys: list[ClientKey]) -> list[_PackedFields]:
        """The spans of the clients as they are stored, those of the second baseline too, for which the batch is folded here."""
        second, live = self.beside.get(model), cell.profiles[model].packed(keys)
        if second is None:
            return [_PackedFields({span_field(w): blob for w, blob in one.spans.items()}, one.fades) for one in live]
        table, own = self.beside_of(cell, model), self.baselines[model].id
        table.add(list(keys), batch, second.map.measure(batch, self.secrets.sampling_key))
        return [
            _PackedFields(
                {
                    **{span_field(w, own): blob for w, blob in one.spans.items()},
                    **{span_field(w, second.id): blob for w, blob in other.spans.items()},
                },
                one.fades or other.fades,
            )
            for one, other in zip(live, table.packed(keys), strict=True)
        ]

    def trim(self, cell: Cell, keys: Mapping[str, list[ClientKey]], cells: int = 1) -> None:
        """Make room in the cache before clients are added: past this cell's share, forget who came first, nobody of this poll.

        The models with most clients give first. A client that two baselines count takes two places.

        cells  how many share the limit; a process with many partitions must not need a cache for each
        """
        places = {model: 1 + (model in cell.beside) for model in cell.profiles}
        taken = {model: len(profiles) for model, profiles in cell.profiles.items()}
        for model, profiles in cell.profiles.items():
            taken[model] += sum(k not in profiles for k in keys.get(model, []))
        over = sum(taken[model] * places[model] for model in taken) - MAX_CACHED // cells
        for model in sorted(taken, key=lambda m: taken[m], reverse=True):
            if over <= 0:
                return
            kept = set(keys.get(model, []))
            many = -(-over // places[model])
            for key in list(itertools.islice((k for k in cell.profiles[model].rows if k not in kept), many)):
                over -= places[model]
                self._forget(cell, model, key)

    def _forget(self, cell: Cell, model: str, key: Any) -> None:
        cell.profiles[model].drop(key)
        if model in cell.beside:
            cell.beside[model].drop(key)
        self.windows_of(cell, model).drop(key)
        for known in (cell.stored, *cell.fields.values()):
            known.pop(key, None)
        cell.nameless.discard(key)


def _taken(cell: Cell, decoded: Decoded, next_offset: int) -> Taken | None:
    """What the step takes of the arrivals of a join cell."""
    if decoded.arrival is None:
        return None
    return Taken(*decoded.arrival, cell.halves.done_with(decoded.halves, cell.offset or 0, next_offset))


class _PackedFields(NamedTuple):
    """What is stored of one client's spans: field → bytes; fades: whether something stays beyond the horizon."""

    fields: dict[str, bytes | None]
    fades: bool


@lru_cache(65_536)  # the same busy clients come poll after poll
def _voter(client: str) -> int:
    """Stands for a client of any model in the clock's state, and does not show which."""
    digest = hashlib.blake2b(client.encode(), digest_size=8, person=b"qw-clock").digest()
    return int.from_bytes(digest, "big") >> 2 | 1


def _compact(batch: QueryBatch, keys: list[ClientKey]) -> tuple[QueryBatch, list[ClientKey]]:
    """The batch without the clients that have no row left in it."""
    used = np.unique(batch.who)
    if len(used) == len(keys):
        return batch, keys
    place = np.zeros(len(keys), np.int32)
    place[used] = np.arange(len(used), dtype=np.int32)
    clients = [batch.clients[i] for i in used.tolist()]
    return replace(batch, clients=clients, who=place[batch.who]), [keys[i] for i in used.tolist()]


def shape_of(baseline: Baseline) -> Shape:
    """Shape of the profiles that a baseline gives, for reading what ingest wrote."""
    return Shape.of(baseline.map, len(baseline.table.need))
