"""The naive worker fails for the reasons that it is said to, and the oracle counts what it did. One process, a real Redis, no chance in it.

Without a fault it is right; a batch that is read again is counted twice; what a fail-over lost is missing for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import redis
from crash import oracle
from crash.ledger import repeated
from crash.naive_ingest import PREFIX, folded

from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.secrets import Secrets
from detector.baseline_file import read_baseline

BATCH = 500
BATCHES = 6


@pytest.fixture
def reading(baseline_file: Path, tmp_path: Path) -> Ingest:
    baseline = read_baseline(baseline_file.read_bytes())
    return Ingest({baseline.model_id: baseline}, Secrets.load(tmp_path / "secrets.json", create=True))


@pytest.fixture
def batches(log: Path) -> Sequence[Records]:
    lines = [line for _, line in repeated(log, BATCH * BATCHES)]
    return [
        Records("naive:0", lines[at : at + BATCH], np.arange(at, at + BATCH, dtype=np.int64), at + BATCH)
        for at in range(0, len(lines), BATCH)
    ]


def fold(reading: Ingest, url: str, batches: Sequence[Records]) -> None:
    with redis.Redis.from_url(url) as client:
        for batch in batches:
            folded(reading, client, Cell(batch.cell, "", None, Counter()), batch)


def kept(url: str) -> dict[bytes, bytes]:
    with redis.Redis.from_url(url) as client:
        return {key: client.dump(key) or b"" for key in client.scan_iter()}


def put_back(url: str, content: Mapping[bytes, bytes]) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        for key, blob in content.items():
            client.restore(key, 0, blob)


def test_positions_kept_apart_lose_and_double_and_the_oracle_counts_it(
    reading: Ingest, batches: Sequence[Records], redis_url: str, baseline_file: Path
) -> None:
    shape = oracle.shape_of(baseline_file)

    def verdict() -> oracle.Verdict:
        return oracle.compare(right, oracle.stored(redis_url, f"{PREFIX}*"), shape)

    fold(reading, redis_url, batches)
    right = oracle.stored(redis_url, f"{PREFIX}*")
    whole = kept(redis_url)

    put_back(redis_url, {})
    fold(reading, redis_url, batches)
    assert verdict() == oracle.Verdict(0, 0, []), "without a fault it is right"

    put_back(redis_url, whole)
    fold(reading, redis_url, batches[-1:])  # killed after the write, before the position was committed
    seen = verdict()
    assert (seen.lost, seen.doubled) == (0, BATCH)
    assert seen.wrong

    put_back(redis_url, {})
    fold(reading, redis_url, batches[:2])
    replica = kept(redis_url)
    fold(reading, redis_url, batches[2:4])
    put_back(redis_url, replica)  # promoted: it never heard of two acknowledged batches
    fold(reading, redis_url, batches[4:])
    seen = verdict()
    assert (seen.lost, seen.doubled) == (2 * BATCH, 0)
    assert seen.wrong
