"""Build and run ingest, detect, or all three processes in one.

Rules:
* A process gets opened adapters and pure steps. `stack` ends what was begun, in reverse order.
* A process that a command does not run is not imported: `ingest` never loads the HTTP service.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from consumers import config, terminal
from consumers.errors import StoppedCells, WrongUse
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.telemetry.metrics import Metrics, serve_metrics
from consumers.telemetry.tracing import Spans, instrumented, spans_of
from consumers.wiring.adapters import open_log, open_store, prepare
from consumers.wiring.heartbeats import start_heartbeat

if TYPE_CHECKING:
    from consumers.detect.step import Detect
    from consumers.enforcement_settings import ExposureLimits
    from consumers.ingest.step import Ingest
    from detector.baseline import Baseline
    from detector.policy import ExposureBudget

log = logging.getLogger("querywarden.wiring")

REFRESH_STOP_S = 10.0
"""How long the end waits for a sink that is being refreshed."""


# ---------------------------------------------------------------------------------------------------- pure steps


def pure_steps(
    settings: config.Settings, baselines: Mapping[str, Baseline], personas: Mapping[str, str]
) -> tuple[Ingest, Detect]:
    """The pure steps of ingest and detect, as the settings say: a replay runs the same two. personas: client → declared use."""
    from consumers.baselines import read_plans
    from consumers.detect.step import Detect
    from consumers.ingest.admission import AdmissionLimits
    from consumers.ingest.step import Ingest
    from consumers.records.links import OwnKeys
    from consumers.sharing_keys import load_sharing_keys
    from detector.policy import Policy

    secrets = Secrets.load(settings.secrets_path, create=True, tenant=settings.tenant)
    ingest = Ingest(
        baselines=baselines,
        secrets=secrets,
        tenant=settings.tenant,
        horizon_days=settings.horizon_days,
        memory_days=settings.memory_days,
        admit_unknown=settings.unknown_models == "ignore",
        limits=AdmissionLimits(settings.admission.new_clients_an_hour, settings.admission.clients),
        link_keys=OwnKeys(settings.links.who, settings.links.where),
        sharing=load_sharing_keys(settings.links.sharing_keys),
    )
    limits = settings.exposure
    policy = Policy(settings.false_alarm_budget, settings.mode, _budget_of(limits))
    exposures = {model: _budget_of(one) for model, one in limits.models.items()}
    plans = read_plans(limits.plans)
    return ingest, Detect(
        baselines, secrets, policy, dict(settings.modes), dict(personas), exposures=exposures, plans=plans
    )


def _budget_of(limits: ExposureLimits) -> ExposureBudget:
    """The budgets of a client, and of all clients together."""
    from detector.policy import ExposureBudget

    return ExposureBudget(
        limits.alert,
        limits.throttle,
        limits.queries_alert,
        limits.queries_throttle,
        limits.queries_total,
        limits.tokens_alert,
        limits.tokens_throttle,
    )


def configured_steps(settings: config.Settings) -> tuple[Ingest, Detect]:
    """The pure steps with the baselines and personas that the settings name. Raises WrongUse where there is no baseline."""
    from consumers.baselines import limits_of, load_baselines, read_personas

    baselines = load_baselines(settings.baselines)
    if not baselines:
        raise WrongUse("no baselines: set QUERYWARDEN_BASELINES or `baselines` to files or folders of *.baseline")
    personas = read_personas(settings.personas)
    terminal.warn(limits_of(baselines, settings.false_alarm_budget))
    return pure_steps(settings, baselines, personas)


# ----------------------------------------------------------------------------------------------------- processes


def run_ingest(
    settings: config.Settings,
    stack: contextlib.ExitStack,
    stop: Callable[[], bool],
    until_end: bool,
    metrics: Metrics,
) -> None:
    """Open log and store, then ingest until `stop` or, with `until_end`, until what was in the log at the start is committed."""
    from consumers.ingest import loop
    from consumers.records.baselines_in_force import BaselinesInForce
    from consumers.records.heartbeat import stopped_elsewhere

    step, _ = configured_steps(settings)
    store, spans = open_process_store(settings, stack, step.secrets, metrics, "querywarden-ingest")
    mapped = functools.partial(metrics.add_each, "querywarden_mapped_total", "outcome")
    in_force = BaselinesInForce(step.baselines, dict(step.baselines), step.secrets, settings.tenant)
    query_log, dead_letters = open_log(settings, stack, step.baselines, mapped, store)
    ingest_loop = loop.IngestLoop(
        instrumented(query_log, "log", spans),
        store,
        step,
        metrics,
        dead_letters=dead_letters,
        max_poll_records=settings.kafka.max_poll_records,
        follow=functools.partial(in_force.changed, store),
    )

    def lag() -> float | None:
        return metrics.value("querywarden_lag_records") if ingest_loop.ready else None

    serve_metrics(settings.metrics.bind, metrics, lambda: ingest_loop.ready, stack)
    alarms, stops = ingest_loop.reporter.watch.alarms, ingest_loop.ownership.stops
    start_heartbeat(stack, store, "ingest", lambda: (lag(), alarms, ()), stopped=stops.words)
    gc.freeze()  # as in `run_detect`
    log.info("ingest started")
    loop.run(ingest_loop, stop, until_end, stopped_elsewhere=lambda: stopped_elsewhere(store))
    cells = ingest_loop.ownership.cells.values()
    log.info("ingest stopped", extra={"counters": {c.name: dict(c.counters) for c in cells}})


def run_detect(
    settings: config.Settings,
    stack: contextlib.ExitStack,
    stop: Callable[[], bool],
    until_idle: bool,
    metrics: Metrics,
    serve: bool = True,
) -> None:
    """Open store and sinks, then detect until `stop` or, with `until_idle`, until no touched client is left.

    serve: whether metrics are served here, and not by a service in the same process
    """
    from consumers.alerts.rounds import FlaggedClientsGauge, refresh_periodically
    from consumers.detect import loop
    from consumers.detect.overrides import Overrides
    from consumers.records.baselines_in_force import BaselinesInForce
    from consumers.records.breaker import BreakerLimits
    from consumers.wiring.operators import operations_of
    from consumers.wiring.sinks import open_sinks

    _, step = configured_steps(settings)
    store, spans = open_process_store(settings, stack, step.secrets, metrics, "querywarden-detect")
    in_force = BaselinesInForce(step.baselines, dict(step.baselines), step.secrets, settings.tenant)
    step.baselines = in_force.live
    sinks = open_sinks(settings, metrics)
    for sink in sinks:
        stack.callback(sink.close)
    gauge = FlaggedClientsGauge(lambda: open_store(settings), metrics)
    refresh = refresh_periodically([*sinks, gauge], settings.alerts.alertmanager.resend_s)
    stack.callback(refresh.stop, REFRESH_STOP_S)
    refresh.start()
    limits = BreakerLimits(settings.breaker.most, settings.breaker.share, settings.breaker.least)
    runner = loop.Runner(
        store,
        step,
        [instrumented(sink, "sink", spans) for sink in sinks],
        metrics,
        overrides=Overrides(limits),
        joins=operations_of(settings, store, step.secrets),
        follow=functools.partial(in_force.changed, store),
        tenants={settings.tenant},
    )
    if serve:
        serve_metrics(settings.metrics.bind, runner.metrics, lambda: runner.ready, stack)
    start_heartbeat(stack, store, "detect", lambda: (None, runner.alarms, runner.deliveries.workers))
    gc.freeze()  # what was built lives as long as the process: no collection during a turn walks through it
    log.info("detect started")
    loop.run(runner, stop, until_idle, threads=True)
    log.info("detect stopped")


def run_serve(
    settings: config.Settings, stack: contextlib.ExitStack, stop: Callable[[], bool], metrics: Metrics
) -> None:
    """Answer gateways, dashboards and people over HTTP until `stop`."""
    from consumers.wiring.serve import run_http

    run_http(settings, stack, stop, metrics)


def run_all(settings: config.Settings, stop: Callable[[], bool], until_end: bool, metrics: Metrics) -> None:
    """Ingest, detect and serve, a thread each; the first that fails ends all. With `until_end`, until all was assessed.

    Cells that stopped before their end fail nothing: what was read is assessed first, then they are named.
    """
    failed: list[BaseException] = []
    stopped: list[StoppedCells] = []
    read, assessed = threading.Event(), threading.Event()

    def ending() -> bool:
        return stop() or bool(failed)

    def started(name: str, work: Callable[[contextlib.ExitStack], None], after: threading.Event) -> threading.Thread:
        def working() -> None:
            try:
                with contextlib.ExitStack() as stack:
                    work(stack)
            except StoppedCells as cells:
                stopped.append(cells)
            except BaseException as error:  # noqa: BLE001 — raised again below, in the main thread
                failed.append(error)
            finally:
                after.set()

        thread = threading.Thread(target=working, name=name)
        thread.start()
        return thread

    def detecting(stack: contextlib.ExitStack) -> None:
        run_detect(settings, stack, lambda: ending() or read.is_set(), False, metrics, serve=False)
        if until_end and not ending():
            run_detect(settings, stack, ending, True, metrics, serve=False)

    threads = [
        started(
            "serve", lambda s: run_serve(settings, s, lambda: ending() or assessed.is_set(), metrics), threading.Event()
        ),
        started("ingest", lambda s: run_ingest(settings, s, ending, until_end, metrics), read),
        started("detect", detecting, assessed),
    ]
    for thread in threads:
        while thread.is_alive():  # in slices, so that the main thread hears signals
            thread.join(0.2)
    if failed or stopped:
        raise [*failed, *stopped][0]


def open_process_store(
    settings: config.Settings, stack: contextlib.ExitStack, secrets: Secrets, metrics: Metrics, service: str
) -> tuple[Store, Spans | None]:
    """The store of a long-running process, checked, timed and traced, and the spans of its traces; both end with the stack."""
    opened = stack.enter_context(open_store(settings))
    prepare(opened, secrets)
    spans, finish = spans_of(os.environ, service)
    stack.callback(finish)

    def observe(name: str, seconds: float) -> None:
        metrics.observe("querywarden_store_seconds", seconds, operation=name)

    return instrumented(opened, "store", spans, observe), spans
