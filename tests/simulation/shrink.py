"""A bad seed made readable: the fewest faults that still make it bad, and what happened around them.

A muted fault draws like the others and does nothing (`faults.py`), so muting some gives another run of the same seed. Halves, then
quarters, … are muted as long as the run stays bad (delta debugging, Zeller & Hildebrandt 2002).
"""

from __future__ import annotations

from collections.abc import Callable

from simulation.cells import Nodes
from simulation.model import ModelStore
from simulation.oracle import Verdict, judge
from simulation.world import TraceLine, World

MOST_RUNS = 150
Store = Callable[[Nodes, Callable[[], float]], ModelStore]


def explain(seed: int, store: Store, detects: bool | None, whole: bool) -> tuple[Verdict, str]:
    verdict, lines = _run(seed, store, detects, frozenset())
    muted: frozenset[int] = frozenset()
    if verdict.bad and not whole:
        muted = _fewest(seed, store, detects, verdict.faults)
        verdict, lines = _run(seed, store, detects, muted)
    faults = f"{verdict.faults - len(muted)} of {verdict.faults} faults"
    head = [
        f"seed {seed}: {'BAD' if verdict.bad else 'good'}; {faults}, at rest {verdict.drained_s:.1f} s after the last one",
        *(f"  {note}" for note in verdict.notes),
        "",
    ]
    return verdict, "\n".join(head + [_line(line) for line in lines if whole or _tells(line)])


def _run(seed: int, store: Store, detects: bool | None, muted: frozenset[int]) -> tuple[Verdict, list[TraceLine]]:
    trace: list[TraceLine] = []
    world = World(seed, store, muted, trace, detects)
    world.run()
    return judge(world), trace


def _fewest(seed: int, store: Store, detects: bool | None, faults: int) -> frozenset[int]:
    muted: frozenset[int] = frozenset()
    runs, size = 0, max(1, faults // 2)
    while size and runs < MOST_RUNS:
        shrunk = False
        for first in range(1, faults + 1, size):
            more = muted | frozenset(range(first, first + size))
            if more == muted or runs >= MOST_RUNS:
                continue
            runs += 1
            if _run(seed, store, detects, more)[0].bad:
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
