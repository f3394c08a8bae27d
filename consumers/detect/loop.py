"""The loop of detect: touched clients → assess → decide → store → alert.

Order of effects, for each decision cell that this process holds:

1. claim the cell: lease, fresh token, revision, cursors;
2. ask every profile cell which clients changed after the cursor;
3. load their decision rows, and read their profile shards in every profile cell that may hold some, each at one offset. An answer of
   another generation, or one older than the new cursor, is discarded. A profile cell that cannot be read is left out, and a client whose
   decision reflects it keeps that decision until the cell is restarted;
4. `step` (no I/O) → an `Outcome`: rows, alerts, cursors;
5. record it in one atomic step, with the alerts in the outbox;
6. send the content of the outbox, each destination by itself, at least once (delivery.py). Stored before sent.

Rules:
* Operators' entries are applied before anything is recorded (overrides.py): nothing is enforced against clients on the allowlist, and
  nothing new while the breaker is open.
* Running detectors share the cells: none holds more than its part, or takes more while another one waits.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consumers.alerts.delivery import OutboxWorker, OutboxWorkers
from consumers.detect.campaigns import EVERY_S, Campaigns, Search, Survey
from consumers.detect.joining import Joining, Joins
from consumers.detect.overrides import Overrides
from consumers.detect.schema_holds import SchemaHolds
from consumers.detect.step import Detect, Seen
from consumers.detect.verdicts import PendingVerdict, tell
from consumers.errors import CorruptState, Fenced, LeaseHeld, Rewound, Unavailable
from consumers.periodic import Backoff
from consumers.records.damaged import readable
from consumers.records.decision import stored_decision
from consumers.records.heartbeat import heartbeats
from consumers.store import Cursor, DecisionClaim, DecisionRow, Outcome, ServiceStore, decision_cell
from consumers.telemetry.alarms import Alarms
from consumers.telemetry.metrics import Metrics
from detector.query import ClientKey

if TYPE_CHECKING:
    from consumers.alerts import AlertSink

log = logging.getLogger("querywarden.detect")

LEASE_MS = 10_000
TOUCHED_LIMIT = 5_000
LAPSED_EVERY_S = 60.0
"""How often decisions are looked for whose time is over."""
MOST_POSTPONED = 10
"""How often in a row the search for campaigns may wait: a lag that does not end must not end the search."""
DRAIN_S = 5.0
BACK_OFF_S = (0.1, 5.0)
"""First and longest pause while the store does not answer; half of it is drawn, for many detectors may start at once."""
SCHEMA_EVERY_S = 2.0
"""How often a service looks at the misfits that clients share."""
RENEWALS = 2
"""A lease that was renewed so often since shows that its holder has looked at everything since."""


@dataclass(slots=True)
class HeldCell:
    """A decision cell that this process holds. told: verdicts that were looked at since the claim."""

    token: str
    revision: int
    cursors: dict[str, Cursor]
    told: set[PendingVerdict] = field(default_factory=set)


@dataclass(slots=True)
class Runner:
    """The other half: the loop and the I/O.

    schema_every_s  how often to look at the misfits that clients share; 0: in every turn. The turns of a replay follow the log, and what it
               decides must not depend on how fast the machine is
    now_s      wall clock, for what decisions say; None: each client's own time (replay). clock: monotonic, for everything else
    balanced   share the cells with the other detectors that live; a run that ends when idle takes what is free instead
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
    held: dict[int, HeldCell] = field(default_factory=dict)
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    ready: bool = False
    balanced: bool = True
    overrides: Overrides | None = field(default_factory=Overrides)
    joins: Joins | None = None
    follow: Callable[[], object] = lambda: None
    tenants: set[str] = field(default_factory=set)
    alarms: Alarms = field(init=False)
    deliveries: OutboxWorkers = field(init=False)
    search: Search = field(init=False)
    schema: SchemaHolds = field(init=False)
    _schema_s: float = -math.inf
    _renewed_s: float = 0.0
    _attended_s: float = -math.inf
    _lapsed_s: float = -math.inf
    _searched_s: float = -math.inf
    _postponed: int = 0
    _until: dict[ClientKey, int] = field(default_factory=dict)
    _share: int = 0
    _leases: dict[int, tuple[int, int]] = field(default_factory=dict)
    _corrupt: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.alarms = Alarms(self.metrics)
        workers = [OutboxWorker(sink, self.store, self.detect.secrets, self.metrics, self.clock) for sink in self.sinks]
        self.deliveries = OutboxWorkers(workers, self.alarms)
        d = self.detect
        self.search = Search(self.store, Campaigns(d.baselines, d.secrets, d.policy_of), surveyed=self._surveyed)
        self._searched_s = self.clock()
        self.schema = SchemaHolds(d.baselines, d.secrets)
        d.misfits_held = self.schema.holds
        if self.overrides is not None:
            self.overrides.schema = self.schema

    def turn(self, stop: Callable[[], bool] = lambda: False) -> int:
        """One round over the decision cells, left between two cells on `stop`; returns the number of clients looked at."""
        self.follow()
        profile_cells = self.store.cells()
        renew = self.clock() - self._renewed_s > self.lease_ms / 3000
        assessed = 0
        self._take_part()
        for cell in range(self.store.decision_cells):
            if cell not in self.held and len(self.held) < self._share:
                self._claim(cell)
        if self.overrides is not None:
            self.overrides.refresh(self.store)
        pending = self._touched(profile_cells)
        self._look_at_schema(pending)
        over = self._over()
        for cell in sorted(self.held):
            if stop():
                break
            assessed += self._one(cell, pending.get(cell, {}), profile_cells, renew, over.get(cell, []))
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
        self.deliveries.offer(self.held)
        return assessed

    def _look_at_schema(self, pending: Mapping[int, Mapping[str, tuple[Cursor, list[ClientKey]]]]) -> None:
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
            for outcome in self.search.run(tenant, self.held, self.now_s(), self.process, self.lease_ms):
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
            joining.look(tenant, survey, self.held, self.now_s() or 0)

    def _take_part(self) -> None:
        """Say that we live; let go of what is more than our part of the cells."""
        if not self.balanced:
            self._share = self.store.decision_cells
            return
        if self.clock() - self._attended_s >= self.lease_ms / 3000:
            self._share = math.ceil(self.store.decision_cells / self.store.attend(self.process, self.lease_ms))
            self._attended_s = self.clock()
        for cell in sorted(self.held)[self._share :]:
            self.store.release_decisions(cell, self.process)
            del self.held[cell]

    def _claim(self, cell: int) -> None:
        token = self.new_token()
        try:
            claim: DecisionClaim = self.store.claim_decisions(cell, self.process, token, self.lease_ms)
        except LeaseHeld as held:
            before_ms, renewals = self._leases.get(cell, (held.remaining_ms, 0))
            self._leases[cell] = held.remaining_ms, renewals + (held.remaining_ms > before_ms)
            return
        self._leases.pop(cell, None)
        self.held[cell] = HeldCell(token, claim.revision, dict(claim.cursors))

    def idle(self) -> bool:
        """Whether nothing is left to do anywhere: our cells had nothing, and who holds the others has looked at them since."""
        return all(
            cell in self.held or self._leases.get(cell, (0, 0))[1] >= RENEWALS
            for cell in range(self.store.decision_cells)
        )

    def busy(self) -> None:
        """There was something to do: what the others did before does not count any more."""
        self._leases.clear()

    def _over(self) -> dict[int, list[ClientKey]]:
        """decision cell → clients whose throttle or block has come to its end, for they may never ask again.

        What stands is read now and then; the store itself no longer lists what has ended.
        """
        now_s = self.now_s()
        if now_s is None or self.clock() - self._lapsed_s < LAPSED_EVERY_S:
            return {}
        self._lapsed_s = self.clock()
        over: dict[int, list[ClientKey]] = {}
        for client, until_s in list(self._until.items()):
            if until_s <= now_s:
                del self._until[client]
                over.setdefault(decision_cell(client, self.store.decision_cells), []).append(client)
        self._until |= {r.client: r.until_s for r in self.store.restrictions()[1] if r.until_s}
        return over

    def _touched(self, profile_cells: Sequence[str]) -> dict[int, dict[str, tuple[Cursor, list[ClientKey]]]]:
        """decision cell → profile cell → (cursor to be, clients changed since)."""
        found: dict[int, dict[str, tuple[Cursor, list[ClientKey]]]] = {}
        for name in profile_cells:
            wanted = {}
            for cell, held in self.held.items():
                cursor = held.cursors.get(name)
                wanted[cell] = cursor.offset if cursor else -1
            if not wanted:
                continue
            try:
                answers = self.store.touched(name, wanted, TOUCHED_LIMIT)
            except CorruptState as error:
                self._say_corrupt(name, error)
                continue
            for cell, answer in answers.items():
                cursor = self.held[cell].cursors.get(name)
                if cursor is not None and cursor.generation != answer.generation:
                    # rebuilt: everything counts as changed
                    answer = self.store.touched(name, {cell: -1}, TOUCHED_LIMIT)[cell]
                    cursor = None
                if cursor is not None and cursor.offset > answer.offset:
                    continue  # the profile cell was rolled back: its replay will catch up
                moved = cursor is None or answer.cursor > cursor.offset
                if answer.clients or moved:
                    found.setdefault(cell, {})[name] = (Cursor(answer.generation, answer.cursor), answer.clients)
        return found

    def _one(
        self,
        cell: int,
        pending: Mapping[str, tuple[Cursor, list[ClientKey]]],
        profile_cells: Sequence[str],
        renew: bool,
        over: Sequence[ClientKey] = (),
    ) -> int:
        held = self.held[cell]
        self.tenants.update(key.tenant for _, keys in pending.values() for key in keys)
        said = (
            []
            if self.overrides is None
            else self.overrides.verdicts.due(cell, self.store.decision_cells, held.told, self.now_s() or 0)
        )
        judged = [one.client for one in said]
        clients = list(dict.fromkeys([*(k for _, keys in pending.values() for k in keys), *over, *judged]))
        if not clients and not renew:
            return 0
        try:
            rows = self.store.load_decisions(cell, held.token, held.revision, clients) if clients else {}
            seen, valid = self._read(clients, rows, pending, profile_cells, held.cursors)
            if not valid:
                return 0
            cursors = {name: cursor for name, (cursor, _) in pending.items()}
            overrule = None if self.overrides is None else self.overrides.overruled
            outcome = self.detect.step(cell, seen, cursors, self.now_s(), overrule)
            if self.overrides is not None and clients:
                for tenant in sorted({client.tenant for client in clients}):
                    self.overrides.remember(self.store, tenant)
                tell(outcome, said, rows, self.store, self.detect.secrets)
            held.revision = self.store.record(held.token, held.revision, outcome, self.process, self.lease_ms)
            held.cursors |= cursors
            held.told.update(said)
        except (Fenced, Rewound):
            self.held.pop(cell, None)
            return 0
        for key, row in outcome.rows.items():
            if row.until_s:
                self._until[key] = row.until_s
            self.metrics.add("querywarden_clients_assessed_total", model=key.model)
            if row.rank >= 0:  # a campaign has none
                self.metrics.observe("querywarden_score", row.rank, model=key.model)
            if key not in rows or rows[key].state != row.state:
                self.metrics.add("querywarden_transitions_total", model=key.model, state=row.state)
        now_s = self.now_s()
        if now_s is not None:
            for alert in outcome.alerts:
                self.metrics.observe("querywarden_detection_latency_seconds", max(0.0, now_s - alert.time_ms / 1000))
        self.on_outcome(outcome)
        return len(clients)

    def _read(
        self,
        clients: Sequence[ClientKey],
        rows: Mapping[ClientKey, DecisionRow],
        pending: Mapping[str, tuple[Cursor, list[ClientKey]]],
        profile_cells: Sequence[str],
        cursors: Mapping[str, Cursor],
    ) -> tuple[list[Seen], bool]:
        """Shards of the clients from every profile cell; False when an answer is older than the cursor, or the cursor to be.

        A cell without touched clients may have been rolled back, too: a row that reflects a shard there waits for its replay.
        """
        fields: dict[ClientKey, dict[str, Mapping[str, bytes]]] = {k: {} for k in clients}
        behind, corrupt = set(), set()
        for name in profile_cells if clients else ():
            try:
                answer = self.store.shards(name, clients)
            except CorruptState as error:
                self._say_corrupt(name, error)
                corrupt.add(name)
                continue
            if name in pending:
                cursor, _ = pending[name]
                if answer.generation != cursor.generation or answer.offset < cursor.offset:
                    return [], False
            elif (
                name in cursors
                and answer.generation == cursors[name].generation
                and answer.offset < cursors[name].offset
            ):
                behind.add(name)
            for key, values in answer.fields.items():
                if values:
                    fields[key][name] = values
        seen = []
        for key in clients:
            before = None
            if key in rows:
                before = readable("decision row", stored_decision, rows[key], self.detect.secrets, key.tenant)
            if behind and (before is None or not behind.isdisjoint(before.cells)):
                return [], False  # without a row (it may have been erased) nobody knows what the replay will bring
            if before is not None and not corrupt.isdisjoint(before.cells):
                continue  # what the row reflects can't be read: it stays as it is
            seen.append(Seen(key, fields[key], before))
        return seen, True

    def _say_corrupt(self, name: str, error: CorruptState) -> None:
        if name not in self._corrupt:
            self._corrupt.add(name)
            log.error("profile cell cannot be read", extra={"cell": name, "why": str(error)})

    def release(self) -> None:
        """Give the cells back, so that another process need not wait for the leases to run out."""
        for cell in list(self.held):
            try:
                self.store.release_decisions(cell, self.process)
            except Unavailable:
                return
            self.held.pop(cell)
        if self.balanced:
            self._attended_s = -math.inf
            try:
                self.store.attend(self.process, 0)
            except Unavailable:
                return


def run(
    runner: Runner, stop: Callable[[], bool], until_idle: bool = False, interval_s: float = 0.5, threads: bool = False
) -> None:
    """Loop until `stop`, or, with `until_idle`, until no touched client is left in any cell.

    Two processes that are both told to stop when idle may each hold some cells: the idle one lets go of its own, so that
    one of them comes to see all. Beside a detector that goes on it waits until that one has looked at its cells.
    threads: a thread for each sink, so that none waits for another.
    """
    backoff = Backoff(*BACK_OFF_S, rng=runner.rng)
    runner.balanced = not until_idle
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
                runner.held.clear()
                runner.sleep(pause_s)
                continue
            if assessed:
                runner.busy()
            elif until_idle:
                if runner.idle():
                    runner.look_for_campaigns()
                    break
                runner.release()
                runner.sleep(runner.rng.uniform(0.05, 0.3))
            else:
                runner.sleep(interval_s)
        runner.deliveries.drain(DRAIN_S)
    finally:
        runner.deliveries.stop(1.0)
    runner.release()
