"""`querywarden baseline`: the commands that the page prints, on a store that ingest and detect fill in between."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import victims

from consumers import cli
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline, read_baseline

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(tmp_path: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> tuple[Baseline, Baseline]:
    """The live baseline, and one to which less is odd, in files; settings for a log in a file and an embedded store."""
    shadow = replace(baseline, map=replace(baseline.map, levels=baseline.map.levels * 1.1))
    (tmp_path / "fraud-v3.baseline").write_bytes(pack_baseline(baseline))
    (tmp_path / "fraud-v3.new").write_bytes(pack_baseline(shadow))
    who = victims.streams(6, [("noise_uniform", "plain")], seed=5, kinds=["light"], queries=(60, 90))
    victims.log_of(tmp_path / "all.jsonl", who)
    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("STATE_DIR", str(tmp_path / "state")),
        ("BASELINES", str(tmp_path / "fraud-v3.baseline")),
        ("STORE__URL", f"sqlite:///{tmp_path / 'store.sqlite'}"),
        ("LOG__URL", f"file://{tmp_path / 'log.jsonl'}"),
    ):
        monkeypatch.setenv(f"QUERYWARDEN_{name}", value)
    return baseline, shadow


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return called


def test_the_printed_commands_switch_and_switch_back(
    files: tuple[Baseline, Baseline], call: Call, tmp_path: Path
) -> None:
    live, shadow = files
    lines = (tmp_path / "all.jsonl").read_bytes().splitlines(keepends=True)
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"")

    def grow(until: float) -> None:
        log.write_bytes(b"".join(lines[: int(len(lines) * until)]))
        for words in (("ingest", "--until-end"), ("detect", "--until-idle")):
            status, _, err = call(*words)
            assert status == 0, err

    def baseline(*words: str) -> str:
        status, out, err = call("baseline", *words)
        assert status == 0, err
        return out

    grow(0.1)
    assert call("baseline", "promote")[0] == 1
    assert shadow.id in baseline("shadow", "fraud-v3.new")
    assert call("baseline", "shadow", "fraud-v3.new")[0] == 1, "there are two already"
    grow(1.0)
    assert "in shadow" in baseline("status")
    found = json.loads(baseline("compare", "--json"))
    assert found["compared"] + found["older"] == 7
    assert found["shadow"]["flagged"] <= found["live"]["flagged"]
    assert "flagged by both" in baseline("compare") or found["compared"] == 0
    assert f"{shadow.id} is live" in baseline("promote")
    explained = json.loads(call("explain", victims_client(lines), "--json")[1])
    assert explained["queries"] > 0, "the shadow's profiles explain now"
    baseline("status", "--out", "fraud-v3.live")
    assert read_baseline((tmp_path / "fraud-v3.live").read_bytes()).id == shadow.id
    assert f"{live.id} is live again" in baseline("rollback")
    assert f"{live.id} is live, alone" in baseline("drop")
    assert "no baseline is beside it" in baseline("status")
    assert call("audit", "verify")[0] == 0


def victims_client(lines: list[bytes]) -> str:
    return str(json.loads(lines[-1])["client_id"])


def test_a_baseline_that_reads_the_log_in_another_way_is_refused(
    files: tuple[Baseline, Baseline], call: Call, tmp_path: Path
) -> None:
    live, shadow = files
    schema = live.map.schema
    columns = (replace(schema.columns[0], name="other"), *schema.columns[1:])
    foreign = replace(shadow, map=replace(shadow.map, schema=replace(schema, columns=columns)))
    (tmp_path / "foreign.baseline").write_bytes(pack_baseline(foreign))
    status, _, err = call("baseline", "shadow", "foreign.baseline")
    assert (status, "reads the log in another way" in err) == (2, True)
    status, _, err = call("baseline", "shadow", "fraud-v3.baseline")
    assert (status, "is live already" in err) == (2, True)
