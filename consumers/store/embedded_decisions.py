"""The decision cells of the embedded store: rows, alerts, cursors and leases, and the feed for gateways.

Rules:
* A step of detect is one transaction, and the revision is its last write.
* The feed names only changes that concern a gateway.
* Readers go page by page, each page in its own short transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence

from consumers.errors import Fenced, LeaseHeld, Rewound
from consumers.store import (
    Cursor,
    DecisionClaim,
    DecisionRow,
    OutboxAlert,
    Outcome,
    Restriction,
)
from consumers.store.layout import (
    ALERT_TTL_MS,
    DECISION_TTL_S,
    FEED_ENTRIES,
    check_decision_cell,
    check_lease,
    check_limit,
    check_outcome,
    client_from_text,
    client_text,
    concerns_gateways,
    feed_position,
)
from consumers.store.sqlite import SQLiteFile
from detector.query import ClientKey

_ROW = "client, row, state, rank, until_s, enforced"
_PAGE = 500


class DecisionCells(SQLiteFile):
    # --- detect

    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        check_decision_cell(cell, self.decision_cells)
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
        check_decision_cell(cell, self.decision_cells)
        with self._read() as db:
            _owned_decisions(db, cell, token, revision)
            rows = db.execute(
                f"SELECT {_ROW} FROM decisions"  # noqa: S608
                " WHERE cell = ? AND expires_s > ? AND client IN (SELECT value FROM json_each(?))",
                (cell, int(self._now_s()), json.dumps([client_text(client) for client in clients])),
            ).fetchall()
        return {client_from_text(row[0]): DecisionRow(*row[1:]) for row in rows}

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        check_outcome(outcome, self.decision_cells)
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

    # --- gateways

    def restrictions(self) -> tuple[dict[int, str], list[Restriction]]:
        with self._read() as db:
            positions = {cell: _position(db, cell) for cell in range(self.decision_cells)}
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

    def _rows(self, clients: Sequence[str]) -> list[tuple[ClientKey, DecisionRow]]:
        with self._read() as db:
            rows = db.execute(
                f"SELECT {_ROW} FROM decisions"  # noqa: S608
                " WHERE expires_s > ? AND client IN (SELECT value FROM json_each(?))",
                (int(self._now_s()), json.dumps(clients)),
            ).fetchall()
        found = {row[0]: DecisionRow(*row[1:]) for row in rows}
        return [(client_from_text(client), found[client]) for client in clients if client in found]


def _owned_decisions(db: sqlite3.Connection, cell: int, token: str, revision: int) -> None:
    row = db.execute("SELECT token, revision FROM decision_cells WHERE cell = ?", (cell,)).fetchone()
    if row is None or row[0] != token:
        raise Fenced(f"decisions:{cell}: another process owns this cell")
    if row[1] != revision:
        raise Rewound(f"decisions:{cell}", row[1])


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
