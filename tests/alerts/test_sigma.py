"""The Sigma rules we ship: read and checked by pysigma, and matched against the alerts that we really send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from sigma.collection import SigmaCollection
from sigma.rule import SigmaRule
from sigma.validation import SigmaValidator
from sigma.validators.core import validators
from support.receivers import alert, life

RULES = Path(__file__).parents[2] / "examples" / "sigma"


def read(field: str, event: dict[str, Any]) -> Any:
    for part in field.split("."):
        event = (event or {}).get(part)  # type: ignore[assignment]
    return event


def selects(selection: dict[str, Any], event: dict[str, Any]) -> bool:
    for name, wanted in selection.items():
        field, _, modifier = name.partition("|")
        found = read(field, event)
        if modifier == "gte":
            if not isinstance(found, float) or found < wanted:
                return False
        elif found not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def fires(rule: Path, event: dict[str, Any]) -> bool:
    detection = yaml.safe_load(rule.read_text())["detection"]
    chosen = selects(detection["selection"], event)
    return chosen and not ("closed" in detection and selects(detection["closed"], event))


def test_pysigma_reads_and_validates_every_rule() -> None:
    files = sorted(RULES.glob("*.yml"))
    assert len(files) == 3
    collection = SigmaCollection.merge([SigmaCollection.from_yaml(file.read_text()) for file in files])
    assert len(collection.rules) == 3
    assert [rule.errors for rule in collection.rules] == [[], [], []]
    chosen = {v for name, v in validators.items() if "attack" not in name and "d3" not in name.lower()}
    rules = [rule for rule in collection.rules if isinstance(rule, SigmaRule)]
    assert len(rules) == 3
    issues = [i for rule in rules for i in SigmaValidator(chosen).validate_rule(rule)]
    assert [str(i) for i in issues if i.severity.name in ("HIGH", "MEDIUM")] == []


@pytest.mark.parametrize(
    ("changes", "fired"),
    [
        ({}, ["exposure"]),
        ({"state": "block"}, ["block", "exposure"]),
        ({"state": "block", "update": 1, "extraction": None}, []),
        ({"extraction": {"fidelity": 0.6, "low": 0.4, "high": 0.7}}, []),
        ({"calibrated": False, "extraction": None}, ["uncalibrated"]),
        ({"state": "clear", "was": "block", "resolved": True, "update": 2}, []),
    ],
)
def test_the_rules_fire_on_our_alerts(changes: dict[str, Any], fired: list[str]) -> None:
    event = json.loads(alert(1, **changes).body)
    found = [file.stem.removeprefix("extraction-") for file in sorted(RULES.glob("*.yml")) if fires(file, event)]
    assert found == fired


def test_every_field_of_the_rules_is_one_of_ours() -> None:
    known = {name for told in life(1) for name in json.loads(told.body)}
    for file in RULES.glob("*.yml"):
        detection = yaml.safe_load(file.read_text())["detection"]
        for part, selection in detection.items():
            if part != "condition":
                assert {field.partition("|")[0].partition(".")[0] for field in selection} <= known
