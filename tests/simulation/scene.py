"""What all seeds share: a small baseline, and scripts – what producers send – with what must come out of each.

Rules:

* A script is a ledger: every record with its cell and offset, drawn from the script's number alone. What must be stored after it is
  folded from that ledger by the production classes, in one undisturbed batch a cell.
* What follows from a ledger alone is computed once a process (`Script.fold`, `Script.assess`).
"""

from __future__ import annotations

import functools
import json
import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from simulation.cells import ProfileCell

os.environ.setdefault("OMP_NUM_THREADS", "1")

from consumers.detect.step import Detect, Seen
from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.records.alert import finding_id
from consumers.records.decision import StoredDecision, stored_decision
from consumers.records.ledger import COUNTERS
from consumers.secrets import Secrets
from consumers.store import Tombstones
from consumers.telemetry.metrics import Metrics
from detector.baseline import Baseline
from detector.features import Column, Schema
from detector.fitting.baseline import fit_baseline
from detector.policy import Policy
from detector.query import ClientKey, QueryBatch

MODEL = "loans"
WIDTH = 3
LABELS = ("no", "yes")
BUDGET = 0.2
TENANT = "default"
START_MS = 1_773_014_400_000
SCRIPTS = 40

Fields = Mapping[str, bytes]


def honest(n: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
    hidden = rng.normal(size=(n, 2))
    rows = np.column_stack([hidden[:, 0], hidden[:, 0] + hidden[:, 1] * 0.2, hidden[:, 1]])
    return np.asarray(np.round(rows, 2) + 0.0, np.float64)


def answers(rows: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    yes = 1 / (1 + np.exp(-2 * rows[:, 0] + rows[:, 2]))
    return np.asarray(np.round(np.column_stack([1 - yes, yes]), 4), np.float64)


@functools.cache
def baseline() -> Baseline:
    """Three columns, forty honest clients: as small as one can be."""
    rng = np.random.default_rng(1)
    schema = Schema(
        columns=tuple(Column(f"x{j}", "numeric", -4.0, 4.0, 0.01) for j in range(WIDTH)),
        input_form="features", named=False, task="classification", labels=LABELS,
    )  # fmt: skip
    return fit_baseline(MODEL, schema, _batch(honest(200, rng), 1, rng), _batch(honest(1600, rng), 40, rng), rng=rng)[0]


def _batch(rows: np.ndarray[Any, np.dtype[np.float64]], clients: int, rng: np.random.Generator) -> QueryBatch:
    n, given = len(rows), answers(rows)
    return QueryBatch(
        [f"c{i}" for i in range(clients)], np.arange(n, dtype=np.int32) % clients, rows, given.argmax(1).astype(np.int32),
        given.astype(np.float32), np.full(n, np.nan), START_MS + np.arange(n, dtype=np.int64) * 60_000,
        np.ones(n, np.float32), np.arange(n, dtype=np.int64),
    )  # fmt: skip


@functools.cache
def secrets() -> Secrets:
    return Secrets(b"s" * 16, b"p" * 32, b"k" * 32)


@functools.cache
def reading() -> Ingest:
    return Ingest({MODEL: baseline()}, secrets(), TENANT)


@functools.cache
def judging() -> Detect:
    return Detect({MODEL: baseline()}, secrets(), Policy(BUDGET, "block"))


@functools.cache
def metrics() -> Metrics:
    """Counted, looked at by nobody: one for all processes."""
    return Metrics()


def key_of(client: str) -> ClientKey:
    return ClientKey(TENANT, MODEL, secrets().client_hash(TENANT, client))


def alert_ids(key: ClientKey, episodes: int) -> list[str]:
    """Of every episode that there may have been."""
    return [finding_id(key, episode) for episode in range(episodes)]


@dataclass(frozen=True, slots=True)
class Sent:
    """One record of the ledger; client is empty for one that is refused."""

    cell: str
    offset: int
    end: int
    client: str
    value: bytes


@dataclass(slots=True)
class Folded:
    """What an undisturbed run stores in one cell. places: of the dead letters, where they do not follow from their offsets alone."""

    profiles: dict[ClientKey, dict[str, bytes]]
    counters: dict[str, int]
    dead: frozenset[int]
    places: frozenset[str] | None = None


@dataclass(slots=True)
class Script:
    number: int
    cells: list[str]
    clients: list[str]
    bursts: list[list[Sent]]
    ends: dict[str, int]
    _folds: dict[Any, Folded] = field(default_factory=dict)
    _rows: dict[Any, tuple[StoredDecision, bool] | None] = field(default_factory=dict)

    def fold(self, cell: str, base: int | None, erased: Mapping[str, int], poison: frozenset[int]) -> Folded:
        """From offset `base` on, without what was erased, `poison` refused."""
        at = (cell, base, frozenset(erased.items()), poison)
        if at not in self._folds:
            self._folds[at] = self._fold(*at)
        return self._folds[at]

    def _fold(self, cell: str, base: int | None, erased: frozenset[tuple[str, int]], poison: frozenset[int]) -> Folded:
        gone, seen = Tombstones(dict(erased)), set[bytes]()
        counters: Counter[str] = Counter()
        left: list[Sent] = []
        sent = [s for burst in self.bursts for s in burst if s.cell == cell and s.offset >= (base or 0)]
        for one in sent:
            if one.offset in poison:
                counters["dead"] += 1
            elif one.client and one.offset < gone.get(key_of(one.client), 0):
                counters["erased"] += 1
            elif one.client and one.value in seen:
                counters["duplicate"] += 1
            else:
                left.append(one)
                seen.add(one.value)
        counters["produced"] = sum(counters.values())
        cell_ = Cell(cell, "", None, Counter())
        # the log's own time goes on with every record that can be read, also with those that do not count
        timed, _ = reading().decode(cell_, self._records(cell, [s for s in sent if s.offset not in poison]))
        times = {
            at: ms
            for b in timed.batches.values()
            for at, ms in zip(b.offsets.tolist(), b.time_ms.tolist(), strict=True)
        }
        decoded, keys = reading().decode(cell_, self._records(cell, left))
        for model, batch in decoded.batches.items():
            decoded.batches[model] = replace(
                batch, time_ms=np.array([times[at] for at in batch.offsets.tolist()], np.int64)
            )
        decoded.counters["ahead"], decoded.clock = timed.counters["ahead"], timed.clock
        reading().take(cell_, {}, reading().missing(cell_, keys))
        checkpoint = reading().step(cell_, decoded, keys, self.ends[cell])
        for name in COUNTERS:
            counters[name] += checkpoint.counters.get(name, 0)
        profiles = {k: {f: v for f, v in fields.items() if v is not None} for k, fields in checkpoint.profiles.items()}
        dead = frozenset(letter.offset for letter in checkpoint.dead) | poison
        return Folded(profiles, {name: n for name, n in counters.items() if n}, dead)

    def _records(self, cell: str, sent: list[Sent]) -> Records:
        return Records(cell, [s.value for s in sent], np.array([s.offset for s in sent], np.int64), self.ends[cell])

    def log_cells(self) -> list[str]:
        """Cells of the log; `cells` are those of the store."""
        return self.cells

    def folded(self, cell: str, state: ProfileCell, poison: frozenset[int]) -> Folded:
        """What must be stored where a cell is as it is."""
        return self.fold(cell, state.base, state.erased, poison)

    def unlike_the_ledger(self, cell: str, state: ProfileCell) -> tuple[int, int, int]:
        """Of a cell that keeps what was handed in: records missing there, records too many, logs in another order."""
        return 0, 0, 0

    def at_end(self, cell: str, state: ProfileCell | None, ends: Mapping[str, int]) -> bool:
        """Whether a cell of the store has all of the log."""
        end = self.stored(ends[cell])
        return not end or (state is not None and (state.offset or 0) >= end)

    def sends(self) -> list[list[Sent]]:
        """What the producer sends."""
        return self.bursts

    def stored(self, offset: int) -> int:
        """An offset of the log as the store keeps it."""
        return offset

    def place(self, cell: str, offset: int) -> str:
        """What a dead letter says of where its record was; offset: as the store keeps it."""
        return f"{cell}@{offset}"

    def assess(self, key: ClientKey, fields: Mapping[str, Fields]) -> StoredDecision | None:
        """The decision row of a client that nobody saw before, from all its shards."""
        at = (key, frozenset((cell, *sorted(some.items())) for cell, some in fields.items()))
        if at not in self._rows:
            row = judging().step(0, [Seen(key, dict(fields), None)], {}, None).rows.get(key)
            self._rows[at] = (stored_decision(row, secrets(), key.tenant), True) if row else None
        found = self._rows[at]
        return found[0] if found else None


@functools.cache
def script(number: int) -> Script:
    rng = random.Random(f"script {number}")
    draw = np.random.default_rng(number)
    cells = [f"queries:{p}" for p in range(rng.choice([2, 2, 3, 4]))]
    clients = [f"acct-{i}" for i in range(rng.randint(3, 6))]
    thieves = set(rng.sample(clients, rng.randint(1, 2)))
    keyed = rng.random() < 0.6
    home = {client: rng.choice(cells) for client in clients}
    records = rng.randint(35, 65)
    # some logs cross the end of a half-horizon window (15 days), where spans change
    step_ms = rng.choice([1_000, 60_000, 9_000_000])
    ends = dict.fromkeys(cells, 0)
    sent: list[Sent] = []
    rows = honest(records, draw)
    wild = np.round(draw.uniform(-4, 4, size=(records, WIDTH)), 2) + 0.0
    for i in range(records):
        client = rng.choice(clients) if rng.random() < 0.7 else rng.choice(sorted(thieves))
        row = wild[i] if client in thieves and rng.random() < 0.8 else rows[i]
        cell = home[client] if keyed else rng.choice(cells)
        offset = ends[cell] + (rng.randint(1, 3) if rng.random() < 0.1 else 0)
        ends[cell] = offset + 1 + (1 if rng.random() < 0.1 else 0)
        value = event(i, client, row, START_MS + i * step_ms)
        if rng.random() < 0.03:
            value, client = value[: len(value) // 2], ""
        elif rng.random() < 0.02:
            value, client = json.dumps(json.loads(value) | {"status": 429, "prediction": None}).encode(), ""
        sent.append(Sent(cell, offset, ends[cell], client, value))
        if client and rng.random() < 0.06:  # the producer did not hear the answer
            ends[cell] += 1
            sent.append(Sent(cell, ends[cell] - 1, ends[cell], client, value))
    bursts, at = list[list[Sent]](), 0
    while at < len(sent):
        size = rng.choice([5, 10, 20])
        bursts.append(sent[at : at + size])
        at += size
    return Script(number, cells, clients, bursts, ends)


def event(i: int, client: str, row: Any, time_ms: int) -> bytes:
    given = answers(row[None, :])[0]
    seconds, ms = divmod(time_ms, 1000)
    return json.dumps(
        {
            "event_id": f"e{i}",
            "timestamp": f"{np.datetime64(seconds, 's')}.{ms:03d}Z",
            "client_id": client,
            "model_id": MODEL,
            "features": [float(v) for v in row],
            "prediction": {"label": LABELS[int(given.argmax())], "probabilities": [float(p) for p in given]},
            "status": 200,
        }
    ).encode()
