"""Read files that a user names, and write files through drafts.

Rules:
* Only a regular file is read (or a link to one): a FIFO could block for ever, and a device has no end. No read exceeds a bound.
* Every problem with a file is `Refused` in one line.
* The name of a draft contains the process that writes it. A draft whose process is gone, and that was not written to for a while, is
  removed at the next write into that folder. Processes of other hosts and containers cannot be seen, so their young drafts stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets as entropy
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from consumers.errors import ConfigError, InvalidInput

MOST_BYTES = 1 << 30
ABANDONED_S = 600.0
"""How long a draft must have been left alone before it counts as abandoned."""

_DRAFT = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}\.draft")


def read(path: str | os.PathLike[str], what: str = "", most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file. what: goes before the path in a refusal. Raises InvalidInput in one line."""
    with opened(path, what) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InvalidInput(f"{_named(path, what)}: more than {most:,} bytes")
    return content


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], what: str = "") -> Iterator[BinaryIO]:
    """A regular file to read from. what: goes before the path in a refusal. Raises InvalidInput in one line."""
    shown = _named(path, what)
    try:
        # Without O_NONBLOCK the open itself would wait for the writer of a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            refuse_irregular(os.fstat(file.fileno()).st_mode, shown)
            yield file
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{shown}: {_why(error)}") from error


def read_private(path: str | os.PathLike[str], what: str, most: int) -> bytes:
    """The first `most` bytes of a file that holds a secret. Raises ConfigError where others can read it, InvalidInput as `opened`."""
    with opened(path, what) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        content = file.read(most)
    if mode & 0o077:
        raise ConfigError(f"{what} {path}: mode {mode:04o} lets other users read it; run: chmod 600 {path}")
    return content


def read_text(path: str | os.PathLike[str], what: str = "", most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file. Raises InvalidInput in one line."""
    try:
        return read(path, what, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{_named(path, what)}: not UTF-8") from error


def read_json(path: str | os.PathLike[str], what: str = "") -> Any:
    """The value of a JSON file. Raises InvalidInput in one line."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{_named(path, what)}: not JSON ({error})") from error


def check_regular(path: str | os.PathLike[str], what: str = "") -> None:
    """Refuse a path that a library of others is about to read, unless it is a regular file. Raises InvalidInput in one line."""
    shown = _named(path, what)
    try:
        refuse_irregular(os.stat(path).st_mode, shown)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"{shown}: {_why(error)}") from error


def refuse_irregular(mode: int, shown: str) -> None:
    """Raises InvalidInput for the mode of anything but a regular file."""
    if not stat.S_ISREG(mode):
        raise InvalidInput(f"{shown}: {_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a regular file")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def draft_of(path: Path) -> Path:
    """A new name beside `path` for what is being written; abandoned drafts in that folder are removed."""
    remove_abandoned(path.parent)
    return path.with_name(f".{path.name}.{os.getpid()}.{entropy.token_hex(4)}.draft")


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts in a folder whose process is gone; best effort."""
    try:
        names = os.listdir(folder)
    except OSError:
        return  # whoever writes there will say so
    for name in names:
        draft = _DRAFT.fullmatch(name)
        if draft and not _lives(int(draft[1])):
            _remove_old(folder / name)


def _remove_old(draft: Path) -> None:
    try:
        status = draft.lstat()
        if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > ABANDONED_S:
            draft.unlink()
    except OSError:
        return  # somebody else was faster, or it is not ours to remove


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # another user's
    return True


def _named(path: str | os.PathLike[str], what: str) -> str:
    return f"{what}: {path}" if what else str(path)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def create_private(path: Path, text: str) -> bool:
    """Write a new file that only its owner can read; False when something is there already. Raises OSError.

    A hard link appears whole or not at all and, unlike a rename, never replaces what another process wrote.
    """
    try:
        with _private_draft(path, text) as draft:
            os.link(draft, path)
    except FileExistsError:
        return False
    return True


def replace_private(path: Path, text: str) -> None:
    """Write a file anew that only its owner can read: whole, or it stays as it was. Raises OSError."""
    with _private_draft(path, text) as draft:
        draft.replace(path)


@contextlib.contextmanager
def _private_draft(path: Path, text: str) -> Iterator[Path]:
    """A draft beside `path` that holds the text, on the disk, readable by its owner only; it is removed at the end."""
    draft = draft_of(path)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
