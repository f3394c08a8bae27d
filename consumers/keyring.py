"""The keys of the tenants, under which profiles, decisions and alerts are sealed: one random key at a time for each tenant.

Rules:
* The keys are in the secrets file, under ``tenants``, because every process needs both and they must never be apart. The file is read
  again when it changes, at most once a second, so a running process learns of a new key or a destroyed one.
* A tenant without a key is not an error: its records are stored unsealed, unless a setting demands the key (`store/sealed.py`).
* Rotation adds a key. New records are sealed with the newest key whose time has come; older keys still open what they sealed.
* An older key is dropped when no record is left under it; whoever drops it has to count. Its id stays, as after erasing.
* Erasing a tenant destroys its keys and keeps their ids: a record under a destroyed key is unreadable for good, and a record under a key
  that was never in this file is a mix-up of files. The two must not be confused.
* A file that cannot be read changes nothing in a running process: it goes on with the keys that it has, and says so.
* No key is shown by `repr`, in an error or in a log. A key id is random and gives nothing away.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import logging
import os
import secrets as entropy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consumers import paths
from consumers.errors import ConfigError, InvalidInput

log = logging.getLogger("querywarden.keyring")

KEY_BYTES = 32
ID_BYTES = 4
CHECK_S = 1.0
"""How often a running process asks whether the file changed, at most."""

SETTLED_S = 300
"""How long a newer key must have been in use before an older one can be dropped: a process may still have the file from before."""

FORMATS = (1, 2)
"""Formats of a secrets file that are read. Format 2 has keys of tenants: versions that cannot open sealed records refuse it."""

MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A key of a tenant. id: names it in every record that it sealed; from_s: new records are sealed with it from then on."""

    tenant: str
    id: bytes
    key: bytes = field(repr=False)
    from_s: int = 0


@dataclass(frozen=True, slots=True)
class Ring:
    """All keys of one reading of the file.

    by_id      id → key
    destroyed  id of a destroyed key → the tenant whose key it was
    erased     tenant → when its keys were destroyed, in seconds; a tenant that got a new key since is not in it
    """

    by_id: Mapping[bytes, TenantKey] = field(default_factory=lambda: MappingProxyType({}))
    destroyed: Mapping[bytes, str] = field(default_factory=lambda: MappingProxyType({}))
    erased: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def current(self, tenant: str, now_s: float) -> TenantKey | None:
        """The key that seals a tenant's new records; None where it has none yet."""
        mine = [key for key in self.by_id.values() if key.tenant == tenant and key.from_s <= now_s]
        return max(mine, key=lambda key: key.from_s, default=None)

    def active(self, now_s: float) -> frozenset[bytes]:
        """The ids of the keys that seal new records, of all tenants."""
        newest = (self.current(tenant, now_s) for tenant in {key.tenant for key in self.by_id.values()})
        return frozenset(key.id for key in newest if key is not None)


class Keyring:
    """The ring of a secrets file, read again when the file changes. A file that does not exist yet holds no keys."""

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.now_s, self._clock = path, now_s, clock
        self._ring = Ring()
        self._read_as: tuple[int, ...] | None = ()
        self._checked_s = float("-inf")
        self._lock = threading.Lock()

    def ring(self, at_once: bool = False) -> Ring:
        """The keys as of now. at_once: look at the file even if that was done a moment ago."""
        if at_once or self._clock() - self._checked_s >= CHECK_S:
            with self._lock:
                self._refresh()
        return self._ring

    def _refresh(self) -> None:
        self._checked_s = self._clock()
        try:
            found = os.stat(self.path)
            state = (found.st_ino, found.st_size, found.st_mtime_ns)
        except FileNotFoundError:
            state = None
        except OSError as error:
            log.warning("secrets file not read; the keys stay as they were", extra={"why": error.strerror})
            return
        if state == self._read_as:
            return
        try:
            self._ring = Ring() if state is None else ring_of(document_of(self.path), self.path)
        except (ConfigError, InvalidInput) as error:
            if self._read_as == ():
                raise  # a process does not start without knowing the keys
            log.warning("secrets file not read; the keys stay as they were", extra={"why": str(error)})
        self._read_as = state


# ------------------------------------------------------------------------------------------------------ the file


def document_of(path: Path) -> dict[str, Any]:
    """The secrets file as one JSON object.

    Raises ConfigError when it is missing, readable by group or others, of another format or damaged; InvalidInput for what is no file.
    """
    if not os.path.lexists(path):
        raise ConfigError(f"secrets file {path}: does not exist (querywarden secrets create creates one)")
    text = paths.read_private(path, "secrets file", MOST_BYTES)
    try:
        document = json.loads(text)
        found = document["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _damaged(path) from None
    if found not in FORMATS:
        raise ConfigError(f"secrets file {path}: format {found!r}, this version reads formats 1 and 2")
    if not isinstance(document, dict):
        raise _damaged(path)
    return document


def ring_of(document: Mapping[str, Any], path: Path) -> Ring:
    """The keys in a secrets file. Raises ConfigError in one line when they are damaged."""
    by_id: dict[bytes, TenantKey] = {}
    destroyed: dict[bytes, str] = {}
    erased: dict[str, int] = {}
    try:
        for tenant, part in document.get("tenants", {}).items():
            for one in part["keys"]:
                key = TenantKey(tenant, bytes.fromhex(one["id"]), _decoded(one["key"]), int(one["from_s"]))
                if len(key.id) != ID_BYTES or len(key.key) != KEY_BYTES or key.id in by_id:
                    raise ValueError(tenant)
                by_id[key.id] = key
            destroyed |= {bytes.fromhex(name): tenant for name in part["destroyed"]}
            if not part["keys"] and part["destroyed"]:
                erased[tenant] = int(part["erased_s"])
    except (ValueError, TypeError, KeyError, AttributeError, binascii.Error):
        raise _damaged(path) from None
    return Ring(MappingProxyType(by_id), MappingProxyType(destroyed), MappingProxyType(erased))


def new_tenant() -> dict[str, Any]:
    """A tenant's part of a new secrets file: one random key."""
    return {"keys": [_drawn(0, set())], "destroyed": [], "erased_s": 0}


def rotate(path: Path, tenant: str, from_s: int) -> TenantKey:
    """Add a key for a tenant, the first or a further one, that seals new records from `from_s` on. Raises ConfigError."""
    with _changed(path) as document:
        ring = ring_of(document, path)
        part = document["tenants"].setdefault(tenant, {"keys": [], "destroyed": [], "erased_s": 0})
        newest = max((key.from_s for key in ring.by_id.values() if key.tenant == tenant), default=-1)
        if from_s <= newest:
            raise ConfigError(
                f"secrets file {path}: tenant {tenant} has a key that is younger; wait until it is in use"
            )
        part["keys"].append(_drawn(from_s, set(ring.by_id) | set(ring.destroyed)))
        added: dict[str, Any] = part["keys"][-1]
    return TenantKey(tenant, bytes.fromhex(added["id"]), _decoded(added["key"]), from_s)


def destroy(path: Path, tenant: str, now_s: int) -> list[bytes]:
    """Destroy all keys of a tenant; their ids stay, so that records under them are known to be unreadable. Raises ConfigError.

    Other copies of the file still hold the keys: backups, other machines, blocks of the disk that are not yet written over.
    """
    with _changed(path) as document:
        part = document["tenants"].get(tenant)
        if part is None or not part["keys"]:
            raise ConfigError(f"secrets file {path}: tenant {tenant} has no key that could be destroyed")
        gone: list[str] = [key["id"] for key in part["keys"]]
        part.update(keys=[], destroyed=[*part["destroyed"], *gone], erased_s=now_s)
    return [bytes.fromhex(name) for name in gone]


def drop(path: Path, key_id: bytes, now_s: int) -> TenantKey:
    """Destroy one key that a younger one has replaced for `SETTLED_S`; its id stays. Nothing may be sealed with it any more.

    Raises ConfigError for a key that is not in the file, seals new records, or did so a moment ago.
    """
    with _changed(path) as document:
        ring = ring_of(document, path)
        key = ring.by_id.get(key_id)
        if key is None:
            gone = " any more" if key_id in ring.destroyed else ""
            raise ConfigError(f"secrets file {path}: there is no key {key_id.hex()}{gone}")
        newer = [one.from_s for one in ring.by_id.values() if one.tenant == key.tenant and one.from_s > key.from_s]
        if not newer or min(newer) > now_s:
            raise ConfigError(f"secrets file {path}: key {key_id.hex()} seals the new records of tenant {key.tenant}")
        if now_s - min(newer) < SETTLED_S:
            raise ConfigError(
                f"secrets file {path}: key {key_id.hex()} was in use until {now_s - min(newer)} s ago; wait {SETTLED_S} s, so that "
                "every process has read the newer one"
            )
        part = document["tenants"][key.tenant]
        part["keys"] = [one for one in part["keys"] if one["id"] != key_id.hex()]
        part["destroyed"].append(key_id.hex())
    return key


@contextlib.contextmanager
def _changed(path: Path) -> Iterator[dict[str, Any]]:
    """The document, written back as a whole if the block succeeds; of two processes that change it one waits for the other."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"secrets file {path}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        document = document_of(path)
        ring_of(document, path)
        document.setdefault("tenants", {})
        yield document
        document["format"] = 2
        paths.replace_private(path, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(
            f"secrets file {path}: cannot be written: {error.strerror}; change a copy and put it in place"
        ) from error
    finally:
        os.close(folder)


def _drawn(from_s: int, taken: set[bytes]) -> dict[str, Any]:
    name = entropy.token_bytes(ID_BYTES)
    while name in taken:
        name = entropy.token_bytes(ID_BYTES)
    key = base64.b64encode(entropy.token_bytes(KEY_BYTES)).decode()
    return {"id": name.hex(), "key": key, "from_s": from_s}


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"secrets file {path}: damaged or not a secrets file")
