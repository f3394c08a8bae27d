"""The catalogue of metrics, and the small server that shows them.

Rules:
* No label holds a client, a key or an event id. Values are in base units. Only names from `METRICS` exist.
* A process that serves no metrics (`metrics.bind` is empty) counts all the same.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from consumers.errors import ConfigError, WrongUse

log = logging.getLogger("querywarden.metrics")

METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "querywarden_records_total": (
        "counter",
        ("outcome",),
        "records read from the log: query, dead (refused), unmodelled (no baseline), denied, failed, duplicate, erased, tombstone",
    ),
    "querywarden_dead_letters_total": ("counter", ("reason",), "refused records by reason code"),
    "querywarden_events_unattributed_total": (
        "counter",
        (),
        "records refused because they name no client (missing_client, malformed_client)",
    ),
    "querywarden_mapped_total": (
        "counter",
        ("outcome",),
        "records of a log in another format, and what they became: records, events, unattributed (no known client), left_out",
    ),
    "querywarden_halves_total": (
        "counter",
        ("outcome",),
        "queries logged in two halves: joined; halves without the other one, given up: lone_requests, lone_responses",
    ),
    "querywarden_halves_waiting": (
        "gauge",
        (),
        "halves of queries that wait for the other half in the log cells of this process",
    ),
    "querywarden_letters_dropped_total": (
        "counter",
        (),
        "dead letters that were counted but not kept, because their buffer was full",
    ),
    "querywarden_duplicate_events_total": (
        "counter",
        (),
        "queries sent twice by a producer (same event_id and content)",
    ),
    "querywarden_ahead_queries_total": (
        "counter",
        (),
        "queries dated a day or more after the time of the log; they count at the log's time",
    ),
    "querywarden_pooled_queries_total": (
        "counter",
        (),
        "queries of clients without statistics of their own, counted for a shared overflow client",
    ),
    "querywarden_lag_records": ("gauge", (), "records that wait to be read in the log cells of this process"),
    "querywarden_ingest_lag_seconds": (
        "gauge",
        (),
        "age of the newest committed query while records wait; 0 if none wait",
    ),
    "querywarden_alarm": ("gauge", ("alarm",), "1 while the alarm is raised; docs/operations.md explains each"),
    "querywarden_canaries_total": (
        "counter",
        (),
        "queries whose client got a marked answer in place of the logged one",
    ),
    "querywarden_unknown_keys_total": ("counter", (), "unknown keys in events"),
    "querywarden_extra_columns_total": (
        "counter",
        (),
        "values of columns that the baseline does not have; they are ignored",
    ),
    "querywarden_misfits_total": (
        "counter",
        ("reason",),
        "queries with a value that does not fit the schema or cannot be read; they count all the same",
    ),
    "querywarden_commits_total": (
        "counter",
        ("outcome",),
        "checkpoints, by outcome: committed, fenced (another process owns the cell), rewound, unavailable (the store did not answer)",
    ),
    "querywarden_gap_records_total": ("counter", (), "records that the log deleted by retention before they were read"),
    "querywarden_cells": ("gauge", (), "log cells that this process owns"),
    "querywarden_cell_stopped": (
        "gauge",
        ("cell", "reason"),
        "1 for a stopped log cell; reason: log_truncated, log_recreated, cell_corrupt",
    ),
    "querywarden_profiles_cached": ("gauge", ("model",), "client profiles held in memory"),
    "querywarden_event_time_seconds": ("gauge", (), "event time of the newest committed query"),
    "querywarden_clients_assessed_total": ("counter", ("model",), "assessments of clients"),
    "querywarden_score": ("histogram", ("model",), "suspicion of each assessed client"),
    "querywarden_transitions_total": ("counter", ("model", "state"), "changes of decisions, by new state"),
    "querywarden_alerts_total": (
        "counter",
        ("sink", "outcome"),
        "alerts by sink and outcome: sent, failed (will be sent again), refused (will not be sent again), dropped (the outbox was full)",
    ),
    "querywarden_alerts_capped_total": (
        "counter",
        ("sink",),
        "alerts over the daily limit of a sink, sent in a digest",
    ),
    "querywarden_campaign_joined_total": (
        "counter",
        ("model",),
        "accounts that detection added to an operator's decision about their campaign",
    ),
    "querywarden_campaign_searches_postponed_total": (
        "counter",
        (),
        "searches for campaigns that were postponed because ingest lags",
    ),
    "querywarden_detection_latency_seconds": (
        "histogram",
        (),
        "seconds from the query that led to a finding until its alert was stored",
    ),
    "querywarden_clients_flagged": (
        "gauge",
        ("model", "state"),
        "clients that are throttled or blocked now; every detect process counts all of them, so use max(), not sum()",
    ),
    "querywarden_store_seconds": ("histogram", ("operation",), "duration of calls to the store"),
    "querywarden_build_info": ("gauge", ("version",), "always 1"),
    "querywarden_store_unavailable_total": ("counter", ("process",), "calls that the store did not answer"),
    "querywarden_http_requests_total": (
        "counter",
        ("method", "route", "status"),
        "answers of the HTTP service, without those to gateways; route: the pattern of the route, or other",
    ),
    "querywarden_http_seconds": (
        "histogram",
        ("route",),
        "seconds from the head of a request to the end of its answer",
    ),
    "querywarden_authz_answers_total": (
        "counter",
        ("decision", "cause"),
        "answers to gateways; cause: known, anonymous (no identity), unsynced (store not read yet), crowded (over 32 names), unauthorized",
    ),
    "querywarden_authz_duration_seconds": (
        "histogram",
        (),
        "seconds to decide a gateway's request, without reading and writing it",
    ),
    "querywarden_restrictions": (
        "gauge",
        ("origin", "state"),
        "restrictions that gateways enforce; origin: detected, operator",
    ),
    "querywarden_restrictions_stale_seconds": (
        "gauge",
        (),
        "seconds since the store stopped answering; 0 while it answers",
    ),
    "querywarden_restrictions_held": (
        "gauge",
        (),
        "1 while the breaker of any tenant is open and holds its new detected restrictions back",
    ),
    "querywarden_keys_lost": (
        "gauge",
        (),
        "API keys that are still accepted although the store lost them",
    ),
    "querywarden_responder_pushes_total": (
        "counter",
        ("target", "outcome"),
        "pushes to gateways, by outcome: done, failed, repaired (the target held something else)",
    ),
}
"""Name → (kind, labels, help text)."""
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

    def add_each(self, name: str, label: str, counts: Mapping[str, int]) -> None:
        """Add to one counter for each value of its only label."""
        for value, n in counts.items():
            self.add(name, n, **{label: value})

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


def serve_metrics(bind: str, metrics: Metrics, ready: Callable[[], bool], stack: contextlib.ExitStack) -> str:
    """Answer /metrics, /healthz and /readyz on ``host:port``, the setting `metrics.bind`, until the stack is closed.

    Returns the address that was taken, because port 0 picks one. Without an address nothing is served. Raises WrongUse for a text that
    is no address, ConfigError for an address that can't be had.
    """
    if not bind:
        return ""
    host, _, port = bind.rpartition(":")
    if not port.isdecimal() or int(port) > 65_535:
        raise WrongUse(f"metrics.bind: {bind!r} is not host:port")

    class MetricsHandler(BaseHTTPRequestHandler):
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

    try:
        server = ThreadingHTTPServer((host or "127.0.0.1", int(port)), MetricsHandler)
    except OSError as error:
        raise ConfigError(f"metrics.bind: {bind}: {error.strerror or error}") from error
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    taken = f"{server.server_address[0]!s}:{server.server_address[1]}"
    log.info("metrics", extra={"bind": taken})
    return taken
