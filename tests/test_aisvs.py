"""The page about OWASP AISVS, walked: what it points at exists."""

from __future__ import annotations

import re
from pathlib import Path

from support.witnesses import missing, pointers

from consumers import config
from consumers.http.access import TABLE
from consumers.records.frameworks import FRAMEWORKS
from consumers.telemetry.metrics import METRICS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "aisvs.md").read_text()


def rows(heading: str) -> list[list[str]]:
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_test_and_benchmark_that_the_page_names_exists_and_runs() -> None:
    assert len(pointers(PAGE)) > 12
    assert missing(PAGE) == []


def test_the_requirements_are_all_there_and_what_is_claimed_is_seen() -> None:
    requirements = {row[0]: row for row in rows("Requirements")}
    sizes = {1: 5, 2: 5, 3: 4, 4: 3}
    assert list(requirements) == [f"C11.{part}.{n}" for part, many in sizes.items() for n in range(1, many + 1)]
    assert {f"OWASP-AISVS:{one}" for one in requirements} & set(FRAMEWORKS)
    for row in [*requirements.values(), *rows("What auditors ask besides")]:
        state, seen = row[-2:]
        if row[0] in requirements and seen:
            assert any(path.startswith("tests/") for path, _ in pointers(seen)), f"no test: {row}"
        assert bool(seen) != state.startswith("not "), f"claimed without a witness, or denied with one: {row}"


def test_settings_metrics_and_routes_of_the_page_exist() -> None:
    settings = {toml for toml, *_ in config.rows()}
    assert set(re.findall(r"`([a-z_]+\.[a-z_]+)`", PAGE)) <= settings
    assert "mode" in settings
    assert set(re.findall(r"`(querywarden_\w+)`", PAGE)) <= set(METRICS)
    routes = {f"{row.method} {row.path}" for row in TABLE}
    named = re.findall(r"`((?:GET|POST) /[\w/{}]+)`", PAGE)
    assert named
    assert set(named) <= routes
