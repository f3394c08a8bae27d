"""When a breaker is open, by the entries of the operator cell."""

from __future__ import annotations

import itertools

import pytest

from consumers.records.breaker import WINDOW_S
from consumers.records.breaker_entries import (
    HELD,
    KIND,
    RESET,
    TRIPPED,
    BreakerTimes,
    Held,
    Tripped,
    held_back,
    open_since_s,
    opened_after,
    times_of,
)
from consumers.records.operator_entries import Reset, packed
from consumers.store import Entry


def entry(key: str, at_s: int, tenant: str = "t") -> Entry:
    value = {TRIPPED: Tripped(at_s, 21, 20), HELD: Held(at_s, 20)}.get(key) or Reset("alice", at_s, "")
    return Entry(tenant, KIND, key, packed(value))


@pytest.mark.parametrize(("opened_s", "reset_s", "since_s"), [(0, 0, 0), (9, 0, 9), (9, 8, 9), (9, 9, 0), (9, 10, 0)])
def test_a_breaker_is_open_from_its_opening_to_a_reset_that_is_not_earlier(
    opened_s: int, reset_s: int, since_s: int
) -> None:
    assert open_since_s(opened_s, reset_s) == since_s
    assert open_since_s(opened_after(opened_s, reset_s), reset_s) > 0, "one that opens after a reset is open"


def test_the_order_of_entries_does_not_matter_and_other_tenants_do_not_count() -> None:
    entries = [entry(TRIPPED, 5), entry(HELD, 7), entry(RESET, 6), entry(RESET, 99, "other"), entry(HELD, 98, "other")]
    for some in itertools.permutations(entries):
        found = times_of(some, "t")
        assert found == BreakerTimes(5, 7, 6)
        assert (found.tripped_since_s, found.held_since_s, found.opened_s, found.open) == (0, 7, 7, True)
        assert not times_of(some, "other").open


def test_what_is_dropped_ends_but_a_reset_stays_known() -> None:
    times = times_of([entry(TRIPPED, 5), entry(HELD, 7), entry(RESET, 6)], "t")
    for key in (TRIPPED, HELD, RESET):
        times.take(Entry("t", KIND, key, b""))
    assert times == BreakerTimes(0, 0, 6)
    times.take(entry(RESET, 4))
    assert times.reset_s == 6, "nor does an earlier one count"


def test_an_entry_that_cannot_be_read_opens_and_closes_nothing() -> None:
    times = times_of([entry(TRIPPED, 5), entry(HELD, 7)], "t")
    for key, value in itertools.product((TRIPPED, HELD, RESET), (b"{", b"\xff", b'{"format":1}')):
        times.take(Entry("t", KIND, key, value))
    assert times == BreakerTimes(5, 7, 0)


def test_an_opening_of_the_gateways_as_earlier_versions_stored_it_is_read() -> None:
    old = b'{"actor":"gateway","at_s":7,"reason":"too many clients newly restricted at once","format":1}'
    assert times_of([Entry("t", KIND, HELD, old)], "t").held_since_s == 7


def test_what_began_in_the_window_before_the_breaker_opened_is_held_back() -> None:
    assert [held_back(since_s, 1000) for since_s in (1000 - WINDOW_S, 1001 - WINDOW_S, 1000, 2000)] == [
        False, True, True, True,
    ]  # fmt: skip
    assert not held_back(2000, 0), "a closed breaker holds nothing back"
