"""Decision rows for tests, written flat: as their stored bytes and their JSON are."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec

from consumers.records.decision import ExposureMeasured, LevelReached, StateEntered, StoredDecision
from detector.exposure import Exposure
from detector.policy import Decision
from detector.scoring import AssessmentSummary, Evidence

ABSENT: dict[str, Any] = {
    "persona": "", "exposures": (), "history": (), "first_ms": 0, "links": (), "witnesses": (), "refused": {}, "misfits": {},
    "campaign_id": None, "members": (), "extraction": None, "misfit": 0.0, "exposed": "none",
    "size_p_value": 1.0, "oddest": "", "ties": (),
}  # fmt: skip
"""What rows of earlier versions mean by a field that they lack."""


def stored_row(**flat: Any) -> StoredDecision:
    """A row from its flat fields."""
    values = ABSENT | flat
    decision = {f.name: values.pop(f.name) for f in fields(Decision)}
    assessment = {f.name: values.pop(f.name) for f in fields(AssessmentSummary)}
    assessment["evidence"] = msgspec.convert(assessment["evidence"], tuple[Evidence, ...])
    values |= {name: tuple(values[name]) for name in ("coverage", "cells", "links", "witnesses", "members")}
    return StoredDecision(
        decision=Decision(**decision),
        assessment=AssessmentSummary(**assessment),
        exposure=msgspec.convert(values.pop("extraction"), Exposure | None),
        trail=tuple(LevelReached(*point) for point in values.pop("trail")),
        exposures=tuple(ExposureMeasured(*point) for point in values.pop("exposures")),
        history=tuple(StateEntered(*entered) for entered in values.pop("history")),
        **values,
    )
