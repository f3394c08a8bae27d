"""Pages of a list, for whoever asks again with the cursor of the page before.

Rules:

* An opaque cursor names the last row shown (keyset), never a number of rows: rows that come or change in between neither
  repeat nor hide others.
* The order is total: the higher value first, equal ones by name. A cursor belongs to the order that it was made in.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import msgspec

from consumers.errors import WrongUse

T = TypeVar("T")

MOST_ROWS = 1000
"""Rows of a page at most."""


class Place(NamedTuple):
    """Where a row stands in an order. name: unlike that of every other row with the same value."""

    value: float
    name: str

    @property
    def rank(self) -> tuple[float, str]:
        return -self.value, self.name


def paged(
    rows: Iterable[T],
    place: Callable[[T], Place],
    *,
    order: str,
    cursor: str | None,
    limit: int,
    ordered: bool = False,
) -> tuple[tuple[T, ...], str | None]:
    """The rows after the cursor, `limit` at most, and the cursor of the next page, None at the end.

    order    name of the order, for the cursor
    ordered  the rows come in this order already: no more are taken than a page needs

    Raises WrongUse for a limit, or for a text that is no cursor of this order.
    """
    if not 1 <= limit <= MOST_ROWS:
        raise WrongUse(f"limit: 1 to {MOST_ROWS}")
    after = _read(cursor, order)
    placed = ((place(row), row) for row in rows)
    wanted = (p for p in placed if after is None or after.rank < p[0].rank)
    if ordered:
        chosen = [p for p, _ in zip(wanted, range(limit + 1), strict=False)]
    else:
        chosen = heapq.nsmallest(limit + 1, wanted, key=lambda p: p[0].rank)
    more = _written(order, chosen[limit - 1][0]) if len(chosen) > limit else None
    return tuple(row for _, row in chosen[:limit]), more


def _written(order: str, place: Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([order, *place])).decode().rstrip("=")


def _read(cursor: str | None, order: str) -> Place | None:
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found, value, name = msgspec.json.decode(raw, type=tuple[str, float, str])
    except (ValueError, msgspec.DecodeError):
        raise WrongUse("cursor: not one that was given out here") from None
    if found != order:
        raise WrongUse(f"cursor: it belongs to another order ({found[:20]!r})")
    return Place(value, name)
