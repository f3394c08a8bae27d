"""Records are tried in a child process: those that end it, and no others, are found; the process itself lives."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consumers.ingest import poison
from consumers.ingest.poison import find_poison


def spin() -> None:
    while True:
        pass


def crash() -> None:
    ctypes.string_at(0)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> None:
    raise MemoryError


def end() -> None:
    os._exit(0)


@pytest.mark.parametrize("death", [spin, crash, kill, fail, end])
def test_what_ends_a_process_is_found(death: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poison, "CPU_S", 1)
    before = os.getpid()
    assert find_poison(6, lambda i: death() if i in (0, 4) else None) == [0, 4]
    assert os.getpid() == before


def test_what_lives_is_not() -> None:
    changed = [0]

    def attempt(i: int) -> None:
        changed[0] += 1
        if i == 3:
            time.sleep(0.2)

    assert find_poison(500, attempt) == []
    assert find_poison(0, attempt) == []
    assert changed == [0], "what a child changes is its own"


def test_a_child_that_ended_for_another_reason_condemns_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two children are killed from outside, at the same record; the third one lives."""
    marks = tmp_path_factory.mktemp("marks")

    def attempt(i: int) -> None:
        if i == 1 and len(list(marks.iterdir())) < 2:
            (marks / str(os.getpid())).touch()
            kill()

    assert find_poison(3, attempt) == []
    assert len(list(marks.iterdir())) == 2


def test_silence_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poison, "SILENCE_S", 0.2)
    assert find_poison(3, lambda i: time.sleep(30) if i == 1 else None) == []


def test_a_child_holds_nothing_of_its_parent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as port:

        def held(i: int) -> None:
            os.fstat(port.fileno())

        assert find_poison(1, held) == [0]
        os.fstat(port.fileno())


def test_a_child_leaves_nothing_behind() -> None:
    def children() -> set[str]:
        """Those of others too: servers of the session may run."""
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before, mine = len(os.listdir("/proc/self/fd")), children()
    for _ in range(6):
        find_poison(2, lambda i: kill() if i else None)
    assert len(os.listdir("/proc/self/fd")) == before
    assert children() <= mine
