"""The detection benchmark on texts with sentence embeddings: whole clients, ours and the literature on the same embeddings.

    python -m benchmarks.text_meanings [--short] [--victims reviews,chat,manuals] [--cache FOLDER] [--out FILE]

A text costs some 10 ms to embed and a client has hundreds, so this is a smaller world than that of `benchmarks.text_detection`: fewer
clients and rehearsed tools, one split, and of each client the first `PROMPTS` prompts. Embeddings are kept in FOLDER, outside the
repository: a run that was stopped goes on, and victims that were measured before stay in FILE.

Rules of the file:

* Per model of texts: ours as `fit` fits it by words alone, ours as `fit --embeddings` does, and kNN, Mahalanobis and MMD as published on
  the embeddings themselves; the same clients, the same budgets, one table.
* ``vectors`` is a model whose input *is* the embedding, as a gateway may log it: a classifier of what a drug review says, on the same
  clients' texts as ``reviews``. `fit` treats it as a table of numbers. The texts that it was trained on are in no share.
* One group of honest clients calibrates, the other is tested; cover traffic of thefts comes from the pool of those who are tested.
* The control is the family ``in_domain``, honest texts from a thief's account, as in the larger benchmark.
* No measure was chosen on a victim of this file.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.embedding_cache import CachedEmbedder
from benchmarks.ours import is_flagged
from benchmarks.text_detection import BUDGETS, Shares, assessed, batch_of, deal, fitted, ratings, thefts
from benchmarks.text_others import Client, OthersOnEmbeddings, beyond
from benchmarks.text_tables import (
    BOTH,
    MEANING_RESULTS,
    OURS,
    VECTORS,
    WORDS,
    by_family_and_encoder,
    meanings,
)
from consumers import fit
from consumers.embeddings import IDENTITY
from detector.baseline import Baseline
from detector.query import QueryBatch
from detector.scoring import Assessment
from detector.simulation.text_population import TextStream, text_population

CLIENTS, PROMPTS = 50, 1500
TOOLS, ODD_TOOLS = 6, 12
"""Rehearsed tools of a kind, and of each that is odd by trade: half as many as `fit` has, because each of their texts is embedded."""
VARIANTS = {"plain": 2, "drip50": 1, "drip5": 2}
TRAINED = 400
"""Texts of each honest share that the model of vectors is trained on."""
VICTIMS = ("reviews", "chat", "manuals")
CACHE = Path("~/.cache/querywarden-benchmarks").expanduser()
Figures = dict[str, dict[str, list[int]]]


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """The clients of a victim, and what embeds their texts. trained: texts in no share."""

    shares: Shares
    trained: list[str]
    calibration: list[TextStream]
    tested: list[TextStream]
    embedder: CachedEmbedder


def world(name: str, folder: Path, clients: int, variants: dict[str, int]) -> World:
    shares = deal(name)
    trained = [text for group in shares.groups for text in group[:TRAINED]]
    first, second = (group[TRAINED:] for group in shares.groups)
    shares = dataclasses.replace(shares, groups=(first, second))
    rng = np.random.default_rng([2027, *name.encode()])
    honest = [text_population(shares.pools(g), rng, clients=clients) for g in range(2)]
    tested = [*honest[1], *thefts(shares.pools(1), rng, variants)]
    embedder = CachedEmbedder(folder / f"{name}-{IDENTITY.rpartition('/')[2]}.embeddings")
    return World(shares, trained, [*map(begun, honest[0])], [*map(begun, tested)], embedder)


def begun(stream: TextStream) -> TextStream:
    """The first `PROMPTS` prompts of a client."""
    return dataclasses.replace(
        stream, texts=stream.texts[:PROMPTS], is_attack=stream.is_attack[:PROMPTS], times_s=stream.times_s[:PROMPTS]
    )


def by_words(of: World, name: str, embedder: CachedEmbedder | None) -> tuple[Baseline, list[Assessment]]:
    """Ours, by words alone or with embeddings: the baseline, and what it says of each tested client."""
    with mock.patch.multiple(fit, REHEARSED_A_KIND=TOOLS, REHEARSED_STAND_INS=ODD_TOOLS):
        baseline = fitted(name, of.shares.reference, of.calibration, embeddings=embedder or False)
    encoder = baseline.map.schema.encoder
    if encoder is None:
        raise RuntimeError("a baseline of texts has an encoder")
    return baseline, assessed(baseline, (batch_of(Client(s, encoder.rows(s.texts))) for s in of.tested))


class VectorModel:
    """A classifier whose input is an embedding, and its log."""

    def __init__(self, of: World) -> None:
        self.rows = functools.cache(lambda text: of.embedder.embed(text).astype(np.float64).round(6))
        said = ratings()
        self.model = LogisticRegression(C=10.0, max_iter=1000)
        self.model.fit(np.array([self.rows(text) for text in of.trained]), [said[text] for text in of.trained])

    @functools.cache  # noqa: B019 - one model a run
    def said(self, text: str) -> str:
        """Input and answer of an event."""
        row = self.rows(text)
        likely = self.model.predict_proba(row[None])[0].round(6)
        answer = {"label": self.model.classes_[likely.argmax()], "probabilities": likely.tolist()}
        return f'"embedding": {json.dumps(row.tolist())}, "prediction": {json.dumps(answer)}'

    def batch_of(self, stream: TextStream, labels: Sequence[str]) -> QueryBatch:
        """The queries of a client as the decoder would give them; labels: classes in the order of the schema."""
        rows = np.array([self.rows(text) for text in stream.texts])
        likely = self.model.predict_proba(rows).round(6)
        likely = likely[:, [self.model.classes_.tolist().index(label) for label in labels]]
        n = len(rows)
        return QueryBatch(
            [stream.client], np.zeros(n, np.int32), rows, likely.argmax(1).astype(np.int32), likely.astype(np.float32),
            np.full(n, np.nan), np.round(stream.times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n),
        )  # fmt: skip


def by_vectors(of: World) -> tuple[Baseline, list[Assessment]]:
    """Ours on a model whose input is the embedding."""
    model = VectorModel(of)
    baseline = fitted(VECTORS, of.shares.reference, of.calibration, model.said)
    labels = baseline.map.schema.labels
    return baseline, assessed(baseline, (model.batch_of(s, labels) for s in of.tested))


def flags_of(method: str, baseline: Baseline, said: Sequence[Assessment]) -> dict[str, list[bool]]:
    return {f"{method} @ {budget:g}": [is_flagged(one, baseline, budget) for one in said] for budget in BUDGETS}


def flags_of_others(of: World) -> dict[str, list[bool]]:
    """Who is flagged by the literature, on the embeddings."""
    known, tested = ([Client(s, of.embedder.rows(s.texts)) for s in streams] for streams in (of.calibration, of.tested))
    others = OthersOnEmbeddings(of.embedder.rows(of.shares.reference), known)
    statistics: dict[str, Callable[[Client], float]] = {
        "kNN share, embeddings": functools.partial(others.share, "knn"),
        "Mahalanobis share, embeddings": functools.partial(others.share, "mahalanobis"),
        "MMD as published, embeddings": others.mmd,
    }
    found = {}
    for method, statistic in statistics.items():
        maxima, values = np.array([statistic(c) for c in known]), np.array([statistic(c) for c in tested])
        for budget in BUDGETS:
            found[f"{method} @ {budget:g}"] = beyond(maxima, values, budget)
    return found


def counted(tested: Sequence[TextStream], found: dict[str, list[bool]]) -> Figures:
    """method @ budget → honest kind or family/variant → [flagged, tested]."""
    counts: Figures = {}
    for method, flags in found.items():
        cells = counts[method] = {}
        for s, flag in zip(tested, flags, strict=True):
            cell = cells.setdefault(s.kind if s.role == "benign" else f"{s.kind}/{s.variant}", [0, 0])
            cell[0] += flag
            cell[1] += 1
    return counts


def measured(name: str, folder: Path, clients: int, variants: dict[str, int]) -> dict[str, Any]:
    """Figures of a victim, and of the model of vectors where there are ratings; how many texts were embedded."""
    began, of = time.monotonic(), world(name, folder, clients, variants)

    def tell(what: str) -> None:
        print(f"{name}: {what}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    found = flags_of(WORDS, *by_words(of, name, None))
    tell("words")
    baseline, said = by_words(of, name, of.embedder)
    tell("words and embeddings")
    found |= flags_of(BOTH, baseline, said)
    others = flags_of_others(of)
    tell("the literature")
    found |= others
    figures = {name: counted(of.tested, found)}
    if name == "reviews":
        figures[VECTORS] = counted(of.tested, flags_of(OURS, *by_vectors(of)) | others)
        tell("vectors")
    of.embedder.write()
    return {"victims": figures, "embedded": len(of.embedder.asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ours with sentence embeddings, and the literature on them.")
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for embeddings, some 200 MB a victim")
    parser.add_argument(
        "--short", action="store_true", help="25 clients of one victim, one theft a family, prints only"
    )
    parser.add_argument("--out", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    clients, variants = (25, {"plain": 1}) if arguments.short else (CLIENTS, VARIANTS)
    out = arguments.out or (None if arguments.short else MEANING_RESULTS)
    results: dict[str, Any] = {"clients": clients, "prompts": PROMPTS, "splits": 1, "embedded": {}, "victims": {}}
    if out is not None and out.exists():
        before = json.loads(out.read_text(encoding="utf-8"))
        if all(before[key] == results[key] for key in ("clients", "prompts", "splits")):
            results = before
    for name in ["chat"] if arguments.short else arguments.victims.split(","):
        found = measured(name, arguments.cache, clients, variants)
        results["embedded"][name] = found["embedded"]
        results["victims"] |= found["victims"]
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")
        print(meanings(results), by_family_and_encoder(results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
