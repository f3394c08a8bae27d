"""The three secrets of an installation, in one file that all its processes share. The keys of its tenants are in it too (keyring.py).

Rules:
* The file is created once, with mode 0600, atomically. Of several processes that start at once exactly one writes it, and all read the
  same.
* A file that group or others can read is refused, and so is a damaged one. Nothing is ever repaired silently.
* Every use of a secret is bound to a tenant: the same client id under two tenants has two unrelated hashes.
* No secret is shown by `repr`, in an error or in a log. `key_id` is a one-way hash; the store keeps it to notice a mix-up.
* Sealing is deterministic (the nonce is a keyed hash of the text), so that a replayed profile has the same bytes. It reveals which sealed
  texts of a tenant are equal, as their client hashes do anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets as entropy
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consumers import keyring, paths
from consumers.errors import ConfigError, CorruptState

FORMAT = 2
TENANT = "default"
"""The tenant of an installation that names none."""

KEY_BYTES = {"sampling_key": 16, "pepper": 32, "sealing_key": 32}
"""Name in the file → length of the key."""

_NONCE_BYTES = 12
_SEAL_VERSION = b"\x01"
_SEALED_BYTES = _SEAL_VERSION + b"bytes"
_CACHED_CLIENTS = 16_384
_CACHED_SEALS = 4_096
"""Texts that were sealed or opened last: a turn of detect meets a client's id in its profile and in its row, and seals it again."""


class Secrets:
    """Sampling key, pepper and sealing key; see `load`.

    sampling_key  16 bytes, for the keyed hash that decides what is sampled
    """

    __slots__ = (
        "_cipher",
        "_client_hash",
        "_opened",
        "_pepper",
        "_sealed",
        "_sealing_key",
        "_tenant_pepper",
        "sampling_key",
    )

    def __init__(self, sampling_key: bytes, pepper: bytes, sealing_key: bytes) -> None:
        for name, key in zip(KEY_BYTES, (sampling_key, pepper, sealing_key), strict=True):
            if len(key) != KEY_BYTES[name]:
                raise ConfigError(f"secrets: {name} must have {KEY_BYTES[name]} bytes, not {len(key)}")
        self.sampling_key = sampling_key
        self._pepper = pepper
        self._sealing_key = sealing_key
        self._tenant_pepper = lru_cache(maxsize=256)(lambda tenant: _derive(self._pepper, b"client", tenant))
        self._client_hash = lru_cache(maxsize=_CACHED_CLIENTS)(self._hash_client)
        self._cipher = lru_cache(maxsize=256)(self._tenant_cipher)
        self._sealed = lru_cache(maxsize=_CACHED_SEALS)(self._seal)
        self._opened = lru_cache(maxsize=_CACHED_SEALS)(self._unseal)

    @classmethod
    def load(cls, path: str | os.PathLike[str], create: bool = False, tenant: str = TENANT) -> Secrets:
        """The secrets in `path`; with `create` they are drawn and written first if there is no such file, with a key for the tenant.

        Raises ConfigError when the file is missing, readable by group or others, or damaged.
        """
        where = Path(path)
        if create and not where.exists():
            _write_new(where, (tenant,))
        return cls(**_read(where))

    @classmethod
    def create(cls, path: str | os.PathLike[str], tenants: Sequence[str] = (TENANT,)) -> Secrets:
        """New secrets, and a key for each of the tenants, written to `path`.

        Raises ConfigError when something is there already or it cannot be written.
        """
        where = Path(path)
        if not _write_new(where, tenants):
            raise ConfigError(
                f"secrets file {where}: the file exists; data that was sealed with it could not be read any more"
            )
        return cls(**_read(where))

    @classmethod
    def draw(cls) -> Secrets:
        """Fresh secrets that are kept nowhere."""
        return cls(**{name: entropy.token_bytes(n) for name, n in KEY_BYTES.items()})

    @property
    def key_id(self) -> str:
        """16 hex digits that name these secrets and give nothing away about them."""
        digest = hashlib.blake2b(digest_size=8, person=b"qw-secrets-id")
        for key in (self.sampling_key, self._pepper, self._sealing_key):
            digest.update(key)
        return digest.hexdigest()

    def client_hash(self, tenant: str, client: str) -> str:
        """Keyed hash of a client id: 128 bits of HMAC-SHA256 under the tenant's pepper, 32 hex digits."""
        return self._client_hash(tenant, client)

    def derived(self, purpose: str) -> bytes:
        """32 bytes for one purpose (digests of API keys, signatures); no purpose gives another's away."""
        return _derive(self._pepper, b"purpose", purpose)

    def edge_key(self, tenant: str) -> bytes:
        """The key of `client_hash`, for a gateway that looks hashes up itself: who has it can try ids against hashes."""
        return self._tenant_pepper(tenant)

    def seal(self, text: str, tenant: str) -> bytes:
        """`text` encrypted under the tenant's key: version, nonce (12 bytes), AES-256-GCM ciphertext and tag."""
        return self._sealed(text, tenant)

    def unseal(self, sealed: bytes, tenant: str) -> str:
        """Raises CorruptState when the bytes are damaged or were sealed under other secrets or for another tenant."""
        return self._opened(sealed, tenant)

    def seal_bytes(self, content: bytes, tenant: str) -> bytes:
        """As `seal`, for content that comes once: nothing of it is remembered."""
        cipher, nonce_key = self._cipher(tenant)
        nonce = hmac.digest(nonce_key, b"bytes\x00" + content, "sha256")[:_NONCE_BYTES]
        return _SEAL_VERSION + nonce + cipher.encrypt(nonce, content, _SEALED_BYTES)

    def unseal_bytes(self, sealed: bytes, tenant: str) -> bytes:
        """Raises CorruptState when the bytes are damaged or were sealed under other secrets or for another tenant."""
        cipher, _ = self._cipher(tenant)
        try:
            return cipher.decrypt(sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :], _SEALED_BYTES)
        except (InvalidTag, ValueError) as error:
            raise CorruptState("sealed bytes: damaged, or sealed with other secrets") from error

    def _seal(self, text: str, tenant: str) -> bytes:
        cipher, nonce_key = self._cipher(tenant)
        plain = text.encode("utf-8", "surrogatepass")
        nonce = hmac.digest(nonce_key, plain, "sha256")[:_NONCE_BYTES]
        return _SEAL_VERSION + nonce + cipher.encrypt(nonce, plain, _SEAL_VERSION)

    def _unseal(self, sealed: bytes, tenant: str) -> str:
        if sealed[:1] != _SEAL_VERSION:
            raise CorruptState("sealed text: unknown version")
        cipher, _ = self._cipher(tenant)
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return cipher.decrypt(nonce, body, _SEAL_VERSION).decode("utf-8", "surrogatepass")
        except (InvalidTag, ValueError) as error:
            raise CorruptState("sealed text: damaged, or sealed with other secrets") from error

    def __repr__(self) -> str:
        return f"Secrets(key_id={self.key_id})"

    def __reduce__(self) -> str:
        raise TypeError("secrets are not serialised")

    def _hash_client(self, tenant: str, client: str) -> str:
        return hmac.digest(self._tenant_pepper(tenant), client.encode("utf-8", "surrogatepass"), "sha256")[:16].hex()

    def _tenant_cipher(self, tenant: str) -> tuple[AESGCM, bytes]:
        return AESGCM(_derive(self._sealing_key, b"seal", tenant)), _derive(self._sealing_key, b"nonce", tenant)


def _derive(key: bytes, purpose: bytes, tenant: str) -> bytes:
    """32 bytes bound to a purpose and a tenant."""
    return hmac.digest(key, purpose + b"\x00" + tenant.encode("utf-8", "surrogatepass"), "sha256")


def _write_new(path: Path, tenants: Sequence[str]) -> bool:
    """Draw secrets and publish them under `path`; False when something is there, or another process was faster."""
    keys: dict[str, object] = {name: base64.b64encode(entropy.token_bytes(n)).decode() for name, n in KEY_BYTES.items()}
    keys["tenants"] = {tenant: keyring.new_tenant() for tenant in tenants}
    text = json.dumps({"format": FORMAT, **keys}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return paths.create_private(path, text)
    except OSError as error:
        raise ConfigError(f"secrets file {path}: cannot be created: {error.strerror}") from error


def _read(path: Path) -> dict[str, bytes]:
    document = keyring.document_of(path)
    try:
        keys = {name: base64.b64decode(document[name], validate=True) for name in KEY_BYTES}
    except (ValueError, TypeError, KeyError, binascii.Error):
        raise ConfigError(f"secrets file {path}: damaged or not a secrets file") from None
    for name, key in keys.items():
        if len(key) != KEY_BYTES[name]:
            raise ConfigError(f"secrets file {path}: {name} must have {KEY_BYTES[name]} bytes")
    return keys
