"""The benchmark of weak pairs, tiny: who shares what, and that its controls fail.

The figures mean nothing at this size. That the committed results belong to today's rules is asked in test_fingerprint.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import campaigns, weak_pair_tables, weak_pairs
from benchmarks.campaign_world import SHAPES
from benchmarks.weak_pairs import DAY_MS, SCENARIOS, Weak, campaign_links

PLAN = campaigns.Plan(
    worlds=(("tumour", 1),), fleet=600, calibration=60, shapes=(replace(SHAPES[3], scaled_accounts=40, scaled_days=3),),
    covers=(0.0,), families=("knockoff_random",), a_world=1, organisations=1, kinds=("company", "reseller, one key"),
)  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_who_shares_what(scenario: str) -> None:
    rng = np.random.default_rng(1)
    fleet = Weak(
        rng.integers(1, 60, 2000), rng.integers(1, 4, 2000), np.full(2000, -1), rng.integers(0, 8 * DAY_MS, 2000)
    )
    theirs, others = campaign_links(scenario, 200, fleet, rng)
    shared, days = SCENARIOS[scenario]
    assert ((theirs.agent == 0).all(), (theirs.plan == 0).all()) == ("agent" in shared, "plan" in shared)
    assert (len(np.unique(theirs.ip[theirs.ip >= 0])), (others.ip >= 0).sum()) == (
        (6, 120) if "ip" in shared else (0, 0)
    )
    apart = np.ptp(theirs.first_ms) / DAY_MS
    assert 0.8 * days <= apart <= days if "start" in shared else apart > 6


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return weak_pairs.run(PLAN)


@pytest.mark.soak
def test_two_weak_links_find_what_one_does_not_and_chance_finds_nothing(results: dict[str, Any]) -> None:
    (world,) = results["worlds"].values()
    found = {row["scenario"]: row for row in world["campaigns"]}
    assert found["plan, begun within a day"]["single"] == [0, 0]
    assert found["software, begun within a day"]["pairs"][1] >= 30
    assert all(row["single"][1] <= row["pairs"][1] for row in world["campaigns"])
    assert [named for _, named in world["control"]] == [0]
    assert not any(row["shuffled"] for row in world["campaigns"])
    rule, uncorrected = np.transpose(world["fleets"])
    assert rule.sum() == 0
    assert (uncorrected > 0).mean() > 0.5, "the control: without a correction pairs are found in honest fleets"
    assert world["organisations"] == {"company": [0, 0, 1], "reseller, one key": [0, 0, 0]}


@pytest.mark.soak
@pytest.mark.parametrize("name", weak_pair_tables.TABLES)
def test_every_table_can_be_made(results: dict[str, Any], name: str) -> None:
    assert len(weak_pair_tables.TABLES[name](results).splitlines()) > 2
