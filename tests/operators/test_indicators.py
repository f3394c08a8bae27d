"""Importing indicators: bounded, replaced as a whole, ended with the last of them, and each step with its audit row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from records.test_indicators import indicator

from consumers.errors import Conflict, Missing, WrongUse
from consumers.operators import audit, indicators
from consumers.operators.audited_write import Actor
from consumers.operators.indicators import LONGEST_S, MOST_SOURCES, IndicatorImports
from consumers.records.indicators import imports_of
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore

T = "default"
MARIA = Actor("maria", "admin", T)


@pytest.fixture
def imports(new_store: Callable[[], EmbeddedStore], secrets: Secrets) -> IndicatorImports:
    return IndicatorImports(new_store(), secrets)


def until(imports: IndicatorImports, s: int) -> dict[str, Any]:
    return {"valid_until_s": int(imports.now_s()) + s}


def test_an_import_takes_the_place_of_the_one_before(
    imports: IndicatorImports,
) -> None:
    imports.take(MARIA, "peer", [indicator("a", "ip:1", **until(imports, 500))], "d1")
    imports.take(MARIA, "peer", [indicator(n, "ip:2", **until(imports, s)) for n, s in (("b", 900), ("c", 400))], "d2")
    (stored,) = imports_of(imports.store, T)
    assert [one.id for one in stored.indicators] == ["b", "c"]
    (entry,) = imports.store.operator_entries("indicators", T)[1]
    assert entry.expires_s == stored.until_s == stored.indicators[0].valid_until_s
    assert imports_of(imports.store, "another") == ()
    assert [one.id for one in imports.drop(MARIA, "peer").indicators] == ["b", "c"]
    assert imports_of(imports.store, T) == ()
    with pytest.raises(Missing):
        imports.drop(MARIA, "peer")
    log = b"".join(line for _, line in audit.stored_rows(imports.store))
    assert [log.count(f'"action":"indicators.{act}"'.encode()) for act in ("import", "drop")] == [2, 1]
    assert b"source:peer indicators:2 digest:d2" in log
    assert audit.verify(imports.store, audit.Seal(imports.secrets)).findings == []


def test_everything_is_bounded(imports: IndicatorImports, monkeypatch: pytest.MonkeyPatch) -> None:
    made = imports.take(MARIA, "peer", [indicator("a", "ip:1", **until(imports, 10 * LONGEST_S))], "d")
    assert made.until_s <= imports.now_s() + LONGEST_S + 1
    for source in ("", "two words", "<b>", "x" * 65):
        with pytest.raises(WrongUse):
            imports.take(MARIA, source, [indicator("a", "ip:1")], "d")
    with pytest.raises(WrongUse):
        imports.take(MARIA, "empty", [], "d")
    for name, most in (("MOST_INDICATORS", 2), ("MOST_HASHES", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(indicators, name, most)
            with pytest.raises(WrongUse):
                imports.take(MARIA, "large", [indicator(str(i), "ip:1", "ip:2") for i in range(3)], "d")
    for i in range(MOST_SOURCES - 1):
        imports.take(MARIA, f"peer-{i}", [indicator("a", "ip:1", **until(imports, 500))], "d")
    with pytest.raises(Conflict):
        imports.take(MARIA, "one-more", [indicator("a", "ip:1", **until(imports, 500))], "d")
    imports.take(MARIA, "peer-3", [indicator("b", "ip:1", **until(imports, 500))], "d")
