"""Numbers of updates: who gives them, and what the finding about an exposure budget counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from support.seeded_api import MODEL, OURS, SECRETS, client_hash, decided

from consumers.records.alert import UNCOUNTED, following, spent_told, stored_alert
from consumers.records.decision import StoredDecision, packed_decision, stored_decision
from consumers.store import OutboxAlert
from detector.policy import ExposureBudget, Spent
from detector.query import ClientKey

KEY = ClientKey(OURS, MODEL, client_hash("scorer"))
BUDGET = ExposureBudget(alert=0.5, throttle=0.8)


def courses(*exposed: Spent, before: StoredDecision | None = None) -> list[dict[str, Any]]:
    """The alerts about a client whose exposure asks for one after the other; the row is stored and read in between."""
    found = []
    for one in exposed:
        row = replace(decided("scorer", 0.6, "clear", exposed=one), budget=before.budget if before else None)
        row, told = spent_told(KEY, row, before, BUDGET, "exposure_budget", SECRETS)
        before = stored_decision(packed_decision(row, SECRETS, OURS), SECRETS, OURS)
        found += [stored_alert(told, SECRETS)] if told is not None else []
    return found


def test_a_budget_that_is_spent_twice_has_two_findings_and_no_number_twice() -> None:
    told = courses("none", "alert", "none", "alert", "throttle")
    assert [(b["update"], b["state"], b.get("resolved", False)) for b in told] == [
        (0, "watch", False),
        (1, "clear", True),
        (0, "watch", False),
        (1, "throttle", False),
    ]
    assert len({b["alert_id"] for b in told}) == 2
    assert len({(b["alert_id"], b["update"]) for b in told}) == len(told)


def test_a_client_that_wavers_about_the_upper_limit_is_told_of_once() -> None:
    told = courses("throttle", "alert", "throttle", "alert", "none")
    assert [(b["update"], b["state"]) for b in told] == [(0, "throttle"), (1, "clear")]


def test_the_finding_about_the_budget_outlives_an_episode_of_detection() -> None:
    """A client that is flagged and clear again in between: the budget's finding is closed under the id that it was opened under."""
    (opened,) = courses("alert")
    row, _ = spent_told(KEY, decided("scorer", 0.6, "clear", exposed="alert"), None, BUDGET, "exposure_budget", SECRETS)
    later = replace(decided("scorer", 0.6, "clear", episode=3, exposed="none"), budget=row.budget)
    _, closed = spent_told(KEY, later, row, BUDGET, "exposure_budget", SECRETS)
    assert closed is not None
    assert closed.uid == f"{opened['alert_id']}/1"


def test_the_verdict_about_a_suspect_says_nothing_about_its_budget() -> None:
    suspect = decided("scorer", 1e-5, "block", alert={"kind": "client", "verdict": {"verdict": "true_positive"}})
    _, told = spent_told(KEY, replace(suspect, exposed="alert"), None, BUDGET, "exposure_budget", SECRETS)
    assert told is not None
    assert "verdict" not in stored_alert(told, SECRETS)


@pytest.mark.parametrize("was", ["alert", "throttle"])
def test_an_open_finding_of_an_earlier_version_is_closed_above_all_its_numbers(was: Spent) -> None:
    """Its rows hold neither id nor count; what they lack is absent from their bytes."""
    old = decided("scorer", 0.6, "clear", episode=2, exposed=was)
    packed = packed_decision(old, SECRETS, OURS)
    assert "budget" not in msgspec.msgpack.decode(packed.row)
    told = courses("none", "alert", "none", before=stored_decision(packed, SECRETS, OURS))
    assert [(b["update"], b["state"]) for b in told] == [(UNCOUNTED + 1, "clear"), (0, "watch"), (1, "clear")]
    first = "02af63df0291c35b4dd4b905ad42ef9a"
    assert told[0]["alert_id"] == first
    assert told[1]["alert_id"] != first


def test_the_next_number_is_above_all_that_row_outcome_and_store_know() -> None:
    def alert(uid: str) -> OutboxAlert:
        return OutboxAlert(uid, 0, b"")

    assert following("a", -1) == 0
    assert following("a", 4, [alert("a/2"), alert("b/9"), alert("damaged")]) == 5
    assert following("a", 1, [alert("a/2"), alert("a/7")]) == 8
