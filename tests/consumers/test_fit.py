"""A fleet that is too small to calibrate on gets an answer too, and one that says what it rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import victims

from consumers import fit
from consumers.errors import InvalidInput
from consumers.log.files import FileLog
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline, read_baseline
from detector.features import Column, Schema
from detector.simulation.domain import Domain
from detector.simulation.rehearsal import batch_of

STAND_INS = 80


def fitted(folder: Path, clients: int, monkeypatch: pytest.MonkeyPatch, **more: object) -> fit.Fitted:
    """A fit on the traffic of some calm clients."""
    monkeypatch.setattr(fit, "SIMULATED_CLIENTS", STAND_INS)
    traffic = folder / "traffic.jsonl"
    victims.log_of(traffic, victims.streams(clients, seed=31, kinds=["regular", "light"]))
    reference = victims.reference_lines(victims.WIDTH)
    return fit.fit(victims.MODEL, reference, FileLog([str(traffic)]), exposure=False, **more)  # type: ignore[arg-type]


def sources(baseline: Baseline) -> tuple[str, bool, str]:
    return baseline.calibration.source, baseline.calibration.calibrated, baseline.notes[0]


def test_few_real_clients_are_calibrated_on_beside_simulated_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told about a simulated client, and the file keeps how many there are."""
    small = fitted(tmp_path, 12, monkeypatch)
    source, calibrated, note = sources(small.baseline)
    assert (source, calibrated) == (f"12 real clients and {STAND_INS} simulated ones", False)
    assert note.startswith(f"UNCALIBRATED: 12 real clients are few, so {STAND_INS} simulated clients stand beside them")
    assert sources(read_baseline(pack_baseline(small.baseline))) == sources(small.baseline)
    told = "\n".join([*small.said, *(one.client for one in small.review)])
    assert "acct-" in told
    assert f"{fit.SIMULATED}acct" not in told


def test_enough_real_clients_are_calibrated_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above, and its other end: a fleet that is left with no client at all is refused."""
    enough = fitted(tmp_path, 20, monkeypatch)
    assert sources(enough.baseline) == ("20 real clients", True, "calibrated on 20 real clients")
    everybody = frozenset(s.client for s in victims.streams(20, seed=31, kinds=["regular", "light"]))
    with pytest.raises(InvalidInput, match="0 clients in the traffic"):
        fitted(tmp_path, 20, monkeypatch, excluded=everybody)


def test_misrouted_clients_are_rehearsed_with_other_codes_of_categories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The middle code of three is nine in ten. It is its own mirror image, so for numbers it stays what most of them send.

    Columns have ranges of their own: the domain infers codes from whole numbers, and where a schema says numbers they are numbers.
    """
    rng = np.random.default_rng(1)
    codes = np.where(rng.random((200, 20)) < 0.9, 1.0, rng.choice([0.0, 2.0], (200, 20)))
    monkeypatch.setattr(fit, "STAND_INS", ("misrouted",))

    def usual(kind: str, categories: tuple[str, ...], ranges: NDArray[np.float64]) -> float:
        columns = tuple(Column(f"c{j}", kind, 0.0, 2.0 * most, 1.0, categories) for j, most in enumerate(ranges))
        schema = Schema(columns, "features", False, "classification", ("0", "1"))
        reference = batch_of(codes * ranges, np.eye(2)[rng.integers(0, 2, 200)])
        return float((fit.rehearsal_on(reference, schema, 0)(reference.inputs).queries.inputs == ranges).mean())

    numbers = np.round(np.geomspace(1.0, 1e6, 20))
    assert Domain.of(codes * numbers).coded.all(), "the domain takes them for codes, where a schema says nothing else"
    assert usual("numeric", (), numbers) > 0.85
    assert usual("categorical", ("a", "b", "c"), np.ones(20)) < 0.75
