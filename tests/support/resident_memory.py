"""How much memory a process of its own takes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


def watched(process: subprocess.Popen[bytes]) -> int:
    """Most that the process has resident until it ends, in KiB.

    Asked while it runs: what `wait4` tells of a child starts at the size of the process that forked it.
    """
    peak_kib = 0
    while process.poll() is None:
        peak_kib = max(peak_kib, _peak_kib(process.pid))
        time.sleep(0.05)
    return peak_kib


def _peak_kib(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
