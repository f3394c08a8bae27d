"""A flag storm from end to end: several detect processes, gateways and an operator over one real store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.seeded_api import MODEL, OURS, SECRETS, client_hash, decided

from consumers.detect.loop import Runner
from consumers.detect.overrides import Overrides
from consumers.detect.step import CellSeen, Detect
from consumers.enforcement.breaker import GatewayBreaker
from consumers.enforcement.refresher import Refresher
from consumers.enforcement.restrictions import Restrictions
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.records.breaker import BreakerLimits
from consumers.records.decision import packed_decision, previous
from consumers.store import Checkpoint, Outcome, Store
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import connect
from consumers.telemetry.metrics import Metrics
from detector.policy import Decision
from detector.query import ClientKey

ALICE = Actor("alice", "admin", OURS)
MOST = 20


class Alarmed(Detect):
    """A detector gone wrong: everybody is a thief."""

    def steps(self, cells: Sequence[CellSeen], now_s: int | None, overrule: Any = None) -> Iterator[Outcome]:
        assert now_s is not None
        for cell in cells:
            outcome = Outcome(cell.cell, dict(cell.cursors))
            for one in cell.seen:
                before = previous(one.before)
                made = Decision("block", "extraction", now_s, now_s + 3600, 0, "block")
                made = overrule(one.key, before, made, now_s)
                row = decided(f"c{one.key.client}", 1e-6, "block", enforced=made.enforced, reason=made.reason)
                outcome.rows[one.key] = packed_decision(row, SECRETS, one.key.tenant)
            yield outcome


class HonestPools:
    """detects processes that share the cells, a gateway's view, an operator."""

    def __init__(self, store: Store, detects: int) -> None:
        self.store = store
        self.metrics = Metrics()
        self.detects = [
            Runner(
                store,
                Alarmed({}, SECRETS),
                metrics=self.metrics,
                overrides=Overrides(BreakerLimits(MOST, 1.0, MOST)),
                process=f"detect-{i}",
                lease_ms=60_000,
            )
            for i in range(detects)
        ]
        self.view = Restrictions("block")
        self.refresher = Refresher(store, self.view, self.metrics, breaker=GatewayBreaker(store, self.view, MOST))
        self.operations = Operations(store, SECRETS)
        self.offset: int | None = None
        for one in self.detects:
            one.cells.attend()
        for one in self.detects:  # each knows now how many share
            one.cells._attended_s = float("-inf")
            one.turn()
        self.look()
        self.look()

    def ask(self, clients: Iterable[str]) -> None:
        """These clients queried the model."""
        token = "0" * 32
        self.store.claim("q:0", token)
        after = (self.offset or 0) + 100
        profiles: dict[ClientKey, dict[str, bytes | None]] = {
            ClientKey(OURS, MODEL, client_hash(c)): {"h": SECRETS.seal(c, OURS)} for c in clients
        }
        self.store.commit(token, Checkpoint("q:0", self.offset, after, profiles))
        self.offset = after

    def look(self) -> int:
        """How many the gateways restrict by what was detected."""
        assert self.refresher.turn()
        return sum(standing.origin == "detected" for *_, standing in self.view.enforced(time.time()))

    def rows(self) -> int:
        """How many rows are enforced."""
        return sum(row.enforced == "block" for _, row in self.store.decisions(OURS, MODEL))

    def shown(self, name: str, **labels: str) -> float:
        return self.metrics.value(name, **labels) or 0.0

    def breaker(self) -> str | None:
        return Reader(self.store, SECRETS, OURS).health().breaker


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = (
        EmbeddedStore(tmp_path / "storm.sqlite")
        if request.param == "sqlite"
        else connect(request.getfixturevalue("redis_url"), timeout_s=20)
    )
    with contextlib.closing(made):
        made.prepare(SECRETS.key_id)
        yield made


CROWD = [f"client-{i}" for i in range(120)]


def test_a_flag_storm_restricts_at_most_the_limit_until_an_operator_resets(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    s = HonestPools(store, 3)
    assert s.breaker() == "closed"
    s.ask(CROWD)
    for one in s.detects:
        one.turn()
        assert s.look() <= MOST
    assert s.rows() == MOST, "the first process to open it stops the others"
    assert all(row.state == "block" for _, row in store.decisions(OURS, MODEL)), "they are found all the same"
    assert s.breaker() == "open"
    assert s.shown("querywarden_alarm", alarm="breaker") == 1
    late = Overrides()
    late.refresh(store)
    assert late.open, "nor does a restart close it"
    assert caplog.text.count("breaker opened") == 1, "said once"
    assert "cannot be read" not in caplog.text

    s.operations.reset_breaker(ALICE, "looked at it")
    assert s.breaker() == "closed"
    s.ask([f"new-{i}" for i in range(7)])
    for one in s.detects:
        one.turn()
    assert s.rows() == MOST + 7
    assert s.look() == MOST + 7
    assert s.look() == MOST + 7
    assert s.shown("querywarden_alarm", alarm="breaker") == 0
    assert [row for _, row in store.audit_rows(0, 10) if b'"action":"breaker.reset"' in row]

    s.ask(CROWD)
    for one in s.detects:
        one.turn()
    assert s.breaker() == "open", "it opens again"


def test_gateways_keep_the_limit_over_detect_processes_out_of_touch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = HonestPools(store, 3)
    for one in s.detects:  # each heard the operator cell a moment ago
        monkeypatch.setattr(type(one.overrides), "refresh", lambda self, store: None)
    s.operations.decide(ALICE, Subject(client_hash("known"), MODEL, "known"), "block")
    s.ask(CROWD)
    for one in s.detects:
        one.turn()
        assert s.look() <= MOST
    assert s.rows() > MOST
    assert (s.look(), s.view.held) == (0, True)
    assert s.view.standing(OURS, client_hash("known"), MODEL, time.time()).origin == "operator"
    assert s.breaker() == "open"
    assert s.shown("querywarden_restrictions_held") == 1

    s.operations.reset_breaker(ALICE)
    s.look()
    assert s.look() == s.rows(), "what was held is enforced"
    assert s.shown("querywarden_restrictions_held") == 0
    assert s.breaker() == "closed"
