"""`simulate`: native events, reproducible, with the truth beside and not inside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from consumers.errors import Refused, WrongUse
from consumers.simulate import named_attacks, read_reference, simulate, truth_path

SMALL: dict[str, Any] = {
    "clients": 14,
    "attacks": ["jbda", "noise_uniform/sybil10", "copycat/drip50"],
    "queries": (60, 120),
}


def write_lines(path: Path, events: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def table_reference(path: Path, n: int = 200) -> Path:
    """Named features, one of them a category; string labels."""
    rng = np.random.default_rng(0)
    events = []
    for _ in range(n):
        age, score = int(rng.integers(18, 80)), round(float(rng.random()), 3)
        job = str(rng.choice(["baker", "clerk", "smith"]))
        p = round(1 / (1 + np.exp(-(age - 45) / 10 - score)), 6)
        prediction = {"label": "yes" if p > 0.5 else "no", "probabilities": [round(1 - p, 6), p]}
        features = {"age": age, "score": score, "job": job}
        events.append({"model_id": "loans", "features": features, "prediction": prediction})
    return write_lines(path, events)


def events_of(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if path.suffix == ".zst":
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_a_log_is_native_events_in_time_order_and_the_truth_is_beside_it(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"log{suffix}"
    truth = simulate(table_reference(tmp_path / "ref.jsonl"), out, **SMALL)
    events = events_of(out)
    assert json.loads(truth_path(out).read_text()) == truth
    assert truth_path(out).name == "log.truth.json"
    stamps = [event["timestamp"] for event in events]
    assert stamps == sorted(stamps)
    assert len({event["event_id"] for event in events}) == len(events)
    counts: dict[str, int] = {}
    for event in events:
        counts[event["client_id"]] = counts.get(event["client_id"], 0) + 1
        assert set(event) == {"event_id", "timestamp", "client_id", "model_id", "features", "prediction"}
        assert set(event["features"]) == {"age", "score", "job"}
        assert isinstance(event["features"]["age"], int)
        assert event["features"]["job"] in ("baker", "clerk", "smith")
        assert event["prediction"]["label"] == ("no", "yes")[int(np.argmax(event["prediction"]["probabilities"]))]
    assert counts == {client: entry["queries"] for client, entry in truth["clients"].items()}
    roles = [entry["role"] for entry in truth["clients"].values()]
    assert (roles.count("benign"), roles.count("attack")) == (14, 1 + 10 + 1)


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    reference = table_reference(tmp_path / "ref.jsonl")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(reference, tmp_path / f"{name}.jsonl.gz", seed=seed, **SMALL)
    a, b, c = ((tmp_path / f"{name}.jsonl.gz").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_built_in_victim_answers_like_the_reference(tmp_path: Path) -> None:
    reference = table_reference(tmp_path / "ref.jsonl")
    simulate(reference, tmp_path / "log.jsonl", clients=20, attacks=[])
    known = {json.dumps(e["features"]): e["prediction"]["label"] for e in events_of(reference)}
    asked = [e for e in events_of(tmp_path / "log.jsonl") if json.dumps(e["features"]) in known]
    assert len(asked) > 200
    assert np.mean([known[json.dumps(e["features"])] == e["prediction"]["label"] for e in asked]) > 0.93


def test_a_victim_of_ones_own_answers(tmp_path: Path) -> None:
    asked: list[int] = []

    def victim(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return np.tile([0.25, 0.75], (len(rows), 1))

    simulate(table_reference(tmp_path / "ref.jsonl"), tmp_path / "log.jsonl", predict=victim, **SMALL)
    assert {e["prediction"]["label"] for e in events_of(tmp_path / "log.jsonl")} == {"yes"}
    assert sum(asked) > 300


@pytest.mark.parametrize(
    ("first", "second", "labels"),
    [
        ({"label": "b"}, {"label": "a"}, ["a", "b"]),
        ({"logits": [0.1, 2.0]}, {"logits": [0.3, 0.1]}, [0, 1]),
        ({"label": "b", "probabilities": [0.1, 0.9]}, {"label": "b", "probabilities": [0.4, 0.6]}, [0, "b"]),
    ],
)
def test_answers_may_be_labels_logits_or_probabilities(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], labels: list[Any]
) -> None:
    events = [{"embedding": [0.8, 0.6], "prediction": p} for p in [first, second] * 30]
    reference = read_reference(write_lines(tmp_path / "r.jsonl", events))
    assert reference.labels == labels
    assert reference.answers.shape[1] == 2
    np.testing.assert_allclose(reference.answers.sum(axis=1), 1.0)
    assert reference.columns.key == "embedding"


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"features": [1, 2], "prediction": {"label": 0}}] * 10, "too few"),
        ([{"text": "hello", "prediction": {"label": 0}}] * 60, "no numeric input"),
        ([{"features": [1, 2], "prediction": {"value": 0.5}}] * 60, "classifier"),
        ([{"features": [1, 2]}] * 60, "no prediction"),
        ([{"features": [1, 2][: 2 - i // 60], "prediction": {"label": 0}} for i in range(61)], "number of"),
        ([{"features": [1, None], "prediction": {"label": 0}}] * 60, "neither a number"),
    ],
)
def test_unfit_references_are_refused_in_one_line(tmp_path: Path, events: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(Refused, match=message) as caught:
        read_reference(write_lines(tmp_path / "r.jsonl", events))
    assert "\n" not in str(caught.value)


def test_wrong_calls_say_what_there_is(tmp_path: Path) -> None:
    reference = table_reference(tmp_path / "ref.jsonl")
    with pytest.raises(WrongUse, match="noise_uniform"):
        named_attacks(["telepathy"])
    with pytest.raises(WrongUse, match="drip10"):
        named_attacks(["jbda/quietly"])
    with pytest.raises(WrongUse, match="batch_scorer"):
        simulate(reference, tmp_path / "o.jsonl", kinds=["saint"])
    with pytest.raises(WrongUse, match="nothing to simulate"):
        simulate(reference, tmp_path / "o.jsonl", clients=0, attacks=[])
    with pytest.raises(WrongUse, match="No such file"):
        simulate(tmp_path / "missing.jsonl", tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_failed_run_leaves_no_half_log(tmp_path: Path) -> None:
    calls = [0]

    def victim(rows: np.ndarray) -> np.ndarray:
        calls[0] += 1
        if calls[0] > 3:
            raise ValueError("the victim went away")
        return np.tile([0.25, 0.75], (len(rows), 1))

    with pytest.raises(ValueError, match="went away"):
        simulate(table_reference(tmp_path / "ref.jsonl"), tmp_path / "log.jsonl", predict=victim, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["ref.jsonl"]
