"""The table of signals as arrays, for the fold, the archive and the profiles.

Rules: `signals.py` declares the signals and fills this table. The table lies below it, so that compiled code does not depend on the
meaning of a signal.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Form(IntEnum):
    """How a signal's mass follows from the count of odd queries."""

    EXCESS = 0  # odd queries beyond the allowance
    EXCESS_TIMES_SHARE = 1  # the excess times its share of the base: large only where a client is both long and odd


class SignalTable(NamedTuple):
    """The table of s signals as arrays, (s,) each.

    need          bits that a query must all carry to be counted
    sequence      counted in the sequence set instead of the odd set
    novel_base    counted among novel queries instead of all distinct ones
    form          values of `Form`
    allowance     share of its queries that an honest client may have odd
    fusing_scale  honest scale of the signal, 0 where it is not part of the fused score
    horizon_distinct  distinct queries that calibration covers; beyond them masses fade, so that a constant honest
                      odd rate does not become an alarm by living long
    """

    need: NDArray[np.uint32]
    sequence: NDArray[np.bool_]
    novel_base: NDArray[np.bool_]
    form: NDArray[np.int64]
    allowance: NDArray[np.float64]
    fusing_scale: NDArray[np.float64]
    horizon_distinct: float
