"""Query logs in files: .jsonl, .jsonl.gz, .jsonl.zst, .parquet and standard input.

Rules:

* All files of one call are ONE cell, ``files:<hash of their contents>``. A log that grew keeps its cell: whoever keeps a store
  compares what was read (prefix.py) and calls `resume`. A stream that cannot be read twice (a pipe, standard input) has a random cell.
* A `resumable` log leaves a last line that was not written to its end for the next run: no newline, and no whole JSON value either.
* The offset counts lines (Parquet: rows) through all files, empty lines included; `places` tells file and line.
* Everything is streamed; see `lines.py` for the bounds.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import select
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import Fenced, InvalidInput, LogTruncated, Refused, WrongUse
from consumers.log import Poll, Records
from consumers.log.halves import NOTHING_WAITS, WaitingHalves
from consumers.log.lines import NOTHING, LinePlaces, Lines, gunzip, plain, unzstd
from consumers.log.parquet import ParquetRows
from consumers.log.payloads import Payloads
from consumers.log.poll_size import POLL_BYTES
from consumers.log.prefix import path_mark, prints_of
from consumers.log.ungrouped import UngroupedLog

COUNTED_LINES = 4096
UNKNOWN_END = 2**63 - 1
Blocks = Callable[[BinaryIO, str], Iterator[bytes]]

# What a file is, its first bytes tell. Its suffix tells it where they do not: a damaged file is said to be damaged.
SUFFIXES: dict[str, Blocks] = {".gz": gunzip, ".zst": unzstd, ".zstd": unzstd, ".jsonl": plain, ".ndjson": plain}
TEXT = (b"{", b" ", b"\t", b"\r", b"\n", b"[", b'"', b"\xef\xbb\xbf")
"""How lines of JSON begin."""
MAGIC: dict[bytes, Blocks] = {b"\x1f\x8b": gunzip, b"\x28\xb5\x2f\xfd": unzstd}
PARQUET_MAGIC = b"PAR1"


class FileLog(UngroupedLog):
    """A query log in files, in the order given; ``-`` is standard input.

    Raises WrongUse for a path that isn't there, InvalidInput for one that can't be read. `poll` raises Refused at the end of
    a truncated or damaged file, after everything that was readable was delivered.

    resumable  records carry the hashes of their lines
    partial    the last line was left for the next run
    """

    def __init__(
        self, paths: Sequence[str | os.PathLike[str]], stdin: BinaryIO | None = None, resumable: bool = False
    ) -> None:
        self._paths = [os.fspath(path) for path in paths]
        self._stdin = stdin or sys.stdin.buffer
        if not self._paths:
            raise WrongUse("no log file given")
        if self._paths.count("-") > 1:
            raise WrongUse("standard input can be read only once")
        self._sizes = [_size(path) for path in self._paths]
        self._once = any(size is None for size in self._sizes)
        self.resumable = resumable and not self._once
        self._marks = {path_mark(path): 1 for path in self._paths} if self.resumable else {}
        self.partial = False
        self.cell: str = "files:" + (secrets.token_hex(8) if self._once else _contents(self._paths))
        self._assigned = False
        self._sought = False
        self._end: int | None = None  # once counted
        self._rewind()

    def _rewind(self) -> None:
        self._offset = 0
        self._file = -1  # index of the file being read
        self._line = 0  # lines read of it
        self._raw: BinaryIO | None = None
        self._rows: Lines | ParquetRows | None = None
        self._damage: Refused | None = None
        self.finished = False

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        """Next lines, at once; only a pipe waits. `finished` tells the end from a pipe with nothing to give."""
        if not self._assigned:
            self._assigned = True
            return Poll(assigned=[self.cell])
        if not self._sought or self.finished:
            return Poll()
        if self._damage is not None:
            raise self._damage
        before = self._offset
        parts: list[Payloads] = []
        offsets: list[NDArray[np.int64]] = []
        numbers: list[NDArray[np.int64]] = []
        names: list[str] = []
        count = size = 0
        while count < max_records and size < POLL_BYTES and self._readable(0.0 if self._offset > before else timeout_s):
            try:
                lines = self._take(max_records - count)
            except Refused as damage:
                self._damage = damage
                if self._offset > before:
                    break  # first what was readable; the next poll refuses
                raise
            if not lines:
                break
            given = lines.filled()
            if len(given):
                parts.append(lines.take(given).trimmed().apart())
                offsets.append(self._offset + given)
                numbers.append(self._line - len(lines) + 1 + given)
                names.append(self._name)
                count += len(given)
                size += len(parts[-1].text)
            self._offset += len(lines)
        if self._offset == before:
            return Poll()
        values, at = Payloads.joined(parts), np.concatenate([np.empty(0, np.int64), *offsets])
        prints = prints_of(values, at.tolist()) if self.resumable else None
        files = np.repeat(np.arange(len(names)), [len(part) for part in parts])
        places = LinePlaces(names, files, np.concatenate([np.empty(0, np.int64), *numbers]))
        return Poll(batches=[Records(self.cell, values, at, self._offset, places, prints=prints, marks=self._marks)])

    def resume(self, cell: str) -> None:
        """Read on in a cell that an earlier version of this log has; before the first `poll`."""
        self.cell = cell

    @property
    def marks(self) -> Mapping[str, int]:
        """The paths, as they are stored."""
        return self._marks

    def line_of(self, offset: int) -> int:
        return offset

    def again(self) -> FileLog:
        """The same files, to be read anew."""
        return FileLog(self._paths, resumable=self.resumable)

    def scan(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64], int]]:
        """Hash all lines in a pass of its own: offsets and prints of some (not the empty ones), and how many lines that makes."""
        reader = FileLog(self._paths, resumable=True)
        at = 0
        try:
            while taken := reader._take(COUNTED_LINES):
                given = taken.filled()
                offsets = at + given
                yield offsets, prints_of(taken.take(given), offsets.tolist()), at + len(taken)
                at += len(taken)
        except Refused:
            pass  # `poll` will say so, when it gets there
        finally:
            reader.close()

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        """Read on from line `offset`. Raises LogTruncated when the files hold fewer lines."""
        self._check_cell(cell)
        wanted = offset or 0
        if wanted < self._offset:
            if self._once:
                raise LogTruncated(f"{cell}: standard input and pipes can't be read again from line {wanted}")
            self._close_file()
            self._rewind()
        while self._offset < wanted:
            skipped = len(self._take(wanted - self._offset))
            if not skipped:
                raise LogTruncated(f"{cell}: ends after line {self._offset}, the store is at line {wanted}")
            self._offset += skipped
        self._sought = True
        return wanted

    def pause(self, cell: str) -> None:
        self._check_cell(cell)
        self._sought = False

    def position(self, cell: str) -> int:
        self._check_cell(cell)
        return self._offset

    def ends(self) -> dict[str, int]:
        """Lines of all files, counted in a pass of its own; a pipe's is `UNKNOWN_END` until it was read."""
        if self._once:
            return {self.cell: self._offset if self.finished else UNKNOWN_END}
        if self._end is None:
            reader = FileLog(self._paths)
            self._end = 0
            try:
                while taken := len(reader._take(COUNTED_LINES)):
                    self._end += taken
            except Refused:
                pass  # `poll` will say so, when it gets there
            reader.close()
        return {self.cell: self._end}

    def fraction_read(self) -> float | None:
        """How much of the (compressed) bytes was read, 0 to 1, for progress bars; None for a pipe."""
        if self._once:
            return None
        if self.finished:
            return 1.0
        sizes = [size or 0 for size in self._sizes]
        here = min(self._progress(), sizes[self._file]) if self._raw is not None else 0
        return min(1.0, (sum(sizes[: max(self._file, 0)]) + here) / max(sum(sizes), 1))

    def close(self) -> None:
        self._close_file()

    @property
    def _name(self) -> str:
        path = self._paths[self._file]
        return "stdin" if path == "-" else os.path.basename(path)

    def _check_cell(self, cell: str) -> None:
        if cell != self.cell:
            raise Fenced(f"{cell}: not a cell of these files")

    def _take(self, n: int) -> Payloads:
        """Up to n lines of one file, going on to the next; none at the end of the last. Does not move the offset."""
        while True:
            if self._rows is not None:
                lines = Payloads.of(self._rows.take(n))
                if self._cut_off(lines):
                    self.partial = True
                    lines = lines[:-1]
                if lines:
                    self._line += len(lines)
                    return lines
                self._close_file()
            if self._file + 1 >= len(self._paths):
                self.finished = True
                return NOTHING
            self._file += 1
            self._line = 0
            self._rows = self._open(self._paths[self._file])

    def _cut_off(self, lines: Payloads) -> bool:
        """Whether the writer of the last file may still be at the last of these lines."""
        last = self._file + 1 == len(self._paths)
        if not (self.resumable and last and isinstance(self._rows, Lines) and self._rows.unended):
            return False
        try:
            msgspec.json.decode(lines[-1])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return True
        return False

    def _readable(self, timeout_s: float) -> bool:
        """False when a read would wait for the writer of a pipe for longer than that."""
        ready = isinstance(self._rows, Lines) and self._rows.ready
        if self._raw is None or ready or self._sizes[self._file] is not None:
            return True
        try:
            return bool(select.select([self._raw], [], [], timeout_s)[0])
        except (OSError, ValueError):
            return True  # in memory

    def _progress(self) -> int:
        if isinstance(self._rows, ParquetRows):
            return int(self._rows.fraction * (self._sizes[self._file] or 0))
        assert self._raw is not None
        return self._raw.tell()

    def _open(self, path: str) -> Lines | ParquetRows:
        if path == "-":
            raw: BinaryIO = self._stdin
        else:
            try:
                raw = open(path, "rb")  # noqa: SIM115  # closed at its end, or by close()
            except OSError as error:
                raise InvalidInput(f"{path}: {error.strerror}") from error
        self._raw = raw
        suffix = os.path.splitext(path)[1].lower()
        regular = self._sizes[self._file] is not None
        # a pipe whose name says what it is may have nothing to say yet
        first = raw.peek(4) if hasattr(raw, "peek") and (regular or suffix not in SUFFIXES) else b""
        if first.startswith(PARQUET_MAGIC) and regular:
            return ParquetRows(raw, self._name)
        blocks = next((found for magic, found in MAGIC.items() if first.startswith(magic)), None)
        if blocks is None and first.startswith(TEXT):
            blocks = plain
        if blocks is None and suffix == ".parquet":
            return ParquetRows(raw, self._name)
        return Lines((blocks or SUFFIXES.get(suffix, plain))(raw, self._name))

    def _close_file(self) -> None:
        if self._raw is not None and self._raw is not self._stdin:
            self._raw.close()
        self._raw = self._rows = None


def _size(path: str) -> int | None:
    """Bytes of a regular file; None for a stream that can be read only once."""
    if path == "-":
        return None
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise WrongUse(f"no such log file: {path}") from error
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise WrongUse(f"{path} is a folder, not a log file")
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _contents(paths: Sequence[str]) -> str:
    """16 hex digits that change with any byte of the files, and with their order."""
    whole = hashlib.sha256()
    for path in paths:
        try:
            with open(path, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise InvalidInput(f"{path}: {error.strerror}") from error
    return whole.hexdigest()[:16]
