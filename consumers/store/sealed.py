"""Encryption at rest: a store whose profiles, decision rows and alerts are sealed with the tenants' keys. It wraps either store.

Rules:
* What a script, a query or a gateway reads stays as it is: keys of clients (which are hashes), states, ranks, ends, touched offsets,
  counters, lifetimes. What only our own decoders read is sealed: the fields of a profile, the row of a decision, the body of an alert.
* A sealed record is AES-256-GCM under a key that is derived from the tenant's current key and a random salt: ``magic, key id, check of
  the id, salt, nonce, ciphertext, tag``. The salt is drawn anew now and then (`BATCHES_A_SALT`), so that random nonces never run out.
* The place of a record is authenticated with it (kind, cell, client, field; uid of an alert): a record that was moved does not open.
* In place of a record that does not open, `UNREADABLE` is handed on. No decoder of ours takes it, so each does what it does with damaged
  records: sets it aside, begins it anew, passes it over. One flipped bit stops no cell.
* A record under a key that was never in the secrets file is `Unavailable`: the file of this process is behind, or another installation's.
  Setting such a record aside would lose it. A record under a destroyed key is damaged for good.
* Records from before encryption are read, and sealed when they are next written. Fields of a profile that are under an older key are
  sealed anew with the next commit of their client; `reseal.py` does it for clients that ask nothing. When a key comes into use, the owner
  of a cell is fenced once, so that its cache does not hide older fields.
* Snapshots copy sealed records as they are.
"""

from __future__ import annotations

import binascii
import dataclasses
import hmac
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consumers.errors import ConfigError, CorruptState, Fenced, Unavailable
from consumers.keyring import ID_BYTES, Keyring, Ring, TenantKey
from consumers.store import Checkpoint, Claim, DecisionRow, Exported, OutboxAlert, Outcome, Proof, Shards, Store
from consumers.store.layout import client_from_text, client_text
from consumers.store.records import AlertRecord, StoredProfile, StoredRow, record_of
from detector.query import ClientKey

log = logging.getLogger("querywarden.sealed")

Sealing = Literal["off", "auto", "on"]
"""off: new records are not sealed. auto: they are, where the tenant has a key. on: they are, or the process stops; what is not sealed is
taken for damaged. Sealed records are read in all three."""

MAGIC = b"\xc1QS\x01"
"""0xc1 begins no msgpack, no JSON, no profile, no window of event ids and no sealed id."""

SALT_BYTES, NONCE_BYTES, TAG_BYTES = 8, 12, 16
BATCHES_A_SALT = 1024
"""Batches that one salt serves. A batch is a commit or a turn of detect, some thousand records: far below 2^32 records under one key."""

_ID_END = len(MAGIC) + ID_BYTES
_SALT_END = _ID_END + 2 + SALT_BYTES
_NONCE_END = _SALT_END + NONCE_BYTES
OVERHEAD = _NONCE_END + TAG_BYTES
"""Bytes that sealing adds to a record."""

UNREADABLE = MAGIC

_CIPHERS = 4096


Seal = Callable[[bytes, bytes], bytes]
"""(content, place) → the record as it is stored."""


class OpenedRecord(NamedTuple):
    """A record in clear. key_id: of the key that sealed it, empty for a record that was not sealed."""

    content: bytes
    key_id: bytes


class RecordSealer:
    """Seals and opens single records: a function on bytes, with the place of the record."""

    def __init__(self, keyring: Keyring, sealing: Sealing = "auto") -> None:
        self.keyring, self.sealing = keyring, sealing
        self._cipher = lru_cache(maxsize=_CIPHERS)(_cipher)
        self._salts: dict[bytes, tuple[bytes, int]] = {}
        self._lock = threading.Lock()

    def batch(self, tenant: str) -> Seal:
        """What seals the records of a tenant: asked for once a batch. Raises ConfigError where the key is missing and must not be."""
        key = None if self.sealing == "off" else self._key(tenant)
        if key is None:
            return _as_it_is
        head, salt = MAGIC + key.id + _check(key.id), self._salt(key.id)
        start, encrypt = head + salt, self._cipher(key.key, salt).encrypt

        def seal(content: bytes, place: bytes) -> bytes:
            nonce = os.urandom(NONCE_BYTES)
            return start + nonce + encrypt(nonce, content, head + place)

        return seal

    def opened(self, blob: bytes, place: bytes) -> OpenedRecord:
        """The record in clear.

        Raises CorruptState for one that was changed, moved or sealed with a key that is destroyed; Unavailable for an unknown key.
        """
        if not blob.startswith(MAGIC):
            return self._unsealed(blob)
        key_id, check = blob[len(MAGIC) : _ID_END], blob[_ID_END : _ID_END + 2]
        if len(blob) < OVERHEAD or check != _check(key_id):
            raise CorruptState("sealed record: damaged")
        key = self._known(key_id)
        salt, nonce = blob[_ID_END + 2 : _SALT_END], blob[_SALT_END:_NONCE_END]
        try:
            content = self._cipher(key.key, salt).decrypt(nonce, blob[_NONCE_END:], blob[: _ID_END + 2] + place)
        except InvalidTag:
            raise CorruptState("sealed record: changed, or moved from another place") from None
        return OpenedRecord(content, key_id)

    def opened_alert(self, alert: OutboxAlert) -> OutboxAlert:
        """The alert with its body in clear. Raises as `opened` does."""
        return dataclasses.replace(alert, body=self.opened(alert.body, alert_place(alert.uid)).content)

    def _unsealed(self, blob: bytes) -> OpenedRecord:
        if _was_sealed(blob):
            raise CorruptState("sealed record: damaged")
        if self.sealing == "on" and blob:
            raise CorruptState("a record that is not sealed, and store.sealing is on")
        return OpenedRecord(blob, b"")

    def _key(self, tenant: str) -> TenantKey | None:
        ring, path = self.keyring.ring(), self.keyring.path
        key = ring.current(tenant, self.keyring.now_s())
        if key is None and tenant in ring.erased:
            raise ConfigError(
                f"tenant {tenant} was erased and has no key in {path}: nothing of it is stored "
                f"(querywarden secrets rotate --tenant {tenant} begins anew)"
            )
        if key is None and self.sealing == "on":
            raise ConfigError(
                f"tenant {tenant} has no key in {path}, and store.sealing is on: querywarden secrets rotate --tenant {tenant}"
            )
        return key

    def _known(self, key_id: bytes) -> TenantKey:
        for at_once in (False, True):
            ring = self.keyring.ring(at_once)
            if key_id in ring.by_id:
                return ring.by_id[key_id]
            if key_id in ring.destroyed:
                raise CorruptState(f"sealed record: its key {key_id.hex()} was destroyed")
        raise Unavailable(
            f"a record is sealed with the key {key_id.hex()}, which {self.keyring.path} does not hold: "
            "the file is older than the store, or another installation's"
        )

    def _salt(self, key_id: bytes) -> bytes:
        with self._lock:
            salt, left = self._salts.get(key_id, (b"", 0))
            if not left:
                salt, left = os.urandom(SALT_BYTES), BATCHES_A_SALT
            self._salts[key_id] = (salt, left - 1)
        return salt


def _as_it_is(content: bytes, place: bytes) -> bytes:
    return content


def key_id_of(blob: bytes) -> bytes:
    """The id of the key that sealed a record, empty for one that is not sealed."""
    return blob[len(MAGIC) : _ID_END] if blob.startswith(MAGIC) else b""


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key, b"record\x00" + salt, "sha256"))


def _check(key_id: bytes) -> bytes:
    return binascii.crc_hqx(MAGIC + key_id, 0).to_bytes(2, "big")


def _was_sealed(blob: bytes) -> bool:
    """Whether a record looks sealed but for one bit of the magic."""
    differing = int.from_bytes(blob[: len(MAGIC)], "big") ^ int.from_bytes(MAGIC, "big")
    return (
        len(blob) >= OVERHEAD
        and differing.bit_count() == 1
        and blob[_ID_END : _ID_END + 2] == _check(blob[len(MAGIC) : _ID_END])
    )


# --------------------------------------------------------------------------------------------------------- places


def profile_place(cell: str, client: ClientKey) -> bytes:
    """Where the fields of a profile are; the name of the field follows."""
    return f"profile\x00{cell}\x00{client_text(client)}\x00".encode("utf-8", "surrogatepass")


def decision_place(client: ClientKey) -> bytes:
    return f"decision\x00{client_text(client)}".encode("utf-8", "surrogatepass")


def alert_place(uid: str) -> bytes:
    return f"alert\x00{uid}".encode("utf-8", "surrogatepass")


# ------------------------------------------------------------------------------------------------------ the store


class SealedStore:
    """A store that seals what it is given and opens what it gives; everything else goes through as it is."""

    def __init__(self, store: Store, sealer: RecordSealer) -> None:
        self._store, self.sealer = store, sealer
        self._claimed: dict[str, frozenset[bytes]] = {}
        self._older: dict[str, dict[ClientKey, dict[str, bytes]]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @property
    def beneath(self) -> Store:
        """The store as it is: records sealed."""
        return self._store

    # --- ingest

    def claim(self, cell: str, token: str, proof: Proof = "none") -> Claim:
        self._older.pop(cell, None)
        self._claimed[cell] = self._active()
        return self._store.claim(cell, token, proof)

    def load(
        self, cell: str, token: str, offset: int | None, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, dict[str, bytes]]:
        found = self._store.load(cell, token, offset, clients)
        return {client: self._loaded(cell, client, fields) for client, fields in found.items()}

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        cell = checkpoint.cell
        if cell in self._claimed and self._claimed[cell] != self._active():
            del self._claimed[cell]
            raise Fenced(f"{cell}: another key is in use, the profiles are read anew")
        older = self._older.get(cell, {})
        seals = self._seals(client.tenant for client in checkpoint.profiles)
        profiles: dict[ClientKey, dict[str, bytes | None]] = {}
        for client, fields in checkpoint.profiles.items():
            place, seal = profile_place(cell, client), seals[client.tenant]
            written = {**older.pop(client), **fields} if client in older else fields
            profiles[client] = {
                name: value if value is None else seal(value, place + name.encode()) for name, value in written.items()
            }
        self._store.commit(token, dataclasses.replace(checkpoint, profiles=profiles))

    def shards(self, cell: str, clients: Sequence[ClientKey]) -> Shards:
        found = self._store.shards(cell, clients)
        fields = {client: self._fields(cell, client, sealed) for client, sealed in found.fields.items()}
        return dataclasses.replace(found, fields=fields)

    # --- detect

    def load_decisions(
        self, cell: int, token: str, revision: int, clients: Sequence[ClientKey]
    ) -> dict[ClientKey, DecisionRow]:
        return self._rows(self._store.load_decisions(cell, token, revision, clients))

    def record(self, token: str, revision: int, outcome: Outcome, process: str, lease_ms: int) -> int:
        seals = self._seals([*(c.tenant for c in outcome.rows), *(alert.tenant for alert in outcome.alerts)])
        rows = {
            client: dataclasses.replace(row, row=seals[client.tenant](row.row, decision_place(client)))
            for client, row in outcome.rows.items()
        }
        alerts = [
            dataclasses.replace(alert, body=seals[alert.tenant](alert.body, alert_place(alert.uid)))
            for alert in outcome.alerts
        ]
        return self._store.record(
            token, revision, dataclasses.replace(outcome, rows=rows, alerts=alerts), process, lease_ms
        )

    def outbox(self, cell: int, destination: str, limit: int) -> list[tuple[str, OutboxAlert]]:
        return [(entry, self._alert(alert)) for entry, alert in self._store.outbox(cell, destination, limit)]

    # --- readers

    def decisions(
        self, tenant: str, model: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[ClientKey, DecisionRow]]:
        for client, row in self._store.decisions(tenant, model, limit):
            yield client, self._row(client, row)

    def decided(self, clients: Sequence[ClientKey]) -> dict[ClientKey, DecisionRow]:
        return self._rows(self._store.decided(clients))

    def alerts(self, limit: int | None = None) -> list[OutboxAlert]:
        return [self._alert(alert) for alert in self._store.alerts(limit)]

    # --- inside

    def _seals(self, tenants: Iterable[str]) -> dict[str, Seal]:
        return {tenant: self.sealer.batch(tenant) for tenant in set(tenants)}

    def _active(self) -> frozenset[bytes]:
        keyring = self.sealer.keyring
        return frozenset() if self.sealer.sealing == "off" else keyring.ring().active(keyring.now_s())

    def _loaded(self, cell: str, client: ClientKey, sealed: Mapping[str, bytes]) -> dict[str, bytes]:
        """Fields for their owner; those under an older key are remembered until the client's next commit."""
        place, current = profile_place(cell, client), self._current(client.tenant)
        fields: dict[str, bytes] = {}
        for name, blob in sealed.items():
            try:
                content, key_id = self.sealer.opened(blob, place + name.encode())
            except CorruptState as error:
                self._unreadable("profile", client.model, error)
                fields[name] = UNREADABLE
                continue
            fields[name] = content
            if current and key_id != current:
                self._older.setdefault(cell, {}).setdefault(client, {})[name] = content
        return fields

    def _current(self, tenant: str) -> bytes:
        if self.sealer.sealing == "off":
            return b""
        key = self.sealer.keyring.ring().current(tenant, self.sealer.keyring.now_s())
        return b"" if key is None else key.id

    def _fields(self, cell: str, client: ClientKey, sealed: Mapping[str, bytes]) -> dict[str, bytes]:
        place = profile_place(cell, client)
        return {
            name: self._content("profile", client.model, blob, place + name.encode()) for name, blob in sealed.items()
        }

    def _rows(self, sealed: Mapping[ClientKey, DecisionRow]) -> dict[ClientKey, DecisionRow]:
        return {client: self._row(client, row) for client, row in sealed.items()}

    def _row(self, client: ClientKey, row: DecisionRow) -> DecisionRow:
        return dataclasses.replace(row, row=self._content("decision", client.model, row.row, decision_place(client)))

    def _alert(self, alert: OutboxAlert) -> OutboxAlert:
        return dataclasses.replace(alert, body=self._content("alert", alert.uid, alert.body, alert_place(alert.uid)))

    def _content(self, kind: str, what: str, blob: bytes, place: bytes) -> bytes:
        """A record in clear, `UNREADABLE` for one that does not open."""
        try:
            return self.sealer.opened(blob, place).content
        except CorruptState as error:
            self._unreadable(kind, what, error)
            return UNREADABLE

    def _unreadable(self, kind: str, what: str, error: CorruptState) -> None:
        log.warning("sealed record not read", extra={"kind": kind, "of": what, "why": str(error)})


def sealed_store(store: Store, keyring: Keyring, sealing: Sealing) -> Store:
    """The store, its records sealed as the setting says."""
    return cast(Store, SealedStore(store, RecordSealer(keyring, sealing)))


# ------------------------------------------------------------------------------------------------------ what there is


def counted(items: Iterable[Exported], ring: Ring) -> dict[str, Counter[str]]:
    """Tenant → id of a key (hex, empty for none) → records of the store that it sealed. Alerts whose key is unknown are under ``?``.

    items  as `Store.export` gives them
    """
    found: dict[str, Counter[str]] = {}
    for item in items:
        if item.table not in ("profile", "decision", "alert"):
            continue
        _, record = record_of(item)
        tenant, blobs = "?", list[bytes]()
        if isinstance(record, StoredProfile):
            tenant, blobs = client_from_text(record.client).tenant, list(record.fields.values())
        elif isinstance(record, StoredRow):
            tenant, blobs = client_from_text(record.client).tenant, [record.row]
        elif isinstance(record, AlertRecord):
            blobs = [record.body]
            name = key_id_of(record.body)
            tenant = ring.by_id[name].tenant if name in ring.by_id else ring.destroyed.get(name, "?")
        for blob in blobs:
            found.setdefault(tenant, Counter())[key_id_of(blob).hex()] += 1
    return found
