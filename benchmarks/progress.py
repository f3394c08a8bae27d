"""What a benchmark says while it runs, one line on standard error with the time and the victim, and what it leaves."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def say(victim: str, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {victim}: {text}", file=sys.stderr, flush=True)


def publish(results: Any, path: Path | None) -> None:
    """Print the results as JSON, and write them to a file unless `path` is None, as it is after a short run."""
    text = json.dumps(results, indent=1)
    print(text)
    if path is not None:
        path.write_text(text + "\n", encoding="utf-8")
