"""The slow twin of an assessment: one profile at a time, signal by signal, as profiles were assessed before they lay in columns.

`detector.scoring`, `signals`, `size_null` and `exposure` must say the same of every client, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from detector.baseline import Baseline
from detector.calibration import CHANGE_KINDS, Tail
from detector.exposure import (
    COPY_ERROR,
    EDGE,
    FEWEST,
    KNOTS,
    NEAR_BINS,
    REGRESSORS,
    STAND_IN_ERROR,
    Exposure,
    share_of,
)
from detector.fold_arrays import LADDER_FIRST, LADDER_GROWTH, LADDER_STEPS
from detector.own_change import FLOOR as CHANGE_FLOOR
from detector.own_life import (
    DAY_MS,
    FEWEST_BURST,
    FEWEST_NEW,
    FULL_USE,
    NEAR_PLAN,
    NEW_MS,
    PROBE_QUERIES,
    PROBE_TIME,
    Observation,
    near_plan,
    new_at_full_use,
    probe_then_burst,
    trial_series,
    unlike_its_own_past,
)
from detector.profile import Profile
from detector.scoring import (
    COVERED,
    PAIRS,
    PAIRS_BAND,
    SHOWN,
    SPECIFIC,
    TEXT_SPECIFIC,
    TRAJECTORY_SHOWN,
    Assessment,
    Evidence,
)
from detector.signal_table import Form, SignalTable
from detector.signals import (
    FREE,
    FUSED,
    GROUPED,
    MISFIT,
    SIGNAL_NAMES,
    SIGNALS,
    TEXT_SIGNALS,
    Statistics,
    measure_of,
)
from detector.size_null import BINS_A_NAT, NEAREST, UPPER


def measured(profile: Profile, table: SignalTable) -> Statistics:
    faded, (faded_distinct, faded_roots) = profile.carry(table)
    distinct, roots = profile.distinct + faded_distinct, profile.novel + faded_roots
    base = np.where(table.novel_base, roots, distinct)
    count = np.minimum(profile.odd_counts(table) + faded, base)
    excess = np.maximum(0.0, count - table.allowance * base)
    now = np.where(table.form == Form.EXCESS_TIMES_SHARE, excess * excess / np.maximum(base, 1.0), excess)
    damped = min(1.0, table.horizon_distinct / max(distinct, 1.0))
    now *= damped
    lifetime = profile.maxima if profile.parts == 1 else np.maximum(now, profile.maxima)
    return Statistics(np.where(FREE, now, lifetime), count, base, lifetime, excess * damped, distinct)


def p_of(fused: float, baseline: Baseline, in_order: bool, persona: str) -> float:
    tail = baseline.tail(in_order, persona)
    if fused < LADDER_FIRST:
        return tail.p(fused)
    steps = min(LADDER_STEPS, 1 + int(np.floor(np.log(fused / LADDER_FIRST) / np.log(LADDER_GROWTH))))
    return tail.p(LADDER_FIRST * LADDER_GROWTH ** (steps - 1))


def assessed(
    profile: Profile, baseline: Baseline, shards: int = 1, persona: str = "", misfits_held: bool = False
) -> Assessment:
    in_order = shards <= 1
    statistics = measured(profile, baseline.table)
    use = FUSED if in_order else FREE
    scale = baseline.calibration.scale
    values = (statistics.lifetime if in_order else statistics.value) / scale
    content = float(values[use & ~MISFIT].max()) if profile.queries else 0.0
    use = use & ~MISFIT if misfits_held else use
    fused = float(values[use].max()) if profile.queries else 0.0
    p_value = p_of(fused, baseline, in_order, persona)
    of_texts = baseline.map.schema.of_texts
    named = TEXT_SIGNALS if of_texts else SIGNALS
    listed = [i for i in range(len(SIGNALS)) if (in_order or FREE[i]) and statistics.value[i] > 0]
    listed.sort(key=lambda i: (-statistics.value[i] / scale[i], SIGNALS[i].name))
    strongest = [i for i in listed if use[i]]
    lead = _leading(strongest, statistics, scale, TEXT_SPECIFIC if of_texts else SPECIFIC)
    listed.sort(key=lambda i: i != lead)
    evidence = []
    for i in listed:
        base, count = max(1, round(float(statistics.base[i]))), round(float(statistics.count[i]))
        most = int(np.ceil(float(baseline.calibration.lifetime_maxima[:, i].max(initial=0.0))))
        text = named[i].text.format(count=f"{count:,}", base=f"{base:,}")
        text += f"; the excess of {statistics.value[i]:,.0f} compares with {most:,} for the oddest honest client"
        if misfits_held and MISFIT[i]:
            text += "; held back, because many clients began to send the same and an operator has not ruled yet"
        value = float(statistics.value[i])
        evidence.append(Evidence(named[i].name, value, baseline.tails[i].p(value), text))
    size_p_value, oddest = among_its_size(statistics, baseline, in_order)
    return Assessment(
        queries=profile.queries,
        distinct=profile.distinct,
        misfit=profile.misfit,
        p_value=p_value,
        content_p_value=p_of(content, baseline, in_order, persona),
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


def _leading(
    strongest: Sequence[int], statistics: Statistics, scale: NDArray[np.float64], specific: Sequence[str]
) -> int | None:
    if not strongest:
        return None
    units, share = statistics.value / scale, statistics.count / np.maximum(statistics.base, 1.0)
    first = strongest[0]

    def explains(i: int) -> bool:
        pair = measure_of(SIGNALS[i].name) in PAIRS
        near = units[i] >= PAIRS_BAND * units[first] if pair else share[i] >= COVERED * share[first]
        return i == first or bool(units[i] >= 1.0 and near)

    def place(i: int) -> int:
        name = measure_of(SIGNALS[i].name)
        return 0 if name in PAIRS else specific.index(name) if name in specific else len(specific)

    return min((i for i in strongest if explains(i)), key=place)


def among_its_size(statistics: Statistics, baseline: Baseline, in_order: bool) -> tuple[float, str]:
    final = baseline.calibration.final
    used = np.flatnonzero(GROUPED & ~FREE) if in_order else np.flatnonzero(GROUPED & FREE)
    excess = statistics.excess[used]
    if not len(final) or not excess.any():
        return 1.0, ""
    size = max(statistics.distinct, 1.0)
    step = round(float(np.log(size)) * BINS_A_NAT)
    away = np.abs(np.log(np.maximum(final.distinct, 1.0)) - step / BINS_A_NAT)
    near = np.argsort(away, kind="stable")[:NEAREST]
    rates = np.asarray((final.excess / np.maximum(final.distinct, 1.0)[:, None])[:, used], np.float64)[near]
    top = max(1, int(np.ceil(UPPER * len(near))))
    units = np.maximum(np.sort(rates, axis=0)[-top:].mean(0), np.exp(-step / BINS_A_NAT))
    honest = np.sort((rates / units).max(1))
    ratio = excess / size / units
    oddest = int(ratio.argmax())
    reached = len(honest) - int(np.searchsorted(honest, ratio[oddest], "left"))
    return (1 + reached) / (1 + len(honest)), SIGNAL_NAMES[used[oddest]]


def trail(profile: Profile, baseline: Baseline, assessment: Assessment, persona: str) -> list[tuple[int, float, int]]:
    now = (profile.queries, assessment.suspicion, profile.last_ms)
    if not assessment.in_order:
        return [now]
    tail = baseline.tail(True, persona)
    points = [
        (int(profile.passage_query[i]), 1 - tail.p(LADDER_FIRST * LADDER_GROWTH**i), int(profile.passage_ms[i]))
        for i in range(len(profile.passage_ms))
    ]
    return [*points[-TRAJECTORY_SHOWN:], now]


def exposed(profile: Profile, baseline: Baseline) -> Exposure | None:
    fmap, estimator = baseline.map, baseline.estimator
    if estimator is None or profile.distinct < FEWEST:
        return None
    n = np.log1p(profile.distinct)
    counts = profile.region_counts.astype(np.float64)
    covered = float((fmap.region_share * (1.0 - np.exp(-counts / 2.0))).sum())
    total = max(float(profile.distance_counts.sum()), 1.0)
    near = float(profile.distance_counts[:NEAR_BINS].sum()) / total
    classes = np.asarray(profile.classes, np.float64) / max(float(profile.classes.sum()), 1.0)
    occupied = classes[classes > 0]
    most = np.log(max(len(classes), 2))
    spread = float(-(occupied * np.log(occupied)).sum() / most) if len(occupied) else 0.0
    alike = float(np.minimum(classes, estimator.usual).sum())
    bends = np.maximum(n - np.log1p(KNOTS), 0.0)
    described = np.array([1.0, n, near, covered, spread, alike, n * covered, n * near, n * spread, n * alike, *bends])
    middle = float(described[: len(estimator.weights)] @ estimator.weights)
    size = described[REGRESSORS.index("distinct")]
    low, high = (float(np.interp(size, estimator.sizes, estimator.errors[:, side])) for side in (0, 1))
    low, high = min(low, 0.0) - STAND_IN_ERROR, max(high, 0.0) + STAND_IN_ERROR
    shares = share_of(middle + np.array([0.0, low, high])) + np.array([0.0, -COPY_ERROR, COPY_ERROR])
    fidelity = float(np.clip(shares[0], EDGE, 1 - EDGE))
    return Exposure(fidelity, min(max(float(shares[1]), 0.0), fidelity), max(min(float(shares[2]), 1.0), fidelity))


def own_change(spans: Sequence[Profile]) -> list[float] | None:
    """What `detector.own_change` must say of a client with these stored spans, the long one first."""
    if len(spans) < 2:
        return None
    long, short = spans
    n, m = long.queries - short.queries, short.queries
    lengths = short.first_ms - long.first_ms, short.last_ms - short.first_ms
    if min(n, m) < 40 or min(lengths) < DAY_MS:
        return None
    out = []
    for name in ("region_counts", "distance_counts", "classes"):
        after = getattr(short, name).tolist()
        before = [a - b for a, b in zip(getattr(long, name).tolist(), after, strict=True)]
        a, b = sum(before), sum(after)
        if not a or not b:
            out.append(0.0)
            continue
        pairs = [(x / a, y / b) for x, y in zip(before, after, strict=True) if x + y]
        found = sum((p - q) ** 2 / (p + q) for p, q in pairs)
        free = len(pairs) - 1
        out.append(max(0.0, found - (1 / a + 1 / b) / 2 * (free + 3 * math.sqrt(2 * free))))
    ratio = math.log(m / lengths[1]) - math.log(n / lengths[0])
    return [*out, max(0.0, abs(ratio) - 3 * math.sqrt(1 / n + 1 / m))]


def beyond(change: Sequence[float], baseline: Baseline) -> tuple[Observation, ...]:
    """The observation that such a change makes."""
    honest = [row for row in baseline.calibration.changes.astype(float).tolist() if min(row) >= 0]
    unit = [
        max(least, float(np.mean(sorted(kind)[-4:])))
        for kind, least in zip(zip(*honest, strict=True), CHANGE_FLOOR, strict=True)
    ]
    sizes = [one / by for one, by in zip(change, unit, strict=True)]
    p = Tail.fit(np.array([max(a / by for a, by in zip(row, unit, strict=True)) for row in honest])).p(max(sizes))
    kind = CHANGE_KINDS[sizes.index(max(sizes))]
    return (unlike_its_own_past(kind, p, len(honest)),) if p <= 0.01 and len(honest) >= 20 else ()


def observed(
    profile: Profile, baseline: Baseline, in_order: bool, plan: int | None, change: Sequence[float] | None = None
) -> tuple[Observation, ...]:
    """What `detector.own_life` must say of one client."""
    span, distinct = profile.last_ms - profile.first_ms, profile.distinct
    honest = baseline.calibration.final.distinct
    found: list[Observation] = []
    less = float((honest < distinct).sum()) / max(1, len(honest))
    if span <= NEW_MS and distinct >= FEWEST_NEW and less >= FULL_USE and not profile.carry(baseline.table)[1][0]:
        found.append(new_at_full_use(span, distinct, less))
    probes = [
        (ms - profile.first_ms, query)
        for ms, query in zip(profile.passage_ms.tolist(), profile.passage_query.tolist(), strict=True)
        if ms - profile.first_ms >= PROBE_TIME * span and query <= PROBE_QUERIES * profile.queries
    ]
    if in_order and probes and span >= DAY_MS and profile.queries >= FEWEST_BURST:
        length, asked = probes[-1]
        found.append(probe_then_burst(asked, length, profile.queries - asked, span - length))
    if plan and distinct >= NEAR_PLAN * plan:
        found.append(near_plan(distinct, plan))
    if in_order and distinct >= 100 and profile.novel <= 0.02 * distinct:
        found.append(trial_series(distinct, profile.novel))
    return (*found, *(beyond(change, baseline) if change is not None else ()))
