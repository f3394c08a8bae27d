"""Signals: counts of odd distinct queries above the share that honest clients are granted, over the lifetime of a client.

Honest oddities (edge-case tests, what-if sweeps, explainers) consist of odd queries only, but are short; a thief needs thousands. Honest
cover queries dilute a share but not a count, and a count adds up over partitions, windows and accounts.

Rules:

* One row of `SIGNALS` for each signal: the bits that a query must carry, the granted share, the base (all distinct queries, or *novel
  queries*, which derive from nothing that is remembered of the client), the form, and one sentence for an analyst.
* *Ordered signals* need the memory of one shard in log order. *Order-free signals* do not; they serve clients seen in several partitions,
  and campaigns, with null distributions of their own.
* A new signal changes the null distributions: raise `TABLE_VERSION`.

They do not work against a thief that owns data like that of honest clients: none of its queries is odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detector.features import BITS, SEQUENCE
from detector.profile import Profile
from detector.profile_columns import ProfileColumns
from detector.signal_table import Form, SignalTable

TABLE_VERSION = 7


@dataclass(frozen=True, slots=True)
class Signal:
    """bits: all needed; allowance: honest share; base: roots | distinct; form: of the mass;
    floor: smallest mass that is worth anything; family: what kind of extraction it hints at; text: for people."""

    name: str
    bits: tuple[str, ...]
    allowance: float
    base: str
    form: Form
    floor: float
    block: str
    family: str
    text: str


def _root(measure: str, family: str, text: str, allowance: float = 0.02, floor: float = 12.0) -> Signal:
    return Signal(
        f"{measure}_roots",
        (f"{measure}_rare", "novel"),
        allowance,
        "roots",
        Form.EXCESS,
        floor,
        "ordered",
        family,
        text,
    )


def _dense(measure: str, family: str, text: str) -> Signal:
    return Signal(
        f"{measure}_dense",
        (f"{measure}_rare", "novel"),
        0.02,
        "roots",
        Form.EXCESS_TIMES_SHARE,
        10.0,
        "ordered",
        family,
        text,
    )


def _free(
    measure: str, family: str, text: str, level: str = "rare", allowance: float = 0.02, floor: float = 12.0
) -> Signal:
    return Signal(
        f"{measure}_{level}", (f"{measure}_{level}",), allowance, "distinct", Form.EXCESS, floor, "free", family, text
    )


_FAR = "are far from everything the model was built on"
_TEXTS = {
    "novelty": _FAR,
    "residual": "lie outside the directions in which real inputs vary",
    "part": "break the dependence between your features",
    "mix": "look like blends of real inputs",
    "step": "look like real inputs moved by one fixed step",
    "jitter": "look like real inputs with noise added",
    "margin": "sit on the model's decision boundary",
    "lattice": "hold values that your inputs never take",
    "misfit": "break the schema",
    "misfit_few": "break the schema, as few honest queries do",
}
_FAMILIES = {
    "novelty": "out-of-distribution queries",
    "residual": "out-of-distribution queries",
    "part": "synthesised queries",
    "mix": "synthesised queries",
    "step": "perturbed seeds",
    "jitter": "perturbed seeds",
    "margin": "boundary search",
    "lattice": "synthesised queries",
    "misfit": "malformed queries",
}

SIGNALS: tuple[Signal, ...] = (
    # Orekondy et al. 2019 (KnockoffNets), Correia-Silva et al. 2018 (CopycatCNN): foreign or made-up inputs
    *(_root(m, _FAMILIES[m], f"{{count}} of {{base}} unrelated queries {_TEXTS[m]}") for m in ("novelty", "residual", "part", "mix")),
    *(_dense(m, _FAMILIES[m], f"{{count}} of {{base}} unrelated queries {_TEXTS[m]}, and they are most of what it asks")
      for m in ("novelty", "residual", "part")),
    # Papernot et al. 2017 (Jacobian-based augmentation), Juuti et al. 2019 (T-RND)
    *(_root(m, _FAMILIES[m], f"{{count}} of {{base}} unrelated queries {_TEXTS[m]}") for m in ("step", "jitter", "lattice")),
    Signal("stepped_pairs", ("stepped", "distant"), 0.02, "distinct", Form.EXCESS, 6.0, "ordered", "perturbed seeds",
           "{count} of {base} queries are an earlier query with every feature moved by one and the same step"),
    # Tramèr et al. 2016, Quiring et al. 2018: boundary and line search. A model is unsure of any odd input, a tester's too: many must be
    _root("margin", _FAMILIES["margin"], f"{{count}} of {{base}} unrelated queries {_TEXTS['margin']}", allowance=0.12, floor=60.0),
    Signal("flipped", ("flipped",), 0.05, "distinct", Form.EXCESS, 30.0, "ordered", "boundary search",
           "{count} of {base} queries change an earlier query a little and get another answer"),
    Signal("collinear", ("collinear",), 0.02, "distinct", Form.EXCESS, 30.0, "ordered", "boundary search",
           "{count} of {base} queries continue along the line of the two before them"),
    # order-free: the rarest level in the fused score, the wider one only for clients seen in several partitions
    *(_free(m, _FAMILIES[m], f"{{count}} of {{base}} distinct queries {_TEXTS[m]}, more than any reference row", "beyond", 0.005)
      for m in ("novelty", "residual", "part", "mix", "step", "jitter")),
    *(_free(m, _FAMILIES[m], f"{{count}} of {{base}} distinct queries {_TEXTS[m]}")
      for m in ("novelty", "residual", "part", "mix", "step", "jitter", "lattice")),
    # what does not fit the schema: a client must not take its queries out of the count by spoiling them
    _root("misfit", _FAMILIES["misfit"], f"{{count}} of {{base}} unrelated queries {_TEXTS['misfit_few']}", floor=20.0),
    _free("misfit", _FAMILIES["misfit"], f"{{count}} of {{base}} distinct queries {_TEXTS['misfit']} in a way that no honest query did",
          "beyond", 0.005, 20.0),
    _free("misfit", _FAMILIES["misfit"], f"{{count}} of {{base}} distinct queries {_TEXTS['misfit_few']}", floor=20.0),
    Signal("misfit_share", ("misfit",), 0.02, "distinct", Form.EXCESS, 20.0, "free", _FAMILIES["misfit"],
           f"{{count}} of {{base}} distinct queries {_TEXTS['misfit']}, far more than an honest client's share"),
)  # fmt: skip
"""The table. No signal sees in-domain theft: its queries are those of honest clients. When each measure does not work besides
(docs/detection.md, docs/decisions):

novelty, residual  a reference of some hundred rows says little about its own upper percent; levels are settled on honest traffic (0004)
part, mix, step, jitter  trees that learned to recognise blends also take noise for blends: the evidence names the most specific claim first
margin      no probabilities are logged, answers are labels only; a model is also unsure of a tester's odd inputs, so many are asked for
lattice     no column of the reference lies on a lattice
stepped     numbers on a coarse lattice, where a step is worth less than a bit; beyond 64 columns only the last 16 rows are searched; image
            explainers (few bases, large masked moves) can collect an excess of it
flipped, collinear  a short memory is searched for the earlier query, so pairs cover little of a theft
misfit      a single broken integration looks like a thief: so misfits never block alone, and a shared one is held back (0019)
ordered     a client seen in several partitions has no order: only the order-free signals assess it
"""

_OF_TEXTS = {
    "novelty": ("novelty", "out-of-domain texts", "are far from every text that the model was built on"),
    "residual": ("residual", "out-of-domain texts", "are made of other words and letters than real texts"),
    "part": ("domain", "out-of-domain texts", "are about something else than the model's own domain"),
    "mix": ("foreign", "out-of-domain texts", "hold more that is foreign than any text of the model's own domain"),
    "step": (
        "elicitation",
        "reasoning elicitation",
        "ask for more than an answer: reasoning, instructions or probabilities",
    ),
    "jitter": ("reworded", "reworded seeds", "look like real texts with other words put in"),
    "lattice": ("unknown", "nonsense", "hold words and letters that no real text has"),
}
"""Measure → what it is called where inputs are texts, the family of theft, and the claim (text.text_measures)."""


def _of_text(signal: Signal) -> Signal:
    measure, _, form = signal.name.partition("_")
    if measure not in _OF_TEXTS:
        return signal
    name, family, claim = _OF_TEXTS[measure]
    return replace(signal, name=f"{name}_{form}", family=family, text=signal.text.replace(_TEXTS[measure], claim))


TEXT_SIGNALS: tuple[Signal, ...] = tuple(_of_text(s) for s in SIGNALS)
"""The same table as it reads where inputs are texts: same order, bits, allowances and floors; other measures behind the bits."""

SIGNAL_NAMES = tuple(s.name for s in SIGNALS)
SIGNAL_PLACES = {s.name: i for table in (TEXT_SIGNALS, SIGNALS) for i, s in enumerate(table)}
"""Name of a signal, of numbers or of texts → its place in the table."""
FREE = np.array([s.block == "free" for s in SIGNALS])
FUSED = np.array([s.block == "ordered" or s.name.endswith("_beyond") or s.name == "misfit_share" for s in SIGNALS])
"""Signals that make the fused score of a client seen in log order; FREE ones make that of the others."""
FLOOR = np.array([s.floor for s in SIGNALS])
"""(s,) smallest mass of each that is worth anything."""
BY_ANSWER = frozenset(s.name for s in SIGNALS if {"margin_rare", "flipped"} & {*s.bits})
"""Signals that look at the model's answers."""
MISFIT = np.array([s.name.startswith("misfit") for s in SIGNALS])
"""Signals that look at what does not fit the schema: they never block alone, and a schema alarm holds them back."""


GROUPED = np.array([s.form != Form.EXCESS_TIMES_SHARE for s in SIGNALS]) & ~MISFIT
"""Signals by which members of groups are judged: dense ones repeat others, and misfits are often a broken release that many use."""


def measure_of(signal: str) -> str:
    """Return the measure of a signal, which several signals may count.

    >>> measure_of("mix_roots"), measure_of("flipped")
    ('mix', 'flipped')
    """
    return signal.partition("_")[0]


def signal_table(
    scale: NDArray[np.float64] | None = None, horizon_distinct: float = np.inf, misfit_allowance: float = 0.02
) -> SignalTable:
    """Return the table of signals as arrays, for the fold.

    Parameters
    ----------
    scale : (s,) float64 or None
        Honest scale of each signal; None: its floor.
    horizon_distinct : float
        Distinct queries that the calibration covers; a client with more has its masses damped.
    misfit_allowance : float
        Share of its queries that an honest client may send as misfits, as `fit` learned it.

    Examples
    --------
    >>> table = signal_table()
    >>> len(table.need) == len(SIGNALS), float(table.allowance[SIGNAL_NAMES.index("flipped")])
    (True, 0.05)
    """
    scale = FLOOR if scale is None else scale
    need = np.array([sum(BITS[b] for b in s.bits) for s in SIGNALS], np.uint32)
    return SignalTable(
        need=need,
        sequence=(need & np.uint32(SEQUENCE)) != 0,
        novel_base=np.array([s.base == "roots" for s in SIGNALS]),
        form=np.array([s.form for s in SIGNALS], np.int64),
        allowance=np.array([misfit_allowance if s.name == "misfit_share" else s.allowance for s in SIGNALS]),
        fusing_scale=np.where(FUSED, scale, 0.0),
        horizon_distinct=float(horizon_distinct),
    )


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of one profile, (s,) each.

    value  the signal's mass: the running maximum for ordered signals, the current mass of the merged sets for free ones
    count  odd distinct queries, estimated; base: what they are counted among
    lifetime  the running maximum of the mass
    excess    odd queries beyond the allowance by now, of ordered signals too; dense signals have that of their count
    distinct  distinct queries, a number: what a client is compared by in size
    """

    value: NDArray[np.float64]
    count: NDArray[np.float64]
    base: NDArray[np.float64]
    lifetime: NDArray[np.float64]
    excess: NDArray[np.float64]
    distinct: float


@dataclass(frozen=True, slots=True)
class StatisticsColumns:
    """The `Statistics` of n profiles: (n, s) each, distinct (n,)."""

    value: NDArray[np.float64]
    count: NDArray[np.float64]
    base: NDArray[np.float64]
    lifetime: NDArray[np.float64]
    excess: NDArray[np.float64]
    distinct: NDArray[np.float64]

    def one(self, row: int) -> Statistics:
        """Those of one profile."""
        return Statistics(
            self.value[row],
            self.count[row],
            self.base[row],
            self.lifetime[row],
            self.excess[row],
            float(self.distinct[row]),
        )


def measure(profile: Profile, table: SignalTable) -> Statistics:
    """Measure all signals of one profile, of one client or merged: `measure_columns` of it."""
    return measure_each([profile], table)[0]


def measure_each(profiles: Sequence[Profile], table: SignalTable) -> list[Statistics]:
    """Measure all signals of each profile: a third of what one at a time costs."""
    if not profiles:
        return []
    columns = measure_columns(ProfileColumns.of(profiles, table), table)
    return [columns.one(row) for row in range(len(profiles))]


def measure_columns(profiles: ProfileColumns, table: SignalTable) -> StatisticsColumns:
    """Measure all signals of n profiles.

    Parameters
    ----------
    profiles : ProfileColumns
        Of clients or merged; their running maxima belong to this table.
    table : SignalTable

    Returns
    -------
    StatisticsColumns
        Masses in distinct queries beyond the allowance (times their share, for a dense signal), never negative.

    Notes
    -----
    Counts are exact for light clients and bottom-k estimates for heavy ones (docs/theory.md).
    """
    distinct, roots = profiles.distinct + profiles.faded_base[:, 0], profiles.novel + profiles.faded_base[:, 1]
    base = np.where(table.novel_base, roots[:, None], distinct[:, None])
    # both are estimates for heavy clients; a part is never more than its whole
    count = np.minimum(profiles.odd + profiles.faded, base)
    excess = np.maximum(0.0, count - table.allowance * base)
    now = np.where(table.form == Form.EXCESS_TIMES_SHARE, excess * excess / np.maximum(base, 1.0), excess)
    damped = np.minimum(1.0, table.horizon_distinct / np.maximum(distinct, 1.0))[:, None]
    now *= damped
    # the running maxima of one unmerged stream are exact at every query; only a merge can raise a mass beyond them
    lifetime = np.where(profiles.merged[:, None], np.maximum(now, profiles.maxima), profiles.maxima)
    return StatisticsColumns(np.where(FREE, now, lifetime), count, base, lifetime, excess * damped, distinct)


def fuse(values: NDArray[np.float64], scale: NDArray[np.float64], use: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the largest of the used signals, in units of their honest scale.

    Parameters
    ----------
    values : (..., s) float64
    scale : (s,) float64
        Positive.
    use : (s,) or (..., s) bool

    Returns
    -------
    (...) float64

    Examples
    --------
    >>> float(fuse(np.array([12.0, 90.0, 8.0]), np.array([12.0, 10.0, 2.0]), np.array([True, False, True])))
    4.0
    """
    return np.asarray(np.where(use, values / scale, -np.inf).max(-1))
