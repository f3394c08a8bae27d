"""The demo: real thefts of a real model, from the first query to the report.

A digit classifier is trained on scanned handwriting (scikit-learn's digits, UCI). Its owner has a sample of ordinary
inputs and the log of 300 honest clients; from these QueryWarden fits a baseline. Then 160 other honest clients and 15
thieves, one of them with ten accounts of one organisation, use the model for two weeks, and QueryWarden reads the log.
All images are real, and each belongs to one side only: training, reference, calibration, test, thieves. What clients
ask is simulated (detector/simulation/); time and names give nobody away. At the end every flagged
client is shown with what it really is, honest ones and missed thieves too.

    make demo            leaves the report on http://127.0.0.1:8080 until Ctrl-C
    make demo ONCE=1     ends when the report is written
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from consumers import config, fit, replay, terminal
from consumers.detect.step import Detect
from consumers.errors import Refused
from consumers.http import server
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.readers.report import write_report
from consumers.secrets import Secrets
from consumers.simulate import Columns, origins, truth_of, truth_path, write_json, write_log, write_reference
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics
from consumers.wiring.serve import build_application
from detector.baseline import Baseline
from detector.policy import FLAGGED, Policy
from detector.simulation.domain import Domain, HonestPools, Rows
from detector.simulation.population import Stream, interleave, simulated_population
from detector.simulation.text_population import TextStream

MODEL = "digits"
SEED = 20
OUT = Path("demo-out")
BUDGET = 0.01
CALIBRATION_CLIENTS, TEST_CLIENTS = 300, 160
START_S = dt.datetime(2026, 3, 2, tzinfo=dt.UTC).timestamp()
TEST_START_S = START_S + 14 * 86_400
ADDRESS = ("127.0.0.1", 8080)

THEFTS = [
    ("noise_uniform", "plain"), ("knockoff_random", "plain"), ("knockoff_adaptive", "plain"), ("copycat", "plain"),
    ("jbda", "plain"), ("trnd", "plain"), ("active_uncertainty", "plain"), ("mixup", "plain"), ("data_free", "plain"),
    ("line_search", "plain"), ("jbda", "drip50"), ("knockoff_random", "drip10"), ("copycat", "slow"),
    ("in_domain", "plain"), ("knockoff_random", "sybil10"),
]  # fmt: skip

console = Console(highlight=False)
Show = Callable[[str, float, float, str], None]
"""(step, done, of, what to say) → None: moves a progress bar."""


@dataclass(frozen=True, slots=True)
class Victim:
    """The model that is asked, and images that nobody asked it for."""

    network: MLPClassifier
    fresh: Rows
    fresh_labels: np.ndarray

    def predict(self, rows: Rows) -> Rows:
        return np.asarray(self.network.predict_proba(rows), dtype=np.float64)


def rescan(rows: Rows, rng: np.random.Generator) -> Rows:
    """The same handwriting scanned again: a little turned, shifted, lighter or darker; in sixteenths, as scans are."""
    n = len(rows)
    angle, (down, right) = rng.uniform(-0.16, 0.16, size=(n, 1)), rng.uniform(-0.6, 0.6, size=(2, n, 1))
    y, x = (axis.ravel() - 3.5 for axis in np.mgrid[0:8, 0:8])
    at_y = 3.5 + np.cos(angle) * y - np.sin(angle) * x + down
    at_x = 3.5 + np.sin(angle) * y + np.cos(angle) * x + right
    layer = np.broadcast_to(np.arange(n)[:, None], at_y.shape)
    moved = ndimage.map_coordinates(rows.reshape(n, 8, 8), [layer, at_y, at_x], order=1)
    light = rng.uniform(0.9, 1.1, size=(n, 1))
    return np.asarray(np.round(np.clip(moved * light, 0, 1) * 16) / 16)


def photo_patches(n: int, rng: np.random.Generator) -> Rows:
    """(n, 64) grey 8 × 8 cuts of two photographs at several sizes: what a thief without digits can get hold of."""
    greys = [photo.mean(axis=2) / 255 for photo in load_sample_images().images]
    out = np.empty((n, 64))
    for i in range(n):
        grey, zoom = greys[rng.integers(len(greys))], int(rng.choice([1, 2, 4, 8, 16]))
        top, left = rng.integers(0, grey.shape[0] - 8 * zoom), rng.integers(0, grey.shape[1] - 8 * zoom)
        cut = grey[top : top + 8 * zoom, left : left + 8 * zoom].reshape(8, zoom, 8, zoom).mean(axis=(1, 3)).ravel()
        out[i] = (cut - cut.min()) / max(float(np.ptp(cut)), 1e-9)
    return out


def prepare(rng: np.random.Generator, show: Show) -> tuple[Victim, list[Stream], dict[str, Path]]:
    """Train the victim, make both populations, write reference, calibration log and test log."""
    show("training the victim", 0, 1, "")
    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    order = rng.permutation(len(images))
    train, reference, calibration, test, thieves, fresh = np.split(order, [500, 900, 1250, 1450, 1650])
    network = MLPClassifier((64,), max_iter=800, random_state=SEED).fit(images[train], labels[train])
    victim = Victim(network, images[fresh], labels[fresh])
    right = (network.predict(victim.fresh) == victim.fresh_labels).mean()
    show("training the victim", 1, 1, f"{right:.0%} right on fresh images")

    sample = np.vstack([images[reference], rescan(images[reference], rng), rescan(images[reference], rng)])
    domain = Domain.of(sample)
    columns = Columns("features", None, (None,) * 64)
    names = list(range(10))
    paths = {name: OUT / f"{name}.jsonl.zst" for name in ("reference", "calibration", "test")}
    write_reference(paths["reference"], MODEL, sample, victim.predict(sample), columns, names, domain)

    foreign = domain.emit(photo_patches(3000, rng))
    streams: list[Stream] = []
    for name, items, clients, thefts, start_s in (
        ("calibration", calibration, CALIBRATION_CLIENTS, [], START_S),
        ("test", test, TEST_CLIENTS, THEFTS, TEST_START_S),
    ):
        asked = victim.predict(images[items]).argmax(axis=1)
        pools = HonestPools(domain, images[items], asked, images[thieves], foreign, rescan)
        streams = simulated_population(
            pools, victim.predict, rng, clients=clients, attacks=thefts, queries=(500, 3000), start_s=start_s
        )

        def written(done: int, of: int, name: str = name, accounts: int = len(streams)) -> None:
            show(f"writing the {name} log", done, of, f"{done:,} queries of {accounts} accounts")

        write_log(
            paths[name], MODEL, interleave(streams), victim.predict, columns, names, domain,
            metadata=origins(streams, np.random.default_rng(SEED)), progress=written,
        )  # fmt: skip
    write_json(truth_path(paths["test"]), {"model_id": MODEL, "clients": truth_of(streams)})
    return victim, streams, paths


def fidelity(victim: Victim, rows: Rows) -> float:
    """How often a copy trained on the victim's answers to these queries (n, 64) agrees with it on fresh images."""
    labels = victim.predict(rows).argmax(axis=1)
    expected = victim.predict(victim.fresh).argmax(axis=1)
    if len(np.unique(labels)) < 2:
        return float((expected == labels[0]).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 50 rounds are a thief's patience, and ours
        copy = MLPClassifier((48,), max_iter=50, random_state=SEED).fit(rows, labels)
    return float((copy.predict(victim.fresh) == expected).mean())


def copies(
    victim: Victim, result: replay.Replayed, streams: Sequence[Stream], show: Show
) -> dict[str, tuple[float, float]]:
    """Thief → fidelity of its copy at the first alarm (NaN if there was none) and in the end."""
    alarm_at = {a["client_id"]: int(a["queries_seen"]) for a in result.alerts if a["kind"] == "client"}
    thieves = [s for s in streams if s.role == "attack"]
    out = {}
    for i, thief in enumerate(thieves, 1):
        early = alarm_at.get(thief.client, 0)
        at_alarm = fidelity(victim, thief.inputs[:early]) if early else float("nan")
        out[thief.client] = at_alarm, fidelity(victim, thief.inputs)
        show("training the thieves' copies", i, len(thieves), f"{i} of {len(thieves)}")
    return out


def learn(model: str, paths: Mapping[str, Path], show: Show) -> Baseline:
    """What ``querywarden fit`` does."""
    name = "fitting the baseline"
    show(name, 0, 1, "")
    with paths["reference"].open("rb") as packed:
        lines = zstandard.ZstdDecompressor().stream_reader(packed).readall().splitlines()
    traffic = FileLog([str(paths["calibration"])])
    fitted = fit.fit(model, lines, traffic, progress=lambda said: show(name, 0, 1, said))
    fit.write_baseline(fitted.baseline, OUT / f"{model}.baseline")
    show(name, 1, 1, "; ".join(fitted.said))
    return fitted.baseline


def watch(baseline: Baseline, log_path: Path, show: Show) -> replay.Replayed:
    """What ``querywarden replay`` does: the same functions, on an embedded store of its own."""
    state = OUT / "state"
    state.mkdir(exist_ok=True)
    for old in state.glob("demo.sqlite*"):
        old.unlink()
    store, log = EmbeddedStore(state / "demo.sqlite"), FileLog([str(log_path)])

    def seen(p: replay.Progress) -> None:
        show("watching the clients", p.fraction or 0, 1, f"{p.queries:,} queries, {p.flagged} flagged")

    try:
        secrets = Secrets.load(state / "secrets", create=True)
        store.prepare(secrets.key_id)
        known = {baseline.model_id: baseline}
        reading = Ingest(baselines=known, secrets=secrets)
        judging = Detect(known, secrets, Policy(BUDGET, "observe"))
        return replay.replay(log, store, reading, judging, progress=seen)
    finally:
        log.close()
        store.close()


def print_table(
    result: replay.Replayed, streams: Sequence[Stream | TextStream], copied: Mapping[str, tuple[float, float]]
) -> None:
    """The ranked table: every flagged client with what it really is, and the thieves that were missed."""
    by_name = {s.client: s for s in streams}
    alarm_at = {a["client_id"]: int(a["queries_seen"]) for a in result.alerts if a["kind"] == "client"}
    wide = console.width >= 120
    titles = ("client", "what it really is", "queries", "alarm at\nquery", "copied\nat alarm", "copied\nin the end")
    columns = [terminal.TableColumn(title, i > 1, whole=i < 2) for i, title in enumerate(titles)]
    if wide:
        columns += [terminal.TableColumn("state"), terminal.TableColumn("p"), terminal.TableColumn("why")]
    else:
        console.print("(each client's reason follows below)")
    rows: list[list[Text]] = []
    reasons: list[Text] = []
    for _, row in replay.ranked(result.scores):
        stream, flagged = by_name[row.client_id], row.decision.state in FLAGGED
        thief = stream.role == "attack"
        if not flagged and not thief:
            continue
        kind = f"{stream.kind} {stream.variant}".removesuffix(" plain").strip()
        mark, style = (
            (("", "red") if flagged else ("MISSED: ", "bold magenta")) if thief else ("HONEST: ", "bold yellow")
        )
        early, late = copied.get(row.client_id, (float("nan"), float("nan")))
        why = row.assessment.evidence[0].text if row.assessment.evidence else "nothing unusual"
        more = [Text(row.decision.state), Text(f"{row.assessment.p_value:.2g}"), Text(why)] if wide else []
        numbers = (
            f"{row.assessment.queries:,}", f"{alarm_at[row.client_id]:,}" if flagged else "–", "–" if np.isnan(early) else f"{early:.0%}",
            "–" if np.isnan(late) else f"{late:.0%}",
        )  # fmt: skip
        rows.append([Text(row.client_id), Text(mark + kind, style=style), *map(Text, numbers), *more])
        reasons.append(Text(f"{row.client_id} {row.decision.state}, p {row.assessment.p_value:.2g}: {why}"))
    terminal.print_rows(columns, rows, console)
    for reason in [] if wide else [Text(), *reasons]:
        console.print(reason)
    thieves = {s.client for s in streams if s.role == "attack"}
    for campaign in (campaigns := replay.campaign_rows(result)):
        caught = len(thieves.intersection(campaign["members"]))
        campaign["truth"] = f"{caught} of {len(campaign['members'])} accounts are a thief's"
    terminal.print_campaigns(campaigns, console)


UNSEEN = (
    "copied: how often a copy, trained by the demo on the answers that the client had got, agrees with the model on fresh images.\n"
    "A thief that owns real digits (in_domain) asks what everybody asks: no detector can tell it by content."
)


def print_verdict(result: replay.Replayed, streams: Sequence[Stream | TextStream], remark: str = UNSEEN) -> None:
    flagged = {row.client_id for _, row in replay.ranked(result.scores) if row.decision.state in FLAGGED}
    thieves = {s.client for s in streams if s.role == "attack"}
    honest = {s.client for s in streams if s.role != "attack"}
    groups = [set(row.members) for row in result.campaigns.values()]
    wrong, named = len(flagged & honest), set().union(*groups) & thieves - flagged
    console.print(
        f"\n[bold]{len(flagged & thieves)} of {len(thieves)}[/] accounts of thieves were flagged, {len(named)} more were named by a "
        f"campaign. Flagged were [bold]{wrong} of {len(honest)}[/] honest clients ({wrong / len(honest):.1%}; the budget is "
        f"{BUDGET:.0%} of a large population, over their whole life), "
        f"and {sum(not g & thieves for g in groups)} campaigns of honest ones.\n"
        f"[dim]{remark}[/]"
    )


def write_settings(model: str) -> Path:
    """Settings of a service on the demo's store; paths are absolute, so that it can be started from anywhere."""
    where, state = OUT / "demo.toml", (OUT / "state").absolute()
    lines = (
        f"state_dir = {json.dumps(str(state))}",
        f"baselines = [{json.dumps(str((OUT / f'{model}.baseline').absolute()))}]",
        f"false_alarm_budget = {BUDGET}",
        f"store = {{ url = {json.dumps('sqlite:///' + str(state / 'demo.sqlite'))} }}",
        f"secrets = {{ file = {json.dumps(str(state / 'secrets'))} }}",
        f'http = {{ bind = "{ADDRESS[0]}:{ADDRESS[1]}", bridge = false }}',
    )
    where.write_text("\n".join(lines) + "\n")
    return where


def serve(model: str, stop: Callable[[], bool]) -> None:
    """The dashboard on the demo's store, by the service itself, on loopback only, until `stop`."""
    settings = config.load(write_settings(model))
    try:
        listener = server.listen(settings.http.bind)
    except Refused as error:
        console.print(f"[yellow]{error}: open the report as a file.[/]", soft_wrap=True)
        return
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        application = build_application(settings, stack, Metrics())
        console.print(
            f"The dashboard is on [bold]http://{ADDRESS[0]}:{ADDRESS[1]}[/] until you press Ctrl-C "
            f"[dim](the same by hand: querywarden serve --config {OUT / 'demo.toml'})[/]",
            soft_wrap=True,
        )
        server.run(application, listener, stop)
    console.print("Stopped.")


def columns() -> tuple[ProgressColumn, ...]:
    """Of the progress bars."""
    return (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[said]}"), TimeElapsedColumn(),
    )  # fmt: skip


def shown(progress: Progress) -> Show:
    """What moves a bar for each step, and adds it when the step begins."""
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: float, of: float, said: str) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=of, said=said)
        progress.update(tasks[name], completed=done, total=of, said=said)

    return show


def main() -> int:
    began = time.monotonic()
    page = OUT / "report"
    page.mkdir(parents=True, exist_ok=True)
    console.print("[bold]QueryWarden demo[/]: who is copying the digit classifier?\n")
    with threadpool_limits(1), Progress(*columns(), console=console) as progress:
        show = shown(progress)
        victim, streams, paths = prepare(np.random.default_rng(SEED), show)
        baseline = learn(MODEL, paths, show)
        result = watch(baseline, paths["test"], show)
        copied = copies(victim, result, streams, show)

    console.print()
    print_table(result, streams, copied)
    print_verdict(result, streams)
    note = (
        "The demo: real images and a real model; what honest clients and thieves ask is simulated. The truth is known "
        "here and shown beside each client; QueryWarden did not see it."
    )
    title = "Who is copying the digit classifier?"
    report = replay.report_of(result, {MODEL: baseline}, BUDGET, title=title, truth=truth_of(streams), notes=[note])
    write_report(page / "index.html", report)
    console.print(
        f"\nReport: {page / 'index.html'} · logs, truth, baseline: {OUT}/ · {time.monotonic() - began:.0f} s in all"
    )
    for line in (
        f"fit --model-id digits --reference {paths['reference']} --traffic {paths['calibration']} --out digits.baseline",
        f"replay --baseline digits.baseline {paths['test']} --report report.html",
    ):
        console.print(f"[dim]the same by hand: querywarden {line}[/]", soft_wrap=True)
    if os.environ.get("ONCE", "") in ("", "0"):
        with terminal.stopping() as stop:
            serve(MODEL, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
