"""The compiled way to read plain events gives what the full way gives, and leaves everything else to it."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.log import Records
from consumers.log.formats import Decoded, InputReader, NativeFormat
from consumers.log.json_scan import times_ms
from consumers.log.number_lists import parse_number_lists
from consumers.log.plain_events import plain_events
from detector.features import Column, Schema

SCHEMA = Schema(
    tuple(Column(name, "numeric", 0.0, 1.0, 0.0) for name in "abc"), "features", False, "classification", ("no", "7")
)
EVENT: dict[str, Any] = {
    "event_id": "e-1",
    "timestamp": "2026-03-02T09:00:00.250Z",
    "client_id": "acct-1",
    "model_id": "m",
    "features": [0.1, 2, -3.5e-3],
    "prediction": {"label": 7, "probabilities": [0.2, 0.8]},
}


def records(values: Sequence[bytes]) -> Records:
    return Records("cell", list(values), np.arange(len(values)) * 3 + 5, len(values) * 3 + 5)


def decoded(values: Sequence[bytes], *, compiled: bool) -> Decoded:
    reader = InputReader(SCHEMA)
    reader.plain = compiled
    return NativeFormat({"m": reader}).decode(records(values))


def plain_places(values: Sequence[bytes]) -> list[int]:
    found = plain_events(records(values), {"m": InputReader(SCHEMA)}, lambda name: name not in ("", "nobody"))
    return found["m"].places.tolist() if found else []


def assert_same(one: Decoded, other: Decoded) -> None:
    assert one.batches.keys() == other.batches.keys()
    for model, batch in one.batches.items():
        twin = other.batches[model]
        assert batch.clients == twin.clients
        for name in (
            "who",
            "inputs",
            "labels",
            "probabilities",
            "values",
            "time_ms",
            "weight",
            "offsets",
            "misfit",
            "salt",
        ):
            mine, theirs = getattr(batch, name), getattr(twin, name)
            assert (mine.dtype, mine.tobytes()) == (theirs.dtype, theirs.tobytes()), name
        for texts in ("events", "contents"):
            (text, ends), (twin_text, twin_ends) = getattr(one, texts)[model], getattr(other, texts)[model]
            assert (bytes(text), ends.tolist()) == (bytes(twin_text), twin_ends.tolist())
        assert {k: bytes(v) for k, v in one.metadata[model].items()} == {
            k: bytes(v) for k, v in other.metadata[model].items()
        }
    for name in ("notes", "dead", "counted", "counters", "last_ms"):
        assert getattr(one, name) == getattr(other, name), name


def line(**changes: Any) -> bytes:
    return json.dumps(EVENT | changes).encode()


ODD = [
    b"", b"{}", b"null", b"[]", line(features=None), line(features=[1, 2]), line(features=[1, 2, "3"]), line(features=[1, 2, 1e13]),
    line(features=[[1, 2, 3]]), line(prediction=None), line(prediction={"label": "other"}), line(prediction={"probabilities": [0.5, 0.5]}),
    line(prediction={"label": 7, "probabilities": [0.5, 1.5]}), line(prediction={"label": 7, "probabilities": None, "extra": {"a": [1]}}),
    line(prediction={"label": 7, "logits": [1, 2]}), line(prediction={"label": 7.0}), line(client_id=""), line(client_id=12),
    line(client_id="a\u0301"), line(client_id='say "hi"'), line(model_id="other"), line(timestamp="yesterday"), line(status=429),
    line(status=200), line(status=None), line(sampled_fraction=0.5), line(sampled_fraction=1.0), line(unknown=1), line(event_id=None),
    line(event_id=""), line(metadata="x" * 300_000),
    line(event_id=77), line(text="t" * 2000), line(metadata={"ip": "192.0.2.1", "deep": [{"a": [1, {}]}]}),
    line(metadata="x" * 3000, event_id="x" * 3000), line(features=[1, 2, 3], embedding=[4]),
    line(embedding=[4]).replace(b"[4]", b"[4,,]"),
    line().replace(b"0.1", b"01"), line().replace(b"0.1", b"NaN"), line().replace(b"0.1", b"1 2"), line().replace(b"0.1", b"-0"),
    line().replace(b"0.1", b"5e-324"), line().replace(b"0.1", b"1" * 30), line().replace(b"}}", b"}"), line() + b" x",
    b" " + line() + b"\n",
    line().replace(b'"client_id"', b'"client_id": "first", "client_id"'), line().replace(b'{"event_id"', b'{"event\\u005fid"'),
    line().replace(b"[0.1", b"[\x0b0.1"), line().replace(b"acct-1", b"\xff"), line().replace(b", ", b" ,\t\r\n"),
    line().replace(b"acct-1", b"a\tb"), line(metadata={"a": 1}).replace(b'"a": 1', b'"a": 1,'), line().replace(b'"m"', b'"m'),
]  # fmt: skip


def test_a_poll_of_plain_and_odd_records_reads_the_same_both_ways() -> None:
    poll = [piece for i, odd in enumerate(ODD) for piece in (line(client_id=f"c-{i % 7}"), odd)]
    compiled = decoded(poll, compiled=True)
    assert_same(compiled, decoded(poll, compiled=False))
    assert {2 * i for i in range(len(ODD))} <= set(plain_places(poll)), "the plain ones did go the compiled way"


def test_what_is_in_doubt_is_not_plain() -> None:
    taken = {ODD[i] for i in plain_places(ODD)}
    for odd in taken:
        full = decoded([odd], compiled=False)
        assert (full.counters["queries"], full.notes, full.dead, full.counters["unknown_keys"]) == (1, {}, [], 0)
    assert line(status=200) in taken
    assert plain_places([line(client_id="nobody")]) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "event_id": st.just("e") | JSON,
        "timestamp": st.datetimes(datetime.fromisoformat("1969-01-01")).map(lambda t: t.isoformat() + "Z") | JSON,
        "client_id": st.sampled_from(["a", "b", "c"]) | JSON,
        "model_id": st.just("m") | JSON,
        "features": st.lists(st.floats() | st.integers(), min_size=3, max_size=3) | JSON,
        "prediction": st.fixed_dictionaries(
            {"label": st.sampled_from(["no", 7, "7"])},
            optional={"probabilities": st.lists(st.floats(0, 1), min_size=2, max_size=2) | JSON, "value": JSON},
        )
        | JSON,
        "status": st.sampled_from([200, 200.0, 204, 403, 500]) | JSON,
        "sampled_fraction": st.sampled_from([1, 1.0, 0.25]) | JSON,
        "metadata": JSON,
        "text": JSON,
    },
)


@given(
    st.lists(
        st.tuples(FIELDS, st.booleans(), st.none() | st.tuples(st.integers(0, 300), st.binary(max_size=2))), max_size=8
    )
)
@settings(max_examples=300, deadline=None)
def test_any_poll_reads_the_same_both_ways(poll: list[tuple[dict[str, Any], bool, tuple[int, bytes] | None]]) -> None:
    values = []
    for fields, ascii_only, damage in poll:
        value = json.dumps(EVENT | fields, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        if damage is not None:
            at, piece = damage
            value = value[:at] + piece + value[at + 1 :]
        values.append(value)
    assert_same(decoded(values, compiled=True), decoded(values, compiled=False))


def hostile_number(rng: random.Random) -> str:
    """A number as somebody might write it: of any length and size, half way between doubles, or no number at all."""
    half_way = 2 * (rng.getrandbits(53) | (1 << 52)) + 1
    return rng.choice(
        (
            lambda: repr(struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))[0]),
            lambda: repr(rng.random()),
            lambda: repr(round(rng.gauss(0, 1), 6)),
            lambda: str(rng.randrange(-(10 ** rng.randrange(1, 22)), 10 ** rng.randrange(1, 22))),
            lambda: f"{rng.getrandbits(64)}e{rng.randrange(-330, 330)}",
            lambda: str(half_way << rng.randrange(4)),
            lambda: f"{half_way}e{rng.randrange(-4, 4)}",
            lambda: f"{rng.gauss(0, 1):.{rng.randrange(1, 25)}f}",
            lambda: f"0.{'0' * rng.randrange(30)}{rng.randrange(1, 10**17)}",
            lambda: rng.choice(
                "0 -0 0.0 1E5 1e+5 01 1. - +1 .5 1e nan Infinity null 1e400 1e-400 5e-324 1_0 0x10 1e00005".split()
            ),
        )
    )()


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_numbers_are_those_of_a_strict_parser_bit_for_bit(count: int) -> None:
    rng, strict = random.Random(5), msgspec.json.Decoder(list[float])
    lists = [f"[{hostile_number(rng)}]".encode() for _ in range(count)]
    ends = np.cumsum([len(one) for one in lists])
    numbers, read = parse_number_lists(
        np.frombuffer(b"".join(lists), np.uint8), np.concatenate([[0], ends[:-1]]), ends, 1
    )
    for text, number, was_read in zip(lists, numbers[:, 0].tolist(), read.tolist(), strict=True):
        if was_read:
            (expected,) = strict.decode(text)
            assert struct.pack("<d", expected) == struct.pack("<d", number), text
    assert 0.6 < read.mean() < 0.95, "most numbers are read, and those in doubt are not"


TIMES = st.datetimes(datetime.fromisoformat("1970-01-02"), datetime.fromisoformat("9999-12-30"))


@given(TIMES, st.integers(0, 12), st.data())
@settings(max_examples=500, deadline=None)
def test_times_are_those_of_a_strict_parser(when: datetime, places: int, data: st.DataObject) -> None:
    fraction = "." + f"{when.microsecond:06d}{data.draw(st.integers(0, 999_999)):06d}"[:places] if places else ""
    zone = data.draw(st.sampled_from(["Z", "+00:00", "-05:30", "+23:59"]))
    text = f'"{when:%Y-%m-%dT%H:%M:%S}{fraction}{zone}"'.encode()
    out = np.zeros(1, np.int64)
    times_ms(np.frombuffer(text, np.uint8), np.array([0]), np.array([len(text)]), out)
    in_full = when.year > 2254
    assert out[0] == (
        -1 if in_full and out[0] == -1 else round(msgspec.json.decode(text, type=datetime).timestamp() * 1000)
    )
