"""A bad seed made readable: the fewest faults that still make it bad, and what happened around them.

A muted fault draws like the others and does nothing (`faults.py`), so muting some gives another run of the same seed. Halves, then
quarters, … are muted as long as the run stays bad (delta debugging, Zeller & Hildebrandt 2002).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from simulation.cells import Nodes
from simulation.model import ModelStore
from simulation.oracle import Verdict, judge
from simulation.world import TraceLine, Workload, World

MOST_RUNS = 150


class Tried(Protocol):
    """What is run: a row of the table of variants."""

    @property
    def store(self) -> Callable[[Nodes, Callable[[], float]], ModelStore]: ...
    @property
    def detects(self) -> bool | None: ...
    @property
    def workload(self) -> Workload: ...


def explain(seed: int, tried: Tried, whole: bool) -> tuple[Verdict, str]:
    verdict, lines = _run(seed, tried, frozenset())
    muted: frozenset[int] = frozenset()
    if verdict.bad and not whole:
        muted = _fewest(seed, tried, verdict.faults)
        verdict, lines = _run(seed, tried, muted)
    faults = f"{verdict.faults - len(muted)} of {verdict.faults} faults"
    head = [
        f"seed {seed}: {'BAD' if verdict.bad else 'good'}; {faults}, at rest {verdict.drained_s:.1f} s after the last one",
        *(f"  {note}" for note in verdict.notes),
        "",
    ]
    return verdict, "\n".join(head + [_line(line) for line in lines if whole or _tells(line)])


def _run(seed: int, tried: Tried, muted: frozenset[int]) -> tuple[Verdict, list[TraceLine]]:
    trace: list[TraceLine] = []
    world = World(seed, tried.store, muted, trace, tried.detects, tried.workload)
    world.run()
    return judge(world), trace


def _fewest(seed: int, tried: Tried, faults: int) -> frozenset[int]:
    muted: frozenset[int] = frozenset()
    runs, size = 0, max(1, faults // 2)
    while size and runs < MOST_RUNS:
        shrunk = False
        for first in range(1, faults + 1, size):
            more = muted | frozenset(range(first, first + size))
            if more == muted or runs >= MOST_RUNS:
                continue
            runs += 1
            if _run(seed, tried, more)[0].bad:
                muted, shrunk = more, True
        if not shrunk or size > 1:
            size //= 2
    return muted


QUIET = ("poll", "cells", "pressure", "outbox", "attend", "dead letters", "operator_", "restrictions", "touched")


def _tells(line: TraceLine) -> bool:
    """Whether a line is worth reading: not one of the questions that every process asks all the time."""
    return bool(line[4]) or "→" in line[2] or not line[2].startswith(QUIET)


def _line(line: TraceLine) -> str:
    when, who, what, place, hit = line
    where = "" if place is None else str(place[1])
    return f"{when:9.4f} s  {who:<12} {what:<34} {where:<12} {hit}".rstrip()
