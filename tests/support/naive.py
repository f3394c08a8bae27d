"""Slow, obvious twins of the compiled kernels and of the fold: plain Python, one row at a time, no arrays.

Rules of this file
* Written from what the docstrings promise, not from the kernels' loops: sets are dicts, memory is a list of rows, counts are counted
  afresh each time. Where a promise leaves the order of a float sum open, the twin adds in column order.
* Constants that are settings of the method (how many are kept, the ladder) are imported; algorithms are not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from struct import pack, unpack

from detector.features import BITS, DISTANCE_BINS, ODD, RAW_KEPT, REGIONS, SEQUENCE
from detector.fold_arrays import (
    LADDER_FIRST,
    LADDER_GROWTH,
    LADDER_STEPS,
    ODD_KEPT,
    PARENTS,
    SAMPLE_KEPT,
    SEQUENCE_KEPT,
)
from detector.order import COLLINEAR, RETURN, STEP_REACH, VARIED_SHARE
from detector.steps import STEP_BITS, STEP_SHARE

Row = Sequence[float]
_MASK = (1 << 64) - 1


# ------------------------------------------------------------------ hashing


def siphash(message: bytes, key: bytes, compressions: int, finalisations: int) -> int:
    """SipHash-c-d (Aumasson & Bernstein 2012, §2) of a message under a 16-byte key."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v = [
        k0 ^ int.from_bytes(b"somepseu", "big"),
        k1 ^ int.from_bytes(b"dorandom", "big"),
        k0 ^ int.from_bytes(b"lygenera", "big"),
        k1 ^ int.from_bytes(b"tedbytes", "big"),
    ]
    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for at in range(0, len(padded), 8):
        word = int.from_bytes(padded[at : at + 8], "little")
        v[3] ^= word
        for _ in range(compressions):
            _sip_round(v)
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(finalisations):
        _sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _sip_round(v: list[int]) -> None:
    def left(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & _MASK

    # the figure of §2: two ARX half rounds, columns (0, 1) and (2, 3), then (2, 1) and (0, 3)
    for a, b, c, d, turn_b, turn_d in ((0, 1, 2, 3, 13, 16), (2, 1, 0, 3, 17, 21)):
        v[a] = (v[a] + v[b]) & _MASK
        v[c] = (v[c] + v[d]) & _MASK
        v[b] = left(v[b], turn_b) ^ v[a]
        v[d] = left(v[d], turn_d) ^ v[c]
        v[a] = left(v[a], 32)


def content_hash(row: Row, grain: Row, key: bytes) -> int:
    """Upper 48 bits of SipHash-1-3 of the row's codes, value over grain rounded half to even, as little-endian int64."""
    codes = [round(x / g) for x, g in zip(row, grain, strict=True)]
    return siphash(b"".join(c.to_bytes(8, "little", signed=True) for c in codes), key, 1, 3) >> 16


# ------------------------------------------------------------------ one row


def expand(row: Row, center: Row, scale: Row, levels: Sequence[int]) -> list[float]:
    """Numbers standardised and clipped to ±8, categories one-hot of height 1 / scale; an unknown category is all zero."""
    out: list[float] = []
    for x, c, s, count in zip(row, center, scale, levels, strict=True):
        if count == 0:
            out.append(max(-8.0, min(8.0, (x - c) / s)))
        else:
            out += [1.0 / s if int(x) == level else 0.0 for level in range(count)]
    return out


def project(expanded: Row, basis: Sequence[Row], spread: Row) -> tuple[list[float], float]:
    """Whitened coordinates, and the length of what the axes do not hold."""
    inside = [math.fsum(v * axes[k] for v, axes in zip(expanded, basis, strict=True)) for k in range(len(spread))]
    outside = math.fsum(v * v for v in expanded) - math.fsum(a * a for a in inside)
    return [a / s for a, s in zip(inside, spread, strict=True)], math.sqrt(max(0.0, outside))


def nearest(z: Row, reference: Sequence[Row], skip: int) -> tuple[float, int]:
    """Euclidean distance and index of the nearest reference row, the first of equals; `skip` is left out."""
    best, at = math.inf, -1
    for i, other in enumerate(reference):
        squares = math.fsum((a - b) ** 2 for a, b in zip(z, other, strict=True))
        if i != skip and squares < best:
            best, at = squares, i
    return math.sqrt(best), at


def single(x: float) -> float:
    """Nearest float32."""
    return float(unpack("<f", pack("<f", x))[0])


@dataclass
class Node:
    """A tree as objects: a leaf has no children."""

    feature: int = 0
    threshold: float = 0.0
    left: Node | None = None
    right: Node | None = None
    value: float = 0.0


def walk(tree: Node, row: Row) -> float:
    """Value of the leaf that the row falls into; left when at most the threshold."""
    if tree.left is None or tree.right is None:
        return tree.value
    return walk(tree.left if row[tree.feature] <= tree.threshold else tree.right, row)


def encode(row: Row, low: Row, step: Row, top: int) -> list[int]:
    """Steps above low, rounded half to even, within 0..top; a missing value has the code after top."""
    return [
        top + 1 if math.isnan(x) else round(max(0, min(top, (x - a) / s)))
        for x, a, s in zip(row, low, step, strict=True)
    ]


def is_multiple(x: float, of: float) -> bool:
    """Within a thousandth of a step."""
    return abs(x / of - round(x / of)) <= 1e-3


def off_lattice(row: Row, lattice: Row) -> float:
    """Share of the columns with a lattice that lie off it."""
    having = [(x, g) for x, g in zip(row, lattice, strict=True) if g > 0]
    return sum(not is_multiple(x, g) for x, g in having) / len(having) if having else 0.0


def code_distance(a: Sequence[int], b: Sequence[int], missing: int, weight: Row, category: Sequence[int]) -> float:
    """Squared standardised distance of two remembered rows; categories are equal or not, a value and none are one unit apart."""
    total = 0.0
    for x, y, w, is_category in zip(a, b, weight, category, strict=True):
        if missing in (x, y):
            total += float(x != y)
        else:
            total += w * (float(x != y) if is_category else float(x - y) ** 2)
    return total


def misfit_surprise(row: Row, flags: int, levels: Sequence[int], column_bits: Sequence[Row], kind_bits: Row) -> float:
    """Bits of what does not fit, written out. flags: 8 retyped, 16 unreadable, 32 answer."""
    total = kind_bits[0] * bool(flags & 8) + kind_bits[2] * bool(flags & 32)
    if flags & 16:
        return total + kind_bits[1]
    for j, (x, level) in enumerate(zip(row, levels, strict=True)):
        if math.isnan(x):
            total += column_bits[0][j]
        elif level and x >= level:
            total += column_bits[1][j]
        elif not level and math.isinf(x):
            total += column_bits[2][j]
    return total


# ------------------------------------------------------------------ one step explains many moves


@dataclass(frozen=True)
class Columns:
    """What the description length needs of each column."""

    code_low: Row
    code_step: Row
    lattice: Row
    grain: Row
    low: Row
    high: Row
    units: Sequence[Row]


def one_step(child: Row, parent_codes: Sequence[int], missing: int, of: Columns) -> tuple[float, float]:
    """Bits explained by one magnitude less the largest term, and the share of all bits that it explains."""
    moves: list[tuple[int, float, float, float]] = []
    for j, value in enumerate(child):
        if parent_codes[j] == missing or not math.isfinite(value):
            continue
        fuzz = of.code_step[j] / 2
        before = of.code_low[j] + parent_codes[j] * of.code_step[j]
        if of.lattice[j] > 0:
            # the parent's value is known exactly when only one lattice point is near enough to be it
            snapped = round(before / of.lattice[j]) * of.lattice[j]
            if abs(snapped - before) <= fuzz:
                before, fuzz = snapped, 0.0
        size = abs(value - before)
        at_a_bound = value <= of.low[j] or value >= of.high[j]
        if size <= max(fuzz, of.grain[j]) or at_a_bound:
            continue
        rounding = of.lattice[j] if of.lattice[j] > 0 and is_multiple(value, of.lattice[j]) else of.grain[j]
        tolerance = 0.01 * size + fuzz + rounding / 2
        worth = math.log2(size / (2 * tolerance))
        if worth > 0:
            moves.append((j, size, tolerance, worth))
    if len(moves) < 3:
        return 0.0, 0.0
    total = sum(worth for *_, worth in moves)
    best = (0.0, 0.0)
    for unit in of.units:
        magnitude = _weighted_median([(size / unit[j], worth) for j, size, _, worth in moves])
        explained = [w for j, size, slack, w in moves if abs(size / unit[j] - magnitude) <= slack / unit[j]]
        bits = sum(explained) - max(explained, default=0.0)
        if bits > best[0]:
            best = (bits, sum(explained) / total)
    return best


def _weighted_median(weighted: Iterable[tuple[float, float]]) -> float:
    ordered = sorted(weighted)
    half, total = 0.0, 0.0
    for _, weight in weighted:
        total += weight
    for value, weight in ordered:
        half += weight
        if half >= 0.5 * total:
            return value
    return ordered[0][0]


# ------------------------------------------------------------------ the fold


@dataclass(frozen=True)
class Ask:
    """One measured query."""

    hash: int
    bits: int
    misfit: bool
    region: int
    distance_bin: int
    label: int
    time_ms: int
    codes: tuple[int, ...]
    raw: tuple[float, ...]


@dataclass(frozen=True)
class Mass:
    """One signal, as the fold needs it."""

    need: int
    sequence: bool
    novel_base: bool
    dense: bool
    allowance: float
    fusing_scale: float


@dataclass(frozen=True)
class Way:
    """Everything that is the same for all clients of a map."""

    masses: Sequence[Mass]
    horizon_distinct: float
    missing: int
    columns: Columns
    weight: Row
    category: Sequence[int]
    near: float
    common_value: Row
    agreement_bits: tuple[Row, Row]
    agreement_level: float
    top: Row
    wide: bool
    classes: int
    ring: int
    reservoir: int
    raw_step: Row


def estimate(hashes: Iterable[int], kept: int) -> float:
    """Distinct elements behind a bottom-k set: those seen while there are fewer than k, else (k − 1) / U of the k-th."""
    ordered = sorted(hashes)
    if len(ordered) < kept:
        return float(len(ordered))
    return (kept - 1) / ((ordered[-1] + 1) / 2**48)


@dataclass
class NaiveClient:
    """One client, everything written out."""

    way: Way
    queries: int = 0
    times: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    regions: list[int] = field(default_factory=lambda: [0] * REGIONS)
    distances: list[int] = field(default_factory=lambda: [0] * DISTANCE_BINS)
    sample: dict[int, bool] = field(default_factory=dict)
    misfits: dict[int, bool] = field(default_factory=dict)
    odd: dict[int, int] = field(default_factory=dict)
    sequence: dict[int, int] = field(default_factory=dict)
    maxima: list[float] = field(default_factory=list)
    passages: list[tuple[int, int]] = field(default_factory=list)
    ring: list[Ask] = field(default_factory=list)
    reservoir: list[Ask] = field(default_factory=list)
    remembered: int = 0
    faded: Sequence[Sequence[tuple[int, float]]] = ((), (), ())
    """Beyond the horizon: (bits, weight) of odd queries, of those that are odd by what came before them, of all."""

    def __post_init__(self) -> None:
        self.classes = [0] * self.way.classes
        self.maxima = [0.0] * len(self.way.masses)

    def ask(self, q: Ask) -> None:
        self.tally(q)
        if not self.knows(q):
            self.enter(q, *self.judge(q))
            self.remember(q)

    def knows(self, q: Ask) -> bool:
        return any(q.hash == other.hash for other in (*self.ring, *self.reservoir))

    def judge(self, q: Ask) -> tuple[int, bool]:
        """All its bits, and whether it is a root, by what came before it."""
        readable = q.region >= 0
        parents = (
            sorted((*self.ring, *self.reservoir), key=functools.partial(self._apart, q))[:PARENTS] if readable else []
        )
        bits = q.bits
        far = not parents or self._is_far(q, parents[0])
        root = far and not (readable and self._derives(q))
        if far:
            bits |= BITS["distant"]
        if root:
            bits |= BITS["novel"]
        if not far and q.label >= 0 and parents[0].label >= 0 and parents[0].label != q.label:
            bits |= BITS["flipped"]
        if self._is_stepped(q, parents):
            bits |= BITS["stepped"]
        if readable and self._goes_along(q):
            bits |= BITS["collinear"]
        return bits, root

    def enter(self, q: Ask, bits: int, root: bool) -> None:
        """Put it into the sets, and weigh anew when a marked one grew."""
        self.sample[q.hash] = self.sample.get(q.hash, True) and root
        self.misfits[q.hash] = self.misfits.get(q.hash, False) or q.misfit
        _keep_smallest(self.sample, SAMPLE_KEPT)
        _keep_smallest(self.misfits, SAMPLE_KEPT)
        before = (dict(self.odd), dict(self.sequence))
        if bits & ODD:
            _mark(self.odd, ODD_KEPT, q.hash, bits)
        if bits & SEQUENCE:
            _mark(self.sequence, SEQUENCE_KEPT, q.hash, bits)
        if before != (self.odd, self.sequence):
            self.weigh(q)

    # ------------------------------------------------------------------ parts of it

    def tally(self, q: Ask) -> None:
        self.queries += 1
        self.times.append(q.time_ms)
        if q.label >= 0:
            self.classes[min(q.label, len(self.classes) - 1)] += 1
        if q.region < 0:
            return  # an unreadable input has no place in the input space
        self.regions[q.region] += 1
        self.distances[q.distance_bin] += 1

    def _apart(self, q: Ask, other: Ask) -> float:
        return code_distance(q.codes, other.codes, self.way.missing, self.way.weight, self.way.category)

    def _is_far(self, q: Ask, parent: Ask) -> bool:
        """Farther than half a usual neighbour distance, and more than 5 % of the columns differ (projections always do)."""
        changed = sum(a != b for a, b in zip(q.codes, parent.codes, strict=True))
        return self._apart(q, parent) > self.way.near**2 and (self.way.wide or changed > VARIED_SHARE * len(q.codes))

    def _columns_of(self, q: Ask) -> Sequence[int]:
        """A row column by column; wide inputs in 65,535 steps of the reference's range."""
        if not self.way.wide:
            return q.codes
        codes = zip(q.raw, self.way.columns.low, self.way.raw_step, strict=True)
        return [65535 if math.isnan(x) else round(max(0, min(65535, (x - a) / s))) for x, a, s in codes]

    def _by_columns(self) -> list[Ask]:
        """The rows that are remembered column by column: the last few of wide inputs, otherwise all."""
        return self.recent()[-RAW_KEPT:] if self.way.wide else [*self.ring, *self.reservoir]

    def _derives(self, q: Ask) -> bool:
        """Shares improbable values with a remembered row. A bound surprises nobody."""
        columns = self.way.columns
        surprise = [
            (usual if value == mode else other) if low < value < top else 0.0
            for value, low, top, mode, usual, other in zip(
                q.raw, columns.low, self.way.top, self.way.common_value, *self.way.agreement_bits, strict=True
            )
        ]
        mine = self._columns_of(q)
        return any(
            sum(w for a, b, w in zip(mine, self._columns_of(other), surprise, strict=True) if a == b)
            > self.way.agreement_level
            for other in self._by_columns()
        )

    def _is_stepped(self, q: Ask, parents: Sequence[Ask]) -> bool:
        """From a parent that is near, though not so near as to be no stranger."""
        reach = (STEP_REACH * self.way.near) ** 2
        missing = 65535 if self.way.wide else self.way.missing
        known = {other.hash for other in self._by_columns()}
        return any(
            _convinces(one_step(q.raw, self._columns_of(other), missing, self.way.columns))
            for other in parents
            if other.hash in known and self._apart(q, other) <= reach
        )

    def _goes_along(self, q: Ask) -> bool:
        """Moves along the line of the last move, in two columns at least, and not back to where it came from."""
        if self.remembered < 2:
            return False
        two, one = self.recent()[-2:]
        if sum(a != b for a, b in zip(q.codes, one.codes, strict=True)) < 2:
            return False
        first = [a - b for a, b in zip(q.codes, one.codes, strict=True)]
        second = [a - b for a, b in zip(one.codes, two.codes, strict=True)]
        dot, n1, n2, back = 0.0, 0.0, 0.0, 0.0
        missing = [self.way.missing in (a, b, c) for a, b, c in zip(q.codes, one.codes, two.codes, strict=True)]
        skip = [bool(c) or gone for c, gone in zip(self.way.category, missing, strict=True)]
        for a, b, w, is_skipped in zip(first, second, self.way.weight, skip, strict=True):
            if not is_skipped:
                dot, n1, n2, back = dot + w * a * b, n1 + w * a * a, n2 + w * b * b, back + w * (a + b) ** 2
        returned = back < RETURN * n1
        return n1 > 0 and n2 > 0 and not returned and abs(dot) > COLLINEAR * math.sqrt(n1 * n2)

    def weigh(self, q: Ask) -> None:
        """SignalTable as they are now; maxima are what they ever were."""
        distinct = min(estimate(self.sample, SAMPLE_KEPT), float(self.queries)) if self.sample else 0.0
        roots = distinct * sum(self.sample.values()) / len(self.sample) if self.sample else 0.0
        distinct += sum(weight for _, weight in self.faded[2])
        roots += sum(weight for bits, weight in self.faded[2] if bits & BITS["novel"])
        fade = min(1.0, self.way.horizon_distinct / max(distinct, 1.0))
        fused = 0.0
        for i, m in enumerate(self.way.masses):
            members, kept = (self.sequence, SEQUENCE_KEPT) if m.sequence else (self.odd, ODD_KEPT)
            having = sum((bits & m.need) == m.need for bits in members.values())
            count = estimate(members, kept) / len(members) * having if members else 0.0
            count += sum(weight for bits, weight in self.faded[m.sequence] if (bits & m.need) == m.need)
            base = roots if m.novel_base else distinct
            count = min(count, base)
            excess = max(0.0, count - m.allowance * base)
            mass = fade * (excess * excess / max(base, 1.0) if m.dense else excess)
            self.maxima[i] = max(self.maxima[i], mass)
            if m.fusing_scale > 0:
                fused = max(fused, self.maxima[i] / m.fusing_scale)
        while len(self.passages) < LADDER_STEPS and fused >= LADDER_FIRST * LADDER_GROWTH ** len(self.passages):
            self.passages.append((q.time_ms, self.queries))

    def recent(self) -> list[Ask]:
        """The last remembered rows, oldest first."""
        at = self.remembered % self.way.ring
        return self.ring[at:] + self.ring[:at] if len(self.ring) == self.way.ring else self.ring

    def remember(self, q: Ask) -> None:
        """An unreadable input has no place. The newest row takes the oldest one's place; of those that leave, the smallest hashes stay."""
        if q.region < 0:
            return
        if len(self.ring) < self.way.ring:
            self.ring.append(q)
        else:
            at = self.remembered % self.way.ring
            gone, self.ring[at] = self.ring[at], q
            if len(self.reservoir) < self.way.reservoir:
                self.reservoir.append(gone)
            else:
                worst = max(range(len(self.reservoir)), key=lambda a: self.reservoir[a].hash)
                if gone.hash < self.reservoir[worst].hash:
                    self.reservoir[worst] = gone
        self.remembered += 1


def _convinces(result: tuple[float, float]) -> bool:
    return result[0] >= STEP_BITS and result[1] >= STEP_SHARE


def _mark(members: dict[int, int], kept: int, h: int, bits: int) -> None:
    """A member seen again gains bits, but stays a root, and far, only if it is so again."""
    old = members.get(h)
    if old is not None:
        sticky = BITS["novel"] | BITS["distant"]
        bits = ((old | bits) & ~sticky) | (old & bits & sticky)
    members[h] = bits
    _keep_smallest(members, kept)


def _keep_smallest(members: dict[int, bool] | dict[int, int], kept: int) -> None:
    while len(members) > kept:
        del members[max(members)]
