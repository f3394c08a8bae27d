"""What was answered counts: a theft that is caught unspoilt is caught however its queries are spoilt, and honest misfits accuse nobody.

One victim with a category, one log. The same theft by uniform noise runs once as it is and once for each way of spoiling every query
of it; honest clients spoil the share of their queries that the fleet of the calibration spoils. Each record goes through the reader,
the fold, detect and the replay. The control spoils so much that nothing is left: the records are refused, and nobody is flagged for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.loans import Event, Rng, fitted, life, lines_of, noise, person, replayed, row_of

from consumers import replay
from detector.baseline import Baseline
from detector.policy import FLAGGED

# ------------------------------------------------------------------------------------------------- ways of spoiling


def _feature(name: str, value: Any) -> Callable[[Event, int], None]:
    def spoil(e: Event, i: int) -> None:
        e["features"][name] = value(e["features"][name]) if callable(value) else value

    return spoil


def _as_list(change: Callable[[list[Any]], list[Any]]) -> Callable[[Event, int], None]:
    def spoil(e: Event, i: int) -> None:
        e["features"] = change(list(e["features"].values()))

    return spoil


def _field(**changes: Any) -> Callable[[Event, int], None]:
    return lambda e, i: e.update(changes)


def _answer(**changes: Any) -> Callable[[Event, int], None]:
    return lambda e, i: e["prediction"].update(changes)


def year_ahead(e: Event, i: int) -> None:
    e["timestamp"] = e["timestamp"].replace("2026", "2027")


WAYS: dict[str, Callable[[Event, int], None]] = {
    "null": _feature("tenure", None),
    "column left out": lambda e, i: e["features"].pop("ratio"),
    "unseen category": _feature("country", "XX"),
    "number as text": _feature("income", str),
    "word for a number": _feature("age", "forty"),
    "boolean": _feature("tenure", lambda v: v > 5),
    "beyond 1e12": _feature("income", 2e12),
    "one value too few": _as_list(lambda values: values[:-1]),
    "one value too many": _as_list(lambda values: [*values, 1]),
    "nested list": _as_list(lambda values: [values, values]),
    "one probability too many": _answer(probabilities=[0.2, 0.3, 0.5]),
    "unknown label": _answer(label="perhaps"),
    "constant event id": _field(event_id="x"),
    "a year ahead": year_ahead,
    "status that HTTP does not have": _field(status=999),
    "failed, with an answer": _field(status=500),
    "extra column": lambda e, i: e["features"].update(note=None),
}


def mixed(e: Event, i: int) -> None:
    list(WAYS.values())[i % len(WAYS)](e, i)


ALL = {**WAYS, "mixed": mixed}
REFUSED: dict[str, Callable[[Event, int], None]] = {
    "unknown model": _field(model_id="another"),
    "no client": _field(client_id=None),
}
"""What is no query of a client of this model: the control."""
SHARED = ("null", "unseen category", "number as text", "unknown label")
"""What the honest fleet does too, in one query of twenty."""


def honest(name: str, clients: int, rng: Rng) -> list[Event]:
    out = []
    for k in range(clients):
        mine = life(f"{name}-{k}", person, int(rng.integers(40, 160)), rng)
        for i in np.flatnonzero(rng.random(len(mine)) < 0.05).tolist():
            ALL[SHARED[k % len(SHARED)]](mine[i], i)
        out += mine
    return out


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    """Of a fleet whose honest clients spoil one query of twenty, each in a way of its own."""
    return fitted(tmp_path_factory.mktemp("fit"), honest("c", 120, np.random.default_rng(4)))


@pytest.fixture(scope="module")
def outcome(baseline: Baseline, tmp_path_factory: pytest.TempPathFactory) -> replay.Replayed:
    """One log: honest clients, the theft as it is, and the theft in every way of spoiling it."""
    rng = np.random.default_rng(17)
    events = [(e, e) for e in honest("honest", 60, rng)]
    for name, spoil in {"as it is": lambda e, i: None, **ALL, **REFUSED}.items():
        for i, e in enumerate(life(f"thief {name}", noise, 300, np.random.default_rng(5))):
            spoilt = json.loads(json.dumps(e))
            spoil(spoilt, i)
            events.append((e, spoilt))
    events.sort(key=lambda pair: str(pair[0]["timestamp"]))
    return replayed(tmp_path_factory.mktemp("spoilt"), baseline, lines_of(spoilt for _, spoilt in events))


def seen_at(outcome: replay.Replayed, client: str) -> int | None:
    """Queries of the client when it was first flagged."""
    return next((int(a["queries_seen"]) for a in outcome.alerts if a.get("client_id") == client), None)


@pytest.mark.parametrize("way", ALL)
def test_a_theft_is_flagged_however_its_queries_are_spoilt(outcome: replay.Replayed, way: str) -> None:
    row = row_of(outcome, f"thief {way}")
    assert row is not None
    assert row.decision.state in FLAGGED
    assert row.assessment.queries == 300
    plain, spoilt = seen_at(outcome, "thief as it is"), seen_at(outcome, f"thief {way}")
    assert plain is not None
    assert spoilt is not None
    assert spoilt <= 2 * plain


def test_what_is_no_query_of_a_client_flags_nobody(outcome: replay.Replayed) -> None:
    for way in REFUSED:
        assert row_of(outcome, f"thief {way}") is None
    assert outcome.reasons["unknown_model"] == outcome.reasons["missing_client"] == 300


def test_honest_misfits_in_their_calibrated_share_accuse_nobody(outcome: replay.Replayed) -> None:
    states = {
        row.client_id: row.decision.state for row in outcome.scores.values() if row.client_id.startswith("honest")
    }
    assert len(states) == 60
    assert [client for client, state in states.items() if state in FLAGGED] == []
