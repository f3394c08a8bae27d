"""The audit log: a chain that shows whatever was done to it, wherever it was done."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.seeded_api import OURS, SECRETS

from consumers.errors import Refused
from consumers.operators import audit
from consumers.operators.audit import (
    Chain,
    Head,
    Mirror,
    Seal,
    chained,
    signature_holds,
    stored_head,
    stored_rows,
    verify,
)
from consumers.operators.audited_write import Actor
from consumers.operators.erasure import Forgotten
from consumers.operators.operate import Operations
from consumers.records.operator_entries import entry_key
from consumers.secrets import Secrets
from consumers.store import Entry, Operation
from consumers.store.embedded import EmbeddedStore
from detector.query import ClientKey

SEAL = Seal(SECRETS)
OTHER = Seal(Secrets(b"s" * 16, b"q" * 32, b"k" * 32))
ADMIN = Actor("root", "admin", OURS, "10.0.0.1", "request-1")


def rows(n: int) -> list[bytes]:
    found, previous = [], audit.GENESIS
    for i in range(1, n + 1):
        line, previous = chained(previous, {"n": i, "actor": f"a{i % 3}", "action": "decision.block", "prev": previous})
        found.append(line)
    return found


@dataclass
class Shelf:
    """Only what `verify` asks of a store."""

    lines: list[bytes]
    head: Head | None

    def audit_rows(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        return [(i + 1, line) for i, line in enumerate(self.lines)][after : after + limit]

    def operator_entries(self, kind: str, tenant: str | None = None) -> tuple[int, list[Entry]]:
        return 1, [audit.packed_head(self.head)] if self.head else []


def shelf(n: int) -> Shelf:
    lines = rows(n)
    last = json.loads(lines[-1])["hash"] if lines else audit.GENESIS
    return Shelf(lines, SEAL.head(n, last, 1000) if lines else None)


def findings(one: Shelf, **more: Any) -> list[str]:
    return verify(one, SEAL, **more).findings  # type: ignore[arg-type]


def test_an_honest_log_is_clean() -> None:
    for n in (0, 1, 2, 50):
        assert findings(shelf(n)) == []
    found = verify(shelf(50), SEAL)  # type: ignore[arg-type]
    assert found.rows == 50


LONG = 12
TAMPERING: dict[str, Callable[[Shelf, int, int], None]] = {
    "edit": lambda s, i, j: s.lines.__setitem__(i, s.lines[i].replace(b'"actor":"a', b'"actor":"b')),
    "edit with a hash of its own": lambda s, i, j: s.lines.__setitem__(i, _rehashed(s, i)),
    "delete": lambda s, i, j: s.lines.__delitem__(i),
    "insert": lambda s, i, j: s.lines.insert(i, s.lines[j]),
    "swap": lambda s, i, j: _swap(s.lines, i, (i + 1 + j % (LONG - 1)) % LONG),
    "truncate": lambda s, i, j: s.lines.__delitem__(slice(i, None)),
    "truncate, and the head with it": lambda s, i, j: _cut_with_head(s, i),
    "rewrite from there on": lambda s, i, j: _rewrite(s, i),
    "another's head": lambda s, i, j: setattr(s, "head", OTHER.head(LONG, json.loads(s.lines[-1])["hash"], 1000)),
    "flip a byte": lambda s, i, j: s.lines.__setitem__(i, _flipped(s.lines[i], j)),
    "number": lambda s, i, j: s.lines.__setitem__(i, s.lines[i].replace(b'"n":%d' % (i + 1), b'"n":%d' % (i + 2))),
}


def _swap(lines: list[bytes], i: int, j: int) -> None:
    lines[i], lines[j] = lines[j], lines[i]


def _flipped(line: bytes, j: int) -> bytes:
    at = j % len(line)
    return line[:at] + bytes([line[at] ^ 1]) + line[at + 1 :]


def _rehashed(s: Shelf, i: int) -> bytes:
    row = json.loads(s.lines[i])
    previous = json.loads(s.lines[i - 1])["hash"] if i else audit.GENESIS
    del row["hash"]
    return chained(previous, row | {"actor": "nobody"})[0]


def _rewrite(s: Shelf, i: int) -> None:
    """What somebody without the secrets can do at best: a new chain from a row on, under the old head."""
    previous = json.loads(s.lines[i - 1])["hash"] if i else audit.GENESIS
    for k in range(i, len(s.lines)):
        row = {name: value for name, value in json.loads(s.lines[k]).items() if name != "hash"}
        s.lines[k], previous = chained(previous, row | {"actor": "nobody", "prev": previous})


def _cut_with_head(s: Shelf, i: int) -> None:
    del s.lines[i:]
    s.head = None


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(sorted(TAMPERING)), i=st.integers(0, LONG - 1), j=st.integers(0, 10_000))
def test_every_tampering_is_found(kind: str, i: int, j: int) -> None:
    tampered, honest = shelf(LONG), shelf(LONG)
    TAMPERING[kind](tampered, i, j % LONG if kind != "flip a byte" else j)
    if (tampered.lines, tampered.head) == (honest.lines, honest.head):
        return
    if kind == "truncate, and the head with it" and not tampered.lines:
        # Nothing is left that could contradict: that is what the copy and anchors are for.
        assert findings(tampered, anchors={LONG: json.loads(honest.lines[-1])["hash"]})
        return
    assert findings(tampered), kind


def test_a_chain_without_a_signed_head_would_miss_a_cut() -> None:
    """Why there is a head at all."""
    cut = shelf(LONG)
    del cut.lines[5:]
    chain = Chain("store")
    for line in cut.lines:
        chain.row(line)
    assert chain.found.findings == []
    assert findings(cut)


def test_a_rollback_with_its_old_head_contradicts_the_anchor() -> None:
    old = shelf(5)
    assert findings(old) == []
    assert findings(old, anchors={7: json.loads(rows(7)[-1])["hash"]}), "rows that were known are gone"
    assert findings(old, anchors={3: "f" * 64}), "a row is another than the known one"
    assert findings(old, anchors={3: json.loads(rows(3)[-1])["hash"]}) == []


def test_signatures() -> None:
    head = SEAL.head(3, "a" * 64, 1000)
    assert SEAL.holds(head)
    assert signature_holds(head, SEAL.public)
    assert not signature_holds(head, OTHER.public)
    for change in ({"n": 4}, {"hash": "b" * 64}, {"ts": 1001}, {"signature": "AAAA"}, {"signature": "?"}):
        assert not SEAL.holds(Head(**(_of(head) | change)))


def _of(head: Head) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(head)
    return found


# ----------------------------------------------------------------------------------------------------- the copy


@dataclass
class Desk:
    store: EmbeddedStore
    operations: Operations
    mirror: Mirror
    n: int = field(default=0)

    def act(self, times: int = 1) -> None:
        for _ in range(times):
            self.n += 1
            self.operations.decide(ADMIN, self.operations.subject(OURS, "*", f"client-{self.n}"), "block", ttl_s=60)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    store = EmbeddedStore(tmp_path / "audit.sqlite")
    store.prepare(SECRETS.key_id)
    mirror = Mirror(tmp_path / "state" / "audit.jsonl")
    yield Desk(store, Operations(store, SECRETS, mirror=mirror), mirror)
    store.close()


def lines(mirror: Mirror) -> list[bytes]:
    return mirror.path.read_bytes().splitlines(keepends=True)


def test_store_and_copy_agree(desk: Desk) -> None:
    desk.act(3)
    kept = [line for line in lines(desk.mirror) if not line.startswith(b'{"head"')]
    assert [line.rstrip(b"\n") for line in kept] == [line for _, line in stored_rows(desk.store)]
    assert verify(desk.store, SEAL, desk.mirror).findings == []
    assert desk.mirror.path.stat().st_mode & 0o777 == 0o600
    row = json.loads(kept[0])
    assert (row["actor"], row["role"], row["tenant"], row["ip"], row["request_id"]) == (
        "root",
        "admin",
        OURS,
        "10.0.0.1",
        "request-1",
    )
    assert row["action"] == "decision.block"
    assert b"client-" not in b"".join(kept), "no client id in clear"


@pytest.mark.parametrize("keep", [0, 1, 3, 5])
def test_a_cut_copy_is_found_or_made_good(desk: Desk, keep: int) -> None:
    desk.act(3)
    whole = lines(desk.mirror)
    desk.mirror.path.write_bytes(b"".join(whole[:keep]))
    desk.mirror.catch_up(desk.store, SEAL)
    desk.act()
    assert verify(desk.store, SEAL, desk.mirror).findings == []


def test_a_torn_last_line_is_made_good(desk: Desk) -> None:
    desk.act(2)
    whole = desk.mirror.path.read_bytes()
    desk.mirror.path.write_bytes(whole + b'{"hash":"12')
    desk.act()
    assert verify(desk.store, SEAL, desk.mirror).findings == []


def test_a_store_that_lost_rows_contradicts_the_copy(desk: Desk, tmp_path: Path) -> None:
    desk.act(2)
    backup = tmp_path / "backup.sqlite"
    with contextlib.closing(EmbeddedStore(backup)) as restored:
        restored.prepare(SECRETS.key_id)
        restored.restore(list(desk.store.export()))
        assert verify(restored, SEAL, desk.mirror).findings == [], "a faithful copy of the store"
        desk.act(2)
        found = verify(restored, SEAL, desk.mirror).findings
        assert any("row 4 is known from the copy" in f for f in found), found


def test_an_edited_copy_is_found(desk: Desk) -> None:
    desk.act(3)
    text = desk.mirror.path.read_bytes()
    desk.mirror.path.write_bytes(text.replace(b'"actor":"root"', b'"actor":"toor"', 1))
    assert any("audit.jsonl" in f for f in verify(desk.store, SEAL, desk.mirror).findings)


def tampered(desk: Desk, tmp_path: Path, change: Callable[[EmbeddedStore], None]) -> list[str]:
    """What `verify` finds in a faithful copy of the store whose entries somebody changed, rows and head left as they are."""
    tmp_path.mkdir()
    with contextlib.closing(EmbeddedStore(tmp_path / "tampered.sqlite")) as copy:
        copy.prepare(SECRETS.key_id)
        copy.restore(list(desk.store.export()))
        change(copy)
        return verify(copy, SEAL).findings


def written(kind: str, **operation: Any) -> Callable[[EmbeddedStore], None]:
    def change(store: EmbeddedStore) -> None:
        store.operate(store.operator_entries(kind)[0], Operation(**operation))

    return change


def test_an_entry_that_was_taken_away_changed_or_planted_is_found(desk: Desk, tmp_path: Path) -> None:
    subject = desk.operations.subject(OURS, "*", "thief")
    desk.operations.decide(ADMIN, subject, "block", ttl_s=3600)
    desk.operations.allow(ADMIN, desk.operations.subject(OURS, "*", "friend"))
    desk.operations.note(ADMIN, ClientKey(OURS, "m", subject.client), "seen before")
    desk.operations.create_key(ADMIN, "gw", "gateway")
    desk.operations.record_verdict(ADMIN, "alert-1", "false_positive", desk.operations.subject(OURS, "m", "other"))
    desk.operations.reset_breaker(ADMIN)
    (block,) = desk.store.operator_entries("decision")[1]
    (key,) = desk.store.operator_entries("key")[1]
    planted = Entry(OURS, "allow", entry_key("*", subject.client), b'{"format":1}')
    for kind, operation, words in (
        ("decision", {"drops": [(OURS, "decision", block.key)]}, "wrote an entry of kind decision that is gone"),
        ("key", {"puts": [key._replace(expires_s=key.expires_s + 1)]}, "is not what row 4 wrote"),
        (
            "decision",
            {"puts": [block._replace(value=block.value.replace(b"block", b"clear"))]},
            "is not what row 1 wrote",
        ),
        ("allow", {"puts": [planted]}, "was written by no row"),
        ("verdict", {"drops": [(OURS, "verdict", "alert-1")]}, "kind verdict that is gone"),
    ):
        found = tampered(desk, tmp_path / f"{kind}-{words[:9]}", written(kind, **operation))
        assert len(found) == 1, (words, found)
        assert words in found[0]


def test_what_ends_is_withdrawn_or_erased_is_no_finding(desk: Desk) -> None:
    now = [1_800_000_000.0]
    one = Operations(desk.store, SECRETS, now_s=lambda: now[0])
    subject = one.subject(OURS, "*", "thief")
    one.decide(ADMIN, subject, "block", ttl_s=60)
    one.decide(ADMIN, subject, "throttle", ttl_s=60, once="a key")
    one.withdraw(ADMIN, subject)
    one.allow(ADMIN, subject)
    prefix = one.create_key(ADMIN, "gw", "gateway")[0].prefix
    one.revoke_key(ADMIN, prefix)
    one.drop(ADMIN, "client.erase", "models:1", lambda: Forgotten(tuple(desk.store.operator_entries("allow", OURS)[1])))
    assert subject.client.encode() not in [line for _, line in stored_rows(desk.store)][-1]
    one.decide(ADMIN, subject, "block", ttl_s=60)
    assert verify(desk.store, SEAL, now_s=lambda: now[0]).findings == []
    desk.store.operate(
        desk.store.operator_entries("decision")[0], Operation(drops=[(OURS, "decision", f"*|{subject.client}")])
    )
    assert verify(desk.store, SEAL, now_s=lambda: now[0] - 30).findings != []
    assert verify(desk.store, SEAL, now_s=lambda: now[0] + 61).findings == []


def test_writers_at_once_make_one_chain(desk: Desk) -> None:
    """Every change that was answered is in the chain, once; none of the writers saw an error."""
    failed: list[BaseException] = []

    def work(name: int) -> None:
        try:
            operations = Operations(desk.store, SECRETS, mirror=desk.mirror)
            for i in range(10):
                operations.decide(ADMIN, operations.subject(OURS, "*", f"w{name}-{i}"), "block", ttl_s=600)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(desk.store.operator_entries("decision", OURS)[1]) == 40
    _, head = stored_head(desk.store)
    assert head is not None
    assert head.n == 40
    desk.mirror.catch_up(desk.store, SEAL)
    assert verify(desk.store, SEAL, desk.mirror).findings == []


def test_anchors_are_read_or_refused() -> None:
    assert audit.heads_of(["3:" + "a" * 64]) == {3: "a" * 64}
    for wrong in ("3", "x:" + "a" * 64, "3:abc", ""):
        with pytest.raises(Refused):
            audit.heads_of([wrong])
