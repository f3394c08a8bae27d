"""Compiles every kernel of the service once, into ``NUMBA_CACHE_DIR``: the image is built with it, so that a new worker polls at once.

    NUMBA_CACHE_DIR=FOLDER python examples/warm_kernels.py

It does what the service does, small: fits two models (a table with categories, wide embeddings), folds a log of each with event ids and
metadata, assesses the clients, and reads them back from the store.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from consumers import fit, replay
from consumers.detect.step import Detect
from consumers.ingest.admission import AdmissionLimits
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.policy import Policy

CLIENTS, QUERIES = 25, 20


def event(row: np.ndarray, form: str, rng: np.random.Generator) -> dict[str, Any]:
    values: list[Any] = row.tolist()
    if form == "features":
        values[-1] = ("red", "green", "blue")[int(rng.integers(3))]
    p = 1 / (1 + np.exp(-row[:3].sum()))
    return {"model_id": form, form: values, "prediction": {"label": int(p > 0.5), "probabilities": [1 - p, p]}}


def lines(form: str, width: int, rng: np.random.Generator, clients: int) -> list[bytes]:
    found = []
    rows = rng.normal(size=(clients * QUERIES if clients else 200, width)).round(3)
    for i, row in enumerate(rows):
        asked: dict[str, Any] = {}
        if clients:
            asked = {"timestamp": f"2026-03-02T09:{i // 60 % 60:02}:{i % 60:02}Z", "client_id": f"acct-{i % clients}", "event_id": f"q{i}",
                     "metadata": {"ip": f"198.51.100.{i % clients}", "session": f"s{i % clients}"}}  # fmt: skip
        found.append(json.dumps(event(row, form, rng) | asked).encode())
    return found


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="querywarden-warm-") as name:
        folder = Path(name)
        baselines, logs = {}, []
        for form, width in (("features", 8), ("embedding", 96)):
            log = folder / f"{form}.jsonl"
            log.write_bytes(b"\n".join(lines(form, width, rng, CLIENTS)) + b"\n")
            logs.append(str(log))
            baselines[form] = fit.fit(form, lines(form, width, rng, 0), FileLog([str(log)])).baseline
        secrets = Secrets.load(folder / "secrets.json", create=True)
        store = EmbeddedStore(folder / "warm.sqlite")
        store.prepare(secrets.key_id)
        for limits in (AdmissionLimits(), AdmissionLimits(new_an_hour=3)):  # the second with clients that are pooled
            reading = Ingest(baselines=baselines, secrets=secrets, limits=limits)
            source = FileLog(logs)
            replay.replay(source, store, reading, Detect(baselines, secrets, Policy(0.01, "observe")))
            source.close()
            logs.reverse()  # another log to the store, and profiles that it holds already
        store.close()
    print("kernels compiled")


if __name__ == "__main__":
    main()
