"""Payloads: the values of consecutive records as one text and where each lies in it, without a Python object for any of them.

Rules: the text and the places do not change. An index gives one value as `bytes`, as a list would; compiled code takes the three arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

_SPACE = 32
"""No byte above it is white space."""


class Payloads(Sequence[bytes]):
    """n values in one text; they may lie apart in it, with other bytes between them.

    text    (b,) uint8, read-only
    starts  (n,) int64, where each begins; ends: where each ends
    """

    __slots__ = ("ends", "starts", "text")

    def __init__(self, text: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.text = text.view()
        self.text.setflags(write=False)  # whatever it came from, compiled code meets one type
        self.starts = starts
        self.ends = ends

    @classmethod
    def of(cls, values: Sequence[bytes]) -> Payloads:
        """Copy values into one text, one after the other; payloads are returned as they are."""
        if isinstance(values, Payloads):
            return values
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        ends = np.cumsum(lengths)
        return cls(np.frombuffer(b"".join(values), np.uint8), ends - lengths, ends)

    @classmethod
    def joined(cls, parts: Sequence[Payloads]) -> Payloads:
        """All values of several payloads, in order."""
        if len(parts) == 1:
            return parts[0]
        sizes = np.cumsum([0, *(len(part.text) for part in parts)]).tolist()
        text = np.concatenate([np.empty(0, np.uint8), *(part.text for part in parts)])
        starts, ends = (
            np.concatenate([np.empty(0, np.int64), *(getattr(part, name) + at for part, at in zip(parts, sizes, strict=False))])
            for name in ("starts", "ends")
        )  # fmt: skip
        return cls(text, starts, ends)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Payloads: ...

    def __getitem__(self, at: int | slice) -> bytes | Payloads:
        if isinstance(at, slice):
            return Payloads(self.text, self.starts[at], self.ends[at])
        return bytes(self.text[self.starts[at] : self.ends[at]])

    def __iter__(self) -> Iterator[bytes]:
        raw = self.text.data
        for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True):
            yield bytes(raw[start:end])

    def take(self, rows: NDArray[np.int64]) -> Payloads:
        """Some of the values, in the order of `rows` (k,)."""
        return Payloads(self.text, self.starts[rows], self.ends[rows])

    def filled(self) -> NDArray[np.int64]:
        """Which values (k,) hold something other than white space."""
        filled = self.ends > self.starts
        some = np.flatnonzero(filled)
        for i in some[self.text[self.starts[some]] <= _SPACE].tolist():
            filled[i] = not self[i].isspace()
        return np.flatnonzero(filled)

    def trimmed(self) -> Payloads:
        """The same without the bytes before the first and after the last value, so that these need not be copied along."""
        if not len(self):
            return Payloads(self.text[:0], self.starts, self.ends)
        first, last = int(self.starts[0]), int(self.ends[-1])
        return Payloads(self.text[first:last], self.starts - first, self.ends - first)

    def apart(self) -> Payloads:
        """The same in a text of its own where what it is a part of is twice as long: who keeps it keeps not all of that."""
        whole = self.text
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        return self if whole.nbytes <= 2 * self.text.nbytes else Payloads(self.text.copy(), self.starts, self.ends)
