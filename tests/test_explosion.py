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


@pytest.mark.parametrize("ids", [50_000, pytest.param(5_000_000, marks=pytest.mark.soak)])
def test_an_explosion_of_ids_costs_a_worker_and_redis_little(
    ids: int, tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """All within an hour of event time, the worst case of the budget: 5,000 have a profile, the others are counted together."""
    row = victims.line(
        victims.items(1, np.random.default_rng(5))[0], client_id="CLIENT", timestamp="2026-03-10T00:30:00Z"
    )
    before, after = row.split(b"CLIENT")
    log, blob = tmp_path / "explosion.jsonl", tmp_path / "loans.baseline"
    blob.write_bytes(pack_baseline(victims.baseline()))
    with log.open("wb") as file:
        for first in range(0, ids, 100_000):
            file.write(b"".join(before + b"id-%d" % i + after + b"\n" for i in range(first, min(first + 100_000, ids))))
    took = ingested(log, tmp_path, blob, redis_url)
    with capsys.disabled():
        print(f"\n{ids:,} invented ids: {took.rss_mb:.0f} MB resident, {took.growth_mb:.1f} MB more in Redis")
    with redis.Redis.from_url(redis_url) as client:
        (meta,) = client.scan_iter(match="qw:{i.*:meta", count=10_000)
        counted = {k.decode(): v for k, v in client.hgetall(meta).items()}
    assert int(counted["n:queries"]) == ids
    assert int(counted["n:pooled"]) >= ids - AdmissionLimits().new_an_hour - ids // 1000
    assert took.rss_mb <= 340
    assert took.growth_mb <= 10
