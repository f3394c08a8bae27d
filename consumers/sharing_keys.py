"""Keys that peers share: under one, two organisations give the same value the same hash, and nobody else can.

A deployment's own links are keyed by its secrets, so they mean nothing elsewhere. To exchange *indicators*, *peers* agree
on a *sharing key* and hand it over themselves, as any secret.

Rules:

* A sharing key is a file of its own, and no secret of the installation goes into it or comes from it.
* `key_id` is a one-way hash of the key. It names the key in indicators, so that nobody compares hashes of different keys.
* Who has the key can try values against hashes: an address of version 4 is found within hours. So indicators hide values from everybody
  except the peers that were given the key.
* Each purpose (hashes, tags) has a derived key of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from consumers import key_files
from consumers.errors import ConfigError

FIELD = "sharing_key"
MOST_KEYS = 3
"""Sharing keys of a deployment: circles of peers, and the next key while one is replaced."""
_HASH_BYTES = 16


class SharingKey:
    """One key. key_id: 16 hex digits that name it and give nothing away about it."""

    __slots__ = ("_hashes", "_tags", "key_id")

    def __init__(self, key: bytes) -> None:
        key_files.checked(key, "sharing key")
        self._hashes, self._tags = (hmac.digest(key, purpose, "sha256") for purpose in (b"hash", b"tag"))
        self.key_id = hashlib.blake2b(key, digest_size=8, person=b"qw-sharing-id").hexdigest()

    @classmethod
    def create(cls, path: Path) -> SharingKey:
        """Draw a key and write it to a new file of mode 0600. Raises ConfigError when something is there already."""
        return cls(key_files.create_key(path, FIELD, "peers that have it would not understand another one"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SharingKey:
        """Return the key of a file. Raises ConfigError, InvalidInput."""
        return cls(key_files.read_key(path, FIELD))

    def hash(self, kind: str, value: str) -> str:
        """Return the hash of a value of one kind: 32 hex digits, the same at every peer."""
        said = f"{kind}\x00{value}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._hashes, said, "sha256")[:_HASH_BYTES].hex()

    def tag(self, said: bytes) -> str:
        """Return 64 hex digits that only a holder of the key can compute."""
        return hmac.digest(self._tags, said, "sha256").hex()

    def holds(self, said: bytes, tag: str) -> bool:
        """Whether the tag was made with this key."""
        return hmac.compare_digest(self.tag(said).encode(), tag.encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        return f"SharingKey(key_id={self.key_id})"

    def __reduce__(self) -> str:
        raise TypeError("a sharing key is not serialised")


def load_sharing_keys(files: Iterable[str]) -> tuple[SharingKey, ...]:
    """Return the keys of the files, the first of which signs what is exported. Raises ConfigError, InvalidInput."""
    keys = tuple({key.key_id: key for key in map(SharingKey.load, files)}.values())
    if len(keys) > MOST_KEYS:
        raise ConfigError(f"sharing keys: at most {MOST_KEYS}")
    return keys
