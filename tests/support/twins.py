"""The fold and its slow twin side by side: settings for the twin, queries as it takes them, and a comparison of every field."""

from __future__ import annotations

import numpy as np
import pytest
from support import naive

from detector.features import BITS, FeatureMap, Measured
from detector.profile import Profile
from detector.profile_shape import Shape
from detector.query import QueryBatch
from detector.signal_table import SignalTable


def way_of(fmap: FeatureMap, table: SignalTable) -> naive.Way:
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
            naive.Mass(int(need), bool(sequence), bool(novel), bool(form), float(allowance), float(scale))
            for need, sequence, novel, form, allowance, scale in zip(
                table.need,
                table.sequence,
                table.novel_base,
                table.form,
                table.allowance,
                table.fusing_scale,
                strict=True,
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
        common_value=fmap.common_value.tolist(),
        agreement_bits=(fmap.agreement_bits[0].tolist(), fmap.agreement_bits[1].tolist()),
        agreement_level=fmap.agreement_level,
        top=high,
        wide=fmap.wide,
        classes=fmap.classes,
        ring=shape.ring,
        reservoir=shape.reservoir,
        raw_step=raw_step,
    )


def asks(batch: QueryBatch, m: Measured) -> list[naive.Ask]:
    return [
        naive.Ask(
            hash=int(m.hashes[i]),
            bits=int(m.bits[i]),
            misfit=bool(m.misfit[i]),
            region=int(m.regions[i]),
            distance_bin=int(m.distance_bins[i]),
            label=int(batch.labels[i]),
            time_ms=int(batch.time_ms[i]),
            codes=tuple(m.codes[i].tolist()),
            raw=tuple(m.raw[i].tolist()),
        )
        for i in range(len(batch))
    ]


def check(profile: Profile, twin: naive.NaiveClient) -> None:
    """Every field: counts, sets, marks, trail, memory. Sets and counts exactly."""
    assert profile.queries == twin.queries
    assert (profile.first_ms, profile.last_ms) == (min(twin.times), max(twin.times))
    assert profile.classes.tolist() == twin.classes
    assert profile.region_counts.tolist() == twin.regions
    assert profile.distance_counts.tolist() == twin.distances
    assert dict(zip(profile.sample_hash.tolist(), profile.sample_novel.tolist(), strict=True)) == twin.sample
    assert dict(zip(profile.sample_hash.tolist(), profile.sample_misfit.tolist(), strict=True)) == twin.misfits
    assert dict(zip(profile.odd_hash.tolist(), profile.odd_bits.tolist(), strict=True)) == twin.odd
    assert dict(zip(profile.sequence_hash.tolist(), profile.sequence_bits.tolist(), strict=True)) == twin.sequence
    for hashes in (profile.sample_hash, profile.odd_hash, profile.sequence_hash):
        assert hashes.tolist() == sorted(set(hashes.tolist()))
    assert profile.maxima.tolist() == pytest.approx(twin.maxima, rel=1e-9, abs=1e-9)
    assert list(zip(profile.passage_ms.tolist(), profile.passage_query.tolist(), strict=True)) == twin.passages
    memory = profile.memory
    assert memory is not None
    assert int(memory.ring_n) == twin.remembered
    assert int(memory.reservoir_n) == len(twin.reservoir)
    for kind, rows in (("ring", twin.ring), ("reservoir", twin.reservoir)):
        n = len(rows)
        assert getattr(memory, f"{kind}_hash")[:n].tolist() == [r.hash for r in rows]
        assert getattr(memory, f"{kind}_label")[:n].tolist() == [r.label for r in rows]
        assert getattr(memory, f"{kind}_codes")[:n].tolist() == [list(r.codes) for r in rows]


def small_table(rng: np.random.Generator) -> SignalTable:
    need = np.array(
        [BITS["novelty_rare"] | BITS["novel"], BITS["part_rare"], BITS["stepped"] | BITS["novel"], BITS["flipped"], BITS["mix_beyond"]],
        np.uint32,
    )  # fmt: skip
    return SignalTable(
        need=need,
        sequence=np.array([False, False, True, True, False]),
        novel_base=np.array([True, False, False, False, True]),
        form=np.array([1, 0, 0, 0, 0], np.int64),
        allowance=rng.uniform(0, 0.1, 5),
        fusing_scale=np.array([3.0, 0.0, 5.0, 7.0, 2.0]),
        horizon_distinct=float(rng.choice([300.0, np.inf])),
    )
