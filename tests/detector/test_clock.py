"""The log's own time: against a slow twin, however polls cut; what one client can and cannot do to it."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.clock import DAY_MS, STALE, STATE, on_the_clock

DAY = DAY_MS
Record = tuple[int, int, int]  # client, time in ms, the broker's time in ms


def counted(records: list[Record], cuts: list[int] | None = None) -> tuple[list[int], list[bool]]:
    """Times at which records count and which are ahead, in polls that end at `cuts`; the state goes through a store between them."""
    state, times, marks = [0] * STATE, list[int](), list[bool]()
    edges = [0, *sorted(min(c, len(records)) for c in cuts or []), len(records)]
    for start, end in itertools.pairwise(edges):
        columns = np.array(records[start:end], np.int64).reshape(-1, 3).T
        at, ahead, state = on_the_clock(columns[0], columns[1], columns[2], [int(str(n)) for n in state])
        times += at.tolist()
        marks += ahead.tolist()
    return times, marks


def twin(records: list[Record]) -> tuple[list[int], list[bool]]:
    """Every claim of every client is remembered."""
    newest: dict[int, int] = {}
    run: list[int] = []
    floor = 0
    times, marks = list[int](), list[bool]()
    for client, time, broker in records:
        most = broker + DAY if broker >= 0 else 2**62
        if time >= 0:
            newest[client] = max(newest.get(client, 0), min(time, most))
        reached = sorted(newest.values())[-3:]
        now = min(max(reached[0], floor), most) if reached else max(broker, 0)
        ahead = time >= now + DAY
        times.append(now if ahead or time < 0 else time)
        marks.append(ahead)
        if ahead:
            run.append(min(time, most))
            if len(run) == STALE:
                floor, run = max(floor, min(run)), []
        elif time >= 0:
            run = []
    return times, marks


RECORDS = st.lists(
    st.tuples(
        st.integers(1, 5),
        st.integers(-1, 20).map(lambda t: -1 if t < 0 else t * DAY // 3),
        st.integers(-1, 12).map(lambda t: -1 if t < 0 else t * DAY // 3),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(RECORDS, st.lists(st.integers(0, 60), max_size=3))
def test_what_a_record_counts_at_is_what_the_twin_says_however_polls_cut(
    records: list[Record], cuts: list[int]
) -> None:
    assert counted(records, cuts) == twin(records)


def test_one_client_moves_nothing_but_itself_and_three_bring_the_new_day() -> None:
    start = 100 * DAY
    monday = start + 3 * DAY
    records = [(client, start, -1) for client in (1, 2, 3, 4)]
    records += [
        (4, start + 400 * DAY, -1),
        (1, start + 1, -1),
        (1, monday, -1),
        (2, monday + 5, -1),
        (3, monday + 9, -1),
    ]
    times, ahead = counted(records)
    assert times[4:] == [start, start + 1, start, monday + 5, monday + 9]
    assert ahead[4:] == [True, False, True, False, False]


def test_the_first_record_of_a_log_is_bounded_by_the_brokers_time() -> None:
    broker = 50 * DAY
    assert counted([(1, 10**12, broker), (1, broker + DAY, broker)]) == ([broker + DAY, broker + DAY], [True, False])


def test_the_clock_of_a_client_lags_by_a_bounded_number_of_records() -> None:
    records = [(client, 0, -1) for client in (1, 2, 3)]
    records += [(1, 10 * DAY + i * 1000, -1) for i in range(3 * STALE)]
    times, ahead = counted(records)
    assert not any(times[3 : 3 + STALE])
    assert times[3 + STALE] == 10 * DAY + STALE * 1000
    assert sum(ahead) == STALE


def test_a_jump_of_years_is_believed_after_a_thousand_records_at_the_earliest() -> None:
    records = [(client, 0, -1) for client in (1, 2, 3)]
    records += [(1, DAY * (2 + 400 * (i % 2)), -1) for i in range(STALE + 2)]
    assert counted(records)[0][-2:] == [2 * DAY, 2 * DAY]
