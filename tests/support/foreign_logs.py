"""Native events as the logs of other tools: the documented shapes of each, with our own values.

Every writer takes native events (objects, in their order) and gives the lines of a log. What a tool does not log (the caller, the
model) is left out as the tool does.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from support import text_models

Event = dict[str, Any]
Writer = Callable[[Sequence[Event]], list[bytes]]


def _line(record: object) -> bytes:
    return json.dumps(record).encode()


def _ms(event: Event) -> int:
    return round(datetime.fromisoformat(event["timestamp"]).timestamp() * 1000)


def _request(event: Event) -> Event:
    """V1 with named columns."""
    return {"instances": [event["features"]]}


def _response(event: Event) -> Event:
    return {"predictions": [event["prediction"]]}


def native(events: Sequence[Event]) -> list[bytes]:
    return [_line(event) for event in events]


def _cloud(event: Event, i: int, half: str, data: object) -> Event:
    return {
        "specversion": "1.0", "id": f"r-{i}", "source": "http://localhost:9081/", "type": f"org.kubeflow.serving.inference.{half}",
        "inferenceservicename": event["model_id"], "namespace": "demo", "component": "predictor", "endpoint": "",
        "time": event["timestamp"], "metadata": json.dumps({"X-Consumer-Id": [event["client_id"]], "User-Agent": ["app/1"]}),
        "datacontenttype": "application/json", "data": data,
    }  # fmt: skip


def kserve(events: Sequence[Event]) -> list[bytes]:
    """Structured CloudEvents; every third payload in V2, every fifth in base64."""
    lines: list[bytes] = []
    for i, event in enumerate(events):
        request: Event = _request(event)
        response: Event = _response(event)
        if i % 3 == 0:
            request = {"inputs": [
                {"name": name, "shape": [1], "datatype": "BYTES" if isinstance(value, str) else "FP64", "data": [value]}
                for name, value in event["features"].items()
            ]}  # fmt: skip
            probabilities = event["prediction"]["probabilities"]
            response = {"model_name": event["model_id"], "outputs": [
                {"name": "label", "shape": [1], "datatype": "BYTES", "data": [event["prediction"]["label"]]},
                {"name": "probabilities", "shape": [1, len(probabilities)], "datatype": "FP64", "data": probabilities},
            ]}  # fmt: skip
        halves = [_cloud(event, i, "request", request), _cloud(event, i, "response", response)]
        if i % 5 == 0:
            data = halves[0].pop("data")
            halves[0]["data_base64"] = base64.b64encode(json.dumps(data).encode()).decode()
        lines += map(_line, halves)
    return lines


def seldon(events: Sequence[Event]) -> list[bytes]:
    """What `kcat -J` writes of Seldon's topic: headers beside the payload."""

    def one(event: Event, i: int, half: str, payload: object) -> Event:
        headers = {
            "type": f"io.seldon.serving.inference.{half}", "content-type": "application/json", "modelid": event["model_id"],
            "requestid": f"s-{i}", "inferenceservicename": "loans", "namespace": "demo", "endpoint": "default", "protocol": "seldon",
            "X-Consumer-Id": event["client_id"],
        }  # fmt: skip
        return {
            "topic": "seldon", "partition": 0, "offset": i, "tstype": "create", "ts": _ms(event), "broker": 0,
            "headers": [part for pair in headers.items() for part in pair], "key": None, "payload": json.dumps(payload),
        }  # fmt: skip

    lines = []
    for i, event in enumerate(events):
        row = event["features"]
        lines.append(_line(one(event, i, "request", {"data": {"names": list(row), "ndarray": [list(row.values())]}})))
        lines.append(_line(one(event, i, "response", {"predictions": [event["prediction"]]})))
    return lines


def sagemaker(events: Sequence[Event]) -> list[bytes]:
    """CSV without names in, JSON out; every second record in base64."""
    lines = []
    for i, event in enumerate(events):
        text = _csv_row(event["features"].values())
        answer = json.dumps(_response(event))
        encoded = i % 2 == 1
        data = {
            "endpointInput": {
                "observedContentType": "text/csv", "mode": "INPUT", "encoding": "BASE64" if encoded else "CSV",
                "data": base64.b64encode(text.encode()).decode() if encoded else text,
            },
            "endpointOutput": {
                "observedContentType": "application/json", "mode": "OUTPUT", "encoding": "BASE64" if encoded else "JSON",
                "data": base64.b64encode(answer.encode()).decode() if encoded else answer,
            },
        }  # fmt: skip
        meta = {"eventId": f"m-{i}", "inferenceTime": event["timestamp"], "customAttributes": [event["client_id"]]}
        lines.append(_line({"captureData": data, "eventMetadata": meta, "eventVersion": "0"}))
    return lines


def vertex(events: Sequence[Event]) -> list[bytes]:
    """Rows of BigQuery as JSON lines: payloads are lists of texts. No caller."""
    return [
        _line({
            "endpoint": "4711", "deployed_model_id": "8", "logging_time": event["timestamp"].replace("T", " ").replace("Z", " UTC"),
            "request_id": f"v-{i}", "request_payload": [json.dumps(event["features"])],
            "response_payload": [json.dumps(event["prediction"])],
        })
        for i, event in enumerate(events)
    ]  # fmt: skip


def azureml(events: Sequence[Event]) -> list[bytes]:
    """Inputs and outputs as records of their own. No caller."""

    def one(event: Event, i: int, kind: str, data: object) -> Event:
        return {
            "specversion": "1.0", "id": f"{kind}-{i}", "source": "/subscriptions/1/deployments/blue", "type": "azureml.inference.data",
            "datacontenttype": "application/json", "time": event["timestamp"], "data": [data], "collectdatatype": f"model_{kind}",
            "agent": "azureml-ai-monitoring", "correlationid": f"z-{i}", "modelversion": "default",
        }  # fmt: skip

    return [
        _line(one(event, i, kind, event[field]))
        for i, event in enumerate(events)
        for kind, field in (("inputs", "features"), ("outputs", "prediction"))
    ]


def databricks(events: Sequence[Event]) -> list[bytes]:
    lines = []
    for i, event in enumerate(events):
        row = event["features"]
        request = (
            {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}
            if i % 2
            else {"dataframe_records": [row]}
        )
        lines.append(_line({
            "databricks_request_id": f"d-{i}", "client_request_id": None, "request_time": event["timestamp"], "status_code": 200,
            "sampling_fraction": 1.0, "execution_duration_ms": 9, "request": json.dumps(request),
            "response": json.dumps(_response(event)), "served_entity_id": "e1", "logging_error_codes": [],
            "requester": event["client_id"],
        }))  # fmt: skip
    return lines


def bentoml(events: Sequence[Event]) -> list[bytes]:
    """A record that holds the schema, then one a prediction; only the label is logged. No caller."""
    first = events[0]
    columns = [{"name": name, "role": "feature", "type": "numerical"} for name in first["features"]]
    schema = {"meta_data": {"bento_name": "loans", "bento_version": "1"}, "columns": columns}
    return [_line(schema)] + [
        _line({
            **event["features"], "prediction": event["prediction"]["label"], "timestamp": event["timestamp"].removesuffix("Z"),
            "request_id": str(10**18 + i), "trace_id": "0",
        })
        for i, event in enumerate(events)
    ]  # fmt: skip


def apisix(events: Sequence[Event]) -> list[bytes]:
    """Arrays of up to seven entries, as kafka-logger batches them."""
    entries = [
        {
            "route_id": "1", "service_id": "", "client_ip": "192.0.2.7", "start_time": _ms(event), "latency": 4.2,
            "consumer": {"username": event["client_id"]},
            "request": {
                "uri": "/v1/models/loans:predict", "url": "http://gw:9080/v1/models/loans:predict", "method": "POST", "size": 210,
                "headers": {"user-agent": "app/1", "x-request-id": f"a-{i}"}, "querystring": {}, "body": json.dumps(_request(event)),
            },
            "response": {"status": 200, "headers": {"content-type": "application/json"}, "size": 90, "body": json.dumps(_response(event))},
        }
        for i, event in enumerate(events)
    ]  # fmt: skip
    return [_line(entries[i : i + 7]) for i in range(0, len(entries), 7)]


def kong(events: Sequence[Event]) -> list[bytes]:
    return [
        _line({
            "request": {
                "id": f"k-{i}", "uri": "/predict", "method": "POST", "size": "210",
                "headers": {"authorization": "REDACTED", "user-agent": "app/1"},
            },
            "response": {"status": 200, "size": "90"}, "started_at": _ms(event), "client_ip": "192.0.2.7",
            "consumer": {"id": event["client_id"], "username": "app"}, "service": {"name": "loans"},
            "request_body": json.dumps(_request(event)), "response_body": json.dumps(_response(event)),
        })
        for i, event in enumerate(events)
    ]  # fmt: skip


def csv_table(events: Sequence[Event]) -> list[bytes]:
    """Names in the first line; only the label is logged."""
    names = ["client_id", "timestamp", *events[0]["features"], "prediction"]
    rows = [
        [event["client_id"], event["timestamp"], *event["features"].values(), event["prediction"]["label"]]
        for event in events
    ]
    return [_csv_row(names).encode()] + [_csv_row(row).encode() for row in rows]


def _csv_row(values: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(values)
    return out.getvalue()


TABLES: dict[str, Writer] = {
    "kserve": kserve, "seldon": seldon, "sagemaker": sagemaker, "vertex": vertex, "azureml": azureml, "databricks": databricks,
    "bentoml": bentoml, "apisix": apisix, "kong": kong, "csv": csv_table,
}  # fmt: skip
"""Presets of logs whose inputs are rows of a table."""
WITHOUT_CALLER = ("vertex", "azureml", "bentoml")
LABEL_ONLY = ("bentoml", "csv")


# ------------------------------------------------------------------------------------------------------------- texts

QUESTIONS = ("How do I reset my card?", "Where is my parcel, please?", "Cancel order 7", "What does the plan cost?")


def _chats(n: int) -> Iterator[tuple[str, int, str, str]]:
    """(client, time in ms, question, answer)."""
    asked = QUESTIONS if n < 100 else text_models.questions()  # a baseline needs different ones
    for i in range(n):
        team = f"team-{i % max(3, n // 25)}"
        yield team, 1_774_000_800_000 + 60_000 * i, asked[i % len(asked)], f"Answer number {i}."


def litellm(n: int = 12) -> list[bytes]:
    return [
        _line({
            "id": f"chat-{i}", "trace_id": f"t-{i}", "call_type": "acompletion", "model": "small-2", "model_group": "chat",
            "startTime": ms / 1000, "endTime": ms / 1000 + 0.8, "status": "success", "prompt_tokens": 9, "completion_tokens": 5,
            "metadata": {"user_api_key_hash": f"88dc28d0f0{client}", "user_api_key_alias": client, "user_api_key_team_id": client},
            "end_user": "", "requester_ip_address": "192.0.2.9", "messages": [{"role": "user", "content": question}],
            "response": {"choices": [{"message": {"role": "assistant", "content": answer}}]},
        })
        for i, (client, ms, question, answer) in enumerate(_chats(n))
    ]  # fmt: skip


def hiddenlayer(n: int = 12) -> list[bytes]:
    return [
        _line({
            "metadata": {"model": "chat", "provider": "own", "requester_id": client, "event_time": ms},
            "input": {"messages": [{"role": "user", "content": question}]},
            "output": {"messages": [{"role": "assistant", "content": answer}]},
        })
        for client, ms, question, answer in _chats(n)
    ]  # fmt: skip


def envoy_ai(n: int = 12) -> list[bytes]:
    return [
        _line({
            "start_time": "2026-03-20T09:00:00.123Z", "gen_ai.request.model": "chat", "gen_ai.response.model": "small-2",
            "gen_ai.provider.name": "own", "gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": 5, "response_code": 200,
            "x-request-id": f"e-{i}", "x-tenant-id": client, "session.id": client, "user-agent": "app/1", "x-forwarded-for": "192.0.2.9",
        })
        for i, (client, *_) in enumerate(_chats(n))
    ]  # fmt: skip


def _attributes(values: Event) -> list[Event]:
    def any_value(value: Any) -> Event:
        if isinstance(value, bool):
            return {"boolValue": value}
        if isinstance(value, int):
            return {"intValue": str(value)}
        if isinstance(value, float):
            return {"doubleValue": value}
        if isinstance(value, list):
            return {"arrayValue": {"values": [any_value(one) for one in value]}}
        return {"stringValue": value}

    return [{"key": name, "value": any_value(value)} for name, value in values.items()]


def _export(spans: Sequence[tuple[str, int, Event]]) -> Event:
    """One export of OTLP in JSON. spans: (id, time in ms, attributes)."""
    listed = [
        {
            "traceId": f"{i:032x}", "spanId": span, "name": "chat", "kind": 3, "startTimeUnixNano": str(ms * 10**6),
            "endTimeUnixNano": str((ms + 800) * 10**6), "attributes": _attributes(values), "status": {},
        }
        for i, (span, ms, values) in enumerate(spans)
    ]  # fmt: skip
    resource = {"attributes": _attributes({"service.name": "gateway"})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "own"}, "spans": listed}]}]}


def otel_genai_export(n: int = 12) -> Event:
    return _export([
        (
            f"{i:016x}", ms,
            {
                "gen_ai.operation.name": "chat", "gen_ai.request.model": "chat", "gen_ai.response.model": "small-2", "user.id": client,
                "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": question}]}]),
                "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": answer}]}]),
            },
        )
        for i, (client, ms, question, answer) in enumerate(_chats(n))
    ])  # fmt: skip


def otel_genai(n: int = 12) -> list[bytes]:
    return [_line(otel_genai_export(n))]


def openinference(n: int = 12) -> list[bytes]:
    """A chain, and a call of an embedding model with two vectors in it."""
    spans: list[tuple[str, int, Event]] = []
    for i, (client, ms, question, _) in enumerate(_chats(n)):
        spans.append(
            (f"{2 * i:016x}", ms, {"openinference.span.kind": "CHAIN", "input.value": question, "user.id": client})
        )
        vectors: Event = {
            f"embedding.embeddings.{j}.embedding.vector": [0.5 + 0.01 * i, -0.25 * (j + 1), 0.125] for j in range(2)
        }
        spans.append((f"{2 * i + 1:016x}", ms, {
            "openinference.span.kind": "EMBEDDING", "embedding.model_name": "embed", "user.id": client, "session.id": client, **vectors,
        }))  # fmt: skip
    return [_line(_export(spans))]


TEXTS: dict[str, Callable[[int], list[bytes]]] = {
    "litellm": litellm, "hiddenlayer": hiddenlayer, "envoy-ai": envoy_ai, "otel-genai": otel_genai, "openinference": openinference,
}  # fmt: skip
"""Presets of logs whose inputs are texts, embeddings, or nothing at all."""
CHATS = ("litellm", "hiddenlayer", "otel-genai")
"""Those among them that hold texts with their answers."""
