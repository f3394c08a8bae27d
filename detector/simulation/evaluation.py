"""Evaluation of one baseline: thefts of its model are simulated and assessed, to learn which of them would be caught, and when.

A theft of each family and variant is simulated several times, folded by the code that the service runs, and assessed under the baseline as
it is, with its own null distributions. It is caught when its p-value first falls to the false-alarm budget with enough odd queries. A theft
that is split over accounts is judged as the group of exactly these accounts, after each of `LOOKS`: it is a campaign that a link ties.

With the model's answers to a reference, stand-ins for the model answer the thieves (`rehearsal.StandIns`). Without them, only families
that do not look at the answers can be simulated (`BLIND`), on the reference rows that the feature map holds. Then nothing that depends on
an answer is measured: neither low margins nor changes of the label, and no exposure. So fewer thefts are caught than in the service.

Rules:

* Nothing here is a detection rate of real thefts. The families are the published ones, the thief does not know this baseline
  (`mimic` excepted), and the rows that it owns come from the same reference. docs/detection.md has the measured tables.
* The result depends on `rng` alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detector.baseline import PUBLIC_KEY, Baseline
from detector.campaigns import assess_group, merged
from detector.exposure import Exposure, estimate
from detector.policy import FLAGGED, Policy, State, wanted
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.query import UNKNOWN_LABEL, QueryBatch
from detector.scoring import Assessment, assess, reached
from detector.simulation.attacks import ATTACKS
from detector.simulation.domain import Domain, HonestPools, Predict, Rows, strangers
from detector.simulation.population import Interleaved, Stream, interleave, theft_streams
from detector.simulation.rehearsal import StandIns, batch_of

BLIND = ("noise_uniform", "noise_gauss", "permuted", "knockoff_random", "mixup", "mimic", "in_domain")
"""Families whose queries do not depend on the model's answers."""
VARIANTS = ("plain", "drip50", "sybil10")
"""How the thefts are hidden: not at all, by honest cover in half of the queries, or by ten accounts that take turns."""
LOOKS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of a split theft after which its accounts are judged together."""
FEWEST_ROWS = 20
"""Reference rows without which nothing is simulated."""


@dataclass(frozen=True, slots=True)
class RehearsedTheft:
    """One simulated theft, and what the baseline says of it.

    queries    what its accounts sent in all; stolen: how many of them belong to the theft; accounts: over how many it is split
    caught_at  queries sent when it was caught, None for never, of a split theft at the look that found it; stolen_by_then: of the theft
    p_value    at the end; state: that the policy wants then
    exposure   when it was caught, or at the end; None where the baseline or the simulation does not support it
    signal     the leading signal of its evidence, empty for none
    """

    family: str
    variant: str
    queries: int
    stolen: int
    caught_at: int | None
    stolen_by_then: int | None
    p_value: float
    state: State
    exposure: Exposure | None
    signal: str
    accounts: int = 1


@dataclass(frozen=True, slots=True)
class Scene:
    """What thefts are simulated with. answers: stand-ins for the model, empty where nobody knows its answers."""

    pools: HonestPools
    answers: tuple[Predict, ...]

    @classmethod
    def of_stand_ins(cls, found: StandIns) -> Scene:
        """The scene of a reference with answers."""
        k = found.knowledge
        classes = found.answers.argmax(1).astype(np.int64)
        return cls(HonestPools(k.domain, found.known, classes, k.own, k.foreign), found.models)

    @classmethod
    def of_map(cls, baseline: Baseline, rng: np.random.Generator) -> Scene:
        """The scene of the reference rows that the feature map holds, without answers. Raises ValueError for fewer than `FEWEST_ROWS`."""
        rows = np.asarray(baseline.map.donors, np.float64)
        rows = rows[np.isfinite(rows).all(1)]
        if len(rows) < FEWEST_ROWS:
            raise ValueError(f"the baseline holds {len(rows)} reference rows; {FEWEST_ROWS} are needed")
        coded = baseline.map.schema.categorical
        domain = Domain.of(rows, coded if coded.any() else None)
        pool, own = np.split(rows[rng.permutation(len(rows))], [len(rows) // 2])
        return cls(HonestPools(domain, pool, np.zeros(len(pool), np.int64), own, strangers(domain, pool, rng)), ())

    @property
    def families(self) -> tuple[str, ...]:
        """Families that can be simulated here."""
        return tuple(ATTACKS) if self.answers else BLIND


def evaluate(
    baseline: Baseline,
    scene: Scene,
    rng: np.random.Generator,
    *,
    families: Sequence[str] | None = None,
    variants: Sequence[str] = VARIANTS,
    repeats: int = 3,
    queries: int = 1000,
    budget: float = 0.01,
    progress: Callable[[int, int], None] = lambda done, most: None,
) -> list[RehearsedTheft]:
    """Simulate thefts and assess each under a baseline.

    Parameters
    ----------
    baseline : Baseline
    scene : Scene
    rng : Generator
        The result depends on it alone.
    families, variants : sequence of str
        Keys of `ATTACKS` and of `population.VARIANTS`. Default: all that the scene supports, `VARIANTS`.
    repeats : int
        Thefts of each family and variant.
    queries : int
        Stolen answers of each; cover traffic comes on top.
    budget : float
        Lifetime false-alarm budget at which a theft counts as caught.

    Returns
    -------
    list of RehearsedTheft
        By family, variant and repeat.

    Raises
    ------
    KeyError
        An unknown family or variant.
    """
    chosen = scene.families if families is None else tuple(families)
    found = []
    cells = [(f, v, i) for f in chosen for v in variants for i in range(repeats)]
    for number, ((family, variant, i), child) in enumerate(zip(cells, rng.spawn(len(cells)), strict=True)):
        progress(number, len(cells))
        predict = scene.answers[i % len(scene.answers)] if scene.answers else None
        asked = predict or _silent(max(2, baseline.map.classes))
        streams = theft_streams(family, variant, scene.pools, asked, child, queries)
        judged = _assessed if len(streams) == 1 else _assessed_together
        found.append(judged(streams, baseline, predict, budget))
    progress(len(cells), len(cells))
    return found


def _silent(classes: int) -> Predict:
    """The same answer to everything: what a family that looks at no answer is given."""

    def answer(rows: Rows) -> Rows:
        return np.full((len(rows), classes), 1.0 / classes)

    return answer


class _Verdict(NamedTuple):
    """What the baseline says of a theft in the end. caught_at: queries sent when it was caught; at: its profile then, or in the end."""

    assessment: Assessment
    state: State
    caught_at: int | None
    at: Profile


def _assessed(streams: Sequence[Stream], baseline: Baseline, predict: Predict | None, budget: float) -> RehearsedTheft:
    """A theft by one account."""
    log = interleave(streams)
    batch = _queries(log.inputs, baseline, predict)
    profile = _folded(batch, baseline)
    assessment = assess(profile, baseline)
    state, _ = wanted(assessment, baseline.calibration, Policy(budget))
    first = reached(profile, baseline, budget) if state in FLAGGED else None
    caught_at = first[1] if first is not None else None
    at = profile if caught_at is None else _folded(batch.take(np.arange(caught_at)), baseline)
    return _told(streams, log, _Verdict(assessment, state, caught_at, at), baseline, predict)


def _assessed_together(
    streams: Sequence[Stream], baseline: Baseline, predict: Predict | None, budget: float
) -> RehearsedTheft:
    """A theft by several accounts, judged as the group of exactly these."""
    log = interleave(streams)
    batch = dataclasses.replace(_queries(log.inputs, baseline, predict), clients=log.clients, who=log.who)
    said: list[_Verdict] = []
    for share in LOOKS:
        sent = max(1, round(share * len(log.inputs)))
        profiles = _folded_apart(batch.take(np.arange(sent)), baseline)
        assessment = assess_group(profiles, baseline)
        state, _ = wanted(assessment, baseline.calibration, Policy(budget))
        said.append(_Verdict(assessment, state, sent if state in FLAGGED else None, merged(profiles)))
        if state in FLAGGED:
            break
    return _told(streams, log, said[-1], baseline, predict)


def _told(
    streams: Sequence[Stream], log: Interleaved, said: _Verdict, baseline: Baseline, predict: Predict | None
) -> RehearsedTheft:
    return RehearsedTheft(
        family=streams[0].kind,
        variant=streams[0].variant,
        queries=len(log.is_attack),
        stolen=int(log.is_attack.sum()),
        caught_at=said.caught_at,
        stolen_by_then=None if said.caught_at is None else int(log.is_attack[: said.caught_at].sum()),
        p_value=said.assessment.p_value,
        state=said.state,
        exposure=estimate(said.at, baseline.map, baseline.estimator) if predict is not None else None,
        signal=said.assessment.evidence[0].signal if said.assessment.evidence else "",
        accounts=len(streams),
    )


def _queries(rows: Rows, baseline: Baseline, predict: Predict | None) -> QueryBatch:
    classes = max(2, baseline.map.classes)
    if predict is not None:
        return batch_of(rows, predict(rows), baseline.map.schema.task)
    batch = batch_of(rows, np.full((len(rows), classes), np.nan), baseline.map.schema.task)
    return dataclasses.replace(batch, labels=np.full(len(rows), UNKNOWN_LABEL, np.int32))


def _folded(batch: QueryBatch, baseline: Baseline) -> Profile:
    (profile,) = _folded_apart(batch, baseline)
    return profile


def _folded_apart(batch: QueryBatch, baseline: Baseline) -> list[Profile]:
    """Profiles of the clients that have a query."""
    table = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms=2**62)
    return [profile for profile in table.of_log(batch, PUBLIC_KEY) if profile.queries]
