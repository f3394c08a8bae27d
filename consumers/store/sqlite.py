"""The file of the embedded store: tables, upgrades, connections, transactions.

Rules:

* A connection per thread, a busy timeout between processes. A lock that cannot be taken in time, a full disk and an I/O error are
  `Unavailable`; a damaged file is `CorruptState`; another program's file, or one of a newer schema, is `Refused` and stays as it was.
* A file of an older schema is upgraded when it is opened, in one transaction (`_UPGRADES`).
* After a power loss the newest transactions may be missing (``synchronous = NORMAL``), never one in the middle.
* The file is created readable by its owner only.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from consumers.errors import ConfigError, CorruptState, Unavailable
from consumers.store import DECISION_CELLS, SCHEMA_VERSION
from consumers.store.layout import schema_differs

APPLICATION_ID = 0x51574152
"""Marks a SQLite file as ours ("QWAR")."""

_TABLES = """
CREATE TABLE IF NOT EXISTS layout (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cells (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL, generation TEXT NOT NULL,
    next_offset INTEGER, attempts INTEGER NOT NULL DEFAULT 0, sketch BLOB NOT NULL DEFAULT x'');
CREATE TABLE IF NOT EXISTS counters (
    cell INTEGER, name TEXT, value INTEGER NOT NULL, PRIMARY KEY (cell, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS profiles (
    id INTEGER PRIMARY KEY, cell INTEGER NOT NULL, client TEXT NOT NULL, decision_cell INTEGER NOT NULL,
    touched INTEGER NOT NULL, expires_s INTEGER NOT NULL, UNIQUE (cell, client));
CREATE INDEX IF NOT EXISTS profiles_touched ON profiles (cell, decision_cell, touched);
CREATE TABLE IF NOT EXISTS fields (profile INTEGER, name TEXT, value BLOB NOT NULL, PRIMARY KEY (profile, name));
CREATE TABLE IF NOT EXISTS erased (
    cell INTEGER, mark TEXT, below INTEGER NOT NULL, PRIMARY KEY (cell, mark)) WITHOUT ROWID;
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
    row BLOB NOT NULL, state TEXT NOT NULL, rank REAL NOT NULL, until_s INTEGER NOT NULL,
    enforced TEXT NOT NULL DEFAULT 'clear', expires_s INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS decisions_rank ON decisions (tenant, model, rank DESC, client);
CREATE INDEX IF NOT EXISTS decisions_held ON decisions (cell) WHERE state IN ('throttle', 'block');
CREATE TABLE IF NOT EXISTS feeds (
    cell INTEGER PRIMARY KEY, generation TEXT NOT NULL, gone INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS feed (
    id INTEGER PRIMARY KEY AUTOINCREMENT, cell INTEGER NOT NULL, client TEXT NOT NULL, state TEXT NOT NULL,
    enforced TEXT NOT NULL, until_s INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS feed_cell ON feed (cell, id);
CREATE TABLE IF NOT EXISTS alerts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, cell INTEGER NOT NULL, uid TEXT NOT NULL, time_ms INTEGER NOT NULL,
    body BLOB NOT NULL, stored_ms INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS alerts_cell ON alerts (cell, id);
CREATE TABLE IF NOT EXISTS sent (
    cell INTEGER, destination TEXT, uid TEXT, entry INTEGER NOT NULL,
    PRIMARY KEY (cell, destination, uid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS marks (
    cell INTEGER, destination TEXT, entry INTEGER NOT NULL, PRIMARY KEY (cell, destination)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS operators (
    one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL, gone INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
    kind TEXT, tenant TEXT, key TEXT, value BLOB NOT NULL, expires_s INTEGER NOT NULL,
    PRIMARY KEY (kind, tenant, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS operator_changes (
    revision INTEGER, number INTEGER, tenant TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    value BLOB NOT NULL, expires_s INTEGER NOT NULL, PRIMARY KEY (revision, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS operator_revisions (revision INTEGER PRIMARY KEY);
CREATE TABLE IF NOT EXISTS audit (number INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS joins (
    cell INTEGER PRIMARY KEY, numbered INTEGER NOT NULL, taken INTEGER NOT NULL, proof TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sources (
    cell INTEGER, source TEXT, mark INTEGER NOT NULL, PRIMARY KEY (cell, source)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS arrivals (
    cell INTEGER, number INTEGER, proof TEXT NOT NULL, content BLOB NOT NULL, UNIQUE (cell, number));
"""
_LATER_TABLES = ("operator_revisions", "joins", "sources", "arrivals")
"""Tables that came without a new schema: older versions do not miss them."""

_UPGRADES = {
    1: (
        "ALTER TABLE cells ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE cells ADD COLUMN sketch BLOB NOT NULL DEFAULT x''",
        "ALTER TABLE decisions ADD COLUMN enforced TEXT NOT NULL DEFAULT 'clear'",
        "ALTER TABLE decisions ADD COLUMN expires_s INTEGER NOT NULL DEFAULT 0",
        "UPDATE decisions SET expires_s = unixepoch() + 30 * 86400",
    ),
}
"""Schema → what leads to the next one; tables and indexes that are new are made as in a new file."""

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
_PURGE_EVERY_S = 86_400


class _Connection(sqlite3.Connection):
    """One that can be referred to weakly."""


class SQLiteFile:
    """The SQLite file `path`, which is created if it is missing.

    now_s           the clock behind leases and retention, seconds since the epoch; processes that share the file must share it
    decision_cells  as the store was made with; `prepare` refuses another number

    Raises ConfigError when the file cannot be opened, is no QueryWarden store, or was written by a newer schema.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        now_s: Callable[[], float] = time.time,
        decision_cells: int = DECISION_CELLS,
    ) -> None:
        self.path = Path(path)
        self.decision_cells = decision_cells
        self._purged_s: dict[str, float] = {}
        self._now_s = now_s
        self._local = threading.local()
        self._guard = threading.Lock()
        # Weak, so that a thread that ends leaves its connection to the garbage collector.
        self._open: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._closed = False
        try:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise ConfigError(f"store {self.path}: {error.strerror}") from error
        try:
            with self._write() as db:
                self._adopt(db)
            self._switch_to_wal()
        except CorruptState as error:
            raise ConfigError(f"store: {self.path} is not a SQLite file, or is damaged") from error

    def close(self) -> None:
        with self._guard:
            self._closed = True
            for db in list(self._open):
                db.close()
            self._open.clear()

    # --- for the cells

    def _write(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN IMMEDIATE")

    def _read(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return self._transaction("BEGIN")

    @contextlib.contextmanager
    def _for_good(self) -> Iterator[sqlite3.Connection]:
        """A transaction whose deletions leave nothing behind."""
        with self._translated():
            db = self._connection()
            db.execute("PRAGMA secure_delete = ON")
            try:
                with self._write() as transaction:
                    yield transaction
            finally:
                db.execute("PRAGMA secure_delete = OFF")

    def _purge_due(self, what: str, now_s: int) -> bool:
        """Tell whether what has expired should be deleted now. Once a day is enough: it is not shown any more."""
        due = now_s - self._purged_s.get(what, 0.0) >= _PURGE_EVERY_S
        if due:
            self._purged_s[what] = now_s
        return due

    def _connection(self) -> sqlite3.Connection:
        """The calling thread's own."""
        db: _Connection | None = getattr(self._local, "db", None)
        if self._closed:
            raise Unavailable(f"store {self.path}: closed")
        if db is None:
            db = self._local.db = self._connect()
        return db

    def _connect(self) -> _Connection:
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
                raise ConfigError(f"store {self.path}: {error}") from error
            raise

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

    # --- inside

    def _adopt(self, db: sqlite3.Connection) -> None:
        """Create the tables in an empty file, bring an older one up to date; check the marks of any other."""
        mark = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        empty = mark == 0 and not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        if version == SCHEMA_VERSION and mark == APPLICATION_ID:
            for statement in _TABLES.split(";"):
                if any(f"EXISTS {name} (" in statement for name in _LATER_TABLES):
                    db.execute(statement)
            return
        if not empty:
            if mark != APPLICATION_ID:
                raise ConfigError(f"store: {self.path} belongs to another program")
            if version not in _UPGRADES:
                raise ConfigError(schema_differs(str(version)))
            for step in range(version, SCHEMA_VERSION):
                for statement in _UPGRADES[step]:
                    db.execute(statement)
            db.execute("UPDATE layout SET value = ? WHERE name = 'schema'", (str(SCHEMA_VERSION),))
        for statement in _TABLES.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

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
