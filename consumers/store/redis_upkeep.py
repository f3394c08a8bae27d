"""Upkeep of a store in Redis: erase, reset, snapshots.

Rules:

* The owner of a changed cell is fenced by its token: a new revision alone would be issued again after a failover.
* A snapshot has each cell as of one moment: its pages are read only while its position does not move. When it moves, the cell is read
  again, in larger pages, until one page holds all of it.
* A restore writes in many steps. Until the last one, ``qw:layout`` says so, and `prepare` refuses the store.
"""

from __future__ import annotations

import secrets as entropy
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import redis

from consumers.errors import Fenced, InvalidInput, Refused, Rewound
from consumers.store import AlertSwap, Exported, FieldSwap, RowSwap, Tombstones, decision_cell
from consumers.store.layout import (
    LAYOUT,
    RESTRICTED,
    client_from_text,
    client_text,
    decision_prefix,
    layout_differs,
    model_text,
    operator_prefix,
    part_text,
    profile_prefix,
    unquoted,
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
from consumers.store.redis_server import CELLS_KEY, LAYOUT_KEY, RedisServer, profile_meta
from consumers.store.redis_values import ROW_FIELDS, alert, batches, dead_letter, entry, pairs, row, text
from consumers.store.scripts import translated
from detector.query import ClientKey

LAYOUT_FIELDS = ("schema", "decision_cells", "secrets")
_PAGE = 200
_BATCH = 500

Command = tuple[Any, ...]


class Upkeep(RedisServer):
    def erase(self, cell: str, clients: Sequence[ClientKey]) -> None:
        arguments: list[str | bytes | int] = [entropy.token_hex(16)]
        for client in clients:
            arguments += (client_text(client), decision_cell(client, self.decision_cells), Tombstones.mark(client))
        self._keep("profile_erase", profile_meta(cell), arguments, cell)

    def erase_decisions(self, cell: int, clients: Sequence[ClientKey], alerts: Sequence[str]) -> None:
        arguments: list[str | bytes | int] = [entropy.token_hex(4), len(clients)]
        for client in clients:
            arguments += (client_text(client), model_text(client.tenant, client.model))
        self._keep("decision_erase", self._decision_meta(cell), [*arguments, *alerts])

    def reset(self, cell: str, offset: int | None) -> None:
        arguments = [entropy.token_hex(16), entropy.token_hex(8), "" if offset is None else offset, self.decision_cells]
        self._keep("profile_reset", profile_meta(cell), arguments, cell)

    def swap_fields(self, cell: str, swaps: Sequence[FieldSwap]) -> int:
        arguments: list[str | bytes | int] = []
        for swap in swaps:
            arguments += (client_text(swap.client), swap.field, swap.before, swap.after)
        (done,) = self._keep("profile_swap", profile_meta(cell), arguments, cell)
        return int(done)

    def swap_decisions(self, cell: int, rows: Sequence[RowSwap], alerts: Sequence[AlertSwap]) -> int:
        arguments: list[str | bytes | int] = [len(rows)]
        for row_swap in rows:
            arguments += (client_text(row_swap.client), row_swap.before, row_swap.after)
        for alert_swap in alerts:
            arguments += (alert_swap.uid, alert_swap.before, alert_swap.after)
        (done,) = self._keep("decision_swap", self._decision_meta(cell), arguments)
        return int(done)

    def scrub(self) -> bool:
        """Rewrite the append-only files, where there are some and we may."""
        try:
            with translated():
                for where in self._servers():
                    if not self._client.info("persistence", **where)["aof_enabled"]:
                        return False
                    self._client.bgrewriteaof(**where)
        except Refused:
            return False
        except redis.exceptions.ResponseError:  # one is under way that may have begun before
            return False
        return True

    # --- snapshots

    def export(self) -> Iterator[Exported]:
        with translated():
            names = [text(name) for name in sorted(self._client.smembers(CELLS_KEY))]
            stored = self._client.hmget(LAYOUT_KEY, *LAYOUT_FIELDS)
        yield exported("", Layout(*map(text, stored)))
        for name in names:
            for record in self._steadily(self._profile_cell, name):
                yield exported(name, record)
        for cell in range(self.decision_cells):
            for record in self._steadily(self._decision_cell, cell):
                yield exported(str(cell), record)
        for record in self._operator_cell():
            yield exported("", record)

    def restore(self, items: Iterable[Exported]) -> None:
        self._check_empty()
        records = (record_of(item) for item in items)
        first = next(records, None)
        if first is None or not isinstance(first[1], Layout):
            raise InvalidInput("snapshot: the layout is missing")
        self._restore_layout(first[1])
        writing = _Restoring(self.decision_cells)
        while batch := list(islice(records, _BATCH)):
            self._at_once([command for cell, record in batch for command in writing.commands(cell, record)])
        with translated():
            self._client.hdel(LAYOUT_KEY, "restoring")

    def _steadily(self, read: Any, cell: Any) -> list[Record]:
        page = _PAGE
        while True:
            try:
                return list(read(cell, page))
            except (Fenced, Rewound):
                page *= 4

    def _profile_cell(self, cell: str, page: int) -> Iterator[Record]:
        meta = profile_meta(cell)
        token, flat, sketch, erased, dead, arrived, *touched = self._scripts.run(
            "profile_export", meta, [self.decision_cells]
        )
        found = {text(name): value for name, value in pairs(flat)}
        offset = found.get("off")
        yield ProfileCell(
            None if offset is None else int(offset),
            {name[2:]: int(value) for name, value in found.items() if name.startswith("n:")},
            {name[2:]: int(value) for name, value in found.items() if name.startswith("d:")},
            sketch,
        )
        if "numbered" in found:
            handed = {name[7:]: int(value) for name, value in found.items() if name.startswith("source:")}
            yield JoinState(int(found["numbered"]), int(found.get("taken", 0)), handed)
        for number, content in arrived:
            yield StoredArrival(int(number.partition(b"-")[0]), content[5])
        for mark, below in pairs(erased):
            yield Tombstone(text(mark), int(below))
        for _, content in dead:
            letter = dead_letter(dict(pairs(content)))
            yield StoredLetter(letter.place, letter.offset, letter.reason, letter.detail, letter.sha256, letter.head)
        clients = sorted((int(at), text(client)) for some in touched for client, at in pairs(some))
        for some in batches(clients, page):
            arguments = [text(token), text(offset), *(client for _, client in some)]
            answers = self._scripts.run("profile_page", meta, arguments, cell)
            for (at, client), (expires_s, content) in zip(some, answers, strict=True):
                if expires_s > 0:
                    yield StoredProfile(client, at, expires_s, {text(name): value for name, value in pairs(content)})

    def _decision_cell(self, cell: int, page: int) -> Iterator[Record]:
        meta = self._decision_meta(cell)
        revision, clients, alerts, *ledgers = self._scripts.run("decision_export", meta, [])
        for some in batches(sorted(clients), page):
            answers = self._scripts.run("decision_page", meta, [revision, *some], f"decisions:{cell}")
            for client, (expires_s, *values) in zip(some, answers, strict=True):
                kept = row(client_from_text(text(client)), values)
                if kept is not None:
                    yield StoredRow(
                        text(client), kept.row, kept.state, kept.rank, kept.until_s, kept.enforced, expires_s
                    )
        for number, content in alerts:
            kept_alert = alert(dict(pairs(content)))
            stored_ms = int(number.partition(b"-")[0])
            yield AlertRecord(kept_alert.uid, kept_alert.time_ms, kept_alert.body, stored_ms)
        for destination, delivered in ledgers:
            for uid, stored_ms in pairs(delivered):
                yield Delivery(unquoted(text(destination)), text(uid), int(stored_ms))

    def _operator_cell(self) -> Iterator[Record]:
        prefix = operator_prefix()
        revision, rows, kinds = self._at_once(
            [("hget", f"{prefix}meta", "rev"), ("hget", f"{prefix}meta", "rows"), ("smembers", f"{prefix}kinds")]
        )
        if revision is None:
            return
        yield OperatorRevision(int(revision))
        for kind in sorted(kinds):
            with translated():
                stored = self._client.hgetall(f"{prefix}entries:{text(kind)}")
            for name, content in stored.items():
                yield OperatorEntry(*entry(unquoted(text(kind)), name, content))
        for start in range(1, int(rows or 0) + 1, _BATCH):
            end = min(start + _BATCH - 1, int(rows))
            with translated():
                found = self._client.xrange(f"{prefix}audit", f"{start}-0", f"{end}-0")
            for number, fields in found:
                yield AuditRecord(int(number.partition(b"-")[0]), fields[b"row"])

    def _check_empty(self) -> None:
        keys = [CELLS_KEY, f"{operator_prefix()}meta"]
        for cell in range(self.decision_cells):
            keys += (f"{self._decision_prefix(cell)}meta", f"{self._decision_prefix(cell)}models")
        if any(self._at_once([("exists", key) for key in keys])):
            raise InvalidInput("store: a snapshot can only be restored into an empty store")

    def _restore_layout(self, record: Layout) -> None:
        values = (record.schema, record.decision_cells, record.secrets_id)
        with translated():
            made = {b"decision_cells": str(self.decision_cells).encode()}
            found = made | self._client.hgetall(LAYOUT_KEY)
            for name, field, value in zip(LAYOUT, LAYOUT_FIELDS, values, strict=True):
                stored = text(found.get(field.encode())) or value
                if stored != value:
                    raise InvalidInput(layout_differs(name, stored, value).replace("this process", "the snapshot"))
            fields = dict(zip(LAYOUT_FIELDS, values, strict=True))
            self._client.hset(LAYOUT_KEY, mapping={**fields, "restoring": "1"})


class _Restoring:
    """Records → commands that write them into an empty store."""

    def __init__(self, decision_cells: int) -> None:
        self._decision_cells = decision_cells
        self._stored_ms: dict[str, int] = {}

    def commands(self, cell: str, record: Record) -> list[Command]:
        match record:
            case ProfileCell():
                return _profile_cell_commands(cell, record)
            case JoinState():
                fields: dict[str, Any] = {"numbered": record.numbered, "taken": record.taken}
                fields |= {f"source:{source}": offset for source, offset in record.sources.items()}
                return [("hset", f"{profile_prefix(cell)}meta", None, None, fields)]
            case StoredArrival():
                return _arrival_commands(cell, record)
            case Tombstone():
                return [("hset", f"{profile_prefix(cell)}erased", record.mark, record.below)]
            case StoredLetter():
                letter: dict[str, Any] = {
                    "place": record.place, "offset": record.offset, "reason": record.reason,
                    "detail": record.detail, "sha256": record.sha256, "head": record.head,
                }  # fmt: skip
                return [("xadd", f"{profile_prefix(cell)}dead", letter)]
            case StoredProfile():
                return _profile_commands(cell, record, self._decision_cells)
            case StoredRow():
                return _row_commands(self._prefix(cell), record)
            case AlertRecord():
                # Entries of a stream only go up; a clock that was set back must not break the restore.
                at = self._stored_ms[cell] = max(record.stored_ms, self._stored_ms.get(cell, 0))
                body: dict[str, Any] = {"uid": record.uid, "time_ms": record.time_ms, "body": record.body}
                return [("xadd", f"{self._prefix(cell)}outbox", body, f"{at}-*")]
            case Delivery():
                prefix, name = self._prefix(cell), part_text(record.destination)
                return [
                    ("zadd", f"{prefix}sent:{name}", {record.uid: record.stored_ms}),
                    ("sadd", f"{prefix}destinations", name),
                ]
            case _:
                return _operator_commands(record)

    def _prefix(self, cell: str) -> str:
        return decision_prefix(int(cell), self._decision_cells)


def _profile_cell_commands(cell: str, record: ProfileCell) -> list[Command]:
    fields: dict[str, Any] = {"gen": entropy.token_hex(8)}
    fields |= {f"n:{name}": value for name, value in record.counters.items()}
    fields |= {f"d:{name}": value for name, value in record.dead.items()}
    if record.offset is not None:
        fields["off"] = record.offset
    prefix = profile_prefix(cell)
    found: list[Command] = [("sadd", CELLS_KEY, cell), ("hset", f"{prefix}meta", None, None, fields)]
    return [*found, ("set", f"{prefix}sketch", record.sketch)] if record.sketch else found


def _arrival_commands(cell: str, record: StoredArrival) -> list[Command]:
    prefix, size = profile_prefix(cell), len(record.content)
    entry: dict[str, Any] = {"p": entropy.token_hex(20), "b": size, "c": record.content}
    return [("xadd", f"{prefix}arrivals", entry, f"{record.number}-1"), ("hincrby", f"{prefix}meta", "bytes", size)]


def _profile_commands(cell: str, record: StoredProfile, decision_cells: int) -> list[Command]:
    prefix = profile_prefix(cell)
    key, v = f"{prefix}p:{record.client}", decision_cell(client_from_text(record.client), decision_cells)
    written: list[Command] = [("hset", key, None, None, record.fields), ("expireat", key, record.expires_s)]
    return [*(written if record.fields else []), ("zadd", f"{prefix}touched:{v}", {record.client: record.touched})]


def _row_commands(prefix: str, record: StoredRow) -> list[Command]:
    client = client_from_text(record.client)
    model = model_text(client.tenant, client.model)
    key = f"{prefix}c:{record.client}"
    values = (record.row, record.state, repr(record.rank), record.until_s, record.enforced)
    found: list[Command] = [
        ("hset", key, None, None, dict(zip(ROW_FIELDS, values, strict=True))),
        ("expireat", key, record.expires_s),
        ("zadd", f"{prefix}rank:{model}", {record.client: record.rank}),
        ("sadd", f"{prefix}models", model),
        ("hsetnx", f"{prefix}meta", "feed", entropy.token_hex(4)),
    ]
    if record.state in RESTRICTED:
        found.append(("zadd", f"{prefix}blocks", {record.client: record.until_s or "+inf"}))
    return found


def _operator_commands(record: Record) -> list[Command]:
    prefix = operator_prefix()
    match record:
        case OperatorRevision():
            after = record.revision + REVISION_JUMP
            return [("hset", f"{prefix}meta", None, None, {"rev": after, "gone": after})]
        case OperatorEntry():
            tenant, kind, key = (part_text(part) for part in (record.tenant, record.kind, record.key))
            stored = b"%d:%s" % (record.expires_s, record.value)
            found: list[Command] = [
                ("hset", f"{prefix}entries:{kind}", f"{tenant}:{key}", stored),
                ("sadd", f"{prefix}kinds", kind),
            ]
            if record.expires_s:
                found.append(("zadd", f"{prefix}expiring", {f"{tenant}:{kind}:{key}": record.expires_s}))
            return found
        case AuditRecord():
            return [
                ("xadd", f"{prefix}audit", {"row": record.row}, f"{record.number}-0"),
                ("hset", f"{prefix}meta", "rows", record.number),
            ]
    raise InvalidInput(f"snapshot: unexpected {type(record).__name__}")
