"""A Python whose wall clock is ``SKEWED_DAYS`` off, for whole processes: put this folder on PYTHONPATH.

Runs before anything is imported. Monotonic clocks and the times of files stay right, as on a machine whose date was set wrongly.
``datetime.now`` stays right too: nothing but the text of a syslog line or a digest is made with it.
(libfaketime was tried: its sleep is wrong where the monotonic clock is not faked, as of 0.9.10.)
"""

from __future__ import annotations

import os
import time

SHIFT_S = float(os.environ["SKEWED_DAYS"]) * 86_400
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + SHIFT_S
time.time_ns = lambda: _time_ns() + int(SHIFT_S) * 1_000_000_000
