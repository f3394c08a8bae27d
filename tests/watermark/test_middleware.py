"""The middleware: who is touched, who never is, what the log sees, and what cannot be evaded."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gateway_peers import example_module
from support.marked_model import CLIENT, MODEL, OTHER, ModelServer, ask, degrade

from consumers.watermark.keys import WatermarkKey
from consumers.watermark.middleware import DegradationMiddleware
from consumers.watermark.registry import Registry, lines_of, unsealed
from consumers.watermark.selection import MarkPolicy

KEY = WatermarkKey(bytes(range(32)))
CANARY = f"canary={KEY.key_id}"
POLICY = MarkPolicy(flip_share=0.005, mark_share=0.05)
FULL = {"label": 0, "probabilities": [0.612345, 0.287655, 0.1], "logits": [1.0, 0.2, -1.0], "note": "kept"}


def predict(request: Any) -> Any:
    return dict(FULL)


def row(x: int) -> list[float]:
    """Input number x: no two of them lie in one cell of the quantisation."""
    return [round(math.sin(x), 6), round(math.cos(1.7 * x), 6), float(x % 7)]


class Marked:
    """A marked model with its registry."""

    def __init__(self, folder: Path, **words: Any) -> None:
        self.path = folder / "canaries.jsonl"
        self.server = ModelServer(words.pop("predict", predict), **words.pop("server", {}))
        self.registry = Registry(self.path, KEY, **words.pop("registry", {}))
        self.app = DegradationMiddleware(
            self.server, MODEL, key=KEY, registry=self.registry, policy=words.pop("policy", POLICY), **words
        )

    def ask(self, x: Any, headers: dict[str, str]) -> Any:
        return ask(self.app, {"features": row(x)}, headers).body


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Marked]:
    marked = Marked(tmp_path)
    yield marked
    marked.registry.close()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-QueryWarden-Degrade": "none", "X-QueryWarden-Client": "none", "X-QueryWarden-Decision": "clear"},
        {"X-QueryWarden-Degrade": ""},
    ],
)
def test_a_client_without_steps_gets_exactly_what_the_model_says(model: Marked, headers: dict[str, str]) -> None:
    for x in range(300):
        reply = ask(model.app, {"features": [x]}, headers)
        assert reply.body == FULL
        assert reply.headers["etag"] == '"x"'
    assert model.path.stat().st_size == 0


@pytest.mark.parametrize("decision", ["clear", "watch", "block", "", "throttle, clear"])
def test_under_any_other_decision_nothing_is_marked(model: Marked, decision: str) -> None:
    for x in range(300):
        assert model.ask(x, degrade(CANARY, decision=decision))["label"] == 0
    assert model.path.stat().st_size == 0


@pytest.mark.parametrize(
    "headers",
    [
        degrade("canary=0123456789abcdef"),
        degrade("canary"),
        degrade(CANARY, client="none"),
        degrade(CANARY, client="acct-1"),
        degrade(CANARY, client=CLIENT.upper()),
    ],
)
def test_another_key_or_no_client_marks_nothing(model: Marked, headers: dict[str, str]) -> None:
    for x in range(300):
        assert model.ask(x, headers)["probabilities"] == FULL["probabilities"]
    assert model.path.stat().st_size == 0


def test_a_client_header_that_comes_twice_names_nobody(model: Marked) -> None:
    pairs = [*degrade(CANARY).items(), ("X-QueryWarden-Client", OTHER)]
    for x in range(300):
        assert ask(model.app, {"features": row(x)}, pairs).body["label"] == 0
    assert model.path.stat().st_size == 0


def test_marks_are_rare_the_same_for_all_and_registered_before_they_leave(model: Marked) -> None:
    n = 1200
    first = [model.ask(x, degrade(CANARY)) for x in range(n)]
    again = [model.ask(x, degrade(CANARY, client=OTHER, decision="degrade")) for x in reversed(range(n))][::-1]
    assert first == again, "the same input gets the same answer, whichever client asks"
    flipped = sum(answer["label"] != 0 for answer in first)
    assert 0 < flipped <= 3 * 0.005 * n
    changed = sum(answer["probabilities"] != FULL["probabilities"] for answer in first)
    assert flipped < changed < 0.1 * n
    lines = list(lines_of(model.path))
    assert {line.client for line in lines} == {CLIENT, OTHER}
    assert sum(line.kind == "canary" for line in lines) >= 2 * changed
    assert not any(str(row(x)[0]) in model.path.read_text() for x in range(n)), "no input in clear"
    asked = {json.dumps(sealed.input) for line in lines if (sealed := unsealed(line, KEY)) is not None}
    assert {json.dumps(row(x)) for x, answer in enumerate(first) if answer["label"]} <= asked


def test_the_application_logs_the_truth_and_knows_which_inputs_are_canaries(model: Marked) -> None:
    replies = [model.ask(x, degrade(CANARY)) for x in range(1200)]
    assert all(answer == FULL for _, answer, _ in model.server.log)
    for reply, (_, _, canary) in zip(replies, model.server.log, strict=True):
        assert canary in (True, False)
        if reply["label"] != 0 or reply["probabilities"] != FULL["probabilities"]:
            assert canary, "a changed answer is a canary in the log"
    assert sum(bool(canary) for *_, canary in model.server.log) < 0.12 * 1200


def test_logits_go_from_every_answer_of_a_client_with_marks(model: Marked) -> None:
    assert all("logits" not in model.ask(x, degrade(CANARY)) for x in range(50))
    assert "logits" in model.ask(1, degrade("noreasoning"))


def test_marks_come_after_the_steps(model: Marked) -> None:
    answers = [model.ask(x, degrade(f"label,{CANARY}")) for x in range(1200)]
    assert all("probabilities" not in answer for answer in answers)
    with_round = [model.ask(x, degrade(f"round=2,{CANARY}"))["probabilities"] for x in range(1200)]
    assert all(round(p, 2) == p for answer in with_round for p in answer)


def test_flips_only_by_opt_in(tmp_path: Path) -> None:
    model = Marked(tmp_path, policy=MarkPolicy(mark_share=0.1))
    assert all(model.ask(x, degrade(CANARY))["label"] == 0 for x in range(1200))
    kinds = {type(m).__name__ for line in lines_of(model.path) if (s := unsealed(line, KEY)) for m in s.marks}
    assert kinds == {"Order", "Decimal"}


def test_without_a_place_in_the_registry_nothing_is_marked(tmp_path: Path) -> None:
    model = Marked(tmp_path, registry={"most_of_client": 20})
    answers = [model.ask(x, degrade(CANARY)) for x in range(1500)]
    changed = sum(a["label"] != 0 or a["probabilities"] != FULL["probabilities"] for a in answers)
    assert 0 < changed <= 20
    assert len(list(lines_of(model.path))) == 20


def test_a_registry_that_cannot_be_written_leaves_the_truth(model: Marked, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert all(model.ask(x, degrade(CANARY))["label"] == 0 for x in range(1000))


# --- shapes


BATCHES = [
    ({"predictions": [dict(FULL), dict(FULL)]}, lambda body, i: body["predictions"][i]["probabilities"]),
    ({"predictions": [FULL["probabilities"]] * 2}, lambda body, i: body["predictions"][i]),
]


@pytest.mark.parametrize(("response", "read"), BATCHES)
def test_batches(tmp_path: Path, response: Any, read: Any) -> None:
    model = Marked(tmp_path, predict=lambda _: json.loads(json.dumps(response)))
    reply = ask(model.app, {"instances": [[1.0, 2.0], [3.0, 4.0]]}, degrade("round=1"))
    assert read(reply.body, 0) == read(reply.body, 1) == [0.6, 0.3, 0.1]
    noisy = ask(model.app, {"instances": [[1.0, 2.0], [3.0, 4.0]]}, degrade("noise=0.05")).body
    assert read(noisy, 0) != read(noisy, 1)


def test_labels_in_a_batch_can_be_flipped(tmp_path: Path) -> None:
    model = Marked(tmp_path, predict=lambda r: {"predictions": ["a"] * len(r["instances"])}, labels=("a", "b", "c"))
    body = ask(model.app, {"instances": [row(x) for x in range(1500)]}, degrade(CANARY)).body
    assert 0 < sum(label != "a" for label in body["predictions"]) <= 30


def test_reasoning_goes_from_chat_answers_and_wordings_are_marked(tmp_path: Path) -> None:
    def chat(request: Any) -> Any:
        message = {"role": "assistant", "content": "<think>hm</think>However, it works.", "reasoning_content": "hm"}
        return {"id": "x", "choices": [{"index": 0, "message": message, "logprobs": {"content": []}}]}

    model = Marked(tmp_path, predict=chat, policy=MarkPolicy(mark_share=0.25))
    texts = set()
    for n in range(60):
        reply = ask(
            model.app, {"messages": [{"role": "user", "content": f"question {n}"}]}, degrade(f"noreasoning,{CANARY}")
        )
        (choice,) = reply.body["choices"]
        assert set(choice["message"]) == {"role", "content"}
        assert "logprobs" not in choice
        texts.add(choice["message"]["content"])
    assert texts == {"However, it works.", "Nevertheless, it works."}


# --- what cannot be read


def test_what_the_steps_cannot_be_applied_to_is_withheld(tmp_path: Path) -> None:
    html = Marked(tmp_path, predict=lambda _: b"<html>", server={"content_type": "text/html"})
    reply = ask(html.app, {"features": [1]}, degrade("top1"))
    assert (reply.status, reply.headers["content-type"]) == (503, "application/problem+json")
    assert ask(html.app, {"features": [1]}, {}).body == b"<html>"
    assert ask(html.app, {"features": [1]}, degrade("top1"), method="GET").body == b"<html>"


def test_without_strict_it_passes(tmp_path: Path) -> None:
    model = Marked(tmp_path, predict=lambda _: {"unheard": "of"}, strict=False)
    assert ask(model.app, {"features": [1]}, degrade("top1")).body == {"unheard": "of"}


def test_long_requests_and_answers_are_withheld(tmp_path: Path) -> None:
    model = Marked(tmp_path, most_bytes=1000)
    assert ask(model.app, {"features": [0.5] * 1000}, degrade("top1")).status == 503
    assert model.server.log == []
    assert ask(model.app, {"features": [0.5] * 1000}, {}).status == 200
    model = Marked(tmp_path, most_bytes=1000, predict=lambda _: {"label": 1, "note": "x" * 2000})
    assert ask(model.app, {"features": [1]}, degrade("top1")).status == 503


def test_an_error_of_the_model_server_passes_as_it_is(tmp_path: Path) -> None:
    model = Marked(tmp_path, predict=lambda _: {"error": "no"}, server={"status": 400})
    reply = ask(model.app, {"features": [1]}, degrade("top1"))
    assert (reply.status, reply.body) == (400, {"error": "no"})


def test_a_missing_header_means_what_the_mount_says(tmp_path: Path) -> None:
    model = Marked(tmp_path, without_header="top1")
    assert model.ask(1, {})["probabilities"] == [1.0, 0.0, 0.0]
    assert model.ask(1, {"X-QueryWarden-Degrade": "none"}) == FULL


IN_DOUBT = [
    b'{"odd": [1]}',
    b'{"features": [1, 2], "instances": [[3, 4]]}',
    b'{"text": "a", "features": [1, 2]}',
    b'{"features": [1, 2], "features": [3, 4]}',
    b'{"instances": [[1, 2], [3, 4]]}',
    b"features=1",
]


@pytest.mark.parametrize("request_body", IN_DOUBT)
def test_no_mark_is_evaded_by_an_input_that_is_in_doubt(model: Marked, request_body: bytes) -> None:
    """A decoy, a name twice, another number of inputs than answers: withheld where marks are asked for, degraded all the same elsewhere."""
    model.server.predict = lambda _: dict(FULL)
    model.server.parses = False
    assert ask(model.app, request_body, degrade(f"round=1,{CANARY}")).status == 503
    assert ask(model.app, request_body, degrade("round=1")).body["probabilities"] == [0.6, 0.3, 0.1]
    assert ask(model.app, request_body, {}).body == FULL
    assert model.path.stat().st_size == 0


def test_a_mount_that_names_the_models_field_ignores_others(tmp_path: Path) -> None:
    model = Marked(tmp_path, input_field="features")
    plain = [ask(model.app, {"features": row(x)}, degrade(CANARY)).body for x in range(300)]
    decoy = [ask(model.app, {"features": row(x), "text": "decoy"}, degrade(CANARY)).body for x in range(300)]
    assert plain == decoy
    assert any(answer["probabilities"] != FULL["probabilities"] for answer in plain)


def test_the_example_answers_logs_the_truth_and_names_its_canaries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/gateways/marked_model_server.py, without its server."""
    example: Any = example_module("marked_model_server")
    registry = Registry(tmp_path / "canaries.jsonl", KEY)
    policy = MarkPolicy(flip_share=0.005, mark_share=0.05)
    app = DegradationMiddleware(
        example.model_server, example.MODEL, key=KEY, registry=registry, policy=policy, labels=example.LABELS
    )
    given = [ask(app, {"features": row(x)}, degrade(CANARY)).body for x in range(400)]
    events = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [event["prediction"] for event in events] == [example.predict(row(x)) for x in range(400)]
    changed = [answer != event["prediction"] for answer, event in zip(given, events, strict=True)]
    assert 5 < sum(changed) < 60
    assert all(event.get("canary") for event, was in zip(events, changed, strict=True) if was)
    assert ask(app, {"features": row(1)}, {}).body == example.predict(row(1))
