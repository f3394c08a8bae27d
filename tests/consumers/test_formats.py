"""The native event: what is taken, what is refused and why, and that a refused record changes nothing else."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.log import MAX_RECORD_BYTES, Records
from consumers.log.formats import (
    KNOWN_KEYS,
    REASONS,
    Decoded,
    InputReader,
    NativeFormat,
    read_reference,
    reference_batch,
    stack,
)
from detector.features import Column, Schema
from detector.query import UNKNOWN_LABEL, QueryBatch


def numbers(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "numeric", 0.0, 1.0, 0.0) for name in names)


PLAIN = Schema(numbers("a", "b", "c"), "features", False, "classification", ("no", "yes"))
NAMED = Schema(
    (*numbers("age", "score"), Column("job", "categorical", 0.0, 2.0, 1.0, ("baker", "clerk", "7"))),
    "features", True, "classification", ("0", "1"),
)  # fmt: skip
VECTOR = Schema(
    tuple(Column(f"e{i}", "embedding", -1.0, 1.0, 0.0) for i in range(4)), "embedding", False, "classification", ("x",)
)
REGRESSOR = Schema(numbers("a", "b"), "features", False, "regression", ())
READERS = {
    name: InputReader(schema)
    for name, schema in {"plain": PLAIN, "named": NAMED, "vector": VECTOR, "house": REGRESSOR}.items()
}

EVENT: dict[str, Any] = {
    "timestamp": "2026-03-02T09:00:00.250Z",
    "client_id": "acct-1",
    "model_id": "plain",
    "features": [0.1, 2, 3.5],
    "prediction": {"label": "yes", "probabilities": [0.2, 0.8]},
}
GONE = object()
HUGE = "9" * 5000


def event(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (EVENT | changes).items() if v is not GONE}, ensure_ascii=False).encode()


def raw(old: str, new: str) -> bytes:
    """The event with a piece of its text replaced: for what a JSON library would not write."""
    text = event().decode()
    assert old in text
    return text.replace(old, new, 1).encode("utf-8", "surrogatepass")


def decode(values: Iterable[bytes], *, admit_unknown: bool = False) -> Decoded:
    listed = list(values)
    return NativeFormat(READERS, admit_unknown).decode(
        Records("log:0", listed, np.arange(len(listed), dtype=np.int64) + 10, len(listed) + 10)
    )


def only(decoded: Decoded, model: str = "plain") -> QueryBatch:
    assert not decoded.dead, decoded.dead
    assert list(decoded.batches) == [model]
    return decoded.batches[model]


def same(left: QueryBatch, right: QueryBatch) -> bool:
    """Bit by bit, NaN too; offsets are where the record was, so they may differ."""
    columns = ("who", "inputs", "labels", "probabilities", "values", "time_ms", "weight")
    return left.clients == right.clients and all(
        getattr(left, c).tobytes() == getattr(right, c).tobytes() for c in columns
    )


# ------------------------------------------------------------------------------------------------------- refused

REFUSED: list[tuple[str, str, bytes]] = [
    ("not an object", "wrong_type", b"[1, 2]"),
    ("null", "wrong_type", b"null"),
    ("no bytes", "not_json", b""),
    ("not JSON", "not_json", b"GET / HTTP/1.1"),
    ("half an event", "not_json", event()[:60]),
    ("bytes after the event", "not_json", event() + b" x"),
    ("NUL after the event", "not_json", event() + b"\x00"),
    ("two events on a line", "not_json", event() + event()),
    ("byte order mark", "not_json", b"\xef\xbb\xbf" + event()),
    ("UTF-16", "not_json", event().decode().encode("utf-16")),
    ("bad UTF-8 in an id", "not_json", event().replace(b"acct-1", b"acct-\xff")),
    ("bad UTF-8 in a key", "not_json", event().replace(b'"features"', b'"\xfeatures"')),
    ("raw surrogate in an id", "not_json", raw('"acct-1"', '"\ud800"')),
    ("escaped lone surrogate", "not_json", raw('"acct-1"', '"\\ud800"')),
    ("deep lists", "not_json", raw("[0.1, 2, 3.5]", "[" * 100_000)),
    ("deep, closed lists", "not_json", raw("[0.1, 2, 3.5]", "[" * 50_000 + "]" * 50_000)),
    ("deep objects", "not_json", b'{"a":' * 100_000),
    ("deep list under a key that nobody knows", "not_json", raw("{", '{"more": ' + "[" * 90_000 + "]" * 90_000 + ", ")),
    ("hexadecimal", "not_json", raw("0.1", "0x1")),
    ("leading zero", "not_json", raw("0.1", "00.1")),
    ("1 MiB and a byte", "too_large", event() + b" " * (MAX_RECORD_BYTES + 1 - len(event()))),
    ("NaN", "not_finite", raw("0.1", "NaN")),
    ("Infinity", "not_finite", raw("0.1", "Infinity")),
    ("-Infinity", "not_finite", raw("0.1", "-Infinity")),
    ("NaN under a key that nobody knows", "not_finite", raw("{", '{"more": NaN, ')),
    ("NaN probability", "not_finite", raw("0.8", "NaN")),
    ("1e999", "not_finite", raw("0.1", "1e999")),
    ("-1e999", "not_finite", raw("0.1", "-1e999")),
    ("5,000 digits", "not_finite", raw("0.1", HUGE)),
    ("5,000 digits of a label", "not_finite", raw('"yes"', HUGE)),
    ("5,000 digits of a status", "not_finite", raw("{", f'{{"status": {HUGE}, ')),
    ("1e308", "out_of_range", raw("0.1", "1e308")),
    ("just over 1e12", "out_of_range", raw("0.1", "-1000000000001")),
    ("true among the numbers", "wrong_type", event(features=[True, 2, 3])),
    ("null among the numbers", "wrong_type", event(features=[None, 2, 3])),
    ("a number in a string", "wrong_type", event(features=["1.5", 2, 3])),
    ("NaN in a string", "wrong_type", event(features=["NaN", 2, 3])),
    ("nested row", "wrong_type", event(features=[[0.1, 2, 3.5]])),
    ("features a number", "wrong_type", event(features=5)),
    ("features null", "wrong_type", event(features=None)),
    ("client a number", "wrong_type", event(client_id=17)),
    ("client null", "wrong_type", event(client_id=None)),
    ("model a list", "wrong_type", event(model_id=["plain"])),
    ("label a float", "wrong_type", event(prediction={"label": 1.5})),
    ("label a boolean", "wrong_type", event(prediction={"label": True})),
    ("prediction a list", "wrong_type", event(prediction=[0.2, 0.8])),
    ("prediction null", "wrong_type", event(prediction=None)),
    ("status in a string", "wrong_type", event(status="200")),
    ("fraction in a string", "wrong_type", event(sampled_fraction="0.5")),
    ("two columns", "wrong_dimension", event(features=[1, 2])),
    ("four columns", "wrong_dimension", event(features=[1, 2, 3, 4])),
    ("no columns", "wrong_dimension", event(features=[])),
    ("three probabilities", "wrong_output", event(prediction={"probabilities": [0.2, 0.3, 0.5]})),
    ("no probabilities", "wrong_output", event(prediction={"probabilities": []})),
    ("three logits", "wrong_output", event(prediction={"logits": [1, 2, 3]})),
    ("a probability of 2", "wrong_output", event(prediction={"probabilities": [-1, 2]})),
    ("a regression without a value", "wrong_output", event(model_id="house", features=[1, 2])),
    ("a regression with an empty value", "wrong_output",
     event(model_id="house", features=[1, 2], prediction={"value": []})),
    ("a regression of 1e13", "out_of_range", event(model_id="house", features=[1, 2], prediction={"value": 1e13})),
    ("no client", "missing_client", event(client_id=GONE)),
    ("an empty client", "malformed_client", event(client_id="")),
    ("CRLF in a client", "malformed_client", event(client_id="a\r\nadmin")),
    ("NUL in a client", "malformed_client", event(client_id="a\x00b")),
    ("escape in a client", "malformed_client", event(client_id="\x1b[2J")),
    ("C1 control in a client", "malformed_client", event(client_id="a\x85b")),
    ("line separator in a client", "malformed_client", event(client_id="a\u2028b")),
    ("257 bytes of a client", "malformed_client", event(client_id="é" * 128 + "x")),
    ("no model", "missing_model", event(model_id=GONE)),
    ("a model without a baseline", "unknown_model", event(model_id="other")),
    ("no time", "bad_timestamp", event(timestamp=GONE)),
    ("a time without offset", "bad_timestamp", event(timestamp="2026-03-02T09:00:00")),
    ("a date", "bad_timestamp", event(timestamp="2026-03-02")),
    ("month 13", "bad_timestamp", event(timestamp="2026-13-02T09:00:00Z")),
    ("29 February of a common year", "bad_timestamp", event(timestamp="2026-02-29T09:00:00Z")),
    ("seconds since the epoch", "bad_timestamp", event(timestamp=1772442000)),
    ("no time zone goes so far", "bad_timestamp", event(timestamp="2026-03-02T09:00:00+99:99")),
    ("before 1970", "bad_timestamp", event(timestamp="1969-12-31T23:59:59Z")),
    ("before the year 1", "bad_timestamp", event(timestamp="0001-01-01T00:00:00+14:00")),
    ("the year 10000 by rounding", "bad_timestamp", event(timestamp="9999-12-31T23:59:59.9999Z")),
    ("the year 10000 by offset", "bad_timestamp", event(timestamp="9999-12-31T23:59:59-12:00")),
    ("no input", "missing_input", event(features=GONE)),
    ("a text", "unsupported_input", event(features=GONE, text="hello")),
    ("an embedding for a table", "unsupported_input", event(features=GONE, embedding=[1, 2, 3])),
    ("features for an embedding", "unsupported_input", event(model_id="vector")),
    ("no prediction", "missing_prediction", event(prediction=GONE)),
    ("an empty prediction", "missing_prediction", event(prediction={})),
    ("status 200, no prediction", "missing_prediction", event(prediction=GONE, status=200)),
    ("fraction 0", "bad_sampled_fraction", event(sampled_fraction=0)),
    ("fraction 1.5", "bad_sampled_fraction", event(sampled_fraction=1.5)),
    ("fraction below what a float can weigh", "bad_sampled_fraction", event(sampled_fraction=1e-320)),
    ("an unknown category", "unknown_category",
     event(model_id="named", features={"age": 1, "score": 2, "job": "pilot"})),
    ("a category with a fraction", "unknown_category",
     event(model_id="named", features={"age": 1, "score": 2, "job": 7.5})),
    ("a column is missing", "missing_column", event(model_id="named", features={"age": 1, "job": "clerk"})),
    ("a string in a column of numbers", "wrong_type",
     event(model_id="named", features={"age": "1", "score": 2, "job": "clerk"})),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "value"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_bad_record_is_refused_with_its_reason_and_changes_no_other_row(reason: str, value: bytes) -> None:
    good = [event(client_id=f"acct-{i % 3}", features=[i / 7, 2, 3]) for i in range(6)]
    decoded = decode([*good[:3], value, *good[3:]])
    (letter,) = decoded.dead
    assert letter.reason == reason
    assert (letter.place, letter.offset) == ("log:0@13", 13)
    assert decoded.counters["produced"] == 7
    assert decoded.counters["dead"] == 1
    assert decoded.counters["unknown_keys"] == 0
    clean = decode(good)
    assert same(decoded.batches["plain"], only(clean))
    assert decoded.last_ms == clean.last_ms
    assert letter.detail.isprintable()
    assert len(letter.detail) <= 200


def test_every_reason_code_is_produced_by_some_record() -> None:
    refused = {0: ("corrupt_batch", "checksum"), 1: ("poison", "")}
    batch = Records("log:0", [b"", b""], np.arange(2), 2, refused=refused)
    produced = {letter.reason for letter in NativeFormat(READERS).decode(batch).dead}
    for _, _, value in REFUSED:
        produced |= {letter.reason for letter in decode([value]).dead}
    assert produced == set(REASONS)


def test_a_record_of_one_mib_is_taken() -> None:
    assert len(only(decode([event() + b" " * (MAX_RECORD_BYTES - len(event()))]))) == 1


def test_a_batch_that_the_log_could_not_read_is_told_with_its_cause() -> None:
    records = Records("log:0", [event(), b""], np.array([4, 5]), 9, refused={1: ("decompression_bomb", "over 16 MiB")})
    decoded = NativeFormat(READERS).decode(records)
    assert [(d.reason, d.detail, d.offset) for d in decoded.dead] == [
        ("unreadable_batch", "decompression_bomb: over 16 MiB", 5)
    ]
    assert len(decoded.batches["plain"]) == 1


@pytest.mark.parametrize(
    "value",
    [
        event(timestamp="yesterday", metadata={"ip": "203.0.113.7", "user_agent": "curl"}),
        event(timestamp="yesterday")[:-1],
        event(timestamp="yesterday", client_id='acct-1"} , {"'),
        b"{'client_id': acct-1, 'metadata': {'ip': '203.0.113.7'}}",
        b'{"client_id":"acct-1',
    ],
)
def test_the_head_of_a_dead_letter_names_no_client(value: bytes) -> None:
    (letter,) = decode([value]).dead
    assert b"acct-1" not in letter.head
    assert b"203.0.113.7" not in letter.head
    assert b"client_id" in letter.head
    assert len(letter.head) <= 256 + 8
    assert len(base64.b16decode(letter.sha256.upper())) == 32


# --------------------------------------------------------------------------------------------------------- taken


def test_columns_of_a_plain_event() -> None:
    batch = only(decode([event()]))
    assert batch.clients == ["acct-1"]
    assert batch.inputs.tolist() == [[0.1, 2.0, 3.5]]
    assert batch.labels.tolist() == [1]
    assert batch.probabilities.tolist() == [[pytest.approx(0.2), pytest.approx(0.8)]]
    assert math.isnan(batch.values[0])
    assert batch.time_ms.tolist() == [1772442000250]
    assert batch.weight.tolist() == [1.0]
    assert batch.offsets.tolist() == [10]
    assert batch.inputs.dtype == np.dtype(np.float64)
    assert batch.probabilities.dtype == np.dtype(np.float32)


def test_models_are_kept_apart_and_clients_in_order_of_appearance() -> None:
    house = {"model_id": "house", "features": [1, 2], "prediction": {"value": 9.5}}
    decoded = decode([event(client_id="b"), event(client_id="a", **house), event(client_id="a"), event(client_id="b")])
    assert decoded.batches["plain"].clients == ["b", "a"]
    assert decoded.batches["plain"].who.tolist() == [0, 1, 0]
    assert decoded.batches["plain"].offsets.tolist() == [10, 12, 13]
    assert decoded.batches["house"].clients == ["a"]
    assert decoded.batches["house"].values.tolist() == [9.5]
    assert decoded.batches["house"].probabilities.shape == (1, 0)


@pytest.mark.parametrize(
    ("features", "row"),
    [
        ({"age": 30, "score": 0.5, "job": "clerk"}, [30.0, 0.5, 1.0]),
        ({"job": "baker", "score": 1, "age": 2}, [2.0, 1.0, 0.0]),
        ({"age": 30, "score": 0.5, "job": 7}, [30.0, 0.5, 2.0]),
        ({"age": 30, "score": 0.5, "job": "7"}, [30.0, 0.5, 2.0]),
        ({"age": 30, "score": 0.5, "job": 7.0}, [30.0, 0.5, 2.0]),
        ({"age": 30, "score": 0.5, "job": "clerk", "more": 5}, [30.0, 0.5, 1.0]),
        ([30, 0.5, "clerk"], [30.0, 0.5, 1.0]),
    ],
)
def test_named_features_and_categories_as_strings_and_numbers(features: Any, row: list[float]) -> None:
    batch = only(decode([event(model_id="named", features=features, prediction={"label": 1})]), "named")
    assert batch.inputs.tolist() == [row]
    assert batch.labels.tolist() == [1]


def test_embeddings() -> None:
    value = event(model_id="vector", features=GONE, embedding=[0.5, -0.5, 0.5, 0], prediction={"label": "x"})
    assert only(decode([value]), "vector").inputs.tolist() == [[0.5, -0.5, 0.5, 0.0]]


@pytest.mark.parametrize(
    ("prediction", "label", "probabilities"),
    [
        ({"label": "yes"}, 1, None),
        ({"label": "no", "probabilities": [0.3, 0.7]}, 0, [0.3, 0.7]),
        ({"probabilities": [0.3, 0.7]}, 1, [0.3, 0.7]),
        ({"logits": [0.0, math.log(3)]}, 1, [0.25, 0.75]),
        ({"logits": [1e308, -1e308]}, 0, [1.0, 0.0]),
        ({"label": "perhaps"}, UNKNOWN_LABEL, None),
        ({"label": 10**30}, UNKNOWN_LABEL, None),
        ({"text": "I think so"}, UNKNOWN_LABEL, None),
        ({"label": "yes", "latency": 3}, 1, None),
    ],
)
def test_answers_of_a_classifier(prediction: Any, label: int, probabilities: list[float] | None) -> None:
    batch = only(decode([event(prediction=prediction)]))
    assert batch.labels.tolist() == [label]
    if probabilities is None:
        assert np.isnan(batch.probabilities).all()
    else:
        assert batch.probabilities[0].tolist() == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize(("value", "answer"), [(3, 3.0), (2.5, 2.5), ([4.5, 1.0], 4.5), (-1e12, -1e12)])
def test_answers_of_a_regressor(value: Any, answer: float) -> None:
    batch = only(decode([event(model_id="house", features=[1, 2], prediction={"value": value})]), "house")
    assert batch.values.tolist() == [answer]
    assert batch.labels.tolist() == [UNKNOWN_LABEL]


def test_unknown_keys_are_counted_and_known_ones_are_not() -> None:
    everything = dict.fromkeys(KNOWN_KEYS - EVENT.keys() - {"embedding", "text", "status", "sampled_fraction"}, "x")
    decoded = decode([event(**everything), event(more=1, evenmore=[2])])
    assert decoded.counters["unknown_keys"] == 2
    assert len(only(decoded)) == 2


def test_the_last_of_two_equal_keys_counts() -> None:
    batch = only(decode([raw("{", '{"client_id": "first", ')]))
    assert batch.clients == ["acct-1"]


@pytest.mark.parametrize("client", ["é" * 128, "a b", "юзер", "a\u202eb", "'; DROP TABLE clients;--", "{{7*7}}", "<b>"])
def test_ids_are_any_text_of_256_bytes_without_control_characters(client: str) -> None:
    assert only(decode([event(client_id=client)])).clients == [client]


@pytest.mark.parametrize(
    ("stamp", "time_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-03-02T10:00:00.250+01:00", 1772442000250),
        ("2026-03-02T09:00:00.2504999Z", 1772442000250),
        ("2026-03-02t09:00:00z", 1772442000000),
        ("2026-03-02 09:00:00Z", 1772442000000),
        ("9999-12-30T00:00:00Z", 253402128000000),
    ],
)
def test_times(stamp: str, time_ms: int) -> None:
    assert only(decode([event(timestamp=stamp)])).time_ms.tolist() == [time_ms]


@pytest.mark.parametrize(
    ("status", "counter"),
    [(200, "queries"), (204, "queries"), (299, "queries"), (None, "queries"), (401, "denied"), (403, "denied"),
     (429, "denied"), (400, "failed"), (404, "failed"), (500, "failed"), (301, "failed"), (0, "failed")],
)  # fmt: skip
def test_denied_and_failed_queries_are_counted_and_nothing_else(status: int | None, counter: str) -> None:
    """Ruling 18: they carry no prediction, touch no profile, and are no dead letters."""
    answered = counter == "queries"
    value = event(status=status) if answered else event(status=status, prediction=GONE, features=GONE)
    decoded = decode([value])
    assert decoded.counters[counter] == 1
    assert sum(decoded.counters[c] for c in ("queries", "dead", "unmodelled", "denied", "failed")) == 1
    assert bool(decoded.batches) == answered


@pytest.mark.parametrize(("fraction", "weight"), [(1, 1.0), (1.0, 1.0), (0.25, 4.0), (1e-9, 1e9)])
def test_a_sampled_query_stands_for_several(fraction: float, weight: float) -> None:
    batch = only(decode([event(sampled_fraction=fraction)]))
    assert batch.weight.tolist() == [pytest.approx(weight)]


def test_models_without_a_baseline_may_be_counted_only() -> None:
    decoded = decode([event(model_id="other"), event()], admit_unknown=True)
    assert decoded.counters["unmodelled"] == 1
    assert len(only(decoded)) == 1


def test_rows_do_not_depend_on_the_batch_they_came_in() -> None:
    values = [event(client_id=f"c{i % 5}", features=[i, 0, 1]) for i in range(20)]
    whole = only(decode(values))
    parts = [only(decode([value])) for value in values]
    assert same(stack(parts), whole)


# ------------------------------------------------------------------------------------------------------ reference


def test_a_reference_counts_what_it_refuses_and_keeps_the_rest() -> None:
    lines = [
        b'{"model_id": "plain", "features": [1, 2, 3], "prediction": {"label": "yes"}}',
        b'{"features": [4, 5, 6], "prediction": {"label": "no"}}',
        b'{"model_id": "other", "features": [4, 5, 6]}',
        b'{"features": [NaN, 5, 6]}',
        b"[" * 100_000,
        b'{"client_id": "\xff"}',
        b"",
        b"   ",
        b'{"features": [1, 2], "prediction": {"label": "no"}}',
    ]
    found = read_reference(lines, "plain")
    assert found.refused == {"unknown_model": 1, "not_finite": 1, "not_json": 1, "wrong_type": 1}
    batch, refused = reference_batch(found, PLAIN)
    assert batch.inputs.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch.labels.tolist() == [1, 0]
    assert refused == {"wrong_dimension": 1}


def test_a_reference_of_wrong_lines_only_is_an_empty_batch() -> None:
    found = read_reference([b'{"text": "hello"}', b'{"features": 1}', b'{"features": [1e999]}'], "plain")
    assert found.refused == {"wrong_type": 1, "not_finite": 1}
    batch, refused = reference_batch(found, PLAIN)
    assert len(batch) == 0
    assert refused == {"unsupported_input": 1}


# ----------------------------------------------------------------------------------------------------------- fuzz

BALANCE = ("queries", "dead", "unmodelled", "denied", "failed")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def check(values: list[bytes], *, admit_unknown: bool = False) -> None:
    decoded = decode(values, admit_unknown=admit_unknown)
    counted = decoded.counters
    assert counted["produced"] == len(values) == sum(counted[c] for c in BALANCE)
    assert counted["dead"] == len(decoded.dead)
    assert {letter.reason for letter in decoded.dead} <= set(REASONS)
    for model, batch in decoded.batches.items():
        assert np.isfinite(batch.inputs).all()
        assert (np.abs(batch.inputs) <= 1e12).all()
        assert np.isfinite(batch.weight).all()
        assert batch.inputs.shape == (len(batch), READERS[model].width)
        assert not np.isinf(batch.probabilities).any()


@given(st.lists(st.binary(max_size=200), max_size=5))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_never_raise(values: list[bytes]) -> None:
    check(values)


@given(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=6), st.integers(0, 8)), max_size=4), st.booleans())
@settings(max_examples=300, deadline=None)
def test_mutated_events_never_raise(edits: list[tuple[int, bytes, int]], admit: bool) -> None:
    value = event(sampled_fraction=0.5, status=200, metadata={"ip": "203.0.113.7"})
    for at, piece, cut in edits:
        at %= len(value) + 1
        value = value[:at] + piece + value[at + cut :]
    check([event(), value, event(client_id="b")], admit_unknown=admit)


@given(
    st.dictionaries(st.sampled_from(sorted(KNOWN_KEYS | {"more"})), JSON, max_size=4), st.sampled_from(sorted(READERS))
)
@settings(max_examples=300, deadline=None)
def test_events_with_any_json_in_their_fields_never_raise(changes: dict[str, Any], model: str) -> None:
    whole = {**EVENT, "model_id": model, **changes}
    check([json.dumps(whole).encode(), event()])


@given(
    st.lists(JSON, max_size=6), st.dictionaries(st.sampled_from("label probabilities logits value text".split()), JSON)
)
@settings(max_examples=200, deadline=None)
def test_any_row_and_any_answer_never_raise(row: list[Any], prediction: dict[str, Any]) -> None:
    values = [
        json.dumps({**EVENT, "model_id": model, "features": row, "prediction": prediction}).encode()
        for model in ("plain", "named", "house")
    ]
    check(values)
