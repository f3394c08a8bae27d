"""What a commit moved the counters of a cell by, as metrics. Rules: no label holds a client, a key or an event id."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.log.formats import Decoded
from consumers.metrics import Metrics

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


def tally(m: Metrics, moved: Mapping[str, int], decoded: Decoded, dropped: int) -> None:
    """Add a commit to the metrics. moved: counter → by how much; dropped: dead letters that found no room."""
    m.add("querywarden_commits_total", outcome="committed")
    for outcome, name in OUTCOMES:
        if moved.get(name):
            m.add("querywarden_records_total", moved[name], outcome=outcome)
    for letter in decoded.dead:
        m.add("querywarden_dead_letters_total", reason=letter.reason)
        if letter.reason in UNATTRIBUTED:
            m.add("querywarden_events_unattributed_total")
    for reason, count in decoded.misfits().items():
        m.add("querywarden_misfits_total", count, reason=reason)
    if dropped:
        m.add("querywarden_letters_dropped_total", dropped)
    for metric, count in (
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
