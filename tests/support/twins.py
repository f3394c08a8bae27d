"""The fold and its slow twin side by side: settings for the twin, queries as it takes them, and a comparison of every field."""

from __future__ import annotations

import numpy as np
import pytest
from support import naive

from detector.features import BITS, FeatureMap, Measured
from detector.fold import Masses
from detector.profile import Profile, Shape
from detector.query import QueryBatch


def way_of(fmap: FeatureMap, table: Masses) -> naive.Way:
    """The settings of a map and a table of signals, as the twin wants them."""
    shape = Shape.of(fmap, len(table.need))
    columns = fmap.schema.columns
    low, high = [c.lower for c in columns], [c.upper for c in columns]
    ranges = [max(b - a, 1e-9) for a, b in zip(low, high, strict=True)]
    units = [[1.0] * len(low)]
    if max(fmap.scale) - min(fmap.scale) > 0.5 * max(fmap.scale):
        units += [ranges, fmap.scale.tolist()]
    raw_step = [r / 65534.0 for r in ranges]
    return naive.Way(
        masses=[
            naive.Mass(int(need), bool(path), bool(roots), bool(form), float(allowance), float(scale))
            for need, path, roots, form, allowance, scale in zip(
                table.need, table.path, table.roots_base, table.form, table.allowance, table.fusing_scale, strict=True
            )
        ],
        horizon_distinct=table.horizon_distinct,
        missing=fmap.missing_code,
        columns=naive.Columns(
            code_low=low if fmap.wide else fmap.code_low.tolist(),
            code_step=raw_step if fmap.wide else fmap.code_step.tolist(),
            lattice=fmap.lattice.tolist(),
            grain=fmap.hash_grain.tolist(),
            low=low,
            high=[-np.inf if c.kind == "categorical" else c.upper for c in columns],
            units=units,
        ),
        weight=fmap.code_weight.tolist(),
        category=fmap.code_category.tolist(),
        near=fmap.near,
        link_mode=fmap.link_mode.tolist(),
        link_bits=(fmap.link_bits[0].tolist(), fmap.link_bits[1].tolist()),
        link_level=fmap.link_level,
        top=high,
        wide=fmap.wide,
        classes=fmap.classes,
        ring=shape.ring,
        low=shape.low,
        raw_step=raw_step,
    )


def asks(batch: QueryBatch, m: Measured) -> list[naive.Ask]:
    return [
        naive.Ask(
            hash=int(m.hashes[i]),
            bits=int(m.bits[i]),
            misfit=bool(m.misfit[i]),
            cell=int(m.cells[i]),
            distance_bin=int(m.distance_bins[i]),
            margin_bin=int(m.margin_bins[i]),
            label=int(batch.labels[i]),
            weight=float(batch.weight[i]),
            time_ms=int(batch.time_ms[i]),
            z=m.z[i].tolist(),
            codes=tuple(m.codes[i].tolist()),
            raw=tuple(m.raw[i].tolist()),
        )
        for i in range(len(batch))
    ]


def check(profile: Profile, twin: naive.NaiveClient) -> None:
    """Every field: counts, sets, marks, trail, memory. Sets and counts exactly."""
    assert profile.queries == twin.queries
    assert profile.volume == pytest.approx(twin.volume, rel=1e-12)
    assert (profile.first_ms, profile.last_ms) == (min(twin.times), max(twin.times))
    assert profile.classes.tolist() == twin.classes
    assert profile.cell_counts.tolist() == twin.cells
    assert profile.distance_counts.tolist() == twin.distances
    assert profile.margin_counts.tolist() == twin.margins
    assert profile.moments.ravel().tolist() == pytest.approx([*twin.moments[0], *twin.moments[1]], rel=1e-9, abs=1e-9)
    assert dict(zip(profile.sample_hash.tolist(), profile.sample_root.tolist(), strict=True)) == twin.sample
    assert dict(zip(profile.sample_hash.tolist(), profile.sample_misfit.tolist(), strict=True)) == twin.misfits
    assert dict(zip(profile.odd_hash.tolist(), profile.odd_bits.tolist(), strict=True)) == twin.odd
    assert dict(zip(profile.path_hash.tolist(), profile.path_bits.tolist(), strict=True)) == twin.path
    for hashes in (profile.sample_hash, profile.odd_hash, profile.path_hash):
        assert hashes.tolist() == sorted(set(hashes.tolist()))
    assert profile.marks.tolist() == pytest.approx(twin.marks, rel=1e-9, abs=1e-9)
    assert list(zip(profile.trail_ms.tolist(), profile.trail_query.tolist(), strict=True)) == twin.trail
    memory = profile.memory
    assert memory is not None
    assert int(memory["ring_n"]) == twin.remembered
    assert int(memory["low_n"]) == len(twin.low)
    for kind, rows in (("ring", twin.ring), ("low", twin.low)):
        n = len(rows)
        assert memory[f"{kind}_hash"][:n].tolist() == [r.hash for r in rows]
        assert memory[f"{kind}_label"][:n].tolist() == [r.label for r in rows]
        assert memory[f"{kind}_codes"][:n].tolist() == [list(r.codes) for r in rows]


def small_table(rng: np.random.Generator) -> Masses:
    need = np.array(
        [BITS["novelty_rare"] | BITS["root"], BITS["part_rare"], BITS["stepped"] | BITS["root"], BITS["flipped"], BITS["mix_beyond"]],
        np.uint32,
    )  # fmt: skip
    return Masses(
        need=need,
        path=np.array([False, False, True, True, False]),
        roots_base=np.array([True, False, False, False, True]),
        form=np.array([1, 0, 0, 0, 0], np.int64),
        allowance=rng.uniform(0, 0.1, 5),
        fusing_scale=np.array([3.0, 0.0, 5.0, 7.0, 2.0]),
        horizon_distinct=float(rng.choice([300.0, np.inf])),
    )
