"""Baselines, personas and plans of files, as every process loads them.

Rules: a damaged or foreign file is refused in one line. Nothing here fits, so that a service imports neither fitting nor simulation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from consumers import paths
from consumers.embeddings import embedder_of
from consumers.errors import InvalidInput
from detector.baseline import Baseline
from detector.baseline_file import read_baseline
from detector.errors import DetectorError

_PersonaName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._-]{1,40}$")]

_PlannedQueries = Annotated[int, msgspec.Meta(gt=0)]


def read_personas(path: Path | str | None) -> dict[str, str]:
    """Client id → persona, of a JSON object in a file; none without a file. Raises InvalidInput in one line."""
    if not path:
        return {}
    try:
        return msgspec.json.decode(paths.read(Path(path), "personas"), type=dict[str, _PersonaName])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"personas: {path}: {error}") from error


def read_plans(path: Path | str | None) -> dict[str, int]:
    """Client id → distinct queries that it declared, of a JSON object in a file; none without a file. Raises InvalidInput in one line."""
    if not path:
        return {}
    try:
        return msgspec.json.decode(paths.read(Path(path), "plans"), type=dict[str, _PlannedQueries])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"plans: {path}: {error}") from error


def baseline_files(given: Iterable[str]) -> list[Path]:
    """The files that are meant: those named, and of a folder the baselines in it."""
    found: list[Path] = []
    for where in map(Path, given):
        found += sorted(where.glob("*.baseline")) if where.is_dir() else [where]
    return found


def load_baselines(given: Sequence[str]) -> dict[str, Baseline]:
    """Baselines of files and folders, by model id. Raises InvalidInput in one line for a damaged or foreign one."""
    found: dict[str, Baseline] = {}
    for file in baseline_files(given):
        try:
            baseline = read_baseline(paths.read(file), embedder_of)
        except DetectorError as error:
            raise InvalidInput(f"{file}: {error}") from error
        if baseline.model_id in found:
            raise InvalidInput(f"{file}: a second baseline for model {baseline.model_id}")
        found[baseline.model_id] = baseline
    return found


def limits_of(baselines: Mapping[str, Baseline], false_alarm_budget: float) -> list[str]:
    """What baselines can't support, one line each."""
    lines = []
    for model, baseline in baselines.items():
        calibration = baseline.calibration
        if not calibration.calibrated:
            lines.append(
                f"model {model}: UNCALIBRATED, the scores were calibrated on {calibration.source}; nothing is blocked"
            )
        elif not calibration.supports(false_alarm_budget):
            lines.append(
                f"model {model}: {calibration.clients} calibration clients are too few for a lifetime budget of "
                f"{false_alarm_budget:g}: below {1 / calibration.clients:.2g} the p-values rest on a tail model"
            )
    return lines
