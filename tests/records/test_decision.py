"""The stored bytes of rows and alerts, against bytes that the version before `StoredDecision` was composed wrote.

`stored_rows.json` holds a client's episode (raised, risen, judged, closed), a watched client and a campaign. Each case has the row and the
alert as stored, the row as that version wrote it again after reading it, and its two JSON forms.
"""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from consumers.errors import CorruptState
from consumers.records.alert import judged, packed_alert, told
from consumers.records.client import ClientRecord
from consumers.records.decision import StoredDecision, campaign_key, decided, packed_decision, previous, stored_decision
from consumers.records.refusals import Refusals
from consumers.secrets import Secrets
from consumers.store import DecisionRow, OutboxAlert
from detector.exposure import Exposure
from detector.policy import Decision, news
from detector.query import ClientKey
from detector.scoring import Assessment, Evidence

SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
TENANT, MODEL = "acme", "fraud-v3"
WRITTEN: dict[str, dict[str, Any]] = {
    case["name"]: case for case in msgspec.json.decode((Path(__file__).parent / "stored_rows.json").read_bytes())
}
THIEF = "thief\u202e é"
CAMPAIGN = "c0ffee" * 5 + "aa"


def bytes_of(text: str) -> bytes:
    return base64.b64decode(text)


def read(case: dict[str, Any]) -> StoredDecision:
    row = DecisionRow(bytes_of(case["row"]), case["state"], case["rank"], case["until_s"], case["enforced"])
    return stored_decision(row, SECRETS, TENANT)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_row_of_the_version_before_is_written_again_as_that_version_did(name: str) -> None:
    case = WRITTEN[name]
    row = read(case)
    packed = packed_decision(row, SECRETS, TENANT)
    assert packed.row == bytes_of(case["repacked"])
    assert (packed.state, packed.rank, packed.until_s, packed.enforced) == tuple(
        case[field] for field in ("state", "rank", "until_s", "enforced")
    )
    assert msgspec.json.encode(row.score(MODEL)).decode() == case["score"]
    assert msgspec.json.encode(row.document()).decode() == case["document"]


def follow(  # noqa: PLR0913 — one argument for each thing that a stored row says
    name: str, key: ClientKey, client_id: str, queries: int, last_ms: int, p: float, decision: Decision, before: str | None,
    exposure: Exposure | None, refusals: Refusals, *, persona: str = "", members: tuple[str, ...] = (), told_of: bool = True,
    began: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Make a row after another one as detect does, and compare it and its alert with what was written."""
    evidence = (
        Evidence("novelty_roots", 12.5, p, "12 of 40 queries are odd"),
        Evidence("jitter_roots", 3.0, 0.25, "3 are shaken"),
        Evidence("mix_roots", 1.5, 0.75, "1 is mixed"),
    )
    assessment = Assessment(
        queries=queries, distinct=queries * 0.75, misfit=1.0, p_value=p, content_p_value=p, suspicion=1 - p, calibrated=True,
        in_order=False, fused=4.0, odd=31.0, family="random inputs", evidence=evidence if told_of else (),
    )  # fmt: skip
    counts = np.array([queries, 0, 3], np.int64)
    profile: Any = SimpleNamespace(queries=queries, last_ms=last_ms, first_ms=1_700_000_000_000, region_counts=counts)
    cells, links = (() if members else ("q:0", "q:1")), (("ip:00ff",) if told_of else ())
    record = ClientRecord(client_id, profile, cells, links, (), refusals, members)
    earlier = read(WRITTEN[before]) if before else None
    known = earlier.alert if earlier is not None else None
    joined = bool(set(members) - set(known.get("members", ()))) if known else False
    trail = [(queries, 1 - p, last_ms)]
    witnesses = ("e-1", "e-2") if told_of else ()
    row = decided(record, earlier, decision, assessment, exposure, trail, witnesses, persona)
    telling = news(previous(earlier), decision, known is not None, joined)
    compare(name, *told(key, row, earlier, telling, SECRETS, began))


def compare(name: str, row: DecisionRow, alert: OutboxAlert | None) -> None:
    case = WRITTEN[name]
    assert row.row == bytes_of(case["row"])
    if case["alert"] is None:
        assert alert is None
    else:
        assert alert is not None
        assert (alert.uid, alert.time_ms, alert.body.decode()) == tuple(
            case["alert"][f] for f in ("uid", "time_ms", "body")
        )


def test_an_episode_is_written_byte_for_byte_as_before() -> None:
    key = ClientKey(TENANT, MODEL, SECRETS.client_hash(TENANT, THIEF))
    nothing, wrong = Refusals(), Refusals({"bad_type": 2}, {"amount": {"bad_type": 2}})
    follow("raised", key, THIEF, 40, 1_700_000_500_000, 0.004,
           Decision("throttle", "suspicious", 1_700_000_400, 1_700_086_800, 0, "throttle"), None, Exposure(0.61234567, 0.5, 0.7),
           nothing, began=(1_700_000_450_000, 33))  # fmt: skip
    follow("risen", key, THIEF, 400, 1_700_000_900_000, 0.0004,
           Decision("block", "extraction", 1_700_000_800, 1_700_087_200, 0, "block"), "raised", Exposure(0.7123, 0.6, 0.8),
           wrong, persona="batch")  # fmt: skip
    follow("unchanged", key, THIEF, 410, 1_700_000_910_000, 0.0004,
           Decision("block", "extraction", 1_700_000_800, 1_700_087_210, 0, "block"), "risen", Exposure(0.7124, 0.6, 0.8),
           nothing, persona="batch")  # fmt: skip
    follow("closed", key, THIEF, 500, 1_700_200_000_000, 0.6, Decision("clear", "no_evidence", 1_700_200_000, 0, 1, "clear"),
           "judged", Exposure(0.72, 0.6, 0.8), nothing)  # fmt: skip


def test_a_verdict_is_written_byte_for_byte_as_before() -> None:
    row = read(WRITTEN["unchanged"])
    assert row.alert is not None
    body = judged(row.alert, row.update + 1, "true_positive", "ana", "clear case", 1_700_001_000_000)
    assert body is not None
    row = dataclasses.replace(row, alert=body, update=body["update"])
    compare("judged", packed_decision(row, SECRETS, TENANT), packed_alert(body, 1_700_001_000_000, SECRETS))
    assert judged(body, row.update, "true_positive", "ana", "clear case", 1_700_001_000_000) is None, (
        "it says so already"
    )


def test_a_client_without_a_finding_is_written_byte_for_byte_as_before() -> None:
    key = ClientKey(TENANT, MODEL, SECRETS.client_hash(TENANT, "clerk"))
    follow("watched", key, "clerk", 12, 1_700_000_100_000, 0.03, Decision("watch", "unusual", 1_700_000_100, 0, 0, "watch"), None,
           None, Refusals(), told_of=False)  # fmt: skip


def test_a_campaign_is_written_byte_for_byte_as_before() -> None:
    key = campaign_key(TENANT, MODEL, CAMPAIGN)
    follow("campaign raised", key, CAMPAIGN, 900, 1_700_000_700_000, 0.001,
           Decision("throttle", "campaign", 1_700_000_700, 1_700_087_100, 0, "clear"), None, None, Refusals(),
           members=("anna", "ben"))  # fmt: skip
    follow("campaign grown", key, CAMPAIGN, 950, 1_700_000_800_000, 0.001,
           Decision("throttle", "campaign", 1_700_000_700, 1_700_087_200, 0, "clear"), "campaign raised", None, Refusals(),
           members=("anna", "ben", "carl"))  # fmt: skip


def test_a_state_that_is_none_makes_a_row_unreadable() -> None:
    flat = msgspec.msgpack.decode(bytes_of(WRITTEN["raised"]["row"])) | {"state": "suspended"}
    with pytest.raises(CorruptState, match="suspended"):
        stored_decision(DecisionRow(msgspec.msgpack.encode(flat), "clear", 0.0, 0), SECRETS, TENANT)
