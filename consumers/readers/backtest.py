"""Backtest: which clients of an old log would be flagged at which false-alarm budget, and what gateways would do in which mode.

Rules:
* The lifetime p-value of a client does not depend on the budget, so one pass over the log answers for all budgets.
* A client is assessed as it stands at the end of the log, over its last horizon, by the same `wanted` as in the service. TTLs play no part.
* Pure: assessments in, rows out. The caller reads the log into a store that is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detector.baseline import Baseline
from detector.policy import FLAGGED, MODES, STATES, Mode, Policy, State, enforce, wanted
from detector.profile import Profile
from detector.scoring import Assessment, assess, reached

BUDGETS = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


@dataclass(frozen=True, slots=True)
class ClientAtEnd:
    """One client at the end of the log."""

    client_id: str
    model: str
    profile: Profile
    assessment: Assessment

    @classmethod
    def of(cls, client_id: str, model: str, profile: Profile, shards: int, baseline: Baseline) -> ClientAtEnd:
        return cls(client_id, model, profile, assess(profile, baseline, shards=shards))


@dataclass(frozen=True, slots=True)
class AtBudget:
    """What one budget would have meant.

    states    state → clients; flagged: throttle or block; expected: honest clients that would be flagged if all were honest
    enforced  mode → state → clients that gateways would hold to it
    reasons   why clients that are as rare as a block asks for are not blocked: reason → clients
    """

    budget: float
    states: Mapping[State, int]
    flagged: int
    expected: float
    supported: bool
    enforced: Mapping[Mode, Mapping[State, int]]
    reasons: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Flagged:
    """A client that some budget would flag: the smallest that does, its state there and at the widest, queries seen by then."""

    client_id: str
    model: str
    queries: int
    p_value: float
    smallest_budget: float
    state: str
    alarm_at_query: int | None
    why: str


def at_budgets(
    clients: Sequence[ClientAtEnd], baselines: Mapping[str, Baseline], budgets: Sequence[float]
) -> list[AtBudget]:
    """One row a budget, in the order given."""
    rows = []
    for budget in budgets:
        policy = Policy(budget)
        verdicts = [wanted(one.assessment, baselines[one.model].calibration, policy) for one in clients]
        states = {s: sum(state == s for state, _ in verdicts) for s in STATES}
        enforced = {
            mode: {s: sum(enforce(state, mode) == s for state, _ in verdicts) for s in FLAGGED} for mode in MODES
        }
        held = [reason for state, reason in verdicts if state == "throttle" and reason != "suspicious"]
        rows.append(
            AtBudget(
                budget=budget,
                states=states,
                flagged=sum(states[s] for s in FLAGGED),
                expected=budget * len(clients),
                supported=all(baselines[m].calibration.supports(budget) for m in {one.model for one in clients}),
                enforced=enforced,
                reasons={r: held.count(r) for r in sorted(set(held))},
            )
        )
    return rows


def flagged(
    clients: Sequence[ClientAtEnd], baselines: Mapping[str, Baseline], budgets: Sequence[float]
) -> list[Flagged]:
    """Clients that at least one budget flags, most suspicious first."""
    found = []
    for one in sorted(clients, key=lambda one: (one.assessment.p_value, -one.assessment.queries, one.client_id)):
        hit = [b for b in sorted(budgets) if one.assessment.p_value <= b]
        if not hit:
            continue
        baseline = baselines[one.model]
        state, _ = wanted(one.assessment, baseline.calibration, Policy(hit[-1]))
        first = reached(one.profile, baseline, hit[-1]) if one.assessment.in_order else None
        why = one.assessment.evidence[0].text if one.assessment.evidence else ""
        alarm = first[1] if first else None
        a = one.assessment
        found.append(Flagged(one.client_id, one.model, a.queries, a.p_value, hit[0], state, alarm, why))
    return found
