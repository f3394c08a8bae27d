"""Format 6 of a profile's bytes: its head, and what its parts are called.

The parts, little-endian, in this order: head; counts by class, region and distance; the sample's hashes and flags; the odd set; the
sequence set; running maxima; first passages; remembered rows; the archive; a checksum over all of it. `profile_writer.py` writes them,
`profile_reader.py` reads them.

Rules:

* A list of counts is a type code and its values; sparse (indices, values) where that is shorter.
* The sample's hashes are left out while they are exactly those of the remembered rows, as they are for every client with few queries.
* Answers and codes of remembered rows lie column by column, each in as many bits as its values differ by; codes lie row by row as they
  are where that is shorter, as it is for columns with many decimals.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from detector.errors import IncompatibleProfile
from detector.fold_arrays import LADDER_STEPS, ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT

FORMAT: Final = 6
MAGIC: Final = b"QP"
HEAD: Final = struct.Struct("<2sB8s8siqqqHHHBIHBd")
CHECKSUM_BYTES: Final = 4
HAS_MEMORY, HAS_ARCHIVE, SAMPLE_REMEMBERED, BY_COLUMN = 1, 2, 4, 8
"""Bits of the head that say what follows, and how."""
LONGEST_AGO: Final = 0xFFFF
HASH_BYTES, BIT_BYTES, LIMIT_BYTES, AGO_BYTES = 6, 3, 7, 2
LABEL_BYTES: Final = 2
"""Of the least answer in a column of answers; the least code takes as many bytes as a code."""
_MAP, _CALIBRATION = slice(3, 11), slice(11, 19)


class ProfileHead(NamedTuple):
    """The head of a profile's bytes, checked."""

    map_id: str
    calibration_version: str
    window: int
    queries: int
    first_ms: int
    last_ms: int
    n_sample: int
    n_odd: int
    n_sequence: int
    n_passage: int
    ring_n: int
    reservoir_n: int
    has: int
    decay: float

    @property
    def has_memory(self) -> bool:
        return bool(self.has & HAS_MEMORY)

    @property
    def has_archive(self) -> bool:
        return bool(self.has & HAS_ARCHIVE)


def read_head(blob: bytes, older: Sequence[int]) -> ProfileHead | None:
    """Check the bytes of a profile and read their head; None for those of an older format. Raises IncompatibleProfile."""
    if len(blob) < 7 or blob[:2] != MAGIC or zlib.crc32(blob[:-4]) != int.from_bytes(blob[-4:], "little"):
        raise IncompatibleProfile("not a profile, or damaged")
    version = blob[2]
    if version in older:
        return None
    if version != FORMAT:
        raise IncompatibleProfile(f"profile format {version}, this version reads {FORMAT}")
    if len(blob) < HEAD.size + CHECKSUM_BYTES:
        raise IncompatibleProfile("not a profile, or damaged")
    found = HEAD.unpack_from(blob)
    head = ProfileHead(blob[_MAP].hex(), blob[_CALIBRATION].hex(), *found[4:])
    if (
        head.n_sample > SAMPLE_KEPT
        or head.n_odd > ODD_KEPT
        or head.n_sequence > SEQUENCE_KEPT
        or head.n_passage > LADDER_STEPS
        or not 0.0 <= head.decay < 1.0
    ):
        raise IncompatibleProfile("profile holds more than this map's profiles do")
    return head
