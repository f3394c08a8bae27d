"""A small victim with a category, for tests of what does not fit a schema: people, noise, their events, a baseline, a replay."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from support.references import quick_training

from consumers import fit, replay
from consumers.detect.step import Detect
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.records.decision import StoredDecision
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.policy import Policy

MODEL = "loan-v1"
COUNTRIES = ("DE", "FR", "IT", "PL")
START = dt.datetime(2026, 3, 2, 9, 0, tzinfo=dt.UTC)
Event = dict[str, Any]
Rng = np.random.Generator


def person(rng: Rng) -> Event:
    age = int(rng.integers(18, 80))
    income = round(float(np.exp(rng.normal(7.5, 0.3) + age / 200)), 2)
    return {
        "age": age, "tenure": int(rng.integers(0, max(1, age - 17))), "income": income,
        "ratio": round(min(1.0, float(rng.gamma(2, 400) / income)), 3), "country": COUNTRIES[int(rng.integers(4) * (age > 30))],
    }  # fmt: skip


def noise(rng: Rng) -> Event:
    return {
        "age": int(rng.integers(18, 80)), "tenure": int(rng.integers(0, 62)), "income": round(float(rng.uniform(500, 6000)), 2),
        "ratio": round(float(rng.uniform(0, 1)), 3), "country": COUNTRIES[int(rng.integers(4))],
    }  # fmt: skip


def event(client: str, row: Event, at: dt.datetime) -> Event:
    score = 1 / (1 + np.exp(-(row["income"] / 2000 - row["ratio"] * 4 - 0.5)))
    p = round(float(score), 6)
    return {
        "timestamp": at.isoformat().replace("+00:00", "Z"), "client_id": client, "model_id": MODEL, "features": row,
        "prediction": {"label": "yes" if p > 0.5 else "no", "probabilities": [round(1 - p, 6), p]},
    }  # fmt: skip


def life(client: str, make: Callable[[Rng], Event], n: int, rng: Rng) -> list[Event]:
    times = np.sort(rng.uniform(0, 10 * 86_400, n))
    return [event(client, make(rng), START + dt.timedelta(seconds=round(float(t), 3))) for t in times]


def lines_of(events: Iterable[Event]) -> list[bytes]:
    return [json.dumps(e).encode() for e in events]


def in_order(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda e: str(e["timestamp"]))


def usual_traffic() -> list[Event]:
    """120 honest clients without a misfit, of 40 to 159 queries."""
    rng = np.random.default_rng(4)
    return [e for k in range(120) for e in life(f"c-{k}", person, int(rng.integers(40, 160)), rng)]


def fitted(folder: Path, traffic: list[Event]) -> Baseline:
    """A baseline for these people, calibrated on the traffic."""
    known = life("reference", person, 600, np.random.default_rng(3))
    reference = [{k: v for k, v in e.items() if k not in ("client_id", "timestamp")} for e in known]
    log = folder / "traffic.jsonl"
    log.write_bytes(b"\n".join(lines_of(in_order(traffic))) + b"\n")
    with quick_training():
        return fit.fit(MODEL, lines_of(reference), FileLog([log]), seed=1, exposure=False).baseline


def replayed(folder: Path, baseline: Baseline, lines: list[bytes]) -> replay.Replayed:
    log = folder / "log.jsonl"
    log.write_bytes(b"\n".join(lines) + b"\n")
    secrets = Secrets.load(folder / "secrets", create=True)
    known = {MODEL: baseline}
    store = EmbeddedStore(folder / "store.sqlite")
    try:
        return replay.replay(FileLog([log]), store, Ingest(known, secrets), Detect(known, secrets, Policy(0.01)))
    finally:
        store.close()


def row_of(outcome: replay.Replayed, client: str) -> StoredDecision | None:
    return next((row for row in outcome.scores.values() if row.client_id == client), None)
