"""Pages of a list: the caller sends the cursor of one page to get the next.

Rules:
* An opaque cursor names the last row that was shown (keyset pagination), not a number of rows. So rows that come or change in between
  neither repeat nor hide others.
* A request is checked before anything is read for it.
* The order is total: the higher value first, equal values by name. A cursor belongs to the order in which it was made.
"""

from __future__ import annotations

import base64
import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import msgspec

from consumers.errors import WrongUse

T = TypeVar("T")

MOST_ROWS = 1000
"""Rows of a page at most."""


class Position(NamedTuple):
    """Where a row stands in an order. name: unlike that of every other row with the same value."""

    value: float
    name: str

    @property
    def rank(self) -> tuple[float, str]:
        return -self.value, self.name


class PageRequest(NamedTuple):
    """What `asked` found good: the rows of an order after a place, `limit` at most."""

    order: str
    after: Position | None
    limit: int

    def of(
        self, rows: Iterable[T], place: Callable[[T], Position], *, ordered: bool = False
    ) -> tuple[tuple[T, ...], str | None]:
        """The rows of this page, and the cursor of the next one, None at the end.

        ordered  the rows come in this order already: no more are taken than a page needs
        """
        placed = ((place(row), row) for row in rows)
        wanted = (p for p in placed if self.after is None or self.after.rank < p[0].rank)
        if ordered:
            chosen = list(itertools.islice(wanted, self.limit + 1))
        else:
            chosen = heapq.nsmallest(self.limit + 1, wanted, key=lambda p: p[0].rank)
        more = _written(self.order, chosen[self.limit - 1][0]) if len(chosen) > self.limit else None
        return tuple(row for _, row in chosen[: self.limit]), more


def asked(order: str, cursor: str | None, limit: int) -> PageRequest:
    """Before anything is read: raises WrongUse for a limit, or for a text that is no cursor of this order."""
    if not 1 <= limit <= MOST_ROWS:
        raise WrongUse(f"limit: 1 to {MOST_ROWS}")
    return PageRequest(order, _read(cursor, order), limit)


def _written(order: str, place: Position) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([order, *place])).decode().rstrip("=")


def _read(cursor: str | None, order: str) -> Position | None:
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found, value, name = msgspec.json.decode(raw, type=tuple[str, float, str])
    except (ValueError, msgspec.DecodeError):
        raise WrongUse("cursor: it does not come from this service") from None
    if found != order:
        raise WrongUse(f"cursor: it belongs to another order ({found[:20]!r})")
    return Position(value, name)
