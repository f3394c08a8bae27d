"""The campaign benchmark, tiny: who shares what, what a campaign sends, and that a link dealt at random finds nothing.

The figures mean nothing at this size. That the committed results belong to today's group statistic is asked in test_fingerprint.py.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import campaign_tables, campaigns
from benchmarks.campaign_world import MOST_SEAT, ORGANISATIONS, SHAPES, campaign, organisation, stolen_rows
from benchmarks.victims import build
from detector.campaigns import candidates

PLAN = campaigns.Plan(
    worlds=(("tumour", 1),), fleet=240, calibration=60, shapes=(replace(SHAPES[3], scaled_accounts=30, scaled_days=3),),
    covers=(0.0, 0.5), families=("knockoff_random",), a_world=1, split=("knockoff_random", "noise_uniform"), groups=4,
    organisations=1, kinds=("company", "application", "all what_if", "reseller, one key"), larger=70,
)  # fmt: skip


@pytest.mark.parametrize("scenario", campaigns.LINKS)
def test_who_shares_what(scenario: str) -> None:
    thieves, honest = 200, 2000
    links = campaigns.linked(scenario, thieves, honest, np.random.default_rng(1))
    groups = candidates(links)
    theirs = [sum(i >= honest for i in group.members) for group in groups]
    expected = {"strong": 1, "25 organisations": 25, "software": 1, "6 addresses": 6, "dealt at random": 1}
    assert len(groups) == expected.get(scenario, 0)  # a plan is too common to tie anybody
    assert sum(theirs) == (thieves if scenario not in ("dealt at random", "none", "plan") else 0)
    if scenario == "6 addresses":
        assert Counter(sum(i < honest for i in group.members) for group in groups) == {20: 6}


@pytest.mark.soak
def test_cover_replaces_stolen_queries_and_the_rate_stays() -> None:
    victim, rng = build("tumour"), np.random.default_rng(2)
    shape = replace(SHAPES[3], scaled_accounts=40, scaled_days=10)
    stolen = stolen_rows(victim, "knockoff_random", 4000, rng)
    for cover in (0.0, 0.5, 0.9):
        streams = campaign(shape, cover, "knockoff_random", stolen, victim.thieves, rng)
        queries = np.array([len(s.inputs) for s in streams])
        steals = sum(s.is_attack.sum() for s in streams) / queries.sum()
        assert len(streams) == 40
        assert queries.mean() == pytest.approx(shape.a_day * 10, rel=0.05)
        assert steals == pytest.approx(1 - cover, abs=0.03)
        sent = np.vstack([s.inputs[s.is_attack] for s in streams])
        assert {row.tobytes() for row in sent} <= {row.tobytes() for row in stolen}


@pytest.mark.soak
@pytest.mark.parametrize("kind", ORGANISATIONS)
def test_an_organisation_has_its_seats_and_no_theft(kind: str) -> None:
    streams = organisation(kind, build("tumour").pools[0], np.random.default_rng(3))
    assert len(streams) == 1 if kind == "reseller, one key" else 50 <= len(streams) <= 500
    assert len(streams) == 1 or max(len(s.inputs) for s in streams) <= MOST_SEAT
    assert not any(s.is_attack.any() for s in streams)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run wrote; a second run finds every world there and measures none."""
    out = tmp_path_factory.mktemp("campaigns") / "results.json"
    campaigns.run(PLAN, processes=1, out=out)
    written: dict[str, Any] = json.loads(Path(out).read_text())
    assert campaigns.run(PLAN, processes=1, before=written)["worlds"] == written["worlds"]
    return written


@pytest.mark.soak
def test_a_link_finds_a_campaign_and_one_dealt_at_random_finds_nothing(results: dict[str, Any]) -> None:
    (world,) = results["worlds"].values()
    visible = [row for row in world["campaigns"] if row["family"] == "knockoff_random"]
    found = {(row["cover"], one["link"]): one for row in visible for one in row["links"]}
    assert found[0.0, "strong"]["found"]
    assert found[0.0, "strong"]["right"] == found[0.0, "strong"]["named"] == 30
    assert not any(found[cover, "dealt at random"]["named"] for cover in (0.0, 0.5))
    hidden = [one for row in world["campaigns"] if row["family"] == "in_domain" for one in row["links"]]
    assert not any(one["found"] for one in hidden)


@pytest.mark.soak
@pytest.mark.parametrize("name", campaign_tables.TABLES)
def test_every_table_can_be_made(results: dict[str, Any], name: str) -> None:
    assert len(campaign_tables.TABLES[name](results).splitlines()) > 2
