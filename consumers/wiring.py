"""Settings → adapters: the only place that names an adapter.

Rules: nothing is decided here. A scheme of a URL picks an adapter, settings become its arguments, `stack` closes what was opened. An
adapter is imported when it is asked for, so that a replay needs no Kafka and a service no SQLite.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumers import config, paths, terminal
from consumers.errors import CorruptState, Refused, WrongUse
from consumers.tracing import spans_of, watched

if TYPE_CHECKING:
    from consumers.alarms import Alarms
    from consumers.alerts import AlertSink
    from consumers.alerts.delivery import OutboxWorker
    from consumers.detect.step import Detect
    from consumers.ingest import loop as ingest_process
    from consumers.ingest.step import Ingest
    from consumers.log import QueryLog
    from consumers.metrics import Metrics
    from consumers.records.heartbeat import HeartbeatPublisher
    from consumers.secrets import Secrets
    from consumers.store import OutboxAlert, Store
    from consumers.tracing import Spans
    from detector.baseline import Baseline

log = logging.getLogger("querywarden.wiring")


def halves(settings: config.Settings, baselines: Mapping[str, Baseline]) -> tuple[Ingest, Detect]:
    """The pure halves of ingest and detect, as the settings say."""
    from consumers.detect.step import Detect
    from consumers.fit import read_personas
    from consumers.ingest.admission import Limits
    from consumers.ingest.step import Ingest
    from consumers.secrets import Secrets
    from detector.policy import Policy

    secrets = Secrets.load(settings.secrets_path, create=True)
    reading = Ingest(
        baselines=baselines,
        secrets=secrets,
        tenant=settings.tenant,
        horizon_days=settings.horizon_days,
        memory_days=settings.memory_days,
        admit_unknown=settings.unknown_models == "ignore",
        limits=Limits(settings.admission.new_clients_an_hour, settings.admission.clients),
    )
    personas = read_personas(Path(settings.personas)) if settings.personas else {}
    return reading, Detect(
        baselines, secrets, Policy(settings.false_alarm_budget, settings.mode), dict(settings.modes), personas
    )


def baselines_of(settings: config.Settings) -> Mapping[str, Baseline]:
    from consumers.fit import load_baselines

    baselines = load_baselines(settings.baselines)
    if not baselines:
        raise WrongUse("no baselines: set QUERYWARDEN_BASELINES or `baselines` to files or folders of *.baseline")
    say_limits(settings, baselines)
    return baselines


def say_limits(settings: config.Settings, baselines: Mapping[str, Baseline]) -> None:
    """Say in words what the baselines can't support."""
    for model, baseline in baselines.items():
        if not baseline.nulls.calibrated:
            terminal.err.print(
                f"model {model}: UNCALIBRATED, the scores were calibrated on simulated clients only; nothing is blocked",
                soft_wrap=True,
            )
        elif not baseline.nulls.supports(settings.false_alarm_budget):
            terminal.err.print(
                f"model {model}: {baseline.nulls.clients} calibration clients are too few for a lifetime budget of "
                f"{settings.false_alarm_budget:g}: below {1 / baseline.nulls.clients:.2g} the p-values rest on a tail model",
                soft_wrap=True,
            )


def secrets_of(settings: config.Settings, store: Store) -> Secrets:
    """The secrets, checked against the store: with others nothing in it could be read."""
    from consumers.secrets import Secrets

    secrets = Secrets.load(settings.secrets_path, create=True)
    prepare(store, secrets)
    return secrets


def prepare(store: Store, secrets: Secrets) -> None:
    """Check the store's layout and secrets, and say what could not be checked."""
    store.prepare(secrets.key_id)
    for warning in getattr(store, "warnings", ()):
        log.warning(warning)


@contextlib.contextmanager
def open_store(settings: config.Settings) -> Iterator[Store]:
    """The store that `store.url` names."""
    url = settings.store_url
    scheme = url.partition(":")[0]
    store: Store
    if scheme == "sqlite":
        from consumers.store.embedded import EmbeddedStore

        path = _sqlite_path(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(f"store {path}: {error.strerror}") from error
        store = EmbeddedStore(path)
    elif scheme in ("redis", "rediss", "redis+cluster", "rediss+cluster"):
        from consumers.store.redis import connect

        store = connect(url, timeout_s=settings.store.timeout_s, min_replicas=settings.store.min_replicas)
    else:
        raise WrongUse(f"store.url: unknown scheme {scheme!r} (sqlite, redis, rediss, redis+cluster)")
    try:
        yield store
    finally:
        store.close()


def _sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///`` address. Raises WrongUse, Refused."""
    name = url.removeprefix("sqlite:///")
    if name == url or not name.strip("/"):
        raise WrongUse(
            "store.url: sqlite:///name.sqlite (in the working folder) or sqlite:////folder/name.sqlite is meant"
        )
    path = Path(name)
    if path.exists():
        paths.check_regular(path, "store")
    return path


def kafka_connection(settings: config.Settings) -> dict[str, Any]:
    from consumers.log import kafka

    k = settings.kafka
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if file := getattr(k, name):
            paths.check_regular(file, f"kafka.{name}")
    return kafka.connection(
        k.bootstrap_servers,
        security_protocol=k.security_protocol,
        sasl_mechanism=k.sasl_mechanism,
        sasl_username=k.sasl_username,
        sasl_password=k.sasl_password.get_secret_value() if k.sasl_password else None,
        ssl_cafile=k.ssl_cafile,
        ssl_certfile=k.ssl_certfile,
        ssl_keyfile=k.ssl_keyfile,
    )


def open_log(settings: config.Settings) -> QueryLog:
    url = settings.log.url
    if url.startswith("file://"):
        from consumers.log.followed import FollowedFile

        return FollowedFile(url.removeprefix("file://"))
    if not url.startswith("kafka:"):
        raise WrongUse(f"log.url: {config.masked(url)!r} is neither kafka: nor file:///path.jsonl")
    from consumers.log import kafka, topics

    k = settings.kafka
    brokers = kafka_connection(settings)
    if not topics.has_topic(brokers, k.topic):
        if not k.wait_for_topic:
            raise Refused(
                f"kafka.topic: there is no topic {k.topic!r} at {k.bootstrap_servers}, or this account may not see it; "
                "it is never created by reading (kafka.wait_for_topic = true waits for it)"
            )
        log.warning("the query topic does not exist yet", extra={"topic": k.topic})
    topics.ensure_topics(brokers, [k.dead_letter_topic, k.alerts_topic])
    return kafka.KafkaLog(
        brokers,
        topic=k.topic,
        group_id=k.group_id,
        start=k.start,
        group_instance_id=k.group_instance_id,
        max_poll_records=k.max_poll_records,
        session_timeout_ms=k.session_timeout_ms,
        heartbeat_interval_ms=k.heartbeat_interval_ms,
        max_poll_interval_ms=k.max_poll_interval_ms,
    )


def open_sinks(settings: config.Settings, metrics: Metrics | None = None) -> list[AlertSink]:
    from consumers import destinations

    sinks: list[AlertSink] = []
    if settings.alerts.file:
        from consumers.alerts.jsonl import JsonLinesSink

        sinks.append(JsonLinesSink(settings.alerts.file))
    if settings.log.url.startswith("kafka:") and settings.alerts.kafka:
        from consumers.alerts.kafka import KafkaSink
        from consumers.log.topics import ensure_topics

        brokers = kafka_connection(settings)
        ensure_topics(brokers, [settings.kafka.alerts_topic])
        sinks.append(KafkaSink(brokers, settings.kafka.alerts_topic, form=settings.alerts.kafka_format))
    return sinks + destinations.configured(settings.alerts, metrics, lambda: stored_alerts(settings))


def stored_alerts(settings: config.Settings) -> list[OutboxAlert]:
    """Alerts stored in the last 30 days as their receivers see them, oldest first; what can't be read is left out."""
    import msgspec

    from consumers.records.decision import stored_alert
    from consumers.store import OutboxAlert

    found = []
    with open_store(settings) as store:
        secrets = secrets_of(settings, store)
        for alert in store.alerts():
            with contextlib.suppress(CorruptState):
                body = msgspec.json.encode(stored_alert(alert, secrets))
                found.append(OutboxAlert(alert.uid, alert.time_ms, body))
    return found


def run_ingest(
    settings: config.Settings,
    stack: contextlib.ExitStack,
    stop: Callable[[], bool],
    until_end: bool,
    metrics: Metrics,
) -> None:
    from consumers.ingest import loop as ingesting

    reading, _ = halves(settings, baselines_of(settings))
    spans = _spans(stack, "querywarden-ingest")
    store = stack.enter_context(open_store(settings))
    prepare(store, reading.secrets)
    store = watched(store, "store", spans, _took(metrics))
    query_log = open_log(settings)
    stack.callback(query_log.close)
    query_log = watched(query_log, "log", spans)
    letters = None
    if settings.log.url.startswith("kafka:"):
        from consumers.alerts.kafka import DeadLetterTopic

        letters = DeadLetterTopic(kafka_connection(settings), settings.kafka.dead_letter_topic)
        stack.callback(letters.close)
    runner = ingesting.Runner(
        query_log, store, reading, metrics, dead_letters=letters, max_poll_records=settings.kafka.max_poll_records
    )
    _serve_metrics(settings, runner.metrics, lambda: runner.ready, stack)
    beat(stack, store, "ingest", lambda: (_lag(runner), runner.watch.alarms, ()), stopped=runner.stops.words)
    log.info("ingest started")
    ingesting.run(runner, stop, until_end)
    log.info("ingest stopped", extra={"counters": {c.name: dict(c.counters) for c in runner.cells.values()}})


def run_detect(
    settings: config.Settings,
    stack: contextlib.ExitStack,
    stop: Callable[[], bool],
    until_idle: bool,
    metrics: Metrics,
    serve: bool = True,
) -> None:
    from consumers.alerts.rounds import FlaggedClientsGauge, PeriodicRefresh
    from consumers.detect import loop as detecting
    from consumers.detect.overrides import Overrides
    from consumers.records.breaker import Limits

    _, judging = halves(settings, baselines_of(settings))
    spans = _spans(stack, "querywarden-detect")
    store = stack.enter_context(open_store(settings))
    prepare(store, judging.secrets)
    store = watched(store, "store", spans, _took(metrics))
    sinks = open_sinks(settings, metrics)
    for sink in sinks:
        stack.callback(sink.close)
    census = FlaggedClientsGauge(lambda: open_store(settings), metrics)
    rounds = PeriodicRefresh([*sinks, census], settings.alerts.alertmanager.resend_s)
    sinks = [watched(sink, "sink", spans) for sink in sinks]
    stack.callback(rounds.stop)
    rounds.start()
    limits = Limits(settings.breaker.most, settings.breaker.share, settings.breaker.least)
    runner = detecting.Runner(store, judging, sinks, metrics, overrides=Overrides(limits), tenants={settings.tenant})
    if serve:
        _serve_metrics(settings, runner.metrics, lambda: runner.ready, stack)
    beat(stack, store, "detect", lambda: (None, runner.alarms, runner.deliveries.workers))
    log.info("detect started")
    detecting.run(runner, stop, until_idle, threads=True)
    log.info("detect stopped")


def beat(
    stack: contextlib.ExitStack,
    store: Store,
    role: str,
    look: Callable[[], tuple[float | None, Alarms, Sequence[OutboxWorker]]],
    keys: Callable[[], str] = lambda: "",
    stopped: Callable[[], Mapping[str, str]] = dict,
) -> HeartbeatPublisher:
    """Leave signs of life until the stack is closed.

    look     lag, alarms and workers of the process
    keys     those that it knows
    stopped  cells that cannot go on
    """
    from consumers.records.heartbeat import Heartbeat, HeartbeatPublisher, SinkState

    process = f"{role}@{socket.gethostname()}/{os.getpid()}"

    def said() -> Heartbeat:
        lag, alarms, workers = look()
        sinks = [SinkState(one.sink.name, one.waiting(), one.failures > 0) for one in workers]
        raised = sorted(alarms.raised.copy())
        waiting = None if lag is None else int(lag)
        return Heartbeat(process, role, 0, waiting, raised, sinks, dict(stopped()), keys=keys())

    heart = HeartbeatPublisher(store, said)
    stack.callback(heart.stop)
    heart.start()
    return heart


def _lag(runner: ingest_process.Runner) -> float | None:
    return runner.metrics.value("querywarden_lag_records") if runner.ready else None


def _spans(stack: contextlib.ExitStack, service: str) -> Spans | None:
    spans, finish = spans_of(os.environ, service)
    stack.callback(finish)
    return spans


def _took(metrics: Metrics) -> Callable[[str, float], None]:
    return lambda name, seconds: metrics.observe("querywarden_store_seconds", seconds, operation=name)


def _serve_metrics(
    settings: config.Settings, metrics: Metrics, ready: Callable[[], bool], stack: contextlib.ExitStack
) -> None:
    if settings.metrics.bind:
        from consumers.metrics import serve_metrics

        try:
            server = serve_metrics(settings.metrics.bind, metrics, ready)
        except ValueError as error:
            raise WrongUse(f"metrics.bind: {error}") from error
        except OSError as error:
            raise Refused(f"metrics.bind: {settings.metrics.bind}: {error.strerror or error}") from error
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        host, port = server.server_address[:2]
        log.info("metrics", extra={"bind": f"{host!s}:{port}"})


def file_lines(path: Path) -> Iterator[bytes]:
    from consumers.log.files import FileLog

    source = FileLog([str(path)])
    try:
        while not source.finished:
            poll = source.poll(0.0, 5000)
            for cell in poll.assigned:
                source.seek(cell, None)
            for records in poll.batches:
                yield from records.values
    finally:
        source.close()
