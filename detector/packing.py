"""Packing: writes numbers as few bytes, and reads bytes that nobody vouches for.

Rules: all parts are little-endian. `Profile.to_bytes` is made of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.errors import IncompatibleProfile


def pack_hashes(hashes: NDArray[np.uint64]) -> bytes:
    """48-bit hashes, six bytes each."""
    return hashes.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :6].tobytes()


def pack_bits(bits: NDArray[np.uint32]) -> bytes:
    """Oddness bits, three bytes each."""
    return bits.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def pack_counts(counts: NDArray[np.int64]) -> bytes:
    """Type code, then values; sparse (index, value) when that is shorter. Type 1, 2, 4, 8 bytes; +16 for sparse.

    >>> pack_counts(np.array([3, 0, 0, 0, 0, 0])).hex()
    '11010003'
    """
    top = int(counts.max(initial=0))
    size = 1 if top < 1 << 8 else 2 if top < 1 << 16 else 4 if top < 1 << 32 else 8
    used = np.flatnonzero(counts)
    if 1 + len(used) * (1 + size) < len(counts) * size and len(used) < 256:
        return bytes([16 + size, len(used)]) + used.astype("u1").tobytes() + counts[used].astype(f"<u{size}").tobytes()
    return bytes([size]) + counts.astype(f"<u{size}").tobytes()


def pack_sparse(values: NDArray[np.float64]) -> bytes:
    """How many values are not 0, their indices, their values."""
    used = np.flatnonzero(values)
    return bytes([len(used)]) + used.astype("u1").tobytes() + values[used].astype("<f8").tobytes()


class PackedReader:
    """Cursor over a profile's bytes, up to their checksum of four bytes. Every read is checked against the end.

    Raises IncompatibleProfile where the bytes end too early or hold what nobody packed.
    """

    def __init__(self, blob: bytes, start: int) -> None:
        self.blob = blob
        self.at = start
        self.stop = len(blob) - 4

    def array(self, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        if self.at + size > self.stop:
            raise IncompatibleProfile("profile ends too early")
        out = np.frombuffer(self.blob, dtype, count, self.at).reshape(shape)
        self.at += size
        return out

    def flags(self, count: int) -> NDArray[np.bool_]:
        return np.unpackbits(self.array("u1", ((count + 7) // 8,)), count=count).astype(bool)

    def hashes(self, count: int) -> NDArray[np.uint64]:
        out = np.zeros((count, 8), np.uint8)
        out[:, :6] = self.array("u1", (count, 6))
        return out.reshape(-1).view("<u8").astype(np.uint64)

    def marked(self, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
        hashes = self.hashes(count)
        return hashes, self.array("u1", (count, 3)).astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)

    def counts(self, width: int) -> NDArray[np.int64]:
        (code,) = self.array("u1", (1,)).tolist()
        size = code & 15
        if size not in (1, 2, 4, 8):
            raise IncompatibleProfile("profile counts of unknown type")
        if code < 16:
            return self.array(f"<u{size}", (width,)).astype(np.int64)
        (used,) = self.array("u1", (1,)).tolist()
        index = self.array("u1", (used,)).astype(np.int64)
        out = np.zeros(width, np.int64)
        if used and index.max() >= width:
            raise IncompatibleProfile("profile counts outside the map")
        out[index] = self.array(f"<u{size}", (used,)).astype(np.int64)
        return out

    def sparse(self, width: int) -> NDArray[np.float64]:
        (used,) = self.array("u1", (1,)).tolist()
        index = self.array("u1", (used,)).astype(np.int64)
        out = np.zeros(width)
        if used and index.max() >= width:
            raise IncompatibleProfile("profile maxima outside the table")
        out[index] = self.array("<f8", (used,))
        return out

    def end(self) -> None:
        if self.at != self.stop:
            raise IncompatibleProfile("profile has trailing bytes")
