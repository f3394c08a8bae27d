"""The baseline: fitted on small real references, kept in bytes that are refused unless they are exactly what was written."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.references import (
    KEY,
    REFERENCES,
    answered,
    batch_of,
    fitted_baseline,
    life,
    quick_training,
    reference_of,
    schema_of,
)

from detector.baseline import Baseline
from detector.baseline_file import FORMAT, pack_baseline, read_baseline
from detector.calibration import FEWEST_TOOLS, Calibration, Tools
from detector.errors import CorruptBaseline, UnfittedModel
from detector.features import ARRAYS, BITS, MEASURES, FeatureMap, margins
from detector.fitting.baseline import (
    MIN_CLIENTS,
    USUAL_A_CLIENT,
    FittedClients,
    Rehearsed,
    fit_baseline,
    usual_rows,
)
from detector.fitting.feature_map import raise_levels
from detector.signals import BY_ANSWER, FUSED, SIGNALS, TABLE_VERSION, fuse
from detector.trees import Trees

FRONT = struct.Struct("<4sHI")


def refusal(blob: bytes) -> str:
    """Why the bytes are refused, in one line; the test fails if they are not, or in another way."""
    with pytest.raises(CorruptBaseline) as refused:
        read_baseline(blob)
    said = str(refused.value)
    assert said
    assert "\n" not in said
    assert len(said) < 300
    return said


def not_refused(blobs: Iterable[tuple[str, bytes]], expected: str = "", unwanted: tuple[str, ...] = ()) -> list[str]:
    """``name: what happened`` for each file that is not refused in one short line that says `expected` and nothing of `unwanted`."""
    offenders = []
    for name, blob in blobs:
        try:
            read_baseline(blob)
        except CorruptBaseline as error:
            reason = str(error)
            plain = 0 < len(reason) < 300 and "\n" not in reason
            if not plain or expected not in reason or any(words in reason for words in unwanted):
                offenders.append(f"{name}: refused by {reason!r}")
        except Exception as error:
            offenders.append(f"{name}: {type(error).__name__}")
        else:
            offenders.append(f"{name}: read")
    return offenders


def sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


def opened(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and array bytes."""
    _, _, length = FRONT.unpack_from(blob)
    return json.loads(blob[FRONT.size : FRONT.size + length]), blob[FRONT.size + length : -32]


def forged(header: object, arrays: bytes) -> bytes:
    """A file with a right checksum around whatever header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return sealed(FRONT.pack(b"QWBL", FORMAT, len(text)) + text + arrays)


# ------------------------------------------------------------------ fitting


@pytest.mark.parametrize("name", REFERENCES)
def test_bytes_round_trip_exactly_and_measure_the_same(name: str) -> None:
    baseline = fitted_baseline(name)
    blob = pack_baseline(baseline)
    read = read_baseline(blob)
    assert pack_baseline(read) == blob
    assert (read.model_id, read.map_id, read.calibration_version) == (
        name,
        baseline.map_id,
        baseline.calibration_version,
    )
    assert (read.notes, read.facts, read.map.schema) == (baseline.notes, baseline.facts, baseline.map.schema)
    batch = life(name, 80, np.random.default_rng(50))
    one, two = baseline.map.measure(batch, KEY), read.map.measure(batch, KEY)
    for field in one.__dataclass_fields__:
        assert getattr(one, field).tobytes() == getattr(two, field).tobytes()


@pytest.mark.parametrize("name", REFERENCES)
def test_honest_queries_are_rarely_odd_and_rubbish_is(name: str) -> None:
    """About one honest query in a hundred a measure, up to what the oddest clients add; noise almost always."""
    baseline, reference = fitted_baseline(name), reference_of(name)
    honest = baseline.map.measure(reference.traffic, KEY).bits
    columns = reference.schema.columns
    low, high = np.array([c.lower for c in columns]), np.array([c.upper for c in columns])
    noise = np.random.default_rng(51).uniform(low, high, (300, len(columns)))
    odd = baseline.map.measure(batch_of(noise), KEY).bits
    rare = sum(BITS[f"{m}_rare"] for m in MEASURES if m not in ("margin", "lattice"))
    for m in MEASURES:
        if m not in ("margin", "lattice"):
            assert np.mean(honest & BITS[f"{m}_rare"] != 0) <= 0.06, m
    assert np.mean(odd & rare != 0) > 0.9


@pytest.mark.parametrize("name", REFERENCES)
def test_beyond_is_never_without_rare(name: str) -> None:
    bits = fitted_baseline(name).map.measure(life(name, 400, np.random.default_rng(52)), KEY).bits
    for m in MEASURES:
        rare, beyond = bits & BITS[f"{m}_rare"] != 0, bits & BITS[f"{m}_beyond"] != 0
        assert not np.any(beyond & ~rare), m


def test_fitting_again_with_the_same_seed_gives_the_same_bytes() -> None:
    reference = reference_of("prices")

    def fit(seed: int) -> bytes:
        with quick_training():
            rng = np.random.default_rng(seed)
            fitted, _ = fit_baseline("m", reference.schema, reference.batch, reference.traffic, rng=rng)
            return pack_baseline(fitted)

    assert fit(3) == fit(3)
    assert fit(3) != fit(4)


def test_labels_only_and_regressions_have_no_margin() -> None:
    for name in ("cancer", "prices"):
        baseline, reference = fitted_baseline(name), reference_of(name)
        measured = baseline.map.measure(reference.traffic, KEY)
        assert not np.any(measured.bits & (BITS["margin_rare"] | BITS["margin_beyond"]))
        assert np.isnan(margins(reference.traffic.probabilities)).all()
    known = margins(reference_of("people").traffic.probabilities)
    assert ((known >= 0) & (known <= 1)).all()


def test_a_narrow_margin_is_odd() -> None:
    fmap = fitted_baseline("people").map
    rows = reference_of("people").batch.inputs[:3]
    p = np.array([[0.5, 0.5], [0.99, 0.01], [np.nan, np.nan]], np.float32)
    measured = fmap.measure(batch_of(rows, labels=np.array([0, 0, 0], np.int32), probabilities=p), KEY)
    assert (measured.bits & BITS["margin_rare"] != 0).tolist() == [True, False, False]
    assert margins(p).tolist() == pytest.approx([0.0, 0.98, np.nan], abs=1e-6, nan_ok=True)


def test_a_value_in_a_column_that_was_always_the_same_is_seen() -> None:
    fmap = fitted_baseline("people").map
    row = reference_of("people").batch.inputs[:1]
    moved = row.copy()
    moved[0, 7] = 8.0
    _, before, *_ = fmap.locate(row)
    _, after, *_ = fmap.locate(moved)
    assert after[0] > before[0]
    one, two = fmap.measure(batch_of(row), KEY), fmap.measure(batch_of(moved), KEY)
    assert one.hashes[0] != two.hashes[0]
    assert (one.codes[0, 7], two.codes[0, 7]) == (0, fmap.missing_code - 1)


def test_a_column_of_continuous_noise_has_no_lattice_and_a_column_of_cents_has() -> None:
    columns = reference_of("people").schema.columns
    assert [c.grain for c in columns[:6]] == [1.0, 1.0, columns[2].grain, 0.01, 0.0, 0.0]


def test_too_little_is_refused_by_number() -> None:
    reference = reference_of("prices")
    few = reference.traffic.take(np.flatnonzero(reference.traffic.who < MIN_CLIENTS - 1))
    with pytest.raises(UnfittedModel, match=rf"{MIN_CLIENTS - 1} clients"):
        fit_baseline("m", reference.schema, reference.batch, few, rng=np.random.default_rng(0))
    same = reference.batch.take(np.tile(np.arange(49), 5))
    with pytest.raises(UnfittedModel, match="50 distinct rows"):
        fit_baseline("m", reference.schema, same, reference.traffic, rng=np.random.default_rng(0))


def test_notes_say_where_the_calibration_comes_from() -> None:
    reference = reference_of("prices")
    with quick_training():
        simulated, _ = fit_baseline(
            "m",
            reference.schema,
            reference.batch,
            reference.traffic,
            rng=np.random.default_rng(0),
            simulated=frozenset(reference.traffic.clients),
        )
    assert simulated.notes[0].startswith("UNCALIBRATED")
    assert not simulated.calibration.calibrated
    real = fitted_baseline("prices")
    assert real.notes[0] == "calibrated on 40 real clients"
    assert real.facts["reference_rows"] == 250
    assert real.facts["honest_distinct"] == real.calibration.distinct


@pytest.mark.parametrize("labels", [1, 300])
def test_a_model_of_one_class_or_of_more_than_are_counted_fits(labels: int) -> None:
    x = np.random.default_rng(53).normal(size=(500, 3))
    traffic = answered(x, labels, (np.arange(500) % 25).astype(np.int32))
    with quick_training():
        baseline, _ = fit_baseline(
            "m", schema_of(x, [str(k) for k in range(labels)]), answered(x[:250], labels), traffic,
            rng=np.random.default_rng(0),
        )  # fmt: skip
    assert baseline.map.classes == min(256, labels)
    assert read_baseline(pack_baseline(baseline)).map_id == baseline.map_id


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_raised_levels_leave_at_most_the_share_above_and_never_fall(seed: int, n: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    fmap = replace(fitted_baseline("prices").map, levels=np.tile([1.0, 2.0], (len(MEASURES), 1)))
    odd, weight = rng.integers(0, 6, n).astype(np.float64), rng.uniform(0.1, 1, n)
    raise_levels(fmap, [odd] + [None] * (len(MEASURES) - 1), weight, share)
    assert weight[odd > fmap.levels[0, 0]].sum() / weight.sum() <= share + 1e-12
    assert fmap.levels[0, 0] >= 1.0
    assert fmap.levels[0, 1] >= max(2.0, fmap.levels[0, 0])
    assert (fmap.levels[1:] == [1.0, 2.0]).all()


# ------------------------------------------------------------------ identity


def a_null() -> Calibration:
    maxima = np.outer(np.arange(30), np.ones(len(SIGNALS))).astype(np.float32)
    return Calibration(maxima, np.full(len(SIGNALS), 12.0), np.arange(30.0), np.arange(30.0) / 2, 100.0, 3.0, True)


def test_the_map_keeps_its_identity_whatever_is_calibrated_or_said() -> None:
    baseline = fitted_baseline("people")
    other = replace(baseline, calibration=a_null(), notes=("another",), model_id="another")
    assert other.map_id == baseline.map_id
    assert other.calibration_version != baseline.calibration_version
    assert len(bytes.fromhex(baseline.map_id)) == len(bytes.fromhex(baseline.calibration_version)) == 8


def test_every_array_of_the_map_is_part_of_its_identity() -> None:
    fmap = fitted_baseline("people").map

    def with_one_changed(name: str) -> FeatureMap:
        array = getattr(fmap, name).copy()
        array.flat[array.size // 2] = array.flat[array.size // 2] + 1 if np.isfinite(array.flat[array.size // 2]) else 0
        return replace(fmap, **{name: array})

    assert len(ARRAYS) >= 25
    assert [name for name in ARRAYS if with_one_changed(name).map_id == fmap.map_id] == []


def test_schema_nearness_and_trees_are_part_of_the_maps_identity() -> None:
    fmap = fitted_baseline("people").map
    schema = replace(fmap.schema, labels=("yes", "no"))
    tree = fmap.trees["part"]
    trees = [
        {**fmap.trees, "part": replace(tree, threshold=tree.threshold + 1)},
        {**fmap.trees, "part": replace(tree, value=-tree.value)},
        {**fmap.trees, "part": fmap.trees["mix"], "mix": tree},
    ]
    others = [replace(fmap, schema=schema), replace(fmap, near=fmap.near * 2), *(replace(fmap, trees=t) for t in trees)]
    assert len({fmap.map_id, *(o.map_id for o in others)}) == 6


def test_a_calibration_has_the_version_of_what_the_maxima_depend_on() -> None:
    calibration = a_null()
    assert calibration.version == a_null().version
    assert replace(calibration, days=9.0).version == calibration.version
    changed = [
        replace(calibration, lifetime_maxima=calibration.lifetime_maxima + 1),
        replace(calibration, scale=calibration.scale + 1),
        replace(calibration, ordered=calibration.ordered + 1),
        replace(calibration, free=calibration.free + 1),
        replace(calibration, distinct=9.0),
        replace(calibration, calibrated=False),
    ]
    assert len({calibration.version, *(c.version for c in changed)}) == 7


# ------------------------------------------------------------------ damage


def regions(blob: bytes) -> dict[str, range]:
    _, _, length = FRONT.unpack_from(blob)
    return {
        "magic": range(4),
        "version": range(4, 6),
        "length": range(6, FRONT.size),
        "header": range(FRONT.size, FRONT.size + length),
        "arrays": range(FRONT.size + length, len(blob) - 32),
        "checksum": range(len(blob) - 32, len(blob)),
    }


def test_a_flipped_byte_anywhere_is_refused() -> None:
    blob = pack_baseline(fitted_baseline("prices"))
    words = {"magic": "not a QueryWarden baseline", "version": "format version"}
    offenders = []
    for region, places in regions(blob).items():
        rng = np.random.default_rng(54)
        chosen = list(places) if len(places) <= 40 else rng.choice(np.array(places), 230, replace=False).tolist()
        for at in chosen:
            damaged = bytearray(blob)
            damaged[at] ^= int(rng.integers(1, 256))
            offenders += not_refused([(f"{region}, byte {at}", bytes(damaged))], words.get(region, "SHA-256"))
    assert offenders == []


def test_other_versions_are_refused_by_both_numbers() -> None:
    blob = bytearray(pack_baseline(fitted_baseline("prices")))
    blob[4:6] = (7).to_bytes(2, "little")
    assert "version 7" in refusal(bytes(blob))
    assert f"version {FORMAT}" in refusal(bytes(blob))
    header, arrays = opened(pack_baseline(fitted_baseline("prices")))
    said = refusal(forged({**header, "signals_version": TABLE_VERSION - 1}, arrays))
    assert f"version {TABLE_VERSION - 1};" in said
    assert f"version {TABLE_VERSION}:" in said


def test_truncated_and_extended_files_are_refused() -> None:
    blob = pack_baseline(fitted_baseline("prices"))
    rng = np.random.default_rng(55)
    for length in [
        0,
        1,
        3,
        4,
        9,
        10,
        41,
        42,
        43,
        len(blob) - 32,
        len(blob) - 1,
        *rng.integers(0, len(blob), 60).tolist(),
    ]:
        refusal(blob[:length])
    for added in (b"\0", blob):
        refusal(blob + added)
    for other in (b"", b"PK\x03\x04" + blob, b"\x80\x04" + blob, b"QWBL", b"{}" * 100):
        assert refusal(other) == "not a QueryWarden baseline"


# ------------------------------------------------------------------ hostile files, with a right checksum

Header = dict[str, Any]
ENTRY = ["map.center", "<f8", [6]]

HEADERS: dict[str, Callable[[Header], object]] = {
    "not an object": lambda h: [],
    "a number": lambda h: 3,
    "nothing": lambda h: b"",
    "not JSON": lambda h: b"{" * 50,
    "not text": lambda h: b"\xff\xfe" * 40,
    "very deep": lambda h: b"[" * 200_000 + b"]" * 200_000,
    "deep schema": lambda h: json.dumps(h).encode().replace(b'"named": false', b'"named": ' + b"[" * 100_000 + b"]" * 100_000),
    "no arrays": lambda h: {**h, "arrays": []},
    "arrays missing": lambda h: {k: v for k, v in h.items() if k != "arrays"},
    "arrays are text": lambda h: {**h, "arrays": "map.center"},
    "arrays are numbers": lambda h: {**h, "arrays": [1, 2, 3]},
    "objects": lambda h: with_entry(h, ["map.center", "|O", [6]]),
    "a structure": lambda h: with_entry(h, ["map.center", "f8,O", [6]]),
    "a list of fields": lambda h: with_entry(h, ["map.center", [["a", "O"]], [6]]),
    "text": lambda h: with_entry(h, ["map.center", "<U6", [6]]),
    "a huge item": lambda h: with_entry(h, ["map.center", "V999999999", [6]]),
    "a huge block": lambda h: with_entry(h, ["map.center", "(999999999,)f8", [6]]),
    "a broken type": lambda h: with_entry(h, ["map.center", "f8, (", [6]]),
    "complex": lambda h: with_entry(h, ["map.center", "<c16", [3]]),
    "no type": lambda h: with_entry(h, ["map.center", None, [6]]),
    "big endian": lambda h: with_entry(h, ["map.center", ">f8", [6]]),
    "a huge shape": lambda h: with_entry(h, ["map.center", "<f8", [2**40]]),
    "an overflowing shape": lambda h: with_entry(h, ["map.center", "<f8", [2**32, 2**32]]),
    "a shape beyond integers": lambda h: with_entry(h, ["map.center", "<f8", [2**80]]),
    "a negative shape": lambda h: with_entry(h, ["map.center", "<f8", [-6]]),
    "twice negative": lambda h: with_entry(h, ["map.center", "<f8", [-2, -3]]),
    "a shape of halves": lambda h: with_entry(h, ["map.center", "<f8", [1.5, 4]]),
    "a shape of text": lambda h: with_entry(h, ["map.center", "<f8", ["6"]]),
    "an array short": lambda h: {**h, "arrays": h["arrays"][:-1]},
    "an array twice": lambda h: {**h, "arrays": [*h["arrays"], h["arrays"][0]]},
    "columns missing": lambda h: {**h, "schema": {**h["schema"], "columns": []}},
    "a column more": lambda h: {**h, "schema": {**h["schema"], "columns": h["schema"]["columns"] + h["schema"]["columns"][:1]}},
    "unknown column fields": lambda h: with_column(h, surprise=1),
    "bounds of text": lambda h: with_column(h, lower="low"),
    "bounds upside down": lambda h: with_column(h, lower=5.0, upper=-5.0),
    "bounds without end": lambda h: json.dumps(with_column(h, upper=12345.5)).encode().replace(b"12345.5", b"1e999"),
    "categories from nowhere": lambda h: with_column(h, kind="categorical", categories=["a", "b"]),
    "no number": lambda h: json.dumps(h).encode().replace(b'"near": ', b'"near": NaN, "was": '),
    "nearness without end": lambda h: {**h, "near": "inf"},
    "nearness below zero": lambda h: {**h, "near": -1.0},
    "nearness is a list": lambda h: {**h, "near": []},
    "biases are a list": lambda h: {**h, "bias": []},
    "a bias without trees": lambda h: {**h, "bias": {**h["bias"], "more": 0.0}},
    "a bias that is no number": lambda h: {**h, "bias": dict.fromkeys(h["bias"], "nan")},
    "nulls are missing": lambda h: {**h, "nulls": {}},
    "honest lives of no length": lambda h: {**h, "nulls": {**h["nulls"], "distinct": "nan"}},
    "facts are text": lambda h: {**h, "facts": "none"},
    "facts of text": lambda h: {**h, "facts": {"a": "b"}},
    "another map's identity": lambda h: {**h, "map_id": "00" * 8},
    "other nulls' identity": lambda h: {**h, "nulls_version": "00" * 8},
    "signals of no version": lambda h: {**h, "signals_version": None},
}  # fmt: skip


def with_entry(header: Header, entry: list[Any]) -> Header:
    assert header["arrays"][0] == ENTRY
    return {**header, "arrays": [entry, *header["arrays"][1:]]}


def with_column(header: Header, **changes: object) -> Header:
    first, *others = header["schema"]["columns"]
    return {**header, "schema": {**header["schema"], "columns": [{**first, **changes}, *others]}}


def test_an_untouched_header_is_taken() -> None:
    """Otherwise the refusals below would prove nothing."""
    blob = pack_baseline(fitted_baseline("prices"))
    assert read_baseline(forged(*opened(blob))).map_id == fitted_baseline("prices").map_id


def test_hostile_headers_are_refused() -> None:
    header, arrays = opened(pack_baseline(fitted_baseline("prices")))
    assert len(HEADERS) >= 51
    assert not_refused((name, forged(change(header), arrays)) for name, change in HEADERS.items()) == []


def test_a_header_length_beyond_the_file_is_refused() -> None:
    blob = bytearray(pack_baseline(fitted_baseline("prices"))[:-32])
    lying = []
    for length in (0, 2**31, 2**32 - 1):
        blob[6:10] = length.to_bytes(4, "little")
        lying.append((f"length {length}", sealed(bytes(blob))))
    assert not_refused(lying) == []


def changed(fmap: FeatureMap, **arrays: Any) -> FeatureMap:
    return replace(fmap, **arrays)


def with_tree(fmap: FeatureMap, **arrays: Any) -> FeatureMap:
    return replace(fmap, trees={**fmap.trees, "part": replace(fmap.trees["part"], **arrays)})


def set_at(array: Any, at: int, value: float) -> Any:
    out = array.copy()
    out.flat[at] = value
    return out


def with_inner(fmap: FeatureMap, name: str, value: int | None) -> FeatureMap:
    """The first inner node of a tree points somewhere else, to itself for None."""
    tree: Trees = fmap.trees["part"]
    at = int(np.flatnonzero(tree.left >= 0)[0])
    return with_tree(fmap, **{name: set_at(getattr(tree, name), at, at if value is None else value)})


def with_fewer_codes(fmap: FeatureMap) -> FeatureMap:
    return changed(
        fmap, **{n: getattr(fmap, n)[:-1] for n in ("code_low", "code_step", "code_weight", "code_category")}
    )


MAPS: dict[str, Callable[[FeatureMap], FeatureMap]] = {
    "a column short": lambda f: changed(f, center=f.center[:-1]),
    "a matrix for a row": lambda f: changed(f, spread=f.spread[:, None]),
    "fewer neighbours than cells": lambda f: changed(f, neighbours=f.neighbours[:, :-1].copy()),
    "no neighbours": lambda f: changed(f, neighbours=f.neighbours[:, :0].copy(), region_of=f.region_of[:0]),
    "no axes": lambda f: changed(f, basis=f.basis[:, :0].copy(), spread=f.spread[:0], neighbours=f.neighbours[:0].copy()),
    "more cells than are counted": lambda f: changed(f, region_of=set_at(f.region_of, 0, 900), region_share=np.ones(1000)),
    "a cell below none": lambda f: changed(f, region_of=set_at(f.region_of, 0, -1)),
    "more distance bins than are counted": lambda f: changed(f, distance_edges=np.arange(200.0)),
    "no margins": lambda f: changed(f, margin_levels=np.zeros((0, 2))),
    "margins in one row": lambda f: changed(f, margin_levels=np.zeros(2)),
    "columns start elsewhere": lambda f: changed(f, start=set_at(f.start, 3, 2**40)),
    "columns start before": lambda f: changed(f, start=set_at(f.start, 3, -1)),
    "levels of no schema": lambda f: changed(f, category_counts=set_at(f.category_counts, 9, 2**40)),
    "levels below none": lambda f: changed(f, category_counts=set_at(f.category_counts, 0, -4)),
    "doubles for singles": lambda f: changed(f, neighbours=f.neighbours.astype(np.float64)),
    "whole numbers for doubles": lambda f: changed(f, center=f.center.astype(np.int64)),
    "doubles for whole numbers": lambda f: changed(f, start=f.start.astype(np.float64)),
    "no number": lambda f: changed(f, basis=set_at(f.basis, 3, np.nan)),
    "a level that is no number": lambda f: changed(f, levels=set_at(f.levels, 0, np.nan)),
    "without end": lambda f: changed(f, code_weight=set_at(f.code_weight, 0, np.inf)),
    "a grain of nothing": lambda f: changed(f, hash_grain=set_at(f.hash_grain, 0, 0.0)),
    "a grain that is no number": lambda f: changed(f, hash_grain=set_at(f.hash_grain, 0, np.nan)),
    "a step backwards": lambda f: changed(f, code_step=set_at(f.code_step, 0, -1.0)),
    "fewer codes than columns": with_fewer_codes,
    "links for other columns": lambda f: changed(f, agreement_bits=f.agreement_bits[:, :-1].copy()),
    "a tree that goes round": lambda f: with_inner(f, "left", None),
    "a tree that goes back": lambda f: with_inner(f, "right", 0),
    "a tree that leaves itself": lambda f: with_inner(f, "right", 2**30),
    "half a node": lambda f: with_inner(f, "right", -1),
    "a feature from nowhere": lambda f: with_inner(f, "feature", 14),
    "a root from nowhere": lambda f: with_tree(f, roots=set_at(f.trees["part"].roots, 0, 2**30)),
    "a root below none": lambda f: with_tree(f, roots=set_at(f.trees["part"].roots, 0, -1)),
    "roots in rows": lambda f: with_tree(f, roots=f.trees["part"].roots[:, None]),
    "values short": lambda f: with_tree(f, value=f.trees["part"].value[:-1]),
    "a value that is no number": lambda f: with_tree(f, value=set_at(f.trees["part"].value, 0, np.nan)),
    "nodes counted in doubles": lambda f: with_tree(f, left=f.trees["part"].left.astype(np.float64)),
}  # fmt: skip


def test_hostile_maps_are_refused_before_a_kernel_sees_them() -> None:
    """Identity and checksum are right, as those of a forger would be: what is left are the checks of types, shapes and indices."""
    baseline = fitted_baseline("people")
    forgeries = ((name, pack_baseline(replace(baseline, map=change(baseline.map)))) for name, change in MAPS.items())
    assert len(MAPS) >= 36
    assert not_refused(forgeries, unwanted=("identity", "SHA-256")) == []


def tools(mass: float) -> Tools:
    return Tools(("explainer",), np.full((1, len(SIGNALS)), mass), np.zeros((1, len(SIGNALS))))


CALIBRATIONS: dict[str, Callable[[Calibration], Calibration]] = {
    "a signal short": lambda n: replace(n, lifetime_maxima=n.lifetime_maxima[:, :-1].copy()),
    "lives of other clients": lambda n: replace(n, lifetime_maxima=n.lifetime_maxima[:-1].copy()),
    "lives in double": lambda n: replace(n, lifetime_maxima=n.lifetime_maxima.astype(np.float64)),
    "a scale of nothing": lambda n: replace(n, scale=set_at(n.scale, 0, 0.0)),
    "a scale short": lambda n: replace(n, scale=n.scale[:-1]),
    "maxima that are no numbers": lambda n: replace(n, ordered=set_at(n.ordered, 0, np.nan)),
    "maxima below nothing": lambda n: replace(n, free=set_at(n.free, 0, -1.0)),
    "a reach short": lambda n: replace(n, rehearsal_bound=np.ones(3)),
    "a reach of nothing": lambda n: replace(n, rehearsal_bound=np.zeros(len(SIGNALS))),
    "a reach that is no number": lambda n: replace(n, rehearsal_bound=np.full(len(SIGNALS), np.nan)),
    "tools of another kind more": lambda n: replace(n, tools=replace(n.tools, kinds=("explainer",))),
    "tools below nothing": lambda n: replace(n, tools=tools(-1.0)),
    "tools that nobody counted": lambda n: replace(n, tools=tools(1.0)),
    "maxima without end": lambda n: replace(n, free=set_at(n.free, 0, np.inf)),
}


def test_hostile_calibrations_are_refused() -> None:
    baseline = fitted_baseline("people")
    forgeries = (
        (name, pack_baseline(replace(baseline, calibration=change(baseline.calibration))))
        for name, change in CALIBRATIONS.items()
    )
    assert len(CALIBRATIONS) >= 14
    assert not_refused(forgeries, unwanted=("identity",)) == []


def test_a_file_that_is_read_would_be_listed() -> None:
    """The control of the lists above, and of the words that they ask for."""
    blob = pack_baseline(fitted_baseline("prices"))
    damaged = (("empty", b""), ("intact", blob))
    assert not_refused(damaged) == ["intact: read"]
    assert [line.partition(":")[0] for line in not_refused(damaged[:1], expected="SHA-256")] == ["empty"]
    assert [line.partition(":")[0] for line in not_refused(damaged[:1], unwanted=("QueryWarden",))] == ["empty"]


def test_a_cut_map_is_refused_for_wide_inputs_too() -> None:
    baseline = fitted_baseline("texts")
    cut = changed(baseline.map, code_low=baseline.map.code_low[:-1])
    assert "code_low" in refusal(pack_baseline(replace(baseline, map=cut)))


# ------------------------------------------------------------------------------------------------------- personas


def with_personas(share: float, name: str = "explainer") -> Baseline:
    """A baseline whose first clients are declared; they send noise, the others honest rows."""
    reference = reference_of("digits")
    traffic = reference.traffic
    declared = dict.fromkeys(traffic.clients[: int(share * len(traffic.clients))], name)
    rng = np.random.default_rng(3)
    x = traffic.inputs.copy()
    loud = np.isin(traffic.who, [i for i, c in enumerate(traffic.clients) if c in declared])
    x[loud] = rng.uniform(x.min(0), x.max(0), (int(loud.sum()), x.shape[1]))
    with quick_training():
        return fit_baseline(
            "digits", reference.schema, reference.batch, replace(traffic, inputs=x),
            rng=np.random.default_rng(9), personas=declared,
        )[0]  # fmt: skip


def test_a_persona_is_judged_by_its_own_null_and_spoils_nobody_elses() -> None:
    baseline = with_personas(0.2)
    (persona,) = baseline.calibration.personas
    assert persona.name == "explainer"
    assert len(persona.ordered) + baseline.calibration.clients == len(reference_of("digits").traffic.clients)
    value = float(persona.ordered[len(persona.ordered) // 2])
    assert value > baseline.calibration.ordered[-1]
    assert baseline.tail(True, "explainer").p(value) > 0.3 > baseline.tail(True).p(value)
    assert baseline.tail(True, "nobody declared this") is baseline.ordered
    assert any("persona explainer" in note for note in baseline.notes)


def test_personas_survive_the_file_and_change_its_identity() -> None:
    baseline = with_personas(0.2)
    again = read_baseline(pack_baseline(baseline))
    np.testing.assert_array_equal(again.calibration.personas[0].ordered, baseline.calibration.personas[0].ordered)
    np.testing.assert_array_equal(again.calibration.personas[0].free, baseline.calibration.personas[0].free)
    renamed = replace(baseline.calibration.personas[0], name="qa")
    assert replace(baseline.calibration, personas=(renamed,)).version != baseline.calibration_version
    hostile = replace(baseline.calibration.personas[0], ordered=np.full(3, np.nan))
    assert "persona" in refusal(
        pack_baseline(replace(baseline, calibration=replace(baseline.calibration, personas=(hostile,))))
    )


def test_a_persona_of_too_few_clients_is_refused() -> None:
    with pytest.raises(UnfittedModel, match="persona explainer: 4 clients"):
        with_personas(4.5 / len(reference_of("digits").traffic.clients))


# ------------------------------------------------------------------------------------------------------ influence


def with_thieves(share: float, rehearsed: bool, declared: bool = False) -> tuple[Baseline, FittedClients, set[str]]:
    """A calibration in which some clients send nothing but noise, fifty times as much as the others."""
    reference = reference_of("digits")
    traffic = reference.traffic
    thieves = traffic.clients[: round(share * len(traffic.clients))]
    rng = np.random.default_rng(3)
    noise = rng.uniform(traffic.inputs.min(0), traffic.inputs.max(0), (900 * len(thieves), traffic.inputs.shape[1]))
    who = np.repeat(np.arange(len(thieves), dtype=np.int32), 900)
    loud = answered(np.vstack([traffic.inputs, noise]), 10, np.concatenate([traffic.who, who]))
    with quick_training():
        baseline, fitted_clients = fit_baseline(
            "digits", reference.schema, reference.batch, replace(loud, clients=traffic.clients),
            rng=np.random.default_rng(9), rehearsed=Rehearsed(traffic, ("",) * len(traffic.clients)) if rehearsed else None,
            personas=dict.fromkeys(thieves, "explainer") if declared else None,
        )  # fmt: skip
    return baseline, fitted_clients, set(thieves)


def test_thieves_in_the_traffic_are_excluded_beyond_the_rehearsal_bound() -> None:
    spoilt, everybody, _ = with_thieves(0.05, rehearsed=False)
    baseline, fitted_clients, thieves = with_thieves(0.05, rehearsed=True)
    assert thieves
    assert {c for c, out in zip(fitted_clients.clients, fitted_clients.excluded, strict=True) if out} == thieves
    assert not everybody.excluded.any()
    assert baseline.calibration.clients == spoilt.calibration.clients - len(thieves)
    noise = float(fitted_clients.lifetime_maxima[fitted_clients.excluded].max())
    assert float(spoilt.calibration.lifetime_maxima.max()) == pytest.approx(noise)
    assert float(baseline.calibration.lifetime_maxima.max()) < noise / 4
    assert any("left out of the calibration" in note for note in baseline.notes)
    assert not any("left out" in note for note in spoilt.notes)


def test_a_rehearsal_that_calls_a_fifth_of_the_clients_implausible_excludes_nobody() -> None:
    baseline, fitted_clients, thieves = with_thieves(0.2, rehearsed=True)
    assert len(thieves) > 0.1 * len(fitted_clients.clients)
    assert not fitted_clients.excluded.any()
    assert baseline.calibration.clients == len(fitted_clients.clients)


def test_a_client_with_a_declared_use_calibrates_its_persona() -> None:
    baseline, fitted_clients, thieves = with_thieves(0.15, rehearsed=True, declared=True)
    assert len(baseline.calibration.personas[0].ordered) == len(thieves)
    assert not fitted_clients.excluded.any()
    assert thieves.isdisjoint(fitted_clients.clients)


def with_tools(kinds: tuple[str, ...], real: bool = True) -> Baseline:
    """A baseline of calm clients, with rehearsed ones that send noise and stand for these kinds, in turn."""
    reference = reference_of("digits")
    traffic, rng = reference.traffic, np.random.default_rng(5)
    noise = rng.uniform(traffic.inputs.min(0), traffic.inputs.max(0), (len(traffic), traffic.inputs.shape[1]))
    played = replace(traffic, inputs=noise)
    names = tuple(kinds[i % len(kinds)] for i in range(len(played.clients)))
    with quick_training():
        baseline, _ = fit_baseline(
            "digits", reference.schema, reference.batch, traffic, rng=np.random.default_rng(9),
            simulated=frozenset() if real else frozenset(traffic.clients),
            rehearsed=Rehearsed(played, names),
        )  # fmt: skip
    return baseline


def test_odd_tools_that_the_traffic_lacks_stand_among_its_clients() -> None:
    """Who does later what a rehearsed tool did is less unusual for it; who is counted are still the real clients."""
    calm, expected = with_tools(("",)), with_tools(("explainer", "robustness"))
    assert calm.calibration.clients == expected.calibration.clients
    assert len(calm.calibration.ordered) == calm.calibration.clients
    assert len(expected.calibration.ordered) == expected.calibration.clients + 2 * FEWEST_TOOLS
    np.testing.assert_array_equal(calm.calibration.lifetime_maxima, expected.calibration.lifetime_maxima)
    odd = expected.calibration.tools.lifetime_maxima.max(axis=0)
    said = [b.ordered.p(float(fuse(odd, b.calibration.scale, FUSED))) for b in (calm, expected)]
    assert said[0] < 0.001 < 0.01 < said[1]


def test_groups_are_compared_with_tools_on_usual_rows_of_the_traffic() -> None:
    """What nobody calls odd, little of each client; single clients are bounded by the tools on the reference as before."""
    reference = reference_of("digits")
    before, asked = with_tools(("explainer", "robustness")), list[int]()
    traffic, rng = reference.traffic, np.random.default_rng(6)
    usual = usual_rows(before.map, traffic)
    assert 50 <= len(usual) <= USUAL_A_CLIENT * len(traffic.clients)
    assert {row.tobytes() for row in usual} <= {row.tobytes() for row in traffic.inputs}
    noise = replace(traffic, inputs=rng.uniform(traffic.inputs.min(0), traffic.inputs.max(0), traffic.inputs.shape))
    assert len(usual_rows(before.map, noise)) < len(usual) / 10
    assert len(usual_rows(before.map, traffic, frozenset(traffic.clients))) == 0
    kinds = tuple(("explainer", "robustness")[i % 2] for i in range(len(traffic.clients)))

    def fit(rehearse_on: Callable[[NDArray[np.float64]], Rehearsed]) -> Baseline:
        with quick_training():
            return fit_baseline(
                "digits", reference.schema, reference.batch, traffic, rng=np.random.default_rng(9),
                rehearsed=Rehearsed(traffic, kinds), rehearse_on=rehearse_on,
            )[0]  # fmt: skip

    def louder(rows: NDArray[np.float64]) -> Rehearsed:
        asked.append(len(rows))
        return Rehearsed(noise, kinds)

    plain, again = fit(lambda rows: Rehearsed(traffic, kinds)).calibration, fit(louder).calibration
    assert asked == [len(usual)]
    np.testing.assert_array_equal(again.rehearsal_bound, plain.rehearsal_bound)
    np.testing.assert_array_equal(again.ordered, plain.ordered)
    assert again.tools.final.excess.sum() > 10 * plain.tools.final.excess.sum()
    with pytest.raises(ValueError, match="other tools"):
        fit(lambda rows: Rehearsed(noise, ("explainer",) * len(kinds)))


def test_rehearsed_tools_carry_no_signal_that_looks_at_answers() -> None:
    held = with_tools(("explainer",)).calibration.tools
    by_answer = np.array([s.name in BY_ANSWER for s in SIGNALS])
    assert not held.lifetime_maxima[:, by_answer].any()
    assert held.lifetime_maxima[:, ~by_answer].any()


def test_tools_stand_among_simulated_clients_too() -> None:
    """Older calibrations on simulated clients have none of them, and are read as before."""
    calibration = with_tools(("explainer",), real=False).calibration
    assert calibration.simulated == calibration.clients == len(calibration.ordered) - FEWEST_TOOLS
    assert (calibration.calibrated, calibration.real_clients) == (False, 0)


def test_tools_survive_the_file_for_the_next_calibration() -> None:
    baseline = with_tools(("explainer", "robustness"))
    again = read_baseline(pack_baseline(baseline)).calibration.tools
    assert again.kinds == baseline.calibration.tools.kinds
    np.testing.assert_array_equal(again.lifetime_maxima, baseline.calibration.tools.lifetime_maxima)
    np.testing.assert_array_equal(again.final_values, baseline.calibration.tools.final_values)


def test_the_rehearsal_bound_survives_the_file_and_leaves_answers_alone() -> None:
    baseline, _, _ = with_thieves(0.05, rehearsed=True)
    reach = baseline.calibration.rehearsal_bound
    np.testing.assert_array_equal(read_baseline(pack_baseline(baseline)).calibration.rehearsal_bound, reach)
    judged = np.isfinite(reach)
    assert {SIGNALS[i].name for i in np.flatnonzero(~judged & FUSED)} == {
        "margin_roots", "flipped", "misfit_roots", "misfit_beyond", "misfit_share",
    }  # fmt: skip
    assert (reach[judged] >= [s.floor for s, use in zip(SIGNALS, judged, strict=True) if use]).all()
