"""The page about the advisory AA26-251A: what it names exists, and nothing is claimed without a test or denied without a reason."""

from __future__ import annotations

import re
from pathlib import Path

from support.witnesses import missing

from detector.signals import SIGNALS, TEXT_SIGNALS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "aa26-251a.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def observables() -> list[list[str]]:
    section = PAGE.partition("\n## Observables\n")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()[3:]
        if line.startswith("|")
    ]


def test_every_observable_has_a_test_or_a_reason() -> None:
    rows = observables()
    assert len(rows) >= 10
    for what, _, made, seen in rows:
        claimed = "`tests/" in seen
        assert claimed or seen.startswith("not seen"), what
        assert not claimed or made, f"a test without a finding: {what}"


def test_fields_signals_and_tests_of_the_page_exist_and_run() -> None:
    signals = {signal.name for signal in (*SIGNALS, *TEXT_SIGNALS)}
    for what, fields, made, _ in observables():
        for field in re.findall(r"`(\w+)`", fields):
            assert f"`{field}`" in FORMATS or f'"{field}"' in FORMATS, f"{what}: no field {field}"
        named = set(re.findall(r"`(\w+)`", made))
        assert named <= signals, f"{what}: {named - signals}"
    assert missing(PAGE) == []
