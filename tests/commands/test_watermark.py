"""`querywarden watermark`: from the key to the p-value, with the registry in the audit log."""

from __future__ import annotations

import functools
import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.marked_model import MODEL, ModelServer, ask, degrade
from support.seeded_api import decided

from consumers import cli, config
from consumers.records.decision import packed_decision
from consumers.store import DECISION_CELLS, Outcome, decision_cell
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.middleware import DegradationMiddleware
from consumers.watermark.registry import Registry, lines_of
from consumers.watermark.selection import MarkPolicy
from consumers.wiring import adapters
from detector.query import ClientKey

Call = Callable[..., tuple[int, str, str]]
OTHER = "c" * 32


class Installation:
    """A store that knows the client `thief`, a key, and a marked model with its registry."""

    def __init__(self, folder: Path, run: Call) -> None:
        self.folder, self.run = folder, run
        self.call: Call = functools.partial(run, "watermark")
        settings = config.load(None)
        self.registry = Path(settings.watermark.registry)
        with adapters.open_store(settings) as store:
            secrets = adapters.secrets_of(settings, store)
            self.thief = secrets.client_hash("default", "thief")
            key = ClientKey("default", MODEL, self.thief)
            outcome = Outcome(decision_cell(key, DECISION_CELLS))
            outcome.rows[key] = packed_decision(decided("thief", 0.001, "throttle"), secrets, "default")
            claim = store.claim_decisions(outcome.cell, "seed", "0" * 32, 60_000)
            store.record("0" * 32, claim.revision, outcome, "seed", 60_000)

    def serve(self, key: WatermarkKey, clients: dict[str, range]) -> dict[str, int]:
        """What a model that says 0 answers the clients; input → label."""
        registry = Registry(self.registry, key)
        server = ModelServer(lambda r: {"predictions": [0] * len(r["instances"])})
        app = DegradationMiddleware(
            server, MODEL, key=key, registry=registry, policy=MarkPolicy(flip_share=0.005), labels=(0, 1, 2)
        )
        given: dict[str, int] = {}
        for client, numbers in clients.items():
            inputs = [[float(x % 100), float(x // 100)] for x in numbers]
            body = ask(app, {"instances": inputs}, degrade(f"canary={key.key_id}", client)).body
            given |= {json.dumps(x): label for x, label in zip(inputs, body["predictions"], strict=True)}
        registry.close()
        return given

    def audit(self) -> list[dict[str, Any]]:
        with adapters.open_store(config.load(None)) as store:
            return [json.loads(row) for _, row in store.audit_rows(0, 1000)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Installation:
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("QUERYWARDEN_WATERMARK__REGISTRY", str(tmp_path / "canaries.jsonl"))
    monkeypatch.setattr("sys.stdin", io.StringIO())

    def called(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(words))
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return Installation(tmp_path, called)


@pytest.fixture
def suspect() -> Iterator[Callable[[dict[str, int]], str]]:
    """Address of a model that answers as it is told, otherwise 0."""
    servers: list[ThreadingHTTPServer] = []

    def started(answers: dict[str, int]) -> str:
        class Model(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                content = json.dumps({"label": answers.get(json.dumps(asked["features"]), 0)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Model))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/predict"

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


def created(here: Installation) -> WatermarkKey:
    status, out, _ = here.call("create", "--json")
    assert status == 0
    key = WatermarkKey.load(json.loads(out)["file"])
    assert key.key_id == json.loads(out)["key_id"]
    return key


def test_a_copy_at_an_address_is_named_with_its_client(
    here: Installation, suspect: Callable[[dict[str, int]], str]
) -> None:
    key = created(here)
    given = here.serve(key, {here.thief: range(5000), OTHER: range(5000, 10_000)})
    stolen = {x: label for x, label in given.items() if float(json.loads(x)[1]) < 50}
    status, out, err = here.call("verify", "--suspect", suspect(stolen), "--json")
    assert status == 0, err
    thief, other = json.loads(out)
    assert set(thief) >= {"client_id", "p_value", "canaries"}
    assert thief["client_id"] == "thief"
    assert thief["p_value"] < 1e-9
    assert 10 < thief["canaries"] == thief["shown"]
    assert (other["client_id"], other["p_value"]) == (OTHER, 1.0), "the store knows no id of it"
    status, out, _ = here.call("verify", "--suspect", suspect({}))
    assert status == 0
    assert "learned from its answers" not in out


def test_a_copys_answers_in_a_file(here: Installation) -> None:
    key = created(here)
    given = here.serve(key, {here.thief: range(5000)})
    questions, answers = here.folder / "questions.jsonl", here.folder / "answers.jsonl"
    status, out, _ = here.call("questions", "--out", str(questions))
    assert status == 0
    asked = [json.loads(text) for text in questions.read_text().splitlines()]
    assert f"{len(asked):,} inputs" in out
    assert all(set(one) == {"features"} for one in asked), "nothing tells a marked input from a control"
    answered = [{**one, "prediction": {"label": given[json.dumps(one["features"])]}} for one in asked]
    answers.write_text("\n".join(["no JSON", *map(json.dumps, answered)]))
    status, out, _ = here.call("verify", "--suspect", str(answers), "--json")
    assert status == 0
    assert json.loads(out)[0]["p_value"] < 1e-9
    answers.write_text("{}\n")
    assert here.call("verify", "--suspect", str(answers))[0] == 1


def test_every_canary_is_in_the_audit_log_before_a_suspect_is_judged(
    here: Installation, suspect: Callable[[dict[str, int]], str]
) -> None:
    key = created(here)
    here.serve(key, {here.thief: range(3000), OTHER: range(3000)})
    assert here.call("record", "--json")[1].strip() == json.dumps(
        {"registry": str(here.registry), "lines": len(list(lines_of(here.registry)))}
    )
    assert json.loads(here.call("record", "--json")[1])["lines"] == 0, "once"
    here.serve(key, {here.thief: range(3000, 6000)})
    assert here.call("verify", "--suspect", suspect({}))[0] == 0
    rows = here.audit()
    assert [row["action"] for row in rows] == [
        "watermark.key", "watermark.canaries", "watermark.canaries", "watermark.verify"
    ]  # fmt: skip
    lines = list(lines_of(here.registry))
    assert f"head:{lines[-1].hash}" in rows[2]["object"]
    given = sum(line.kind == "canary" for line in lines if line.client == here.thief)
    recorded = [
        int(part.split("=")[1])
        for row in rows[1:3]
        for part in row["object"].replace(",", " ").split()
        if here.thief in part
    ]
    assert sum(recorded) == given > 10
    assert key.key_id in rows[0]["object"]


def test_a_registry_that_was_changed_after_it_was_recorded_convinces_nobody(here: Installation) -> None:
    key = created(here)
    here.serve(key, {here.thief: range(3000)})
    assert here.call("record")[0] == 0
    here.registry.unlink()
    here.serve(key, {here.thief: range(1500)})
    status, _, err = here.call("record")
    assert status == 1
    assert "is not the one that the audit log knows" in err


def test_a_client_can_be_forgotten(here: Installation) -> None:
    key = created(here)
    here.serve(key, {here.thief: range(3000), OTHER: range(3000, 6000)})
    status, _, err = here.call("forget", "thief")
    assert status == 0, err
    assert {line.client for line in lines_of(here.registry) if line.sealed} == {OTHER}
    assert here.call("forget", "thief")[0] == 1
    assert here.call("record")[0] == 0
    assert [row["action"] for row in here.audit()].count("watermark.forget") == 2
    assert here.run("erase", OTHER, "--hashed", "--model", MODEL, "--yes", "--keep-canaries", "--json")[0] == 0
    assert {line.client for line in lines_of(here.registry) if line.sealed} == {OTHER}
    assert here.run("erase", OTHER, "--hashed", "--model", "another", "--yes")[0] == 0
    assert {line.client for line in lines_of(here.registry) if line.sealed} == {OTHER}
    status, out, err = here.run("erase", OTHER, "--hashed", "--model", MODEL, "--yes", "--json")
    assert status == 0, err
    assert json.loads(out)["canaries"] > 0
    assert not [line for line in lines_of(here.registry) if line.sealed]
    assert f"client:{OTHER} " in here.audit()[-1]["object"]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["verify", "--suspect", "ftp://127.0.0.1/x"], 2),
        (["verify", "--suspect", "http://user:pw@127.0.0.1/x"], 2),
        (["verify", "--suspect", "nowhere.jsonl"], 1),
        (["verify", "--suspect", "http://127.0.0.1:9/x"], 1),
        (["create"], 1),
        (["verify", "--suspect", "x", "--registry", "nowhere"], 1),
        (["questions", "--out", "nowhere/x.jsonl"], 2),
    ],
)
def test_wrong_calls_are_one_line(here: Installation, words: list[str], status: int) -> None:
    here.serve(created(here), {here.thief: range(1500)})
    found, _, err = here.call(*words)
    assert found == status, err
    assert len([text for text in err.splitlines() if text.startswith("querywarden: ")]) == 1
