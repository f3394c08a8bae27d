"""The exposure budget: a client beyond it is told of and throttled, and is no suspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers import replay as replaying
from consumers.alerts.finding import finding
from consumers.detect import step as detecting
from consumers.detect.step import Detect
from consumers.enforcement.restrictions import Restrictions
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.readers.gateways import Modes
from consumers.readers.queries import Reader
from consumers.records.alert import stored_alert
from consumers.records.decision import stored_decision
from consumers.secrets import Secrets
from consumers.store import Restriction
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.exposure import Exposure
from detector.policy import ExposureBudget, Mode, Policy

NEVER, CLEAR, ROUGH = Exposure(0.3, 0.2, 0.4), Exposure(0.85, 0.8, 0.9), Exposure(0.85, 0.5, 0.98)
BUDGET = ExposureBudget(alert=0.6, throttle=0.8)
Run = Callable[..., tuple[EmbeddedStore, list[dict[str, Any]]]]


@pytest.fixture
def run(tmp_path: Path, new_store: Any, baseline: Baseline, secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> Run:
    """One honest client whose exposure is as given after each part of its queries; the store, and all alerts."""

    def ran(*exposures: Exposure, mode: Mode = "block", budget: ExposureBudget = BUDGET) -> Any:
        store = new_store()
        store.prepare(secrets.key_id)
        rows = victims.items(20 * len(exposures), np.random.default_rng(1))
        judging = Detect({victims.MODEL: baseline}, secrets, Policy(0.01, mode, budget))
        for i, exposure in enumerate(exposures):
            monkeypatch.setattr(detecting, "estimate_columns", lambda clients, *_, at=exposure: [at] * len(clients))
            lines = [
                victims.line(row, client_id="scorer", event_id=f"{i}-{j}", timestamp=f"2026-03-1{i}T00:00:{j:02d}Z")
                for j, row in enumerate(rows[20 * i : 20 * i + 20])
            ]
            log = FileLog([victims.write_lines(tmp_path / f"{i}.jsonl", lines)])
            replaying.replay(log, store, Ingest(judging.baselines, secrets), judging)
        return store, [stored_alert(alert, secrets) | {"raw": alert} for alert in store.alerts()]

    return ran


def test_a_client_beyond_its_exposure_budget_is_told_of_once_and_is_no_suspect(run: Run, secrets: Secrets) -> None:
    store, alerts = run(NEVER, Exposure(0.7, 0.6, 0.8), Exposure(0.72, 0.6, 0.8), CLEAR)
    assert [(a["policy"], a["state"], a["update"]) for a in alerts] == [
        ("exposure", "watch", 0),
        ("exposure", "throttle", 1),
    ]
    assert len({a["alert_id"] for a in alerts}) == 1
    told = finding(alerts[0]["raw"])
    assert told.title.startswith("Exposure budget spent")
    assert (told.severity, alerts[0]["reason"]) == ("medium", "exposure_budget")
    assert "70% (60% to 80%)" in told.text
    ((key, row),) = store.decisions("default")
    stored = stored_decision(row, secrets, key.tenant)
    assert (stored.decision.state, stored.decision.reason, stored.decision.enforced) == (
        "clear",
        "exposure_budget",
        "throttle",
    )
    assert stored.score(key.model)["state"] == "clear", "outside the false-alarm budget"
    assert stored.alert is None, "no finding of detection"


@pytest.mark.parametrize(
    ("exposure", "mode", "level"),
    [
        (CLEAR, "block", "throttle"),
        (CLEAR, "throttle", "throttle"),
        (CLEAR, "observe", "clear"),
        (CLEAR, "alert", "clear"),
        (ROUGH, "block", "clear"),
        (NEVER, "block", "clear"),
    ],
)
def test_what_gateways_do_is_what_is_said(
    run: Run, secrets: Secrets, exposure: Exposure, mode: Mode, level: str
) -> None:
    store, _ = run(exposure, mode=mode)
    view = Restrictions(mode)
    ((key, row),) = store.decisions("default")
    view.replace([Restriction(key, row.state, row.enforced, row.until_s)], [], 0.0)
    now_s = row.until_s - 1 if row.until_s else 0.0
    standing = view.standing(key.tenant, key.client, key.model, now_s)
    reader = Reader(store, secrets, key.tenant, lambda: now_s, modes=Modes(mode))
    found = reader.client(key.model, "scorer")
    assert found is not None
    assert (found.gateways.state, standing.strictness >= 3) == (level, level == "throttle")
    assert found.gateways.cause == ("exposure" if level == "throttle" else "nothing")
    assert found.client.state == "clear"


def test_within_the_budget_again_closes_the_finding_and_off_by_default_tells_nothing(run: Run) -> None:
    _, alerts = run(Exposure(0.7, 0.6, 0.8), NEVER)
    assert [a.get("resolved", False) for a in alerts] == [False, True]
    assert run(CLEAR, budget=ExposureBudget())[1] == []


def test_a_model_may_have_a_budget_of_its_own(baseline: Baseline, secrets: Secrets) -> None:
    judging = Detect({}, secrets, Policy(exposure=BUDGET), exposures={"small": ExposureBudget(alert=0.2)})
    assert judging.policy_of("other").exposure == BUDGET
    assert judging.policy_of("small").exposure == ExposureBudget(alert=0.2)


def test_a_client_beyond_its_distinct_queries_is_throttled_and_no_suspect(run: Run, secrets: Secrets) -> None:
    """20 queries a part: told at 20, throttled at 40. The exposure is far below its own budget."""
    budget = ExposureBudget(alert=0.6, queries_alert=20, queries_throttle=40)
    store, alerts = run(NEVER, NEVER, budget=budget)
    assert [(a["policy"], a["reason"], a["state"]) for a in alerts] == [
        ("exposure", "query_budget", "watch"),
        ("exposure", "query_budget", "throttle"),
    ]
    assert "it asked 40 distinct queries; the query budget allows 40" in finding(alerts[1]["raw"]).text
    ((key, row),) = store.decisions("default")
    decision = stored_decision(row, secrets, key.tenant).decision
    assert (decision.state, decision.reason, decision.enforced) == ("clear", "query_budget", "throttle")


def test_without_a_budget_in_queries_nobody_is_told_and_a_plan_takes_its_place(
    run: Run, baseline: Baseline, secrets: Secrets, tmp_path: Path, new_store: Any
) -> None:
    assert run(NEVER, NEVER)[1] == []
    rows = victims.items(30, np.random.default_rng(2))
    lines = [
        victims.line(row, client_id=client, timestamp=f"2026-03-10T00:00:{j:02d}Z")
        for client in ("planned", "other")
        for j, row in enumerate(rows)
    ]
    store, budget = new_store(), ExposureBudget(queries_throttle=20)
    judging = Detect({victims.MODEL: baseline}, secrets, Policy(0.01, "block", budget), plans={"planned": 100})
    log = FileLog([victims.write_lines(tmp_path / "plan.jsonl", lines)])
    replaying.replay(log, store, Ingest(judging.baselines, secrets), judging)
    found = [stored_decision(row, secrets, key.tenant) for key, row in store.decisions("default")]
    assert {one.client_id: one.decision.reason for one in found} == {"planned": "no_evidence", "other": "query_budget"}
