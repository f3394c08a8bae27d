"""A store that lost its keys: nobody is refused, nothing is opened, and a key that was revoked stays so."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.seeded_api import FOREIGN, OURS, SECRETS, World, world

from consumers.errors import Unavailable
from consumers.http.auth import Authenticator, KeyRing
from consumers.http.keymemory import MemoryFile
from consumers.http.server import CredentialRefresher
from consumers.operators.audited_write import Actor
from consumers.operators.operate import LONGEST_KEY_S, Operations
from consumers.records import heartbeat
from consumers.records.operator_entries import ApiKey
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.alarms import Alarms
from consumers.telemetry.metrics import Metrics

ADMIN = Actor("root", "admin", OURS)


class Place:
    """A state folder, and stores that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 1000.0
        self.file = folder / "state" / "keys.json"
        self.opened: list[EmbeddedStore] = []

    def store(self) -> Operations:
        """An empty store."""
        made = EmbeddedStore(self.folder / f"{len(self.opened)}.sqlite", now_s=lambda: self.now)
        made.prepare(SECRETS.key_id)
        self.opened.append(made)
        return Operations(made, SECRETS, lambda: self.now)

    def ring(self, secrets: Secrets = SECRETS) -> KeyRing:
        """Of a service that starts here."""
        return KeyRing(secrets, lambda: self.now, MemoryFile(self.file, secrets))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for store in made.opened:
        store.close()


def made(operations: Operations, role: str = "gateway", ttl_s: int = 3600) -> tuple[ApiKey, str]:
    key, text = operations.create_key(ADMIN, f"{role}-{operations.now_s():.0f}", role, ttl_s=ttl_s)
    assert text is not None
    return key, text


def test_keys_of_a_wiped_store_go_on_until_they_end(place: Place) -> None:
    operations = place.store()
    key, text = made(operations)
    ring = place.ring()
    ring.refresh(operations.store)
    wiped = place.store().store
    for service in (ring, place.ring()):
        for _ in range(3):
            service.refresh(wiped)
            who = service.check(text)
            assert who is not None
            assert (who.id, who.role, who.tenant) == (f"key:{key.prefix}", "gateway", OURS)
            assert list(service.lost()) == [key.prefix]
    place.now += 3601
    ring.refresh(wiped)
    assert (ring.check(text), ring.lost()) == (None, {})
    for service in (ring, place.ring()):
        service.refresh(wiped)
        assert not Authenticator(service, open_on_loopback=True).is_open(), "there was a key once"


def test_the_last_key_stays_revoked(place: Place) -> None:
    operations = place.store()
    key, text = made(operations)
    ring = place.ring()
    ring.refresh(operations.store)
    operations.revoke_key(ADMIN, key.prefix)
    ring.refresh(operations.store)
    for service in (ring, place.ring()):
        for store in (operations.store, place.store().store):
            service.refresh(store)
            assert (service.check(text), service.lost()) == (None, {})


def test_a_key_missing_from_a_store_whose_audit_log_goes_on_is_revoked(place: Place) -> None:
    """So did versions before this one."""
    operations = place.store()
    _, text = made(operations)
    ring = place.ring()
    ring.refresh(operations.store)
    operations.allow(ADMIN, operations.subject(OURS, "*", "somebody"))
    with operations.store._write() as db:  # type: ignore[attr-defined]
        db.execute("DELETE FROM entries WHERE kind = 'key'")
    ring.refresh(operations.store)
    assert (ring.check(text), ring.lost()) == (None, {})


def test_a_new_history_in_a_wiped_store_revokes_nothing(place: Place) -> None:
    """As many rows as before, and another key: neither makes up for what is lost."""
    operations = place.store()
    _, text = made(operations)
    ring = place.ring()
    ring.refresh(operations.store)
    place.now += 1
    anew = place.store()
    other, new_text = made(anew, "admin")
    ring.refresh(anew.store)
    assert ring.check(text) is not None
    assert ring.check(new_text) is not None
    anew.revoke_key(ADMIN, other.prefix)
    ring.refresh(anew.store)
    assert ring.check(text) is not None
    assert ring.check(new_text) is None


def test_an_older_state_of_the_store_brings_no_revoked_key_back(place: Place) -> None:
    operations = place.store()
    _, kept_text = made(operations)
    place.now += 1
    gone, gone_text = made(operations)
    older = list(operations.store.export())
    place.now += 1
    _, newer_text = made(operations)
    operations.revoke_key(ADMIN, gone.prefix)
    ring = place.ring()
    ring.refresh(operations.store)
    restored = place.store().store
    restored.restore(older)
    ring.refresh(restored)
    assert [ring.check(text) is not None for text in (kept_text, gone_text, newer_text)] == [True, False, True]
    assert len(ring.lost()) == 1, "the one that was made after the snapshot"


def test_a_lost_key_is_revoked_by_its_prefix(place: Place) -> None:
    operations = place.store()
    key, text = made(operations)
    ring = place.ring()
    ring.refresh(operations.store)
    wiped = place.store()
    ring.refresh(wiped.store)
    wiped.revoke_key(ADMIN, key.prefix, lost=ApiKey(key.prefix, "", "lost", "", 0, 1000 + LONGEST_KEY_S, ""))
    for service in (ring, place.ring()):
        service.refresh(wiped.store)
        assert (service.check(text), service.lost()) == (None, {})


def test_lost_keys_over_http(tmp_path: Path) -> None:
    """Only its own tenant may revoke it."""
    with world(tmp_path) as served:
        admin, foreign = served.client("admin"), served.client("admin", FOREIGN)
        gateway = served.keys[OURS, "gateway"]
        prefix = gateway.split("_")[2]
        wipe(served)
        headers = {"x-querywarden-key": gateway, "x-api-key": "a"}
        asked = served.client(None)
        assert asked.get("/v1/authz", headers=headers).status_code == 200
        assert foreign.delete(f"/v1/keys/{prefix}").status_code == 404
        answer = admin.delete(f"/v1/keys/{prefix}")
        assert (answer.status_code, answer.json()["role"]) == (200, "gateway")
        assert asked.get("/v1/authz", headers=headers).status_code == 401


def wipe(served: World) -> None:
    with served.store._write() as db:
        for table in ("entries", "operator_changes", "operator_revisions", "operators", "audit"):
            db.execute(f"DELETE FROM {table}")
    served.ring.refresh(served.store)


def test_the_file_is_ours_alone_and_holds_no_key(place: Place) -> None:
    operations = place.store()
    key, text = made(operations)
    place.ring().refresh(operations.store)
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o600
    raw = place.file.read_bytes()
    assert key.digest.encode() in raw
    assert text.rpartition("_")[2].encode() not in raw
    place.file.write_bytes(raw.replace(b'"gateway"', b'"admin"'))
    wiped = place.store().store
    for ring in (place.ring(), place.ring(Secrets(b"s" * 16, b"o" * 32, b"k" * 32))):
        ring.refresh(wiped)
        assert ring.check(text) is None, "changed, or written with other secrets"


def test_a_folder_that_cannot_be_written_leaves_the_memory_of_the_process(place: Place) -> None:
    place.file.parent.parent.joinpath("state").write_text("a file, no folder")
    operations = place.store()
    _, text = made(operations)
    ring = place.ring()
    ring.refresh(operations.store)
    ring.refresh(place.store().store)
    assert ring.check(text) is not None


def test_the_keeper_raises_the_alarm_and_ends_it(place: Place) -> None:
    operations, metrics = place.store(), Metrics()
    made(operations)
    keeper = CredentialRefresher(operations.store, SECRETS, place.ring(), alarms=Alarms(metrics))

    def shown() -> tuple[float | None, float | None]:
        return metrics.value("querywarden_alarm", alarm="keys_lost"), metrics.value("querywarden_keys_lost")

    keeper.turn()
    keeper.store = place.store().store
    keeper.turn()
    assert shown() == (1, 1)
    keeper.store = operations.store
    keeper.turn()
    assert shown() == (0, 0)


def test_a_service_learns_of_keys_with_the_next_change_of_the_store(place: Place) -> None:
    operations = place.store()
    ring = place.ring()
    told: list[str] = []
    keeper = CredentialRefresher(
        operations.store, SECRETS, ring, changed=lambda: told.append(ring.fingerprint), clock=lambda: 0.0
    )
    keeper.turn()
    _, text = made(operations)
    keeper.turn()
    keeper.turn()
    assert ring.check(text) is not None
    assert told[-1] == heartbeat.fingerprint(operations.store.operator_entries("key")[1])
    assert len(told) == 2


def test_a_reading_that_was_torn_by_a_change_is_no_new_history(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of the audit log is read after the keys: a change in between makes it belong to another state than theirs."""
    operations, ring = place.store(), place.ring()
    made(operations)
    ring.refresh(operations.store)
    before = ring._memory.row
    made(operations)
    read = EmbeddedStore.operator_entries

    def torn(store: EmbeddedStore, kind: str, *more: Any) -> Any:
        revision, entries = read(store, kind, *more)
        return revision + (kind == "revoked"), entries

    with monkeypatch.context() as patched:
        patched.setattr(EmbeddedStore, "operator_entries", torn)
        ring.refresh(operations.store)
    assert ring._memory.row == before
    assert len(ring._memory.keys) == 2
    ring.refresh(operations.store)
    assert ring._memory.row != before, "the control"


def test_a_store_that_is_away_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = place.store()
    _, text = made(operations)
    ring = place.ring()
    keeper = CredentialRefresher(operations.store, SECRETS, ring)
    keeper.turn()

    def away(*_: object) -> None:
        raise Unavailable("away")

    monkeypatch.setattr(operations.store, "operator_entries", away)
    keeper.turn()
    assert ring.check(text) is not None
    assert not ring.lost()


def test_who_waits_for_services_hears_how_many_know(place: Place) -> None:
    operations = place.store()
    assert heartbeat.services(operations.store, 0.0) == (0, 0)
    made(operations)
    now = heartbeat.fingerprint(operations.store.operator_entries("key")[1])
    for process, keys in (("serve@a/1", now), ("serve@b/2", "before")):
        beat = heartbeat.Heartbeat(process, "serve", keys=keys)
        assert heartbeat.HeartbeatPublisher(operations.store, lambda beat=beat: beat, now_s=lambda: place.now).once()  # type: ignore[misc]
    assert heartbeat.services(operations.store, 0.0) == (1, 2)
