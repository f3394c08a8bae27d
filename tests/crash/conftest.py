"""One cluster for each crash test, and the log that they send."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash import oracle
from crash.cluster import Cluster
from crash.ledger import write_log
from support import victims
from support.servers import NewServer

from detector.baseline_file import pack_baseline

SEED = 7


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 65,000 queries of 165 honest clients and eight thieves."""
    return write_log(tmp_path_factory.mktemp("crash") / "log.jsonl", 165, seed=31)


@pytest.fixture(scope="session")
def baseline_file(log: Path) -> Path:
    """The baseline, and a replay of some lines, so that kernels are compiled before five workers want them at once."""
    path, some = log.with_name("loans.baseline"), log.with_name("some.jsonl")
    path.write_bytes(pack_baseline(victims.baseline()))
    with log.open("rb") as lines:
        some.write_bytes(b"".join(itertools.islice(lines, 3000)))
    settings = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")}
    settings["QUERYWARDEN_STATE_DIR"] = str(log.with_name("state"))
    oracle.called("replay", str(some), "--baseline", str(path), settings=settings)
    return path


@pytest.fixture
def cluster(tmp_path: Path, baseline_file: Path, new_server: NewServer) -> Iterator[Cluster]:
    baseline = tmp_path / "loans.baseline"
    shutil.copy(baseline_file, baseline)
    with new_server(Cluster, tmp_path, baseline, SEED, disk_megabytes=1024) as servers:
        yield servers
