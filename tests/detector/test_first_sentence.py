"""The first sentence of a finding says what is most telling about the theft."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from support import victims
from support.references import KEY, answers, batch_of, fitted_baseline, reference_of

from detector.baseline import Baseline
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import Assessment, assess, leading
from detector.signals import FLOOR, FUSED, SIGNAL_NAMES, SIGNALS, Statistics
from detector.simulation.attacks import AttackerKnowledge, steal
from detector.simulation.domain import Domain
from detector.simulation.population import Stream, interleave

SEEDS = (1, 2, 3)
FLAGGED = 0.01
NATURE = {
    "noise_uniform": {"are far from everything"},
    "noise_gauss": {"are far from everything"},
    "knockoff_random": {"are far from everything", "break the dependence"},
    "copycat": {"are far from everything", "break the dependence"},
    "jbda": {"moved by one and the same step"},
    "trnd": {"moved by one and the same step"},
    "line_search": {"continue along the line", "get another answer", "on the model's decision boundary"},
    "mixup": {"look like blends"},
}
"""Family of theft → what its first sentence says."""


def said(baseline: Baseline, client: str, batch: QueryBatch) -> Assessment:
    profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, 2**62, capacity=32)
    profiles.add(list(batch.clients), batch, baseline.map.measure(batch, KEY))
    return assess(profiles.profile(client), baseline)


def of_streams(streams: list[Stream]) -> QueryBatch:
    whole = interleave(streams)
    p = victims.predict(whole.inputs)
    return batch_of(
        np.asarray(whole.inputs), who=np.asarray(whole.who, np.int32), labels=p.argmax(axis=1).astype(np.int32),
        probabilities=p.astype(np.float32),
    )  # fmt: skip


def on_loans(family: str, seed: int) -> Assessment:
    thieves = victims.streams(1, [(family, "plain")], seed=seed, queries=(700, 900), kinds=["light"])
    return said(victims.baseline(), "client 0", of_streams([s for s in thieves if s.role == "attack"]))


def on_people(family: str, seed: int) -> Assessment:
    """The loans' blends stay within what their honest clients do, so blends are asked of a table with categories."""
    rows, rng = reference_of("people").batch.inputs, np.random.default_rng(seed)

    def predict(asked: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(answers(np.vstack([asked, rows]), 4)[: len(asked)], np.float64)

    own = rows[rng.permutation(len(rows))[:100]]
    asked = steal(family, AttackerKnowledge(Domain.of(rows), own, own), predict, 800, rng)
    p = predict(asked)
    batch = batch_of(asked, labels=p.argmax(axis=1).astype(np.int32), probabilities=p.astype(np.float32))
    return said(fitted_baseline("people"), "client 0", batch)


@pytest.mark.parametrize("family", NATURE)
def test_the_first_sentence_names_the_nature_of_the_theft(family: str) -> None:
    """In every one of three thefts, all of which are flagged."""
    found = [(on_people if family == "mixup" else on_loans)(family, seed) for seed in SEEDS]
    assert max(a.p_value for a in found) <= FLAGGED
    first = Counter(a.evidence[0].text for a in found)
    named = sum(n for text, n in first.items() if any(words in text for words in NATURE[family]))
    assert named == len(SEEDS), first


def test_the_family_is_that_of_the_first_sentence() -> None:
    families = {s.name: s.family for s in SIGNALS}
    for family in ("noise_uniform", "jbda", "line_search"):
        a = on_loans(family, SEEDS[0])
        assert a.family == families[a.strongest]


def statistics(**signals: tuple[float, float]) -> Statistics:
    """Signal → (value in honest units, share of its base)."""
    value, count, base = np.zeros(len(SIGNAL_NAMES)), np.zeros(len(SIGNAL_NAMES)), np.full(len(SIGNAL_NAMES), 1000.0)
    for name, (units, share) in signals.items():
        i = SIGNAL_NAMES.index(name)
        value[i], count[i] = units * FLOOR[i], share * 1000
    return Statistics(value, count, base, value, excess=value, distinct=1000.0)


@pytest.mark.parametrize(
    ("signals", "first"),
    [
        ({"mix_beyond": (15, 0.9), "novelty_dense": (13, 0.95)}, "novelty_dense"),
        ({"mix_beyond": (15, 0.9), "novelty_dense": (13, 0.2)}, "mix_beyond"),  # the far ones are only a part of it
        ({"mix_beyond": (15, 0.9), "novelty_dense": (0.9, 0.95)}, "mix_beyond"),  # honest clients are as far
        ({"mix_beyond": (7, 0.6), "stepped_pairs": (3, 0.03)}, "stepped_pairs"),
        ({"mix_beyond": (30, 0.6), "stepped_pairs": (3, 0.03)}, "mix_beyond"),
        ({"flipped": (4, 0.1), "collinear": (6, 0.1), "mix_roots": (7, 0.4)}, "collinear"),  # of two pairs, the larger
        ({"lattice_roots": (3, 1.0), "mix_roots": (8, 0.8)}, "mix_roots"),
        ({"mix_rare": (50, 0.9)}, None),  # no part of the fused score
    ],
)
def test_the_more_specific_claim_leads_where_it_explains_the_same_queries(
    signals: dict[str, tuple[float, float]], first: str | None
) -> None:
    found = statistics(**signals)
    strongest = [int(i) for i in np.argsort(-found.value / FLOOR) if FUSED[i] and found.value[i] > 0]
    lead = leading(strongest, (found.value / FLOOR).tolist(), (found.count / found.base).tolist())
    assert (None if lead is None else SIGNAL_NAMES[lead]) == first
