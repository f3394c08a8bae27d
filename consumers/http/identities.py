"""Who a gateway asks about: from the headers of a request to client hashes.

Rules:

* Only the configured headers are looked at; of ``Authorization`` only a bearer token. What a header carries must be what the
  query log calls the client, or be listed in the client map.
* Every configured header that is present counts, a repeated one each time: who adds a header cannot get rid of a
  restriction, only into one.
* The client map is a JSON object from the hash of a header's value (`querywarden gateway hash`) to the client's id in the
  log, so that the file holds no key. It is read again when it changes; a damaged one is reported, the last good one stays.
* Values longer than a client id may be (256 bytes) are nobody's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from consumers.errors import Refused
from consumers.secrets import Secrets

log = logging.getLogger("querywarden.gateway")

MAX_ID_BYTES = 256
_REMEMBERED = 65_536
_BEARER = b"bearer "
_AUTHORIZATION = b"authorization"


class Identities:
    """Headers → client hashes of a tenant.

    headers  names of the headers that carry an identity
    map      file of the client map, None without one; raises Refused when it cannot be read at the start
    """

    def __init__(self, headers: Sequence[str], secrets: Secrets, map_file: Path | None = None) -> None:
        self._headers = frozenset(name.lower().encode("latin-1") for name in headers)
        self._secrets = secrets
        self._map_file = map_file
        self._map: dict[str, str] = {}
        self._map_seen: tuple[int, int] | None = None
        self._hashes: dict[tuple[str, bytes], str] = {}
        if map_file is not None:
            self._read_map(map_file)

    def of(self, tenant: str, headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
        """Client hashes that a request's headers (names in lower case) stand for; empty: nobody we could know."""
        found = []
        for name, value in headers:
            if name not in self._headers:
                continue
            if name == _AUTHORIZATION:
                if value[: len(_BEARER)].lower() != _BEARER:
                    continue
                value = value[len(_BEARER) :].strip()
            if 0 < len(value) <= MAX_ID_BYTES:
                client = self._hashes.get((tenant, value))
                found.append(client if client is not None else self._hash(tenant, value))
        return found

    def refresh(self) -> None:
        """Read the client map again if it changed."""
        if self._map_file is None:
            return
        try:
            self._read_map(self._map_file)
        except Refused as error:
            log.error("client map: the last good one stays in use", extra={"error": str(error)})

    def _hash(self, tenant: str, value: bytes) -> str:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        client = self._secrets.client_hash(tenant, text)
        if client in self._map:
            client = self._secrets.client_hash(tenant, self._map[client])
        if len(self._hashes) >= _REMEMBERED:
            self._hashes = {}
        self._hashes[tenant, value] = client
        return client

    def _read_map(self, path: Path) -> None:
        try:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen == self._map_seen:
                return
            self._map_seen = seen
            content = json.loads(path.read_bytes())
        except OSError as error:
            raise Refused(f"gateway.client_map: {path}: {error.strerror}") from error
        except ValueError as error:
            raise Refused(f"gateway.client_map: {path}: not JSON") from error
        if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
            raise Refused(f"gateway.client_map: {path}: an object of hash → client id is wanted")
        self._map = {key.lower(): client for key, client in content.items()}
        self._hashes = {}
