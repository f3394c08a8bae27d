"""`evaluate`: a table by family, the limits beside it, and a page that stands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import victims

from consumers import cli
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline


def called(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(("evaluate", *words))
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def file(tmp_path: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path))
    path = tmp_path / "model.baseline"
    path.write_bytes(pack_baseline(baseline))
    return str(path)


FEW = ("--repeats", "1", "--queries", "80", "--variant", "plain", "--family", "noise_uniform", "--family", "in_domain")


def test_each_family_has_a_row_and_the_run_says_its_limits(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = called(capsys, "--baseline", file, *FEW, "--json")
    *rows, run = map(json.loads, out.splitlines())
    assert status == 0
    assert [(row["family"], row["caught"], row["thefts"]) for row in rows] == [
        ("noise_uniform", 1, 1),
        ("in_domain", 0, 1),
    ]
    assert rows[0]["queries"] == [rows[0]["median"]]
    assert rows[1]["median"] is None
    assert [row["exposure"] for row in rows] == [None, None]
    assert (run["kind"], run["caught"], run["thefts"]) == ("run", 1, 2)
    assert any("No reference was given" in line for line in run["limits"])
    assert called(capsys, "--baseline", file, *FEW, "--json")[1] == out, "the same arguments give the same answer"


def test_a_theft_by_ten_accounts_is_judged_as_one_group_and_that_is_said(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--repeats", "1", "--queries", "400", "--variant", "sybil10", "--family", "noise_uniform", "--json")
    status, out, _ = called(capsys, "--baseline", file, *words)
    row, run = map(json.loads, out.splitlines())
    assert (status, row["caught"], row["thefts"]) == (0, 1, 1)
    assert any("one group of exactly these accounts" in line for line in run["limits"])
    assert not any("were not simulated" in line for line in run["limits"])


def test_with_a_reference_thieves_get_answers_and_the_page_stands_alone(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference, page = victims.reference_file(tmp_path / "reference.jsonl"), tmp_path / "page.html"
    words = (
        "--reference",
        str(reference),
        "--family",
        "jbda",
        "--variant",
        "plain",
        "--repeats",
        "1",
        "--queries",
        "200",
    )
    status, out, err = called(capsys, "--baseline", file, *words, "--out", str(page))
    assert status == 0
    assert "jbda" in out
    assert "stand-ins" in err
    text = page.read_text()
    assert text.count("<circle") == 1
    assert "What these figures do not show" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--family", "jbda"), "need --reference: jbda"),
        (("--family", "nothing"), "unknown family 'nothing'"),
        (("--variant", "split"), "unknown variant 'split'"),
        (("--model", "other"), "there is no baseline for it"),
        (("--repeats", "100"), "more than 2000 thefts"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    file: str, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = called(capsys, "--baseline", file, *words)
    assert (status, out) == (2, "")
    assert said in err
