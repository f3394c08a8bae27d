"""Simulated populations: many honest clients and some thieves on one clock.

Rules:

* Timing comes from one law (`clock`) for honest clients and thieves alike, and client names carry no information, so that only content
  betrays a thief. A split theft draws one clock for the whole run and deals its queries out to the accounts.
* Every client draws from its own child of `rng`, so that streams can be made in any order.
* A `Stream` knows whether its client is honest. Whoever writes a log from it keeps that in another file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.simulation.attacks import AttackerKnowledge, steal
from detector.simulation.domain import Domain, HonestPools, Predict, Rows, strangers
from detector.simulation.honest import BENIGN

DAY_S = 86_400.0
HORIZON_S = 14 * DAY_S


@dataclass(frozen=True, slots=True)
class Variant:
    """How a theft is hidden.

    share     of the accounts' traffic that is theft; the rest is honest cover
    accounts  number of accounts that it is dealt over, in turn, or one after the other with `handover`
    slow      over the whole horizon
    """

    share: float = 1.0
    accounts: int = 1
    handover: bool = False
    slow: bool = False


VARIANTS: dict[str, Variant] = {
    "plain": Variant(),
    "drip50": Variant(share=0.5),
    "drip10": Variant(share=0.1),
    "drip5": Variant(share=0.05),
    "slow": Variant(slow=True),
    "sybil10": Variant(accounts=10),
    "sybil50": Variant(accounts=50),
    "sybil10-handover": Variant(accounts=10, handover=True),
}


@dataclass(frozen=True, slots=True)
class Stream:
    """All queries of one client (one account).

    client      its name, role "benign" or "attack", kind (a key of BENIGN or ATTACKS), variant ("" for honest clients)
    run         one theft (several accounts may share it); "" for honest clients
    inputs      (n, d) accepted rows in sending order
    is_attack   (n,) bool: this query belongs to the theft
    times_s     (n,) seconds since the epoch, ascending, whole milliseconds
    """

    client: str
    role: str
    kind: str
    variant: str
    run: str
    inputs: Rows
    is_attack: NDArray[np.bool_]
    times_s: Rows


@dataclass(frozen=True, slots=True)
class Interleaved:
    """Streams as one log, by time: clients, who (n,) index into them, inputs (n, d), is_attack (n,), times_s (n,)."""

    clients: list[str]
    who: NDArray[np.int32]
    inputs: Rows
    is_attack: NDArray[np.bool_]
    times_s: Rows


def clock(
    n: int, rng: np.random.Generator, start_s: float = 0.0, horizon_s: float = HORIZON_S, slow: bool = False
) -> Rows:
    """(n,) ascending times of one client: a life within the horizon, sessions in it, log-normal gaps in a session.

    Nothing in it depends on the role, and only the rate on n. `slow` asks for a life as long as the horizon, which
    honest clients have too.
    """
    begin = rng.uniform(0.0, 0.05 if slow else 0.6) * horizon_s
    life = (horizon_s - begin) * (rng.uniform(0.9, 1.0) if slow else 10.0 ** rng.uniform(-2.5, 0.0))
    sessions = 1 + int(rng.poisson(4))
    which = rng.choice(sessions, size=n, p=rng.dirichlet(np.ones(sessions)))
    times = []
    for k in range(sessions):
        m = int((which == k).sum())
        length = life / sessions * 10.0 ** rng.uniform(-1.5, 0.0)
        opens = begin + rng.uniform(0.0, max(life - length, 1.0))
        gaps = np.exp(rng.normal(size=m) * 1.2)
        times.append(opens + np.cumsum(gaps) / max(gaps.sum(), 1e-9) * length)
    out: Rows = np.sort(np.round(start_s + np.concatenate(times), 3))
    return out


def account_name(rng: np.random.Generator) -> str:
    return f"acct-{int(rng.integers(0, 2**40)):010x}"


def honest_stream(
    kind: str, pools: HonestPools, rng: np.random.Generator, start_s: float = 0.0, horizon_s: float = HORIZON_S
) -> Stream:
    """One honest client. Raises KeyError for an unknown kind."""
    n = BENIGN[kind].queries(rng)
    rows = pools.played.get(kind, BENIGN[kind].generate)(pools, n, rng)
    return Stream(
        account_name(rng), "benign", kind, "", "", rows, np.zeros(n, dtype=bool), clock(n, rng, start_s, horizon_s)
    )


def theft_streams(
    family: str, variant: str, pools: HonestPools, predict: Predict, rng: np.random.Generator, queries: int = 1000,
    start_s: float = 0.0, horizon_s: float = HORIZON_S, stolen: Rows | None = None,
) -> list[Stream]:  # fmt: skip
    """The accounts of one theft of `queries` stolen answers in all; cover traffic comes on top.

    stolen   (queries, d) what somebody else's attack code sent; None: the family of `ATTACKS` does it here

    Raises KeyError for an unknown family or variant.
    """
    how = VARIANTS[variant]
    run = f"{family}/{variant}/{int(rng.integers(0, 2**24)):06x}"
    if stolen is None:
        stolen = steal(family, AttackerKnowledge(pools.domain, pools.own, pools.foreign), predict, queries, rng)
    rows, mask = stolen, np.ones(queries, dtype=bool)
    if how.share < 1.0:
        total = round(queries / how.share)
        mask = np.zeros(total, dtype=bool)
        mask[rng.choice(total, size=queries, replace=False)] = True
        rows = np.empty((total, pools.domain.width))
        rows[mask], rows[~mask] = stolen, BENIGN["regular"].generate(pools, total - queries, rng)
    times = clock(len(rows), rng, start_s, horizon_s, how.slow)
    turns = np.arange(len(rows)) * how.accounts // len(rows) if how.handover else np.arange(len(rows)) % how.accounts
    return [
        Stream(account_name(rng), "attack", family, variant, run, rows[turns == k], mask[turns == k], times[turns == k])
        for k in range(how.accounts)
        if (turns == k).any()
    ]  # fmt: skip


def population(
    clients: int,
    rng: np.random.Generator,
    kinds: Sequence[str] | None = None,
    shares_of: Mapping[str, float] | None = None,
) -> list[str]:
    """Kinds of `clients` honest clients, shuffled: the shares of `BENIGN` or those given, every kind at least once if there is room."""
    known = {name: kind.share for name, kind in BENIGN.items()} if shares_of is None else shares_of
    names = list(known) if kinds is None else list(kinds)
    shares = np.array([known[k] for k in names])
    exact = shares / shares.sum() * clients
    counts = np.floor(exact).astype(int)
    if clients >= len(names):
        counts = np.maximum(counts, 1)
    while counts.sum() > clients:
        counts[counts.argmax()] -= 1
    for k in np.argsort(counts - exact, kind="stable")[: clients - counts.sum()]:
        counts[k] += 1
    return [str(name) for name in rng.permutation(np.repeat(names, counts))]


def simulated_population(
    pools: HonestPools, predict: Predict, rng: np.random.Generator, *, clients: int = 300, kinds: Sequence[str] | None = None,
    attacks: Sequence[tuple[str, str]] = (), queries: tuple[int, int] = (400, 4000),
    drip_queries: Mapping[float, int] | None = None, start_s: float = 0.0, horizon_s: float = HORIZON_S,
) -> list[Stream]:  # fmt: skip
    """A population of honest clients and one theft for each (family, variant) of `attacks`, in random order.

    queries       a theft's budget is log-uniform between these two
    drip_queries  share → most stolen answers of a drip with that share (default {0.5: 1500, 0.1: 500}): cover costs
    """
    most = {0.5: 1500, 0.1: 500} if drip_queries is None else drip_queries
    streams: list[Stream] = []
    for kind, child in zip(population(clients, rng, kinds), rng.spawn(clients), strict=True):
        streams.append(honest_stream(kind, pools, child, start_s, horizon_s))
    for (family, variant), child in zip(attacks, rng.spawn(len(attacks)), strict=True):
        budget = round(float(np.exp(child.uniform(np.log(queries[0]), np.log(queries[1])))))
        budget = min(budget, most.get(VARIANTS[variant].share, budget))
        streams.extend(theft_streams(family, variant, pools, predict, child, budget, start_s, horizon_s))
    return [streams[i] for i in rng.permutation(len(streams))]


def honest_streams(
    reference: Rows,
    labels: NDArray[np.integer[Any]],
    clients: int,
    rng: np.random.Generator,
    horizon_s: float = HORIZON_S,
) -> list[Stream]:
    """Honest clients only, drawn from a reference (n, d) and its classes (n,), below 0 where there is none."""
    domain = Domain.of(reference)
    foreign = strangers(domain, reference, rng)
    pools = HonestPools(domain, domain.emit(reference), np.maximum(labels, 0).astype(np.int64), foreign[:0], foreign)
    kinds = population(clients, rng)
    return [
        honest_stream(kind, pools, child, 0.0, horizon_s) for kind, child in zip(kinds, rng.spawn(clients), strict=True)
    ]


def interleave(streams: Sequence[Stream]) -> Interleaved:
    """All queries as one log in time order; equal times keep the order of the streams, clients their sending order."""
    times = np.concatenate([s.times_s for s in streams])
    order = np.argsort(times, kind="stable")
    who = np.repeat(np.arange(len(streams), dtype=np.int32), [len(s.times_s) for s in streams])
    return Interleaved(
        [s.client for s in streams], who[order], np.vstack([s.inputs for s in streams])[order],
        np.concatenate([s.is_attack for s in streams])[order], times[order],
    )  # fmt: skip
