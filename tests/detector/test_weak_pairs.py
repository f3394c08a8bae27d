"""Weak pairs: what two links that strangers share say together, and what they do not say."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom

from detector.campaigns import FEWEST
from detector.patch_groups import LEVEL
from detector.weak_pairs import CHANCE, HALF_DAY_MS, OF_AN_ACCOUNT, SAME_AS_ONE, starts, ties_alone, weak_pairs

Fleet = tuple[dict[int, list[str]], dict[int, float]]
DAY_MS = 2 * HALF_DAY_MS


def honest(accounts: int, seed: int) -> Fleet:
    """Accounts with a software, a plan, some behind an address of an office, that start whenever they like."""
    rng = np.random.default_rng(seed)
    agent = rng.choice(20, accounts, p=(weight := 1.0 / np.arange(2, 22)) / weight.sum())
    plan, office = rng.choice(3, accounts, p=(0.5, 0.3, 0.2)), rng.integers(0, 60, accounts)
    first = rng.integers(0, 10 * DAY_MS, accounts)
    links = {
        i: [f"agent:{agent[i]}", f"plan:{plan[i]}", *([f"ip:{office[i]}"] if office[i] < 20 else []), *starts(int(first[i]))]
        for i in range(accounts)
    }  # fmt: skip
    return links, dict(enumerate(rng.uniform(size=accounts).tolist()))


def with_theft(fleet: Fleet, accounts: int, own: list[str], seed: int) -> range:
    """Adds accounts of which three in four are odd for their size; returns them."""
    links, p_values = fleet
    rng, strangers = np.random.default_rng(seed), list(links.values())
    thieves = range(len(links), len(links) + accounts)
    for i in thieves:
        others = [link for link in strangers[rng.integers(len(strangers))] if link[:3] not in {one[:3] for one in own}]
        links[i] = own + others
        p_values[i] = float(rng.uniform(0, LEVEL) if rng.random() < 0.75 else rng.uniform())
    return thieves


@pytest.mark.parametrize(
    "own", [["agent:3", "plan:0"], ["agent:3", *starts(4 * DAY_MS)], ["ip:5", *starts(4 * DAY_MS)]]
)
def test_a_campaign_with_two_weak_links_is_proposed(own: list[str]) -> None:
    for seed in range(5):
        fleet = honest(2000, seed)
        thieves = with_theft(fleet, 60, own, seed)
        best = weak_pairs(*fleet)[0]
        assert set(thieves) <= set(best.accounts)
        assert set(best.links) <= set(own)
        assert all(set(best.links) <= set(fleet[0][account]) for account in best.accounts)  # no chains
        assert len(best.accounts) < 60 + 100


@pytest.mark.parametrize("accounts", [60, 400, 2000, 5000])
def test_honest_accounts_that_share_what_they_like_are_not_proposed(accounts: int) -> None:
    """The control: as many pairs, and oddness that has nothing to do with them."""
    assert sum(bool(weak_pairs(*honest(accounts, seed))) for seed in range(20)) <= 1


def test_the_same_accounts_without_oddness_are_not_proposed() -> None:
    fleet = honest(2000, 1)
    for thief in with_theft(fleet, 60, ["agent:3", "plan:0"], 1):
        fleet[1][thief] = 0.5
    assert weak_pairs(*fleet) == []


@pytest.mark.parametrize("seed", range(6))
def test_what_is_proposed_is_what_counting_all_pairs_finds(seed: int) -> None:
    """The slow twin counts every pair and asks the binomial distribution itself."""
    fleet = honest(500, seed)
    with_theft(fleet, 25, ["agent:3", *starts(4 * DAY_MS)], seed)
    links, p_values = fleet
    of = {link: {a for a, seen in links.items() if link in seen} for seen in links.values() for link in seen}
    of = {link: accounts for link, accounts in of.items() if len(accounts) >= FEWEST}
    odd = {a for a, p in p_values.items() if p <= LEVEL}
    share = max(LEVEL, len(odd) / len(links))
    tried = sum(len(list(combinations({x for x in seen if x in of}, 2))) for seen in links.values())
    expected = {}
    for x, y in combinations(sorted(of), 2):
        both = of[x] & of[y]
        same = any(
            len(both & of[z]) >= SAME_AS_ONE * len(both | of[z]) and ties_alone(z, len(of[z]), len(links)) for z in of
        )
        if x.partition(":")[0] == y.partition(":")[0] or len(both & odd) < FEWEST or same:
            continue
        if binom.sf(len(both & odd) - 1, len(both), share) <= CHANCE * FEWEST / tried:
            expected[x, y] = both
    found = {pair.links: set(pair.accounts) for pair in weak_pairs(links, p_values)}
    assert found
    assert found.items() <= expected.items()
    for pair, both in expected.items():  # what was left out is mostly one that was taken
        assert pair in found or any(2 * len(both & taken) >= len(both | taken) for taken in found.values())


def test_two_values_of_one_kind_and_the_accounts_of_one_link_are_no_pair() -> None:
    links = {i: ["ip:1", "ip:2"] if i < 40 else ["agent:0"] for i in range(400)}
    assert weak_pairs(links, {i: 0.01 if i < 40 else 0.5 for i in links}) == []
    office = {i: ["ip:1", "agent:1"] if i < 40 else ["agent:0"] for i in range(400)}
    assert weak_pairs(office, {i: 0.01 if i < 40 else 0.5 for i in links}) == []
    assert weak_pairs({}, {}) == []


def test_accounts_whose_links_are_shuffled_make_no_flood_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pair is looked at by who judges groups, and a pass must end."""
    rng = np.random.default_rng(5)
    links, p_values = honest(3000, 5)
    hostile = range(len(links), len(links) + 200)
    for i in hostile:
        links[i] = [
            f"{kind}:h{v}" for kind in ("ip", "asn_ja4", "agent", "plan", "where.a") for v in rng.choice(10, 4, False)
        ]
        p_values[i] = 0.01

    def told() -> int:
        return sum(len(one.accounts) for one in weak_pairs(links, p_values))

    bounded = told()
    assert 0 < bounded <= 2 * OF_AN_ACCOUNT * len(hostile)
    monkeypatch.setattr("detector.weak_pairs.OF_AN_ACCOUNT", 10**9)
    assert told() > 2 * bounded, "the control: nothing else bounds them"
