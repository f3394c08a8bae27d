"""Recognise a log in files that grew: a few numbers describe what was read of it, and every commit stores them.

Rules:
* The print of a line is a hash of its position and its bytes, as decompressed. Prints add up, so however polls cut a log, its sums are
  the same.
* Lines 0, 1–2, 3–6, 7–14, … are the parts. Each has one sum, so a log of a billion lines has thirty. Empty lines count nothing.
* The sums go into the counters of the cell, in the commit that moves its offset, so a process that is killed leaves both or neither.
* Paths are remembered as hashes. If a known path begins with other content, it is another log under an old name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, MutableMapping, Sequence

import numpy as np
from numpy.typing import NDArray

from consumers.log import Records

PART, PATH = "part:", "path:"
BITS = 48
"""Exact in every store."""
_MASK = np.uint64((1 << BITS) - 1)


def prints_of(values: Sequence[bytes], offsets: Sequence[int]) -> NDArray[np.uint64]:
    """Hash each line with its place (n,)."""
    digests = b"".join(
        hashlib.blake2b(value, digest_size=8, salt=offset.to_bytes(8, "little")).digest()
        for value, offset in zip(values, offsets, strict=True)
    )
    return np.frombuffer(digests, np.uint64) & _MASK


def path_mark(path: str) -> str:
    """Name a path in a cell's counters."""
    return PATH + hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=8).hexdigest()


def carried(name: str) -> bool:
    """Tell marks of this file from what a cell counts."""
    return name.startswith((PART, PATH))


def note(marks: MutableMapping[str, int], records: Records) -> None:
    """Add records to the sums, and whatever else is stored of their log."""
    if records.prints is not None:
        add(marks, records.offsets, records.prints)
        for name, value in records.marks.items():
            marks[name] = value


def add(marks: MutableMapping[str, int], offsets: NDArray[np.int64], prints: NDArray[np.uint64]) -> None:
    """Add lines to the sums."""
    parts = np.frexp((offsets + 1).astype(np.float64))[1] - 1
    for part in np.unique(parts).tolist():
        total = int(np.sum(prints[parts == part], dtype=np.uint64)) + marks.get(f"{PART}{part}", 0)
        marks[f"{PART}{part}"] = total & int(_MASK)


def same(ours: Mapping[str, int], theirs: Mapping[str, int]) -> bool:
    """Tell whether two prefixes of the same number of lines are the same."""
    names = {name for name in (*ours, *theirs) if name.startswith(PART)}
    return all(ours.get(name, 0) == theirs.get(name, 0) for name in names)


def overlap(ours: Mapping[str, int], our_lines: int, theirs: Mapping[str, int], their_lines: int) -> bool:
    """Tell whether two logs have a whole part in common."""
    whole = (min(our_lines, their_lines) + 1).bit_length() - 1
    return any(0 != ours.get(f"{PART}{i}", 0) == theirs.get(f"{PART}{i}", 0) for i in range(whole))
