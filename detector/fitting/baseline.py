"""Fitting a baseline: from a reference and honest traffic to a feature map, a calibration and an estimator of exposure.

Rules: the unit of calibration is the client. Each is folded by the code that the service runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.baseline import MS_A_DAY, PUBLIC_KEY, Baseline
from detector.calibration import NO_TOOLS, UNREHEARSED, Nulls, Persona, Tools, implausible, scale_of
from detector.errors import UnfittedModel
from detector.features import FeatureMap, Schema
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signals import BY_ANSWER, FLOOR, FREE, FUSED, MISFIT, SIGNALS, Statistics, fuse, masses, measure

ODDEST_CLIENTS_LEFT_OUT = 0.15
HONEST_ODD_SHARE = 0.01
MIN_CLIENTS = 20
MIN_PERSONA_CLIENTS = 5


@dataclass(frozen=True, slots=True)
class Lives:
    """What a fit made of the clients without a persona: their ids (g), their statistics (g), who has no say in the nulls (g,)."""

    clients: tuple[str, ...]
    statistics: tuple[Statistics, ...]
    left_out: NDArray[np.bool_]

    @property
    def masses(self) -> NDArray[np.float64]:
        """(g, s) lifetime masses."""
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
    real_clients: bool,
    rng: np.random.Generator,
    personas: Mapping[str, str] | None = None,
    rehearsed: Rehearsed | None = None,
) -> tuple[Baseline, Lives]:
    """Fit map and nulls; the second result says what was made of each client.

    reference     honest inputs with the model's answers; clients and times don't matter
    traffic       queries of presumably honest clients; the unit of calibration is the client
    real_clients  False when `traffic` was simulated: the nulls are then marked uncalibrated
    personas      client of the traffic → the use that its owner declared; it gets a null of its own
    rehearsed     simulated honest tools: they bound the influence of each client, and the odd ones stand in for what the
                  traffic does not hold; None: no bound, and nobody stands in
    """
    declared = [(personas or {}).get(client, "") for client in traffic.clients]
    seen = np.unique(traffic.who)
    clients = enough_clients([declared[i] for i in seen], "in the traffic")
    feature_map = FeatureMap.fit(schema, reference.inputs, reference.labels, reference.probabilities, rng)
    feature_map.learn_misfits([reference, traffic])
    _settle_levels(feature_map, traffic)
    reach, tools = (UNREHEARSED, NO_TOOLS) if rehearsed is None else _played(feature_map, rehearsed)
    nulls, lives = _calibrate(feature_map, traffic, declared, real_clients, reach, tools)
    notes = [
        f"calibrated on {clients} real clients"
        if real_clients
        else f"UNCALIBRATED: no honest traffic was given; {clients} simulated clients stand in, and nothing is blocked on them"
    ]
    notes += limits_of(nulls)
    if lives.left_out.any():
        notes.append(
            f"left out of the calibration: {int(lives.left_out.sum())} clients, beyond what honest tools reach in rehearsal; "
            "they may be thieves"
        )
    facts = {
        "reference_rows": float(len(reference)),
        "traffic_clients": float(clients),
        "traffic_queries": float(len(traffic)),
        "honest_days": nulls.days,
        "honest_distinct": nulls.distinct,
    }
    return Baseline(model_id, feature_map, nulls, tuple(notes), facts), lives


def enough_clients(declared: Sequence[str], where: str) -> int:
    """How many clients have no persona ("" in `declared`). Raises UnfittedModel for too few, with or without one."""
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


def limits_of(nulls: Nulls) -> list[str]:
    """Sentences about what the nulls can and can't support."""
    said = []
    if nulls.calibrated and nulls.clients < 100:
        said.append(f"{nulls.clients} clients are too few for a 1 % lifetime budget: the tail beyond them is a model")
    return said + [f"persona {p.name}: calibrated on {len(p.ordered)} clients of its own" for p in nulls.personas]


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
        feature_map.raise_levels(only, 1 / count[traffic.who[rows]], HONEST_ODD_SHARE)


def _statistics(feature_map: FeatureMap, queries: QueryBatch) -> list[tuple[str, Profile, Statistics]]:
    """Every client with a query: id, profile, statistics by the very fold that the service uses."""
    table = masses(misfit_allowance=feature_map.misfit_allowance)
    profiles = ProfileTable(feature_map, table, "0" * 16, half_horizon_ms=2**62).of_log(queries, PUBLIC_KEY)
    return [(client, p, measure(p, table)) for client, p in zip(queries.clients, profiles, strict=True) if p.queries]


def _played(feature_map: FeatureMap, rehearsed: Rehearsed) -> tuple[NDArray[np.float64], Tools]:
    """How far honest tools get, (s,), never below a signal's floor, and the odd ones.

    Of a kind that stands in, the reach is that of one that went far, of all others the most that one has. Signals that look at answers
    say nothing, for those of a rehearsal are borrowed from the nearest reference row: their reach is inf, and nobody who stands in has
    any of them. The same holds for misfits: simulated tools fit the schema, and which misfits are honest only the traffic can say.
    """
    judged = FUSED & ~MISFIT & np.array([s.name not in BY_ANSWER for s in SIGNALS])
    kind = dict(zip(rehearsed.queries.clients, rehearsed.kinds, strict=True))
    played = _statistics(feature_map, rehearsed.queries)
    odd = [(kind[client], s) for client, _, s in played if kind[client]]
    lives, ends = (
        np.array([getattr(s, name) for _, s in odd]).reshape(-1, len(SIGNALS)) * judged
        for name in ("lifetime", "value")
    )
    tools = Tools(tuple(k for k, _ in odd), lives, ends)
    most = np.max([FLOOR, *tools.far(), *(s.lifetime for client, _, s in played if not kind[client])], axis=0)
    return np.where(judged, most, np.inf), tools


def _calibrate(
    feature_map: FeatureMap,
    traffic: QueryBatch,
    declared: Sequence[str],
    real_clients: bool,
    reach: NDArray[np.float64] = UNREHEARSED,
    tools: Tools = NO_TOOLS,
) -> tuple[Nulls, Lives]:
    """Lifetime maxima of honest clients; declared: persona of each client of the traffic, "" for none."""
    persona = dict(zip(traffic.clients, declared, strict=True))
    honest = _statistics(feature_map, traffic)
    nulls, left_out = nulls_of(
        [s for _, _, s in honest],
        [persona[client] for client, _, _ in honest],
        distinct=max(p.distinct for _, p, _ in honest),
        days=max(p.last_ms - p.first_ms for _, p, _ in honest) / MS_A_DAY,
        calibrated=real_clients,
        reach=reach,
        tools=tools,
    )
    others = [(client, s) for client, _, s in honest if not persona[client]]
    return nulls, Lives(tuple(c for c, _ in others), tuple(s for _, s in others), left_out)


def nulls_of(
    lives: Sequence[Statistics],
    declared: Sequence[str],
    *,
    distinct: float,
    days: float,
    calibrated: bool,
    reach: NDArray[np.float64],
    tools: Tools,
) -> tuple[Nulls, NDArray[np.bool_]]:
    """Nulls of honest lives, one a client, and which clients without a persona have no say in them.

    declared  each client's persona, "" for none; at least one has none
    calibrated  whether these are real clients; simulated ones all have their say
    reach     (s,) of honest tools in rehearsal, (0,) where there was none
    tools     that were rehearsed: some stand among real clients; simulated ones have tools among them
    """
    maxima = np.array([s.lifetime for s in lives])
    ends = np.array([s.value for s in lives])
    persona = np.array(declared)
    others = persona == ""
    shares = np.array([s.count / np.maximum(s.base, 1.0) for s in lives])
    left_out = implausible(maxima[others], shares[others], reach if calibrated else UNREHEARSED)
    kept = np.flatnonzero(others)[~left_out]
    scale = scale_of(maxima[kept], FLOOR)
    guests = tools.standing_in(scale, FUSED, len(kept)) if calibrated else np.empty(0, np.int64)
    their_maxima, their_ends = (of[guests].reshape(-1, len(SIGNALS)) for of in (tools.lives, tools.ends))
    scale = scale_of(np.vstack([maxima[kept], their_maxima]), FLOOR)
    ordered, free = fuse(maxima, scale, FUSED), fuse(ends, scale, FREE)
    nulls = Nulls(
        lives=maxima[kept].astype(np.float32),
        scale=scale,
        ordered=np.sort(np.concatenate([ordered[kept], fuse(their_maxima, scale, FUSED)])),
        free=np.sort(np.concatenate([free[kept], fuse(their_ends, scale, FREE)])),
        distinct=distinct,
        days=days,
        calibrated=calibrated,
        personas=tuple(
            Persona(str(name), np.sort(ordered[persona == name]), np.sort(free[persona == name]))
            for name in np.unique(persona[~others])
        ),
        reach=reach,
        tools=tools,
    )
    return nulls, left_out
