"""The fleet test: cells with too many odd accounts, and the bound on the honest ones among them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import beta, binom

from detector.calibration import NO_CLIENTS, FinalExcess
from detector.fleet import FEWEST_ACCOUNTS, LEAST, MOST_HONEST, FleetCell, fleet_cells, largest_share, most_of
from detector.signals import FREE, GROUPED, SIGNALS, Statistics, measure_of
from detector.size_null import SizeNull

S = len(SIGNALS)
ORDERED = np.flatnonzero(GROUPED & ~FREE)


def people(accounts: int, seed: int) -> FinalExcess:
    """Honest accounts of many sizes; a few are odd, each in a way of its own."""
    rng = np.random.default_rng(seed)
    distinct = np.asarray(np.round(np.exp(rng.uniform(2.3, 5.5, accounts))), np.float64)
    share = np.full((accounts, S), 0.015)
    testers = np.flatnonzero(rng.uniform(size=accounts) < 0.08)
    share[testers, rng.choice(ORDERED, len(testers))] = rng.uniform(0.2, 0.9, len(testers))
    odd = rng.binomial(distinct.astype(int)[:, None], share)
    return FinalExcess(distinct, np.maximum(0.0, odd - 0.02 * distinct[:, None]).astype(np.float32))


def thieves(accounts: int, seed: int, cover: float) -> FinalExcess:
    """Fifteen queries each, odd in the first signal but for the cover."""
    rng = np.random.default_rng(seed)
    excess = np.zeros((accounts, S), np.float32)
    excess[:, ORDERED[0]] = np.maximum(0.0, rng.binomial(15, (1 - cover) * 0.95, accounts) - 0.3)
    return FinalExcess(np.full(accounts, 15.0), excess)


def looked_at(null: SizeNull, *some: FinalExcess) -> tuple[NDArray[np.float64], list[str]]:
    found = []
    for fleet in some:
        for distinct, excess in zip(fleet.distinct, fleet.excess, strict=True):
            values = excess.astype(np.float64)
            found.append(
                null.p_value(Statistics(values, values, np.full(S, distinct), values, values, float(distinct)))
            )
    return np.array([p for p, _ in found]), [oddest for _, oddest in found]


def cells_of(seed: int, honest: int, stolen: int, cover: float = 0.0) -> tuple[list[FleetCell], int]:
    """The cells of a fleet whose first accounts are honest, and how many those are."""
    null = SizeNull(people(250, seed))
    p, oddest = looked_at(null, people(honest, 1000 + seed), thieves(stolen, 2000 + seed, cover))
    return fleet_cells(p, oddest, null), honest


@pytest.mark.parametrize(("cover", "least"), [(0.0, 0.8), (0.5, 0.5)])
def test_a_campaign_without_any_link_shows_and_its_honest_accounts_are_bounded(cover: float, least: float) -> None:
    kept, caught = 0, []
    for seed in range(10):
        cells, honest = cells_of(seed, 2000, 400, cover)
        assert {cell.measure for cell in cells} <= {measure_of(SIGNALS[ORDERED[0]].name)}
        caught.append(sum(int((cell.accounts >= honest).sum()) for cell in cells) / 400)
        wrong = [int((cell.accounts < honest).sum()) for cell in cells]
        kept += all(w <= cell.honest_at_most for w, cell in zip(wrong, cells, strict=True))
        assert sum(wrong) <= MOST_HONEST * sum(len(cell.accounts) for cell in cells)
    assert np.mean(caught) >= least
    assert kept >= 9


def test_an_honest_fleet_has_no_cell() -> None:
    """The control, on which every rule that accuses somebody is wrong."""
    assert sum(bool(cells_of(seed, 2000, 0)[0]) for seed in range(10)) <= 1


def test_a_small_fleet_an_outdated_baseline_and_one_without_clients_say_nothing() -> None:
    null = SizeNull(people(250, 1))
    p, oddest = looked_at(null, people(FEWEST_ACCOUNTS - LEAST - 1, 3), thieves(LEAST, 4, 0.0))
    assert fleet_cells(p, oddest, null) == []
    p, oddest = looked_at(null, people(200, 3), thieves(500, 4, 0.0))
    assert fleet_cells(p, oddest, null) == [], "most of the fleet is odd: another population"
    assert fleet_cells(p, oddest, SizeNull(NO_CLIENTS)) == []


@pytest.mark.parametrize(("k", "n", "miss"), [(0, 150, 0.001), (3, 160, 0.0005), (20, 200, 0.01), (5, 5, 0.01)])
def test_the_bound_of_a_share_is_clopper_and_pearsons(k: int, n: int, miss: float) -> None:
    exact = beta.ppf(1 - miss, k + 1, n - k) if k < n else 1.0
    assert largest_share(k, n, miss) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(
    ("n", "share", "miss"), [(3000, 0.04, 0.001), (100_000, 0.02, 0.0005), (200, 0.5, 0.01), (50, 1.0, 0.1)]
)
def test_the_bound_of_a_count_is_the_binomial_quantile(n: int, share: float, miss: float) -> None:
    assert most_of(n, share, miss) == binom.ppf(1 - miss, n, share)
