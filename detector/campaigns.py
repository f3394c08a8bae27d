"""Campaigns: links accounts that act as one into groups, and assesses each group like a client.

A thief splits a theft over accounts so that each stays small. A *group* is the merged profile of its members, assessed like a client, in
two steps:

1. Candidates come from *links*: keyed hashes of what accounts have in common (organisation, address, session, TLS fingerprint). A link
   that many clients share connects nobody (an office, a cloud's egress, a browser). A group is the accounts of a single link. Two links
   make one group only if their accounts largely agree, because single linkage would chain strangers into one group.
2. The merged profile is measured by the *order-free signals*. A group of m accounts adds up the granted shares and the oddities of m
   honest clients, so its null distribution is that of m honest clients together: drawn independently, or, with weight `ALIKE`, m times
   the same client, because colleagues use the same tools.

Rules:

* No group without a link: on four logs with split thefts, grouping by likeness of content alone flagged more honest accounts than thieves
  (docs/decisions/0009).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Generic, TypeVar

import numpy as np

from detector.baseline import Baseline
from detector.calibration import Tail
from detector.profile import Profile
from detector.scoring import Assessment, assess
from detector.signals import FREE, fuse

FEWEST, MOST = 3, 200
COMMON_SHARE = 0.02
"""A link that more accounts than this share of all have in common ties nobody, unless they are few (`FEW_ENOUGH`) or it is `STRONG`."""
FEW_ENOUGH = 20
STRONG = ("org:", "session:")
"""Kinds of links that say who somebody is, not where from: they tie up to `MOST` accounts, and the null of the group's size judges."""
SAME = 0.5
"""Two links whose accounts overlap so far (Jaccard) make one group."""
ALIKE = 0.05
DRAWS = 1000

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Group(Generic[K]):
    """links: the hashes that its accounts share, the oldest first; members in the order given."""

    links: tuple[str, ...]
    members: tuple[K, ...]


def candidates(links: Mapping[K, Sequence[str]]) -> list[Group[K]]:
    """Return the groups of accounts that share a link; each account may be in several.

    Parameters
    ----------
    links : Mapping
        Account → the keyed hashes that it was seen with; kinds in `STRONG` begin with their name.

    Returns
    -------
    list of Group
        Of `FEWEST` to `MOST` accounts each, by the names of their links.

    Notes
    -----
    Without links there are no groups: a theft split over accounts that nothing links is not found here (docs/decisions/0009).

    Examples
    --------
    >>> groups = candidates({"a": ["org:1"], "b": ["org:1"], "c": ["org:1"], "d": ["org:2"]})
    >>> [(group.links, group.members) for group in groups]
    [(('org:1',), ('a', 'b', 'c'))]
    """
    sharing: dict[str, list[K]] = {}
    for account, seen in links.items():
        for link in dict.fromkeys(seen):
            sharing.setdefault(link, []).append(account)
    most = min(MOST, max(FEW_ENOUGH, int(COMMON_SHARE * len(links))))
    found: list[tuple[list[str], set[K]]] = []
    for link, accounts in sorted(sharing.items()):
        if not FEWEST <= len(accounts) <= (MOST if link.startswith(STRONG) else most):
            continue
        own = set(accounts)
        for names, members in found:
            if len(own & members) >= SAME * len(own | members) and len(own | members) <= MOST:
                names.append(link)
                members |= own
                break
        else:
            found.append(([link], own))
    return [Group(tuple(names), tuple(a for a in links if a in members)) for names, members in found]


def merged(profiles: Sequence[Profile]) -> Profile:
    """Merge the profiles of all members into one.

    Raises IncompatibleProfile across maps, ValueError without any member.
    """
    if not profiles:
        raise ValueError("a group without members")
    return reduce(lambda a, b: a.merge(b), profiles)


def group_tail(baseline: Baseline, members: int) -> Tail:
    """Return the null distribution of the order-free fused score of `members` honest clients together.

    It is drawn from the lifetime maxima of the calibration, with a seed that depends on `members` alone: the same for every process.
    """
    maxima, scale = baseline.calibration.lifetime_maxima.astype(np.float64), baseline.calibration.scale
    rng = np.random.default_rng(members)
    together = maxima[rng.integers(len(maxima), size=(DRAWS, members))].sum(1)
    same = maxima[rng.integers(len(maxima), size=int(DRAWS * ALIKE / (1 - ALIKE)))] * members
    return Tail.fit(np.asarray(fuse(np.vstack([together, same]), scale, FREE), np.float64))


def assess_group(profiles: Sequence[Profile], baseline: Baseline) -> Assessment:
    """Assess a group as one client.

    Parameters
    ----------
    profiles : Sequence of Profile
        Of its members, at least one, all of the map of `baseline`.

    Returns
    -------
    Assessment
        Fused score and evidence of the merged profile, by the order-free signals; the p-value is that of a group of this size.

    Raises
    ------
    IncompatibleProfile
        A profile belongs to another feature map.
    ValueError
        There are no profiles.
    """
    whole = merged(profiles)
    alone = assess(whole, baseline, shards=2)
    p_value = max(group_tail(baseline, len(profiles)).p(alone.fused), alone.p_value)
    return dataclasses.replace(alone, p_value=p_value, suspicion=1.0 - p_value)
