"""The accounts of the campaign benchmark: an honest fleet, honest organisations, and campaigns as they were reported.

Rules of the file:

* A campaign keeps the rate of an account (queries a day) of a published one. Accounts and days are scaled down, as `SHAPES` says, so
  that it has 22,000 to 52,000 queries, and a fifth of the fleet's accounts at most. Sizes of its accounts vary (log-normal).
* Cover replaces stolen queries and never comes on top: with 90 % cover an account steals with one query in ten, at the same rate.
* One theft is dealt out in the order of time: whichever account asks next sends its next row. So a campaign with more cover sends less
  of the same theft. Attack code that learns from answers runs as workers of `WORKER` queries each.
* Organisations are honest and hurt: colleagues with their own mix of classes, universities with many testers, an application that fills
  in a part of the columns for all its users, farms of load testers, and staffs in which everybody uses one tool, with settings of their
  own or dealt out of one run. Seats are drawn log-uniformly from 50 to 500.
* Of an honest account at most its first `MOST_HONEST` queries are sent, of a seat `MOST_SEAT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.ours import Tested
from benchmarks.victims import Victim
from detector.simulation.attacks import AttackerKnowledge, steal
from detector.simulation.domain import HonestPools, Rows
from detector.simulation.honest import BENIGN
from detector.simulation.population import DAY_S, Stream, account_name, clock, honest_stream, population

MOST_HONEST, MOST_SEAT = 600, 150
WORKER = 5_000
SEATS = (50, 500)
LEARNING = (
    "knockoff_adaptive",
    "copycat",
    "jbda",
    "trnd",
    "mixup",
    "active_uncertainty",
    "active_kcenter",
    "data_free",
)
"""Families whose code grows slower with every query; they run as workers."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A reported campaign, and its scaled form. a_day: queries of an account a day, kept."""

    accounts: int
    a_day: float
    days: int
    scaled_accounts: int
    scaled_days: int

    @property
    def name(self) -> str:
        return f"{self.accounts:,} × {self.a_day:g}"


SHAPES = (
    Shape(3_500, 860, 45, 60, 1),
    Shape(5_380, 5.6, 10, 400, 10),
    Shape(273, 733, 17, 68, 1),
    Shape(1_500, 13, 20, 190, 20),
    Shape(25_000, 26, 45, 400, 5),
)
COVERS = (0.0, 0.5, 0.9)


def answered(victim: Victim, streams: Sequence[Stream], group: int = -1) -> list[Tested]:
    """The streams with the victim's answers."""
    ends = np.cumsum([len(s.inputs) for s in streams])
    answers = np.split(victim.predict(np.vstack([s.inputs for s in streams])), ends[:-1])
    return [Tested(stream, group, answer, {}) for stream, answer in zip(streams, answers, strict=True)]


def first_queries(stream: Stream, most: int) -> Stream:
    return replace(
        stream, inputs=stream.inputs[:most], is_attack=stream.is_attack[:most], times_s=stream.times_s[:most]
    )


def honest_fleet(victim: Victim, groups: Sequence[int], accounts: int, rng: np.random.Generator) -> list[Stream]:
    """Honest accounts of all kinds, each group of items having as many."""
    streams = []
    for group in groups:
        kinds = population(accounts // len(groups), rng)
        for kind, child in zip(kinds, rng.spawn(len(kinds)), strict=True):
            streams.append(first_queries(honest_stream(kind, victim.pools[group], child), MOST_HONEST))
    return streams


# ------------------------------------------------------------------------------------------------------ campaigns


def stolen_rows(victim: Victim, family: str, queries: int, rng: np.random.Generator) -> Rows:
    """(queries, d) rows of one theft, in the order in which they are sent."""
    knowledge = AttackerKnowledge(victim.domain, victim.thieves.own, victim.thieves.foreign)
    if family not in LEARNING:
        return steal(family, knowledge, victim.predict, queries, rng)
    workers = -(-queries // WORKER)
    runs = [steal(family, knowledge, victim.predict, min(WORKER, queries), child) for child in rng.spawn(workers)]
    taken = min(map(len, runs))
    return np.stack([run[:taken] for run in runs], axis=1).reshape(-1, victim.domain.width)[:queries]


def campaign(
    shape: Shape, cover: float, family: str, stolen: Rows, pools: HonestPools, rng: np.random.Generator
) -> list[Stream]:
    """The accounts of one campaign. stolen: at least as many rows as it steals."""
    n = shape.scaled_accounts
    sizes = np.exp(0.4 * rng.normal(size=n))
    sizes = np.maximum(3, np.round(sizes / sizes.mean() * shape.a_day * shape.scaled_days)).astype(int)
    who = rng.permutation(np.repeat(np.arange(n), sizes))
    times = np.sort(rng.uniform(0.0, shape.scaled_days * DAY_S, size=len(who)))
    steals = rng.random(len(who)) >= cover
    rows = np.empty((len(who), pools.domain.width))
    taken = np.flatnonzero(steals)
    rows[taken] = stolen[np.arange(len(taken)) % len(stolen)]
    streams = []
    for k in range(n):
        mine = np.flatnonzero(who == k)
        honest = mine[~steals[mine]]
        if len(honest):
            rows[honest] = BENIGN["regular"].generate(pools, len(honest), rng)
        run = f"{family}/{shape.name}/{cover:g}"
        streams.append(Stream(account_name(rng), "attack", family, "campaign", run, rows[mine], steals[mine], times[mine]))  # fmt: skip
    return streams


# -------------------------------------------------------------------------------------------------- organisations

Seats = Callable[[HonestPools, int, np.random.Generator], list[Stream]]


def _seat(kind: str, pools: HonestPools, rng: np.random.Generator) -> Stream:
    return first_queries(honest_stream(kind, pools, rng), MOST_SEAT)


def _mixed(odds: Mapping[str, float]) -> Seats:
    def make(pools: HonestPools, seats: int, rng: np.random.Generator) -> list[Stream]:
        """Accounts of many kinds whose items are of the same few classes."""
        mix = rng.dirichlet(np.full(int(pools.labels.max()) + 1, 2.0))
        keep = rng.random(len(pools.pool)) < np.maximum(mix[pools.labels] / mix.max(), 0.1)
        own = replace(pools, pool=pools.pool[keep], labels=pools.labels[keep]) if keep.sum() > 50 else pools
        share = np.array([odds.get(kind, 0.0) for kind in BENIGN])
        kinds = rng.choice(list(BENIGN), size=seats, p=share / share.sum())
        return [_seat(str(kind), own, child) for kind, child in zip(kinds, rng.spawn(seats), strict=True)]

    return make


def _all_of(kind: str) -> Seats:
    return lambda pools, seats, rng: [_seat(kind, pools, child) for child in rng.spawn(seats)]


def _one_run_of(kind: str) -> Seats:
    def make(pools: HonestPools, seats: int, rng: np.random.Generator) -> list[Stream]:
        """One run of a tool, dealt out in pieces of one length: one configuration for all."""
        piece = int(rng.integers(20, 80))
        rows = BENIGN[kind].generate(pools, piece * seats, rng)
        return [
            Stream(account_name(rng), "benign", kind, "", "", rows[i * piece : (i + 1) * piece], np.zeros(piece, bool), clock(piece, rng))
            for i in range(seats)
        ]  # fmt: skip

    return make


def _application(pools: HonestPools, seats: int, rng: np.random.Generator) -> list[Stream]:
    """Users of a public application, which fills in a quarter of the columns with its defaults."""
    fixed = rng.permutation(pools.domain.width)[: max(1, pools.domain.width // 4)]
    template = pools.items(1, rng)[0]
    streams = []
    for child in rng.spawn(seats):
        stream = _seat("light" if child.random() < 0.7 else "regular", pools, child)
        rows = stream.inputs.copy()
        rows[:, fixed] = template[fixed]
        streams.append(replace(stream, inputs=pools.domain.emit(rows)))
    return streams


def _one_key(pools: HonestPools, seats: int, rng: np.random.Generator) -> list[Stream]:
    """A reseller: all its end users behind one key, so one account with the queries of all."""
    users = [_seat("light" if child.random() < 0.7 else "regular", pools, child) for child in rng.spawn(seats)]
    rows, times = np.vstack([u.inputs for u in users]), np.concatenate([u.times_s for u in users])
    order = np.argsort(times, kind="stable")
    return [Stream(account_name(rng), "benign", "reseller", "", "", rows[order], np.zeros(len(rows), bool), times[order])]  # fmt: skip


_SHARES = {name: kind.share for name, kind in BENIGN.items()}
ODD_TOOLS = ("what_if", "qa_edge", "explainer", "robustness", "load_tester", "entity_stream", "shifted", "monitor")
ORGANISATIONS: dict[str, Seats] = {
    "company": _mixed(_SHARES),
    "university": _mixed(_SHARES | {"robustness": 0.12, "explainer": 0.12, "qa_edge": 0.1, "misrouted": 0.05}),
    "reseller, many keys": _mixed({"light": 0.7, "regular": 0.3}),
    "reseller, one key": _one_key,
    "application": _application,
    "load-test farm": _all_of("load_tester"),
    **{f"all {kind}": _all_of(kind) for kind in ODD_TOOLS if kind != "load_tester"},
    **{f"one run of {kind}": _one_run_of(kind) for kind in ("what_if", "qa_edge", "explainer", "robustness")},
}
"""Kinds of honest organisations that a benchmark of campaigns must not accuse."""


def organisation(kind: str, pools: HonestPools, rng: np.random.Generator) -> list[Stream]:
    """The accounts of one honest organisation. Raises KeyError for an unknown kind."""
    seats = round(float(np.exp(rng.uniform(*np.log(SEATS)))))
    return ORGANISATIONS[kind](pools, seats, rng)
