"""What gateways do with a client, and why: computed here, and put into one sentence that CLI, API and dashboard share.

Rules:
* The outcome is that of `enforcement.restrictions`, which answers the gateways: the allowlist, then an operator's decision about the
  client, then one about its campaign together with the detected one, as far as the mode of the model and the breaker allow. A test
  compares the two over all combinations.
* The state, the reason and the enforcement that detect asked for say how suspicious a client is. Only this sentence says what happens to
  it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from consumers.readers.models import Allowed, AtGateways, CampaignDecision, Cause, Client, OperatorDecision
from consumers.records.breaker_entries import held_back
from consumers.records.operator_entries import EVERY_MODEL, Ruling
from consumers.store import ENFORCED, Enforced
from consumers.times import minute
from detector.policy import FLAGGED, Mode, State, milder

_CAPS: Mapping[Mode, State] = {"observe": "clear", "alert": "watch", "throttle": "throttle", "block": "block"}
_VERBS: Mapping[Enforced, str] = {
    "clear": "let it through",
    "watch": "let it through",
    "degrade": "let it through to answers with less detail",
    "throttle": "throttle it",
    "block": "block it",
}


_DONE: Mapping[Ruling, str] = {
    "clear": "released",
    "degrade": "degraded",
    "throttle": "throttled",
    "block": "blocked",
}


class Assessed(Protocol):
    """What detect stored of a client. enforced: what it wanted gateways to do; until_s: 0 for no end."""

    @property
    def state(self) -> State: ...
    @property
    def enforced(self) -> State: ...
    @property
    def reason(self) -> str: ...
    @property
    def since_s(self) -> int: ...
    @property
    def until_s(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Modes:
    """Enforcement modes: of all models, and another one of some."""

    mode: Mode = "observe"
    models: Mapping[str, Mode] = field(default_factory=dict)

    def of(self, model: str) -> Mode:
        """The mode of a model."""
        return self.models.get(model, self.mode)


class OfCampaign(NamedTuple):
    """A decision about a campaign of a client. joined_s: when detection added the client to it, None for one that an operator named."""

    decision: CampaignDecision
    joined_s: int | None = None


ByOperator = TypeVar("ByOperator", OperatorDecision, Allowed)


@dataclass(frozen=True, slots=True)
class ManualDecisions:
    """What people decided, real and simulated, and whom they allowlisted; how things stand at `now_s`.

    held_s     since when the gateways' breaker is open, 0 while it is closed
    campaigns  decisions about campaigns, with dry runs and proposals
    """

    decisions: Sequence[OperatorDecision]
    allowlist: Sequence[Allowed]
    modes: Modes
    held_s: float
    now_s: float
    campaigns: Sequence[CampaignDecision] = ()

    def decision(self, client: Client) -> OperatorDecision | None:
        """The decision that holds for a client: for its model, else for every model."""
        return self._of(client, [d for d in self.decisions if not d.simulated])

    def dry_run(self, client: Client) -> OperatorDecision | None:
        """The simulated decision about a client."""
        return self._of(client, [d for d in self.decisions if d.simulated])

    def allowed(self, client: Client) -> Allowed | None:
        """The allowlist entry that holds for a client."""
        return self._of(client, self.allowlist)

    def at_gateways(self, client: Client) -> AtGateways:
        """What gateways do with a client."""
        mode = self.modes.of(client.model_id)
        decision, allowed = self.decision(client), self.allowed(client)
        return at_gateways(client, decision, allowed, mode, self.held_s, self.now_s, self.of_campaigns(client))

    def of_campaigns(self, client: Client) -> list[OfCampaign]:
        """Decisions in force about campaigns that the client is in."""
        key, found = client.client_key, []
        for d in self.campaigns:
            if not d.simulated and not d.waits and d.model_id == client.model_id and holds(d.until_s, self.now_s):
                joined_s = dict(zip(d.joined, d.joined_s, strict=True)).get(key)
                if key in d.confirmed or joined_s is not None:
                    found.append(OfCampaign(d, joined_s))
        return found

    def _of(self, client: Client, found: Sequence[ByOperator]) -> ByOperator | None:
        mine = {s.model_id: s for s in found if s.client_key == client.client_key and holds(s.until_s, self.now_s)}
        return mine.get(client.model_id) or mine.get(EVERY_MODEL)


def at_gateways(
    detected: Assessed,
    decision: OperatorDecision | None,
    allowed: Allowed | None,
    mode: Mode,
    held_s: float,
    now_s: float,
    campaigns: Sequence[OfCampaign] = (),
) -> AtGateways:
    """What gateways do with a client of a model that has this mode.

    decision, allowed  those for its model, else for every model
    held_s             since when the gateways' breaker is open, 0 while it is closed: what stood before still holds
    campaigns          decisions in force about its campaigns
    """
    if allowed is not None and holds(allowed.until_s, now_s):
        return _said("clear", "allow_list", allowed.until_s, f"{allowed.actor} put it on the allowlist")
    if decision is not None and not decision.simulated and holds(decision.until_s, now_s):
        by = f"operator {decision.actor} {_DONE[decision.state]} it"
        return _said(decision.state, "operator", decision.until_s, by)
    found = _by_detection(detected, mode, held_s, now_s)
    return _by_campaigns(campaigns, found, held_s) if campaigns else found


def _by_campaigns(campaigns: Sequence[OfCampaign], detected: AtGateways, held_s: float) -> AtGateways:
    """The most severe decision about a campaign of the client, unless detection restricts it more."""
    ranked = []
    for decision, joined_s in campaigns:
        held = joined_s is not None and held_back(joined_s, held_s)
        state: Enforced = "watch" if held and decision.state in ("degrade", *FLAGGED) else decision.state
        ranked.append((ENFORCED.index(state), joined_s is None, decision.until_s, state, decision))
    strictness, _, until_s, state, decision = max(ranked, key=lambda r: r[:3])
    if 0 < strictness < ENFORCED.index(detected.state):
        return detected
    if state == "watch":
        return _said(state, "breaker", 0, "the breaker is open, so accounts that join a campaign are not restricted")
    by = f"operator {decision.actor} {_DONE[decision.state]} its campaign {decision.campaign_id}"
    return _said(state, "campaign", until_s, by)


def _by_detection(d: Assessed, mode: Mode, held_s: float, now_s: float) -> AtGateways:
    if d.state not in FLAGGED and d.enforced not in FLAGGED:
        return _said("clear", "nothing", 0, f"no decision restricts it, and state {d.state} is not enforced")
    if not holds(d.until_s, now_s):
        return _said("clear", "ended", 0, f"the detected decision ended on {minute(d.until_s * 1000)}")
    cap = _CAPS[mode]
    held = held_back(d.since_s, held_s)
    state = "watch" if held else milder(d.enforced, cap)
    if state in FLAGGED and d.state not in FLAGGED:
        return _said(state, "exposure", d.until_s, "it has spent its exposure budget")
    if state in FLAGGED:
        why = "detection asks for it" if state == d.state else f"detection asks for {d.state}, {_limit(d, state, mode)}"
        return _said(state, "detection", d.until_s, why)
    state = milder(cap, "watch")
    if held:
        return _said(state, "breaker", 0, "the breaker is open, so new detected decisions are not enforced")
    if cap not in FLAGGED:
        return _said(state, "mode", 0, f"detection asks for {d.state}, but mode {mode} enforces no detected decision")
    return _said(state, "detection", 0, f"detection asks for {d.state}, {_limit(d, state, mode)}")


def _limit(d: Assessed, state: State, mode: Mode) -> str:
    """Why less than the state is enforced, though the mode enforces something."""
    if d.reason == "allow_listed":
        return "but it was on the allowlist when it was last assessed"
    if d.reason == "breaker":
        return "but detect's breaker was open when it was last assessed"
    if state == _CAPS[mode]:
        return f"and mode {mode} allows no more"
    return "but another mode held when it was last assessed"


def holds(until_s: int, now_s: float) -> bool:
    """Whether something that ends at `until_s` (0: never) holds now."""
    return not until_s or until_s > now_s


def _said(state: Enforced, cause: Cause, until_s: int, why: str) -> AtGateways:
    until = f" until {minute(until_s * 1000)}" if until_s else ""
    return AtGateways(state, cause, until_s, f"Gateways {_VERBS[state]}{until}: {why}.")
