"""Assessment: computes suspicion and its reasons from one profile.

Rules:

* Suspicion is 1 − p, where p is the lifetime p-value of the fused signals: the share of honest clients that ever reach this score.
* The fused score is read off a fixed ladder (`fold_arrays.LADDER_GROWTH`), so that the moment at which a level was reached is exact
  however the stream was cut into polls.
* A client seen in several log cells has no order: it is assessed by the order-free signals, against their own null distribution.
* Too little evidence is no error: suspicion is then low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.baseline import Baseline
from detector.fold_arrays import LADDER_FIRST, LADDER_GROWTH, LADDER_STEPS
from detector.profile import Profile
from detector.signals import FREE, FUSED, MISFIT, SIGNALS, TEXT_SIGNALS, Statistics, fuse, measure, measure_of

SHOWN = 0.5
"""A client's family is named up to this lifetime p-value."""

TRAJECTORY_SHOWN = 64
"""Levels of a trajectory that are shown, the last ones."""

PAIRS = ("stepped", "flipped", "collinear")
"""Measures of one query against an earlier one."""
TEXT_SPECIFIC = (*PAIRS, "step", "part", "lattice", "novelty", "residual", "margin")
"""Of texts: elicitation, domain, unknown words, then distances."""
SPECIFIC = (*PAIRS, "novelty", "part", "residual", "margin", "mix", "step", "jitter", "lattice")
"""Measures, the most specific claim first. A later one is often only a consequence of an earlier one: noise, far from everything, also
looks like blends of real inputs to the trees that learned to tell blends."""
PAIRS_BAND, COVERED = 1 / 3, 0.5
"""How near to the strongest signal a more specific one must come to be named first: `leading`."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One signal of one client: its mass, how rarely an honest client reaches it, and a sentence."""

    signal: str
    statistic: float
    p_value: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssessmentSummary:
    """What of an assessment is stored and shown.

    distinct   distinct queries; misfit: those that did not fit the schema
    p_value    of the client's whole life; suspicion is 1 − p_value
    calibrated whether the baseline was calibrated on real clients
    in_order   whether the order of the client's queries is known: it was seen in one log cell
    evidence   the signals, the most telling first
    size_p_value  among honest clients of its size by now; oddest: the signal in which it is oddest for its size, "" for none
    """

    queries: int
    distinct: float
    misfit: float
    p_value: float
    suspicion: float
    calibrated: bool
    in_order: bool
    family: str
    evidence: tuple[Evidence, ...]
    size_p_value: float = 1.0
    oddest: str = ""

    @property
    def strongest(self) -> str:
        """The signal that is named first, "" where there is none."""
        return self.evidence[0].signal if self.evidence else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment(AssessmentSummary):
    """What a profile says about its client: the summary, and what only the policy asks for.

    content_p_value  the p-value without the signals of misfits, which never block alone
    fused      the fused score
    odd        largest number of odd distinct queries behind a shown signal
    held       the signals of misfits were left out of `p_value`: a schema alarm waits for an operator
    """

    content_p_value: float
    fused: float
    odd: float
    held: bool = False


def ladder(fused: float) -> int:
    """Return the number of ladder steps at or below a fused score.

    >>> ladder(0.0)
    0
    """
    if fused < LADDER_FIRST:
        return 0
    return min(LADDER_STEPS, 1 + int(np.floor(np.log(fused / LADDER_FIRST) / np.log(LADDER_GROWTH))))


def rung(steps: int) -> float:
    """Return the fused score of a ladder step, from 1 on.

    >>> ladder(rung(9) * 1.001)
    9
    """
    return LADDER_FIRST * LADDER_GROWTH ** (steps - 1)


def p_of(fused: float, baseline: Baseline, in_order: bool = True, persona: str = "") -> float:
    """Return the lifetime p-value of a fused score, in [0, 1], read off the ladder.

    Parameters
    ----------
    fused : float
        Largest signal in units of its honest scale, at least 0.
    in_order : bool
        Whether the client was seen in log order; otherwise the null distribution of the order-free score is used.
    persona : str
        The use that the client's owner declared; "" or an unknown one: the null distribution of all other clients.
    """
    steps = ladder(fused)
    tail = baseline.tail(in_order, persona)
    return tail.p(rung(steps) if steps else fused)


def assess(
    profile: Profile, baseline: Baseline, shards: int = 1, persona: str = "", misfits_held: bool = False
) -> Assessment:
    """Assess a client, or a group, from its merged profile.

    Parameters
    ----------
    profile : Profile
        Folded under the feature map of `baseline`.
    shards : int
        Number of log cells in which the client was seen. From two on its order is unknown, and the order-free signals assess it.
    persona : str
        The use that its owner declared, if any.
    misfits_held : bool
        Leave out the signals of misfits: many clients share one, and an operator has not yet decided what it means.

    Returns
    -------
    Assessment
        `p_value` in [0, 1] of the client's whole life, `suspicion` = 1 − p_value, and the evidence, the most telling signal first.

    Notes
    -----
    Too little evidence is no error: an empty profile has a p-value of 1. The p-value is a conformal rank with a Pareto tail (`Tail.p`,
    docs/theory.md), so it holds for clients that are exchangeable with those of the calibration and for no others. In-domain theft
    is invisible to it: its queries are those of an honest client.
    """
    in_order = shards <= 1
    statistics = measure(profile, baseline.table)
    use = FUSED if in_order else FREE
    values = statistics.lifetime if in_order else statistics.value
    scale = baseline.calibration.scale
    content = float(fuse(values, scale, use & ~MISFIT)) if profile.queries else 0.0
    content_p_value = p_of(content, baseline, in_order, persona)
    if misfits_held:
        use, fused, p_value = use & ~MISFIT, content, content_p_value
    else:
        fused = float(fuse(values, scale, use)) if profile.queries else 0.0
        p_value = p_of(fused, baseline, in_order, persona)
    evidence = []
    named = TEXT_SIGNALS if baseline.map.schema.of_texts else SIGNALS
    listed = [i for i in range(len(SIGNALS)) if (in_order or FREE[i]) and statistics.value[i] > 0]
    listed.sort(key=lambda i: (-statistics.value[i] / scale[i], SIGNALS[i].name))
    strongest = [i for i in listed if use[i]]
    lead = leading(strongest, statistics, scale, TEXT_SPECIFIC if baseline.map.schema.of_texts else SPECIFIC)
    listed.sort(key=lambda i: i != lead)
    for i in listed:
        p = baseline.tails[i].p(float(statistics.value[i]))
        base, count = max(1, round(float(statistics.base[i]))), round(float(statistics.count[i]))
        most = int(np.ceil(float(baseline.calibration.lifetime_maxima[:, i].max(initial=0.0))))
        text = named[i].text.format(count=f"{count:,}", base=f"{base:,}")
        text += f"; the excess of {statistics.value[i]:,.0f} compares with {most:,} for the oddest honest client"
        if misfits_held and MISFIT[i]:
            text += "; held back, because many clients began to send the same and an operator has not ruled yet"
        evidence.append(Evidence(named[i].name, float(statistics.value[i]), p, text))
    size_p_value, oddest = baseline.size_null.p_value(statistics, in_order)
    return Assessment(
        queries=profile.queries,
        distinct=profile.distinct,
        misfit=profile.misfit,
        p_value=p_value,
        content_p_value=content_p_value,
        suspicion=1.0 - p_value,
        calibrated=baseline.calibration.calibrated,
        in_order=in_order,
        fused=fused,
        odd=float(statistics.count[strongest[0]]) if strongest else 0.0,
        family=named[lead].family if lead is not None and p_value <= SHOWN else "unknown",
        evidence=tuple(evidence),
        size_p_value=size_p_value,
        oddest=oddest,
        held=misfits_held,
    )


def leading(
    strongest: Sequence[int],
    statistics: Statistics,
    scale: NDArray[np.float64],
    specific: Sequence[str] = SPECIFIC,
) -> int | None:
    """The signal that says most tellingly what the client does; None where there is none.

    strongest  fused signals of the client, the largest in honest units first

    The largest leads, unless a more specific claim beyond honest clients (one unit; `specific`, the most
    specific first) explains the same queries: a measure of
    single queries must count at least `COVERED` of the share that the largest counts. Pairs cover little, since only a short memory is
    searched for the earlier query, and honest clients hardly ever make them: they must be at least `PAIRS_BAND` as large.
    """
    if not strongest:
        return None
    units, share = statistics.value / scale, statistics.count / np.maximum(statistics.base, 1.0)
    first = strongest[0]

    def explains(i: int) -> bool:
        near = units[i] >= PAIRS_BAND * units[first] if _measure(i) in PAIRS else share[i] >= COVERED * share[first]
        return i == first or bool(units[i] >= 1.0 and near)

    def place(i: int) -> int:
        measure = _measure(i)
        return (
            specific.index(measure) if measure in specific[len(PAIRS) :] else 0 if measure in PAIRS else len(specific)
        )

    return min((i for i in strongest if explains(i)), key=place)


def _measure(signal: int) -> str:
    return measure_of(SIGNALS[signal].name)


def reached(profile: Profile, baseline: Baseline, budget: float, persona: str = "") -> tuple[int, int] | None:
    """Return when an in-order client's p-value first fell to `budget`: (event time in ms, queries seen).

    None where it has not, or where the first passages do not show it. The answer is exact: levels are steps of a fixed ladder.
    """
    tail = baseline.tail(True, persona)
    for steps in range(1, len(profile.passage_ms) + 1):
        if tail.p(rung(steps)) <= budget:
            return int(profile.passage_ms[steps - 1]), int(profile.passage_query[steps - 1])
    return None


def trajectory(
    profile: Profile, baseline: Baseline, assessment: AssessmentSummary, persona: str = ""
) -> list[tuple[int, float, int]]:
    """Return when suspicion first reached each level: (queries seen, suspicion, event time in ms), oldest first.

    The last point is the present one, and the only one where the order of the client's queries is not known.
    """
    now = (profile.queries, assessment.suspicion, profile.last_ms)
    if not assessment.in_order:
        return [now]
    tail = baseline.tail(True, persona)
    points = [
        (int(query), 1 - tail.p(rung(i + 1)), int(ms))
        for i, (ms, query) in enumerate(zip(profile.passage_ms.tolist(), profile.passage_query.tolist(), strict=True))
    ]
    return [*points[-TRAJECTORY_SHOWN:], now]
