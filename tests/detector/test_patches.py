"""Odd patches: near-duplicates share one, what is kept is bounded and independent of cuts, and the grid never changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import naive
from support.references import REFERENCES, fitted_baseline, fitted_map, life

from detector import patches
from detector.baseline_file import pack_baseline, read_baseline
from detector.calibration import NO_PATCHES
from detector.errors import CorruptBaseline
from detector.features import BITS, PATCHED

GRID = [[1, 1, -1, 1, 1, 1], [1, -1, -1, 1, 1, -1], [-1, -1, -1, -1, 1, -1]]
HASHED = [141693114141252, 57821475810170]

some_patches = st.lists(st.integers(1, 60), max_size=60)


def test_the_grid_is_the_one_that_baselines_were_fitted_with() -> None:
    """Another grid, or another hash, would make all patches of stored baselines strange."""
    axes = patches.directions(11)
    signs = np.sign(axes[:3]).astype(int).tolist()
    assert signs == GRID
    z = np.arange(22, dtype=np.float64).reshape(2, 11) / 3
    assert patches.patches_of(z, np.array([0, 1]), axes).tolist() == HASHED


def test_patches_are_those_of_the_obvious_way() -> None:
    rng = np.random.default_rng(1)
    z, rows = rng.normal(size=(40, 7)) * 3, np.arange(0, 40, 3)
    axes = patches.directions(7)
    found = patches.patches_of(z, rows, axes)
    assert not found[np.setdiff1d(np.arange(40), rows)].any()
    for row in rows.tolist():
        steps = [int(np.floor(sum(a * b for a, b in zip(z[row], axes[:, k], strict=True)) + 0.5)) for k in range(6)]
        assert int(found[row]) == naive.content_hash(steps, [1] * patches.AXES, bytes(16))


def test_near_duplicates_share_a_patch_and_strangers_do_not() -> None:
    rng = np.random.default_rng(2)
    axes = patches.directions(12)
    seeds = rng.normal(size=(50, 12)) * 2
    near = np.repeat(seeds, 8, axis=0) + rng.normal(size=(400, 12)) * 0.03
    found = patches.patches_of(near, np.arange(400), axes).reshape(50, 8)
    assert np.mean([len(np.unique(row)) == 1 for row in found]) >= 0.6
    assert len(np.unique(found[:, 0])) >= 45


@pytest.mark.parametrize("name", REFERENCES)
def test_only_queries_that_are_odd_by_their_place_have_a_patch(name: str) -> None:
    fmap = fitted_map(name)
    measured = fmap.measure(life(name, 600, np.random.default_rng(5)), bytes(16))
    odd = (measured.bits & np.uint32(PATCHED)) != 0
    assert ((measured.patches > 0) == odd).all()
    assert 0 < odd.mean() < 1
    for bit in ("margin_rare", "margin_beyond", "misfit_rare", "misfit_beyond", "misfit", "stepped"):
        assert not PATCHED & BITS[bit]


@given(some_patches, some_patches, st.integers(0, 60))
def test_what_is_kept_does_not_depend_on_cuts(mine: list[int], theirs: list[int], cut: int) -> None:
    """A set of the smallest: of the whole log, of its halves in either order, and with somebody else in between."""
    who = np.array([1] * len(mine) + [0] * len(theirs))
    shuffled = np.random.default_rng(0).permutation(len(who))
    both = np.array(mine + theirs, np.uint64)
    whole = patches.smallest(who[shuffled], both[shuffled])
    assert whole.get(1, []) == sorted(set(mine))[: patches.KEPT]
    halves = [
        patches.smallest(np.zeros(len(half), np.int64), np.array(half, np.uint64)).get(0, [])
        for half in (mine[:cut], mine[cut:])
    ]
    assert list(patches.united(*halves)) == list(patches.united(*halves[::-1])) == whole.get(1, [])


def test_queries_without_a_patch_are_nobodys() -> None:
    assert patches.smallest(np.array([0, 1]), np.zeros(2, np.uint64)) == {}


def test_a_baseline_holds_the_patches_of_its_calibration_clients_and_older_ones_none() -> None:
    baseline = fitted_baseline("people")
    held = baseline.calibration.patches
    assert held.shape == (len(baseline.calibration.final), patches.KEPT)
    assert any(patches.listed(held)), "some of them are odd somewhere"
    assert (read_baseline(pack_baseline(baseline)).calibration.patches == held).all()
    older = replace(baseline, calibration=replace(baseline.calibration, patches=NO_PATCHES))
    assert len(read_baseline(pack_baseline(older)).calibration.patches) == 0
    assert older.calibration_version == baseline.calibration_version, "profiles go on"
    for wrong in (held[:-1], held - 2, held.astype(np.float64)):
        with pytest.raises(CorruptBaseline):
            read_baseline(
                pack_baseline(replace(baseline, calibration=replace(baseline.calibration, patches=wrong)))  # type: ignore[arg-type]
            )
