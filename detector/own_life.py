"""Observations: what is unusual about when a client asked how much. They are shown beside a score and never counted in it.

Six things that incidents had, and honest clients have too:

* **new at full use**: a client that is seen for a day at most, and asked more distinct queries than nearly all honest clients of the
  calibration in all of their lifetimes.
* **probe then burst**: hardly any queries for most of its life, and nearly all of them at the end. So does a stolen key that is tried
  out first; and an application that is tested before it is opened.
* **near its plan**: it asked most of the distinct queries that its owner declared.
* **trial series**: nearly all of its queries are variants of a few. So are those of a service that follows one thing over time, or
  explains single decisions. (The signal `stepped_pairs` sees variants in which many columns move by one size, this all others too.)
* **unlike its own past**: it differs from its own earlier life by more than honest clients do from theirs (own_change.py). So does an
  account in other hands; and a client with a new task.
* **shared template**: most of its texts are one template, filled in (templates.py). So are those of most applications.

Rules:

* They follow from the profile (first and last query, first passages, distinct queries, templates). So they do not depend on when a client
  was assessed.
* They are no evidence and spend no budget: when an honest client begins, and what it does next, is its owner's business.
* The course is known where the order of the queries is, and at first passages only: a burst that is odd in nothing has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from detector.baseline import Baseline
from detector.profile_columns import ProfileColumns

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NEW_MS = DAY_MS
FULL_USE = 0.95
"""Share of the honest clients of the calibration that asked less in all of their lifetimes."""
FEWEST_NEW, FEWEST_BURST = 30, 100
"""Queries below which a course says nothing."""
PROBE_QUERIES, PROBE_TIME = 0.05, 0.8
"""A probe: at most this share of the queries in at least this share of the time."""
NEAR_PLAN = 0.8
MOSTLY_TEMPLATE = 0.5
"""Share of a client's texts from which on a template is worth telling."""
FEWEST_SERIES, CORE_SHARE = 100, 0.02
"""A trial series: least number of distinct queries, and largest share of them that may be unlike all before."""
DIFFERS = {
    "regions": "where its queries lie",
    "distances": "how near to the reference its queries lie",
    "classes": "the mixture of the answers that it got",
    "pace": "its pace",
}

ObservationName = Literal[
    "new_at_full_use", "probe_then_burst", "near_plan", "trial_series", "unlike_its_own_past", "shared_template"
]


@dataclass(frozen=True, slots=True)
class Observation:
    """One course. text: a sentence about the client, without its subject's name."""

    name: ObservationName
    text: str


def observed(
    columns: ProfileColumns,
    baseline: Baseline,
    in_order: Sequence[bool],
    plans: Sequence[int | None],
    changes: NDArray[np.float64],
) -> list[tuple[Observation, ...]]:
    """Return the observations of n clients.

    Parameters
    ----------
    columns : ProfileColumns
    baseline : Baseline
        Its calibration says how much honest clients ask.
    in_order : Sequence of bool
        (n,) whether the order of the client's queries is known.
    plans : Sequence of int or None
        (n,) distinct queries that the client declared; None for none.
    changes : NDArray
        (n, 4) of each client against its own earlier life, as `own_change.changes` returns.

    Returns
    -------
    list of tuple of Observation
    """
    span = columns.last_ms - columns.first_ms
    honest = np.sort(baseline.calibration.final.distinct)
    less = np.searchsorted(honest, columns.distinct) / max(1, len(honest))
    unseen_before = (span <= NEW_MS) & (columns.faded_base[:, 0] == 0)
    new = unseen_before & (columns.distinct >= FEWEST_NEW) & (less >= FULL_USE)
    probe = probes(columns.first_ms, columns.last_ms, columns.queries, columns.passage_ms, columns.passage_query)
    filled = np.arange(probe.shape[1]) < columns.passage_n[:, None]
    probe &= filled & np.asarray(in_order, np.bool_)[:, None]
    ended = probe.shape[1] - 1 - probe[:, ::-1].argmax(1)  # the last of such moments
    found: list[tuple[Observation, ...]] = [()] * len(columns.queries)
    for i in np.flatnonzero(new).tolist():
        found[i] += (new_at_full_use(int(span[i]), float(columns.distinct[i]), float(less[i])),)
    for i in np.flatnonzero(probe.any(1)).tolist():
        asked, at_ms = int(columns.passage_query[i, ended[i]]), int(columns.passage_ms[i, ended[i]])
        length, after = at_ms - int(columns.first_ms[i]), int(columns.last_ms[i]) - at_ms
        found[i] += (probe_then_burst(asked, length, int(columns.queries[i]) - asked, after),)
    for i, plan in enumerate(plans):
        if plan and columns.distinct[i] >= NEAR_PLAN * plan:
            found[i] += (near_plan(float(columns.distinct[i]), plan),)
    one_core = (columns.distinct >= FEWEST_SERIES) & (columns.novel <= CORE_SHARE * columns.distinct)
    one_core &= np.asarray(in_order, np.bool_) & (columns.queries > 0)
    for i in np.flatnonzero(one_core).tolist():
        found[i] += (trial_series(float(columns.distinct[i]), float(columns.novel[i])),)
    for i, beyond in enumerate(baseline.own_change.beyond(changes)):
        if beyond is not None:
            found[i] += (unlike_its_own_past(*beyond, baseline.own_change.clients),)
    return found


def probes(
    first_ms: NDArray[np.int64],
    last_ms: NDArray[np.int64],
    queries: NDArray[np.int64],
    at_ms: NDArray[np.int64],
    at_query: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return which moments of n clients end a probe, (n, m).

    first_ms, last_ms, queries  (n,) of each client
    at_ms, at_query             (n, m) moments: event time, queries asked by then
    """
    span = last_ms - first_ms
    late = at_ms - first_ms[:, None] >= PROBE_TIME * span[:, None]
    few = at_query <= PROBE_QUERIES * queries[:, None]
    return late & few & ((span >= DAY_MS) & (queries >= FEWEST_BURST))[:, None]


def new_at_full_use(span_ms: int, distinct: float, less: float) -> Observation:
    """less: share of the honest clients that asked less."""
    return Observation(
        "new_at_full_use",
        f"it was first seen {_long(span_ms)} before its last query, and asked {distinct:,.0f} distinct queries, more than "
        + ("any" if less >= 1 else f"{less:.0%} of the")
        + f" honest client{'s' if less < 1 else ''} of the calibration asked in all of their time",
    )


def probe_then_burst(asked: int, length_ms: int, after: int, after_ms: int) -> Observation:
    """asked: queries within the first `length_ms`; after: those in the `after_ms` that followed."""
    return Observation(
        "probe_then_burst",
        f"it asked hardly anything for most of its time ({asked:,} queries in {_long(length_ms)}), then nearly everything "
        f"({after:,} in {_long(after_ms)})",
    )


def unlike_its_own_past(kind: str, share: float, clients: int) -> Observation:
    """kind: of `CHANGE_KINDS`; share: of honest clients that differ as much; clients: that it was compared with."""
    return Observation(
        "unlike_its_own_past",
        f"since the last half of the horizon began, {DIFFERS[kind]} differs from its own earlier life by more than that of about "
        f"{1 - share:.1%} of {clients:,} honest clients did",
    )


def trial_series(distinct: float, novel: float) -> Observation:
    """novel: distinct queries that are unlike everything that the client asked before."""
    return Observation(
        "trial_series",
        f"its {distinct:,.0f} distinct queries are variants of hardly any: unlike all that it asked before "
        f"{'is' if novel < 1.5 else 'are'} about {max(1.0, novel):,.0f} of them",
    )


def shared_template(texts: int, whole: int) -> tuple[Observation, ...]:
    """texts: that have the commonest template; whole: all of the client. Nothing where they are fewer than `MOSTLY_TEMPLATE`.

    >>> [one.text for one in shared_template(45, 60)], shared_template(5, 60)
    (['45 of its 60 texts share one template'], ())
    """
    if not whole or texts < MOSTLY_TEMPLATE * whole:
        return ()
    return (Observation("shared_template", f"{texts:,} of its {whole:,} texts share one template"),)


def near_plan(distinct: float, plan: int) -> Observation:
    """plan: distinct queries that were declared."""
    return Observation("near_plan", f"it asked {distinct:,.0f} of the {plan:,} distinct queries that it declared")


def _long(ms: int) -> str:
    """A length of time in words.

    >>> _long(90 * 60_000), _long(3 * DAY_MS), _long(20_000)
    ('2 hours', '3 days', '1 minute')
    """
    for unit, name in ((DAY_MS, "day"), (HOUR_MS, "hour"), (60_000, "minute")):
        if ms >= unit or name == "minute":
            n = max(1, round(ms / unit))
            return f"{n} {name}{'s' if n > 1 else ''}"
    raise AssertionError
