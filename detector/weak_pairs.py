"""Weak pairs: accounts that share two weak links, where too many of them are odd for their size.

Thousands of honest accounts use one client software or pay for one plan, and hundreds began on one day. Each of these ties nobody, or a
campaign together with many strangers among whom it is not seen. Both at once are shared by few strangers: of 2,000 honest accounts 100
have the software of a thief and 240 began on the day of its accounts, but 12 did both.

Rules:

* A start is a weak link that every account has: the day of its first query to a model, counted from midnight and from noon. Accounts
  that were opened together share one, and so do those that all moved to a new model on the day of its release.
* A pair proposes its accounts if more of them are odd for their size than chance explains: fewer than `CHANCE` such pairs are expected
  among all that the accounts have. How many that are is bounded from above, so a large fleet is not searched.
* Of pairs that mostly the same accounts have, the least expected counts. A pair whose accounts are largely those of a single link says
  nothing new. There are no chains: all accounts of a pair have both links.
* It proposes and accuses nobody: colleagues share an address and their software, and a tool has a software of its own. The group is judged
  as one that a weak link ties (`campaigns`).

It does not work for a campaign that shares one weak link alone, and for accounts that are not odd for their size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

from detector.campaigns import FEWEST, most_tied
from detector.fleet import most_of
from detector.patch_groups import LEVEL

CHANCE = 0.001
SAME = 0.5
"""Pairs whose accounts overlap so far (Jaccard) count as one."""
SAME_AS_ONE = 0.8
"""A pair whose accounts overlap so far (Jaccard) with those of one link is no other group than the link's."""
OF_AN_ACCOUNT = 32
"""Pairs that tell of an account, more than one with four addresses, a software, a plan and its start has. Accounts whose links are
shuffled on purpose would make tens of thousands."""
START = "start"
"""Kind of link of accounts that began on one day."""
HALF_DAY_MS = 43_200_000

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class WeakPair(Generic[K]):
    """links: the two that all its accounts share; accounts in the order given; odd: how many of them are odd for their size."""

    links: tuple[str, str]
    accounts: tuple[K, ...]
    odd: int


def starts(first_ms: int) -> tuple[str, str]:
    """Return the day on which an account began, as two links: of the day from midnight, and of that from noon.

    >>> starts(86_400_000 * 3 + 50_000_000)
    ('start:6', 'start:7')
    >>> starts(86_400_000 * 4 + 10)
    ('start:8', 'start:7')
    """
    half = first_ms // HALF_DAY_MS
    return f"{START}:{half - half % 2}", f"{START}:{half - (half + 1) % 2}"


def weak_pairs(links: Mapping[K, Sequence[str]], p_values: Mapping[K, float]) -> list[WeakPair[K]]:
    """Return the pairs of weak links that too many odd accounts share, the least expected first.

    Parameters
    ----------
    links : Mapping
        Account → its weak links, ``kind:value``, starts among them. Two links of one kind make no pair.
    p_values : Mapping
        Account → its p-value among honest clients of its size.

    Notes
    -----
    The number of odd accounts of a pair is binomial if honest accounts are odd independently of each other; of all accounts as many are
    odd as are seen to be, at least `LEVEL`. Bonferroni's correction is over all pairs of at least three accounts that there can be.

    Examples
    --------
    >>> links = {i: [f"agent:{i % 4}", f"start:{i % 5}"] for i in range(400)}
    >>> [pair] = weak_pairs(links, {i: 0.5 if i % 20 else 0.01 for i in range(400)})
    >>> pair.links, len(pair.accounts), pair.odd
    (('agent:0', 'start:0'), 20, 20)
    """
    sharing: dict[str, list[K]] = {}
    for account, seen in links.items():
        for link in dict.fromkeys(seen):
            sharing.setdefault(link, []).append(account)
    sharing = {link: accounts for link, accounts in sharing.items() if len(accounts) >= FEWEST}
    odd_in: Counter[tuple[str, str]] = Counter()
    tried = odd = 0
    for account, seen in links.items():
        kept = sorted({link for link in seen if link in sharing})
        tried += len(kept) * (len(kept) - 1) // 2
        if p_values[account] <= LEVEL:
            odd += 1
            odd_in.update(pair for pair in combinations(kept, 2) if _kind(pair[0]) != _kind(pair[1]))
    share = max(LEVEL, odd / max(1, len(links)))
    miss = CHANCE * FEWEST / max(FEWEST, tried)
    holders = {link: frozenset(sharing[link]) for link in {link for pair in odd_in for link in pair}}
    most: dict[int, int] = {}
    found: list[tuple[float, WeakPair[K]]] = []
    for pair, count in odd_in.items():
        fewer, more = sorted(pair, key=lambda link: (len(sharing[link]), link))
        if count < FEWEST:
            continue
        accounts = tuple(account for account in sharing[fewer] if account in holders[more])
        n = len(accounts)
        if n not in most:
            most[n] = most_of(n, share, miss)
        if count > most[n] and n <= most_tied(more, len(links)) and not _known(accounts, links, sharing):
            surprise = count * math.log(count / (n * share)) - (count - n * share)
            found.append((surprise, WeakPair(pair, accounts, count)))
    return _unlike([one for _, one in sorted(found, key=lambda one: (-one[0], one[1].links))])


def _unlike(pairs: Sequence[WeakPair[K]]) -> list[WeakPair[K]]:
    """The pairs that are not largely one before them, each account's share of them bounded."""
    chosen: list[WeakPair[K]] = []
    places: dict[K, list[int]] = {}
    for one in pairs:
        told = [places.get(account, []) for account in one.accounts]
        if 2 * sum(len(some) >= OF_AN_ACCOUNT for some in told) > len(told):
            continue
        common = Counter(place for some in told for place in some)
        if all(n < SAME * (len(told) + len(chosen[i].accounts) - n) for i, n in common.items()):
            for account in one.accounts:
                places.setdefault(account, []).append(len(chosen))
            chosen.append(one)
    return chosen


def ties_alone(link: str, accounts: int, fleet: int) -> bool:
    """Whether a link makes a group by itself, given how many accounts share it and how many the fleet has."""
    return _kind(link) != START and accounts <= most_tied(link, fleet)


def _known(accounts: Sequence[K], links: Mapping[K, Sequence[str]], sharing: Mapping[str, Sequence[K]]) -> bool:
    """Whether accounts are largely those that one link ties by itself."""
    shared = Counter(link for account in accounts for link in set(links[account]) if link in sharing)
    return any(
        both >= SAME_AS_ONE * (len(accounts) + len(sharing[link]) - both)
        and ties_alone(link, len(sharing[link]), len(links))
        for link, both in shared.items()
    )


def _kind(link: str) -> str:
    return link.partition(":")[0]
