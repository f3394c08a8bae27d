"""The embedded store: one SQLite file, for `replay` and for a service on one machine.

Rules:

* Every call that writes is one ``BEGIN IMMEDIATE`` transaction, which makes the same checks as the Redis script of
  that name; reads that must agree with each other share one transaction, hence one snapshot (WAL).
* Several threads and processes may use one file (`sqlite.py`).
* Times are the machine's clock: profiles live 30 days after their last commit (lasting ones the memory), decisions 30 days after they
  were last recorded, alerts 30 days after they were stored. What has expired is never shown, and deleted about once a day.

Profile cells, decision cells and what gateways read are here; the operator cell is in `embedded_operators.py`, what
people do to a store in `embedded_upkeep.py`.
"""

from __future__ import annotations

import json
import os
import secrets as entropy
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from consumers.errors import Fenced, LeaseHeld, Refused, Rewound
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
    Proof,
    Restriction,
    Shards,
    Tombstones,
    Touched,
    decision_cell,
)
from consumers.store.embedded_operators import OperatorCell
from consumers.store.embedded_upkeep import Upkeep
from consumers.store.layout import (
    ALERT_TTL_MS,
    DECISION_TTL_S,
    FEED_ENTRIES,
    LAYOUT,
    check_checkpoint,
    check_decision_cell,
    check_lease,
    check_limit,
    check_outcome,
    client_from_text,
    client_text,
    concerns_gateways,
    feed_position,
    layout_differs,
    profile_ttl_s,
)
from detector.query import ClientKey

_ROW = "client, row, state, rank, until_s, enforced"
_PAGE = 500
_PURGE_EVERY_S = 86_400


class EmbeddedStore(OperatorCell, Upkeep):
    """The store in the SQLite file `path`, which is created if it is missing; see `SQLiteFile`."""

    def __init__(self, path: str | os.PathLike[str], *, now_s: Callable[[], float] = time.time) -> None:
        self._purged_s: dict[str, float] = {}
        super().__init__(path, now_s=now_s)

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

    def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
        with self._write() as db:
            db.execute(
                "INSERT INTO cells (name, token, generation, attempts) VALUES (?1, ?2, ?3, ?4 = 'none') ON CONFLICT (name)"
                " DO UPDATE SET token = excluded.token,"
                " attempts = CASE ?4 WHEN 'folded' THEN 0 ELSE attempts + excluded.attempts END",
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
                f"SELECT {_ROW} FROM decisions"  # noqa: S608
                " WHERE cell = ? AND expires_s > ? AND client IN (SELECT value FROM json_each(?))",
                (cell, int(self._now_s()), json.dumps([client_text(client) for client in clients])),
            ).fetchall()
        return {client_from_text(row[0]): DecisionRow(*row[1:]) for row in rows}

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        check_outcome(outcome)
        check_lease(lease_ms)
        cell, now_ms = outcome.cell, int(self._now_s() * 1000)
        with self._write() as db:
            _owned_decisions(db, cell, token, revision)
            self._write_decisions(db, outcome, now_ms // 1000)
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
                    "SELECT client FROM decisions WHERE tenant = ? AND model = ? AND expires_s > ?"
                    " ORDER BY rank DESC, client LIMIT ?",
                    (tenant, name, int(self._now_s()), -1 if limit is None else max(limit, 0)),
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

    # --- gateways

    def restrictions(self) -> tuple[dict[int, str], list[Restriction]]:
        with self._read() as db:
            positions = {cell: _position(db, cell) for cell in range(DECISION_CELLS)}
            rows = db.execute(
                "SELECT client, state, enforced, until_s FROM decisions WHERE state IN ('throttle', 'block')"
                " AND (until_s = 0 OR until_s > ?1) AND expires_s > ?1",
                (int(self._now_s()),),
            ).fetchall()
        return positions, [Restriction(client_from_text(client), *rest) for client, *rest in rows]

    def changes(self, positions: Mapping[int, str], limit: int) -> tuple[dict[int, str], list[Restriction]] | None:
        check_limit(limit)
        reached, found = dict(positions), list[Restriction]()
        with self._read() as db:
            for cell, position in positions.items():
                generation, after = feed_position(position)
                stored, gone, last = _feed(db, cell)
                if generation != stored or not gone <= after <= last:
                    return None
                rows = db.execute(
                    "SELECT id, client, state, enforced, until_s FROM feed WHERE cell = ? AND id > ? ORDER BY id LIMIT ?",
                    (cell, after, limit),
                ).fetchall()
                if rows:
                    reached[cell] = f"{generation}:{rows[-1][0]}"
                found += (Restriction(client_from_text(client), *rest) for _, client, *rest in rows)
        return reached, found

    # --- inside

    def _purge_due(self, what: str, now_s: int) -> bool:
        """Whether what has expired should be deleted now: once a day is enough, nobody sees it any more."""
        due = now_s - self._purged_s.get(what, 0.0) >= _PURGE_EVERY_S
        if due:
            self._purged_s[what] = now_s
        return due

    def _write_decisions(self, db: sqlite3.Connection, outcome: Outcome, now_s: int) -> None:
        """Rows, and in the feed those that gateways must learn of."""
        cell = outcome.cell
        if self._purge_due(f"decisions:{cell}", now_s):
            db.execute("DELETE FROM decisions WHERE cell = ? AND expires_s <= ?", (cell, now_s))
        texts = {client_text(client): (client, row) for client, row in outcome.rows.items()}
        known = {
            client: standing
            for client, *standing in db.execute(
                "SELECT client, state, enforced, until_s FROM decisions WHERE cell = ? AND expires_s > ?"
                " AND client IN (SELECT value FROM json_each(?))",
                (cell, now_s, json.dumps(list(texts))),
            )
        }
        db.executemany(
            "INSERT INTO feed (cell, client, state, enforced, until_s) VALUES (?, ?, ?, ?, ?)",
            [
                (cell, text, row.state, row.enforced, row.until_s)
                for text, (_, row) in texts.items()
                if concerns_gateways(known.get(text), row)
            ],
        )
        db.executemany(
            "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (client) DO UPDATE SET"
            " row = excluded.row, state = excluded.state, rank = excluded.rank, until_s = excluded.until_s,"
            " enforced = excluded.enforced, expires_s = excluded.expires_s",
            [
                (text, cell, client.tenant, client.model, row.row, row.state, float(row.rank), row.until_s,
                 row.enforced, now_s + DECISION_TTL_S)
                for text, (client, row) in texts.items()
            ],
        )  # fmt: skip
        _trim_feed(db, cell)

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
                (cell, text, decision_cell(client), checkpoint.next_offset, now_s + profile_ttl_s(checkpoint, client))
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
                f"SELECT {_ROW} FROM decisions"  # noqa: S608
                " WHERE expires_s > ? AND client IN (SELECT value FROM json_each(?))",
                (int(self._now_s()), json.dumps(clients)),
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


def _feed(db: sqlite3.Connection, cell: int) -> tuple[str, int, int]:
    """Of a decision cell's feed: the generation, the last entry that is gone, the last entry."""
    generation, gone = db.execute("SELECT generation, gone FROM feeds WHERE cell = ?", (cell,)).fetchone() or ("", 0)
    (last,) = db.execute("SELECT coalesce(max(id), 0) FROM feed WHERE cell = ?", (cell,)).fetchone()
    return generation, gone, max(last, gone)


def _position(db: sqlite3.Connection, cell: int) -> str:
    generation, _, last = _feed(db, cell)
    return f"{generation}:{last}"


def _trim_feed(db: sqlite3.Connection, cell: int) -> None:
    (gone,) = db.execute(
        "SELECT id FROM feed WHERE cell = ? ORDER BY id DESC LIMIT 1 OFFSET ?", (cell, FEED_ENTRIES)
    ).fetchone() or (None,)
    if gone is not None:
        db.execute("DELETE FROM feed WHERE cell = ? AND id <= ?", (cell, gone))
        db.execute(
            "INSERT INTO feeds VALUES (?, '', ?) ON CONFLICT (cell) DO UPDATE SET gone = excluded.gone", (cell, gone)
        )


def _mark(db: sqlite3.Connection, cell: int, destination: str) -> int:
    """Every alert up to this entry is delivered to the destination."""
    row = db.execute("SELECT entry FROM marks WHERE cell = ? AND destination = ?", (cell, destination)).fetchone()
    return int(row[0]) if row else 0
