"""The gateways' breakers over a real store: a reset is for good, full syncs change nothing, tenants do not affect each other."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumers.detect.overrides import Overrides
from consumers.enforcement.breaker import GatewayBreaker
from consumers.enforcement.refresher import Refresher
from consumers.enforcement.restrictions import Restrictions
from consumers.errors import Unavailable
from consumers.operators.audited_write import DAY_S, Actor
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.records.breaker_entries import HELD, KIND, RESET, TRIPPED, Tripped
from consumers.records.operator_entries import Reset, packed
from consumers.secrets import Secrets
from consumers.store import DecisionRow, Entry, Operation, Outcome, decision_cell
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics
from detector.query import ClientKey

SECRETS = Secrets.draw()
OURS, THEIRS = "ours", "theirs"
MOST = 3


class World:
    """A store with a clock of its own; what detect records, operators say and `serve` processes see."""

    def __init__(self, path: Path) -> None:
        self.now_s = 1_800_000_000.0
        self.store = EmbeddedStore(path)
        self.store._now_s = lambda: self.now_s
        self.store.prepare(SECRETS.key_id)
        self.operations = Operations(self.store, SECRETS, now_s=lambda: self.now_s)

    def restrict(self, tenant: str, *names: str) -> None:
        """Detect blocks these clients for a month."""
        cells: dict[int, list[ClientKey]] = {}
        for name in names:
            key = ClientKey(tenant, "m", SECRETS.client_hash(tenant, name))
            cells.setdefault(decision_cell(key, self.store.decision_cells), []).append(key)
        for cell, keys in cells.items():
            claim = self.store.claim_decisions(cell, "detect", "t" * 32, 60_000)
            rows = {key: DecisionRow(b"", "block", 0.99, int(self.now_s) + 30 * DAY_S, "block") for key in keys}
            self.store.record("t" * 32, claim.revision, Outcome(cell, {}, rows, []), "detect", 60_000)

    def reset(self, tenant: str) -> None:
        """An operator of the tenant resets its breakers."""
        self.operations.reset_breaker(Actor("alice", "admin", tenant))

    def put(self, *entries: Entry) -> None:
        self.store.operate(self.store.operator_entries(KIND)[0], Operation(puts=list(entries)))

    def entries(self, tenant: str) -> list[str]:
        return sorted(entry.key for entry in self.store.operator_entries(KIND, tenant)[1])

    def says(self, tenant: str) -> str | None:
        """What the health of a tenant says of its breaker."""
        return Reader(self.store, SECRETS, tenant, now_s=lambda: self.now_s).health().breaker


class Serve:
    """A `serve` process that reads everything anew every 300 s."""

    def __init__(self, world: World) -> None:
        self.world, self.view = world, Restrictions("block")
        self.breaker = GatewayBreaker(world.store, self.view, MOST)
        clock = lambda: world.now_s  # noqa: E731
        self.refresher = Refresher(world.store, self.view, Metrics(), breaker=self.breaker, clock=clock)
        self.turn()

    def turn(self, times: int = 2) -> None:
        for _ in range(times):
            self.world.now_s += 1
            assert self.refresher.turn()

    def blocked(self, tenant: str) -> int:
        """How many clients of a tenant gateways block."""
        return sum(key[0] == tenant for key, *_ in self.view.enforced(self.world.now_s))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "breaker.sqlite")
    with contextlib.closing(made.store):
        yield made


def crowd(name: str, count: int = 8) -> list[str]:
    return [f"{name}-{i}" for i in range(count)]


def test_a_reset_is_for_good_over_days_and_restarts(world: World) -> None:
    serve = Serve(world)
    world.restrict(OURS, *crowd("burst"))
    serve.turn()
    assert (serve.view.held_of(OURS), serve.blocked(OURS), world.entries(OURS)) == (True, 0, [HELD])
    assert Serve(world).view.held_of(OURS), "the control: without a reset a restart does not close it"
    world.reset(OURS)
    serve.turn()
    assert (serve.view.held, serve.blocked(OURS), world.entries(OURS)) == (False, 8, [RESET])
    for days in (2, 400):
        world.now_s += days * DAY_S
        world.restrict(OURS, *crowd("burst"), f"later-{days}")
        late = Serve(world)
        assert (late.view.held, late.blocked(OURS)) == (False, 9), days
        assert world.says(OURS) == "closed"


def test_a_reset_counts_for_a_detect_process_that_was_away_for_days(world: World) -> None:
    before = Overrides()
    before.refresh(world.store)
    world.put(Entry(OURS, KIND, TRIPPED, packed(Tripped(int(world.now_s), 21, 20))))
    before.refresh(world.store)
    assert before.breaker(OURS).open, "the control"
    world.now_s += 60
    world.reset(OURS)
    assert world.entries(OURS) == [RESET], "the reset drops what it closes"
    world.now_s += 2 * DAY_S
    late = Overrides()
    for one in (before, late):
        one.refresh(world.store)
        assert not one.breaker(OURS).open


def test_full_syncs_after_a_reset_leave_the_counting_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    serve = Serve(world)
    world.restrict(OURS, *crowd("burst"))
    serve.turn()
    assert serve.view.held_of(OURS)
    world.now_s += 60
    world.reset(OURS)
    # As versions left it whose resets dropped nothing: every full sync reads an opening before the reset.
    opened = Reset("gateway", int(world.now_s) - 60, "too many")
    world.put(Entry(OURS, KIND, HELD, packed(opened)))
    serve.turn()
    assert caplog.text.count("breaker reset") == 1
    world.now_s += 601
    serve.turn()
    world.restrict(OURS, *crowd("one", 2))
    serve.turn()
    world.now_s += 301
    serve.turn()
    assert not serve.view.held_of(OURS)
    assert caplog.text.count("breaker reset") == 1, "a full sync resets nothing"
    world.restrict(OURS, *crowd("two", 2))
    serve.turn()
    assert serve.view.held_of(OURS), "those before the full sync count"


@pytest.mark.parametrize("first", [HELD, RESET])
def test_an_opening_before_the_reset_opens_nothing_in_whatever_order_they_are_read(world: World, first: str) -> None:
    serve = Serve(world)
    entries = {
        HELD: Entry(OURS, KIND, HELD, packed(Reset("gateway", 1000, ""))),
        RESET: Entry(OURS, KIND, RESET, packed(Reset("alice", 1000, ""))),
    }
    for key in sorted(entries, key=lambda k: k != first):
        serve.breaker.hear(entries[key])
    assert serve.breaker.judge(world.now_s) == {}
    serve.breaker.hear(entries[HELD]._replace(value=packed(Reset("gateway", 1001, ""))))
    assert serve.breaker.judge(world.now_s) == {OURS: {}}, "the control: a later one opens it"


def test_a_burst_of_one_tenant_holds_nothing_back_from_another(world: World) -> None:
    serve = Serve(world)
    world.restrict(OURS, "old")
    serve.turn()
    world.restrict(THEIRS, *crowd("burst"))
    serve.turn()
    assert (serve.view.held_of(THEIRS), serve.view.held_of(OURS)) == (True, False)
    world.restrict(OURS, "new")
    serve.turn()
    assert (serve.blocked(OURS), serve.blocked(THEIRS)) == (2, 0)
    assert (world.says(OURS), world.says(THEIRS)) == ("closed", "open")
    assert Reader(world.store, SECRETS, OURS).manual_decisions().held_s == 0
    assert Reader(world.store, SECRETS, THEIRS).manual_decisions().held_s > 0

    world.now_s += 60
    world.reset(OURS)
    serve.turn()
    assert serve.view.held_of(THEIRS), "an operator of another tenant closes nothing"
    assert Reader(world.store, SECRETS, THEIRS).manual_decisions().held_s > 0
    late = Serve(world)
    assert (late.blocked(OURS), late.blocked(THEIRS)) == (2, 0)
    world.reset(THEIRS)
    for one in (serve, late):
        one.turn()
        assert (one.view.held, one.blocked(OURS), one.blocked(THEIRS)) == (False, 2, 8)
    assert (world.says(OURS), world.says(THEIRS)) == ("closed", "closed")


def test_tenants_are_counted_apart(world: World) -> None:
    serve = Serve(world)
    for tenant in (OURS, THEIRS):
        world.restrict(tenant, *crowd("few", MOST))
    serve.turn()
    assert (serve.view.held, serve.blocked(OURS), serve.blocked(THEIRS)) == (False, MOST, MOST)
    world.restrict(OURS, "one-more")
    serve.turn()
    assert (serve.blocked(OURS), serve.blocked(THEIRS)) == (0, MOST)


def test_a_breaker_whose_reset_came_before_its_entry_does_not_open_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Serve(world)
    operate = world.store.operate

    def away(revision: int, operation: Operation) -> int:
        raise Unavailable("away")

    monkeypatch.setattr(world.store, "operate", away)
    world.restrict(OURS, *crowd("burst"))
    serve.turn()
    assert (serve.view.held, world.entries(OURS)) == (True, [])
    monkeypatch.setattr(world.store, "operate", operate)
    world.now_s += 60
    world.reset(OURS)
    serve.breaker.judge(world.now_s)  # as if it had not heard the reset
    assert world.entries(OURS) == [RESET], "an opening that is over is not stored"
    serve.turn()
    assert (serve.view.held, serve.blocked(OURS)) == (False, 8)


def test_of_two_processes_the_first_says_when_it_opened(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Serve(world), Serve(world)
    monkeypatch.setattr(other.breaker, "hear", lambda entry: None)  # both open before either hears of the other
    world.restrict(OURS, *crowd("burst"))
    one.turn()
    (stored,) = world.store.operator_entries(KIND, OURS)[1]
    world.now_s += 5
    other.turn()
    assert other.view.held_of(OURS)
    assert world.store.operator_entries(KIND, OURS)[1] == [stored]
