"""The notebooks run from top to bottom in a fresh kernel, draw what they promise, and import nothing but the core."""

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
ALLOWED = {"collections", "detector", "matplotlib", "numpy", "sklearn", "typing"}
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
    assert {name.partition(".")[0] for name in names} <= ALLOWED
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
