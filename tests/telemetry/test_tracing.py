"""Spans of a real ingest and detect over an embedded store, seen by an in-memory exporter; none unless asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from consumers.telemetry.tracing import Spans, instrumented, spans_of


class Store:
    """Stands for the adapter; `fails` makes a commit fail."""

    fails = False
    size = 3

    def cells(self) -> list[str]:
        return ["c"]

    def load(self, cell: str) -> str:
        return f"loaded {cell}"

    def load_decisions(self, cell: int) -> None: ...

    def record(self, cell: int) -> None: ...

    def commit(self, client: str) -> None:
        if self.fails:
            raise ConnectionError(f"refused for {client}")


class Log:
    def poll(self, timeout_s: float, limit: int) -> str:
        return f"polled {timeout_s} {limit}"


class Sink:
    name = "file:x"

    def send(self, alerts: list[str]) -> list[bool]:
        return [True] * len(alerts)


Traced = tuple[Spans, Callable[[], dict[str, list[ReadableSpan]]]]


@pytest.fixture
def traced() -> Traced:
    exporter = InMemorySpanExporter()
    spans, finish = spans_of({}, "querywarden-test", exporter)
    assert spans is not None

    def ended() -> dict[str, list[ReadableSpan]]:
        finish()
        found: dict[str, list[ReadableSpan]] = {}
        for span in exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    return spans, ended


def parents(spans: list[ReadableSpan]) -> set[int | None]:
    return {span.parent.span_id if span.parent else None for span in spans}


def test_a_batch_is_one_span_from_poll_to_commit(traced: Traced) -> None:
    spans, ended = traced
    store, log = instrumented(Store(), "store", spans), instrumented(Log(), "log", spans)
    for _ in range(2):
        assert log.poll(0.5, limit=10) == "polled 0.5 10"
        assert store.load("c") == "loaded c"
        store.commit("acct-1")
        store.commit("acct-2")
    log.poll(0.5, 10)
    found = ended()
    assert {name: len(s) for name, s in found.items()} == {"ingest.batch": 2, "store.load": 2, "store.commit": 4}
    roots = {span.context.span_id for span in found["ingest.batch"] if span.context}
    assert parents(found["ingest.batch"]) == {None}
    assert parents(found["store.commit"]) == parents(found["store.load"]) == roots
    for root in found["ingest.batch"]:
        inner = [
            s for s in found["store.commit"] if s.parent and root.context and s.parent.span_id == root.context.span_id
        ]
        assert len(inner) == 2
        assert all(root.start_time <= s.start_time and s.end_time <= root.end_time for s in inner)  # type: ignore[operator]


def test_a_turn_is_one_span_from_rows_to_alerts(traced: Traced) -> None:
    spans, ended = traced
    store, sink = instrumented(Store(), "store", spans), instrumented(Sink(), "sink", spans)
    store.cells()
    store.load_decisions(1)
    store.record(1)
    assert sink.send(["a"]) == [True]
    store.cells()
    store.cells()
    found = ended()
    assert {name: len(s) for name, s in found.items()} == {
        "detect.turn": 1, "store.load_decisions": 1, "store.record": 1, "sink.send": 1,
    }  # fmt: skip


def test_an_error_is_marked_and_tells_nobody_apart(traced: Traced) -> None:
    spans, ended = traced
    store = Store()
    store.fails = True
    with pytest.raises(ConnectionError, match="acct-1"):
        instrumented(store, "store", spans).commit("acct-1")
    (span,) = ended()["store.commit"]
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {}) == {"error.type": "ConnectionError"}
    assert "acct-1" not in span.to_json()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_traced_unless_asked(environment: dict[str, str]) -> None:
    spans, finish = spans_of(environment, "x")
    assert spans is None
    finish()
    store = Store()
    assert instrumented(store, "store", spans) is store, "the adapter itself, at no cost"


def test_without_the_extra_the_service_runs_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    spans, finish = spans_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "x")
    assert spans is None
    finish()
    assert "extra" in caplog.text


def test_calls_are_timed_and_everything_else_is_forwarded() -> None:
    took: list[tuple[str, float]] = []
    store = instrumented(Store(), "store", None, lambda name, seconds: took.append((name, seconds)))
    assert store.size == 3
    assert store.load("x") == "loaded x"
    with pytest.raises(AttributeError):
        _ = store.nothing  # type: ignore[attr-defined]
    (timed,) = took
    assert timed[0] == "load"
    assert 0 <= timed[1] < 10
