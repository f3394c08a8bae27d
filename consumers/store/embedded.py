"""The embedded store: one SQLite file, for `replay` and for a service on one machine.

Rules:

* Every call that writes is one ``BEGIN IMMEDIATE`` transaction, which makes the same checks as the Redis script of
  that name; reads that must agree with each other share one transaction, hence one snapshot (WAL).
* Several threads and processes may use one file: a connection per thread, a busy timeout between processes. A lock
  that does not come, a full disk, an I/O error are `Unavailable`; a damaged file is `CorruptState`; another program's
  file is `Refused` and stays as it was.
* After a power loss the newest commits may be missing (``synchronous = NORMAL``), never one in the middle: the log
  replays them.
* Times are the machine's clock: profiles live 30 days after their last commit, alerts 30 days after they were stored.
* The file is created readable by its owner only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets as entropy
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from consumers.errors import CorruptState, Fenced, LeaseHeld, Refused, Rewound, Unavailable
from consumers.store import (
    DECISION_CELLS,
    SCHEMA_VERSION,
    Checkpoint,
    Claim,
    Cursor,
    DeadLetter,
    DecisionClaim,
    DecisionRow,
    OutboxAlert,
    Outcome,
    Shards,
    Touched,
    decision_cell,
)
from consumers.store.layout import (
    ALERT_TTL_MS,
    LAYOUT,
    PROFILE_TTL_S,
    check_checkpoint,
    check_decision_cell,
    check_lease,
    check_limit,
    check_outcome,
    client_from_text,
    client_text,
    layout_differs,
)
from detector.query import ClientKey

APPLICATION_ID = 0x51574152
"""Marks a SQLite file as ours ("QWAR")."""

_TABLES = """
CREATE TABLE IF NOT EXISTS layout (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cells (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL, generation TEXT NOT NULL,
    next_offset INTEGER);
CREATE TABLE IF NOT EXISTS counters (
    cell INTEGER, name TEXT, value INTEGER NOT NULL, PRIMARY KEY (cell, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS profiles (
    id INTEGER PRIMARY KEY, cell INTEGER NOT NULL, client TEXT NOT NULL, decision_cell INTEGER NOT NULL,
    touched INTEGER NOT NULL, expires_s INTEGER NOT NULL, UNIQUE (cell, client));
CREATE INDEX IF NOT EXISTS profiles_touched ON profiles (cell, decision_cell, touched);
CREATE TABLE IF NOT EXISTS fields (profile INTEGER, name TEXT, value BLOB NOT NULL, PRIMARY KEY (profile, name));
CREATE TABLE IF NOT EXISTS dead (
    id INTEGER PRIMARY KEY AUTOINCREMENT, cell INTEGER NOT NULL, place TEXT NOT NULL, at INTEGER NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, sha256 TEXT NOT NULL, head BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS dead_cell ON dead (cell, id);
CREATE TABLE IF NOT EXISTS dead_counts (
    cell INTEGER, reason TEXT, value INTEGER NOT NULL, PRIMARY KEY (cell, reason)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decision_cells (
    cell INTEGER PRIMARY KEY, token TEXT NOT NULL, revision INTEGER NOT NULL, process TEXT,
    lease_until_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS detectors (process TEXT PRIMARY KEY, until_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cursors (
    cell INTEGER, profile_cell TEXT, generation TEXT NOT NULL, next_offset INTEGER NOT NULL,
    PRIMARY KEY (cell, profile_cell)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decisions (
    client TEXT PRIMARY KEY, cell INTEGER NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
    row BLOB NOT NULL, state TEXT NOT NULL, rank REAL NOT NULL, until_s INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS decisions_rank ON decisions (tenant, model, rank DESC, client);
CREATE TABLE IF NOT EXISTS alerts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, cell INTEGER NOT NULL, uid TEXT NOT NULL, time_ms INTEGER NOT NULL,
    body BLOB NOT NULL, stored_ms INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS alerts_cell ON alerts (cell, id);
CREATE TABLE IF NOT EXISTS sent (
    cell INTEGER, destination TEXT, uid TEXT, entry INTEGER NOT NULL,
    PRIMARY KEY (cell, destination, uid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (
    cell INTEGER, destination TEXT, entry INTEGER NOT NULL, PRIMARY KEY (cell, destination)) WITHOUT ROWID;
"""

_PASSING = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL,
}
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_CLOSED_TO_US = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}

_BUSY_TIMEOUT_S = 10.0
_PAGE = 500
_PURGE_EVERY_S = 86_400


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly."""


class EmbeddedStore:
    """The store in the SQLite file `path`, which is created if it is missing.

    now_s  the clock behind leases and retention, seconds since the epoch; processes that share the file must share it

    Raises Refused when the file cannot be opened, is no QueryWarden store, or was written by a newer schema.
    """

    def __init__(self, path: str | os.PathLike[str], *, now_s: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self._now_s = now_s
        self._local = threading.local()
        self._guard = threading.Lock()
        # Weak, so that a thread that ends leaves its connection to the garbage collector.
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._closed = False
        self._purged_s: dict[int, float] = {}
        with self._translated(), contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            with self._write() as db:
                self._adopt(db)
            self._switch_to_wal()
        except CorruptState as error:
            raise Refused(f"store: {self.path} is not a SQLite file, or is damaged") from error

    # --- layout and secrets

    def prepare(self, secrets_id: str) -> None:
        expected = dict(zip(LAYOUT, (str(SCHEMA_VERSION), str(DECISION_CELLS), secrets_id), strict=True))
        with self._write() as db:
            if not db.execute("SELECT 1 FROM layout").fetchone():
                db.executemany("INSERT INTO layout VALUES (?, ?)", expected.items())
            found = dict(db.execute("SELECT name, value FROM layout").fetchall())
        for name, ours in expected.items():
            if found.get(name) != ours:
                raise Refused(layout_differs(name, found.get(name), ours))

    # --- ingest: one profile cell

    def claim(self, cell: str, token: str) -> Claim:
        with self._write() as db:
            db.execute(
                "INSERT INTO cells (name, token, generation) VALUES (?, ?, ?)"
                " ON CONFLICT (name) DO UPDATE SET token = excluded.token",
                (cell, token, entropy.token_hex(8)),
            )
            row = db.execute("SELECT id, generation, next_offset FROM cells WHERE name = ?", (cell,)).fetchone()
            counters = db.execute("SELECT name, value FROM counters WHERE cell = ?", (row[0],)).fetchall()
        return Claim(row[1], row[2], dict(counters))

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        with self._read() as db:
            number = _owned(db, cell, token, offset)
            return self._fields(db, number, clients)

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        check_checkpoint(checkpoint)
        now_s = int(self._now_s())
        with self._write() as db:
            cell = _owned(db, checkpoint.cell, token, checkpoint.expected_offset)
            self._write_profiles(db, cell, checkpoint, now_s)
            db.executemany(
                "INSERT INTO dead (cell, place, at, reason, detail, sha256, head) VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(cell, d.place, d.offset, d.reason, d.detail, d.sha256, d.head) for d in checkpoint.dead],
            )
            db.executemany(
                "INSERT INTO dead_counts VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET value = value + 1",
                [(cell, d.reason) for d in checkpoint.dead],
            )
            db.executemany(
                "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
                [(cell, name, value) for name, value in checkpoint.counters.items()],
            )
            db.execute("UPDATE cells SET next_offset = ? WHERE id = ?", (checkpoint.next_offset, cell))

    def dead_letters(self, cell: str, limit: int) -> list[tuple[str, DeadLetter]]:
        with self._read() as db:
            rows = db.execute(
                "SELECT d.id, place, at, reason, detail, sha256, head FROM dead d"
                " JOIN cells c ON c.id = d.cell WHERE c.name = ? ORDER BY d.id LIMIT ?",
                (cell, max(limit, 0)),
            ).fetchall()
        return [(str(row[0]), DeadLetter(*row[1:])) for row in rows]

    def dead_letters_shipped(self, cell: str, entries: Sequence[str]) -> None:
        with self._write() as db:
            db.executemany(
                "DELETE FROM dead WHERE id = ? AND cell = (SELECT id FROM cells WHERE name = ?)",
                [(int(entry), cell) for entry in entries],
            )

    # --- detect: decision cells

    def cells(self) -> list[str]:
        with self._read() as db:
            return [name for (name,) in db.execute("SELECT name FROM cells ORDER BY name")]

    def touched(self, cell: str, decision_cells: Mapping[int, int], limit: int) -> dict[int, Touched]:
        check_limit(limit)
        with self._read() as db:
            number, generation, offset = _cell(db, cell)
            return {
                v: Touched(generation, offset or 0, *_touched(db, number, v, cursor, limit, offset or 0))
                for v, cursor in decision_cells.items()
            }

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        with self._read() as db:
            number, generation, offset = _cell(db, cell)
            return Shards(generation, offset or 0, self._fields(db, number, clients))

    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        check_decision_cell(cell)
        check_lease(lease_ms)
        now_ms = int(self._now_s() * 1000)
        with self._write() as db:
            held = db.execute(
                "SELECT lease_until_ms FROM decision_cells WHERE cell = ? AND process <> ? AND lease_until_ms > ?",
                (cell, process, now_ms),
            ).fetchone()
            if held:
                raise LeaseHeld(cell, held[0] - now_ms)
            db.execute(
                "INSERT INTO decision_cells VALUES (?, ?, 0, ?, ?) ON CONFLICT (cell) DO UPDATE"
                " SET token = excluded.token, process = excluded.process, lease_until_ms = excluded.lease_until_ms",
                (cell, token, process, now_ms + lease_ms),
            )
            (revision,) = db.execute("SELECT revision FROM decision_cells WHERE cell = ?", (cell,)).fetchone()
            cursors = db.execute("SELECT profile_cell, generation, next_offset FROM cursors WHERE cell = ?", (cell,))
            return DecisionClaim(revision, {name: Cursor(generation, offset) for name, generation, offset in cursors})

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]:
        check_decision_cell(cell)
        with self._read() as db:
            _owned_decisions(db, cell, token, revision)
            rows = db.execute(
                "SELECT client, row, state, rank, until_s FROM decisions"
                " WHERE cell = ? AND client IN (SELECT value FROM json_each(?))",
                (cell, json.dumps([client_text(client) for client in clients])),
            ).fetchall()
        return {client_from_text(row[0]): DecisionRow(*row[1:]) for row in rows}

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        check_outcome(outcome)
        check_lease(lease_ms)
        cell, now_ms = outcome.cell, int(self._now_s() * 1000)
        with self._write() as db:
            _owned_decisions(db, cell, token, revision)
            db.executemany(
                "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (client) DO UPDATE SET"
                " row = excluded.row, state = excluded.state, rank = excluded.rank, until_s = excluded.until_s",
                [
                    (client_text(c), cell, c.tenant, c.model, row.row, row.state, float(row.rank), row.until_s)
                    for c, row in outcome.rows.items()
                ],
            )
            db.executemany(
                "INSERT INTO alerts (cell, uid, time_ms, body, stored_ms) VALUES (?, ?, ?, ?, ?)",
                [(cell, alert.uid, alert.time_ms, alert.body, now_ms) for alert in outcome.alerts],
            )
            db.execute("DELETE FROM alerts WHERE cell = ? AND stored_ms < ?", (cell, now_ms - ALERT_TTL_MS))
            db.executemany(
                "INSERT INTO cursors VALUES (?, ?, ?, ?) ON CONFLICT (cell, profile_cell) DO UPDATE"
                " SET generation = excluded.generation, next_offset = excluded.next_offset",
                [(cell, name, cursor.generation, cursor.offset) for name, cursor in outcome.cursors.items()],
            )
            db.execute(
                "UPDATE decision_cells SET process = ?, lease_until_ms = ?, revision = ? WHERE cell = ?",
                (process, now_ms + lease_ms, revision + 1, cell),
            )
        return revision + 1

    def release_decisions(self, cell: int, process: str) -> None:
        with self._write() as db:
            db.execute(
                "UPDATE decision_cells SET process = NULL, lease_until_ms = 0 WHERE cell = ? AND process = ?",
                (cell, process),
            )

    def attend(self, process: str, duration_ms: int) -> int:
        now_ms = int(self._now_s() * 1000)
        with self._write() as db:
            db.execute("DELETE FROM detectors WHERE process = ? OR until_ms <= ?", (process, now_ms))
            if duration_ms:
                db.execute("INSERT INTO detectors VALUES (?, ?)", (process, now_ms + duration_ms))
            return int(db.execute("SELECT COUNT(*) FROM detectors").fetchone()[0])

    def outbox(self, cell: int, destination: str, limit: int) -> list[tuple[str, OutboxAlert]]:
        with self._read() as db:
            rows = db.execute(
                "SELECT id, uid, time_ms, body FROM alerts a WHERE cell = ?1 AND id > ?3 AND NOT EXISTS"
                " (SELECT 1 FROM sent WHERE cell = ?1 AND destination = ?2 AND uid = a.uid) ORDER BY id LIMIT ?4",
                (cell, destination, _mark(db, cell, destination), max(limit, 0)),
            ).fetchall()
        return [(str(row[0]), OutboxAlert(*row[1:])) for row in rows]

    def sent(self, cell: int, destination: str, entry: str, uid: str) -> None:
        with self._write() as db:
            db.execute(
                "INSERT INTO sent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET entry = excluded.entry",
                (cell, destination, uid, int(entry)),
            )
            # The mark moves to just before the first alert that is not delivered: `outbox` looks no further back.
            mark = db.execute(
                "SELECT coalesce((SELECT min(id) - 1 FROM alerts a WHERE cell = ?1 AND id > ?3 AND NOT EXISTS"
                " (SELECT 1 FROM sent WHERE cell = ?1 AND destination = ?2 AND uid = a.uid)),"
                " (SELECT max(id) FROM alerts WHERE cell = ?1), ?3)",
                (cell, destination, _mark(db, cell, destination)),
            ).fetchone()[0]
            db.execute(
                "INSERT INTO marks VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET entry = excluded.entry",
                (cell, destination, mark),
            )
            # Kept as long as the alerts: a uid that is issued again is not delivered again.
            db.execute(
                "DELETE FROM sent WHERE cell = ?1 AND destination = ?2"
                " AND entry < (SELECT min(id) FROM alerts WHERE cell = ?1)",
                (cell, destination),
            )

    # --- readers

    def decisions(
        self, tenant: str, model: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[ClientKey, DecisionRow]]:
        with self._read() as db:
            models = db.execute("SELECT DISTINCT model FROM decisions WHERE tenant = ? ORDER BY model", (tenant,))
            names = [name for (name,) in models] if model is None else [model]
        for name in names:
            with self._read() as db:
                ranked = db.execute(
                    "SELECT client FROM decisions WHERE tenant = ? AND model = ? ORDER BY rank DESC, client LIMIT ?",
                    (tenant, name, -1 if limit is None else max(limit, 0)),
                ).fetchall()
            clients = [text for (text,) in ranked]
            # Page by page, each in its own short transaction: a slow reader must not hold the log file of SQLite.
            for start in range(0, len(clients), _PAGE):
                yield from self._rows(clients[start : start + _PAGE])

    def decided(self, clients: Sequence[ClientKey]) -> dict[ClientKey, DecisionRow]:
        return dict(self._rows([client_text(client) for client in clients]))

    def alerts(self, limit: int | None = None) -> list[OutboxAlert]:
        with self._read() as db:
            rows = db.execute(
                "SELECT uid, time_ms, body FROM alerts WHERE stored_ms >= ? ORDER BY time_ms DESC, uid DESC LIMIT ?",
                (int(self._now_s() * 1000) - ALERT_TTL_MS, -1 if limit is None else max(limit, 0)),
            ).fetchall()
        return [OutboxAlert(*row) for row in reversed(rows)]

    def dead_letter_counts(self) -> dict[str, int]:
        with self._read() as db:
            return dict(db.execute("SELECT reason, sum(value) FROM dead_counts GROUP BY reason").fetchall())

    def pressure(self) -> float:
        return 0.0

    def close(self) -> None:
        with self._guard:
            self._closed = True
            for db in list(self._open):
                db.close()
            self._open.clear()

    # --- inside

    def _adopt(self, db: sqlite3.Connection) -> None:
        """Create the tables in an empty file; check the marks of any other."""
        mark = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if mark == 0 and not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif mark != APPLICATION_ID:
            raise Refused(f"store: {self.path} belongs to another program")
        elif version != SCHEMA_VERSION:
            raise Refused(f"store: {self.path} has schema {version}, this version works with schema {SCHEMA_VERSION}")

    def _switch_to_wal(self) -> None:
        """Once in the life of a file. It needs the file for itself, and SQLite's busy timeout does not cover that."""
        for attempt in range(1000):
            try:
                self._connection().execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if attempt == 999 or error.sqlite_errorcode & 0xFF not in _PASSING:
                    raise Unavailable(f"store {self.path}: {error}") from error
                time.sleep(0.01)

    def _connection(self) -> sqlite3.Connection:
        db: _Connection | None = getattr(self._local, "db", None)
        if self._closed:
            raise Unavailable(f"store {self.path}: closed")
        if db is None:
            # Only its own thread uses a connection, but `close` may come from another.
            db = sqlite3.connect(
                self.path,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
                cached_statements=64,
            )
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA temp_store = MEMORY")
            db.execute("PRAGMA cache_size = -32768")  # 32 MiB
            # Profiles are rewritten over and over: copying them home every 32 MiB instead of 4 saves a tenth.
            db.execute("PRAGMA wal_autocheckpoint = 8192")
            self._local.db = db
            with self._guard:
                self._open.add(db)
        return db

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
            if code in _PASSING or self._closed:
                raise Unavailable(f"store {self.path}: {error}") from error
            if code in _BROKEN:
                raise CorruptState(f"store {self.path}: {error}") from error
            if code in _CLOSED_TO_US:
                raise Refused(f"store {self.path}: {error}") from error
            raise
        except OSError as error:
            raise Refused(f"store {self.path}: {error.strerror}") from error

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._translated():
            db = self._connection()
            db.execute(begin)
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _write(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN IMMEDIATE")

    def _read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN")

    def _write_profiles(self, db: sqlite3.Connection, cell: int, checkpoint: Checkpoint, now_s: int) -> None:
        if now_s - self._purged_s.get(cell, 0.0) >= _PURGE_EVERY_S:
            gone = "SELECT id FROM profiles WHERE cell = ? AND expires_s <= ?"
            db.execute(f"DELETE FROM fields WHERE profile IN ({gone})", (cell, now_s))  # noqa: S608
            db.execute("DELETE FROM profiles WHERE cell = ? AND expires_s <= ?", (cell, now_s))
            self._purged_s[cell] = now_s
        texts = {client: client_text(client) for client in checkpoint.profiles}
        db.executemany(
            "INSERT INTO profiles (cell, client, decision_cell, touched, expires_s) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (cell, client) DO UPDATE SET touched = excluded.touched, expires_s = excluded.expires_s",
            [
                (cell, text, decision_cell(client), checkpoint.next_offset, now_s + PROFILE_TTL_S)
                for client, text in texts.items()
            ],
        )
        profile = "(SELECT id FROM profiles WHERE cell = ? AND client = ?)"
        changes = checkpoint.profiles.items()
        fields = [(texts[client], name, value) for client, some in changes for name, value in some.items()]
        db.executemany(
            f"INSERT INTO fields VALUES ({profile}, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",  # noqa: S608
            [(cell, text, name, value) for text, name, value in fields if value is not None],
        )
        db.executemany(
            f"DELETE FROM fields WHERE profile = {profile} AND name = ?",  # noqa: S608
            [(cell, text, name) for text, name, value in fields if value is None],
        )

    def _fields(
        self, db: sqlite3.Connection, cell: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        rows = db.execute(
            "SELECT client, name, value FROM profiles p JOIN fields f ON f.profile = p.id"
            " WHERE cell = ? AND expires_s > ? AND client IN (SELECT value FROM json_each(?))",
            (cell, int(self._now_s()), json.dumps([client_text(client) for client in clients])),
        )
        found: dict[str, dict[str, bytes]] = {}
        for client, name, value in rows:
            found.setdefault(client, {})[name] = value
        return {client_from_text(client): fields for client, fields in found.items()}

    def _rows(self, clients: Sequence[str]) -> list[tuple[ClientKey, DecisionRow]]:
        with self._read() as db:
            rows = db.execute(
                "SELECT client, row, state, rank, until_s FROM decisions"
                " WHERE client IN (SELECT value FROM json_each(?))",
                (json.dumps(clients),),
            ).fetchall()
        found = {row[0]: DecisionRow(*row[1:]) for row in rows}
        return [(client_from_text(client), found[client]) for client in clients if client in found]


def _cell(db: sqlite3.Connection, cell: str) -> tuple[int, str, int | None]:
    """Number, generation, next offset of a profile cell; (-1, "", None) if it was never claimed."""
    row: tuple[int, str, int | None] | None = db.execute(
        "SELECT id, generation, next_offset FROM cells WHERE name = ?", (cell,)
    ).fetchone()
    return row or (-1, "", None)


def _owned(db: sqlite3.Connection, cell: str, token: str, offset: int | None) -> int:
    """Number of the cell, if the token and the offset are the stored ones."""
    row = db.execute("SELECT id, token, next_offset FROM cells WHERE name = ?", (cell,)).fetchone()
    if row is None or row[1] != token:
        raise Fenced(f"{cell}: another process owns this cell")
    if row[2] != offset:
        raise Rewound(cell, row[2])
    return int(row[0])


def _owned_decisions(db: sqlite3.Connection, cell: int, token: str, revision: int) -> None:
    row = db.execute("SELECT token, revision FROM decision_cells WHERE cell = ?", (cell,)).fetchone()
    if row is None or row[0] != token:
        raise Fenced(f"decisions:{cell}: another process owns this cell")
    if row[1] != revision:
        raise Rewound(f"decisions:{cell}", row[1])


def _touched(
    db: sqlite3.Connection, cell: int, v: int, cursor: int, limit: int, offset: int
) -> tuple[int, list[ClientKey]]:
    """How far the answer is complete, and the clients; a commit (one offset) is never cut."""
    after = "SELECT client, touched FROM profiles WHERE cell = ? AND decision_cell = ? AND touched > ?"
    rows: list[Any] = db.execute(f"{after} ORDER BY touched, client LIMIT ?", (cell, v, cursor, limit + 1)).fetchall()
    reached = offset
    if len(rows) > limit:
        first, cut = rows[0][1], rows[-1][1]
        if first == cut:
            # The oldest commit alone exceeds the limit: give it whole, or the reader would never get past it.
            rows = db.execute(f"{after} AND touched = ? ORDER BY client", (cell, v, cursor, first)).fetchall()
            if db.execute(f"{after} LIMIT 1", (cell, v, first)).fetchone():
                reached = first
        else:
            rows = [row for row in rows if row[1] < cut]
            reached = rows[-1][1]
    return reached, [client_from_text(client) for client, _ in rows]


def _mark(db: sqlite3.Connection, cell: int, destination: str) -> int:
    """Every alert up to this entry is delivered to the destination."""
    row = db.execute("SELECT entry FROM marks WHERE cell = ? AND destination = ?", (cell, destination)).fetchone()
    return int(row[0]) if row else 0
