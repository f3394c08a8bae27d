"""Shared patches: a campaign that nothing else ties together shows in how many odd accounts have near-duplicate odd queries.

One honest account in twenty is odd for its size (size_null.py), and honest oddity lies in many places. Accounts that share the work of
one theft are odd in the same patches (patches.py). So a patch that too many accounts have, all of them odd for their size, is a link.

Rules:

* A patch that calibration clients have too is no link, or only for many more accounts: an application or a test that many use makes
  patches as well. How many of the accounts are expected to be honest is the share of the calibration clients that are odd for their size
  and have the patch, one more than there are, times the accounts of the fleet. At most `MOST_HONEST` of those tied may be.
* A group is the accounts of one patch. Another patch is taken for the same group, and adds nobody, if half of its accounts are in it.
* How many of a group's accounts are honest is bounded at `CONFIDENCE`, for each group by itself and not for all groups together.
* The number is tested, never an account. A link proposes: the group must also be odd among groups of one tool
  (`campaigns.assess_group` by content), and a person confirms the members.
* Where more than `POPULATION` of all accounts are odd for their size the baseline is out of date, and nobody is tied.
* It cannot know that the calibration clients are like today's. A kind of client that they lack may be taken for a campaign.

It does not work for in-domain theft, for accounts that are not odd for their size (most that ask many honest queries), for fewer than
`LEAST` accounts, nor where each account has a region of the input space of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.fleet import CONFIDENCE, FEWEST_ACCOUNTS, MOST_HONEST, POPULATION, largest_share, most_of

LEVEL = 0.05
"""P-value up to which an account counts as odd for its size; all others have no patches here."""
LEAST = 10
SAME = 0.5
"""Part of a patch's accounts that must be in a group already, for the patch to be of that group."""
MISS = (1 - CONFIDENCE) / 2


@dataclass(frozen=True, slots=True)
class PatchGroup:
    """Accounts that are odd for their size, in a patch that they share.

    patches   their patch, then those that mostly the same accounts have; accounts: (k,) rows, ascending
    honest_at_most  how many of them are honest, with `CONFIDENCE`
    """

    patches: tuple[str, ...]
    accounts: NDArray[np.int64]
    honest_at_most: int


@dataclass(frozen=True, slots=True)
class OddAccounts:
    """Those of some accounts that are odd for their size, and what patches they have.

    count    of all accounts; odd: how many of them are odd for their size
    holders  patch → rows of the odd accounts that have it
    unknown  odd accounts of which nobody knows the patches: they may have any
    """

    count: int
    odd: int
    holders: dict[str, list[int]]
    unknown: int = 0

    @classmethod
    def of(cls, p_values: NDArray[np.float64], patches: Sequence[Sequence[str] | None]) -> OddAccounts:
        """p_values (n,) of each among honest clients of its size; patches: keyed hashes of each, None where they are not known."""
        holders: dict[str, list[int]] = {}
        odd = np.flatnonzero(p_values <= LEVEL).tolist()
        for row in odd:
            for patch in patches[row] or ():
                holders.setdefault(patch, []).append(row)
        return cls(len(p_values), len(odd), holders, sum(patches[row] is None for row in odd))

    def having(self, patch: str) -> int:
        """How many odd accounts have a patch, or may have it."""
        return len(self.holders.get(patch, ())) + self.unknown


def patch_groups(fleet: OddAccounts, honest: OddAccounts) -> list[PatchGroup]:
    """Return the groups of accounts that share odd patches, the largest first.

    Parameters
    ----------
    fleet : OddAccounts
        All accounts of a model.
    honest : OddAccounts
        The calibration clients, with their patches under the same hash.

    Notes
    -----
    The bound is that of the fleet test: the upper bound of the calibration clients' share (Clopper and Pearson 1934), then as many draws
    as there are accounts. Where no calibration client has the patch, that share is about 3.7 divided by their number: so large a part of
    the fleet must a campaign be.

    Examples
    --------
    >>> honest = OddAccounts.of(np.full(200, 0.5), [()] * 200)
    >>> odd = np.array([0.01] * 20 + [0.5] * 380)
    >>> [group] = patch_groups(OddAccounts.of(odd, [("a",)] * 400), honest)
    >>> group.patches, len(group.accounts), group.honest_at_most
    (('a',), 20, 13)
    """
    if fleet.count < FEWEST_ACCOUNTS or fleet.odd > POPULATION * fleet.count or not honest.count:
        return []
    most_honest: dict[int, int] = {}
    chosen: list[tuple[list[str], list[int], int]] = []
    for patch, accounts in sorted(fleet.holders.items(), key=lambda one: (-len(one[1]), one[0])):
        among = honest.having(patch)
        expected = fleet.count * (among + 1) / (honest.count + 1)
        if len(accounts) < LEAST or expected > MOST_HONEST * len(accounts):
            continue
        if among not in most_honest:
            most_honest[among] = most_of(fleet.count, largest_share(among, honest.count, MISS), MISS)
        if most_honest[among] >= len(accounts):
            continue
        mine = frozenset(accounts)
        same = next((names for names, rows, _ in chosen if len(mine.intersection(rows)) >= SAME * len(mine)), None)
        if same is None:
            chosen.append(([patch], accounts, most_honest[among]))
        else:
            same.append(patch)
    return [PatchGroup(tuple(names), np.array(rows, np.int64), bound) for names, rows, bound in chosen]
