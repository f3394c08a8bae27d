"""Upkeep of an embedded store: erase, reset, snapshots.

Rules:

* The owner of a changed cell is fenced by a new token: a new revision alone would be issued again after the newest writes were lost.
* Deleted data is overwritten (``secure_delete``); older copies in pages that are already free are removed by `scrub`.
* `export` reads one transaction, so it gives the whole store as of one moment. `records.py` describes what it gives.
"""

from __future__ import annotations

import contextlib
import json
import secrets as entropy
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from consumers.errors import InvalidInput, Unavailable
from consumers.store import (
    AlertSwap,
    Entry,
    Exported,
    FieldSwap,
    RowSwap,
    Tombstones,
    decision_cell,
)
from consumers.store.layout import (
    LAYOUT,
    check_decision_cell,
    client_from_text,
    client_text,
    layout_differs,
)
from consumers.store.records import (
    REVISION_JUMP,
    AlertRecord,
    AuditRecord,
    Delivery,
    JoinState,
    Layout,
    OperatorEntry,
    OperatorRevision,
    ProfileCell,
    Record,
    StoredArrival,
    StoredLetter,
    StoredProfile,
    StoredRow,
    Tombstone,
    exported,
    record_of,
)
from consumers.store.sqlite import SQLiteFile
from detector.query import ClientKey

_BATCH = 500


class Upkeep(SQLiteFile):
    def erase(self, cell: str, clients: Sequence[ClientKey]) -> None:
        with self._for_good() as db:
            row = db.execute("SELECT id, next_offset FROM cells WHERE name = ?", (cell,)).fetchone()
            if row is None:
                return
            number, offset = row
            floor = db.execute(
                "SELECT below FROM erased WHERE cell = ? AND mark = ?", (number, Tombstones.FLOOR)
            ).fetchone()
            offset = max([at for at in (offset, *(floor or ())) if at is not None], default=None)
            _drop_profiles(db, number, "AND client IN (SELECT value FROM json_each(?))", _texts(clients))
            if offset is not None:
                db.executemany(
                    "INSERT INTO erased VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET below = max(below, excluded.below)",
                    [(number, Tombstones.mark(client), offset) for client in clients],
                )
            db.execute("UPDATE cells SET token = ? WHERE id = ?", (entropy.token_hex(16), number))

    def erase_decisions(self, cell: int, clients: Sequence[ClientKey], alerts: Sequence[str]) -> None:
        check_decision_cell(cell, self.decision_cells)
        with self._for_good() as db:
            db.execute(
                "DELETE FROM decisions WHERE cell = ? AND client IN (SELECT value FROM json_each(?))",
                (cell, _texts(clients)),
            )
            _begin_feed(db, cell)
            for alert in alerts:
                db.execute(
                    "DELETE FROM alerts WHERE cell = ?1 AND substr(uid, 1, length(?2)) = ?2", (cell, f"{alert}/")
                )
                db.execute("DELETE FROM sent WHERE cell = ?1 AND substr(uid, 1, length(?2)) = ?2", (cell, f"{alert}/"))
            db.execute(
                "UPDATE decision_cells SET token = ?, revision = revision + 1 WHERE cell = ?",
                (entropy.token_hex(16), cell),
            )

    def reset(self, cell: str, offset: int | None) -> None:
        with self._write() as db:
            row = db.execute("SELECT id FROM cells WHERE name = ?", (cell,)).fetchone()
            if row is None:
                return
            db.execute(
                "INSERT INTO erased SELECT id, ?, next_offset FROM cells WHERE id = ? AND next_offset IS NOT NULL"
                " ON CONFLICT DO UPDATE SET below = max(below, excluded.below)",
                (Tombstones.FLOOR, *row),
            )
            _drop_profiles(db, row[0])
            db.execute("DELETE FROM counters WHERE cell = ?", row)
            db.execute("DELETE FROM dead_counts WHERE cell = ?", row)
            for table in ("joins", "sources", "arrivals"):
                db.execute(f"DELETE FROM {table} WHERE cell = ?", row)  # noqa: S608
            db.execute(
                "UPDATE cells SET token = ?, generation = ?, next_offset = ?, attempts = 0, sketch = x'' WHERE id = ?",
                (entropy.token_hex(16), entropy.token_hex(8), offset, *row),
            )

    def export(self) -> Iterator[Exported]:
        # On a connection of its own: whoever takes the items slowly may use the store meanwhile.
        with self._translated(), contextlib.closing(self._connect()) as db:
            db.execute("BEGIN")
            for cell, record in _records(db, self.decision_cells):
                yield exported(cell, record)

    def restore(self, items: Iterable[Exported]) -> None:
        with self._write() as db:
            if any(db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in _FILLED):  # noqa: S608
                raise InvalidInput("store: a snapshot can only be restored into an empty store")
            writing = _Restoring(db, self.decision_cells)
            records = (record_of(item) for item in items)
            while batch := list(islice(records, _BATCH)):
                for cell, record in batch:
                    writing.write(cell, record)

    def swap_fields(self, cell: str, swaps: Sequence[FieldSwap]) -> int:
        profile = "(SELECT p.id FROM profiles p JOIN cells c ON c.id = p.cell WHERE c.name = ? AND client = ? AND expires_s > ?)"
        now_s = int(self._now_s())
        with self._for_good() as db:
            return db.executemany(
                f"UPDATE fields SET value = ? WHERE profile = {profile} AND name = ? AND value = ?",  # noqa: S608
                [(s.after, cell, client_text(s.client), now_s, s.field, s.before) for s in swaps],
            ).rowcount

    def swap_decisions(self, cell: int, rows: Sequence[RowSwap], alerts: Sequence[AlertSwap]) -> int:
        check_decision_cell(cell, self.decision_cells)
        with self._for_good() as db:
            done = db.executemany(
                "UPDATE decisions SET row = ? WHERE cell = ? AND client = ? AND row = ?",
                [(s.after, cell, client_text(s.client), s.before) for s in rows],
            ).rowcount
            done += db.executemany(
                "UPDATE alerts SET body = ? WHERE cell = ? AND uid = ? AND body = ?",
                [(s.after, cell, s.uid, s.before) for s in alerts],
            ).rowcount
        return done

    def scrub(self) -> bool:
        with self._translated():
            db = self._connection()
            db.execute("VACUUM")
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise Unavailable(f"store {self.path}: in use, so erased data is still in its write-ahead log")
        return True


_FILLED = ("cells", "decision_cells", "decisions", "alerts", "entries", "audit")


def _texts(clients: Sequence[ClientKey]) -> str:
    return json.dumps([client_text(client) for client in clients])


def _drop_profiles(db: sqlite3.Connection, cell: int, which: str = "", *more: str) -> None:
    db.execute(
        f"DELETE FROM fields WHERE profile IN (SELECT id FROM profiles WHERE cell = ? {which})",  # noqa: S608
        (cell, *more),
    )
    db.execute(f"DELETE FROM profiles WHERE cell = ? {which}", (cell, *more))  # noqa: S608


def _begin_feed(db: sqlite3.Connection, cell: int) -> None:
    db.execute("DELETE FROM feed WHERE cell = ?", (cell,))
    db.execute("INSERT OR REPLACE INTO feeds VALUES (?, ?, 0)", (cell, entropy.token_hex(4)))


# --- reading everything


def _records(db: sqlite3.Connection, decision_cells: int) -> Iterator[tuple[str, Record]]:
    found = dict(db.execute("SELECT name, value FROM layout").fetchall())
    yield "", Layout(*(found.get(name, "") for name in LAYOUT))
    for number, name, offset, sketch in db.execute("SELECT id, name, next_offset, sketch FROM cells ORDER BY id"):
        counters = dict(db.execute("SELECT name, value FROM counters WHERE cell = ?", (number,)))
        refused = dict(db.execute("SELECT reason, value FROM dead_counts WHERE cell = ?", (number,)))
        yield name, ProfileCell(offset, counters, refused, sketch)
        for numbered, taken in db.execute("SELECT numbered, taken FROM joins WHERE cell = ?", (number,)):
            yield (
                name,
                JoinState(
                    numbered, taken, dict(db.execute("SELECT source, mark FROM sources WHERE cell = ?", (number,)))
                ),
            )
        for arrival in db.execute("SELECT number, content FROM arrivals WHERE cell = ? ORDER BY number", (number,)):
            yield name, StoredArrival(*arrival)
        for mark, below in db.execute("SELECT mark, below FROM erased WHERE cell = ?", (number,)):
            yield name, Tombstone(mark, below)
        letters = "SELECT place, at, reason, detail, sha256, head FROM dead WHERE cell = ? ORDER BY id"
        for letter in db.execute(letters, (number,)):
            yield name, StoredLetter(*letter)
        profiles = "SELECT id, client, touched, expires_s FROM profiles WHERE cell = ? ORDER BY touched, client"
        for profile, client, touched, expires_s in db.execute(profiles, (number,)):
            fields = dict(db.execute("SELECT name, value FROM fields WHERE profile = ?", (profile,)))
            yield name, StoredProfile(client, touched, expires_s, fields)
    for cell in range(decision_cells):
        rows = "SELECT client, row, state, rank, until_s, enforced, expires_s FROM decisions WHERE cell = ?"
        for row in db.execute(rows, (cell,)):
            yield str(cell), StoredRow(*row)
        for alert in db.execute("SELECT uid, time_ms, body, stored_ms FROM alerts WHERE cell = ? ORDER BY id", (cell,)):
            yield str(cell), AlertRecord(*alert)
        sent = "SELECT destination, s.uid, max(stored_ms) FROM sent s JOIN alerts a USING (cell, uid) WHERE cell = ?"
        for delivery in db.execute(f"{sent} GROUP BY destination, s.uid", (cell,)):
            yield str(cell), Delivery(*delivery)
    revision = db.execute("SELECT revision FROM operators").fetchone()
    if revision:
        yield "", OperatorRevision(*revision)
    for entry in db.execute("SELECT tenant, kind, key, value, expires_s FROM entries"):
        yield "", OperatorEntry(*entry)
    for number, row in db.execute("SELECT number, row FROM audit ORDER BY number"):
        yield "", AuditRecord(number, row)


# --- writing everything


class _Restoring:
    """Writes records into an empty store, in the transaction of `db`."""

    def __init__(self, db: sqlite3.Connection, decision_cells: int) -> None:
        self._db, self._decision_cells = db, decision_cells
        self._cells: dict[str, int] = {}

    def write(self, cell: str, record: Record) -> None:
        match record:
            case Layout():
                self._layout(record)
            case ProfileCell():
                self._profile_cell(cell, record)
            case JoinState():
                self._join(self._cells[cell], record)
            case StoredProfile():
                self._profile(self._cells[cell], record)
            case StoredRow():
                self._row(int(cell), record)
            case Delivery():
                self._db.execute(
                    "INSERT INTO sent SELECT cell, ?, uid, id FROM alerts WHERE cell = ? AND uid = ?"
                    " ORDER BY id DESC LIMIT 1",
                    (record.destination, int(cell), record.uid),
                )
            case _:
                statement, values = _plain(record, cell, self._cells.get(cell, -1))
                self._db.execute(statement, values)

    def _layout(self, record: Layout) -> None:
        values = (record.schema, record.decision_cells, record.secrets_id)
        made = {LAYOUT[1]: str(self._decision_cells)}
        found = made | dict(self._db.execute("SELECT name, value FROM layout").fetchall())
        for name, value in zip(LAYOUT, values, strict=True):
            if found.get(name, value) != value:
                raise InvalidInput(layout_differs(name, found[name], value).replace("this process", "the snapshot"))
        self._db.executemany("INSERT OR REPLACE INTO layout VALUES (?, ?)", zip(LAYOUT, values, strict=True))

    def _profile_cell(self, name: str, record: ProfileCell) -> None:
        added = self._db.execute(
            "INSERT INTO cells (name, token, generation, next_offset, sketch) VALUES (?, ?, ?, ?, ?)",
            (name, entropy.token_hex(16), entropy.token_hex(8), record.offset, record.sketch),
        )
        number = self._cells[name] = added.lastrowid or 0
        self._db.executemany("INSERT INTO counters VALUES (?, ?, ?)", [(number, *c) for c in record.counters.items()])
        self._db.executemany("INSERT INTO dead_counts VALUES (?, ?, ?)", [(number, *c) for c in record.dead.items()])

    def _join(self, cell: int, record: JoinState) -> None:
        self._db.execute("INSERT INTO joins VALUES (?, ?, ?, '')", (cell, record.numbered, record.taken))
        self._db.executemany("INSERT INTO sources VALUES (?, ?, ?)", [(cell, *s) for s in record.sources.items()])

    def _profile(self, cell: int, record: StoredProfile) -> None:
        v = decision_cell(client_from_text(record.client), self._decision_cells)
        added = self._db.execute(
            "INSERT INTO profiles (cell, client, decision_cell, touched, expires_s) VALUES (?, ?, ?, ?, ?)",
            (cell, record.client, v, record.touched, record.expires_s),
        )
        self._db.executemany(
            "INSERT INTO fields VALUES (?, ?, ?)", [(added.lastrowid, *f) for f in record.fields.items()]
        )

    def _row(self, cell: int, record: StoredRow) -> None:
        client = client_from_text(record.client)
        if not self._db.execute("SELECT 1 FROM feeds WHERE cell = ?", (cell,)).fetchone():
            _begin_feed(self._db, cell)
        self._db.execute(
            "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (record.client, cell, client.tenant, client.model, record.row, record.state, record.rank, record.until_s,
             record.enforced, record.expires_s),
        )  # fmt: skip


def _plain(record: Record, cell: str, number: int) -> tuple[str, tuple[object, ...]]:
    """The statement that writes a record as it is; `number`: of its profile cell."""
    match record:
        case Tombstone():
            return "INSERT INTO erased VALUES (?, ?, ?)", (number, record.mark, record.below)
        case StoredArrival():
            proof = entropy.token_hex(20)
            return "INSERT INTO arrivals VALUES (?, ?, ?, ?)", (number, record.number, proof, record.content)
        case StoredLetter():
            return (
                "INSERT INTO dead (cell, place, at, reason, detail, sha256, head) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, record.place, record.offset, record.reason, record.detail, record.sha256, record.head),
            )
        case AlertRecord():
            return (
                "INSERT INTO alerts (cell, uid, time_ms, body, stored_ms) VALUES (?, ?, ?, ?, ?)",
                (int(cell), record.uid, record.time_ms, record.body, record.stored_ms),
            )
        case OperatorRevision():
            after = record.revision + REVISION_JUMP
            return "INSERT INTO operators VALUES (1, ?, ?)", (after, after)
        case OperatorEntry():
            return (
                "INSERT INTO entries (tenant, kind, key, value, expires_s) VALUES (?, ?, ?, ?, ?)",
                Entry(record.tenant, record.kind, record.key, record.value, record.expires_s),
            )
        case AuditRecord():
            return "INSERT INTO audit VALUES (?, ?)", (record.number, record.row)
    raise InvalidInput(f"snapshot: unexpected {type(record).__name__}")
