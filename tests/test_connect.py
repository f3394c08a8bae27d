"""docs/connect.md: every record on it is read by the preset of its section, and every command on it is run."""

from __future__ import annotations

import base64
import json
import re
import shlex
import struct
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, timestamp_pb2
from support import foreign_logs, loans
from support.references import quick_training

from consumers import cli, config
from consumers.log.mappings.mapping import NATIVE, PRESETS, for_topic, load, mapping_of, preset
from consumers.log.mappings.records import Translator
from consumers.log.mappings.sources import Source

PAGE = Path(__file__).parent.parent / "docs" / "connect.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> dict[str, list[tuple[str, str]]]:
    """Preset → the blocks (language, text) of its section."""
    found = {}
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = BLOCK.findall(part)
        named = re.search(r"inspect ([a-z-]+)\.(?:jsonl|csv)$", part, flags=re.MULTILINE)
        if named and named[1] in PRESETS:
            found[named[1]] = blocks
    return found


SECTIONS = sections()
CHATS_ASKED = 600
WHOLE = ("kserve", "csv", "litellm")
"""Sections whose `fit` and `replay` run in `make test`: two halves of JSON that are joined, a table, and chats.

What differs between tools is how a record becomes an event: each section's log is recognised and translated there, and the rest of its
commands run in `make soak`."""


@pytest.fixture(scope="module")
def log() -> list[loans.Event]:
    rng = np.random.default_rng(5)
    events = [e for k in range(24) for e in loans.life(f"c-{k}", loans.person, 25, rng)]
    return loans.in_order([*events, *loans.life("noise", loans.noise, 40, rng)])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path / "state"))
    with quick_training():
        yield tmp_path


def run(line: str) -> int:
    """One command of the page; a fit without thefts that are simulated, which take most of its time."""
    arguments = shlex.split(line)[1:] + (["--no-exposure"] if " fit " in line else [])
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(str(ended.value.code))


def test_every_preset_has_a_section() -> None:
    assert sorted(SECTIONS) == sorted(name for name in PRESETS if name != NATIVE)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_record_of_a_section_gives_an_event(name: str) -> None:
    (text,) = [text for language, text in SECTIONS[name] if language in ("json", "csv")]
    translator = Translator(preset(name), lambda credential: "0" * 32, "m")
    events = [
        json.loads(event)
        for i, line in enumerate(text.splitlines())
        for event in translator.events(line.encode(), Source(f"log:{i + 1}", "files:0", "log", i + 1))
    ]
    assert len(events) == 1
    assert {"timestamp", "client_id", "model_id"} <= events[0].keys()
    if name != "envoy-ai":
        assert {"features", "messages"} & events[0].keys()
    assert ("prediction" in events[0]) is (name not in ("envoy-ai", "otel-genai", "openinference"))


def commands_of(name: str) -> list[str]:
    return [line for language, text in SECTIONS[name] if language == "bash" for line in text.splitlines()]


def write_log(name: str, folder: Path, log: list[loans.Event]) -> None:
    asked = CHATS_ASKED if name in foreign_logs.CHATS else 12
    lines = foreign_logs.TABLES[name](log) if name in foreign_logs.TABLES else foreign_logs.TEXTS[name](asked)
    (folder / f"{name}.{'csv' if name == 'csv' else 'jsonl'}").write_bytes(b"\n".join(lines) + b"\n")


@pytest.mark.parametrize("name", SECTIONS)
def test_the_log_of_a_section_is_recognised(
    name: str, folder: Path, log: list[loans.Event], capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(name, folder, log)
    (inspect,) = [command for command in commands_of(name) if "inspect" in command]
    assert run(inspect) == 0, capsys.readouterr().err
    said_of(name, capsys.readouterr().out)


def said_of(name: str, shown: str) -> None:
    """`inspect` names the format, and ends with the next command of the section."""
    assert f"format: {name} (certain)" in shown
    following = next((other for other in commands_of(name) if " fit " in other), "")
    assert following in shown or following.replace(f"--model-id {loans.MODEL}", "--model-id NAME") in shown


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in WHOLE else pytest.mark.soak) for name in SECTIONS]
)
def test_the_commands_of_a_section_run_on_a_log_of_its_tool(
    name: str, folder: Path, log: list[loans.Event], capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(name, folder, log)
    queries = CHATS_ASKED if name in foreign_logs.CHATS else len(log)
    commands = commands_of(name)
    assert len(commands) == (3 if name in (*foreign_logs.TABLES, *foreign_logs.CHATS) else 1)
    for command in commands:
        assert run(command) == 0, capsys.readouterr().err
        shown = capsys.readouterr()
        if "inspect" in command:
            said_of(name, shown.out)
        if "replay" in command:
            assert f"queries {queries}" in shown.out
            assert "WARNING" not in shown.err


def test_the_dead_letters_of_another_format_name_the_preset(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters = [
        {
            "place": f"t:0@{i}",
            "offset": i,
            "reason": reason,
            "detail": detail,
            "sha256": "0" * 64,
            "head": base64.b64encode(b"{}").decode(),
        }
        for i, (reason, detail) in enumerate(
            [("foreign_format", "a KServe inference log (CloudEvents)")] * 3 + [("framed", "JSON of schema 7")]
        )
    ]
    (folder / "letters.jsonl").write_text("".join(json.dumps(letter) + "\n" for letter in letters))
    assert run("querywarden inspect letters.jsonl") == 0
    shown = capsys.readouterr().out
    assert "3 × foreign_format" in shown
    assert "--mapping kserve" in shown
    assert 'read.framing = "schema-registry"' in shown


def test_a_log_of_no_known_tool_goes_through_a_proposed_mapping(
    folder: Path, log: list[loans.Event], capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {
            "ts": e["timestamp"],
            "customer": {"account_id": e["client_id"]},
            "payload": e["features"],
            "result": e["prediction"]["label"],
        }
        for e in log
    ]
    (folder / "unknown.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (block,) = [
        text for language, text in BLOCK.findall(PAGE.read_text()) if language == "bash" and "mapping.toml" in text
    ]
    for command in block.splitlines():
        assert run(command) == 0, capsys.readouterr().err
    assert f"queries {len(log)}" in capsys.readouterr().out
    written = mapping_of(tomllib.loads((folder / "mapping.toml").read_text()), "mapping.toml")
    assert [place.path for place in written.client.paths] == ["customer.account_id"]
    assert (written.time.paths, written.input.paths, written.answer.paths) == (("ts",), ("payload",), ("result",))


def test_a_gateways_log_and_a_model_servers_are_joined(
    folder: Path, log: list[loans.Event], capsys: pytest.CaptureFixture[str]
) -> None:
    part = PAGE.read_text().split("\n## A gateway's log and a model server's\n")[1].split("\n## ")[0]
    blocks = dict(BLOCK.findall(part))
    gateway, model = (json.loads(line) for line in blocks["json"].splitlines())
    (folder / "gateway-and-model.toml").write_text(blocks["toml"])
    translator = Translator(mapping_of(tomllib.loads(blocks["toml"]), "page"), str, loans.MODEL)
    shown = [e for record in (gateway, model) for e in translator.events(json.dumps(record).encode(), Source("l:1"))]
    assert [json.loads(event)["client_id"] for event in shown] == ["acme"]
    who, what = list[str](), list[str]()
    for i, event in enumerate(log):
        asked = {"start_time": event["timestamp"], "x-tenant-id": event["client_id"], "x-request-id": f"{i:x}"}
        who.append(json.dumps(gateway | asked) + "\n")
        said = {"inputs": event["features"], "output": event["prediction"], "request_id": f"{i:x}"}
        what.append(json.dumps(model | said) + "\n")
    refused = json.dumps(gateway | {"x-request-id": "refused", "response_code": 403})
    (folder / "both.jsonl").write_text("".join([*who, refused, "\n", *reversed(what)]))
    for command in blocks["bash"].splitlines()[1:]:
        capsys.readouterr()
        assert run(command) == 0, capsys.readouterr().err
    told = capsys.readouterr()
    assert f"queries {len(log)}" in told.out
    assert "1 requests without a response, not counted" in told.err


def test_the_mapping_of_avro_reads_a_record() -> None:
    (text,) = [text for language, text in BLOCK.findall(PAGE.read_text()) if language == "toml" and "avro" in text]
    translator = Translator(mapping_of(tomllib.loads(text), "page"), str, "m")
    record = b"\x00\x00\x00\x00\x07\x08acme\x02\x02" + struct.pack("<d", 0.5) + b"\x00\x04no"
    (event,) = map(json.loads, translator.events(record, Source("t:0@1", "t:0")))
    assert (event["client_id"], event["features"], event["prediction"]) == ("acme", [0.5], {"label": "no"})


def test_the_settings_of_the_page_are_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = []
    for toml in [
        text
        for language, text in BLOCK.findall(PAGE.read_text())
        if language == "toml" and "name" not in tomllib.loads(text)
    ]:
        (tmp_path / "q.toml").write_text(toml)
        settings = config.load(tmp_path / "q.toml")
        mappings = [for_topic(settings.log.mapping, topic) for topic in settings.kafka.query_topics]
        formats.append([mapping.name if mapping else "native" for mapping in mappings])
    assert formats == [["kserve"], ["kserve", "kong", "native"]]
    monkeypatch.setenv("QUERYWARDEN_LOG__MAPPING", "litellm")
    assert config.load().log.mapping == "litellm"
    monkeypatch.setenv("QUERYWARDEN_LOG__MAPPING", '{"t": "csv"}')
    assert config.load().log.mapping == {"t": "csv"}


def test_the_mapping_for_protobuf_reads_messages_of_its_descriptor_set(tmp_path: Path) -> None:
    (text,) = [text for language, text in BLOCK.findall(PAGE.read_text()) if language == "toml" and "protobuf" in text]
    file = descriptor_pb2.FileDescriptorProto(name="queries.proto", package="acme.scoring", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    query = file.message_type.add(name="Query")
    kinds = descriptor_pb2.FieldDescriptorProto
    for number, (name, kind) in enumerate((("caller", kinds.TYPE_STRING), ("said", kinds.TYPE_STRING)), 1):
        query.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    query.field.add(name="row", number=3, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_REPEATED)
    query.field.add(
        name="asked_at",
        number=4,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_OPTIONAL,
        type_name=".google.protobuf.Timestamp",
    )
    imported = descriptor_pb2.FileDescriptorProto()
    timestamp_pb2.DESCRIPTOR.CopyToProto(imported)
    (tmp_path / "queries.desc").write_bytes(descriptor_pb2.FileDescriptorSet(file=[imported, file]).SerializeToString())
    (tmp_path / "mapping.toml").write_text(text)
    mapping = load(str(tmp_path / "mapping.toml"))
    assert mapping is not None
    value = b"\x0a\x04acme\x12\x03yes\x1a\x10" + struct.pack("<2d", 0.5, 2) + b"\x22\x06\x08\xa0\xb5\xf4\xcd\x06"
    (event,) = map(json.loads, Translator(mapping, str, "m").events(value, Source()))
    assert (event["client_id"], event["timestamp"]) == ("acme", "2026-03-20T10:00:00Z")
    assert (event["features"], event["prediction"]) == ([0.5, 2.0], {"label": "yes"})
