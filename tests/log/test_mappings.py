"""Mappings: every preset translates its fixture into the events it was made from; hostile records are refused with the known reasons."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import foreign_logs, loans

from consumers.errors import BadRecord, WrongUse
from consumers.http.identities import Identities
from consumers.log import MAX_RECORD_BYTES, Records
from consumers.log.formats import NativeFormat
from consumers.log.halves import Fate
from consumers.log.inputs import InputReader
from consumers.log.mappings import bodies, identity, moments, paths, protobuf, shapes
from consumers.log.mappings.answers import answers_of, prediction_of
from consumers.log.mappings.items import CLOUD_EVENT_TYPE
from consumers.log.mappings.mapping import NATIVE, PRESETS, LogMapping, for_topic, load, mapping_of, preset, presets
from consumers.log.mappings.otlp import items
from consumers.log.mappings.records import Translator
from consumers.log.mappings.shapes import rows_of
from consumers.log.mappings.sources import Source
from consumers.log.reasons import REASONS
from consumers.records.usage import tokens_of
from consumers.secrets import Secrets
from detector.features import Column, Schema

HASH = "0123456789abcdef" * 2
NAMES = ("age", "tenure", "income", "ratio", "country")
SCHEMA = Schema(
    (*(Column(name, "numeric", 0.0, 1e6, 0.0) for name in NAMES[:4]), Column("country", "categorical", 0.0, 3.0, 1.0, loans.COUNTRIES)),
    "features", True, "classification", ("no", "yes"),
)  # fmt: skip


def events() -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    return loans.in_order([e for k in range(3) for e in loans.life(f"c-{k}", loans.person, 9, rng)])


def translator(mapping: LogMapping | str, model: str = loans.MODEL) -> Translator:
    return Translator(preset(mapping) if isinstance(mapping, str) else mapping, lambda credential: HASH, model)


def source(i: int) -> Source:
    return Source(f"log:{i + 1}", "files:0", "log", i + 1)


def translated(by: Translator, lines: Sequence[bytes]) -> list[dict[str, Any]]:
    return [json.loads(event) for i, line in enumerate(lines) for event in by.events(line, source(i))]


def one(content: dict[str, Any], record: object, model: str = "m") -> list[dict[str, Any]]:
    """Events of a JSON record by a mapping of the content."""
    by = translator(mapping_of({"name": "own", **content}, "own"), model)
    return translated(by, [json.dumps(record).encode()])


# --- mappings


def test_every_preset_is_a_mapping_of_its_name() -> None:
    assert [mapping.name for mapping in presets()] == [name for name in PRESETS if name != NATIVE]
    assert all(mapping.title for mapping in presets())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"name": "x", "clients": {}}, "clients"),
        ({"name": "x", "time": {"paths": ["a..b"]}}, "no path"),
        ({"name": "x", "client": {"paths": [{"path": "a[b"}]}}, "no path"),
        ({"name": "x", "join": {"id": ["[x"], "request": {}, "response": {}}}, "no path"),
        ({"name": "x", "keep": {"equal": {"$nowhere": ["a"]}}}, "$nowhere"),
        ({"name": "x", "http": ["$http"]}, "names no header"),
        ({"name": "x", "answer": {"kind": "guess"}}, "guess"),
        ({"name": "x", "read": {"columns": ["a"]}}, "read.columns"),
        ({"name": "bad name"}, "name"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(content: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongUse) as refused:
        mapping_of(content, "x.toml")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_mapping_is_named_or_a_file(tmp_path: Any) -> None:
    assert load(NATIVE) is None
    file = tmp_path / "own.toml"
    file.write_text('name = "own"\n[time]\npaths = ["t"]\n')
    loaded = load(str(file))
    assert loaded is not None
    assert loaded.time.paths == ("t",)
    file.write_text("name = ")
    with pytest.raises(WrongUse, match=r"own\.toml"):
        load(str(file))
    with pytest.raises(WrongUse, match="neither a file nor a preset"):
        load("kserv")
    with pytest.raises(WrongUse, match="no preset"):
        preset(NATIVE)


def test_a_topic_that_the_table_does_not_name_is_native() -> None:
    assert for_topic("native", "t") is None
    assert for_topic({"t": "kserve"}, "other") is None
    named = for_topic({"t": "kserve"}, "t")
    assert named is not None
    assert named.name == "kserve"


# --- presets


def answer_of(event: dict[str, Any], name: str) -> dict[str, Any]:
    whole: dict[str, Any] = event["prediction"]
    return {"label": whole["label"]} if name in foreign_logs.LABEL_ONLY else whole


@pytest.mark.parametrize("name", foreign_logs.TABLES)
def test_a_preset_gives_the_events_that_its_log_was_made_of(name: str) -> None:
    made = events()
    by = translator(name)
    found = translated(by, foreign_logs.TABLES[name](made))
    assert len(found) == len(made)
    for before, after in zip(made, found, strict=True):
        row = list(before["features"].values()) if name == "sagemaker" else before["features"]
        assert after["features"] == row
        assert after["prediction"] == answer_of(before, name)
        assert after["model_id"] == loans.MODEL
        caller = identity.UNATTRIBUTED if name in foreign_logs.WITHOUT_CALLER else before["client_id"]
        assert after["client_id"] == caller
        # some tools log milliseconds
        assert abs(foreign_logs._ms(before) - foreign_logs._ms(after)) <= 1
    assert len({after["event_id"] for after in found}) == len(made)
    assert by.counts["events"] == len(made)
    assert by.counts["unattributed"] == (len(made) if name in foreign_logs.WITHOUT_CALLER else 0)


def test_chats_keep_their_messages_client_and_answer() -> None:
    for name, clients in (("litellm", {f"key:{HASH}"}), ("hiddenlayer", {"team-0", "team-1", "team-2"})):
        found = translated(translator(name), foreign_logs.TEXTS[name](6))
        assert {event["client_id"] for event in found} == clients
        assert [event["prediction"]["text"] for event in found] == [f"Answer number {i}." for i in range(6)]
        assert found[1]["messages"] == [{"role": "user", "content": foreign_logs.QUESTIONS[1]}]
        assert found[1]["timestamp"] == "2026-03-20T10:01:00Z"
        assert found[1]["model_id"] == "chat"


def test_an_access_log_without_payloads_gives_events_without_input() -> None:
    found = translated(translator("envoy-ai"), foreign_logs.envoy_ai(3))
    assert [event["client_id"] for event in found] == ["team-0", "team-1", "team-2"]
    assert not any({"features", "text", "messages", "prediction"} & event.keys() for event in found)


def test_two_vectors_of_a_span_are_two_rows_with_ids_of_their_own() -> None:
    by = translator("openinference")
    found = translated(by, foreign_logs.openinference(2))
    assert [event["event_id"] for event in found] == [f"{i:016x}#{j}" for i in (1, 3) for j in (0, 1)]
    assert found[3]["features"] == [0.51, -0.5, 0.125]
    assert by.counts["left_out"] == 2


def test_an_answer_of_a_chat_in_openinference_is_a_text() -> None:
    values = {
        "openinference.span.kind": "LLM", "llm.model_name": "chat", "user.id": "team-1",
        "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "How?",
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "So.",
    }  # fmt: skip
    export = foreign_logs._export([("b7ad6b7169203331", 1_774_000_800_000, values)])
    (event,) = translated(translator("openinference"), [json.dumps(export).encode()])
    assert event["messages"] == [{"role": "user", "content": "How?"}]
    assert event["prediction"] == {"text": "So."}


def test_otlp_in_protobuf_says_the_same_as_in_json() -> None:
    """Against the library of the standard, which the service does not need."""
    json_format = pytest.importorskip("google.protobuf.json_format")
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    export = foreign_logs.otel_genai_export(4)
    attributes = export["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["attributes"]
    attributes += foreign_logs._attributes({"n": -3, "x": 0.25, "yes": True, "list": [1, "a", [2.5]]})
    ids = export["resourceSpans"][0]["scopeSpans"][0]["spans"]
    # the library at hand is older than the names; on the wire they are numbers
    older = (
        json.dumps(export)
        .replace("scopeSpans", "instrumentationLibrarySpans")
        .replace('"scope"', '"instrumentationLibrary"')
    )
    message = json_format.Parse(older, service.ExportTraceServiceRequest())
    for span, logged in zip(message.resource_spans[0].instrumentation_library_spans[0].spans, ids, strict=True):
        span.trace_id, span.span_id = bytes.fromhex(logged["traceId"]), bytes.fromhex(logged["spanId"])
    binary = list(items(message.SerializeToString()))
    text = list(items(json.dumps(export).encode()))
    for one_item, other in zip(binary, text, strict=True):
        assert int(other.pop("start")) == one_item.pop("start")
        assert int(other.pop("end")) == one_item.pop("end")
        assert one_item == other


# --- the pieces


def test_the_first_path_that_leads_somewhere_wins() -> None:
    content = {"client": {"paths": [{"path": "a.b"}, {"path": "c[0]"}]}, "input": {"paths": ["x"], "form": "row"}}
    assert one(content, {"c": ["k"], "x": [1]})[0]["client_id"] == "k"
    assert one(content, {"a": {"b": None}, "c": ["k"], "x": [1]})[0]["client_id"] == "k"
    assert one(content, {"a": {"b": "j"}, "c": ["k"], "x": [1]})[0]["client_id"] == "j"
    assert one(content, {"a": '{"b": "inside a text"}', "x": [1]})[0]["client_id"] == "inside a text"


def test_who_is_not_named_is_unattributed_or_nobody() -> None:
    content: dict[str, Any] = {"client": {"paths": [{"path": "who"}]}, "input": {"paths": ["x"], "form": "row"}}
    assert one(content, {"x": [1]})[0]["client_id"] == identity.UNATTRIBUTED
    content["client"]["unattributed"] = False
    assert "client_id" not in one(content, {"x": [1]})[0]


@pytest.mark.parametrize("value", ["unattributed", "key:abc", "ip:192.0.2.1"])
def test_nobody_can_call_itself_like_one_of_our_own_names(value: str) -> None:
    assert identity.client_id(value, "id", str.upper) == f"id:{value}"


def test_credentials_are_hashed_without_their_scheme() -> None:
    for value in ("Bearer abc", "abc", ["bearer abc"]):
        assert identity.client_id(value, "credential", lambda raw: raw[::-1]) == "key:cba"
    assert identity.client_id("", "credential", str) is None
    assert identity.client_id("nonsense", "ip", str) is None
    assert identity.client_id(4711.0, "id", str) == 4711


def test_a_gateway_is_told_by_its_client_map_whose_key_it_sees(tmp_path: Path) -> None:
    """The log has a hash of the key; the map's file has nothing else either."""
    secrets = Secrets.draw()
    hashed = secrets.client_hash("default", "sk-1")
    client = identity.client_id("Bearer sk-1", "credential", lambda raw: secrets.client_hash("default", raw))
    (tmp_path / "map.json").write_text(json.dumps({hashed: client}))
    found = Identities(["x-api-key"], secrets, tmp_path / "map.json").of("default", [(b"x-api-key", b"sk-1")])
    assert found.first == secrets.client_hash("default", str(client))


def test_rows_of_a_batch_are_queries_of_their_own() -> None:
    content = {"id": {"paths": ["id"]}, "input": {"paths": ["in"]}, "answer": {"paths": ["out"]}}
    found = one(content, {"id": "b", "in": {"instances": [[1, 2], [3, 4], [5, 6]]}, "out": {"predictions": [0, 1, 0]}})
    assert [(e["event_id"], e["features"], e["prediction"]) for e in found] == [
        ("b#0", [1, 2], {"label": 0}), ("b#1", [3, 4], {"label": 1}), ("b#2", [5, 6], {"label": 0}),
    ]  # fmt: skip
    short = one(content, {"in": {"instances": [[1], [2]]}, "out": {"predictions": [0]}})
    assert ["prediction" in event for event in short] == [False, False]


def test_tokens_are_those_of_a_query_and_count_once_for_its_rows() -> None:
    content = {"input": {"paths": ["in"]}, "usage": {"total_tokens": ["all"], "input_tokens": ["asked", "n"]}}
    found = one(content, {"in": {"instances": [[1], [2], [3]]}, "all": 30, "n": "12"})
    assert [event.get("usage") for event in found] == [{"total_tokens": 30, "input_tokens": 12}, None, None]
    for value in (True, -1, 1.5, "many", "9" * 100, 10**100, [3], None):
        assert "usage" not in one(content, {"in": [1], "all": value})[0]
    for name in ("litellm", "envoy-ai"):
        told = translated(translator(name), foreign_logs.TEXTS[name](3))
        assert [tokens_of(json.dumps(event["usage"]).encode()) for event in told] == [14] * 3, name


@pytest.mark.parametrize(
    ("preset", "attributes", "tokens"),
    [
        ("openinference", {"llm.token_count.prompt": 12, "llm.token_count.completion": 5}, 17),
        (
            "openinference",
            {"llm.token_count.prompt": 12, "llm.token_count.completion": 5, "llm.token_count.total": 20},
            20,
        ),
        ("openinference", {"llm.token_count.prompt": 12}, 12),
        ("openinference", {"llm.token_count.prompt_details.cache_read": 12}, 0),
        ("openinference", {"llm.token_count.prompt": "many"}, 0),
        ("otel-genai", {"gen_ai.usage.input_tokens": 12, "gen_ai.usage.output_tokens": 5}, 17),
        ("otel-genai", {"gen_ai.usage.output_tokens": 5}, 5),
        ("otel-genai", {"llm.token_count.prompt": 12}, 0),
    ],
)
def test_tokens_of_a_span_stand_under_flattened_names(preset: str, attributes: dict[str, Any], tokens: int) -> None:
    span = {
        "openinference": {
            "openinference.span.kind": "LLM", "llm.model_name": "chat", "user.id": "team-1",
            "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "How?",
            "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "So.",
        },
        "otel-genai": {
            "gen_ai.operation.name": "chat", "gen_ai.request.model": "chat", "user.id": "team-1",
            "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": "How?"}]}]),
        },
    }[preset]  # fmt: skip
    export = foreign_logs._export([("b7ad6b7169203331", 1_774_000_800_000, span | attributes)])
    (event,) = translated(translator(preset), [json.dumps(export).encode()])
    assert tokens_of(json.dumps(event.get("usage")).encode()) == tokens


@pytest.mark.parametrize(
    ("payload", "rows"),
    [
        ({"instances": [[1, 2]]}, [[1, 2]]),
        ({"instances": [{"a": 1}, {"a": 2}]}, [{"a": 1}, {"a": 2}]),
        ({"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}, [[1, 2], [3, 4]]),
        ({"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1, 2], [3, 4]]}]}, [[1, 2], [3, 4]]),
        (
            {"inputs": [{"name": "a", "shape": [2], "data": [1, 2]}, {"name": "b", "shape": [2, 1], "data": ["x", "y"]}]},
            [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
        ),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}, [{"a": 1, "b": 2}]),
        ({"dataframe_records": [{"a": 1}]}, [{"a": 1}]),
        ({"inputs": {"a": [1, 2], "b": [[3], [4]]}}, [{"a": 1, "b": 3}, {"a": 2, "b": 4}]),
        ({"data": {"names": ["a"], "ndarray": [[1], [2]]}}, [{"a": 1}, {"a": 2}]),
        ({"data": {"tensor": {"shape": [2, 1], "values": [1, 2]}}}, [[1], [2]]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ({"age": 41, "country": "AT"}, [{"age": 41, "country": "AT"}]),
    ],
)  # fmt: skip
def test_requests_of_the_known_protocols(payload: object, rows: list[object]) -> None:
    assert rows_of(payload) == [("features", row) for row in rows]


def test_a_tensor_that_does_not_fill_its_shape_is_one_row_that_cannot_be_read() -> None:
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4]}
    assert rows_of({"inputs": [tensor]}) == [("features", [tensor])]
    huge = {"name": "x", "shape": [10**9, 10**9], "data": [1]}
    assert rows_of({"inputs": [huge]}) == [("features", [huge])]


@pytest.mark.parametrize(
    ("answer", "kind", "prediction"),
    [
        (1, "auto", {"label": 1}), (0.25, "auto", {"value": 0.25}), ("yes", "auto", {"label": "yes"}), (True, "auto", {"label": True}),
        ([0.25, 0.75], "auto", {"probabilities": [0.25, 0.75]}), ([-2.0, 3.0], "auto", {"logits": [-2.0, 3.0]}),
        (0.25, "probabilities", {"probabilities": [0.25]}), ([3], "label", {"label": 3}), ([1.5], "value", {"value": 1.5}),
        ({"predicted_label": "a", "scores": [0.5, 0.5]}, "auto", {"label": "a", "probabilities": [0.5, 0.5]}),
        ({"a": 0.4, "b": 0.6}, "auto", {"probabilities": {"a": 0.4, "b": 0.6}}),
        ({"label": "a", "other": 1}, "auto", {"label": "a"}), ("hello", "text", {"text": "hello"}), (None, "auto", None),
    ],
)  # fmt: skip
def test_answers_by_how_they_are_written_or_as_the_mapping_says(answer: object, kind: str, prediction: object) -> None:
    assert prediction_of(answer, kind) == prediction


def test_answers_of_several_rows_or_of_one() -> None:
    assert answers_of({"predictions": [[0.1, 0.9], [0.8, 0.2]]}, 2) == [[0.1, 0.9], [0.8, 0.2]]
    assert answers_of({"predictions": [1]}, 1) == [1]
    assert answers_of([0.1, 0.9], 1) == [[0.1, 0.9]]
    assert answers_of("0.5", 1) == ["0.5"]
    assert answers_of({"outputs": [{"name": "y", "shape": [2, 1], "data": [1, 0]}]}, 2) == [1, 0]
    assert answers_of({"predictions": [1, 2, 3]}, 2) == [None, None]
    assert answers_of(None, 2) == [None, None]


def test_bodies_are_json_csv_or_either_in_base64() -> None:
    row = [[41, 100, 2345.67, 0.31, "AT"]]
    assert bodies.body("41,100,2345.67,0.31,AT") == row
    assert bodies.body("NDEsMTAwLDIzNDUuNjcsMC4zMSxBVA==") == row
    assert bodies.body('{"a": NaN}')["a"] != bodies.body('{"a": NaN}')["a"]
    assert bodies.body("Good morning, Anna") == "Good morning, Anna"
    assert bodies.body("AT,red", "csv") == [["AT", "red"]]
    assert bodies.body("setosa12") == "setosa12"
    assert math.isnan(bodies.cell("NaN"))


@pytest.mark.parametrize("number", [1_774_000_800, 1_774_000_800_000, 1_774_000_800_000_000, 1_774_000_800_000_000_000])
def test_the_size_of_a_time_tells_its_unit(number: int) -> None:
    assert moments.moment(number) == "2026-03-20T10:00:00Z"
    assert moments.moment(str(number)) == "2026-03-20T10:00:00Z"


def test_a_time_without_an_offset_is_utc_only_if_the_mapping_says_so() -> None:
    assert moments.moment("2026-03-20 10:00:00") == "2026-03-20 10:00:00"
    assert moments.moment("2026-03-20T10:00:00.5", utc=True) == "2026-03-20T10:00:00.5Z"
    assert moments.moment("2026-03-20 10:00:00 UTC") == "2026-03-20T10:00:00Z"


# --- Kafka


def test_cloud_events_in_kafka_headers_with_any_prefix() -> None:
    headers = {
        "type": b"org.kubeflow.serving.inference.request",
        "id": b"7",
        "inferenceservicename": b"loans",
        "time": b"2026-03-20T10:00:00Z",
    }
    answer = {**headers, "type": b"org.kubeflow.serving.inference.response"}
    for prefix in ("ce_", "ce-", ""):
        by = translator("kserve", "")
        found = []
        for half, value in ((headers, b'{"instances": [[1, 2]]}'), (answer, b'{"predictions": [0]}')):
            named = {prefix + name: text for name, text in half.items()} | {"content-type": b"application/json"}
            found += list(by.events(value, Source("t:0@1", "t:0", headers=named)))
        (event,) = (json.loads(one_event) for one_event in found)
        assert (event["event_id"], event["model_id"], event["features"], event["prediction"]) == (
            "7",
            "loans",
            [1, 2],
            {"label": 0},
        )


def test_a_structured_cloud_event_on_kafka_and_a_batch_of_them() -> None:
    made = events()[:2]
    lines = foreign_logs.kserve(made)
    headers = {"content-type": CLOUD_EVENT_TYPE + b"+json"}
    by = translator("kserve")
    single = [e for line in lines for e in by.events(line, Source("t:0@1", "t:0", headers=headers))]
    batch = list(translator("kserve").events(b"[" + b",".join(lines) + b"]", Source("t:0@1", "t:0")))
    assert len(single) == 2
    assert batch == single


def test_the_frame_of_a_schema_registry_is_taken_off_if_the_mapping_says_so() -> None:
    content = {"read": {"framing": "schema-registry"}, "input": {"paths": ["x"], "form": "row"}}
    by = translator(mapping_of({"name": "own", **content}, "own"))
    (event,) = by.events(b"\x00\x00\x00\x00\x07" + b'{"x": [1]}', source(0))
    assert json.loads(event)["features"] == [1]
    with pytest.raises(BadRecord) as refused:
        list(by.events(b'{"x": [1]}', source(1)))
    assert refused.value.reason == "framed"


AVRO = {
    "type": "record", "name": "Query", "namespace": "own",
    "fields": [
        {"name": "who", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "row", "type": {"type": "array", "items": ["null", "double"]}},
        {"name": "said", "type": {"type": "enum", "name": "Said", "symbols": ["no", "yes"]}},
        {"name": "more", "type": {"type": "map", "values": "bytes"}},
    ],
}  # fmt: skip
AVRO_RECORD = (
    b"\x08acme" + b"\x80\x84\x80\xab\xa1\x67" + b"\x04\x02" + struct.pack("<d", 0.5) + b"\x00" + b"\x00" + b"\x02"
    + b"\x02\x02k\x02v\x00"
)  # fmt: skip
"""who, 1774000800000, two elements (0.5 and null), the second symbol, one entry."""


def avro(schemas: dict[str, object], framing: str = "schema-registry") -> Translator:
    content = {
        "name": "own", "client": {"paths": [{"path": "who"}]}, "time": {"paths": ["at"], "unit": "ms"},
        "input": {"paths": ["row"], "form": "row"}, "answer": {"paths": ["said"]},
        "read": {"format": "avro", "framing": framing, "schemas": {i: json.dumps(one) for i, one in schemas.items()}},
    }  # fmt: skip
    return translator(mapping_of(content, "own"))


def test_avro_is_read_by_the_schema_that_the_frame_names() -> None:
    (event,) = map(json.loads, avro({"7": AVRO}).events(b"\x00\x00\x00\x00\x07" + AVRO_RECORD, source(0)))
    (bare,) = map(json.loads, avro({"*": AVRO}, "none").events(AVRO_RECORD, source(0)))
    assert event == bare
    assert (event["client_id"], event["timestamp"]) == ("acme", "2026-03-20T10:00:00Z")
    assert (event["features"], event["prediction"]) == ([0.5, None], {"label": "yes"})


def test_avro_that_cannot_be_read_is_refused_whatever_it_states() -> None:
    rng = np.random.default_rng(1)
    hostile = [AVRO_RECORD[:n] for n in range(len(AVRO_RECORD))] + [AVRO_RECORD + b"\x00"]
    hostile += [b"\xfe\xff\xff\xff\x0f" + AVRO_RECORD, b"\x08acme\x00" + b"\xff" * 9 + b"\x01"]
    hostile.append(AVRO_RECORD.replace(b"\x00\x00\x02\x02\x02k", b"\x00\x00\x08\x02\x02k"))  # no such symbol
    hostile += [bytes(rng.integers(0, 256, rng.integers(1, 60), dtype=np.uint8)) for _ in range(300)]
    by = avro({"7": AVRO})
    for value in hostile:
        with pytest.raises(BadRecord) as refused:
            list(by.events(b"\x00\x00\x00\x00\x07" + value, source(0)))
        assert refused.value.reason == "framed"
    with pytest.raises(BadRecord, match="no schema 8"):
        list(by.events(b"\x00\x00\x00\x00\x08" + AVRO_RECORD, source(0)))
    nulls = {"type": "record", "name": "Nulls", "fields": [{"name": "n", "type": {"type": "array", "items": "null"}}]}
    with pytest.raises(BadRecord, match="more than"):  # a count costs nothing to state
        list(avro({"*": nulls}, "none").events(b"\xfe\xff\xff\xff\xff\xff\xff\x0f\x00", source(0)))
    with pytest.raises(WrongUse, match="no schema of Avro"):
        avro({"7": {"type": "recrod"}})


# --- binary tensors

TENSORS = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32"}]}
PACKED = np.arange(6, dtype="<f4").tobytes()
TWO_ROWS = [("features", [0.0, 1.0, 2.0]), ("features", [3.0, 4.0, 5.0])]


def with_size(size: int, datatype: str = "FP32") -> bytes:
    tensor = {"name": "x", "shape": [2, 3], "datatype": datatype, "parameters": {"binary_data_size": size}}
    return json.dumps({"id": "1", "inputs": [tensor]}).encode()


def field(number: int, value: bytes) -> bytes:
    size, out = len(value), b""
    while size > 127:
        size, out = size >> 7, out + bytes((size & 127 | 128,))
    return bytes((number << 3 | 2,)) + out + bytes((size,)) + value


def grpc(contents: bytes = b"", raw: bytes | None = PACKED) -> bytes:
    tensor = field(1, b"x") + field(2, b"FP32") + field(3, b"\x02\x03") + contents
    return field(1, b"loans") + field(3, b"id-1") + field(5, tensor) + (b"" if raw is None else field(7, raw))


@pytest.mark.parametrize(
    "body",
    [
        with_size(24) + PACKED,
        base64.b64encode(with_size(24) + PACKED).decode(),
        {**TENSORS, "raw_input_contents": [base64.b64encode(PACKED).decode()]},
        {"inputs": [{**TENSORS["inputs"][0], "shape": ["2", "3"], "contents": {"fp32Contents": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}}]},
        grpc(),
        base64.b64encode(grpc()).decode(),
        grpc(field(5, field(6, PACKED)), None),
    ],
)  # fmt: skip
def test_binary_tensors_are_read_in_every_form(body: object) -> None:
    assert shapes.rows_of(bodies.body(body)) == TWO_ROWS


def test_every_type_of_tensor_is_read() -> None:
    for datatype, values, kind in (
        ("BOOL", [True, False], "u1"), ("UINT8", [1, 255], "u1"), ("INT64", [-1, 1 << 40], "<i8"), ("FP16", [0.5, -2.0], "<f2"),
        ("FP64", [0.1, 1e300], "<f8"), ("INT32", [-7, 7], "<i4"),
    ):  # fmt: skip
        raw = np.array(values, kind).tobytes()
        payload = {
            "outputs": [{"name": "y", "shape": [2], "datatype": datatype}],
            "raw_output_contents": [base64.b64encode(raw).decode()],
        }
        assert answers_of(bodies.body(payload), 2) == values
    half = {"name": "y", "shape": [2], "datatype": "BF16", "parameters": {"binary_data_size": 4}}
    words = {"name": "w", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 13}}
    raw = b"\x80\x3f\x00\xc0" + b"\x02\x00\x00\x00DE" + b"\x03\x00\x00\x00FRA"
    found = bodies.body(json.dumps({"inputs": [half, words]}).encode() + raw)
    assert shapes.rows_of(found) == [("features", {"y": 1.0, "w": "DE"}), ("features", {"y": -2.0, "w": "FRA"})]


def test_tensors_whose_bytes_do_not_agree_are_no_rows() -> None:
    hostile: list[Any] = [with_size(24) + PACKED[:n] for n in range(24)] + [with_size(24) + PACKED + b"x"]
    hostile += [with_size(n) + PACKED for n in (-1, 0, 23, 25, 1 << 40)]
    hostile += [with_size(24, datatype) + PACKED for datatype in ("FP64", "BYTES", "INT8", "other", "")]
    hostile += [grpc()[:n] for n in range(len(grpc()))] + [grpc(raw=PACKED[:-1]), grpc(raw=PACKED + b"x")]
    for shape in ([2, 4], [1 << 40, 1 << 40], [-2, -3], ["2", "x"], [2.0, 3.0], [True, 6], [], [[2], 3], "2,3", None):
        tensor = {"name": "x", "shape": shape, "datatype": "FP32"}
        hostile.append({"inputs": [tensor], "raw_input_contents": [base64.b64encode(PACKED).decode()]})
    hostile += [{**TENSORS, "raw_input_contents": raw} for raw in ([], ["!"], [1], ["AAAA", "AAAA"], "AAAA")]
    for body in hostile:
        rows = shapes.rows_of(bodies.body(body))
        assert not any(isinstance(row, list) and all(type(v) is float for v in row) for _, row in rows), body


def test_a_binary_tensor_of_kserve_is_a_query() -> None:
    def event(half: str, data: bytes) -> list[bytes]:
        headers = {
            "ce_type": f"org.kubeflow.serving.inference.{half}", "ce_id": "r", "ce_inferenceservicename": loans.MODEL,
            "ce_time": "2026-03-20T09:00:00Z", "ce_metadata": json.dumps({"X-Consumer-Id": ["acme"]}),
        }  # fmt: skip
        named = {name: text.encode() for name, text in headers.items()}
        return list(by.events(data, Source("t:0@1", "t:0", headers=named)))

    by = translator("kserve")
    answer = {"outputs": [{"name": "label", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}}]}
    assert event("request", with_size(24) + PACKED) == []
    said = event("response", json.dumps(answer).encode() + b"\x02\x00\x00\x00no\x01\x00\x00\x00y")
    events = [json.loads(one) for one in said]
    assert [(e["client_id"], e["features"], e["prediction"]) for e in events] == [
        ("acme", [0.0, 1.0, 2.0], {"label": "no"}), ("acme", [3.0, 4.0, 5.0], {"label": "y"}),
    ]  # fmt: skip


def test_key_time_place_and_headers_of_a_record_are_fields() -> None:
    content = {
        "client": {"paths": [{"path": "$header.x-tenant"}, {"path": "$key"}]}, "time": {"paths": ["$time"]},
        "id": {"paths": ["$place"]}, "input": {"paths": ["x"], "form": "row"},
    }  # fmt: skip
    by = translator(mapping_of({"name": "own", **content}, "own"))
    where = Source("t:0@5", "t:0", time_ms=1_774_000_800_000, key=b"k", headers={"x-tenant": b"acme"})
    (event,) = (json.loads(e) for e in by.events(b'{"x": [1]}', where))
    assert (event["client_id"], event["timestamp"], event["event_id"]) == ("acme", "2026-03-20T10:00:00Z", "t:0@5")
    (event,) = (json.loads(e) for e in by.events(b'{"x": [1]}', Source("t:0@6", "t:0", key=b"k")))
    assert (event["client_id"], event.get("timestamp")) == ("k", None)


# --- joins


def test_halves_are_joined_in_any_order_and_by_the_whole_key() -> None:
    lines = foreign_logs.kserve(events()[:4])
    swapped = [line for i in range(0, len(lines), 2) for line in (lines[i + 1], lines[i])]
    assert translated(translator("kserve"), swapped) == translated(translator("kserve"), lines)
    other = [
        line.replace(b'"namespace": "demo"', b'"namespace": "other"') if i % 2 else line for i, line in enumerate(lines)
    ]
    assert translated(translator("kserve"), other) == []


def test_two_requests_with_one_id_are_two_queries() -> None:
    """In KServe the client chooses the id."""
    lines = [line.replace(b'"id": "r-1"', b'"id": "r-0"') for line in foreign_logs.kserve(events()[:2])]
    found = translated(translator("kserve"), [lines[0], lines[2], lines[1], lines[3]])
    assert [event["features"] for event in found] == [event["features"] for event in events()[:2]]


def test_what_waits_is_bounded_and_counted() -> None:
    import msgspec

    base = preset("kserve")
    assert base.join is not None
    by = translator(msgspec.structs.replace(base, join=msgspec.structs.replace(base.join, most=3)))
    requests = foreign_logs.kserve(events()[:5])[::2]
    assert translated(by, requests) == []
    assert by.without_partner() == {"request": 5, "response": 0}
    fates = [change.fate for change in by.changes("files:0")]
    assert fates == [Fate.REQUEST_WAITS] * 3 + [Fate.REQUEST_WAITS, Fate.REQUEST_EXPIRED] * 2
    by.forget("files:0")
    assert by.without_partner() == {"request": 0, "response": 0}


# --- records that cannot be read


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "not_json"), (b"garbage", "not_json"), (b"\xff\xfe{", "not_json"), (b'{"a": ', "not_json"), (b'"text"', "not_json"),
        (b"[1, 2]", "not_json"), (b'{"a": 1}', "foreign_format"), (b"\x00\x00\x00\x00\x01{}", "framed"), (b"\x1f\x8b\x08", "not_json"),
        (b'{"a":1}{"b":2}', "several_objects"), (b"[" * 5000 + b"]" * 5000, "too_deep"),
        (b'{"x": "' + b" " * MAX_RECORD_BYTES + b'"}', "too_large"),
    ],
)  # fmt: skip
def test_a_record_that_gives_no_event_has_a_known_reason(record: bytes, reason: str) -> None:
    by = translator("databricks")
    with pytest.raises(BadRecord) as refused:
        list(by.events(record, source(0)))
    assert refused.value.reason == reason
    assert reason in REASONS


@pytest.mark.parametrize("reason", ["too_large", "too_deep"])
def test_a_record_that_is_too_large_or_too_deep_counts_for_its_client(reason: str) -> None:
    rest = b'"' + b" " * MAX_RECORD_BYTES + b'"' if reason == "too_large" else b"[" * 5000 + b"]" * 5000
    record = (
        b'{"databricks_request_id": "1", "requester": "svc", "request_time": "2026-03-20T10:00:00Z", "request": '
        + rest
        + b"}"
    )
    (event,) = translator("databricks").events(record, source(0))
    decoded = NativeFormat({loans.MODEL: InputReader(SCHEMA)}).decode(Records("c", [event], np.array([0]), 1))
    assert [letter.reason for letter in decoded.dead] == [reason]
    assert decoded.counted == {0}
    assert decoded.batches[loans.MODEL].clients == ["svc"]


TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "{",
        "[",
        '{"a": [',
        "1,2,3",
        "NaN",
        "AAAAAAAAAAAA",
        "2026-03-20T10:00:00Z",
        "\ud800",
        "9" * 400,
        '{"instances": [[1]]}',
        "a,b\n1,2",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
BY_NAME = {mapping.name: mapping for mapping in presets()}


def places(mapping: LogMapping) -> Iterator[paths.RecordPath]:
    """Paths of a mapping into the record."""
    texts = [
        *mapping.input.paths,
        *mapping.answer.paths,
        *mapping.time.paths,
        *mapping.id.paths,
        *mapping.http,
        *mapping.status.paths,
    ]
    texts += (
        [place.path for place in mapping.client.paths] + list(mapping.recognise.have) + list(mapping.recognise.equal)
    )
    texts += [*mapping.keep.equal, *(mapping.join.id if mapping.join else ())]
    return (
        path for path in map(paths.parse, texts) if path.root == "item" and all(isinstance(s, str) for s in path.steps)
    )


@given(st.sampled_from(sorted(BY_NAME)), st.data())
@settings(max_examples=300, deadline=None)
def test_hostile_values_at_the_places_of_a_mapping_never_crash_it(name: str, data: st.DataObject) -> None:
    mapping = BY_NAME[name]
    record: dict[str, Any] = {}
    for path in places(mapping):
        if data.draw(st.booleans()):
            node = record
            for step in path.steps[:-1]:
                inner = node.setdefault(step, {})
                node = inner if isinstance(inner, dict) else {}
            node[path.steps[-1]] = data.draw(VALUES)
    for where, words in mapping.recognise.equal.items():
        record[where] = data.draw(st.sampled_from(words) | SCALARS)
    decoder = NativeFormat({loans.MODEL: InputReader(SCHEMA)})
    by = translator(mapping)
    for i in range(2):  # twice: halves may be joined
        check(by, json.dumps(record).encode(), i, decoder)


@given(st.sampled_from(sorted(BY_NAME)), st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_events_or_a_known_reason(name: str, value: bytes) -> None:
    check(translator(name), value, 1, NativeFormat({loans.MODEL: InputReader(SCHEMA)}))


def known_reasons(found: Iterator[Any]) -> Iterator[Any]:
    """Pass on what comes, and check the reason of a refusal."""
    refused = None
    try:
        yield from found
    except BadRecord as error:
        refused = error
    assert refused is None or refused.reason in REASONS


def check(by: Translator, value: bytes, i: int, decoder: NativeFormat) -> None:
    """Translate a record and decode what comes out of it; every reason is a known one."""
    found: list[bytes] = []
    with contextlib.suppress(BadRecord):
        for event in known_reasons(by.events(value, source(i))):
            found.append(event)  # noqa: PERF402  # what came before a refusal counts
    decoded = decoder.decode(Records("c", found, np.arange(len(found)), len(found)))
    assert {letter.reason for letter in decoded.dead} <= REASONS.keys()
    counted = decoded.counters
    assert (
        counted["produced"]
        == counted["queries"] + counted["dead"] - counted["dead_counted"] + counted["denied"] + counted["failed"]
    )


@given(st.binary(max_size=200))
def test_protobuf_that_is_none_is_a_value_error(message: bytes) -> None:
    with contextlib.suppress(ValueError):
        list(protobuf.fields(message))
    with contextlib.suppress(BadRecord):
        list(known_reasons(items(message)))


@given(st.text(max_size=30))
def test_a_text_is_a_path_or_refused(text: str) -> None:
    try:
        path = paths.parse(text)
    except WrongUse:
        return
    assert paths.find(path, {"a": [1, {"b": 2}]}) is None or path.steps is not None
