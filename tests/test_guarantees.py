"""docs/guarantees.md names a test for every promise, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMISES = [f"P{i}" for i in range(1, 21)]
ONLY_IN_SOAK = {"P3", "P10"}
"""Fail-overs and restarts under load need both cores to themselves for minutes; the chaos of P1 has both too, on every run."""
NAMED = re.compile(r"`(tests/[\w/.-]+\.py)(?:::(\w+))?`")


def rows(text: str) -> dict[str, list[str]]:
    """Promise → cells of its row."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in found if re.fullmatch(r"P\d+", cells[0])}


def unfounded(text: str) -> list[str]:
    """What is wrong with the document."""
    wrong = [f"{promise} has no row" for promise in PROMISES if promise not in rows(text)]
    for promise, cells in rows(text).items():
        if len(cells) != 4 or not all(cells):
            wrong.append(f"{promise}: four cells are wanted")
        elif cells[2] != "not promised yet" and not NAMED.search(cells[2]):
            wrong.append(f"{promise}: no test")
    for path, name in NAMED.findall(text):
        file = ROOT / path
        if not file.exists():
            wrong.append(f"{path} does not exist")
        elif name and f"def {name}(" not in file.read_text():
            wrong.append(f"{path} has no {name}")
    return wrong


def test_every_promise_names_a_test_that_exists() -> None:
    assert unfounded((ROOT / "docs" / "guarantees.md").read_text()) == []


def soaks(path: Path, name: str) -> bool:
    """Whether `make test` leaves this test out."""
    tree = ast.parse(path.read_text())
    marks = [
        ast.unparse(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "pytestmark"
    ]
    marks += [
        ast.unparse(mark)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == name
        for mark in node.decorator_list
    ]
    return "pytest.mark.soak" in marks


def test_every_promise_is_guarded_on_each_run() -> None:
    """`make soak` may say more about a promise, but never alone."""
    named = {
        promise: NAMED.findall(cells[2])
        for promise, cells in rows((ROOT / "docs" / "guarantees.md").read_text()).items()
    }
    late = {
        promise for promise, tests in named.items() if tests and all(soaks(ROOT / path, name) for path, name in tests)
    }
    assert late == ONLY_IN_SOAK


def test_a_promise_without_a_test_is_seen() -> None:
    text = "| P1 | x | 0 | `tests/nowhere.py` | y |\n| P2 | x | 0 | trust us | y |\n| P3 | x | 0 | `tests/conftest.py::nothing` | y |\n"
    wrong = unfounded(text)
    assert "tests/nowhere.py does not exist" in wrong
    assert "P2: no test" in wrong
    assert "tests/conftest.py has no nothing" in wrong
    assert "P4 has no row" in wrong
