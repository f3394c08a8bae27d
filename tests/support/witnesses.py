"""Tests and benchmarks that a page of the docs names: do they exist, and does `make test` run them?"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
POINTER = re.compile(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`")


def pointers(text: str) -> list[tuple[str, str]]:
    """(path, function, empty for the whole file) of everything that a text names."""
    return POINTER.findall(text)


def missing(text: str) -> list[str]:
    """What a text names and is not there, and tests that only `make soak` runs."""
    found = []
    for path, name in pointers(text):
        file = ROOT / path
        if not file.exists():
            found.append(path)
            continue
        if path.startswith("benchmarks/"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        tests = {
            node.name: _soaks(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        whole = any(
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "pytestmark"
            and "soak" in ast.unparse(node)
            for node in tree.body
        )
        named = [tests[name]] if name in tests else list(tests.values()) if not name else []
        if not named:
            found.append(f"{path}::{name}")
        elif whole or all(named):
            found.append(f"{path}::{name} is run by make soak only")
    return found


def _soaks(test: ast.FunctionDef) -> bool:
    return any(ast.unparse(mark) == "pytest.mark.soak" for mark in test.decorator_list)
