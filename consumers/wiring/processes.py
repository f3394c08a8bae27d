"""Build and run ingest, detect, or all three processes in one.

Rules:
* A process gets opened adapters and pure steps. `stack` ends what was begun, in reverse order.
* A process that a command does not run is not imported: `ingest` never loads the HTTP service.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from consumers import config, terminal
from consumers.errors import StoppedCells, WrongUse
from consumers.metrics import Metrics
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.tracing import Spans, instrumented
from consumers.wiring.adapters import open_dead_letters, open_log, open_store, open_translator, prepare
from consumers.wiring.telemetry import observe_seconds, start_heartbeat, start_metrics, start_spans

if TYPE_CHECKING:
    from consumers.detect.step import Detect
    from consumers.ingest.step import Ingest
    from detector.baseline import Baseline

log = logging.getLogger("querywarden.wiring")


# ---------------------------------------------------------------------------------------------------- pure steps


def pure_steps(settings: config.Settings, baselines: Mapping[str, Baseline]) -> tuple[Ingest, Detect]:
    """The pure steps of ingest and detect, as the settings say: a replay runs the same two."""
    from consumers.baselines import read_personas
    from consumers.detect.step import Detect
    from consumers.ingest.admission import AdmissionLimits
    from consumers.ingest.step import Ingest
    from detector.policy import Policy

    secrets = Secrets.load(settings.secrets_path, create=True)
    ingest = Ingest(
        baselines=baselines,
        secrets=secrets,
        tenant=settings.tenant,
        horizon_days=settings.horizon_days,
        memory_days=settings.memory_days,
        admit_unknown=settings.unknown_models == "ignore",
        limits=AdmissionLimits(settings.admission.new_clients_an_hour, settings.admission.clients),
    )
    personas = read_personas(Path(settings.personas)) if settings.personas else {}
    policy = Policy(settings.false_alarm_budget, settings.mode)
    return ingest, Detect(baselines, secrets, policy, dict(settings.modes), personas)


def baselines_of(settings: config.Settings) -> Mapping[str, Baseline]:
    """Load the baselines that the settings name, and warn of what they can't support. Raises WrongUse where there is none."""
    from consumers.baselines import load_baselines

    baselines = load_baselines(settings.baselines)
    if not baselines:
        raise WrongUse("no baselines: set QUERYWARDEN_BASELINES or `baselines` to files or folders of *.baseline")
    warn_of_weak_baselines(settings, baselines)
    return baselines


def warn_of_weak_baselines(settings: config.Settings, baselines: Mapping[str, Baseline]) -> None:
    """Print what the baselines can't support."""
    for model, baseline in baselines.items():
        if not baseline.calibration.calibrated:
            terminal.err.print(
                f"model {model}: UNCALIBRATED, the scores were calibrated on simulated clients only; nothing is blocked",
                soft_wrap=True,
            )
        elif not baseline.calibration.supports(settings.false_alarm_budget):
            terminal.err.print(
                f"model {model}: {baseline.calibration.clients} calibration clients are too few for a lifetime budget of "
                f"{settings.false_alarm_budget:g}: below {1 / baseline.calibration.clients:.2g} the p-values rest on a tail model",
                soft_wrap=True,
            )


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
    from consumers.records.heartbeat import stopped_elsewhere

    step, _ = pure_steps(settings, baselines_of(settings))
    spans = start_spans(stack, "querywarden-ingest")
    store = _open_process_store(settings, stack, step.secrets, spans, metrics)

    def mapped(counts: Counter[str]) -> None:
        for outcome, n in counts.items():
            metrics.add("querywarden_mapped_total", n, outcome=outcome)

    query_log = open_log(settings, open_translator(settings, step.baselines), mapped)
    stack.callback(query_log.close)
    ingest_loop = loop.IngestLoop(
        instrumented(query_log, "log", spans),
        store,
        step,
        metrics,
        dead_letters=open_dead_letters(settings, stack),
        max_poll_records=settings.kafka.max_poll_records,
    )

    def lag() -> float | None:
        return metrics.value("querywarden_lag_records") if ingest_loop.ready else None

    start_metrics(settings, metrics, lambda: ingest_loop.ready, stack)
    alarms, stops = ingest_loop.reporter.watch.alarms, ingest_loop.ownership.stops
    start_heartbeat(stack, store, "ingest", lambda: (lag(), alarms, ()), stopped=stops.words)
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
    from consumers.alerts.rounds import FlaggedClientsGauge, PeriodicRefresh
    from consumers.detect import loop
    from consumers.detect.overrides import Overrides
    from consumers.records.breaker import BreakerLimits
    from consumers.wiring.sinks import open_sinks

    _, step = pure_steps(settings, baselines_of(settings))
    spans = start_spans(stack, "querywarden-detect")
    store = _open_process_store(settings, stack, step.secrets, spans, metrics)
    sinks = open_sinks(settings, metrics)
    for sink in sinks:
        stack.callback(sink.close)
    gauge = FlaggedClientsGauge(lambda: open_store(settings), metrics)
    refresh = PeriodicRefresh([*sinks, gauge], settings.alerts.alertmanager.resend_s)
    stack.callback(refresh.stop)
    refresh.start()
    limits = BreakerLimits(settings.breaker.most, settings.breaker.share, settings.breaker.least)
    runner = loop.Runner(
        store,
        step,
        [instrumented(sink, "sink", spans) for sink in sinks],
        metrics,
        overrides=Overrides(limits),
        tenants={settings.tenant},
    )
    if serve:
        start_metrics(settings, runner.metrics, lambda: runner.ready, stack)
    start_heartbeat(stack, store, "detect", lambda: (None, runner.alarms, runner.deliveries.workers))
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


def _open_process_store(
    settings: config.Settings, stack: contextlib.ExitStack, secrets: Secrets, spans: Spans | None, metrics: Metrics
) -> Store:
    """The store of a long-running process: checked, timed and traced, closed with the stack."""
    store = stack.enter_context(open_store(settings))
    prepare(store, secrets)
    return instrumented(store, "store", spans, observe_seconds(metrics))
