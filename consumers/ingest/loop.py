"""The loop of ingest: query log → profiles → store, with the offset.

Order of effects, for each cell and poll (docs/architecture.md):

1. a cell is assigned: claim it with a fresh token, seek where the store says (ownership.py);
2. poll; records below the cell's offset are not counted again;
3. `decode` (no I/O) → the profiles that are needed → load those that the cache lacks, with token and offset (committer.py);
4. `step` (no I/O) → a `Checkpoint`; it leaves out erased clients, pools clients that are not admitted, and leaves out duplicates, in this
   order;
5. commit it in one atomic step: fence, profiles, dead letters, counters, sketch, offset;
6. ship dead letters, then the advisory commit to the log.

Rules:
* `Fenced` drops the cell; `Rewound` claims again and seeks; `Unavailable` pauses, backs off once a turn and claims again. A commit whose
  outcome is unknown is never sent twice.
* The cache holds only what was committed, so dropping it is always safe.
* recovery.py handles failures and records that end a process. A cell that cannot go on stops alone until an operator begins it anew
  (stopped_cells.py).
* Ready means that the process is a member of the group and the store answers. A replica to which no cell was assigned is ready too.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from consumers.errors import Unavailable
from consumers.ingest.cell import Cell
from consumers.ingest.committer import Committer
from consumers.ingest.dead_letters import DeadLetterShip, DeadLetterShipper
from consumers.ingest.health import Runtime, StoreHealth
from consumers.ingest.ownership import CAUTIOUS_AFTER, Ownership
from consumers.ingest.poison import FindPoison, find_poison
from consumers.ingest.recovery import CautiousMode, Recovery
from consumers.ingest.reporting import Reporter, TurnReport
from consumers.ingest.step import Ingest
from consumers.ingest.stopped_cells import STOPPING, Stops
from consumers.log import Poll, QueryLog, Records
from consumers.log.formats import Decoded
from consumers.store import Checkpoint, ProfileStore
from consumers.telemetry.metrics import Metrics
from detector.baseline import Baseline


class IngestLoop:
    """The loop and the I/O of ingest, composed of its parts.

    ready  whether the process is a member of the group and the store answered in the last turn
    """

    def __init__(
        self,
        log: QueryLog,
        store: ProfileStore,
        ingest: Ingest,
        metrics: Metrics | None = None,
        *,
        runtime: Runtime | None = None,
        dead_letters: DeadLetterShip | None = None,
        max_poll_records: int = 10_000,
        on_commit: Callable[[Checkpoint, Decoded], None] = lambda checkpoint, decoded: None,
        parts: Callable[[Cell, Records], Iterable[Records]] = lambda cell, records: (records,),
        cautious_after: int = CAUTIOUS_AFTER,
        find_poison: FindPoison = find_poison,
        follow: Callable[[], tuple[Mapping[str, Baseline], Mapping[str, Baseline]] | None] = lambda: None,
    ) -> None:
        """Compose a loop; nothing is asked of the store or the log yet.

        runtime         clock, sleep and chance; a simulation gives its own
        dead_letters    where refused records are shipped to; None: the first of each cell stay in the store
        on_commit       called after each commit
        parts           how a poll's records of a cell are divided into commits, in order; the service commits them at once
        cautious_after  how many processes claim at an offset and never come beyond it before this one tries records first
        find_poison     which records end a process
        follow          asked before each poll: the live baselines and those beside them if they changed; then all cells are claimed
                        again. Raises Unavailable
        """
        metrics = metrics or Metrics()
        self.log = log
        self.max_poll_records = max_poll_records
        self.parts = parts
        self.follow = follow
        self.ready = False
        self.reporter = Reporter(metrics)
        self.shipper = DeadLetterShipper(store, dead_letters)
        self.health = StoreHealth(store, metrics, runtime or Runtime())
        self.ownership = Ownership(log, store, self.health, self.shipper, Stops(metrics), cautious_after)
        self.recovery = Recovery(self.ownership, metrics)
        self.committer = Committer(ingest, self.recovery, self.reporter, on_commit)
        self.cautious_mode = CautiousMode(ingest, self.recovery, self.committer.commit, max_poll_records, find_poison)

    def turn(self, timeout_s: float) -> int:
        """Poll once and do what follows; returns the number of records committed. Raises what only an operator can mend."""
        self.health.error = None
        try:
            return self._turn(timeout_s)
        except Unavailable as error:
            self.health.error = error
            return 0
        finally:
            if self.health.error is not None:
                self.ready = False
                self.health.back_off(self.health.error)

    def _turn(self, timeout_s: float) -> int:
        if (found := self.follow()) is not None:
            self.committer.ingest.use(*found)
            for cell in list(self.ownership.cells.values()):
                self.ownership.drop(cell)
        poll = self.log.poll(timeout_s, self.max_poll_records)
        self._note_changes(poll)
        self.ownership.claim_waiting()
        if self.ownership.cells:
            self.health.check_memory(self.ownership.cells.values())
        committed = sum(self._guarded(records) for records in poll.batches)
        self.shipper.hand_on()
        self.recovery.keepalive()
        self._report()
        self.ready = self.health.error is None and self.log.is_member()
        if committed or poll.batches:
            owned = self.ownership.cells.values()
            self.log.commit({cell.name: cell.offset for cell in owned if cell.offset is not None})
        return committed

    def _note_changes(self, poll: Poll) -> None:
        """Follow the assignment, ask again about what is in doubt, show gaps."""
        self.ownership.follow(poll)
        if poll.revoked:
            self.reporter.watch.handed_over()
        self.recovery.recheck_ownership()
        self.recovery.reclaim_rebuilt()
        for name, first, last in poll.gaps:
            self.reporter.report_gap(self.health.runtime.clock(), name, first, last)
            if name in self.ownership.cells:
                self.ownership.cells[name].counters["gap"] += last - first + 1

    def _guarded(self, records: Records) -> int:
        """Fold and commit the records of one cell; what stops a cell stops only this one."""
        try:
            return self._fold(records)
        except STOPPING as error:
            self.ownership.stop(records.cell, error)
            return 0

    def _fold(self, records: Records) -> int:
        """Fold and commit the records of one cell; returns how many."""
        cell = self.ownership.cells.get(records.cell)
        if cell is None:
            return 0  # claimed again since the poll: the records come back
        self.ownership.check_topic_id(cell)
        if cell.cautious:
            return self.cautious_mode.fold(cell, records.from_offset(cell.offset or 0))
        committed = 0
        for part in self.parts(cell, records):
            if not self.committer.commit(cell, part):
                break
            committed += len(part.values)
        return committed

    def _report(self) -> None:
        health, ownership = self.health, self.ownership
        turn = TurnReport(
            lag=self.log.lag(),
            stopped=ownership.stops.words(),
            store_full=health.full,
            letters_share=self.shipper.fullest(),
            answered=health.error is None,
        )
        models = self.committer.ingest.baselines
        self.reporter.report_metrics(health.runtime.clock(), turn, ownership.cells.values(), models)


def run(
    loop: IngestLoop,
    stop: Callable[[], bool],
    until_end: bool = False,
    poll_timeout_s: float = 0.2,
    stopped_elsewhere: Callable[[], Container[str]] = tuple,
) -> None:
    """Loop until `stop`, or, with `until_end`, until everything that was in the log at the start is committed by somebody.

    stopped_elsewhere  asked with `until_end`: cells that cannot go on in another process. Raises Unavailable.

    With `until_end`, raises StoppedCells at the end when cells of this process stopped before theirs.
    """
    ends: Mapping[str, int] | None = None if until_end else {}
    while not stop():
        committed = loop.turn(poll_timeout_s)
        if ends is None:  # after the first poll: only then a followed file knows its cell
            try:
                ends = loop.log.ends()
            except Unavailable as error:
                loop.health.back_off(error)
                continue
        if until_end and not committed and _reached(loop, ends, stopped_elsewhere):
            if loop.ownership.stops.found:
                raise loop.ownership.stops.refusal()
            return


def _reached(loop: IngestLoop, ends: Mapping[str, int], stopped_elsewhere: Callable[[], Container[str]]) -> bool:
    """Tell whether every cell of the log has reached its end: ours by what we committed, others by what the store says.

    A stopped cell never will, here or in another process that says so.
    """
    ownership = loop.ownership
    for name, end in ends.items():
        if name in ownership.stops.found:
            continue
        cell = ownership.cells.get(name)
        if cell is not None:
            if max(cell.offset or 0, loop.log.position(name)) < end:
                return False
        elif end > 0:
            try:
                if ownership.store.shards(name, []).offset < end and name not in stopped_elsewhere():
                    return False
            except Unavailable:
                return False
    return True
