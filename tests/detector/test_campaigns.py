"""Groups of accounts: who is a candidate, and what a group of thieves and a group of colleagues come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.references import KEY, answered, fitted_baseline, reference_of

from detector.campaigns import FEW_ENOUGH, FEWEST, MOST, SAME, assess_group, candidates, group_tail, merged
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
    assert whole.fused > 2 * max(one.fused for one in each)
    assert whole.p_value <= 0.05
    assert whole.queries == 280
    assert not whole.in_order


def test_a_group_of_honest_accounts_is_not_suspicious() -> None:
    baseline = fitted_baseline(NAME)
    for size in (3, 10, 30):
        assert assess_group([profile_of(honest(20, 7 * size + i)) for i in range(size)], baseline).p_value > 0.1


def test_the_same_mass_is_worth_less_in_a_larger_group() -> None:
    baseline = fitted_baseline(NAME)
    mass = 3.0
    assert group_tail(baseline, 3).p(mass) <= group_tail(baseline, 30).p(mass)
    assert group_tail(baseline, 5).p(mass) == group_tail(baseline, 5).p(mass)


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
    fifty = {f"a{i}": ["org:1", "ip:1"] if i < 50 else [] for i in range(300)}
    assert [(g.links, len(g.members)) for g in candidates(fifty)] == [(("org:1",), 50)]
    crowd = {f"a{i}": ["org:1"] for i in range(MOST + 1)}
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
        assert sum(link in seen for seen in links.values()) <= max(FEW_ENOUGH, len(links))
    assert 0 < SAME <= 1
