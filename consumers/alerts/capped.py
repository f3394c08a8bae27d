"""Filters and daily limits: which alerts a sink gets, and how many per day.

Rules:
* A filter looks at the severity and the kind of a finding. If the first message of a finding passed, the last one does, too.
* `per_day` limits the first alerts and updates of one UTC day. Alerts over the limit count as taken and go into one digest message
  every `digest_s`, and on `close`. The store keeps every alert. The end of a finding that was sent is never limited; the end of one that
  was not sent goes into the digest.
* Count and digest belong to this process. A process that is killed loses a digest that was not sent yet.
* A digest that waits for its receiver counts, and keeps one sentence: it is as small after a million alerts as after two.
* A sink that has a `summary` gets the digest. For other sinks the alerts over the limit are only counted.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from consumers.alerts import AlertSink
from consumers.alerts.finding import KINDS, SEVERITIES, Finding, finding, visible
from consumers.errors import Unavailable, Undeliverable
from consumers.store import OutboxAlert

DAY_S = 86_400
MODELS_SHOWN = 10
REMEMBERED = 100_000


@dataclass(slots=True)
class Digest:
    """What stands for many alerts: how many of each kind and model, and the gravest one's sentence.

    models  as a message shows them, so no more than there are models with a baseline
    """

    alerts: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    models: collections.Counter[str] = field(default_factory=collections.Counter)
    gravest: str = ""
    _gravity: tuple[int, float] = (-1, 0.0)

    def add(self, found: Finding) -> None:
        self.alerts += 1
        self.kinds[found.activity] += 1
        self.models[visible(found.model_id)] += 1
        gravity = SEVERITIES.index(found.severity), found.suspicion
        if gravity > self._gravity:
            self._gravity, self.gravest = gravity, found.text

    def message(self) -> tuple[str, str]:
        """(title, text)."""
        lines = [f"{count} {activity}" for activity, count in self.kinds.most_common()]
        lines += [f"{model}: {count}" for model, count in self.models.most_common(MODELS_SHOWN)]
        lines.append(f"the gravest: {self.gravest}")
        return f"{self.alerts} more alerts over today's limit", "\n".join(lines)


class CappedSink:
    """`sink` behind a filter and a cap. `per_day` 0: no cap."""

    def __init__(
        self,
        sink: AlertSink,
        *,
        min_severity: str = SEVERITIES[0],
        kinds: Sequence[str] = KINDS,
        per_day: int = 0,
        digest_s: float = 3600.0,
        on_capped: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.sink = sink
        self._wanted = frozenset(SEVERITIES[SEVERITIES.index(min_severity) :])
        self._kinds = frozenset(kinds)
        self._per_day, self._digest_s = per_day, digest_s
        self._summary: Callable[[str, str], Any] | None = getattr(sink, "summary", None)
        self._on_capped = on_capped
        self._clock = clock
        self._lock = threading.Lock()
        self._day, self._sent = 0, 0
        self._spared: collections.OrderedDict[str, None] = collections.OrderedDict()
        self._digest = Digest()
        self._digest_since_s = 0.0

    @property
    def name(self) -> str:
        return self.sink.name

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        with self._lock:
            taken = 0
            for alert in alerts:
                try:
                    found = finding(alert)
                    if self._passes(found) and not self._over(found):
                        if not self.sink.send([alert])[0]:
                            break
                        self._count(found)
                except (Unavailable, Undeliverable):
                    if not taken:
                        raise
                    break
                taken += 1
            return [i < taken for i in range(len(alerts))]

    def refresh(self) -> int:
        """Send the digest when it is due, and what the sink itself repeats; returns how many alerts that was about."""
        with self._lock:
            due = self._digest.alerts and self._clock() >= self._digest_since_s + self._digest_s
            told = self._send_digest() if due else 0
        again = getattr(self.sink, "refresh", None)
        return told + (again() if again is not None else 0)

    def close(self) -> None:
        try:
            with self._lock:
                self._send_digest()
        except (Unavailable, Undeliverable):
            pass  # the alerts themselves are in the store
        finally:
            self.sink.close()

    def _passes(self, found: Finding) -> bool:
        return found.severity in self._wanted and found.kind in self._kinds

    def _over(self, found: Finding) -> bool:
        """Whether it goes into the digest instead."""
        if not self._per_day:
            return False
        day = int(self._clock() // DAY_S)
        if day != self._day:
            self._day, self._sent = day, 0
        if found.resolved and found.alert_id not in self._spared:
            return False
        if not found.resolved and self._sent < self._per_day:
            self._spared.pop(found.alert_id, None)
            return False
        if not self._digest.alerts:
            self._digest_since_s = self._clock()
        self._digest.add(found)
        self._on_capped()
        self._spared[found.alert_id] = None
        while len(self._spared) > REMEMBERED:
            self._spared.popitem(last=False)
        return True

    def _count(self, found: Finding) -> None:
        if not found.resolved:
            self._sent += 1

    def _send_digest(self) -> int:
        held = self._digest
        if held.alerts and self._summary is not None:
            self._summary(*held.message())
        self._digest = Digest()
        return held.alerts if self._summary is not None else 0
