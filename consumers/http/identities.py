"""The identities of a request: from its headers to client hashes.

Rules:
* Only the configured headers are read; of ``Authorization`` only bearer tokens. The value of a header must be the client id of the
  query log, or be listed in the client map. ``_`` in a header's name counts as ``-``, because CGI and WSGI servers read it so.
* Every reading of a header counts: its value without white space around it (RFC 9110 means SP and HTAB, servers strip more), as it came,
  and each part between commas, because gateways join repeated headers that way. So adding a header or a part cannot lift a restriction; it
  can only add one.
* The request belongs to the first configured header that is present, if that is a single value (`Found.first`). A client that is only
  named elsewhere may be another one, and this request must not use its tokens.
* A request with more than `MOST_VALUES` identities is refused: an honest one has few, and a restricted one must not hide among many.
* The client map is a JSON object from the hash of a header's value (`querywarden gateway hash`) to the client id in the
  log, so that the file holds no key. It is read again when it changes. A damaged one is reported, and the last good one stays.
* Values longer than a client id may be (256 bytes) belong to no client; the parts of such a value still count.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from consumers import paths
from consumers.errors import ConfigError, Refused
from consumers.operators.references import References
from consumers.secrets import Secrets

log = logging.getLogger("querywarden.gateway")

MAX_ID_BYTES = 256
MOST_VALUES = 32
_REMEMBERED = 65_536
_MOST_PARTS = 8
_BEARER = b"bearer"
_AUTHORIZATION = b"authorization"


class Found(NamedTuple):
    """Whom a request names. clients: hashes, each once; first: the one that the request is of, None when that is not clear;
    crowded: it names more than it may."""

    clients: tuple[str, ...]
    first: str | None
    crowded: bool = False


_NOBODY = Found((), None)


class Identities:
    """Headers → client hashes of a tenant.

    headers  names of the headers that carry an identity, the most trusted first
    map      file of the client map, None without one; raises Refused when it cannot be read at the start
    """

    def __init__(self, headers: Sequence[str], secrets: Secrets, map_file: Path | None = None) -> None:
        names = dict.fromkeys(name.lower().replace("_", "-").encode("latin-1") for name in headers)
        self._ranks = {spelt: rank for rank, name in enumerate(names) for spelt in _spellings(name)}
        self._secrets = secrets
        self.references = References(secrets)
        self._map_file = map_file
        self._map: dict[str, str] = {}
        self._map_seen: tuple[int, int] | None = None
        self._known: dict[tuple[str, bool, bytes], tuple[str, ...]] = {}
        if map_file is not None:
            self._read_map(map_file)

    def of(self, tenant: str, headers: Iterable[tuple[bytes, bytes]]) -> Found:
        """Whom a request's headers (names in lower case) stand for; no clients: nobody that could be known."""
        best, first, values = len(self._ranks), None, 0
        clients: dict[str, None] = {}
        for name, value in headers:
            rank = self._ranks.get(name)
            if rank is None:
                continue
            commas = value.count(b",")
            values += 1 + commas
            if values > MOST_VALUES:
                return Found((), None, crowded=True)
            found = self._clients(tenant, name == _AUTHORIZATION, value)
            if found and rank <= best:
                first = None if commas or rank == best else found[0]
                best = rank
            for client in found:
                clients[client] = None
        return Found(tuple(clients), first) if clients else _NOBODY

    def refresh(self) -> None:
        """Read the client map again if it changed."""
        if self._map_file is None:
            return
        try:
            self._read_map(self._map_file)
        except Refused as error:
            log.error("client map: the last good one stays in use", extra={"error": str(error)})

    def _clients(self, tenant: str, bearer: bool, value: bytes) -> tuple[str, ...]:
        """Hashes of everything that one header's value may mean."""
        key = (tenant, bearer, value)
        known = self._known.get(key)
        if known is None:
            texts = [_text(one) for one in (_tokens(value) if bearer else _readings(value)) if len(one) <= MAX_ID_BYTES]
            readings = dict.fromkeys(reading for text in texts for reading in (text.strip(), text) if reading)
            known = tuple(dict.fromkeys(self._hash(tenant, text) for text in readings))
            if len(value) <= MAX_ID_BYTES:
                if len(self._known) >= _REMEMBERED:
                    self._known = {}
                self._known[key] = known
        return known

    def _hash(self, tenant: str, text: str) -> str:
        client = self._secrets.client_hash(tenant, text)
        return self._secrets.client_hash(tenant, self._map[client]) if client in self._map else client

    def _read_map(self, path: Path) -> None:
        try:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_size)
            if seen == self._map_seen:
                return
            self._map_seen = seen
            content = json.loads(paths.read(path, "gateway.client_map"))
        except OSError as error:
            raise ConfigError(f"gateway.client_map: {path}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"gateway.client_map: {path}: not JSON") from error
        if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
            raise ConfigError(f"gateway.client_map: {path}: it must hold a JSON object of hash → client id")
        self._map = {key.lower(): client for key, client in content.items()}
        self._known = {}


def _spellings(name: bytes) -> Iterator[bytes]:
    """A header's name with ``_`` for any of its ``-``."""
    parts = name.split(b"-")
    if len(parts) > _MOST_PARTS:
        yield from (name, name.replace(b"-", b"_"))
        return
    for marks in itertools.product((b"-", b"_"), repeat=len(parts) - 1):
        yield b"".join(part + mark for part, mark in zip(parts, (*marks, b""), strict=True))


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _readings(value: bytes) -> Iterator[bytes]:
    """A value as it came, without white space around it, and each part between commas."""
    yield value.strip()
    yield value
    yield from value.split(b",")


def _tokens(value: bytes) -> Iterator[bytes]:
    """Readings of the bearer tokens in a value of ``Authorization``, of a list of credentials too."""
    bearer = False
    for part in (value, *value.split(b",")):
        scheme, *token = part.split(None, 1)[:2] or (b"",)
        if token and scheme.lower() == _BEARER:
            bearer = True
            yield token[0]
            yield token[0].split(None, 1)[0]
        elif bearer and not token:  # the rest of a token that held a comma
            yield scheme
