"""One seed: a log, a store on several nodes, ingest and detect processes, receivers, an operator – and everything that goes wrong.

A run has three parts: faults, while the producer sends its script; the end of faults, when every process is up again; and the
drain, which must come to rest within `DRAIN_S` of simulated time. Then `oracle.judge` looks.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from simulation import apart, joined, scene
from simulation.cells import Nodes, Place, ProfileCell
from simulation.deeds import Operator
from simulation.faults import Faults
from simulation.model import ModelStore, Saved
from simulation.processes import Crash, Port, Process
from simulation.schedule import Schedule
from simulation.topic import MemberLog, Topic

from consumers import store as port
from consumers.detect import loop as detect
from consumers.errors import QueryWardenError, Unavailable
from consumers.ingest import loop as ingest
from consumers.ingest.health import Runtime
from consumers.ingest.ownership import CAUTIOUS_AFTER
from consumers.log import QueryLog
from consumers.store import DeadLetter, OutboxAlert, Store

INGEST, DETECT = 3, 2
DRAIN_S = 30.0
MOST_S = 90.0
"""When the faults end at the latest."""

WITH_SNAPSHOTS = 0.4
"""Share of the seeds with an operator whose operator takes snapshots and restores them."""

SNAPSHOTS_FROM = 100_000
"""Our own protocol meets snapshots in the soak only, until the 2,000 seeds of CI were run with them; weaker ones meet them everywhere."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a variant is tried with more often than a seed would draw it.

    deeds   what the operator does, each as often as it is named; empty: as the seed says
    pauses  how long it waits between them, in s
    theme   kinds of faults to draw the mix from; empty: as the seed says
    always  faults that come by themselves in every seed
    rate    share of effects that are hit; None: as the seed says
    halves  queries are logged in two halves: joined, or joined by a process that keeps them in memory only; apart: in several topics
    """

    deeds: tuple[str, ...] = ()
    pauses: tuple[float, ...] = (0.1, 0.4, 1.0)
    theme: tuple[str, ...] = ()
    always: tuple[str, ...] = ()
    rate: float | None = None
    halves: Literal["", "joined", "in memory", "apart", "apart, in memory"] = ""


AS_DRAWN = Workload()

TraceLine = tuple[float, str, str, Place | None, str]


def _port(process: Process) -> Store:
    """What is not written out in `Port` is passed on by name, which mypy cannot see."""
    return cast(Store, Port(process))


class Receiver:
    """Where alerts go: takes them, or some, or none. Shared by all detect processes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.taken: Counter[str] = Counter()


class Sink:
    def __init__(self, process: Process, receiver: Receiver) -> None:
        self._process, self._receiver = process, receiver

    @property
    def name(self) -> str:
        return self._receiver.name

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        def take() -> list[bool]:
            self._receiver.taken.update(alert.uid for alert in alerts)
            return [True] * len(alerts)

        try:
            return self._process.effect("send", None, take, sink=True)  # type: ignore[no-any-return]
        except Unavailable:
            return [False] * len(alerts)

    def close(self) -> None:
        pass


class FakeDeadLetterTopic:
    """The dead-letter topic, as one ingest process sees it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def ship(self, letters: list[DeadLetter]) -> list[bool]:
        def take() -> list[bool]:
            self._process.world.letters.update(letter.place for letter in letters)
            return [True] * len(letters)

        try:
            return self._process.effect("ship", None, take, sink=True)  # type: ignore[no-any-return]
        except Unavailable:
            return [False] * len(letters)


def _undelivered(state: ProfileCell | None, taken: set[str]) -> bool:
    """Dead letters that nobody got. That one was shipped may be forgotten in a failover: the next owner ships it again."""
    return state is not None and any(letter.place not in taken for _, letter in state.dead)


def _script(number: int, halves: str) -> scene.Script:
    if halves.startswith("apart"):
        return apart.script(number)
    return joined.script(number) if halves else scene.script(number)


class World:
    def __init__(
        self,
        seed: int,
        store: Callable[[Nodes, Callable[[], float]], ModelStore] = ModelStore,
        muted: frozenset[int] = frozenset(),
        trace: list[TraceLine] | None = None,
        with_detect: bool | None = None,
        workload: Workload = AS_DRAWN,
    ) -> None:
        rng = self.rng = random.Random(f"{seed}/world")
        self.seed, self.trace = seed, trace
        number = rng.randrange(scene.SCRIPTS)
        self.script = _script(number, workload.halves)
        self.workload = workload
        self.faults = Faults(seed, muted, workload.theme, workload.always, workload.rate)
        self.schedule = Schedule()
        self.topic = Topic(self.script.log_cells(), random.Random(f"{seed}/topic"))
        self.decision_cells = rng.choice([1, 2, 2, 3])
        nodes = rng.randint(2, 4)
        places: dict[Place, int] = {}
        where = random.Random(f"{seed}/nodes")
        self.nodes = Nodes(nodes, lambda place: places.setdefault(place, where.randrange(nodes)))
        self._places = places
        self.store = store(self.nodes, self.schedule.wall_s)
        self.store.decision_cells = self.decision_cells  # the usual number would only make the same runs longer
        self.session_s = rng.choice([0.3, 1.0, 2.0])
        # with so many crashes cautious mode would be all there is
        self.cautious_after = rng.choice([CAUTIOUS_AFTER, 1_000, 1_000, 1_000])
        self.lease_ms = rng.choice([500, 2000])
        self.max_poll = rng.choice([5, 20, 50])
        self.receivers = [Receiver(f"sim:{i}") for i in range(rng.choice([1, 1, 2]))]
        self.letters: set[str] = set()
        self.over = False
        self.healed = False
        self.errors: list[str] = []
        self.stale: list[str] = []
        self.doubled: list[str] = []
        self.late = 0
        self.erased: set[str] = set()
        snapshots = store is not ModelStore or seed >= SNAPSHOTS_FROM
        self.with_snapshots = snapshots and random.Random(f"{seed}/snapshots").random() < WITH_SNAPSHOTS
        self.snapshot: Saved | None = None
        self.restores = 0  # that took effect
        self.confirmed = "operator" not in self.faults.every_s
        self.with_detect = rng.random() < 0.5 if with_detect is None else with_detect
        self._tokens = random.Random(f"{seed}/tokens")

    # --- called by processes

    def note(self, who: str, what: str, place: Place | None = None, hit: str = "") -> None:
        if self.trace is not None:
            self.trace.append((self.schedule.now_s, who, what, place, hit))

    def later(self, process: Process, what: str, place: Place | None, call: Callable[[], Any]) -> None:
        """The call arrives when nobody waits for it any more."""
        who = process.identity
        self.late += 1

        def arrive() -> None:
            self.late -= 1
            ending = "takes effect"
            try:
                call()
            except QueryWardenError as refusal:
                ending = f"→ {type(refusal).__name__}"
            self.note(who, f"late {what} {ending}", place)

        self.schedule.at(self.faults.later_s(), arrive)

    def roll_back(self, place: Place | None = None) -> None:
        rng = self.faults.rng
        node = rng.randrange(self.nodes.count) if place is None else self._places.get(place, 0)
        undone = self.nodes.roll_back(node, self.faults.lag())
        self.note(f"node {node}", f"fails over, {undone} writes lost")

    def stale_commit(self, who: str, cell: str) -> None:
        self.note(who, f"STALE COMMIT accepted in {cell}")
        self.stale.append(f"{who}: {cell}")

    def doubled_alert(self, uid: str) -> None:
        self.note("outbox", f"UID TWICE {uid}")
        self.doubled.append(uid)

    def token(self) -> str:
        return f"{self._tokens.getrandbits(128):032x}"

    # --- processes

    def _ingest(self, process: Process) -> None:
        log: QueryLog = MemberLog(self.topic, process, process.identity)
        store, halves = _port(process), self.workload.halves
        if isinstance(self.script, apart.ApartScript):
            log = apart.reading(
                log, store, self.schedule.monotonic, self.token, len(self.script.cells), halves == "apart, in memory"
            )
        elif halves:
            log = joined.reading(log, halves == "in memory")
        runtime = Runtime(
            self.schedule.monotonic, process.pause, random.Random(f"{self.seed}/{process.identity}"), self.token
        )
        loop = ingest.IngestLoop(
            log, store, scene.reading(), scene.metrics(), runtime=runtime,
            dead_letters=FakeDeadLetterTopic(process), max_poll_records=self.max_poll,
            cautious_after=self.cautious_after, find_poison=lambda count, attempt: [],
        )  # fmt: skip
        self._run(process, lambda: ingest.run(loop, lambda: self.over))

    def _detect(self, process: Process) -> None:
        runner = detect.Runner(
            _port(process), scene.judging(), [Sink(process, r) for r in self.receivers], metrics=scene.metrics(),
            now_s=lambda: None, clock=self.schedule.monotonic, sleep=process.pause,
            rng=random.Random(f"{self.seed}/{process.identity}"), new_token=self.token, process=process.identity,
            lease_ms=self.lease_ms,
        )  # fmt: skip
        self._run(process, lambda: detect.run(runner, lambda: self.over, interval_s=0.2))

    def _operator(self, process: Process) -> None:
        Operator(self, process).run()

    def _run(self, process: Process, body: Callable[[], None]) -> None:
        try:
            body()
        except (Unavailable, Crash):
            raise Crash from None
        except Exception as error:
            self.note(process.identity, f"ENDED {type(error).__name__}: {error}")
            self.errors.append(f"{process.identity}: {type(error).__name__}: {error}")
            if len(self.errors) > 20:
                self.over = True
            raise Crash from error

    # --- the run

    def run(self) -> None:
        processes = [Process(self, f"ingest{i}", self._ingest) for i in range(INGEST)]
        if self.with_detect:
            processes += [Process(self, f"detect{i}", self._detect) for i in range(DETECT)]
        if "operator" in self.faults.every_s:
            processes.append(Process(self, "operator", self._operator))
        tasks = [self.schedule.spawn(process.live) for process in processes]
        self._produce(0)
        for kind in ("rollback", "rebalance", "theft"):
            if kind in self.faults.every_s:
                self._by_itself(kind)
        self.schedule.run(lambda: self.faults.spent and self._all_sent, MOST_S)
        self.faults.on = False
        self.healed = True
        while not self._all_sent:
            self._send()
        self.note("world", "HEALED")
        self.healed_s = self.schedule.now_s
        self.drained = self.schedule.run(self._at_rest, self.healed_s + DRAIN_S)
        self.drained_s = self.schedule.now_s - self.healed_s
        self.over = True
        for task in tasks:
            if not task.dead:
                task.throw(Crash)

    _next = 0

    @property
    def _all_sent(self) -> bool:
        return self._next == len(self.script.sends())

    def _send(self) -> None:
        burst = self.script.sends()[self._next]
        self._next += 1
        for sent in burst:
            self.topic.append(sent.cell, sent.offset, sent.value, sent.end)
        self.note("producer", f"sends {len(burst)} records")

    def _produce(self, waited: int) -> None:
        """A burst whenever its share of the faults is spent, or half a second has passed."""
        if self._all_sent:
            return
        share = self.faults.budget * self._next / len(self.script.sends())
        if self.faults.count >= share or waited >= 10:
            self._send()
            waited = -1
        self.schedule.at(0.05, lambda: self._produce(waited + 1))

    def _by_itself(self, kind: str) -> None:
        faults = self.faults
        if not faults.on:
            return
        if not faults.spent and self.schedule.now_s > 0 and faults.numbered(kind):
            if kind == "rollback":
                self.roll_back()
            elif kind == "rebalance":
                self.topic.rebalance()
                self.note("group", "rebalances")
            else:
                self._theft()
        self.schedule.at(faults.every_s[kind] * (0.5 + faults.rng.random()), lambda: self._by_itself(kind))

    def _theft(self) -> None:
        """A lease ends early, as when a node's clock jumps."""
        v = self.faults.rng.randrange(self.decision_cells)
        state = self.nodes.decision_cell(v)
        if state.process:
            state = state.copy()
            state.process, state.lease_until_ms = "", 0.0
            self.nodes.put(("decisions", v), state)
            self.note("lease", f"of decision cell {v} is lost")

    def _at_rest(self) -> bool:
        """Everything read, assessed, sent, and nothing on its way."""
        if self.schedule.steps % 8 or self.late or not self.confirmed:
            return False
        cells = {cell: self.nodes.profile_cell(cell) for cell in self.script.cells}
        for cell, state in cells.items():
            if not self.script.at_end(cell, state, self.topic.ends) or _undelivered(state, self.letters):
                return False
        if not self.with_detect:
            return True
        for v in range(self.decision_cells):
            decided = self.nodes.decision_cell(v)
            for cell, state in cells.items():
                if state is None:
                    continue
                cursor = decided.cursors.get(cell)
                at = cursor.offset if cursor and cursor.generation == state.generation else -1
                for client, (_, touched) in state.profiles.items():
                    if touched > at and port.decision_cell(client, self.decision_cells) == v:
                        return False
            for receiver in self.receivers:
                if any((receiver.name, alert.uid) not in decided.sent for _, alert, _ in decided.alerts):
                    return False
        return True
