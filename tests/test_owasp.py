"""The page about OWASP: each way to prevent model theft names a test that `make test` runs, or says why not."""

from __future__ import annotations

from pathlib import Path

from support.witnesses import missing, pointers

PAGE = (Path(__file__).parents[1] / "docs" / "owasp.md").read_text(encoding="utf-8")


def test_each_way_to_prevent_theft_names_a_test_that_runs() -> None:
    section = PAGE.partition("\n## OWASP ML05:2023")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 7
    for row in rows:
        what, here, _ = (cell.strip() for cell in row.strip("|").split("|"))
        assert pointers(here) or here.startswith("not here"), f"{what}: no test and no reason"
    assert missing(PAGE) == []


def test_the_search_finds_what_is_missing_and_what_only_soaks() -> None:
    """Control: a file, a test, and a test that only `make soak` runs."""
    assert missing("`benchmarks/nowhere.py`, `tests/test_owasp.py::test_nothing`") == [
        "benchmarks/nowhere.py",
        "tests/test_owasp.py::test_nothing",
    ]
    soaking = "tests/benchmarks/test_throughput.py::test_one_row_a_call_is_dearer"
    assert missing(f"`{soaking}`") == [f"{soaking} is run by make soak only"]
    assert missing("`tests/benchmarks/test_throughput.py`") == []
