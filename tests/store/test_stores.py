"""The conformance suite on every store there is: SQLite, Redis, Valkey, a Redis cluster; and what is each one's own.

The suite itself is tested too: on stores that are broken on purpose, it must fail.
"""

from __future__ import annotations

import gc
import itertools
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from support.servers import NewServer, Redis, free_port, started, wait_until
from support.store_backings import RedisCluster, RedisDatabase, SQLiteFile
from support.store_contract import (
    ALL_CELLS,
    CELL,
    alert,
    client,
    clients_in,
    dead,
    failures,
    nothing_changes,
    profiles,
    row,
)
from support.upkeep_contract import WholeContract

from consumers.errors import CorruptState, Fenced, Refused, Rewound, Unavailable, WrongUse
from consumers.store import (
    DECISION_CELLS,
    Checkpoint,
    DecisionClaim,
    Operation,
    Outcome,
    Restriction,
    decision_cell,
)
from consumers.store.embedded import EmbeddedStore
from consumers.store.layout import (
    ALERT_TTL_MS,
    DECISION_TTL_S,
    PROFILE_TTL_S,
    client_from_text,
    client_text,
    decision_prefix,
    profile_prefix,
    slot,
)
from consumers.store.redis import RedisStore, connect
from consumers.store.scripts import NAMES, read_scripts
from detector.query import ClientKey

# --- the suite on each of them


class TestSQLite(WholeContract):
    @pytest.fixture
    def backing(self, tmp_path: Path) -> SQLiteFile:
        return SQLiteFile(tmp_path / "store.sqlite")


class TestRedis(WholeContract):
    @pytest.fixture
    def backing(self, redis_url: str) -> Iterator[RedisDatabase]:
        database = RedisDatabase(redis_url)
        yield database
        database.close()


@pytest.mark.soak
class TestValkey(WholeContract):
    """The same client and the same scripts as Redis: `make test` runs what the server itself could do otherwise (`ON_VALKEY`)."""

    @pytest.fixture
    def backing(self, valkey_url: str) -> Iterator[RedisDatabase]:
        database = RedisDatabase(valkey_url)
        yield database
        database.close()


ON_VALKEY = (
    "prepare_accepts", "fields_are_binary_safe", "a_new_claim_fences", "a_rejected_commit", "large_offsets_keep", "touched_is_ordered",
    "a_lease_ends_by_itself", "outbox_is_kept", "changes_tell", "never_cut_a_revision", "an_expired_entry", "erasing_drops",
    "what_is_restored",
)  # fmt: skip
"""Scripts, number formats, expiry, sorted sets, streams and dumps: what a server that is not Redis could answer differently."""


def test_valkey_answers_as_redis_does_where_it_could_differ(valkey_url: str) -> None:
    databases: list[RedisDatabase] = []

    def fresh() -> RedisDatabase:
        databases.append(RedisDatabase(valkey_url))
        databases[-1].wipe()
        return databases[-1]

    suite = WholeContract()
    assert [name for name in ON_VALKEY if sum(name in test for test in dir(suite)) != 1] == []
    try:
        assert failures(fresh, suite=suite, only=ON_VALKEY) == []
    finally:
        for database in databases:
            database.close()


@pytest.fixture(scope="module")
def cluster(new_server: NewServer) -> Iterator[list[Redis]]:
    nodes = [
        new_server(Redis, options=("--cluster-enabled", "yes", "--cluster-port", str(free_port()))) for _ in range(3)
    ]
    try:
        for node in nodes:
            node.start()
        first: Any = redis.Redis.from_url(nodes[0].url)
        for i, node in enumerate(nodes):
            raw: Any = redis.Redis.from_url(node.url)
            raw.execute_command("CLUSTER ADDSLOTSRANGE", i * 16384 // 3, (i + 1) * 16384 // 3 - 1)
            raw.execute_command("CLUSTER SET-CONFIG-EPOCH", i + 1)
            if i:
                first.execute_command("CLUSTER MEET", "127.0.0.1", node.port, node.options[-1])
            raw.close()
        first.close()

        def agrees(node: Redis) -> bool:
            raw: Any = redis.Redis.from_url(node.url)
            state: dict[str, str] = raw.execute_command("CLUSTER INFO")
            raw.close()
            return state["cluster_state"] == "ok" and state["cluster_known_nodes"] == "3"

        wait_until(lambda: all(map(agrees, nodes)), what="the cluster")
        yield nodes
    finally:
        for node in nodes:
            node.kill()


class TestCluster(WholeContract):
    @pytest.fixture
    def backing(self, cluster: list[Redis]) -> Iterator[RedisCluster]:
        database = RedisCluster(cluster)
        yield database
        database.close()


@pytest.fixture
def own_redis(new_server: NewServer) -> Iterator[Redis]:
    """A Redis of the test's own, which it may pause, fill up or reconfigure."""
    with started(new_server(Redis)) as server:
        yield server


# --- the suite must notice broken stores


class TokenIgnored(EmbeddedStore):
    """Anybody may commit."""

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        with self._read() as db:
            stored = db.execute("SELECT token FROM cells WHERE name = ?", (checkpoint.cell,)).fetchone()
        super().commit(stored[0] if stored else token, checkpoint)


class CommitInTwoSteps(EmbeddedStore):
    """Profiles first, then the position: a refusal comes too late."""

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        with self._write() as db:
            found = db.execute("SELECT id FROM cells WHERE name = ?", (checkpoint.cell,)).fetchone()
            if found:
                self._write_profiles(db, found[0], checkpoint, 2_000_000_000)
        super().commit(token, checkpoint)


class OperatorsOverwrite(EmbeddedStore):
    """Whoever comes last wins."""

    def operate(self, revision: int, operation: Operation) -> int:
        return super().operate(self.operator_entries("")[0], operation)


class FeedWithoutGeneration(EmbeddedStore):
    """A position of the feed before an erasure is continued from."""

    def changes(self, positions: Mapping[int, str], limit: int) -> tuple[dict[int, str], list[Restriction]] | None:
        now, _ = self.restrictions()
        return super().changes(
            {v: f"{now[v].split(':')[0]}:{p.rpartition(':')[2]}" for v, p in positions.items()}, limit
        )


class ErasedButNotRemembered(EmbeddedStore):
    """What the log still holds brings the client back."""

    def erase(self, cell: str, clients: Sequence[ClientKey]) -> None:
        super().erase(cell, clients)
        with self._write() as db:
            db.execute("DELETE FROM erased")


class LeaseIgnored(EmbeddedStore):
    """Every claim succeeds."""

    def claim_decisions(self, cell: int, process: str, token: str, lease_ms: int) -> DecisionClaim:
        with self._write() as db:
            db.execute("UPDATE decision_cells SET lease_until_ms = 0")
        return super().claim_decisions(cell, process, token, lease_ms)


def test_the_suite_passes_on_a_sound_store_when_run_by_hand(tmp_path: Path) -> None:
    numbers = itertools.count()
    assert (
        failures(
            lambda: SQLiteFile(tmp_path / f"{next(numbers)}.sqlite"),
            suite=WholeContract(),
            only=("claim", "an_operation", "erased"),
        )
        == []
    )


SOAK = pytest.mark.soak
"""The suite fails on each broken store: that tests the suite, not a store. `make test` runs one of each sort, `make soak` all."""


@pytest.mark.parametrize(
    "broken",
    [
        CommitInTwoSteps,
        *(
            pytest.param(kind, marks=SOAK)
            for kind in (TokenIgnored, LeaseIgnored, OperatorsOverwrite, FeedWithoutGeneration, ErasedButNotRemembered)
        ),
    ],
)
def test_the_suite_fails_on_a_broken_sqlite_store(broken: type[EmbeddedStore], tmp_path: Path) -> None:
    numbers = itertools.count()
    assert failures(lambda: SQLiteFile(tmp_path / f"{next(numbers)}.sqlite", broken), at_most=1, suite=WholeContract())


SUSPECTED = {
    # What shows that a script of that kind is broken, so that not the whole suite runs each time.
    "profile": ("commit", "load", "token", "claim", "writes", "position", "rewound", "touched", "fields", "erasing", "erased", "reset",
                "attempts", "dead", "more_than", "exported_as", "counters", "cut_a_commit", "rejected", "join", "arriv", "full",
                "was_read"),
    "join": ("hand", "arriv", "join", "full"),
    "decision": ("record", "lease", "decision", "row", "rank", "restriction", "changes", "exported_as", "claim", "rejected"),
    "operate": ("operat", "expired"),
    "operator": ("operator",),
    "outbox": ("outbox", "sen", "deliver", "stuck"),
}  # fmt: skip
MUTANTS = [
    # script, text, what it becomes
    ("profile_claim", "redis.call('HSET', meta, 'tok', token)", "redis.call('HSETNX', meta, 'tok', token)"),
    ("profile_claim", "HSETNX', meta, 'gen'", "HSET', meta, 'gen'"),
    ("profile_load", "~= ARGV[1] then", "~= ARGV[1] and false then"),
    ("profile_load", "~= ARGV[2] then", "~= ARGV[2] and false then"),
    ("profile_commit", "~= token then", "~= token and false then"),
    ("profile_commit", "(offset or '') ~= expected then", "false then"),
    (
        "profile_commit",
        "expected then return {'CAS', offset} end",
        "expected then redis.call('HSET', meta, 'n:x', 1) return {'CAS'} end",
    ),
    ("profile_commit", "call_in_steps('HDEL'", "local _ = ('HDEL'"),
    ("profile_commit", "local STEP = 4000", "local STEP = 100000"),
    ("profile_commit", "HINCRBY', meta, 'd:' .. ARGV[i + 2], 1", "HSET', meta, 'd:' .. ARGV[i + 2], 1"),
    ("profile_commit", "redis.call('HSET', meta, 'off', next_offset)", ""),
    ("profile_touched", "if found[j + 1] == found[#found] then break end", ""),
    ("profile_touched", "elseif found[2] == found[#found] then", "elseif false then"),
    ("profile_touched", "'(' .. ARGV[i + 1]", "ARGV[i + 1]"),
    ("profile_touched", "cursor = found[j + 1]", "cursor = offset"),
    ("decision_claim", "holder ~= process then", "false then"),
    ("decision_claim", "redis.call('HSET', meta, 'tok', token)", "redis.call('HSETNX', meta, 'tok', token)"),
    ("decision_load", "~= ARGV[2] then", "~= ARGV[2] and false then"),
    ("decision_record", "~= token then", "~= token and false then"),
    ("decision_record", "~= revision then", "~= revision and false then"),
    ("decision_record", "redis.call('SET', cell .. 'lease', process, 'PX', lease_ms)", ""),
    ("decision_record", "'ZADD', cell .. 'rank:'", "'ZADD', cell .. 'rank:', 'NX', ARGV[i + 4], ARGV[i]) --"),
    ("decision_release", "== ARGV[1] then", "~= '' then"),
    ("profile_claim", "redis.call('HINCRBY', meta, 'tries', 1)", "1"),
    ("profile_commit", "if next_offset ~= expected then", "if false then"),
    ("profile_erase", "redis.call('HSET', meta, 'tok', ARGV[1])", ""),
    ("profile_erase", "redis.call('ZREM', cell .. 'touched:' .. ARGV[i + 1], ARGV[i])", ""),
    ("profile_erase", "if offset > below then", "if false then"),
    ("profile_erase", "offset = math.max(", "local _ = math.max("),
    ("profile_reset", "redis.call('HSET', cell .. 'erased', '', string.format('%.0f', before))", ""),
    ("profile_reset", "cell .. 'arrivals', meta)", "cell .. 'arrivals')"),
    ("profile_reset", "cell .. 'arrivals', meta)", "meta)"),
    ("profile_claim", "== 1 then", "== 2 then"),
    ("profile_commit", "or there[2][2] ~= proof then", "then"),
    ("profile_commit", "redis.call('XDEL', cell .. 'arrivals', ARGV[i] .. '-1')", "local _ = 0"),
    ("profile_commit", "'taken_bytes', read_bytes", "'taken_bytes', 0"),
    ("join_hand_in", "(handed or '') ~= expected then", "false then"),
    ("join_hand_in", "(redis.call('HGET', meta, 'proof') or '') .. nonce", "nonce"),
    ("join_hand_in", "waiting > 0 and", "false and"),
    ("join_hand_in", "mark, next_offset)", "mark, next_offset + 1)"),
    ("join_arrivals", "ARGV[1] .. '-0'", "'-'"),
    ("profile_reset", "redis.call('UNLINK', cell .. 'p:' .. client)", ""),
    ("decision_record", "or restricted and until_s ~= (before[3] or '0') then", "then"),
    ("decision_record", "until_s == '0' and '+inf' or until_s", "until_s"),
    ("decision_erase", "redis.call('HSET', meta, 'feed', ARGV[1])", ""),
    ("decision_erase", "redis.call('HDEL', meta, 'tok')", ""),
    ("decision_erase", "redis.call('ZREM', cell .. 'blocks', ARGV[i])", ""),
    ("decision_erase", "for _, destination in ipairs(destinations) do", "for _ in ipairs({}) do local destination"),
    ("operate", "if stored ~= ARGV[1] then", "if false then"),
    ("operate", "redis.call('ZRANGEBYSCORE', cell .. 'expiring', '-inf', now_s)", "{}"),
    ("operate", "redis.call('HSET', meta, 'gone', string.format('%.0f', gone))", ""),
    ("operator_changes", "if not known and not", "if false and not"),
    ("operate", "redis.call('ZADD', cell .. 'revisions', after, after)", ""),
    ("operator_changes", "if #found == limit then", "if false then"),
    ("outbox_pending", "'sent:' .. ARGV[1]", "'sent:'"),
    ("outbox_pending", "'mark:' .. ARGV[1]", "'mark:k'"),
    ("outbox_sent", "if from then redis.call('SET', mark, from) end", "redis.call('SET', mark, ARGV[2])"),
]


def test_every_mutant_changes_the_script_that_it_names() -> None:
    scripts = read_scripts()
    assert [(name, text) for name, text, _ in MUTANTS if scripts[name].count(text) != 1] == []


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        pytest.param(*mutant, marks=() if mutant[:2] == ("profile_commit", "~= token then") else SOAK)
        for mutant in MUTANTS
    ],
)
def test_the_suite_fails_on_a_broken_script(name: str, text: str, wrong: str, redis_url: str) -> None:
    scripts = read_scripts()
    assert scripts[name].count(text) == 1
    scripts[name] = scripts[name].replace(text, wrong)
    databases: list[RedisDatabase] = []

    def fresh() -> RedisDatabase:
        databases.append(RedisDatabase(redis_url, scripts))
        databases[-1].raw.flushdb()
        return databases[-1]

    try:
        assert failures(fresh, at_most=1, suite=WholeContract(), only=SUSPECTED.get(name.split("_")[0], ("",)))
    finally:
        for database in databases:
            database.close()


# --- names


def test_client_text_is_reversible() -> None:
    for key in (client("a:b%c"), client("", "", ""), client("ä\x00\n😀", "t:u", "m m")):
        assert client_from_text(client_text(key)) == key
    for foreign in ("", "a", "a:b", "a:b:c:d"):
        with pytest.raises(CorruptState):
            client_from_text(foreign)


def test_slots_are_those_of_redis(redis_url: str) -> None:
    assert slot("123456789") == 0x31C3 % 16384  # the check value of the cluster specification
    assert slot("user1000") == 3443


def test_cells_spread_over_the_slots() -> None:
    def tag(prefix: str) -> str:
        return prefix[prefix.index("{") + 1 : prefix.index("}")]

    assert [
        slot(tag(decision_prefix(v, DECISION_CELLS))) * DECISION_CELLS // 16384 for v in range(DECISION_CELLS)
    ] == list(range(32))
    for partitions in (3, 8, 32, 64):
        shares = Counter(slot(tag(profile_prefix(f"queries:{p}"))) * 3 // 16384 for p in range(partitions))
        assert max(shares.values()) - min(shares.get(i, 0) for i in range(3)) <= 2, (partitions, shares)
    names = ["queries:0", "queries:1", "queries:0:1", "files:ab", "a{b}:1", "a}b:1"]
    assert len({profile_prefix(name) for name in names}) == len(names)
    for name in names:
        assert profile_prefix(name).count("{") == profile_prefix(name).count("}") == 1


# --- SQLite's own


def test_sqlite_forgets_after_thirty_days(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    store = EmbeddedStore(tmp_path / "s.sqlite", now_s=lambda: now[0])
    store.claim(CELL, "t")
    store.claim_decisions(4, "p", "t", 60_000)
    store.record("t", 0, Outcome(4, alerts=[alert("old/0")]), "p", 60_000)
    store.commit("t", Checkpoint(CELL, None, 5, profiles([client("old")])))
    now[0] += PROFILE_TTL_S - 60
    store.commit("t", Checkpoint(CELL, 5, 9, profiles([client("new")])))
    assert set(store.load(CELL, "t", 9, [client("old"), client("new")])) == {client("old"), client("new")}
    now[0] += 120
    assert set(store.load(CELL, "t", 9, [client("old"), client("new")])) == {client("new")}
    assert set(store.shards(CELL, [client("old"), client("new")]).fields) == {client("new")}
    assert store.alerts() == []
    now[0] += 86_400
    store.commit("t", Checkpoint(CELL, 9, 9))
    assert [k for t in store.touched(CELL, ALL_CELLS, 10).values() for k in t.clients] == [client("new")]
    store.record("t", 1, Outcome(4), "p", 60_000)
    kept = "\n".join(sqlite3.connect(tmp_path / "s.sqlite").iterdump())
    assert "old" not in kept
    assert "new" in kept


def test_sqlite_forgets_decisions_after_thirty_days(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    store = EmbeddedStore(tmp_path / "s.sqlite", now_s=lambda: now[0])
    old, young = clients_in(4, 2)
    store.claim_decisions(4, "p", "t", 60_000)
    store.record("t", 0, Outcome(4, rows={old: row("o", 0.9, "block"), young: row()}), "p", 60_000)
    now[0] += DECISION_TTL_S - 60
    assert [r.client for r in store.restrictions()[1]] == [old]
    store.record("t", 1, Outcome(4, rows={young: row()}), "p", 60_000)
    now[0] += 120
    assert store.load_decisions(4, "t", 2, [old, young]) == {young: row()}
    assert set(store.decided([old, young])) == {young}
    assert [k for k, _ in store.decisions("acme")] == [young]
    assert store.restrictions()[1] == []
    now[0] += 86_400
    store.record("t", 2, Outcome(4, rows={young: row()}), "p", 60_000)
    rows = sqlite3.connect(tmp_path / "s.sqlite").execute("SELECT client FROM decisions").fetchall()
    assert rows == [(client_text(young),)]


SCHEMA_1 = """
CREATE TABLE layout (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cells (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token TEXT NOT NULL, generation TEXT NOT NULL,
    next_offset INTEGER);
CREATE TABLE decision_cells (cell INTEGER PRIMARY KEY, token TEXT NOT NULL, revision INTEGER NOT NULL, process TEXT,
    lease_until_ms INTEGER NOT NULL);
CREATE TABLE decisions (client TEXT PRIMARY KEY, cell INTEGER NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
    row BLOB NOT NULL, state TEXT NOT NULL, rank REAL NOT NULL, until_s INTEGER NOT NULL);
INSERT INTO layout VALUES ('schema', '1'), ('number of decision cells', '32'), ('secrets', 'k');
INSERT INTO cells VALUES (1, 'queries:3', 'old', 'g', 7);
INSERT INTO decision_cells VALUES (4, 'old', 9, NULL, 0);
INSERT INTO decisions VALUES ('{client}', 4, 'acme', 'fraud', x'72', 'block', 0.5, 0);
PRAGMA application_id = 0x51574152;
PRAGMA user_version = 1;
"""


def test_sqlite_file_of_schema_1_is_brought_up_to_date(tmp_path: Path) -> None:
    """With rows and positions as they were; what the older version would have written nowhere is empty."""
    path = tmp_path / "s.sqlite"
    (k,) = clients_in(4, 1)
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA_1.format(client=client_text(k)))
    db.close()
    for _ in range(2):
        store = EmbeddedStore(path)
        store.prepare("k")
        claim = store.claim(CELL, "t")
        assert (claim.generation, claim.next_offset, claim.sketch) == ("g", 7, b"")
        assert store.decided([k]) == {k: row("r", 0.5, "block")}
        assert store.restrictions()[1] == [Restriction(k, "block", "clear", 0)]
        store.close()
    store = EmbeddedStore(path)
    assert store.claim_decisions(4, "p", "t", 60_000).revision == 9
    store.record("t", 9, Outcome(4, rows={k: row()}), "p", 60_000)
    assert store.operate(0, Operation(audit=[b"1"])) > 0


def test_sqlite_upgrade_that_breaks_off_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.sqlite"
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA_1.format(client="a:b:c"))
    db.close()
    before = SQLiteFile(path).dump()
    monkeypatch.setattr("consumers.store.sqlite._TABLES", "CREATE TABLE nonsense (; SELECT 1")
    with pytest.raises(sqlite3.OperationalError):
        EmbeddedStore(path)
    assert SQLiteFile(path).dump() == before


def test_sqlite_feed_goes_back_ten_thousand_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.store.embedded_decisions.FEED_ENTRIES", 5)
    feed_is_capped(EmbeddedStore(tmp_path / "s.sqlite"), exactly=5)


def feed_is_capped(store: EmbeddedStore | RedisStore, exactly: int | None = None) -> None:
    """Fill one cell's feed to beyond its cap: who is too far behind is told so, who is not gets everything."""
    (k,) = clients_in(4, 1)
    store.claim_decisions(4, "p", "t", 60_000)
    positions = []
    for revision in range(250):
        positions.append({4: store.restrictions()[0][4]})
        store.record("t", revision, Outcome(4, rows={k: row("r", 0.5, ("block", "clear")[revision % 2])}), "p", 60_000)
    answers = [store.changes(position, 1000) for position in positions]
    told = [answer is not None for answer in answers]
    kept = told.count(True)
    assert told == [False] * (250 - kept) + [True] * kept
    assert kept == exactly if exactly else 5 <= kept < 200
    for behind, answer in zip(range(kept, 0, -1), answers[-kept:], strict=True):
        assert answer is not None
        assert len(answer[1]) == behind


def test_sqlite_file_is_private_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    EmbeddedStore(path).prepare("k")
    assert path.stat().st_mode & 0o077 == 0

    text = tmp_path / "text"
    text.write_text("not a database, and long enough to be looked at " * 10)
    with pytest.raises(Refused, match="not a SQLite file"):
        EmbeddedStore(text)

    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    before = foreign.read_bytes()
    with pytest.raises(Refused, match="another program"):
        EmbeddedStore(foreign)
    assert foreign.read_bytes() == before

    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Refused, match="schema 99"):
        EmbeddedStore(path)

    with pytest.raises(Refused):
        EmbeddedStore(tmp_path / "no folder" / "s.sqlite")


def test_sqlite_waits_for_a_lock_and_then_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.store.sqlite._BUSY_TIMEOUT_S", 0.05)
    store = EmbeddedStore(tmp_path / "s.sqlite")
    store.claim(CELL, "t")
    blocker = sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        store.commit("t", Checkpoint(CELL, None, 5))
    assert store.load(CELL, "t", None, []) == {}  # readers are not held up
    blocker.execute("ROLLBACK")
    blocker.close()
    store.commit("t", Checkpoint(CELL, None, 5))
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.claim(CELL, "t")


def test_sqlite_without_room_is_unavailable_and_unchanged(tmp_path: Path) -> None:
    backing = SQLiteFile(tmp_path / "s.sqlite")
    store = EmbeddedStore(backing.path)
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5, profiles([client(1)])))
    pages = store._connection().execute("PRAGMA page_count").fetchone()[0]
    store._connection().execute(f"PRAGMA max_page_count = {pages + 10}")
    with nothing_changes(backing), pytest.raises(Unavailable, match="full"):
        store.commit("t", Checkpoint(CELL, 5, 9, profiles([client(i) for i in range(50)], b"x" * 3000)))
    store._connection().execute("PRAGMA max_page_count = 1000000")
    store.commit("t", Checkpoint(CELL, 5, 9, profiles([client(i) for i in range(50)], b"x" * 3000)))


def test_sqlite_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    store = EmbeddedStore(path)
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5, profiles([client(i) for i in range(300)], b"x" * 500)))
    store.close()
    whole = path.read_bytes()
    half = len(whole) // 2  # the schema comes first; without it there is no SQLite file any more
    path.write_bytes(whole[:half] + b"\xa5" * (len(whole) - half))
    with pytest.raises(CorruptState):
        EmbeddedStore(path).load(CELL, "t", 5, [client(i) for i in range(300)])


def test_sqlite_connections_end_with_their_threads(tmp_path: Path) -> None:
    store = EmbeddedStore(tmp_path / "s.sqlite")
    store.claim(CELL, "t")
    for _ in range(20):
        thread = threading.Thread(target=store.cells)
        thread.start()
        thread.join()
    gc.collect()
    assert len(store._open) == 1


WORKER = """
import sys
from consumers.store import Checkpoint
from consumers.store.embedded import EmbeddedStore
from detector.query import ClientKey
path, name = sys.argv[1:]
store = EmbeddedStore(path)
store.prepare("k")
offset = store.claim(name, name).next_offset
for i in range(30):
    key = ClientKey("acme", "fraud", f"{name}/{i}")
    store.commit(name, Checkpoint(name, offset, (offset or 0) + 1, {key: {"h": b"x" * 2000}}))
    offset = (offset or 0) + 1
"""


def test_sqlite_file_is_shared_by_processes(tmp_path: Path) -> None:
    """Three processes create the file at once and write side by side."""
    path = tmp_path / "s.sqlite"
    command = [sys.executable, "-c", WORKER, str(path)]
    root = Path(__file__).parents[2]
    workers = [subprocess.Popen([*command, f"queries:{i}"], cwd=root) for i in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    store = EmbeddedStore(path)
    assert [store.claim(f"queries:{i}", "t").next_offset for i in range(3)] == [30, 30, 30]
    keys = [client(f"queries:1/{i}") for i in range(30)]
    assert len(store.load("queries:1", "t", 30, keys)) == 30


def test_sqlite_survives_a_kill(tmp_path: Path) -> None:
    """SIGKILL in the middle of committing: what is there is one of the states that were committed."""
    path = tmp_path / "s.sqlite"
    body = WORKER.replace("range(30)", "range(100_000)")
    worker = subprocess.Popen([sys.executable, "-c", body, str(path), "queries:0"], cwd=Path(__file__).parents[2])
    try:

        def committed() -> bool:
            return path.exists() and EmbeddedStore(path).shards("queries:0", []).offset > 50

        wait_until(committed)
    finally:
        worker.kill()
        worker.wait(10)
    store = EmbeddedStore(path)
    offset = store.claim("queries:0", "t").next_offset
    assert offset is not None
    keys = [client(f"queries:0/{i}") for i in range(offset + 5)]
    assert set(store.load("queries:0", "t", offset, keys)) == set(keys[:offset])


# --- Redis' own


@pytest.fixture
def database(redis_url: str) -> Iterator[RedisDatabase]:
    found = RedisDatabase(redis_url)
    yield found
    found.close()


def test_every_script_is_shipped() -> None:
    folder = Path(__file__).parents[2] / "consumers" / "store"
    assert {path.stem for path in folder.glob("*.lua")} == set(NAMES)
    assert all(text.startswith("#!lua") for text in read_scripts().values())


def test_redis_keys_of_a_cell_share_a_slot(database: RedisDatabase) -> None:
    store = database.open()
    store.prepare("k")
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5, profiles([client(i) for i in range(40)]), [dead(1)], {"n": 1}))
    store.claim_decisions(4, "p", "t", 60_000)
    (k,) = clients_in(4, 1)
    store.record("t", 0, Outcome(4, rows={k: row()}, alerts=[alert("a/0")]), "p", 60_000)
    store.sent(4, "kafka:x{y}", store.outbox(4, "kafka:x{y}", 1)[0][0], "a/0")
    outside = {b"qw:layout", b"qw:cells"}
    tags = {key[: key.index(b"}")] for key in database.all_keys() if key not in outside}
    assert tags == {
        prefix.rstrip("}:").encode() for prefix in (profile_prefix(CELL), decision_prefix(4, DECISION_CELLS))
    }
    assert all(key.startswith(b"qw:") for key in database.all_keys())


def test_sqlite_keeps_lasting_profiles_for_the_memory(tmp_path: Path) -> None:
    now = [1_700_000_000.0]
    store = EmbeddedStore(tmp_path / "s.sqlite", now_s=lambda: now[0])
    store.claim(CELL, "t")
    both, year_s = [client("odd"), client("plain")], 365 * 86_400
    store.commit("t", Checkpoint(CELL, None, 5, profiles(both), lasting=frozenset(both[:1]), memory_s=year_s))
    now[0] += PROFILE_TTL_S + 60
    assert set(store.shards(CELL, both).fields) == {client("odd")}
    now[0] += year_s
    assert not store.shards(CELL, both).fields
    store.close()


def test_redis_profiles_expire(database: RedisDatabase) -> None:
    store = database.open()
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5, profiles([client(1)])))
    assert PROFILE_TTL_S - 60 < database.raw.ttl(f"{profile_prefix(CELL)}p:{client_text(client(1))}") <= PROFILE_TTL_S


def test_redis_expires_lasting_profiles_after_the_memory_and_others_after_30_days(database: RedisDatabase) -> None:
    store = database.open()
    store.claim(CELL, "t")
    written, year_s = profiles([client(1), client(2)]), 365 * 86_400
    store.commit("t", Checkpoint(CELL, None, 5, written, lasting=frozenset([client(1)]), memory_s=year_s))
    lasts, goes = (database.raw.ttl(f"{profile_prefix(CELL)}p:{client_text(client(k))}") for k in (1, 2))
    assert year_s - 60 < lasts <= year_s
    assert PROFILE_TTL_S - 60 < goes <= PROFILE_TTL_S


def test_redis_trims_what_is_older_than_thirty_days(database: RedisDatabase) -> None:
    """Time is moved by writing what a store would have written forty days ago."""
    store = database.open()
    store.claim(CELL, "t")
    keys = clients_in(4, 3)
    store.commit("t", Checkpoint(CELL, None, 5, profiles(keys[:1])))
    store.commit("t", Checkpoint(CELL, 5, 10, profiles(keys[1:2])))
    today = int(database.raw.time()[0]) // 86_400
    prefix = profile_prefix(CELL)
    assert database.raw.zrange(f"{prefix}ages", 0, -1, withscores=True) == [(b"5", today)]
    database.raw.delete(f"{prefix}ages")
    database.raw.zadd(f"{prefix}ages", {"1": today - 60, "10": today - 40, "11": today - 5})
    database.raw.hdel(f"{prefix}meta", "day")
    store.commit("t", Checkpoint(CELL, 10, 15, profiles(keys[2:])))
    assert store.touched(CELL, {4: 0}, 10)[4].clients == keys[1:]
    assert [int(offset) for offset in database.raw.zrange(f"{prefix}ages", 0, -1)] == [10, 11, 15]

    store.claim_decisions(4, "p", "t", 60_000)
    old = int(time.time() * 1000) - ALERT_TTL_MS - 60_000
    outbox = f"{decision_prefix(4, DECISION_CELLS)}outbox"
    database.raw.xadd(outbox, {"uid": "old/0", "time_ms": 1, "body": "x"}, id=f"{old}-0")
    database.raw.xadd(outbox, {"uid": "young/0", "time_ms": 2, "body": "x"}, id=f"{old + 3_600_000}-0")
    store.sent(4, "k", f"{old}-0", "old/0")
    store.sent(4, "k", f"{old + 3_600_000}-0", "young/0")
    store.record("t", 0, Outcome(4), "p", 60_000)
    assert [a.uid for a in store.alerts()] == ["young/0"]
    store.sent(4, "k", f"{old + 3_600_000}-0", "young/0")
    assert database.raw.zrange(f"{decision_prefix(4, DECISION_CELLS)}sent:k", 0, -1) == [b"young/0"]


def test_redis_feed_goes_back_ten_thousand_changes(database: RedisDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.store.redis.FEED_ENTRIES", 5)
    feed_is_capped(database.open())


def test_redis_decisions_expire_and_what_names_them_goes(database: RedisDatabase) -> None:
    store = database.open()
    prefix = decision_prefix(4, DECISION_CELLS)
    keys = clients_in(4, 300)
    store.claim_decisions(4, "p", "t", 60_000)
    store.record("t", 0, Outcome(4, rows=dict.fromkeys(keys, row("r", 0.5, "block"))), "p", 60_000)
    gone, stays = keys[:250], keys[250:]
    assert DECISION_TTL_S - 60 < database.raw.ttl(f"{prefix}c:{client_text(keys[0])}") <= DECISION_TTL_S
    for k in gone:
        database.raw.delete(f"{prefix}c:{client_text(k)}")  # as if thirty days had passed
    assert sorted(k for k, _ in store.decisions("acme")) == sorted(stays)
    assert sorted(r.client for r in store.restrictions()[1]) == sorted(stays)
    assert database.raw.zcard(f"{prefix}rank:acme:fraud") == 300
    for revision in range(1, 41):
        store.record("t", revision, Outcome(4, rows={stays[0]: row()}), "p", 60_000)
    assert database.raw.zcard(f"{prefix}rank:acme:fraud") == 50
    assert database.raw.zcard(f"{prefix}blocks") == 49


def test_redis_restrictions_that_ended_are_cleaned_up(database: RedisDatabase) -> None:
    store = database.open()
    a, b = clients_in(4, 2)
    store.claim_decisions(4, "p", "t", 60_000)
    ended = int(time.time()) - 60
    store.record("t", 0, Outcome(4, rows={a: row("r", 0.5, "block", ended), b: row("r", 0.5, "block")}), "p", 60_000)
    assert database.raw.zrange(f"{decision_prefix(4, DECISION_CELLS)}blocks", 0, -1) == [client_text(b).encode()]


def test_redis_store_of_schema_1_is_brought_up_to_date(database: RedisDatabase) -> None:
    store = database.open()
    store.prepare("k")
    (k,) = clients_in(4, 1)
    store.claim_decisions(4, "p", "t", 60_000)
    store.record("t", 0, Outcome(4, rows={k: row("r", 0.5, "block")}), "p", 60_000)
    key = f"{decision_prefix(4, DECISION_CELLS)}c:{client_text(k)}"
    database.raw.hset("qw:layout", "schema", "1")
    database.raw.delete(
        f"{decision_prefix(4, DECISION_CELLS)}blocks",
        f"{decision_prefix(4, DECISION_CELLS)}feed",
    )
    database.raw.hdel(key, "enforced")
    database.raw.persist(key)
    assert database.open().restrictions()[1] == []
    for _ in range(2):
        database.open().prepare("k")
        assert database.raw.hget("qw:layout", "schema") == b"2"
        assert database.raw.ttl(key) > DECISION_TTL_S - 60
        assert store.decided([k]) == {k: row("r", 0.5, "block")}
        assert store.restrictions()[1] == [Restriction(k, "block", "clear", 0)]
    database.raw.hset("qw:layout", "schema", "3")
    with nothing_changes(database), pytest.raises(Refused, match="schema 3.*newer version") as refusal:
        database.open().prepare("k")
    assert "\n" not in str(refusal.value)


PAGES = {
    # table, what is read in pages → the check that makes it one moment
    "profile": ("profile_page", "if (offset or '') ~= ARGV[2] then"),
    "decision": ("decision_page", "if revision ~= ARGV[1] then"),
}


@pytest.mark.parametrize("table", PAGES)
@pytest.mark.parametrize("checked", [True, False], ids=["checked", "broken"])
def test_redis_reads_again_what_changed_between_two_pages(
    table: str, checked: bool, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is followed by a write, until one page holds all; without the script's check two states are mixed."""
    monkeypatch.setattr("consumers.store.redis_upkeep._PAGE", 3)
    page, check = PAGES[table]
    scripts = read_scripts()
    if not checked:
        assert scripts[page].count(check) == 1
        scripts[page] = scripts[page].replace(check, "if false then")
    database = RedisDatabase(redis_url, scripts)
    store, exporter = database.open(), database.open()
    keys = clients_in(4, 20)
    turns = itertools.count(1)

    def write() -> None:
        n = next(turns)
        store.commit("t", Checkpoint(CELL, n - 1 or None, n, profiles(keys, b"n%d\n" % n)))
        store.record("t", n - 1, Outcome(4, rows=dict.fromkeys(keys, row(f"n{n}\n"))), "p", 60_000)

    store.claim(CELL, "t")
    store.claim_decisions(4, "p", "t", 60_000)
    write()
    run = exporter._scripts.run

    def run_and_write(name: str, *arguments: Any) -> list[Any]:
        found = run(name, *arguments)
        if name == page:
            write()
        return found

    monkeypatch.setattr(exporter._scripts, "run", run_and_write)
    values = [item.value for item in exporter.export() if item.table == table]
    numbers = {value[value.rindex(b"n") : value.rindex(b"\n")] for value in values}
    assert len(values) == 20
    assert (len(numbers) == 1) is checked
    database.close()


def test_redis_loads_a_script_that_the_server_lost(database: RedisDatabase) -> None:
    store = database.open()
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5))
    database.raw.script_flush()
    store.commit("t", Checkpoint(CELL, 5, 9, profiles([client(1)])))
    assert store.claim(CELL, "t2").next_offset == 9


def test_redis_is_never_asked_twice(own_redis: Redis) -> None:
    """The server stops answering: Unavailable; the commit that was on its way arrives later, once, and is harmless."""
    store = connect(own_redis.url, timeout_s=0.3)
    store.claim(CELL, "t1")
    store.commit("t1", Checkpoint(CELL, None, 5, profiles([client(1)], b"before")))
    raw = redis.Redis.from_url(own_redis.url)
    raw.config_resetstat()
    own_redis.pause()
    with pytest.raises(Unavailable):
        store.commit("t1", Checkpoint(CELL, 5, 9, profiles([client(1)], b"after")))
    own_redis.resume()
    wait_until(lambda: "cmdstat_evalsha" in raw.info("commandstats"), what="the late commit")
    assert raw.info("commandstats")["cmdstat_evalsha"]["calls"] == 1
    assert store.claim(CELL, "t2").next_offset == 9
    with pytest.raises(Fenced):
        store.commit("t1", Checkpoint(CELL, 9, 12))
    assert store.load(CELL, "t2", 9, [client(1)]) == {client(1): {"h": b"after"}}

    own_redis.kill()
    with pytest.raises(Unavailable):
        store.commit("t2", Checkpoint(CELL, 9, 12))
    with pytest.raises(Unavailable):
        store.cells()
    own_redis.start()  # with nothing on disk: all is lost, and that is noticed
    with pytest.raises(Fenced):
        store.commit("t2", Checkpoint(CELL, 9, 12))
    raw.close()
    store.close()


def test_redis_that_is_full_is_unavailable_and_unchanged(own_redis: Redis) -> None:
    backing = RedisDatabase(own_redis.url)
    store = backing.open()
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5, profiles([client(1)])))
    backing.raw.config_set("maxmemory", 1_000)
    with nothing_changes(backing), pytest.raises(Unavailable, match="maxmemory"):
        store.commit("t", Checkpoint(CELL, 5, 9, profiles([client(i) for i in range(50)], b"x" * 2000)))
    assert len(store.load(CELL, "t", 5, [client(1)])) == 1
    backing.raw.config_set("maxmemory", 0)
    store.commit("t", Checkpoint(CELL, 5, 9))
    backing.close()


def test_redis_that_may_evict_is_refused(own_redis: Redis) -> None:
    store = connect(own_redis.url)
    raw = redis.Redis.from_url(own_redis.url)
    raw.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(Refused, match="noeviction"):
        store.prepare("k")
    assert raw.dbsize() == 0
    raw.config_set("maxmemory-policy", "noeviction")
    store.prepare("k")
    assert store.warnings == []
    raw.close()
    store.close()


def test_redis_with_few_rights(own_redis: Redis) -> None:
    """A user who may only do what the consumers need: checks that are forbidden become warnings."""
    raw: Any = redis.Redis.from_url(own_redis.url)
    rights = "+@read +@write +@scripting +@stream +@connection -@dangerous"
    raw.execute_command("ACL SETUSER", "qw", "on", ">pw", "~qw:*", *rights.split())
    store = connect(own_redis.url.replace("redis://", "redis://qw:pw@"))
    store.prepare("k")
    assert [warning.split()[1] for warning in store.warnings] == ["INFO", "TIME"]
    store.claim(CELL, "t")
    (k,) = clients_in(4, 1)
    store.commit("t", Checkpoint(CELL, None, 5, profiles([k]), [dead(1)], {"n": 1}))
    store.claim_decisions(4, "p", "t", 60_000)
    store.record("t", 0, Outcome(4, rows={k: row()}, alerts=[alert("a/0")]), "p", 60_000)
    store.sent(4, "k", store.outbox(4, "k", 1)[0][0], "a/0")
    assert list(store.decisions("acme")) == [(k, row())]
    store.release_decisions(4, "p")

    wrong = connect(own_redis.url.replace("redis://", "redis://qw:canary-3141@"))
    with pytest.raises(Refused) as refusal:
        wrong.claim(CELL, "t")
    assert "canary-3141" not in str(refusal.value)
    raw.execute_command("ACL SETUSER", "qw", "-evalsha")
    with pytest.raises(Refused, match="evalsha"):
        store.commit("t", Checkpoint(CELL, 5, 9))
    raw.close()
    wrong.close()
    store.close()


def test_redis_replicas_confirm_the_layout_only(own_redis: Redis, new_server: NewServer) -> None:
    store = connect(own_redis.url, min_replicas=1)
    raw = redis.Redis.from_url(own_redis.url)
    raw.config_set("repl-diskless-sync-delay", 0)
    with pytest.raises(Unavailable, match="min_replicas"):
        store.prepare("k")
    with pytest.raises(Unavailable, match="0 replicas confirm"):
        store.operate(0, Operation(audit=[b"1"]))
    with pytest.raises(Rewound) as written:
        store.operate(0, Operation(audit=[b"1"]))
    assert written.value.offset
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5))
    replica = new_server(Redis, options=("--replicaof", "127.0.0.1", str(own_redis.port)))
    replica.start()
    try:
        wait_until(lambda: raw.info("replication")["connected_slaves"] == 1)
        wait_until(lambda: raw.info("replication").get("slave0", {}).get("state") == "online")
        store.prepare("k")
        raw.script_flush()
        assert store.operate(written.value.offset, Operation(audit=[b"2"])) > written.value.offset
        store.erase(CELL, [client(1)])
        store.claim(CELL, "t")
        assert raw.info("commandstats")["cmdstat_wait"]["calls"] >= 3
        raw.config_resetstat()
        store.commit("t", Checkpoint(CELL, 5, 9))
        assert "cmdstat_wait" not in raw.info("commandstats")
        copy = connect(replica.url)
        with pytest.raises(Unavailable):
            copy.commit("t", Checkpoint(CELL, 9, 12))
        raw.close()
    finally:
        replica.kill()
    store.close()


@pytest.mark.parametrize("suffix", ["p:acme:fraud:1", "touched:{v}", "dead"])
def test_redis_key_of_a_foreign_type_is_corrupt_and_changes_nothing(suffix: str, database: RedisDatabase) -> None:
    store = database.open()
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 5, profiles([client(9)])))
    key = profile_prefix(CELL) + suffix.format(v=decision_cell(client(1), DECISION_CELLS))
    database.raw.delete(key)
    database.raw.set(key, "foreign")
    with nothing_changes(database), pytest.raises(CorruptState):
        store.commit("t", Checkpoint(CELL, 5, 9, profiles([client(i) for i in range(8)]), [dead(1)], {"n": 1}))


def test_redis_rows_with_missing_fields_are_corrupt(database: RedisDatabase) -> None:
    store = database.open()
    (k,) = clients_in(4, 1)
    store.claim_decisions(4, "p", "t", 60_000)
    store.record("t", 0, Outcome(4, rows={k: row()}, alerts=[alert("a/0")]), "p", 60_000)
    database.raw.hdel(f"{decision_prefix(4, DECISION_CELLS)}c:{client_text(k)}", "rank")
    with pytest.raises(CorruptState):
        store.load_decisions(4, "t", 1, [k])
    database.raw.xadd(f"{decision_prefix(4, DECISION_CELLS)}outbox", {"uid": "x"})
    with pytest.raises(CorruptState):
        store.outbox(4, "k", 10)


@pytest.mark.parametrize("name", ["profile_commit", "decision_record"])
def test_redis_scripts_check_their_arguments_first(name: str, database: RedisDatabase) -> None:
    """Arguments that only a bug could send: an error, and nothing is written."""
    store = database.open()
    store.claim(CELL, "t")
    store.claim_decisions(4, "p", "t", 60_000)
    key = f"{profile_prefix(CELL) if name.startswith('profile') else decision_prefix(4, DECISION_CELLS)}meta"
    good = {
        "profile_commit": "t||5|60|1|1|1|1|||0|a:b:c|4|60|1|1|n|v|gone|place|1|nan|d|s|h|processed|7|sketch",
        "decision_record": "t|0|p|1000|1000|60|100|1|1|1|q:0|g:1|a:b:c|a:b|r|watch|0.5|0|clear|a/0|1|body",
    }[name].split("|")
    for cut in range(len(good)):
        with nothing_changes(database), pytest.raises((redis.exceptions.ResponseError, Fenced, Rewound)):
            store._scripts.run(name, key, good[:cut])
    with nothing_changes(database), pytest.raises(redis.exceptions.ResponseError):
        store._scripts.run(name, key, [*good, "more"])
    store._scripts.run(name, key, good)


def test_redis_lists_a_cell_again_that_the_registry_lost(
    database: RedisDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = database.open()
    store.claim(CELL, "t")
    database.raw.delete("qw:cells")
    store.commit("t", Checkpoint(CELL, None, 5))
    assert store.cells() == []
    monkeypatch.setattr("consumers.store.redis_server._REGISTER_EVERY_S", 0.0)
    store.commit("t", Checkpoint(CELL, 5, 9))
    assert store.cells() == [CELL]


def test_connect_refuses_what_it_does_not_know() -> None:
    for url in ("http://127.0.0.1", "sqlite:///x", "127.0.0.1:6379"):
        with pytest.raises(WrongUse, match="store.url"):
            connect(url)
    for option in ("decode_responses=1", "retry_on_timeout=true&x=1", "protocol=3"):
        with pytest.raises(WrongUse, match=option.split("=")[0]):
            connect(f"redis://127.0.0.1/0?{option}")
    with pytest.raises(WrongUse) as error:
        connect("redis://:canary-2718@127.0.0.1:port")
    assert "canary-2718" not in str(error.value)
    with pytest.raises(Unavailable):
        connect(f"redis+cluster://127.0.0.1:{free_port()}", timeout_s=0.5)
    with pytest.raises(Unavailable):
        connect(f"redis://127.0.0.1:{free_port()}", timeout_s=0.5).prepare("k")
