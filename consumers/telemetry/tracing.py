"""Measure the time of calls to the log, the store and the sinks, and trace them with OpenTelemetry on request. Extra ``[otel]``.

Rules:
* Only the wiring knows of this: an adapter is wrapped in an `Instrumented`, which forwards every call.
* Without the extra, or without ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or ``…_TRACES_ENDPOINT``) in the environment, no span is made.
* There is one root span per unit of work: ``ingest.batch`` from a poll to its commits, ``detect.turn`` from loading rows to sending
  alerts. The first call of the unit begins it, the next unit ends it. An idle process makes none.
* Attributes are names of parts and kinds of errors, never a client, a key, an alert or a text.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

log = logging.getLogger("querywarden.tracing")

T = TypeVar("T")
BEGINS = {"log.poll": "ingest.batch", "store.cells": "detect.turn"}
"""A call that ends the unit of work before it → name of the unit that begins."""
TRACED = frozenset(
    {"store.load", "store.commit", "store.load_decisions", "store.shards", "store.record", "sink.send", "log.commit"}
)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Spans:
    """Root and child spans of each thread, on an OpenTelemetry tracer."""

    def __init__(self, tracer: Any) -> None:
        from opentelemetry import trace

        self._trace = trace
        self._tracer = tracer
        self._local = threading.local()

    def call(self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        local = self._local
        if name in BEGINS:
            self.end()
            local.unit = BEGINS[name]
            return function(*arguments, **named)
        if name not in TRACED:
            return function(*arguments, **named)
        root = getattr(local, "root", None)
        if root is None:
            root = local.root = self._tracer.start_span(getattr(local, "unit", "querywarden.work"))
        context = self._trace.set_span_in_context(root)
        with self._tracer.start_as_current_span(
            name, context=context, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                return function(*arguments, **named)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(self._trace.StatusCode.ERROR)
                raise

    def end(self) -> None:
        """End the unit of work of this thread."""
        root = getattr(self._local, "root", None)
        if root is not None:
            root.end()
            self._local.root = None


class Instrumented:
    """Forwards to `thing`; calls go through `spans`, and their time in seconds to `observe`."""

    def __init__(
        self, thing: Any, part: str, spans: Spans | None, observe: Callable[[str, float], None] | None
    ) -> None:
        self._thing, self._part, self._spans, self._observe = thing, part, spans, observe

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if not callable(value) or name.startswith("_"):
            return value

        def forward(*arguments: Any, **named: Any) -> Any:
            began_s = time.perf_counter()
            try:
                if self._spans is None:
                    return value(*arguments, **named)
                return self._spans.call(f"{self._part}.{name}", value, arguments, named)
            finally:
                if self._observe is not None:
                    self._observe(name, time.perf_counter() - began_s)

        self.__dict__[name] = forward  # found at once from now on
        return forward


def instrumented(thing: T, part: str, spans: Spans | None, observe: Callable[[str, float], None] | None = None) -> T:
    """`thing` itself when there is nothing to do; else something that behaves as it does. `part`: log, store or sink."""
    if spans is None and observe is None:
        return thing
    return cast(T, Instrumented(thing, part, spans, observe))


def spans_of(
    environment: Mapping[str, str], service: str, exporter: Any = None
) -> tuple[Spans | None, Callable[[], None]]:
    """Spans as the ``OTEL_…`` variables ask, and how to flush them; (None, nothing) when they ask for none.

    exporter: instead of OTLP over HTTP (tests).
    """
    asked = any(environment.get(name) for name in ENDPOINTS) and environment.get("OTEL_SDK_DISABLED", "") != "true"
    if not asked and exporter is None:
        return None, lambda: None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
    except ImportError:
        log.warning("traces need the extra: pip install 'querywarden[otel]'")
        return None, lambda: None
    provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    spans = Spans(provider.get_tracer("querywarden"))

    def finish() -> None:
        spans.end()
        provider.shutdown()

    return spans, finish
