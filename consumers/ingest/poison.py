"""Poison pills: finds the records that end the process which folds them, by trying them in a child process.

Rules:

* A record is a *poison pill* when `TIMES` children in a row ended at it, and for no other reason. What happens to the process itself (it
  is killed, paused, fenced) makes no record a poison pill.
* A child ends by a signal, by an exception, or by using more than `CPU_S` of processor time. Wall time does not count, so that a paused
  machine blames no record. A child that is silent for `SILENCE_S` (another thread held a lock when it was forked) gives no result.
* A child does no I/O except one byte for each record, logs nothing and never returns to its caller. It changes only its own memory, and
  the files, ports and connections of its parent are closed in it.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import select
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("querywarden.ingest")

TIMES = 3
CPU_S = 60
"""Of all records of one child: kernels may have to be compiled in it first, which takes some 20 s where they cannot be cached."""
SILENCE_S = 120.0

FindPoison = Callable[[int, Callable[[int], None]], list[int]]
"""(number of records, what to do with the i-th) → indices of the records that end a process"""


def find_poison(count: int, attempt: Callable[[int], None]) -> list[int]:
    """Find the indices of the records at which ``attempt(index)`` ends a process; without ``fork`` nothing is tried and none is found."""
    poison: list[int] = []
    deaths: Counter[int] = Counter()
    while hasattr(os, "fork"):
        order = [i for i in range(count) if i not in poison]
        survived, ended = _try_in_child(order, attempt)
        if not ended or survived == len(order):
            return poison
        at = order[survived]
        deaths[at] += 1
        if deaths[at] >= TIMES:
            poison.append(at)
    return poison


def _try_in_child(order: list[int], attempt: Callable[[int], None]) -> tuple[int, bool]:
    """Try the records in one child; returns how many it survived, and whether it ended before it was through."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _try_records(order, attempt, writing)
    os.close(writing)
    survived, ended = 0, True
    try:
        while True:
            if not select.select([reading], [], [], SILENCE_S)[0]:
                ended = False
                log.warning("a trial gave no verdict", extra={"records": len(order)})
                os.kill(child, signal.SIGKILL)
                break
            done = os.read(reading, 4096)  # one byte a record
            if not done:
                break
            survived += len(done)
    finally:
        os.close(reading)
        os.waitpid(child, 0)
    return survived, ended


def _try_records(order: list[int], attempt: Callable[[int], None], writing: int) -> None:
    """Try the records in order and end the child; never returns."""
    status = 1
    try:
        # a port or a connection must not outlive the process because its child holds it
        os.closerange(3, writing)
        os.closerange(writing + 1, 1 << 16)
        gc.disable()  # what a collection would end (connections, tasks) is its parent's, and may wait for a lock
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # if memory runs out, this one first
            Path("/proc/self/oom_score_adj").write_text("1000")
        for i in order:
            attempt(i)
            os.write(writing, b".")
        status = 0
    except BaseException:  # noqa: BLE001, S110 - it would have ended the process: that is the verdict
        pass
    finally:
        os._exit(status)
