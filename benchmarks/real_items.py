"""Pools of which honest clients ask for real items only, and never for blends of them.

Rules of the file:

* `HonestPools.items` makes up a blend of two neighbours wherever an item comes up again. A client that scores a whole table asks for more
  items than a small pool holds, so most of what it sends is then blended: an artefact, for a thief's `mixup` sends blends too.
* Here another item of the same class comes instead, one that this client has not sent yet. Where none is left, the item is sent again: a
  pool that is too small makes a client repeat itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detector.simulation.domain import HonestPools, Rows


@dataclass(frozen=True, slots=True)
class RealItems(HonestPools):
    """Pools without blends; `freshen` is not asked."""

    def items(self, n: int, rng: np.random.Generator, mix: Rows | None = None, repeats: float = 0.0) -> Rows:
        """(n, d) items of the pool with class mix `mix` (c,).

        One that comes up again is sent again with probability `repeats`, else an unsent one of its class is, if there is one.
        """
        odds = np.ones(len(self.pool)) if mix is None else np.maximum(mix[self.labels], 1e-12)
        picks = rng.choice(len(self.pool), size=n, p=odds / odds.sum())
        first = np.unique(picks, return_index=True)[1]
        again = np.ones(n, dtype=bool)
        again[first] = False
        fresh = np.flatnonzero(again & (rng.random(n) >= repeats))
        unsent = rng.permutation(np.setdiff1d(np.arange(len(self.pool)), picks))
        for label in np.unique(self.labels[picks[fresh]]):
            wanting = fresh[self.labels[picks[fresh]] == label]
            others = unsent[self.labels[unsent] == label][: len(wanting)]
            picks[wanting[: len(others)]] = others
        return self.domain.emit(self.pool[picks])
