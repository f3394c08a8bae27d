"""The rows of the command `clients`: the most suspicious clients of a store, their number, and the campaigns.

Rules:
* Every row is counted, but only the rows that are shown are unsealed.
* The caller sets a damaged row aside, so that it hides no other row.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from consumers.records.decision import is_campaign, ranked, stored_decision
from consumers.secrets import Secrets
from consumers.store import DecisionRow, Store
from detector.policy import FLAGGED
from detector.query import ClientKey

Row = tuple[ClientKey, DecisionRow]


@dataclass(slots=True)
class Listing:
    """Scores of the listed clients and campaigns. total, flagged: of all clients, listed or not."""

    clients: list[dict[str, Any]] = field(default_factory=list)
    campaigns: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    flagged: int = 0


def read(
    store: Store,
    secrets: Secrets,
    tenant: str,
    model: str | None,
    limit: int | None,
    set_aside: Callable[[], AbstractContextManager[None]],
) -> Listing:
    """Read the clients of a tenant, the most suspicious `limit` of them, and its campaigns. Raises Unavailable."""
    listing, groups = Listing(), list[Row]()

    def counted() -> Iterator[Row]:
        for key, row in store.decisions(tenant, model):
            if is_campaign(key):
                groups.append((key, row))
                continue
            listing.total += 1
            listing.flagged += row.state in FLAGGED
            yield key, row

    rows = list(counted()) if limit is None else heapq.nlargest(limit, counted(), key=lambda r: r[1].rank)
    for wanted, out in ((rows, listing.clients), (groups, listing.campaigns)):
        found = []
        for key, row in wanted:
            with set_aside():
                found.append((key.model, stored_decision(row, secrets, key.tenant)))
        out += [one.score(name) | ({"members": one.members} if one.members else {}) for name, one in ranked(found)]
    listing.campaigns = [one for one in listing.campaigns if one["state"] != "clear"]
    return listing
