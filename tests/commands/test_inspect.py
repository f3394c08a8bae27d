"""`inspect`, and what no command may leave anywhere: a raw credential."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from support import foreign_logs, loans
from support.references import quick_training

from consumers import cli
from consumers.log.mappings.mapping import mapping_of, preset, presets
from consumers.log.mappings.proposals import propose
from consumers.log.mappings.recognition import is_native, recognise
from consumers.log.mappings.sources import Source
from consumers.log.mappings.written import as_toml


def run(command: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(command))
    return int(str(ended.value.code))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def sample(lines: list[bytes]) -> list[tuple[bytes, Source]]:
    return [(line, Source(f"log:{i + 1}", "files:0", "log", i + 1)) for i, line in enumerate(lines)]


def events(n: int = 12) -> list[loans.Event]:
    rng = np.random.default_rng(3)
    return loans.in_order([e for k in range(3) for e in loans.life(f"customer-{k}", loans.person, n, rng)])


@pytest.mark.parametrize("name", [*foreign_logs.TABLES, *foreign_logs.TEXTS])
def test_every_format_is_recognised_among_all_others(name: str) -> None:
    lines = foreign_logs.TABLES[name](events()) if name in foreign_logs.TABLES else foreign_logs.TEXTS[name](12)
    found = recognise(sample(lines))
    assert (found.format, found.sure) == (name, "certain")


def test_native_logs_and_mixtures_are_recognised() -> None:
    native = foreign_logs.native(events())
    assert all(map(is_native, native))
    assert recognise(sample(native)).format == "native"
    assert recognise(sample(native + foreign_logs.kserve(events())[: len(native) // 2])).format == "native"
    assert recognise([]).format == "unknown"
    assert recognise(sample([b"hello", b"\x00\x01"])).format == "unknown"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_with_names_of_its_own_is_proposed_by_its_columns(delimiter: str) -> None:
    rows = [["when", "acct_no", "username", "amount", "score"], ["2026-03-20T10:00:00Z", "17", "anna", "5.5", "0.25"]]
    found = recognise(sample([delimiter.join(row).encode() for row in [*rows, *rows[1:] * 9]]))
    assert found.mapping is not None
    assert found.mapping.read.delimiter == delimiter
    assert [place.path for place in found.mapping.client.paths] == ["username"]
    assert found.mapping.input.columns == ("acct_no", "amount")


def test_a_field_is_taken_only_for_what_its_values_can_be() -> None:
    record = {"time": "soon", "ts": 1_774_000_800, "user": {"nested": 1}, "api_key": "k", "features": [1], "output": 1}
    found = propose(sample([json.dumps(record).encode()]))
    assert found.mapping is not None
    assert found.mapping.time.paths == ("ts",)
    assert [(place.path, place.kind) for place in found.mapping.client.paths] == [("api_key", "credential")]


@pytest.mark.parametrize("name", [mapping.name for mapping in presets()])
def test_a_mapping_that_was_written_is_read_as_the_same(name: str) -> None:
    mapping = preset(name)
    assert mapping_of(tomllib.loads(as_toml(mapping, ["a comment", "of\ntwo lines"])), name) == mapping
    odd = msgspec.structs.replace(mapping, title='quotes " and \\ and \t and ü')
    assert mapping_of(tomllib.loads(as_toml(odd)), name) == odd


def test_what_inspect_says_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = foreign_logs.kserve(events())
    (folder / "log.jsonl").write_bytes(b"\n".join([*lines[:-1], b"garbage"]) + b"\n")
    assert run("inspect log.jsonl --json") == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (said["format"], said["records"], said["queries"]) == ("kserve", 72, 35)
    assert said["unmatched"] == {"request": 1, "response": 0}
    assert said["refused"] == {"not_json": 1}
    fields = {field["part"]: field for field in said["fields"]}
    assert fields["client"]["path"] == "$http.x-consumer-id"
    assert set(fields["client"]["examples"]) == {"cu…"}
    assert fields["model"]["examples"] == [loans.MODEL]
    assert [column["name"] for column in said["columns"]] == ["age", "tenure", "income", "ratio", "country"]
    assert said["columns"][0]["lower"] >= 18
    assert (said["task"], said["labels"]) == ("classification", ["no", "yes"])
    assert "customer-" not in json.dumps(said)


def test_probabilities_that_look_like_values_are_said_and_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        json.dumps({"databricks_request_id": f"d-{i}", "requester": "svc", "request_time": "2026-03-20T09:00:00Z", "status_code": 200,
                    "request": json.dumps({"dataframe_records": [{"a": i}]}), "response": json.dumps({"predictions": [0.01 * i + 0.1]})})
        for i in range(60)
    ]  # fmt: skip
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    assert run("inspect log.jsonl --out m.toml") == 0
    assert "probabilities of the second class" in capsys.readouterr().out
    assert tomllib.loads((folder / "m.toml").read_text())["answer"]["kind"] == "probabilities"


def test_what_cannot_be_done_is_said_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "native.jsonl").write_bytes(b"\n".join(foreign_logs.native(events())) + b"\n")
    (folder / "noise.txt").write_text("hello\nworld\n")
    for command, status, said in (
        ("inspect native.jsonl --out m.toml", 1, "the format is native"),
        ("inspect noise.txt --out m.toml", 2, "no mapping can be proposed"),
        ("inspect noise.txt", 1, ""),
        ("inspect nowhere.jsonl", 2, "no such log file"),
        ("inspect native.jsonl --mapping kserv", 2, "neither a file nor a preset"),
        ("replay native.jsonl --mapping nowhere.toml --baseline x", 1, ""),
    ):
        assert run(command) == status, command
        shown = capsys.readouterr().err
        assert said in shown
        assert "Traceback" not in shown


# --- credentials

CANARY = "sk-canary-5f2e9c71"


def test_a_raw_credential_is_nowhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the log to the store, alerts, scores, report and dead letters: the key is hashed at the edge."""
    rng = np.random.default_rng(5)
    honest = [e for k in range(24) for e in loans.life(f"{CANARY}-{k}", loans.person, 25, rng)]
    log = loans.in_order([*honest, *loans.life(f"{CANARY}-thief", loans.noise, 200, rng)])
    lines = []
    for line in foreign_logs.kserve(log):
        record = json.loads(line)
        (key,) = json.loads(record["metadata"])["X-Consumer-Id"]
        record["metadata"] = json.dumps({"Authorization": [f"Bearer {key}"], "X-Api-Key": [key]})
        lines.append(json.dumps(record).encode())
    # what is refused holds the key too: broken, too large, without an input, of no time
    lines += [
        lines[0][:-40],
        lines[0].replace(b'"data', b'"other' + b" " * (1 << 20) + b'": 1, "data'),
        lines[0].replace(b'"time"', b'"no"'),
    ]
    lines += [
        json.dumps({"api_key": CANARY, "Authorization": CANARY}).encode(),
        CANARY.encode(),
        f'"{CANARY}"'.encode(),
    ]
    (folder / "in").mkdir()
    (folder / "in" / "log.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    out = folder / "out"
    out.mkdir()
    with quick_training():
        assert run("inspect in/log.jsonl --out out/m.toml") == 0
        assert run("inspect in/log.jsonl --json") == 0
        assert (
            run(
                f"fit --model-id {loans.MODEL} --mapping kserve --traffic in/log.jsonl --no-exposure --trust-traffic --out out/b"
            )
            == 0
        )
        command = "replay --baseline out/b --mapping kserve in/log.jsonl --store out/s --alerts out/a --scores out/c --report out/r.html"
        assert run(f"{command} --mode block --false-alarm-budget 0.3") == 0
    shown = capsys.readouterr()
    assert CANARY not in shown.out + shown.err
    scores = [json.loads(line) for line in (out / "c").read_text().splitlines()]
    assert len(scores) == 25
    assert all(score["client_id"].startswith("key:") for score in scores)
    assert (out / "a").read_text()
    everything = [path for path in folder.rglob("*") if path.is_file() and path.parent != folder / "in"]
    assert {path.name for path in everything} >= {"s", "a", "c", "r.html", "b", "m.toml", "secrets.json"}
    assert [path.name for path in everything if CANARY.encode() in path.read_bytes()] == []
