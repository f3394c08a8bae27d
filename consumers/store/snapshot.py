"""A snapshot: everything a store holds, in one file, for a backup or for another kind of store.

File: magic, version, length and JSON of a header; one zstd frame of records, each with its length; SHA-256 of all before it.

Rules:

* A file appears whole or not at all, readable by its owner only, and never replaces another.
* The checksum is checked before the first record is used; a damaged, foreign, newer or cut file is `Refused` in one line.
* Client ids are sealed in it as they are in the store: without the secrets file a snapshot can be restored nowhere. Keep both, apart.
* Positions are part of it. What the log received later is not lost: ingest reads on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets as entropy
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import zstandard

from consumers.errors import Refused
from consumers.store import SCHEMA_VERSION, Exported

MAGIC = b"QWSNAPSHOT\n"
FORMAT = 1
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


def write(path: Path, items: Iterable[Exported], secrets_id: str, version: str = "") -> Summary:
    """Write a new snapshot. Raises Refused when there is such a file already, or it cannot be written."""
    if path.exists():
        raise Refused(f"{path}: exists; a snapshot never replaces another file")
    draft = path.with_name(f".{path.name}.{os.getpid()}.{entropy.token_hex(4)}")
    summary = Summary()
    header = Header(SCHEMA_VERSION, secrets_id, int(time.time()), version)
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                _write_all(_Hashed(file), header, items, summary)
                file.flush()
                os.fsync(file.fileno())
                summary.size = file.tell()
            # A hard link appears whole or not at all and, unlike a rename, never replaces what is there.
            os.link(draft, path)
            _sync_folder(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError as error:
        raise Refused(f"{path}: exists; a snapshot never replaces another file") from error
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from error
    return summary


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[Header, Iterator[Exported]]]:
    """Header and items of a snapshot whose checksum was found right. Raises Refused."""
    try:
        with path.open("rb") as file:
            end = _check(path, file)
            header = _read_header(path, file)
            yield header, _items(path, file, end)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from error


class _Hashed:
    """A file that knows the SHA-256 of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._digest.update(content)
        return self._file.write(content)

    def finish(self) -> None:
        self._file.write(self._digest.digest())


def _write_all(out: _Hashed, header: Header, items: Iterable[Exported], summary: Summary) -> None:
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


def _check(path: Path, file: BinaryIO) -> int:
    """Where the checksum begins, if magic, version and checksum are right; the file is read once."""
    end = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC or end < len(MAGIC) + 1:
        raise Refused(f"{path}: not a snapshot")
    version = file.read(1)[0]
    if version != FORMAT:
        raise Refused(f"{path}: a snapshot of format {version}, this version reads format {FORMAT}")
    file.seek(0)
    digest, left = hashlib.sha256(), end
    while left:
        chunk = file.read(min(_CHUNK, left))
        if not chunk:
            break
        digest.update(chunk)
        left -= len(chunk)
    if file.read(_DIGEST_BYTES) != digest.digest():
        raise Refused(f"{path}: damaged or cut off (the checksum is wrong)")
    return end


def _read_header(path: Path, file: BinaryIO) -> Header:
    file.seek(len(MAGIC) + 1)
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    try:
        if length > _MAX_HEADER_BYTES:
            raise ValueError("too long")
        header = msgspec.json.decode(file.read(length), type=Header)
    except (msgspec.DecodeError, ValueError) as error:
        raise Refused(f"{path}: damaged (the header cannot be read)") from error
    if header.schema != SCHEMA_VERSION:
        raise Refused(f"{path}: a snapshot of schema {header.schema}, this version reads schema {SCHEMA_VERSION}")
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
        raise Refused(f"{path}: damaged (a record cannot be read)") from error


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
