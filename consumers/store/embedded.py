"""The embedded store: one SQLite file, for `replay` and for a service on one machine.

Rules:

* Every call that writes is one ``BEGIN IMMEDIATE`` transaction, which makes the same checks as the Redis script of that name. Reads that
  must agree with each other share one transaction, hence one snapshot (WAL).
* Several threads and processes may use one file (`sqlite.py`).
* Times are those of the machine's clock. Profiles are kept for 30 days after their last commit (`memory_days` when they hold odd
  queries), decisions for 30 days after they were last recorded, alerts for 30 days after they were stored. Expired data is never shown,
  and is deleted about once a day.

Profile cells are here; decision cells and the feed for gateways are in `embedded_decisions.py`, the operator cell in
`embedded_operators.py`, upkeep in `embedded_upkeep.py`.
"""

from __future__ import annotations

import json
import secrets as entropy
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from consumers.errors import ConfigError, Fenced, Rewound
from consumers.store import (
    SCHEMA_VERSION,
    Checkpoint,
    Claim,
    DeadLetter,
    Proof,
    Shards,
    Tombstones,
    Touched,
    decision_cell,
)
from consumers.store.embedded_decisions import DecisionCells
from consumers.store.embedded_joins import EmbeddedJoins, take_out
from consumers.store.embedded_operators import OperatorCell
from consumers.store.embedded_upkeep import Upkeep
from consumers.store.layout import (
    LAYOUT,
    check_checkpoint,
    check_limit,
    client_from_text,
    client_text,
    layout_differs,
    profile_ttl_s,
)
from detector.query import ClientKey


class EmbeddedStore(DecisionCells, EmbeddedJoins, OperatorCell, Upkeep):
    """The store in the SQLite file `path`, which is created if it is missing; see `SQLiteFile`."""

    # --- layout and secrets

    def prepare(self, secrets_id: str) -> None:
        expected = dict(zip(LAYOUT, (str(SCHEMA_VERSION), str(self.decision_cells), secrets_id), strict=True))
        with self._write() as db:
            if not db.execute("SELECT 1 FROM layout").fetchone():
                db.executemany("INSERT INTO layout VALUES (?, ?)", expected.items())
            found = dict(db.execute("SELECT name, value FROM layout").fetchall())
        for name, ours in expected.items():
            if found.get(name) != ours:
                raise ConfigError(layout_differs(name, found.get(name), ours))

    # --- ingest: one profile cell

    def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
        with self._write() as db:
            db.execute(
                "INSERT INTO cells (name, token, generation, attempts) VALUES (?1, ?2, ?3, ?4 = 'none') ON CONFLICT (name)"
                " DO UPDATE SET token = excluded.token,"
                " attempts = CASE ?4 WHEN 'folded' THEN 0 ELSE attempts + excluded.attempts END,"
                # in a join cell the same position may reflect other arrivals in another history
                " generation = CASE WHEN id IN (SELECT cell FROM joins) THEN excluded.generation ELSE generation END",
                (cell, token, entropy.token_hex(8), proof),
            )
            number, *found = db.execute(
                "SELECT id, generation, next_offset, attempts, sketch FROM cells WHERE name = ?", (cell,)
            ).fetchone()
            counters = db.execute("SELECT name, value FROM counters WHERE cell = ?", (number,)).fetchall()
            erased = db.execute("SELECT mark, below FROM erased WHERE cell = ?", (number,)).fetchall()
        generation, offset, attempts, sketch = found
        return Claim(generation, offset, dict(counters), attempts, Tombstones(dict(erased)), sketch)

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
            if checkpoint.taken is not None:
                take_out(db, checkpoint.cell, cell, checkpoint.expected_offset, checkpoint.taken)
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
            if checkpoint.sketch is not None:
                db.execute("UPDATE cells SET sketch = ? WHERE id = ?", (checkpoint.sketch, cell))
            db.execute(
                "UPDATE cells SET next_offset = ?1, attempts = CASE WHEN next_offset IS ?1 THEN attempts ELSE 0 END"
                " WHERE id = ?2",
                (checkpoint.next_offset, cell),
            )

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

    # --- detect, readers

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

    def dead_letter_counts(self) -> dict[str, int]:
        with self._read() as db:
            return dict(db.execute("SELECT reason, sum(value) FROM dead_counts GROUP BY reason").fetchall())

    def pressure(self) -> float:
        return 0.0

    # --- inside

    def _write_profiles(self, db: sqlite3.Connection, cell: int, checkpoint: Checkpoint, now_s: int) -> None:
        if self._purge_due(f"profiles:{cell}", now_s):
            gone = "SELECT id FROM profiles WHERE cell = ? AND expires_s <= ?"
            db.execute(f"DELETE FROM fields WHERE profile IN ({gone})", (cell, now_s))  # noqa: S608
            db.execute("DELETE FROM profiles WHERE cell = ? AND expires_s <= ?", (cell, now_s))
        texts = {client: client_text(client) for client in checkpoint.profiles}
        db.executemany(
            "INSERT INTO profiles (cell, client, decision_cell, touched, expires_s) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (cell, client) DO UPDATE SET touched = excluded.touched, expires_s = excluded.expires_s",
            [
                (
                    cell,
                    text,
                    decision_cell(client, self.decision_cells),
                    checkpoint.next_offset,
                    now_s + profile_ttl_s(checkpoint, client),
                )
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
