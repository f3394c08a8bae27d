"""Texts from a log to a decision: what a file gives, Kafka gives too; thieves are found and honest clients are left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import loans, text_models
from support.kafka_producer import produce

from consumers.detect import grouping
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log.followed import FollowedFile
from consumers.readers.report import render
from consumers.records import templates as kept
from consumers.records.spans import fields_of
from consumers.replay import Replayed, report_of
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector import templates
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline
from detector.policy import Policy
from detector.query import ClientKey
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


# ------------------------------------------------------------------------------------------------------ templates

PROMPT = "Write an exam question with a worked solution for the following passage and grade it: {}"
ACCOUNTS = 40


def fleet_with(texts: list[str]) -> list[bytes]:
    """200 honest accounts, and `ACCOUNTS` more that put one prompt around some texts, dealt by turns."""
    streams, _ = text_models.log(1, 200)
    n = len(texts)
    for k in range(ACCOUNTS):
        mine = [PROMPT.format(text) for text in texts[k::ACCOUNTS]]
        times = np.arange(float(k), n, ACCOUNTS) * (25 * 86_400.0 / n)
        streams.append(
            TextStream(f"one-of-many-{k:02d}", "attack", "", "", "", mine, np.ones(len(mine), np.bool_), times)
        )
    return text_models.lines_of(streams)


@pytest.mark.parametrize("foreign", [True, False])
def test_accounts_with_one_prompt_are_tied_if_what_fills_it_is_foreign(
    foreign: bool, tmp_path: Path, text_baseline: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is an application that many use: the same prompt, as foreign to the model, around questions of its domain."""
    monkeypatch.setattr(grouping, "fleet_cells", lambda *_: [])
    monkeypatch.setattr(loans, "MODEL", text_models.MODEL)
    # the 50 clients that calibrate here write short texts, whose slopes vary
    monkeypatch.setattr(templates, "FOREIGN", 0.9)
    monkeypatch.setattr(loans, "Policy", lambda budget: Policy(0.05))  # so few support no smaller p-value of a group
    pools = text_models.pools(1)
    texts = [*(pools.foreign if foreign else pools.pool)][: 25 * ACCOUNTS]
    outcome = loans.replayed(tmp_path, text_baseline, fleet_with(texts))
    named = [row for row in outcome.scores.values() if row.client_id.startswith("one-of-many-")]
    told = {one.name for row in named for one in row.observations}
    assert "shared_template" in told, "the prompt is foreign either way, and most of what they send"
    campaigns = [a for a in outcome.alerts if a["kind"] == "campaign" and a["links"][0]["kind"] == "template"]
    assert len(campaigns) == foreign
    for alert in campaigns:
        assert (alert["reason"], alert["enforced"]) == ("campaign_content", "clear")
        assert "one template" in alert["evidence"][0]["text"]
        assert sum(name.startswith("one-of-many-") for name in alert["members"]) >= 0.6 * ACCOUNTS
        assert sum(not name.startswith("one-of-many-") for name in alert["members"]) <= 1


def test_templates_are_the_same_wherever_a_process_stopped(
    tmp_path: Path, text_baseline: Baseline, secrets: Secrets
) -> None:
    """A log that was read in two goes, by two processes, and one that was read at once."""
    streams, lines = text_models.log(1, 12)
    log, found = tmp_path / "log.jsonl", []
    for parts in (1, 2):
        store = EmbeddedStore(tmp_path / f"{parts}.sqlite")
        store.prepare(secrets.key_id)
        for part in range(1, parts + 1):
            log.write_bytes(b"".join(line + b"\n" for line in lines[: len(lines) * part // parts]))
            reading = ingest.IngestLoop(
                FollowedFile(str(log)), store, Ingest({text_models.MODEL: text_baseline}, secrets)
            )
            ingest.run(reading, lambda: False, until_end=True, poll_timeout_s=0.0)
        clients = [secrets.client_hash("default", s.client) for s in streams]
        keys = [ClientKey("default", text_models.MODEL, client) for client in clients]
        fields = fields_of(store, keys)
        blobs = [[shard.get(kept.FIELD) for shard in fields[key].values()] for key in keys]
        sketches = [kept.together(some, text_baseline.map_id, secrets, "default") for some in blobs]
        found.append([None if one is None else one.to_bytes() for one in sketches])
        store.close()
    assert found[0] == found[1]
    assert None not in found[0]
