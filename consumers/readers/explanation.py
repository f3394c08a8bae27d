"""Explain the state of a client in words and numbers: for the dashboard, for `explain` and for evidence bundles.

Rules:
* Only stored values and the baseline are used. Nothing is assessed again.
* A number never stands alone: rarity is given as one honest client in a number, a signal beside the range of honest clients.
* A missing baseline is not an error: what needs it is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from consumers.legible import legible
from consumers.readers.models import Alert, Client, ClientDetail
from consumers.times import milliseconds, minute
from detector.baseline import Baseline
from detector.policy import BLOCK_FACTOR, MIN_ODD_TO_BLOCK, REASONS, STATES, WATCH_FACTOR, Mode, State, severity
from detector.signals import SIGNAL_PLACES

LEAST_P = 1e-9
MODE_WORDS: dict[Mode, str] = {
    "observe": "alerts go out, gateways are told nothing",
    "alert": "alerts go out, gateways are told of suspects and enforce nothing",
    "throttle": "gateways throttle at most",
    "block": "gateways throttle and block",
}
"""Enforcement modes, in words."""


@dataclass(frozen=True, slots=True)
class SignalStanding:
    """One signal of a client among honest ones.

    statistic, p_value, text  as stored; value: the statistic in units of its honest scale
    usual, high, most         median, 99th percentile, maximum of honest clients' lifetime maxima, in the same units
    """

    signal: str
    statistic: float
    p_value: float
    text: str
    value: float
    usual: float
    high: float
    most: float


@dataclass(frozen=True, slots=True)
class Event:
    """One moment of a client's history. look: the state reached, or ``hand`` for what people did."""

    at_ms: int
    look: str
    text: str


def rarity(p_value: float) -> str:
    """How rare a p-value is among honest clients.

    >>> rarity(0.0004), rarity(0.5), rarity(1.0)
    ('1 in 2,500', '1 in 2', 'usual')
    """
    if not p_value < 0.9:
        return "usual"
    if p_value < LEAST_P:
        return "rarer than 1 in a billion"
    odds = 1 / p_value
    coarse = 10 ** max(0, int(math.log10(odds)) - 1)
    return f"1 in {round(odds / coarse) * coarse:,}"


def standings(one: ClientDetail, baseline: Baseline | None) -> list[SignalStanding]:
    """The client's signals against honest clients, strongest first; empty without a baseline."""
    found = []
    for e in one.client.evidence if baseline is not None else ():
        if baseline is None or e.signal not in SIGNAL_PLACES:
            continue  # stored by a version with another table of signals
        i = SIGNAL_PLACES[e.signal]
        scale = float(baseline.calibration.scale[i])
        maxima = sorted(float(v) / scale for v in baseline.calibration.lifetime_maxima[:, i]) or [0.0]
        high = maxima[min(len(maxima) - 1, math.ceil(0.99 * len(maxima)))]
        usual, most = maxima[len(maxima) // 2], maxima[-1]
        found.append(SignalStanding(e.signal, e.statistic, e.p_value, e.text, e.statistic / scale, usual, high, most))
    return sorted(found, key=lambda s: -s.value)


def why(client: Client) -> str:
    """Why a client is in its state: its strongest evidence, or the reason in words where it is clear or nothing speaks against it."""
    if client.state != "clear" and client.evidence and client.evidence[0].text:
        return client.evidence[0].text
    return REASONS.get(client.reason, client.reason)


def sentence(one: ClientDetail) -> str:
    """The whole in two or three sentences."""
    c = one.client
    said = f"{c.state.capitalize()}: {_reason(c.reason)}."
    rare = rarity(c.p_value)
    if rare != "usual":
        said += f" Rarity among honest clients: {rare}."
    if c.evidence and c.state != "clear":
        said += f" The strongest signal: {c.evidence[0].text}."
        if c.family not in ("unknown", ""):
            said += f" This resembles {c.family}."
    if not c.calibrated:
        said += " The baseline is uncalibrated, so these rates are rough."
    return said


def _reason(code: str) -> str:
    """A reason in words. What it once said of gateways is left out: `gateways.at_gateways` alone says what they do now."""
    return (
        REASONS.get(code, code).partition(", but ")[0]
        if code in ("allow_listed", "breaker")
        else REASONS.get(code, code)
    )


def what_would_change(one: ClientDetail, budget: float, baseline: Baseline | None) -> list[str]:
    """What would move the client up or down, and what would change what gateways do."""
    c = one.client
    limits: dict[State, float] = {"watch": budget * WATCH_FACTOR, "throttle": budget, "block": budget * BLOCK_FACTOR}
    above = STATES[severity(c.state) + 1 :]
    lines = []
    if c.reason == "uncalibrated":
        lines.append(
            "Detection blocks no client until the baseline is calibrated on 20 real clients or more (fit --traffic, recalibrate)."
        )
    elif c.reason == "too_few_to_block":
        lines.append(f"It would be blocked after {MIN_ODD_TO_BLOCK} odd distinct queries.")
    elif c.reason == "budget_unsupported":
        have = f"; it has {baseline.calibration.clients:,}" if baseline is not None else ""
        lines.append(
            f"To block at this budget, the calibration needs {math.ceil(1 / limits['block']):,} honest clients{have}."
        )
    elif above:
        lines.append(
            f"It rises to {above[0]} when its p-value is {limits[above[0]]:.3g} or less; it is {c.p_value:.2g} now."
        )
    else:
        lines.append("There is no higher state.")
    if c.state in ("throttle", "block") and c.until_s and one.gateways.cause != "ended":
        until = minute(c.until_s * 1000)
        lines.append(
            f"The state ends on {until}. It is renewed when the client sends queries while the evidence still holds."
        )
    if c.state != "clear":
        lines.append("With the default settings, evidence counts in full for 15 to 30 days and then fades over a year.")
        lines.append(
            "An operator can release the client or put it on the allowlist. The verdict “false positive” puts it there for 30 days."
        )
    return [*lines, *_at_gateways(one)]


def _at_gateways(one: ClientDetail) -> list[str]:
    """What would change what gateways do, where that is not the state."""
    return {
        "allow_list": ["Gateways follow the state again when the allowlist entry ends or is removed."],
        "operator": ["Gateways follow the state again when the operator's decision ends or is withdrawn."],
        "mode": ["Gateways restrict the client when the mode of the model is throttle or block."],
        "breaker": ["Gateways restrict the client when an operator has reset the breaker."],
    }.get(one.gateways.cause, [])


def events(one: ClientDetail, alerts: Iterable[Alert] = ()) -> list[Event]:
    """What happened, oldest first: first signs, changes of state, alerts, and what people decided, judged and noted."""
    found = []
    if one.trail and one.client.evidence:
        first = one.trail[0]
        found.append(Event(first.time_ms, "clear", f"first evidence, at query {first.queries:,}"))
    for h in one.history:
        said = f"{h.state}: {_reason(h.reason)} ({rarity(1 - h.suspicion)})"
        found.append(Event(h.time_s * 1000, h.state, said))
    if not one.history and one.client.since_s:
        c = one.client
        found.append(Event(c.since_s * 1000, c.state, f"{c.state}: {_reason(c.reason)}"))
    for a in alerts:
        what = "finding closed" if a.resolved else "alert" if not a.update else f"alert, update {a.update}"
        found.append(Event(milliseconds(a.time), a.state, f"{what}: {a.state} at query {a.queries_seen:,}"))
    if d := one.decision:
        dry = " (dry run)" if d.simulated else ""
        found.append(Event(d.at_s * 1000, "hand", f"{d.actor} decided: {d.state}{dry}{_because(d.reason)}"))
    if w := one.allowed:
        found.append(Event(w.at_s * 1000, "hand", f"{w.actor} allowlisted it{_because(w.reason)}"))
    if v := one.verdict:
        found.append(Event(v.at_s * 1000, "hand", f"{v.actor} judged: {v.verdict.replace('_', ' ')}"))
    found += [Event(n.at_s * 1000, "hand", f"{n.actor} noted: {n.text}") for n in one.notes]
    return sorted(found, key=lambda e: e.at_ms)


def _because(reason: str) -> str:
    return f" – {reason}" if reason else ""


def refusals(one: ClientDetail) -> list[str]:
    """What about the client's queries did not fit, a line a reason and a column, most first."""
    return [
        *(f"{reason}: {n:,} quer{'y' if n == 1 else 'ies'}" for reason, n in _most(one.refused)),
        *(
            f"column {legible(column)}: {', '.join(f'{reason} {n:,}' for reason, n in _most(counts))}"
            for column, counts in sorted(one.misfits.items(), key=lambda c: (-sum(c[1].values()), c[0]))
        ),
    ]


def reported(one: ClientDetail) -> list[str]:
    """The indicators of peers that the client matches, a line each."""
    return [
        f"{r.source} reported a client with the same {', '.join(r.kinds)} ({REASONS.get(r.reason, legible(r.reason))}; confidence "
        f"{r.confidence} of 100, until {minute(r.valid_until_s * 1000)})"
        for r in one.indicators
    ]


def _most(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda c: (-c[1], c[0]))


def account(
    one: ClientDetail, budget: float, baseline: Baseline | None, alerts: Iterable[Alert] = ()
) -> dict[str, Any]:
    """Everything above as one JSON object."""
    c = one.client
    return {
        "client_id": c.client_id,
        "client_key": c.client_key,
        "model_id": c.model_id,
        "state": c.state,
        "reason": c.reason,
        "in_force": one.in_force,
        "gateways": one.gateways.text,
        "queries": c.queries,
        "distinct": c.distinct,
        "suspicion": c.suspicion,
        "p_value": c.p_value,
        "rarity": rarity(c.p_value),
        "calibrated": c.calibrated,
        "family": c.family,
        "extraction": None if c.extraction is None else asdict(c.extraction),
        "campaign_id": c.campaign_id,
        "misfit": one.misfit,
        "refused": one.refused,
        "misfits": one.misfits,
        "summary": sentence(one),
        "evidence": [asdict(e) for e in c.evidence],
        "signals": [asdict(s) for s in standings(one, baseline)],
        "timeline": [{"time": minute(e.at_ms), "what": e.text} for e in events(one, alerts)],
        "what_did_not_fit": refusals(one),
        "observations": [asdict(o) for o in one.observations],
        "reported_by_peers": reported(one),
        "what_would_change_it": what_would_change(one, budget, baseline),
        "until": minute(c.until_s * 1000) if c.until_s else None,
    }
