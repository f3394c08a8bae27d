"""The store on Redis (or Valkey), alone or as a cluster.

Rules:

* All keys of a cell carry one hash tag (`layout.py`): one slot, one atomic script, one history. Only three keys live
  outside the cells: ``qw:layout``, ``qw:detectors``, and ``qw:cells``, the names of all profile cells, written at each
  claim and now and then.
* Every write is one script call; the text of each says what it checks and in which order it writes.
* The client retries nothing. A commit whose answer was lost is never sent again: `Unavailable`, and the caller
  claims.
* `WAIT` follows only what the log could not bring back (layout, operators, upkeep), and only when replicas are asked
  for; never a commit.
* Times are the server's: profiles live 30 days after their last commit (lasting ones the memory), decision rows after they were last
  recorded, alerts after they were stored. A restriction ends by the clock of whoever reads it.

Keys of a profile cell: meta (tok, off, gen, tries, counters ``n:``, dead letters by reason ``d:``, day, old),
``p:<client>``, ``touched:<v>``, ``ages`` (offset by day, to trim the former), ``dead``, ``erased``, ``sketch``; of a
join cell ``arrivals`` as well (`redis_joins.py`). Of a
decision cell: meta (tok, rev, ``cur:<cell>``, feed: its generation, cut: where it begins, ``sweep:<model>``), lease,
``c:<client>``, ``rank:<model>``, models, blocks, feed, outbox, ``sent:<destination>`` (uids), ``mark:<destination>``
(everything up to this entry is delivered), destinations. The operator cell is in `redis_operators.py`, what people do
to a store in `redis_upkeep.py`.
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

from consumers.errors import ConfigError, LeaseHeld, WrongUse
from consumers.paths import check_regular
from consumers.store import (
    DECISION_CELLS,
    SCHEMA_VERSION,
    Checkpoint,
    Claim,
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
from consumers.store import redis_values as values
from consumers.store.layout import (
    ALERT_TTL_MS,
    DECISION_TTL_S,
    FEED_ENTRIES,
    LAYOUT,
    RESTRICTED,
    check_checkpoint,
    check_decision_cell,
    check_lease,
    check_limit,
    check_outcome,
    client_from_text,
    client_text,
    layout_differs,
    model_text,
    part_text,
    profile_prefix,
    profile_ttl_s,
    schema_differs,
)
from consumers.store.redis_joins import RedisJoins
from consumers.store.redis_operators import OperatorCell
from consumers.store.redis_server import CELLS_KEY, DETECTORS_KEY, LAYOUT_KEY, profile_meta
from consumers.store.redis_upkeep import Upkeep
from consumers.store.scripts import translated
from detector.query import ClientKey

SCHEMES = {
    "redis": ("redis", False),
    "rediss": ("rediss", False),
    "redis+cluster": ("redis", True),
    "rediss+cluster": ("rediss", True),
}
"""Scheme of a store URL → scheme for the client library, whether it is a cluster."""

_FIXED_OPTIONS = frozenset({"decode_responses", "encoding", "encoding_errors", "protocol", "retry_on_timeout"})
"""Options of the client library that a URL could carry and that would break the protocol."""

_FILE_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})

_PAGE = 500


def connect(
    url: str, *, timeout_s: float = 2.0, min_replicas: int = 0, decision_cells: int = DECISION_CELLS
) -> RedisStore:
    """The store behind ``redis://``, ``rediss://`` or ``redis+cluster://``.

    timeout_s       for connecting and for each answer
    min_replicas    how many replicas must confirm a write that the log could not bring back (not a commit)
    decision_cells  as the store was made with; `prepare` refuses another number

    A single server is contacted at the first call, a cluster at once. Raises WrongUse for an address that can't be right, Unavailable.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise WrongUse("store.url: not an address (host or port is wrong)") from error
    if parts.scheme not in SCHEMES:
        raise WrongUse(f"store.url: unknown scheme {parts.scheme!r}, known are {', '.join(SCHEMES)}")
    scheme, cluster = SCHEMES[parts.scheme]
    _check_database(parts.path, cluster)
    asked = parse_qs(parts.query)
    if fixed := sorted(_FIXED_OPTIONS & asked.keys()):
        raise WrongUse(f"store.url: {', '.join(fixed)} cannot be set")
    for name in sorted(_FILE_OPTIONS & asked.keys()):
        check_regular(asked[name][-1], f"store.url: {name}")
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
                pool = client.connection_pool
                pool.connection_class(**pool.connection_kwargs)  # an option that it does not know would show much later
        except (ValueError, TypeError, AttributeError, redis.DataError) as error:
            raise WrongUse("store.url: host, port or option is not valid") from error
    return RedisStore(client, min_replicas=min_replicas, decision_cells=decision_cells)


def _check_database(path: str, cluster: bool) -> None:
    """Refuse a path that names no database: the client library would read database 0 and say nothing."""
    number = path.strip("/")
    if number and not (number.isdecimal() and len(number) < 10):
        raise WrongUse(f"store.url: {number[:20]!r} is not the number of a database")
    if cluster and number.strip("0"):
        raise WrongUse(f"store.url: a cluster has database 0 only, not {number}")


class RedisStore(OperatorCell, RedisJoins, Upkeep):
    """See `connect`. One object may be used by several threads.

    warnings  what `prepare` could not check, one line each
    """

    # --- layout and secrets

    def prepare(self, secrets_id: str) -> None:
        self.warnings = []
        self._check_servers()
        expected = [str(SCHEMA_VERSION), str(self.decision_cells), secrets_id]
        *found, restoring = [values.text(value) for value in self._scripts.run("layout", LAYOUT_KEY, expected)]
        if restoring:
            raise ConfigError("store: a restore did not finish; empty the store and restore again")
        for name, ours, stored in zip(LAYOUT[1:], expected[1:], found[1:], strict=True):
            if stored != ours:
                raise ConfigError(layout_differs(name, stored, ours))
        if found[0] != expected[0]:
            self._upgrade(found[0])
        if self._min_replicas >= 1:
            self._keep("layout", LAYOUT_KEY, expected)

    # --- ingest: one profile cell

    def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
        self._register(cell)
        arguments = [token, entropy.token_hex(8), proof]
        generation, offset, counters, attempts, erased, sketch = self._scripts.run(
            "profile_claim", profile_meta(cell), arguments
        )
        return Claim(
            values.text(generation),
            values.whole(offset),
            {values.text(name): int(value) for name, value in values.pairs(counters)},
            attempts,
            Tombstones({values.text(mark): int(below) for mark, below in values.pairs(erased)}),
            sketch,
        )

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        arguments: list[str | bytes | int] = [token, "" if offset is None else offset, *map(client_text, clients)]
        found = self._scripts.run("profile_load", profile_meta(cell), arguments, cell)
        return values.fields(clients, found)

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        check_checkpoint(checkpoint)
        expected = "" if checkpoint.expected_offset is None else checkpoint.expected_offset
        arguments: list[str | bytes | int] = [token, expected, checkpoint.next_offset, profile_ttl_s(checkpoint)]
        arguments += [len(checkpoint.profiles), len(checkpoint.dead), len(checkpoint.counters)]
        arguments.append(0 if checkpoint.sketch is None else 1)
        taken = checkpoint.taken
        arguments += ["", "", 0] if taken is None else [taken.last, taken.proof, len(taken.done), *taken.done]
        for client, fields in checkpoint.profiles.items():
            kept = [(name, value) for name, value in fields.items() if value is not None]
            dropped = [name for name, value in fields.items() if value is None]
            arguments += [
                client_text(client),
                decision_cell(client, self.decision_cells),
                profile_ttl_s(checkpoint, client),
                len(kept),
                len(dropped),
            ]
            for name, value in kept:
                arguments += (name, value)
            arguments += dropped
        for dead in checkpoint.dead:
            arguments += (dead.place, dead.offset, dead.reason, dead.detail, dead.sha256, dead.head)
        for name, count in checkpoint.counters.items():
            arguments += (name, count)
        if checkpoint.sketch is not None:
            arguments.append(checkpoint.sketch)
        self._scripts.run("profile_commit", profile_meta(checkpoint.cell), arguments, checkpoint.cell)
        self._register_again(checkpoint.cell)

    def dead_letters(self, cell: str, limit: int) -> list[tuple[str, DeadLetter]]:
        with translated():
            entries = self._client.xrange(f"{profile_prefix(cell)}dead", count=limit) if limit > 0 else []
        return [(values.text(entry), values.dead_letter(fields)) for entry, fields in entries]

    def dead_letters_shipped(self, cell: str, entries: Sequence[str]) -> None:
        with translated():
            for some in values.batches(entries, _PAGE):
                self._client.xdel(f"{profile_prefix(cell)}dead", *some)

    # --- detect: decision cells

    def cells(self) -> list[str]:
        with translated():
            return sorted(values.text(cell) for cell in self._client.smembers(CELLS_KEY))

    def touched(self, cell: str, decision_cells: Mapping[int, int], limit: int) -> dict[int, Touched]:
        check_limit(limit)
        arguments: list[int] = [limit]
        for v, cursor in decision_cells.items():
            arguments += (v, cursor)
        generation, offset, *answers = self._scripts.run("profile_touched", profile_meta(cell), arguments)
        return {
            int(v): Touched(
                values.text(generation),
                values.whole(offset) or 0,
                int(cursor),
                [values.client(text) for text in clients],
            )
            for v, cursor, clients in answers
        }

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        found = self._scripts.run("profile_shards", profile_meta(cell), [client_text(client) for client in clients])
        return Shards(values.text(found[0]), values.whole(found[1]) or 0, values.fields(clients, found[2:]))

    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        check_lease(lease_ms)
        reply = self._scripts.run("decision_claim", self._decision_meta(cell), [process, token, lease_ms])
        if reply[0] == b"HELD":
            raise LeaseHeld(cell, max(int(reply[1]), 0))
        revision, cursors = reply
        return DecisionClaim(
            int(revision), {values.text(name): values.cursor(value) for name, value in values.pairs(cursors)}
        )

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]:
        arguments: list[str | bytes | int] = [token, revision, *map(client_text, clients)]
        found = self._scripts.run("decision_load", self._decision_meta(cell), arguments, f"decisions:{cell}")
        rows = ((client, values.row(client, answer)) for client, answer in zip(clients, found, strict=True))
        return {client: row for client, row in rows if row is not None}

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        check_outcome(outcome, self.decision_cells)
        check_lease(lease_ms)
        arguments: list[str | bytes | int] = [
            token,
            revision,
            process,
            lease_ms,
            ALERT_TTL_MS,
            DECISION_TTL_S,
            FEED_ENTRIES,
        ]
        arguments += [len(outcome.cursors), len(outcome.rows), len(outcome.alerts)]
        for cell, cursor in outcome.cursors.items():
            arguments += (cell, f"{cursor.generation}:{cursor.offset}")
        for client, row in outcome.rows.items():
            arguments += (client_text(client), model_text(client.tenant, client.model))
            arguments += (row.row, row.state, repr(float(row.rank)), row.until_s, row.enforced)
        for alert in outcome.alerts:
            arguments += (alert.uid, alert.time_ms, alert.body)
        name = f"decisions:{outcome.cell}"
        (after,) = self._scripts.run("decision_record", self._decision_meta(outcome.cell), arguments, name)
        return int(after)

    def release_decisions(self, cell: int, process: str) -> None:
        self._scripts.run("decision_release", self._decision_meta(cell), [process])

    def attend(self, process: str, duration_ms: int) -> int:
        return int(self._scripts.run("attend", DETECTORS_KEY, [process, duration_ms])[0])

    def outbox(self, cell: int, destination: str, limit: int) -> list[tuple[str, OutboxAlert]]:
        entries = self._scripts.run("outbox_pending", self._decision_meta(cell), [part_text(destination), limit])
        return [(values.text(entry), values.alert(dict(values.pairs(fields)))) for entry, fields in entries]

    def sent(self, cell: int, destination: str, entry: str, uid: str) -> None:
        self._scripts.run("outbox_sent", self._decision_meta(cell), [part_text(destination), entry, uid])

    # --- readers

    def decisions(
        self, tenant: str, model: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[ClientKey, DecisionRow]]:
        models = self._models(tenant) if model is None else [model_text(tenant, model)]
        for name in models:
            rows = self._ranked(name)
            yield from rows if limit is None else islice(rows, limit)

    def decided(self, clients: Sequence[ClientKey]) -> dict[ClientKey, DecisionRow]:
        return dict(
            self._rows([(decision_cell(client, self.decision_cells), client_text(client)) for client in clients])
        )

    def alerts(self, limit: int | None = None) -> list[OutboxAlert]:
        found: list[OutboxAlert] = []
        with translated():
            for cell in range(self.decision_cells):
                key = f"{self._decision_prefix(cell)}outbox"
                # The newest by storing time hold the newest by event time of a live log; files are replayed on SQLite.
                entries = self._client.xrevrange(key, count=limit) if limit is None or limit > 0 else []
                found += (values.alert(fields) for _, fields in entries)
        found.sort(key=lambda alert: (alert.time_ms, alert.uid))
        return found if limit is None else found[len(found) - min(limit, len(found)) :]

    def dead_letter_counts(self) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for cell in self.cells():
            with translated():
                meta = self._client.hgetall(profile_meta(cell))
            counts.update({values.text(k)[2:]: int(v) for k, v in meta.items() if k.startswith(b"d:")})
        return dict(counts)

    # --- gateways

    def restrictions(self) -> tuple[dict[int, str], list[Restriction]]:
        now_s = int(time.time())
        commands: list[tuple[Any, ...]] = []
        for cell in range(self.decision_cells):
            prefix = self._decision_prefix(cell)
            # The position first: what follows may be newer, never older.
            commands += (("hget", f"{prefix}meta", "feed"), ("xrevrange", f"{prefix}feed", "+", "-", 1))
            commands.append(("zrangebyscore", f"{prefix}blocks", f"({now_s}", "+inf"))
        answers = self._at_once(commands)
        positions: dict[int, str] = {}
        held: list[tuple[str, bytes]] = []
        for cell, generation, newest, clients in zip(
            range(self.decision_cells), answers[::3], answers[1::3], answers[2::3], strict=True
        ):
            positions[cell] = f"{values.text(generation)}:{values.text(newest[0][0]) if newest else '0-0'}"
            held += ((self._decision_prefix(cell), client) for client in clients)
        rows = self._at_once(
            [("hmget", f"{prefix}c:{values.text(c)}", "state", "enforced", "until_s") for prefix, c in held]
        )
        found = []
        for (_, client), (state, enforced, until_s) in zip(held, rows, strict=True):
            if values.text(state) in RESTRICTED and (until_s == b"0" or int(until_s) > now_s):
                states = values.detected(state), values.enforced(enforced)
                found.append(Restriction(values.client(client), *states, int(until_s)))
        return positions, found

    def changes(self, positions: Mapping[int, str], limit: int) -> tuple[dict[int, str], list[Restriction]] | None:
        check_limit(limit)
        asked = {cell: values.feed_entry(position) for cell, position in positions.items()}
        commands: list[tuple[Any, ...]] = []
        for cell, (_, (ms, sequence)) in asked.items():
            check_decision_cell(cell, self.decision_cells)
            prefix = self._decision_prefix(cell)
            # What could make the answer incomplete is read after it.
            commands += (("xrange", f"{prefix}feed", f"({ms}-{sequence}", "+", limit),
                         ("xrevrange", f"{prefix}feed", "+", "-", 1), ("hmget", f"{prefix}meta", "feed", "cut"))  # fmt: skip
        answers = self._at_once(commands)
        reached, found = dict(positions), list[Restriction]()
        for (cell, (generation, after)), entries, newest, (stored, cut) in zip(
            asked.items(), answers[::3], answers[1::3], answers[2::3], strict=True
        ):
            last = values.entry_id(values.text(newest[0][0])) if newest else (0, 0)
            if (
                generation != values.text(stored)
                or after > last
                or (cut is not None and after < values.entry_id(values.text(cut)))
            ):
                return None
            if entries:
                reached[cell] = f"{generation}:{values.text(entries[-1][0])}"
            found += (values.restriction(fields) for _, fields in entries)
        return reached, found

    # --- inside

    def _upgrade(self, stored: str) -> None:
        """Bring an older store up to date, all other processes being stopped; refuse a newer one."""
        if stored != "1":
            raise ConfigError(schema_differs(stored))
        for cell in range(self.decision_cells):
            self._scripts.run("decision_upgrade", self._decision_meta(cell), [DECISION_TTL_S])
        with translated():
            self._client.hset(LAYOUT_KEY, "schema", SCHEMA_VERSION)

    def _models(self, tenant: str) -> list[str]:
        """Models of a tenant that have decisions, as `model_text`."""
        prefix = model_text(tenant, "")
        found: set[str] = set()
        with translated():
            for cell in range(self.decision_cells):
                found.update(map(values.text, self._client.smembers(f"{self._decision_prefix(cell)}models")))
        return sorted(name for name in found if name.startswith(prefix))

    def _ranked(self, model: str) -> Iterator[tuple[ClientKey, DecisionRow]]:
        """Rows of one model, highest rank first; equal ranks by client."""
        lists: list[list[tuple[float, str, int]]] = []
        for cell in range(self.decision_cells):
            with translated():
                ranks = self._client.zrange(f"{self._decision_prefix(cell)}rank:{model}", 0, -1, withscores=True)
            lists.append(sorted((-rank, values.text(member), cell) for member, rank in ranks))
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
                    pipe.hmget(f"{self._decision_prefix(cell)}c:{client}", *values.ROW_FIELDS)
                answers = pipe.execute()
            for client, answer in zip(clients, answers, strict=True):
                row = values.row(client_from_text(client), answer)
                if row is not None:
                    found[client] = row
        return [(client_from_text(client), found[client]) for _, client in places if client in found]
