"""Files inside installed packages, which are not imported for their data."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def inside(package: str, path: str = "") -> Path:
    """A file of an installed package. Raises RuntimeError if the package is not there."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise RuntimeError(f"{package} is not installed: make install")
    return Path(found.submodule_search_locations[0]) / path
