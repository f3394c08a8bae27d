"""Calibration: the null distribution of each signal and of the fused score, from the lifetime maxima of honest clients.

The unit is the client. The event that may happen to one honest client in a hundred is being flagged at any time of its life. So each
honest client contributes one number for each signal, its *lifetime maximum*, and the fused score is calibrated on lifetime maxima too.

Rules:

* `scale`: a signal is measured in units of the mean of the four largest honest lifetime maxima, and never below the signal's floor.
* `Tail.p`: the conformal rank among honest maxima (Vovk et al. 2005). Above the largest of them, a Pareto tail (Hill 1975) whose index is
  shrunk towards a pooled prior, because 150 clients say little about a tail.
* The sorted maxima are kept, and no threshold: the budget is chosen by whoever reads the score.
* Where real clients are fewer than `fitting.baseline.MIN_CLIENTS`, simulated ones stand beside them as pooled prior knowledge
  (docs/decisions/0046). Such a baseline is *uncalibrated*, and no client is blocked on it.
* `fit` rehearses honest tools on the reference, because a fleet may get tools that it does not have yet. Of each odd kind, a run at rank
  `TOOL_RANK` of its kind is added as a *pseudo-client*: `TOOL_SHARE` of the clients, at least two (docs/decisions/0016).
* The influence of a client is bounded. A client whose signal is above `PLAUSIBLE` times the *rehearsal bound*, and above `LEAST_SHARE` of
  its queries, is excluded from the calibration, because it may be a thief. (The second condition is for clients that score whole tables:
  a reference is too small to rehearse them.)
* Where the excluded clients are at least `SPOILT` of all clients, and at least `SPOILT_CLIENTS`, thieves are among them, and some others
  probably stole less. Then the factor is `SPOILT_PLAUSIBLE`.
* Where more than `MOST_LEFT_OUT` of the clients would be excluded, the rehearsal does not describe this fleet, and no client is excluded.

It does not work for a kind of client that is missing in the traffic and in the rehearsal: such a client may be flagged more often than
the budget says. Nor does it notice thieves that stay below these limits while it is fitted: they raise the maxima, and hide later thieves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from detector.patches import KEPT
from detector.templates import HonestTemplates

LARGEST_AVERAGED = 4
TAIL_SHARE = 0.1
TAIL_INDEX_PRIOR = 2.0
TAIL_PRIOR_WEIGHT = 10.0
SMALLEST_TAIL = 0.05
UNREHEARSED: NDArray[np.float64] = np.empty(0)
"""A rehearsal bound that excludes no client."""
PLAUSIBLE = 2.5
LEAST_SHARE = 0.2
SPOILT, SPOILT_CLIENTS = 0.015, 3
"""Share of the clients beyond `PLAUSIBLE` times the rehearsal bound, and their least number, that an honest fleet hardly has:
2 in 1,000 are usual."""
SPOILT_PLAUSIBLE = 1.35
MOST_LEFT_OUT = 0.1
TOOL_RANK = 0.95
TOOL_SHARE, FEWEST_TOOLS = 0.0075, 2
"""Pseudo-clients of each kind of tool: their share of the honest clients and their least number, whatever the traffic holds."""
MIN_CLIENTS_A_BUDGET = 1.0
"""Honest clients expected above the level, below which a budget is called too small for the calibration."""


@dataclass(frozen=True, slots=True)
class Persona:
    """A use that the owner declared, with null distributions of its own: clients that explain, test or probe for a living.

    ordered, free  (h,) sorted lifetime maxima of its honest clients, in the units of all others
    """

    name: str
    ordered: NDArray[np.float64]
    free: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FinalExcess:
    """What honest clients had come to after their last query: what the members of a group are compared with (group_statistic.py).

    distinct  (g,) float64, distinct queries of each
    excess    (g, s) float32, odd queries of each signal beyond the allowance, as `signals.Statistics.excess`
    """

    distinct: NDArray[np.float64]
    excess: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.distinct)


NO_PATCHES: NDArray[np.int64] = np.empty((0, KEPT), np.int64)
CHANGE_KINDS = ("regions", "distances", "classes", "pace")
"""In what a client may differ from its own earlier life (own_change.py)."""
UNKNOWN_CHANGE = -1.0
NO_CHANGES: NDArray[np.float32] = np.empty((0, len(CHANGE_KINDS)), np.float32)
NO_CLIENTS = FinalExcess(np.empty(0), np.empty((0, 0), np.float32))
"""Nobody to compare with: no group is ever suspicious."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Honest tools of the odd kinds, as `fit` rehearsed them.

    kinds (r,), lifetime_maxima (r, s), final_values (r, s) masses after the last query; final: the same for groups
    """

    kinds: tuple[str, ...]
    lifetime_maxima: NDArray[np.float64]
    final_values: NDArray[np.float64]
    final: FinalExcess = NO_CLIENTS

    def pseudo_clients(self, clients: int) -> int:
        """Return the number of pseudo-clients that join `clients` honest ones.

        >>> NO_TOOLS.pseudo_clients(1000)
        0
        """
        return len(set(self.kinds)) * max(FEWEST_TOOLS, round(TOOL_SHARE * clients))

    def of_kinds(self) -> list[FinalExcess]:
        """What the runs of each kind came to, a kind each; empty where no run was kept for groups."""
        if not len(self.final):
            return []
        return [FinalExcess(self.final.distinct[rows], self.final.excess[rows]) for rows in self._rows()]

    def pseudo_client_rows(self, scale: NDArray[np.float64], use: NDArray[np.bool_], clients: int) -> NDArray[np.int64]:
        """Rows of the pseudo-clients that join `clients` honest ones, repeated. scale: units of the signals; use: those that are fused."""
        if not self.kinds:
            return np.empty(0, np.int64)
        size = (self.lifetime_maxima / scale)[:, use].max(axis=1)
        chosen = [
            int(rows[np.argsort(size[rows], kind="stable")[_percentile_rank(len(rows))]]) for rows in self._rows()
        ]
        return np.repeat(np.array(chosen, np.int64), self.pseudo_clients(clients) // len(chosen))

    def percentile_maxima(self) -> list[NDArray[np.float64]]:
        """Lifetime maxima of the 95th-percentile run of each kind, signal by signal, (s,) each."""
        return [np.sort(self.lifetime_maxima[rows], axis=0)[_percentile_rank(len(rows))] for rows in self._rows()]

    def _rows(self) -> list[NDArray[np.int64]]:
        kinds = np.array(self.kinds)
        return [np.flatnonzero(kinds == kind) for kind in dict.fromkeys(self.kinds)]


def _percentile_rank(count: int) -> int:
    """Index of the 95th-percentile run among `count` runs in ascending order."""
    return round(TOOL_RANK * (count - 1))


NO_TOOLS = Tools((), np.empty((0, 0)), np.empty((0, 0)))
"""No tool was rehearsed: there are no pseudo-clients."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Null distributions of honest clients, one row a client; those of declared personas apart.

    lifetime_maxima  (g, s) float32, lifetime maximum of each signal
    scale     (s,) unit of each signal in the fused score
    ordered, free  (h,) sorted lifetime maxima of the fused score, for clients seen in order and for all others; h ≥ g: with the
              pseudo-clients
    distinct  most distinct queries of an honest client; days: longest time that an honest client was seen
    calibrated  on real clients alone
    personas  declared uses; their clients are in none of the above
    rehearsal_bound  (s,) most mass of each signal that honest tools have in rehearsal, inf where that says nothing; (0,): not rehearsed
    tools     all that were rehearsed, for the next calibration
    final     what the same clients had come to at last, for groups; (0,): this calibration cannot judge groups
    simulated  clients among the rows that were simulated
    changes   (g, 4) float32, own change of the same clients by kind, `UNKNOWN_CHANGE`: not known; (0, 4): of nobody
    templates  of the same clients, where they write texts
    patches   (g, `patches.KEPT`) int64, where the odd queries of the same clients lie, 0: no more, `UNKNOWN`: not known; (0, …): of nobody
    """

    lifetime_maxima: NDArray[np.float32]
    scale: NDArray[np.float64]
    ordered: NDArray[np.float64]
    free: NDArray[np.float64]
    distinct: float
    days: float
    calibrated: bool
    personas: tuple[Persona, ...] = ()
    rehearsal_bound: NDArray[np.float64] = field(default_factory=lambda: UNREHEARSED)
    tools: Tools = NO_TOOLS
    final: FinalExcess = NO_CLIENTS
    simulated: int = 0
    patches: NDArray[np.int64] = field(default_factory=lambda: NO_PATCHES)
    changes: NDArray[np.float32] = field(default_factory=lambda: NO_CHANGES)
    templates: HonestTemplates = field(default_factory=HonestTemplates)

    @property
    def clients(self) -> int:
        """Honest clients that are not excluded from calibration, simulated ones among them."""
        return len(self.lifetime_maxima)

    @property
    def real_clients(self) -> int:
        """Honest clients that are not excluded from calibration and were not simulated."""
        return self.clients - self.simulated

    @property
    def version(self) -> str:
        digest = hashlib.sha256()
        for array in (self.lifetime_maxima, self.scale, self.ordered, self.free):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr((self.distinct, self.calibrated)).encode())
        for persona in self.personas:
            digest.update(persona.name.encode())
            for array in (persona.ordered, persona.free):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    @property
    def source(self) -> str:
        """Which clients it rests on, in words.

        >>> Calibration(
        ...     np.zeros((412, 1)), np.ones(1), np.zeros(1), np.zeros(1), 1.0, 1.0, calibrated=False, simulated=400
        ... ).source
        '12 real clients and 400 simulated ones'
        """
        if self.calibrated:
            return f"{self.clients:,} real clients"
        if self.real_clients:
            return f"{self.real_clients:,} real clients and {self.simulated:,} simulated ones"
        return f"{self.clients:,} simulated clients"

    def supports(self, budget: float) -> bool:
        """Return whether real honest clients are enough to speak of this lifetime budget, a share in [0, 1].

        At least one honest client must be expected above the level; below that a p-value rests on the tail model alone.

        >>> maxima = np.zeros(150)
        >>> honest = Calibration(np.zeros((150, 1), np.float32), np.ones(1), maxima, maxima, 10.0, 1.0, calibrated=True)
        >>> honest.supports(0.01), honest.supports(0.001)
        (True, False)
        """
        return self.calibrated and self.clients * budget >= MIN_CLIENTS_A_BUDGET


def scale_of(lifetime_maxima: NDArray[np.float64], floor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the honest scale of each signal: the mean of its four largest lifetime maxima, never below its floor.

    Parameters
    ----------
    lifetime_maxima : (g, s) float64
    floor : (s,) float64

    Returns
    -------
    (s,) float64
        In the unit of the signal, distinct queries in excess of its allowance.

    Examples
    --------
    >>> scale_of(
    ...     np.array([[1.0, 0.0], [20.0, 2.0], [40.0, 0.0], [30.0, 0.0], [10.0, 0.0]]), np.array([12.0, 8.0])
    ... ).tolist()
    [25.0, 8.0]
    """
    if len(lifetime_maxima) == 0:
        return floor.copy()
    top = np.sort(lifetime_maxima, axis=0)[-LARGEST_AVERAGED:]
    scale: NDArray[np.float64] = np.maximum(top.mean(0), floor)
    return scale


def implausible(
    lifetime_maxima: NDArray[np.float64], shares: NDArray[np.float64], rehearsal_bound: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which clients are beyond the rehearsal bound in some signal, and in a large share of their queries.

    Parameters
    ----------
    lifetime_maxima : (g, s) float64
    shares : (g, s) float64
        Odd queries among those that the signal counts among, in [0, 1].
    rehearsal_bound : (s,) or (0,) float64
        Most mass of honest tools in rehearsal; inf: the signal bounds nobody; (0,): no client is excluded.

    Returns
    -------
    (g,) bool
        Never more than `MOST_LEFT_OUT` of the clients: a rehearsal that finds more of them implausible does not know this fleet.

    Notes
    -----
    It does not work where thieves are more than a tenth of all clients: they spoil the calibration wholly. Thefts within the bound
    spoil it a little (docs/decisions/0012).

    Examples
    --------
    >>> maxima, shares = np.ones((20, 1)), np.ones((20, 1))
    >>> maxima[3] = 30.0
    >>> implausible(maxima, shares, np.array([10.0])).nonzero()[0].tolist()
    [3]
    """
    out = np.zeros(len(lifetime_maxima), np.bool_)
    if not len(rehearsal_bound):
        return out
    for times, least in ((PLAUSIBLE, 0.0), (SPOILT_PLAUSIBLE, max(SPOILT_CLIENTS, SPOILT * len(lifetime_maxima)))):
        if out.sum() < least:
            break
        beyond = np.asarray(((lifetime_maxima > times * rehearsal_bound) & (shares >= LEAST_SHARE)).any(axis=1))
        if beyond.sum() > MOST_LEFT_OUT * len(lifetime_maxima):
            break
        out = beyond
    return out


@dataclass(frozen=True, slots=True)
class Tail:
    """Sorted honest maxima with a Pareto tail above their upper tenth.

    maxima (g,) sorted; u: where the tail begins; share: probability above u; index: of the Pareto tail.
    """

    maxima: NDArray[np.float64]
    u: float
    share: float
    index: float

    @classmethod
    def fit(cls, maxima: NDArray[np.float64]) -> Tail:
        maxima = np.sort(np.asarray(maxima, np.float64))
        g = len(maxima)
        if g == 0:
            return cls(maxima, 1.0, 1.0, TAIL_INDEX_PRIOR)
        k = max(1, int(np.ceil(TAIL_SHARE * g)))
        u = max(float(maxima[max(0, g - k - 1)]), SMALLEST_TAIL)
        over = maxima[maxima > u]
        logs = float(np.log(over / u).sum())
        index = (len(over) + TAIL_PRIOR_WEIGHT) / (logs + TAIL_PRIOR_WEIGHT / TAIL_INDEX_PRIOR)
        return cls(maxima, u, max(len(over), 1) / (g + 1), index)

    def p(self, value: float) -> float:
        """Return the probability that an honest client ever gets as far as `value`; 1 for a value of 0.

        Within the honest maxima the larger of rank and tail counts. Beyond all of them the rank can't fall any more, so the p-value goes on
        falling as the tail does.

        Parameters
        ----------
        value : float
            In units of the honest scale, as `maxima`.

        Returns
        -------
        float
            In (0, 1]. Below 1 / (g + 1) it rests on the tail model.

        Notes
        -----
        Rank: Vovk, Gammerman & Shafer 2005. Tail index: Hill 1975, shrunk towards a prior. The guarantee is marginal over the mix of
        clients, not for each kind of client. It does not hold for kinds of clients that the calibration lacks, nor after drift
        (docs/theory.md).

        Examples
        --------
        >>> tail = Tail.fit(np.arange(1.0, 100.0))
        >>> tail.p(0.0), tail.p(50.0)
        (1.0, 0.51)
        >>> tail.p(99.0) > tail.p(200.0) > 0.0
        True
        """
        g = len(self.maxima)
        if value <= 0 or g == 0:
            return 1.0
        above = g - int(self.maxima.searchsorted(value))
        rank = (1 + above) / (g + 1)
        if value <= self.u:
            return rank
        beyond = self.share * (value / self.u) ** -self.index
        if above:
            return float(max(beyond, rank))
        largest = self.share * (max(float(self.maxima[-1]), self.u) / self.u) ** -self.index
        return float(min(rank, rank * beyond / largest))

    def level(self, budget: float) -> float:
        """Return the smallest value whose p-value is at most `budget`, by bisection; for plots and explanations.

        >>> Tail.fit(np.arange(1.0, 100.0)).level(0.5) > 50.0
        True
        """
        low, high = 0.0, max(1.0, float(self.maxima[-1]) if len(self.maxima) else 1.0)
        while self.p(high) > budget and high < 1e12:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.p(middle) > budget else (low, middle)
        return high
