"""Schema holds: a misfit that many clients begin to send is no evidence until an operator rules, and is again once it is dismissed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.loans import MODEL, Event, fitted, in_order, life, lines_of, noise, person, replayed, row_of, usual_traffic

from consumers.detect.overrides import Overrides
from consumers.detect.schema_holds import SchemaHolds
from consumers.errors import Missing
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.records.schema_holds import holds_of
from consumers.records.schema_watch import FIELD, IDENTITY, Distinct, SchemaWatch
from consumers.secrets import Secrets
from consumers.store import Checkpoint
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.policy import FLAGGED
from detector.query import ClientKey

ALICE = Actor("alice", "operator", "default")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    return fitted(tmp_path_factory.mktemp("fit"), usual_traffic())


def rolled_out(clients: int) -> list[Event]:
    """Honest clients whose app stops sending a column, and a thief."""
    rng = np.random.default_rng(6)
    events = [e for k in range(clients) for e in life(f"app-{k}", person, 60, rng)]
    for e in events:
        e["features"]["ratio"] = None
    return in_order([*events, *life("thief", noise, 300, rng)])


def states(outcome: Any) -> set[str]:
    return {row.decision.state for row in outcome.scores.values() if row.client_id.startswith("app")}


def test_a_roll_out_accuses_nobody_and_a_thief_is_still_seen(baseline: Baseline, tmp_path: Path) -> None:
    outcome = replayed(tmp_path, baseline, lines_of(rolled_out(40)))
    assert not states(outcome) & set(FLAGGED)
    thief, honest = row_of(outcome, "thief"), row_of(outcome, "app-0")
    assert thief is not None
    assert honest is not None
    assert thief.decision.state in FLAGGED
    assert any("held back" in e.text for e in honest.assessment.evidence)


def test_without_the_hold_the_roll_out_would_accuse_everybody(
    baseline: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(SchemaHolds, "look", lambda *args: [])
    assert states(replayed(tmp_path, baseline, lines_of(rolled_out(40)))) <= set(FLAGGED)


def test_few_clients_with_the_same_misfit_are_evidence(baseline: Baseline, tmp_path: Path) -> None:
    assert states(replayed(tmp_path, baseline, lines_of(rolled_out(10)))) <= set(FLAGGED)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    with_watch = EmbeddedStore(tmp_path / "store.sqlite")
    yield with_watch
    with_watch.close()


def test_a_hold_lasts_until_an_operator_rules(baseline: Baseline, store: EmbeddedStore, tmp_path: Path) -> None:
    secrets = Secrets.load(tmp_path / "secrets", create=True)
    many = np.arange(30, dtype=np.uint64)
    watch = SchemaWatch(20_000, Distinct(many), {"ratio": Distinct(many), "age": Distinct(many[:5])})
    key = ClientKey("default", MODEL, secrets.client_hash("default", IDENTITY))
    store.claim("log:0", "t")
    store.commit("t", Checkpoint("log:0", None, 1, profiles={key: {FIELD: watch.to_bytes()}}))

    def process(known: Baseline) -> tuple[Overrides, SchemaHolds]:
        overrides = Overrides(schema=SchemaHolds({MODEL: known}, secrets))
        overrides.refresh(store)
        assert overrides.schema is not None
        return overrides, overrides.schema

    overrides, holds = process(baseline)
    holds.keep("default", holds.look(store, "default", 7), store, overrides.revision)
    assert [hold.column for hold in holds.open()] == ["ratio"]
    assert holds.holds("default", MODEL)
    assert not holds.holds("another", MODEL)
    assert process(baseline)[1].holds("default", MODEL), "over a restart"

    operations = Operations(store, secrets)
    with pytest.raises(Missing):
        operations.rule_on_schema(ALICE, MODEL, "age", "accepted")
    operations.rule_on_schema(ALICE, MODEL, "ratio", "accepted", "app 4.2")
    accepted = process(baseline)[1]
    assert accepted.holds("default", MODEL)
    assert (accepted.open(), accepted.look(store, "default", 9)) == ([], [])
    refitted = replace(baseline, map=replace(baseline.map, near=baseline.map.near * 2))
    assert not process(refitted)[1].holds("default", MODEL), "fitted anew"

    operations.rule_on_schema(ALICE, MODEL, "ratio", "dismissed")
    dismissed = process(baseline)[1]
    assert not dismissed.holds("default", MODEL)
    assert dismissed.look(store, "default", 9) == []
    assert [(hold.ruling, hold.actor) for hold in holds_of(store, "default")] == [("dismissed", "alice")]
    assert holds_of(store, "another") == ()
