"""How many of the most suspicious clients are honest at most: a bound that holds for every line at once, with a stated confidence.

An analyst looks at the ranked list and then draws a line. A bound for one line that was chosen before does not hold for the line chosen
after looking. This one does: it bounds the honest clients above all lines simultaneously.

Method. The lifetime maxima of n honest clients and of g calibration clients are exchangeable, so among all n + g, every order is equally
likely (Vovk, Gammerman & Shafer 2005). Let V(c) be the number of honest clients above the (c + 1)-th largest calibration client. Then

    V(c) > b   exactly if   at most c of the n + g's largest b + 1 + c are calibration clients,

which has a hypergeometric probability. `envelope` takes the smallest b for c = 0, 1, 2, 4, 8, …, with the error shared out equally among
them (union bound), so that all hold together. V grows with c, which covers the steps in between. Nobody knows how many clients are
honest; n = all clients is the worst case, because V grows with n. Between two lines the bound grows at most by one a client (Goeman and
Solari, Statistical Science 2011). Everywhere-valid bounds for conformal selection: Song, Jin and Candès, arXiv 2605.20726 (2026);
the law of conformal p-values: Gazin, Blanchard and Roquain, AISTATS 2024. The envelope here is ours, and simpler.

Rules:

* It does NOT hold where clients are not exchangeable with those of the calibration: another mix of uses, drift, clients that were
  observed for longer than those of the calibration, or calibration clients that were excluded for being extreme although honest.
* Thieves among the calibration clients make it more cautious, not wrong: they move the line up.
* It needs a calibration on real clients. It says nothing of a single client.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Envelope:
    """steps: numbers c of calibration clients above a line, ascending; most: honest clients above it at most, for all steps at once."""

    steps: tuple[int, ...]
    most: tuple[int, ...]


@lru_cache(maxsize=64)
def envelope(clients: int, calibration: int, confidence: float = CONFIDENCE) -> Envelope:
    """Return the simultaneous bound for a list of `clients` and a calibration of `calibration` honest clients.

    Raises
    ------
    ValueError
        No calibration client, a negative number of clients, or a confidence outside (0, 1).

    Examples
    --------
    >>> found = envelope(100, 200)
    >>> found.steps[:4], found.most[:4]
    ((0, 1, 2, 4), (4, 6, 7, 9))
    """
    if calibration < 1 or clients < 0 or not 0 < confidence < 1:
        raise ValueError("a bound needs calibration clients, 0 or more clients, and a confidence between 0 and 1")
    steps = [0]
    while steps[-1] < calibration:
        steps.append(min(max(1, 2 * steps[-1]), calibration))
    error = (1 - confidence) / len(steps)
    return Envelope(tuple(steps), tuple(_most(clients, calibration, c, error) for c in steps))


def _most(n: int, g: int, c: int, error: float) -> int:
    """The smallest b with P(V(c) > b) <= error, by bisection: the probability falls with b."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _beyond(n, g, c, middle) <= error else (middle + 1, high)
    return low


def _beyond(n: int, g: int, c: int, b: int) -> float:
    """P(V(c) > b): at most c of the largest b + 1 + c of n + g are calibration clients (hypergeometric)."""
    drawn = b + 1 + c
    if b >= n or drawn > n + g:
        return 0.0
    whole = _log_choose(n + g, drawn)
    terms = [_log_choose(g, j) + _log_choose(n, drawn - j) - whole for j in range(max(0, drawn - n), min(c, g) + 1)]
    return min(1.0, math.fsum(map(math.exp, terms)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def honest_at_most(
    p_values: NDArray[np.float64], line: int, calibration: int, ranked: int, confidence: float = CONFIDENCE
) -> int:
    """Return how many of the `line` most suspicious clients are honest at most, whatever line was chosen.

    Parameters
    ----------
    p_values : (n,) float64
        Lifetime p-values of all clients of the model, in any order, in [0, 1].
    line : int
        Clients above the line, from 0 to n.
    calibration : int
        Honest clients of the calibration.
    ranked : int
        Values among which the p-values are ranks: the calibration clients and the pseudo-clients that were added to them.
    confidence : float
        For all lines together.

    Returns
    -------
    int
        From 0 to `line`.

    Raises
    ------
    ValueError
        As `envelope`, or a line beyond the clients.

    Notes
    -----
    When it does not hold: see the header of this module.

    Examples
    --------
    >>> suspicious = np.r_[np.full(40, 1e-6), np.linspace(0.01, 1, 60)]
    >>> [honest_at_most(suspicious, line, 200, 200) for line in (3, 40, 41, 100)]
    [3, 4, 5, 64]
    """
    p = np.sort(np.asarray(p_values, np.float64))
    if not 0 <= line <= len(p):
        raise ValueError(f"a line at {line} of {len(p)} clients")
    found = envelope(len(p), calibration, confidence)
    # calibration values at or above each client; where a p-value rests on the tail model there are none
    above = np.maximum(0, np.ceil(p * (ranked + 1) - 1e-6) - 1)
    best = line
    for c, most in zip(found.steps, found.most, strict=True):
        inside = int(np.searchsorted(above, c, "right"))  # clients above the (c + 1)-th calibration client
        best = min(best, most + max(0, line - inside))
    return best
