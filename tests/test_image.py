"""What can be tested of the image without a container engine: its entry point, and that its kernels are all that a worker needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import victims

from detector.baseline_file import pack_baseline

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())


def variables(stage: str) -> dict[str, str]:
    return dict(re.findall(r"(NUMBA_\w+)=(\S*)", stage))


def test_the_image_compiles_kernels_for_the_processor_of_its_workers() -> None:
    """Numba keys its cache by processor: built for another, it would be of no use."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    built, ran = variables(stages[0]), variables(stages[1])
    assert "warm_kernels.py" in stages[0]
    assert (built["NUMBA_CPU_NAME"], built["NUMBA_CPU_FEATURES"]) == (ran["NUMBA_CPU_NAME"], ran["NUMBA_CPU_FEATURES"])
    assert built["NUMBA_CACHE_DIR"].startswith("/app/")
    assert ran["NUMBA_CACHE_DIR"].startswith("/tmp/")  # the root may be read-only
    chart = (ROOT / "helm" / "templates" / "deployments.yaml").read_text()
    assert re.findall(r"name: NUMBA_CACHE_DIR\n\s+value: (\S+)", chart) == [ran["NUMBA_CACHE_DIR"]]
    assert "mountPath: /tmp }" in chart


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A read-only folder of kernels, and a `querywarden` that says what it was called with."""
    kernels = tmp_path / "app" / "numba"
    (kernels / "detector_1").mkdir(parents=True)
    (kernels / "detector_1" / "fold.nbi").write_text("compiled")
    for path in (kernels / "detector_1" / "fold.nbi", kernels / "detector_1", kernels):
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = tmp_path / "bin" / "querywarden"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\necho "$@" "${QUERYWARDEN_KERNELS-none}"\n')
    command.chmod(0o755)
    return tmp_path


def start(folder: Path, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NUMBA_CACHE_DIR": str(cache),
        "QUERYWARDEN_KERNELS": str(folder / "app" / "numba"),
    }  # fmt: skip
    command = [str(ROOT / "examples" / "image" / "start.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_entry_point_hands_over_the_kernels_and_becomes_the_command(shipped: Path) -> None:
    cache = shipped / "tmp" / "numba"
    cache.parent.mkdir()
    done = start(shipped, cache, "ingest", "--config", "a b")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "ingest --config a b none", "")
    assert (cache / "detector_1" / "fold.nbi").read_text() == "compiled"
    (cache / "detector_1" / "new.nbc").write_text("writable")
    assert start(shipped, cache, "detect").returncode == 0  # a restart keeps what is there
    assert (cache / "detector_1" / "new.nbc").exists()
    assert [path.name for path in cache.parent.iterdir()] == ["numba"]


def test_without_a_place_for_the_kernels_it_starts_all_the_same(shipped: Path) -> None:
    done = start(shipped, shipped / "nowhere" / "numba", "serve")
    assert (done.returncode, done.stdout.strip()) == (0, "serve none")


@pytest.mark.soak
def test_a_worker_compiles_nothing_that_the_build_did_not(tmp_path: Path) -> None:
    """The build's step on an empty cache, then the product in a process of its own."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "numba"), "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
    }  # fmt: skip
    warm = [sys.executable, str(ROOT / "examples" / "warm_kernels.py")]
    subprocess.run(warm, env=environment, cwd=tmp_path, check=True, timeout=1200, capture_output=True)

    def kernels() -> set[str]:
        return {path.name for path in (tmp_path / "numba").rglob("*.nbc")}

    built = kernels()
    assert len(built) > 20
    victims.log_of(tmp_path / "log.jsonl", victims.streams(20, [("jbda", "plain")], seed=5, queries=(200, 300)))
    (tmp_path / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    words = ["replay", "--baseline", str(tmp_path / "loans.baseline"), str(tmp_path / "log.jsonl")]
    ran = subprocess.run(
        [sys.executable, "-m", "consumers", *words],
        env=environment,
        cwd=ROOT,
        check=False,
        timeout=600,
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert kernels() == built
