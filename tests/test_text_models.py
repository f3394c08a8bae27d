"""Texts from a log to a decision: what a file gives, Kafka gives too; thieves are found and honest clients are left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import loans, text_models
from support.kafka_producer import produce

from consumers.readers.report import render
from consumers.replay import Replayed, report_of
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline
from detector.simulation.text_population import TextStream

ATTACKS = tuple(
    (family, "plain") for family in ("topic_sweep", "template_sweep", "nonsense", "knockoff", "elicitation")
)
FLAGGED = ("throttle", "block")
Case = tuple[list[TextStream], list[bytes], Replayed]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, text_baseline: Baseline) -> Case:
    streams, lines = text_models.log(1, 20, ATTACKS)
    known = pytest.MonkeyPatch()
    with known.context() as patch:
        patch.setattr(loans, "MODEL", text_models.MODEL)
        return streams, lines, loans.replayed(tmp_path_factory.mktemp("replay"), text_baseline, lines)


def test_thieves_are_flagged_and_honest_clients_are_not(case: Case) -> None:
    streams, lines, outcome = case
    rows = {row.client_id: row for row in outcome.scores.values()}
    assert sum(row.assessment.queries for row in rows.values()) == len(lines)
    state = {s.kind if s.role == "attack" else s.client: rows[s.client].decision.state for s in streams}
    assert state.pop("elicitation") != "clear"  # it is no larger than what an honest evaluator may ask
    assert {who for who, found in state.items() if found in FLAGGED} == {family for family, _ in ATTACKS[:-1]}


def test_the_evidence_speaks_of_texts(case: Case) -> None:
    streams, _, outcome = case
    first = {s.kind: loans.row_of(outcome, s.client) for s in streams if s.role == "attack"}
    signals = {
        kind: row.assessment.evidence[0].signal.partition("_")[0] for kind, row in first.items() if row is not None
    }
    assert signals["knockoff"] == signals["topic_sweep"] == "domain"
    assert signals["elicitation"] == "elicitation"
    told = " ".join(e.text for row in first.values() if row is not None for e in row.assessment.evidence)
    assert "own domain" in told
    assert "features" not in told


def test_no_row_alert_or_page_holds_a_text(case: Case, text_baseline: Baseline) -> None:
    """Not even five words of one that follow each other."""
    streams, _, outcome = case
    page = render(report_of(outcome, {text_models.MODEL: text_baseline}, 0.01))
    shown = page + json.dumps([row.document() for row in outcome.scores.values()]) + json.dumps(outcome.alerts)
    assert all(s.client in shown for s in streams)
    words = [text.split() for s in streams for text in s.texts]
    runs = {" ".join(text[i : i + 5]) for text in words for i in range(len(text) - 4)}
    known = shown.split()
    assert len(runs) > 10_000
    assert runs.isdisjoint(" ".join(known[i : i + 5]) for i in range(len(known) - 4))


@pytest.mark.soak
def test_kafka_gives_what_the_file_gives(
    case: Case, text_baseline: Baseline, tmp_path: Path, kafka_bootstrap: str
) -> None:
    _, lines, outcome = case
    baseline = tmp_path / "assistant.baseline"
    baseline.write_bytes(pack_baseline(text_baseline))
    name = f"texts-{os.getpid()}"
    produce(kafka_bootstrap, name, lines, [json.loads(line)["client_id"].encode() for line in lines], 2)
    env = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")} | {
        "QUERYWARDEN_STATE_DIR": str(tmp_path), "QUERYWARDEN_BASELINES": str(baseline),
        "QUERYWARDEN_KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap, "QUERYWARDEN_KAFKA__TOPIC": name,
        "QUERYWARDEN_KAFKA__GROUP_ID": name, "QUERYWARDEN_KAFKA__ALERTS_TOPIC": f"{name}-alerts",
        "QUERYWARDEN_KAFKA__DEAD_LETTER_TOPIC": f"{name}-dead",
    }  # fmt: skip

    def said(*arguments: str) -> bytes:
        return subprocess.run(
            [str(Path(sys.executable).with_name("querywarden")), *arguments], env=env, check=True, capture_output=True
        ).stdout

    said("ingest", "--until-end")
    said("detect", "--until-idle")
    found: dict[str, Any] = {r["client_id"]: r for r in map(json.loads, said("clients", "--json").splitlines())}
    for row in outcome.scores.values():
        assert found[row.client_id]["suspicion"] == pytest.approx(row.assessment.suspicion, abs=1e-6)
        assert found[row.client_id]["state"] == row.decision.state
