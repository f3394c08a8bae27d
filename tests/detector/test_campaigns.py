"""Groups of accounts: who is a candidate, and what a group of thieves and a group of colleagues come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.references import KEY, answered, fitted_baseline, reference_of

from detector.campaigns import (
    FALSE_SHARE,
    FEWEST,
    MOST,
    ODD_ENOUGH,
    SAME,
    Group,
    assess_group,
    candidates,
    members_to_name,
    merged,
    most_tied,
    named_of,
)
from detector.profile import Profile
from detector.profile_table import ProfileTable
from detector.scoring import assess

NAME = "digits"


def profile_of(rows: NDArray[np.float64]) -> Profile:
    baseline = fitted_baseline(NAME)
    batch = replace(answered(rows, baseline.map.classes), clients=["c"], who=np.zeros(len(rows), np.int32))
    table = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, half_horizon_ms=2**62)
    table.add(["c"], batch, baseline.map.measure(batch, KEY))
    return table.profile("c")


def noise(n: int, seed: int) -> NDArray[np.float64]:
    x = reference_of(NAME).traffic.inputs
    return np.random.default_rng(seed).uniform(x.min(0), x.max(0), (n, x.shape[1]))


def honest(n: int, seed: int) -> NDArray[np.float64]:
    x = reference_of(NAME).traffic.inputs
    return x[np.random.default_rng(seed).choice(len(x), n, replace=False)]


def test_a_split_theft_that_each_account_hides_is_seen_in_the_group() -> None:
    """Twenty accounts with four odd queries each: none has what a verdict needs, all together do."""
    baseline = fitted_baseline(NAME)
    parts = [profile_of(np.vstack([honest(10, i), noise(4, 100 + i)])) for i in range(20)]
    whole = assess_group(parts, baseline)
    each = [assess(part, baseline, shards=2) for part in parts]
    assert max(one.odd for one in each) < 8
    assert whole.odd >= 70
    assert whole.p_value <= 0.01
    assert all(one.size_p_value < 0.2 for one in each)
    assert whole.queries == 280
    assert not whole.in_order


def test_a_group_of_honest_accounts_is_not_suspicious() -> None:
    baseline = fitted_baseline(NAME)
    for size in (3, 10, 30):
        assert assess_group([profile_of(honest(20, 7 * size + i)) for i in range(size)], baseline).p_value > 0.05


def test_two_odd_colleagues_make_no_campaign() -> None:
    """What an honest group never is: odd in nearly every member."""
    baseline = fitted_baseline(NAME)
    odd = [profile_of(noise(60, 300 + i)) for i in range(2)]
    assert assess_group([*(profile_of(honest(20, 500 + i)) for i in range(10)), *odd], baseline).p_value > 0.05


def test_evidence_of_a_group_is_that_of_all_its_members() -> None:
    baseline = fitted_baseline(NAME)
    whole = assess_group([profile_of(noise(10, 700 + i)) for i in range(10)], baseline)
    (first, *_) = whole.evidence
    assert first.text.startswith("100 of 100 ")
    assert "without the oddest fifth of the members the excess is 78" in first.text
    assert first.p_value <= 0.01
    assert (whole.family, whole.strongest) != ("unknown", "")


def test_a_group_found_by_content_must_be_odd_among_groups_of_one_tool_as_well() -> None:
    baseline = fitted_baseline(NAME)
    parts = [profile_of(np.vstack([honest(16, 800 + i), noise(2, 900 + i)])) for i in range(15)]
    linked, found = (assess_group(parts, baseline, by_content=by_content) for by_content in (False, True))
    assert linked.p_value <= found.p_value


def test_a_group_without_members_is_refused() -> None:
    with pytest.raises(ValueError, match="without members"):
        merged([])


def test_links_make_groups_and_shared_offices_do_not() -> None:
    accounts = {f"a{i}": ["office", *(["key"] if i < 5 else [])] for i in range(2000)}
    accounts["a0"].append("other")
    (group,) = candidates(accounts)
    assert group.links == ("key",)
    assert group.members == ("a0", "a1", "a2", "a3", "a4")


def test_an_organisation_may_be_larger_than_what_an_address_ties() -> None:
    half = {f"a{i}": ["org:1"] if i < 500 else ["ip:1"] for i in range(1000)}
    assert [(g.links, len(g.members)) for g in candidates(half)] == [(("org:1",), 500)]
    crowd = {f"a{i}": ["org:1"] for i in range(3 * MOST)}
    assert candidates(crowd) == []


def test_two_links_of_the_same_accounts_are_one_group_and_no_chain_forms() -> None:
    twice = candidates({f"a{i}": ["x", "y"] for i in range(6)})
    assert [g.links for g in twice] == [("x", "y")]
    # each neighbouring pair of links shares one account of five: single linkage would make one group of all
    chain = {f"a{i}": [f"l{i // 4}", *([f"l{i // 4 - 1}"] if i % 4 == 0 and i else [])] for i in range(40)}
    groups = candidates(chain)
    assert len(groups) == 10
    assert max(len(g.members) for g in groups) <= 6


@given(
    st.dictionaries(
        st.integers(0, 60), st.lists(st.sampled_from("abcdefgh"), max_size=4, unique=True), min_size=1, max_size=50
    )
)
def test_members_of_a_group_share_its_links(links: dict[int, list[str]]) -> None:
    groups = candidates(links)
    for group in groups:
        assert FEWEST <= len(group.members) <= MOST
        assert len(set(group.members)) == len(group.members)
        assert all(set(links[member]) & set(group.links) for member in group.members)
    named = [link for group in groups for link in group.links]
    assert len(named) == len(set(named))
    for link in named:
        assert sum(link in seen for seen in links.values()) <= most_tied(link, len(links))
    assert 0 < SAME <= 1


@given(
    st.dictionaries(
        st.integers(0, 40), st.lists(st.sampled_from("abcdefgh"), max_size=4, unique=True), min_size=1, max_size=40
    )
)
def test_groups_are_those_of_a_search_through_all_pairs(links: dict[int, list[str]]) -> None:
    """The slow twin compares each link with all groups before it; the product only with those that share an account."""
    slow: list[tuple[list[str], set[int]]] = []
    for link in sorted({link for seen in links.values() for link in seen}):
        own = {account for account, seen in links.items() if link in seen}
        if len(own) < FEWEST:
            continue
        for names, members in slow:
            if own & members and len(own & members) >= SAME * len(own | members):
                names.append(link)
                members |= own
                break
        else:
            slow.append(([link], own))
    assert [(list(g.links), set(g.members)) for g in candidates(links)] == slow


@pytest.mark.parametrize(("honest_accounts", "thieves"), [(0, 40), (40, 40), (200, 60)])
def test_the_named_are_hardly_ever_honest(honest_accounts: int, thieves: int) -> None:
    rng = np.random.default_rng(honest_accounts)
    wrong = 0.0
    for _ in range(50):
        p = np.concatenate([rng.uniform(size=honest_accounts), rng.uniform(0.0, 0.01, size=thieves)])
        those = members_to_name(p)
        assert those[honest_accounts:].mean() > 0.85
        wrong += float(those[:honest_accounts].sum()) / those.sum() / 50
    assert wrong <= 1.2 * FALSE_SHARE


@pytest.mark.parametrize(("thieves", "strangers"), [(4, 1), (12, 3), (10, 10), (60, 140)])
def test_a_stranger_with_the_same_weak_link_is_rarely_named_in_groups_of_any_size(thieves: int, strangers: int) -> None:
    """Never, unless it is odder than four in five; the control is a group of strangers alone, of whom as few are named."""
    rng, weak, share, own = np.random.default_rng(thieves), np.zeros(thieves + strangers, np.bool_), [], []
    for _ in range(200):
        p = np.concatenate([rng.uniform(0.0, 0.01, thieves), rng.uniform(size=strangers)])
        those = named_of(p, weak)
        assert not those[p > ODD_ENOUGH].any()
        share.append(those[thieves:].mean())
        own.append(those[:thieves].mean())
    assert np.mean(share) <= 1.1 * ODD_ENOUGH
    assert np.mean(own) >= 0.98
    alone = [named_of(rng.uniform(size=len(weak)), weak).mean() for _ in range(200)]
    assert np.mean(alone) <= 1.1 * ODD_ENOUGH


def test_who_has_a_strong_link_of_the_group_is_named_whatever_its_p_value() -> None:
    group = Group(("ip:1", "org:1"), ("a", "b", "c", "d"))
    bound = group.bound([["org:1"], ["org:1", "ip:1"], ["ip:1", "org:2"], ["ip:1"]])
    assert bound.tolist() == [True, True, False, False]
    assert named_of(np.array([0.9, 0.01, 0.9, 0.01]), bound).tolist() == [True, True, False, True]
    assert not named_of(np.array([0.9, 0.5, 0.3]), np.zeros(3, np.bool_)).any()
