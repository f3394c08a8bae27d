"""Write a file completely or not at all: the content goes to a draft beside it, and the draft then takes the name.

Rules:
* The draft is removed, whether the write succeeded or not. A draft of a process that was killed is removed at the next write (`paths`).
* Two processes that write the same file use different drafts. The later one wins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from consumers import paths
from consumers.errors import ConfigError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The draft to write to; it takes the name at the end. Raises ConfigError in one line where the file can't be written."""
    draft = paths.draft_of(path)
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
