"""What sealing records costs ingest: the same log with and without it, in turns within one run.

    python -m benchmarks.sealing [--short] [--out FILE]

Rules of the file:

* Every figure is CPU time of this process (user + system). A turn reads one recorded log into an empty SQLite store with `IngestLoop`.
* Turns of a block stand in the order off, sealed, twice, twice, sealed, off, so that a drift of the machine falls on all three alike. The
  figure is the ratio of sums over all blocks; its interval is a bootstrap over blocks (95 %, 10,000 draws).
* Garbage of earlier turns is collected between turns: a full collection costs as much as a turn, and fell on some of them.
* The control, `twice`, encrypts each record a second time and throws the first result away. A benchmark that did not see it dearer could
  not see the cost of sealing either.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.throughput import events, fitted
from benchmarks.traffic import MODEL
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.keyring import Keyring
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.store.embedded import EmbeddedStore
from consumers.store.sealed import RecordSealer, Seal, SealedStore, sealed_store
from detector.baseline import Baseline

RESULTS = Path(__file__).resolve().parent / "results" / "sealing.json"
MODES = ("off", "sealed", "twice")
ORDER = (*MODES, *reversed(MODES))
DRAWS = 10_000


class _Twice(RecordSealer):
    """The control: seals each record twice."""

    def batch(self, tenant: str) -> Seal:
        seal = super().batch(tenant)

        def twice(content: bytes, place: bytes) -> bytes:
            seal(content, place)
            return seal(content, place)

        return twice


def _store(mode: str, path: Path, ring: Keyring) -> Store:
    raw = EmbeddedStore(path)
    if mode == "twice":
        return SealedStore(raw, _Twice(ring, "on"))
    return raw if mode == "off" else sealed_store(raw, ring, "on")


def turn(mode: str, log: Path, baseline: Baseline, secrets: Secrets, ring: Keyring) -> float:
    """CPU seconds of reading the log into an empty store."""
    with tempfile.TemporaryDirectory(prefix="sealing-") as folder:
        store, lines = _store(mode, Path(folder) / "store.sqlite", ring), FileLog([str(log)])
        try:
            store.prepare(secrets.key_id)
            gc.collect()  # what earlier turns left is collected by none of those that are compared
            began_s = time.process_time()
            reading = ingest.IngestLoop(lines, store, Ingest({MODEL: baseline}, secrets))
            ingest.run(reading, lambda: False, until_end=True, poll_timeout_s=0.0)
            return time.process_time() - began_s
        finally:
            lines.close()
            store.close()


def dearer(took_s: NDArray[np.float64], rng: np.random.Generator) -> dict[str, list[float]]:
    """Mode → by how much it is dearer than `off`, with a 95 % interval.

    took_s  (blocks, modes) CPU seconds, the two turns of a block summed

    >>> dearer(np.array([[1.0, 1.02, 1.04]] * 5), np.random.default_rng(0))
    {'sealed': [0.02, 0.02, 0.02], 'twice': [0.04, 0.04, 0.04]}
    """
    drawn = took_s[rng.integers(0, len(took_s), (DRAWS, len(took_s)))].sum(1)
    found = {}
    for i, mode in enumerate(MODES[1:], 1):
        ratios = drawn[:, i] / drawn[:, 0] - 1
        whole = took_s[:, i].sum() / took_s[:, 0].sum() - 1
        found[mode] = [round(float(v), 4) for v in (whole, *np.quantile(ratios, (0.025, 0.975)))]
    return found


def run(short: bool, say: Callable[[str], None] = print) -> dict[str, Any]:
    queries, blocks = (400, 2) if short else (6_000, 40)
    before = os.getloadavg()
    baseline = fitted(short)
    with tempfile.TemporaryDirectory(prefix="sealing-") as folder:
        log, file = Path(folder) / "log.jsonl", Path(folder) / "secrets.json"
        log.write_bytes(b"".join(line + b"\n" for line in events(queries, "both", np.random.default_rng(4))))
        secrets = Secrets.create(file)
        ring = Keyring(file)
        for mode in MODES:  # compiles, fills caches
            turn(mode, log, baseline, secrets, ring)
        took_s = np.zeros((blocks, len(MODES)))
        for block in took_s:
            for mode in ORDER:
                block[MODES.index(mode)] += turn(mode, log, baseline, secrets, ring)
    found = dearer(took_s, np.random.default_rng(5))
    us = {mode: round(float(s) / (2 * blocks * queries) * 1e6, 2) for mode, s in zip(MODES, took_s.sum(0), strict=True)}
    for mode, (ratio, low, high) in found.items():
        say(f"{mode}: {us[mode]} µs a query, {ratio:+.2%} ({low:+.2%} to {high:+.2%}) against {us['off']} µs")
    return {
        "dearer": found,
        "us_a_query": us,
        "conditions": {
            "queries": queries, "blocks": blocks, "turns": blocks * len(ORDER), "variant": "both", "python": platform.python_version(),
            "load_before": [round(v, 2) for v in before], "cores": os.cpu_count(),
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="seconds, prints only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found = run(given.short)
    if not given.short:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
