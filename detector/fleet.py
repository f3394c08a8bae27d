"""The fleet test: a campaign that nothing ties together shows in how many accounts are odd for their size.

One honest account in twenty has a p-value below .05 among honest clients of its size (size_null.py), so no account can be accused by it.
But of 1,300 accounts 66 should have one, and where 172 do, a hundred too many are odd. The excess is split by what is odd about them: a
*fleet cell* is the accounts that are oddest in one measure. Honest oddity is of many kinds, so few honest accounts are in one cell.

Rules:

* How many accounts of a cell may be honest is bounded at `CONFIDENCE`: the calibration clients' share in the cell from above (Clopper and
  Pearson 1934), then as many draws as there are accounts (binomial), for all cells and levels together (Bonferroni).
* A cell is suspicious where it has at least `LEAST` accounts, of which at most `MOST_HONEST` are expected to be honest.
* The number is tested, never an account: a person confirms the members.
* A cell of more than `POPULATION` of all accounts is no campaign but another population: the baseline is out of date.
* It cannot know that the calibration clients are like today's. A new honest application makes a cell too, so a cell must be odd among
  groups of one tool as well (`campaigns.assess_group` by content). Misfits take no part: a broken release is the schema alarm's.

It does not work for in-domain theft, for a theft hidden under nine honest queries in ten, and for fleets of a few hundred accounts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.signals import GROUPED, SIGNAL_NAMES, measure_of
from detector.size_null import SizeNull

LEVELS = (0.02, 0.05, 0.1)
"""P-values up to which an account counts as odd for its size."""
CONFIDENCE = 0.95
LEAST = 20
MOST_HONEST = 0.2
POPULATION = 0.5
FEWEST_ACCOUNTS = 200
"""In a smaller fleet a count says nothing."""
_MEASURES = tuple(dict.fromkeys(measure_of(name) for name, used in zip(SIGNAL_NAMES, GROUPED, strict=True) if used))


@dataclass(frozen=True, slots=True)
class FleetCell:
    """Accounts that are odd for their size, oddest in one measure.

    measure   in which they are oddest; level: their p-values are up to it
    accounts  (k,) rows of the accounts
    expected  how many of them are expected to be honest; honest_at_most: how many are, with `CONFIDENCE`
    """

    measure: str
    level: float
    accounts: NDArray[np.int64]
    expected: float
    honest_at_most: int


def fleet_cells(p_values: NDArray[np.float64], oddest: Sequence[str], honest: SizeNull) -> list[FleetCell]:
    """Return the cells with too many odd accounts, the largest first.

    Parameters
    ----------
    p_values : (n,) float64
        Of every account of the fleet among honest clients of its size.
    oddest : Sequence of str
        The signal in which each is oddest, "" for none.
    honest : SizeNull
        Of the baseline: the calibration clients' own p-values are the null.

    Returns
    -------
    list of FleetCell
        At most one a measure.

    Notes
    -----
    Counting p-values below a level instead of adjusting each: higher criticism (Donoho and Jin 2004), with the null from calibration.
    The bound holds for accounts that are exchangeable with the calibration clients. It counts all accounts of the fleet as honest, so it
    is too large rather than too small.
    """
    n = len(p_values)
    known, signals = honest.honest_p_values()
    if n < FEWEST_ACCOUNTS or not len(known):
        return []
    measures, of_known = (np.array([measure_of(name) for name in names]) for names in (oddest, signals))
    miss = (1 - CONFIDENCE) / (2 * len(_MEASURES) * len(LEVELS))
    found = []
    for measure in _MEASURES:
        best: FleetCell | None = None
        for level in LEVELS:
            accounts = np.flatnonzero((measures == measure) & (p_values <= level))
            among = int(((of_known == measure) & (known <= level)).sum())
            expected = n * (among + 1) / (len(known) + 1)
            if not LEAST <= len(accounts) <= POPULATION * n or expected > MOST_HONEST * len(accounts):
                continue
            share = largest_share(among, len(known), miss)
            cell = FleetCell(measure, level, accounts, expected, min(len(accounts), most_of(n, share, miss)))
            if best is None or len(accounts) - cell.honest_at_most > len(best.accounts) - best.honest_at_most:
                best = cell
        if best is not None and best.honest_at_most < len(best.accounts):
            found.append(best)
    return sorted(found, key=lambda cell: (-len(cell.accounts), cell.measure))


def largest_share(successes: int, trials: int, miss: float) -> float:
    """Return the upper Clopper–Pearson bound of a share: the largest under which so few successes are not rarer than `miss`.

    >>> round(largest_share(0, 100, 0.05), 4)
    0.0295
    """
    low, high = successes / trials, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if float(_below(trials, middle, successes)[-1]) > miss else (low, middle)
    return high


def most_of(trials: int, share: float, miss: float) -> int:
    """Return the least number that a binomial count exceeds with a probability of at most `miss`.

    >>> most_of(100, 0.5, 0.05)
    58
    """
    spread = math.sqrt(trials * share * (1 - share))
    most = min(trials, int(trials * share + 12 * spread + 12))
    return int(np.searchsorted(_below(trials, share, most), 1 - miss))


def _below(trials: int, share: float, most: int) -> NDArray[np.float64]:
    """Probabilities of at most 0, 1 … `most` successes, (most + 1,)."""
    if share >= 1.0:
        return np.where(np.arange(most + 1) < trials, 0.0, 1.0)
    if share <= 0.0:
        return np.ones(most + 1)
    k = np.arange(most + 1)
    odds = np.log((trials - k[:-1]) / (k[:-1] + 1)) + math.log(share) - math.log1p(-share)
    logs = trials * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(odds)])
    return np.asarray(np.minimum(1.0, np.cumsum(np.exp(logs))))
