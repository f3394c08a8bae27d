"""The audit log: who changed what, in a hash chain that reveals every edit, deletion, swap and truncation.

Rules:
* A row is one canonical JSON line (sorted keys, no spaces) that begins with its hash, SHA-256(previous hash ‖ the rest of the row).
  Its `n` counts from 1. It names clients by their keyed hash only.
* Rows go into the store's operator cell in the same atomic step as the change that they record. With them goes the head (number and hash
  of the last row, signed with Ed25519): a chain alone would not reveal that its end was cut off.
* Every process that writes or serves also keeps a copy, `audit.jsonl` in its state folder, with the signed heads in between. The head
  is logged now and then, so that a log collector holds an anchor outside of both.
* `verify` checks a log of any length in one pass, and then the entries that the rows record (`kept`). It holds the last hash, and a digest
  of each entry.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from consumers.errors import ConfigError, CorruptState, InvalidInput
from consumers.operators.kept import Kept, stored
from consumers.secrets import Secrets
from consumers.store import Entry, OperatorStore

EVERY_TENANT = "*"
"""Tenant of the head: the chain is one for all tenants, whose names cannot hold a star."""
KIND, KEY = "audit", "head"
GENESIS = "0" * 64
_OPEN = b'{"hash":"'
_REST = len(_OPEN) + 64 + 2
_PAGE = 2000
_TAIL_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain, signed. signature: Ed25519 over ``n``, ``hash`` and ``ts`` (seconds), base64."""

    n: int
    hash: str
    ts: int
    signature: str
    format: int = 1


@dataclass(slots=True)
class Verification:
    """rows checked; findings, none when all is well; last: hash of the last row."""

    rows: int = 0
    last: str = GENESIS
    findings: list[str] = field(default_factory=list)


class _Numbered(msgspec.Struct):
    n: int


_numbered = msgspec.json.Decoder(_Numbered)
_canonical = msgspec.json.Encoder(order="sorted")


class Seal:
    """Signs heads and checks them, with a key that only the secrets file gives."""

    def __init__(self, secrets: Secrets) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secrets.derived("audit"))

    @property
    def public(self) -> str:
        """The public key, base64: for whoever checks without the secrets."""
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(raw).decode()

    def head(self, n: int, last: str, ts: int) -> Head:
        return Head(n, last, ts, base64.b64encode(self._key.sign(_signed(n, last, ts))).decode())

    def holds(self, head: Head) -> bool:
        return signature_holds(head, self.public)


def signature_holds(head: Head, public: str) -> bool:
    """Whether the head was signed with the private half of `public` (base64)."""
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public, validate=True))
        key.verify(base64.b64decode(head.signature, validate=True), _signed(head.n, head.hash, head.ts))
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(n: int, last: str, ts: int) -> bytes:
    return f"querywarden-audit\x00{n}\x00{last}\x00{ts}".encode()


def chained(previous: str, row: Mapping[str, Any]) -> tuple[bytes, str]:
    """A row as it is kept, and its hash."""
    rest = _canonical.encode(row)
    digest = hashlib.sha256(previous.encode() + rest).hexdigest()
    return _OPEN + digest.encode() + b'",' + rest[1:], digest


def fingerprint(value: object) -> str:
    """Hash of something before or after a change; empty for nothing."""
    return "" if value is None else hashlib.sha256(_canonical.encode(value)).hexdigest()


def packed_head(head: Head) -> Entry:
    return Entry(EVERY_TENANT, KIND, KEY, msgspec.json.encode(head))


def stored_head(store: OperatorStore) -> tuple[int, Head | None]:
    """The operator cell's revision, and the chain's head. Raises CorruptState."""
    revision, found = store.operator_entries(KIND, EVERY_TENANT)
    for entry in found:
        if entry.key == KEY:
            try:
                return revision, msgspec.json.decode(entry.value, type=Head)
            except (msgspec.DecodeError, ValueError) as error:
                raise CorruptState(f"head of the audit log: {error}") from error
    return revision, None


def stored_rows(store: OperatorStore, after: int = 0) -> Iterator[tuple[int, bytes]]:
    """Numbered rows of the store, in order."""
    while page := store.audit_rows(after, _PAGE):
        yield from page
        after = page[-1][0]


def has_row(store: OperatorStore, n: int, digest: str) -> bool:
    """Whether the store's chain holds this row: the history that it was read from goes on. Raises Unavailable."""
    row = next(iter(store.audit_rows(n - 1, 1)), None)
    return row is not None and row[0] == n and row[1][len(_OPEN) : _REST - 2] == digest.encode()


# ----------------------------------------------------------------------------------------------------- checking


class Chain:
    """Checks rows one after another."""

    def __init__(self, place: str, heads: Mapping[int, str] | None = None) -> None:
        self.found = Verification()
        self._place = place
        self._known = heads or {}

    def row(self, line: bytes, number: int | None = None) -> None:
        """The next row; `number` as its keeper counts it."""
        found = self.found
        found.rows += 1
        if len(found.findings) > 20:
            return
        n = found.rows if number is None else number
        rest = b"{" + line[_REST:]
        claimed = line[len(_OPEN) : _REST - 2]
        digest = hashlib.sha256(found.last.encode() + rest).hexdigest()
        try:
            said = _numbered.decode(rest).n
        except (msgspec.DecodeError, ValueError):
            said = -1
        if (
            line[: len(_OPEN)] != _OPEN
            or claimed.decode("ascii", "replace") != digest
            or line[_REST - 2 : _REST] != b'",'
        ):
            self._find(f"row {n} does not follow from the one before it: edited, moved, or one is missing before it")
            digest = claimed.decode("ascii", "replace")
        elif said != n or n != found.rows:
            self._find(f"row {n} calls itself {said}")
        if n in self._known and self._known[n] != digest:
            self._find(f"row {n} is not the one that is known from elsewhere")
        found.last = digest

    def head(self, head: Head | None, public: str) -> None:
        """The signed head that stands at this place."""
        if head is None:
            if self.found.rows:
                self._find("there is no signed head: the end may have been cut off")
            return
        if not signature_holds(head, public):
            self._find(f"the head at row {head.n} carries a wrong signature")
        elif head.n != self.found.rows:
            self._find(f"the signed head is row {head.n}, but there are {self.found.rows} rows: cut off")
        elif head.hash != self.found.last:
            self._find(f"the signed head of row {head.n} has another hash")

    def _find(self, what: str) -> None:
        self.found.findings.append(f"{self._place}: {what}")


def verify(
    store: OperatorStore,
    seal: Seal,
    mirror: Mirror | None = None,
    anchors: Mapping[int, str] | None = None,
    now_s: Callable[[], float] = time.time,
) -> Verification:
    """Check the store's log and entries, and the copy when there is one. anchors: row → hash, known from elsewhere."""
    known = dict(anchors or {})
    findings: list[str] = []
    copied = 0
    if mirror is not None and mirror.path.exists():
        copy, last = mirror.verified(seal.public)
        findings, copied = copy.findings, copy.rows
        if copy.rows:
            known.setdefault(copy.rows, last)
    chain, kept = Chain("store", known), Kept()
    _, head = stored_head(store)
    entries = stored(store)
    for number, line in stored_rows(store):
        chain.row(line, number)
        kept.read(line)
    chain.head(head, seal.public)
    chain.found.findings += _differences(store, kept, entries, chain.found.rows, now_s)
    for n in known:
        if n > chain.found.rows:
            where = "the copy" if n == copied else "an anchor"
            chain.found.findings.append(f"store: row {n} is known from {where}, but there are {chain.found.rows} rows")
    chain.found.findings[:0] = findings
    return chain.found


def _differences(
    store: OperatorStore, kept: Kept, entries: list[Entry], rows: int, now_s: Callable[[], float]
) -> list[str]:
    """How entries and rows differ. Somebody may have written between the reading of both: then a second look agrees."""
    first = kept.differences(entries, now_s())
    if not first:
        return []
    for _, line in stored_rows(store, rows):
        kept.read(line)
    again = set(kept.differences(stored(store), now_s()))
    return [f"store: {words}" for words in first if words in again]


# ----------------------------------------------------------------------------------------------------- the copy


class Mirror:
    """The copy of the log in a file: rows as stored, and now and then ``{"head": …}``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def catch_up(self, store: OperatorStore, seal: Seal) -> int:
        """Append what the store has and the file lacks; returns the number of the last row. Raises ConfigError."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # several processes may keep one copy
                return self._append(file, store, seal)
        except OSError as error:
            raise ConfigError(f"audit copy {self.path}: {error.strerror}") from error

    def _append(self, file: BinaryIO, store: OperatorStore, seal: Seal) -> int:
        last = _last_number(file)
        lines = []
        for number, line in stored_rows(store, last):
            lines.append(line + b"\n")
            last = number
        if lines:
            _, head = stored_head(store)
            if head is not None and head.n == last and seal.holds(head):
                lines.append(b'{"head":' + msgspec.json.encode(head) + b"}\n")
            file.seek(0, os.SEEK_END)
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
        return last

    def verified(self, public: str) -> tuple[Verification, str]:
        """The copy by itself, and the hash of its last row."""
        chain = Chain(self.path.name)
        with self.path.open("rb") as file:
            for line in file:
                if line.startswith(b'{"head":'):
                    with contextlib.suppress(msgspec.DecodeError, ValueError):
                        chain.head(msgspec.json.decode(line[8:-2], type=Head), public)
                        continue
                    chain.found.findings.append(f"{self.path.name}: a head cannot be read")
                else:
                    chain.row(line.rstrip(b"\n"))
        return chain.found, chain.found.last


def _last_number(file: BinaryIO) -> int:
    """Number of the last row in the file; a line that was cut off by a crash is finished with a newline."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL_BYTES)
    file.seek(start)
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        whole = tail.rfind(b"\n") + 1
        file.truncate(start + whole)
        tail = tail[:whole]
    for line in reversed(tail.splitlines()):
        if not line.startswith(b'{"head":'):
            try:
                return _numbered.decode(line).n
            except (msgspec.DecodeError, ValueError):
                return 0
    return 0


def heads_of(lines: Iterable[str]) -> dict[int, str]:
    """Anchors written as ``number:hash``. Raises ConfigError."""
    found = {}
    for line in lines:
        number, _, digest = line.partition(":")
        if not number.isdecimal() or len(digest) != 64:
            raise InvalidInput(f"anchor {line!r}: it must be number:hash")
        found[int(number)] = digest
    return found
