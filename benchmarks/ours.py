"""Our side of the detection benchmark: the product's own functions on the benchmark's clients.

Rules of the file:

* What is called is what `fit`, `ingest` and `detect` call: `rehearsal`, `Baseline.fit`, `ProfileTable`, `assess`, `wanted`.
* Contamination: thefts stand among the calibration clients, `CONTAMINATION` of all; they are not tested. Beside it the same baseline
  with everybody's say, which is what the bound of influence is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.victims import Victim
from consumers.fit import rehearsal, rehearsal_on
from detector.baseline import Baseline
from detector.calibration import UNREHEARSED, FinalExcess, Tools
from detector.features import Measured
from detector.fitting.baseline import FittedClients, Rehearsed, calibration_of, fit_baseline
from detector.patches import smallest, united
from detector.policy import FLAGGED, MIN_ODD_TO_THROTTLE, Policy, wanted
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import Assessment, assess_columns, reached
from detector.simulation.attacks import ATTACKS
from detector.simulation.domain import Rows
from detector.simulation.population import Stream

HALF_HORIZON_MS = 15 * 86_400_000
MEMORY_MS = 365 * 86_400_000
"""Horizon and memory of the service, as set by default."""
KEY = bytes(range(16))
CONTAMINATION = 0.05


ODD_FLOORS = (MIN_ODD_TO_THROTTLE, 32, 64, 150, 300, 600)


@dataclass(slots=True)
class Tested:
    """A client of the benchmark: its stream, its honest group (−1: a thief), its answers, looks and running maxima by method."""

    stream: Stream
    group: int
    answers: Rows
    courses: dict[str, tuple[NDArray[np.int64], Rows]]

    def stolen(self, queries: int) -> int:
        """Theft queries among the first so many."""
        return int(self.stream.is_attack[:queries].sum())


def as_batch(victim: Victim, clients: Sequence[Tested]) -> QueryBatch:
    lengths = [len(c.stream.inputs) for c in clients]
    return victim.batch(
        [f"{c.stream.client}-{i}" for i, c in enumerate(clients)], np.repeat(np.arange(len(clients), dtype=np.int32), lengths),
        np.vstack([c.stream.inputs for c in clients]), np.concatenate([c.stream.times_s for c in clients]),
        np.vstack([c.answers for c in clients]),
    )  # fmt: skip


def reference_of(victim: Victim) -> QueryBatch:
    n = len(victim.reference)
    return victim.batch(
        ["reference"], np.zeros(n, np.int32), victim.reference, np.zeros(n), victim.predict(victim.reference)
    )


def fitted(
    victim: Victim, calibration: Sequence[Tested], rng: np.random.Generator, rehearsed: Rehearsed
) -> tuple[Baseline, FittedClients]:
    return fit_baseline(
        victim.name, victim.schema, reference_of(victim), as_batch(victim, calibration), rng=rng,
        rehearsed=rehearsed, rehearse_on=rehearsal_on(reference_of(victim), victim.schema, 0),
    )  # fmt: skip


def rehearsed_for(victim: Victim) -> Rehearsed:
    return rehearsal(reference_of(victim), victim.schema, 0)


def profiles_of(victim: Victim, baseline: Baseline, clients: Sequence[Tested]) -> list[Profile]:
    return accounts_of(victim, baseline, clients).profiles


class Accounts(NamedTuple):
    """Profiles of clients, and their odd patches."""

    profiles: list[Profile]
    patches: list[tuple[int, ...]]


def accounts_of(victim: Victim, baseline: Baseline, clients: Sequence[Tested]) -> Accounts:
    patches: list[tuple[int, ...]] = [()] * len(clients)

    def look(poll: QueryBatch, measured: Measured) -> None:
        for client, some in smallest(poll.who, measured.patches).items():
            patches[client] = united(patches[client], some)

    table = ProfileTable(
        baseline.map, baseline.table, baseline.calibration_version, HALF_HORIZON_MS, memory_ms=MEMORY_MS
    )
    return Accounts(table.of_log(as_batch(victim, clients), KEY, measured=look), patches)


def assessed(baseline: Baseline, profiles: Sequence[Profile]) -> list[Assessment]:
    n = len(profiles)
    if not n:
        return []
    return assess_columns(ProfileColumns.of(profiles, baseline.table), baseline, [1] * n, [""] * n, [False] * n)


def is_flagged(said: Assessment, baseline: Baseline, budget: float) -> bool:
    return wanted(said, baseline.calibration, Policy(budget))[0] in FLAGGED


def alarms(
    baseline: Baseline,
    profiles: Sequence[Profile],
    said: Sequence[Assessment],
    clients: Sequence[Tested],
    budget: float,
) -> list[int | None]:
    """Queries at which each client is flagged, None if never: exactly what the product does. said: what was said of each."""
    found: list[int | None] = []
    for profile, one, client in zip(profiles, said, clients, strict=True):
        if not is_flagged(one, baseline, budget):
            found.append(None)
            continue
        at = reached(profile, baseline, budget)
        found.append(at[1] if at else len(client.stream.inputs))
    return found


def by_floor(
    said: Sequence[Assessment], clients: Sequence[Tested], budget: float, held: str
) -> dict[str, dict[str, list[int]]]:
    """What a floor under the odd queries would change: floor → known and held-out honest kinds, thefts by variant → [flagged, clients]."""
    found: dict[str, dict[str, list[int]]] = {str(floor): {} for floor in ODD_FLOORS}
    for one, c in zip(said, clients, strict=True):
        if c.group < 0 and not visible(c):
            continue
        group = c.stream.variant if c.group < 0 else "held out" if c.stream.kind == held else "known"
        for floor in ODD_FLOORS:
            cell = found[str(floor)].setdefault(group, [0, 0])
            cell[0] += one.p_value <= budget and one.odd >= floor
            cell[1] += 1
    return found


@dataclass(frozen=True, slots=True)
class Contaminated:
    """tested: who was not among the calibration's thieves; alarms with the bound of influence and without; left_out: thieves and honest
    clients excluded from calibration; thieves: how many there were."""

    tested: list[Tested]
    bounded: list[int | None]
    trusting: list[int | None]
    left_out: tuple[int, int]
    thieves: int


def contaminated(
    victim: Victim,
    calibration: Sequence[Tested],
    tested: Sequence[Tested],
    budget: float,
    rng: np.random.Generator,
    rehearsed: Rehearsed,
) -> Contaminated:
    """As if thieves had been among the clients that were presumed honest."""
    thieves = [i for i, c in enumerate(tested) if c.group < 0 and visible(c)]
    count = min(round(CONTAMINATION * len(calibration) / (1 - CONTAMINATION)), len(thieves) // 2)
    among = set(rng.choice(thieves, size=count, replace=False).tolist())
    spoilt = [*calibration, *(tested[i] for i in sorted(among))]
    baseline, fitted_clients = fitted(victim, spoilt, rng, rehearsed)
    others = [c for i, c in enumerate(tested) if i not in among]
    profiles = profiles_of(victim, baseline, others)
    bad = np.arange(len(spoilt)) >= len(calibration)
    out = (int(fitted_clients.excluded[bad].sum()), int(fitted_clients.excluded[~bad].sum()))
    bounded, trusting = (
        alarms(b, profiles, assessed(b, profiles), others, budget)
        for b in (baseline, without_exclusions(baseline, fitted_clients))
    )
    return Contaminated(others, bounded, trusting, out, count)


def without_exclusions(baseline: Baseline, fitted_clients: FittedClients) -> Baseline:
    """The same map, calibrated on all clients without a rehearsal bound."""
    return _under(baseline, fitted_clients, UNREHEARSED, baseline.calibration.tools)


def without_pseudo_clients(
    baseline: Baseline, fitted_clients: FittedClients, kinds: Sequence[str] | None = None
) -> Baseline:
    """The same calibration with no tool of these kinds (None: of any) as pseudo-clients."""
    tools = baseline.calibration.tools
    kept = np.array([kinds is not None and kind not in kinds for kind in tools.kinds], np.bool_)
    names = tuple(kind for kind, keep in zip(tools.kinds, kept, strict=True) if keep)
    return _under(
        baseline,
        fitted_clients,
        baseline.calibration.rehearsal_bound,
        Tools(
            names,
            tools.lifetime_maxima[kept],
            tools.final_values[kept],
            FinalExcess(tools.final.distinct[kept], tools.final.excess[kept]),
        ),
    )


def on_clients(baseline: Baseline, fitted_clients: FittedClients, kept: NDArray[np.bool_]) -> Baseline:
    """The same map, calibrated on some of the clients only, (g,) of those that `fitted_clients` names.

    Levels were settled with all of them, and lives of tested clients stay damped as with all of them.
    """
    some = FittedClients(
        tuple(client for client, keep in zip(fitted_clients.clients, kept, strict=True) if keep),
        tuple(one for one, keep in zip(fitted_clients.statistics, kept, strict=True) if keep),
        fitted_clients.excluded[kept],
    )
    return _under(baseline, some, baseline.calibration.rehearsal_bound, baseline.calibration.tools)


def _under(
    baseline: Baseline, fitted_clients: FittedClients, rehearsal_bound: NDArray[np.float64], tools: Tools
) -> Baseline:
    old = baseline.calibration
    calibration, _ = calibration_of(
        fitted_clients.statistics, [""] * len(fitted_clients.clients), distinct=old.distinct, days=old.days,
        simulated=np.zeros(len(fitted_clients.clients), np.bool_), rehearsal_bound=rehearsal_bound, tools=tools,
    )  # fmt: skip
    return replace(baseline, calibration=calibration)


def visible(client: Tested) -> bool:
    """Whether content can show what this thief does."""
    kind = client.stream.kind
    return kind not in ATTACKS or ATTACKS[kind].visible
