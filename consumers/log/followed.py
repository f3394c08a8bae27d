"""Follow a JSON lines file that another process appends to, as ``tail -F`` does.

Rules:
* The offset counts bytes. The cell is named after the path and the first line, so that a rotated file is a new cell and
  a restarted process finds its old one.
* A last line without its newline waits for the rest. It is delivered as it is once the file was rotated away.
* Lines that were unread when a file was rotated away while no process read it are not found again.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

import numpy as np

from consumers.errors import Fenced, InvalidInput, LogTruncated
from consumers.log import Poll, Records
from consumers.log.halves import NOTHING_WAITS, WaitingHalves
from consumers.log.lines import BLOCK_BYTES, KEPT_BYTES
from consumers.log.ungrouped import UngroupedLog
from consumers.paths import refuse_irregular

IDENTITY_BYTES = 4096


class FollowedFile(UngroupedLog):
    """A JSON lines file that another process appends to; it may be rotated, truncated, or not be there yet."""

    def __init__(self, path: str | os.PathLike[str], poll_interval_s: float = 0.1) -> None:
        self._path = Path(path).absolute()
        self._interval_s = poll_interval_s
        self.cell: str | None = None
        self._file: BinaryIO | None = None
        self._sought = False
        self._seek(0)

    def _seek(self, offset: int) -> None:
        self._ready: deque[tuple[int, bytes]] = deque()  # (offset after the line, line)
        self._offset = offset  # of the next record that poll returns
        self._scanned = offset  # how far the file was read
        self._tail = bytearray()  # the incomplete line before `_scanned`, cut to what a record may hold

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        deadline = time.monotonic() + timeout_s
        while True:
            poll = Poll()
            if self.cell is None:
                self._find(poll)
            elif self._sought:
                self._read(poll, max_records)
            left_s = deadline - time.monotonic()
            if poll.batches or poll.assigned or poll.revoked or left_s <= 0:
                return poll
            time.sleep(min(self._interval_s, left_s))

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        """Read on from byte `offset`. Raises LogTruncated when the file is shorter, Fenced when it was rotated."""
        self._check_cell(cell)
        wanted = offset or 0
        size = os.fstat(self._open_file.fileno()).st_size
        if wanted > size:
            raise LogTruncated(f"{cell}: {self._path.name} has {size} bytes, the store is at byte {wanted}")
        self._seek(wanted)
        self._sought = True
        return wanted

    def pause(self, cell: str) -> None:
        self._check_cell(cell)
        self._sought = False

    def position(self, cell: str) -> int:
        self._check_cell(cell)
        return self._offset

    def ends(self) -> dict[str, int]:
        """The byte after the last complete line."""
        if self.cell is None:
            return {}
        descriptor = self._open_file.fileno()
        end = os.fstat(descriptor).st_size
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            newline = os.pread(descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                return {self.cell: start + newline + 1}
            end = start
        return {self.cell: 0}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _open_file(self) -> BinaryIO:
        assert self._file is not None, "a cell has an open file"
        return self._file

    def _check_cell(self, cell: str) -> None:
        if cell != self.cell:
            raise Fenced(f"{cell}: not the file that is at {self._path} now")

    def _find(self, poll: Poll) -> None:
        """Open the file at the path; it becomes a cell once its first line can name it."""
        self.close()
        try:
            refuse_irregular(os.stat(self._path).st_mode, str(self._path))  # before the open: a FIFO would hold it up
            self._file = self._path.open("rb", buffering=0)
        except FileNotFoundError:
            return
        except OSError as error:
            raise InvalidInput(f"{self._path}: {error.strerror}") from error
        first = os.pread(self._file.fileno(), IDENTITY_BYTES, 0)
        line, newline, _ = first.partition(b"\n")
        if newline or len(first) == IDENTITY_BYTES:
            name = hashlib.sha256(os.fsencode(self._path) + b"\0" + line).hexdigest()[:16]
            self.cell = f"file:{name}"
            self._sought = False
            self._seek(0)
            poll.assigned.append(self.cell)

    def _read(self, poll: Poll, max_records: int) -> None:
        descriptor = self._open_file.fileno()
        while not self._ready:
            block = os.pread(descriptor, BLOCK_BYTES, self._scanned)
            if not block:
                if not self._rotated():
                    break
                if os.pread(descriptor, 1, self._scanned):  # the writer's last words, before it let go
                    continue
                if not self._tail:
                    poll.revoked.append(self.cell or "")
                    self.cell = None
                    break
                self._ready.append((self._scanned, bytes(self._tail)))
                self._tail.clear()
                break
            self._split(block)
        if self._ready:
            poll.batches.append(self._batch(max_records))

    def _split(self, block: bytes) -> None:
        end = self._scanned
        *lines, rest = block.split(b"\n")
        for line in lines:
            end += len(line) + 1
            self._tail += line[: KEPT_BYTES - len(self._tail)]
            self._ready.append((end, bytes(self._tail)))
            self._tail.clear()
        self._tail += rest[: KEPT_BYTES - len(self._tail)]
        self._scanned += len(block)

    def _batch(self, max_records: int) -> Records:
        values: list[bytes] = []
        offsets: list[int] = []
        for end, line in itertools.islice(self._ready, max_records):
            if line and not line.isspace():
                values.append(line)
                offsets.append(self._offset)
            self._offset = end
        for _ in range(min(max_records, len(self._ready))):
            self._ready.popleft()
        places = [f"{self._path.name}@{offset}" for offset in offsets]
        return Records(self.cell or "", values, np.array(offsets, np.int64), self._offset, places)

    def _rotated(self) -> bool:
        """Another file is at the path, or ours was cut back."""
        ours = os.fstat(self._open_file.fileno())
        if ours.st_size < self._scanned:
            self._tail.clear()
            return True
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False  # moved away, the new one is not there yet; ours may still grow
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
