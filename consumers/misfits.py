"""Statistics of queries that do not fit the schema: how many, in which columns, and whether as many were expected.

Rules: a renamed column, or a log of another version of the model, causes no refusal: every query counts, with a value missing. So `fit` and
`replay` report such misfits. Some are expected, because the reference or the honest traffic of the baseline has them too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from consumers.refused_lines import LOUD, SHOWN
from detector.features import FeatureMap, Schema
from detector.misfit import KINDS, states
from detector.query import Misfit, QueryBatch

QUERY_MISFITS: dict[Misfit, str] = {
    Misfit.RETYPED: "a number is written as text, or a boolean stands among numbers",
    Misfit.UNREADABLE: "the input cannot be read: another form or length, or a list where a value should be",
    Misfit.ANSWER: "the answer is missing or has another shape",
}
"""Misfits of a whole query."""
MISSING, UNSEEN, HUGE = "no value", "a category that the reference does not have", "a value over 1e12 in size"
"""Misfits of one column."""
_OF_COLUMNS = Misfit.MISSING | Misfit.OTHER | Misfit.OUT_OF_RANGE


Shares = Mapping[tuple[str, str], float]
"""(what, column) → share of queries."""


@dataclass(slots=True)
class Misfits:
    """Counts of what does not fit.

    queries  queries that were looked at; marked: those that do not fit
    counts   (what, column) → queries; the column is empty for what is about the whole query
    """

    queries: int = 0
    marked: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, batch: QueryBatch, schema: Schema) -> None:
        """Count the queries of a batch."""
        self.queries += len(batch)
        some = np.flatnonzero(batch.misfit)
        if not len(some):
            return
        self.marked += len(some)
        flags, inputs = batch.misfit[some], batch.inputs[some]
        for flag, words in QUERY_MISFITS.items():
            n = int(((flags & flag) != 0).sum())
            if n:
                self.counts[words, ""] += n
        inputs = inputs[((flags & _OF_COLUMNS) != 0) & ((flags & Misfit.UNREADABLE) == 0)]
        category_counts = schema.category_counts
        for words, where in zip((MISSING, UNSEEN, HUGE), states(inputs, category_counts), strict=True):
            for j in np.flatnonzero(where.any(0)).tolist():
                self.counts[words, schema.columns[j].name] += int(where[:, j].sum())

    def shares(self) -> Shares:
        """Which share of the queries has each misfit."""
        return {key: n / self.queries for key, n in self.counts.items()} if self.queries else {}

    def warning(self, what: str, expected: Shares) -> list[str]:
        """Lines of the warning; none where hardly more queries do not fit than was to be expected.

        what      what was read: "the traffic", "the log"
        expected  shares of honest queries
        """
        unusual = [
            (key, n) for key, n in self.counts.most_common() if n > self.queries * (LOUD + expected.get(key, 0.0))
        ]
        if not unusual:
            return []
        lines = [
            f"WARNING: of {self.queries:,} queries of {what} {self.marked:,} do not fit the schema; they count all the same"
        ]
        for (words, column), n in unusual[:SHOWN]:
            where = f"column {column}: " if column else ""
            lines.append(f"  {n:,} × {where}{words} (expected of {expected.get((words, column), 0.0):.0%})")
        if len(unusual) > SHOWN:
            lines.append(f"  and {len(unusual) - SHOWN} more")
        return lines


def learned(feature_map: FeatureMap) -> Shares:
    """Shares of the honest queries that a map learned from."""
    shares: dict[tuple[str, str], float] = {}
    for words, bits in zip((MISSING, UNSEEN, HUGE), feature_map.misfit_bits, strict=True):
        shares |= {(words, c.name): float(2.0**-b) for c, b in zip(feature_map.schema.columns, bits, strict=True)}
    for flag, b in zip(KINDS, feature_map.misfit_kinds, strict=True):
        shares[QUERY_MISFITS[flag], ""] = float(2.0**-b)
    return shares
