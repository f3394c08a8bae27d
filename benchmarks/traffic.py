"""Made traffic of any shape for the benchmarks of speed: events as lines, the baseline that fits them, and ours reading them.

Rules of the file:

* An event is the native one: time, client, model, features with six decimals, probabilities with six decimals.
* Rows have structure (twelve axes and noise) and answers come from a linear model, so a baseline can be fitted and honest rows are honest.
* A shape's traffic depends on its seed only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.log.dead_letter_topic import DeadLetterTopic
from consumers.log.formats import InputReader, NativeFormat
from consumers.log.kafka import KafkaLog, connection
from consumers.log.references import read_reference, reference_batch
from consumers.log.topics import ensure_topics
from consumers.schemas import infer_schema
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.store.redis import connect
from detector.baseline import Baseline
from detector.fitting.baseline import fit_baseline

MODEL = "bench-v1"
START_S = 1_773_014_400
AXES = 12
AT_ONCE = 10_000
DEAD_TOPIC = "bench-dead"


@dataclass(frozen=True, slots=True)
class Traffic:
    """The shape of a query log. clients: how many, all equally busy; 0: one for every hundred queries, busy by a log-normal law."""

    width: int = 64
    classes: int = 10
    clients: int = 0

    def rows(self, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
        axes = np.random.default_rng(2).normal(size=(AXES, self.width))
        return np.asarray(np.round(rng.normal(size=(n, AXES)) @ axes / 4 + rng.normal(size=(n, self.width)) * 0.1, 6))

    def exact_answers(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = rows @ np.random.default_rng(3).normal(size=(self.width, self.classes)) * (8 / self.width**0.5)
        powers = np.exp(scores - scores.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def answers(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.round(self.exact_answers(rows), 6)

    def who(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        if self.clients:
            return rng.integers(0, self.clients, n)
        share = rng.lognormal(0, 1.5, max(20, n // 100))
        return np.asarray(rng.choice(len(share), n, p=share / share.sum()), np.int64)

    def lines(self, n: int, seed: int = 9) -> tuple[list[bytes], list[bytes]]:
        """Events and their keys."""
        rng = np.random.default_rng(seed)
        who, rows = self.who(n, rng), self.rows(n, rng)
        answers = self.answers(rows)
        lines, keys = [], []
        for i in range(n):
            keys.append(b"acct-%07d" % who[i])
            event = {
                "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START_S + i * 5)), "client_id": keys[-1].decode(),
                "model_id": MODEL, "features": rows[i].tolist(),
                "prediction": {"label": int(np.argmax(answers[i])), "probabilities": answers[i].tolist()},
            }  # fmt: skip
            lines.append(orjson.dumps(event))
        return lines, keys

    @property
    def event_bytes(self) -> int:
        """Mean length of an event."""
        return round(sum(map(len, self.lines(200)[0])) / 200)

    def baseline(self, reference: int = 400, honest: int = 3000) -> Baseline:
        """The same for all traffic of a width and a number of classes."""
        return _fitted(Traffic(self.width, self.classes), reference, honest)

    def fitted(self, reference: int, honest: int) -> Baseline:
        rng = np.random.default_rng(1)
        rows = self.rows(reference, rng)
        return baseline_on(rows, self.answers(rows), self.lines(honest)[0], rng)


@functools.lru_cache(maxsize=4)
def _fitted(traffic: Traffic, reference: int, honest: int) -> Baseline:
    return traffic.fitted(reference, honest)


def baseline_on(
    rows: NDArray[np.float64], answers: NDArray[np.float64], honest: Sequence[bytes], rng: np.random.Generator
) -> Baseline:
    """A baseline on reference rows (n, d) with their answers (n, c), and the events of honest clients."""
    found = [
        {"model_id": MODEL, "features": row, "prediction": {"label": int(np.argmax(p)), "probabilities": p}}
        for row, p in zip(rows.tolist(), answers.tolist(), strict=True)
    ]
    raw = read_reference([json.dumps(one).encode() for one in found], MODEL)
    schema = infer_schema(raw)
    reference, _ = reference_batch(raw, schema)
    read = NativeFormat({MODEL: InputReader(schema)}).decode(records(honest))
    return fit_baseline(MODEL, schema, reference, read.batches[MODEL], rng=rng)[0]


def records(lines: Sequence[bytes], start: int = 0) -> Records:
    return Records("bench", list(lines), np.arange(start, start + len(lines)), start + len(lines))


@contextlib.contextmanager
def ingesting(
    bootstrap: str, topic: str, group: str, store: Store, step: Ingest, **more: Any
) -> Iterator[tuple[ingest.IngestLoop, KafkaLog]]:
    """Ingest's loop over a topic, and its log; both are closed at the end, and the store. more: arguments of the loop."""
    brokers: Any = connection(bootstrap, security_protocol="PLAINTEXT")
    log = KafkaLog(brokers, topics=[topic], group_id=group, max_poll_records=AT_ONCE)
    dead_letters = DeadLetterTopic(brokers, DEAD_TOPIC)
    try:
        yield ingest.IngestLoop(log, store, step, dead_letters=dead_letters, max_poll_records=AT_ONCE, **more), log
    finally:
        dead_letters.close()
        log.close()
        store.close()


def after_the_first(turn: Callable[[], int], events: int, each: Callable[[int], None] | None = None) -> float:
    """Processor microseconds an event of turns that tell how many they did, without those up to the first that did any: a start.

    each: told after every turn how many are done.
    """
    done, first, began = 0, 0, 0.0
    while done < events:
        done += turn()
        if each is not None:
            each(done)
        if done and not first:
            first, began = done, time.process_time()
    return (time.process_time() - began) / max(1, done - first) * 1e6


@dataclass(slots=True)
class Ours:
    """Everything that ingest does, from a topic to a store."""

    bootstrap: str
    topic: str
    baseline: Baseline
    folder: Path

    def read(
        self,
        url: str,
        events: int,
        group: str,
        reading: Callable[..., Ingest] = Ingest,
        each: Callable[[int], None] | None = None,
    ) -> float:
        """Read `events` queries and commit them; processor microseconds a query, without those of the first turn that had any.

        each: told after every turn how many are read.
        """
        ensure_topics(connection(self.bootstrap, security_protocol="PLAINTEXT"), [DEAD_TOPIC], 1)
        secrets = Secrets.load(self.folder / "secrets.json", create=True)
        store = connect(url, timeout_s=30)
        store.prepare(secrets.key_id)
        step = reading(baselines={MODEL: self.baseline}, secrets=secrets)
        with ingesting(self.bootstrap, self.topic, group, store, step) as (runner, _):
            return after_the_first(lambda: runner.turn(0.2), events, each)

    def only_read(self, events: int, group: str) -> float:
        """Poll and walk the record batches, and nothing else; processor microseconds a query, without those of the first poll."""
        brokers: Any = connection(self.bootstrap, security_protocol="PLAINTEXT")
        log = KafkaLog(brokers, topics=[self.topic], group_id=group, max_poll_records=AT_ONCE)

        def read() -> int:
            poll = log.poll(0.2, AT_ONCE)
            for cell in poll.assigned:
                log.seek(cell, None)
            return sum(len(batch.values) for batch in poll.batches)

        took = after_the_first(read, events)
        log.close()
        return took
