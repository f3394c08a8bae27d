"""Fixtures of the shell's tests: secrets, an embedded store, the pure halves around one small baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import victims

from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline


@pytest.fixture(scope="session")
def baseline() -> Baseline:
    return victims.baseline()


@pytest.fixture(scope="session")
def secrets() -> Secrets:
    return Secrets(b"s" * 16, b"p" * 32, b"k" * 32)


@pytest.fixture
def new_store(tmp_path: Path, secrets: Secrets) -> Iterator[Callable[[], EmbeddedStore]]:
    """Factory of prepared stores in files of their own."""
    opened: list[EmbeddedStore] = []

    def create() -> EmbeddedStore:
        store = EmbeddedStore(tmp_path / f"store{len(opened)}.sqlite")
        store.prepare(secrets.key_id)
        opened.append(store)
        return store

    yield create
    for store in opened:
        store.close()
