"""Reporting: the metrics and alarms of ingest, apart from its turns.

Rules: no label holds a client, a key or an event id.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from consumers.ingest.cell import Cell
from consumers.log.formats import Decoded
from consumers.records.ledger import HALVES
from consumers.telemetry.alarms import Alarms, Watch
from consumers.telemetry.metrics import Metrics

log = logging.getLogger("querywarden.ingest")

OUTCOMES = (
    ("query", "queries"),
    ("dead", "dead"),
    ("unmodelled", "unmodelled"),
    ("denied", "denied"),
    ("failed", "failed"),
    ("duplicate", "duplicate"),
    ("erased", "erased"),
    ("tombstone", "tombstones"),
)
"""Label of ``querywarden_records_total`` → counter."""
UNATTRIBUTED = frozenset({"missing_client", "malformed_client"})
LETTERS_SHARE = 0.8
"""Share of the room for dead letters from which the alarm is raised."""


@dataclass(frozen=True, slots=True)
class TurnReport:
    """How a turn left the process.

    lag            records that wait in its cells
    stopped        cell that cannot go on → why
    store_full     the store has no room for new clients
    letters_share  share of its room for dead letters that the fullest cell uses
    answered       store and log answered
    """

    lag: int
    stopped: Mapping[str, str]
    store_full: bool
    letters_share: float
    answered: bool


@dataclass(slots=True)
class Reporter:
    """Metrics and alarms of one ingest process."""

    metrics: Metrics
    watch: Watch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = Watch(Alarms(self.metrics))

    def count(self, now_s: float, moved: Mapping[str, int], decoded: Decoded, dropped: int) -> None:
        """Add a commit. moved: counter → by how much; dropped: dead letters that found no room."""
        tally(self.metrics, moved, decoded, dropped)
        self.watch.counted(now_s, moved, decoded.batches)

    def report_gap(self, now_s: float, cell: str, first: int, last: int) -> None:
        """Show that the log's retention dropped records before they were read."""
        log.error("data gap", extra={"cell": cell, "first": first, "last": last})
        self.metrics.add("querywarden_gap_records_total", last - first + 1)
        self.watch.gap(now_s)

    def report_metrics(self, now_s: float, turn: TurnReport, cells: Collection[Cell], models: Collection[str]) -> None:
        """Show operators where the process is."""
        self.metrics.set("querywarden_cells", len(cells))
        self.metrics.set("querywarden_lag_records", turn.lag)
        self.metrics.set("querywarden_halves_waiting", sum(len(cell.halves.roles) for cell in cells))
        newest_s = self.metrics.value("querywarden_event_time_seconds") or 0.0
        late_s = max(0.0, time.time() - newest_s) if turn.lag and newest_s else 0.0
        self.metrics.set("querywarden_ingest_lag_seconds", late_s)
        cached = Counter({model: len(profiles) for cell in cells for model, profiles in cell.profiles.items()})
        for model in models:
            self.metrics.set("querywarden_profiles_cached", cached[model], model=model)
        self.watch.alarms.show("cell_stopped", bool(turn.stopped), cells=dict(turn.stopped))
        self.watch.alarms.show("store_full", turn.store_full)
        self.watch.alarms.show("letters_wait", turn.letters_share >= LETTERS_SHARE)
        self.watch.look(now_s, turn.lag, turn.answered)


def tally(m: Metrics, moved: Mapping[str, int], decoded: Decoded, dropped: int) -> None:
    """Add what a commit moved the counters of a cell by."""
    m.add("querywarden_commits_total", outcome="committed")
    for outcome, name in OUTCOMES:
        if moved.get(name):
            m.add("querywarden_records_total", moved[name], outcome=outcome)
    for name in HALVES:
        if moved.get(name):
            m.add("querywarden_halves_total", moved[name], outcome=name)
    for letter in decoded.dead:
        m.add("querywarden_dead_letters_total", reason=letter.reason)
        if letter.reason in UNATTRIBUTED:
            m.add("querywarden_events_unattributed_total")
    for reason, count in decoded.misfits().items():
        m.add("querywarden_misfits_total", count, reason=reason)
    if dropped:
        m.add("querywarden_letters_dropped_total", dropped)
    for metric, count in (
        ("querywarden_canaries_total", decoded.counters["canaries"]),
        ("querywarden_unknown_keys_total", decoded.counters["unknown_keys"]),
        ("querywarden_extra_columns_total", decoded.counters["extra_columns"]),
        ("querywarden_duplicate_events_total", moved.get("duplicate", 0)),
        ("querywarden_pooled_queries_total", moved.get("pooled", 0)),
        ("querywarden_ahead_queries_total", moved.get("ahead", 0)),
    ):
        if count:
            m.add(metric, count)
    if decoded.last_ms:
        m.set("querywarden_event_time_seconds", decoded.last_ms / 1000)
