"""Decisions about campaigns: one entry, one end, one undo; a second person for many accounts; and who may join."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.seeded_api import OURS, SECRETS

from consumers.errors import Conflict, Missing, Stale, WrongUse
from consumers.operators import audit
from consumers.operators.audited_write import DAY_S, Actor
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.records.operator_entries import campaign_revision
from consumers.store.embedded import EmbeddedStore

NOW_S = 1_800_000_000.0
MARIA, JOHN = Actor("maria [key:abc]", "operator", OURS), Actor("john", "operator", OURS)
DETECT = Actor("detect", "process", OURS)
FEW = CampaignSubject("c-1", "m", ("b", "a", "c"))
MANY = CampaignSubject("c-2", "m", tuple(f"{i:032x}" for i in range(11)))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Operations]:
    store = EmbeddedStore(tmp_path / "campaigns.sqlite", now_s=lambda: NOW_S)
    store.prepare(SECRETS.key_id)
    yield Operations(store, SECRETS, lambda: NOW_S, confirm_above=10)
    assert audit.verify(store, audit.Seal(SECRETS), now_s=lambda: NOW_S).findings == [], "every entry has its row"
    store.close()


def shown(desk: Operations) -> list[tuple[str, str, bool, int, int]]:
    found = Reader(desk.store, SECRETS, OURS, desk.now_s).campaign_decisions()
    return [(d.campaign_id, d.state, d.waits, len(d.confirmed), len(d.joined)) for d in found]


def actions(desk: Operations) -> list[str]:
    return [line.decode().split('"action":"')[1].split('"')[0] for _, line in audit.stored_rows(desk.store)]


def test_a_campaign_is_decided_about_and_released_as_one(desk: Operations) -> None:
    made = desk.decide_campaign(MARIA, FEW, "block", ttl_s=600, reason="theft", once="k")
    assert (made.confirmed, made.until_s) == (("a", "b", "c"), NOW_S + 600)
    assert desk.decide_campaign(MARIA, FEW, "block", ttl_s=600, reason="theft", once="k") == made, "sent twice"
    with pytest.raises(Conflict, match="dry run"):
        desk.decide_campaign(JOHN, FEW, "throttle", simulated=True)
    assert shown(desk) == [("c-1", "block", False, 3, 0)]
    desk.withdraw_campaign(JOHN, FEW)
    assert shown(desk) == []
    with pytest.raises(Missing):
        desk.withdraw_campaign(JOHN, FEW)
    assert actions(desk) == ["campaign.block", "campaign.withdraw"]


@pytest.mark.parametrize(("state", "ttl_s"), [("watch", 60), ("block", 0), ("block", 31 * DAY_S)])
def test_what_is_out_of_bounds_is_refused(desk: Operations, state: str, ttl_s: int) -> None:
    with pytest.raises(WrongUse):
        desk.decide_campaign(MARIA, FEW, state, ttl_s=ttl_s)
    with pytest.raises(WrongUse):
        desk.decide_campaign(MARIA, CampaignSubject("c-1", "m", ()), "block")
    assert shown(desk) == []


def test_many_accounts_wait_for_a_second_person(desk: Operations) -> None:
    made = desk.decide_campaign(MARIA, MANY, "block")
    assert desk.waits(made)
    assert shown(desk) == [("c-2", "block", True, 11, 0)]
    assert desk.campaign_decision(OURS, MANY) is None, "nothing is enforced yet"
    with pytest.raises(Missing):
        desk.join_campaign(DETECT, MANY, ["new"])
    for same in (MARIA, Actor("maria [key:other]", "operator", OURS)):
        with pytest.raises(Conflict, match="another person"):
            desk.confirm_campaign(same, MANY)
    assert desk.confirm_campaign(JOHN, MANY).second == "john"
    assert shown(desk) == [("c-2", "block", False, 11, 0)]
    with pytest.raises(Missing):
        desk.confirm_campaign(JOHN, MANY)


def test_a_release_and_a_dry_run_need_no_second_person(desk: Operations) -> None:
    assert not desk.waits(desk.decide_campaign(MARIA, MANY, "block", simulated=True))
    desk.decide_campaign(MARIA, MANY, "block")
    assert not desk.waits(desk.decide_campaign(MARIA, MANY, "clear"))
    assert shown(desk) == [("c-2", "clear", False, 11, 0)]


def test_at_most_as_many_join_as_were_confirmed(desk: Operations) -> None:
    desk.decide_campaign(MARIA, FEW, "throttle")
    assert desk.join_campaign(DETECT, FEW, ["d", "a"]).joined == ("d",)
    made = desk.join_campaign(DETECT, FEW, ["g", "f", "e", "d"])
    assert (made.joined, len(made.joined_s)) == (("d", "e", "f"), 3)
    with pytest.raises(Missing):
        desk.join_campaign(DETECT, FEW, ["h"])
    assert actions(desk) == ["campaign.throttle", "campaign.join", "campaign.join"]


@pytest.mark.parametrize("how", [{"state": "clear"}, {"state": "block", "simulated": True}])
def test_nobody_joins_a_release_or_a_dry_run(desk: Operations, how: dict[str, object]) -> None:
    desk.decide_campaign(MARIA, FEW, **how)  # type: ignore[arg-type]
    with pytest.raises(Missing):
        desk.join_campaign(DETECT, FEW, ["d"])


def test_who_saw_other_accounts_decides_nothing(desk: Operations) -> None:
    seen = campaign_revision(FEW.accounts, None)
    with pytest.raises(Stale):
        desk.decide_campaign(MARIA, CampaignSubject("c-1", "m", ("a", "b", "c", "d")), "block", seen=seen)
    made = desk.decide_campaign(MARIA, FEW, "block", seen=seen)
    with pytest.raises(Stale):
        desk.decide_campaign(JOHN, FEW, "throttle", seen=seen)
    desk.join_campaign(DETECT, FEW, ["d"])
    desk.withdraw_campaign(JOHN, FEW, seen=campaign_revision(FEW.accounts, made))
