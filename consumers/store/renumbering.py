"""A snapshot as a store with another number of decision cells would have written it.

What a client has in decision cells moves to the cell that `decision_cell` maps it to among the new number: its row, its alerts and their
deliveries. Profiles stay where they are, because their cell is the log's; the store that restores them says anew which decision cell each
belongs to. Cursors, leases, feeds and revisions are in no snapshot (`records.py`), so nothing refers to a cell of before.

Rules:

* Each record comes out once, and unchanged but for its cell: nothing is lost or doubled. `tests/store/test_renumbering.py` counts.
* The alerts of a cell come out in the order in which they were stored, whichever cells they come from.
* An alert that nobody can assign (its key was destroyed, so nobody can read it either) goes to cell v modulo the new number, and its
  deliveries with it.
* Alerts and deliveries are held in memory until the last row has passed: those of 30 days, as much as their stores hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from consumers.errors import InvalidInput
from consumers.store import Exported, OutboxAlert, decision_cell
from consumers.store.layout import client_from_text
from consumers.store.records import AlertRecord, Delivery, Layout, StoredRow, exported, record_of
from detector.query import ClientKey

Subject = Callable[[OutboxAlert], ClientKey | None]
"""An alert as it is stored → whose row it belongs to, a client's or a campaign's; None where that cannot be read."""


def renumbered(items: Iterable[Exported], cells: int, subject_of: Subject) -> Iterator[Exported]:
    """Return the items for a store of `cells` decision cells; unchanged if theirs has as many.

    Raises InvalidInput, CorruptState.
    """
    source = iter(items)
    first = next(source, None)
    layout = None if first is None else record_of(first)[1]
    if first is None or not isinstance(layout, Layout):
        raise InvalidInput("snapshot: the layout is missing")
    if layout.decision_cells == str(cells):
        yield first
        yield from source
    else:
        yield exported("", Layout(layout.schema, str(cells), layout.secrets_id))
        yield from _moved(source, cells, subject_of)


def _moved(items: Iterator[Exported], cells: int, subject_of: Subject) -> Iterator[Exported]:
    alerts: list[tuple[int, int, AlertRecord]] = []
    deliveries: list[tuple[int, Delivery]] = []
    for item in items:
        if item.table not in ("decision", "alert", "delivery"):
            yield item
            continue
        _, record = record_of(item)
        if isinstance(record, StoredRow):
            yield exported(str(decision_cell(client_from_text(record.client), cells)), record)
        elif isinstance(record, AlertRecord):
            subject = subject_of(OutboxAlert(record.uid, record.time_ms, record.body))
            cell = int(item.cell) % cells if subject is None else decision_cell(subject, cells)
            alerts.append((record.stored_ms, cell, record))
        elif isinstance(record, Delivery):
            deliveries.append((int(item.cell) % cells, record))
    alerts.sort(key=lambda one: one[0])  # stable: what one cell stored in one millisecond stays in its order
    moved_to = {record.uid: cell for _, cell, record in alerts}
    for _, cell, record in alerts:
        yield exported(str(cell), record)
    for cell, delivery in deliveries:
        yield exported(str(moved_to.get(delivery.uid, cell)), delivery)
