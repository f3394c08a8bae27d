"""Exact tests: the probability that a suspect shows the marks by chance.

Under the null hypothesis the suspect never saw a marked answer. The key chose which of a client's selected inputs were marked,
independently of the suspect. So among the inputs at which the suspect happens to show a mark, the marked ones are a simple random sample,
and their number is hypergeometric, whatever the suspect's own rate of errors is.

Rules: nothing is estimated and no limit theorem is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb


def hypergeometric_tail(hits: int, marked: int, shown: int, total: int) -> float:
    """P(X ≥ hits), where X of `marked` inputs are among the `shown` ones that were drawn from `total` (Fisher's exact test, one-sided).

    >>> round(hypergeometric_tail(3, 3, 3, 6), 4), hypergeometric_tail(0, 3, 2, 9)
    (0.05, 1.0)
    """
    if not 0 <= hits <= min(marked, shown) or max(marked, shown) > total:
        raise ValueError("counts do not fit together")
    if hits <= max(0, shown + marked - total):
        return 1.0
    ways = sum(comb(marked, k) * comb(total - marked, shown - k) for k in range(hits, min(marked, shown) + 1))
    return float(Fraction(ways, comb(total, shown)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for how many there are (Holm 1979): the chance to accuse anybody falsely stays below each.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    n, corrected, least = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(n), key=p_values.__getitem__)):
        least = max(least, min(1.0, (n - rank) * p_values[i]))
        corrected[i] = least
    return corrected
