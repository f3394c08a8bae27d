"""Join cells of the embedded store.

Rules: as in `redis_joins.py`; a transaction takes the place of a script.
"""

from __future__ import annotations

import hashlib
import secrets as entropy
import sqlite3

from consumers.errors import Rewound
from consumers.store import Arrival, HandIn, Taken
from consumers.store.sqlite import SQLiteFile


class EmbeddedJoins(SQLiteFile):
    """The port `JoinStore`."""

    def sources(self, cell: str) -> dict[str, int]:
        with self._read() as db:
            return dict(
                db.execute(
                    "SELECT source, mark FROM sources s JOIN cells c ON c.id = s.cell WHERE c.name = ?", (cell,)
                ).fetchall()
            )

    def hand_in(self, records: HandIn) -> bool:
        with self._write() as db:
            row = db.execute("SELECT id FROM cells WHERE name = ?", (records.cell,)).fetchone()
            if row is None:
                made = db.execute(
                    "INSERT INTO cells (name, token, generation) VALUES (?, '', ?)",
                    (records.cell, entropy.token_hex(8)),
                )
                row = (made.lastrowid,)
            (cell,) = row
            mark = db.execute(
                "SELECT mark FROM sources WHERE cell = ? AND source = ?", (cell, records.source)
            ).fetchone()
            if (mark[0] if mark else None) != records.expected:
                raise Rewound(records.cell, mark[0] if mark else None)
            db.execute("INSERT INTO joins VALUES (?, 0, 0, '') ON CONFLICT DO NOTHING", (cell,))
            numbered, taken, proof = db.execute(
                "SELECT numbered, taken, proof FROM joins WHERE cell = ?", (cell,)
            ).fetchone()
            if records.contents and numbered > taken:
                (waiting,) = db.execute(
                    "SELECT coalesce(sum(length(content)), 0) FROM arrivals WHERE cell = ? AND number >= ?",
                    (cell, taken),
                ).fetchone()
                if numbered - taken + len(records.contents) > records.most:
                    return False
                if waiting + sum(map(len, records.contents)) > records.most_bytes:
                    return False
            if records.contents:
                proof = proof_after(proof, records.nonce, numbered)
            db.executemany(
                "INSERT INTO arrivals VALUES (?, ?, ?, ?)",
                [(cell, number, proof, content) for number, content in enumerate(records.contents, numbered)],
            )
            numbered += len(records.contents)
            db.execute("UPDATE joins SET numbered = ?, proof = ? WHERE cell = ?", (numbered, proof, cell))
            db.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", (cell, records.source, records.next_offset))
        return True

    def arrivals(self, cell: str, first: int, limit: int) -> tuple[list[Arrival], int]:
        with self._read() as db:
            found = db.execute(
                "SELECT number, proof, content FROM arrivals a JOIN cells c ON c.id = a.cell WHERE c.name = ? AND number >= ?"
                " ORDER BY number LIMIT ?",
                (cell, first, max(limit, 1)),
            ).fetchall()
            numbered = db.execute(
                "SELECT numbered FROM joins j JOIN cells c ON c.id = j.cell WHERE c.name = ?", (cell,)
            ).fetchone()
        return [Arrival(*row) for row in found], numbered[0] if numbered else 0


def take_out(db: sqlite3.Connection, name: str, cell: int, offset: int | None, taken: Taken) -> None:
    """The part of a commit that is about arrivals. Raises Rewound where what was read is not there."""
    there = db.execute("SELECT proof FROM arrivals WHERE cell = ? AND number = ?", (cell, taken.last)).fetchone()
    if there is None or there[0] != taken.proof:
        raise Rewound(name, offset)
    db.executemany("DELETE FROM arrivals WHERE cell = ? AND number = ?", [(cell, number) for number in taken.done])
    db.execute("UPDATE joins SET taken = ? WHERE cell = ?", (taken.last + 1, cell))


def proof_after(proof: str, nonce: str, numbered: int) -> str:
    """Of the arrivals that are numbered from here on, and of all before them."""
    return hashlib.sha1(f"{proof}{nonce}{numbered}".encode(), usedforsecurity=False).hexdigest()
