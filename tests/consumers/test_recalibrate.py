"""The learning period, end to end: a baseline without traffic watches, and its calibration comes from what the store holds then."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support import victims
from support.references import batch_of
from typer.testing import CliRunner

from consumers import cli, fit, recalibrate, replay
from consumers.baselines import load_baselines
from consumers.detect.step import Detect
from consumers.errors import Refused
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.log.references import lines_of
from consumers.recalibrate import Presumption
from consumers.records.operator_entries import StoredVerdict, VerdictValue, packed
from consumers.secrets import Secrets
from consumers.store import Entry, Operation
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.baseline_file import read_baseline
from detector.calibration import UNREHEARSED
from detector.features import Column, Schema
from detector.policy import FLAGGED, Policy
from detector.signals import SIGNAL_NAMES

CLIENTS = 60
DAYS = 0.01
"""The simulated clients live short."""


@pytest.mark.parametrize(("columns", "normed", "form", "turned"), [
    (40, False, "features", True), (40, True, "features", False), (40, False, "embedding", False), (12, True, "features", True),
])  # fmt: skip
def test_nobody_turns_an_embedding_feature_by_feature(columns: int, normed: bool, form: str, turned: bool) -> None:
    """A rehearsal of tools that do would find no thief of a text model implausible. Many numbers, all rows of one length: an embedding."""
    rows = np.random.default_rng(1).normal(size=(60, columns))
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if normed else rows
    schema = Schema(
        tuple(Column(f"x{j}", "numeric", -9.0, 9.0, 0.0) for j in range(columns)), form, False, "regression", ()
    )
    reference = batch_of(rows)
    played = fit.rehearsal(reference, schema, 0)
    standing_in = [kind for kind in fit.STAND_INS if turned or kind not in fit.TOOLS]
    assert Counter(played.kinds) == {
        "": (len(fit.REHEARSED_KINDS) - len(fit.STAND_INS)) * fit.REHEARSED_A_KIND,
        **dict.fromkeys(standing_in, fit.REHEARSED_STAND_INS),
    }
    assert len(played.queries.clients) == len(played.kinds)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recalibrate")
    reference = victims.reference_file(folder / "reference.jsonl")
    honest = victims.streams(CLIENTS, seed=31, kinds=victims.CALM)
    thief = victims.streams(0, [("noise_uniform", "plain")], seed=32, queries=(1500, 1600))
    log = folder / "log.jsonl"
    truth = victims.log_of(log, [*honest, *thief])
    (folder / "truth.json").write_text(json.dumps(truth))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "SIMULATED_CLIENTS", 100)
        fitted = fit.fit(victims.MODEL, reference.read_bytes().splitlines(), None, exposure=False)
    fit.write_baseline(fitted.baseline, folder / "old.baseline")
    return {"folder": folder, "log": log, "old": folder / "old.baseline", "reference": reference}


@pytest.fixture(scope="module")
def seen(files: dict[str, Path]) -> tuple[EmbeddedStore, Secrets, Baseline, replay.Replayed]:
    """The store after two weeks under the uncalibrated baseline."""
    old = read_baseline(files["old"].read_bytes())
    secrets = Secrets.load(files["folder"] / "secrets.json", create=True)
    store = EmbeddedStore(files["folder"] / "store.sqlite")
    store.prepare(secrets.key_id)
    reading = Ingest(baselines={victims.MODEL: old}, secrets=secrets)
    judging = Detect({victims.MODEL: old}, secrets, Policy(0.01, "observe"))
    log = FileLog([str(files["log"])])
    result = replay.replay(log, store, reading, judging)
    log.close()
    return store, secrets, old, result


def thief_of(files: dict[str, Path]) -> str:
    truth = json.loads((files["folder"] / "truth.json").read_text())
    (thief,) = [client for client, known in truth.items() if known["role"] == "attack"]
    return str(thief)


def flagged_of(result: replay.Replayed) -> set[str]:
    return {row.client_id for row in result.scores.values() if row.decision.state in FLAGGED}


def test_flagged_clients_are_left_out_and_the_rest_calibrates(
    files: dict[str, Path], seen: tuple[EmbeddedStore, Secrets, Baseline, replay.Replayed]
) -> None:
    store, secrets, old, result = seen
    flagged = flagged_of(result)
    assert thief_of(files) in flagged
    made = recalibrate.recalibrate(store, secrets, "default", old, Presumption(), DAYS)
    assert not old.calibration.calibrated
    assert made.baseline.calibration.calibrated
    assert made.baseline.map_id == old.map_id
    assert made.baseline.calibration.clients == CLIENTS + 1 - len(flagged)
    assert made.excluded["flagged, without a verdict"] == len(flagged)
    assert any(str(len(flagged)) in note and "flagged" in note for note in made.baseline.notes)


def test_a_thief_among_the_honest_is_named_for_review_and_can_be_excluded(
    files: dict[str, Path], seen: tuple[EmbeddedStore, Secrets, Baseline, replay.Replayed]
) -> None:
    store, secrets, old, _ = seen
    thief = thief_of(files)
    made = recalibrate.recalibrate(store, secrets, "default", old, Presumption(flagged=True), DAYS)
    assert made.baseline.calibration.clients == CLIENTS  # beyond what honest tools reach in rehearsal: excluded
    assert (made.review[0].client, made.review[0].excluded) == (thief, True)
    trusting = replace(old, calibration=replace(old.calibration, rehearsal_bound=UNREHEARSED))
    taken = recalibrate.recalibrate(store, secrets, "default", trusting, Presumption(flagged=True), DAYS)
    assert taken.baseline.calibration.clients == CLIENTS + 1
    assert taken.review[0].client == thief
    without = recalibrate.recalibrate(
        store, secrets, "default", old, Presumption(excluded=frozenset({thief}), flagged=True), DAYS
    )
    assert thief not in [o.client for o in without.review]
    assert without.baseline.calibration.ordered[-1] == pytest.approx(made.baseline.calibration.ordered[-1])
    assert without.excluded == {"excluded by hand": 1}


def test_the_calibration_is_that_of_a_fit_on_the_same_traffic(
    files: dict[str, Path], seen: tuple[EmbeddedStore, Secrets, Baseline, replay.Replayed]
) -> None:
    """The levels aside: a fit raises them to what its traffic does, here they stay with the map."""
    from detector.fitting.baseline import _calibrate

    store, secrets, old, _ = seen
    thief = thief_of(files)
    made = recalibrate.recalibrate(
        store, secrets, "default", old, Presumption(excluded=frozenset({thief}), flagged=True), DAYS
    ).baseline
    lines = list(lines_of(FileLog([str(files["log"])])))
    batch, _ = fit._decode(lines, victims.MODEL, old.map.schema)
    assert batch is not None
    batch = batch.take(np.flatnonzero(np.array([c != thief for c in batch.clients])[batch.who]))
    fitted, _ = _calibrate(old.map, batch, [""] * len(batch.clients), frozenset(), tools=old.calibration.tools)
    assert fitted.ordered.max() > 0
    if fitted.distinct <= old.calibration.distinct:
        # clients with more odd queries than a set holds are estimated, under another sampling key
        np.testing.assert_allclose(made.calibration.ordered, fitted.ordered, rtol=0.1, atol=0.02)
        np.testing.assert_allclose(made.calibration.scale, fitted.scale, rtol=0.1)
    assert made.calibration.clients == fitted.clients


def test_a_verdict_decides_who_is_honest(
    files: dict[str, Path], seen: tuple[EmbeddedStore, Secrets, Baseline, replay.Replayed], tmp_path: Path
) -> None:
    store, secrets, old, result = seen
    flagged = {key[1]: key for key in result.scores if result.scores[key].decision.state in FLAGGED}
    thief = thief_of(files)
    clear = next(row.client_id for row in result.scores.values() if row.decision.state == "clear")
    revision, _ = store.operator_entries("verdict")

    def judged(client: str, verdict: VerdictValue) -> Entry:
        made = StoredVerdict(
            f"alert of {client}",
            verdict,
            "",
            "ann",
            int(time.time()),
            victims.MODEL,
            secrets.client_hash("default", client),
        )
        return Entry("default", "verdict", made.alert_id, packed(made))

    store.operate(revision, Operation(puts=[judged(thief, "false_positive"), judged(clear, "true_positive")]))
    try:
        made = recalibrate.recalibrate(store, secrets, "default", old, Presumption(), DAYS)
        assert made.excluded["found to be a thief"] == 1
        assert made.excluded["flagged, without a verdict"] == len(flagged) - 1
        assert thief in [o.client for o in made.review]
    finally:
        revision, _ = store.operator_entries("verdict")
        store.operate(revision, Operation(drops=[("default", "verdict", f"alert of {c}") for c in (thief, clear)]))


def test_too_short_a_time_is_refused_in_one_line(
    seen: tuple[EmbeddedStore, Secrets, Baseline, replay.Replayed],
) -> None:
    store, secrets, old, _ = seen
    with pytest.raises(Refused, match="0 clients were seen for 100 days or more") as refused:
        recalibrate.recalibrate(store, secrets, "default", old, Presumption(), min_days=100)
    assert "\n" not in str(refused.value)


def test_the_command_writes_a_baseline_that_the_service_takes(
    files: dict[str, Path],
    seen: tuple[EmbeddedStore, Secrets, Baseline, replay.Replayed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = files["folder"]
    monkeypatch.setenv("QUERYWARDEN_STORE__URL", f"sqlite:///{folder / 'store.sqlite'}")
    monkeypatch.setenv("QUERYWARDEN_SECRETS__FILE", str(folder / "secrets.json"))
    out = folder / "new.baseline"
    done = CliRunner().invoke(
        cli.app,
        [
            "recalibrate",
            "--baseline",
            str(files["old"]),
            "--out",
            str(out),
            "--include-flagged",
            "--min-days",
            str(DAYS),
        ],
    )
    assert done.exit_code == 0, done.output
    assert thief_of(files) in done.output
    new = load_baselines([str(out)])[victims.MODEL]
    assert new.calibration.calibrated
    assert f"calibration {new.calibration_version}" in done.output.replace("\n", " ")


def test_fit_gives_the_thief_in_its_traffic_no_say_and_names_it(files: dict[str, Path]) -> None:
    thief = thief_of(files)
    reference = files["reference"].read_bytes().splitlines()
    fitted = fit.fit(victims.MODEL, reference, FileLog([str(files["log"])]), exposure=False)
    assert [(one.client, one.excluded) for one in fitted.review] == [(thief, True)]
    assert fitted.baseline.calibration.clients == CLIENTS
    assert any(line.startswith("left out of the calibration: 1 clients") for line in fitted.said)
    trusting = fit.fit(victims.MODEL, reference, FileLog([str(files["log"])]), exposure=False, trust_traffic=True)
    assert (trusting.review[0].client, trusting.review[0].excluded) == (thief, False)
    assert trusting.baseline.calibration.clients == CLIENTS + 1
    assert trusting.baseline.map_id == fitted.baseline.map_id
    asked_for = [
        b.tail(True).level(0.01) * b.calibration.scale[SIGNAL_NAMES.index(fitted.review[0].signal)]
        for b in (trusting.baseline, fitted.baseline)
    ]
    assert asked_for[0] > 2 * asked_for[1], "so much more would a thief have to steal"


def test_fit_leaves_out_whom_it_is_told_to(files: dict[str, Path], tmp_path: Path) -> None:
    thief = thief_of(files)
    reference = files["reference"].read_bytes().splitlines()
    listed = tmp_path / "exclude.txt"
    listed.write_text(f"{thief}\n\nnobody\n")
    without = fit.fit(
        victims.MODEL, reference, FileLog([str(files["log"])]), excluded=fit.read_excluded(listed), exposure=False
    )
    assert thief not in [o.client for o in without.review]
    assert without.baseline.calibration.clients == CLIENTS
    assert "excluded: 1 clients, 1 more are not in the traffic" in without.said
