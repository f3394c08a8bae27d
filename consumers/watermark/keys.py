"""The watermark key: one file of 32 random bytes that the model server and the verifying side share.

Rules:

* Apart from `secrets.json`: a model server needs no other secret of the installation.
* `key_id` is a one-way hash of the key. Written into the audit log when the key is made, it commits the owner to the key: no key can be
  chosen later to fit somebody's model.
* Each purpose (selecting, noise, digests, sealing) has a derived key of its own.
* Sealing uses random nonces: two sealed records tell nothing about each other.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets as entropy
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consumers import key_files
from consumers.errors import CorruptState
from consumers.key_files import KEY_BYTES

_FIELD = "watermark_key"
_NONCE_BYTES = 12


class WatermarkKey:
    """A watermark key. key_id: 16 hex digits that name it and give nothing away about it."""

    __slots__ = ("_cipher", "_key", "key_id")

    def __init__(self, key: bytes) -> None:
        self._key = key_files.checked(key, "watermark key")
        self._cipher = AESGCM(self.derived("seal"))
        self.key_id = hashlib.blake2b(key, digest_size=8, person=b"qw-watermark-id").hexdigest()

    @classmethod
    def draw(cls) -> WatermarkKey:
        """A fresh key that is kept nowhere."""
        return cls(entropy.token_bytes(KEY_BYTES))

    @classmethod
    def create(cls, path: Path) -> WatermarkKey:
        """Draw a key and write it to a new file of mode 0600. Raises ConfigError when something is there already."""
        return cls(key_files.create_key(path, _FIELD, "records sealed with it could not be read any more"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WatermarkKey:
        """The key in a file. Raises ConfigError when the file is missing, readable by others, or damaged."""
        return cls(key_files.read_key(path, _FIELD))

    def derived(self, purpose: str, model: str = "") -> bytes:
        """32 bytes for one purpose and model."""
        return hmac.digest(self._key, f"{purpose}\0{model}".encode("utf-8", "surrogatepass"), "sha256")

    def seal(self, plain: bytes) -> bytes:
        """Nonce (12 bytes), AES-256-GCM ciphertext and tag."""
        nonce = entropy.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, None)

    def unseal(self, sealed: bytes) -> bytes:
        """Raises CorruptState when the bytes are damaged or were sealed with another key."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError) as error:
            raise CorruptState("watermark record: damaged, or sealed with another key") from error

    def __repr__(self) -> str:
        return f"WatermarkKey(key_id={self.key_id})"

    def __reduce__(self) -> str:
        raise TypeError("a watermark key is not serialised")
