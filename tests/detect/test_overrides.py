"""What people said: the allowlist always wins, and a flag storm stops by itself and stays stopped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.detect.overrides import Overrides
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.records.breaker import Breaker, BreakerLimits
from consumers.records.breaker_entries import RESET, TRIPPED, BreakerTimes, times
from consumers.records.operator_entries import AllowlistEntry, Reset, entry_key, packed
from consumers.secrets import Secrets
from consumers.store import Entry, Operation
from consumers.store.embedded import EmbeddedStore
from detector.policy import Decision
from detector.query import ClientKey

NOW_S = 1_800_000_000
NewStore = Callable[[], EmbeddedStore]
BLOCK = Decision("block", "extraction", NOW_S, NOW_S + 86_400, 0, "block")


def client(i: int) -> ClientKey:
    return ClientKey("default", "m", f"{i:032x}")


def put(store: EmbeddedStore, *entries: Entry) -> None:
    revision, _ = store.operator_entries("allow")
    store.operate(revision, Operation(puts=list(entries)))


def allow(model: str, who: ClientKey, until_s: int = 0) -> Entry:
    value = AllowlistEntry(who.client, model, until_s, "partner", "alice", NOW_S)
    return Entry("default", "allow", entry_key(model, who.client), packed(value), until_s)


def decided(overrides: Overrides, i: int, before: Decision | None = None, now_s: float = NOW_S) -> tuple[str, str, str]:
    decision = overrides.overruled(client(i), before or Decision(), BLOCK, now_s)
    return decision.state, decision.enforced, decision.reason


def test_ten_thousand_flags_restrict_twenty_and_no_allow_listed_one(new_store: NewStore) -> None:
    store = new_store()
    listed = set(range(0, 10_000, 100))
    put(store, *(allow("*" if i % 200 else "m", client(i)) for i in sorted(listed)))
    overrides = Overrides()
    overrides.refresh(store)
    for i in range(10_000):
        overrides.breaker("default").seen(client(i), NOW_S)
    enforced = set()
    for i in range(10_000):
        state, does, reason = decided(overrides, i)
        assert state == "block", "the finding is told all the same"
        if does != "clear":
            enforced.add(i)
        else:
            assert reason == ("allow_listed" if i in listed else "breaker")
    assert len(enforced) == 20
    assert not enforced & listed
    assert overrides.open


@pytest.mark.parametrize(("active", "limit"), [(10, 5), (500, 5), (900, 9), (1500, 15), (2000, 20), (50_000, 20)])
def test_the_limit_of_a_storm_is_one_percent_between_a_floor_and_twenty(active: int, limit: int) -> None:
    breaker = Breaker()
    for i in range(active):
        breaker.seen(client(i), NOW_S)
    assert breaker.limit() == limit
    assert [breaker.allows(client(i), NOW_S) for i in range(limit + 1)] == [True] * limit + [False]


def test_restrictions_that_come_slowly_open_nothing_and_a_redo_counts_once() -> None:
    breaker = Breaker(BreakerLimits(most=5))
    for i in range(100):
        assert breaker.allows(client(i), NOW_S + 121 * i)
        assert breaker.allows(client(i), NOW_S + 121 * i)
    assert not breaker.open


def test_what_was_enforced_before_stays_so_while_the_breaker_is_open() -> None:
    overrides = Overrides(breakers={"default": Breaker(open=True)})
    assert decided(overrides, 1, before=BLOCK) == ("block", "block", "extraction")
    throttled = Decision("throttle", "suspicious", NOW_S, NOW_S + 9, 0, "throttle")
    assert decided(overrides, 2, before=throttled) == ("block", "throttle", "breaker")


def test_an_open_breaker_outlives_a_restart_and_holds_for_all_until_it_is_reset(
    new_store: NewStore,
) -> None:
    store = new_store()
    one, other = Overrides(BreakerLimits(most=1, least=1)), Overrides()
    one.refresh(store)
    other.refresh(store)
    assert [decided(one, i)[1] for i in range(3)] == ["block", "clear", "clear"]
    one.remember(store, "default")
    again = Overrides()
    for overrides in (one, other, again):
        overrides.refresh(store)
        assert decided(overrides, 7)[1:] == ("clear", "breaker")
        overrides.remember(store, "default")
    assert len(store.operator_entries("breaker")[1]) == 1
    put(store, Entry("default", "breaker", RESET, packed(Reset("alice", NOW_S + 60, "looked"))))
    for overrides in (one, other, again):
        overrides.refresh(store)
        assert decided(overrides, 8, now_s=NOW_S + 61)[1:] == ("block", "extraction")
    assert [entry.key for entry in store.operator_entries("breaker")[1]] == [RESET]
    assert decided(one, 9, now_s=NOW_S + 62)[2] == "breaker", "it opens again"
    one.refresh(store)
    one.remember(store, "default")
    assert {entry.key for entry in store.operator_entries("breaker")[1]} == {RESET, TRIPPED}


def test_no_operator_of_another_tenant_closes_or_opens_a_breaker(new_store: NewStore) -> None:
    store, overrides = new_store(), Overrides(BreakerLimits(most=1, least=1))
    overrides.refresh(store)
    assert [decided(overrides, i)[1] for i in range(2)] == ["block", "clear"]
    overrides.remember(store, "default")
    other = ClientKey("acme", "m", "f" * 32)
    operations = Operations(store, Secrets(b"s" * 16, b"p" * 32, b"k" * 32), now_s=lambda: NOW_S + 60.0)
    operations.reset_breaker(Actor("mallory", "operator", "acme"))
    again = Overrides(BreakerLimits(most=1, least=1))
    for one in (overrides, again):
        one.refresh(store)
        assert decided(one, 7, now_s=NOW_S + 61)[1:] == ("clear", "breaker"), "still open"
        enforced = one.overruled(other, Decision(), BLOCK, NOW_S + 61).enforced
        assert enforced == "block", "a storm of one tenant holds nothing back from another"
    assert times(store, "default").open
    assert times(store, "acme") == BreakerTimes(reset_s=NOW_S + 60)
    operations.reset_breaker(Actor("alice", "operator", "default"))
    overrides.refresh(store)
    assert decided(overrides, 8, now_s=NOW_S + 62)[1:] == ("block", "extraction")


def test_an_allowance_counts_for_its_model_and_its_time_and_ends_when_dropped(new_store: NewStore) -> None:
    store, overrides = new_store(), Overrides()
    overrides.refresh(store)
    far = 4_000_000_000
    put(store, allow("m", client(1), far), allow("other", client(2)), allow("*", client(3)))
    overrides.refresh(store)
    assert [overrides.lists(client(i), NOW_S) for i in (1, 2, 3)] == [True, False, True]
    assert not overrides.lists(client(1), far)
    assert not overrides.lists(client(1)._replace(tenant="x"), NOW_S)
    revision, _ = store.operator_entries("allow")
    store.operate(revision, Operation(drops=[("default", "allow", entry_key("*", client(3).client))]))
    overrides.refresh(store)
    assert not overrides.lists(client(3), NOW_S)


def test_an_entry_that_cannot_be_read_lifts_and_imposes_nothing(new_store: NewStore) -> None:
    store, overrides = new_store(), Overrides()
    put(store, Entry("default", "breaker", TRIPPED, b"{"), Entry("default", "breaker", RESET, b"\xff"))
    overrides.refresh(store)
    assert decided(overrides, 1)[1] == "block"


def test_to_watch_somebody_restricts_nobody() -> None:
    overrides = Overrides(BreakerLimits(most=1, least=1))
    watched = Decision("watch", "unusual", NOW_S, 0, 0, "watch")
    for i in range(50):
        assert overrides.overruled(client(i), Decision(), watched, NOW_S) == watched
    assert not overrides.open


def test_observing_counts_for_nothing() -> None:
    overrides = Overrides(BreakerLimits(most=1, least=1))
    watched = Decision("block", "extraction", NOW_S, NOW_S + 9, 0, "clear")
    for i in range(50):
        assert overrides.overruled(client(i), Decision(), watched, NOW_S) == watched
    assert not overrides.open
