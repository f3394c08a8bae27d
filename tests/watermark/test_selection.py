"""Which inputs are marked: a share of them, always the same ones, and nobody can tell which without the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.errors import CorruptState, Refused, WrongUse
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.selection import CONTROLS, MOST_FLIPPED, MarkPolicy, digest_of, quantised, select

KEY = WatermarkKey(bytes(range(32)))
POLICY = MarkPolicy(flip_share=0.005, mark_share=0.05)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_every_json_value_has_canonical_bytes(value: Any) -> None:
    assert quantised(value) == quantised(value)
    try:
        again = json.loads(json.dumps(value))
    except ValueError:
        return
    assert quantised(again) == quantised(value)


def test_the_shares_are_those_of_the_policy() -> None:
    n = 40_000
    chosen = [select(KEY, "m", quantised([math.sin(i), math.cos(1.7 * i)]), POLICY) for i in range(n)]
    counts = {
        (stream, treated): sum(c is not None and (c.stream, c.treated) == (stream, treated) for c in chosen)
        for stream in ("flip", "mark")
        for treated in (True, False)
    }
    expected = {("flip", True): 0.005, ("flip", False): 0.005 * CONTROLS, ("mark", True): 0.05, ("mark", False): 0.05}
    for what, share in expected.items():
        assert abs(counts[what] - n * share) < 4 * math.sqrt(n * share), what


def test_a_query_nearby_gets_the_same_decision_and_another_key_or_model_another() -> None:
    rows = [[math.sin(i), 1000 * math.cos(1.7 * i), i] for i in range(1, 2000)]
    decisions = [select(KEY, "m", quantised(row), POLICY) for row in rows]
    near = [select(KEY, "m", quantised([x * (1 + 1e-7) for x in row]), POLICY) for row in rows]
    assert sum(a == b for a, b in zip(decisions, near, strict=True)) >= 0.99 * len(rows)
    assert decisions != [select(KEY, "other", quantised(row), POLICY) for row in rows]
    assert decisions != [select(WatermarkKey.draw(), "m", quantised(row), POLICY) for row in rows]


def test_text_counts_without_case_and_white_space() -> None:
    assert quantised(" Is  this\nspam? ") == quantised("is this spam?") != quantised("is this ham?")


@pytest.mark.parametrize(
    "wrong", [{"flip_share": MOST_FLIPPED * 1.01}, {"flip_share": -0.1}, {"mark_share": 0.3}, {"decimals": 0}]
)
def test_a_policy_beyond_the_budget_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(WrongUse):
        MarkPolicy(**wrong)


def test_flips_are_off_by_default() -> None:
    assert MarkPolicy() == MarkPolicy(flip_share=0.0, mark_share=0.0)
    assert not any(select(KEY, "m", quantised([i]), MarkPolicy()) for i in range(5000))


# --- the key


def test_a_key_file_is_its_owners_and_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "watermark.json"
    key = WatermarkKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert WatermarkKey.load(path).key_id == key.key_id
    with pytest.raises(Refused, match="exists"):
        WatermarkKey.create(path)
    path.chmod(0o644)
    with pytest.raises(Refused, match="chmod 600"):
        WatermarkKey.load(path)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format":2}', '{"format":1,"watermark_key":"AA=="}', "\x00"])
def test_a_damaged_key_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "watermark.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(Refused):
        WatermarkKey.load(path)


def test_a_key_shows_nothing_of_itself_and_opens_only_its_own_seals() -> None:
    assert "AAEC" not in f"{KEY!r}"
    assert KEY.unseal(KEY.seal(b"x")) == b"x"
    assert KEY.seal(b"x") != KEY.seal(b"x")
    with pytest.raises(CorruptState):
        WatermarkKey.draw().unseal(KEY.seal(b"x"))
    with pytest.raises(CorruptState):
        KEY.unseal(b"")
    assert digest_of(KEY, "m", b"x") != digest_of(WatermarkKey.draw(), "m", b"x")
