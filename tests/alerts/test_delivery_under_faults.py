"""No alert is lost and none is told as another: a receiver that fails, a sender that is killed, and every alert arrives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from alerts.outbox_worker_process import SECRETS
from support.receivers import recording

from consumers.records.alert import packed_alert
from consumers.store import DECISION_CELLS, Outcome
from consumers.store.embedded import EmbeddedStore

ROOT = Path(__file__).parents[2]
SENDER = Path(__file__).with_name("outbox_worker_process.py")
DEADLINE_S = 0.06


@dataclass
class Flaky:
    """Answers 503 to 30 % of the requests and too late to 10 %; of those it has taken half all the same."""

    rng: random.Random
    got: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        with self.lock:
            luck = self.rng.random()
            does = "fails" if luck < 0.3 else "late" if luck < 0.4 else "takes"
            self.answers[does] += 1
            if does == "takes" or (does == "late" and luck < 0.35):
                self.got.append(request.headers["webhook-id"])
        if does == "late":
            time.sleep(DEADLINE_S + 0.1)
            return
        request.send_response(503 if does == "fails" else 202)
        request.send_header("Content-Length", "0")
        request.end_headers()


def filled(path: Path, alerts: int) -> list[str]:
    """The ids of the alerts that wait in a store."""
    store = EmbeddedStore(path)
    store.prepare(SECRETS.key_id)
    uids = []
    for cell in range(DECISION_CELLS):
        claim = store.claim_decisions(cell, "p", "t" * 32, 1000)
        bodies = [
            {
                "alert_id": f"{i:032x}", "update": i % 3, "kind": "client", "client_id": f"acct-{i}", "tenant": "acme", "model_id": "m",
                "state": "block", "time": "2026-03-02T09:00:00.123Z",
            }
            for i in range(cell, alerts, DECISION_CELLS)
        ]  # fmt: skip
        made = [packed_alert(body, 1_772_442_000_123, SECRETS) for body in bodies]
        store.record("t" * 32, claim.revision, Outcome(cell, alerts=made), "p", 1000)
        uids += [alert.uid for alert in made]
    store.close()
    return uids


def deliver(path: Path, flaky: Flaky, kills: int, alerts: int, *how: str) -> None:
    """Deliver everything; the sender is killed so many times, each after a share of the alerts has arrived."""
    with recording() as receiver:
        receiver.misbehave = flaky
        command = [sys.executable, str(SENDER), str(path), receiver.url, str(DEADLINE_S), *how]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        marks = [alerts * (i + 1) // (kills + 1) for i in range(kills)]
        while True:
            sender = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while sender.poll() is None and not (marks and len(flaky.got) >= marks[0]):
                time.sleep(0.001)
            if sender.poll() is not None:
                assert sender.stderr is not None
                assert sender.returncode == 0, sender.stderr.read().decode()[-2000:]
                assert not marks, "it was done before it could be killed"
                return
            marks.pop(0)
            sender.send_signal(signal.SIGKILL)
            sender.communicate()


def waiting(path: Path) -> tuple[list[str], int]:
    """Ids of the alerts that the store keeps, and how many of them still wait."""
    store = EmbeddedStore(path)
    try:
        name = "webhook:127.0.0.1"
        return [alert.uid for alert in store.alerts()], sum(
            len(store.outbox(cell, name, 10_000)) for cell in range(DECISION_CELLS)
        )
    finally:
        store.close()


@pytest.mark.parametrize(
    ("alerts", "kills"), [(300, 2), pytest.param(10_000, 20, marks=pytest.mark.soak)], ids=["300", "ten thousand"]
)
def test_every_alert_arrives_through_failures_time_outs_and_kills(tmp_path: Path, alerts: int, kills: int) -> None:
    path = tmp_path / "store.sqlite"
    uids = filled(path, alerts)
    flaky = Flaky(random.Random(7))
    deliver(path, flaky, kills, alerts)
    asked = flaky.answers.total()
    assert 0.25 < flaky.answers["fails"] / asked < 0.35
    assert 0.06 < flaky.answers["late"] / asked < 0.14
    assert set(flaky.got) == set(uids), "missing 0, and nothing that was not told"
    kept, left = waiting(path)
    assert (sorted(kept), left) == (sorted(uids), 0), "duplicates in the outbox 0"


def test_a_sender_that_forgets_before_it_sends_would_be_noticed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    uids = filled(path, 40)
    flaky = Flaky(random.Random(7))
    deliver(path, flaky, 0, 40, "careless")
    assert waiting(path)[1] == 0
    assert len(set(uids) - set(flaky.got)) > 5
