"""Templates: the fixed part of a client's texts, and whether what stands beside it is foreign.

A theft of a language model often is one fixed prompt around everything, dealt to accounts that share nothing else. Of each text three
hashes are taken: of its first and of its last four words, and the smallest of all runs of four words (min-hash, Broder 1997). A template
gives all texts that are made with it the same hash, whatever fills its gaps. A client keeps the `KEPT` hashes that recur most
(space-saving, Metwally et al. 2005), and for each the sums of a regression: how foreign a text is, on how long it is. A template adds the
same to every text, so it moves the line and leaves its slope: the slope says whether what fills the gaps is foreign.

Rules:

* Honest applications have a template each, so a template is no evidence. It ties accounts only where what fills it is more foreign than
  with nearly all honest clients (`TemplateSketch.foreign`), and then proposes a group.
* Texts are counted one by one in log order: a sketch does not depend on how the log was cut into polls.
* The hashes have no secret key, because a baseline must hold the same ones of its calibration clients. Whoever stores one seals it. No
  text is kept, nor a word of one.
* Bounded: `KEPT` + 1 rows of `COLUMNS` numbers for each client. A template of a fifth of a client's texts is kept for certain.

It does not work where each account has a wording of its own, where all fillings have one length, or where they are of the model's own
domain: those are what an honest application sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector.patches import UNKNOWN
from detector.text import DOMAIN, LENGTH

KEPT = 16
COLUMNS = 7
"""Of a row of a sketch: texts that may have been missed, texts, and the sums of x, x², y, y² and x y over them."""
_MISSED, _TEXTS, _X, _XX, _Y, _YY, _XY = range(COLUMNS)
LEAST, SHARE = 5, 0.05
"""A template is a hash that at least this number of the client's texts have, and at least this share of them."""
SPREAD = 5.0
"""Standard deviation of the lengths of a template's texts, in bytes, below which they show no slope."""
FOREIGN = 0.95
"""Share of honest clients whose slopes are all below the level of foreign fillings."""
FEWEST_HONEST = 20
NO_SLOPE = -1e30
"""Stands for the slope of a client whose texts show none."""


@nb.njit(cache=True, nogil=True)
def note_texts(who, hashes, x, y, keys, sums):  # type: ignore[no-untyped-def]
    """Add texts to the sketches of their clients, in order. A text without hashes is not counted.

    who (n,) int; hashes (n, TEMPLATE_HASHES) uint64, 0: none; x, y (n,) float64, length and foreignness; keys (g, KEPT) uint64, 0: free;
    sums (g, KEPT + 1, COLUMNS) float64, the last row of all texts.
    """
    for i in range(who.shape[0]):
        if hashes[i, 0] == np.uint64(0):
            continue
        k = who[i]
        _add(sums[k, KEPT], x[i], y[i])
        for j in range(hashes.shape[1]):
            hashed = hashes[i, j]
            place, at, least = -1, 0, np.inf
            for p in range(KEPT):
                if keys[k, p] == hashed:
                    place = p
                    break
                count = sums[k, p, _MISSED] + sums[k, p, _TEXTS]
                if count < least:
                    at, least = p, count
            if place < 0:
                place = at
                keys[k, place] = hashed
                sums[k, place] = 0.0
                sums[k, place, _MISSED] = least
            _add(sums[k, place], x[i], y[i])


@nb.njit(inline="always")
def _add(row, x, y):  # type: ignore[no-untyped-def]
    row[_TEXTS] += 1.0
    row[_X] += x
    row[_XX] += x * x
    row[_Y] += y
    row[_YY] += y * y
    row[_XY] += x * y


def lengths_and_foreignness(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the slopes are of, (n,) each: bytes of a text, and the score of the domain discriminator as a sum instead of a mean.

    rows (n, d) as of the text encoder
    """
    size = np.expm1(rows[:, LENGTH])
    return size, rows[:, DOMAIN] * np.sqrt(size)


def slopes(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much more foreign a text gets with each byte, less one standard error, (r,); `NO_SLOPE` where texts do not show it.

    sums (r, COLUMNS)

    >>> x = np.arange(0.0, 100.0, 10.0)
    >>> sums = np.array([[0, 10, x.sum(), (x * x).sum(), x.sum() / 2, (x * x).sum() / 4, (x * x).sum() / 2]])
    >>> slopes(sums).round(6).tolist()
    [0.5]
    """
    _, n, x, xx, y, yy, xy = sums.T
    count = np.maximum(n, 1.0)
    a, b, c = xx - x * x / count, xy - x * y / count, yy - y * y / count
    shown = (n >= LEAST) & (a >= SPREAD**2 * n)
    a = np.where(shown, a, 1.0)
    error = np.sqrt(np.maximum(c - b * b / a, 0.0) / np.maximum(n - 2.0, 1.0) / a)
    return np.where(shown, b / a - error, NO_SLOPE)


@dataclass(slots=True, eq=False)
class TemplateSketch:
    """What recurs in the texts of one client.

    keys (KEPT,) uint64 hashes, 0: free; sums (KEPT + 1, COLUMNS) float64, of each and of all texts
    """

    keys: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(KEPT, np.uint64))
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((KEPT + 1, COLUMNS)))
    BYTES: ClassVar[int] = 8 * (KEPT + (KEPT + 1) * COLUMNS)

    @property
    def texts(self) -> int:
        """Texts that were counted: those of four words or more."""
        return int(self.sums[KEPT, _TEXTS])

    @property
    def recurring(self) -> NDArray[np.int64]:
        """Places of the templates, those of most texts first."""
        n = self.sums[:KEPT, _TEXTS]
        found = np.flatnonzero(n >= max(LEAST, SHARE * self.texts))
        return found[np.lexsort((self.keys[found], -n[found]))]

    @property
    def templates(self) -> list[int]:
        """Hashes of the templates."""
        return [int(key) for key in self.keys[self.recurring]]

    def foreign(self, level: float) -> list[int]:
        """Hashes of those templates that are filled with what is more foreign than `level` (`level_of`)."""
        places = self.recurring
        return [int(key) for key in self.keys[places[slopes(self.sums[places]) > level]]]

    @property
    def largest_slope(self) -> float:
        """Of the templates and of all texts."""
        return float(slopes(self.sums[np.append(self.recurring, KEPT)]).max())

    @property
    def shared(self) -> tuple[int, int]:
        """How many texts have the commonest template, and of how many."""
        places = self.recurring
        return (int(self.sums[places[0], _TEXTS]) if len(places) else 0), self.texts

    def to_bytes(self) -> bytes:
        return self.keys.astype("<u8").tobytes() + self.sums.astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, blob: bytes) -> TemplateSketch:
        """Raises ValueError for anything but what `to_bytes` makes."""
        if len(blob) != cls.BYTES:
            raise ValueError("a sketch of templates of another size")
        keys, sums = np.frombuffer(blob, "<u8", KEPT), np.frombuffer(blob, "<f8", offset=8 * KEPT)
        if not np.isfinite(sums).all():
            raise ValueError("a sketch of templates with what is no number")
        return cls(keys.astype(np.uint64), sums.astype(np.float64).reshape(KEPT + 1, COLUMNS))


class Sketches:
    """The sketches of several clients, side by side, while their texts are counted."""

    def __init__(self, known: Sequence[TemplateSketch]) -> None:
        self._keys = np.array([one.keys for one in known], np.uint64).reshape(-1, KEPT)
        self._sums = np.array([one.sums for one in known]).reshape(-1, KEPT + 1, COLUMNS)

    def note(self, who: NDArray[np.int32], hashes: NDArray[np.uint64], rows: NDArray[np.float64]) -> None:
        """Add texts in log order. who (n,) whose; hashes (n, TEMPLATE_HASHES), (n, 0): no texts; rows (n, d) as of the text encoder."""
        if hashes.any():
            note_texts(who, np.ascontiguousarray(hashes), *lengths_and_foreignness(rows), self._keys, self._sums)

    def __getitem__(self, client: int) -> TemplateSketch:
        return TemplateSketch(self._keys[client], self._sums[client])


def together(sketches: Iterable[TemplateSketch]) -> TemplateSketch | None:
    """Return the sketch of one client from parts of its texts; None without any."""
    known = list(sketches)
    if len(known) < 2:
        return known[0] if known else None
    of: dict[int, NDArray[np.float64]] = {}
    for one in known:
        for key, sums in zip(one.keys.tolist(), one.sums[:KEPT], strict=True):
            if key:
                of[key] = of[key] + sums if key in of else sums
    most = sorted(of, key=lambda key: (-of[key][_TEXTS], key))[:KEPT]
    whole = TemplateSketch()
    whole.keys[: len(most)] = most
    for place, key in enumerate(most):
        whole.sums[place] = of[key]
    whole.sums[KEPT] = np.sum([one.sums[KEPT] for one in known], axis=0)
    return whole


@dataclass(frozen=True, slots=True, eq=False)
class HonestTemplates:
    """What the calibration clients of a model of texts have; no rows: of nobody.

    hashes (g, KEPT) int64, templates of each, 0: no more, `UNKNOWN`: not known; slopes (g,) float64, the largest of each
    """

    hashes: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, KEPT), np.int64))
    slopes: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @classmethod
    def of(cls, clients: Sequence[TemplateSketch | None]) -> HonestTemplates:
        """None: a client of which they are not known."""
        hashes, largest = np.zeros((len(clients), KEPT), np.int64), np.full(len(clients), NO_SLOPE)
        for i, one in enumerate(clients):
            if one is None:
                hashes[i] = UNKNOWN
            else:
                mine = one.templates
                hashes[i, : len(mine)], largest[i] = mine, one.largest_slope
        return cls(hashes, largest)

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def level(self) -> float:
        """Slope above which fillings count as foreign; inf, so that nothing does, where too few honest clients show one."""
        known = self.slopes[(self.hashes[:, 0] != UNKNOWN) & (self.slopes > NO_SLOPE)]
        return float(np.quantile(known, FOREIGN)) if len(known) >= FEWEST_HONEST else np.inf
