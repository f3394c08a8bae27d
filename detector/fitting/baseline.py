"""Fitting a baseline: from a reference and honest traffic to a feature map, a calibration and an estimator of exposure.

Rules: the unit of calibration is the client. Each is folded by the code that the service runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.baseline import MS_A_DAY, PUBLIC_KEY, Baseline
from detector.calibration import (
    CHANGE_KINDS,
    NO_CHANGES,
    NO_PATCHES,
    NO_TOOLS,
    UNKNOWN_CHANGE,
    UNREHEARSED,
    Calibration,
    FinalExcess,
    Persona,
    Tools,
    implausible,
    scale_of,
)
from detector.errors import UnfittedModel
from detector.features import ODD, FeatureMap, Measured, Schema
from detector.fitting.discriminators import RewordedRows
from detector.fitting.feature_map import fit_feature_map, learn_misfits, raise_levels
from detector.fitting.own_changes import HalvedLives
from detector.patches import smallest, table, united
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signals import (
    BY_ANSWER,
    FLOOR,
    FREE,
    FUSED,
    MISFIT,
    SIGNALS,
    Statistics,
    fuse,
    measure_each,
    signal_table,
)
from detector.templates import HonestTemplates, Sketches, TemplateSketch

ODDEST_CLIENTS_LEFT_OUT = 0.15
HONEST_ODD_SHARE = 0.01
MIN_CLIENTS = 20
"""Real clients from which on no simulated one stands beside them."""
SMALL_FLEETS = (0.0, 0.09)
"""Least and largest share of honest clients that were throttled at a budget of 1 %, over fleets of twelve (docs/decisions/0046)."""
MIN_PERSONA_CLIENTS = 5
USUAL_A_CLIENT, TRIED_A_CLIENT = 5, 20
"""Rows of one client on which tools are rehearsed for groups, and that are looked at for it, so that nobody shapes them alone."""
FEWEST_USUAL = 50
"""Rows from which on tools are rehearsed on the traffic's."""
_UNKNOWN = np.full(len(CHANGE_KINDS), UNKNOWN_CHANGE)


@dataclass(frozen=True, slots=True)
class FittedClients:
    """The real clients without a persona as a fit saw them: ids (g,), statistics (g,), whether excluded from calibration (g,)."""

    clients: tuple[str, ...]
    statistics: tuple[Statistics, ...]
    excluded: NDArray[np.bool_]

    @property
    def lifetime_maxima(self) -> NDArray[np.float64]:
        """(g, s) lifetime maxima."""
        return np.array([s.lifetime for s in self.statistics])


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """Queries of simulated honest tools, and the odd kind that each client of the batch stands for, "" for one that is not odd."""

    queries: QueryBatch
    kinds: tuple[str, ...]


def fit_baseline(
    model_id: str,
    schema: Schema,
    reference: QueryBatch,
    traffic: QueryBatch,
    *,
    rng: np.random.Generator,
    simulated: frozenset[str] = frozenset(),
    personas: Mapping[str, str] | None = None,
    rehearsed: Rehearsed | None = None,
    reworded: RewordedRows | None = None,
    rehearse_on: Callable[[NDArray[np.float64]], Rehearsed] | None = None,
) -> tuple[Baseline, FittedClients]:
    """Fit the feature map and the calibration of one model.

    Parameters
    ----------
    reference : QueryBatch
        Honest inputs with the model's answers; clients and times do not matter.
    traffic : QueryBatch
        Queries of presumably honest clients. The unit of calibration is the client.
    rng : Generator
        The same state gives the same baseline.
    simulated : frozenset of str
        Clients of the traffic that were simulated. With any of them the calibration is marked uncalibrated, and nothing is ever blocked
        on it.
    personas : Mapping or None
        Client of the traffic → the use that its owner declared; each use gets null distributions of its own.
    rehearsed : Rehearsed or None
        Simulated honest tools: they bound the influence of each client, and the odd ones become pseudo-clients. None: no bound and no
        pseudo-clients.
    reworded : RewordedRows or None
        Of texts: what the measure of foreign words in texts of the domain learns from.
    rehearse_on : Callable or None
        (k, d) rows → the same tools as `rehearsed`, a run for a run, on these rows. What groups are compared with: rows of honest clients
        are farther from the reference than its own, so tools on them are louder. None, and with too few rows: `rehearsed` itself.

    Returns
    -------
    Baseline
    FittedClients
        The real clients without a persona, as the fit saw them.

    Raises
    ------
    UnfittedModel
        Too few distinct rows in the reference, or too few clients in the traffic or under a persona.

    Notes
    -----
    The false-alarm budget holds for the population that the calibration clients come from; unseen kinds of honest clients exceed it
    (docs/detection.md, Limits).
    """
    declared = [(personas or {}).get(client, "") for client in traffic.clients]
    seen = np.unique(traffic.who)
    clients = enough_clients([declared[i] for i in seen], "in the traffic")
    feature_map = fit_feature_map(schema, reference.inputs, reference.labels, reference.probabilities, rng, reworded)
    learn_misfits(feature_map, [reference, traffic])
    _settle_levels(feature_map, traffic)
    rehearsal_bound, tools = (UNREHEARSED, NO_TOOLS) if rehearsed is None else _rehearsed(feature_map, rehearsed)
    rows = usual_rows(feature_map, traffic, simulated) if rehearse_on is not None else reference.inputs[:0]
    if rehearse_on is not None and len(rows) >= FEWEST_USUAL and len(tools.final):
        louder = _rehearsed(feature_map, rehearse_on(rows))[1]
        if louder.kinds != tools.kinds:
            raise ValueError("other tools were rehearsed on the rows of the traffic")
        tools = replace(tools, final=louder.final)
    calibration, fitted = _calibrate(feature_map, traffic, declared, simulated, rehearsal_bound, tools)
    notes = [source_of(clients, len(simulated)), *limits_of(calibration)]
    if fitted.excluded.any():
        notes.append(
            f"left out of the calibration: {int(fitted.excluded.sum())} clients, beyond what honest tools reach in rehearsal; "
            "they may be thieves"
        )
    facts = {
        "reference_rows": float(len(reference)),
        "traffic_clients": float(clients),
        "traffic_queries": float(len(traffic)),
        "honest_days": calibration.days,
        "honest_distinct": calibration.distinct,
    }
    return Baseline(model_id, feature_map, calibration, tuple(notes), facts), fitted


def usual_rows(
    feature_map: FeatureMap, traffic: QueryBatch, simulated: frozenset[str] = frozenset()
) -> NDArray[np.float64]:
    """Return distinct rows of the traffic that nothing is odd about, at most `USUAL_A_CLIENT` of a client, none of simulated ones."""
    real = np.array([client not in simulated for client in traffic.clients], np.bool_)
    fits = real[traffic.who] & np.isfinite(traffic.inputs).all(axis=1) & (traffic.misfit == 0)
    rows = np.flatnonzero(fits)
    rows = rows[np.argsort(traffic.who[rows], kind="stable")]
    if not len(rows):
        return traffic.inputs[:0]
    tried = [
        mine[np.unique(np.linspace(0, len(mine) - 1, TRIED_A_CLIENT).astype(np.int64))]
        for mine in np.split(rows, np.flatnonzero(np.diff(traffic.who[rows])) + 1)
    ]
    some = traffic.take(np.concatenate(tried))
    usual = np.flatnonzero((feature_map.measure(some, PUBLIC_KEY).bits & ODD) == 0)
    who = some.who[usual]
    return np.unique(some.inputs[usual[np.arange(len(who)) - np.searchsorted(who, who) < USUAL_A_CLIENT]], axis=0)


def enough_clients(declared: Sequence[str], where: str) -> int:
    """Return the number of clients without a persona ("" in `declared`).

    Raises UnfittedModel for too few, with or without one.

    >>> enough_clients([""] * 20, "in the traffic")
    20
    >>> enough_clients([""] * 3, "in the traffic")
    Traceback (most recent call last):
        ...
    detector.errors.UnfittedModel: 3 clients in the traffic; at least 20 are needed to calibrate by client
    """
    clients = sum(not name for name in declared)
    if clients < MIN_CLIENTS:
        raise UnfittedModel(
            f"{clients} clients{' without a persona' if any(declared) else ''} {where}; "
            f"at least {MIN_CLIENTS} are needed to calibrate by client"
        )
    for name in sorted({name for name in declared if name}):
        own = sum(other == name for other in declared)
        if own < MIN_PERSONA_CLIENTS:
            raise UnfittedModel(f"persona {name}: {own} clients; at least {MIN_PERSONA_CLIENTS} are needed for a null")
    return clients


def source_of(clients: int, simulated: int) -> str:
    """Say what a calibration rests on. clients: all of them; simulated: of these.

    >>> source_of(150, 0)
    'calibrated on 150 real clients'
    """
    real = clients - simulated
    if not simulated:
        return f"calibrated on {clients} real clients"
    if not real:
        return f"UNCALIBRATED: no honest traffic was given; {clients} simulated clients stand in, and nothing is blocked on them"
    low, high = SMALL_FLEETS
    return (
        f"UNCALIBRATED: {real} real clients are few, so {simulated} simulated clients stand beside them, and nothing is blocked on them. "
        f"In fleets as small, {low * 100:g} to {high * 100:g} % of honest clients were throttled at a budget of 1 %. "
        f"{MIN_CLIENTS} real clients make a calibration of their own, 100 support a budget of 1 %, 1,000 a block at it"
    )


def limits_of(calibration: Calibration) -> list[str]:
    """Sentences about what the calibration can and can't support."""
    sentences = []
    if calibration.calibrated and calibration.clients < 100:
        sentences.append(
            f"{calibration.clients} clients are too few for a 1 % lifetime budget: the tail beyond them is a model"
        )
    return sentences + [
        f"persona {p.name}: calibrated on {len(p.ordered)} clients of its own" for p in calibration.personas
    ]


def _settle_levels(feature_map: FeatureMap, traffic: QueryBatch) -> None:
    """Raise the levels to what honest clients do.

    A reference of some hundred rows says little about its own upper percent, so the level of each measure is raised until one honest
    query in a hundred exceeds it, every client weighing the same and the oddest clients left out (they may be thieves, or tools).
    """
    x = feature_map.complete(traffic.inputs)
    _, residual, distance, _ = feature_map.locate(x)
    measured = feature_map.oddness(x, distance, residual, feature_map.surprise(traffic))
    count = np.bincount(traffic.who, minlength=len(traffic.clients)).astype(float)
    seen = count > 0
    for i, odd in enumerate(measured):
        if odd is None:
            continue
        share = np.bincount(traffic.who, odd > feature_map.levels[i, 0], minlength=len(count)) / np.maximum(count, 1)
        usual = share <= np.quantile(share[seen], 1 - ODDEST_CLIENTS_LEFT_OUT)
        rows = usual[traffic.who]
        only = [odd[rows] if j == i else None for j in range(len(measured))]
        raise_levels(feature_map, only, 1 / count[traffic.who[rows]], HONEST_ODD_SHARE)


class _Folded(NamedTuple):
    """A client by the very fold that the service uses: id, profile, statistics, where its odd queries lie, its own change, templates."""

    client: str
    profile: Profile
    statistics: Statistics
    patches: tuple[int, ...]
    change: NDArray[np.float64]
    templates: TemplateSketch


def _folded(feature_map: FeatureMap, queries: QueryBatch) -> list[_Folded]:
    """Every client with a query."""
    signals = signal_table(misfit_allowance=feature_map.misfit_allowance)
    patches: dict[int, tuple[int, ...]] = {}
    halves = HalvedLives(queries, feature_map.classes)
    sketches = Sketches([TemplateSketch() for _ in queries.clients])

    def look(poll: QueryBatch, measured: Measured) -> None:
        for client, some in smallest(poll.who, measured.patches).items():
            patches[client] = united(patches.get(client, ()), some)
        halves.note(poll, measured)
        sketches.note(poll.who, measured.templates, measured.raw)

    log = ProfileTable(feature_map, signals, "0" * 16, half_horizon_ms=2**62)
    profiles = log.of_log(queries, PUBLIC_KEY, measured=look)
    seen = [(i, client, p) for i, (client, p) in enumerate(zip(queries.clients, profiles, strict=True)) if p.queries]
    found = measure_each([p for _, _, p in seen], signals)
    own = halves.changes()
    return [
        _Folded(client, p, one, patches.get(i, ()), own[i], sketches[i])
        for (i, client, p), one in zip(seen, found, strict=True)
    ]


def _rehearsed(feature_map: FeatureMap, rehearsed: Rehearsed) -> tuple[NDArray[np.float64], Tools]:
    """Rehearsal bound, (s,), never below a signal's floor, and the odd tools.

    For an odd kind the bound is the 95th-percentile run, for all others the largest run. Signals that look at answers
    say nothing, for those of a rehearsal are borrowed from the nearest reference row: their bound is inf, and no pseudo-client has
    any of them. The same holds for misfits: simulated tools fit the schema, and which misfits are honest only the traffic can say.
    """
    by_input = ~MISFIT & np.array([s.name not in BY_ANSWER for s in SIGNALS])
    bounded = FUSED & by_input
    kind = dict(zip(rehearsed.queries.clients, rehearsed.kinds, strict=True))
    simulated = _folded(feature_map, rehearsed.queries)
    odd = [(kind[one.client], one.statistics) for one in simulated if kind[one.client]]
    lifetime_maxima, final_values = (
        np.array([getattr(s, name) for _, s in odd]).reshape(-1, len(SIGNALS)) * bounded
        for name in ("lifetime", "value")
    )
    final = final_excess([s for _, s in odd])
    final = FinalExcess(final.distinct, final.excess * by_input.astype(np.float32))
    tools = Tools(tuple(k for k, _ in odd), lifetime_maxima, final_values, final)
    most = np.max(
        [FLOOR, *tools.percentile_maxima(), *(one.statistics.lifetime for one in simulated if not kind[one.client])],
        axis=0,
    )
    return np.where(bounded, most, np.inf), tools


def final_excess(clients: Sequence[Statistics]) -> FinalExcess:
    """Return what clients have come to by now, a row each."""
    excess = np.array([s.excess for s in clients], np.float32).reshape(-1, len(SIGNALS))
    return FinalExcess(np.array([s.distinct for s in clients], np.float64), excess)


def _calibrate(
    feature_map: FeatureMap,
    traffic: QueryBatch,
    declared: Sequence[str],
    simulated: frozenset[str],
    rehearsal_bound: NDArray[np.float64] = UNREHEARSED,
    tools: Tools = NO_TOOLS,
) -> tuple[Calibration, FittedClients]:
    """Lifetime maxima of honest clients; declared: persona of each client of the traffic, "" for none; simulated: ids."""
    persona = dict(zip(traffic.clients, declared, strict=True))
    honest = _folded(feature_map, traffic)
    calibration, excluded = calibration_of(
        [one.statistics for one in honest],
        [persona[one.client] for one in honest],
        distinct=max(one.profile.distinct for one in honest),
        days=max(one.profile.last_ms - one.profile.first_ms for one in honest) / MS_A_DAY,
        simulated=np.array([one.client in simulated for one in honest]),
        rehearsal_bound=rehearsal_bound,
        tools=tools,
        patches=[None if one.client in simulated else one.patches for one in honest],
        changes=[None if one.client in simulated else one.change for one in honest],
        templates=[None if one.client in simulated else one.templates for one in honest]
        if feature_map.schema.of_texts
        else (),
    )
    real = [one for one in honest if not persona[one.client] and one.client not in simulated]
    fitted = FittedClients(tuple(one.client for one in real), tuple(one.statistics for one in real), excluded)
    return calibration, fitted


def calibration_of(
    clients: Sequence[Statistics],
    declared: Sequence[str],
    *,
    distinct: float,
    days: float,
    simulated: NDArray[np.bool_],
    rehearsal_bound: NDArray[np.float64],
    tools: Tools,
    patches: Sequence[Sequence[int] | None] = (),
    changes: Sequence[NDArray[np.float64] | None] = (),
    templates: Sequence[TemplateSketch | None] = (),
) -> tuple[Calibration, NDArray[np.bool_]]:
    """Null distributions of honest clients, and which real clients without a persona are excluded from them.

    declared  each client's persona, "" for none; at least one has none
    simulated  (g,) whether a client was simulated; no such client is excluded
    rehearsal_bound  (s,) of honest tools, (0,) where there was none
    tools     that were rehearsed: pseudo-clients of them join
    patches, changes, templates  of each client, None where they are not known, as of simulated ones; (): of nobody
    """
    maxima = np.array([s.lifetime for s in clients])
    final_values = np.array([s.value for s in clients])
    persona = np.array(declared)
    others = persona == ""
    shares = np.array([s.count / np.maximum(s.base, 1.0) for s in clients])
    real = others & ~simulated
    out = np.zeros(len(maxima), np.bool_)
    out[real] = implausible(maxima[real], shares[real], rehearsal_bound)
    kept = np.flatnonzero(others & ~out)
    scale = scale_of(maxima[kept], FLOOR)
    pseudo = tools.pseudo_client_rows(scale, FUSED, len(kept))
    pseudo_maxima, pseudo_finals = (
        of[pseudo].reshape(-1, len(SIGNALS)) for of in (tools.lifetime_maxima, tools.final_values)
    )
    scale = scale_of(np.vstack([maxima[kept], pseudo_maxima]), FLOOR)
    ordered, free = fuse(maxima, scale, FUSED), fuse(final_values, scale, FREE)
    calibration = Calibration(
        lifetime_maxima=maxima[kept].astype(np.float32),
        scale=scale,
        ordered=np.sort(np.concatenate([ordered[kept], fuse(pseudo_maxima, scale, FUSED)])),
        free=np.sort(np.concatenate([free[kept], fuse(pseudo_finals, scale, FREE)])),
        distinct=distinct,
        days=days,
        calibrated=not simulated.any(),
        personas=tuple(
            Persona(str(name), np.sort(ordered[persona == name]), np.sort(free[persona == name]))
            for name in np.unique(persona[~others])
        ),
        rehearsal_bound=rehearsal_bound,
        tools=tools,
        final=final_excess([clients[i] for i in kept.tolist()]),
        simulated=int(simulated[kept].sum()),
        patches=table([patches[i] for i in kept.tolist()]) if patches else NO_PATCHES,
        changes=np.array([_UNKNOWN if changes[i] is None else changes[i] for i in kept.tolist()], np.float32)
        if changes
        else NO_CHANGES,
        templates=HonestTemplates.of([templates[i] for i in kept.tolist()] if templates else ()),
    )
    return calibration, out[real]
