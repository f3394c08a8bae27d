"""A replay looks at every client before its evidence leaves the horizon, however few records cover many months."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest
from support.loans import START, Event, event, fitted, in_order, life, lines_of, noise, person, replayed, usual_traffic

from consumers import replay
from detector.baseline import Baseline


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    return fitted(tmp_path_factory.mktemp("fit"), usual_traffic())


def quiet_after(queries: int) -> list[Event]:
    """A theft of some days, then one honest query of the thief in ten days, for seven months."""
    rng = np.random.default_rng(8)
    theft = life("thief", noise, queries, rng)
    calm = [event("thief", person(rng), START + dt.timedelta(days=20 + 10 * k)) for k in range(20)]
    return in_order([*theft, *calm])


def alert_of(outcome: replay.Replayed) -> tuple[str, int] | None:
    return next(((a["time"], int(a["queries_seen"])) for a in outcome.alerts), None)


def test_a_theft_is_told_when_it_happened_however_long_the_log_goes_on(baseline: Baseline, tmp_path: Path) -> None:
    outcomes = []
    for name, events in (("short", quiet_after(300)[:300]), ("long", quiet_after(300))):
        (tmp_path / name).mkdir()
        outcomes.append(replayed(tmp_path / name, baseline, lines_of(events)))
    short, long = outcomes
    assert alert_of(short) is not None
    assert alert_of(long) == alert_of(short)


def test_without_the_looks_it_would_not_be_told(
    baseline: Baseline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(replay._Looks, "parts", lambda self, cell, records: iter((records,)))
    assert alert_of(replayed(tmp_path, baseline, lines_of(quiet_after(300)))) is None
