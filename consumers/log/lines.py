"""Lines out of byte streams, in bounded memory, whatever the stream holds.

Rules:

* A block of decompressed bytes never exceeds `BLOCK_BYTES`, at whatever ratio it was compressed: gzip stops at a
  maximum length, zstd is fed one block at a time (a zstd block holds at most 128 KiB).
* A line longer than a record may be is given as its first `MAX_RECORD_BYTES` + 1 bytes; the rest is skipped, not held.
* A stream that ends too early or is damaged gives every complete line first, then one `Refused`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, overload

import numpy as np
import zstandard
from numpy.typing import NDArray

from consumers.errors import InvalidInput, Refused
from consumers.log import MAX_RECORD_BYTES
from consumers.log.payloads import Payloads

BLOCK_BYTES = 1 << 20
READ_BYTES = 1 << 17
KEPT_BYTES = MAX_RECORD_BYTES + 1
MAX_WINDOW_BYTES = 1 << 27  # as the zstd program without --long
SKIPPABLE = range(0x184D2A50, 0x184D2A60)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NEWLINE = 10
NOTHING = Payloads.of([])


class LinePlaces(Sequence[str]):
    """Where lines are, for people ("file.jsonl:12"); a text is made of one when it is asked for.

    names  of files; file  (n,) which of them each line is in; number  (n,) its number there, from 1 on
    """

    __slots__ = ("file", "names", "number")

    def __init__(self, names: Sequence[str], file: NDArray[np.int64], number: NDArray[np.int64]) -> None:
        self.names, self.file, self.number = names, file, number

    def __len__(self) -> int:
        return len(self.number)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> LinePlaces: ...

    def __getitem__(self, at: int | slice) -> str | LinePlaces:
        if isinstance(at, slice):
            return LinePlaces(self.names, self.file[at], self.number[at])
        return f"{self.names[self.file[at]]}:{self.number[at]}"


class Lines:
    """The lines of one stream of blocks, without their newline; no object is made for a line.

    unended  the last line was taken, and no newline ends it
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._ready = NOTHING
        self._at = 0
        self._tail = bytearray()
        self._done = False
        self._damage: Refused | None = None
        self._first = True
        self.unended = False

    @property
    def ready(self) -> bool:
        """There are lines that were read already."""
        return self._at < len(self._ready)

    def take(self, n: int) -> Payloads:
        """The next lines, at most n; none at the end. Raises InvalidInput after the last complete line of a damaged one."""
        while self._at >= len(self._ready) and not self._done:
            self._fill()
        lines = self._ready[self._at : self._at + n]
        self._at += len(lines)
        self.unended = bool(lines and self._done and self._tail)
        if not lines and self._damage is not None:
            raise self._damage
        return lines

    def _fill(self) -> None:
        self._ready, self._at = NOTHING, 0
        try:
            block = next(self._blocks, None)
        except Refused as damage:
            # The line that was cut off is not delivered: it would be refused as malformed, which it never was.
            self._done, self._damage = True, damage
            return
        if block is None:
            self._done = True
            if self._tail:
                self._ready = Payloads.of([bytes(self._tail)])
            return
        if self._first:
            block = block.removeprefix(BYTE_ORDER_MARK)
            self._first = False
        newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE)
        if not len(newlines):
            self._tail += block[: KEPT_BYTES - len(self._tail)]
            return
        text = bytes(self._tail) + block if self._tail else block
        ends = newlines + len(self._tail)
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
        self._ready = Payloads(np.frombuffer(text, np.uint8), starts, np.minimum(ends, starts + KEPT_BYTES))
        self._tail = bytearray(block[int(newlines[-1]) + 1 :])


def plain(raw: BinaryIO, name: str) -> Iterator[bytes]:
    """Blocks as they are. A pipe gives what it has, so that a live stream isn't held back."""
    while block := _read(raw, BLOCK_BYTES, name):
        yield block


def gunzip(raw: BinaryIO, name: str) -> Iterator[bytes]:
    """Blocks of a gzip stream of one or more members; padding with zeros is ignored. Raises InvalidInput when damaged."""
    member = zlib.decompressobj(wbits=31)
    begun = False  # inside a member
    pending = b""
    full = False  # zlib may hold back output that did not fit
    while True:
        if not pending and not full:
            pending = _read(raw, READ_BYTES, name)
            if not pending:
                break
        if not begun:
            pending = pending.lstrip(b"\0")
            if not pending:
                continue
        begun = True
        try:
            block = member.decompress(pending, BLOCK_BYTES)
        except zlib.error as error:
            raise InvalidInput(f"{name}: damaged gzip stream ({error})") from error
        pending, full = member.unconsumed_tail, len(block) == BLOCK_BYTES
        if member.eof:
            pending, full, begun = member.unused_data, False, False
            member = zlib.decompressobj(wbits=31)
        if block:
            yield block
    if begun:
        raise InvalidInput(f"{name}: the gzip stream ends too early")


def unzstd(raw: BinaryIO, name: str) -> Iterator[bytes]:
    """Blocks of a zstd stream of one or more frames. Raises InvalidInput when damaged, or when it needs a dictionary."""
    source = _Exactly(raw, name)
    while head := source.peek(18):
        if len(head) >= 8 and int.from_bytes(head[:4], "little") in SKIPPABLE:
            source.skip(8 + int.from_bytes(head[4:8], "little"))
            continue
        try:
            frame = zstandard.get_frame_parameters(head)
            if frame.dict_id:
                raise InvalidInput(f"{name}: compressed with a zstd dictionary, which is not available")
            inflate = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj().decompress
            block = inflate(source.take(zstandard.frame_header_size(head)))
            last = False
            while not last:
                header = source.take(3)
                code = int.from_bytes(header, "little")
                last, kind, size = bool(code & 1), code >> 1 & 3, code >> 3
                block = inflate(header + source.take(1 if kind == 1 else size))
                if block:
                    yield block
            if frame.has_checksum and (block := inflate(source.take(4))):
                yield block
        except zstandard.ZstdError as error:
            raise InvalidInput(f"{name}: damaged zstd stream ({error})") from error


class _Exactly:
    """Reads exactly as many bytes as asked for, or refuses."""

    def __init__(self, raw: BinaryIO, name: str) -> None:
        self._raw, self._name = raw, name
        self._buffer = b""

    def peek(self, n: int) -> bytes:
        """The next n bytes, fewer at the end."""
        while len(self._buffer) < n and (more := _read(self._raw, READ_BYTES, self._name)):
            self._buffer += more
        return self._buffer[:n]

    def take(self, n: int) -> bytes:
        taken = self.peek(n)
        if len(taken) < n:
            raise InvalidInput(f"{self._name}: the zstd stream ends too early")
        self._buffer = self._buffer[n:]
        return taken

    def skip(self, n: int) -> None:
        while n:
            n -= len(self.take(min(n, READ_BYTES)))


def _read(raw: BinaryIO, n: int, name: str) -> bytes:
    """At most n bytes, as soon as there are some; none at the end."""
    read: Callable[[int], bytes] = getattr(raw, "read1", raw.read)
    try:
        return read(n)
    except OSError as error:
        raise InvalidInput(f"{name}: {error.strerror or error}") from error
