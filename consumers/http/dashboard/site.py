"""What all pages of the dashboard share: the reader, the addresses, and how a client is shown in a list.

Each kind of page has a module beside this one (`queue_page`, `client_page`, `campaign_page`, `model_page`, `decision_page`, `health_page`):
functions from read models to plain values, without HTML and HTTP. `handlers` answers requests with them.

Rules:

* A client is named in addresses by its keyed hash and model, never by its id: addresses end up in logs and histories.
* Everything is bounded: a page of the queue, linked accounts, alerts; what is left out is counted.
* Nothing is decided here, and nothing is hidden: a missing baseline or estimator is said, not guessed around.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from consumers.http.dashboard import page_charts
from consumers.readers.explanation import rarity, why
from consumers.readers.models import Client, Model, Verdict
from consumers.readers.queries import Reader
from detector.baseline import Baseline
from detector.exposure import Exposure
from detector.policy import State

BIG, SMALL = 760, 340
"""Widths of a figure in pixels, on large and on small screens."""
MOST_ROWS = 200
"""Rows of a list at most: campaigns, decisions, alerts."""


@dataclass(frozen=True, slots=True)
class Site:
    """The dashboard for one tenant. budget: the false-alarm budget, as detect has it."""

    reader: Reader
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    budget: float = 0.01

    def client_address(self, key: str, model: str) -> str:
        return f"/client?{urlencode({'client': key, 'model': model}, errors='surrogatepass')}"

    def model_address(self, model: str) -> str:
        return f"/model?{urlencode({'id': model}, errors='surrogatepass')}"

    def campaign_address(self, campaign: str) -> str:
        return f"/campaign?{urlencode({'id': campaign}, errors='surrogatepass')}"

    def ranked(self, model: str, states: Sequence[str]) -> Iterator[Client]:
        """Clients of a model in these states, most suspicious first, read page by page."""
        cursor = None
        only = states[0] if len(states) == 1 else None
        while True:
            page = self.reader.clients(model, state=only, cursor=cursor, limit=200)
            yield from (c for c in page.items if c.state in states)
            if page.next is None or (page.items and page.items[-1].suspicion <= 0 and "clear" not in states):
                return
            cursor = page.next


def client_row(site: Site, c: Client) -> dict[str, Any]:
    """A client in a list: its public shape, and what a row shows beside it."""
    return {
        "client": c,
        "key": f"{c.client_key}|{c.model_id}",
        "href": site.client_address(c.client_key, c.model_id),
        "rarity": rarity(c.p_value),
        "steps": page_charts.steps(c.p_value),
        "gauge": page_charts.gauge(c.p_value, c.state),
        "exposure": exposure_words(c.extraction),
        "why": why(c).partition(";")[0],
    }


def by_suspicion(c: Client) -> tuple[float, int, str]:
    """What lists of clients are sorted by."""
    return c.p_value, -c.queries, c.client_key


def counts_of(models: Sequence[Model]) -> dict[State, int]:
    """Clients by state."""
    watch, throttle, block = (
        (sum(n) for n in zip(*((m.watch, m.throttle, m.block) for m in models), strict=True)) if models else (0, 0, 0)
    )
    clear = sum(m.clients for m in models) - watch - throttle - block
    return {"clear": clear, "watch": watch, "throttle": throttle, "block": block}


def exposure_words(exposure: Exposure | None) -> str:
    """Exposure with its interval, in a cell of a table."""
    e = exposure
    return (
        "–"
        if e is None
        else f"{100 * e.fidelity:.0f} % ({100 * e.low:.0f}–{100 * e.high:.0f}{', rough' if e.rough else ''})"
    )


def verdict_words(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {"words": verdict.verdict.replace("_", " "), "by": verdict.actor}
