"""Files that hold one key of 32 random bytes: the watermark key, and the keys that peers share.

Rules:

* Each is a JSON object with ``format`` and the key in base64, apart from the secrets file: whoever shares such a key shares nothing else.
* Mode 0600, created once, never replaced. A file that others can read is refused, and so is a damaged one.
* Errors name the file and never its content.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets as entropy
from pathlib import Path

from consumers import paths
from consumers.errors import ConfigError

FORMAT = 1
KEY_BYTES = 32
_MOST_FILE_BYTES = 4096


def create_key(path: Path, field: str, lost: str) -> bytes:
    """Draw a key and write it to a new file.

    Raises ConfigError when something is there already.

    field  name of the key in the file, its words joined by ``_``
    lost   what would be lost if the file were replaced, for the refusal
    """
    key, what = entropy.token_bytes(KEY_BYTES), field.replace("_", " ")
    text = json.dumps({"format": FORMAT, field: base64.b64encode(key).decode()}) + "\n"
    try:
        created = paths.create_private(path, text)
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be created: {error.strerror}") from error
    if not created:
        raise ConfigError(f"{what} {path}: exists; {lost}")
    return key


def read_key(path: str | os.PathLike[str], field: str) -> bytes:
    """Read the key of a file. Raises ConfigError when it is readable by others or damaged, InvalidInput when there is none."""
    what = field.replace("_", " ")
    text = paths.read_private(path, what, _MOST_FILE_BYTES)
    try:
        document = json.loads(text)
        found = document["format"]
        if found != FORMAT:
            raise ConfigError(f"{what} {path}: format {found!r}, this version reads format {FORMAT}")
        key = base64.b64decode(document[field], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error, RecursionError):
        raise ConfigError(f"{what} {path}: damaged or not a {what}") from None
    return checked(key, what)


def checked(key: bytes, what: str) -> bytes:
    """Return the key. Raises ConfigError for another length."""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{what}: {KEY_BYTES} bytes are wanted, not {len(key)}")
    return key
