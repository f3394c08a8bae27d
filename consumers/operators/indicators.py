"""The operations on indicators of peers: import those of a source, and drop them.

Rules:
* Each operation is one atomic step with an audit row (`audited_write`), which says who imported what, and the digest of the file.
* An import takes the place of the earlier one of the same source, so that what a peer took back is gone. An entry ends with its last
  indicator.
* Everything is bounded: sources, indicators, hashes, and how far ahead an indicator may end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from consumers.errors import Conflict, Missing, WrongUse
from consumers.operators.audited_write import DAY_S, Actor, AuditedWriter, Plan
from consumers.operators.bounds import check_name
from consumers.records.indicators import KIND, Indicator, StoredIndicators
from consumers.records.operator_entries import packed
from consumers.store import Entry

MOST_SOURCES = 16
MOST_INDICATORS = 2_000
"""Indicators of a source."""
MOST_HASHES = 20_000
"""Hashes of all indicators of a source."""
LONGEST_S = 90 * DAY_S
"""An indicator ends at most this long after it was imported, whatever it says itself: an address has another owner by then."""


@dataclass(slots=True)
class IndicatorImports(AuditedWriter):
    """What may be done with the indicators of peers, on one store."""

    def take(self, actor: Actor, source: str, indicators: Iterable[Indicator], digest: str) -> StoredIndicators:
        """Import the indicators of a source, in the place of its earlier ones. Raises WrongUse, Conflict."""
        check_name("source", source)
        given = tuple(indicators)
        if not given:
            raise WrongUse("there is no indicator to import")
        if len(given) > MOST_INDICATORS or sum(len(one.hashes) for one in given) > MOST_HASHES:
            raise WrongUse(f"at most {MOST_INDICATORS:,} indicators with {MOST_HASHES:,} hashes of one source")

        def plan() -> Plan[StoredIndicators]:
            now = int(self.now_s())
            cut = tuple(replace(one, valid_until_s=min(one.valid_until_s, now + LONGEST_S)) for one in given)
            made = StoredIndicators(source, cut, digest, actor.name, now)
            before = self._entry(KIND, source, actor.tenant, StoredIndicators)
            if before is None and len(self._all(KIND, actor.tenant)) >= MOST_SOURCES:
                raise Conflict(f"indicators of {MOST_SOURCES} sources are here already; drop one of them first")
            put = Entry(actor.tenant, KIND, source, packed(made), made.until_s)
            return Plan(made, f"source:{source} indicators:{len(cut)} digest:{digest}", before, [put])

        return self._apply(actor, "indicators.import", plan, StoredIndicators, None, (source, digest))

    def drop(self, actor: Actor, source: str) -> StoredIndicators:
        """Drop the indicators of a source. Raises Missing."""

        def plan() -> Plan[StoredIndicators]:
            before = self._entry(KIND, source, actor.tenant, StoredIndicators)
            if before is None:
                raise Missing("there are no indicators of this source")
            about = f"source:{source} indicators:{len(before.indicators)} digest:{before.digest}"
            return Plan(before, about, before, drops=[(actor.tenant, KIND, source)])

        return self._apply(actor, "indicators.drop", plan, StoredIndicators, None, source)
