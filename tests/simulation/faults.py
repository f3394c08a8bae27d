"""What goes wrong, drawn from the seed.

Rules:

* Each seed draws its own mix: some kinds are off, the others weighted at random ("swarm testing", Groce et al. 2012), because a mix
  of everything hides what needs one kind often.
* Every effect may be hit. Which fault hits is drawn from a stream of its own; a muted fault draws like the others and does nothing,
  so that a failing seed can be made smaller by muting (`shrink.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS: dict[str, str] = {
    "refused": "the call never arrives: Unavailable",
    "lost": "it takes effect, its answer is lost: Unavailable",
    "late": "Unavailable at once, and it takes effect later",
    "twice late": "Unavailable at once, and it takes effect later, twice",
    "again": "it takes effect, is answered, and takes effect again later",
    "crash before": "the process ends before the call",
    "crash after": "the process ends after the call took effect",
    "crash, late": "the process ends, the call takes effect later",
    "stop before": "the process is stopped before the call, often beyond its session and its lease",
    "stop after": "the call takes effect, then the process is stopped before it sees the answer",
    "slow": "the answer takes long",
    "rollback before": "the node of the call fails over to a replica that lags, just before the call",
    "rollback after": "the same, between the call and its answer",
    "takes nothing": "a sink takes nothing, or some of it",
}
"""Kinds that hit an effect."""

TAKES_NOTHING = "takes nothing"
THEMES = (
    tuple(KINDS),
    tuple(KINDS),
    ("stop after", "stop before", "slow", "rollback after", "rollback before"),
    ("late", "twice late", "again", "crash, late", "lost", "rollback after", "rollback before"),
)
"""Mixes to draw from: everything, owners that do not know that they are none, writes that come late."""

WRITES_ONLY = {"late", "twice late", "again", "crash, late"}
TIMED = ("rollback", "rebalance", "theft", "operator")
"""Kinds that come by themselves."""
ALWAYS_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    number: int
    kind: str


class Faults:
    """The faults of one seed; `budget` of them, then no more."""

    def __init__(
        self,
        seed: int,
        muted: frozenset[int] = frozenset(),
        theme: Sequence[str] = (),
        always: Sequence[str] = (),
        rate: float | None = None,
    ) -> None:
        """theme: the kinds to draw the mix from, any theme if empty; always: kinds that come by themselves in every seed; rate: share of
        effects that are hit, as the seed says if None."""
        rng = self.rng = random.Random(f"{seed}/faults")
        self.muted = muted
        self.on = True
        self.count = 0
        self.budget = rng.randint(40, 75)
        drawn = rng.choice(THEMES)
        theme = tuple(theme) or drawn
        self.rate = rng.choice([0.04, 0.07, 0.1, 0.15]) if theme == tuple(KINDS) else rng.choice([0.1, 0.15, 0.2])
        self.rate = self.rate if rate is None else rate
        self.weights = {k: rng.expovariate(1.0) * (rng.random() < 0.7) for k in theme if k != TAKES_NOTHING}
        self.weights[theme[0]] += 0.1
        self.every_s = {k: rng.choice([0.05, 0.2, 0.5, 2.0]) for k in TIMED if rng.random() < 0.75}
        self.every_s = dict.fromkeys(always, ALWAYS_EVERY_S) | self.every_s
        self._any = list(self.weights)
        self._cumulative = [sum(list(self.weights.values())[: i + 1]) for i in range(len(self._any))]

    @property
    def spent(self) -> bool:
        return self.count >= self.budget

    def numbered(self, kind: str) -> Fault | None:
        """One more fault of that kind; None when it is muted."""
        self.count += 1
        return None if self.count in self.muted else Fault(self.count, kind)

    def draw(self, writes: bool, sink: bool = False) -> Fault | None:
        rng = self.rng
        if not self.on or rng.random() >= self.rate or self.spent:
            return None
        kind = rng.choices(self._any, cum_weights=self._cumulative)[0]
        if sink and rng.random() < 0.5:
            kind = TAKES_NOTHING
        elif kind in WRITES_ONLY and not writes:
            kind = "refused"
        return self.numbered(kind)

    def lag(self) -> int:
        """How many writes a replica is behind."""
        return int(self.rng.choice([1, 1, 1, 2, 2, 3, 5, 8, 20]))

    def later_s(self) -> float:
        return self.rng.choice([0.005, 0.02, 0.1, 0.5, 2.0]) * (0.5 + self.rng.random())

    def stop_s(self) -> float:
        return self.rng.choice([0.02, 0.1, 0.5, 2.0, 4.0]) * (0.5 + self.rng.random())
