"""Ids of public frameworks: every reason has a row, and every ATLAS id is one that sinks can write out."""

from __future__ import annotations

from consumers.records.frameworks import BY_REASON, FRAMEWORKS, OF_CAMPAIGN, TECHNIQUES, frameworks_of, techniques_of
from detector.policy import REASONS


def test_every_reason_has_a_row_and_every_id_a_technique() -> None:
    assert set(BY_REASON) == set(REASONS)
    named = [one for row in (*BY_REASON.values(), OF_CAMPAIGN) for one in row]
    ids = [one.id for one in named] + [one for one in FRAMEWORKS if one.startswith("MITRE")]
    assert {one.removeprefix("MITRE-ATLAS:") for one in ids} <= {row.id for row in TECHNIQUES}
    assert all(row.id.startswith(row.uid) for row in TECHNIQUES)
    assert {one.basis for one in named} == {"fits"}, "a query log shows no more of a pool than that it fits"


def test_a_campaign_names_the_pool_for_as_long_as_it_lasts_and_a_client_never() -> None:
    for reason in REASONS:
        client, pool = frameworks_of("client", reason), frameworks_of("campaign", reason)
        assert client[:4] == pool[:4] == list(FRAMEWORKS)
        assert "MITRE-ATLAS:AML.T0008.005" in pool
        assert ("MITRE-ATLAS:AML.T0008.005" in client) == reason.startswith("campaign")
        assert techniques_of(pool)[0].id == "AML.T0024.002"
