"""What a benchmark says while it runs: one line on standard error, with the time and the victim."""

from __future__ import annotations

import sys
import time


def say(victim: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {victim}: {text}", file=sys.stderr, flush=True)
