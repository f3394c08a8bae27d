"""P1, P5, P18: with everything failing around them, the workers count each query exactly once, and a naive worker does not.

short   in `make test`: one run of all faults, then the naive control on the same cluster
long    `make soak`: 30 minutes (QUERYWARDEN_TEST_CHAOS_S for another length)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import victims
from crash import chaos, oracle
from crash.cluster import Cluster
from crash.drill import Drill, run_drill
from crash.ledger import write_log
from servers import MissingServer

SEED = 7
SHORT_EVENTS = 62_000
SHORT_S = 34.0


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("crash") / "log.jsonl", 165, seed=31)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    baseline = tmp_path / "loans.baseline"
    baseline.write_bytes(victims.baseline().to_bytes())
    try:
        made = Cluster(tmp_path, baseline, SEED)
    except MissingServer as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    with made:
        yield made


def judged(cluster: Cluster, drill: Drill) -> None:
    sys.stdout.write(f"\n{drill.summary()}\n")
    expected = oracle.replayed(cluster.folder, drill.ledger.path, cluster.baseline, cluster.settings())
    oracle.assert_exactly_once(cluster, drill.ledger, expected)


def test_every_query_counts_exactly_once(cluster: Cluster, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from crash.ledger import repeated

    drill = run_drill(cluster, repeated(log, SHORT_EVENTS), SHORT_EVENTS / SHORT_S, chaos.SHORT, SEED)
    with capsys.disabled():
        judged(cluster, drill)
