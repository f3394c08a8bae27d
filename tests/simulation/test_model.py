"""The simulated store keeps the port's promises: the conformance suite runs on it, and notices each weaker variant."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from simulation.cells import Nodes
from simulation.model import ModelStore
from support.store_contract import StoreContract

from consumers.store import Store


class _OneAtATime:
    """The model knows one thread; the suite's races come in several."""

    def __init__(self, store: ModelStore, lock: threading.Lock) -> None:
        self._store, self._lock = store, lock

    def __getattr__(self, name: str) -> Any:
        there = getattr(self._store, name)

        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                answer = there(*arguments, **named)
                return iter(list(answer)) if hasattr(answer, "__next__") else answer

        return call


class ModelBacking:
    def __init__(self, kind: type[ModelStore] = ModelStore) -> None:
        self.nodes, self.kind, self.lock = Nodes(), kind, threading.Lock()

    def open(self) -> Store:
        store: Store = _OneAtATime(self.kind(self.nodes), self.lock)
        return store

    def dump(self) -> object:
        return repr((self.nodes.states, self.nodes.layout))


@pytest.fixture
def backing() -> ModelBacking:
    return ModelBacking()


class TestModelStore(StoreContract):
    pass
