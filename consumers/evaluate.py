"""Evaluate a baseline: which simulated thefts of its model would be caught, after how many queries, and at what exposure.

Rules:
* With a reference (inputs with the model's answers), stand-ins for the model are fitted and answer the thieves. Without one, only families
  that look at no answer are simulated, on the reference rows that the baseline holds, and there is no exposure.
* What was simulated is said beside every figure (`limits_of`). Nothing is extrapolated: a theft that was not caught within its queries
  counts as not caught.
* A tool, not a service: it loads `detector.simulation`, and scikit-learn where a reference is given.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from consumers.errors import InvalidInput, WrongUse
from consumers.fit import filled
from consumers.log.references import ReferenceLine, read_reference, reference_batch
from consumers.readers.evaluation import EvaluatedFamily, EvaluationReport
from detector.baseline import Baseline
from detector.exposure import Exposure
from detector.simulation.attacks import ATTACKS
from detector.simulation.evaluation import BLIND, LOOKS, VARIANTS, RehearsedTheft, Scene
from detector.simulation.evaluation import evaluate as simulate_thefts
from detector.simulation.population import VARIANTS as ALL_VARIANTS
from detector.simulation.rehearsal import stand_ins

MOST_THEFTS = 2_000


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """What to simulate. families: keys of `ATTACKS`, empty for all that can be; queries: stolen answers of each theft."""

    families: tuple[str, ...] = ()
    variants: tuple[str, ...] = VARIANTS
    repeats: int = 3
    queries: int = 1000
    budget: float = 0.01
    seed: int = 0

    def check(self) -> None:
        """Raises WrongUse for what cannot be simulated."""
        for names, known, what in ((self.families, ATTACKS, "family"), (self.variants, ALL_VARIANTS, "variant")):
            for name in names:
                if name not in known:
                    raise WrongUse(f"unknown {what} {name!r}; there are: {', '.join(known)}")
        if not 0 < self.budget < 0.5:
            raise WrongUse("the false-alarm budget must be above 0 and below 0.5")
        if len(self.families or ATTACKS) * len(self.variants) * self.repeats > MOST_THEFTS:
            raise WrongUse(f"more than {MOST_THEFTS} thefts: ask for fewer families, variants or repeats")


def evaluate(
    baseline: Baseline,
    reference: Iterable[bytes | ReferenceLine] | None,
    asked: EvaluationRequest,
    progress: Callable[[int, int], None] = lambda done, most: None,
) -> EvaluationReport:
    """Simulate thefts of the baseline's model. Raises WrongUse for a wrong call, InvalidInput for a reference that is unfit."""
    asked.check()
    rng = np.random.default_rng(asked.seed)
    scene, said = _scene(baseline, reference, rng)
    unknown = [name for name in asked.families if name not in scene.families]
    if unknown:
        raise WrongUse(
            f"these families look at the model's answers, so they need --reference: {', '.join(unknown)}; without it: {', '.join(BLIND)}"
        )
    thefts = simulate_thefts(
        baseline, scene, rng, families=asked.families or None, variants=asked.variants, repeats=asked.repeats,
        queries=asked.queries, budget=asked.budget, progress=progress,
    )  # fmt: skip
    cells: dict[tuple[str, str], list[RehearsedTheft]] = {}
    for theft in thefts:
        cells.setdefault((theft.family, theft.variant), []).append(theft)
    rows = tuple(_row(family, variant, found) for (family, variant), found in cells.items())
    return EvaluationReport(baseline.model_id, asked.budget, asked.queries, rows, (*said, *limits_of(baseline, asked)))


def _scene(
    baseline: Baseline, reference: Iterable[bytes | ReferenceLine] | None, rng: np.random.Generator
) -> tuple[Scene, list[str]]:
    """What thefts are simulated with, and what there is to say of it."""
    if reference is None:
        try:
            scene = Scene.of_map(baseline, rng)
        except ValueError as error:
            raise InvalidInput(f"{error}; give --reference") from error
        return scene, [
            (
                f"No reference was given, so the thieves got no answers: only the {len(BLIND)} families that look at none were simulated,"
                " signals that need an answer took no part, and exposure is not known."
            )
        ]
    raw = read_reference(reference, baseline.model_id)
    batch, left_out = reference_batch(raw, baseline.map.schema)
    if not len(batch):
        raise InvalidInput(f"no row of the reference can be used ({left_out.words()}; {left_out.first()})")
    batch = filled(batch, rng)
    found = stand_ins(baseline.map, batch, batch.take(np.arange(0)), rng)
    if found is None:
        raise InvalidInput(
            "the reference gives no stand-in for the model: it needs labels of two classes or values that differ, and 100 distinct rows;"
            " leave --reference out to simulate thieves that look at no answer"
        )
    said = [
        "Two stand-ins that were trained on the reference's answers took the model's place; the model itself was not asked."
    ]
    if baseline.estimator is None:
        said.append(
            "The baseline was fitted without the rehearsal of thefts (fit --no-exposure), so exposure is not known."
        )
    return Scene.of_stand_ins(found), said


def limits_of(baseline: Baseline, asked: EvaluationRequest) -> list[str]:
    """What the figures do not show."""
    known = baseline.calibration
    said = [
        (
            f"Each theft was simulated {asked.repeats} times with {asked.queries:,} stolen answers. One that was not caught"
            " by then counts as not caught."
        ),
        *_limits_of_split_thefts(asked.variants),
        (
            "The thieves know published methods and nothing of this baseline, and their own rows come from the same reference. A thief"
            " that knows the detector is caught later or not at all."
        ),
        (
            f"Caught means: the lifetime p-value fell to the budget of {asked.budget:g}. So does that of an honest client, with that"
            f" probability, as far as {known.source} of the calibration show."
        ),
    ]
    if not known.supports(asked.budget):
        said.append("The calibration has too few clients for this budget: small p-values rest on a tail model.")
    return said


def _limits_of_split_thefts(variants: Sequence[str]) -> list[str]:
    if all(ALL_VARIANTS[name].accounts == 1 for name in variants):
        return ["Thefts split over accounts were not simulated."]
    looks = ", ".join(f"{share:.3g}" for share in LOOKS)
    return [
        (
            "A theft split over accounts was judged as one group of exactly these accounts, as if an organisation, a device or a means of"
            f" payment tied them, after these shares of its queries: {looks}. Accounts that nothing ties, or that honest accounts stand"
            " among, are found less often (docs/detection.md)."
        )
    ]


def _row(family: str, variant: str, thefts: Sequence[RehearsedTheft]) -> EvaluatedFamily:
    caught = sorted(t.caught_at for t in thefts if t.caught_at is not None)
    shares = [t.exposure for t in thefts if t.exposure is not None and t.caught_at is not None]
    missed = [t.exposure for t in thefts if t.exposure is not None and t.caught_at is None]
    return EvaluatedFamily(
        family=family,
        variant=variant,
        text=ATTACKS[family].text,
        visible=ATTACKS[family].visible,
        thefts=len(thefts),
        caught=len(caught),
        queries=tuple(caught),
        median=int(statistics.median(caught)) if caught else None,
        exposure=_middle(shares),
        missed_exposure=_middle(missed),
        signal=statistics.mode([t.signal for t in thefts]),
    )


def _middle(found: Sequence[Exposure]) -> Exposure | None:
    """Medians of several exposures and of both ends of their intervals."""
    if not found:
        return None
    return Exposure(*(round(statistics.median(values), 4) for values in zip(*map(_values, found), strict=True)))


def _values(exposure: Exposure) -> tuple[float, float, float]:
    return exposure.fidelity, exposure.low, exposure.high
