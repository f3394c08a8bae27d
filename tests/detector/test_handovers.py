"""Hand-overs: accounts that are burnt one after the other, and the chance chains that must not be taken for them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.handovers import FEWEST, MOST, handover_chains

DAYS = 14.0
Lives = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def people(accounts: int, seed: int) -> Lives:
    """Accounts that start whenever they like and stay for minutes or weeks; times in days."""
    rng = np.random.default_rng(seed)
    starts = rng.uniform(0, 0.9 * DAYS, accounts)
    stays = np.minimum(10 ** rng.uniform(-2.5, 1.0, accounts), DAYS - starts)
    return starts, starts + stays, rng.integers(2, 600, accounts)


def theft(accounts: int, gap: float = 0.5) -> Lives:
    """Each asks 90 queries in a day, the next begins after a part of the time between two."""
    starts = np.linspace(1.0, accounts, accounts)
    return starts, starts + 1.0 - gap / 90, np.full(accounts, 90)


def together(*lives: Lives) -> Lives:
    starts, stops, queries = (np.concatenate(column) for column in zip(*lives, strict=True))
    return starts, stops, queries


@pytest.mark.parametrize("honest", [0, 10, 100])
def test_a_theft_that_is_handed_over_is_one_chain(honest: int) -> None:
    for seed in range(10):
        chains = handover_chains(*together(people(honest, seed), theft(10)))
        rows = [row for chain in chains for row in chain]
        assert sum(row >= honest for row in rows) >= 8
        assert sum(row < honest for row in rows) <= 2
        assert len(rows) == len(set(rows))
        starts = together(people(honest, seed), theft(10))[0]
        assert all(np.diff(starts[chain]).min() > 0 for chain in chains)


@pytest.mark.parametrize("honest", [4, 30, 100, 1000])
def test_chance_makes_no_chain(honest: int) -> None:
    """The control: honest accounts follow each other too, the more of them there are."""
    assert sum(bool(handover_chains(*people(honest, seed))) for seed in range(40)) <= 1


@pytest.mark.parametrize(
    "lives",
    [
        (np.zeros(50), np.full(50, 1.0), np.full(50, 10)),  # all at once
        (np.zeros(50), np.zeros(50), np.full(50, 1)),  # one query each
        theft(FEWEST - 1),
        theft(10, gap=-5.0),  # they overlap
        theft(10, gap=5.0),  # each waits
        together(theft(10), people(MOST, 1)),  # everybody follows somebody
        (np.empty(0), np.empty(0), np.empty(0, np.int64)),
    ],
)
def test_what_is_no_hand_over(lives: Lives) -> None:
    assert handover_chains(*lives) == []
