"""A new calibration for an old map: equal to a fit on the same clients, one life each, and whoever is far beyond the others is named."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from support.references import DAY_MS, Rows, quick_training, reference_of

from detector.baseline import PUBLIC_KEY, Baseline
from detector.baseline_file import pack_baseline, read_baseline
from detector.errors import UnfittedModel
from detector.fitting.baseline import _calibrate, fit_baseline
from detector.fitting.recalibration import FAR_BEYOND, KnownClient, outliers, recalibrate
from detector.profile_table import ProfileTable
from detector.query import QueryBatch
from detector.signals import SIGNAL_NAMES, SIGNALS

SPAN_DAYS = 14


@functools.cache
def uncalibrated() -> Baseline:
    """A baseline that no real client was seen by; its stand-ins asked much."""
    reference = reference_of("digits")
    with quick_training():
        fitted, _ = fit_baseline(
            "digits", reference.schema, reference.batch, reference.traffic,
            rng=np.random.default_rng(9), simulated=frozenset(reference.traffic.clients),
        )  # fmt: skip
    return replace(fitted, calibration=replace(fitted.calibration, distinct=5000.0))


def traffic(noise_of: dict[int, int] | None = None, clients: int = 40, days: float = SPAN_DAYS) -> QueryBatch:
    """Honest clients over two weeks. noise_of: client → queries of noise that it sends besides."""
    rng = np.random.default_rng(21)
    reference = reference_of("digits").traffic
    who = rng.integers(0, clients, 1600).astype(np.int32)
    x = reference.inputs[rng.integers(0, len(reference), len(who))]
    for client, n in (noise_of or {}).items():
        x = np.concatenate([x, rng.uniform(0, 1, (n, x.shape[1]))])
        who = np.concatenate([who, np.full(n, client, np.int32)])
    order = rng.permutation(len(who))
    return batch(x[order], who[order], clients, days)


def batch(x: Rows, who: np.ndarray, clients: int, days: float) -> QueryBatch:
    from support.references import answered

    made = answered(x, 10, who)
    times = (1_700_000_000_000 + np.linspace(0, days * DAY_MS, len(x))).astype(np.int64)
    return replace(made, clients=[f"client {i}" for i in range(clients)], time_ms=times)


def known_clients(baseline: Baseline, seen: QueryBatch) -> list[KnownClient]:
    """Each client as the service keeps it under `baseline`."""
    profiles = ProfileTable(baseline.map, baseline.table, baseline.calibration_version, 2**62)
    for rows in np.array_split(np.arange(len(seen)), 7):
        part = seen.take(rows)
        profiles.add(list(seen.clients), part, baseline.map.measure(part, PUBLIC_KEY))
    return [KnownClient(client, profiles.profile(client)) for client in seen.clients]


def test_recalibrating_equals_a_fit_on_the_same_clients() -> None:
    old, seen = uncalibrated(), traffic({3: 60})
    made = recalibrate(old, known_clients(old, seen), "clients that the service saw")
    fitted, _ = _calibrate(old.map, seen, [""] * len(seen.clients), frozenset())
    for name in ("lifetime_maxima", "scale", "ordered", "free"):
        np.testing.assert_array_equal(getattr(made.baseline.calibration, name), getattr(fitted, name))
    assert made.baseline.calibration_version == fitted.version
    assert fitted.ordered.max() > 0  # not a comparison of zeros
    assert made.baseline.calibration.days == pytest.approx(SPAN_DAYS, abs=1)


def test_the_map_stays_the_calibration_is_new_and_the_notes_say_so() -> None:
    old = uncalibrated()
    new = recalibrate(old, known_clients(old, traffic()), "clients that the service saw").baseline
    assert new.map_id == old.map_id
    assert new.calibration_version != old.calibration_version
    assert not old.calibration.calibrated
    assert new.calibration.calibrated
    assert new.notes[0].startswith("calibrated on 40 clients that the service saw, 40 of them for 7 days or more")
    assert not any("UNCALIBRATED" in note for note in new.notes)
    again = read_baseline(pack_baseline(new))
    assert (again.calibration_version, again.notes) == (new.calibration_version, new.notes)


def test_a_thief_in_the_population_is_named_and_the_honest_are_not() -> None:
    old = uncalibrated()
    made = recalibrate(old, known_clients(old, traffic({5: 800})), "clients")
    assert [o.client for o in made.review] == ["client 5"]
    assert made.review[0].times > FAR_BEYOND
    assert recalibrate(old, known_clients(old, traffic()), "clients").review == ()


def test_thieves_do_not_hide_each_other_by_stretching_the_scale() -> None:
    masses = np.zeros((100, len(SIGNALS)))
    masses[:, SIGNAL_NAMES.index("novelty_roots")] = 1.0
    masses[[4, 7, 9], SIGNAL_NAMES.index("novelty_roots")] = [900.0, 1000.0, 1100.0]
    assert [o.client for o in outliers([f"c{i}" for i in range(100)], masses)] == ["c9", "c7", "c4"]
    assert outliers([], np.zeros((0, len(SIGNALS)))) == ()


def test_a_client_beyond_the_rehearsal_bound_is_excluded_and_named() -> None:
    old, seen = uncalibrated(), traffic({5: 800})
    reach = np.full(len(SIGNALS), 20.0)
    bounded = replace(old, calibration=replace(old.calibration, rehearsal_bound=reach))
    free = recalibrate(old, known_clients(old, seen), "clients").baseline
    made = recalibrate(bounded, known_clients(bounded, seen), "clients")
    assert [(o.client, o.excluded) for o in made.review] == [("client 5", True)]
    assert made.excluded["beyond what honest tools reach in rehearsal"] == 1
    assert made.baseline.calibration.clients == free.calibration.clients - 1 == 39
    assert made.baseline.calibration.lifetime_maxima.max() <= 50 < free.calibration.lifetime_maxima.max()
    assert made.baseline.notes[0].startswith("calibrated on 39 clients")
    np.testing.assert_array_equal(
        made.baseline.calibration.rehearsal_bound, reach
    )  # the next calibration is bounded, too


def test_one_client_is_one_life_however_much_it_asks() -> None:
    old = uncalibrated()
    clients = known_clients(old, traffic())
    quiet = recalibrate(old, clients, "clients").baseline.calibration
    clients[5] = known_clients(old, traffic({5: 800}))[5]
    loud = recalibrate(old, clients, "clients").baseline.calibration
    assert loud.clients == quiet.clients == 40
    changed = (loud.lifetime_maxima != quiet.lifetime_maxima).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [5]


def test_too_few_or_too_short_lifetimes_are_refused_with_their_number() -> None:
    old = uncalibrated()
    with pytest.raises(UnfittedModel, match="19 clients to calibrate on"):
        recalibrate(old, known_clients(old, traffic())[:19], "clients")
    short = known_clients(old, traffic(days=2))
    with pytest.raises(UnfittedModel, match="0 clients were seen for 7 days or more"):
        recalibrate(old, short, "clients")
    assert recalibrate(old, short, "clients", min_days=1).baseline.calibration.calibrated


def test_clients_under_another_calibration_or_in_several_partitions_are_left_out() -> None:
    old = uncalibrated()
    clients = known_clients(old, traffic())
    clients[0] = replace(clients[0], profile=replace(clients[0].profile, calibration_version="0" * 16))
    clients[1] = replace(clients[1], cells=2)
    made = recalibrate(old, clients, "clients", excluded=Counter({"flagged, without a verdict": 3}))
    assert made.baseline.calibration.clients == 38
    assert made.excluded == {
        "known under another baseline": 1, "seen in several partitions": 1, "flagged, without a verdict": 3,
    }  # fmt: skip
    assert any("3 flagged" in note for note in made.baseline.notes)
    unkeyed = recalibrate(old, [replace(one, cells=2) for one in known_clients(old, traffic())], "clients")
    assert unkeyed.baseline.calibration.clients == 40
    assert any("several partitions" in note for note in unkeyed.baseline.notes)


def test_masses_beyond_the_old_bound_were_damped_by_it_so_it_stays() -> None:
    old = uncalibrated()
    tight = replace(old, calibration=replace(old.calibration, distinct=20.0))
    new = recalibrate(tight, known_clients(tight, traffic({5: 300})), "clients").baseline
    assert new.calibration.distinct == 20.0
    wide = recalibrate(old, known_clients(old, traffic()), "clients").baseline
    assert 20 < wide.calibration.distinct < old.calibration.distinct


def test_declared_personas_keep_a_null_of_their_own() -> None:
    old = uncalibrated()
    clients = [
        replace(one, persona="qa" if i < 6 else "") for i, one in enumerate(known_clients(old, traffic({2: 200})))
    ]
    new = recalibrate(old, clients, "clients").baseline.calibration
    assert new.clients == 34
    assert [p.name for p in new.personas] == ["qa"]
    assert new.personas[0].ordered[-1] > new.ordered[-1]
