"""The notebooks run from top to bottom in a fresh kernel, draw what they promise, and import nothing but the core, with two exceptions."""

from __future__ import annotations

import ast
import base64
import os
import re
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
ALLOWED = {"collections", "dataclasses", "detector", "matplotlib", "numpy", "sklearn", "typing"}
BESIDE_THE_CORE = {
    # the subject is a file that the shell writes and checks; the command line plays the service
    "06_investigating_an_alert": {
        "consumers", "datetime", "json", "os", "pathlib", "subprocess", "sys", "tempfile",
    },
    # marks are put into answers by the shell and are no part of detection
    "07_verifying_a_watermark": {"consumers"},
}  # fmt: skip
"""Notebook → what it may import besides, and why."""
PNG = b"\x89PNG\r\n\x1a\n"


def executed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook with its outputs, run in a kernel of its own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(path)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    return notebook


def test_there_is_a_notebook_and_none_with_outputs() -> None:
    assert NOTEBOOKS
    assert list((ROOT / "notebooks").rglob("*.ipynb")) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_imports_the_core_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= ALLOWED | BESIDE_THE_CORE.get(path.stem, set())
    assert any(name.startswith("detector") for name in names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_seeded(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "np.random.default_rng(" in text
    assert "default_rng()" not in text


def shown(notebook: Any) -> tuple[list[bytes], str]:
    """The figures and the printed text of a notebook that was run."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert [o for o in outputs if o.output_type == "stream" and o.name == "stderr" and "Warning" in o["text"]] == []
    return figures, "".join(o["text"] for o in outputs if o.output_type == "stream" and o.name == "stdout")


def test_reading_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, printed = shown(executed(ROOT / "notebooks" / "02_reading_a_score.py", monkeypatch))
    assert len(figures) == 3
    assert all(figure.startswith(PNG) and len(figure) > 4000 for figure in figures)
    assert "calibrated on 100 clients" in printed
    assert "the thief: throttle (budget_unsupported)" in printed
    flagged = re.search(r"(\d+) of 60 honest clients are flagged; the budget allows 3", printed)
    assert flagged is not None
    assert int(flagged[1]) <= 7, "with 3 expected, more than 7 come by chance in 1 of 60 draws"


def test_fitting_and_checking_a_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, printed = shown(executed(ROOT / "notebooks" / "03_fitting_and_checking_a_baseline.py", monkeypatch))
    assert len(figures) == 3
    assert all(figure.startswith(PNG) and len(figure) > 4000 for figure in figures)
    assert "left out: 1, the hidden thief among them" in printed
    flagged = re.search(r"(\d+) of 100 new honest clients are flagged at a budget of 0.05", printed)
    assert flagged is not None
    assert int(flagged[1]) <= 11, "with 5 expected, more than 11 come by chance in 1 of 200 draws"
    assert "noise_uniform 4" in printed
    assert "in_domain 0" in printed, "the control: nobody sees it by content"


def test_attacks_and_what_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, printed = shown(executed(ROOT / "notebooks" / "04_attacks_and_what_is_caught.py", monkeypatch))
    assert len(figures) == 3
    assert all(figure.startswith(PNG) and len(figure) > 4000 for figure in figures)
    assert re.search(r"noise_uniform +flagged after \d\d queries", printed)
    assert re.search(r"in_domain +not flagged", printed)
    assert "flagged without cover: 5 of 6; visible by content: 5" in printed


def test_a_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, printed = shown(executed(ROOT / "notebooks" / "05_a_campaign.py", monkeypatch))
    assert len(figures) == 2
    assert all(figure.startswith(PNG) and len(figure) > 4000 for figure in figures)
    assert "0 of the thief's 30 accounts" in printed
    assert "ip:office            12 accounts, p = 1" in printed
    accused = re.search(
        r"accused at 0.01: (\d+) of 150 mixed groups, (\d+) of 60 of one client; the thief's group: (\S+)", printed
    )
    assert accused is not None
    assert int(accused[1]) <= 4
    assert float(accused[3]) <= 0.01


def test_investigating_an_alert(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, printed = shown(executed(ROOT / "notebooks" / "06_investigating_an_alert.py", monkeypatch))
    assert len(figures) == 2
    assert all(figure.startswith(PNG) and len(figure) > 4000 for figure in figures)
    assert "assessed again: 0 differences" in printed
    assert "40 of 40 bundles with one changed bit are refused" in printed
    assert "bundle 2 follows from bundle 1; missing in between: none" in printed
    assert "without its first row the log is refused: evidence:" in printed


def test_verifying_a_watermark(monkeypatch: pytest.MonkeyPatch) -> None:
    figures, printed = shown(executed(ROOT / "notebooks" / "07_verifying_a_watermark.py", monkeypatch))
    assert len(figures) == 3
    assert all(figure.startswith(PNG) and len(figure) > 4000 for figure in figures)
    assert re.search(r"copy, decision tree +shows (\d+) of \1 marks, 0 of \d+ controls: p = 1e-3", printed)
    least = re.search(r"the smallest p-value is (\S+)", printed)
    assert least is not None
    assert float(least[1]) > 0.001


@pytest.mark.soak  # it shows the core, which has its own tests
def test_a_theft_and_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(ROOT / "notebooks" / "01_a_theft_and_its_profile.py", monkeypatch)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [base64.b64decode(o["data"]["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) == 4
    assert all(figure.startswith(PNG) and len(figure) > 4000 for figure in figures)
    printed = "".join(o["text"] for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert "calibrated on 120 real clients" in printed
    assert "OOD                    throttle" in printed or "OOD                    block" in printed
    assert "of 40 honest clients are flagged." in printed
    assert [o for o in outputs if o.output_type == "stream" and o.name == "stderr" and "Warning" in o["text"]] == []
