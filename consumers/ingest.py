"""Ingest: query log → profiles → store, with the offset.

Order of effects, for each cell and poll (docs/architecture.md):

1. a cell is assigned: claim it with a fresh token, seek where the store says;
2. poll; records below the cell's offset are not ours to count again;
3. `decode` (no I/O) → which profiles are needed → load what the cache lacks, versioned;
4. `step` (no I/O) → a `Checkpoint`;
5. commit it in one atomic step: fence, profiles, dead letters, counters, offset;
6. ship dead letters, then the advisory commit to the log.

`Fenced` drops the cell; `Rewound` claims again and seeks; `Unavailable` pauses, backs off once a turn and claims again: a commit whose
outcome is unknown is never sent twice. The cache holds what was committed and nothing else, so dropping it is always safe.
Ready means: joined the group, and the store answers. A replica that no cell was left for is ready too.
"""

from __future__ import annotations

import logging
import math
import random
import secrets as entropy
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from consumers.errors import Fenced, LogTruncated, Rewound, Unavailable
from consumers.log import QueryLog, Records
from consumers.log.formats import Decoded, InputReader, NativeFormat
from consumers.metrics import Metrics
from consumers.secrets import Secrets
from consumers.store import Checkpoint, DeadLetter, Store
from detector.baseline import Baseline
from detector.errors import IncompatibleProfile
from detector.profile import Profile, Shape
from detector.profiles import Profiles
from detector.query import ClientKey, QueryBatch

log = logging.getLogger("querywarden.ingest")

MS_A_DAY = 86_400_000
MAX_CACHED = 4096
BACK_OFF_S = (0.05, 5.0)
BEACON_S = 5.0
"""How often the store is asked for a sign of life when there is nothing to write."""

LETTERS = 1000
LETTERS_KEPT = 500
"""Dead letters of a cell that stay in the store when there is no topic to ship them to; the others are only counted."""
COUNTED = ("produced", "queries", "dead", "unmodelled", "denied", "failed", "gap")


class DeadLetterShip(Protocol):
    """Where refused records go besides the store."""

    def ship(self, letters: list[DeadLetter]) -> list[bool]: ...


@dataclass(slots=True)
class Cell:
    """What this process knows of one log cell that it owns: exactly what was committed.

    stored  client → spans that the store holds, by first window; sealed: clients whose header is stored
    """

    name: str
    token: str
    offset: int | None
    counters: Counter[str]
    profiles: dict[str, Profiles] = field(default_factory=dict)
    stored: dict[ClientKey, set[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Ingest:
    """The pure half of ingest: everything it needs to turn records into a checkpoint."""

    baselines: Mapping[str, Baseline]
    secrets: Secrets
    tenant: str = "default"
    horizon_days: float = 30.0
    admit_unknown: bool = False
    format: NativeFormat = field(init=False)

    def __post_init__(self) -> None:
        readers = {model: InputReader(baseline.map.schema) for model, baseline in self.baselines.items()}
        self.format = NativeFormat(readers, self.admit_unknown)

    @property
    def half_horizon_ms(self) -> int:
        return int(self.horizon_days * MS_A_DAY / 2)

    def decode(self, cell: Cell, records: Records) -> tuple[Decoded, dict[str, list[ClientKey]]]:
        """Columns of the records at or above the cell's offset, and the clients of each model's batch."""
        if cell.offset is not None and len(records.offsets) and records.offsets[0] < cell.offset:
            records = _from_offset(records, cell.offset)
        decoded = self.format.decode(records)
        keys = {
            model: [ClientKey(self.tenant, model, self.secrets.client_hash(self.tenant, c)) for c in batch.clients]
            for model, batch in decoded.batches.items()
        }
        return decoded, keys

    def missing(self, cell: Cell, keys: Mapping[str, list[ClientKey]]) -> list[ClientKey]:
        """Clients whose profile is not in the cache."""
        return [k for model, mine in keys.items() for k in mine if k not in self.of_model(cell, model)]

    def take(self, cell: Cell, loaded: Mapping[ClientKey, Mapping[str, bytes]], wanted: list[ClientKey]) -> None:
        """Put loaded profiles into the cache. A profile of an older map, or a damaged one, is set aside and begun anew."""
        for key in wanted:
            fields = loaded.get(key, {})
            blobs = {int(name[2:]): blob for name, blob in fields.items() if name.startswith("w:")}
            profiles = self.of_model(cell, key.model)
            spans: list[Profile] = []
            try:
                # the long span began first; one alone is a life that began within it
                spans = [Profile.from_bytes(blobs[start], profiles.shape) for start in sorted(blobs)[-2:]]
                profiles.put(key, spans[0] if spans else None, spans[1] if len(spans) > 1 else None)
            except IncompatibleProfile as error:
                log.warning("profile set aside", extra={"cell": cell.name, "model": key.model, "why": str(error)})
                profiles.put(key, None)
            if fields:
                cell.stored[key] = set(blobs)

    def of_model(self, cell: Cell, model: str) -> Profiles:
        profiles = cell.profiles.get(model)
        if profiles is None:
            b = self.baselines[model]
            profiles = cell.profiles[model] = Profiles(b.map, b.table, b.nulls_version, self.half_horizon_ms)
        return profiles

    def step(self, cell: Cell, decoded: Decoded, keys: Mapping[str, list[ClientKey]], next_offset: int) -> Checkpoint:
        """Fold the queries and say what must be written. No I/O; the cache must hold every client of `keys`."""
        writes: dict[ClientKey, dict[str, bytes | None]] = {}
        for model, batch in decoded.batches.items():
            self._fold(cell, model, batch, keys[model], writes)
        counters = cell.counters + decoded.counters
        return Checkpoint(
            cell=cell.name,
            expected_offset=cell.offset,
            next_offset=next_offset,
            profiles=writes,
            dead=decoded.dead,
            counters={name: counters[name] for name in COUNTED},
        )

    def _fold(
        self,
        cell: Cell,
        model: str,
        batch: QueryBatch,
        keys: list[ClientKey],
        writes: dict[ClientKey, dict[str, bytes | None]],
    ) -> None:
        profiles = self.of_model(cell, model)
        profiles.add(list(keys), batch, profiles.map.measure(batch, self.secrets.sampling_key))
        for key, display in zip(keys, batch.clients, strict=True):
            fields: dict[str, bytes | None] = {f"w:{span.window}": span.to_bytes() for span in profiles.spans(key)}
            kept = {int(name[2:]) for name in fields}
            stored = cell.stored.get(key)
            if stored is None:
                fields["h"] = self.secrets.seal(display, self.tenant)
            fields |= {f"w:{start}": None for start in sorted((stored or set()) - kept)}
            cell.stored[key] = kept
            writes[key] = fields

    def trim(self, cell: Cell, keys: Mapping[str, list[ClientKey]]) -> None:
        """Keep the cache bounded: past the limit, forget all but the clients of this poll."""
        for model, profiles in cell.profiles.items():
            if len(profiles) > MAX_CACHED:
                keep = set(keys.get(model, []))
                for key in [k for k in profiles.rows if k not in keep]:
                    profiles.drop(key)
                    cell.stored.pop(key, None)  # type: ignore[call-overload]


def _from_offset(records: Records, offset: int) -> Records:
    first = int(np.searchsorted(records.offsets, offset))
    return Records(
        records.cell, records.values[first:], records.offsets[first:], records.next_offset, records.places[first:],
        {i - first: why for i, why in records.refused.items() if i >= first},
    )  # fmt: skip


@dataclass(slots=True)
class Runner:
    """The other half: the loop and the I/O.

    clock, sleep, rng  injected, so that the simulation owns time
    dead_letters       where refused records are shipped to; None: the first of each cell stay in the store
    unshipped          cells that may hold dead letters which were not handed on yet
    silent             why this turn got no answer from store or log; None: it did
    """

    log: QueryLog
    store: Store
    ingest: Ingest
    metrics: Metrics = field(default_factory=Metrics)
    dead_letters: DeadLetterShip | None = None
    max_poll_records: int = 2000
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = field(default_factory=random.Random)
    new_token: Callable[[], str] = lambda: entropy.token_hex(16)
    on_commit: Callable[[Checkpoint, Decoded], None] = lambda checkpoint, decoded: None
    cells: dict[str, Cell] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    unshipped: set[str] = field(default_factory=set)
    failures: int = 0
    ready: bool = False
    silent: Unavailable | None = None
    _answered_s: float = -math.inf

    def turn(self, timeout_s: float) -> int:
        """One poll and what follows from it; returns the number of records committed. Raises what only an operator can mend."""
        self.silent = None
        try:
            return self._turn(timeout_s)
        except Unavailable as error:
            self.silent = error
            return 0
        finally:
            if self.silent is not None:
                self.ready = False
                self.back_off(self.silent)

    def _turn(self, timeout_s: float) -> int:
        poll = self.log.poll(timeout_s, self.max_poll_records)
        for name in poll.revoked:
            self.cells.pop(name, None)
            self.waiting.discard(name)
            self.unshipped.discard(name)
        self.waiting.update(poll.assigned)
        for cell, first, last in poll.gaps:
            log.error("data gap", extra={"cell": cell, "first": first, "last": last})
            self.metrics.add("querywarden_gap_records_total", last - first + 1)
            if cell in self.cells:
                self.cells[cell].counters["gap"] += last - first + 1
        # in any order, up to the first that gets no answer: many cells of a store that is away must not hold up the poll
        waiting = sorted(self.waiting)
        for name in self.rng.sample(waiting, len(waiting)):
            if not self._claim(name):
                break
        committed = sum(self._batch(records) for records in poll.batches)
        for name in sorted(self.unshipped):
            if not self._ship(name):
                break
        self._beacon()
        self.metrics.set("querywarden_cells", len(self.cells))
        self.ready = self.silent is None and self.log.joined()
        if committed or poll.batches:
            self.log.commit({c.name: c.offset for c in self.cells.values() if c.offset is not None})
        return committed

    def _beacon(self) -> None:
        """An idle replica asks the store for a sign of life."""
        if self.silent is None and self.clock() - self._answered_s >= BEACON_S:
            self.store.cells()
            self._heard()

    def _heard(self) -> None:
        self._answered_s = self.clock()
        self.failures = 0

    def _claim(self, name: str) -> bool:
        """False when the store or the log does not answer."""
        token = self.new_token()
        try:
            claim = self.store.claim(name, token)
            offset = self.log.seek(name, claim.next_offset)
        except Unavailable as error:
            self.silent = error
            return False
        except Fenced:
            self.waiting.discard(name)  # the log says that the cell is gone; it will tell when it is back
            return True
        except LogTruncated:
            self.waiting.discard(name)
            raise
        self._heard()
        self.waiting.discard(name)
        # an earlier owner may have left some
        self.unshipped.add(name)
        # the position in memory is the store's: None until the first commit, whatever the log started at
        self.cells[name] = Cell(name, token, claim.next_offset, Counter(claim.counters))
        log.info("cell claimed", extra={"cell": name, "offset": offset})
        return True

    def _batch(self, records: Records) -> int:
        cell = self.cells.get(records.cell)
        if cell is None:
            return 0  # claimed again since the poll: the records come back
        try:
            decoded, keys = self.ingest.decode(cell, records)
            wanted = self.ingest.missing(cell, keys)
            if wanted:
                self.ingest.take(cell, self.store.load(cell.name, cell.token, cell.offset, wanted), wanted)
            checkpoint = self.ingest.step(cell, decoded, keys, records.next_offset)
            self.store.commit(cell.token, checkpoint)
        except Fenced:
            self._lost(cell, "fenced", again=True)
            if not self._still_ours(cell.name):
                self.waiting.discard(cell.name)
            return 0
        except Rewound as error:
            log.warning("store is elsewhere", extra={"cell": cell.name, "offset": error.offset})
            self._lost(cell, "rewound", again=True)
            return 0
        except Unavailable as error:
            self._lost(cell, "unavailable", again=True)
            self.silent = error
            return 0
        self._heard()
        cell.offset = checkpoint.next_offset
        cell.counters += decoded.counters
        self._count(decoded)
        self.ingest.trim(cell, keys)
        self.on_commit(checkpoint, decoded)
        if checkpoint.dead:
            self.unshipped.add(cell.name)
        return len(records.values)

    def _still_ours(self, name: str) -> bool:
        try:
            return self.log.still_ours(name)
        except Fenced:
            return False
        except Unavailable:
            return True  # who knows: claim again, at worst the other one is fenced in turn

    def _lost(self, cell: Cell, outcome: str, again: bool) -> None:
        """Forget the cell: what is in memory may not be what is stored."""
        self.metrics.add("querywarden_commits_total", outcome=outcome)
        self.cells.pop(cell.name, None)
        try:
            self.log.pause(cell.name)
        except Fenced:
            return  # revoked since the poll, which will say so
        if again:
            self.waiting.add(cell.name)

    def back_off(self, error: Unavailable) -> None:
        """Full jitter (Brooker 2015): the store is not hammered by processes in step."""
        self.failures += 1
        self.metrics.add("querywarden_store_unavailable_total", process="ingest")
        if self.failures in (1, 10) or self.failures % 100 == 0:
            log.warning("store or log unavailable", extra={"why": str(error), "failures": self.failures})
        low, high = BACK_OFF_S
        self.sleep(self.rng.uniform(low, min(high, low * 2 ** min(self.failures, 10))))

    def _ship(self, name: str) -> bool:
        """Hand on the cell's dead letters. False: some were not taken, and are tried again with a later turn."""
        try:
            while True:
                pending = self.store.dead_letters(name, LETTERS)
                letters = [letter for _, letter in pending]
                if self.dead_letters is None:
                    delivered = [i >= LETTERS_KEPT for i in range(len(letters))]
                else:
                    delivered = self.dead_letters.ship(letters) if letters else []
                done = [entry for (entry, _), ok in zip(pending, delivered, strict=True) if ok]
                if done:
                    self.store.dead_letters_shipped(name, done)
                if self.dead_letters is not None and len(done) < len(pending):
                    return False
                if len(pending) < LETTERS:
                    self.unshipped.discard(name)
                    return True
        except Unavailable as error:
            log.warning("dead letters wait", extra={"cell": name, "why": str(error)})
            return False

    def _count(self, decoded: Decoded) -> None:
        m = self.metrics
        m.add("querywarden_commits_total", outcome="committed")
        for outcome, name in (
            ("query", "queries"),
            ("dead", "dead"),
            ("unmodelled", "unmodelled"),
            ("denied", "denied"),
            ("failed", "failed"),
        ):
            if decoded.counters[name]:
                m.add("querywarden_records_total", decoded.counters[name], outcome=outcome)
        for letter in decoded.dead:
            m.add("querywarden_dead_letters_total", reason=letter.reason)
        if decoded.counters["unknown_keys"]:
            m.add("querywarden_unknown_keys_total", decoded.counters["unknown_keys"])
        if decoded.last_ms:
            m.set("querywarden_event_time_seconds", decoded.last_ms / 1000)


def run(runner: Runner, stop: Callable[[], bool], until_end: bool = False, poll_timeout_s: float = 0.2) -> None:
    """Loop until `stop`, or, with `until_end`, until everything that was in the log at the start is committed by somebody."""
    ends: Mapping[str, int] | None = None if until_end else {}
    while not stop():
        committed = runner.turn(poll_timeout_s)
        if ends is None:  # after the first poll: only then a followed file knows its cell
            try:
                ends = runner.log.ends()
            except Unavailable as error:
                runner.back_off(error)
                continue
        if until_end and not committed and _reached(runner, ends):
            return


def _reached(runner: Runner, ends: Mapping[str, int]) -> bool:
    """Whether every cell of the log has reached its end: ours by what we committed, others by what the store says."""
    for name, end in ends.items():
        mine = runner.cells.get(name)
        if mine is not None:
            if max(mine.offset or 0, runner.log.position(name)) < end:
                return False
        elif end > 0:
            try:
                if runner.store.shards(name, []).offset < end:
                    return False
            except Unavailable:
                return False
    return True


def shape_of(baseline: Baseline) -> Shape:
    """Shape of the profiles that a baseline gives, for reading what ingest wrote."""
    return Shape.of(baseline.map, len(baseline.table.need))
