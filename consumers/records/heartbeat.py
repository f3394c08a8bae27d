"""Heartbeats: what each process knows of itself, left in the store for the pages and commands that show the health of the service.

Rules:
* Each process has an entry of kind ``heartbeat`` for all tenants, written every `EVERY_S`. It expires after `LASTS_S`, and is dropped
  when the process stops in order. It holds figures and alarm names only: no client, no secret.
* It is not an act of a person, so it adds no row to the audit log.
* A service also reports which keys it knows, as soon as that changes, so that a command that creates or revokes a key can wait
  (`services`).
* Best effort, in a thread of its own that holds nothing up: a store that is away, or a cell that another process writes at that moment,
  costs one heartbeat.
* If no process of a role sent a heartbeat, the answer is "not known", never zero.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from consumers.errors import Unavailable
from consumers.periodic import Periodic
from consumers.records.damaged import readable
from consumers.records.operator_cell import written
from consumers.records.operator_entries import packed, unpacked
from consumers.store import Entry, Operation, OperatorStore

log = logging.getLogger("querywarden.heartbeat")

Service = Literal["ingest", "detect", "serve"]
"""A process that writes heartbeats."""
KIND, EVERY_TENANT = "heartbeat", "*"
EVERY_S = 15.0
LASTS_S = 60
CONFIRMED_S = 1.0
"""How long to wait for services that are live, or seemed so a minute ago."""
_TRIES = 5


@dataclass(frozen=True, slots=True)
class SinkState:
    """waiting: alerts of this process' cells that the sink has not taken; away: it took none when it was last asked."""

    name: str
    waiting: int
    away: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """role: ingest | detect | serve; lag: records that wait in this process' cells, None where it reads none.

    keys     of serve, `fingerprint` of the stored keys as it knows them
    stopped  log cell of this process that cannot go on → reason and text
    """

    process: str
    role: Service
    at_s: int = 0
    lag: int | None = None
    alarms: list[str] = field(default_factory=list)
    sinks: list[SinkState] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    format: int = 1
    keys: str = ""


def fingerprint(stored: Iterable[Entry]) -> str:
    """Which keys the store holds: a hash of their public prefixes."""
    names = sorted(f"{entry.tenant}:{entry.key}" for entry in stored)
    return hashlib.blake2b("\n".join(names).encode(), digest_size=8).hexdigest()


def services(store: OperatorStore, within_s: float = CONFIRMED_S, look_s: float = 0.05) -> tuple[int, int]:
    """Wait up to `within_s` until all live services know the stored keys; returns how many do and how many live. Raises Unavailable."""
    deadline = time.monotonic() + within_s
    while True:
        said = [beat.keys for beat in heartbeats(store) if beat.role == "serve"]
        now = fingerprint(store.operator_entries("key")[1]) if said else ""
        know = said.count(now)
        if know == len(said) or time.monotonic() >= deadline:
            return know, len(said)
        time.sleep(look_s)


def heartbeats(store: OperatorStore) -> tuple[Heartbeat, ...]:
    """Of all processes that live, by name. Raises Unavailable."""
    entries = store.operator_entries(KIND, EVERY_TENANT)[1]
    found = [beat for entry in entries if (beat := readable("entry", unpacked, entry, Heartbeat, kind=KIND))]
    return tuple(sorted(found, key=lambda beat: beat.process))


def stopped_elsewhere(store: OperatorStore) -> dict[str, str]:
    """Log cells that cannot go on, by the processes that live → reason and text. Raises Unavailable."""
    return {cell: words for beat in heartbeats(store) for cell, words in sorted(beat.stopped.items())}


def total(sinks: list[SinkState]) -> list[SinkState]:
    """Each sink once, by name: what waits for it anywhere."""
    found: dict[str, SinkState] = {}
    for one in sinks:
        other = found.get(one.name, SinkState(one.name, 0))
        found[one.name] = SinkState(one.name, other.waiting + one.waiting, other.away or one.away)
    return sorted(found.values(), key=lambda one: one.name)


class HeartbeatPublisher:
    """Leaves what `look` says, every `every_s`, from `start` to `stop`."""

    def __init__(
        self,
        store: OperatorStore,
        look: Callable[[], Heartbeat],
        every_s: float = EVERY_S,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._look, self._now_s = store, look, now_s
        self._periodic = Periodic("heartbeat", self.once, every_s)
        self._left = ""

    def start(self) -> None:
        """Begin, in a thread."""
        self._periodic.start()

    def nudge(self) -> None:
        """Leave the next one now: what it says has changed."""
        self._periodic.wake()

    def stop(self) -> None:
        """End the thread and drop the heartbeat: the process stops in order."""
        self._periodic.stop()
        if self._left:
            self._write(Operation(drops=[(EVERY_TENANT, KIND, self._left)]))

    def once(self) -> bool:
        """Whether it was written."""
        try:
            beat = self._look()
        except Unavailable:
            return False
        now = int(self._now_s())
        value = packed(replace(beat, at_s=now))
        written = self._write(Operation(puts=[Entry(EVERY_TENANT, KIND, beat.process, value, now + LASTS_S)]))
        self._left = beat.process if written else self._left
        return written

    def _write(self, operation: Operation) -> bool:
        store = self._store
        try:
            return written(store, lambda: (store.operator_entries(KIND, EVERY_TENANT)[0], operation, True), _TRIES)
        except Unavailable:
            return False
