"""The demo, small: it ends well, what it prints is the truth, and it serves its dashboard on loopback only."""

from __future__ import annotations

import importlib.util
import io
import json
import socket
import sys
import threading
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console
from support import victims

from detector.baseline_file import pack_baseline

DEMO = Path(__file__).parent.parent / "examples" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path / "demo-out")
    monkeypatch.setattr(module, "console", Console(file=io.StringIO(), width=200, highlight=False))
    return module


def printed(demo: ModuleType) -> str:
    stream = demo.console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


@pytest.mark.soak  # the quick start of the docs runs the same commands
def test_a_small_demo_ends_with_a_report_and_the_truth(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CALIBRATION_CLIENTS", 60)
    monkeypatch.setattr(demo, "TEST_CLIENTS", 15)
    monkeypatch.setattr(demo, "THEFTS", [("noise_uniform", "plain"), ("in_domain", "plain")])
    monkeypatch.setenv("ONCE", "1")
    assert demo.main() == 0
    truth = json.loads((demo.OUT / "test.truth.json").read_text())["clients"]
    thieves = {client for client, known in truth.items() if known["role"] == "attack"}
    text, page = printed(demo), (demo.OUT / "report" / "index.html").read_text(encoding="utf-8")
    assert len(truth) == 17
    assert len(thieves) == 2
    for thief in thieves:  # caught or missed, every thief is named
        assert thief in text
        assert thief in page
    for line in text.splitlines():
        client = line.split(" ")[0]
        if client in truth:
            assert ("HONEST:" in line) == (client not in thieves)
    assert "of 2 accounts of thieves were flagged, " in text
    assert " of 15 honest clients" in text
    assert "querywarden replay" in text


def test_patches_and_rescans_are_images_of_the_same_kind(demo: ModuleType) -> None:
    rng = demo.np.random.default_rng(0)
    patches = demo.photo_patches(50, rng)
    again = demo.rescan(patches, rng)
    assert patches.shape == again.shape == (50, 64)
    assert patches.min() >= 0
    assert patches.max() <= 1
    assert demo.np.array_equal(again * 16, demo.np.round(again * 16))
    assert demo.np.abs(again - patches).mean() < 0.2


def test_the_dashboard_is_served_on_loopback_to_whoever_sits_here(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(demo, "ADDRESS", ("127.0.0.1", port))
    (demo.OUT / "state").mkdir(parents=True)
    (demo.OUT / "digits.baseline").write_bytes(pack_baseline(victims.baseline()))
    ended = threading.Event()
    thread = threading.Thread(target=demo.serve, args=(demo.MODEL, ended.is_set))
    thread.start()
    try:
        for _ in range(600):
            if "The dashboard is on" in printed(demo):
                break
            threading.Event().wait(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as answer:
            page = answer.read().decode()
        assert "<h1>Suspects</h1>" in page
        assert "Sign in" not in page
        foreign = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example"})
        with urllib.request.urlopen(foreign, timeout=10) as answer:
            assert "Suspects</h1>" not in answer.read().decode()
    finally:
        ended.set()
        thread.join(30)
    assert not thread.is_alive()


def test_a_taken_port_is_said_and_no_error(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.OUT.mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(demo, "ADDRESS", taken.getsockname())
        demo.serve(demo.MODEL, lambda: False)
    assert "open the report as a file" in printed(demo)
