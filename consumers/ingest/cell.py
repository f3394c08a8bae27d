"""What one process knows of a log cell that it owns.

Rules:
* A `Cell` holds exactly what was committed. After any failure it is thrown away and read from the store again.
* By model or by client; what a client's values are is in the module of `records` that the field names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from consumers.ingest.admission import Admission
from consumers.ingest.duplicates import Windows
from consumers.log.halves import WaitingHalves
from consumers.records.baselines_in_force import FoldedSince
from consumers.records.schema_watch import SchemaWatch
from consumers.store import Tombstones
from detector.profile_table import ProfileTable
from detector.query import ClientKey


@dataclass(slots=True)
class Cell:
    """What this process knows of one log cell that it owns: exactly what was committed.

    beside     model → profiles of its second baseline; folded: model → since when both are folded (baselines_in_force.py)
    stored     client → fields of spans that the store holds; nameless: clients whose stored header is damaged
    windows    model → event ids of its clients; watches: model → misfits that its clients share (schema_watch.py)
    fields     stored field → client → its value, of the clients that have one (client_fields.py)
    halves     of queries that wait for the other half
    erased     client → offset below which its queries are skipped
    full       the store has no room for new clients
    generation the store's, which changes when an operator begins the cell anew
    crashes    how many processes claimed at this offset and never came beyond it
    cautious   try records in a child process before they are folded, until the offset `cautious_until` (recovery.py)
    checked_s  when the store last confirmed token and offset, by the monotonic clock
    """

    name: str
    token: str
    offset: int | None
    counters: Counter[str]
    profiles: dict[str, ProfileTable] = field(default_factory=dict)
    windows: dict[str, Windows] = field(default_factory=dict)
    watches: dict[str, SchemaWatch] = field(default_factory=dict)
    admission: Admission = field(default_factory=Admission)
    halves: WaitingHalves = field(default_factory=WaitingHalves)
    erased: Tombstones = field(default_factory=Tombstones)
    full: bool = False
    generation: str = ""
    cautious: bool = False
    cautious_until: int = 0
    crashes: int = 0
    checked_s: float = 0.0
    beside: dict[str, ProfileTable] = field(default_factory=dict)
    folded: dict[str, FoldedSince] = field(default_factory=dict)
    stored: dict[ClientKey, set[str]] = field(default_factory=dict)
    nameless: set[ClientKey] = field(default_factory=set)
    fields: dict[str, dict[ClientKey, Any]] = field(default_factory=dict)

    def values(self, name: str) -> dict[ClientKey, Any]:
        """Client → the value of one field; changes to it are the cell's."""
        return self.fields.setdefault(name, {})
