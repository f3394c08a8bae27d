"""Simulated populations of text models: the same clock and variants as for numbers, with texts in place of rows.

Rules: as in `population.py`. A theft's cover traffic are honest texts of the kind ``free``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.simulation.domain import Rows
from detector.simulation.population import HORIZON_S, VARIANTS, account_name, clock, population
from detector.simulation.texts import TEXT_HONEST, TEXT_THEFTS, TextPools, Texts


@dataclass(frozen=True, slots=True)
class TextStream:
    """All texts of one client, in sending order; the rest as of `population.Stream`."""

    client: str
    role: str
    kind: str
    variant: str
    run: str
    texts: Texts
    is_attack: NDArray[np.bool_]
    times_s: Rows


def honest_texts(
    kind: str, pools: TextPools, rng: np.random.Generator, start_s: float = 0.0, horizon_s: float = HORIZON_S,
    most: int | None = None,
) -> TextStream:  # fmt: skip
    """One honest client, of at most `most` queries. Raises KeyError for an unknown kind."""
    n = TEXT_HONEST[kind].queries(rng)
    n = n if most is None else min(n, most)
    texts = TEXT_HONEST[kind].make(pools, n, rng)
    return TextStream(
        account_name(rng), "benign", kind, "", "", texts, np.zeros(n, np.bool_), clock(n, rng, start_s, horizon_s)
    )


def stolen_texts(
    family: str, variant: str, pools: TextPools, rng: np.random.Generator, queries: int,
    start_s: float = 0.0, horizon_s: float = HORIZON_S, stolen: Texts | None = None,
) -> list[TextStream]:  # fmt: skip
    """The accounts of one theft of `queries` answers; cover comes on top. stolen: what it sends, if that was chosen before.

    Raises KeyError for an unknown family or variant.
    """
    how = VARIANTS[variant]
    run = f"{family}/{variant}/{int(rng.integers(0, 2**24)):06x}"
    texts = TEXT_THEFTS[family].make(pools, queries, rng) if stolen is None else list(stolen)
    mask = np.ones(len(texts), np.bool_)
    if how.share < 1.0:
        total = round(len(texts) / how.share)
        mask = np.zeros(total, np.bool_)
        mask[rng.choice(total, size=len(texts), replace=False)] = True
        theirs, cover = iter(texts), iter(TEXT_HONEST["free"].make(pools, total - len(texts), rng))
        texts = [next(theirs) if taken else next(cover) for taken in mask.tolist()]
    times = clock(len(texts), rng, start_s, horizon_s, how.slow)
    turns = np.arange(len(texts)) * how.accounts // len(texts) if how.handover else np.arange(len(texts)) % how.accounts
    return [
        TextStream(
            account_name(rng), "attack", family, variant, run, [texts[i] for i in np.flatnonzero(turns == k).tolist()],
            mask[turns == k], times[turns == k],
        )
        for k in range(how.accounts)
        if (turns == k).any()
    ]  # fmt: skip


def text_population(
    pools: TextPools, rng: np.random.Generator, *, clients: int, kinds: Sequence[str] | None = None,
    attacks: Sequence[tuple[str, str]] = (), queries: tuple[int, int] = (400, 3000),
    start_s: float = 0.0, horizon_s: float = HORIZON_S,
) -> list[TextStream]:  # fmt: skip
    """Honest clients and one theft for each (family, variant), in random order; a theft's size is log-uniform between `queries`."""
    shares = {name: kind.share for name, kind in TEXT_HONEST.items()}
    streams: list[TextStream] = []
    for kind, child in zip(population(clients, rng, kinds, shares), rng.spawn(clients), strict=True):
        streams.append(honest_texts(kind, pools, child, start_s, horizon_s))
    for (family, variant), child in zip(attacks, rng.spawn(len(attacks)), strict=True):
        budget = round(float(np.exp(child.uniform(np.log(queries[0]), np.log(queries[1])))))
        streams += stolen_texts(family, variant, pools, child, budget, start_s, horizon_s)
    return [streams[i] for i in rng.permutation(len(streams)).tolist()]


def in_time_order(streams: Sequence[TextStream]) -> list[tuple[float, int, int]]:
    """(time, stream, place in it) of every query of a log; equal times keep the order of the streams."""
    times = np.concatenate([s.times_s for s in streams])
    who = np.repeat(np.arange(len(streams)), [len(s.times_s) for s in streams])
    place = np.concatenate([np.arange(len(s.times_s)) for s in streams])
    order = np.argsort(times, kind="stable")
    return list(zip(times[order].tolist(), who[order].tolist(), place[order].tolist(), strict=True))
