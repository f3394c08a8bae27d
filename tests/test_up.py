"""`make up`, for real: everything starts, a query that is posted shows up as a client, and nothing is left when it is down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims
from support.kafka_producer import produce
from support.servers import NewServer, free_port, wait_until

from detector.baseline_file import pack_baseline
from examples import up
from examples.servers import Kafka

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("kafka", "redis", "http", "ingest", "detect")


@pytest.fixture
def state(tmp_path: Path, new_server: NewServer) -> Path:
    new_server(Kafka, tmp_path / "never")  # skips or fails here when there is no Kafka
    (tmp_path / "loans.baseline").write_bytes(pack_baseline(victims.baseline()))
    return tmp_path / "state"


@pytest.fixture
def ports() -> dict[str, int]:
    return {name: free_port() for name in NAMES}


def command(state: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "examples.up", "--state", str(state), *more]


@pytest.fixture
def running(state: Path, ports: dict[str, int]) -> Iterator[subprocess.Popen[str]]:
    stated = [word for name, port in ports.items() for word in ("--port", f"{name}={port}")]
    process = subprocess.Popen(
        command(state, "--baseline", str(state.parent / "loans.baseline"), *stated),
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"QUERYWARDEN_STORE__URL": "sqlite:////nowhere/x"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What it says up to a line with `text`."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it ended before it said {text!r}:\n{said}")


def asked(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def processes_of(state: Path) -> dict[str, int]:
    return {name: p["pid"] for name, p in json.loads((state / "up.json").read_text())["processes"].items()}


@pytest.mark.soak  # the quick start on Kafka and Redis runs the same processes
def test_everything_comes_up_a_query_becomes_a_client_and_nothing_is_left(
    running: subprocess.Popen[str], state: Path, ports: dict[str, int]
) -> None:
    said = read_until(running, "stops all of it")
    for name in ("kafka", "redis", "ingest", "detect", "serve"):
        assert f"{name}: ready after" in said
    for port in ports.values():
        assert str(port) in said
    address = f"http://127.0.0.1:{ports['http']}"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    rows = victims.items(20, np.random.default_rng(4))
    lines = [victims.line(row, client_id="acct-up", timestamp=now) for row in rows]
    produce(f"127.0.0.1:{ports['kafka']}", "prediction-queries", lines, keys=[b"acct-up"] * len(lines))

    def seen() -> bool:
        found = asked(f"{address}/v1/models/{victims.MODEL}/clients")
        return [(c["client_id"], c["queries"]) for c in found["items"]] == [("acct-up", 20)]

    wait_until(seen, 20, "the client over HTTP")
    known = processes_of(state)
    assert set(known) == {"up", "kafka", "redis", "ingest", "detect", "serve"}

    again = subprocess.run(command(state), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 0
    assert f"it is up (pid {known['up']})" in again.stdout
    assert f"http://127.0.0.1:{ports['http']}/" in again.stdout
    assert processes_of(state) == known

    ended = subprocess.run(command(state, "--down"), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "stopped: detect, ingest, kafka, redis, serve, up" in ended.stdout
    assert "killed" not in ended.stdout
    assert running.wait(30) == 0
    assert {name: up.started_at(pid) for name, pid in known.items()} == dict.fromkeys(known)
    assert not (state / "up.json").exists()


def test_down_leaves_a_pid_alone_that_somebody_else_got_since(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started = up.started_at(stranger.pid)
        assert started is not None
        forged = {"ports": {}, "processes": {"ingest": {"pid": stranger.pid, "started": started - 1}}}
        (tmp_path / "up.json").write_text(json.dumps(forged))
        assert up.down(tmp_path) == 0
        assert "nothing is up" in capsys.readouterr().out
        assert stranger.poll() is None
        forged["processes"]["ingest"]["started"] = started
        (tmp_path / "up.json").write_text(json.dumps(forged))
        assert up.down(tmp_path) == 0
        assert stranger.wait(10) == -signal.SIGTERM
    finally:
        stranger.kill()
        stranger.wait(10)


def test_down_waits_as_long_as_one_process_after_another_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A busy machine takes its time over six processes; only what stands still is killed. The clock is ours."""
    now, ends, killed = [0.0], {11: 40.0, 12: 80.0, 13: 120.0, 14: 1e9}, []
    known = {f"part-{pid}": {"pid": pid, "started": 1} for pid in ends} | {"up": {"pid": 13, "started": 1}}
    (tmp_path / "up.json").write_text(json.dumps({"ports": {}, "processes": known}))
    monkeypatch.setattr(up, "started_at", lambda pid: 1 if now[0] < ends[pid] else None)
    monkeypatch.setattr("examples.up.time.monotonic", lambda: now[0])
    monkeypatch.setattr("examples.up.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr("examples.up.os.kill", lambda pid, number: killed.append((pid, number)))
    assert up.STOP_S * 2 < 80, "the last of them takes longer than one wait"
    up.down(tmp_path)
    assert killed == [(13, signal.SIGTERM), (14, signal.SIGKILL)]
    assert now[0] == pytest.approx(120 + 2 * up.STOP_S, abs=1)
    assert "part-14 (pid 14) does not stop: killed" in capsys.readouterr().out


def test_a_taken_port_is_told_if_it_was_stated_and_avoided_if_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(up, "USUAL_PORTS", {"http": port})
        with pytest.raises(up.Failed, match=f"port {port}, http's, is taken"):
            up.ports_of(tmp_path, {"http": port})
        other = up.ports_of(tmp_path, {})["http"]
        assert other != port
        assert f"port {port} is taken: http is on {other}" in capsys.readouterr().out
        assert up.ports_of(tmp_path, {}) == {"http": other}  # kept for the next time
