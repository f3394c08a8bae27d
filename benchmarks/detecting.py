"""The benchmark of detect: what a touched client costs until its decision is committed.

    python -m benchmarks.detecting [--short] [--out FILE]

Rules of the file:

* Figures are CPU time of this process (user + system), in turns, the best of several runs; of Redis only what our side costs.
* A turn begins with clients that asked something since their last decision, and ends when rows, alerts and cursors are stored. Every tenth
  client asks odd queries. Lifetimes of 45 days have left the horizon in part: half of the clients have an archive.
* The twin does the same, one client a step: a batch is then worth nothing.
* The baseline has an estimator of exposure of whatever weights: what it costs does not depend on them.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.throughput import conditions, in_turns, redis_url
from benchmarks.traffic import MODEL, START_S, Traffic, records
from consumers.detect import loop as detect
from consumers.detect.step import CellSeen, Detect, Overrule
from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.records.spans import SPAN
from consumers.secrets import Secrets
from consumers.store import Checkpoint, Outcome, Store
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import connect
from consumers.times import rfc3339
from detector.baseline import Baseline
from detector.exposure import REGRESSORS, Estimator
from detector.policy import Policy
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.profile_format import read_head
from detector.scoring import assess, assess_columns

RESULTS = Path(__file__).resolve().parent / "results" / "detecting.json"
CELL, TOKEN = "bench:0", "a" * 32
AT_ONCE = 2000
ODD_EVERY = 10
LIVES = {"lifetimes of 4 days": 4, "lifetimes of 45 days": 45}


class OneByOne(Detect):
    """The twin of a step: each client for itself."""

    def steps(
        self, cells: Sequence[CellSeen], now_s: int | None, overrule: Overrule | None = None
    ) -> Iterator[Outcome]:
        for one in cells:
            whole = Outcome(one.cell, dict(one.cursors))
            for client in one.seen:
                outcome = next(super().steps([one._replace(seen=[client])], now_s, overrule))
                whole.rows |= outcome.rows
                whole.alerts += outcome.alerts
            yield whole


@dataclass(frozen=True, slots=True)
class Log:
    """What ingest commits: `before` the last decision, and `after` it a query of each client. profiles: long spans, at the end."""

    before: list[Checkpoint]
    after: Checkpoint
    profiles: list[bytes]


def with_estimator(baseline: Baseline) -> Baseline:
    rng = np.random.default_rng(8)
    usual, errors = rng.dirichlet(np.ones(baseline.map.classes)), np.array([[-0.8, 0.5], [-0.4, 0.3]])
    estimator = Estimator(rng.normal(0, 0.3, len(REGRESSORS)), errors, np.array([2.0, 6.0]), usual)
    return replace(baseline, estimator=estimator)


def events(clients: int, each: int, days: float, traffic: Traffic, rng: np.random.Generator) -> list[bytes]:
    """Lines of a log: log-normal shares of `each` queries a client on average, over `days` days; then one of each client."""
    share = rng.lognormal(0, 1.5, clients)
    who = np.concatenate([rng.choice(clients, clients * each, p=share / share.sum()), np.arange(clients)])
    rows = traffic.rows(len(who), rng)
    odd = np.round(rng.normal(size=rows.shape) * 3, 6)
    rows = np.where((who % ODD_EVERY == 0)[:, None], odd, rows)
    times = START_S * 1000 + np.linspace(0, days * 86_400_000, len(who)).astype(np.int64)
    lines = []
    for i, (row, p) in enumerate(zip(rows.tolist(), traffic.answers(rows).tolist(), strict=True)):
        event = {
            "event_id": f"q-{i:012d}", "timestamp": rfc3339(int(times[i])), "client_id": f"acct-{who[i]:06d}", "model_id": MODEL,
            "features": row, "prediction": {"label": int(np.argmax(p)), "probabilities": p},
            "metadata": {"ip": f"198.51.100.{who[i] % 250}", "asn": 64_500 + int(who[i] % 40)},
        }  # fmt: skip
        lines.append(orjson.dumps(event))
    return lines


def log_of(lines: Sequence[bytes], clients: int, reading: Ingest) -> Log:
    """Fold the lines once; the checkpoints can be committed to any store."""
    owned = Cell(CELL, TOKEN, None, Counter())
    starts = [*range(0, len(lines) - clients, AT_ONCE), len(lines) - clients, len(lines)]
    points = []
    for start, end in itertools.pairwise(starts):
        decoded, keys = reading.decode(owned, records(lines[start:end], start))
        points.append(reading.step(owned, decoded, keys, end))
        owned.offset, owned.counters = end, Counter(points[-1].counters)
    blobs = []
    for fields in points[-1].profiles.values():
        spans = {name: blob for name, blob in fields.items() if name.startswith(SPAN) and blob is not None}
        if spans:
            blobs.append(spans[min(spans)])  # the long one
    return Log(points[:-1], points[-1], blobs)


def assessed(log: Log, baseline: Baseline, runs: int) -> tuple[float, float]:
    """Read and assess all profiles, and one client a call."""
    blobs = log.profiles

    def together() -> int:
        heads = [head for blob in blobs if (head := read_head(blob, ())) is not None]
        columns, _ = ProfileColumns.read(blobs, heads, baseline.shape, baseline.table)
        n = len(columns)
        return len(assess_columns(columns, baseline, [1] * n, [""] * n, [False] * n))

    def one_by_one() -> int:
        for blob in blobs:
            assess(Profile.from_bytes(blob, baseline.shape), baseline)
        return len(blobs)

    return in_turns(together, one_by_one, runs)


def decided(
    log: Log, open_store: Callable[[], Store], baseline: Baseline, secrets: Secrets, runs: int
) -> tuple[float, float]:
    """From touched to committed, and one client a step."""
    stores: list[Store] = []

    def touched(kind: type[Detect]) -> detect.Runner:
        store = open_store()
        stores.append(store)
        store.prepare(secrets.key_id)
        store.claim(CELL, TOKEN)
        judging = kind({MODEL: baseline}, secrets, Policy(0.01, "observe"))
        runner = detect.Runner(store, judging, now_s=lambda: None, sleep=lambda s: None)
        for point in log.before:
            store.commit(TOKEN, point)
        runner.turn()
        store.commit(TOKEN, log.after)
        gc.freeze()  # as the service does before its first turn
        return runner

    ours, one_by_one = ([touched(kind) for _ in range(runs + 1)] for kind in (Detect, OneByOne))
    took = in_turns(lambda: ours.pop().turn(), lambda: one_by_one.pop().turn(), runs)
    for store in stores:
        store.close()
    return took


def row_of(life: str, clients: int, name: str, took: tuple[float, float]) -> dict[str, Any]:
    ours, alone = took
    return {
        "life": life, "clients": clients, "name": name, "ours_us": round(ours, 1), "a_second": round(1e6 / ours),
        "alone_us": round(alone, 1), "ratio": round(alone / ours, 2),
    }  # fmt: skip


def run(short: bool, say: Callable[[str], None]) -> dict[str, Any]:
    clients, each, runs = (60, 8, 1) if short else (1000, 30, 3)
    traffic = Traffic()
    baseline = with_estimator(traffic.baseline())
    found: dict[str, Any] = {"conditions": conditions(clients * (each + 1)), "rows": []}
    with tempfile.TemporaryDirectory(prefix="querywarden-bench-") as name, redis_url() as url:
        folder, number = Path(name), iter(range(10_000))
        secrets = Secrets.load(folder / "secrets.json", create=True)
        for life, days in LIVES.items():
            lines = events(clients, each, days, traffic, np.random.default_rng(9))
            log = log_of(lines, clients, Ingest(baselines={MODEL: baseline}, secrets=secrets))
            stores: dict[str, Callable[[], Store]] = {
                "SQLite": lambda: EmbeddedStore(folder / f"{next(number)}.sqlite"),
                "Redis": lambda: connect(f"{url}/{next(number)}", timeout_s=10),
            }
            rows = [row_of(life, clients, "read and assess", assessed(log, baseline, runs))]
            for store, opened in stores.items():
                took = decided(log, opened, baseline, secrets, runs)
                rows.append(row_of(life, clients, f"touched to committed, {store}", took))
            for row in rows:
                say(json.dumps(row))
            found["rows"] += rows
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few clients, no file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = run(options.short, lambda line: print(line, flush=True))
    if not options.short:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
