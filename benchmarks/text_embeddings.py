"""Sentence embeddings in the benchmark on texts: what they add to words, text by text.

    python -m benchmarks.text_embeddings [--victims manuals,reviews,chat] [--out FILE]

Rules of the file:

* **Text by text**: an encoder with embeddings and one without learn from the same reference, honest texts and generic texts. What counts
  is the share of texts beyond the level that one in a hundred honest texts of another group exceeds, by the domain score alone. Whole
  clients are not played: with 9 ms a text that takes hours.
* The weights are those of the extra `embeddings`; nothing is downloaded.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.text_detection import deal
from benchmarks.text_tables import EMBEDDING_RESULTS, text_by_text
from consumers.embeddings import KEPT_BY_FIT, SentenceEmbedder
from consumers.text_fitting import generic_texts
from detector.fitting.texts import fit_texts
from detector.simulation.texts import TEXT_THEFTS
from detector.text import DOMAIN

HONEST, EACH = 500, 100
"""Texts that set the level, and texts of each family of theft."""


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Words, and words with sentence embeddings, on real texts.")
    parser.add_argument("--victims", default="manuals,reviews,chat")
    parser.add_argument("--out", type=Path, default=EMBEDDING_RESULTS, help="where the figures go")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"honest": HONEST, "each": EACH, "texts": {}}
    for name in arguments.victims.split(","):
        results["texts"][name] = compared(name)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(text_by_text(results), flush=True)


if __name__ == "__main__":
    main()
