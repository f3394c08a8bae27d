"""Campaigns: links accounts that act as one into groups, and assesses each group.

A thief splits a theft over accounts so that each stays small. Finding it takes two steps:

1. Candidates come from *links*: keyed hashes of what accounts have in common (organisation, address, session, TLS fingerprint). A group
   is the accounts of a single link. Two links make one group only if their accounts largely agree, because single linkage would chain
   strangers into one group.
2. The members of a group are judged, each by its own excess, and compared with honest clients of their sizes (group_statistic.py). A
   link proposes, the statistic decides: an office, a university or a reseller shares a link too.

Rules:

* A link that a large part of all accounts share ties nobody (a cloud's egress, a browser): see `most_tied`.
* A strong link says who somebody is: all its accounts are members of a campaign. A weak one says where from, and honest accounts share it
  too, in groups of any size. Of its accounts those are named that are odd for their size (p at most `ODD_ENOUGH`), as many as keep the
  expected share of honest ones at `FALSE_SHARE` (`members_to_name`); where that keeps fewer than `FEWEST`, all that are odd for their
  size, and more of them may be honest. The others share the link, and nothing is said about them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from detector.baseline import Baseline
from detector.group_statistic import GroupTest, Members, compared
from detector.profile import Profile
from detector.scoring import SHOWN, SPECIFIC, TEXT_SPECIFIC, Assessment, Evidence, leading
from detector.signals import SIGNALS, TEXT_SIGNALS, Statistics, measure_each

FEWEST, MOST = 3, 25_000
FEW_ENOUGH = 200
"""A link that at most this number of accounts share is never too common."""
WEAK_SHARE, STRONG_SHARE = 0.25, 0.5
"""Share of all accounts beyond which a weak link, and a strong one, tie nobody, unless they are few."""
STRONG = ("org:", "session:", "payment:", "device:", "registration:", "who.")
"""Beginnings of links that say who somebody is, not where from."""
SAME = 0.5
"""Two links whose accounts overlap so far (Jaccard) make one group."""
FALSE_SHARE = 0.05
ODD_ENOUGH = 0.2
"""P-value among honest clients of its size up to which an account may be named over a weak link."""

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Group(Generic[K]):
    """links: the hashes that its accounts share, the oldest first; members in the order given."""

    links: tuple[str, ...]
    members: tuple[K, ...]

    def bound(self, links: Iterable[Sequence[str]]) -> NDArray[np.bool_]:
        """Return which members have one of its strong links, (m,) bool. links: those of each member, in the order of the members."""
        strong = {link for link in self.links if link.startswith(STRONG)}
        return np.array([not strong.isdisjoint(seen) for seen in links], np.bool_)


def most_tied(link: str, accounts: int) -> int:
    """Return how many accounts a link may tie in a fleet of `accounts`.

    >>> most_tied("org:1", 100), most_tied("ip:1", 100_000), most_tied("org:1", 100_000)
    (200, 25000, 25000)
    >>> most_tied("ip:1", 10_000)
    2500
    """
    share = STRONG_SHARE if link.startswith(STRONG) else WEAK_SHARE
    return min(MOST, max(FEW_ENOUGH, int(share * accounts)))


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
    Without links there are no groups here: a theft split over accounts that nothing links is not found this way.

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
    found: list[tuple[list[str], set[K]]] = []
    groups_of: dict[K, list[int]] = {}
    for link, accounts in sorted(sharing.items()):
        if not FEWEST <= len(accounts) <= most_tied(link, len(links)):
            continue
        common = Counter(place for account in accounts for place in groups_of.get(account, ()))
        for place, both in sorted(common.items()):
            names, members = found[place]
            either = len(accounts) + len(members) - both
            if both >= SAME * either and either <= MOST:
                names.append(link)
                break
        else:
            place, members = len(found), set()
            found.append(([link], members))
        for account in accounts:
            if account not in members:
                members.add(account)
                groups_of.setdefault(account, []).append(place)
    order = {account: i for i, account in enumerate(links)}
    return [Group(tuple(names), tuple(sorted(members, key=order.__getitem__))) for names, members in found]


def named_of(p_values: NDArray[np.float64], bound: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which members of a suspicious group its campaign consists of.

    Parameters
    ----------
    p_values : (m,) float64
        Of each member among honest clients of its size.
    bound : (m,) bool
        Whether a member has a strong link of the group (`Group.bound`): it is named whatever its p-value.

    Returns
    -------
    (m,) bool
        Nobody, where all that ties the group is weak and no member is odd for its size.

    Notes
    -----
    Over a weak link no account with a p-value above `ODD_ENOUGH` is named. Where `members_to_name` keeps fewer than `FEWEST`,
    all that are odd enough are named: of few thieves among many strangers most of those named are strangers.

    Examples
    --------
    >>> named_of(np.array([0.01, 0.01, 0.02, 0.02, 0.6]), np.zeros(5, bool))
    array([ True,  True,  True,  True, False])
    >>> named_of(np.array([0.01, 0.6]), np.ones(2, bool))
    array([ True,  True])
    """
    odd = p_values <= ODD_ENOUGH
    those = (members_to_name(p_values) & odd) | bound
    return those if those.sum() >= FEWEST else odd | bound


def merged(profiles: Sequence[Profile]) -> Profile:
    """Merge the profiles of all members into one.

    Raises IncompatibleProfile across maps, ValueError without any member.
    """
    if not profiles:
        raise ValueError("a group without members")
    return reduce(lambda a, b: a.merge(b), profiles)


def assess_group(
    profiles: Sequence[Profile], baseline: Baseline, in_order: Sequence[bool] | None = None, by_content: bool = False
) -> Assessment:
    """Assess a group.

    Parameters
    ----------
    profiles : Sequence of Profile
        Of its members, at least one, all of the map of `baseline`; of more than `group_statistic.MOST_JUDGED` members a random sample.
    baseline : Baseline
    in_order : Sequence of bool or None
        Whether each member was seen in one log cell; None: all were.
    by_content : bool
        The group was found by what its members ask, and such a group is of one kind by construction: it must be odd among groups in
        which all members are the same honest client or tool, too (`GroupTest.by_content`).

    Returns
    -------
    Assessment
        The p-value is that of a group of these members' sizes, the evidence that of all members together.

    Raises
    ------
    IncompatibleProfile
        A profile belongs to another feature map.
    ValueError
        There are no profiles.
    """
    whole = merged(profiles)
    ordered = np.ones(len(profiles), np.bool_) if in_order is None else np.array(in_order, np.bool_)
    measured = measure_each(profiles, baseline.table)
    test = compared(Members(measured, ordered), baseline)
    p_value = test.by_content if by_content else test.p_value
    evidence, odd, family = _told(test, measured, of_texts=baseline.map.schema.of_texts)
    return Assessment(
        queries=whole.queries,
        distinct=whole.distinct,
        misfit=whole.misfit,
        p_value=p_value,
        content_p_value=p_value,
        suspicion=1.0 - p_value,
        calibrated=baseline.calibration.calibrated,
        in_order=False,
        fused=test.fused,
        odd=odd,
        family=family if p_value <= SHOWN else "unknown",
        evidence=evidence,
    )


def _told(test: GroupTest, measured: Sequence[Statistics], of_texts: bool) -> tuple[tuple[Evidence, ...], float, str]:
    """Evidence of a group, the most telling signal first; the odd queries behind that signal, and its family."""
    value, units = np.zeros(len(SIGNALS)), np.ones(len(SIGNALS))
    value[test.signals], units[test.signals] = test.sums, test.units
    count, base = (np.sum([getattr(s, name) for s in measured], axis=0) for name in ("count", "base"))
    listed = sorted(np.flatnonzero(value > 0).tolist(), key=lambda i: (-value[i] / units[i], SIGNALS[i].name))
    table = TEXT_SIGNALS if of_texts else SIGNALS
    share = count / np.maximum(base, 1.0)
    lead = leading(listed, (value / units).tolist(), share.tolist(), TEXT_SPECIFIC if of_texts else SPECIFIC)
    if lead is None:
        return (), 0.0, "unknown"
    listed.sort(key=lambda i: i != lead)
    p_of = dict(zip(test.signals.tolist(), test.signal_p.tolist(), strict=True))
    evidence = tuple(
        Evidence(
            table[i].name,
            float(value[i]),
            p_of[i],
            table[i].text.format(count=f"{round(float(count[i])):,}", base=f"{max(1, round(float(base[i]))):,}")
            + f"; without the oddest fifth of the members the excess is {value[i]:,.0f}, and {units[i]:,.0f} in the oddest honest groups",
        )
        for i in listed
    )
    return evidence, float(count[lead]), table[lead].family


def members_to_name(p_values: NDArray[np.float64], false_share: float = FALSE_SHARE) -> NDArray[np.bool_]:
    """Return which members of a suspicious group to name, so that at most a share of them is expected to be honest.

    Parameters
    ----------
    p_values : (m,) float64
        Of each member among honest clients of its size.
    false_share : float

    Returns
    -------
    (m,) bool
        All, where hardly any honest client is among them; otherwise those with the smallest p-values.

    Notes
    -----
    Storey 2002, with λ = .5: twice the share of the members above it is the share of honest ones. A thief that asks mostly honest queries
    has a large p-value and is left out.

    Examples
    --------
    >>> bool(members_to_name(np.array([0.01] * 60)).all())
    True
    >>> int(members_to_name(np.concatenate([np.full(30, 0.001), np.linspace(0.02, 1.0, 50)])).sum())
    31
    """
    m = len(p_values)
    honest = min(1.0, 2.0 * float((p_values > 0.5).sum() + 1) / m) if m else 1.0
    order = np.sort(p_values)
    expected = honest * m * order / np.arange(1, m + 1)
    kept = np.flatnonzero(expected <= false_share)
    return np.asarray(p_values <= (order[kept[-1]] if len(kept) else -1.0), np.bool_)
