"""Keys of the API: how one is made, what is stored of it, and what may be shown.

Rules:
* A key is ``qw_<env>_<prefix>_<secret>``. The prefix names it in lists and in the audit log; the secret has 256 random bits.
* Stored is a keyed digest, never the key. Its text is shown once, to whoever made it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets as entropy
import string
from dataclasses import replace

from consumers.records.operator_entries import ApiKey
from consumers.secrets import Secrets

_BASE62 = string.digits + string.ascii_letters


def new_key(env: str) -> tuple[str, str]:
    """Public prefix and text of a fresh key: ``qw_<env>_<8>_<43>``, 256 bits."""
    prefix = "".join(entropy.choice(_BASE62) for _ in range(8))
    return prefix, f"qw_{env}_{prefix}_{''.join(entropy.choice(_BASE62) for _ in range(43))}"


def key_digest(secrets: Secrets, text: str) -> str:
    """What is stored of a key. It has 256 random bits, so one keyed hash is enough."""
    return hmac.digest(secrets.derived("api-key"), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()


def without_digest(key: ApiKey) -> ApiKey:
    """The key as it may be shown."""
    return replace(key, digest="")
