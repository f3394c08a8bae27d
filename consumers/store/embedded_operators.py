"""The operator cell of the embedded store: operators' entries and their audit rows.

Rules:
* A change, its audit rows and the next revision are one transaction. An audit row is never deleted.
* An entry that has expired is invisible at once and is deleted with the next change.
"""

from __future__ import annotations

import sqlite3

from consumers.errors import Rewound
from consumers.store import Entry, Operation
from consumers.store.layout import OPERATOR_CHANGES, OPERATORS, check_limit, check_operation, operator_step
from consumers.store.sqlite import SQLiteFile


class OperatorCell(SQLiteFile):
    def operate(self, revision: int, operation: Operation) -> int:
        check_operation(revision, operation)
        after = revision + operator_step()
        with self._for_good() if operation.forget else self._write() as db:
            stored, gone = _standing(db)
            if stored != revision:
                raise Rewound(OPERATORS, stored)
            db.execute("DELETE FROM entries WHERE expires_s > 0 AND expires_s <= ?", (int(self._now_s()),))
            db.executemany("DELETE FROM entries WHERE tenant = ? AND kind = ? AND key = ?", operation.drops)
            db.executemany(
                "INSERT OR REPLACE INTO entries (tenant, kind, key, value, expires_s) VALUES (?, ?, ?, ?, ?)",
                operation.puts,
            )
            changes = [*operation.puts, *(Entry(*names, b"", 0) for names in operation.drops)]
            db.executemany(
                "INSERT INTO operator_changes (revision, number, tenant, kind, key, value, expires_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(after, number, *entry) for number, entry in enumerate(changes)],
            )
            gone = _trim(db, gone)
            if operation.forget:
                db.execute("DELETE FROM operator_changes")
                gone = after
            number = db.execute("SELECT coalesce(max(number), 0) FROM audit").fetchone()[0]
            db.executemany("INSERT INTO audit VALUES (?, ?)", enumerate(operation.audit, number + 1))
            db.execute("INSERT OR REPLACE INTO operators VALUES (1, ?, ?)", (after, gone))
            db.execute("INSERT INTO operator_revisions VALUES (?)", (after,))
            db.execute(
                "DELETE FROM operator_revisions WHERE revision < (SELECT revision FROM operator_revisions"
                " ORDER BY revision DESC LIMIT 1 OFFSET ?)",
                (OPERATOR_CHANGES,),
            )
        return after

    def operator_entries(self, kind: str, tenant: str | None = None) -> tuple[int, list[Entry]]:
        with self._read() as db:
            rows = db.execute(
                "SELECT tenant, kind, key, value, expires_s FROM entries WHERE kind = ?1"
                " AND (?2 IS NULL OR tenant = ?2) AND (expires_s = 0 OR expires_s > ?3) ORDER BY tenant, key",
                (kind, tenant, int(self._now_s())),
            ).fetchall()
            return _standing(db)[0], [Entry(*row) for row in rows]

    def operator_changes(self, after: int, limit: int) -> tuple[int, list[Entry]] | None:
        check_limit(limit)
        with self._read() as db:
            revision, gone = _standing(db)
            if not gone <= after <= revision:
                return None
            known = db.execute("SELECT 1 FROM operator_revisions WHERE revision = ?", (after,)).fetchone()
            if after not in (0, revision) and not known:
                return None  # of a history that was lost
            # The revision that the limit falls into is given whole.
            reached = db.execute(
                "SELECT revision FROM operator_changes WHERE revision > ? ORDER BY revision, number LIMIT 1 OFFSET ?",
                (after, limit - 1),
            ).fetchone()
            reached = revision if reached is None else reached[0]
            rows = db.execute(
                "SELECT tenant, kind, key, value, expires_s FROM operator_changes WHERE revision > ? AND revision <= ?"
                " ORDER BY revision, number",
                (after, reached),
            ).fetchall()
        return reached, [Entry(*row) for row in rows]

    def audit_rows(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        with self._read() as db:
            return db.execute(
                "SELECT number, row FROM audit WHERE number > ? ORDER BY number LIMIT ?", (after, max(limit, 0))
            ).fetchall()


def _standing(db: sqlite3.Connection) -> tuple[int, int]:
    """Revision, and the last revision whose changes are gone."""
    row: tuple[int, int] | None = db.execute("SELECT revision, gone FROM operators").fetchone()
    return row or (0, 0)


def _trim(db: sqlite3.Connection, gone: int) -> int:
    """Drop all but the newest changes, never a part of a revision; returns the last revision that is gone."""
    cut = db.execute(
        "SELECT revision FROM operator_changes ORDER BY revision DESC, number DESC LIMIT 1 OFFSET ?",
        (OPERATOR_CHANGES,),
    ).fetchone()
    if cut is None:
        return gone
    db.execute("DELETE FROM operator_changes WHERE revision <= ?", cut)
    return int(cut[0])
