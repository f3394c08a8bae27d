"""A snapshot: the whole content of a store in one file, for a backup or for another kind of store.

File: magic, version, length and JSON of a header; one zstd frame of records, each with its length; HMAC-SHA256 of everything before it,
under a key of the secrets file.

Rules:

* A file appears whole or not at all, readable by its owner only, and never replaces another. The unfinished file of a killed process is
  removed by the next one that writes into the folder.
* The HMAC is checked before the first record is used; a damaged, changed, foreign, newer or cut file is `Refused` in one line. So nobody
  without the secrets file can remove an operator's decision from a snapshot unnoticed.
* Client ids are sealed in it as they are in the store: without the secrets file a snapshot can be restored nowhere. Keep both, apart.
* Positions are part of it. Records that the log received later are not lost: ingest reads on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import os
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import zstandard

from consumers import paths
from consumers.errors import InvalidInput
from consumers.secrets import Secrets
from consumers.store import SCHEMA_VERSION, Exported

MAGIC = b"QWSNAPSHOT\n"
FORMAT = 2
MAX_RECORD_BYTES = 64 << 20

_LENGTH = struct.Struct(">I")
_DIGEST_BYTES = hashlib.sha256().digest_size
_CHUNK = 1 << 20
_MAX_HEADER_BYTES = 64 * 1024

_pack = msgspec.msgpack.Encoder()
_unpack = msgspec.msgpack.Decoder(tuple[str, str, bytes])


class Header(msgspec.Struct):
    """created_s: when it was begun; secrets: id of the secrets that its content is sealed with."""

    schema: int
    secrets: str
    created_s: int
    version: str = ""


@dataclass(slots=True)
class Summary:
    """What a snapshot holds: records by table, size of the file."""

    records: Counter[str] = field(default_factory=Counter)
    size: int = 0


def write(path: Path, items: Iterable[Exported], secrets: Secrets, version: str = "") -> Summary:
    """Write a new snapshot, sealed with the secrets. Raises InvalidInput when there is such a file already, or it cannot be written."""
    if path.exists():
        raise InvalidInput(f"{path}: the file exists; a snapshot never replaces a file")
    draft = paths.draft_of(path)
    summary = Summary()
    header = Header(SCHEMA_VERSION, secrets.key_id, int(time.time()), version)
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                _write_all(_Sealed(file, secrets), header, items, summary)
                file.flush()
                os.fsync(file.fileno())
                summary.size = file.tell()
            # A hard link appears whole or not at all and, unlike a rename, never replaces what is there.
            os.link(draft, path)
            _sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise InvalidInput(f"{path}: the file exists; a snapshot never replaces a file") from error
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror or error}") from error
    return summary


@contextlib.contextmanager
def opened(path: Path, secrets: Secrets) -> Iterator[tuple[Header, Iterator[Exported]]]:
    """Header and items of a snapshot that was found whole and sealed with these secrets. Raises InvalidInput."""
    with paths.opened(path) as file:
        header = _read_header(path, file)
        start = file.tell()
        if header.secrets != secrets.key_id:
            raise InvalidInput(f"{path}: sealed with the secrets {header.secrets}, these are {secrets.key_id}")
        end = _check(path, file, secrets)
        file.seek(start)
        yield header, _items(path, file, end)


def _seal(secrets: Secrets) -> hmac.HMAC:
    return hmac.new(secrets.derived("snapshot"), digestmod=hashlib.sha256)


class _Sealed:
    """A file that knows the HMAC of what was written."""

    def __init__(self, file: BinaryIO, secrets: Secrets) -> None:
        self._file = file
        self._digest = _seal(secrets)

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._file.write(content)

    def finish(self) -> None:
        self._file.write(self._digest.digest())


def _write_all(out: _Sealed, header: Header, items: Iterable[Exported], summary: Summary) -> None:
    encoded = msgspec.json.encode(header)
    out.write(MAGIC + bytes([FORMAT]) + _LENGTH.pack(len(encoded)) + encoded)
    frame = zstandard.ZstdCompressor(level=3, write_checksum=True).compressobj()
    for item in items:
        record = _pack.encode(item)
        out.write(frame.compress(_LENGTH.pack(len(record)) + record))
        summary.records[item.table] += 1
    out.write(frame.flush())
    out.finish()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(path: Path, file: BinaryIO, secrets: Secrets) -> int:
    """Where the HMAC begins, if it is right; the file is read once."""
    end = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
    file.seek(0)
    digest, left = _seal(secrets), max(0, end)
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            break
        digest.update(chunk)
        left -= len(chunk)
    if not hmac.compare_digest(file.read(_DIGEST_BYTES), digest.digest()):
        raise InvalidInput(f"{path}: damaged, cut off or changed (the seal is wrong)")
    return end


def _read_header(path: Path, file: BinaryIO) -> Header:
    """The header, not checked yet against the seal."""
    begin = file.read(len(MAGIC) + 1)
    if begin[:-1] != MAGIC:
        raise InvalidInput(f"{path}: not a snapshot")
    if begin[-1] != FORMAT:
        raise InvalidInput(f"{path}: a snapshot of format {begin[-1]}, this version reads format {FORMAT}")
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > _MAX_HEADER_BYTES:
            raise ValueError("too long")
        header = msgspec.json.decode(file.read(length), type=Header)
    except (msgspec.DecodeError, ValueError, RecursionError, struct.error) as error:
        raise InvalidInput(f"{path}: damaged (the header cannot be read)") from error
    if header.schema != SCHEMA_VERSION:
        raise InvalidInput(f"{path}: a snapshot of schema {header.schema}, this version reads schema {SCHEMA_VERSION}")
    return header


def _items(path: Path, file: BinaryIO, end: int) -> Iterator[Exported]:
    """Records between here and `end`."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BufferedReader(_Bounded(file, end))) as frame:
            while length := frame.read(_LENGTH.size):
                (size,) = _LENGTH.unpack(length)
                if size > MAX_RECORD_BYTES:
                    raise ValueError("a record is too long")
                record = frame.read(size)
                yield Exported(*_unpack.decode(record))
    except (zstandard.ZstdError, msgspec.DecodeError, ValueError, struct.error) as error:
        raise InvalidInput(f"{path}: damaged (a record cannot be read)") from error


class _Bounded(io.RawIOBase):
    """The part of a file before `end`, for a reader that would not stop there."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._left = file, end - file.tell()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(min(len(buffer), self._left))
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)
