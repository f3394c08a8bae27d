"""How odd an account is among honest clients of its own size.

A thief that spreads a theft over thousands of accounts asks some dozen queries with each. Against honest clients of any size such an
account is nothing. Against those that asked about as much it stands out: it is odd in most of its queries, and they are in hardly any.

Rules:

* A signal is measured as its excess for each distinct query, in units of the mean of the upper twentieth of the `NEAREST` honest clients
  of the calibration that are nearest in log distinct queries, and never below one query. The oddness of an account is the largest over
  the signals; its p-value is the rank among those clients.
* This p-value accuses nobody: one honest account in twenty has one below .05. It says which of the accounts of a suspicious group to
  name (`campaigns.members_to_name`), and, over all accounts, that a campaign is there (fleet.py).
* Signals are those of the group statistic. A baseline without `calibration.final` gives every account a p-value of 1.

It does not work for in-domain theft, nor for an account that mostly asks honest queries.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from detector.calibration import FinalExcess
from detector.signals import FREE, GROUPED, SIGNAL_NAMES, Statistics

NEAREST = 150
UPPER = 0.05
BINS_A_NAT = 16.0
"""Steps to which sizes are rounded, for each factor of e, so that accounts of one size share one null distribution."""


class SizeNull:
    """Null distributions of oddness by size, from honest clients; each is computed once.

    final  what honest clients had come to
    """

    def __init__(self, final: FinalExcess) -> None:
        rate = final.excess / np.maximum(final.distinct, 1.0)[:, None] if len(final) else final.excess
        self._log_size = np.log(np.maximum(final.distinct, 1.0))
        self._rates = {
            order: np.asarray(rate[:, _used(order)] if len(final) else rate, np.float64) for order in (True, False)
        }
        self._known: dict[tuple[int, bool], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def _at(self, step: int, in_order: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Units (u,) of the signals for a size, and the sorted oddness of the honest clients nearest to it."""
        if (step, in_order) in self._known:
            return self._known[step, in_order]
        near = np.argsort(np.abs(self._log_size - step / BINS_A_NAT), kind="stable")[:NEAREST]
        rates = self._rates[in_order][near]
        top = max(1, int(np.ceil(UPPER * len(near))))
        units = np.maximum(np.sort(rates, axis=0)[-top:].mean(0), np.exp(-step / BINS_A_NAT))
        found = self._known[step, in_order] = units, np.sort((rates / units).max(1))
        return found

    def p_value(self, statistics: Statistics, in_order: bool = True) -> tuple[float, str]:
        """Return the p-value of an account among honest clients of its size, and the signal in which it is oddest.

        Parameters
        ----------
        statistics : Statistics
            Of the account.
        in_order : bool
            Whether its queries were seen in order; otherwise the order-free signals are used.

        Returns
        -------
        (float, str)
            In (0, 1], at least 1 / (1 + `NEAREST`); (1.0, "") where nothing about it is odd, and without honest clients.
        """
        excess, distinct = statistics.excess[None], np.array([statistics.distinct])
        return self.p_values(excess, distinct, np.array([in_order]))[0]

    def p_values(
        self, excess: NDArray[np.float64], distinct: NDArray[np.float64], in_order: NDArray[np.bool_]
    ) -> list[tuple[float, str]]:
        """Return what `p_value` says of each of n accounts. excess (n, s) and distinct (n,): as in `Statistics`."""
        found = [(1.0, "")] * len(distinct)
        if not len(self._log_size):
            return found
        for order in (True, False):
            used = _used(order)
            rows = np.flatnonzero((in_order == order) & (excess[:, used] != 0).any(1))
            if not len(rows):
                continue
            size = np.maximum(distinct[rows], 1.0)
            nulls = [self._at(step, order) for step in np.rint(np.log(size) * BINS_A_NAT).astype(np.int64).tolist()]
            ratio = excess[np.ix_(rows, used)] / size[:, None] / np.stack([units for units, _ in nulls])
            oddest = ratio.argmax(1)
            largest = ratio[np.arange(len(rows)), oddest]
            for row, (_, honest), signal, value in zip(rows.tolist(), nulls, oddest.tolist(), largest, strict=True):
                reached = len(honest) - int(honest.searchsorted(value))
                found[row] = (1 + reached) / (1 + len(honest)), SIGNAL_NAMES[used[signal]]
        return found

    def honest_p_values(self) -> tuple[NDArray[np.float64], list[str]]:
        """P-values of the honest clients themselves, each among the others of its size, and the signal in which each is oddest."""
        found, oddest = [], []
        for i, log_size in enumerate(self._log_size):
            units, honest = self._at(round(float(log_size) * BINS_A_NAT), True)
            ratio = self._rates[True][i] / units
            own = float(ratio.max())
            oddest.append(SIGNAL_NAMES[_used(True)[int(ratio.argmax())]] if own > 0 else "")
            reached = len(honest) - int(np.searchsorted(honest, own, "left"))
            found.append(max(1, reached) / len(honest) if own > 0 else 1.0)
        return np.array(found), oddest


@cache
def _used(in_order: bool) -> NDArray[np.int64]:
    """Signals that are used for accounts seen in order, and for the others."""
    return np.flatnonzero(GROUPED & ~FREE) if in_order else np.flatnonzero(GROUPED & FREE)
