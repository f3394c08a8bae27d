"""Accounts that join a campaign under decision: what each must meet, and that nothing of it passes the breaker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from support.seeded_api import decided

from consumers.detect.grouping import Survey
from consumers.detect.joining import Joining
from consumers.detect.overrides import Overrides
from consumers.operators.audited_write import Actor
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.operators.operate import Operations
from consumers.records.breaker import BreakerLimits
from consumers.records.decision import RowSummary, campaign_key
from consumers.records.operator_entries import entry_key
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, Entry
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics
from detector.query import ClientKey

T, M, NOW_S = "default", "m", 1_800_000_000
OLD = ("old-1", "old-2", "old-3", "old-4")


@dataclass
class Scene:
    """A flagged campaign of four accounts that an operator blocked, and accounts that came since."""

    store: EmbeddedStore
    secrets: Secrets
    limits: BreakerLimits = field(default_factory=lambda: BreakerLimits(most=20, least=20))
    links: tuple[str, ...] = ("org:1", "skeleton:2", "peer:3", "agent:4", "who.reseller:5", "where.app:6")
    state: str = "throttle"
    newcomers: dict[str, RowSummary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store.prepare(self.secrets.key_id)
        self.desk = Operations(self.store, self.secrets, lambda: float(NOW_S))
        self.overrides = Overrides(self.limits)
        self.subject = CampaignSubject("c", M, tuple(self.hash(one) for one in OLD))

    def hash(self, name: str) -> str:
        return self.secrets.client_hash(T, name)

    def decide(self, state: str = "block") -> None:
        self.desk.decide_campaign(Actor("maria", "operator", T), self.subject, state)

    def came(self, name: str, p: float = 0.01, links: tuple[str, ...] = ("org:1",)) -> None:
        self.newcomers[name] = RowSummary(size_p_value=p, links=list(links))

    def look(self, held: Any = range(DECISION_CELLS)) -> list[str]:
        """Names of those that joined."""
        members = (*OLD, *self.newcomers)
        row = decided("c", 0.001, self.state, members=members, links=self.links)
        clients = {ClientKey(T, M, self.hash(name)): summary for name, summary in self.newcomers.items()}
        self.overrides.refresh(self.store)
        joining = Joining(self.overrides, self.desk, self.store, self.secrets, Metrics(), DECISION_CELLS)
        joining.look(T, Survey(clients, {campaign_key(T, M, "c"): row}), held, NOW_S)
        decision = self.desk.campaign_decision(T, self.subject)
        joined = () if decision is None else decision.joined
        return sorted(name for name in members if self.hash(name) in joined)


@pytest.fixture
def scene(new_store: Any, secrets: Secrets) -> Scene:
    return Scene(new_store(), secrets)


def test_a_suspicious_account_of_the_same_organisation_joins_once(scene: Scene) -> None:
    scene.decide()
    scene.came("thief")
    assert scene.look() == ["thief"]
    assert scene.look() == ["thief"], "a second pass adds nobody"


def test_an_account_joins_by_a_key_that_the_settings_call_an_owner(scene: Scene) -> None:
    scene.decide()
    scene.came("thief", 0.04, ("who.reseller:5",))
    assert scene.look() == ["thief"]


@pytest.mark.parametrize(
    ("p", "links"),
    [
        (0.2, ("org:1",)),  # an honest colleague
        (0.001, ("skeleton:2",)),  # content alone
        (0.001, ("peer:3",)),  # a peer's word alone
        (0.001, ("agent:4", "where.app:6")),  # what strangers share
        (0.001, ("org:other",)),
        (0.001, ()),
    ],
)
def test_who_lacks_the_link_or_the_evidence_stays_out(scene: Scene, p: float, links: tuple[str, ...]) -> None:
    scene.decide()
    scene.came("other", p, links)
    assert scene.look() == []


def test_allowlisted_accounts_and_those_with_a_decision_of_their_own_stay_out(scene: Scene) -> None:
    scene.decide()
    for name in ("scanner", "released"):
        scene.came(name)
    maria = Actor("maria", "operator", T)
    scene.desk.allow(maria, scene.desk.subject(T, "*", "scanner"))
    scene.desk.decide(maria, scene.desk.subject(T, M, "released"), "clear")
    assert scene.look() == []


@pytest.mark.parametrize("state", ["watch", "clear"])
def test_nobody_joins_a_campaign_that_the_statistic_no_longer_flags(scene: Scene, state: str) -> None:
    scene.decide()
    scene.state = state
    scene.came("thief")
    assert scene.look() == []


def test_nobody_joins_without_a_decision_or_in_a_cell_of_another_process(scene: Scene) -> None:
    scene.came("thief")
    assert scene.look() == []
    scene.decide()
    assert scene.look(held=()) == []


def test_at_most_as_many_join_as_were_confirmed_whoever_comes(scene: Scene) -> None:
    scene.decide()
    for i in range(9):
        scene.came(f"thief-{i}")
    assert len(scene.look()) == len(OLD)


def test_the_breaker_counts_who_joins_and_opens_in_plain_sight(new_store: Any, secrets: Secrets) -> None:
    scene = Scene(new_store(), secrets, BreakerLimits(most=2, least=2))
    scene.decide()
    for i in range(4):
        scene.came(f"thief-{i}")
    assert len(scene.look()) == 2
    assert scene.overrides.open
    tripped = [e.key for e in scene.store.operator_entries("breaker", T)[1]]
    assert tripped == ["tripped"], "stored, so that the alarm and the dashboard show it"
    assert len(scene.look()) == 2, "while it is open nobody joins"


def test_an_entry_that_cannot_be_read_adds_nobody(scene: Scene) -> None:
    scene.decide()
    scene.overrides.refresh(scene.store)
    scene.overrides._take(Entry(T, "campaign", entry_key(M, "c"), b"{", 0))
    assert scene.overrides.campaign_decisions(T, NOW_S) == []
