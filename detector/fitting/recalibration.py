"""Recalibration: a new calibration for an existing feature map, from the clients that the service has seen.

Rules:

* One client is one lifetime maximum, whatever it asked: no client weighs more than one rank.
* The feature map stays, so profiles continue. Levels are part of the map and stay too, as they were fitted.
* Running maxima are taken as the service kept them, under the calibration that was in force. Those of another calibration began at
  another time and are left out. Signals of clients above the old calibration's `distinct` were damped by it, so the new one keeps it as
  its bound.
* A client far above the others is named for a person to look at. Rare is not yet dishonest: only a client above everything that honest
  tools reach in rehearsal is excluded from the calibration (calibration.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detector.baseline import MS_A_DAY, Baseline
from detector.errors import UnfittedModel
from detector.fitting.baseline import enough_clients, limits_of, nulls_of
from detector.profile import Profile
from detector.signals import FLOOR, FUSED, SIGNALS, Statistics, measure

MIN_DAYS = 7.0
MIN_LONG_CLIENTS = 20
FAR_BEYOND = 8.0
USUAL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Life:
    """One client as the service knows it: id, merged profile, number of log cells it was seen in, declared use."""

    client: str
    profile: Profile
    cells: int = 1
    persona: str = ""


@dataclass(frozen=True, slots=True)
class Outlier:
    """A client far beyond the others. mass: of the signal; times: of what nine clients in ten stay below; left_out: has no say."""

    client: str
    signal: str
    mass: float
    times: float
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """The new baseline, who should be looked at, and how many lives were left out, by reason."""

    baseline: Baseline
    review: tuple[Outlier, ...]
    left_out: Counter[str]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is kept of a life: a store holds more profiles than memory does."""

    client: str
    persona: str
    in_order: bool
    days: float
    distinct: float
    queries: int
    statistics: Statistics


def outliers(
    clients: Sequence[str], lives: NDArray[np.floating], left_out: NDArray[np.bool_] | None = None
) -> tuple[Outlier, ...]:
    """Clients whose fused score is beyond `FAR_BEYOND` of its usual scale, or who have no say in the nulls, farthest first.

    clients (g,) ids; lives (g, s) lifetime maxima; left_out (g,). The usual scale of a signal is the 90 % quantile over
    clients, never below the signal's floor, so that those who are listed don't stretch the scale that they are measured by.
    """
    if not len(clients):
        return ()
    usual = np.maximum(np.quantile(lives, USUAL_SHARE, axis=0), FLOOR)
    times = np.where(FUSED, lives / usual, 0.0)
    strongest = times.argmax(axis=1)
    left_out = np.zeros(len(clients), np.bool_) if left_out is None else left_out
    found = [
        Outlier(client, SIGNALS[i].name, float(life[i]), float(row[i]), out)
        for client, i, life, row, out in zip(clients, strongest.tolist(), lives, times, left_out.tolist(), strict=True)
        if row[i] > FAR_BEYOND or out
    ]
    return tuple(sorted(found, key=lambda o: (-o.times, o.client)))


def recalibrate(
    baseline: Baseline,
    lives: Iterable[Life],
    source: str,
    min_days: float = MIN_DAYS,
    left_out: Counter[str] | None = None,
) -> Recalibrated:
    """`baseline` with nulls out of `lives`, presumably honest clients, each as the service kept it under `baseline`.

    source    what the lives are, for the notes: "clients that …"
    min_days  so long at least must `MIN_LONG_CLIENTS` clients have been seen
    left_out  reason → lives that the caller left out; what is left out here is added

    Raises UnfittedModel, with numbers, when there are too few clients or they were seen for too short.
    """
    left_out = Counter() if left_out is None else left_out
    taken: list[_Measured] = []
    for life in lives:
        p = life.profile
        if p.map_id != baseline.map_id or p.nulls_version != baseline.nulls_version or not p.queries:
            left_out["known under another baseline"] += 1
            continue
        days = (p.last_ms - p.first_ms) / MS_A_DAY
        known = _Measured(
            life.client, life.persona, life.cells <= 1, days, p.distinct, p.queries, measure(p, baseline.table)
        )
        taken.append(known)
    in_order = [m for m in taken if m.in_order]
    mostly = 2 * len(in_order) >= len(taken)
    if mostly and len(in_order) < len(taken):
        left_out["seen in several partitions"] = len(taken) - len(in_order)
        taken = in_order
    clients = enough_clients([m.persona for m in taken], "to calibrate on")
    long = sum(m.days >= min_days for m in taken)
    if long < MIN_LONG_CLIENTS:
        raise UnfittedModel(
            f"{long} clients were seen for {min_days:g} days or more; {MIN_LONG_CLIENTS} are needed to know what an honest life is: "
            "observe longer, or state a shorter time"
        )
    most = max(m.distinct for m in taken)
    nulls, beyond = nulls_of(
        [m.statistics for m in taken],
        [m.persona for m in taken],
        distinct=min(most, baseline.nulls.distinct or most),
        days=max(m.days for m in taken),
        calibrated=True,
        reach=baseline.nulls.reach,
        tools=baseline.nulls.tools,
    )
    if beyond.any():
        left_out["beyond what honest tools reach in rehearsal"] = int(beyond.sum())
    notes = [
        f"calibrated on {clients - int(beyond.sum())} {source}, {long} of them for {min_days:g} days or more, at most {nulls.days:.0f}"
    ]
    if left_out:
        notes.append(f"left out: {', '.join(f'{n} {why}' for why, n in sorted(left_out.items()))}")
    if not mostly:
        notes.append("most clients are seen in several partitions: order-aware signals saw only parts of them")
    facts = baseline.facts | {
        "traffic_clients": float(clients),
        "traffic_queries": float(sum(m.queries for m in taken)),
        "honest_days": nulls.days,
        "honest_distinct": nulls.distinct,
    }
    others = [m for m in taken if not m.persona]
    review = outliers([m.client for m in others], np.array([m.statistics.lifetime for m in others]), beyond)
    new = replace(baseline, nulls=nulls, notes=(*notes, *limits_of(nulls)), facts=facts)
    return Recalibrated(new, review, left_out)
