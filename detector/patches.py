"""Odd patches: where in the input space the odd queries of a client lie, so coarse that near-duplicates lie in one patch.

Accounts that share the work of one theft send near-duplicates: moves away from the same seeds, blends of the same rows, rows of one
foreign source. An *odd patch* is a cell of a grid in `AXES` random directions of the whitened coordinates, one standard deviation of the
reference wide. A client keeps the `KEPT` smallest hashes of the patches that its odd queries lie in (Broder 1997: of two clients with
many patches in common, the smallest hashes are the same). Which accounts share too many is said in `patch_groups.py`.

Rules:

* Only odd queries have a patch: what is usual is shared by everybody. Low margins and misfits do not count as odd here.
* The kept patches are the smallest of all, so they depend neither on the order of the queries nor on how polls cut them. Merge is union,
  keep `KEPT`.
* The hash has no secret key, because a baseline must hold the same patches of its calibration clients. Whoever stores a patch seals it.
* Every number is computed row by row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numba as nb
import numpy as np
from numpy.typing import NDArray

from detector import kernels

AXES = 6
KEPT = 16
WIDTH = 1.0
"""Of a patch, in standard deviations of the reference."""
UNKNOWN = -1
"""Stands in a row of a table for a client of which nobody knows the patches."""
_NO_KEY = np.uint64(0)


def directions(coordinates: int) -> NDArray[np.float64]:
    """Return the random directions of the grid, (coordinates, `AXES`): signs, the same for all maps with that number of coordinates.

    Notes
    -----
    Signs do as well as normal numbers (Achlioptas 2003), and no version of a library changes them.

    Examples
    --------
    >>> bool((np.abs(directions(4)) == 0.5).all())
    True
    """
    count = coordinates * AXES
    drawn = np.frombuffer(hashlib.shake_128(b"odd patches").digest(-(-count // 8)), np.uint8)
    signs = 2.0 * np.unpackbits(drawn)[:count] - 1.0
    return np.ascontiguousarray(signs.reshape(coordinates, AXES) / (WIDTH * np.sqrt(coordinates)))


def patches_of(z: NDArray[np.float64], rows: NDArray[np.int64], axes: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return the 48-bit hash of the patch that each of some rows lies in, and 0 for all other rows.

    Parameters
    ----------
    z : (n, m) float64
        Whitened coordinates.
    rows : (k,) int64
        Of the odd queries.
    axes : (m, AXES) float64
        The `directions`.

    Returns
    -------
    (n,) uint64
    """
    found = np.zeros(len(z), np.uint64)
    if len(rows):
        steps, hashed = np.empty((len(rows), AXES)), np.empty(len(rows), np.uint64)
        _grid(z, rows, axes, steps)
        kernels.hash_rows(steps, np.ones(AXES), np.zeros(len(rows), np.uint64), _NO_KEY, _NO_KEY, hashed)
        found[rows] = np.maximum(hashed, np.uint64(1))
    return found


@nb.njit(cache=True, nogil=True)
def _grid(z, rows, axes, out):  # type: ignore[no-untyped-def]
    """Write the grid steps (k, a) in which some rows of z (n, m) lie."""
    for i in range(rows.shape[0]):
        for a in range(axes.shape[1]):
            total = 0.0
            for j in range(axes.shape[0]):
                total += z[rows[i], j] * axes[j, a]
            out[i, a] = np.floor(total + 0.5)


def smallest(who: NDArray[np.integer], patches: NDArray[np.uint64]) -> dict[int, list[int]]:
    """Return the `KEPT` smallest distinct patches of each client that has any, ascending.

    who (n,): a client for each query; patches (n,): of the queries, 0: none.

    >>> smallest(np.array([0, 1, 0, 0]), np.array([9, 0, 4, 9], np.uint64))
    {0: [4, 9]}
    """
    rows = np.flatnonzero(patches)
    if not len(rows):
        return {}
    who, patches = who[rows], patches[rows]
    order = np.lexsort((patches, who))
    who, patches = who[order], patches[order]
    new = np.append(True, (who[1:] != who[:-1]) | (patches[1:] != patches[:-1]))
    who, patches = who[new], patches[new]
    begins = np.flatnonzero(np.append(True, who[1:] != who[:-1])).tolist()
    listed = patches.tolist()
    ends = [*begins[1:], len(listed)]
    return {
        int(client): listed[begin : min(end, begin + KEPT)]
        for client, begin, end in zip(who[begins].tolist(), begins, ends, strict=True)
    }


def united(some: Sequence[int], others: Sequence[int]) -> tuple[int, ...]:
    """Return the patches of a client from two parts of its queries.

    >>> united((1, 5), (5, 2))
    (1, 2, 5)
    """
    return tuple(sorted({*some, *others})[:KEPT])


def table(clients: Sequence[Sequence[int] | None]) -> NDArray[np.int64]:
    """Return the patches of some clients, (n, `KEPT`) int64: 0 where a client has no more, `UNKNOWN` for None.

    >>> table([[7], None, []])[:, :2].tolist()
    [[7, 0], [-1, -1], [0, 0]]
    """
    out = np.zeros((len(clients), KEPT), np.int64)
    for row, mine in zip(out, clients, strict=True):
        if mine is None:
            row[:] = UNKNOWN
        else:
            row[: len(mine)] = mine
    return out


def listed(table: NDArray[np.int64]) -> list[list[int] | None]:
    """Return the rows of a `table` as lists again.

    >>> listed(table([[7], None, []]))
    [[7], None, []]
    """
    return [None if row[0] == UNKNOWN else row[row > 0].tolist() for row in table]
