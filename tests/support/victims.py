"""A small victim for end-to-end tests: a table of ten columns, a classifier, honest clients and thieves around it.

Everything is drawn from fixed seeds: the same call gives the same reference, the same log, the same baseline. Baselines are fitted
once a session, on honest clients that the logs of the tests never show again.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")  # boosting on few rows: threads only cost, most of all on shared cores

from consumers.log.references import RawReference, read_reference, reference_batch
from consumers.schemas import infer_schema
from consumers.simulate import Columns, truth_of, write_log, write_reference
from detector.baseline import Baseline
from detector.baseline_file import read_baseline
from detector.fitting.baseline import fit_baseline
from detector.query import QueryBatch
from detector.simulation.domain import Domain, HonestPools, Rows, strangers
from detector.simulation.population import Stream, interleave, simulated_population

MODEL = "loans-v1"
WIDTH = 10
CLASSES = ["approve", "refer", "refuse"]
COLUMNS = Columns("features", None, (None,) * WIDTH)
DAY_S = 86_400.0
START_S = 1_773_014_400.0
"""2026-03-09T00:00:00Z: a log of 14 days lies within one half-horizon window (15 days, counted from the epoch)."""
CALM = ("regular", "light", "entity_stream", "what_if", "load_tester", "monitor")
"""Honest kinds that are hardly odd: calibrated on them, a thousand queries of a thief are enough to be seen."""

_rng = np.random.default_rng(7)
_MIX = _rng.normal(size=(3, WIDTH)) * np.linspace(1.0, 2.0, WIDTH)
_BIAS = _rng.normal(size=WIDTH) * 2
_WEIGHTS = _rng.normal(size=(WIDTH, 8)) * 0.35
_OUT = _rng.normal(size=(8, len(CLASSES))) * 2


def items(n: int, rng: np.random.Generator) -> Rows:
    """(n, 10) real applicants: three hidden causes, a little noise, two decimals."""
    rows = np.tanh(rng.normal(size=(n, 3))) @ _MIX + _BIAS + rng.normal(size=(n, WIDTH)) * 0.15
    return np.asarray(np.round(rows, 2) + 0.0)


def predict(rows: Rows) -> Rows:
    """(n, 10) → (n, 3) probabilities."""
    scores = np.tanh((rows - _BIAS) @ _WEIGHTS) @ _OUT
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@functools.cache
def reference_rows() -> Rows:
    return items(900, np.random.default_rng(11))


@functools.cache
def domain() -> Domain:
    return Domain.of(reference_rows())


def streams(
    clients: int,
    attacks: Sequence[tuple[str, str]] = (),
    *,
    seed: int,
    queries: tuple[int, int] = (600, 1500),
    kinds: Sequence[str] | None = None,
    start_s: float = START_S,
    days: float = 14.0,
) -> list[Stream]:
    """Honest clients and thieves with a life of up to `days`."""
    rng = np.random.default_rng(seed)
    pool = items(800, rng)
    asked = predict(pool).argmax(axis=1)
    foreign = strangers(domain(), reference_rows(), rng)
    pools = HonestPools(domain(), pool, asked, items(300, rng), foreign, lambda rows, rng: items(len(rows), rng))
    return simulated_population(
        pools, predict, rng, clients=clients, kinds=kinds, attacks=attacks, queries=queries, start_s=start_s,
        horizon_s=days * DAY_S,
    )  # fmt: skip


def log_of(path: Path, who: Sequence[Stream]) -> dict[str, Any]:
    """Write the streams as one native log; returns the truth, client → who it is."""
    write_log(path, MODEL, interleave(who), predict, COLUMNS, CLASSES, domain())
    return truth_of(who)


def reference_file(path: Path) -> Path:
    rows = reference_rows()
    write_reference(path, MODEL, rows, predict(rows), COLUMNS, CLASSES, domain())
    return path


def event(row: Sequence[float] | Rows, **changes: Any) -> dict[str, Any]:
    """A native event for one row; `changes` replace fields, a field of None is left out."""
    answer = predict(np.array([row], dtype=np.float64))[0]
    whole = {
        "timestamp": "2026-03-02T09:00:00.000Z",
        "client_id": "acct-1",
        "model_id": MODEL,
        "features": [float(v) for v in row],
        "prediction": {"label": CLASSES[int(answer.argmax())], "probabilities": [round(float(p), 6) for p in answer]},
    } | changes
    return {name: value for name, value in whole.items() if value is not None}


def line(row: Sequence[float] | Rows, **changes: Any) -> bytes:
    return encoded(event(row, **changes))


def encoded(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def write_lines(path: Path, lines: Iterable[bytes]) -> Path:
    path.write_bytes(b"".join(one + b"\n" for one in lines))
    return path


KEPT = "loans.baseline"
_kept: list[Path] = []


def keep_in(folder: Path) -> None:
    """Other processes write `baseline` into this folder, or find it there (tests/support/preparation.py)."""
    _kept.append(folder / KEPT)


@functools.cache
def baseline() -> Baseline:
    """Calibrated on 220 honest clients."""
    for file in _kept:
        if file.exists():
            return read_baseline(file.read_bytes())
    return _fitted(WIDTH, 220)


@functools.cache
def narrow_baseline() -> Baseline:
    """The same model id, but four columns: a baseline whose profiles the other can't read."""
    return _fitted(4, 60)


def _fitted(width: int, clients: int) -> Baseline:
    honest = interleave(streams(clients, seed=101, kinds=CALM, start_s=START_S - 30 * DAY_S))
    answers = predict(honest.inputs)
    raw: RawReference = read_reference(reference_lines(width), MODEL)
    schema = infer_schema(raw)
    reference, _ = reference_batch(raw, schema)
    traffic = QueryBatch(
        honest.clients, honest.who, np.ascontiguousarray(honest.inputs[:, :width]), answers.argmax(axis=1).astype(np.int32),
        np.round(answers, 6).astype(np.float32), np.full(len(answers), np.nan),
        np.round(honest.times_s * 1000).astype(np.int64), np.ones(len(answers), np.float32), np.arange(len(answers)),
    )  # fmt: skip
    return fit_baseline(MODEL, schema, reference, traffic, rng=np.random.default_rng(5))[0]


def reference_lines(width: int) -> list[bytes]:
    rows = reference_rows()
    answers = predict(rows)
    return [
        json.dumps(
            {
                "model_id": MODEL,
                "features": [float(v) for v in row[:width]],
                "prediction": {
                    "label": CLASSES[int(p.argmax())],
                    "probabilities": [round(float(v), 6) for v in p],
                },
            }
        ).encode()
        for row, p in zip(rows, answers, strict=True)
    ]
