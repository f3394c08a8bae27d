"""P7 on a real process and a real Redis: what an explosion of invented client ids costs in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import redis
from support import victims
from support.resident_memory import watched

from consumers.ingest.admission import AdmissionLimits
from detector.baseline_file import pack_baseline

MOST_MB = 100
QUERYWARDEN = Path(sys.executable).with_name("querywarden")


class Process(NamedTuple):
    """What one ended process took. rss_mb: at most resident; growth_mb: of Redis."""

    rss_mb: float
    growth_mb: float


def ingested(log: Path, folder: Path, baseline: Path, redis_url: str) -> Process:
    """`querywarden ingest --until-end` of a file into a Redis, as a process of its own."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")}
    settings = {
        "QUERYWARDEN_STATE_DIR": str(folder), "QUERYWARDEN_STORE__URL": redis_url, "QUERYWARDEN_BASELINES": str(baseline),
        "QUERYWARDEN_LOG__URL": f"file://{log}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with redis.Redis.from_url(redis_url) as client:
        before = client.info("memory")["used_memory_dataset"]
        with (folder / "said").open("wb") as said:
            child = subprocess.Popen([str(QUERYWARDEN), "ingest", "--until-end"], env=mine | settings, stderr=said)
            peak_kib = watched(child)
        assert child.returncode == 0, (folder / "said").read_text()[-2000:]
        after = client.info("memory")["used_memory_dataset"]
    return Process(peak_kib / 1024, (after - before) / 2**20)


def log_of(path: Path, queries: int, ids: int) -> Path:
    """Equal queries, all within an hour of event time; ids take turns."""
    row = victims.line(
        victims.items(1, np.random.default_rng(5))[0], client_id="CLIENT", timestamp="2026-03-10T00:30:00Z"
    )
    before, after = row.split(b"CLIENT")
    with path.open("wb") as file:
        for first in range(0, queries, 100_000):
            some = range(first, min(first + 100_000, queries))
            file.write(b"".join(before + b"id-%d" % (i % ids) + after + b"\n" for i in some))
    return path


@pytest.mark.parametrize("queries", [50_000, pytest.param(5_000_000, marks=pytest.mark.soak)])
def test_an_explosion_of_ids_costs_a_worker_and_redis_little(
    queries: int, tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each query has a client id of its own: 5,000 clients get a profile, the queries of the others go to the overflow client.

    What it costs is what it takes beyond as many queries of a hundred clients. What those take differs from machine to machine.
    """
    blob = tmp_path / "loans.baseline"
    blob.write_bytes(pack_baseline(victims.baseline()))
    usual, took = (
        ingested(log_of(tmp_path / f"{ids}.jsonl", queries, ids), tmp_path, blob, redis_url) for ids in (100, queries)
    )
    with capsys.disabled():
        print(
            f"\n{queries:,} queries: {usual.rss_mb:.0f} MB resident; of as many ids: {took.rss_mb:.0f} MB, "
            f"{took.growth_mb:.1f} MB more in Redis"
        )
    with redis.Redis.from_url(redis_url) as client:
        metas = [client.hgetall(key) for key in client.scan_iter(match="qw:{i.*:meta", count=10_000)]
    counted = max(({k.decode(): v for k, v in meta.items()} for meta in metas), key=lambda meta: int(meta["n:pooled"]))
    assert int(counted["n:queries"]) == queries
    assert int(counted["n:pooled"]) >= queries - AdmissionLimits().new_an_hour - queries // 1000
    assert took.rss_mb - usual.rss_mb <= MOST_MB
    assert took.growth_mb <= 10
