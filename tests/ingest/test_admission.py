"""The admission budget: against a slow twin, whatever the polls; an explosion of ids through the whole of ingest."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import victims

from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.ingest import loop as ingest
from consumers.ingest.admission import HEAD_BYTES, SKETCH_BYTES, Admission, AdmissionLimits
from consumers.ingest.health import Runtime
from consumers.ingest.loop import IngestLoop
from consumers.ingest.step import Ingest
from consumers.legible import legible
from consumers.log.files import FileLog
from consumers.records.decision import stored_decision
from consumers.records.ledger import OVERFLOW, imbalance
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from consumers.terminal import plain
from detector.baseline import Baseline
from detector.query import ClientKey

HOUR_MS = 3_600_000
HALF_MS = 15 * 86_400_000
Row = tuple[int, int]  # client, time in ms
NewStore = Callable[[], EmbeddedStore]


def name(client: int) -> str:
    return hashlib.blake2b(b"%d" % client, digest_size=16).hexdigest()


def fold(
    admission: Admission, known: set[int], rows: Sequence[Row], limits: AdmissionLimits, full: bool = False
) -> list[bool]:
    """Pooled rows of one poll; `known` takes up who was admitted."""
    clients = sorted({c for c, _ in rows})
    has = np.array([c in known for c in clients], np.bool_)
    who = np.array([clients.index(c) for c, _ in rows], np.int32)
    times = np.array([t for _, t in rows], np.int64)
    out = admission.pooled([name(c) for c in clients], has, who, times, HALF_MS, limits, full)
    known |= {c for c, h in zip(clients, has.tolist(), strict=True) if h}
    return [bool(pooled) for pooled in out]


def twin(rows: Sequence[Row], limits: AdmissionLimits) -> list[bool]:
    """With exact counts in place of the sketch: equal while few ids share the sketch."""
    known: set[int] = set()
    hour = admitted = late = 0
    counts: Counter[int] = Counter()
    window = this = before = 0
    pooled = []
    for client, at in rows:
        if client in known:
            pooled.append(False)
            continue
        if at // HOUR_MS > hour or at // HOUR_MS < hour - 24:
            hour, admitted, late, counts = at // HOUR_MS, 0, 0, Counter()
        if at // HALF_MS > window:
            window, this, before = at // HALF_MS, 0, this if at // HALF_MS == window + 1 else 0
        takes = this + before < limits.clients
        if takes and admitted < limits.new_an_hour:
            admitted += 1
        elif takes:
            counts[client] += 1
            takes = counts[client] >= limits.queries_first and late < limits.new_an_hour
            late += takes
        if takes:
            this += 1
            known.add(client)
        pooled.append(not takes)
    return pooled


ROWS = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 60).map(lambda t: t * HOUR_MS // 2)), min_size=1, max_size=120
)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(1, 3), st.integers(1, 7), st.lists(st.integers(0, 120), max_size=3))
def test_who_is_admitted_is_what_the_twin_says_however_polls_cut(
    rows: list[Row], budget: int, cap: int, cuts: list[int]
) -> None:
    limits = AdmissionLimits(budget, cap, 3)
    admission, known, pooled = Admission(), set[int](), []
    edges = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            pooled += fold(admission, known, rows[start:end], limits)
            admission = Admission(admission.to_bytes())  # through the store between two polls
    assert pooled == twin(rows, limits)


def test_a_full_store_takes_up_nobody_new_and_leaves_the_known_alone() -> None:
    admission, known = Admission(), {1}
    assert fold(admission, known, [(1, 5), (2, 5), (3, 5)], AdmissionLimits(), full=True) == [False, True, True]
    assert known == {1}


def test_the_state_is_small_and_a_damaged_one_begins_anew() -> None:
    admission, limits = Admission(), AdmissionLimits(1, 10, 3)
    fold(admission, set(), [(1, 0)], limits)
    changed = [admission.changed]
    assert len(admission.to_bytes()) == HEAD_BYTES
    assert [*changed, admission.changed] == [True, False]
    fold(admission, set(), [(2, 0)], limits)
    blob = admission.to_bytes()
    assert len(blob) == SKETCH_BYTES == 256 << 10
    for damaged in (b"x", blob[:-1], bytes(64), b"\xff" * 64):
        assert Admission(damaged).to_bytes() == Admission().to_bytes()


@pytest.mark.parametrize("ids", [400_000, pytest.param(5_000_000, marks=pytest.mark.soak)])
def test_the_sketch_tells_invented_ids_from_clients_that_stay(ids: int) -> None:
    """One query an id, in one hour; among them 50 honest newcomers with 60 queries each."""
    rng = np.random.default_rng(1)
    admission, limits, known = Admission(), AdmissionLimits(), 0
    honest = [name(-i) for i in range(1, 51)]
    has_state = np.zeros(50, np.bool_)
    for start in range(0, ids, 20_000):
        n = min(20_000, ids - start)
        keys = [f"{v:032x}" for v in rng.integers(0, (1 << 64) - 1, n, np.uint64).tolist()]
        keys = [key[16:] + key[:16] for key in keys]
        due = np.repeat(np.arange(50), rng.poisson(60 * n / ids, 50))
        has = np.concatenate([np.zeros(n, np.bool_), has_state])
        who = rng.permutation(np.concatenate([np.arange(n), n + due])).astype(np.int32)
        admission.pooled([*keys, *honest], has, who, np.full(len(who), 77, np.int64), HALF_MS, limits)
        known += int(has[:n].sum())
        has_state = has[n:]
    assert known <= limits.new_an_hour + ids // 10_000, "hardly an invented id gets state beyond the budget"
    assert has_state.sum() >= 45, "who stays gets it"


@pytest.fixture
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({victims.MODEL: baseline}, secrets, limits=AdmissionLimits(new_an_hour=1000))


def through(path: Path, store: Any, reading: Ingest) -> IngestLoop:
    ticks = (
        itertools.count()
    )  # alarms are looked at every 5 s: a second a look at the clock, however fast the machine is
    one = IngestLoop(
        FileLog([path]), store, reading, runtime=Runtime(clock=lambda: float(next(ticks)), sleep=lambda s: None)
    )
    ingest.run(one, lambda: False, until_end=True, poll_timeout_s=0.0)
    return one


@pytest.mark.parametrize("ids", [60_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_an_explosion_of_ids_leaves_honest_clients_as_they_are_and_is_scored(
    ids: int, tmp_path: Path, new_store: NewStore, reading: Ingest, baseline: Baseline, secrets: Secrets
) -> None:
    rng = np.random.default_rng(5)
    honest = [
        victims.line(row, client_id=f"acct-{i % 20}", timestamp=f"2026-03-10T00:{i // 60 % 60:02d}:{i % 60:02d}Z")
        for i, row in enumerate(victims.items(600, rng))
    ]
    theft = [
        victims.line(row, client_id="CLIENT", timestamp="2026-03-10T00:30:00Z")
        for row in rng.uniform(-9, 9, size=(2000, victims.WIDTH)).round(2)
    ]
    invented = [theft[i % 2000].replace(b"CLIENT", b"id-%d" % i) for i in range(ids)]
    alone = through(victims.write_lines(tmp_path / "alone.jsonl", honest), before := new_store(), reading)
    mixed = [*honest[:300], *invented[: ids // 2], *honest[300:], *invented[ids // 2 :]]
    attacked = through(victims.write_lines(tmp_path / "mixed.jsonl", mixed), store := new_store(), reading)

    keys = [ClientKey("default", victims.MODEL, secrets.client_hash("default", f"acct-{i}")) for i in range(20)]
    (calm,), (stormy,) = before.cells(), store.cells()
    assert store.shards(stormy, keys).fields == before.shards(calm, keys).fields, "honest states are bit-identical"
    (cell,) = attacked.ownership.cells.values()
    assert imbalance(cell.counters) == imbalance(next(iter(alone.ownership.cells.values())).counters) == 0
    assert cell.counters["queries"] == ids + 600
    assert cell.counters["pooled"] >= ids - 1000 - ids // 1000
    assert "new_clients" in attacked.reporter.watch.alarms.raised
    assert 'querywarden_alarm{alarm="new_clients"} 1.0' in attacked.reporter.metrics.text().decode()

    judge = Detect({victims.MODEL: baseline}, secrets)
    detect.run(detect.Runner(store, judge, now_s=lambda: None, overrides=None), lambda: False, until_idle=True)
    rows = {k: stored_decision(row, secrets, k.tenant) for k, row in store.decisions("default")}
    assert len(rows) <= 1000 + 20 + 1 + ids // 1000, "growth is bounded"
    pooled = rows[reading.overflow(victims.MODEL)]
    assert (pooled.client_id, pooled.assessment.queries) == (OVERFLOW, cell.counters["pooled"])
    assert pooled.decision.state in ("throttle", "block"), "a theft by many ids is seen where they are pooled"


def test_no_client_can_be_named_like_the_pool(
    tmp_path: Path, new_store: NewStore, reading: Ingest, baseline: Baseline, secrets: Secrets
) -> None:
    """A client that is called overflow has a row of its own, beside that of the clients without state."""
    rows = victims.items(40, np.random.default_rng(9))
    names = ["overflow"] * 10 + ["acct-1", "acct-2"] * 10 + [OVERFLOW] * 10
    lines = [victims.line(row, client_id=client) for row, client in zip(rows, names, strict=True)]
    reading.limits = AdmissionLimits(1, 100)
    store = new_store()
    one = through(victims.write_lines(tmp_path / "log.jsonl", lines), store, reading)
    (cell,) = one.ownership.cells.values()
    assert (cell.counters["pooled"], store.dead_letter_counts()) == (20, {"malformed_client": 10})
    judge = Detect({victims.MODEL: baseline}, secrets)
    detect.run(detect.Runner(store, judge, now_s=lambda: None, overrides=None), lambda: False, until_idle=True)
    found = {
        stored_decision(row, secrets, key.tenant).score(key.model)["client_id"]: stored_decision(
            row, secrets, key.tenant
        )
        for key, row in store.decisions("default")
    }
    assert {client: row.assessment.queries for client, row in found.items()} == {"overflow": 10, OVERFLOW: 20}
    for shown in (plain(OVERFLOW).plain, legible(OVERFLOW)):
        assert shown not in ("overflow", OVERFLOW), "people see the mark too"
