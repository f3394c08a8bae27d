"""The registry of canaries: an append-only file of what was marked, when, and for which client.

Rules:

* A record is written before the answer leaves. What cannot be registered is not marked.
* A line is one JSON object whose `hash` is SHA-256(hash of the line before ‖ the rest of the line). Of the sealed part the chain covers the
  digest only, so that it can be blanked (`forget`) while the chain still holds.
* No line holds an input in clear. It names the client by its hash and the input by a keyed digest. Verification has to ask the suspect
  the same input, so input, truthful answer and marks are kept, sealed with the watermark key.
* Bounded: at most `most` records in all and `most_of_client` of one client. Beyond that nothing more is marked. What was marked stays so:
  the same input gets the same answer.
* A marked answer given again is counted, not recorded again. Counts are written with the next record, at the latest after `REPEATS_EVERY_S`
  once anything is asked, and at `close`; a process that is killed loses those of that time.
* Several processes may write one file: the lock on it is held while its end is read and a line is appended.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from consumers import paths
from consumers.errors import ConfigError, CorruptState
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import Mark

FORMAT = 1
GENESIS = "0" * 64
_CHUNK = 1 << 20
"""More than any line is long."""
REPEATS_EVERY_S = 60.0
MOST_RECORDS = 100_000
MOST_OF_CLIENT = 5_000
MOST_SEALED_BYTES = 32_768
"""Inputs whose sealed record would be longer are not marked."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One line of the file.

    Attributes
    ----------
    n
        Number of the line, from 1.
    at_s
        When, seconds since the epoch.
    client
        Hash of the client's id, 32 hex digits.
    kind
        ``canary``: a marked answer; ``control``: a truthful one, for comparison; ``again``: the client got its marked answers `count` times
        more.
    digest
        Keyed name of the input.
    sealed
        `Sealed` as sealed bytes, base64; empty in ``again`` and once it was forgotten.
    sealed_digest
        SHA-256 of `sealed`.
    """

    n: int
    at_s: int
    client: str
    kind: str
    key_id: str
    model: str
    digest: str = ""
    count: int = 0
    sealed_digest: str = ""
    format: int = FORMAT
    hash: str = ""
    sealed: str = ""


class Sealed(msgspec.Struct, frozen=True):
    """What verification needs: the input as it came, the truthful answer's label, and the marks."""

    input: Any
    marks: list[Mark]


def line_hash(previous: str, line: Line) -> str:
    """The hash of a line that follows the line with hash `previous`."""
    covered = msgspec.structs.replace(line, hash="", sealed="")
    return hashlib.sha256(previous.encode() + msgspec.json.encode(covered)).hexdigest()


class Registry:
    """The writing half. Raises ConfigError when the file cannot be opened, or is not a registry."""

    def __init__(
        self,
        path: Path,
        key: WatermarkKey,
        *,
        most: int = MOST_RECORDS,
        most_of_client: int = MOST_OF_CLIENT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._key, self._most, self._most_of_client, self._clock = path, key, most, most_of_client, clock
        self._known: set[tuple[str, str]] = set()
        self._canaries: set[str] = set()
        self._of_client: Counter[str] = Counter()
        self._repeats: Counter[tuple[str, str]] = Counter()
        self._written_s = clock()
        self._last, self._n, self._read_to = GENESIS, 0, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            paths.refuse_irregular(os.fstat(self._file).st_mode, f"canary registry {path}")
            self._locked(lambda: None)
        except OSError as error:
            raise ConfigError(f"canary registry {path}: {error.strerror}") from error

    def register(self, client: str, model: str, digest: str, sealed: Sealed, *, treated: bool) -> bool:
        """Record that a client's input is marked (or is a control). False: it is not registered, so the answer must stay truthful.

        Raises OSError when the file cannot be written, ConfigError when another process left in it what is no record.
        """
        if (client, digest) in self._known:
            if treated:
                self._repeats[client, model] += 1
                if self._clock() - self._written_s > REPEATS_EVERY_S:
                    self.flush()
            return True
        room = len(self._known) < self._most and self._of_client[client] < self._most_of_client
        if not room:
            return treated and digest in self._canaries  # another client got it: the same input, the same answer
        text = base64.b64encode(self._key.seal(msgspec.json.encode(sealed))).decode()
        if len(text) > MOST_SEALED_BYTES:
            return False
        kind = "canary" if treated else "control"
        self._locked(lambda: self._append(client, kind, model, digest, 0, text))
        return True

    def flush(self) -> None:
        """Write the counts of repeated canary answers. Raises OSError."""
        self._locked(self._append_repeats)

    def close(self) -> None:
        """Write what is counted and close the file. Raises OSError."""
        self.flush()
        os.close(self._file)

    def _locked(self, write: Callable[[], None]) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._catch_up()
            write()
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _append(self, client: str, kind: str, model: str, digest: str, count: int, sealed: str) -> None:
        self._append_repeats()
        self._write(client, kind, model, digest, count, sealed)

    def _append_repeats(self) -> None:
        for (client, model), count in list(self._repeats.items()):
            self._write(client, "again", model, "", count, "")
            del self._repeats[client, model]
        self._written_s = self._clock()

    def _write(self, client: str, kind: str, model: str, digest: str, count: int, sealed: str) -> None:
        sealed_digest = hashlib.sha256(sealed.encode()).hexdigest() if sealed else ""
        line = Line(
            self._n + 1, int(self._clock()), client, kind, self._key.key_id, model, digest, count, sealed_digest
        )
        line = msgspec.structs.replace(line, hash=line_hash(self._last, line), sealed=sealed)
        content = msgspec.json.encode(line) + b"\n"
        if os.pwrite(self._file, content, self._read_to) != len(content):
            raise OSError(errno.ENOSPC, "the line was not written whole", str(self._path))
        self._take(line, len(content))

    def _catch_up(self) -> None:
        """Take in what other processes appended; a line that a crash cut off is removed."""
        size = os.fstat(self._file).st_size
        if size < self._read_to:
            raise ConfigError(f"canary registry {self._path}: it became shorter")
        while self._read_to < size:
            chunk = os.pread(self._file, min(_CHUNK, size - self._read_to), self._read_to)
            whole = chunk.rfind(b"\n") + 1
            if not whole:
                os.ftruncate(self._file, self._read_to)
                return
            for content in chunk[:whole].splitlines(keepends=True):
                try:
                    line = msgspec.json.decode(content, type=Line)
                except (msgspec.DecodeError, ValueError):
                    raise ConfigError(f"canary registry {self._path}: line {self._n + 1} cannot be read") from None
                self._take(line, len(content))

    def _take(self, line: Line, length: int) -> None:
        self._last, self._n, self._read_to = line.hash, line.n, self._read_to + length
        if line.digest:
            self._known.add((line.client, line.digest))
            self._of_client[line.client] += 1
            if line.kind == "canary":
                self._canaries.add(line.digest)


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a registry, the chain checked; the reading half.

    Raises
    ------
    ConfigError
        The file cannot be read.
    CorruptState
        A line was changed, moved or taken out, or cannot be read.
    """
    return (line for line, _ in _lines_and_lengths(path))


def _lines_and_lengths(path: Path) -> Iterator[tuple[Line, int]]:
    """The lines of `lines_of`, each with its length in bytes."""
    last, n = GENESIS, 0
    with paths.opened(path, "canary registry") as file:
        for content in _whole_lines(file):
            n += 1
            try:
                line = msgspec.json.decode(content, type=Line)
            except (msgspec.DecodeError, ValueError):
                raise CorruptState(f"canary registry {path}: line {n} cannot be read") from None
            sealed = line.sealed
            if line.n != n or line.hash != line_hash(last, line):
                raise CorruptState(f"canary registry {path}: line {n} does not follow from the one before it")
            if sealed and hashlib.sha256(sealed.encode()).hexdigest() != line.sealed_digest:
                raise CorruptState(f"canary registry {path}: the sealed record of line {n} was changed")
            last = line.hash
            yield line, len(content)


def unsealed(line: Line, key: WatermarkKey) -> Sealed | None:
    """The sealed record of a line; None where there is none, or another key sealed it. Raises CorruptState."""
    if not line.sealed or line.key_id != key.key_id:
        return None
    try:
        plain = key.unseal(base64.b64decode(line.sealed, validate=True))
        return msgspec.json.decode(plain, type=Sealed)
    except (msgspec.DecodeError, binascii.Error, ValueError) as error:
        raise CorruptState(f"canary registry: sealed record of line {line.n}: {error}") from error


def forget(path: Path, client: str, models: Collection[str] | None = None) -> int:
    """Blank a client's sealed records where they stand; hashes, times and the chain stay. Returns how many there were.

    Model servers may go on writing: no line moves. models: only records of these; None: of all.

    Raises
    ------
    ConfigError
        The file cannot be read or written.
    CorruptState
        The chain is broken.
    """
    removed, at = 0, 0
    try:
        with path.open("r+b", buffering=0) as file:
            paths.refuse_irregular(os.fstat(file.fileno()).st_mode, f"canary registry {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
            for line, length in _lines_and_lengths(path):
                if line.client == client and line.sealed and (models is None or line.model in models):
                    blank = msgspec.json.encode(msgspec.structs.replace(line, sealed=""))
                    os.pwrite(file.fileno(), blank.ljust(length - 1) + b"\n", at)
                    removed += 1
                at += length
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"canary registry {path}: {error.strerror}") from error
    return removed


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    for content in file:
        if content.endswith(b"\n"):
            yield content
