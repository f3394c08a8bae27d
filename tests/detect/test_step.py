"""The step of detect, many clients at once: the same rows and alerts as its slow twin, byte for byte."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.random import Generator
from support import victims
from support.drawn_profiles import PERSONAS, drawn, with_everything
from support.plain_step import plain_step

from consumers.detect import step as stepping
from consumers.detect.overrides import Overrides
from consumers.detect.step import Detect, Seen
from consumers.log.reasons import MisfitNote
from consumers.records import client, links, refusals, sample_events
from consumers.records.breaker import BreakerLimits
from consumers.records.client import HEADER
from consumers.records.decision import stored_decision
from consumers.records.operator_entries import entry_key
from consumers.records.spans import span_field
from consumers.secrets import Secrets
from consumers.store import Cursor, Outcome
from detector.baseline import Baseline
from detector.policy import ExposureBudget, Mode, Policy
from detector.profile import Profile
from detector.query import ClientKey

SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
TENANTS, OTHER_MODEL, UNKNOWN_MODEL = ("acme", "blue"), "loans-v2", "nobody's"
WINDOW = 1368
SMALL = BreakerLimits(most=3, least=1)


@pytest.fixture(scope="module")
def known(baseline: Baseline) -> Baseline:
    return with_everything(baseline)


def drawn_fields(name: str, tenant: str, baseline: Baseline, rng: Generator) -> dict[str, Mapping[str, bytes]]:
    """What the store may hold of a client: usually one span in one cell; sometimes more, damaged, of another map, of older windows."""
    fields: dict[str, Mapping[str, bytes]] = {}
    for cell in ("q:1", "q:0")[: 1 + int(rng.random() < 0.2)]:
        mine: dict[str, bytes] = {}
        window = WINDOW - int(rng.integers(0, 3)) * int(rng.random() < 0.3)
        for at in range(window, window + 1 + int(rng.integers(0, 3) * (rng.random() < 0.4))):
            mine[span_field(at, baseline.id if rng.random() < 0.1 else "")] = _blob(baseline, at, rng)
        if rng.random() < 0.95:
            mine[HEADER] = SECRETS.seal(name, tenant) if rng.random() < 0.95 else b"\x01damaged"
        if rng.random() < 0.5:
            mine[links.FIELD] = links.packed([f"ip:{int(rng.integers(0, 9)):016x}", "asn:00ff"])
        if rng.random() < 0.3:
            counted = refusals.Refusals()
            counted.add([MisfitNote("bad_type", "amount")])
            mine[refusals.FIELD] = refusals.packed(counted)
        if rng.random() < 0.4:
            events = [(int(rng.integers(1, 9)), int(rng.integers(0, 2**20)), f"e-{i}") for i in range(3)]
            mine[sample_events.FIELD] = sample_events.packed(events, SECRETS, tenant)
        fields[cell] = mine
    return fields


def _blob(baseline: Baseline, window: int, rng: Generator) -> bytes:
    profile = drawn(baseline, rng, window)
    if rng.random() < 0.5:  # else most are thieves
        profile = replace(profile, maxima=profile.maxima / 50, odd_bits=profile.odd_bits * np.uint32(0))
    if rng.random() < 0.1:
        profile = replace(profile, archive=drawn(baseline, rng, window - 4).archived(), decay=0.7)
    if rng.random() < 0.03:
        profile = replace(profile, map_id="ab" * 8)
    blob = profile.to_bytes()
    return blob[:-9] if rng.random() < 0.03 else blob


def drawn_clients(baseline: Baseline, rng: Generator, n: int) -> list[Seen]:
    found = []
    for i in range(n):
        tenant = TENANTS[int(rng.random() < 0.2)]
        model = (victims.MODEL, OTHER_MODEL, UNKNOWN_MODEL)[int(rng.choice(3, p=[0.8, 0.15, 0.05]))]
        key = ClientKey(tenant, model, SECRETS.client_hash(tenant, f"client-{i}"))
        found.append(Seen(key, drawn_fields(f"client-{i}", tenant, baseline, rng), None))
    return found


def detect_of(baseline: Baseline, rng: Generator) -> Detect:
    modes: tuple[Mode, ...] = ("observe", "alert", "throttle", "block")
    mode = modes[int(rng.integers(0, 4))]
    budget = ExposureBudget(*((0.5, 0.7, 60, 150) if rng.random() < 0.6 else ()))
    held = bool(rng.random() < 0.3)
    return Detect(
        {victims.MODEL: baseline, OTHER_MODEL: baseline},
        SECRETS,
        Policy((0.01, 0.2)[int(rng.integers(0, 2))], mode, budget),
        modes={OTHER_MODEL: "throttle"} if rng.random() < 0.5 else {},
        personas={f"client-{i}": PERSONAS[int(rng.integers(0, 3))] for i in range(0, 30, 3)},
        misfits_held=lambda tenant, model: held and tenant == TENANTS[0],
        exposures={OTHER_MODEL: ExposureBudget(queries_alert=20)} if rng.random() < 0.5 else {},
        plans={f"client-{i}": int(rng.integers(1, 300)) for i in range(0, 30, 4)},
    )


def overrides_of(rng: Generator, clients: list[Seen]) -> Overrides:
    listed = {
        (seen.key.tenant, entry_key(seen.key.model, seen.key.client)): 0 for seen in clients if rng.random() < 0.1
    }
    return Overrides(SMALL, allowed=listed)


def same(one: Outcome, other: Outcome) -> None:
    assert list(one.rows) == list(other.rows)
    for key, row in one.rows.items():
        assert row == other.rows[key], stored_decision(row, SECRETS, key.tenant)
    assert [(a, a.tenant) for a in one.alerts] == [(a, a.tenant) for a in other.alerts]
    assert one.cursors == other.cursors


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 24), st.sampled_from([3, 512]))
def test_clients_that_are_assessed_together_get_the_rows_and_alerts_of_the_slow_twin(
    known: Baseline, monkeypatch: pytest.MonkeyPatch, seed: int, n: int, at_once: int
) -> None:
    """Three turns: clients that go on, fall silent or are looked at again with other profiles; operators' overrides; and a redo."""
    monkeypatch.setattr(stepping, "AT_ONCE", at_once)
    rng = np.random.default_rng(seed)
    detect, clients = detect_of(known, rng), drawn_clients(known, rng, n)
    fast_overrides, slow_overrides = overrides_of(rng, clients), Overrides(SMALL)
    slow_overrides.allowed = dict(fast_overrides.allowed)
    cursors, now_s = {"q:0": Cursor("g", 7)}, (None, 1_773_100_000)[int(rng.integers(0, 2))]
    for _ in range(3):
        fast = detect.step(3, clients, cursors, now_s, fast_overrides.overruled)
        same(fast, plain_step(detect, 3, clients, cursors, now_s, slow_overrides.overruled))
        assert fast_overrides.open == slow_overrides.open
        same(detect.step(3, clients, cursors, now_s), detect.step(3, clients, cursors, now_s))
        for seen in clients:
            if seen.key in fast.rows:
                seen.before = stored_decision(fast.rows[seen.key], SECRETS, seen.key.tenant)
            if rng.random() < 0.6:
                seen.fields = drawn_fields("client-0", seen.key.tenant, known, rng)
        now_s = None if now_s is None else now_s + int(rng.choice([60, 90_000]))


def test_the_draws_reach_what_a_step_can_say(known: Baseline) -> None:
    """Otherwise the equality above says little."""
    rng = np.random.default_rng(2)
    rows, alerts = [], 0
    for _ in range(8):
        clients = drawn_clients(known, rng, 24)
        outcome = detect_of(known, rng).step(0, clients, {}, 1_773_100_000, overrides_of(rng, clients).overruled)
        rows += [stored_decision(row, SECRETS, key.tenant) for key, row in outcome.rows.items()]
        alerts += len(outcome.alerts)
    assert {row.decision.state for row in rows} == {"clear", "watch", "throttle", "block"}
    assert {row.exposed for row in rows} == {"none", "alert", "throttle"}
    assert {"allow_listed", "breaker", "no_evidence"} <= {row.decision.reason for row in rows}
    assert {len(row.cells) for row in rows} == {1, 2}
    assert len(rows) < 8 * 24
    assert alerts


def test_a_twin_that_reads_one_number_otherwise_is_seen(known: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    rng = np.random.default_rng(4)
    detect, clients = Detect({victims.MODEL: known}, SECRETS), drawn_clients(known, rng, 6)
    read = client.read_profile

    def off_by_one(*given: Any) -> tuple[Profile, str] | None:
        found = read(*given)
        return found and (replace(found[0], queries=found[0].queries + 1), found[1])

    monkeypatch.setattr(client, "read_profile", off_by_one)
    with pytest.raises(AssertionError):
        same(detect.step(0, clients, {}, None), plain_step(detect, 0, clients, {}, None))


def test_what_cannot_be_read_is_said_as_the_slow_twin_says_it(
    known: Baseline, caplog: pytest.LogCaptureFixture
) -> None:
    sound = drawn(known, np.random.default_rng(1), WINDOW).to_bytes()
    key = ClientKey("acme", victims.MODEL, "0" * 32)
    header = SECRETS.seal("c", "acme")
    fields: list[dict[str, Mapping[str, bytes]]] = [
        {"q:0": {"w:1368": sound[:-9], HEADER: header}},
        {"q:0": {"w:1368": sound, "w:13x": sound, HEADER: header}},
        {"q:0": {"w:1368": sound, HEADER: b"\x01"}},
        {"q:0": {"w:1368": sound, "w:1369": sound[:-9], HEADER: header}},
    ]
    detect = Detect({victims.MODEL: known}, SECRETS)
    for one in fields:
        said = []
        for step in (detect.step, functools.partial(plain_step, detect)):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                outcome = step(0, [Seen(key, one, None)], {}, None)
            said.append((outcome.rows, [(r.name, r.getMessage(), getattr(r, "why", "")) for r in caplog.records]))
        assert said[0] == said[1]
        assert said[0][1]


def test_a_profile_of_a_client_that_was_seen_in_two_cells_is_that_of_both(known: Baseline) -> None:
    rng = np.random.default_rng(6)
    one, other = (drawn(known, rng, WINDOW) for _ in range(2))
    key, header = ClientKey("acme", victims.MODEL, "0" * 32), SECRETS.seal("c", "acme")
    fields: dict[str, Mapping[str, bytes]] = {
        cell: {"w:1368": p.to_bytes(), HEADER: header} for cell, p in (("a", one), ("b", other))
    }
    outcome = Detect({victims.MODEL: known}, SECRETS).step(0, [Seen(key, fields, None)], {}, None)
    row = stored_decision(outcome.rows[key], SECRETS, "acme")
    merged: Profile = one.merge(other)
    assert (row.assessment.queries, row.assessment.distinct) == (merged.queries, merged.distinct)
    assert not row.assessment.in_order
