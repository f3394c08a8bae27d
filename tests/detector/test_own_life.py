"""Observations: the courses that they name, how many honest clients have them, and that they decide nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers import replay
from consumers.detect.step import Detect
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.records.decision import StoredDecision
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from consumers.times import rfc3339
from detector.baseline import PUBLIC_KEY, Baseline
from detector.calibration import UNKNOWN_CHANGE
from detector.own_life import DAY_MS, HOUR_MS, observed, probes
from detector.policy import Policy
from detector.profile_columns import ProfileColumns
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signals import SIGNALS
from detector.simulation.honest import BENIGN
from detector.simulation.population import clock, population

MODEL, START_MS = victims.MODEL, 1_773_100_000_000


def longs(values: Any) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("at_ms", "query", "queries", "length_ms", "ends_a_probe"),
    [
        (9 * DAY_MS, 10, 400, 10 * DAY_MS, True),
        (9 * DAY_MS, 21, 400, 10 * DAY_MS, False),  # more than a twentieth
        (7 * DAY_MS, 10, 400, 10 * DAY_MS, False),  # too early
        (9 * HOUR_MS, 10, 400, 10 * HOUR_MS, False),  # too short a life
        (9 * DAY_MS, 4, 99, 10 * DAY_MS, False),  # too few queries
    ],
)
def test_a_probe_is_hardly_any_query_in_most_of_a_life(
    at_ms: int, query: int, queries: int, length_ms: int, ends_a_probe: bool
) -> None:
    first = longs([START_MS])
    found = probes(first, first + length_ms, longs([queries]), first[:, None] + at_ms, longs([[query]]))
    assert found.tolist() == [[ends_a_probe]]


def test_few_honest_clients_probe_and_then_burst() -> None:
    """Of 2,000 simulated honest clients, each of its moments looked at: in the service only those where suspicion rose can be."""
    rng = np.random.default_rng(1)
    found = 0
    for kind in population(2_000, rng):
        n = BENIGN[kind].queries(rng)
        times = longs([np.round(clock(n, rng) * 1000)])
        asked = np.arange(1, n + 1)[None]
        found += bool(probes(times[:, 0], times[:, -1], longs([n]), times, asked).any())
    assert 0 < found <= 0.01 * 2_000, found


def judged(folder: Path, store: EmbeddedStore, detect: Detect, times_ms: list[int]) -> tuple[StoredDecision, Any]:
    """The row and the first alert of a thief that asks at these times, among honest clients."""
    rng = np.random.default_rng(3)
    low, high = victims.reference_rows().min(0), victims.reference_rows().max(0)
    odd = np.round(rng.uniform(low, high, size=(len(times_ms), victims.WIDTH)), 2)
    lines = [
        victims.line(row, client_id="thief", event_id=f"t-{i}", timestamp=rfc3339(START_MS + at))
        for i, (row, at) in enumerate(zip(odd, times_ms, strict=True))
    ]
    folder.mkdir()
    log = FileLog([victims.write_lines(folder / "log.jsonl", lines)])
    result = replay.replay(log, store, Ingest(detect.baselines, detect.secrets), detect)
    (row,) = (row for row in result.scores.values() if row.client_id == "thief")
    return row, result.alerts


def test_what_is_observed_is_told_and_decides_nothing(
    tmp_path: Path, new_store: Callable[[], EmbeddedStore], baseline: Baseline, secrets: Secrets
) -> None:
    detect = Detect({MODEL: baseline}, secrets, Policy(0.01, "block"), plans={"thief": 610})
    n = 600
    courses = {
        "evenly": [i * 10 * DAY_MS // n for i in range(n)],
        "at once": [i * HOUR_MS // n for i in range(n)],
        "probe": [i * DAY_MS for i in range(10)] + [9 * DAY_MS + (1 + i) * HOUR_MS // n for i in range(n - 10)],
    }
    rows = {name: judged(tmp_path / name, new_store(), detect, times) for name, times in courses.items()}
    named = {name: [one.name for one in row.observations] for name, (row, _) in rows.items()}
    most = float(np.quantile(baseline.calibration.final.distinct, 0.95))
    assert n > most, "the control: honest clients of the calibration ask less"
    assert named == {
        "evenly": ["near_plan"], "at once": ["new_at_full_use", "near_plan"], "probe": ["probe_then_burst", "near_plan"],
    }  # fmt: skip
    assert len({(row.assessment.p_value, row.decision.state, row.decision.reason) for row, _ in rows.values()}) == 1
    text = next(one.text for one in rows["probe"][0].observations)
    assert re.fullmatch(
        r"it asked hardly .* \([1-3]\d queries in 9 days\), then nearly everything \(5\d\d in \d\d minutes\)", text
    )
    assert [one["name"] for one in rows["at once"][0].score(MODEL)["observations"]] == named["at once"]
    (first, *_) = rows["at once"][1]
    assert {one["name"] for one in first["observations"]} <= {"new_at_full_use", "near_plan"}


def test_one_row_in_many_variants_is_a_trial_series_and_many_rows_are_not(baseline: Baseline) -> None:
    """Each variant changes one column: `stepped` wants many columns that move by one size, so it sees none of them."""
    rng = np.random.default_rng(1)
    rows = victims.reference_rows()
    variants = np.repeat(rows[:1], 300, axis=0)
    column = rng.integers(victims.WIDTH, size=300)
    variants[np.arange(300), column] = rows[rng.integers(len(rows), size=300), column]
    many = victims.items(300, rng)
    names = {}
    for what, inputs in (("variants", variants), ("many", many)):
        answers = victims.predict(inputs)
        n = len(inputs)
        batch = QueryBatch(
            [what], np.zeros(n, np.int32), inputs, answers.argmax(1).astype(np.int32), answers.astype(np.float32),
            np.full(n, np.nan), START_MS + np.arange(n) * HOUR_MS, np.ones(n, np.float32), np.arange(n),
        )  # fmt: skip
        profile = ProfileTable(baseline.map, baseline.table, "0" * 16, half_horizon_ms=2**62).of_log(batch, PUBLIC_KEY)
        columns = ProfileColumns.of(profile, baseline.table)
        unknown = np.full((1, 4), UNKNOWN_CHANGE)
        names[what] = [
            [o.name for o in observed(columns, baseline, [order], [None], unknown)[0]] for order in (True, False)
        ]
        stepped = np.array(["stepped" in signal.bits for signal in SIGNALS])
        assert what == "many" or not columns.odd[0][stepped].any()
    assert names == {"variants": [["trial_series"], []], "many": [[], []]}
