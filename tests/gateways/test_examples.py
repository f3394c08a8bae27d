"""The example model server's graded response, and what the page about gateways says."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gateway_peers import EXAMPLES, example_module
from typer.testing import CliRunner

from consumers import cli
from consumers.secrets import Secrets

ROOT = Path(__file__).resolve().parents[2]
degraded: Any = example_module("model_server").degraded
PROBABILITIES = [0.61234, 0.28766, 0.1]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("none", PROBABILITIES),
        ("", PROBABILITIES),
        ("unknown=3, round=", PROBABILITIES),
        ("round=1", [0.6, 0.3, 0.1]),
        ("round=2,unknown", [0.61, 0.29, 0.1]),
        ("top1", [1.0, 0.0, 0.0]),
        ("noise=0", PROBABILITIES),
        ("round=nan, noise=inf", PROBABILITIES),
    ],
)
def test_steps(steps: str, expected: list[float]) -> None:
    assert degraded(PROBABILITIES, steps, b"x") == pytest.approx(expected)


def test_noise_is_the_same_for_the_same_input_and_differs_between_inputs() -> None:
    first, again, other = (degraded(PROBABILITIES, "noise=0.05", asked) for asked in (b"a", b"a", b"b"))
    assert first == again != other
    assert first != pytest.approx(PROBABILITIES, abs=1e-6)
    spread = [degraded(PROBABILITIES, "noise=0.02", str(n).encode())[0] - PROBABILITIES[0] for n in range(500)]
    assert 0.01 < (sum(x * x for x in spread) / len(spread)) ** 0.5 < 0.03


@given(
    st.lists(st.floats(0.001, 1), min_size=2, max_size=6),
    st.lists(st.sampled_from(["round=0", "round=1", "noise=0.3", "top1", "?"])),
)
def test_the_most_probable_label_stays_it(weights: list[float], steps: list[str]) -> None:
    probabilities = [w / sum(weights) for w in weights]
    found = degraded(probabilities, ",".join(steps), b"x")
    best = probabilities.index(max(probabilities))
    assert found[best] == max(found)
    assert all(0 <= p <= 1 for p in found)


def test_every_example_is_in_the_page_and_strips_what_clients_claim() -> None:
    page = (ROOT / "docs" / "gateways.md").read_text()
    for file in EXAMPLES.iterdir():
        if file.is_file():
            assert f"examples/gateways/{file.name}" in page, file.name
            if file.suffix != ".py":
                text = file.read_text().lower()
                assert "x-querywarden-decision" in text
                assert "x-querywarden-degrade" in text


def test_gateway_hash_and_edge_key_are_those_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = Secrets.load(tmp_path / "secrets.json", create=True)
    monkeypatch.setenv("QUERYWARDEN_SECRETS__FILE", str(tmp_path / "secrets.json"))
    found = CliRunner().invoke(cli.app, ["gateway", "hash"], input="sk-1\nsk-2\n")
    assert found.stdout.split() == [secrets.client_hash("default", key) for key in ("sk-1", "sk-2")]
    found = CliRunner().invoke(cli.app, ["gateway", "edge-key"])
    assert base64.b64decode(found.stdout.strip()) == secrets.edge_key("default")


def test_committed_figures_pass_the_bar_and_the_controls_do_not() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "gateway.json").read_text())
    bar = found["bar"]
    assert (bar["per_s"], bar["server_p99_ms"]) == (5000, 1.0)
    for row in found["scenarios"]:
        reached = row["answered_per_s"] >= bar["per_s"] and row["server"]["p99_ms"] <= bar["server_p99_ms"]
        assert (reached and row["answered"] == row["sent"]) is row["passes"]
        assert row["passes"] is not row["control"], row["name"]
    names = " ".join(row["name"] for row in found["scenarios"])
    assert re.search(r"100,000.*stopped", names)
