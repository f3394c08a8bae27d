"""The slow twin of a client over many windows: two spans, and an archive of what left them. Plain Python, everything written out."""

from __future__ import annotations

from collections.abc import Callable

from support import naive

from detector.archive import KEPT
from detector.features import BITS, SEQUENCE
from detector.fold_arrays import ODD_KEPT, SAMPLE_KEPT, SEQUENCE_KEPT

Members = dict[int, tuple[int, int]]
"""Hash → bits, the window in which it was last seen."""


class NaiveLife:
    """One client for as long as it lives. `half_life` is in windows; what weighs less than a sixteenth is dropped."""

    def __init__(self, way: naive.Way, half_horizon_ms: int, half_life: float) -> None:
        self.way, self.half_horizon_ms, self.half_life = way, half_horizon_ms, half_life
        self.window = -1
        self.long: naive.NaiveClient = naive.NaiveClient(way)
        self.short: naive.NaiveClient | None = None
        self.archive: tuple[Members, Members, Members] = ({}, {}, {})
        self.limits = [2**48] * 3

    def ask(self, q: naive.Ask) -> None:
        window = max(q.time_ms // self.half_horizon_ms, self.window)
        turned = -1 < self.window < window
        if turned:
            self._turn(window)
        self.window = window
        spans = [self.long, *([self.short] if self.short else [])]
        for span in spans:
            span.tally(q)
        self._weights()
        if turned and any(self.archive):
            self.long.weigh(q)
        if self.long.knows(q):
            return
        bits, root = self.long.judge(q)
        for members in (self.archive[0], *([self.archive[1]] if bits & SEQUENCE else []), self.archive[2]):
            members.pop(q.hash, None)
        if not (self.archive[0] or self.archive[1]):
            self.archive[2].clear()
        self._weights()
        for span in spans:
            span.enter(q, bits, root)
        self.long.remember(q)

    def weight(self, seen: int) -> float:
        """Full for a query that was last seen in the window before the horizon's."""
        weight = float(0.5 ** (max(self.window - 2 - seen, 0) / self.half_life))
        return weight if weight >= 1 / 16 - 1e-12 else 0.0

    def _weights(self) -> None:
        self.long.faded = [
            [(bits, self.weight(seen) / (limit / 2**48)) for bits, seen in members.values()]
            for members, limit in zip(self.archive, self.limits, strict=True)
        ]

    def _turn(self, window: int) -> None:
        old, was = self.long, self.window
        gone = window > was + 1
        if gone or self.short:
            begin = was - 1 if self.short else was
            self._leave(old, begin, self.short)
            if gone and self.short:
                self._leave(self.short, was, None)
        self.window = window
        for k, members in enumerate(self.archive):
            for h in [h for h, (_, seen) in members.items() if not self.weight(seen)]:
                del members[h]
            if not members:
                self.limits[k] = 2**48
        if not (self.archive[0] or self.archive[1]):
            self.archive, self.limits = ({}, {}, {}), [2**48] * 3
        if gone:
            self.long = naive.NaiveClient(self.way)
        elif self.short:
            self.long = self.short
        self.short = None if gone else naive.NaiveClient(self.way)
        self.long.ring, self.long.reservoir, self.long.remembered = old.ring, old.reservoir, old.remembered

    def _leave(self, span: naive.NaiveClient, window: int, within: naive.NaiveClient | None) -> None:
        """Everything in the span's sets, but what a later span holds, goes into the archive."""

        def bits_of(client: naive.NaiveClient | None) -> list[dict[int, int]]:
            sample = {h: BITS["novel"] * novel for h, novel in client.sample.items()} if client else {}
            return [client.odd, client.sequence, sample] if client else [{}, {}, {}]

        full = (ODD_KEPT, SEQUENCE_KEPT, SAMPLE_KEPT)
        known, leaving, limits = any(self.archive), list[dict[int, int]](), list[int]()
        for mine, theirs, kept in zip(bits_of(span), bits_of(within), full, strict=True):
            limits.append(max(mine) if len(mine) == kept else 2**48)
            leaving.append({h: b for h, b in mine.items() if h not in theirs})
        below = [any(h < limit for h in some) for some, limit in zip(leaving, limits, strict=True)]
        if not (known or below[0] or below[1]):
            return
        for k, some in enumerate(leaving):
            for h, bits in some.items():
                self._archive(k, h, bits, window)
            self._cut(k, limits[k])

    def _archive(self, k: int, h: int, bits: int, window: int) -> None:
        before = self.archive[k].get(h)
        if before:
            sticky = BITS["novel"] | BITS["distant"]
            bits = ((before[0] | bits) & ~sticky) | (before[0] & bits & sticky)
            window = max(window, before[1])
        self.archive[k][h] = (bits, window)

    def _cut(self, k: int, limit: int) -> None:
        members = self.archive[k]
        self.limits[k] = min([self.limits[k], limit, *sorted(members)[KEPT[k] : KEPT[k] + 1]])
        for h in [h for h in members if h >= self.limits[k]]:
            del members[h]


def live(life: NaiveLife, asks: list[naive.Ask], watch: Callable[[NaiveLife], None] = lambda life: None) -> NaiveLife:
    for q in asks:
        life.ask(q)
        watch(life)
    return life
