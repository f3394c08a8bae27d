"""Policy: turns an assessment into a decision, clear, watch, throttle or block.

`TRANSITIONS` says which state an assessment asks for; `decide` says how a decision moves there.

Rules:

* A state rises at once and falls only when its time is over: a score that wavers must not make a gateway flap.
* With the false-alarm budget a: watch at p ≤ 5a, throttle at p ≤ a with at least 8 odd distinct queries, block at p ≤ a/10 with at least
  30.
* Queries that do not fit the schema never block alone: without them, the client must still be as rare as a block requires.
* Where the calibration cannot support a/10, or the baseline is *uncalibrated*, the state stays at throttle and the reason says why.
* Returning to clear ends an episode; the next alert of that client is a new finding.
* The *exposure budget* is a policy of its own, off by default. It limits what a client may learn of the model, whatever its intent: a
  client beyond it is no suspect, its state stays as detection says, and the false-alarm budget does not cover it. The *query budget* is
  the same in distinct queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from detector.calibration import Calibration
from detector.exposure import Exposure
from detector.scoring import Assessment

State = Literal["clear", "watch", "throttle", "block"]
"""State of a client's decision, the mildest first."""
Mode = Literal["observe", "alert", "throttle", "block"]
"""The strongest state that the service enforces; observe and alert enforce none."""

News = Literal["none", "raised", "closed"]
"""What there is to tell of a client: nothing, that its finding is open (first or again), or that it is over."""

STATES: tuple[State, ...] = get_args(State)
FLAGGED: tuple[State, ...] = ("throttle", "block")
MODES: tuple[Mode, ...] = get_args(Mode)
WATCH_FACTOR = 5.0
BLOCK_FACTOR = 0.1
MIN_ODD_TO_THROTTLE = 8
MIN_ODD_TO_BLOCK = 30
TTL_S: dict[State, int] = {"clear": 0, "watch": 0, "throttle": 86_400, "block": 86_400}

REASONS: dict[str, str] = {
    "no_evidence": "nothing unusual among honest clients",
    "unusual": "unusual, but within the range of honest clients",
    "suspicious": "rarer among honest clients than the false-alarm budget",
    "extraction": "ten times rarer than the false-alarm budget, with enough odd queries for a block",
    "too_few_to_throttle": "rarer than the false-alarm budget, but with too few odd queries for a throttle",
    "too_few_to_block": "rare enough for a block, but with too few odd queries for one",
    "misfit_only": "rare enough for a block, but only because of queries that do not fit the schema; these never block alone",
    "uncalibrated": "the baseline was calibrated on fewer than 20 real clients, so detection blocks no client",
    "budget_unsupported": "the baseline was calibrated on too few honest clients for a block at this budget",
    "holds": "an earlier decision is in force until it ends",
    "expired": "the decision has ended, and the client has sent no query since",
    "allow_listed": "as suspicious as stated, but the client is on the allowlist, so nothing is enforced",
    "exposure_budget": "the answers that the client received are worth more than the exposure budget allows, whatever its intent",
    "token_budget": "the client's queries and their answers had more tokens than its budget allows, whatever its intent",
    "query_budget": "the client asked more distinct queries than its budget allows, whatever its intent",
    "campaign": "the queries of these linked accounts, taken together, are rarer than those of honest groups of this size",
    "campaign_content": "too many accounts ask the same kind of odd query, and nothing else connects them; a person must confirm them",
    "breaker": "as suspicious as stated, but too many clients were restricted at once, so an operator must check first",
}
"""Reason codes and what they mean."""


EXPOSURE, QUERIES, TOKENS = "exposure_budget", "query_budget", "token_budget"
BUDGETS = (EXPOSURE, QUERIES, TOKENS)
"""Reasons of the budgets of a client. If several ask for the same, the first of these is named."""
Spent = Literal["none", "alert", "throttle"]
"""How much of its exposure budget a client has spent."""
SPENT: tuple[Spent, ...] = get_args(Spent)


@dataclass(frozen=True, slots=True)
class ExposureBudget:
    """alert, throttle: exposures, shares in (0, 1], from which the owner is told and the client is throttled; 0: never.

    queries_alert, queries_throttle  the same in distinct queries: a limit that needs no estimate; queries_total: of all clients together
    tokens_alert, tokens_throttle    the same in tokens, where the log says them
    """

    alert: float = 0.0
    throttle: float = 0.0
    queries_alert: int = 0
    queries_throttle: int = 0
    queries_total: int = 0
    tokens_alert: int = 0
    tokens_throttle: int = 0

    def spent(self, exposure: Exposure | None) -> Spent:
        """Return what an exposure asks for. A rough estimate is told and never throttles; no estimate asks for nothing.

        >>> budget = ExposureBudget(alert=0.6, throttle=0.8)
        >>> [budget.spent(Exposure(f, f - 0.1, f + 0.1)) for f in (0.5, 0.7, 0.85)]
        ['none', 'alert', 'throttle']
        >>> budget.spent(Exposure(0.85, 0.4, 0.99))
        'alert'
        """
        if exposure is None:
            return "none"
        if self.throttle and exposure.fidelity >= self.throttle and not exposure.rough:
            return "throttle"
        least = min((limit for limit in (self.alert, self.throttle) if limit), default=math.inf)
        return "alert" if exposure.fidelity >= least else "none"

    def of_plan(self, queries: int) -> ExposureBudget:
        """This budget for a client that declared how many distinct queries it asks."""
        return replace(self, queries_alert=queries, queries_throttle=queries if self.queries_throttle else 0)

    def spent_by_queries(self, distinct: float) -> Spent:
        """Return what a number of distinct queries asks for; a repeated query teaches nothing and is not counted.

        >>> budget = ExposureBudget(queries_alert=100, queries_throttle=200)
        >>> [budget.spent_by_queries(n) for n in (99, 100, 200)]
        ['none', 'alert', 'throttle']
        >>> budget.of_plan(1000).spent_by_queries(999), ExposureBudget().spent_by_queries(1e9)
        ('none', 'none')
        """
        if self.queries_throttle and distinct >= self.queries_throttle:
            return "throttle"
        return "alert" if self.queries_alert and distinct >= self.queries_alert else "none"

    def spent_by_tokens(self, tokens: int) -> Spent:
        """Return what a number of tokens asks for.

        >>> [ExposureBudget(tokens_alert=100, tokens_throttle=200).spent_by_tokens(n) for n in (99, 100, 200)]
        ['none', 'alert', 'throttle']
        """
        if self.tokens_throttle and tokens >= self.tokens_throttle:
            return "throttle"
        return "alert" if self.tokens_alert and tokens >= self.tokens_alert else "none"


@dataclass(frozen=True, slots=True)
class Policy:
    """budget: lifetime false-alarm budget a, share of honest clients; mode: the strongest state that is enforced.

    exposure  the exposure budget of a client
    """

    budget: float = 0.01
    mode: Mode = "observe"
    exposure: ExposureBudget = ExposureBudget()


@dataclass(frozen=True, slots=True)
class Decision:
    """state and why; until_s: when it ends, 0 for never; episode: rises when a client returns to clear; enforced: what gateways do."""

    state: State = "clear"
    reason: str = "no_evidence"
    since_s: int = 0
    until_s: int = 0
    episode: int = 0
    enforced: State = "clear"


@dataclass(frozen=True, slots=True)
class Case:
    """What the table of transitions looks at.

    NaN is handled here and nowhere else: a p-value that is no number is infinite, an odd count that is none is 0.0. So a number that
    could not be computed never counts as evidence.

    p_value, content_p_value  lifetime p-values, with and without the signals of misfits
    odd         distinct queries behind the strongest signal
    calibrated  whether the baseline was calibrated on real clients
    supported   whether the calibration knows enough honest clients to speak of a block at this budget
    budget      lifetime false-alarm budget
    """

    p_value: float
    content_p_value: float
    odd: float
    calibrated: bool
    supported: bool
    budget: float

    @classmethod
    def of(cls, assessment: Assessment, calibration: Calibration, budget: float) -> Case:
        """The case of one client under one budget."""
        return cls(
            p_value=_number(assessment.p_value, math.inf),
            content_p_value=_number(assessment.content_p_value, math.inf),
            odd=_number(assessment.odd, 0.0),
            calibrated=assessment.calibrated,
            supported=calibration.supports(budget * BLOCK_FACTOR),
            budget=budget,
        )

    def usual(self) -> bool:
        return self.p_value > self.budget * WATCH_FACTOR

    def within_budget(self) -> bool:
        return self.p_value > self.budget

    def too_few_to_throttle(self) -> bool:
        return self.odd < MIN_ODD_TO_THROTTLE

    def uncalibrated(self) -> bool:
        return not self.calibrated

    def too_common_to_block(self) -> bool:
        return self.p_value > self.budget * BLOCK_FACTOR

    def too_few_to_block(self) -> bool:
        return self.odd < MIN_ODD_TO_BLOCK

    def rare_by_misfits_only(self) -> bool:
        return self.content_p_value > self.budget * BLOCK_FACTOR

    def unsupported(self) -> bool:
        return not self.supported

    def everything_else(self) -> bool:
        return True


def _number(value: float, otherwise: float) -> float:
    return otherwise if math.isnan(value) else value


class Transition(NamedTuple):
    """One row of the table: under this condition the client is to be in this state, for this reason."""

    condition: Callable[[Case], bool]
    state: State
    reason: str


def wanted(assessment: Assessment, calibration: Calibration, policy: Policy) -> tuple[State, str]:
    """Return the state and the reason that an assessment asks for: the first row of `TRANSITIONS` whose condition holds.

    `decide` keeps a restriction for its time; this function knows no past. A p-value that is NaN never counts as evidence.
    """
    case = Case.of(assessment, calibration, policy.budget)
    row = next(row for row in TRANSITIONS if row.condition(case))
    return row.state, row.reason


TRANSITIONS = (
    Transition(Case.usual, "clear", "no_evidence"),
    Transition(Case.within_budget, "watch", "unusual"),
    Transition(Case.too_few_to_throttle, "watch", "too_few_to_throttle"),
    Transition(Case.uncalibrated, "throttle", "uncalibrated"),
    Transition(Case.too_common_to_block, "throttle", "suspicious"),
    Transition(Case.too_few_to_block, "throttle", "too_few_to_block"),
    Transition(Case.rare_by_misfits_only, "throttle", "misfit_only"),
    Transition(Case.unsupported, "throttle", "budget_unsupported"),
    Transition(Case.everything_else, "block", "extraction"),
)
"""The first row that holds decides."""


def decide(
    previous: Decision, assessment: Assessment, calibration: Calibration, policy: Policy, now_s: int
) -> Decision:
    """Return the next decision of a client.

    Parameters
    ----------
    previous : Decision
        `Decision()` for a client without one.
    assessment : Assessment
    calibration : Calibration
        Of the baseline that the client was assessed on; it says whether a block is supported at this budget.
    policy : Policy
        Lifetime false-alarm budget and mode.
    now_s : int
        Time in seconds since the epoch: the function reads no clock.

    Returns
    -------
    Decision
        A throttle or block is not lowered before its `until_s`; the episode counts up when the client is clear again.

    Examples
    --------
    A block is held until its end:

    >>> import numpy as np
    >>> calm = Assessment(
    ...     queries=9,
    ...     distinct=9.0,
    ...     misfit=0.0,
    ...     p_value=1.0,
    ...     suspicion=0.0,
    ...     calibrated=True,
    ...     in_order=True,
    ...     family="unknown",
    ...     evidence=(),
    ...     content_p_value=1.0,
    ...     fused=0.0,
    ...     odd=0.0,
    ... )
    >>> honest = Calibration(
    ...     np.zeros((5000, 1), np.float32), np.ones(1), np.zeros(9), np.zeros(9), 10.0, 1.0, calibrated=True
    ... )
    >>> blocked = Decision("block", "extraction", since_s=100, until_s=200)
    >>> [decide(blocked, calm, honest, Policy(0.01), now_s).state for now_s in (150, 250)]
    ['block', 'clear']
    """
    state, reason = wanted(assessment, calibration, policy)
    rank, before = severity(state), severity(previous.state)
    if rank < before and now_s < previous.until_s:
        return Decision(
            previous.state,
            "holds",
            previous.since_s,
            previous.until_s,
            previous.episode,
            enforce(previous.state, policy.mode),
        )
    episode = previous.episode + (1 if state == "clear" and before > 0 else 0)
    since = previous.since_s if rank == before and previous.since_s else now_s
    until = now_s + TTL_S[state] if TTL_S[state] else 0
    return Decision(state, reason, since, until, episode, enforce(state, policy.mode))


def decide_group(
    previous: Decision, assessment: Assessment, calibration: Calibration, policy: Policy, now_s: int
) -> Decision:
    """The next decision of a campaign: at most throttle, and nothing is enforced; its members' keys are an operator's decision."""
    decision = decide(previous, assessment, calibration, replace(policy, mode="observe"), now_s)
    if decision.state not in FLAGGED or decision.reason == "holds":
        return decision
    since = previous.since_s if previous.state == "throttle" and previous.since_s else now_s
    return replace(decision, state="throttle", reason="campaign", since_s=since)


def lapsed(previous: Decision, decision: Decision, now_s: int) -> Decision:
    """The decision about a client that asked nothing since the last one: a throttle or block is not renewed, it falls to watch.

    The running maxima of a profile never fall, so it would be renewed for ever. The episode goes on: one more query that is
    as suspicious, and the state is back.
    """
    over = 0 < previous.until_s <= now_s
    if over and previous.state in FLAGGED and decision.state in FLAGGED:
        return Decision("watch", "expired", now_s, 0, previous.episode, "clear")
    return decision


def within_exposure(
    previous: Decision,
    decision: Decision,
    spent: Spent,
    mode: Mode,
    now_s: int,
    silent: bool = False,
    reason: str = EXPOSURE,
) -> Decision:
    """Return the decision of a client under its exposure budget; the state stays as detection says.

    A flagged client keeps its decision, which asks for as much or more. A throttle holds a day, and is renewed by queries.

    Parameters
    ----------
    previous, decision : Decision
        The last one, and what detection asks for now.
    spent : Spent
        See `ExposureBudget.spent`.
    mode : Mode
        The strongest state that is enforced.
    now_s : int
        Seconds since the epoch.
    silent : bool
        The client asked nothing since the previous decision: a throttle is not renewed.
    reason : str
        Which of the two budgets asks for the more.

    Examples
    --------
    >>> within_exposure(Decision(), Decision(), "throttle", "block", 100)
    Decision(state='clear', reason='exposure_budget', since_s=100, until_s=86500, episode=0, enforced='throttle')
    """
    if spent == "none" or decision.state in FLAGGED:
        return decision
    exposed = replace(decision, reason=reason)
    if spent == "alert":
        return exposed
    until_s = previous.until_s if silent else now_s + TTL_S["throttle"]
    if until_s <= now_s:
        return exposed
    since_s = previous.since_s if previous.reason in BUDGETS and previous.since_s else now_s
    return replace(exposed, since_s=since_s, until_s=until_s, enforced=enforce("throttle", mode))


def severity(state: State) -> int:
    """Return the rank of a state, 0 for clear: the order of states everywhere.

    >>> severity("block") > severity("throttle") > severity("watch") > severity("clear")
    True
    """
    return STATES.index(state)


def milder(one: State, other: State) -> State:
    """Return the milder of two states."""
    return min(one, other, key=severity)


def news(previous: Decision, decision: Decision, told: bool, joined: bool = False) -> News:
    """Return what there is to tell once a decision follows another.

    told    whether the previous decision's finding was told and is not over
    joined  whether a campaign has new members
    """
    if decision.state in FLAGGED:
        first = not told or previous.episode != decision.episode
        risen = severity(decision.state) > severity(previous.state)
        return "raised" if first or risen or joined else "none"
    return "closed" if decision.state == "clear" and told else "none"


def enforce(state: State, mode: Mode) -> State:
    """What a gateway does: never more than the mode allows; observe and alert enforce nothing."""
    strongest: dict[Mode, State] = {"observe": "clear", "alert": "clear", "throttle": "throttle", "block": "block"}
    return milder(state, strongest[mode])
