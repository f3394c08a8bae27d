"""What is said of gateways is what gateways do: one sentence, in whatever way a client stands."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from consumers.enforcement.restrictions import Restrictions
from consumers.readers.gateways import Modes, OfCampaign, at_gateways
from consumers.readers.models import Allowed, OperatorDecision
from consumers.readers.public import campaign_decision_of
from consumers.records.operator_entries import (
    RULINGS,
    AllowlistEntry,
    Ruling,
    StoredCampaignDecision,
    StoredOperatorDecision,
    entry_key,
    packed,
)
from consumers.store import ENFORCED, Entry, Restriction
from detector.policy import MODES, STATES, Mode, State
from detector.query import ClientKey

NOW = 1_000_000
LATER, BEFORE = NOW + 60, NOW - 601
VERBS = {
    "clear": "let it through:",
    "watch": "let it through:",
    "degrade": "let it through to answers with less detail",
    "throttle": "throttle it",
    "block": "block it",
}


@dataclass(frozen=True)
class Way:
    """One way in which a client may stand."""

    state: State
    enforced: State
    reason: str
    until_s: int
    decision: OperatorDecision | None
    allowed: Allowed | None
    since_s: int = NOW


def ways() -> Iterator[Way]:
    decisions = [
        OperatorDecision("c", "h", model, state, until_s, simulated, "", "", "alice", NOW)
        for state in RULINGS
        for simulated, until_s, model in (
            (False, LATER, "m"),
            (False, BEFORE, "m"),
            (True, LATER, "m"),
            (False, LATER, "*"),
        )
    ]
    lists = [Allowed("c", "h", "m", until_s, "", "bob", NOW, "operator") for until_s in (0, LATER, BEFORE)]
    for state, enforced, reason, until_s, decision, allowed in itertools.product(
        STATES,
        STATES,
        ("suspicious", "allow_listed", "breaker"),
        (0, LATER, BEFORE),
        (None, *decisions),
        (None, *lists),
    ):
        if STATES.index(enforced) <= STATES.index(state):
            yield Way(state, enforced, reason, until_s, decision, allowed)


def restriction(name: str, way: Way) -> list[Restriction]:
    return (
        [Restriction(ClientKey("t", "m", name), way.state, way.enforced, way.until_s)]
        if way.state in STATES[2:]
        else []
    )


def entries_of(name: str, way: Way) -> tuple[list[Entry], list[Entry]]:
    d, a = way.decision, way.allowed
    ruled = d and StoredOperatorDecision(name, d.model_id, d.state, d.until_s, d.simulated, "", "", d.actor, d.at_s)
    listed = a and AllowlistEntry(name, a.model_id, a.until_s, "", a.actor, a.at_s)
    return (
        [Entry("t", "decision", entry_key(ruled.model, name), packed(ruled), ruled.until_s)] if ruled else [],
        [Entry("t", "allow", entry_key(listed.model, name), packed(listed), listed.until_s)] if listed else [],
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("held", [False, True])
def test_what_is_said_is_what_gateways_do(mode: Mode, held: bool) -> None:
    """Over every combination of state, enforcement, operator's decision, allowlist, mode and breaker."""
    all_ways = {f"{i:032x}": way for i, way in enumerate(ways())}
    view = Restrictions(mode)
    said = [entries_of(name, way) for name, way in all_ways.items()]
    view.replace(
        [r for name, way in all_ways.items() for r in restriction(name, way)],
        [one for ruled, listed in said for one in (*ruled, *listed)], NOW,
    )  # fmt: skip
    view.hold({"t": {}} if held else {}, NOW)
    sentences = set()
    for name, way in all_ways.items():
        real = view.standing("t", name, "m", NOW)
        found = at_gateways(way, way.decision, way.allowed, mode, NOW if held else 0, NOW)
        assert found.state == ENFORCED[real.strictness], way
        words = found.text.replace("through until", "through: until")
        assert words.startswith(f"Gateways {VERBS[found.state]}"), way
        assert sum(verb in words for verb in {*VERBS.values()}) == 1, found.text
        if found.until_s and real.strictness >= 2:
            assert found.until_s == real.until_s
        sentences.add(found.text)
    assert len(sentences) > 8


def test_a_model_may_have_a_mode_of_its_own() -> None:
    modes = Modes("observe", {"fraud": "block"})
    assert (modes.of("fraud"), modes.of("churn")) == ("block", "observe")


def test_what_stood_before_the_breaker_opened_still_holds() -> None:
    way = Way("block", "block", "extraction", LATER, None, None, since_s=BEFORE)
    assert at_gateways(way, None, None, "block", NOW, NOW).state == "block"
    assert at_gateways(way, None, None, "block", BEFORE, NOW).cause == "breaker"
    burst = replace(way, since_s=NOW - 599)
    assert at_gateways(burst, None, None, "block", NOW, NOW).cause == "breaker", "it began with the burst"


def test_what_is_said_of_campaigns_is_what_gateways_do() -> None:
    """Over every combination of a campaign's decision, joined or not, detection, own decision, allowlist and breaker."""
    rulings: tuple[Ruling | None, ...] = (None, *RULINGS)
    cases = itertools.product(
        rulings, (None, BEFORE, NOW), STATES, (None, "clear", "throttle"), (False, True), (False, True)
    )
    for i, (ruled, joined_s, state, own, listed, held) in enumerate(cases):
        name, entries, campaigns = f"{i:032x}", [], []
        if ruled is not None:
            accounts = ((name,), (), ()) if joined_s is None else ((), (name,), (joined_s,))
            stored = StoredCampaignDecision("g", "m", ruled, LATER, False, "", "", "alice", NOW, *accounts)
            entries.append(Entry("t", "campaign", entry_key("m", "g"), packed(stored), LATER))
            campaigns.append(OfCampaign(campaign_decision_of(stored, waits=False), joined_s))
        decision = own and OperatorDecision("c", name, "m", own, LATER, False, "", "", "bob", NOW)  # type: ignore[arg-type]
        allowed = Allowed("c", name, "m", 0, "", "eve", NOW, "operator") if listed else None
        way = Way(state, state, "suspicious", LATER, decision or None, allowed)
        entries += [entry for found in entries_of(name, way) for entry in found]
        view = Restrictions("block")
        view.replace(restriction(name, way), entries, NOW)
        stood = {ClientKey("t", "m", name): 4} if joined_s == BEFORE else {}
        if held:
            view.hold({"t": dict(stood)}, NOW)
        real = view.standing("t", name, "m", NOW)
        since_s = BEFORE if joined_s == BEFORE else NOW
        said = at_gateways(
            replace(way, since_s=since_s), way.decision, way.allowed, "block", NOW if held else 0, NOW, campaigns
        )
        assert said.state == ENFORCED[real.strictness], (ruled, joined_s, state, own, listed, held, said.text)
