"""The API keys that a service remembers, so that a wiped store neither locks callers out nor lets strangers in.

Rules:
* A key that the store no longer holds was either revoked or lost. The audit log tells which: its rows are never trimmed, so if the last
  row that was seen is still there, the key was revoked on purpose. If not, the store lost its history.
* A lost key stays valid until it expires, is revoked by its prefix, or is found again. A revoked key never becomes valid again, even if an
  older state of the store does come back.
* The memory that there ever was a key is never lost.
* The file holds what the store holds: digests, no key. It has mode 0600 and is authenticated with a key of the secrets file. A file that
  does not fit is not used.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from consumers.atomic_file import whole
from consumers.errors import Refused
from consumers.records.operator_entries import Role
from consumers.secrets import Secrets

log = logging.getLogger("querywarden.auth")

FORMAT = 1
_MAC = 64


class KnownKey(msgspec.Struct, frozen=True):
    """A key as the store has it. expires_s: 0 for never."""

    prefix: str
    digest: str
    name: str
    role: Role
    tenant: str
    expires_s: int

    def live(self, now_s: float) -> bool:
        return not self.expires_s or self.expires_s > now_s


Keys = Mapping[str, KnownKey]
"""Public prefix → key."""


class AuditAnchor(msgspec.Struct, frozen=True):
    """A row of the audit log, by number and hash."""

    n: int
    hash: str


@dataclass(frozen=True, slots=True)
class KeyMemory:
    """keys: as the store had them; lost: of those that it lost, the ones that go on; revoked: prefix → when the key would have ended;
    keyed: there ever was a key; row: the end of the audit log when the keys were read, None while it is empty."""

    keys: Keys = field(default_factory=dict)
    lost: Keys = field(default_factory=dict)
    revoked: Mapping[str, int] = field(default_factory=dict)
    keyed: bool = False
    row: AuditAnchor | None = None
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Reading:
    """What the store says. torn: it changed between the reads, so `row` may belong to another history than `keys`."""

    keys: Keys
    revoked: Mapping[str, int]
    row: AuditAnchor | None
    torn: bool = False


def after(memory: KeyMemory, read: Reading, goes_on: Callable[[AuditAnchor], bool], now_s: float) -> KeyMemory:
    """The memory after a reading. goes_on: whether the store still holds a row of the audit log; asked when a key is missing."""
    revoked = {p: ends_s for p, ends_s in {**memory.revoked, **read.revoked}.items() if not ends_s or ends_s > now_s}
    keys = {p: key for p, key in read.keys.items() if p not in revoked}
    missing = {p: key for p, key in memory.keys.items() if p not in read.keys and p not in revoked and key.live(now_s)}
    if missing and (memory.row is None or goes_on(memory.row)):
        missing = {}
    lost = {
        p: key
        for p, key in {**memory.lost, **missing}.items()
        if p not in read.keys and p not in revoked and key.live(now_s)
    }
    return KeyMemory(
        keys,
        lost,
        revoked,
        memory.keyed or bool(read.keys or read.revoked),
        memory.row if read.torn and memory.row is not None and not missing else read.row,
    )


class MemoryFile:
    """The memory in a file of the state folder."""

    def __init__(self, path: Path, secrets: Secrets) -> None:
        self.path = path
        self._key = secrets.derived("key-memory")
        self._written = KeyMemory()
        self._failed = False

    def load(self) -> KeyMemory:
        """What was remembered; nothing when there is no file, or none that can be believed."""
        try:
            mac, body = (raw := self.path.read_bytes())[:_MAC], raw[_MAC:]
        except FileNotFoundError:
            return KeyMemory()
        except OSError as error:
            log.error("remembered keys not read", extra={"path": str(self.path), "why": error.strerror})
            return KeyMemory()
        try:
            if not hmac.compare_digest(mac, self._mac(body)):
                raise ValueError("not written with these secrets")
            found = msgspec.json.decode(body, type=KeyMemory)
            if found.format != FORMAT:
                raise ValueError(f"format {found.format}, this version reads format {FORMAT}")
        except (ValueError, msgspec.DecodeError) as error:
            log.error("remembered keys not used", extra={"path": str(self.path), "why": str(error)})
            return KeyMemory()
        self._written = found
        return found

    def save(self, memory: KeyMemory) -> None:
        """Write what changed. A file that cannot be written is logged once: the memory of the process goes on."""
        if memory == self._written:
            return
        body = msgspec.json.encode(memory)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (
                whole(self.path) as draft,
                os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
            ):
                file.write(self._mac(body) + body)
        except (Refused, OSError) as error:
            if not self._failed:
                log.warning("keys are remembered in memory only", extra={"why": str(error)})
            self._failed = True
            return
        self._written, self._failed = memory, False

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256").hex().encode()
