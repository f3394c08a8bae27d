"""Fixtures of the API's tests: one seeded service each, see `apiworld`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apiworld
import pytest


@pytest.fixture
def served(tmp_path: Path) -> Iterator[apiworld.World]:
    with apiworld.world(tmp_path) as world:
        yield world
