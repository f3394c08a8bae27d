"""A file appears under its name whole or not at all: what is written goes to a draft beside it first.

The draft is gone afterwards, whatever happened. Two processes that write the same file do not meet in one draft: the later one wins.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from consumers.errors import Refused


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The draft to write to; it takes the name at the end. Raises Refused in one line where the file can't be written."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
