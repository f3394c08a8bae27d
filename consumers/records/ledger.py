"""The counters of a profile cell, and the equation that they must satisfy. Nothing is silent.

    produced  =  processed + dead − dead_counted + duplicate + erased + tombstones
    processed =  queries + denied + failed + unmodelled

* produced    records that were read, each exactly once
* queries     rows that were folded into a profile; `pooled` of them into the overflow client of their model (admission.py)
* denied      refused by the prediction service (401, 403, 429): volume; failed: its other failures
* unmodelled  of a model without a baseline, when the setting ignores those
* dead        records that are a dead letter; dead_counted: those among them that count for their client all the same
* duplicate   queries whose event_id the client's window still held (duplicates.py)
* erased      queries of an erased client below the offset up to which it was erased
* tombstones  records without a value (Kafka's null): nothing to refuse, nothing to count for anybody
* gap         records that the log's retention dropped before they were read: apart, they were never read
* joined      queries whose two halves were logged apart and found each other; lone_requests, lone_responses: halves that were given up,
              because they waited too long or too many waited (log/halves.py). Apart: a half is no record of the equation
* ahead       queries a day or more ahead of the log's own time, which count at the log's time (detector/clock.py)

Rules: counters are absolute and stored with the profiles in one step, so the equation holds at every moment in every store. Marks are
kept beside them in the same way; they are numbers that the next owner of the cell must know.
"""

from __future__ import annotations

from collections.abc import Mapping

from detector.clock import STATE

OVERFLOW = "\x1foverflow"
"""Id of the overflow client, wherever ids are shown. No client id can hold a control character, so no client has it, nor its key."""

PROCESSED = ("queries", "denied", "failed", "unmodelled")
APART = ("dead", "duplicate", "erased", "tombstones")
HALVES = ("joined", "lone_requests", "lone_responses")
COUNTERS = ("produced", *PROCESSED, *APART, "dead_counted", "pooled", "gap", "ahead", *HALVES)
CLOCK = tuple(f"clock_{i}" for i in range(STATE))
MARKS = ("log_id", *CLOCK)
"""log_id: which log the offset belongs to (`QueryLog.topic_id`), 0 for unknown; clock: state of the log's own time."""


def processed(counters: Mapping[str, int]) -> int:
    return sum(counters.get(name, 0) for name in PROCESSED)


def imbalance(counters: Mapping[str, int]) -> int:
    """Records that were read and are nowhere (above 0), or that count twice (below); 0 in every store, always."""
    apart = sum(counters.get(name, 0) for name in APART) - counters.get("dead_counted", 0)
    return counters.get("produced", 0) - processed(counters) - apart
