"""Decisions: every row of the table, holding until the time is over, episodes, and what gateways may do."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.calibration import Calibration
from detector.policy import (
    FLAGGED,
    MIN_ODD_TO_BLOCK,
    MIN_ODD_TO_THROTTLE,
    MODES,
    REASONS,
    STATES,
    TRANSITIONS,
    TTL_S,
    Case,
    Decision,
    Mode,
    Policy,
    State,
    decide,
    enforce,
    lapsed,
    wanted,
)
from detector.scoring import Assessment

NOW_S = 1_700_000_000
BUDGET = 0.01


def calibration(clients: int = 5000, calibrated: bool = True) -> Calibration:
    maxima = np.arange(float(clients))
    return Calibration(np.zeros((clients, 2), np.float32), np.ones(2), maxima, maxima, 10.0, 1.0, calibrated)


def assessment(p: float, odd: float = 100.0, calibrated: bool = True, content_p: float | None = None) -> Assessment:
    return Assessment(
        queries=500, distinct=400.0, misfit=0.0, p_value=p, content_p_value=p if content_p is None else content_p, suspicion=1.0 - p,
        calibrated=calibrated, in_order=True, fused=3.0, odd=odd, family="synthesised queries", evidence=(),
    )  # fmt: skip


CASES: dict[str, tuple[Assessment, Calibration, str, str]] = {
    "nothing": (assessment(1.0), calibration(), "clear", "no_evidence"),
    "just above five budgets": (assessment(0.0500001), calibration(), "clear", "no_evidence"),
    "five budgets": (assessment(0.05), calibration(), "watch", "unusual"),
    "just above the budget": (assessment(0.0100001), calibration(), "watch", "unusual"),
    "the budget": (assessment(0.01), calibration(), "throttle", "suspicious"),
    "the budget, enough odd": (assessment(0.01, MIN_ODD_TO_THROTTLE), calibration(), "throttle", "suspicious"),
    "certain, too few odd": (
        assessment(0.0, MIN_ODD_TO_THROTTLE - 0.001),
        calibration(),
        "watch",
        "too_few_to_throttle",
    ),
    "certain, nobody knows how many odd": (
        assessment(0.0, float("nan")),
        calibration(),
        "watch",
        "too_few_to_throttle",
    ),
    "just above a tenth": (assessment(0.00100001), calibration(), "throttle", "suspicious"),
    "a tenth": (assessment(0.001), calibration(), "block", "extraction"),
    "a tenth, enough odd": (assessment(0.001, MIN_ODD_TO_BLOCK), calibration(), "block", "extraction"),
    "a tenth, too few odd": (assessment(0.0, MIN_ODD_TO_BLOCK - 0.001), calibration(), "throttle", "too_few_to_block"),
    "a tenth, by misfits alone": (assessment(0.0, content_p=1.0), calibration(), "throttle", "misfit_only"),
    "a tenth, misfits beside content": (assessment(0.0, content_p=0.001), calibration(), "block", "extraction"),
    "a tenth, too few clients": (assessment(0.0), calibration(999), "throttle", "budget_unsupported"),
    "a tenth, clients enough": (assessment(0.0), calibration(1000), "block", "extraction"),
    "uncalibrated": (assessment(0.0, calibrated=False), calibration(calibrated=False), "throttle", "uncalibrated"),
    "uncalibrated, unusual": (assessment(0.03, calibrated=False), calibration(calibrated=False), "watch", "unusual"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_assessment_asks_for(case: str) -> None:
    a, n, state, reason = CASES[case]
    assert wanted(a, n, Policy(BUDGET)) == (state, reason)


def test_every_row_of_the_table_is_hit_and_every_reason_is_reached() -> None:
    hit = set()
    for a, n, _, _ in CASES.values():
        case = Case.of(a, n, BUDGET)
        hit.add(next(i for i, row in enumerate(TRANSITIONS) if row.condition(case)))
    assert hit == set(range(len(TRANSITIONS)))
    reasons = {wanted(a, n, Policy(BUDGET))[1] for a, n, _, _ in CASES.values()}
    held = decide(
        Decision("block", "extraction", NOW_S, NOW_S + 9), assessment(1.0), calibration(), Policy(BUDGET), NOW_S
    )
    over = lapsed(Decision("block", "extraction", 5, 9), Decision("throttle", "suspicious", 9, 20), 9)
    # by what people said (tests/detect/test_overrides.py), about groups (test_campaigns.py), about budgets of exposure and
    # of queries (test_exposure_budget.py)
    overruled = {
        "allow_listed",
        "breaker",
        "campaign",
        "campaign_content",
        "exposure_budget",
        "query_budget",
        "token_budget",
    }
    assert reasons | {held.reason, over.reason} | overruled == set(REASONS)
    assert {row.state for row in TRANSITIONS} == set(STATES)
    assert set(TTL_S) == set(STATES)
    assert set(FLAGGED) <= set(STATES)


@pytest.mark.parametrize(
    ("before", "now_s", "after", "state"),
    [
        ("block", 99, "block", "block"),  # its time is not over
        ("block", 100, "block", "watch"),
        ("throttle", 101, "block", "watch"),
        ("block", 100, "clear", "clear"),  # it falls further by itself
        ("watch", 100, "block", "block"),  # it rises
    ],
)
def test_a_restriction_is_not_renewed_for_a_client_that_asked_nothing_since(
    before: State, now_s: int, after: State, state: State
) -> None:
    decision = lapsed(
        Decision(before, "extraction", 10, 100, 3), Decision(after, "x", now_s, now_s + 50, 3, after), now_s
    )
    assert decision.state == state
    assert decision.episode == 3
    if (before, state) == ("block", "watch"):
        assert (decision.reason, decision.until_s, decision.enforced) == ("expired", 0, "clear")


P = st.sampled_from([1.0, 0.06, 0.05, 0.02, 0.01, 0.005, 0.001, 1e-6, 0.0])
POLICIES = st.builds(Policy, st.sampled_from([0.001, 0.01, 0.05]), st.sampled_from(MODES))
PREVIOUS = st.builds(
    Decision,
    st.sampled_from(STATES),
    st.sampled_from(sorted(REASONS)),
    st.integers(0, NOW_S),
    st.sampled_from([0, NOW_S - 1, NOW_S, NOW_S + 1, NOW_S + 9999]),
    st.integers(0, 5),
)


@settings(max_examples=200, deadline=None)
@given(PREVIOUS, P, st.floats(0, 1000), POLICIES)
def test_nothing_is_ever_blocked_uncalibrated(previous: Decision, p: float, odd: float, policy: Policy) -> None:
    previous = replace(previous, state="clear") if previous.state == "block" else previous
    decision = decide(previous, assessment(p, odd, False), calibration(calibrated=False), policy, NOW_S)
    assert decision.state != "block"
    assert decision.enforced != "block"


@settings(max_examples=300, deadline=None)
@given(PREVIOUS, P, st.floats(0, 1000), POLICIES)
def test_a_state_rises_at_once_and_falls_only_when_its_time_is_over(
    previous: Decision, p: float, odd: float, policy: Policy
) -> None:
    a = assessment(p, odd)
    decision = decide(previous, a, calibration(), policy, NOW_S)
    asked = wanted(a, calibration(), policy)[0]
    falls = STATES.index(asked) < STATES.index(previous.state)
    if falls and previous.until_s > NOW_S:
        assert (decision.state, decision.reason) == (previous.state, "holds")
        assert (decision.since_s, decision.until_s, decision.episode) == (
            previous.since_s,
            previous.until_s,
            previous.episode,
        )
    else:
        assert decision.state == asked
        assert decision.reason != "holds"
        assert decision.until_s == (NOW_S + TTL_S[asked] if TTL_S[asked] else 0)
        assert decision.since_s == (previous.since_s if asked == previous.state and previous.since_s else NOW_S)
    assert decision.episode - previous.episode == int(decision.state == "clear" != previous.state)
    assert decision.reason in REASONS


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", MODES)
def test_a_gateway_never_does_more_than_the_mode(state: State, mode: Mode) -> None:
    enforced = enforce(state, mode)
    assert STATES.index(enforced) <= STATES.index(state)
    most = mode if mode in STATES else "clear"
    assert enforced == min(state, most, key=STATES.index)


@settings(max_examples=100, deadline=None)
@given(PREVIOUS, P, POLICIES)
def test_decisions_obey_the_mode_even_while_they_hold(previous: Decision, p: float, policy: Policy) -> None:
    """A mode that was lowered lets go at once, though the state holds."""
    decision = decide(previous, assessment(p), calibration(), policy, NOW_S)
    assert decision.enforced == enforce(decision.state, policy.mode)


def test_a_life_of_two_episodes() -> None:
    policy = Policy(BUDGET, "block")
    day = TTL_S["block"]
    times = [0, 60, 120, 120 + day - 1, 120 + day, 120 + 2 * day, 130 + 2 * day]
    values = [1.0, 0.02, 0.0, 0.5, 0.5, 0.005, 0.0]
    decision, seen = Decision(), []
    for at, p in zip(times, values, strict=True):
        decision = decide(decision, assessment(p), calibration(), policy, NOW_S + at)
        seen.append((decision.state, decision.reason, decision.episode, decision.since_s - NOW_S))
    assert seen == [
        ("clear", "no_evidence", 0, 0),
        ("watch", "unusual", 0, 60),
        ("block", "extraction", 0, 120),
        ("block", "holds", 0, 120),
        ("clear", "no_evidence", 1, 120 + day),
        ("throttle", "suspicious", 1, 120 + 2 * day),
        ("block", "extraction", 1, 130 + 2 * day),
    ]


def test_a_state_that_is_asked_for_again_lasts_longer_but_began_when_it_began() -> None:
    first = decide(Decision(), assessment(0.005), calibration(), Policy(BUDGET), NOW_S)
    again = decide(first, assessment(0.005), calibration(), Policy(BUDGET), NOW_S + 1000)
    assert again.since_s == first.since_s == NOW_S
    assert again.until_s == first.until_s + 1000


def test_watch_does_not_hold() -> None:
    watched = decide(Decision(), assessment(0.03), calibration(), Policy(BUDGET), NOW_S)
    assert watched.until_s == 0
    assert decide(watched, assessment(1.0), calibration(), Policy(BUDGET), NOW_S).state == "clear"


def test_a_score_that_wavers_does_not_flap_a_gateway() -> None:
    decision, states = Decision(), []
    for at, p in enumerate(itertools.islice(itertools.cycle([0.009, 0.011]), 40)):
        decision = decide(decision, assessment(p), calibration(), Policy(BUDGET, "throttle"), NOW_S + 60 * at)
        states.append(decision.enforced)
    assert set(states) == {"throttle"}


@pytest.mark.parametrize("budget", [0.001, 0.01, 0.05])
def test_a_smaller_budget_is_never_stricter(budget: float) -> None:
    for p in (1.0, 0.2, 0.05, 0.01, 0.005, 0.001, 1e-5, 0.0):
        loose = wanted(assessment(p), calibration(10**6), Policy(budget * 2))[0]
        tight = wanted(assessment(p), calibration(10**6), Policy(budget))[0]
        assert STATES.index(tight) <= STATES.index(loose)


def test_a_p_value_that_is_no_number_blocks_nobody() -> None:
    """Comparisons with it are all false; the last row of the table must not be what is left."""
    state, _ = wanted(assessment(float("nan")), calibration(), Policy(BUDGET))
    assert state != "block"
