"""The queue of suspects: clients by suspicion, filtered, a page at a time; the same rows as text for the live view.

Rules: as in this folder's `__init__`. The text of the live view has the rows of the page, in the same order.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from consumers.errors import WrongUse
from consumers.http.dashboard import page_charts
from consumers.http.dashboard.site import Site, by_suspicion, client_row, counts_of
from consumers.legible import legible
from consumers.readers.explanation import MODE_WORDS
from consumers.readers.models import Client, Model
from consumers.times import short
from detector.policy import FLAGGED, State

PAGE_ROWS = 50
MOST_SCANNED = 50_000
"""Rows that a search looks at."""
STATE_CHOICES = (
    ("suspects", "suspects"), ("flagged", "throttle and block"), ("block", "block"), ("throttle", "throttle"), ("watch", "watch"),
    ("clear", "clear"), ("all", "everyone"),
)  # fmt: skip
_STATES: Mapping[str, tuple[str, ...]] = {
    "suspects": ("watch", "throttle", "block"),
    "flagged": FLAGGED,
    "all": ("clear", "watch", "throttle", "block"),
}


@dataclass(frozen=True, slots=True)
class Filters:
    """What the queue shows: words in the client id, a state choice, a model ("" for all), a page from 0."""

    q: str = ""
    state: str = "suspects"
    model: str = ""
    page: int = 0

    @property
    def states(self) -> tuple[str, ...]:
        return _STATES.get(self.state, (self.state,))

    def address(self, page: int | None = None) -> str:
        """The query part that shows this."""
        kept = {"q": self.q, "state": "" if self.state == "suspects" else self.state, "model": self.model}
        kept["page"] = str(self.page if page is None else page) if (self.page if page is None else page) else ""
        text = urlencode({name: value for name, value in kept.items() if value}, errors="surrogatepass")
        return f"?{text}" if text else ""


def queue(site: Site, filters: Filters) -> dict[str, Any]:
    models = site.reader.models()
    counts = counts_of(models)
    shown = [m for m in models if filters.model in ("", m.model_id)]
    start = filters.page * PAGE_ROWS
    if filters.q:
        found = list(itertools.islice(_search(site, shown, filters), MOST_SCANNED))
        rows, matching = found[start : start + PAGE_ROWS], len(found)
    else:
        merged = heapq.merge(*(site.ranked(m.model_id, filters.states) for m in shown), key=by_suspicion)
        rows = list(itertools.islice(merged, start, start + PAGE_ROWS))
        matching = sum(counts_of(shown)[state] for state in filters.states if state in counts)
    total = sum(counts.values())
    end = start + len(rows)
    return {
        "rows": [client_row(site, c) for c in rows],
        "blank": _BLANK | {"gauge": page_charts.gauge(1.0, "clear")},
        "counts": counts,
        "headline": _headline(counts, total),
        "models": [m.model_id for m in models],
        "filters": filters,
        "query": filters.address(),
        "state_choices": STATE_CHOICES,
        "matching": max(matching, end),
        "bound": _bound(site, shown, filters, end) if rows else "",
        "total": total,
        "previous": f"/{filters.address(filters.page - 1)}" if filters.page else "",
        "next": f"/{filters.address(filters.page + 1)}" if matching > end and rows else "",
        "mode": site.reader.modes.mode,
        "mode_words": MODE_WORDS[site.reader.modes.mode],
    }


def _bound(site: Site, shown: Sequence[Model], filters: Filters, line: int) -> str:
    """How many of the clients above the last line shown are honest at most; only where the list is one model's, most suspicious first."""
    if len(shown) != 1 or filters.q or filters.state not in ("suspects", "all"):
        return ""
    try:
        found = site.reader.bound(shown[0].model_id, line)
    except WrongUse:
        return ""
    if found is None:
        return ""
    return (
        f"Of the {found.n:,} most suspicious clients at most {found.honest_at_most:,} are honest, with {found.confidence:.0%} confidence,"
        " if the clients are like those of the calibration."
    )


def queue_live(site: Site, filters: Filters) -> dict[str, Any]:
    """The same rows as text for the script."""
    page = queue(site, filters)
    rows = [
        {
            "key": row["key"],
            "href": row["href"],
            "client": legible(row["client"].client_id),
            "state": row["client"].state,
            "rarity": row["rarity"],
            "steps": row["steps"],
            "copied": row["exposure"],
            "queries": f"{row['client'].queries:,}",
            "model": legible(row["client"].model_id),
            "why": legible(row["why"]),
            "last": short(row["client"].last_seen_ms),
        }
        for row in page["rows"]
    ]
    return {"rows": rows, "facts": {state: f"{n:,}" for state, n in page["counts"].items()}}


def _search(site: Site, models: Sequence[Model], filters: Filters) -> Iterator[Client]:
    words = filters.q.casefold()
    for c in heapq.merge(*(site.ranked(m.model_id, filters.states) for m in models), key=by_suspicion):
        if words in c.client_id.casefold() or words in legible(c.client_id).casefold() or words == c.client_key:
            yield c


def _headline(counts: Mapping[State, int], total: int) -> str:
    flagged, watched = counts["block"] + counts["throttle"], counts["watch"]
    if not total:
        return "Clients whose queries look like model extraction, most suspicious first."
    if not flagged and not watched:
        return f"All {total:,} clients behave like honest clients."
    parts = (
        [f"{flagged:,} of {total:,} clients {'send' if flagged != 1 else 'sends'} queries like no honest client"]
        if flagged
        else []
    )
    parts += [f"{watched:,} {'are' if watched != 1 else 'is'} unusual and watched"] if watched else []
    return "; ".join(parts) + ". Most suspicious first."


_BLANK: dict[str, Any] = {
    "client": {"client_id": "", "state": "clear", "queries": 0, "model_id": "", "last_seen_ms": 0},
    "key": "", "rarity": "", "exposure": "", "why": "",
}  # fmt: skip
"""The row that the script copies for a client that comes in."""
