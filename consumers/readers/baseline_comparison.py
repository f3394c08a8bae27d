"""Compare the two baselines of a model on the clients of the store: scores, flags gained and lost, false alarms, population.

Rules:
* Both profiles of a client are read at one offset of each cell and assessed as detect would, without its past: nothing is stored.
* Only clients count whose two profiles hold the same queries. One that the live baseline knew before the shadow began holds more there;
  it is counted as older and enters no figure, unless both baselines have the same feature map, so that the shadow took its past over.
* A shadow with the same feature map goes on from the live profiles, but its running maxima begin anew: what a client did before is weighed
  again only as far as its sets still show it.
* The false-alarm figures are bounds from above where nobody knows which clients are honest: every flagged client is taken for an honest
  one, except those that a verdict calls thieves. The interval is Clopper and Pearson's, for clients that come independently.
* The population check asks whether honest clients are as the calibration says: a share p of them should have a p-value of at most p. Far
  more is a baseline that does not fit this traffic, or many thieves; the figure cannot tell which.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from consumers.records.client import ClientRecord, read_clients
from consumers.records.decision import is_campaign
from consumers.records.operator_entries import entry_key, last_verdicts
from consumers.records.spans import Fields, fields_of
from consumers.secrets import Secrets
from consumers.store import ServiceStore
from detector.baseline import Baseline
from detector.fleet import largest_share
from detector.policy import FLAGGED, Policy, State, wanted
from detector.query import ClientKey
from detector.scoring import Assessment, assess_columns

AT_ONCE = 500
CONFIDENCE = 0.95
SHARES = (0.5, 0.2, 0.05)
"""Lifetime p-values at which the population is checked."""


@dataclass(frozen=True, slots=True)
class ComparedClient:
    """One client under both baselines; p values are lifetime p-values."""

    client_id: str
    client: str
    queries: int
    p_live: float
    p_shadow: float
    state_live: State
    state_shadow: State


@dataclass(frozen=True, slots=True)
class OfBaseline:
    """What one of the two says of the compared clients.

    flagged          throttled or blocked; honest_flagged: those that no verdict calls thieves
    false_alarms_at_most  upper bound of the share of honest clients that are flagged; budget: what it was calibrated for
    shares           p → share of the clients with a p-value of at most p; calibration_clients: on how many it was calibrated
    """

    id: str
    flagged: int
    honest_flagged: int
    false_alarms_at_most: float
    budget: float
    shares: dict[float, float]
    calibration_clients: int
    calibrated: bool


@dataclass(frozen=True, slots=True)
class BaselineComparison:
    """Two baselines on the same clients.

    compared   clients whose profiles hold the same queries; older: those that the live one knew before; queries: of the compared
    gained     flagged by the shadow only; lost: by the live one only; both: by both
    moved      median change of the lifetime p-value, and the share of clients that it moves by more than a tenth
    """

    model: str
    compared: int
    older: int
    queries: int
    live: OfBaseline
    shadow: OfBaseline
    gained: tuple[ComparedClient, ...]
    lost: tuple[ComparedClient, ...]
    both: int
    moved: tuple[float, float]


def compare(
    store: ServiceStore,
    secrets: Secrets,
    tenant: str,
    live: Baseline,
    shadow: Baseline,
    policy: Policy,
    thieves: Collection[str] = (),
) -> BaselineComparison:
    """Assess every client of the store under both. thieves: hashes of clients that a verdict calls thieves. Raises Unavailable."""
    older = 0
    compared: list[ComparedClient] = []
    for client, same in _clients(store, secrets, tenant, live, shadow, policy):
        older += not same
        if same:
            compared.append(client)
    changes = [abs(one.p_shadow - one.p_live) for one in compared]
    by_p = sorted(compared, key=lambda one: (min(one.p_live, one.p_shadow), one.client_id))
    return BaselineComparison(
        live.model_id,
        len(compared),
        older,
        sum(one.queries for one in compared),
        _of(live, [(c.p_live, c.state_live, c.client in thieves) for c in compared], policy),
        _of(shadow, [(c.p_shadow, c.state_shadow, c.client in thieves) for c in compared], policy),
        tuple(c for c in by_p if c.state_shadow in FLAGGED and c.state_live not in FLAGGED),
        tuple(c for c in by_p if c.state_live in FLAGGED and c.state_shadow not in FLAGGED),
        sum(c.state_live in FLAGGED and c.state_shadow in FLAGGED for c in compared),
        (statistics.median(changes), sum(c > 0.1 for c in changes) / len(changes)) if changes else (0.0, 0.0),
    )


def _clients(
    store: ServiceStore, secrets: Secrets, tenant: str, live: Baseline, shadow: Baseline, policy: Policy
) -> Iterator[tuple[ComparedClient, bool]]:
    """The clients, and whether their two profiles hold the same queries."""
    keys = [key for key, _ in store.decisions(tenant, live.model_id) if not is_campaign(key)]
    for at in range(0, len(keys), AT_ONCE):
        some = list(fields_of(store, keys[at : at + AT_ONCE]).items())
        lives, shadows = (_assessed(some, baseline, secrets) for baseline in (live, shadow))
        for key, (one, of_live) in lives.items():
            if key not in shadows:
                yield ComparedClient(one.client_id, key.client, one.profile.queries, 1.0, 1.0, "clear", "clear"), False
                continue
            other, of_shadow = shadows[key]
            judged = (of_live, of_shadow)
            states = [wanted(a, b.calibration, policy)[0] for a, b in zip(judged, (live, shadow), strict=True)]
            same = (one.profile.queries, one.profile.first_ms) == (other.profile.queries, other.profile.first_ms)
            yield (
                ComparedClient(
                    one.client_id,
                    key.client,
                    one.profile.queries,
                    judged[0].p_value,
                    judged[1].p_value,
                    states[0],
                    states[1],
                ),
                same,
            )


def _assessed(
    clients: Sequence[tuple[ClientKey, Fields]], baseline: Baseline, secrets: Secrets
) -> dict[ClientKey, tuple[ClientRecord, Assessment]]:
    """The clients that can be read, with what a baseline says of each."""
    read = read_clients(clients, baseline, secrets)
    if read.profiles is None:
        return {}
    n = len(read.records)
    assessments = assess_columns(read.profiles, baseline, [len(r.cells) for r in read.records], [""] * n, [False] * n)
    found = dict(zip(read.keys, zip(read.records, assessments, strict=True), strict=True))
    return {key: found[key] for key, _ in clients if key in found}


def _of(baseline: Baseline, clients: Iterable[tuple[float, State, bool]], policy: Policy) -> OfBaseline:
    rows = list(clients)
    honest = [(p, state) for p, state, thief in rows if not thief]
    alarms = sum(state in FLAGGED for _, state in honest)
    return OfBaseline(
        id=baseline.id,
        flagged=sum(state in FLAGGED for _, state, _ in rows),
        honest_flagged=alarms,
        false_alarms_at_most=largest_share(alarms, len(honest), 1 - CONFIDENCE) if honest else 1.0,
        budget=policy.budget,
        shares={share: sum(p <= share for p, _ in honest) / len(honest) if honest else 0.0 for share in SHARES},
        calibration_clients=baseline.calibration.clients,
        calibrated=baseline.calibration.calibrated,
    )


def thieves_of(store: ServiceStore, tenant: str, model: str) -> frozenset[str]:
    """Hashes of the clients of a model that the last verdict about them calls thieves. Raises Unavailable."""
    said = last_verdicts(store, tenant)
    return frozenset(
        one.client
        for key, one in said.items()
        if one.verdict == "true_positive" and one.model == model and key == entry_key(model, one.client)
    )
