"""Sentence embeddings in the benchmark on texts: what they add to words, and the literature and ours on the same embeddings.

    python -m benchmarks.text_embeddings [--victims manuals,reviews,chat] [--as-input reviews] [--out FILE]

Rules of the file:

* **Text by text**: an encoder with embeddings and one without learn from the same reference, honest texts and generic texts. What counts
  is the share of texts beyond the level that one in a hundred honest texts of another group exceeds, by the domain score alone. Whole
  clients are not played: with 9 ms a text that takes hours.
* **As input**: the log has no text, only embeddings of 384 numbers, which kNN, Mahalanobis, MMD and ours see alike. Clients and thefts
  are made as in `benchmarks.text_detection`, fewer of them: `CLIENTS` that calibrate, as many that are tested, one split.
* The weights are those of the extra `embeddings`; nothing is downloaded.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ours import is_flagged
from benchmarks.text_detection import BUDGETS, Client, Others, assessed, beyond, deal, lines_of, thefts
from benchmarks.text_tables import EMBEDDING_RESULTS, OURS, as_input, text_by_text
from consumers.embeddings import KEPT_BY_FIT, SentenceEmbedder
from consumers.fit import fit
from consumers.log.files import FileLog
from consumers.text_fitting import generic_texts
from detector.baseline import Baseline
from detector.fitting.texts import fit_texts
from detector.simulation.text_population import text_population
from detector.simulation.texts import TEXT_THEFTS
from detector.text import DOMAIN

CLIENTS = 30
VARIANTS = {"plain": 1, "drip5": 1}
HONEST, EACH = 500, 100
"""Texts that set the level, and texts of each family of theft."""
DECIMALS = 5
Rows = NDArray[np.float64]


def compared(name: str) -> dict[str, Any]:
    """Words alone, and with embeddings: share of each theft's texts beyond the honest level, and CPU seconds of fitting."""
    shares, embedder = deal(name), SentenceEmbedder(KEPT_BY_FIT)
    asked = [(f"c{i // 40}", text) for i, text in enumerate(shares.groups[0][:2400])]
    honest, pools = shares.groups[1][:HONEST], shares.pools(1)
    found: dict[str, Any] = {}
    for how, given in (("words", None), ("words and embeddings", embedder)):
        rng, began = np.random.default_rng([5, *name.encode()]), time.process_time()
        encoder = fit_texts(shares.reference, asked, generic_texts(), rng, given).encoder
        seconds = round(time.process_time() - began, 1)
        level = np.quantile(encoder.rows(honest)[:, DOMAIN], 0.99)
        beyond_level = {}
        for family, theft in TEXT_THEFTS.items():
            texts = theft.make(pools, EACH, np.random.default_rng([6, *family.encode()]))
            beyond_level[family] = int((encoder.rows(texts)[:, DOMAIN] > level).sum())
        found[how] = {"fit_seconds": seconds, "beyond": beyond_level}
        print(f"{name}, {how}: {seconds} s, {beyond_level}", file=sys.stderr, flush=True)
    return found


def embedded(embedder: SentenceEmbedder, texts: Sequence[str]) -> Rows:
    """Embeddings as a log has them, (n, 384)."""
    return np.array([embedder.embed(text) for text in texts], np.float64).round(DECIMALS).reshape(len(texts), -1)


def fitted_on_embeddings(name: str, reference: Rows, calibration: Sequence[Client]) -> Baseline:
    """What `querywarden fit` makes of a log that has no texts, only their embeddings."""
    answer = {"model_id": name, "prediction": {"text": "."}}
    rows = [json.dumps(answer | {"embedding": row}).encode() for row in reference.tolist()]
    of_text = {t: row for c in calibration for t, row in zip(c.stream.texts, c.rows.tolist(), strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        traffic = Path(folder) / "traffic.jsonl"
        with traffic.open("wb") as out:
            for line in lines_of(name, [c.stream for c in calibration]).splitlines():
                event = json.loads(line)
                event["embedding"] = of_text[event.pop("text")]
                out.write(json.dumps(event).encode() + b"\n")
        return fit(name, rows, FileLog([str(traffic)]), exposure=False).baseline


def run_as_input(name: str) -> dict[str, dict[str, list[int]]]:
    """method → honest kind, or family/variant → [flagged, tested]."""
    shares, embedder = deal(name), SentenceEmbedder(KEPT_BY_FIT)
    rng = np.random.default_rng([2027, *name.encode()])
    known, other = (text_population(shares.pools(g), rng, clients=CLIENTS) for g in range(2))
    tested = [*other, *thefts(shares.pools(0), rng, VARIANTS)]
    reference = embedded(embedder, shares.reference)
    calibration, clients = ([Client(s, embedded(embedder, s.texts)) for s in group] for group in (known, tested))
    print(f"{name}: embedded", file=sys.stderr, flush=True)
    baseline = fitted_on_embeddings(name, reference, calibration)
    said = assessed(baseline, clients)
    found = {f"{OURS} @ {budget:g}": [is_flagged(one, baseline, budget) for one in said] for budget in BUDGETS}
    others = Others(reference, calibration)
    statistics: dict[str, Callable[[Client], float]] = {
        "kNN share": partial(others.share, "knn"),
        "Mahalanobis share": partial(others.share, "mahalanobis"),
        "MMD, window 1,500": others.mmd,
    }
    for method, statistic in statistics.items():
        maxima, values = (np.array([statistic(c) for c in group]) for group in (calibration, clients))
        for budget in BUDGETS:
            found[f"{method} @ {budget:g}"] = beyond(maxima, values, budget)
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for method, flags in found.items():
        for stream, flag in zip(tested, flags, strict=True):
            cell = counts[method][stream.kind if stream.role == "benign" else f"{stream.kind}/{stream.variant}"]
            cell[0] += flag
            cell[1] += 1
    return {m: dict(cells) for m, cells in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ours and the literature on sentence embeddings of real texts.")
    parser.add_argument("--victims", default="manuals,reviews,chat", help="compared text by text")
    parser.add_argument("--as-input", default="reviews", help="victims whose log has embeddings only")
    parser.add_argument("--out", type=Path, default=EMBEDDING_RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"clients": CLIENTS, "honest": HONEST, "each": EACH, "texts": {}, "as_input": {}}
    for part, names, run in (
        ("texts", arguments.victims, compared),
        ("as_input", arguments.as_input, run_as_input),
    ):
        for name in filter(None, names.split(",")):
            results[part][name] = run(name)
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(text_by_text(results), as_input(results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
