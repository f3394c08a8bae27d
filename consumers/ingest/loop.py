"""Ingest: query log → profiles → store, with the offset.

Order of effects, for each cell and poll (docs/architecture.md):

1. a cell is assigned: claim it with a fresh token, seek where the store says;
2. poll; records below the cell's offset are not ours to count again;
3. `decode` (no I/O) → which profiles are needed → load what the cache lacks, versioned;
4. `step` (no I/O) → a `Checkpoint`; what was erased, what is a duplicate and who gets no state is settled here, in this order:
   erased, admission, duplicates;
5. commit it in one atomic step: fence, profiles, dead letters, counters, sketch, offset;
6. ship dead letters, then the advisory commit to the log.

`Fenced` drops the cell; `Rewound` claims again and seeks; `Unavailable` pauses, backs off once a turn and claims again: a commit whose
outcome is unknown is never sent twice. The cache holds what was committed and nothing else, so dropping it is always safe.
A record that ends the process (a crash of a library, the machine's out-of-memory killer) must not stop its cell. Who finds that
another process claimed at this offset and never came beyond it tries the records in a child process first (poison.py): the ones that
end it are refused with the reason ``poison``. That takes two restarts, and whatever else ends a process condemns no record.
(A cell that merely changed hands twice without a new record is read slowly for one poll: no harm.)
A cell that cannot go on (its log was cut back or made anew, its keys can't be read) stops alone until an operator begins it anew
(stopped_cells.py).
Ready means: joined the group, and the store answers. A replica that no cell was left for is ready too.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import secrets as entropy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from consumers.alarms import Alarms, Watch
from consumers.errors import CorruptState, Fenced, LogRecreated, LogTruncated, Rewound, Unavailable
from consumers.ingest.admission import FULL_SHARE, Admission
from consumers.ingest.crashes import CrashCounts
from consumers.ingest.dead_letters import DeadLetterShip, DeadLetterShipper
from consumers.ingest.poison import Trial, find_poison
from consumers.ingest.step import Cell, Ingest
from consumers.ingest.stopped_cells import STOPPING, Stops, generation_of
from consumers.ingest.tally import tally
from consumers.log import QueryLog, Records, prefix
from consumers.log.formats import Decoded
from consumers.metrics import Metrics
from consumers.records.heartbeat import stopped_elsewhere
from consumers.store import Checkpoint, Store

log = logging.getLogger("querywarden.ingest")

BACK_OFF_S = (0.05, 5.0)
DOUBT_S = 1.0
"""How often the group is asked again about a cell that it said was not ours."""

BEACON_S = 5.0
"""How often the store is asked for a sign of life, and whether it still holds a cell as we know it, when there is nothing to write."""

CAREFUL_AFTER = 1
"""So many processes claimed at an offset and never came beyond it before the next tries records in a child process. The one that got
there by reading is not among them, so a batch has killed twice by then."""
CAREFUL_AT_ONCE = 256
SINGLY_AFTER = 4
"""After so many, records are committed one by one: what kills may be no record alone."""
POISON = ("poison", "a process ends when this record is folded")


@dataclass(slots=True)
class Runner:
    """The other half: the loop and the I/O.

    clock, sleep, rng  injected, so that the simulation owns time
    dead_letters       where refused records are shipped to; None: the first of each cell stay in the store
    parts              how a poll's records of a cell are divided into commits, in order; the service commits them at once
    careful_after      so many others claimed at an offset and never came beyond it before this one tries records first
    trial              which records end a process
    doubted            cells that the group said were not ours, and when; it has not taken them away either
    deaths             what claims say about processes that ended
    stops              cells that cannot go on until an operator decides
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
    parts: Callable[[Cell, Records], Iterable[Records]] = lambda cell, records: (records,)
    careful_after: int = CAREFUL_AFTER
    trial: Trial = find_poison
    cells: dict[str, Cell] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    doubted: dict[str, float] = field(default_factory=dict)
    shipper: DeadLetterShipper = field(init=False)
    watch: Watch = field(init=False)
    stops: Stops = field(init=False)
    deaths: CrashCounts = field(default_factory=CrashCounts)
    failures: int = 0
    ready: bool = False
    full: bool = False
    silent: Unavailable | None = None
    _answered_s: float = -math.inf
    _pressed_s: float = -math.inf
    _stops_seen_s: float = -math.inf

    def __post_init__(self) -> None:
        self.shipper = DeadLetterShipper(self.store, self.dead_letters)
        self.watch = Watch(Alarms(self.metrics))
        self.stops = Stops(self.metrics)

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
            self.doubted.pop(name, None)
            self.shipper.forget(name)
            self.stops.end(name)
        if poll.revoked:
            self.watch.handed_over()
        self.waiting.update(poll.assigned)
        for name, why in poll.stopped:
            self._stop(name, LogTruncated(why))
        self._ask_again()
        self._ask_for_rebuilt()
        for cell, first, last in poll.gaps:
            log.error("data gap", extra={"cell": cell, "first": first, "last": last})
            self.metrics.add("querywarden_gap_records_total", last - first + 1)
            self.watch.gap(self.clock())
            if cell in self.cells:
                self.cells[cell].counters["gap"] += last - first + 1
        # in any order, up to the first that gets no answer: many cells of a store that is away must not hold up the poll
        waiting = sorted(self.waiting)
        for name in self.rng.sample(waiting, len(waiting)):
            if not self._claim(name):
                break
        self._press()
        committed = sum(self._guarded(records) for records in poll.batches)
        self.shipper.hand_on()
        self._beacon()
        self._look()
        self.ready = self.silent is None and self.log.is_member()
        if committed or poll.batches:
            self.log.commit({c.name: c.offset for c in self.cells.values() if c.offset is not None})
        return committed

    def _beacon(self) -> None:
        """A sign of life from an idle store; and a cell that nobody writes to learns that its store lost a tail: it is read again."""
        due = self.clock() - BEACON_S
        if self.silent is None and self._answered_s <= due:
            self.store.cells()
            self._heard()
        for cell in [c for c in self.cells.values() if c.checked_s <= due]:
            if self.silent is not None:
                break
            self._check(cell)

    def _check(self, cell: Cell) -> None:
        """Whether the store still is where we think, asked without writing."""
        try:
            self.store.load(cell.name, cell.token, cell.offset, [])
        except (Fenced, Rewound, Unavailable) as error:
            self._refused(cell, error)
        except CorruptState as error:
            self._stop(cell.name, error)
        else:
            self._heard()
            cell.checked_s = self.clock()

    def _press(self) -> None:
        """Ask now and then how full the store is."""
        if self.cells and self.silent is None and self.clock() - self._pressed_s >= BEACON_S:
            self._pressed_s = self.clock()
            try:
                self.full = self.store.pressure() >= FULL_SHARE
            except Unavailable as error:
                self.silent = error
            for cell in self.cells.values():
                cell.full = self.full

    def _look(self) -> None:
        """What is shown to operators."""
        behind = self.log.lag()
        self.metrics.set("querywarden_cells", len(self.cells))
        self.metrics.set("querywarden_lag_records", behind)
        newest_s = self.metrics.value("querywarden_event_time_seconds") or 0.0
        late_s = max(0.0, time.time() - newest_s) if behind and newest_s else 0.0
        self.metrics.set("querywarden_ingest_lag_seconds", late_s)
        self.watch.alarms.show("cell_stopped", bool(self.stops.found), cells=dict(self.stops.words()))
        self.watch.alarms.show("store_full", self.full)
        self.watch.alarms.show("letters_wait", self.shipper.fullest() >= 0.8)
        self.watch.look(self.clock(), behind, self.silent is None)

    def _heard(self) -> None:
        self._answered_s = self.clock()
        self.failures = 0

    def _claim(self, name: str) -> bool:
        """False when the store or the log does not answer."""
        try:
            return self._claimed(name)
        except STOPPING as error:
            self._stop(name, error)
            return True

    def _claimed(self, name: str) -> bool:
        token = self.new_token()
        try:
            claim = self.store.claim(name, token, self.deaths.proof(name))
            offset = self.log.seek(name, claim.next_offset)
        except Unavailable as error:
            self.deaths.lived(name)
            self.silent = error
            return False
        except Fenced:
            self.waiting.discard(name)  # the log says that the cell is gone; it will tell when it is back
            return True
        self._heard()
        self.waiting.discard(name)
        # an earlier owner may have left some
        self.shipper.unshipped.add(name)
        # the position in memory is the store's: None until the first commit, whatever the log started at
        cell = Cell(name, token, claim.next_offset, Counter(claim.counters))
        cell.admission, cell.erased, cell.full = Admission(claim.sketch), claim.erased, self.full
        cell.generation, cell.checked_s = claim.generation, self.clock()
        self._check_topic_id(cell)
        self._notice_deaths(cell, claim.attempts)
        self.cells[name] = cell
        log.info("cell claimed", extra={"cell": name, "offset": offset})
        return True

    def _check_topic_id(self, cell: Cell) -> None:
        """Raises LogRecreated when the offset belongs to a log that is no more."""
        known, now = cell.counters["log_id"], self.log.topic_id(cell.name)
        if known and now and known != now:
            raise LogRecreated(
                f"{cell.name}: the topic was deleted and created again; the store's offset belongs to the old one"
            )
        cell.counters["log_id"] = now or known

    def _notice_deaths(self, cell: Cell, attempts: int) -> None:
        """Whether processes died here (crashes.py)."""
        cell.deaths = self.deaths.count(cell, attempts)
        cell.careful = cell.deaths >= self.careful_after
        if cell.careful:
            log.warning("records are tried before they are folded", extra={"cell": cell.name, "offset": cell.offset})

    def _stop(self, name: str, error: LogTruncated | CorruptState) -> None:
        """This cell cannot go on; the others do."""
        cell = self.cells.pop(name, None)
        self.waiting.discard(name)
        self.doubted.pop(name, None)
        self.stops.add(name, error, cell.generation if cell is not None else generation_of(self.store, name))
        with contextlib.suppress(Fenced):  # revoked since the poll, which will say so
            self.log.pause(name)

    def _ask_for_rebuilt(self) -> None:
        """A stopped cell that an operator began anew is claimed again."""
        if self.stops.found and self.clock() - self._stops_seen_s >= BEACON_S:
            self._stops_seen_s = self.clock()
            try:
                rebuilt = self.stops.rebuilt(self.store)
            except Unavailable as error:
                self.silent = error
                return
            for name in rebuilt:
                self.stops.end(name)
                self.waiting.add(name)

    def _guarded(self, records: Records) -> int:
        try:
            return self._batch(records)
        except STOPPING as error:
            self._stop(records.cell, error)
            return 0

    def _batch(self, records: Records) -> int:
        """Fold and commit the records of one cell; returns how many."""
        cell = self.cells.get(records.cell)
        if cell is None:
            return 0  # claimed again since the poll: the records come back
        self._check_topic_id(cell)
        if not cell.careful:
            done = 0
            for part in self.parts(cell, records):
                if not self._commit(cell, part):
                    break
                done += len(part.values)
            return done
        return self._carefully(cell, records.from_offset(cell.offset or 0))

    def _carefully(self, cell: Cell, records: Records) -> int:
        """Try some records, then commit them without those that end a process."""
        if not len(records.offsets):
            self._commit(cell, records)
            return 0
        if not cell.careful_until:
            cell.careful_until = max(records.next_offset, int(records.offsets[0]) + self.max_poll_records)
        whole = len(records.offsets)
        records = records.part(0, 1 if cell.deaths >= SINGLY_AFTER else CAREFUL_AT_ONCE)
        try:
            records = self._tried(cell, records)
        except (Fenced, Rewound, Unavailable) as error:
            self._refused(cell, error)
            return 0
        if not self._commit(cell, records):
            return 0
        if records.next_offset >= cell.careful_until:
            cell.careful = False
        if len(records.offsets) < whole:
            try:
                self.log.seek(cell.name, cell.offset)
            except (Fenced, Unavailable):
                self._lost(cell, "unavailable", again=True)
        return len(records.offsets)

    def _tried(self, cell: Cell, records: Records) -> Records:
        """Records with those refused that end a process; first read, then, with what is stored about their clients, folded."""
        ingest, alone = self.ingest, [records.part(i, i + 1) for i in range(len(records.offsets))]

        def read(i: int) -> None:
            ingest.decode(cell, alone[i])

        def fold(i: int) -> None:
            ingest.step(cell, *ingest.decode(cell, alone[i]), alone[i].next_offset)

        records = self._condemned(records, self.trial(len(alone), read))
        wanted = ingest.missing(cell, ingest.decode(cell, records)[1])
        if wanted:
            ingest.take(cell, self.store.load(cell.name, cell.token, cell.offset, wanted), wanted)
        alone = [records.part(i, i + 1) for i in range(len(alone))]
        return self._condemned(records, self.trial(len(alone), fold))

    def _condemned(self, records: Records, which: list[int]) -> Records:
        for i in which:
            log.error("record quarantined", extra={"cell": records.cell, "offset": int(records.offsets[i])})
        return replace(records, refused=records.refused | dict.fromkeys(which, POISON))

    def _commit(self, cell: Cell, records: Records) -> bool:
        """False when nothing, or nobody knows what, was written; the cell is then no longer ours to go on with."""
        before, folded = cell.counters.copy(), False
        prefix.note(cell.counters, records.from_offset(cell.offset or 0))
        try:
            decoded, keys = self.ingest.decode(cell, records)
            self.ingest.trim(cell, keys, len(self.cells))
            wanted = self.ingest.missing(cell, keys)
            if wanted:
                self.ingest.take(cell, self.store.load(cell.name, cell.token, cell.offset, wanted), wanted)
            checkpoint = self.ingest.step(cell, decoded, keys, records.next_offset)
            folded = True
            dropped = len(checkpoint.dead) - self.shipper.room(cell.name)
            if dropped > 0:
                checkpoint.dead = checkpoint.dead[:-dropped]
            self.store.commit(cell.token, checkpoint)
        except (Fenced, Rewound, Unavailable) as error:
            if folded and not isinstance(error, Rewound):
                self.deaths.folded(cell.name)
            self._refused(cell, error)
            return False
        self._heard()
        self.deaths.moved(cell.name)
        cell.offset, cell.checked_s = checkpoint.next_offset, self.clock()
        cell.counters.update({name: n - cell.counters[name] for name, n in checkpoint.counters.items()})
        self._count(cell.counters - before, decoded, max(0, dropped))
        self.shipper.wrote(cell.name, len(checkpoint.dead))
        self.on_commit(checkpoint, decoded)
        return True

    def _refused(self, cell: Cell, error: Fenced | Rewound | Unavailable) -> None:
        """The store did not do what we asked for: what we know of the cell may not be so."""
        if isinstance(error, Fenced):
            self._lost(cell, "fenced", again=True)
            if not self._owns(cell.name):
                self._doubt(cell.name)
        elif isinstance(error, Rewound):
            log.warning("store is elsewhere", extra={"cell": cell.name, "offset": error.offset})
            self._lost(cell, "rewound", again=True)
        else:
            self._lost(cell, "unavailable", again=True)
            self.silent = error

    def _doubt(self, name: str) -> None:
        """Not ours, says the group. Yet it may leave the cell with us in its next generation, and then it tells nobody: ask again."""
        if name in self.waiting:
            self.waiting.discard(name)
            self.doubted[name] = self.clock()

    def _ask_again(self) -> None:
        due = self.clock() - DOUBT_S
        for name in [n for n, asked_s in self.doubted.items() if asked_s <= due] if self.log.is_member() else ():
            self.doubted[name] = self.clock()
            if self._owns(name):
                self.doubted.pop(name)
                self.waiting.add(name)

    def _owns(self, name: str) -> bool:
        try:
            return self.log.owns(name)
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

    def _count(self, moved: Mapping[str, int], decoded: Decoded, dropped: int) -> None:
        """What a commit moved the counters by, for the metrics and the alarms."""
        tally(self.metrics, moved, decoded, dropped)
        self.watch.counted(self.clock(), moved, decoded.batches)


def run(runner: Runner, stop: Callable[[], bool], until_end: bool = False, poll_timeout_s: float = 0.2) -> None:
    """Loop until `stop`, or, with `until_end`, until everything that was in the log at the start is committed by somebody.

    With `until_end`, raises StoppedCells at the end when cells of this process stopped before theirs.
    """
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
            if runner.stops.found:
                raise runner.stops.refusal()
            return


def _reached(runner: Runner, ends: Mapping[str, int]) -> bool:
    """Whether every cell of the log has reached its end: ours by what we committed, others by what the store says.

    A stopped cell never will, here or in another process that says so.
    """
    for name, end in ends.items():
        if name in runner.stops.found:
            continue
        mine = runner.cells.get(name)
        if mine is not None:
            if max(mine.offset or 0, runner.log.position(name)) < end:
                return False
        elif end > 0:
            try:
                if runner.store.shards(name, []).offset < end and name not in stopped_elsewhere(runner.store):
                    return False
            except Unavailable:
                return False
    return True
