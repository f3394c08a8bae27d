"""What must hold after a seed, computed from the ledger and from nothing that the run computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from simulation import scene
from simulation.cells import ProfileCell
from simulation.world import World

from consumers.ingest.step import shape_of
from consumers.records.decision import StoredDecision, stored_decision
from consumers.records.ledger import COUNTERS, imbalance
from consumers.store import decision_cell
from detector.policy import FLAGGED
from detector.profile import Profile
from detector.profile_shape import Shape
from detector.query import ClientKey

EXACT = (
    "queries first_ms last_ms classes region_counts distance_counts sample_hash sample_novel odd_hash odd_bits"
    " sequence_hash sequence_bits passage_ms passage_query"
).split()
"""Fields of a profile that must be the very same; running maxima are sums of floats, within 1e-8."""

ASSESSED = ("queries", "distinct", "suspicion", "p_value", "in_order", "family")
REFLECTS = {
    name: attrgetter(name) for name in (*(f"assessment.{name}" for name in ASSESSED), "coverage", "last_ms", "cells")
}
"""Fields of a decision row that follow from the profiles alone."""


@dataclass(slots=True)
class Verdict:
    """Of one seed. lost, doubled: queries too few and too many; missing: alerts that nobody got; notes say what else is wrong.
    restores: snapshots that took the store's place."""

    seed: int
    faults: int = 0
    effects: int = 0
    records: int = 0
    restores: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    missing: int = 0
    old_rows: int = 0
    uid_twice: int = 0
    stale: int = 0
    undrained: int = 0
    quarantined: int = 0
    errors: int = 0
    drained_s: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return bool(
            self.lost or self.doubled or self.wrong or self.missing or self.old_rows or self.uid_twice or self.stale
            or self.undrained or self.quarantined or self.errors
        )  # fmt: skip


def judge(world: World) -> Verdict:
    v = Verdict(
        world.seed, world.faults.count, world.schedule.steps, sum(map(len, world.script.bursts)), world.restores
    )
    v.uid_twice, v.stale, v.errors = len(world.doubled), len(world.stale), len(world.errors)
    v.notes += [f"uid twice in an outbox: {uid}" for uid in world.doubled[:3]]
    v.notes += [f"stale commit accepted: {one}" for one in world.stale[:3]] + world.errors[:3]
    v.drained_s = world.drained_s
    if not world.drained:
        v.undrained = 1
        v.notes.append(f"not at rest {world.drained_s:.0f} s after the last fault")
    for cell in world.script.cells:
        _profiles(world, cell, v)
    if world.with_detect:
        _decisions(world, v)
    return v


def _profiles(world: World, cell: str, v: Verdict) -> None:
    state = world.nodes.profile_cell(cell) or ProfileCell()
    lost, doubled, disordered = world.script.unlike_the_ledger(cell, state)
    if lost or doubled or disordered:
        v.lost, v.doubled, v.wrong = v.lost + lost, v.doubled + doubled, v.wrong + disordered
        v.notes.append(f"{cell}: {lost} records never arrived, {doubled} came twice, {disordered} logs out of order")
    wanted = world.script.folded(cell, state, _poison(state))
    v.quarantined += len(_poison(state))
    v.notes += [f"{cell}@{offset}: a healthy record was quarantined" for offset in _poison(state)]
    shape = shape_of(scene.baseline())
    for key in wanted.profiles.keys() | state.profiles.keys():
        must, found = wanted.profiles.get(key, {}), state.profiles.get(key, ({}, 0))[0]
        if must == found:
            continue
        expected = _spans(must, shape)
        stored = _spans(found, shape)
        short = sum(p.queries for p in expected.values()) - sum(p.queries for p in stored.values())
        v.lost += max(0, short)
        v.doubled += max(0, -short)
        why = _difference(expected, stored) if not short else f"{short:+d} queries lost"
        if not short and why:
            v.wrong += 1
        if why:
            v.notes.append(f"{cell} {key.client[:6]}: {why}")
    counters, must_count = _counts(state.counters, state.erased), _counts(wanted.counters, state.erased)
    if counters != must_count or imbalance(state.counters):
        v.wrong += 1
        v.notes.append(f"{cell}: counters {counters}, not {must_count}")
    places = wanted.places
    if places is None:
        places = frozenset(world.script.place(cell, offset) for offset in wanted.dead)
    unshipped = places - world.letters
    if unshipped:
        v.lost += len(unshipped)
        v.notes.append(f"{cell}: dead letters that nobody got: {sorted(unshipped)}")


def _counts(counters: Mapping[str, int], erased: Mapping[str, int]) -> dict[str, int]:
    """What must be equal. A query counts as one also if its client was erased later."""
    found = Counter({name: counters[name] for name in COUNTERS if counters.get(name)})
    if erased:
        for name in ("erased", "duplicate"):
            found["queries"] += found.pop(name, 0)
    return dict(found)


def _poison(state: ProfileCell) -> frozenset[int]:
    """Records that were quarantined. No record of a script ends a process, so there is none that should be."""
    return frozenset(offset for offset, reason in state.refused.items() if reason == "poison")


def _spans(fields: scene.Fields, shape: Shape) -> dict[int, Profile]:
    return {int(n[2:]): Profile.from_bytes(b, shape) for n, b in fields.items() if n.startswith("w:")}


def _difference(expected: dict[int, Profile], stored: dict[int, Profile]) -> str:
    if expected.keys() != stored.keys():
        return f"spans {sorted(stored)}, not {sorted(expected)}"
    for start, must in expected.items():
        for name in EXACT:
            if not np.array_equal(getattr(must, name), getattr(stored[start], name)):
                return f"{name} differs"
        for name in ("maxima",):
            if not np.allclose(getattr(must, name), getattr(stored[start], name), rtol=1e-8, atol=1e-9):
                return f"{name} differs by more than 1e-8"
    return ""


def _decisions(world: World, v: Verdict) -> None:
    shards: dict[ClientKey, dict[str, scene.Fields]] = {}
    for cell in world.script.cells:
        state = world.nodes.profile_cell(cell) or ProfileCell()
        for key, shard in world.script.folded(cell, state, _poison(state)).profiles.items():
            shards.setdefault(key, {})[cell] = shard
    rows = {key: row for n in range(world.decision_cells) for key, row in world.nodes.decision_cell(n).rows.items()}
    erased = {scene.key_of(client) for client in world.erased}
    for key, fields in shards.items():
        must = world.script.assess(key, fields)
        if must is None:
            continue
        row = stored_decision(rows[key], scene.secrets(), key.tenant) if key in rows else None
        if row is None and key in erased:
            continue  # asked again between the erasure of profiles and that of decisions; assessed with the next query
        differs = "no row" if row is None else next((name for name, of in REFLECTS.items() if of(row) != of(must)), "")
        if differs:
            v.old_rows += 1
            v.notes.append(f"decision of {key.client[:6]} does not reflect the log: {differs}")
        _alerts(world, key, must, row, v)
    for key in erased & rows.keys() - shards.keys():
        v.old_rows += 1
        v.notes.append(f"decision about {key.client[:6]}, who was erased and asked nothing since")
    for n in range(world.decision_cells):
        for _, alert, _ in world.nodes.decision_cell(n).alerts:
            for receiver in world.receivers:
                if not receiver.taken[alert.uid]:
                    v.missing += 1
                    v.notes.append(f"alert {alert.uid[:6]} never reached {receiver.name}")


def _alerts(world: World, key: ClientKey, must: StoredDecision, row: StoredDecision | None, v: Verdict) -> None:
    """Who must be flagged was reported to everybody: every update up to the row's."""
    if must.decision.state not in FLAGGED:
        return
    uids = {alert.uid for _, alert, _ in world.nodes.decision_cell(decision_cell(key, world.decision_cells)).alerts}
    if row is None or row.alert is None:
        v.missing += 1
        v.notes.append(f"no alert about {key.client[:6]}")
        return
    for update in range(row.update + 1):
        uid = f"{row.alert['alert_id']}/{update}"
        if uid not in uids or any(not receiver.taken[uid] for receiver in world.receivers):
            v.missing += 1
            v.notes.append(f"alert {uid[:6]}/{update} about {key.client[:6]} missing")
