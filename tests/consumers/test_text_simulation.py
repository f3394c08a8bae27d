"""A simulated log of a model of texts: the native event, the truth beside it, the same bytes for the same arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import text_models

from consumers.commands.simulate import simulate
from consumers.errors import InvalidInput, WrongUse
from consumers.simulate import truth_path
from consumers.text_simulation import is_of_texts, simulate_texts
from detector.simulation.texts import TEXT_THEFTS


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "reference.jsonl"
    path.write_text(
        "\n".join(json.dumps(text_models.event(None, text)) for text in text_models.questions()[:200]) + "\n"
    )
    return path


def test_every_theft_is_in_the_log_and_the_same_arguments_give_the_same_bytes(reference: Path, tmp_path: Path) -> None:
    logs = [tmp_path / f"{name}.jsonl.gz" for name in "ab"]
    truth, _ = (simulate_texts(reference, log, clients=5, queries=(20, 40), linked=True) for log in logs)
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert sorted(t["kind"] for t in truth["clients"].values() if t["role"] == "attack") == sorted(TEXT_THEFTS)
    assert json.loads(truth_path(logs[1]).read_bytes()) == truth


def test_events_have_texts_and_answers_of_the_reference(reference: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    simulate_texts(reference, log, clients=3, attacks=["nonsense/drip5"], queries=(5, 5))
    events = [json.loads(line) for line in log.read_bytes().splitlines()]
    assert {e["prediction"]["label"] for e in events} <= set(text_models.LABELS)
    assert all(isinstance(e["text"], str) and "features" not in e for e in events)
    assert "attack" not in log.read_text()


def test_a_reference_is_known_by_its_first_event(reference: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"features": [1], "text": "a note", "prediction": {"label": 1}}) + "\n")
    assert is_of_texts(reference)
    assert not is_of_texts(rows)


def test_the_command_chooses_by_the_reference(reference: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    simulate(log, reference, clients=2, attack=["topic_sweep"])
    assert b'"text":' in log.read_bytes()


def test_a_wrong_call_is_refused_in_one_line(reference: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongUse, match="unknown attack 'jbda'; there are: topic_sweep"):
        simulate_texts(reference, tmp_path / "log.jsonl", attacks=["jbda"])
    short = tmp_path / "short.jsonl"
    short.write_bytes(b"\n".join(reference.read_bytes().splitlines()[:9]))
    with pytest.raises(InvalidInput, match="50 are needed"):
        simulate_texts(short, tmp_path / "log.jsonl")
