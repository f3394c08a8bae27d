"""From one organisation to another: a campaign here becomes an indicator, which ties accounts there that nothing else ties."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers.alerts.indicators import MOST_HASHES, bundle_of, read_bundle
from consumers.detect.loop import Runner
from consumers.detect.step import Detect
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.operators import audit
from consumers.operators.audited_write import Actor
from consumers.operators.indicators import IndicatorImports
from consumers.readers.indicators import ExportedIndicators, Told, exported
from consumers.readers.queries import Reader
from consumers.records.decision import RowSummary, StoredDecision, is_campaign, stored_decision, summary_of
from consumers.records.indicators import CONTENT_LINK
from consumers.secrets import Secrets
from consumers.sharing_keys import SharingKey
from consumers.store.embedded import EmbeddedStore
from consumers.times import second
from detector.baseline import Baseline
from detector.policy import Policy
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
TENANT, MODEL = "default", victims.MODEL
KEY = SharingKey(b"a" * 32)
MARIA = Actor("maria", "admin", TENANT)
NOW_S = int(time.time())
"""The store drops what has expired by its own clock."""
DAY_S = 86_400
NOBODY = Told({}, ())
ACCOUNTS = 20


class Organisation:
    """A deployment with secrets of its own, which shares `KEY` with its peers."""

    def __init__(self, name: str, folder: Path, store: EmbeddedStore, baseline: Baseline) -> None:
        self.folder, self.store = folder / name, store
        self.folder.mkdir()
        self.secrets = Secrets(name.encode()[:1] * 16, name.encode()[:1] * 32, b"k" * 32)
        self.judging = Detect({MODEL: baseline}, self.secrets, Policy(0.01, "block"))

    def read(self, lines: Sequence[bytes]) -> None:
        log = FileLog([victims.write_lines(self.folder / "log.jsonl", lines)])
        reading = Ingest(self.judging.baselines, self.secrets, sharing=(KEY,))
        ingest.run(ingest.IngestLoop(log, self.store, reading), lambda: False, until_end=True, poll_timeout_s=0.0)
        log.close()

    def judge(self) -> dict[str, StoredDecision]:
        """Assess what was touched, then search for campaigns; the rows by client id."""
        one = Runner(self.store, self.judging, now_s=lambda: NOW_S, balanced=False, overrides=None, tenants={TENANT})
        while one.turn():
            pass
        one.look_for_campaigns()
        one.cells.release()
        found = self.store.decisions(TENANT)
        return {row.client_id: row for _, packed in found for row in [stored_decision(packed, self.secrets, TENANT)]}

    @property
    def campaigns(self) -> list[StoredDecision]:
        rows = self.store.decisions(TENANT)
        return [stored_decision(row, self.secrets, TENANT) for key, row in rows if is_campaign(key)]

    def export(self, told: Told = NOBODY, **more: Any) -> ExportedIndicators:
        return exported(self.store, self.secrets, TENANT, KEY, told, NOW_S, 30 * DAY_S, **more)

    @property
    def imports(self) -> IndicatorImports:
        return IndicatorImports(self.store, self.secrets, now_s=lambda: NOW_S)

    @property
    def reader(self) -> Reader:
        return Reader(self.store, self.secrets, TENANT, now_s=lambda: NOW_S)


def address(i: int) -> str:
    """Two accounts share one: too few for a group."""
    return f"198.51.100.{i // 2}"


def theft(prefix: str, seed: int, **more: str) -> list[bytes]:
    low, high = victims.reference_rows().min(0), victims.reference_rows().max(0)
    rows = np.round(np.random.default_rng(seed).uniform(low, high, size=(8 * ACCOUNTS, victims.WIDTH)), 2)
    return [
        victims.line(
            row, client_id=f"{prefix}-{i % ACCOUNTS:02d}", event_id=f"{prefix}-{i}", metadata={"ip": address(i % ACCOUNTS)} | more,
            timestamp=second(NOW_S - DAY_S + 60 * i),
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def honest(first: str) -> list[bytes]:
    rows = victims.items(24 * 20, np.random.default_rng(2))
    return [
        victims.line(
            row, client_id=f"honest-{i % 24:02d}", event_id=f"h-{i}", metadata={"ip": f"{first}.{i % 24 // 2}"},
            timestamp=second(NOW_S - DAY_S + 60 * (i % 60)),
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def summaries(of: Organisation) -> dict[ClientKey, RowSummary]:
    return {key: summary_of(row) for key, row in of.store.decisions(TENANT) if not is_campaign(key)}


@pytest.fixture
def here(tmp_path: Path, new_store: NewStore, baseline: Baseline) -> Organisation:
    """A theft over twenty accounts of one organisation, that was found."""
    found = Organisation("here", tmp_path, new_store(), baseline)
    found.read([*honest("192.0.2"), *theft("sybil", 0, org="shell")])
    found.judge()
    return found


@pytest.fixture
def there(tmp_path: Path, new_store: NewStore, baseline: Baseline) -> Organisation:
    """The thief uses the same addresses, under other names: nothing ties more than two of its accounts."""
    found = Organisation("there", tmp_path, new_store(), baseline)
    found.read([*honest("203.0.113"), *theft("mule", 1)])
    found.judge()
    return found


def test_a_campaign_here_ties_accounts_there_and_the_statistic_decides(here: Organisation, there: Organisation) -> None:
    assert len(here.campaigns) == 1
    assert there.campaigns == [], "the control: without the indicator nothing ties them"
    told = here.export()
    text = bundle_of(told.indicators, KEY, told.described)
    assert len(told.indicators) == 1
    kinds = Counter(h.partition(":")[0] for h in told.indicators[0].hashes)
    assert kinds == {"org": 1, "ip": ACCOUNTS // 2, "content": MOST_HASHES - 1 - ACCOUNTS // 2}
    for secret in ("sybil", "shell", "198.51", MODEL, here.secrets.client_hash(TENANT, "sybil-00")):
        assert secret not in text

    before = there.judge()
    there.imports.take(MARIA, "here", read_bundle(text.encode(), (KEY,), NOW_S).indicators, "digest")
    matching = {key for key, _ in there.reader.reported().items()}
    assert matching == {ClientKey(TENANT, MODEL, there.secrets.client_hash(TENANT, f"mule-{i:02d}")) for i in range(20)}
    rows = there.judge()
    (campaign,) = there.campaigns
    assert campaign.decision.state == "throttle"
    assert [(tie.kind, tie.members) for tie in campaign.ties] == [("peer", ACCOUNTS)]
    assert sorted(campaign.members) == [f"mule-{i:02d}" for i in range(20)]
    for name, row in before.items():
        assert rows[name].decision == row.decision, "an indicator decides about no client"
        assert rows[name].links == row.links, "and is not stored as a link of one"
    one = there.reader.client(MODEL, "mule-03")
    assert one is not None
    assert [(r.source, r.kinds, r.reason) for r in one.indicators] == [("here", ("ip",), "campaign")]
    assert there.reader.client(MODEL, "honest-03").indicators == ()  # type: ignore[union-attr]
    log = b"".join(line for _, line in audit.stored_rows(there.store))
    assert b'"action":"indicators.import","actor":"maria"' in log
    assert audit.verify(there.store, audit.Seal(there.secrets), now_s=lambda: NOW_S).findings == []


def test_the_same_odd_queries_there_are_tied_by_what_they_ask(
    here: Organisation, tmp_path: Path, new_store: NewStore, baseline: Baseline
) -> None:
    """Other accounts, each at an address of its own, are given the list that was asked here."""
    apart = [json.loads(line) for line in theft("mule", 0)]
    lines = [json.dumps(e | {"metadata": {"ip": f"10.1.{e['client_id'][-2:]}.1"}}).encode() for e in apart]
    there = Organisation("there", tmp_path, new_store(), baseline)
    there.read([*honest("203.0.113"), *lines])
    before = there.judge()
    assert not any(tie.kind == CONTENT_LINK for campaign in there.campaigns for tie in campaign.ties)
    told = here.export().indicators
    of_content = {h for one in told for h in one.hashes if h.startswith("content:")}
    assert len(of_content) > ACCOUNTS
    there.imports.take(MARIA, "here", told, "digest")
    rows = there.judge()
    (campaign,) = [one for one in there.campaigns if any(tie.kind == CONTENT_LINK for tie in one.ties)]
    assert len(campaign.members) >= ACCOUNTS // 2
    assert all(member.startswith("mule-") for member in campaign.members)
    assert {name: rows[name].decision for name in before} == {name: row.decision for name, row in before.items()}


def test_honest_accounts_that_ask_what_a_peer_reported_are_not_accused(here: Organisation, there: Organisation) -> None:
    """A peer reports the odd queries of honest accounts, as if it knew them."""
    shared = {k.client: one.shared for k, one in summaries(there).items()}
    mules = {there.secrets.client_hash(TENANT, f"mule-{i:02d}") for i in range(ACCOUNTS)}
    hashes = sorted(
        {h.partition(".")[2] for k, mine in shared.items() if k not in mules for h in mine if ".content:" in h}
    )
    lie = replace(here.export().indicators[0], hashes=tuple(hashes[:64]), confidence=100)
    there.imports.take(MARIA, "liar", [lie], "digest")
    assert len(there.reader.reported()) > 4, "the control: some match"
    there.judge()
    assert there.campaigns == []


def test_a_peer_that_reports_honest_accounts_accuses_nobody(there: Organisation, here: Organisation) -> None:
    """It holds the key, and reports the addresses of all honest accounts with full confidence."""
    hashes = tuple(f"ip:{KEY.hash('ip', f'203.0.113.{i}')}" for i in range(12))
    lie = replace(here.export().indicators[0], hashes=hashes, confidence=100)
    before = there.judge()
    there.imports.take(MARIA, "liar", [lie], "digest")
    assert len(there.reader.reported()) == 24, "the control: all of them match"
    rows = there.judge()
    assert there.campaigns == []
    assert {name: row.decision for name, row in rows.items()} == {name: row.decision for name, row in before.items()}


def test_what_is_not_told(here: Organisation) -> None:
    (campaign,) = here.campaigns
    alert_id = (campaign.alert or {})["alert_id"]
    assert [one.confidence for one in here.export().indicators] == [50]
    assert here.export(confirmed_only=True).indicators == ()
    assert [one.confidence for one in here.export(Told({alert_id: "true_positive"}, ())).indicators] == [90]
    assert here.export(Told({alert_id: "false_positive"}, ())).indicators == ()
    members = [here.secrets.client_hash(TENANT, member) for member in campaign.members]
    spared = here.export(Told({}, members))
    assert (spared.indicators, spared.withheld) == ((), 1)


def test_what_honest_accounts_share_is_not_told(tmp_path: Path, new_store: NewStore, baseline: Baseline) -> None:
    """The thieves sit behind the addresses of honest accounts: only their organisation is told."""
    found = Organisation("here", tmp_path, new_store(), baseline)
    busy = [line.replace(b"honest-", b"also-") for line in honest("198.51.100")]
    found.read([*honest("198.51.100"), *busy, *theft("sybil", 0, org="shell")])
    found.judge()
    (told,) = found.export().indicators
    assert {h.partition(":")[0] for h in told.hashes} == {"org", "content"}
