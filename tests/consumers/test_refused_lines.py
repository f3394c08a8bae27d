"""Refused lines are said loudly, and what `fit` understood is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support import victims
from support.references import batch_of

from consumers import cli, fit, terminal
from consumers.commands.understood import print_understood
from consumers.log.references import read_reference
from consumers.misfits import MISSING, Misfits
from consumers.refused_lines import RefusedLines
from consumers.schemas import understand
from detector.baseline_file import pack_baseline
from detector.features import Column, Schema
from detector.query import Misfit

Call = Callable[..., tuple[int, str, str]]
BROKEN = b'{"client_id": "acct-SECRET", "features": [1,'


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command in this process: status, output, errors."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        for name in [name for name in os.environ if name.startswith("QUERYWARDEN_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path))
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            cli.main([str(one) for one in arguments])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("loud") / "loans.baseline"
    path.write_bytes(pack_baseline(victims.baseline()))
    return path


def log_with(path: Path, good: int, broken: int) -> Path:
    rows = victims.items(max(good, 1), np.random.default_rng(0))[:good]
    lines = [victims.line(row, client_id=f"c{i % 5}") for i, row in enumerate(rows)]
    return victims.write_lines(path, [*([BROKEN] * broken), *lines])


def test_a_replay_of_refused_lines_only_says_so_and_fails(call: Call, baseline: Path, tmp_path: Path) -> None:
    log, scores = log_with(tmp_path / "log.jsonl", 0, 7), tmp_path / "scores.jsonl"
    code, out, err = call("replay", log, "--baseline", baseline, "--scores", scores)
    assert code == 1
    assert "no query was counted: of 7 lines 7 refused" in out
    assert "0 clients" not in out
    assert "WARNING: 7 of 7 lines of the log were refused (100%)" in err
    assert "7 × not_json" in err
    assert "for example log.jsonl:1: not_json" in err
    assert "SECRET" not in out + err
    assert scores.read_bytes() == b""


@pytest.mark.parametrize(("broken", "loud", "status"), [(2, False, 0), (10, True, 0), (120, True, 1)])
def test_a_replay_warns_above_5_percent_and_fails_beyond_half(
    call: Call, baseline: Path, tmp_path: Path, broken: int, loud: bool, status: int
) -> None:
    log, scores = log_with(tmp_path / "log.jsonl", 100, broken), tmp_path / "scores.jsonl"
    code, out, err = call("replay", log, "--baseline", baseline, "--scores", scores)
    assert (code, "WARNING" in err) == (status, loud)
    assert "5 clients; 0 flagged" in out
    assert len(scores.read_bytes().splitlines()) == 5


def test_a_replay_that_resumes_a_refused_log_fails_again(call: Call, baseline: Path, tmp_path: Path) -> None:
    log, store = log_with(tmp_path / "log.jsonl", 0, 7), tmp_path / "kept.sqlite"
    assert [call("replay", log, "--baseline", baseline, "--store", store)[0] for _ in range(2)] == [1, 1]


def test_a_log_without_a_line_is_no_failure(call: Call, baseline: Path, tmp_path: Path) -> None:
    code, out, _ = call("replay", log_with(tmp_path / "log.jsonl", 0, 0), "--baseline", baseline)
    assert code == 0
    assert "no query was counted: the log is empty" in out


def test_a_fit_that_loses_most_lines_writes_its_baseline_and_fails(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "SIMULATED_CLIENTS", 60)
    good = victims.reference_file(tmp_path / "good.jsonl").read_bytes().splitlines()[:300]
    reference = victims.write_lines(tmp_path / "reference.jsonl", [*good, *[BROKEN] * 400])
    out = tmp_path / "x.baseline"
    code, said, err = call(
        "fit", "--model-id", victims.MODEL, "--reference", reference, "--out", out, "--no-exposure"
    )  # fmt: skip
    assert (code, out.exists()) == (1, True)
    assert str(out) in said
    assert "WARNING: 400 of 700 lines of the reference were refused (57%)" in err
    assert "for example reference.jsonl:301: not_json" in err
    assert "SECRET" not in said + err
    shown = [json.loads(line) for line in err.splitlines() if line.startswith('{"column"')]
    assert [c["column"] for c in shown] == [f"x{j}" for j in range(10)]
    assert all(c["kind"] == "numeric" and c["missing"] == 0 and c["lower"] < c["upper"] for c in shown)
    assert "classes in the order of the probabilities: " + ", ".join(victims.CLASSES) in err


def test_a_traffic_without_a_usable_line_is_refused_with_the_reason(call: Call, tmp_path: Path) -> None:
    traffic = victims.write_lines(tmp_path / "traffic.jsonl", [BROKEN] * 30)
    reference = victims.reference_file(tmp_path / "reference.jsonl")
    code, _, err = call(
        "fit", "--model-id", victims.MODEL, "--reference", reference, "--traffic", traffic, "--out", tmp_path / "x"
    )
    assert code == 1
    assert f"the traffic holds no usable query of model {victims.MODEL} (not_json 30; first traffic.jsonl:1" in err


# ----------------------------------------------------------------------------------------------------- what is shown


def shown(columns: int, monkeypatch: pytest.MonkeyPatch, *, on_terminal: bool) -> str:
    """What is said about a reference with so many columns of numbers, a category and an extra."""
    lines = []
    for i in range(60):
        features = {f"n{j}": (i * (j + 1)) % 17 for j in range(columns)} | {"who": "name [bold]" + str(i % 3)}
        if i == 0:
            features["odd"] = 1
        if i % 4 == 0:
            del features["n0"]
        lines.append(json.dumps({"features": features, "prediction": {"label": i % 2}}).encode())
    found = io.StringIO()
    console = Console(file=found, force_terminal=on_terminal, width=160, color_system=None, highlight=False)
    monkeypatch.setattr(terminal, "err", console)
    print_understood(understand(read_reference(lines, "m")))
    return found.getvalue()


def test_a_terminal_shows_a_table_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(3, monkeypatch, on_terminal=True)
    assert "schema: 3 numeric, 1 categorical; classification into 2 classes" in text
    assert [line.split()[:3] for line in text.splitlines()[2:6]] == [
        ["n0", "numeric", "25.0%"], ["n1", "numeric", "–"], ["n2", "numeric", "–"], ["who", "categorical", "–"]
    ]  # fmt: skip
    assert "3 categories: na…, na…, na…" in text
    assert "not in the schema: odd (only 1 of 60 rows have it)" in text


@pytest.mark.parametrize("on_terminal", [True, False])
def test_many_columns_are_summed_up(monkeypatch: pytest.MonkeyPatch, on_terminal: bool) -> None:
    text = shown(60, monkeypatch, on_terminal=on_terminal)
    assert len(text.splitlines()) < 8
    assert ("columns with missing values: 1; most in n0 (25.0% of the rows)" in text) == on_terminal
    assert ('"with_missing": 1' in text) != on_terminal


def test_the_warning_names_reason_and_column_and_hides_the_rest() -> None:
    refused = RefusedLines(lines=100)
    for i in range(30):
        refused.refuse("wrong_type", f"log:{i + 1}", "column ratio holds a list", "<list>", "ratio")
    refused.refuse("missing_client", "log:99")
    lines = refused.warning("the log", {"wrong_type": "a field has another type"})
    assert lines == [
        "WARNING: 31 of 100 lines of the log were refused (31%)",
        "  30 × wrong_type, column ratio: a field has another type",
        "  1 × missing_client",
        "  for example log:1: wrong_type (column ratio holds a list)  <list>",
    ]


def test_queries_that_lack_more_than_the_reference_are_warned_of_by_column() -> None:
    schema = Schema(
        (Column("age", "numeric", 0, 9, 1), Column("home", "categorical", 0, 1, 1, ("AT", "CH"))),
        "features", True, "classification", ("no", "yes"),
    )  # fmt: skip
    inputs = np.array([[1.0, 0.0]] * 100)
    flags = np.zeros(100, np.uint8)
    inputs[:30, 0], flags[:30] = np.nan, Misfit.MISSING
    batch = dataclasses.replace(batch_of(inputs), misfit=flags)
    misfits = Misfits()
    misfits.add(batch, schema)
    usual = misfits.shares()
    assert usual == {(MISSING, "age"): 0.3}
    assert misfits.warning("the log", usual) == []
    inputs[60:70, 1], flags[60:70] = 2, Misfit.OTHER
    inputs[70:80, 0], flags[70:80] = np.inf, Misfit.OUT_OF_RANGE
    inputs[80:90], flags[80:90] = np.nan, Misfit.UNREADABLE
    flags[90:93] = Misfit.ANSWER
    misfits = Misfits()
    misfits.add(batch, schema)
    assert misfits.warning("the log", usual) == [
        "WARNING: of 100 queries of the log 63 do not fit the schema; they count all the same",
        "  10 × the input cannot be read: another form or length, or a list where a value should be (expected of 0%)",
        "  10 × column home: a category that the reference does not have (expected of 0%)",
        "  10 × column age: a value over 1e12 in size (expected of 0%)",
    ]
    inputs[:50, 0], flags[:50] = np.nan, Misfit.MISSING
    misfits.add(batch, schema)
    assert "  80 × column age: no value (expected of 30%)" in misfits.warning("the log", usual)
