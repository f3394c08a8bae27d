"""A store moves to another number of decision cells: nothing is lost, nothing is doubled, and each thing lies where it is looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.store_contract import clients_in
from support.upkeep_contract import WholeContract

from consumers.errors import Refused
from consumers.store import DECISION_CELLS, Exported, OutboxAlert, Store, decision_cell, layout
from consumers.store.embedded import EmbeddedStore
from consumers.store.layout import client_from_text
from consumers.store.records import AlertRecord, StoredRow, record_of
from consumers.store.redis import connect
from consumers.store.renumbering import renumbered
from detector.query import ClientKey

OWNERS = [clients_in(v, 1)[0] for v in range(DECISION_CELLS)]


def subject_of(alert: OutboxAlert) -> ClientKey | None:
    """The contract names its alerts by the cell that they are filled into; the last one of each cannot be read."""
    v, _, number = alert.uid.partition(".")
    return None if number == "2/0" else OWNERS[int(v)]


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Exported]:
    store = EmbeddedStore(tmp_path_factory.mktemp("origin") / "s.sqlite")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "OPERATOR_STEP", 1)
        WholeContract().fill(store)
    found = list(store.export())
    store.close()
    return found


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], Store]]:
    """Opens the one store with a number of decision cells."""
    stores: list[Store] = []

    def open_one(cells: int) -> Store:
        if request.param == "sqlite":
            stores.append(EmbeddedStore(tmp_path / "s.sqlite", decision_cells=cells))
        else:
            stores.append(connect(request.getfixturevalue("redis_url"), timeout_s=20, decision_cells=cells))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


def told(store: Store) -> dict[str, object]:
    """What a store tells, without the order of its decision cells."""
    found = WholeContract().content(store)
    cells = range(store.decision_cells)
    pending = [(name, a.uid) for v in cells for name in ("kafka:a{b}", "other") for _, a in store.outbox(v, name, 999)]
    found["pending"] = sorted(pending)
    for cell in store.cells():
        answers = store.touched(cell, dict.fromkeys(cells, 0), 9999)
        clients = [k for v, one in answers.items() for k in one.clients if v == decision_cell(k, len(cells))]
        found[cell] = (*found[cell][:-1], sorted(clients))  # type: ignore[index]
    return found


@pytest.mark.parametrize("cells", [1, 7, 100])
def test_a_store_of_another_number_tells_the_same(
    items: list[Exported], opened: Callable[[int], Store], cells: int, tmp_path: Path
) -> None:
    origin = EmbeddedStore(tmp_path / "origin.sqlite")
    origin.restore(items)
    store = opened(cells)
    store.restore(renumbered(items, cells, subject_of))
    store.prepare("secrets-1")
    assert told(store) == told(origin)
    for v in range(min(cells, 5)):  # the owner of a cell finds the rows and the alerts of its clients there
        store.claim_decisions(v, "p", "t", 60_000)
        mine = [k for k, _ in store.decisions("acme") if decision_cell(k, cells) == v]
        assert sorted(store.load_decisions(v, "t", 0, mine)) == sorted(mine)
        uids = {a.uid for _, a in store.outbox(v, "other", 999)}
        assert uids >= {f"{w}.0/0" for w, owner in enumerate(OWNERS) if decision_cell(owner, cells) == v}
    back = list(renumbered(store.export(), DECISION_CELLS, subject_of))
    assert len(back) == len(items)
    assert readable(back) == readable(items)
    origin.close()


def readable(items: list[Exported]) -> set[tuple[str, str, str]]:
    """What finds its way back: all but the revision of the operator cell, which jumps, and alerts that nobody can assign."""
    found = {(i.table, i.cell, repr(record_of(i)[1])) for i in items if i.table != "revision"}
    return {one for one in found if ".2/0'" not in one[2]}


def test_control_what_keeps_its_cell_is_not_found_there(items: list[Exported], opened: Callable[[int], Store]) -> None:
    """Only the layout is changed: the owner of a client's cell does not find its row."""
    store = opened(64)
    first, *rest = renumbered(items, 64, subject_of)
    assert rest != items[1:]
    store.restore([first, *items[1:]])
    v = next(decision_cell(k, 64) for k in decided(items) if decision_cell(k, 64) >= DECISION_CELLS)
    store.claim_decisions(v, "p", "t", 60_000)
    mine = [k for k in decided(items) if decision_cell(k, 64) == v]
    assert store.load_decisions(v, "t", 0, mine) == {}


def decided(items: list[Exported]) -> list[ClientKey]:
    return [client_from_text(record.client) for _, record in map(record_of, items) if isinstance(record, StoredRow)]


def test_another_number_is_refused(items: list[Exported], opened: Callable[[int], Store]) -> None:
    opened(7).prepare("secrets-1")
    with pytest.raises(
        Refused, match="made with number of decision cells 7, this process has 8; set store.decision_cells"
    ):
        opened(8).prepare("secrets-1")
    with pytest.raises(Refused, match="number of decision cells 7, the snapshot has 32"):
        opened(7).restore(items)
    opened(7).prepare("secrets-1")


def test_the_same_number_changes_nothing(items: list[Exported]) -> None:
    assert list(renumbered(items, DECISION_CELLS, subject_of)) == items
    with pytest.raises(Refused, match="layout is missing"):
        list(renumbered(items[1:], DECISION_CELLS, subject_of))


def test_alerts_keep_the_order_in_which_they_were_stored(items: list[Exported]) -> None:
    moved = [record_of(item)[1] for item in renumbered(items, 1, subject_of)]
    times = [record.stored_ms for record in moved if isinstance(record, AlertRecord)]
    assert times == sorted(times)
    assert len(times) == 3 * DECISION_CELLS
