"""Compiled row kernels equal their slow twins, on random rows and on the rows that break things, in whatever batch they come."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from support import naive
from support.references import KEY, REFERENCES, fitted_map, life

from detector import kernels
from detector.errors import CorruptBaseline
from detector.features import Measured
from detector.trees import Forest, Trees

Rows = NDArray[np.float64]


# ------------------------------------------------------------------ hashing

SIPHASH_2_4 = """
    310e0edd47db6f72 fd67dc93c539f874 5a4fa9d909806c0d 2d7efbd796666785 b7877127e09427cf 8da699cd64557618 cee3fe586e46c9cb
    37d1018bf50002ab 6224939a79f5f593
""".split()
"""Published outputs (Aumasson & Bernstein's reference code): key 00…0f, messages of 0, 1, 2 … bytes 00, 01, 02 …"""


@pytest.mark.parametrize(("length", "expected"), list(enumerate(SIPHASH_2_4)))
def test_the_rounds_are_those_of_the_published_siphash_2_4(length: int, expected: str) -> None:
    digest = naive.siphash(bytes(range(length)), bytes(range(16)), 2, 4)
    assert digest.to_bytes(8, "little").hex() == expected


def test_the_example_of_the_papers_appendix() -> None:
    assert naive.siphash(bytes(range(15)), bytes(range(16)), 2, 4) == 0xA129CA6149BE45E5


def hashed(x: Rows, grain: Rows, key: bytes = KEY) -> list[int]:
    out = np.empty(len(x), np.uint64)
    k0, k1 = np.frombuffer(key, "<u8", 2)
    kernels.hash_rows(x, grain, np.zeros(len(x), np.uint64), k0, k1, out)
    return [int(h) for h in out]


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes with another function")
def test_siphash_1_3_is_the_one_that_python_itself_uses() -> None:
    """With PYTHONHASHSEED=0 the key of CPython's own SipHash-1-3 is sixteen zero bytes: an oracle that we did not write."""
    rows = [[1, 2, 3], [0, 0, 0], [-1, 2**40, -(2**40)], [5, -7, 11]]
    code = f"for r in {rows}: print(hash(b''.join(c.to_bytes(8, 'little', signed=True) for c in r)) % 2**64)"
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = [int(line) for line in said.stdout.split()]
    assert hashed(np.array(rows, np.float64), np.ones(3), bytes(16)) == [h >> 16 for h in expected]


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.floats(-1e6, 1e6)),
    st.sampled_from([1.0, 0.25, 0.01, 1e-3, 3.7]),
    st.binary(min_size=16, max_size=16),
)
def test_hashes_equal_the_twin(x: Rows, grain: float, key: bytes) -> None:
    grains = np.full(x.shape[1], grain)
    assert hashed(x, grains, key) == [naive.content_hash(row, grains.tolist(), key) for row in x.tolist()]


def test_half_steps_round_to_even_and_minus_zero_is_zero() -> None:
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, -0.0]])
    assert hashed(x, np.ones(6)) == hashed(np.array([[0.0, 2.0, 2.0, 0.0, -2.0, 0.0]]), np.ones(6))


def test_every_column_and_every_key_bit_counts() -> None:
    x = np.tile(np.arange(6.0), (7, 1))
    x[np.arange(1, 7), np.arange(6)] += 1
    assert len(set(hashed(x, np.ones(6)))) == 7
    keys = {bytes(16)} | {(1 << b).to_bytes(16, "little") for b in range(128)}
    assert len({hashed(x[:1], np.ones(6), k)[0] for k in keys}) == 129


# ------------------------------------------------------------------ projection


@pytest.mark.parametrize("name", REFERENCES)
def test_projection_equals_the_twin(name: str) -> None:
    fmap = fitted_map(name)
    x = fmap.complete(life(name, 60, np.random.default_rng(1)).inputs)
    z, residual, *_ = fmap.locate(x)
    for row, got_z, got_residual in zip(x.tolist(), z.tolist(), residual.tolist(), strict=True):
        expanded = naive.expand(row, fmap.center.tolist(), fmap.scale.tolist(), fmap.category_counts.tolist())
        want_z, want_residual = naive.project(expanded, fmap.basis.tolist(), fmap.spread.tolist())
        assert got_z == pytest.approx(want_z, rel=1e-9, abs=1e-9)
        assert got_residual == pytest.approx(want_residual, rel=1e-6, abs=1e-6)


def test_far_values_are_clipped_and_unknown_categories_are_nothing() -> None:
    fmap = fitted_map("people")
    x = fmap.center + 20 * fmap.scale
    other = fmap.center + 8 * fmap.scale
    for j in np.flatnonzero(fmap.category_counts):
        x[j], other[j] = fmap.category_counts[j], -1
    z, residual, *_ = fmap.locate(np.stack([x, other]))
    assert (z[0] == z[1]).all()
    assert residual[0] == residual[1]


# ------------------------------------------------------------------ nearest neighbour


def nearest(z: Rows, reference: NDArray[np.float32], skip: list[int]) -> list[tuple[float, int]]:
    distance, index = np.empty(len(z)), np.empty(len(z), np.int64)
    columns = np.ascontiguousarray(reference.T, np.float32)
    kernels.nearest_rows(z, columns, np.array(skip, np.int64), distance, index)
    return list(zip(distance.tolist(), index.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 6))
def test_the_first_of_equally_near_rows_wins(seed: int, rows: int, axes: int) -> None:
    """On a small lattice every distance is exact, and most are ties; duplicates too."""
    rng = np.random.default_rng(seed)
    reference = rng.integers(-2, 3, (rows, axes)).astype(np.float32)
    z = rng.integers(-3, 4, (20, axes)).astype(np.float64)
    skip = rng.integers(-1, rows, 20).tolist()
    want = [naive.nearest(row, reference.tolist(), s) for row, s in zip(z.tolist(), skip, strict=True)]
    got = nearest(z, reference, skip)
    assert [i for _, i in got] == [i for _, i in want]
    assert [d for d, _ in got] == pytest.approx([d for d, _ in want], rel=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_neighbours_of_a_fitted_map_equal_the_twin(name: str) -> None:
    fmap = fitted_map(name)
    z, _, distance, index = fmap.locate(fmap.complete(life(name, 25, np.random.default_rng(2)).inputs))
    reference = fmap.neighbours.T.tolist()
    for row, got, at in zip(z.tolist(), distance.tolist(), index.tolist(), strict=True):
        rounded = [naive.single(v) for v in row]
        want, _ = naive.nearest(rounded, reference, -1)
        mine, _ = naive.nearest(rounded, [reference[at]], -1)
        assert got == pytest.approx(want, rel=1e-4, abs=1e-5)
        assert mine == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_a_row_left_out_has_another_neighbour() -> None:
    reference = np.array([[0, 0], [3, 4]], np.float32)
    assert nearest(np.zeros((2, 2)), reference, [-1, 0]) == [(0.0, 0), (5.0, 1)]


def test_a_row_infinitely_far_from_all_has_no_neighbour() -> None:
    assert nearest(np.array([[1e30, 0.0]]), np.zeros((3, 2), np.float32), [-1]) == [(np.inf, -1)]


# ------------------------------------------------------------------ levels


def test_levels_mark_what_is_above_them_and_known() -> None:
    odd = np.array([1.0, 2.0, 3.0, 9.0, np.nan, np.inf])
    unknown = np.array([False, False, False, True, False, False])
    bits = np.array([1, 0, 0, 0, 0, 0], np.uint32)
    kernels.mark_levels(odd, unknown, np.array([1.0, 2.0]), np.uint32(4), bits)
    assert bits.tolist() == [1, 4, 4 | 8, 0, 0, 4 | 8]


# ------------------------------------------------------------------ trees


def as_arrays(trees: list[naive.Node], bias: float) -> Trees:
    """Flat nodes, children behind their parents."""
    flat: list[tuple[int, float, int, int, float]] = []

    def put(node: naive.Node) -> int:
        at = len(flat)
        flat.append((0, 0.0, -1, -1, node.value))
        if node.left is not None and node.right is not None:
            left, right = put(node.left), put(node.right)
            flat[at] = (node.feature, node.threshold, left, right, 0.0)
        return at

    roots = [put(t) for t in trees]
    feature, threshold, left, right, value = zip(*flat, strict=True)
    return Trees(
        bias,
        np.array(roots, np.int32),
        np.array(feature, np.int32),
        np.array(threshold, np.float64),
        np.array(left, np.int32),
        np.array(right, np.int32),
        np.array(value, np.float64),
    )


def a_tree(rng: np.random.Generator, columns: int, depth: int) -> naive.Node:
    if depth == 0 or rng.random() < 0.2:
        return naive.Node(value=float(rng.normal()))
    feature, threshold = int(rng.integers(columns)), float(rng.integers(-2, 3))
    return naive.Node(feature, threshold, a_tree(rng, columns, depth - 1), a_tree(rng, columns, depth - 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_trees_equal_the_twin_and_a_value_on_the_threshold_goes_left(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    models = [[a_tree(rng, 3, 4) for _ in range(count)] for _ in range(3)]
    arrayed = [as_arrays(trees, 0.25) for trees in models]
    x = rng.integers(-3, 4, (150, 3)).astype(np.float64)
    x[rng.random(x.shape) < 0.05] = np.inf
    together = Forest.of(arrayed).score(x)
    for trees, alone, scores in zip(models, arrayed, together, strict=True):
        alone.check(3)
        assert scores.tolist() == [
            functools.reduce(lambda a, t: a + naive.walk(t, row), trees, 0.25) for row in x.tolist()
        ]
        assert alone.score(x).tolist() == scores.tolist()
        assert alone.score(x[77:78]).tolist() == scores[77:78].tolist()


def test_every_leaf_of_a_full_tree_has_a_place_and_one_more_is_refused() -> None:
    def chain(leaves: int) -> naive.Node:
        node = naive.Node(value=float(leaves))
        for k in range(leaves - 1, 0, -1):
            node = naive.Node(0, float(k), naive.Node(value=float(k)), node)
        return node

    x = np.arange(1.0, 18.0)[:, None]
    assert as_arrays([chain(16)], 0.0).score(x).tolist() == [*range(1, 17), 16]
    with pytest.raises(CorruptBaseline, match="more than 16 leaves"):
        as_arrays([chain(17)], 0.0).check(1)


# ------------------------------------------------------------------ codes and lattices


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=st.floats(-1e9, 1e9)),
    st.sampled_from([(-1.0, 0.5, 255), (0.0, 1e-9, 255), (-12.7, 0.1, 255), (100.0, 0.01, 65535), (0.0, 1.0, 1)]),
)
def test_codes_equal_the_twin(x: Rows, way: tuple[float, float, int]) -> None:
    low, step, top = way
    d = x.shape[1]
    out = np.empty(x.shape, np.uint8 if top < 256 else np.uint16)
    kernels.encode_rows(x, np.full(d, low), np.full(d, step), top, out)
    assert out.tolist() == [naive.encode(row, [low] * d, [step] * d, top) for row in x.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_shares_off_the_lattice_equal_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lattice = rng.choice([0.0, 1.0, 0.25, 0.0625], 5)
    x = rng.integers(-8, 9, (20, 5)) * 0.0625 + rng.choice([0.0, 1e-9, 5e-5, 0.01], (20, 5))
    out = np.empty(20)
    kernels.off_lattice(x, lattice, out)
    assert out.tolist() == [naive.off_lattice(row, lattice.tolist()) for row in x.tolist()]


def test_without_a_lattice_nothing_is_off_it() -> None:
    out = np.empty(3)
    kernels.off_lattice(np.random.default_rng(0).normal(size=(3, 4)), np.zeros(4), out)
    assert out.tolist() == [0.0, 0.0, 0.0]


# ------------------------------------------------------------------ what does not fit


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_the_surprise_of_misfits_equals_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = np.array([0, 3, 0, 2])
    x = np.where(levels > 0, rng.integers(0, 4, (20, 4)), rng.choice([0.5, np.nan, np.inf, -np.inf], (20, 4)))
    flags = rng.integers(0, 64, 20).astype(np.uint8)
    column_bits, kind_bits = rng.random((3, 4)), rng.random(3)
    out = np.empty(20)
    kernels.misfit_rows(x, flags, levels, column_bits, kind_bits, out)
    want = [
        naive.misfit_surprise(row, flag, levels.tolist(), column_bits.tolist(), kind_bits.tolist())
        for row, flag in zip(x.tolist(), flags.tolist(), strict=True)
    ]
    assert out.tolist() == pytest.approx(want, rel=1e-12)


def test_what_does_not_fit_keeps_its_content() -> None:
    """A missing value, an infinite one and a number that the grain can't count hash as themselves; a salt tells equal rows apart."""
    x = np.array([[0.0], [np.nan], [np.inf], [-np.inf], [1e300], [2e300]])
    assert len(set(hashed(x, np.ones(1)))) == 6
    assert hashed(-x[1:2], np.ones(1)) == hashed(x[1:2], np.ones(1))
    out = np.empty(3, np.uint64)
    k0, k1 = np.frombuffer(KEY, "<u8", 2)
    kernels.hash_rows(np.full((3, 1), np.nan), np.ones(1), np.array([0, 1, 2], np.uint64), k0, k1, out)
    assert len(set(out.tolist())) == 3


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("name", REFERENCES)
def test_a_row_measures_the_same_in_batches_of_1_7_and_2000(name: str) -> None:
    fmap = fitted_map(name)
    batch = life(name, 2000, np.random.default_rng(3))
    whole = fmap.measure(batch, KEY)
    x = fmap.complete(batch.inputs)
    oddness = fmap.oddness(x, *fmap.locate(x)[2:0:-1], fmap.surprise(batch))
    for size, upto in ((1, 150), (7, 700)):
        for start in range(0, upto, size):
            rows = np.arange(start, start + size)
            part = batch.take(rows)
            measured = fmap.measure(part, KEY)
            for f in fields(Measured):
                assert getattr(measured, f.name).tobytes() == getattr(whole, f.name)[rows].tobytes(), f.name
            x = fmap.complete(part.inputs)
            alone = fmap.oddness(x, *fmap.locate(x)[2:0:-1], fmap.surprise(part))
            for one, all_of_them in zip(alone, oddness, strict=True):
                assert (one is None) == (all_of_them is None)
                if one is not None and all_of_them is not None:
                    assert one.tobytes() == all_of_them[rows].tobytes()


@pytest.mark.parametrize("name", REFERENCES)
def test_measured_columns_have_the_documented_types(name: str) -> None:
    fmap = fitted_map(name)
    measured = fmap.measure(life(name, 9, np.random.default_rng(4)), KEY)
    types = {f.name: getattr(measured, f.name).dtype for f in fields(Measured)}
    assert types == {
        "hashes": np.uint64,
        "bits": np.uint32,
        "misfit": np.bool_,
        "regions": np.int16,
        "distance_bins": np.uint8,
        "patches": np.uint64,
        "templates": np.uint64,
        "codes": np.dtype(fmap.code_dtype),
        "raw": np.float64,
    }
    assert (measured.hashes < 2**48).all()
    assert (measured.bits < 2**18).all()


def test_the_input_is_never_changed() -> None:
    batch = life("people", 50, np.random.default_rng(5))
    before = batch.inputs.copy()
    fitted_map("people").measure(batch, KEY)
    assert batch.inputs.tobytes() == before.tobytes()
