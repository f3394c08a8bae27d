"""Indicators as a STIX bundle: checked by stix2, the same when read back, and what a hostile file can do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import stix2
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.alerts.indicators import (
    EXTENSION,
    MOST_BYTES,
    MOST_HASHES,
    MOST_OBJECTS,
    bundle_of,
    indicator_id,
    read_bundle,
)
from consumers.errors import InvalidInput
from consumers.records.indicators import Indicator
from consumers.sharing_keys import SharingKey

KEY, OTHER = SharingKey(b"a" * 32), SharingKey(b"b" * 32)
NOW_S = 1_773_100_000


def indicator(number: int = 0, **more: Any) -> Indicator:
    hashes = (f"ip:{KEY.hash('ip', f'192.0.2.{number}')}", f"payment:{KEY.hash('payment', f'card {number}')}")
    made = Indicator(
        indicator_id(f"finding {number}", KEY), KEY.key_id, hashes, 70, "extraction", "jacobian", ("AML.T0024.002", "AML.T0012"),
        NOW_S - 1000, NOW_S + 86_400,
    )  # fmt: skip
    return replace(made, **more)


def written(*indicators: Indicator, key: SharingKey = KEY) -> dict[str, Any]:
    bundle: dict[str, Any] = json.loads(bundle_of(indicators, key, {}))
    return bundle


def read(bundle: Any, *keys: SharingKey) -> tuple[tuple[Indicator, ...], dict[str, int]]:
    found = read_bundle(json.dumps(bundle).encode(), keys or (KEY,), NOW_S)
    return found.indicators, {str(why): n for why, n in found.left_out.items()}


def test_what_is_written_is_stix_and_comes_back_as_it_was() -> None:
    given_ = [indicator(i) for i in range(3)]
    text = bundle_of(given_, KEY, {given_[0].id: "A client was flagged"})
    assert text == bundle_of(reversed(given_), KEY, {given_[0].id: "A client was flagged"})
    parsed = stix2.parse(text, allow_custom=False)
    kinds = [o["type"] for o in parsed.objects]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "identity": 1, "extension-definition": 1, "indicator": 3, "attack-pattern": 2, "relationship": 6,
    }  # fmt: skip
    for one in parsed.objects:
        if one["type"] == "indicator":
            stix2.pattern_visitor.create_pattern_object(one["pattern"])
            assert all(f"'{hashed}'" in one["pattern"] for hashed in one["extensions"][EXTENSION]["hashes"])
    assert "192.0.2" not in text
    found = read_bundle(text.encode(), (OTHER, KEY), NOW_S)
    assert sorted(found.indicators, key=lambda one: one.id) == sorted(given_, key=lambda one: one.id)
    assert found.left_out == {}
    assert json.loads(bundle_of([], KEY, {}))["objects"] == []


def of(bundle: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in bundle["objects"] if one["type"] == "indicator")
    return found


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda bundle: of(bundle).update({name: value})


def extended(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda bundle: of(bundle)["extensions"][EXTENSION].update({name: value})


HOSTILE: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (changed("valid_until", "2031-01-01T00:00:00Z"), "wrong tag"),
    (changed("confidence", 100), "wrong tag"),
    (changed("id", "indicator--00000000-0000-5000-8000-000000000000"), "wrong tag"),
    (extended("reason", "confirmed"), "wrong tag"),
    (extended("hashes", ["ip:" + "0" * 32]), "wrong tag"),
    (extended("key_id", OTHER.key_id), "another key"),
    (changed("confidence", 101), "malformed"),
    (changed("confidence", True), "malformed"),
    (changed("id", "indicator--x"), "malformed"),
    (changed("valid_from", "yesterday"), "malformed"),
    (changed("valid_until", "9" * 10_000), "malformed"),
    (extended("hashes", []), "malformed"),
    (extended("hashes", ["ip:203.0.113.7"]), "malformed"),
    (extended("hashes", ["prompt:" + "0" * 32]), "malformed"),
    (extended("hashes", ["ip:" + "0" * 32] * (MOST_HASHES + 1)), "malformed"),
    (extended("reason", "x" * 65), "malformed"),
    (extended("tag", ["a"]), "malformed"),
    (lambda bundle: of(bundle).pop("extensions"), "of another kind"),
    (lambda bundle: bundle["objects"].append(of(bundle)), "twice"),
]  # fmt: skip


@pytest.mark.parametrize(("hostile", "why"), HOSTILE)
def test_what_was_changed_or_is_malformed_is_left_out_and_the_rest_is_taken(
    hostile: Callable[[dict[str, Any]], None], why: str
) -> None:
    bundle = written(indicator(0), indicator(1))
    victim = of(bundle)["id"]
    assert read(bundle)[1] == {}, "the control"
    hostile(bundle)
    found, left_out = read(bundle)
    assert left_out == {why: 1}
    assert victim not in {one.id for one in found} or why == "twice"
    assert len(found) == (2 if why == "twice" else 1)


def test_the_time_and_the_key_of_an_indicator_count() -> None:
    past = indicator(1, valid_from_s=NOW_S - 100, valid_until_s=NOW_S)
    future = indicator(2, valid_from_s=NOW_S + 1)
    assert read(written(past, future)) == ((), {"expired": 1, "not yet valid": 1})
    revoked = written(indicator(3))
    of(revoked)["revoked"] = True
    assert read(revoked)[1] == {"expired": 1}
    assert read(written(indicator(4)), OTHER)[1] == {"another key": 1}
    forged = written(indicator(5), key=OTHER)  # says that it is under our key, and was made without it
    assert read(forged)[1] == {"wrong tag": 1}


@pytest.mark.parametrize(
    "blob",
    [
        b"", b"[]", b"null", b'{"type":"report","objects":[]}', b'{"type":"bundle","objects":{}}', b"\xff\xfe", b"[" * 100_000,
        b'{"type":"bundle","objects":[' + b",".join([b"1"] * (MOST_OBJECTS + 1)) + b"]}", b" " * (MOST_BYTES + 1),
    ],
)  # fmt: skip
def test_what_is_no_bundle_or_too_large_is_refused(blob: bytes) -> None:
    with pytest.raises(InvalidInput):
        read_bundle(blob, (KEY,), NOW_S)


def test_an_object_that_nests_without_end_brings_nothing_in() -> None:
    deep = b'{"type":"indicator","extensions":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}"
    with pytest.raises(InvalidInput):
        read_bundle(b'{"type":"bundle","objects":[' + deep + b"]}", (KEY,), NOW_S)


WRITTEN = written(indicator())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.sampled_from(["id", "confidence", "valid_from", "valid_until", "revoked", "extensions", "type"]), json_values)
def test_no_value_of_a_field_brings_an_indicator_in(name: str, value: Any) -> None:
    bundle = copy.deepcopy(WRITTEN)
    same = of(bundle).get(name, False) == value
    of(bundle)[name] = value
    assert read(bundle)[0] == () or same
