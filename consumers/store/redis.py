"""The store on Redis (or Valkey), alone or as a cluster.

Rules:

* All keys of a cell carry one hash tag (`layout.py`): one slot, one atomic script, one history. Only two keys live
  outside the cells: ``qw:layout`` and ``qw:cells``, the names of all profile cells, written at each claim and now and
  then.
* Every write is one script call; the text of each says what it checks and in which order it writes.
* The client retries nothing. A commit whose answer was lost is never sent again: `Unavailable`, and the caller
  claims.
* `WAIT` follows only the writing of the layout, and only when replicas are asked for; never a commit.
* Times are the server's: profiles live 30 days after their last commit, alerts 30 days after they were stored.

Keys of a profile cell: meta (tok, off, gen, counters ``n:``, dead letters by reason ``d:``, day, old),
``p:<client>``, ``touched:<v>``, ``ages`` (offset by day, to trim the former), ``dead``. Of a decision cell: meta
(tok, rev, ``cur:<cell>``), lease, ``c:<client>``, ``rank:<model>``, models, outbox, ``sent:<destination>`` (uids),
``mark:<destination>`` (everything up to this entry is delivered).
"""

from __future__ import annotations

import heapq
import secrets as entropy
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from consumers.errors import CorruptState, LeaseHeld, Refused, Unavailable, WrongUse
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
    decision_prefix,
    layout_differs,
    model_text,
    part_text,
    profile_prefix,
)
from consumers.store.scripts import Scripts, read_scripts, translated
from detector.query import ClientKey

LAYOUT_KEY = "qw:layout"
CELLS_KEY = "qw:cells"
DETECTORS_KEY = "qw:detectors"
SCHEMES = {
    "redis": ("redis", False),
    "rediss": ("rediss", False),
    "redis+cluster": ("redis", True),
    "rediss+cluster": ("rediss", True),
}
"""Scheme of a store URL → scheme for the client library, whether it is a cluster."""

_FIXED_OPTIONS = frozenset({"decode_responses", "encoding", "encoding_errors", "protocol", "retry_on_timeout"})
"""Options of the client library that a URL could carry and that would break the protocol."""

_REGISTER_EVERY_S = 30.0
_PAGE = 500
_WAIT_MS = 1000


def connect(url: str, *, timeout_s: float = 2.0, min_replicas: int = 0) -> RedisStore:
    """The store behind ``redis://``, ``rediss://`` or ``redis+cluster://``.

    timeout_s     for connecting and for each answer
    min_replicas  how many replicas must confirm a write that the log could not bring back (not a commit)

    A single server is contacted at the first call, a cluster at once. Raises WrongUse for another scheme, Unavailable.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise WrongUse(f"store.url: unknown scheme {parts.scheme!r}, known are {', '.join(SCHEMES)}")
    scheme, cluster = SCHEMES[parts.scheme]
    if fixed := sorted(_FIXED_OPTIONS & parse_qs(parts.query).keys()):
        raise WrongUse(f"store.url: {', '.join(fixed)} cannot be set")
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "health_check_interval": 30,
        "protocol": 2,
    }
    target = parts._replace(scheme=scheme).geturl()
    with translated():
        try:
            client: Any
            if cluster:
                client = redis.RedisCluster.from_url(target, retry=Retry(NoBackoff(), 0), **options)
            else:
                client = redis.Redis.from_url(
                    target, retry=Retry(NoBackoff(), 0), retry_on_error=[], retry_on_timeout=False, **options
                )
        except ValueError as error:
            raise WrongUse("store.url: host, port or option is not valid") from error
    return RedisStore(client, min_replicas=min_replicas)


class RedisStore:
    """See `connect`. One object may be used by several threads.

    warnings  what `prepare` could not check, one line each
    """

    def __init__(self, client: Any, *, min_replicas: int = 0, scripts: Mapping[str, str] | None = None) -> None:
        self._client = client
        self._cluster = isinstance(client, redis.RedisCluster)
        self._scripts = Scripts(client, dict(scripts or read_scripts()))
        self._min_replicas = min_replicas
        self._registered: dict[str, float] = {}
        self.warnings: list[str] = []

    # --- layout and secrets

    def prepare(self, secrets_id: str) -> None:
        self.warnings = []
        self._check_servers()
        expected = [str(SCHEMA_VERSION), str(DECISION_CELLS), secrets_id]
        found = [_text(value) for value in self._scripts.run("layout", LAYOUT_KEY, expected)]
        for name, ours, stored in zip(LAYOUT, expected, found, strict=True):
            if stored != ours:
                raise Refused(layout_differs(name, stored, ours))
        if self._min_replicas >= 1:
            self._await_replicas(LAYOUT_KEY, expected)

    # --- ingest: one profile cell

    def claim(self, cell: str, token: str) -> Claim:
        self._register(cell)
        arguments = [token, entropy.token_hex(8)]
        generation, offset, counters = self._scripts.run("profile_claim", _profile_meta(cell), arguments)
        return Claim(_text(generation), _whole(offset), {_text(k): int(v) for k, v in _pairs(counters)})

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        arguments: list[str | bytes | int] = [token, "" if offset is None else offset, *map(client_text, clients)]
        found = self._scripts.run("profile_load", _profile_meta(cell), arguments, cell)
        return _fields(clients, found)

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        check_checkpoint(checkpoint)
        expected = "" if checkpoint.expected_offset is None else checkpoint.expected_offset
        arguments: list[str | bytes | int] = [token, expected, checkpoint.next_offset, PROFILE_TTL_S]
        arguments += [len(checkpoint.profiles), len(checkpoint.dead), len(checkpoint.counters)]
        for client, fields in checkpoint.profiles.items():
            kept = [(name, value) for name, value in fields.items() if value is not None]
            dropped = [name for name, value in fields.items() if value is None]
            arguments += [client_text(client), decision_cell(client), len(kept), len(dropped)]
            for name, value in kept:
                arguments += (name, value)
            arguments += dropped
        for dead in checkpoint.dead:
            arguments += (dead.place, dead.offset, dead.reason, dead.detail, dead.sha256, dead.head)
        for name, count in checkpoint.counters.items():
            arguments += (name, count)
        self._scripts.run("profile_commit", _profile_meta(checkpoint.cell), arguments, checkpoint.cell)
        self._register_again(checkpoint.cell)

    def dead_letters(self, cell: str, limit: int) -> list[tuple[str, DeadLetter]]:
        with translated():
            entries = self._client.xrange(f"{profile_prefix(cell)}dead", count=limit) if limit > 0 else []
        return [(_text(entry), _dead_letter(fields)) for entry, fields in entries]

    def dead_letters_shipped(self, cell: str, entries: Sequence[str]) -> None:
        with translated():
            for some in _batches(entries, _PAGE):
                self._client.xdel(f"{profile_prefix(cell)}dead", *some)

    # --- detect: decision cells

    def cells(self) -> list[str]:
        with translated():
            return sorted(_text(cell) for cell in self._client.smembers(CELLS_KEY))

    def touched(self, cell: str, decision_cells: Mapping[int, int], limit: int) -> dict[int, Touched]:
        check_limit(limit)
        arguments: list[int] = [limit]
        for v, cursor in decision_cells.items():
            arguments += (v, cursor)
        generation, offset, *answers = self._scripts.run("profile_touched", _profile_meta(cell), arguments)
        return {
            int(v): Touched(_text(generation), _whole(offset) or 0, int(cursor), [_client(text) for text in clients])
            for v, cursor, clients in answers
        }

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        found = self._scripts.run("profile_shards", _profile_meta(cell), [client_text(client) for client in clients])
        return Shards(_text(found[0]), _whole(found[1]) or 0, _fields(clients, found[2:]))

    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        check_lease(lease_ms)
        reply = self._scripts.run("decision_claim", _decision_meta(cell), [process, token, lease_ms])
        if reply[0] == b"HELD":
            raise LeaseHeld(cell, max(int(reply[1]), 0))
        revision, cursors = reply
        return DecisionClaim(int(revision), {_text(name): _cursor(value) for name, value in _pairs(cursors)})

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]:
        arguments: list[str | bytes | int] = [token, revision, *map(client_text, clients)]
        found = self._scripts.run("decision_load", _decision_meta(cell), arguments, f"decisions:{cell}")
        rows = ((client, _row(client, values)) for client, values in zip(clients, found, strict=True))
        return {client: row for client, row in rows if row is not None}

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        check_outcome(outcome)
        check_lease(lease_ms)
        arguments: list[str | bytes | int] = [token, revision, process, lease_ms, ALERT_TTL_MS]
        arguments += [len(outcome.cursors), len(outcome.rows), len(outcome.alerts)]
        for cell, cursor in outcome.cursors.items():
            arguments += (cell, f"{cursor.generation}:{cursor.offset}")
        for client, row in outcome.rows.items():
            arguments += (client_text(client), model_text(client.tenant, client.model))
            arguments += (row.row, row.state, repr(float(row.rank)), row.until_s)
        for alert in outcome.alerts:
            arguments += (alert.uid, alert.time_ms, alert.body)
        name = f"decisions:{outcome.cell}"
        (after,) = self._scripts.run("decision_record", _decision_meta(outcome.cell), arguments, name)
        return int(after)

    def release_decisions(self, cell: int, process: str) -> None:
        self._scripts.run("decision_release", _decision_meta(cell), [process])

    def attend(self, process: str, duration_ms: int) -> int:
        return int(self._scripts.run("attend", DETECTORS_KEY, [process, duration_ms])[0])

    def outbox(self, cell: int, destination: str, limit: int) -> list[tuple[str, OutboxAlert]]:
        entries = self._scripts.run("outbox_pending", _decision_meta(cell), [part_text(destination), limit])
        return [(_text(entry), _alert(dict(_pairs(fields)))) for entry, fields in entries]

    def sent(self, cell: int, destination: str, entry: str, uid: str) -> None:
        self._scripts.run("outbox_sent", _decision_meta(cell), [part_text(destination), entry, uid])

    # --- readers

    def decisions(
        self, tenant: str, model: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[ClientKey, DecisionRow]]:
        models = self._models(tenant) if model is None else [model_text(tenant, model)]
        for name in models:
            rows = self._ranked(name)
            yield from rows if limit is None else islice(rows, limit)

    def decided(self, clients: Sequence[ClientKey]) -> dict[ClientKey, DecisionRow]:
        return dict(self._rows([(decision_cell(client), client_text(client)) for client in clients]))

    def alerts(self, limit: int | None = None) -> list[OutboxAlert]:
        found: list[OutboxAlert] = []
        with translated():
            for cell in range(DECISION_CELLS):
                key = f"{decision_prefix(cell)}outbox"
                # The newest by storing time hold the newest by event time of a live log; files are replayed on SQLite.
                entries = self._client.xrevrange(key, count=limit) if limit is None or limit > 0 else []
                found += (_alert(fields) for _, fields in entries)
        found.sort(key=lambda alert: (alert.time_ms, alert.uid))
        return found if limit is None else found[len(found) - min(limit, len(found)) :]

    def dead_letter_counts(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for cell in self.cells():
            with translated():
                meta = self._client.hgetall(_profile_meta(cell))
            counts.update({_text(k)[2:]: int(v) for k, v in meta.items() if k.startswith(b"d:")})
        return dict(counts)

    def pressure(self) -> float:
        shares = [0.0]
        with translated():
            for server in self._servers():
                memory = self._client.info("memory", **server)
                if memory.get("maxmemory"):
                    shares.append(memory["used_memory"] / memory["maxmemory"])
        return max(shares)

    def close(self) -> None:
        self._client.close()

    # --- inside

    def _servers(self) -> list[dict[str, Any]]:
        """Arguments that address each primary of a cluster; the one server otherwise."""
        if self._cluster:
            return [{"target_nodes": node} for node in self._client.get_primaries()]
        return [{}]

    def _check_servers(self) -> None:
        """Refuse servers that are too old or that would drop state to make room."""
        with translated():
            for where in self._servers():
                try:
                    about = {**self._client.info("server", **where), **self._client.info("memory", **where)}
                except redis.exceptions.NoPermissionError:
                    self.warnings.append("redis: INFO is not permitted: version and maxmemory-policy were not checked")
                    about = {}
                version = str(about.get("redis_version", "7.0.0"))
                if int(version.partition(".")[0]) < 7:
                    raise Refused(f"store: Redis {version} is too old, 7.0 is the oldest that works")
                policy = about.get("maxmemory_policy", "noeviction")
                if policy != "noeviction":
                    raise Refused(f"store: maxmemory-policy is {policy}; it must be noeviction, or state is lost")
                try:
                    self._client.time(**where)
                except redis.exceptions.NoPermissionError:
                    self.warnings.append("redis: TIME is not permitted: old alerts and touched lists are not trimmed")

    def _await_replicas(self, key: str, arguments: Sequence[str]) -> None:
        """Write the layout again, as it is, and wait for replicas on the same connection, as `WAIT` demands."""
        with translated():
            server = self._client
            if self._cluster:
                server = server.get_redis_connection(server.get_node_from_key(key))
            with server.pipeline(transaction=False) as pipe:
                pipe.hset(key, "secrets", arguments[2])
                pipe.execute_command("WAIT", self._min_replicas, _WAIT_MS)
                confirmed = pipe.execute()[-1]
        if confirmed < self._min_replicas:
            raise Unavailable(f"redis: {confirmed} replicas confirm, store.min_replicas is {self._min_replicas}")

    def _register(self, cell: str) -> None:
        with translated():
            self._client.sadd(CELLS_KEY, cell)
        self._registered[cell] = time.monotonic()

    def _register_again(self, cell: str) -> None:
        """A failover may cost the list of cells a name whose cell it spared, and nobody would read that cell."""
        if time.monotonic() - self._registered.get(cell, 0.0) >= _REGISTER_EVERY_S:
            try:
                self._register(cell)
            except Unavailable:  # the commit is stored all the same; the next one tries again
                self._registered.pop(cell, None)

    def _models(self, tenant: str) -> list[str]:
        """Models of a tenant that have decisions, as `model_text`."""
        prefix = model_text(tenant, "")
        found: set[str] = set()
        with translated():
            for cell in range(DECISION_CELLS):
                found.update(map(_text, self._client.smembers(f"{decision_prefix(cell)}models")))
        return sorted(name for name in found if name.startswith(prefix))

    def _ranked(self, model: str) -> Iterator[tuple[ClientKey, DecisionRow]]:
        """Rows of one model, highest rank first; equal ranks by client."""
        lists: list[list[tuple[float, str, int]]] = []
        for cell in range(DECISION_CELLS):
            with translated():
                ranks = self._client.zrange(f"{decision_prefix(cell)}rank:{model}", 0, -1, withscores=True)
            lists.append(sorted((-rank, _text(member), cell) for member, rank in ranks))
        merged = heapq.merge(*lists)
        while page := list(islice(merged, _PAGE)):
            yield from self._rows([(cell, client) for _, client, cell in page])

    def _rows(self, places: Sequence[tuple[int, str]]) -> list[tuple[ClientKey, DecisionRow]]:
        """Rows in the given order; those that have gone are left out."""
        found: dict[str, DecisionRow] = {}
        for cell, group in groupby(sorted(places), key=lambda place: place[0]):
            clients = [client for _, client in group]
            with translated(), self._client.pipeline(transaction=False) as pipe:
                for client in clients:
                    pipe.hmget(f"{decision_prefix(cell)}c:{client}", "row", "state", "rank", "until_s")
                answers = pipe.execute()
            for client, values in zip(clients, answers, strict=True):
                row = _row(client_from_text(client), values)
                if row is not None:
                    found[client] = row
        return [(client_from_text(client), found[client]) for _, client in places if client in found]


def _profile_meta(cell: str) -> str:
    return f"{profile_prefix(cell)}meta"


def _decision_meta(cell: int) -> str:
    check_decision_cell(cell)
    return f"{decision_prefix(cell)}meta"


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


def _client(text: bytes) -> ClientKey:
    return client_from_text(text.decode())


def _whole(value: bytes | None) -> int | None:
    return None if value is None else int(value)


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _fields(clients: Sequence[ClientKey], found: Sequence[Sequence[bytes]]) -> dict[ClientKey, dict[str, bytes]]:
    """Stored fields by client; a client without any is left out."""
    return {
        client: {_text(name): value for name, value in _pairs(flat)}
        for client, flat in zip(clients, found, strict=True)
        if flat
    }


def _cursor(value: bytes) -> Cursor:
    generation, _, offset = _text(value).rpartition(":")
    return Cursor(generation, int(offset))


def _row(client: ClientKey, values: Sequence[bytes | None]) -> DecisionRow | None:
    row, state, rank, until_s = values
    if row is None and state is None:
        return None
    if row is None or state is None or rank is None or until_s is None:
        raise CorruptState(f"decision row of {client.model}/{client.client}: a field is missing")
    return DecisionRow(row, _text(state), float(rank), int(until_s))


def _alert(fields: Mapping[bytes, bytes]) -> OutboxAlert:
    try:
        return OutboxAlert(_text(fields[b"uid"]), int(fields[b"time_ms"]), fields[b"body"])
    except (KeyError, ValueError) as error:
        raise CorruptState("alert in the outbox: a field is missing or malformed") from error


def _dead_letter(fields: Mapping[bytes, bytes]) -> DeadLetter:
    try:
        texts = [_text(fields[name]) for name in (b"place", b"reason", b"detail", b"sha256")]
        place, reason, detail, sha256 = texts
        return DeadLetter(place, int(fields[b"offset"]), reason, detail, sha256, fields[b"head"])
    except (KeyError, ValueError) as error:
        raise CorruptState("dead letter: a field is missing or malformed") from error
