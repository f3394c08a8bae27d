"""Log time: the time up to which the clients of a log cell agree that time has passed.

Rules:

* Log time is the latest event time that three clients have reached (all clients, while there are fewer). Where the broker's time is
  known, log time is at most one day later. So no client alone can begin a window, neither for itself nor for others.
* A record a day or more ahead of the log time counts at the log time. Its stated time still counts as a vote: once three clients state a
  new day, after a weekend or a stop, the log time moves there.
* Where the other clients of a cell fell silent for good, nobody else can confirm a new day. So `STALE` records in a row that are all
  ahead move the log time up to the earliest of them. A thief gains nothing by this: all these records count at one time.
* The time at which a record counts depends on the records before it alone, never on how polls cut them. The state is `STATE` whole
  numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.query import UNKNOWN_MS

DAY_MS = 86_400_000
VOTERS = 3
STALE = 1_000
STATE = 2 * VOTERS + 3
"""For each voter its hash (0: none) and its newest claim; then of the run of records that are all ahead the length and the earliest
claim; then the log time that such runs have brought."""
_RUN, _EARLIEST, _FLOOR = range(2 * VOTERS, STATE)


@nb.njit(cache=True, nogil=True)
def _log_time(state):  # type: ignore[no-untyped-def]
    """What all voters have reached, -1 without voters. The voters are those with the newest claims."""
    reached = np.int64(-1)
    for k in range(VOTERS):
        if state[2 * k] != 0 and (reached < 0 or state[2 * k + 1] < reached):
            reached = state[2 * k + 1]
    return max(reached, state[_FLOOR]) if reached >= 0 else reached


@nb.njit(cache=True, nogil=True)
def _claim(state, client, time):  # type: ignore[no-untyped-def]
    """Take up a client's claim: it is a voter while no three others claim more."""
    place = 0
    for k in range(VOTERS):
        if state[2 * k] == client:
            state[2 * k + 1] = max(state[2 * k + 1], time)
            return
        if state[2 * place] != 0 and (state[2 * k] == 0 or state[2 * k + 1] < state[2 * place + 1]):
            place = k
    if state[2 * place] == 0 or time > state[2 * place + 1]:
        state[2 * place] = client
        state[2 * place + 1] = time


@nb.njit(cache=True, nogil=True)
def _walk(clients, time_ms, broker_ms, state, counted, ahead):  # type: ignore[no-untyped-def]
    for i in range(clients.shape[0]):
        most = broker_ms[i] + DAY_MS if broker_ms[i] >= 0 else np.int64(1 << 62)
        time = time_ms[i]
        if time >= 0:
            _claim(state, clients[i], min(time, most))
        now = _log_time(state)
        now = min(now, most) if now >= 0 else max(broker_ms[i], np.int64(0))
        ahead[i] = time >= now + DAY_MS
        counted[i] = now if ahead[i] or time < 0 else time
        if ahead[i]:
            earliest = min(time, most)
            state[_EARLIEST] = min(state[_EARLIEST], earliest) if state[_RUN] > 0 else earliest
            state[_RUN] += 1
            if state[_RUN] >= STALE:
                state[_FLOOR] = max(state[_FLOOR], state[_EARLIEST])
                state[_RUN] = 0
        elif time >= 0:
            state[_RUN] = 0


def on_the_clock(
    clients: NDArray[np.int64],
    time_ms: NDArray[np.int64],
    broker_ms: NDArray[np.int64] | None,
    state: Sequence[int],
) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[int]]:
    """Times at which n records of one log cell count, which of them are ahead of the log time, and the state after them.

    clients    (n,) any number but 0 that stands for the client
    time_ms    (n,) what the records say, `UNKNOWN_MS` where they say nothing
    broker_ms  (n,) what the broker says, `UNKNOWN_MS` where it does not; None: there is no broker
    state      `STATE` numbers; all 0 at the beginning of a log
    """
    after = np.array(state, np.int64)
    counted, ahead = np.empty(len(clients), np.int64), np.empty(len(clients), np.bool_)
    if broker_ms is None:
        broker_ms = np.full(len(clients), UNKNOWN_MS, np.int64)
    _walk(clients, time_ms, broker_ms, after, counted, ahead)
    return counted, ahead, after.tolist()
