"""Fixtures of the dashboard's tests: one baseline, one seeded dashboard and one Chromium for each module that asks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from support import seeded_dashboard
from support.dashboard_people import World

from detector.baseline import Baseline

CHROMIUM = os.environ.get("QUERYWARDEN_TEST_CHROMIUM", "/usr/bin/chromium")


@pytest.fixture
def world(tmp_path: Path, baseline: Baseline) -> Iterator[World]:
    made = World(tmp_path, baseline)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, baseline: Baseline) -> Iterator[seeded_dashboard.Served]:
    """The busy week, served; tests of a module share it."""
    with seeded_dashboard.served(tmp_path_factory.mktemp("dashboard"), baseline) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real headless Chromium. Its driver runs a loop in this thread, so it lives no longer than the module."""
    if not shutil.which(CHROMIUM):
        missing = f"{CHROMIUM} is missing: tests/install-servers.sh installs it"
        if os.environ.get("CI") == "true":
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()
