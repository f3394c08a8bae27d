"""The kafka-python whose inside we know. Whatever reaches into the library (batches, joins, parked) asks here first."""

from __future__ import annotations

from typing import Any

import kafka

from consumers.errors import Refused

SUPPORTED = "3.0."


def check_inside(holder: Any, *names: str) -> None:
    """Raises Refused unless the library is one that we know, and `holder` has what we are about to touch."""
    if not kafka.__version__.startswith(SUPPORTED) or not all(hasattr(holder, name) for name in names):
        raise Refused(f"kafka-python {kafka.__version__} is not supported: needs {SUPPORTED}x")
