"""The native event: what is taken, what is refused and why, and that a refused record changes nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumers.log import MAX_RECORD_BYTES, Records
from consumers.log.formats import FATES, KNOWN_KEYS, REASONS, Decoded, InputReader, MisfitNote, NativeFormat
from consumers.log.references import read_reference, reference_batch, stack
from consumers.records.ledger import imbalance
from detector.features import Column, Schema
from detector.query import UNKNOWN_LABEL, UNKNOWN_MS, Misfit, QueryBatch


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
EMBEDS = Schema(numbers("a", "b"), "features", False, "embedding", ())
WRITES = Schema(numbers("a", "b"), "features", False, "generation", ())
NESTED = Schema(
    (
        Column("device.os", "categorical", 0.0, 1.0, 1.0, ("a", "b")),
        *numbers("device.age.years"),
        Column("on", "boolean", 0.0, 1.0, 1.0),
    ),
    "features", True, "classification", ("no", "yes"),
)  # fmt: skip
READERS = {
    name: InputReader(schema)
    for name, schema in {
        "plain": PLAIN,
        "named": NAMED,
        "vector": VECTOR,
        "house": REGRESSOR,
        "embeds": EMBEDS,
        "writes": WRITES,
        "nested": NESTED,
    }.items()
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


def named(features: Any) -> bytes:
    return event(model_id="named", features=features, prediction={"label": 1})


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
    ("not an object", "not_json", b"[1, 2]"),
    ("null", "not_json", b"null"),
    ("no bytes", "not_json", b""),
    ("not JSON", "not_json", b"GET / HTTP/1.1"),
    ("half an event", "not_json", event()[:60]),
    ("bytes after the event", "not_json", event() + b" x"),
    ("NUL after the event", "not_json", event() + b"\x00"),
    ("byte order mark", "not_json", b"\xef\xbb\xbf" + event()),
    ("UTF-16", "not_json", event().decode().encode("utf-16")),
    ("gzip", "not_json", gzip.compress(event())),
    ("bad UTF-8 in an id", "not_json", event().replace(b"acct-1", b"acct-\xff")),
    ("hexadecimal", "not_json", raw("0.1", "0x1")),
    ("leading zero", "not_json", raw("0.1", "00.1")),
    ("deep objects", "too_deep", b'{"a":' * 100_000),
    ("1 MiB that names nobody", "too_large", b'{"features": [' + b"1," * (MAX_RECORD_BYTES // 2) + b"1]}"),
    ("two events on a line", "several_objects", event() + event()),
    ("events in a list", "several_objects", b"[" + event() + b"," + event() + b"]"),
    ("JSON in JSON", "encoded_twice", json.dumps(event().decode()).encode()),
    ("a schema registry's framing", "framed", b"\x00\x00\x00\x00\x2a" + event()),
    ("a Connect envelope", "connect_envelope", b'{"schema": null, "payload": ' + event() + b"}"),
    ("another logger's event", "foreign_format", b'{"captureData": {}, "eventMetadata": {}, "eventVersion": "0"}'),
    ("no client", "missing_client", event(client_id=GONE)),
    ("client null", "missing_client", event(client_id=None)),
    ("an empty client", "malformed_client", event(client_id="")),
    ("client a list", "malformed_client", event(client_id=["acct-1"])),
    ("client a boolean", "malformed_client", event(client_id=True)),
    ("client a fraction", "malformed_client", event(client_id=1.5)),
    ("CRLF in a client", "malformed_client", event(client_id="a\r\nadmin")),
    ("NUL in a client", "malformed_client", event(client_id="a\x00b")),
    ("escape in a client", "malformed_client", event(client_id="\x1b[2J")),
    ("C1 control in a client", "malformed_client", event(client_id="a\x85b")),
    ("line separator in a client", "malformed_client", event(client_id="a\u2028b")),
    ("257 bytes of a client", "malformed_client", event(client_id="é" * 128 + "x")),
    ("half of a surrogate pair in a client", "malformed_client", raw('"acct-1"', '"\\ud800"')),
    ("no model", "missing_model", event(model_id=GONE)),
    ("model null", "missing_model", event(model_id=None)),
    ("model a list", "unknown_model", event(model_id=["plain"])),
    ("a model without a baseline", "unknown_model", event(model_id="other")),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "value"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_bad_record_is_refused_with_its_reason_and_changes_no_other_row(reason: str, value: bytes) -> None:
    good = [event(client_id=f"acct-{i % 3}", features=[i / 7, 2, 3]) for i in range(6)]
    decoded = decode([*good[:3], value, *good[3:]])
    (letter,) = decoded.dead
    assert (letter.reason, FATES[reason]) == (reason, "lettered" if reason.startswith("too_") else "refused")
    assert (letter.place, letter.offset) == ("log:0@13", 13)
    assert decoded.counters["produced"] == 7
    assert (decoded.counters["dead"], decoded.counters["dead_counted"]) == (1, 0)
    assert decoded.counters["unknown_keys"] == 0
    clean = decode(good)
    assert same(decoded.batches["plain"], only(clean))
    assert decoded.last_ms == clean.last_ms
    assert letter.detail.isprintable() or not letter.detail
    assert len(letter.detail) <= 200


BIG = b'{"client_id": "acct-1", "model_id": "plain", "features": [' + b"1," * (MAX_RECORD_BYTES // 2) + b"1]}"

LETTERED: list[tuple[str, str, bytes]] = [
    ("1 MiB and a byte", "too_large", event() + b" " * (MAX_RECORD_BYTES + 1 - len(event()))),
    ("1 MiB, cut off", "too_large", BIG[: MAX_RECORD_BYTES + 1]),
    ("deep lists", "too_deep", raw("[0.1, 2, 3.5]", "[" * 50_000 + "]" * 50_000)),
    ("no time", "bad_timestamp", event(timestamp=GONE)),
    ("time null", "bad_timestamp", event(timestamp=None)),
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
    ("input null", "missing_input", event(features=None)),
]


@pytest.mark.parametrize(("reason", "value"), [r[1:] for r in LETTERED], ids=[r[0] for r in LETTERED])
def test_a_record_for_review_is_a_dead_letter_and_still_counts_for_its_client(reason: str, value: bytes) -> None:
    decoded = decode([event(client_id="b"), value])
    (letter,) = decoded.dead
    assert (letter.reason, letter.offset, FATES[reason]) == (reason, 11, "lettered")
    assert decoded.counted == {11}
    assert (decoded.counters["queries"], decoded.counters["dead"], decoded.counters["dead_counted"]) == (2, 1, 1)
    batch = decoded.batches["plain"]
    assert [batch.clients[i] for i in batch.who] == ["b", "acct-1"]
    assert reason in {note.reason for note in decoded.notes["plain"][11]}
    if reason == "bad_timestamp":
        assert batch.time_ms[1] == UNKNOWN_MS
        assert batch.inputs[1].tolist() == [0.1, 2.0, 3.5]
    else:
        assert Misfit(int(batch.misfit[1])) & Misfit.UNREADABLE
        assert np.isnan(batch.inputs[1]).all()
        assert batch.salt[1]


NAN = math.nan
JOB = {"age": 1, "score": 2, "job": "clerk"}
MARKED: list[tuple[str, str, bytes, Misfit, list[float]]] = [
    ("NaN", "not_finite", raw("0.1", "NaN"), Misfit.MISSING, [NAN, 2, 3.5]),
    ("-Infinity", "not_finite", raw("0.1", "-Infinity"), Misfit.MISSING, [NAN, 2, 3.5]),
    ("nan as C prints it", "not_finite", raw("0.1", "-nan"), Misfit.MISSING, [NAN, 2, 3.5]),
    ("1e999", "not_finite", raw("0.1", "-1e999"), Misfit.MISSING, [NAN, 2, 3.5]),
    ("5,000 digits", "not_finite", raw("0.1", HUGE), Misfit.MISSING, [NAN, 2, 3.5]),
    ("NaN in a string", "not_finite", event(features=["NaN", 2, 3]), Misfit.MISSING, [NAN, 2, 3]),
    ("null", "missing_value", event(features=[None, 2, 3]), Misfit.MISSING, [NAN, 2, 3]),
    ("empty text", "missing_value", event(features=[" ", 2, 3]), Misfit.MISSING, [NAN, 2, 3]),
    ("a word", "wrong_type", event(features=["red", 2, 3]), Misfit.MISSING, [NAN, 2, 3]),
    ("just over 1e12", "out_of_range", raw("0.1", "-1000000000001"), Misfit.OUT_OF_RANGE, [-math.inf, 2, 3.5]),
    ("1e308", "out_of_range", raw("0.1", "1e308"), Misfit.OUT_OF_RANGE, [math.inf, 2, 3.5]),
    ("a large number as text", "out_of_range", event(features=["2e12", 2, 3]),
     Misfit.OUT_OF_RANGE | Misfit.RETYPED, [math.inf, 2, 3]),
    ("true", "retyped", event(features=[True, 2, 3]), Misfit.RETYPED, [1, 2, 3]),
    ("a number as text", "retyped", event(features=[" -1.5e1", 2, 3]), Misfit.RETYPED, [-15, 2, 3]),
    ("a nested value", "wrong_type", event(features=[[0.1], 2, 3]), Misfit.UNREADABLE, [NAN] * 3),
    ("two rows", "wrong_dimension", event(features=[[0.1, 2, 3], [1, 2, 3]]), Misfit.UNREADABLE, [NAN] * 3),
    ("a number", "wrong_type", event(features=5), Misfit.UNREADABLE, [NAN] * 3),
    ("two columns", "wrong_dimension", event(features=[1, 2]), Misfit.UNREADABLE, [NAN] * 3),
    ("four columns", "wrong_dimension", event(features=[1, 2, 3, 4]), Misfit.UNREADABLE, [NAN] * 3),
    ("no columns", "wrong_dimension", event(features=[]), Misfit.UNREADABLE, [NAN] * 3),
    ("a text", "unsupported_input", event(features=GONE, text="hello"), Misfit.UNREADABLE, [NAN] * 3),
    ("an embedding", "unsupported_input", event(features=GONE, embedding=[1, 2, 3]), Misfit.UNREADABLE, [NAN] * 3),
    ("no column of ours", "missing_column", event(features={"z": 1}), Misfit.UNREADABLE, [NAN] * 3),
    ("bytes that are no UTF-8", "wrong_type", event(features=["rot", 2, 3]).replace(b"rot", b"\xff"),
     Misfit.MISSING, [NAN, 2, 3]),
    ("no UTF-8 in a key", "bad_sampled_fraction", event(sampled_fraction=7).replace(b"{", b'{"\xff": 1, ', 1),
     Misfit(0), [0.1, 2, 3.5]),
    ("a column is missing", "missing_column", named({"age": 1, "job": "clerk"}),
     Misfit.MISSING, [1, NAN, 1]),
    ("an unknown category", "unknown_category", named(JOB | {"job": "pilot"}),
     Misfit.OTHER, [1, 2, 3]),
    ("half of a surrogate pair", "unknown_category",
     named(JOB).replace(b"clerk", b"\\ud800"), Misfit.OTHER, [1, 2, 3]),
    ("a category with a fraction", "unknown_category", named(JOB | {"job": 7.5}),
     Misfit.OTHER, [1, 2, 3]),
    ("a null category", "missing_value", named(JOB | {"job": None}),
     Misfit.MISSING, [1, 2, NAN]),
    ("a list in a category", "wrong_type", named(JOB | {"job": ["clerk"]}),
     Misfit.UNREADABLE, [NAN] * 3),
    ("prediction null", "missing_prediction", event(prediction=None), Misfit.ANSWER, [0.1, 2, 3.5]),
    ("no prediction", "missing_prediction", event(prediction=GONE, status=200), Misfit.ANSWER, [0.1, 2, 3.5]),
    ("an empty prediction", "missing_prediction", event(prediction={"label": None}), Misfit.ANSWER, [0.1, 2, 3.5]),
    ("fraction 0", "bad_sampled_fraction", event(sampled_fraction=0), Misfit(0), [0.1, 2, 3.5]),
    ("fraction 1.5", "bad_sampled_fraction", event(sampled_fraction=1.5), Misfit(0), [0.1, 2, 3.5]),
    ("a fraction that no float can weigh", "bad_sampled_fraction", event(sampled_fraction=1e-320), Misfit(0),
     [0.1, 2, 3.5]),
    ("fraction NaN", "bad_sampled_fraction", raw("{", '{"sampled_fraction": NaN, '), Misfit(0), [0.1, 2, 3.5]),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "value", "misfit", "row"), [m[1:] for m in MARKED], ids=[m[0] for m in MARKED])
def test_what_does_not_fit_is_a_query_of_its_client_encoded_and_marked(
    reason: str, value: bytes, misfit: Misfit, row: list[float]
) -> None:
    decoded = decode([value])
    ((model, batch),) = decoded.batches.items()
    assert not decoded.dead
    assert decoded.counters["queries"] == 1
    assert batch.clients == ["acct-1"]
    assert Misfit(int(batch.misfit[0])) == misfit
    np.testing.assert_array_equal(batch.inputs[0], row)
    assert reason in {note.reason for note in decoded.notes[model][10]}
    assert FATES[reason] == "marked"
    told_apart = Misfit.OTHER | Misfit.OUT_OF_RANGE | Misfit.UNREADABLE
    assert bool(batch.salt[0]) == bool(misfit & told_apart)
    assert batch.weight.tolist() == [1.0]


ANSWERS: list[tuple[str, Any, int, list[float]]] = [
    ("three probabilities", {"probabilities": [0.2, 0.3, 0.5]}, UNKNOWN_LABEL, [NAN, NAN]),
    ("three probabilities and a label", {"label": "yes", "probabilities": [0.2, 0.3, 0.5]}, 1, [NAN, NAN]),
    ("no probabilities", {"label": "yes", "probabilities": []}, 1, [NAN, NAN]),
    ("a probability of 2", {"label": "yes", "probabilities": [-1, 2]}, 1, [NAN, NAN]),
    ("null among them", {"label": "yes", "probabilities": [None, 1]}, 1, [NAN, NAN]),
    ("three logits", {"logits": [1, 2, 3]}, UNKNOWN_LABEL, [NAN, NAN]),
    ("an unknown label", {"label": "perhaps", "probabilities": [0.3, 0.7]}, UNKNOWN_LABEL, [0.3, 0.7]),
    ("only an unknown label", {"label": 10**30}, UNKNOWN_LABEL, [NAN, NAN]),
    ("a label in an object", {"label": {"a": 1}}, UNKNOWN_LABEL, [NAN, NAN]),
    ("a text", {"text": "I think so"}, UNKNOWN_LABEL, [NAN, NAN]),
    ("a list", [0.2, 0.8], UNKNOWN_LABEL, [NAN, NAN]),
]


@pytest.mark.parametrize(
    ("prediction", "label", "probabilities"), [a[1:] for a in ANSWERS], ids=[a[0] for a in ANSWERS]
)
def test_an_answer_that_cannot_be_read_is_missing_and_the_input_counts(
    prediction: Any, label: int, probabilities: list[float]
) -> None:
    decoded = decode([event(prediction=prediction)])
    batch = only(decoded)
    assert batch.labels.tolist() == [label]
    np.testing.assert_allclose(batch.probabilities[0], probabilities, atol=1e-6)
    assert batch.misfit.tolist() == [Misfit.ANSWER]
    assert batch.inputs.tolist() == [[0.1, 2.0, 3.5]]
    assert decoded.notes["plain"] == {10: (MisfitNote("wrong_output", "prediction"),)}


@pytest.mark.parametrize("prediction", [{"value": []}, {"value": 1e13}, {"value": "no"}, {"label": 3}, {}])
def test_a_regression_without_a_value_counts_too(prediction: Any) -> None:
    batch = only(decode([event(model_id="house", features=[1, 2], prediction=prediction)]), "house")
    assert np.isnan(batch.values).all()
    assert batch.misfit.tolist() == [Misfit.ANSWER]


def test_distinct_inputs_stay_distinct_where_their_codes_are_equal() -> None:
    pairs = [
        (event(features=[2e12, 2, 3]), event(features=[3e12, 2, 3])),
        (event(features=[12345678901234567890, 2, 3]), event(features=[12345678901234567891, 2, 3])),
        (event(features=[[1, 2]]), event(features=[[1, 3]])),
        (event(features=GONE, text="a"), event(features=GONE, text="b")),
        (named(JOB | {"job": "x"}), named(JOB | {"job": "y"})),
        (named(JOB).replace(b"clerk", b"\\ud800"), named(JOB).replace(b"clerk", b"\\ud801")),
        (named({"age": 1, "Score": 1, "job": "7"}),
         named({"age": 1, "Score": 2, "job": "7"})),
    ]  # fmt: skip
    for one, other in pairs:
        first, second, again = (next(iter(decode([value]).batches.values())).salt[0] for value in (one, other, one))
        assert first != second
        assert first == again


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"features": [[0.1, 2, 3.5]]}, [0.1, 2.0, 3.5]),
        ({"features": {"a": 1, "b": 2, "c": 3, "note": None}}, [1.0, 2.0, 3.0]),
        ({"model_id": "named", "features": [JOB], "prediction": "1"}, [1.0, 2.0, 1.0]),
        (
            {
                "model_id": "named",
                "features": JOB | {"vip": True, "tags": ["a"], "device": {"os": "x"}},
                "prediction": 1,
            },
            [1.0, 2.0, 1.0],
        ),
        ({"model_id": "nested", "features": {"device": {"os": "b", "age": {"years": 3}}, "on": True}}, [1.0, 3.0, 1.0]),
        ({"model_id": "nested", "features": {"device.os": "b", "device": {"age": {"years": 3}}, "on": 0}}, [1, 3, 0]),
    ],
)
def test_one_row_in_a_list_more_columns_nested_ones_and_booleans_fit(changes: dict[str, Any], row: list[float]) -> None:
    decoded = decode([event(**changes)])
    (batch,) = decoded.batches.values()
    assert batch.inputs.tolist() == [row]
    assert batch.misfit.tolist() == [0]
    assert not decoded.notes


def test_columns_that_the_schema_does_not_have_are_counted() -> None:
    lines = [named(JOB | more) for more in ({}, {"note": None}, {"vip": True, "n": 5})]
    assert decode([*lines, event(model_id="named", features=JOB | {"n": 5}, prediction={})]).counters[
        "extra_columns"
    ] == (4)


def test_a_column_is_named_and_its_value_is_not() -> None:
    decoded = decode([named({"age": "secret", "job": "secret", "more": "secret"})])
    assert decoded.notes["named"][10] == (
        MisfitNote("wrong_type", "age"),
        MisfitNote("missing_column", "score"),
        MisfitNote("unknown_category", "job"),
    )


def test_every_reason_code_is_produced_by_some_record() -> None:
    refused = {0: ("corrupt_batch", "checksum"), 1: ("poison", "")}
    batch = Records("log:0", [b"", b""], np.arange(2), 2, refused=refused)
    produced = {letter.reason for letter in NativeFormat(READERS).decode(batch).dead}
    listed = [r[2] for r in [*REFUSED, *LETTERED]] + [m[2] for m in MARKED] + [event(prediction=a[1]) for a in ANSWERS]
    for value in listed:
        decoded = decode([value])
        produced |= {letter.reason for letter in decoded.dead}
        produced |= {note.reason for mine in decoded.notes.values() for notes in mine.values() for note in notes}
    assert produced == set(REASONS)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"specversion": "1.0", "id": "6f1c", "source": "a", "type": "b", "inferenceservicename": "m"}', "KServe"),
        (b'{"captureData": {}, "eventMetadata": {}}', "SageMaker"),
        (b'{"databricks_request_id": "d-1", "request_time": "2026-03-20T09:00:00Z"}', "Databricks"),
        (b'{"id": "chat-1", "call_type": "acompletion", "model": "m", "startTime": 1774000800.1}', "LiteLLM"),
        (b'{"resourceSpans": []}', "OpenTelemetry"),
        (event(timestamp=1774000800123), "since the epoch"),
        (b"\x00\x00\x00\x00\x2a\x02\x06", "schema 42"),
        (b"", "empty"),
    ],
)
def test_the_detail_names_what_it_is(line: bytes, says: str) -> None:
    assert says in decode([line]).dead[0].detail


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
    batch = only(decode([named(features)]), "named")
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
        ({"label": "yes", "latency": 3}, 1, None),
        ({"label": ["yes"], "probabilities": [[0.3, 0.7]]}, 1, [0.3, 0.7]),
        ({"label": "yes", "probabilities": {"yes": 0.7, "no": 0.3}}, 1, [0.3, 0.7]),
        ({"label": "yes", "probabilities": ["0.3", "0.7"], "logits": None, "value": None}, 1, [0.3, 0.7]),
        ({"probabilities": [0.7]}, 1, [0.3, 0.7]),
        ({"label": "no", "probabilities": 0.7}, 0, [0.3, 0.7]),
        ("yes", 1, None),
    ],
)
def test_answers_of_a_classifier(prediction: Any, label: int, probabilities: list[float] | None) -> None:
    batch = only(decode([event(prediction=prediction)]))
    assert batch.labels.tolist() == [label]
    assert batch.misfit.tolist() == [0]
    if probabilities is None:
        assert np.isnan(batch.probabilities).all()
    else:
        assert batch.probabilities[0].tolist() == pytest.approx(probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("labels", "same_as_the_second"),
    [
        (("0", "1"), [1, 1.0, "1", "1.0", True, "true", "True"]),
        (("false", "true"), [True, "true", "TRUE", 1, 1.0]),
        (("False", "True"), [True, "true", 1]),
        (("1.0", "2.0"), [2, "2", 2.0]),
    ],
)
def test_labels_are_matched_by_value(labels: tuple[str, str], same_as_the_second: list[Any]) -> None:
    native = NativeFormat({"plain": InputReader(replace(PLAIN, labels=labels))})
    values = [event(prediction={"label": label}) for label in same_as_the_second]
    batch = native.decode(Records("log", values, np.arange(len(values)), len(values))).batches["plain"]
    assert batch.labels.tolist() == [1] * len(values)
    assert not batch.misfit.any()


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


@pytest.mark.parametrize(("canary", "counted"), [(True, 1), (False, 0), (None, 0), ("true", 0), (1, 0)])
def test_a_canary_is_the_query_that_its_event_says_and_is_counted(canary: Any, counted: int) -> None:
    """The log holds the truthful answer, so for the detector it is a query like others."""
    plain, flagged = decode([event()]), decode([event(canary=canary)])
    assert flagged.counters["canaries"] == counted
    assert flagged.counters["unknown_keys"] == flagged.counters["dead"] == 0
    before, after = only(plain), only(flagged)
    for column in (
        "clients",
        "who",
        "inputs",
        "labels",
        "probabilities",
        "values",
        "time_ms",
        "weight",
        "misfit",
        "salt",
    ):
        assert np.array_equal(
            np.asarray(getattr(before, column)), np.asarray(getattr(after, column)), equal_nan=column == "values"
        )
    assert plain.contents == flagged.contents or [c[0] for c in plain.contents.values()] == [
        c[0] for c in flagged.contents.values()
    ], "the same event, sent again without the mark, is one event"


def test_the_last_of_two_equal_keys_counts() -> None:
    batch = only(decode([raw("{", '{"client_id": "first", ')]))
    assert batch.clients == ["acct-1"]


@pytest.mark.parametrize("client", ["é" * 128, "a b", "юзер", "a\u202eb", "'; DROP TABLE clients;--", "{{7*7}}", "<b>"])
def test_ids_are_any_text_of_256_bytes_without_control_characters(client: str) -> None:
    assert only(decode([event(client_id=client)])).clients == [client]


@pytest.mark.parametrize(("client", "name"), [(4711, "4711"), (4711.0, "4711"), (-1, "-1"), (10**30, "1" + "0" * 30)])
def test_a_whole_number_is_a_client_id(client: Any, name: str) -> None:
    assert only(decode([event(client_id=client)])).clients == [name]


def test_null_is_as_if_absent_where_a_field_is_optional() -> None:
    names = "event_id status sampled_fraction metadata model_version text embedding messages".split()
    decoded = decode([event(**dict.fromkeys(names)), event()])
    batch = only(decoded)
    assert not batch.misfit.any()
    assert batch.inputs.tolist() == [[0.1, 2.0, 3.5]] * 2
    assert decoded.events["plain"][1].tolist() == decoded.contents["plain"][1].tolist() == [0, 0]


def test_an_event_id_may_be_of_any_type() -> None:
    for event_id in (7, True, 1.5, ["a"], {"a": 1}):
        decoded = decode([event(event_id=event_id, metadata=5)])
        assert bytes(decoded.events["plain"][0]) == json.dumps(event_id).encode()
        assert len(only(decoded)) == 1


def test_a_repetition_has_the_same_id_input_and_prediction() -> None:
    def content(**changes: Any) -> bytes:
        return bytes(decode([event(**{"event_id": "x", **changes})]).contents["plain"][0])

    assert content() == content(timestamp="2026-03-02T09:00:09Z", model_version="8")
    long = ["0." + "1" * 2000 for _ in range(3)]
    others = [
        content(**changes)
        for changes in (
            {}, {"features": [1, 2, 3]}, {"prediction": {"label": "no"}}, {"event_id": "y"}, {"features": long},
            {"features": [*long[:2], "1"]}, {"features": GONE, "text": "a"}, {"features": GONE, "text": "b"},
        )
    ]  # fmt: skip
    assert len(set(others)) == len(others)
    assert max(map(len, others)) < 1024


@pytest.mark.parametrize(
    ("stamp", "time_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-03-02T10:00:00.250+01:00", 1772442000250),
        ("2026-03-02T09:00:00.2504999Z", 1772442000250),
        ("2026-03-02t09:00:00z", 1772442000000),
        ("2026-03-02 09:00:00Z", 1772442000000),
        ("2016-12-31T23:59:60Z", 1483228799999),
        ("2017-01-01T00:59:60.5+01:00", 1483228799999),
        ("9999-12-30T00:00:00Z", 253402128000000),
    ],
)
def test_times(stamp: str, time_ms: int) -> None:
    assert only(decode([event(timestamp=stamp)])).time_ms.tolist() == [time_ms]


@pytest.mark.parametrize(
    ("status", "counter"),
    [(200, "queries"), (204, "queries"), (299, "queries"), (200.0, "queries"), (None, "queries"), (401, "denied"),
     (403, "denied"), (429.0, "denied"), (400, "failed"), (404, "failed"), (500, "failed"), (301, "failed")],
)  # fmt: skip
def test_denied_and_failed_queries_are_counted_and_nothing_else(status: float | None, counter: str) -> None:
    """Ruling 18: they carry no prediction, touch no profile, and are no dead letters."""
    answered = counter == "queries"
    value = event(status=status) if answered else event(status=status, prediction={"label": None}, features=GONE)
    decoded = decode([value])
    assert decoded.counters[counter] == 1
    assert sum(decoded.counters[c] for c in ("queries", "dead", "unmodelled", "denied", "failed")) == 1
    assert bool(decoded.batches) == answered


@pytest.mark.parametrize("status", [0, 99, 600, 999, -200, 200.5, 10**30, "403", True, [500], {}, None])
def test_a_status_that_http_does_not_have_says_nothing(status: Any) -> None:
    assert only(decode([event(status=status)])).misfit.tolist() == [0]
    assert len(decode([event(status=status, prediction=GONE)]).batches["plain"]) == 1


@pytest.mark.parametrize("status", [100, 301, 403, 429, 500])
@pytest.mark.parametrize("prediction", [{"label": "yes"}, {"probabilities": [1, 2, 3]}, 1, "yes"])
def test_an_answer_counts_whatever_the_status_says(status: int, prediction: Any) -> None:
    assert len(only(decode([event(status=status, prediction=prediction)]))) == 1


@pytest.mark.parametrize(("fraction", "weight"), [(1, 1.0), (1.0, 1.0), (0.25, 4.0), (1e-9, 1e9), (None, 1.0)])
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
        b'{"model_id": null, "features": [NaN, 5, 6], "prediction": {"label": "yes"}}',
        b'{"features": [1, 5, 6]}',
        b"[" * 100_000,
        b'{"client_id": "\xff"}',
        b"",
        b"   ",
        b'{"features": [1, 2], "prediction": {"label": "no"}}',
    ]
    found = read_reference(lines, "plain")
    assert (found.refused.reasons, found.elsewhere) == ({"too_deep": 1, "not_json": 1}, 1)
    batch, refused = reference_batch(found, PLAIN)
    np.testing.assert_array_equal(batch.inputs, [[1, 2, 3], [4, 5, 6], [math.nan, 5, 6]])
    assert batch.labels.tolist() == [1, 0, 1]
    assert batch.misfit.tolist() == [0, 0, Misfit.MISSING]
    assert refused.reasons == {"wrong_dimension": 1, "missing_prediction": 1}


def test_a_reference_of_wrong_lines_only_is_an_empty_batch() -> None:
    found = read_reference([b'{"text": "hello"}', b'{"features": 1}', b"[1]"], "plain")
    assert found.refused.reasons == {"wrong_type": 1, "not_json": 1}
    batch, refused = reference_batch(found, PLAIN)
    assert len(batch) == 0
    assert refused.reasons == {"unsupported_input": 1}


def test_one_row_or_one_answer_in_a_list_is_that_row_and_that_answer() -> None:
    line = b'{"features": [[1, 2, 3]], "prediction": {"label": ["yes"], "probabilities": [[0.1, 0.9]]}}'
    (event,) = read_reference([line], "plain").events
    assert event["features"] == [1, 2, 3]
    assert event["prediction"] == {"label": "yes", "probabilities": [0.1, 0.9]}


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
    assert counted["produced"] == len(values) == sum(counted[c] for c in BALANCE) - counted["dead_counted"]
    assert imbalance(counted) == 0
    assert counted["dead"] == len(decoded.dead)
    assert {letter.reason for letter in decoded.dead} <= set(REASONS)
    for model, batch in decoded.batches.items():
        fits = batch.misfit & ~np.uint8(Misfit.ANSWER | Misfit.RETYPED) == 0
        assert (np.abs(batch.inputs[fits]) <= 1e12).all()
        assert (np.isnan(batch.inputs).any(1) == (batch.misfit & (Misfit.MISSING | Misfit.UNREADABLE) != 0)).all()
        assert (np.isinf(batch.inputs).any(1) == (batch.misfit & Misfit.OUT_OF_RANGE != 0)).all()
        assert set(batch.offsets[batch.misfit != 0].tolist()) <= decoded.notes.get(model, {}).keys()
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
    st.lists(JSON, max_size=6),
    st.dictionaries(st.sampled_from("label probabilities logits value text embedding".split()), JSON),
)
@example([0.5, 1], {"embedding": [1, 2], "probabilities": []})
@settings(max_examples=200, deadline=None)
def test_any_row_and_any_answer_never_raise(row: list[Any], prediction: dict[str, Any]) -> None:
    values = [
        json.dumps({**EVENT, "model_id": model, "features": row, "prediction": prediction}).encode()
        for model in ("plain", "named", "house", "embeds", "writes")
    ]
    check(values)


CELL = st.floats(-1e13, 1e13) | st.integers(-(10**13), 10**13) | st.sampled_from(["clerk", "7", "pilot", ""])
SCORES = st.lists(st.floats(0, 1) | st.floats(-2, 2), max_size=3)


@given(
    st.sampled_from(["plain", "named", "house"]),
    st.lists(CELL, min_size=2, max_size=4) | st.dictionaries(st.sampled_from(["age", "score", "job", "more"]), CELL),
    st.fixed_dictionaries(
        {},
        optional={
            "label": st.sampled_from(["yes", "no", "1", 1, "perhaps"]),
            "probabilities": SCORES,
            "logits": SCORES,
            "value": st.floats(allow_nan=False, allow_infinity=False) | SCORES,
        },
    ),
)
@settings(max_examples=500, deadline=None)
def test_reading_with_care_gives_the_same_columns_as_reading_strictly(model: str, row: Any, prediction: Any) -> None:
    reader = READERS[model]
    fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode(event(features=row, prediction=prediction))
    strict = reader.strictly(fields)
    careful, answer = reader.careful_row(fields), reader.careful_answer(fields["prediction"])
    if strict is not None:
        assert repr(strict) == repr((careful.values, tuple(answer[:3])))
        assert (careful.misfit, careful.salt, careful.notes, answer.notes) == (0, 0, (), ())
