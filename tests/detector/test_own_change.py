"""Own change: an account in other hands is seen, honest clients hardly ever are, and it decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support import victims

from consumers import replay
from consumers.detect.step import Detect
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline import PUBLIC_KEY, Baseline
from detector.baseline_file import pack_baseline, read_baseline
from detector.calibration import NO_CHANGES, UNKNOWN_CHANGE
from detector.fitting.own_changes import HalvedLives
from detector.own_change import LifePart, OwnChange, changes, parts
from detector.policy import Policy
from detector.profile_columns import ProfileColumns
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.simulation.population import Stream, interleave

DAY_S = 86_400
HALF_MS = 15 * DAY_S * 1000
CUT_S = (int(victims.START_S * 1000) // HALF_MS + 1) * HALF_MS // 1000
"""Where a window begins: 15 days of simulated life lie before it and 15 after it."""
Changes = NDArray[np.floating]


def batch(streams: Sequence[Stream]) -> QueryBatch:
    log = interleave(streams)
    answers = victims.predict(log.inputs)
    n = len(answers)
    return QueryBatch(
        log.clients, log.who, np.ascontiguousarray(log.inputs), answers.argmax(1).astype(np.int32),
        np.round(answers, 6).astype(np.float32), np.full(n, np.nan), np.round(log.times_s * 1000).astype(np.int64),
        np.ones(n, np.float32), np.arange(n),
    )  # fmt: skip


def lives(seed: int, clients: int = 600, kinds: Sequence[str] | None = None) -> list[Stream]:
    return victims.streams(clients, seed=seed, kinds=kinds, start_s=CUT_S - 15 * DAY_S, days=30.0)


def at_fit(streams: Sequence[Stream], baseline: Baseline) -> Changes:
    queries = batch(streams)
    halves = HalvedLives(queries, baseline.map.classes)
    for rows in np.array_split(np.arange(len(queries)), 7):
        poll = queries.take(rows)
        halves.note(poll, baseline.map.measure(poll, PUBLIC_KEY))
    return halves.changes()


def in_service(streams: Sequence[Stream], baseline: Baseline) -> Changes:
    """Of the clients that have two spans, as their profiles say."""
    table = ProfileTable(baseline.map, baseline.table, "0" * 16, half_horizon_ms=HALF_MS)
    queries = batch(streams)
    table.of_log(queries, PUBLIC_KEY)
    spans = [two for client in queries.clients if len(two := table.spans(client)) == 2]
    long, short = (ProfileColumns.of([two[i] for two in spans], baseline.table) for i in (0, 1))
    return changes(*parts(long, short))


def known(found: Changes) -> Changes:
    there: NDArray[np.bool_] = (found != UNKNOWN_CHANGE).all(1)
    return found[there]


def handed_over(streams: Sequence[Stream], to: str, rng: np.random.Generator, accounts: int = 60) -> list[Stream]:
    """Accounts whose second half another client asks. to: of ``other`` kinds, or the ``same`` client goes on."""
    long = [stream for stream in streams if len(stream.inputs) >= 160]
    made = []
    for i in range(accounts):
        one = long[rng.integers(len(long))]
        others = [stream for stream in long if stream.kind != one.kind]
        n = min(len(one.inputs) // 2, 300)
        after = one.inputs[n : 2 * n] if to == "same" else others[rng.integers(len(others))].inputs[:n]
        rows = np.vstack([one.inputs[:n], after])
        times = np.concatenate([CUT_S + rng.uniform(-14, 0, n) * DAY_S, CUT_S + rng.uniform(0, 14, len(after)) * DAY_S])
        made.append(
            replace(
                one,
                client=f"c-{i}",
                inputs=rows,
                is_attack=np.zeros(len(rows), bool),
                times_s=np.round(np.sort(times), 3),
            )
        )
    return made


def seen(null: OwnChange, found: Changes) -> int:
    return sum(one is not None for one in null.beyond(found.astype(np.float64)))


@pytest.fixture(scope="module")
def null(baseline: Baseline) -> OwnChange:
    return OwnChange(at_fit(lives(5), baseline))


def part(counts: Sequence[int] | NDArray[np.int64], days: float = 10.0) -> LifePart:
    one = np.array([counts])
    none = np.zeros((1, 1), np.int64)
    return LifePart(one.sum(1), np.array([int(days * DAY_S * 1000)]), one, none, none)


def test_what_chance_does_is_no_change_and_few_queries_show_a_great_change_only() -> None:
    rng = np.random.default_rng(2)
    by_chance = [
        changes(part(rng.multinomial(80, [0.5, 0.3, 0.2])), part(rng.multinomial(200, [0.5, 0.3, 0.2]), 25.0))
        for _ in range(500)
    ]
    assert sum(bool(found[0].any()) for found in by_chance) <= 10, "three standard deviations"
    few, many = (changes(part([n, n // 2, 0]), part([n // 2, n, 0]))[0, 0] for n in (30, 3_000))
    assert few < many < 2
    assert changes(part([100, 0]), part([0, 100]))[0, 0] > 1.8, "the most is 2"
    assert changes(part([100], 10.0), part([100], 2.0))[0, 3] == pytest.approx(np.log(5) - 3 * np.sqrt(0.02))


@pytest.mark.parametrize(("counts", "days"), [((39, 0), 10.0), ((100, 100), 0.9)])
def test_a_part_that_is_too_small_is_not_compared(counts: tuple[int, int], days: float) -> None:
    assert (changes(part(counts, days), part([0, 200])) == UNKNOWN_CHANGE).all()
    assert (changes(part([0, 200]), part(counts, days)) == UNKNOWN_CHANGE).all()


def test_few_honest_clients_differ_from_their_own_past(baseline: Baseline, null: OwnChange) -> None:
    """Cut where a window begins, as in the service; the calibration cuts in the middle of each life."""
    found = np.vstack([known(in_service(lives(seed), baseline)) for seed in (7, 8, 9)])
    assert null.clients >= 60
    assert len(found) >= 60
    assert seen(null, found) <= 0.04 * len(found), "the level is .01: three or fewer of some eighty"


def test_an_account_in_other_hands_is_seen_and_one_that_goes_on_is_not(baseline: Baseline, null: OwnChange) -> None:
    streams, rng = lives(7), np.random.default_rng(3)
    others, same = (in_service(handed_over(streams, to, rng), baseline) for to in ("other", "same"))
    assert len(known(others)) == len(known(same)) == 60
    assert seen(null, others) >= 25
    assert seen(null, same) <= 2


def test_too_few_honest_clients_name_nobody() -> None:
    null = OwnChange(np.zeros((19, 4), np.float32))
    assert null.beyond(np.full((2, 4), 2.0)) == [None, None]
    assert OwnChange(np.zeros((20, 4), np.float32)).beyond(np.full((2, 4), 2.0)) != [None, None], "the control"
    assert OwnChange(NO_CHANGES).beyond(np.full((1, 4), 2.0)) == [None]


def test_a_baseline_keeps_its_clients_own_changes_and_an_older_one_has_none(baseline: Baseline) -> None:
    kept = baseline.calibration.changes
    assert len(kept) == baseline.calibration.clients
    assert len(known(kept)) > 0
    assert np.array_equal(read_baseline(pack_baseline(baseline)).calibration.changes, kept)
    older = replace(baseline, calibration=replace(baseline.calibration, changes=NO_CHANGES))
    assert older.calibration_version == baseline.calibration_version
    assert read_baseline(pack_baseline(older)).own_change.clients == 0


def test_it_is_told_beside_the_score_and_decides_nothing(
    tmp_path: Path, new_store: Callable[[], EmbeddedStore], baseline: Baseline, secrets: Secrets
) -> None:
    streams, rng = lives(7, kinds=victims.CALM), np.random.default_rng(3)
    log = tmp_path / "log.jsonl"
    victims.log_of(log, handed_over(streams, "other", rng))
    # the lives of the test's baseline are short, so few of its clients have halves that can be compared
    kept = at_fit(lives(5, kinds=victims.CALM), baseline).astype(np.float32)
    rows = {}
    for name, own in (("with", kept), ("without", NO_CHANGES)):
        one = replace(baseline, calibration=replace(baseline.calibration, changes=own))
        detect = Detect({victims.MODEL: one}, secrets, Policy(0.01, "block"))
        found = replay.replay(FileLog([log]), new_store(), Ingest(detect.baselines, secrets), detect)
        rows[name] = {row.client_id: row for row in found.scores.values()}
    told = {
        client: [o.text for o in row.observations if o.name == "unlike_its_own_past"]
        for client, row in rows["with"].items()
    }
    assert sum(map(bool, told.values())) >= 15
    assert all("differs from its own earlier life" in text for texts in told.values() for text in texts)
    assert not any(o.name == "unlike_its_own_past" for row in rows["without"].values() for o in row.observations)
    for client, row in rows["with"].items():
        other = rows["without"][client]
        assert (row.assessment, row.decision) == (other.assessment, other.decision)
