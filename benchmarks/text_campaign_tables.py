"""Table of the thefts that only their template ties, from its committed figures; see `benchmarks.text_campaigns`.

Rules of the file: plain Python, so that the pages of the docs can be made without the benchmark's packages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "text_campaigns.json"
BUDGET = 0.01
WITHOUT, WITH = ("content", "odd_patch"), ("template",)
"""Kinds of links by which groups are found today, and the one that is measured."""
Results = dict[str, Any]
Case = Mapping[str, Any]

ROWS: dict[str, Callable[[str, Case], bool]] = {
    "theft, filled with foreign texts, no cover": lambda name, case: _theft(name, case, "none"),
    "… half of the texts honest": lambda name, case: _theft(name, case, "half"),
    "theft, filled with texts of the model's domain": lambda name, case: (
        case["kind"] == "theft" and name.startswith("own/")
    ),
    "honest application with many users": lambda name, case: case["kind"] == "honest application",
    "honest organisation: one odd tool behind one prompt": lambda name, case: case["kind"] == "organisation",
    "application with many users, filled with foreign texts": lambda name, case: case["kind"] == "foreign application",
}


def read() -> Results:
    """The committed figures."""
    found: Results = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def _theft(name: str, case: Case, cover: str) -> bool:
    return case["kind"] == "theft" and name.endswith(f"/{cover}") and not name.startswith("own/")


def is_found(case: Case, kinds: Sequence[str], test: str = "by_content") -> bool:
    """Whether a group of one of these kinds of links, of which half are accounts added, is told of."""
    some = (case["found"].get(kind) for kind in kinds)
    return any(one and 2 * one["added"] >= one["accounts"] and one[test] <= BUDGET for one in some)


def is_tied(case: Case) -> bool:
    """Whether a template ties such a group, told of or not."""
    one = case["found"].get("template")
    return bool(one) and 2 * one["added"] >= one["accounts"]


def template_links(results: Results) -> str:
    """Groups of accounts that share one template: how many are told of without the link, and by it."""
    titles = (
        "group of 50 accounts that share one template",
        "groups",
        "reported by fleet cell or odd patch",
        "tied by template",
        "reported by template",
        "reported by any of the three",
        "by template, if it were judged as a link of metadata",
    )
    lines = f"| {' | '.join(titles)} |\n| --- |{' ---: |' * (len(titles) - 1)}\n"
    for title, belongs in ROWS.items():
        some = [
            case
            for found in results["victims"].values()
            for name, case in found["cases"].items()
            if belongs(name, case)
        ]
        counts = (
            len(some),
            sum(is_found(case, WITHOUT) for case in some),
            sum(is_tied(case) for case in some),
            sum(is_found(case, WITH) for case in some),
            sum(is_found(case, (*WITHOUT, *WITH)) for case in some),
            sum(is_found(case, WITH, "p") for case in some),
        )
        lines += f"| {title} | {' | '.join(map(str, counts))} |\n"
    every = [case for found in results["victims"].values() for case in found["cases"].values()]
    lines += f"| control: templates dealt to random accounts | {len(every)} | – | {sum(case['control'] for case in every)} | – | – | – |\n"
    return lines


TABLES: dict[str, Callable[[Results], str]] = {"bench-text-campaigns": template_links}
"""Generated region of docs/text.md → its table."""
