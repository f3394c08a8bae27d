"""The command line: it turns arguments into calls, and results into tables and exit statuses.

The commands themselves are short. `wiring` opens what a command needs, and each larger command has a module in `commands/`.

Rules:
* Exit status 0 means done, 1 failed, 2 wrong call. An error is one clear line on standard error.
* Results go to standard output, everything else to standard error. A terminal gets progress bars, anything else gets JSON log lines.
* Heavy imports happen inside the command, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from consumers import config, paths, terminal
from consumers.commands import explain, gateways, operators, recalibration, schema, serving, upkeep
from consumers.commands import secrets as key_material
from consumers.commands.groups import Grouped
from consumers.commands.options import ConfigFile, Exclude, check_folders
from consumers.errors import CorruptState, QueryWardenError, WrongUse
from consumers.wiring import adapters, processes
from detector.errors import DetectorError

app = typer.Typer(
    name="querywarden",
    cls=Grouped,
    help="Flags clients whose prediction queries look like model extraction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Show, check and list the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(gateways.app, name="gateway")
app.add_typer(schema.app, name="schema")
app.add_typer(key_material.app, name="secrets")
app.command()(serving.serve)
app.command()(operators.doctor)
app.command()(recalibration.recalibrate)
_command: Callable[..., None]
for _command in (upkeep.snapshot, upkeep.restore, upkeep.rebuild, upkeep.erase, upkeep.export):
    app.command()(_command)
for _command in (explain.explain, explain.evidence, explain.backtest):
    app.command()(_command)
app.command("verify-evidence")(explain.verify_evidence)
for _name, _group in operators.GROUPS.items():
    app.add_typer(_group, name=_name)

log = logging.getLogger("querywarden.cli")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; ends the process with the exit status of the contract."""
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except WrongUse as error:
        code = _complain(str(error), 2)
    except (QueryWardenError, DetectorError) as error:
        code = _complain(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted", 130)
    except BrokenPipeError:
        code = 141
    except OSError as error:
        if error.filename is None:  # no file that somebody named: a bug, or the machine
            raise
        code = _complain(f"{error.filename}: {error.strerror}", 1)
    except Exception as error:
        # the framework's own usage errors carry their exit code and message
        usage = getattr(error, "format_message", None)
        if usage is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            terminal.err.print(Text(usage()), soft_wrap=True)
            sys.exit(2)
        code = _complain(usage(), 2)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, code: int) -> int:
    terminal.err.print(
        Text(f"querywarden: {' '.join(text.split())}", style="red" if terminal.err.is_terminal else ""), soft_wrap=True
    )
    return code


# ------------------------------------------------------------------------------------------------------ commands


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        terminal.out.print(f"querywarden {importlib.metadata.version('querywarden')}")
        raise typer.Exit


@app.command()
def fit(
    out_path: Annotated[Path, typer.Option("--out", help="Baseline file to write.")],
    model_id: Annotated[str, typer.Option("--model-id", help="Id of the model that the baseline is for.")],
    reference: Annotated[
        Path | None, typer.Option(help="Honest inputs with the answers of the model (JSON lines, .gz, .zst, Parquet).")
    ] = None,
    traffic: Annotated[
        list[Path] | None, typer.Option(help="Query log of presumably honest clients; may be given several times.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(help="JSON file that declares columns: name, kind, lower, upper, grain, categories.")
    ] = None,
    persona: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the declared use of client ids (explainer, qa, …); each use gets null distributions of its own."
        ),
    ] = None,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(help="Seed for the random parts of the fit.")] = 0,
    exposure: Annotated[
        bool,
        typer.Option(
            help="Simulate thefts, so that the exposure of each client (how well its queries could have copied the model) can be estimated."
        ),
    ] = True,
    trust_traffic: Annotated[
        bool,
        typer.Option(
            "--trust-traffic",
            help="Calibrate on every client of the traffic, even on those with more odd queries than any simulated honest tool.",
        ),
    ] = False,
) -> None:
    """Fit a baseline, a file that describes the honest use of a model."""
    from consumers import fit as fitting
    from consumers.commands.understood import print_misfits, print_refused, print_understood
    from consumers.log.files import FileLog
    from consumers.log.references import lines_of

    check_folders(out_path)
    declared = paths.read_json(schema) if schema else None
    with terminal.spinner() as say:
        fitted = fitting.fit(
            model_id,
            lines_of(FileLog([str(reference)])) if reference else None,
            FileLog([str(p) for p in traffic]) if traffic else None,
            declared=declared,
            personas=fitting.read_personas(persona) if persona else None,
            excluded=fitting.read_excluded(exclude) if exclude else frozenset(),
            seed=seed,
            exposure=exposure,
            trust_traffic=trust_traffic,
            progress=say,
        )
        say("writing")
        fitting.write_baseline(fitted.baseline, out_path)
    baseline = fitted.baseline
    print_understood(fitted.understood)
    for line in fitted.said:
        terminal.err.print(terminal.plain(line), soft_wrap=True)
    recalibration.print_review(fitted.review)
    for what, refused in fitted.refused.items():
        print_refused(refused, what)
    print_misfits(fitted.misfits, "the traffic", fitted.expected)
    terminal.out.print(
        f"{out_path}: baseline for {model_id}, map {baseline.map_id}, calibration {baseline.nulls_version}",
        soft_wrap=True,
    )
    if any(refused.hopeless for refused in fitted.refused.values()):
        raise typer.Exit(1)


@app.command()
def replay(
    logs: Annotated[
        list[str],
        typer.Argument(
            help="Query logs in the order of time (JSON lines, .gz, .zst, Parquet); - reads standard input."
        ),
    ],
    baseline: Annotated[
        list[str] | None, typer.Option(help="Baseline file or folder; may be given several times.")
    ] = None,
    alerts: Annotated[
        Path | None,
        typer.Option(help="Write the first alert of each finding to this file: JSON lines in the order of event time."),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write the scores to this file: one JSON object per client and line.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a report with plots to this HTML file.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Keep the state in this SQLite file. A log that was read into it before, and may have grown, is resumed."
        ),
    ] = None,
    false_alarm_budget: Annotated[
        float | None, typer.Option(help="Share of honest clients that may be flagged, each over its whole lifetime.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="Strongest decision that gateways would enforce: observe, alert, throttle or block."),
    ] = None,
    config_file: ConfigFile = None,
) -> None:
    """Read query logs, assess every client, and show which clients look like model extraction, and why."""
    from consumers import replay as replaying
    from consumers.commands.understood import nothing_counted, print_misfits, print_refused
    from consumers.fit import load_baselines
    from consumers.log.files import FileLog
    from consumers.misfits import learned
    from consumers.readers.report import write_report
    from consumers.store.embedded import EmbeddedStore

    check_folders(alerts, scores, report, store)
    settings = config.load(config_file, false_alarm_budget=false_alarm_budget, mode=mode)
    baselines = load_baselines(baseline or list(settings.baselines))
    if not baselines:
        raise WrongUse("no baseline: give --baseline FILE (querywarden fit makes one)")
    processes.warn_of_weak_baselines(settings, baselines)
    source = FileLog(logs, resumable=store is not None)
    with contextlib.ExitStack() as stack:
        where = store or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="querywarden-"))) / "replay.sqlite"
        kept = EmbeddedStore(where)
        stack.callback(kept.close)
        stack.callback(source.close)
        ingesting, detecting = processes.pure_steps(settings, baselines)
        kept.prepare(ingesting.secrets.key_id)
        with terminal.bar("replay") as advance:
            result = replaying.replay(source, kept, ingesting, detecting, progress=advance)
        rows = replaying.ranked(result.scores)
        if result.resumed is not None:
            terminal.err.print(f"resumed at line {result.resumed:,}: this log was read before into {where}")
        if source.partial:
            terminal.err.print("the last line is incomplete; the next replay will read it")
        if alerts:
            replaying.write_lines(alerts, result.alerts)
        if scores:
            replaying.write_lines(scores, (row.score(model) for model, row in rows))
        if report:
            write_report(
                report,
                replaying.report_of(
                    result,
                    baselines,
                    settings.false_alarm_budget,
                    title="Replay of " + ", ".join(Path(p).name for p in logs),
                ),
            )
    if rows:
        terminal.print_ranked([row.score(model) for model, row in rows], replaying.campaign_rows(result))
    else:
        terminal.out.print(nothing_counted(result.counters))
    terminal.print_counters(result.counters, result.reasons, [(d.place, d.reason, d.detail) for d in result.dead])
    print_refused(result.refusals, "the log")
    for model, misfits in result.misfits.items():
        print_misfits(misfits, f"model {model}", learned(baselines[model].map))
    if result.hopeless:
        raise typer.Exit(1)


@app.command()
def ingest(
    config_file: ConfigFile = None,
    until_end: Annotated[
        bool,
        typer.Option("--until-end", help="Stop as soon as all records that the log held at the start are committed."),
    ] = False,
) -> None:
    """Read the query log and keep statistics of each client. It runs until SIGTERM."""
    _run(processes.run_ingest, config_file, until_end)


@app.command()
def detect(
    config_file: ConfigFile = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Stop as soon as no client has queries that were not assessed.")
    ] = False,
) -> None:
    """Assess clients with new queries, decide, and send alerts. It runs until SIGTERM."""
    _run(processes.run_detect, config_file, until_idle)


@app.command()
def run(
    config_file: ConfigFile = None,
    until_end: Annotated[
        bool,
        typer.Option(
            "--until-end", help="Stop as soon as all records that the log held at the start are committed and assessed."
        ),
    ] = False,
) -> None:
    """Run ingest, detect and serve in one process. It runs until SIGTERM."""
    from consumers.metrics import Metrics

    settings = _service(config_file)
    with terminal.stopping() as stop:
        processes.run_all(settings, stop, until_end, Metrics())


@app.command()
def clients(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, in the format of replay --scores.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="List clients of this model only.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="List only the N most suspicious clients, whatever their state.")
    ] = None,
    config_file: ConfigFile = None,
) -> None:
    """List the clients of the store, most suspicious first, and the campaigns."""
    from consumers.commands import listings

    settings = config.load(config_file)
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        found = listings.read(store, secrets, settings.tenant, model, limit, _set_aside)
    if as_json:
        terminal.show(found.clients, True, lambda rows: None)
        if len(found.clients) < found.total:
            terminal.err.print(terminal.counted(len(found.clients), found.total, "clients"))
    elif limit is None:
        terminal.print_ranked(found.clients, found.campaigns)
    else:
        terminal.print_clients(found.clients, found.total, found.flagged, "--limit N shows more")
        terminal.print_campaigns(found.campaigns)


@app.command()
def alerts(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, in the format of replay --alerts.")
    ] = False,
    updates: Annotated[bool, typer.Option("--updates", help="List later alerts of the same finding too.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="List only the N newest alerts.")] = None,
    stix_path: Annotated[
        Path | None,
        typer.Option(
            "--stix",
            help="Write the alerts to this file as a STIX 2.1 bundle instead of listing them (needs the extra [stix]).",
        ),
    ] = None,
    config_file: ConfigFile = None,
) -> None:
    """List the alerts of the last 30 days, oldest first."""
    from consumers.records.alert import stored_alert

    check_folders(stix_path)
    settings = config.load(config_file)
    found = []
    with adapters.open_store(settings) as store:
        secrets = adapters.secrets_of(settings, store)
        for alert in store.alerts():
            with _set_aside():
                found.append(stored_alert(alert, secrets))
    found = sorted(
        (a for a in found if updates or a["update"] == 0), key=lambda a: (a["time"], a["alert_id"], a["update"])
    )
    if stix_path is not None:
        from consumers.alerts import stix
        from consumers.wiring.sinks import stored_alerts

        told = stix.write(stix_path, stored_alerts(settings))
        terminal.out.print(f"{stix_path}: {told} findings", soft_wrap=True)
        return
    shown = found if limit is None else found[-limit:]
    if as_json and len(shown) < len(found):
        terminal.err.print(terminal.counted(len(shown), len(found), "alerts"))
    terminal.show(shown, as_json, lambda rows: terminal.print_alerts(rows, len(found)))


@app.command()
def simulate(
    out_path: Annotated[Path, typer.Option("--out", help="Query log to write (.jsonl, .jsonl.gz, .jsonl.zst).")],
    reference: Annotated[Path, typer.Option(help="Reference file; the simulated queries are drawn from its rows.")],
    clients: Annotated[int, typer.Option(help="Number of honest clients.")] = 300,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="Attack to simulate, FAMILY or FAMILY/VARIANT; may be given several times; default: every family."
        ),
    ] = None,
    model_id: Annotated[
        str | None, typer.Option(help="Model id of the events; default: the model id of the reference.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for everything random.")] = 0,
    linked: Annotated[
        bool,
        typer.Option(
            "--linked", help="Add metadata to the events; the accounts of one theft then share an organisation."
        ),
    ] = False,
) -> None:
    """Write a query log of simulated honest clients and extraction attacks, and a file with the truth about each client."""
    from consumers import simulate as simulating

    chosen = attack or simulating.PLAIN_ATTACKS
    with terminal.spinner() as say:
        say("simulating")
        truth = simulating.simulate(
            reference, out_path, model_id=model_id, clients=clients, seed=seed, attacks=chosen, linked=linked
        )
    thieves = sum(t["role"] == "attack" for t in truth["clients"].values())
    terminal.out.print(
        f"{out_path}: {len(truth['clients'])} clients, {thieves} of them attacking accounts; truth in {simulating.truth_path(out_path)}",
        soft_wrap=True,
    )


@config_app.command("show")
def config_show(config_file: ConfigFile = None) -> None:
    """Show the settings in force; secrets are masked."""
    terminal.print_json(config.shown(config.load(config_file)))


@config_app.command("check")
def config_check(config_file: ConfigFile = None) -> None:
    """Check that the settings are well-formed."""
    config.load(config_file)
    terminal.out.print("settings are well-formed")


@config_app.command("schema")
def config_schema() -> None:
    """List every setting with its environment variable, default and meaning."""
    terminal.print_table(("TOML", "environment", "default", "meaning"), config.rows())


# ------------------------------------------------------------------------------------------------------- pieces


def _service(config_file: Path | None) -> config.Settings:
    settings = config.load(config_file)
    terminal.json_logs()
    return settings


def _run(process: Callable[..., None], config_file: Path | None, ends: bool) -> None:
    """One process of the service, until SIGTERM or, with `ends`, until nothing is left to do."""
    from consumers.metrics import Metrics

    settings = _service(config_file)
    with terminal.stopping() as stop, contextlib.ExitStack() as stack:
        process(settings, stack, stop, ends, Metrics())


@contextlib.contextmanager
def _set_aside() -> Iterator[None]:
    """One damaged row must not hide the others: say so and go on."""
    try:
        yield
    except CorruptState as error:
        _complain(f"set aside: {error}", 1)
