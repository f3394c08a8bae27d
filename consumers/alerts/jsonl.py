"""Alerts as lines of a JSON lines file.

Rules:

* Each alert is one line, written by one system call to a file that is opened for appending. So several processes may write to one file,
  and a crash leaves whole lines only.
* A line counts as sent once it is flushed to the disk. A line that a full disk cut off is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from consumers.errors import ConfigError
from consumers.store import OutboxAlert


class JsonLinesSink:
    """Sink ``file:<path>``. Raises ConfigError when the file can't be opened for appending."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigError(f"alerts to {path}: {error.strerror}") from error

    @property
    def name(self) -> str:
        return f"file:{self._path}"

    def send(self, alerts: Sequence[OutboxAlert]) -> list[bool]:
        written = [self._append(alert.body) for alert in alerts]
        if any(written) and not self._on_disk():
            return [False] * len(alerts)
        return written

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, body: bytes) -> bool:
        line = body.replace(b"\n", b" ") + b"\n"
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            before = os.fstat(self._file).st_size
            if before and os.pread(self._file, 1, before - 1) != b"\n":
                line = b"\n" + line  # somebody's torn line: don't join it
            if os.write(self._file, line) == len(line):
                return True
            os.ftruncate(self._file, before)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def _on_disk(self) -> bool:
        try:
            os.fsync(self._file)
        except OSError as error:
            return error.errno == errno.EINVAL  # a pipe or a terminal has no disk
        return True
