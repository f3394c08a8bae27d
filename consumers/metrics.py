"""The catalogue of metrics and the small server that shows them.

Rules: never a client, key or event id as a label; base units; names from `METRICS` only. A process that is not asked to serve
metrics (`metrics.bind` is off) still counts, nobody looks.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "querywarden_records_total": (
        "counter",
        ("outcome",),
        "records read from the log: query, dead, unmodelled, denied, failed, duplicate, erased, tombstone (no value)",
    ),
    "querywarden_dead_letters_total": ("counter", ("reason",), "refused records by reason code"),
    "querywarden_events_unattributed_total": (
        "counter",
        (),
        "records without a client (refused: missing_client, malformed_client)",
    ),
    "querywarden_letters_dropped_total": ("counter", (), "dead letters that found no room to wait; only counted"),
    "querywarden_duplicate_events_total": (
        "counter",
        (),
        "queries that a producer sent twice (same event_id and content)",
    ),
    "querywarden_ahead_queries_total": (
        "counter",
        (),
        "queries a day or more ahead of the log's own time, counted at the log's time",
    ),
    "querywarden_pooled_queries_total": (
        "counter",
        (),
        "queries of clients without state, taken by an overflow client",
    ),
    "querywarden_lag_records": ("gauge", (), "records known to wait in the cells of this process"),
    "querywarden_ingest_lag_seconds": (
        "gauge",
        (),
        "age of the newest committed query while records wait; 0 when none does",
    ),
    "querywarden_alarm": ("gauge", ("alarm",), "1 while the alarm is raised (docs/operations.md)"),
    "querywarden_unknown_keys_total": ("counter", (), "keys of events that the format does not know"),
    "querywarden_extra_columns_total": ("counter", (), "values of columns that the baseline does not have; ignored"),
    "querywarden_misfits_total": (
        "counter",
        ("reason",),
        "queries of which something did not fit or could not be read; they count",
    ),
    "querywarden_commits_total": ("counter", ("outcome",), "checkpoints: committed, fenced, rewound, unavailable"),
    "querywarden_gap_records_total": ("counter", (), "records that the log's retention dropped before they were read"),
    "querywarden_cells": ("gauge", (), "log cells that this process owns"),
    "querywarden_cell_stopped": (
        "gauge",
        ("cell", "reason"),
        "1 for a log cell that cannot go on: log_truncated, log_recreated, cell_corrupt",
    ),
    "querywarden_profiles_cached": ("gauge", ("model",), "client profiles held in memory"),
    "querywarden_event_time_seconds": ("gauge", (), "newest event time that was committed"),
    "querywarden_clients_assessed_total": ("counter", ("model",), "clients assessed"),
    "querywarden_score": ("histogram", ("model",), "suspicion of each client that was assessed"),
    "querywarden_transitions_total": ("counter", ("model", "state"), "decisions that changed, by new state"),
    "querywarden_alerts_total": (
        "counter",
        ("sink", "outcome"),
        "alerts handed to a sink: sent, failed (to be sent again), refused (for good), dropped (no room to wait)",
    ),
    "querywarden_alerts_capped_total": (
        "counter",
        ("sink",),
        "alerts over a sink's limit of the day, told in a digest",
    ),
    "querywarden_campaign_searches_postponed_total": (
        "counter",
        (),
        "searches for campaigns that waited because ingest lags",
    ),
    "querywarden_detection_latency_seconds": (
        "histogram",
        (),
        "from the query that a finding dates from to the stored alert",
    ),
    "querywarden_clients_flagged": (
        "gauge",
        ("model", "state"),
        "clients throttled or blocked now; every detect process counts them all, so take the maximum",
    ),
    "querywarden_store_seconds": ("histogram", ("operation",), "calls to the store"),
    "querywarden_build_info": ("gauge", ("version",), "always 1"),
    "querywarden_store_unavailable_total": ("counter", ("process",), "times that the store did not answer"),
    "querywarden_http_requests_total": (
        "counter",
        ("method", "route", "status"),
        "answers of the HTTP service but gateways'; route: its pattern, other for none",
    ),
    "querywarden_http_seconds": ("histogram", ("route",), "from a request's head to the end of its answer"),
    "querywarden_authz_answers_total": (
        "counter",
        ("decision", "cause"),
        "answers to gateways; cause: known, anonymous (no identity), unsynced (store not read yet), crowded (over 32 names), unauthorized",
    ),
    "querywarden_authz_duration_seconds": (
        "histogram",
        (),
        "from a gateway's question to its answer, without reading and writing it",
    ),
    "querywarden_restrictions": (
        "gauge",
        ("origin", "state"),
        "restrictions that gateways enforce; origin: detected, operator",
    ),
    "querywarden_restrictions_stale_seconds": ("gauge", (), "since when the store did not answer; 0: it does"),
    "querywarden_restrictions_held": (
        "gauge",
        (),
        "1 while the breaker keeps new detected restrictions from being enforced",
    ),
    "querywarden_keys_lost": (
        "gauge",
        (),
        "API keys that are still taken although the store has lost them; 0: it lost none",
    ),
    "querywarden_responder_pushes_total": (
        "counter",
        ("target", "outcome"),
        "pushes to gateways: done, failed, repaired (the target held something else)",
    ),
}
"""name → (kind, labels, help)."""
MAX_SERIES = 1_000
OTHER = "other"
"""A metric that would get more series than `MAX_SERIES` counts the rest here: whoever invents label values fills no memory."""
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
BUCKETS: Mapping[str, tuple[float, ...]] = {
    "querywarden_score": (0.5, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0),
    "querywarden_authz_duration_seconds": (
        0.000_01,
        0.000_025,
        0.000_05,
        0.0001,
        0.000_25,
        0.0005,
        0.001,
        0.0025,
        0.005,
        0.01,
        0.05,
    ),
}
"""Of histograms with others than `BUCKETS_S`."""
TALLIED = frozenset({"querywarden_authz_duration_seconds"})
"""Histograms without labels that are observed under their caller's own lock."""


class Tally(Collector):
    """A histogram that costs its caller a bisection: for what is observed thousands of times a second by one thread at a time."""

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self.name, self.text, self.buckets = name, text, buckets
        self.counts, self.sum = [0] * (len(buckets) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.buckets, value)] += 1
        self.sum += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self.name, self.text)
        edges = [*(str(float(edge)) for edge in self.buckets), "+Inf"]
        family.add_metric([], list(zip(edges, itertools.accumulate(self.counts), strict=True)), self.sum)
        yield family


class Metrics:
    """One process' metrics, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[str, dict[tuple[str, ...], Any]] = {}
        self._metrics: dict[str, Any] = {name: self._made(name, *row) for name, row in METRICS.items()}
        self.set("querywarden_build_info", 1, version=_version())

    def _made(self, name: str, kind: str, labels: tuple[str, ...], text: str) -> Any:
        if kind != "histogram":
            return {"counter": Counter, "gauge": Gauge}[kind](name, text, labels, registry=self.registry)
        if name in TALLIED:
            self.registry.register(made := Tally(name, text, BUCKETS[name]))
            return made
        return Histogram(name, text, labels, registry=self.registry, buckets=BUCKETS.get(name, BUCKETS_S))

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        self._labelled(name, labels).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._labelled(name, labels).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        self._labelled(name, labels).observe(value)

    def value(self, name: str, **labels: str) -> float | None:
        """What is shown now; None for labels that were never set."""
        if name not in METRICS:  # a part of a histogram
            return self.registry.get_sample_value(name, labels)
        samples = (sample for family in self._metrics[name].collect() for sample in family.samples)
        return next((sample.value for sample in samples if sample.name == name and sample.labels == labels), None)

    def _labelled(self, name: str, labels: dict[str, str]) -> Any:
        metric = self._metrics[name]
        if not labels:
            return metric
        children, values = self._children.setdefault(name, {}), tuple(labels.values())
        child = children.get(values)
        if child is None:
            if len(children) >= MAX_SERIES:
                labels = dict.fromkeys(labels, OTHER)
                values = tuple(labels.values())
            child = children.get(values) or children.setdefault(values, metric.labels(**labels))
        return child

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _version() -> str:
    try:
        return metadata.version("querywarden")
    except metadata.PackageNotFoundError:
        return "0"


def serve_metrics(bind: str, metrics: Metrics, ready: Callable[[], bool]) -> ThreadingHTTPServer:
    """Answer /metrics, /healthz and /readyz on ``host:port`` in a thread; port 0 picks one.

    Raises ValueError for an address that is none, OSError for one that can't be had.
    """
    host, _, port = bind.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{bind!r} is not host:port")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            routes: dict[str, Callable[[], tuple[int, bytes]]] = {
                "/metrics": lambda: (200, metrics.text()),
                "/healthz": lambda: (200, b"ok\n"),
                "/readyz": lambda: (200, b"ready\n") if ready() else (503, b"not ready\n"),
            }
            status, body = routes.get(self.path, lambda: (404, b"not found\n"))()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            with contextlib.suppress(ConnectionError):  # who asked has gone: no matter
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes are not worth a log line."""

    server = ThreadingHTTPServer((host or "127.0.0.1", int(port)), Answer)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server
