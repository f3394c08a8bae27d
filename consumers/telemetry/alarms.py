"""Alarms: conditions that an operator should look at while the service keeps running.

Each alarm is one gauge. A log line is written when it is raised and when it ends.

Rules:
* An alarm is a state, not an event: ``querywarden_alarm{alarm="…"}`` is 1 while it holds. The rules of the monitoring system decide
  whether somebody is paged. Only `schema` and `breaker` change decisions.
* Rates cover the last minute on the process' own monotonic clock. Below `LEAST_RECORDS` records no rate is computed.
* Every process sees its own log cells only. A process notices silence only of models that it has read.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.alarm")

ALARMS: dict[str, str] = {
    "dead_letters": "more than 5 % of the records of the last minute were refused",
    "duplicates": "more than 20 % of the queries of the last minute were duplicates",
    "new_clients": "new client ids arrive faster than the admission limits allow; some share the statistics of an overflow client",
    "silent_tap": "a model that was queried in at least half of the minutes of an hour has had no query for 10 minutes",
    "lag": "more than 20,000 records have been waiting for 5 minutes",
    "data_gap": "the log deleted records before they were read; noticed within the last 10 minutes",
    "cell_stopped": "a log cell stopped; its records wait until an operator restarts it (querywarden rebuild --cell)",
    "store_full": "the store uses more than 85 % of its memory; new clients share the statistics of an overflow client",
    "letters_wait": "the dead letters of a log cell fill more than 80 % of their buffer",
    "outbox": "undelivered alerts of a sink fill more than 80 % of its outbox",
    "keys_lost": "the store lost API keys; services that remember these keys still accept them",
    "schema": "many clients began to send the same misfit in one column; it does not count as evidence until an operator decides",
    "queries_total": "all clients of a model together asked more distinct queries than exposure.queries_total allows",
    "breaker": "too many clients were restricted at once; no further client is restricted until an operator resets the breaker",
}
"""Alarm → condition under which it is raised."""

LEAST_RECORDS = 100
DEAD_SHARE = 0.05
DUPLICATE_SHARE = 0.2
MINUTE_S = 60.0
SLOT_S = 5.0
QUIET_S = 600.0
HOUR_MINUTES = 60
BUSY_MINUTES = 30
WAITING_RECORDS = 20_000
WAITING_S = 300.0
GAP_S = 600.0


class Alarms:
    """Which alarms are raised."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.raised: set[str] = set()

    def show(self, name: str, holds: bool, **figures: Any) -> None:
        """Raise or end an alarm; `figures` go to the log line of a new one."""
        if holds == (name in self.raised):
            return
        if holds:
            self.raised.add(name)
            log.error("alarm: %s", ALARMS[name], extra={"alarm": name, **figures})
        else:
            self.raised.discard(name)
            log.info("alarm ended", extra={"alarm": name})
        self.metrics.set("querywarden_alarm", float(holds), alarm=name)


@dataclass(slots=True)
class Minute:
    """Sums over the last minute, in slots of 5 s."""

    slots: deque[tuple[float, Counter[str]]] = field(default_factory=deque)

    def add(self, now_s: float, counts: Mapping[str, int]) -> None:
        slot = now_s // SLOT_S * SLOT_S
        if not self.slots or self.slots[-1][0] != slot:
            self.slots.append((slot, Counter()))
        self.slots[-1][1].update(counts)

    def sums(self, now_s: float) -> Counter[str]:
        while self.slots and self.slots[0][0] < now_s - MINUTE_S:
            self.slots.popleft()
        total: Counter[str] = Counter()
        for _, counts in self.slots:
            total.update(counts)
        return total


@dataclass(slots=True)
class Watch:
    """What one ingest process notices about the log that it reads. All times come in as `now_s`, monotonic seconds."""

    alarms: Alarms
    minute: Minute = field(default_factory=Minute)
    busy: dict[str, deque[int]] = field(default_factory=dict)
    last_s: dict[str, float] = field(default_factory=dict)
    gap_s: float = -GAP_S
    waiting_since_s: float | None = None
    shown_s: float = -SLOT_S

    def counted(self, now_s: float, counts: Mapping[str, int], models: Collection[str]) -> None:
        """A commit moved the counters by so much; it held queries of these models."""
        self.minute.add(now_s, counts)
        for model in models:
            self.last_s[model] = now_s
            minutes = self.busy.setdefault(model, deque())
            if not minutes or minutes[-1] != now_s // 60:
                minutes.append(int(now_s // 60))
                while minutes[0] <= minutes[-1] - HOUR_MINUTES:
                    minutes.popleft()

    def gap(self, now_s: float) -> None:
        self.gap_s = now_s

    def handed_over(self) -> None:
        """Cells went to another process: who is quiet is for it to say."""
        self.busy.clear()
        self.last_s.clear()

    def look(self, now_s: float, behind: int, answered: bool) -> None:
        """Raise and end alarms, every 5 s at most. answered: store and log do answer, else a quiet log says nothing."""
        if now_s - self.shown_s < SLOT_S:
            return
        self.shown_s = now_s
        show, sums = self.alarms.show, self.minute.sums(now_s)
        read, queries = sums["produced"] - sums["tombstones"], sums["queries"] + sums["duplicate"]
        show(
            "dead_letters", read >= LEAST_RECORDS and sums["dead"] > DEAD_SHARE * read, dead=sums["dead"], records=read
        )
        show(
            "duplicates",
            queries >= LEAST_RECORDS and sums["duplicate"] > DUPLICATE_SHARE * queries,
            duplicates=sums["duplicate"],
            queries=queries,
        )
        show("new_clients", sums["pooled"] > 0, queries=sums["pooled"])
        show("data_gap", now_s - self.gap_s < GAP_S)
        if behind <= WAITING_RECORDS:
            self.waiting_since_s = None
        elif self.waiting_since_s is None:
            self.waiting_since_s = now_s
        show("lag", self.waiting_since_s is not None and now_s - self.waiting_since_s >= WAITING_S, records=behind)
        if answered:
            quiet = self.quiet(now_s)
            show("silent_tap", bool(quiet), models=quiet)

    def quiet(self, now_s: float) -> list[str]:
        """Models whose log went quiet."""
        return sorted(
            model
            for model, last_s in self.last_s.items()
            if now_s - last_s >= QUIET_S and len(self.busy[model]) >= BUSY_MINUTES
        )
