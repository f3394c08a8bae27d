"""Reseal: a pass over the store that seals every record under the newest key of its tenant, so that older keys can be dropped.

Records are sealed anew when they are next written. Those of clients that ask nothing would stay under the older key until they expire.

Rules:
* It runs beside the service. A record is replaced only if it is still the one that was read (`swap_fields`, `swap_decisions`), so what a
  live process wrote meanwhile stays. No owner is fenced; no lifetime and no position changes.
* It can be stopped at any moment and begun again: what is under the newest key already is passed over, and nothing else remembers how far
  it came.
* It reads page by page and replaces at most `per_s` records a second.
* A record that does not open stays as it is and is counted. An unknown key ends the pass (`Unavailable`): the secrets file is behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

from consumers.errors import CorruptState
from consumers.store import AlertSwap, FieldSwap, RowSwap, Store, decision_cell
from consumers.store.sealed import RecordSealer, alert_place, decision_place, key_id_of, profile_place
from detector.query import ClientKey

PAGE = 200
"""Clients that are read at a time."""
_T = TypeVar("_T")
_ALERTS = 1_000_000
_NOBODY = "reseal:"
"""A destination to which no alert was ever sent: its outbox is all alerts."""


@dataclass(slots=True)
class Resealed:
    """What a pass did.

    replaced    records that are under the newest key now
    changed     records that somebody else wrote meanwhile; whoever it was sealed them with the key that it had
    unreadable  records that do not open: damaged, or under a destroyed key
    """

    replaced: int = 0
    changed: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class _Pace:
    """Waits, so that no more than `per_s` records a second are replaced."""

    per_s: float
    clock: Callable[[], float]
    pause: Callable[[float], object]
    began_s: float = field(init=False)
    records: int = 0

    def __post_init__(self) -> None:
        self.began_s = self.clock()

    def after(self, records: int) -> None:
        self.records += records
        ahead_s = self.began_s + self.records / self.per_s - self.clock()
        if ahead_s > 0:
            self.pause(ahead_s)


class Reseal:
    """One pass. Make it anew for each.

    store   as it is stored: records sealed
    sealer  opens and seals them
    """

    def __init__(
        self,
        store: Store,
        sealer: RecordSealer,
        per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._store, self._sealer = store, sealer
        self._pace = _Pace(per_s, clock, pause)
        self.done = Resealed()

    def run(self) -> Resealed:
        """Raises Unavailable."""
        for cell in self._store.cells():
            for page in self._clients(cell):
                self._profiles(cell, page)
        tenants = {key.tenant for key in self._sealer.keyring.ring(at_once=True).by_id.values()}
        for tenant in sorted(tenants):
            for rows in _pages(self._store.decisions(tenant)):
                self._rows([(client, row.row) for client, row in rows])
        for v in range(self._store.decision_cells):
            self._alerts(v)
        return self.done

    def _clients(self, cell: str) -> Iterator[list[ClientKey]]:
        """All clients of a profile cell, up to the offset that it has now: who is written later is sealed by its writer."""
        for v in range(self._store.decision_cells):
            cursor, end = 0, None
            while end is None or cursor < end:
                found = self._store.touched(cell, {v: cursor}, PAGE)[v]
                end = found.offset if end is None else end
                cursor = found.cursor
                yield from _pages(found.clients)
                if not found.clients:
                    break

    def _profiles(self, cell: str, clients: list[ClientKey]) -> None:
        swaps = []
        for client, fields in self._store.shards(cell, clients).fields.items():
            place = profile_place(cell, client)
            for name, blob in fields.items():
                after = self._anew(client.tenant, blob, place + name.encode())
                if after is not None:
                    swaps.append(FieldSwap(client, name, blob, after))
        for some in _pages(swaps):
            self._count(len(some), self._store.swap_fields(cell, some))

    def _rows(self, rows: list[tuple[ClientKey, bytes]]) -> None:
        by_cell: dict[int, list[RowSwap]] = {}
        for client, blob in rows:
            after = self._anew(client.tenant, blob, decision_place(client))
            if after is not None:
                by_cell.setdefault(decision_cell(client, self._store.decision_cells), []).append(
                    RowSwap(client, blob, after)
                )
        for v, swaps in sorted(by_cell.items()):
            self._count(len(swaps), self._store.swap_decisions(v, swaps, []))

    def _alerts(self, v: int) -> None:
        swaps = []
        for _, alert in self._store.outbox(v, _NOBODY, _ALERTS):
            key = self._sealer.keyring.ring().by_id.get(key_id_of(alert.body))
            # An alert in clear names its tenant nowhere that we read: it stays as it is until it expires.
            after = None if key is None else self._anew(key.tenant, alert.body, alert_place(alert.uid))
            if after is not None:
                swaps.append(AlertSwap(alert.uid, alert.body, after))
        if swaps:
            self._count(len(swaps), self._store.swap_decisions(v, [], swaps))

    def _anew(self, tenant: str, blob: bytes, place: bytes) -> bytes | None:
        """The record under the newest key of its tenant; None where it is already, or cannot be."""
        keyring = self._sealer.keyring
        newest = keyring.ring().current(tenant, keyring.now_s())
        if newest is None or key_id_of(blob) == newest.id:
            return None
        try:
            content = self._sealer.opened(blob, place).content
        except CorruptState:
            self.done.unreadable += 1
            return None
        return self._sealer.batch(tenant)(content, place)

    def _count(self, tried: int, replaced: int) -> None:
        self.done.replaced += replaced
        self.done.changed += tried - replaced
        self._pace.after(tried)


def _pages(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while page := list(islice(rest, PAGE)):
        yield page
