"""Assessment: computes suspicion and its reasons from one profile.

Rules:

* Suspicion is 1 − p, where p is the lifetime p-value of the fused signals: the share of honest clients that ever reach this score.
* The fused score is read off a fixed ladder (`ladder.py`), so that the moment at which a level was reached is exact
  however the stream was cut into polls.
* A client seen in several log cells has no order: it is assessed by the order-free signals, against their own null distribution.
* Too little evidence is no error: suspicion is then low.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detector.baseline import Baseline
from detector.ladder import ladder, ladders
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.signals import (
    FREE,
    FUSED,
    MISFIT,
    SIGNAL_NAMES,
    SIGNALS,
    TEXT_SIGNALS,
    StatisticsColumns,
    fuse,
    measure_columns,
    measure_of,
)

SHOWN = 0.5
"""A client's family is named up to this lifetime p-value."""

TRAJECTORY_SHOWN = 64
"""Levels of a trajectory that are shown, the last ones."""

PAIRS = ("stepped", "flipped", "collinear")
"""Measures of one query against an earlier one."""
TEXT_SPECIFIC = (*PAIRS, "step", "part", "mix", "lattice", "novelty", "residual", "margin")
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
    return _read_off(fused, ladder(fused), baseline, in_order, persona)


def _read_off(fused: float, steps: int, baseline: Baseline, in_order: bool, persona: str) -> float:
    return baseline.levels(in_order, persona)[steps - 1] if steps else baseline.tail(in_order, persona).p(fused)


def assess(
    profile: Profile, baseline: Baseline, shards: int = 1, persona: str = "", misfits_held: bool = False
) -> Assessment:
    """Assess a client, or a group, from its merged profile: `assess_columns` of it."""
    columns = ProfileColumns.of([profile], baseline.table)
    return assess_columns(columns, baseline, [shards], [persona], [misfits_held])[0]


def assess_columns(
    profiles: ProfileColumns,
    baseline: Baseline,
    shards: Sequence[int],
    personas: Sequence[str],
    misfits_held: Sequence[bool],
) -> list[Assessment]:
    """Assess n clients, or groups, from their merged profiles.

    Parameters
    ----------
    profiles : ProfileColumns
        Folded under the feature map of `baseline`.
    shards : (n,) int
        Number of log cells in which each was seen. From two on its order is unknown, and the order-free signals assess it.
    personas : (n,) str
        The use that the owner of each declared, "" for none.
    misfits_held : (n,) bool
        Leave out the signals of misfits: many clients share one, and an operator has not yet decided what it means.

    Returns
    -------
    (n,) list of Assessment
        `p_value` in [0, 1] of a client's whole life, `suspicion` = 1 − p_value, and the evidence, the most telling signal first.

    Notes
    -----
    Too little evidence is no error: an empty profile has a p-value of 1. The p-value is a conformal rank with a Pareto tail (`Tail.p`,
    docs/theory.md), so it holds for clients that are exchangeable with those of the calibration and for no others. In-domain theft
    is invisible to it: its queries are those of an honest client.
    """
    in_order, held = np.array(shards) <= 1, np.array(misfits_held, np.bool_)
    statistics = measure_columns(profiles, baseline.table)
    scale, ordered = baseline.calibration.scale, in_order[:, None]
    use = np.where(ordered, FUSED, FREE)
    values = np.where(ordered, statistics.lifetime, statistics.value)
    content = np.where(profiles.queries > 0, fuse(values, scale, use & ~MISFIT), 0.0)
    fused = np.where(held | (profiles.queries == 0), content, fuse(values, scale, use))
    use &= ~(held[:, None] & MISFIT)
    listed = (statistics.value > 0) & (ordered | FREE)
    size_p_values = baseline.size_null.p_values(statistics.excess, statistics.distinct, in_order)
    scores = zip(fused.tolist(), ladders(fused).tolist(), content.tolist(), ladders(content).tolist(), strict=True)
    numbers = zip(profiles.queries.tolist(), profiles.distinct.tolist(), profiles.misfit.tolist(), strict=True)
    share = statistics.count / np.maximum(statistics.base, 1.0)
    told = _Told(baseline, statistics, statistics.value / scale, use, share)
    shown: list[list[int]] = [[] for _ in range(len(profiles))]
    for row, signal in zip(*(at.tolist() for at in np.nonzero(listed)), strict=True):
        shown[row].append(signal)
    found = []
    for i, ((queries, distinct, misfit), (score, steps, content_score, content_steps)) in enumerate(
        zip(numbers, scores, strict=True)
    ):
        order, persona = shards[i] <= 1, personas[i]
        p_value = _read_off(score, steps, baseline, order, persona)
        same = content_score == score
        evidence, odd, family = told.of(i, shown[i], misfits_held[i])
        size_p_value, oddest = size_p_values[i]
        found.append(
            Assessment(
                queries=queries,
                distinct=distinct,
                misfit=misfit,
                p_value=p_value,
                content_p_value=p_value if same else _read_off(content_score, content_steps, baseline, order, persona),
                suspicion=1.0 - p_value,
                calibrated=baseline.calibration.calibrated,
                in_order=order,
                fused=score,
                odd=odd,
                family=family if p_value <= SHOWN else "unknown",
                evidence=evidence,
                size_p_value=size_p_value,
                oddest=oddest,
                held=misfits_held[i],
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told of the signals of n clients, (n, s) each.

    units  in honest units; use: signals that are fused; share: odd queries among those that a signal counts among
    """

    baseline: Baseline
    statistics: StatisticsColumns
    units: NDArray[np.float64]
    use: NDArray[np.bool_]
    share: NDArray[np.float64]

    def of(self, row: int, listed: list[int], misfits_held: bool) -> tuple[tuple[Evidence, ...], float, str]:
        """The evidence of a client, the odd queries behind its strongest signal, the family of its leading one. listed: what it shows."""
        if not listed:
            return (), 0.0, "unknown"
        of_texts = self.baseline.map.schema.of_texts
        named = TEXT_SIGNALS if of_texts else SIGNALS
        columns = (self.statistics.value, self.statistics.count, self.statistics.base, self.units, self.share)
        value, count, base, units, share = (column[row].tolist() for column in columns)
        listed = sorted(listed, key=lambda i: (-units[i], SIGNAL_NAMES[i]))
        use = self.use[row]
        strongest = [i for i in listed if use[i]]
        lead = leading(strongest, units, share, TEXT_SPECIFIC if of_texts else SPECIFIC)
        listed.sort(key=lambda i: i != lead)
        evidence = []
        for i in listed:
            text = named[i].text.format(count=f"{round(count[i]):,}", base=f"{max(1, round(base[i])):,}")
            honest = self.baseline.oddest_honest[i]
            text += f"; the excess of {value[i]:,.0f} compares with {honest:,} for the oddest honest client"
            if misfits_held and MISFIT[i]:
                text += "; held back, because many clients began to send the same and an operator has not ruled yet"
            evidence.append(Evidence(named[i].name, value[i], self.baseline.tails[i].p(value[i]), text))
        odd = count[strongest[0]] if strongest else 0.0
        return tuple(evidence), odd, "unknown" if lead is None else named[lead].family


def leading(
    strongest: Sequence[int], units: Sequence[float], share: Sequence[float], specific: tuple[str, ...] = SPECIFIC
) -> int | None:
    """The signal that says most tellingly what the client does; None where there is none.

    strongest  fused signals of the client, the largest in honest units first
    units      (s,) each signal in honest units; share (s,): odd queries among those that it counts among

    The largest leads, unless a more specific claim beyond honest clients (one unit; `specific`, the most
    specific first) explains the same queries: a measure of
    single queries must count at least `COVERED` of the share that the largest counts. Pairs cover little, since only a short memory is
    searched for the earlier query, and honest clients hardly ever make them: they must be at least `PAIRS_BAND` as large.
    """
    if not strongest:
        return None
    first, places = strongest[0], _places(specific)

    def explains(i: int) -> bool:
        near = units[i] >= PAIRS_BAND * units[first] if _OF_PAIRS[i] else share[i] >= COVERED * share[first]
        return i == first or (units[i] >= 1.0 and near)

    return min((i for i in strongest if explains(i)), key=places.__getitem__)


_OF_PAIRS = tuple(measure_of(name) in PAIRS for name in SIGNAL_NAMES)
"""(s,) whether a signal compares a query with an earlier one."""


@cache
def _places(specific: tuple[str, ...]) -> tuple[int, ...]:
    """(s,) the place of each signal's measure among those that are named first: pairs before all, what is not listed last."""
    listed = {name: 0 if name in PAIRS else at for at, name in enumerate(specific)}
    return tuple(listed.get(measure_of(name), len(specific)) for name in SIGNAL_NAMES)


class Passages(Protocol):
    """A client's life as far as its first passages are told: a `Profile`, or a row of `ProfileColumns`."""

    @property
    def queries(self) -> int: ...

    @property
    def last_ms(self) -> int: ...

    @property
    def passage_ms(self) -> NDArray[np.int64]: ...

    @property
    def passage_query(self) -> NDArray[np.int64]: ...


def reached(life: Passages, baseline: Baseline, budget: float, persona: str = "") -> tuple[int, int] | None:
    """Return when an in-order client's p-value first fell to `budget`: (event time in ms, queries seen).

    None where it has not, or where the first passages do not show it. The answer is exact: levels are steps of a fixed ladder.
    """
    for step, p_value in enumerate(baseline.levels(True, persona)[: len(life.passage_ms)]):
        if p_value <= budget:
            return int(life.passage_ms[step]), int(life.passage_query[step])
    return None


def trajectory(
    life: Passages, baseline: Baseline, assessment: AssessmentSummary, persona: str = ""
) -> list[tuple[int, float, int]]:
    """Return when suspicion first reached each level: (queries seen, suspicion, event time in ms), oldest first.

    The last point is the present one, and the only one where the order of the client's queries is not known.
    """
    now = (life.queries, assessment.suspicion, life.last_ms)
    if not assessment.in_order:
        return [now]
    levels = baseline.levels(True, persona)[: len(life.passage_ms)]
    points = [
        (query, 1 - p_value, ms)
        for query, p_value, ms in zip(life.passage_query.tolist(), levels, life.passage_ms.tolist(), strict=True)
    ]
    return [*points[-TRAJECTORY_SHOWN:], now]
