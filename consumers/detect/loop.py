"""The loop of detect: touched clients → assess → decide → store → alert.

Order of effects, for each decision cell that this process holds:

1. claim the cell: lease, fresh token, revision, cursors;
2. ask every profile cell which clients changed after the cursor (touched.py);
3. load their decision rows, and read their profile shards in every profile cell that may hold some, each at one offset, for some decision
   cells at a time;
4. `steps` (no I/O) → an `Outcome` for each: rows, alerts, cursors;
5. record it in one atomic step, with the alerts in the outbox;
6. send the content of the outbox, each destination by itself, at least once (delivery.py). Stored before sent.

Rules:
* Operators' entries are applied before anything is recorded (overrides.py): nothing is enforced against clients on the allowlist, and
  nothing new while the breaker is open.
* Running detectors share the cells (held_cells.py).
* While ingest lags behind the log, the search for campaigns waits, because it reads every row; a metric counts this (docs/decisions/0015).
* A throttle or block ends without a new query. Gateways stop at `until_s`, whatever detect does.
* The id of an alert is a hash of tenant, kind, model, keyed hash of the client and episode, so a repeated computation gives the same id.
* Client ids are sealed in everything that is stored: rows and outbox hold no id in clear; sinks and readers unseal it.
"""

from __future__ import annotations

import logging
import math
import os
import random
import secrets as entropy
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

from consumers.alerts.delivery import OutboxWorker, OutboxWorkers
from consumers.detect.campaigns import EVERY_S, Campaigns, Search
from consumers.detect.grouping import Survey
from consumers.detect.held_cells import HeldCells
from consumers.detect.joining import Joining, Joins
from consumers.detect.lapses import Lapses
from consumers.detect.overrides import Overrides
from consumers.detect.schema_holds import SchemaHolds
from consumers.detect.step import AT_ONCE, CellSeen, Detect
from consumers.detect.touched import CellWork, Pending, find_touched, read_shards
from consumers.detect.verdicts import tell
from consumers.errors import Fenced, Rewound, Unavailable
from consumers.periodic import Backoff
from consumers.records.damaged import UnreadableCells
from consumers.records.heartbeat import heartbeats
from consumers.store import Outcome, ServiceStore
from consumers.telemetry.alarms import Alarms
from consumers.telemetry.metrics import Metrics
from detector.query import ClientKey

if TYPE_CHECKING:
    from consumers.alerts import AlertSink

log = logging.getLogger("querywarden.detect")

LEASE_MS = 10_000
MOST_POSTPONED = 10
"""How often in a row the search for campaigns may wait: a lag that does not end must not end the search."""
DRAIN_S = 5.0
BACK_OFF_S = (0.1, 5.0)
"""First and longest pause while the store does not answer; half of it is drawn, for many detectors may start at once."""
SCHEMA_EVERY_S = 2.0
"""How often a service looks at the misfits that clients share."""


@dataclass(slots=True)
class Runner:
    """The other half: the loop and the I/O.

    schema_every_s  how often to look at the misfits that clients share; 0: in every turn. The turns of a replay follow the log, and what it
               decides must not depend on how fast the machine is
    now_s      wall clock, for what decisions say; None: each client's own time (replay). clock: monotonic, for everything else
    balanced   whether cells are shared with the other running detectors (`HeldCells`)
    overrides  what people said; None: nobody is asked
    joins      writes that accounts joined a campaign under decision; None: nobody joins
    follow     asked before each turn: which baselines are live (records/baselines_in_force.py). Raises Unavailable
    tenants    where campaigns are looked for: the service's own, and whose clients turn up
    """

    store: ServiceStore
    detect: Detect
    sinks: Sequence[AlertSink] = ()
    metrics: Metrics = field(default_factory=Metrics)
    now_s: Callable[[], int | None] = lambda: int(time.time())
    schema_every_s: float = SCHEMA_EVERY_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = field(default_factory=random.Random)
    new_token: Callable[[], str] = lambda: entropy.token_hex(16)
    process: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{entropy.token_hex(4)}")
    lease_ms: int = LEASE_MS
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    ready: bool = False
    overrides: Overrides | None = field(default_factory=Overrides)
    joins: Joins | None = None
    follow: Callable[[], object] = lambda: None
    tenants: set[str] = field(default_factory=set)
    balanced: InitVar[bool] = True
    cells: HeldCells = field(init=False)
    alarms: Alarms = field(init=False)
    deliveries: OutboxWorkers = field(init=False)
    search: Search = field(init=False)
    schema: SchemaHolds = field(init=False)
    unreadable: UnreadableCells = field(default_factory=UnreadableCells)
    lapses: Lapses = field(default_factory=Lapses)
    _schema_s: float = -math.inf
    _renewed_s: float = 0.0
    _searched_s: float = -math.inf
    _postponed: int = 0

    def __post_init__(self, balanced: bool) -> None:
        self.cells = HeldCells(self.store, self.process, self.lease_ms, self.clock, self.new_token, balanced)
        self.alarms = Alarms(self.metrics)
        workers = [OutboxWorker(sink, self.store, self.detect.secrets, self.metrics, self.clock) for sink in self.sinks]
        self.deliveries = OutboxWorkers(workers, self.alarms)
        d = self.detect
        campaigns = Campaigns(d.baselines, d.secrets, d.policy_of)
        self.search = Search(self.store, campaigns, surveyed=self._surveyed, unreadable=self.unreadable)
        self._searched_s = self.clock()
        self.schema = SchemaHolds(d.baselines, d.secrets, unreadable=self.unreadable)
        d.misfits_held = self.schema.holds
        if self.overrides is not None:
            self.overrides.schema = self.schema

    def turn(self, stop: Callable[[], bool] = lambda: False) -> int:
        """One round over the decision cells, left between two cells on `stop`; returns the number of clients looked at."""
        self.follow()
        profile_cells = self.store.cells()
        renew = self.clock() - self._renewed_s > self.lease_ms / 3000
        assessed = 0
        self.cells.take_part()
        if self.overrides is not None:
            self.overrides.refresh(self.store)
        pending = find_touched(self.store, self.cells.held, profile_cells, self.unreadable)
        self._look_at_schema(pending)
        now_s = self.now_s()
        over = {} if now_s is None else self.lapses.ended(self.store, now_s, self.clock())
        for cells in self._together(pending, over):
            if stop():
                break
            assessed += self._look(cells, pending, profile_cells, renew, over, stop)
        if renew:
            self._renewed_s = self.clock()
        if (
            self.now_s() is not None
            and self.clock() - self._searched_s >= EVERY_S
            and not stop()
            and not self._postpone()
        ):
            self.look_for_campaigns()
        self.ready = True
        if self.overrides is not None:
            self.alarms.show("breaker", self.overrides.open)
        self.deliveries.offer(self.cells.held)
        return assessed

    def _look_at_schema(self, pending: Mapping[int, Pending]) -> None:
        """Hold back misfits that many clients share, before anything is decided on them."""
        if not pending or self.clock() - self._schema_s < self.schema_every_s:
            return
        self._schema_s = self.clock()
        self.tenants.update(key.tenant for cells in pending.values() for _, keys in cells.values() for key in keys)
        asked = self.overrides is not None
        for tenant in sorted(self.tenants):
            found = self.schema.look(self.store, tenant, self.now_s() or 0)
            self.schema.keep(
                tenant, found, self.store if asked else None, self.overrides.revision if self.overrides else None
            )
        self.alarms.show("schema", bool(self.schema.open()))

    def _postpone(self) -> bool:
        """Whether the search waits for another turn, because ingest needs the store more."""
        try:
            lags = any("lag" in beat.alarms for beat in heartbeats(self.store))
        except Unavailable:
            return False
        if not lags or self._postponed >= MOST_POSTPONED:
            return False
        self._postponed, self._searched_s = self._postponed + 1, self.clock()
        self.metrics.add("querywarden_campaign_searches_postponed_total")
        log.warning("search for campaigns postponed: ingest lags", extra={"times": self._postponed})
        return True

    def look_for_campaigns(self) -> None:
        """One pass over all rows of our tenants: another process, or we before a restart, may have assessed the clients."""
        self._searched_s, self._postponed = self.clock(), 0
        for tenant in sorted(self.tenants):
            for outcome in self.search.run(tenant, self.cells.held, self.now_s(), self.process, self.lease_ms):
                self.on_outcome(outcome)

    def _surveyed(self, tenant: str, survey: Survey) -> None:
        self._look_at_totals(survey)
        self._join(tenant, survey)

    def _look_at_totals(self, survey: Survey) -> None:
        """Raise an alarm where all clients of a model together asked more than their owner allows."""
        asked = Counter[str]()
        for key, client in survey.clients.items():
            asked[key.model] += round(client.distinct)
        over = {m: n for m, n in asked.items() if 0 < self.detect.policy_of(m).exposure.queries_total <= n}
        self.alarms.show("queries_total", bool(over), models=over)

    def _join(self, tenant: str, survey: Survey) -> None:
        """Add new members to the campaigns that an operator decided about."""
        if self.overrides is not None and self.joins is not None:
            self.overrides.refresh(self.store)
            joining = Joining(
                self.overrides, self.joins, self.store, self.detect.secrets, self.metrics, self.store.decision_cells
            )
            joining.look(tenant, survey, self.cells.held, self.now_s() or 0)

    def _together(self, pending: Mapping[int, Pending], over: Mapping[int, Sequence[ClientKey]]) -> Iterator[list[int]]:
        """Our cells, as many at a time as have `AT_ONCE` clients between them: their profiles are read and assessed together."""
        some, clients = list[int](), 0
        for cell in sorted(self.cells.held):
            some.append(cell)
            clients += sum(len(keys) for _, keys in pending.get(cell, {}).values()) + len(over.get(cell, ()))
            if clients >= AT_ONCE:
                yield some
                some, clients = [], 0
        yield some

    def _look(
        self,
        cells: Sequence[int],
        pending: Mapping[int, Pending],
        profile_cells: Sequence[str],
        renew: bool,
        over: Mapping[int, Sequence[ClientKey]],
        stop: Callable[[], bool],
    ) -> int:
        """Assess, decide and record for some cells; returns the number of clients looked at."""
        works = [self._work(cell, pending.get(cell, {}), over.get(cell, ())) for cell in cells]
        works = [work for work in works if (work.clients or renew) and self._load(work)]
        keys = [key for work in works for key in work.clients]
        answers = read_shards(self.store, keys, profile_cells, self.unreadable)
        works = [work for work in works if work.put_together(answers, self.detect.secrets)]
        overrule = None if self.overrides is None else self.overrides.overruled
        outcomes = self.detect.steps([CellSeen(w.cell, w.seen, w.cursors) for w in works], self.now_s(), overrule)
        assessed = 0
        for work in works:
            if stop():
                break
            outcome = next(outcomes)
            try:
                self._record(work, outcome)
            except (Fenced, Rewound):
                self.cells.drop(work.cell)
                continue
            self._recorded(work, outcome)
            assessed += len(work.clients)
        return assessed

    def _work(self, cell: int, pending: Pending, over: Sequence[ClientKey]) -> CellWork:
        held = self.cells.held[cell]
        self.tenants.update(key.tenant for _, keys in pending.values() for key in keys)
        said = (
            []
            if self.overrides is None
            else self.overrides.verdicts.due(cell, self.store.decision_cells, held.told, self.now_s() or 0)
        )
        judged = [one.client for one in said]
        clients = list(dict.fromkeys([*(k for _, keys in pending.values() for k in keys), *over, *judged]))
        cursors = {name: cursor for name, (cursor, _) in pending.items()}
        return CellWork(cell, held, said, clients, cursors)

    def _load(self, work: CellWork) -> bool:
        """Load the decision rows of a cell; False when the cell is not ours any more."""
        try:
            if work.clients:
                work.rows = self.store.load_decisions(work.cell, work.held.token, work.held.revision, work.clients)
        except (Fenced, Rewound):
            self.cells.drop(work.cell)
            return False
        return True

    def _record(self, work: CellWork, outcome: Outcome) -> None:
        """Write an outcome under the fence of its cell. Raises Fenced, Rewound."""
        held = work.held
        if self.overrides is not None and work.clients:
            for tenant in sorted({client.tenant for client in work.clients}):
                self.overrides.remember(self.store, tenant)
            tell(outcome, work.said, work.rows, self.store, self.detect.secrets)
        held.revision = self.store.record(held.token, held.revision, outcome, self.process, self.lease_ms)
        held.cursors |= work.cursors
        held.told.update(work.said)

    def _recorded(self, work: CellWork, outcome: Outcome) -> None:
        """Count what was recorded, and tell who wants to know."""
        self.lapses.recorded(outcome.rows)
        for key, row in outcome.rows.items():
            if row.rank >= 0:  # a campaign has none
                self.metrics.observe("querywarden_score", row.rank, model=key.model)
            if key not in work.rows or work.rows[key].state != row.state:
                self.metrics.add("querywarden_transitions_total", model=key.model, state=row.state)
        assessed = Counter(key.model for key in outcome.rows)
        self.metrics.add_each("querywarden_clients_assessed_total", "model", assessed)
        now_s = self.now_s()
        if now_s is not None:
            for alert in outcome.alerts:
                self.metrics.observe("querywarden_detection_latency_seconds", max(0.0, now_s - alert.time_ms / 1000))
        self.on_outcome(outcome)


def run(
    runner: Runner, stop: Callable[[], bool], until_idle: bool = False, interval_s: float = 0.5, threads: bool = False
) -> None:
    """Loop until `stop`, or, with `until_idle`, until no touched client is left in any cell.

    Two processes that are both told to stop when idle may each hold some cells: the idle one lets go of its own, so that
    one of them comes to see all. Beside a detector that goes on it waits until that one has looked at its cells.
    threads: a thread for each sink, so that none waits for another.
    """
    backoff = Backoff(*BACK_OFF_S, rng=runner.rng)
    runner.cells.balanced = not until_idle
    if threads:
        runner.deliveries.start()
    try:
        while not stop():
            try:
                assessed = runner.turn(stop)
                backoff.reset()
            except Unavailable as error:
                pause_s = backoff.next_s()
                runner.metrics.add("querywarden_store_unavailable_total", process="detect")
                log.warning("store unavailable", extra={"why": str(error), "failures": backoff.failures})
                runner.cells.held.clear()
                runner.sleep(pause_s)
                continue
            if assessed:
                runner.cells.busy()
            elif until_idle:
                if runner.cells.idle():
                    runner.look_for_campaigns()
                    break
                runner.cells.release()
                runner.sleep(runner.rng.uniform(0.05, 0.3))
            else:
                runner.sleep(interval_s)
        runner.deliveries.drain(DRAIN_S)
    finally:
        runner.deliveries.stop(1.0)
    runner.cells.release()
