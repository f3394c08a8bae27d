"""Campaigns: who is put together, what is told and stored of it, and that it is the same however log and cells are dealt out."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers import replay
from consumers.alerts.finding import finding
from consumers.alerts.ocsf import detection_finding
from consumers.detect import campaigns, grouping
from consumers.detect import loop as detect
from consumers.detect.campaigns import EVERY_S, Campaigns, Search
from consumers.detect.grouping import campaign_id
from consumers.detect.joining import JOINING
from consumers.detect.loop import MOST_POSTPONED, Runner
from consumers.detect.overrides import Overrides
from consumers.detect.step import Detect
from consumers.detect.touched import find_touched
from consumers.errors import CorruptState, Fenced, Rewound, Unavailable
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.operators import erasure
from consumers.operators.audited_write import Actor
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.records.alert import stored_alert
from consumers.records.client import Tie
from consumers.records.decision import RowSummary, StoredDecision, campaign_key, is_campaign, stored_decision
from consumers.records.heartbeat import Heartbeat, HeartbeatPublisher
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, DecisionRow, OutboxAlert, Outcome, decision_cell
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.campaigns import Group
from detector.policy import TTL_S, Decision, Policy, decide_group
from detector.query import ClientKey
from detector.scoring import Assessment, Evidence

NewStore = Callable[[], EmbeddedStore]
TENANT, MODEL = "default", victims.MODEL
THIEVES = [f"sybil-{i:02d}" for i in range(20)]
NOW_S = 1_773_100_000


def odd_rows(n: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    low, high = victims.reference_rows().min(0), victims.reference_rows().max(0)
    return np.round(np.random.default_rng(seed).uniform(low, high, size=(n, victims.WIDTH)), 2)


def lines_of(each: int = 8, accounts: Sequence[str] = THIEVES, org: str = "shell", first: int = 0) -> list[bytes]:
    """A theft over accounts of one organisation, by turns."""
    rows = odd_rows(each * len(accounts), first)
    return [
        victims.line(
            row, client_id=accounts[i % len(accounts)], event_id=f"{org}-{first + i}", metadata={"org": org},
            timestamp=f"2026-03-10T{(first + i) // 60:02d}:{(first + i) % 60:02d}:00Z",
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    """The theft among three honest organisations of eight."""
    rows = victims.items(24 * 20, np.random.default_rng(2))
    honest = [
        victims.line(
            row, client_id=f"honest-{i % 24:02d}", event_id=f"h-{i}", metadata={"org": f"bank-{i % 3}", "ip": "192.0.2.1"},
            timestamp=f"2026-03-10T00:{i % 60:02d}:00Z",
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return [*honest, *lines_of()]


@pytest.fixture
def judging(baseline: Baseline, secrets: Secrets) -> Detect:
    return Detect({MODEL: baseline}, secrets, Policy(0.01, "block"))


class World:
    """A store and what runs on it; time is ours."""

    def __init__(self, folder: Path, store: EmbeddedStore, judging: Detect) -> None:
        self.folder, self.store, self.judging = folder, store, judging
        self.now_s = NOW_S
        self.files = 0

    def read(self, *parts: Sequence[bytes]) -> None:
        """Each part through an ingest process of its own."""
        for part in parts:
            self.files += 1
            log = FileLog([victims.write_lines(self.folder / f"log-{self.files}.jsonl", part)])
            reading = Ingest(self.judging.baselines, self.judging.secrets)
            ingest.run(ingest.IngestLoop(log, self.store, reading), lambda: False, until_end=True, poll_timeout_s=0.0)
            log.close()

    def detector(self, **more: Any) -> Runner:
        return Runner(
            self.store, self.judging, now_s=lambda: self.now_s, balanced=False, overrides=None, tenants={TENANT}, **more
        )

    def judge(self, one: Runner | None = None) -> Runner:
        """Assess what was touched, then one pass; the cells are given back."""
        one = one or self.detector()
        while one.turn():
            pass
        one.look_for_campaigns()
        one.cells.release()
        return one

    @property
    def rows(self) -> dict[str, StoredDecision]:
        found = self.store.decisions(TENANT)
        return {k.client: stored_decision(row, self.judging.secrets, TENANT) for k, row in found}

    @property
    def campaigns(self) -> list[StoredDecision]:
        return [row for client, row in self.rows.items() if is_campaign(ClientKey(TENANT, MODEL, client))]

    @property
    def named(self) -> dict[str, str]:
        """client id → campaign"""
        return {r.client_id: r.campaign_id for r in self.rows.values() if r.campaign_id and not r.members}

    @property
    def alerts(self) -> list[dict[str, Any]]:
        found = [stored_alert(alert, self.judging.secrets) for alert in self.store.alerts()]
        return [body for body in found if body["kind"] == "campaign"]


@pytest.fixture
def world(tmp_path: Path, new_store: NewStore, judging: Detect) -> World:
    return World(tmp_path, new_store(), judging)


def test_one_alert_names_exactly_the_accounts_of_the_theft(world: World, lines: list[bytes], secrets: Secrets) -> None:
    world.read(lines)
    world.judge()
    (campaign,), (alert,) = world.campaigns, world.alerts
    link = "org:" + secrets.client_hash(TENANT, "link\x00org\x00shell")[:16]
    assert campaign.client_id == campaign_id(TENANT, MODEL, link)
    assert campaign.links == (link,)
    assert (campaign.decision.state, campaign.decision.reason, campaign.decision.enforced) == (
        "throttle",
        "campaign",
        "clear",
    )
    assert list(campaign.members) == alert["members"] == THIEVES
    assert world.named == dict.fromkeys(THIEVES, campaign.client_id)
    assert campaign.assessment.queries == alert["queries_seen"] == 160
    assert "client_id" not in alert
    assert alert["campaign_id"] == campaign.client_id
    assert alert["links"] == [{"kind": "org", "members": 20}]
    assert alert["update"] == 0
    assert len(alert["witnesses"]) == 5
    assert set(alert["witnesses"]) <= {f"shell-{i}" for i in range(160)}
    assert [row.decision.state for row in world.rows.values() if row.client_id.startswith("honest")] == ["clear"] * 24


def test_a_detector_that_has_nothing_to_assess_finds_what_another_one_left(world: World, lines: list[bytes]) -> None:
    world.read(lines)
    first = world.detector()
    while first.turn():
        pass
    first.cells.release()
    assert world.campaigns == []
    detect.run(world.detector(sleep=lambda s: None), lambda: False, until_idle=True)
    assert [list(row.members) for row in world.campaigns] == [THIEVES]


def test_accounts_of_a_campaign_that_share_one_link_more_are_no_second_campaign(world: World) -> None:
    """Seven of the thieves share an address as well; whatever the order of the links, the larger group is told of."""
    lines = lines_of()
    world.read([line.replace(b'{"org": "shell"}', b'{"org": "shell", "ip": "192.0.2.9"}') if b"sybil-0" in line and b"sybil-08" not in line
                else line for line in lines])  # fmt: skip
    world.judge()
    world.judge()
    (campaign,) = world.campaigns
    assert list(campaign.members) == THIEVES
    assert [tie.kind for tie in campaign.ties] == ["org"]


def test_a_campaign_that_nothing_ties_shows_in_the_fleet(world: World) -> None:
    """Three hundred honest accounts and sixty of a theft, nothing in common but what they ask: told of with a bound, nothing enforced."""
    rng = np.random.default_rng(8)
    rows = victims.items(300 * 10, rng)
    lines = [
        victims.line(row, client_id=f"honest-{i % 300:03d}", event_id=f"h-{i}", timestamp=f"2026-03-10T00:{i % 60:02d}:00Z")
        for i, row in enumerate(rows)
    ]  # fmt: skip
    names = [f"sybil-{i:02d}" for i in range(60)]
    thefts = [line.replace(b'"metadata"', b'"elsewhere"') for line in lines_of(each=10, accounts=names)]
    world.read([*lines, *thefts])
    world.judge()
    told = [alert for alert in world.alerts if alert["reason"] == "campaign_content"]
    assert told
    for alert in told:
        assert alert["links"] == [{"kind": "content", "members": len(alert["members"])}]
        assert alert["enforced"] == "clear"
        bound = int(alert["evidence"][0]["text"].partition("at most ")[2].partition(" of them")[0])
        assert sum(name.startswith("honest") for name in alert["members"]) <= bound < len(alert["members"])
    assert len({name for alert in told for name in alert["members"] if name.startswith("sybil")}) >= 45
    before = len(world.alerts)
    world.judge()
    assert len(world.alerts) == before


def test_what_is_stored_names_nobody(world: World, lines: list[bytes]) -> None:
    world.read(lines)
    world.judge()
    stored = b"".join(row.row for _, row in world.store.decisions(TENANT))
    stored += b"".join(alert.body for alert in world.store.alerts())
    assert world.alerts
    for secret in (b"sybil", b"shell", b"honest-", b"h-1"):
        assert secret not in stored


def test_a_campaign_is_no_client_and_restricts_nobody(world: World, lines: list[bytes], baseline: Baseline) -> None:
    world.read(lines)
    world.judge()
    assert world.store.restrictions()[1] == []
    reader = Reader(world.store, world.judging.secrets, TENANT, baselines={MODEL: baseline})
    assert [c.client_id for c in reader.clients(MODEL, limit=1000).items if "sybil" not in c.client_id] == [
        c.client_id for c in reader.clients(MODEL, limit=1000).items if c.client_id.startswith("honest")
    ]
    assert len(reader.clients(MODEL, sort="queries", limit=1000).items) == 44
    assert (reader.models()[0].clients, reader.models()[0].throttle) == (44, 0)
    (shown,) = reader.campaigns()
    assert {m.client_id for m in shown.members} == set(THIEVES)
    assert (shown.state, shown.queries) == ("throttle", 160)
    assert shown.suspicion == world.campaigns[0].assessment.suspicion > max(m.suspicion for m in shown.members)
    (found,) = [a for a in reader.alerts().items if a.kind == "campaign"]
    assert list(found.members) == THIEVES


def test_without_metadata_nobody_is_put_together(world: World, lines: list[bytes]) -> None:
    world.read([line.replace(b'"metadata"', b'"elsewhere"') for line in lines])
    world.judge()
    assert world.campaigns == []
    assert world.alerts == []
    assert len(world.rows) == 44


def test_however_the_log_is_dealt_out_the_campaign_is_the_same(
    tmp_path: Path, new_store: NewStore, judging: Detect, lines: list[bytes]
) -> None:
    def by_client(i: int, line: bytes) -> int:
        return hash_of(line) % 3

    def hash_of(line: bytes) -> int:
        return sum(line.partition(b'"client_id": "')[2].partition(b'"')[0])

    found = []
    deals: list[Callable[[int, bytes], int]] = [lambda i, line: 0, by_client, lambda i, line: i % 3]
    for number, part_of in enumerate(deals):
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(folder, new_store(), judging)
        parts: list[list[bytes]] = [[], [], []]
        for i, line in enumerate(lines):
            parts[part_of(i, line)].append(line)
        world.read(*(part for part in parts if part))
        world.judge()
        (campaign,), (alert,) = world.campaigns, world.alerts
        found.append(
            (campaign.client_id, campaign.members, campaign.links, campaign.assessment.queries,
             alert["alert_id"], alert["members"], world.named,
             round(campaign.assessment.suspicion, 9), campaign.assessment.evidence)
        )  # fmt: skip
    assert found[1] == found[0]
    assert found[2][:7] == found[0][:7], "without a key the order is unknown, and the order-free signals judge"


def test_replay_and_service_give_the_same_campaign(world: World, new_store: NewStore, lines: list[bytes]) -> None:
    world.read(lines)
    detect.run(world.detector(sleep=lambda s: None), lambda: False, until_idle=True)
    log = FileLog([victims.write_lines(world.folder / "whole.jsonl", lines)])
    result = replay.replay(log, new_store(), Ingest(world.judging.baselines, world.judging.secrets), world.judging)
    (theirs,) = [alert for alert in result.alerts if alert["kind"] == "campaign"]
    (ours,) = world.alerts
    assert theirs == ours
    assert {row.client_id: row.campaign_id for row in result.scores.values() if row.campaign_id} == world.named
    assert len(result.scores) == 44


def test_a_long_replay_looks_now_and_then(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, new_store: NewStore, judging: Detect, lines: list[bytes]
) -> None:
    """So that a campaign is told of when it was, not at the end: here as soon as half the queries were read."""
    monkeypatch.setattr(replay, "CAMPAIGNS_EVERY", 300)
    more = [*lines, *lines_of(each=10, first=160)]
    log = FileLog([victims.write_lines(tmp_path / "log.jsonl", more)])
    result = replay.replay(log, new_store(), Ingest(judging.baselines, judging.secrets), judging, max_poll_records=320)
    (alert,) = [alert for alert in result.alerts if alert["kind"] == "campaign"]
    assert alert["queries_seen"] < 20 * 18


# ------------------------------------------------------------------------------------------------- the life of one


def test_it_is_told_once_again_with_new_members_and_when_it_is_over(world: World) -> None:
    few = THIEVES[:12]
    world.read(lines_of(each=12, accounts=few))
    world.judge()
    world.judge()
    assert [a["update"] for a in world.alerts] == [0], "nothing new is nothing to tell"
    world.read(lines_of(each=2, accounts=few, first=200))
    world.judge()
    assert [a["update"] for a in world.alerts] == [0], "more of the same is no news"
    assert world.campaigns[0].assessment.queries == 12 * 14
    late = ["late-1", "late-2"]
    world.read(lines_of(each=2, accounts=late, first=300))
    world.judge()
    assert [a["update"] for a in world.alerts] == [0, 1]
    assert world.alerts[1]["members"] == [*late, *few]
    assert len({a["alert_id"] for a in world.alerts}) == 1
    assert world.named.keys() == {*late, *few}
    world.now_s += TTL_S["throttle"] + 1
    world.judge()
    (campaign,) = world.campaigns
    assert (campaign.decision.state, campaign.decision.reason) == ("watch", "expired")
    assert world.named == {}
    assert [a["update"] for a in world.alerts] == [0, 1]


def test_a_verdict_about_a_campaign_is_its_next_update_and_stays_with_it(world: World, secrets: Secrets) -> None:
    """Judged over HTTP's own path, told by whoever holds the cell, kept when accounts join, and no account is allowlisted."""
    world.read(lines_of())
    world.judge()
    (row,) = world.campaigns
    key = campaign_key(TENANT, MODEL, row.client_id)
    assert row.alert is not None
    operations = Operations(world.store, secrets, lambda: world.now_s)
    who = Actor("alice", "analyst", TENANT)

    def judged() -> list[Any]:
        one = world.detector()
        one.overrides = Overrides()
        world.judge(one)
        bodies = [stored_alert(alert, secrets) for alert in world.store.alerts()]
        return sorted((b for b in bodies if b["kind"] == "campaign"), key=lambda b: int(b["update"]))

    operations.record_verdict(who, row.alert["alert_id"], "true_positive", None, campaign=key, note="one owner")
    told = judged()
    assert [b["update"] for b in told] == [0, 1]
    assert told[1]["verdict"] == {"verdict": "true_positive", "by": "alice", "note": "one owner"}
    assert told[1]["members"] == told[0]["members"]
    sent = finding(OutboxAlert("one/1", 0, json.dumps(told[1]).encode()))
    assert detection_finding(sent)["verdict_id"] == 2
    assert len(judged()) == 2, "told once, over restarts"
    world.read(lines_of(accounts=["sybil-99"], first=400))
    assert [b.get("verdict", {}).get("verdict") for b in judged()] == [None, "true_positive", "true_positive"]
    operations.record_verdict(who, row.alert["alert_id"], "false_positive", None, campaign=key)
    assert judged()[-1]["verdict"]["verdict"] == "false_positive"
    assert world.store.operator_entries("allow", TENANT)[1] == []


@pytest.mark.parametrize(("alarms", "postponed"), [([], 0), (["dead_letters"], 0), (["lag"], MOST_POSTPONED)])
def test_the_search_waits_while_ingest_lags_but_not_for_ever(alarms: list[str], postponed: int, world: World) -> None:
    world.read(lines_of())
    assert HeartbeatPublisher(world.store, lambda: Heartbeat("ingest@one", "ingest", alarms=alarms)).once()
    clock_s = [0.0]
    one = world.detector(clock=lambda: clock_s[0])
    while one.turn():
        pass
    for searched in [False] * postponed + [True]:
        assert world.campaigns == []
        clock_s[0] += EVERY_S
        one.turn()
        assert bool(world.campaigns) is searched
    assert one.metrics.value("querywarden_campaign_searches_postponed_total") == postponed


def test_a_campaign_that_nothing_holds_together_any_more_is_closed(world: World, secrets: Secrets) -> None:
    world.read(lines_of())
    world.judge()
    gone = [ClientKey(TENANT, MODEL, secrets.client_hash(TENANT, name)) for name in THIEVES]
    for v in range(DECISION_CELLS):
        world.store.erase_decisions(v, [key for key in gone if decision_cell(key, DECISION_CELLS) == v], [])
    one = world.detector()
    world.now_s += TTL_S["throttle"] + 1
    for cell in world.store.cells():
        world.store.erase(cell, gone)
    one.turn()
    one.look_for_campaigns()
    (campaign,) = world.campaigns
    assert (campaign.decision.state, campaign.decision.episode) == ("clear", 1)
    closing = world.alerts[-1]
    assert (closing["resolved"], closing["state"], closing["was"], closing["update"]) == (True, "clear", "throttle", 1)


def test_another_link_of_the_same_accounts_keeps_the_name(world: World) -> None:
    world.read(lines_of())
    world.judge()
    name = world.campaigns[0].client_id
    # "asn_ja4" sorts before "org": without memory the campaign would change its name
    more = [line.replace(b'{"org": "shell"}', b'{"asn": 7, "ja4": "z"}') for line in lines_of(each=1, first=400)]
    world.read(more)
    world.judge()
    (campaign,) = world.campaigns
    assert campaign.client_id == name
    assert [one.partition(":")[0] for one in campaign.links] == ["org", "asn_ja4"]
    assert len({a["alert_id"] for a in world.alerts}) == 1


def test_a_member_keeps_its_campaign_when_it_is_assessed_again(world: World) -> None:
    world.read(lines_of())
    world.judge()
    world.read(lines_of(each=1, first=500))
    one = world.detector()
    while one.turn():
        pass
    assert world.named.keys() == set(THIEVES)


# ------------------------------------------------------------------------------------------- cells, fences, bounds


def test_two_detectors_share_a_campaign(world: World) -> None:
    world.read(lines_of())
    both = [world.detector(process=name) for name in ("a", "b")]
    for number, one in enumerate(both):
        for cell in range(number, DECISION_CELLS, 2):
            one.cells.claim(cell)
        one.cells._share = 0  # takes no more
    for _ in range(3):
        for one in both:
            names = world.store.cells()
            pending = find_touched(one.store, one.cells.held, names, one.unreadable)
            one._look(sorted(one.cells.held), pending, names, True, {}, lambda: False)
    for one in [*both, *both]:
        one.look_for_campaigns()
    assert [list(c.members) for c in world.campaigns] == [THIEVES]
    assert world.named.keys() == set(THIEVES)
    assert [a["update"] for a in world.alerts] == [0]


def test_who_lost_the_cell_writes_nothing(world: World) -> None:
    world.read(lines_of())
    one = world.detector(lease_ms=1)
    while one.turn():
        pass
    for cell in range(DECISION_CELLS):  # another took all of them over
        world.store.release_decisions(cell, one.process)
        world.store.claim_decisions(cell, "other", "f" * 32, 60_000)
    before = len(one.cells.held)
    one.look_for_campaigns()
    assert world.campaigns == []
    assert world.named == {}
    assert len(one.cells.held) < before, "a cell that is not ours is let go"


@pytest.mark.parametrize("error", [Unavailable("no route"), Fenced("another"), Rewound("cell", 3)])
def test_a_campaign_that_could_not_be_recorded_is_assessed_again(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The theft is over: the group never changes again, so only a second look can flag it."""
    world.read(lines_of())
    one = world.detector()
    while one.turn():
        pass

    def refused(*_: Any) -> int:
        raise error

    with monkeypatch.context() as patched, contextlib.suppress(Unavailable):
        patched.setattr(world.store, "record", refused)
        one.look_for_campaigns()
    assert world.campaigns == []
    one.turn()  # claims again what it let go of
    one.look_for_campaigns()
    assert [list(c.members) for c in world.campaigns] == [THIEVES]
    assert len(world.alerts) == 1


def test_while_a_profile_cell_cannot_be_read_campaigns_stay_as_they_are(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.read(lines_of())
    one = world.detector()
    while one.turn():
        pass

    def damaged(*_: Any) -> Any:
        raise CorruptState("profile cell: damaged")

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "shards", damaged)
        one.look_for_campaigns()
        one.look_for_campaigns()
    assert caplog.messages.count("profile cell cannot be read") == 1
    assert world.campaigns == []
    one.look_for_campaigns()
    assert [list(c.members) for c in world.campaigns] == [THIEVES]


def test_a_group_that_is_no_campaign_is_assessed_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded of it, and that is no reason to read its profiles in every pass."""
    world.read(lines_of())
    one = world.detector()
    while one.turn():
        pass
    looked: list[Any] = []
    monkeypatch.setattr(Campaigns, "assess", lambda self, group, *rest: looked.append(group.key))
    one.look_for_campaigns()
    assert looked
    one.look_for_campaigns()
    assert len(looked) == len(set(looked))


def test_a_pass_is_bounded_and_nobody_waits_for_ever(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        world.read(lines_of(accounts=[f"{number}-{i}" for i in range(20)], org=f"shell-{number}", first=number * 200))
    one = world.detector()
    while one.turn():
        pass
    one.search.most_groups = 1
    for expected in (1, 2, 3):
        with caplog.at_level(logging.WARNING):
            one.look_for_campaigns()
        assert len(world.campaigns) == expected
    assert sum("more groups" in record.message for record in caplog.records) == 2
    one.search.assessed.clear()
    one.search.most_groups, one.search.most_members = 200, 25
    assert len(one.search._due(one.search.campaigns.survey(world.store.decisions(TENANT)), one.cells.held, NOW_S)) == 1


def test_the_service_looks_once_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    time_s = [0.0]
    world.read(lines_of())
    one = world.detector(clock=lambda: time_s[0])
    passes: list[str] = []
    run = Search.run

    def counted(self: Search, tenant: str, *rest: Any) -> list[Outcome]:
        passes.append(tenant)
        return run(self, tenant, *rest)

    monkeypatch.setattr(Search, "run", counted)
    for _ in range(130):
        one.turn()
        time_s[0] += 1.0
    assert passes == [TENANT] * 2
    assert len(world.alerts) == 1


def test_a_damaged_row_hides_no_campaign(world: World, secrets: Secrets) -> None:
    world.read(lines_of())
    one = world.detector()
    while one.turn():
        pass
    for key in (ClientKey(TENANT, MODEL, "0" * 32), campaign_key(TENANT, MODEL, "broken")):
        cell = decision_cell(key, DECISION_CELLS)
        held = one.cells.held[cell]
        rows = {key: DecisionRow(b"\xff\x00", "clear", 0.0, 0)}
        held.revision = world.store.record(held.token, held.revision, Outcome(cell, {}, rows), one.process, 60_000)
    one.look_for_campaigns()
    assert len(world.alerts) == 1


def test_erasing_a_member_forgets_the_campaign_that_names_it(world: World, secrets: Secrets) -> None:
    world.read(lines_of())
    world.judge()
    gone = THIEVES[3]
    subject = erasure.subject_of(world.store, secrets, TENANT, gone, [MODEL], hashed=False)
    document = erasure.document(world.store, secrets, subject)
    (told,) = [alert for alert in document["alerts"] if alert["kind"] == "campaign"]
    assert told["members"] == [gone]
    assert not any(other in str(document) for other in THIEVES if other != gone)
    assert {"l", "x"} <= document["models"][0]["profiles"][0]["fields"].keys()
    erasure.erase(world.store, secrets, subject)
    assert world.campaigns == []
    assert world.alerts == []
    one = world.detector()
    world.judge(one)
    (campaign,), (alert,) = world.campaigns, world.alerts
    assert gone not in campaign.members
    assert alert["members"] == list(campaign.members) == [name for name in THIEVES if name != gone]


# ------------------------------------------------------------------------------------------------------ decisions


@pytest.fixture
def assessments() -> Callable[[float], Assessment]:
    return lambda p: Assessment(
        queries=500, distinct=500.0, misfit=0.0, p_value=p, content_p_value=p, suspicion=1 - p, calibrated=True, in_order=False,
        fused=9.0, odd=60.0, family="unknown", evidence=(),
    )  # fmt: skip


def test_a_campaign_is_throttled_at_most_and_enforced_never(
    assessments: Callable[[float], Assessment], baseline: Baseline
) -> None:
    policy = Policy(0.01, "block")
    first = decide_group(Decision(), assessments(1e-9), baseline.calibration, policy, 100)
    assert first == Decision("throttle", "campaign", 100, 100 + TTL_S["throttle"], 0, "clear")
    again = decide_group(first, assessments(1e-9), baseline.calibration, policy, 200)
    assert (again.since_s, again.until_s, again.enforced) == (100, 200 + TTL_S["throttle"], "clear")
    held = decide_group(again, assessments(0.5), baseline.calibration, policy, 300)
    assert (held.state, held.reason) == ("throttle", "holds")
    over = decide_group(again, assessments(0.5), baseline.calibration, policy, 200 + TTL_S["throttle"])
    assert (over.state, over.episode) == ("clear", 1)
    assert decide_group(Decision(), assessments(0.03), baseline.calibration, policy, 100).state == "watch"


def test_accounts_of_a_small_campaign_are_tied_by_odd_queries_close_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in common but near-duplicates of a few seeds, and no fleet test; a bound is told, and nobody joins by it."""
    monkeypatch.setattr(grouping, "fleet_cells", lambda *_: [])
    rows = victims.items(300 * 10, np.random.default_rng(8))
    lines = [
        victims.line(row, client_id=f"honest-{i % 300:03d}", event_id=f"h-{i}", timestamp=f"2026-03-10T00:{i % 60:02d}:00Z")
        for i, row in enumerate(rows)
    ]  # fmt: skip
    rng, seeds, names = np.random.default_rng(9), odd_rows(6, 3), [f"sybil-{i:02d}" for i in range(16)]
    near = [np.round(seeds[rng.integers(6)] + rng.normal(size=victims.WIDTH) * 0.02, 3) for i in range(16 * 30)]
    thefts = [
        victims.line(row, client_id=names[i % 16], event_id=f"t-{i}", timestamp=f"2026-03-10T{i // 60:02d}:{i % 60:02d}:00Z")
        for i, row in enumerate(near)
    ]  # fmt: skip
    world.read([*lines, *thefts])
    world.judge()
    (alert,) = [alert for alert in world.alerts if alert["kind"] == "campaign"]
    assert alert["links"] == [{"kind": "odd_patch", "members": len(alert["members"])}]
    assert (alert["reason"], alert["enforced"]) == ("campaign_content", "clear")
    assert "odd queries that lie close together" in alert["evidence"][0]["text"]
    bound = int(alert["evidence"][0]["text"].partition("at most ")[2].partition(" of them")[0])
    assert sum(name.startswith("honest") for name in alert["members"]) <= bound < len(alert["members"])
    assert sum(name.startswith("sybil") for name in alert["members"]) >= 12
    before = len(world.alerts)
    world.judge()
    assert len(world.alerts) == before
    assert [row.client_id for row in world.campaigns] == [alert["campaign_id"]]
    assert not any(link.startswith(JOINING) for row in world.campaigns for link in row.links)


def test_accounts_that_are_burnt_one_after_the_other_are_tied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in common but that one starts when another stops; a longer chain is the same campaign, and nobody joins by it."""
    monkeypatch.setattr(grouping, "fleet_cells", lambda *_: [])
    monkeypatch.setattr(grouping, "patch_groups", lambda *_: [])
    rows = victims.items(300 * 10, np.random.default_rng(8))
    lines = [
        victims.line(row, client_id=f"honest-{i % 300:03d}", event_id=f"h-{i}", timestamp=f"2026-03-10T00:{i % 60:02d}:00Z")
        for i, row in enumerate(rows)
    ]  # fmt: skip

    def burnt(first: int, last: int) -> list[bytes]:
        return [
            victims.line(row, client_id=THIEVES[i // 60], event_id=f"t-{i}", timestamp=f"2026-03-10T{i // 60:02d}:{i % 60:02d}:30Z")
            for i, row in zip(range(60 * first, 60 * last), odd_rows(60 * last, 5)[60 * first :], strict=True)
        ]  # fmt: skip

    world.read([*lines, *burnt(0, 8)])
    world.judge()
    world.read(burnt(8, 12))
    world.judge()
    first, then = [alert for alert in world.alerts if alert["kind"] == "campaign"]
    assert first["links"] == [{"kind": "handover", "members": len(first["members"])}]
    assert (first["reason"], first["enforced"], first["update"]) == ("campaign", "clear", 0)
    assert set(first["members"]) < set(then["members"]) <= set(THIEVES[:12])
    assert then["campaign_id"] == first["campaign_id"]
    assert len(then["members"]) >= 10
    assert not any(link.startswith(JOINING) for row in world.campaigns for link in row.links)


def test_what_ties_an_application_too_is_told_of_a_group_that_only_content_ties() -> None:
    """Half of its accounts share a template filled with texts of the model's domain; fewer, or a link, and nothing is said."""

    def told(sharing: int, honest_at_most: int | None) -> str:
        keys = [ClientKey(TENANT, MODEL, f"{i:032x}") for i in range(20)]
        usual = ["usual_template:00ff", "template:11ee"]
        clients = {key: RowSummary(f"c-{i}", patches=usual[: 2 * (i < sharing)]) for i, key in enumerate(keys)}
        tied = Group(("content:part",), tuple(keys))
        group = grouping._suspected(keys[0], tied.links, tied, grouping._named(tied, clients), clients)
        group = replace(group, ties=(Tie("content", 20),), honest_at_most=honest_at_most)
        return campaigns._completed((Evidence("part", 9.0, 0.001, "odd"),), group)[0].text

    assert "12 share one template filled with texts of the model's domain" in told(12, 3)
    assert "template" not in told(9, 3)
    assert told(20, None) == "odd"


def test_accounts_that_share_software_and_began_on_one_day_are_tied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each alone says nothing: one honest account in three has that software, and a tenth began on that day. Nobody joins by it."""
    monkeypatch.setattr(grouping, "fleet_cells", lambda *_: [])
    monkeypatch.setattr(grouping, "patch_groups", lambda *_: [])
    rows = victims.items(300 * 10, np.random.default_rng(8))
    same = {"user_agent": "client/1", "headers": "host,accept"}
    lines = [
        victims.line(
            row, client_id=f"honest-{i % 300:03d}", event_id=f"h-{i}", timestamp=f"2026-03-{10 - i % 10:02d}T00:{i % 60:02d}:00Z",
            metadata=same if i % 3 == 0 else {"user_agent": f"client/{i % 30}", "headers": "accept,host"},
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    thefts = [
        victims.line(
            row, client_id=THIEVES[i % 20], event_id=f"t-{i}", timestamp=f"2026-03-10T{i // 60:02d}:{i % 60:02d}:00Z", metadata=same
        )
        for i, row in enumerate(odd_rows(20 * 30, 5))
    ]  # fmt: skip
    world.read([*lines, *thefts])
    world.judge()
    (alert,) = [alert for alert in world.alerts if alert["kind"] == "campaign"]
    assert [tie["kind"] for tie in alert["links"]] == ["agent", "start"]
    assert {tie["members"] for tie in alert["links"]} == {len(alert["members"])}
    assert (alert["reason"], alert["enforced"]) == ("campaign", "clear")
    assert set(THIEVES) <= set(alert["members"])
    assert sum(name.startswith("honest") for name in alert["members"]) < 10  # ten have both in common
    before = len(world.alerts)
    world.judge()
    assert len(world.alerts) == before
    assert not any(link.startswith(JOINING) for row in world.campaigns for link in row.links)


# ------------------------------------------------------------------------------ accounts that share a thief's weak link

ADDRESS, SOFTWARE = {"ip": "192.0.2.9"}, {"user_agent": "client/1", "headers": "host,accept"}


def framed(size: int, links: dict[str, str], thieves_link: dict[str, str] | None = None) -> list[bytes]:
    """Of `size` accounts with the same links one in five is honest; sixty other honest accounts have links of their own."""
    few = size // 5
    names = [f"sybil-{i:02d}" for i in range(size - few)]
    rng, start = np.random.default_rng(12), "2026-03-10T"
    thefts = [
        victims.line(row, client_id=names[i % len(names)], event_id=f"t-{i}", timestamp=f"{start}{i // 60:02d}:{i % 60:02d}:00Z",
                     metadata=links | (thieves_link or {}))
        for i, row in enumerate(odd_rows(25 * len(names), 5))
    ]  # fmt: skip
    honest = [
        victims.line(row, client_id=f"honest-{i % 60:02d}", event_id=f"h-{i}", timestamp=f"{start}{i // 60:02d}:{i % 60:02d}:30Z",
                     metadata=links if i % 60 < few else {"ip": f"198.51.100.{i % 60}"})
        for i, row in enumerate(victims.items(60 * 20, rng))
    ]  # fmt: skip
    return [*honest, *thefts]


@pytest.fixture
def by_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but links makes groups."""
    for name in ("fleet_cells", "patch_groups", "handover_chains"):
        monkeypatch.setattr(grouping, name, lambda *_: [])


@pytest.mark.usefixtures("by_links")
@pytest.mark.parametrize("links", [ADDRESS, SOFTWARE], ids=["address", "software"])
@pytest.mark.parametrize("size", [5, 15])
def test_an_honest_account_with_the_same_weak_link_is_not_named(
    world: World, size: int, links: dict[str, str], baseline: Baseline, secrets: Secrets
) -> None:
    """It is in the group that is judged, but in no alert, on no page, and no decision about the campaign touches it."""
    world.read(framed(size, links))
    world.judge()
    (alert,) = world.alerts
    thieves = THIEVES[: size - size // 5]
    assert alert["members"] == thieves
    assert world.named.keys() == set(thieves)
    assert alert["links"] == [{"kind": "ip" if links is ADDRESS else "agent", "members": len(thieves)}]
    assert f"; others that are tied to these, {size // 5} in number, are not named" in alert["evidence"][0]["text"]
    (shown,) = Reader(world.store, secrets, TENANT, baselines={MODEL: baseline}).campaigns()
    subject = CampaignSubject(shown.campaign_id, MODEL, tuple(m.client_key for m in shown.members))
    made = Operations(world.store, secrets, lambda: world.now_s).decide_campaign(
        Actor("maria", "operator", TENANT), subject, "block"
    )
    assert set(made.accounts) == {secrets.client_hash(TENANT, name) for name in thieves}


@pytest.mark.usefixtures("by_links")
def test_over_a_strong_link_all_are_named_and_a_weak_one_adds_nobody(world: World) -> None:
    """The control: one payment ties thieves and two colleagues, which no statistic tells apart from their owner."""
    lines = framed(15, ADDRESS | {"org": "shell"})
    world.read([line.replace(b', "org": "shell"', b"") if b"honest-00" in line else line for line in lines])
    world.judge()
    (alert,) = world.alerts
    assert alert["members"] == ["honest-01", "honest-02", *THIEVES[:12]]


@pytest.mark.usefixtures("by_links")
def test_a_group_in_which_nobody_is_odd_for_its_size_is_no_campaign(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.read(framed(5, ADDRESS))
    with monkeypatch.context() as patched:
        patched.setattr("detector.campaigns.ODD_ENOUGH", 0.0)
        world.judge()
    assert world.alerts == []
    world.judge()
    (alert,) = world.alerts
    assert len(alert["members"]) == 4, "the control"
