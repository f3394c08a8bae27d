"""Replay query logs from files: ingest and detect take turns on the embedded store, with the log's own time as clock.

Rules:
* The step functions are those of the service. Nothing is decided here.
* Alerts are written at the end, in the order of event time: the log is read in the order given, and detect looks every `LOOK_EVERY`
  queries.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from consumers import atomic_file
from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.errors import InvalidInput, Refused
from consumers.ingest import loop as ingest
from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.log import FileQueryLog, Records, prefix
from consumers.log.formats import Decoded
from consumers.misfits import Misfits
from consumers.readers.public import alert_of, client_of
from consumers.readers.report import Coverage, Report, ReportedCampaign, ReportedClient
from consumers.records import decision
from consumers.records.alert import stored_alert
from consumers.records.decision import StoredDecision, is_campaign, stored_decision
from consumers.records.ledger import MARKS
from consumers.refused_lines import HOPELESS, RefusedLines
from consumers.secrets import Secrets
from consumers.store import Checkpoint, DeadLetter, ServiceStore
from detector.baseline import Baseline
from detector.policy import FLAGGED

LOOK_EVERY = 16_000
"""Queries between two looks at the clients that changed; a poll holds as many, or what fits into its bytes."""
CAMPAIGNS_EVERY = 50_000
"""Queries between two passes over the rows in search of campaigns; one more comes at the end."""
DEAD_LETTERS_SHOWN = 10
PATIENCE = 5
"""So often in a row the store may not answer; a replay then fails, for nobody is there to mend it."""


@dataclass(slots=True)
class Progress:
    """What the progress bar shows. fraction: of the log's bytes, None when unknown."""

    fraction: float | None
    queries: int
    dead: int
    flagged: int


@dataclass(slots=True)
class Replayed:
    """Outcome of a replay.

    scores    one row a client, as stored
    campaigns one row a campaign that is not over, as stored
    alerts    first alerts, in event-time order
    dead      the first refused records; reasons: how many by reason code
    refusals  what this run refused, with an example
    misfits   model → queries of this run that do not fit its schema
    resumed   offset at which an earlier replay of the same log had stopped, None for a fresh one
    """

    scores: dict[tuple[str, str], StoredDecision]
    campaigns: dict[tuple[str, str], StoredDecision]
    alerts: list[dict[str, Any]]
    counters: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    dead: list[DeadLetter] = field(default_factory=list)
    resumed: int | None = None
    refusals: RefusedLines = field(default_factory=RefusedLines)
    misfits: Mapping[str, Misfits] = field(default_factory=dict)

    @property
    def hopeless(self) -> bool:
        """Most of the log was refused, in this run and in those that it resumed."""
        return self.counters["dead"] > HOPELESS * self.counters["produced"]


@dataclass(slots=True)
class _Looks:
    """A look at all clients before the log's time turns to a new half-horizon window, however many windows a poll spans.

    What leaves a client's horizon takes its running maxima along. The service looks twice a second; a replay reads months in a second.

    window  that of the newest row that was committed, None before the first
    """

    ingesting: Ingest
    judging: detect.Runner
    window: int | None = None

    def parts(self, cell: Cell, records: Records) -> Iterator[Records]:
        """The records, divided where a window begins, with a look before each window."""
        if not self._within(records):
            starts = self._starts(cell, records)
            for (first, window), (last, _) in itertools.pairwise([*starts, (len(records.offsets), 0)]):
                if self.window is not None and window > self.window:
                    while self.judging.turn():
                        pass
                self.window = window
                yield records.part(first, last)
        else:
            yield records

    def _within(self, records: Records) -> bool:
        """Whether the first and the last record state times of the window at hand; most polls do."""
        if not len(records.offsets):
            return True
        ends = Records(
            records.cell, [records.values[0], records.values[-1]], records.offsets[[0, -1]], records.next_offset
        )
        batches = self.ingesting.format.decode(ends).batches.values()
        windows = [int(ms) // self.ingesting.half_horizon_ms for batch in batches for ms in batch.time_ms]
        if self.window is None and len(windows) == 2 and windows[0] == windows[1]:
            self.window = windows[0]
        return windows == [self.window] * 2

    def _starts(self, cell: Cell, records: Records) -> list[tuple[int, int]]:
        """Where a part begins, as an index of the records, and its window; the first part begins at 0."""
        decoded, _ = self.ingesting.decode(cell, records)
        offsets = np.concatenate([np.zeros(0, np.int64), *(b.offsets for b in decoded.batches.values())])
        times = np.concatenate([np.zeros(0, np.int64), *(b.time_ms for b in decoded.batches.values())])
        order = np.argsort(offsets, kind="stable")
        windows = np.maximum.accumulate(times[order] // self.ingesting.half_horizon_ms)
        first = windows[0] if len(windows) else (self.window or 0)
        starts = [(0, max(int(first), self.window or 0))]
        for i in (np.flatnonzero(np.diff(windows)) + 1).tolist():
            if windows[i] > starts[-1][1]:
                starts.append((int(np.searchsorted(records.offsets, offsets[order][i])), int(windows[i])))
        return starts


@dataclass(slots=True)
class _Taken:
    """What the commits of a replay showed: dead letters by reason and the first of them, refused lines, misfits by model."""

    baselines: Mapping[str, Baseline]
    reasons: Counter[str] = field(default_factory=Counter)
    first: list[DeadLetter] = field(default_factory=list)
    refusals: RefusedLines = field(default_factory=RefusedLines)
    misfits: dict[str, Misfits] = field(default_factory=dict)

    def committed(self, checkpoint: Checkpoint, decoded: Decoded) -> None:
        self.reasons.update(letter.reason for letter in decoded.dead)
        self.first.extend(decoded.dead[: DEAD_LETTERS_SHOWN - len(self.first)])
        self.refusals.lines += decoded.counters["produced"]
        for letter in decoded.dead:
            self.refusals.refuse(letter.reason, letter.place, letter.detail, letter.head.decode("utf-8", "replace"))
        for model, batch in decoded.batches.items():
            self.misfits.setdefault(model, Misfits()).add(batch, self.baselines[model].map.schema)


def replay(
    log: FileQueryLog,
    store: ServiceStore,
    ingesting: Ingest,
    detecting: Detect,
    *,
    progress: Callable[[Progress], None] = lambda p: None,
    max_poll_records: int = LOOK_EVERY,
) -> Replayed:
    """Read the log to its end, assess every client. Raises InvalidInput for a log that can't be read to its end."""
    taken = _Taken(detecting.baselines)
    flagged: set[tuple[str, ...]] = set()

    def decided(outcome: Any) -> None:
        for key, row in outcome.rows.items():
            (flagged.add if row.state in FLAGGED else flagged.discard)(key)

    judging = detect.Runner(
        store,
        detecting,
        now_s=lambda: None,
        on_outcome=decided,
        lease_ms=3_600_000,
        balanced=False,
        overrides=None,
        schema_every_s=0.0,
    )
    parts = _Looks(ingesting, judging).parts
    reading = ingest.IngestLoop(
        log, store, ingesting, max_poll_records=max_poll_records, on_commit=taken.committed, parts=parts
    )
    if log.resumable:
        _resume(log, store)
    resumed = store.claim(log.cell, "0" * 32, "alive").next_offset  # only asks where the log stands

    def show(fraction: float | None) -> Counter[str]:
        counters = _counters(reading)
        progress(Progress(fraction, counters["queries"], counters["dead"], len(flagged)))
        return counters

    try:
        damage = _read_all(log, reading, judging, show)
        while judging.turn():
            pass
        judging.look_for_campaigns()
    finally:
        judging.cells.release()
    counters = show(1.0)
    secrets = detecting.secrets
    scores, campaigns = _stored(store, secrets, ingesting.tenant)
    alerts = [body for body in (stored_alert(a, secrets) for a in store.alerts()) if body["update"] == 0]
    alerts.sort(key=lambda a: (a["time"], a["alert_id"]))
    if damage is not None:
        raise damage
    return Replayed(
        scores, campaigns, alerts, counters, taken.reasons, taken.first, resumed, taken.refusals, taken.misfits
    )


def _read_all(
    log: FileQueryLog, reading: ingest.IngestLoop, judging: detect.Runner, show: Callable[[float | None], Counter[str]]
) -> Refused | None:
    """Ingest and detect in turns up to the end of the log, or up to where it cannot be read: then that is the answer.

    Raises what keeps the store from being written, and what stops the log's cell.
    """
    damage: Refused | None = None
    searched = looked = 0
    while True:
        try:
            reading.turn(0.1)
        except Refused as error:
            damage = error  # what was readable counts; the damage is told at the end
        if reading.ownership.stops.found:
            raise reading.ownership.stops.refusal()
        if reading.health.error is not None and reading.health.backoff.failures >= PATIENCE:
            raise reading.health.error
        queries = show(log.fraction_read())["queries"]
        if damage or log.finished:
            break
        if queries - looked >= LOOK_EVERY:
            looked = queries
            judging.turn()
        if queries - searched >= CAMPAIGNS_EVERY:
            searched = queries
            judging.turn()
            judging.look_for_campaigns()
    return damage


Rows = dict[tuple[str, str], StoredDecision]


def _stored(store: ServiceStore, secrets: Secrets, tenant: str) -> tuple[Rows, Rows]:
    """Rows of all clients, and of the campaigns that are not over, by (model, client)."""
    clients: Rows = {}
    campaigns: Rows = {}
    for key, stored in store.decisions(tenant):
        row = stored_decision(stored, secrets, key.tenant)
        if not is_campaign(key):
            clients[key.model, key.client] = row
        elif row.decision.state != "clear":
            campaigns[key.model, key.client] = row
    return clients, campaigns


def _counters(loop: ingest.IngestLoop) -> Counter[str]:
    total: Counter[str] = Counter()
    for cell in loop.ownership.cells.values():
        total += Counter({n: c for n, c in cell.counters.items() if n not in MARKS and not prefix.carried(n)})
    return total


def _resume(log: FileQueryLog, store: ServiceStore) -> None:
    """Find the cell that an earlier version of this log has. Raises InvalidInput for a log of which another part was read."""
    known: dict[str, tuple[int, Mapping[str, int]]] = {}
    for cell in store.cells():
        if cell.startswith("files:"):
            claim = store.claim(cell, "0" * 32, "alive")
            if claim.next_offset and any(map(prefix.carried, claim.counters)):
                known[cell] = (claim.next_offset, claim.counters)
    if not known:
        return
    sums, ended, grown = _compared(log, {cell: (lines, marks) for cell, (lines, marks) in known.items()})
    ours = max(grown, key=lambda cell: known[cell][0], default=None)
    for cell, (lines, marks) in known.items():
        if cell in grown:
            continue
        if log.marks.keys() & marks.keys() or prefix.overlap(sums, ended, marks, lines):
            raise InvalidInput(
                f"the log does not begin with the {log.line_of(lines):,} lines that were read of it before "
                "(it was changed, cut or put together anew): "
                "nothing was read; replay it into a new store"
            )
    if ours is not None:
        log.resume(ours)


def _compared(
    log: FileQueryLog, known: Mapping[str, tuple[int, Mapping[str, int]]]
) -> tuple[dict[str, int], int, list[str]]:
    """Sums of the whole log, its lines, and the cells whose lines it begins with."""
    sums: dict[str, int] = {}
    ends = sorted({lines for lines, _ in known.values()})
    grown: list[str] = []
    ended = 0
    for offsets, prints, after in log.scan():
        at = 0
        for end in [end for end in ends if ended < end <= after]:
            upto = int(np.searchsorted(offsets, end))
            prefix.add(sums, offsets[at:upto], prints[at:upto])
            at = upto
            grown += [cell for cell, (lines, marks) in known.items() if lines == end and prefix.same(sums, marks)]
        prefix.add(sums, offsets[at:], prints[at:])
        ended = after
    return sums, ended, grown


def ranked(scores: Mapping[tuple[str, str], StoredDecision]) -> list[tuple[str, StoredDecision]]:
    """(model, decision), most suspicious first."""
    return decision.ranked((model, row) for (model, _), row in scores.items())


def campaign_rows(result: Replayed) -> list[dict[str, Any]]:
    """Campaigns with the names of their accounts, most suspicious first: what a terminal shows."""
    return [
        row.score(model) | {"members": row.members, "ties": dict(row.ties)} for model, row in ranked(result.campaigns)
    ]


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    with atomic_file.whole(path) as draft, draft.open("wb") as out:
        for one in objects:
            out.write(msgspec.json.encode(one) + b"\n")


def report_of(
    result: Replayed,
    baselines: Mapping[str, Baseline],
    budget: float,
    *,
    title: str = "Replay",
    truth: Mapping[str, Mapping[str, Any]] | None = None,
    notes: Iterable[str] = (),
) -> Report:
    """What `report.write_report` shows. truth: client → {"role", "kind"}, where it is known."""
    truth = truth or {}
    clients = [_reported(*key, row, truth.get(row.client_id)) for key, row in _by_rank(result.scores)]
    coverage = []
    for model, baseline in baselines.items():
        of_model = [row for m, row in ranked(result.scores) if m == model]
        clear = (row for row in of_model if row.decision.state == "clear")
        quiet = max(clear, key=lambda row: row.assessment.distinct, default=None)
        top = [*of_model[:4], *([quiet] if quiet is not None and quiet not in of_model[:4] else [])]
        coverage.append(
            Coverage(
                model_id=model,
                cells=[(float(x), float(y)) for x, y in baseline.map.region_at],
                reference=baseline.map.region_share.tolist(),
                clients={row.client_id: [c / max(1, sum(row.coverage)) for c in row.coverage] for row in top},
            )
        )
    return Report(
        title=title,
        models=[(m, "; ".join(b.notes)) for m, b in baselines.items()],
        clients=clients,
        campaigns=[_reported_campaign(*key, row, truth) for key, row in _by_rank(result.campaigns)],
        budget=budget,
        calibrated=all(b.calibration.calibrated for b in baselines.values()),
        calibration="; ".join(n for b in baselines.values() for n in b.notes),
        alerts=[alert_of(body, None, None, None) for body in result.alerts],
        coverage=coverage,
        counters={k: v for k, v in result.counters.items() if v},
        dead_letters=dict(result.reasons),
        notes=list(notes),
    )


def _by_rank(rows: Rows) -> list[tuple[tuple[str, str], StoredDecision]]:
    """((model, client key), row), most suspicious first."""
    return sorted(rows.items(), key=lambda item: decision.rank_of(item[1]))


def _reported(model: str, client: str, row: StoredDecision, known: Mapping[str, Any] | None) -> ReportedClient:
    return ReportedClient(
        client=client_of(model, client, row),
        trajectory=[(int(p.queries), p.suspicion, int(p.time_ms)) for p in row.trail],
        first_ms=row.first_ms,
        truth=_truth(known),
        thief=None if known is None else known.get("role") == "attack",
    )


def _reported_campaign(
    model: str, client: str, row: StoredDecision, truth: Mapping[str, Mapping[str, Any]]
) -> ReportedCampaign:
    known = [truth[member].get("role") == "attack" for member in row.members if member in truth]
    return ReportedCampaign(
        campaign=client_of(model, client, row), members=row.members, thieves=sum(known) if known else None
    )


def _truth(known: Mapping[str, Any] | None) -> str | None:
    if known is None:
        return None
    variant = known.get("variant") or ""
    return str(known.get("kind") or known.get("family")) + (f" / {variant}" if variant not in ("", "plain") else "")
