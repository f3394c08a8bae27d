"""Hand-overs: accounts that are odd for their size, of which one starts when another stops, again and again.

A thief that burns one account after the other leaves a *hand-over* at each change: the next account asks its first query within about the
time that passes between two queries. By chance that happens too. So a chain of hand-overs is compared with how many chains of that length
and of such gaps would be there if accounts began independently of each other.

Rules:

* An account follows another if it begins within one mean interval of the other's queries after the other's last one.
* The expected number of chance chains is the number of accounts, times the expected number of chance followers for each hand-over. A chain
  is told of if that is at most `CHANCE`.
* Chains have no account in common; the least expected comes first.
* It proposes and accuses nobody: jobs that run one after the other, and clients whose ids change, hand over as well. The group must be odd
  among groups of one tool too (`campaigns.assess_group` by content).

It does not work where accounts overlap in time, wait before the next one starts, or are not odd for their size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANCE = 0.001
FEWEST = 4
FEWEST_QUERIES = 5
"""Of an account that hands over: the interval of fewer says nothing."""
MOST = 5_000
"""Among more odd accounts everybody follows somebody."""


def handover_chains(
    starts: NDArray[np.float64], stops: NDArray[np.float64], queries: NDArray[np.int64]
) -> list[list[int]]:
    """Return the chains of hand-overs, the least expected first.

    Parameters
    ----------
    starts, stops : (n,) float64
        Time of the first and the last query of each account, in one unit.
    queries : (n,) int64
        How many queries each had sent.

    Returns
    -------
    list of list of int
        Rows of the accounts of each chain, in the order of time.

    Examples
    --------
    >>> starts = np.arange(6) * 10.0
    >>> handover_chains(starts, starts + 9.95, np.full(6, 100))
    [[0, 1, 2, 3, 4, 5]]
    >>> handover_chains(starts, starts + 5.0, np.full(6, 100))
    []
    """
    n = len(starts)
    span = float(stops.max() - starts.min()) if n else 0.0
    if not FEWEST <= n <= MOST or span <= 0:
        return []
    interval = (stops - starts) / np.maximum(queries - 1, 1)
    follower = np.log(np.maximum(-np.expm1(-n * interval / span), np.finfo(np.float64).tiny))
    may = (queries >= FEWEST_QUERIES) & (interval > 0)
    expected, before = np.full(n, np.log(n)), np.full(n, -1)
    for row in np.argsort(starts, kind="stable").tolist():
        gap = starts[row] - stops
        earlier = np.flatnonzero(may & (gap >= 0) & (gap <= interval))
        if len(earlier):
            best = int(earlier[np.argmin((expected + follower)[earlier])])
            if expected[best] + follower[best] < expected[row]:
                expected[row], before[row] = expected[best] + follower[best], best
    found: list[list[int]] = []
    taken: set[int] = set()
    for last in np.argsort(expected, kind="stable").tolist():
        if expected[last] > np.log(CHANCE):
            break
        chain, row = [last], int(before[last])
        while row >= 0:
            chain.append(row)
            row = int(before[row])
        if len(chain) >= FEWEST and taken.isdisjoint(chain):
            taken.update(chain)
            found.append(chain[::-1])
    return found
