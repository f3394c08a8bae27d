"""The operator cell after its store lost a tail and went on: what was lost is not taken for what came instead."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from support.store_backings import RedisDatabase

from consumers.errors import Rewound
from consumers.store import Entry, Operation, Store, layout
from consumers.store.embedded import EmbeddedStore

Saved = Callable[[], Callable[[], None]]
"""Saves the store; what it returns puts it back."""


def put(key: str) -> Operation:
    return Operation([Entry("acme", "allow", key, b"v")], audit=[key.encode()])


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def losing(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A store, and how to save it."""
    if request.param == "sqlite":
        path = tmp_path / "store.sqlite"
        store = EmbeddedStore(path)

        def save() -> Callable[[], None]:
            kept = sqlite3.connect(":memory:")
            with contextlib.closing(sqlite3.connect(path)) as db:
                db.backup(kept)

            def put_back() -> None:
                with contextlib.closing(sqlite3.connect(path)) as db:
                    kept.backup(db)

            return put_back

        yield store, save
        store.close()
        return
    database = RedisDatabase(request.getfixturevalue("redis_url"))
    raw: Any = redis.Redis.from_url(request.getfixturevalue("redis_url"))

    def save_keys() -> Callable[[], None]:
        kept = {key: raw.dump(key) for key in raw.scan_iter(match=f"{layout.operator_prefix()}*")}

        def put_back() -> None:
            for key in raw.scan_iter(match=f"{layout.operator_prefix()}*"):
                raw.delete(key)
            for key, value in kept.items():
                raw.restore(key, 0, value)

        return put_back

    yield database.open(), save_keys
    database.close()


def history(store: Store, save: Saved) -> tuple[int, int]:
    """Two changes, the second is lost, another comes instead; the revisions of both."""
    first = store.operate(0, put("kept"))
    put_back = save()
    lost = store.operate(first, put("lost"))
    put_back()
    return lost, store.operate(store.operator_entries("allow")[0], put("instead"))


def test_a_change_that_was_made_on_lost_ones_is_refused(losing: tuple[Store, Saved]) -> None:
    store, save = losing
    lost, now = history(store, save)
    assert lost != now
    with pytest.raises(Rewound) as error:
        store.operate(lost, put("late"))
    assert error.value.offset == now
    assert [e.key for e in store.operator_entries("allow")[1]] == ["instead", "kept"]


def test_who_read_lost_changes_begins_again(losing: tuple[Store, Saved]) -> None:
    store, save = losing
    lost, now = history(store, save)
    for _ in range(3):
        now = store.operate(now, Operation(audit=[b"more"]))
    later = now + 5 * layout.OPERATOR_STEP
    assert store.operator_changes(lost, 10) is None, "lower or higher than ours: it is none of ours"
    assert store.operator_changes(later, 10) is None
    assert store.operator_changes(now, 10) == (now, [])
    changes = store.operator_changes(0, 10)
    assert changes is not None
    assert [e.key for e in changes[1]] == ["kept", "instead"]


def test_every_revision_of_ours_can_be_read_on_from(losing: tuple[Store, Saved]) -> None:
    store, _ = losing
    known = [0]
    for i in range(20):
        known.append(store.operate(known[-1], put(str(i)) if i % 3 else Operation(audit=[b"row"])))
    assert known == sorted(set(known))
    for i, revision in enumerate(known):
        changes = store.operator_changes(revision, 100)
        assert changes is not None
        assert len(changes[1]) == sum(1 for j in range(i, 20) if j % 3)
        if revision + 1 not in known:
            assert store.operator_changes(revision + 1, 100) is None


def test_a_counter_would_not_notice(losing: tuple[Store, Saved], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(layout, "OPERATOR_STEP", 1)
    store, save = losing
    lost, now = history(store, save)
    assert lost == now
    assert store.operator_changes(lost, 10) == (now, []), "what came instead is never told"
    assert store.operate(lost, put("late"))
