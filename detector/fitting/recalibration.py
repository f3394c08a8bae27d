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
from detector.fitting.baseline import calibration_of, enough_clients, limits_of
from detector.profile import Profile
from detector.signals import FLOOR, FUSED, SIGNALS, TEXT_SIGNALS, Statistics, measure
from detector.templates import TemplateSketch

MIN_DAYS = 7.0
MIN_LONG_CLIENTS = 20
FAR_BEYOND = 8.0
USUAL_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class KnownClient:
    """One client as the service knows it.

    client, profile  id, and the merged profile
    cells            number of log cells it was seen in; persona: declared use, "" for none
    patches          where its odd queries lie, None where that was not kept
    change           against its own earlier life (own_change.py), None where that is not known
    templates        of its texts, None where they were not kept
    """

    client: str
    profile: Profile
    cells: int = 1
    persona: str = ""
    patches: Sequence[int] | None = None
    change: NDArray[np.float64] | None = None
    templates: TemplateSketch | None = None


@dataclass(frozen=True, slots=True)
class Outlier:
    """A client far beyond the others. mass: of the signal; times: of what nine clients in ten stay below; excluded: from calibration."""

    client: str
    signal: str
    mass: float
    times: float
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """The new baseline, who should be looked at (first: before all others), and how many clients were excluded, by reason."""

    baseline: Baseline
    review: tuple[Outlier, ...]
    excluded: Counter[str]
    first: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Measured:
    """What is kept of a client: a store holds more profiles than memory does."""

    client: str
    persona: str
    in_order: bool
    days: float
    distinct: float
    queries: int
    statistics: Statistics
    patches: Sequence[int] | None
    change: NDArray[np.float64] | None
    templates: TemplateSketch | None


def outliers(
    clients: Sequence[str],
    lifetime_maxima: NDArray[np.floating],
    excluded: NDArray[np.bool_] | None = None,
    of_texts: bool = False,
) -> tuple[Outlier, ...]:
    """Clients whose fused score is beyond `FAR_BEYOND` of its usual scale, or that are excluded from calibration, farthest first.

    clients (g,) ids; lifetime_maxima (g, s); excluded (g,); of_texts: signals are named as for texts. The
    usual scale of a signal is the 90 % quantile over clients, never below the signal's floor, so that those who are
    listed don't stretch the scale that they are measured by.
    """
    if not len(clients):
        return ()
    usual = np.maximum(np.quantile(lifetime_maxima, USUAL_SHARE, axis=0), FLOOR)
    times = np.where(FUSED, lifetime_maxima / usual, 0.0)
    strongest = times.argmax(axis=1)
    excluded = np.zeros(len(clients), np.bool_) if excluded is None else excluded
    outlying = [
        Outlier(client, (TEXT_SIGNALS if of_texts else SIGNALS)[i].name, float(maxima[i]), float(row[i]), out)
        for client, i, maxima, row, out in zip(
            clients, strongest.tolist(), lifetime_maxima, times, excluded.tolist(), strict=True
        )
        if row[i] > FAR_BEYOND or out
    ]
    return tuple(sorted(outlying, key=lambda o: (-o.times, o.client)))


def first_to_review(clients: Sequence[str], lifetime_maxima: NDArray[np.floating], most: int = 10) -> tuple[str, ...]:
    """Return the calibration clients that are worth an analyst's look first: those with the highest fused scores.

    A thief among the calibration clients hides later thieves, because it moves the honest maxima up. A few looks at the most extreme
    clients win power back (arXiv 2502.04807, ICML 2025). They are no suspects: in any fleet some clients come first.

    Parameters
    ----------
    clients : (g,) sequence of str
    lifetime_maxima : (g, s) float
    most : int
        How many looks there are.

    Examples
    --------
    >>> maxima = np.zeros((3, len(FLOOR)))
    >>> maxima[1] = 100.0
    >>> first_to_review(["a", "b", "c"], maxima, 1)
    ('b',)
    """
    if not len(clients):
        return ()
    usual = np.maximum(np.quantile(lifetime_maxima, USUAL_SHARE, axis=0), FLOOR)
    score = np.where(FUSED, lifetime_maxima / usual, 0.0).max(axis=1)
    return tuple(clients[i] for i in np.argsort(-score, kind="stable")[:most] if score[i] > 0)


def recalibrate(
    baseline: Baseline,
    clients: Iterable[KnownClient],
    source: str,
    min_days: float = MIN_DAYS,
    excluded: Counter[str] | None = None,
) -> Recalibrated:
    """Calibrate a baseline anew on clients as the service kept them; its feature map stays.

    Parameters
    ----------
    baseline : Baseline
        In force while the clients were seen.
    clients : Iterable of KnownClient
        Presumably honest, read once.
    source : str
        What the clients are, for the notes: "clients that …".
    min_days : float
        Days that at least `MIN_LONG_CLIENTS` clients must have been seen.
    excluded : Counter or None
        Reason → clients that the caller left out; those left out here are added.

    Raises
    ------
    UnfittedModel
        With numbers, when there are too few clients or they were seen for too short.
    """
    excluded = Counter() if excluded is None else excluded
    taken: list[_Measured] = []
    for client in clients:
        p = client.profile
        if p.map_id != baseline.map_id or p.calibration_version != baseline.calibration_version or not p.queries:
            excluded["known under another baseline"] += 1
            continue
        days = (p.last_ms - p.first_ms) / MS_A_DAY
        measured = _Measured(
            client.client, client.persona, client.cells <= 1, days, p.distinct, p.queries, measure(p, baseline.table),
            client.patches, client.change, client.templates,
        )  # fmt: skip
        taken.append(measured)
    in_order = [m for m in taken if m.in_order]
    mostly = 2 * len(in_order) >= len(taken)
    if mostly and len(in_order) < len(taken):
        excluded["seen in several partitions"] = len(taken) - len(in_order)
        taken = in_order
    count = enough_clients([m.persona for m in taken], "to calibrate on")
    long = sum(m.days >= min_days for m in taken)
    if long < MIN_LONG_CLIENTS:
        raise UnfittedModel(
            f"{long} clients were seen for {min_days:g} days or more; {MIN_LONG_CLIENTS} are needed to know what an honest life is: "
            "observe longer, or state a shorter time"
        )
    most = max(m.distinct for m in taken)
    calibration, beyond = calibration_of(
        [m.statistics for m in taken],
        [m.persona for m in taken],
        distinct=min(most, baseline.calibration.distinct or most),
        days=max(m.days for m in taken),
        simulated=np.zeros(len(taken), np.bool_),
        rehearsal_bound=baseline.calibration.rehearsal_bound,
        tools=baseline.calibration.tools,
        patches=[m.patches for m in taken],
        changes=[m.change for m in taken],
        templates=[m.templates for m in taken] if baseline.map.schema.of_texts else (),
    )
    if beyond.any():
        excluded["beyond what honest tools reach in rehearsal"] = int(beyond.sum())
    notes = [
        f"calibrated on {count - int(beyond.sum())} {source}, {long} of them for {min_days:g} days or more, at most {calibration.days:.0f}"
    ]
    if excluded:
        notes.append(f"left out: {', '.join(f'{n} {why}' for why, n in sorted(excluded.items()))}")
    if not mostly:
        notes.append("most clients are seen in several partitions: order-aware signals saw only parts of them")
    facts = baseline.facts | {
        "traffic_clients": float(count),
        "traffic_queries": float(sum(m.queries for m in taken)),
        "honest_days": calibration.days,
        "honest_distinct": calibration.distinct,
    }
    others = [m for m in taken if not m.persona]
    maxima = np.array([m.statistics.lifetime for m in others])
    review = outliers([m.client for m in others], maxima, beyond, baseline.map.schema.of_texts)
    new = replace(baseline, calibration=calibration, notes=(*notes, *limits_of(calibration)), facts=facts)
    first = first_to_review([m.client for m in others], np.array([m.statistics.lifetime for m in others]))
    return Recalibrated(new, review, excluded, first)
