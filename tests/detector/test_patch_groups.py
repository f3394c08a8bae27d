"""Shared patches: what ties accounts that share a theft, and the honest accounts that it must not tie."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.fleet import FEWEST_ACCOUNTS, MOST_HONEST
from detector.patch_groups import LEAST, OddAccounts, PatchGroup, patch_groups
from detector.patches import KEPT

Patches = list[tuple[str, ...]]
CALIBRATION = 240


def people(accounts: int, rng: np.random.Generator, patches: int = 400) -> tuple[NDArray[np.float64], Patches]:
    """Honest accounts: any p-value, and odd queries in places of which a few are common."""
    share = 1.0 / np.arange(1, patches + 1)
    counts = rng.integers(0, KEPT + 1, accounts)
    mine = [tuple(f"h{i}" for i in rng.choice(patches, n, replace=False, p=share / share.sum())) for n in counts]
    return rng.uniform(size=accounts), mine


def thieves(
    accounts: int, rng: np.random.Generator, of: int = 60, part: float = 0.9
) -> tuple[NDArray[np.float64], Patches]:
    """Accounts of one theft, odd for their size, each with a part of its patches."""
    held = max(1, round(part * of))
    mine = [tuple(f"t{i}" for i in np.sort(rng.choice(of, held, replace=False))[:KEPT]) for _ in range(accounts)]
    return rng.uniform(0, 0.05, accounts), mine


def groups_of(
    honest: tuple[NDArray[np.float64], Patches], others: tuple[NDArray[np.float64], Patches], seed: int
) -> list[PatchGroup]:
    p, mine = people(CALIBRATION, np.random.default_rng(1000 + seed))
    fleet = OddAccounts.of(np.concatenate([honest[0], others[0]]), [*honest[1], *others[1]])
    return patch_groups(fleet, OddAccounts.of(p, mine))


NOBODY: tuple[NDArray[np.float64], Patches] = (np.empty(0), [])


@pytest.mark.parametrize(
    ("fleet", "stolen", "part", "least"), [(300, 15, 0.9, 0.8), (2000, 60, 0.9, 0.8), (2000, 400, 0.5, 0.7)]
)
def test_a_campaign_is_tied_by_its_patches_and_its_honest_accounts_are_bounded(
    fleet: int, stolen: int, part: float, least: float
) -> None:
    caught, kept = [], 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found = groups_of(people(fleet, rng), thieves(stolen, rng, part=part), seed)
        wrong = [int((group.accounts < fleet).sum()) for group in found]
        caught.append(len({i for group in found for i in group.accounts.tolist() if i >= fleet}) / stolen)
        kept += all(w <= group.honest_at_most < len(group.accounts) for w, group in zip(wrong, found, strict=True))
        assert sum(wrong) <= MOST_HONEST * sum(len(group.accounts) for group in found)
    assert np.mean(caught) >= least
    assert kept >= 9


@pytest.mark.parametrize("fleet", [FEWEST_ACCOUNTS, 1000, 5000])
def test_an_honest_fleet_has_no_group(fleet: int) -> None:
    """The control, on which every rule that ties somebody is wrong."""
    found = [groups_of(people(fleet, np.random.default_rng(seed)), NOBODY, seed) for seed in range(20)]
    assert sum(map(bool, found)) <= 1


def application(rng: np.random.Generator, p: NDArray[np.float64]) -> tuple[NDArray[np.float64], Patches]:
    return p, [("app", f"own{i}") for i in range(len(p))]


@pytest.mark.parametrize(
    ("p_values", "known", "tied"),
    [
        (
            lambda rng: rng.uniform(size=500),
            0,
            False,
        ),  # a public application: many share a place, and few are odd for their size
        (lambda rng: rng.uniform(0, 0.05, 500), 30, False),  # all are odd, and so are its users in the calibration
        (lambda rng: rng.uniform(0, 0.05, 500), 0, True),  # the calibration lacks it: the limit that the header states
    ],
)
def test_a_public_application_that_calibration_knows_ties_nobody(
    p_values: Callable[[np.random.Generator], NDArray[np.float64]], known: int, tied: bool
) -> None:
    rng = np.random.default_rng(3)
    p, mine = people(CALIBRATION, rng)
    users, theirs = application(rng, p_values(rng))
    some, patches = application(rng, p_values(rng)[:known])
    fleet, places = people(2000, rng)
    accounts = OddAccounts.of(np.concatenate([fleet, users]), [*places, *theirs])
    found = patch_groups(accounts, OddAccounts.of(np.concatenate([p, some]), [*mine, *patches]))
    assert any("app" in group.patches for group in found) is tied


def test_who_is_not_odd_for_its_size_has_no_part_in_it() -> None:
    rng = np.random.default_rng(4)
    p, mine = thieves(100, rng)
    assert groups_of(people(2000, rng), (p + 0.051, mine), 0) == []


def test_calibration_clients_whose_patches_nobody_knows_may_have_any() -> None:
    """After an update the clients of a store have none yet: what is not known must not make a link."""
    rng = np.random.default_rng(5)
    (fleet, places), (stolen, theirs) = people(2000, rng), thieves(60, rng)
    accounts = OddAccounts.of(np.concatenate([fleet, stolen]), [*places, *theirs])
    p = rng.uniform(size=CALIBRATION)
    assert patch_groups(accounts, OddAccounts.of(p, [()] * CALIBRATION))
    assert patch_groups(accounts, OddAccounts.of(p, [None] * CALIBRATION)) == []


def test_small_fleets_few_accounts_and_another_population_say_nothing() -> None:
    rng = np.random.default_rng(6)
    assert groups_of(people(FEWEST_ACCOUNTS - 61, rng), thieves(60, rng, of=4), 0) == []
    assert groups_of(people(300, rng), thieves(LEAST - 1, rng, of=4), 0) == []
    assert groups_of(people(200, rng), thieves(300, rng, of=4), 0) == []
    fleet = OddAccounts.of(*thieves(300, rng))
    assert patch_groups(fleet, OddAccounts(0, 0, {})) == []


def test_a_patch_that_mostly_the_same_accounts_have_is_no_second_group() -> None:
    fleet = OddAccounts.of(
        np.array([0.01] * 40 + [0.5] * 400), [("a", "b")] * 30 + [("a",)] * 5 + [("b",)] * 5 + [()] * 400
    )
    (group,) = patch_groups(fleet, OddAccounts(240, 0, {}))
    assert group.patches == ("a", "b")
    assert group.accounts.tolist() == list(range(35)), "the second patch adds nobody: no chains"
