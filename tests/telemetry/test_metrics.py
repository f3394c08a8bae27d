"""The catalogue: names and labels as Prometheus wants them, and no way for a client to grow it."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from consumers.telemetry.metrics import MAX_SERIES, METRICS, Metrics, Tally


def series(metrics: Metrics, name: str) -> int:
    return sum(line.startswith(name.encode()) for line in metrics.text().splitlines())


@pytest.mark.parametrize("name", list(METRICS))
def test_a_name_follows_the_rules_of_prometheus(name: str) -> None:
    kind, labels, text = METRICS[name]
    assert re.fullmatch(r"querywarden_[a-z0-9_]+", name)
    assert (kind == "counter") == name.endswith("_total")
    assert kind != "histogram" or name.endswith(("_seconds", "_bytes")) or name == "querywarden_score", "a share"
    assert not {"client", "client_id", "key", "event", "event_id", "tenant", "user", "ip", "uid"} & set(labels)
    assert not re.search(r"_(ms|millis|minutes|kb)(_|$)", name)
    assert text == text.strip()


def test_a_million_ids_make_no_series() -> None:
    """Even if somebody passed ids as a label: the first thousand are told apart, the rest are `other`."""
    metrics = Metrics()
    name = "querywarden_clients_assessed_total"
    for number in range(MAX_SERIES):
        metrics.add(name, model=f"m{number}")
    before = series(metrics, name)
    for number in range(1_000_000):
        metrics.add(name, model=f"acct-{number}")
    assert series(metrics, name) == before + 1  # `other`
    assert b'model="other"} 1e+06' in metrics.text()
    metrics.add(name, model="m5")
    assert b'model="m5"} 2.0' in metrics.text()


@pytest.mark.parametrize("name", METRICS)
def test_what_is_asked_for_is_what_the_registry_shows(name: str) -> None:
    kind, labels, _ = METRICS[name]
    metrics, one, other = Metrics(), dict.fromkeys(labels, "one"), dict.fromkeys(labels, "other")
    if kind == "histogram":
        metrics.observe(name, 2.5, **one)
        name = f"{name}_sum"
    else:
        metrics.set(name, 2.5, **one) if kind == "gauge" else metrics.add(name, 2.5, **one)
    assert metrics.value(name, **one) == metrics.registry.get_sample_value(name, one) == 2.5
    if labels:
        assert metrics.value(name, **other) is None


def test_a_tally_is_the_histogram_that_prometheus_has() -> None:
    """Edges belong to the bucket below, as in the client library; what is above all of them is in the last."""
    ours, theirs = Tally("t_seconds", "t", (0.1, 1.0)), CollectorRegistry()
    histogram = Histogram("t_seconds", "t", registry=theirs, buckets=(0.1, 1.0))
    mine = CollectorRegistry()
    mine.register(ours)
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        ours.observe(value)
        histogram.observe(value)
    told = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(mine).decode().splitlines() == told
