"""Encryption at rest: the conformance suite on a sealed store, single records bit by bit, keys that change and keys that are destroyed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import victims
from support.store_backings import RedisDatabase, SQLiteFile
from support.store_contract import CELL, client, row
from support.upkeep_contract import WholeContract

from consumers import keyring
from consumers.errors import ConfigError, CorruptState, Fenced, Unavailable
from consumers.ingest.duplicates import Windows
from consumers.keyring import Keyring
from consumers.records import links, refusals
from consumers.records.alert import stored_alert
from consumers.records.decision import stored_decision
from consumers.secrets import Secrets
from consumers.store import (
    DECISION_CELLS,
    Checkpoint,
    DecisionRow,
    FieldSwap,
    OutboxAlert,
    Outcome,
    Store,
    decision_cell,
)
from consumers.store.embedded import EmbeddedStore
from consumers.store.reseal import Reseal, Resealed
from consumers.store.sealed import (
    MAGIC,
    OVERHEAD,
    UNREADABLE,
    RecordSealer,
    Sealing,
    counted,
    key_id_of,
    sealed_store,
)
from detector.errors import IncompatibleProfile
from detector.profile import Profile
from detector.profile_shape import Shape
from detector.query import ClientKey

TENANTS = ("acme", "other", "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.json"
    Secrets.create(path, TENANTS)
    return path


def ring_at(file: Path, now_s: Callable[[], float] = time.time) -> Keyring:
    """A ring that looks at its file each time it is asked."""
    ticks = iter(range(10**9))
    return Keyring(file, clock=lambda: float(next(ticks)), now_s=now_s)


class _Sealed(SQLiteFile):
    def __init__(self, path: Path, secrets: Path) -> None:
        super().__init__(path)
        self.secrets = secrets

    def open(self) -> Store:
        return sealed_store(super().open(), Keyring(self.secrets), "auto")


class TestSealedSQLite(WholeContract):
    @pytest.fixture
    def backing(self, tmp_path: Path, file: Path) -> _Sealed:
        return _Sealed(tmp_path / "store.sqlite", file)

    # It looks into exported profiles; an export holds them sealed.
    test_a_cell_is_exported_as_of_one_moment = None  # type: ignore[assignment]
    # They give records in clear to calls that take them as they are stored.
    test_fields_are_swapped_only_while_they_are_as_given = None  # type: ignore[assignment]
    test_rows_and_alerts_are_swapped_only_while_they_are_as_given = None  # type: ignore[assignment]


# --- one record


def sealer(file: Path, sealing: Sealing = "auto") -> RecordSealer:
    return RecordSealer(ring_at(file), sealing)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), place=st.binary(max_size=40), other=st.binary(max_size=40))
def test_what_is_sealed_opens_at_its_place_only(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, place: bytes, other: bytes
) -> None:
    one = _one(tmp_path_factory)
    blob = one.batch("acme")(content, place)
    assert len(blob) == len(content) + OVERHEAD
    assert one.opened(blob, place).content == content
    assert blob != one.batch("acme")(content, place)
    if other != place:
        with pytest.raises(CorruptState):
            one.opened(blob, other)


_made: list[RecordSealer] = []


def _one(factory: pytest.TempPathFactory) -> RecordSealer:
    if not _made:
        path = factory.mktemp("sealer") / "secrets.json"
        Secrets.create(path, TENANTS)
        _made.append(sealer(path))
    return _made[0]


def test_every_flipped_bit_is_found(file: Path) -> None:
    one = sealer(file)
    blob = one.batch("acme")(os.urandom(200), b"place")
    for position in range(len(blob)):
        for bit in range(8):
            changed = bytearray(blob)
            changed[position] ^= 1 << bit
            with pytest.raises(CorruptState):
                one.opened(bytes(changed), b"place")
    for cut in range(len(MAGIC), len(blob)):
        with pytest.raises(CorruptState):
            one.opened(blob[:cut], b"place")


def test_no_decoder_takes_what_stands_for_an_unreadable_record() -> None:
    windows = Windows()
    windows.put(client("c"), UNREADABLE)
    assert windows.blob(client("c")) is None
    assert not links.unpacked(UNREADABLE)
    assert not refusals.unpacked(UNREADABLE).reasons
    with pytest.raises(CorruptState):
        Secrets.draw().unseal(UNREADABLE, "acme")
    with pytest.raises(CorruptState):
        stored_decision(DecisionRow(UNREADABLE, "clear", 0.0, 0), Secrets.draw(), "acme")
    with pytest.raises(CorruptState):
        stored_alert(OutboxAlert("a/0", 1, UNREADABLE), Secrets.draw())
    with pytest.raises(IncompatibleProfile):
        Profile.from_bytes(UNREADABLE, Shape.of(victims.baseline().map, len(victims.baseline().table.need)))


def test_an_unknown_key_waits_and_a_destroyed_one_does_not(file: Path, tmp_path: Path) -> None:
    blob = sealer(file).batch("acme")(b"content", b"place")
    elsewhere = tmp_path / "elsewhere.json"
    Secrets.create(elsewhere, TENANTS)
    with pytest.raises(Unavailable, match=key_id_of(blob).hex()):
        sealer(elsewhere).opened(blob, b"place")
    keyring.destroy(file, "acme", 1)
    with pytest.raises(CorruptState, match="destroyed"):
        sealer(file).opened(blob, b"place")


def test_the_setting_decides(file: Path, tmp_path: Path) -> None:
    assert sealer(file, "off").batch("acme")(b"x", b"") == b"x"
    assert sealer(file).batch("nobody")(b"x", b"") == b"x"
    with pytest.raises(ConfigError, match="rotate --tenant nobody"):
        sealer(file, "on").batch("nobody")
    assert sealer(file).opened(b"old", b"").content == b"old"
    with pytest.raises(CorruptState):
        sealer(file, "on").opened(b"old", b"")
    blob = sealer(file).batch("acme")(b"x", b"")
    assert sealer(file, "off").opened(blob, b"").content == b"x"


# --- a store


def written(store: Store, offset: int = 1, fields: dict[str, bytes | None] | None = None) -> None:
    """A profile, a decision and an alert of tenant acme."""
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, offset, {client("c"): fields or {"h": b"name", "w:1": b"PROFILE"}}))
    cell = decision_cell(client("c"), DECISION_CELLS)
    claim = store.claim_decisions(cell, "p", "d", 1000)
    told = OutboxAlert("a/0", 5, b'{"secret": "BODY"}', "acme")
    store.record("d", claim.revision, Outcome(cell, {}, {client("c"): row("ROW")}, [told]), "p", 1000)


def read(store: Store) -> tuple[dict[str, bytes], bytes, bytes]:
    decided = store.decided([client("c")])[client("c")]
    return store.shards(CELL, [client("c")]).fields[client("c")], decided.row, store.alerts()[0].body


@pytest.fixture(params=["sqlite", "redis"])
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "redis":
        database = RedisDatabase(request.getfixturevalue("redis_url"))
        store: Store = database.open()
    else:
        store = EmbeddedStore(tmp_path / "store.sqlite")
    store.prepare("id")
    yield store
    store.close()


def test_nothing_of_a_record_is_stored_in_clear_and_the_rank_still_is(raw: Store, file: Path) -> None:
    store = sealed_store(raw, ring_at(file), "auto")
    written(store)
    assert read(store) == ({"h": b"name", "w:1": b"PROFILE"}, b"ROW", b'{"secret": "BODY"}')
    assert [key for key, _ in raw.decisions("acme")] == [client("c")]
    held = b"".join(item.value for item in raw.export())
    assert not [word for word in (b"name", b"PROFILE", b"ROW", b"BODY") if word in held]
    fields, stored_row, body = read(raw)
    assert all(value.startswith(MAGIC) for value in [*fields.values(), stored_row, body])
    assert b"watch" in held


def test_swapped_records_do_not_open(raw: Store, file: Path) -> None:
    store = sealed_store(raw, ring_at(file), "auto")
    store.claim(CELL, "t")
    two = {client("a"): {"w:1": b"of a", "l": b"links"}, client("b"): {"w:1": b"of b", "l": b"more"}}
    store.commit("t", Checkpoint(CELL, None, 1, {key: dict(fields) for key, fields in two.items()}))
    kept = raw.shards(CELL, list(two)).fields
    raw.commit(
        "t", Checkpoint(CELL, 1, 2, {client("a"): {"w:1": kept[client("b")]["w:1"], "l": kept[client("a")]["w:1"]}})
    )
    found = store.shards(CELL, list(two)).fields
    assert found[client("a")] == {"w:1": UNREADABLE, "l": UNREADABLE}
    assert found[client("b")] == {"w:1": b"of b", "l": b"more"}


def test_old_records_are_read_and_sealed_when_they_are_next_written(raw: Store, file: Path) -> None:
    written(raw)
    store, ring = sealed_store(raw, ring_at(file), "auto"), Keyring(file).ring()
    assert read(store) == ({"h": b"name", "w:1": b"PROFILE"}, b"ROW", b'{"secret": "BODY"}')
    assert counted(raw.export(), ring)["acme"] == {"": 3}
    store.claim(CELL, "u")
    store.load(CELL, "u", 1, [client("c")])
    store.commit("u", Checkpoint(CELL, 1, 2, {client("c"): {"w:1": b"NEWER"}}))
    mine = ring.current("acme", time.time())
    assert mine is not None
    assert counted(raw.export(), ring)["acme"] == {"": 1, mine.id.hex(): 2}  # the decision row waits for detect
    assert read(store)[0] == {"h": b"name", "w:1": b"NEWER"}


def test_rotation_while_a_cell_is_owned(raw: Store, file: Path) -> None:
    store = sealed_store(raw, ring_at(file), "auto")
    written(store)
    new = keyring.rotate(file, "acme", int(time.time()))
    with pytest.raises(Fenced):
        store.commit("t", Checkpoint(CELL, 1, 2, {client("c"): {"w:1": b"NEWER"}}))
    store.claim(CELL, "u")
    assert store.load(CELL, "u", 1, [client("c")])[client("c")]["h"] == b"name"
    store.commit("u", Checkpoint(CELL, 1, 2, {client("c"): {"w:1": b"NEWER"}}))
    assert counted(raw.export(), Keyring(file).ring())["acme"][new.id.hex()] == 2
    assert read(store) == ({"h": b"name", "w:1": b"NEWER"}, b"ROW", b'{"secret": "BODY"}')
    store.commit("u", Checkpoint(CELL, 2, 3, {client("c"): {"w:1": b"NEWEST"}}))  # fenced once, not for ever


def test_a_key_waits_for_its_time(raw: Store, file: Path) -> None:
    now = [1000.0]
    store = sealed_store(raw, ring_at(file, lambda: now[0]), "auto")
    written(store)
    keyring.rotate(file, "acme", 1010)
    store.commit("t", Checkpoint(CELL, 1, 2, {client("c"): {"w:1": b"BEFORE"}}))
    now[0] = 1010.0
    with pytest.raises(Fenced):
        store.commit("t", Checkpoint(CELL, 2, 3, {client("c"): {"w:1": b"AFTER"}}))


class Hurried:
    """A store in which somebody writes a client between a pass' reading and its replacing."""

    def __init__(self, store: Store, key: ClientKey, write: Callable[[], None]) -> None:
        self.store, self.key, self.write = store, key, write

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def swap_fields(self, cell: str, swaps: list[FieldSwap]) -> int:
        if any(swap.client == self.key for swap in swaps):
            self.write()
        return self.store.swap_fields(cell, swaps)


def test_a_pass_seals_what_nobody_writes_and_leaves_what_somebody_wrote(raw: Store, file: Path) -> None:
    store, ring = sealed_store(raw, ring_at(file), "auto"), ring_at(file)
    written(store)
    idle, theirs = client("idle"), client("c", tenant="other")
    store.commit("t", Checkpoint(CELL, 1, 2, {idle: {"h": b"idle", "w:1": b"IDLE"}, theirs: {"h": b"theirs"}}))
    new = keyring.rotate(file, "acme", int(time.time()))
    store.claim(CELL, "u")  # its owner has read the new key

    def live() -> None:
        store.commit("u", Checkpoint(CELL, 2, 3, {client("c"): {"w:1": b"NEWER"}}))

    def missing(_: float) -> None:
        raise AssertionError("faster than it may be")

    hurried = cast(Store, Hurried(raw, client("c"), live))
    done = Reseal(hurried, RecordSealer(ring), 1e9, pause=missing).run()
    assert done == Resealed(replaced=3 + 2, changed=1)  # h of c, both of idle; row, alert; w:1 of c is the owner's
    counts = counted(raw.export(), ring.ring())
    assert counts["acme"] == {new.id.hex(): 6}
    assert read(store) == ({"h": b"name", "w:1": b"NEWER"}, b"ROW", b'{"secret": "BODY"}')
    assert store.shards(CELL, [idle]).fields[idle] == {"h": b"idle", "w:1": b"IDLE"}
    assert counts["other"].total() == 1
    store.commit("u", Checkpoint(CELL, 3, 4, {idle: {"w:1": b"AWAKE"}}))  # the owner was not disturbed
    assert Reseal(raw, RecordSealer(ring), 1e9).run() == Resealed()


def test_a_pass_that_was_stopped_goes_on_at_its_pace(raw: Store, file: Path) -> None:
    store, ring = sealed_store(raw, ring_at(file), "auto"), ring_at(file)
    store.claim(CELL, "t")
    store.commit("t", Checkpoint(CELL, None, 1, {client(i): {"h": b"x"} for i in range(450)}))
    new = keyring.rotate(file, "acme", int(time.time()))
    paused: list[float] = []

    def stop(pause_s: float) -> None:
        paused.append(pause_s)
        if len(paused) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reseal(raw, RecordSealer(ring), 100.0, clock=lambda: 0.0, pause=stop).run()
    sealed = counted(raw.export(), ring.ring())["acme"][new.id.hex()]
    assert 0 < sealed < 450
    assert paused[-1] == pytest.approx(sealed / 100.0)
    assert Reseal(raw, RecordSealer(ring), 1e9).run().replaced == 450 - sealed


def test_a_damaged_record_is_left_and_an_unknown_key_ends_the_pass(raw: Store, file: Path, tmp_path: Path) -> None:
    store = sealed_store(raw, ring_at(file), "auto")
    written(store)
    kept = raw.shards(CELL, [client("c")]).fields[client("c")]["h"]
    raw.swap_fields(CELL, [FieldSwap(client("c"), "h", kept, kept[:-1] + bytes([kept[-1] ^ 1]))])
    keyring.rotate(file, "acme", int(time.time()))
    assert Reseal(raw, RecordSealer(ring_at(file)), 1e9).run() == Resealed(replaced=3, unreadable=1)
    elsewhere = tmp_path / "elsewhere.json"
    Secrets.create(elsewhere, TENANTS)
    with pytest.raises(Unavailable):
        Reseal(raw, RecordSealer(ring_at(elsewhere)), 1e9).run()


def test_an_erased_tenant_is_unreadable_at_once_and_others_are_not(raw: Store, file: Path) -> None:
    store = sealed_store(raw, ring_at(file), "auto")
    written(store)
    theirs = client("c", tenant="other")
    store.commit("t", Checkpoint(CELL, 1, 2, {theirs: {"w:1": b"THEIRS"}}))
    keyring.destroy(file, "acme", 5)
    assert read(store) == ({"h": UNREADABLE, "w:1": UNREADABLE}, UNREADABLE, UNREADABLE)
    assert store.shards(CELL, [theirs]).fields[theirs] == {"w:1": b"THEIRS"}
    store.claim(CELL, "u")
    with pytest.raises(ConfigError, match="acme was erased"):
        store.commit("u", Checkpoint(CELL, 2, 3, {client("c"): {"w:1": b"AGAIN"}}))
    keyring.rotate(file, "acme", int(time.time()))
    store.claim(CELL, "v")
    store.commit("v", Checkpoint(CELL, 2, 3, {client("c"): {"w:1": b"AGAIN"}}))
    assert store.shards(CELL, [client("c")]).fields[client("c")]["w:1"] == b"AGAIN"


# --- the file of the keys


def test_a_damaged_file_changes_nothing_in_a_running_process(file: Path) -> None:
    ring = ring_at(file)
    before = ring.ring()
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    assert ring.ring() is before
    with pytest.raises(ConfigError, match="damaged"):
        ring_at(file).ring()
    file.write_text(text)
    assert ring.ring() == before


@pytest.mark.parametrize(
    "tenants",
    [7, {"a": {}}, {"a": {"keys": [{"id": "00", "key": "", "from_s": 0}], "destroyed": [], "erased_s": 0}},
     {"a": {"keys": [], "destroyed": ["zz"], "erased_s": 0}}],
)  # fmt: skip
def test_damaged_keys_are_refused(file: Path, tenants: object) -> None:
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"tenants": tenants}))
    with pytest.raises(ConfigError, match="damaged"):
        ring_at(file).ring()


def test_a_file_without_keys_of_tenants_is_read_and_gets_its_first(file: Path) -> None:
    document = json.loads(file.read_text())
    del document["tenants"]
    file.write_text(json.dumps(document | {"format": 1}))
    before = Secrets.load(file).key_id
    assert ring_at(file).ring().current("acme", time.time()) is None
    added = keyring.rotate(file, "acme", 7)
    assert ring_at(file).ring().current("acme", 7) == added
    assert file.stat().st_mode & 0o777 == 0o600
    assert Secrets.load(file).key_id == before
    assert json.loads(file.read_text())["format"] == 2


def test_only_a_key_that_was_replaced_for_a_while_can_be_dropped(file: Path) -> None:
    old = ring_at(file).ring().current("acme", 5)
    assert old is not None
    with pytest.raises(ConfigError, match="seals the new records"):
        keyring.drop(file, old.id, 5)
    new = keyring.rotate(file, "acme", 1000)
    with pytest.raises(ConfigError, match="seals the new records"):
        keyring.drop(file, old.id, 999)
    with pytest.raises(ConfigError, match="wait"):
        keyring.drop(file, old.id, 1000 + keyring.SETTLED_S - 1)
    keyring.drop(file, old.id, 1000 + keyring.SETTLED_S)
    ring = ring_at(file).ring()
    assert (old.id in ring.by_id, ring.destroyed.get(old.id), ring.erased) == (False, "acme", {})
    assert ring.current("acme", 1000) == new
    with pytest.raises(ConfigError, match="no key"):
        keyring.drop(file, old.id, 10**9)


def test_no_key_is_shown(file: Path) -> None:
    ring = ring_at(file).ring()
    keys = [one["key"] for part in json.loads(file.read_text())["tenants"].values() for one in part["keys"]]
    shown = f"{ring!r} {ring.current('acme', 1)!r}"
    assert keys
    assert not [key for key in ring.by_id.values() if repr(key.key)[2:-1] in shown]
    assert not [key for key in keys if key in shown]
