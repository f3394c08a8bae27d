"""The demo on texts: real thefts of a model that sorts questions about mathematical software.

A classifier is trained on paragraphs of SciPy's documentation: which part of SciPy is a paragraph about? Its owner has a sample of
ordinary inputs and the log of 150 honest clients. Then 80 other honest clients and 14 thieves use the model for two weeks, and QueryWarden
reads the log. All paragraphs are real, and each belongs to one side only; what thieves bring along are paragraphs of other software's
documentation. What clients ask is simulated (detector/simulation/texts.py).

    make demo TEXT=1            leaves the report on http://127.0.0.1:8080 until Ctrl-C
    make demo TEXT=1 ONCE=1     ends when the report is written
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

from consumers import replay, terminal
from consumers.readers.report import write_report
from consumers.simulate import truth_path, write_json
from consumers.text_simulation import truth_of_texts, write_text_log, write_text_reference
from detector.simulation.text_population import TextStream, text_population
from detector.simulation.texts import TextPools
from examples import demo
from examples.demo import BUDGET, OUT, SEED, START_S, TEST_START_S, Show, console

MODEL = "manuals"
TOPICS = ("stats", "signal", "optimize", "sparse", "interpolate", "spatial", "linalg")
FOREIGN = ("kafka", "redis", "rich", "pydantic", "pyarrow", "jinja2", "fastapi")
CALIBRATION_CLIENTS, TEST_CLIENTS = 150, 80
REFERENCE = 500
MOST = 6000
THEFTS = [
    ("topic_sweep", "plain"), ("template_sweep", "plain"), ("seed_paraphrase", "plain"), ("self_instruct", "plain"),
    ("elicitation", "plain"), ("trial_series", "plain"), ("nonsense", "plain"), ("copycat", "plain"), ("knockoff", "plain"),
    ("in_domain", "plain"), ("knockoff", "drip50"), ("topic_sweep", "drip5"), ("copycat", "slow"), ("elicitation", "drip50"),
]  # fmt: skip


class Classifier:
    """The model that is asked."""

    def __init__(self, texts: Sequence[str], topics: Sequence[str]) -> None:
        self._model: Any = make_pipeline(
            TfidfVectorizer(min_df=2, sublinear_tf=True), LogisticRegression(C=10.0, max_iter=300)
        )
        self._model.fit(list(texts), list(topics))

    def right(self, texts: Sequence[str], topics: Sequence[str]) -> float:
        return float(self._model.score(list(texts), list(topics)))

    def answer(self, texts: Sequence[str], rng: np.random.Generator) -> list[dict[str, Any]]:
        likely = np.round(self._model.predict_proba(list(texts)), 6)
        names = self._model.classes_.tolist()
        return [
            {"label": names[k], "probabilities": p}
            for k, p in zip(likely.argmax(1).tolist(), likely.tolist(), strict=True)
        ]


def paragraphs(package: str) -> Iterator[tuple[str, str]]:
    """(sub-package, paragraph) of an installed package's docstrings; nothing of it is imported."""
    found = importlib.util.find_spec(package)
    for root in (found.submodule_search_locations or []) if found is not None else []:
        for path in sorted(Path(root).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
            for node in ast.walk(tree) if "tests" not in path.parts else ():
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                        flat = " ".join(paragraph.split())
                        if 40 <= len(flat) <= 400 and len(re.findall(r"[a-z]{3,}", flat)) >= 8 and ">>>" not in flat:
                            yield path.relative_to(root).parts[0], flat


def prepare(rng: np.random.Generator, show: Show) -> tuple[list[TextStream], dict[str, Path]]:
    """Train the victim, make both populations, write reference, calibration log and test log."""
    show("training the victim", 0, 1, "")
    known = {text: topic for topic, text in paragraphs("scipy") if topic in TOPICS}
    texts = [list(known)[i] for i in rng.permutation(len(known))[:MOST].tolist()]
    topics = [known[text] for text in texts]
    cut = [len(texts) // 4, len(texts) // 4 + REFERENCE]
    own = cut[1] + len(texts) // 8
    half = own + (len(texts) - own) // 2
    victim = Classifier(texts[: cut[0]], topics[: cut[0]])
    show(
        "training the victim", 1, 1, f"{victim.right(texts[own:half], topics[own:half]):.0%} right on fresh paragraphs"
    )
    paths = {name: OUT / f"{MODEL}-{name}.jsonl.zst" for name in ("reference", "calibration", "test")}
    sample = texts[cut[0] : cut[1]]
    write_text_reference(paths["reference"], MODEL, sample, victim.answer(sample, rng))
    foreign = list(dict.fromkeys(text for package in FOREIGN for _, text in paragraphs(package)))
    foreign = [foreign[i] for i in rng.permutation(len(foreign))[:3000].tolist()]
    swept = [(max(re.findall(r"[a-z]+", text.lower()), key=len), text) for text in foreign]
    streams: list[TextStream] = []
    for name, items, clients, thefts, start_s in (
        ("calibration", texts[own:half], CALIBRATION_CLIENTS, [], START_S),
        ("test", texts[half:], TEST_CLIENTS, THEFTS, TEST_START_S),
    ):
        pools = TextPools(items, texts[cut[1] : own], foreign, swept)
        streams = text_population(pools, rng, clients=clients, attacks=thefts, queries=(300, 1500), start_s=start_s)
        show(
            f"writing the {name} log",
            0,
            1,
            f"{sum(len(s.texts) for s in streams):,} queries of {len(streams)} accounts",
        )
        write_text_log(paths[name], MODEL, streams, victim.answer, rng)
        show(
            f"writing the {name} log",
            1,
            1,
            f"{sum(len(s.texts) for s in streams):,} queries of {len(streams)} accounts",
        )
    write_json(truth_path(paths["test"]), {"model_id": MODEL, "clients": truth_of_texts(streams)})
    return streams, paths


def main() -> int:
    began = time.monotonic()
    page = OUT / "text-report"
    page.mkdir(parents=True, exist_ok=True)
    console.print("[bold]QueryWarden demo[/]: who is copying the model of texts?\n")
    with threadpool_limits(1), Progress(*demo.columns(), console=console) as progress:
        show = demo.shown(progress)
        streams, paths = prepare(np.random.default_rng(SEED), show)
        baseline = demo.learn(MODEL, paths, show)
        result = demo.watch(baseline, paths["test"], show)
    console.print()
    demo.print_table(result, streams, {})
    demo.print_verdict(
        result, streams, "A thief that owns texts like those of honest clients (in_domain) asks what everybody asks."
    )
    note = "The demo: real texts and a real model; what honest clients and thieves ask is simulated. QueryWarden did not see the truth."
    report = replay.report_of(
        result,
        {MODEL: baseline},
        BUDGET,
        title="Who is copying the model of texts?",
        truth=truth_of_texts(streams),
        notes=[note],
    )
    write_report(page / "index.html", report)
    console.print(
        f"\nReport: {page / 'index.html'} · logs, truth, baseline: {OUT}/ · {time.monotonic() - began:.0f} s in all"
    )
    if os.environ.get("ONCE", "") in ("", "0"):
        with terminal.stopping() as stop:
            demo.serve(MODEL, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
