"""A refused record's head and detail hold nothing of its values, whatever the record looks like."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from consumers.log import Records
from consumers.log.formats import InputReader, NativeFormat
from consumers.log.redaction import HEAD_BYTES, readable_names, redacted
from consumers.store import DeadLetter
from detector.features import Column, Schema

SCHEMA = Schema(
    (Column("age", "numeric", 0.0, 1.0, 0.0), Column("home.city", "categorical", 0.0, 1.0, 1.0, ("wien", "graz"))),
    "features", True, "classification", ("no", "yes"),
)  # fmt: skip
NATIVE = NativeFormat({"m": InputReader(SCHEMA)})
SHOWN = readable_names(c.name for c in SCHEMA.columns)
EVENT: dict[str, Any] = {
    "timestamp": "2026-03-02T09:00:00Z", "client_id": "c", "model_id": "m", "features": {"age": 1, "home.city": "wien"},
    "prediction": {"label": "yes"},
}  # fmt: skip


def letters(value: bytes) -> list[DeadLetter]:
    return NATIVE.decode(Records("log:0", [value], np.zeros(1, np.int64), 1)).dead


# ------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    ("value", "head"),
    [
        (b'{"client_id": "acct-1", "ssn": 123456789}', '{"client_id": "<str 6>", "<key 3>": <int 9 digits>}'),
        (b'{"features":{"age":-1234.5,"x":null,"y":true}}',
         '{"features":{"age":<-float 10^3>,"<key 1>":null,"<key 1>":true}}'),
        (b'{"features": {"home": {"city": "wien"}}}', '{"features": {"home": {"city": "<str 4>"}}}'),
        (b"{'client_id': acct-1}", '{"client_id": <word 6>}'),
        (b'{"client_id":"acct', '{"client_id":"<str 4+>"'),
        (b'{"client\\u005fid":"acct-1"}', '{"<key 14>":"<str 6>"}'),
        (b'{"a":"client_id"}{"a":2}', '{"<key 1>":"<str 9>"}{"<key 1>":<int 1 digits>}'),
        (b'"{\\"client_id\\": 1}"', '"<str 18>"'),
        (b"GET /?token=x HTTP/1.1", "<text, 22 bytes>"),
        (b"\x1f\x8b\x08\x00", "<gzip, 4 bytes>"),
        (b"\x00\x00\x00\x00\x07" + b"x" * 2048, "<binary, 2 KiB>"),
        (b"", "<empty, 0 bytes>"),
    ],
)  # fmt: skip
def test_the_head_shows_the_shape_of_a_record(value: bytes, head: str) -> None:
    assert redacted(value, SHOWN).decode() == head


def test_a_long_record_is_cut_after_a_whole_token() -> None:
    head = redacted(json.dumps({**EVENT, "features": list(range(5000))}).encode(), SHOWN).decode()
    assert len(head.encode()) <= HEAD_BYTES
    assert head.endswith((">…", ">,…", "> …", ">, …"))


def test_details_name_no_model_and_no_number_of_the_record() -> None:
    (unknown,) = letters(json.dumps({**EVENT, "model_id": "SECRETMODEL"}).encode())
    assert (unknown.reason, unknown.detail) == ("unknown_model", "a name of 11 characters")
    (huge,) = letters(b'{"more": 7312' + b"7312" * 100 + b"e400,}")
    assert "7312" not in huge.detail


# ------------------------------------------------------------------------------------------------------- property

# no letter that the redacted form itself uses, but the signs that tempt a parser
SECRETS = st.text(string.ascii_uppercase + string.digits + "äß日\"\\'{}[]:,\n%$", min_size=4, max_size=24).filter(
    lambda s: any(c.isalnum() for c in s)
)
NUMBERS = st.integers(1000, 10**18) | st.integers(-(10**18), -1000) | st.floats(0.0001, 0.9).map(lambda v: v / 7)
PLAIN = st.none() | st.booleans() | st.integers(0, 9)


@st.composite
def planted(draw: st.DrawFn) -> tuple[list[str], Any]:
    """Secrets, and a record that holds them as keys and values at any depth."""
    secrets: list[str] = []

    def secret(_: None) -> Any:
        value = draw(SECRETS | NUMBERS)
        secrets.append(value if isinstance(value, str) else repr(value))
        return value

    leaf = PLAIN | st.none().map(secret)
    names = SECRETS | st.sampled_from(sorted(SHOWN))
    tree = st.recursive(
        leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
    )
    event = {
        **EVENT,
        **draw(st.dictionaries(st.sampled_from([*EVENT, "metadata", "status", "more"]), tree, max_size=4)),
    }
    keys = [k for k in _keys(event) if k not in SHOWN and k != "more"]
    return secrets + keys, event


def _keys(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        return [*tree, *(k for inner in tree.values() for k in _keys(inner))]
    return [k for inner in tree for k in _keys(inner)] if isinstance(tree, list) else []


Writer = Callable[[Any, int], bytes]


def cut(event: Any, n: int) -> bytes:
    whole = json.dumps(event, ensure_ascii=False).encode()
    return whole[: n % (len(whole) + 1)]


def beheaded(event: Any, n: int) -> bytes:
    whole = json.dumps(event, ensure_ascii=False).encode()
    return whole[n % (len(whole) + 1) :]


def unquoted(event: Any, n: int) -> bytes:
    """One quote is missing, so that every later string begins where it should end."""
    parts = json.dumps(event).encode().split(b'"')
    at = n % len(parts)
    return b'"'.join(parts[:at]) + b'"'.join(parts[at:])


def rotten(event: Any, n: int) -> bytes:
    return bytes(b ^ 0x80 if i % 7 == n % 7 else b for i, b in enumerate(json.dumps(event).encode()))


# how the record reaches the log
WRITERS: dict[str, Writer] = {
    "valid": lambda e, n: json.dumps(e, ensure_ascii=False).encode(),
    "escaped": lambda e, n: json.dumps(e).encode(),
    "pretty": lambda e, n: json.dumps(e, indent=2).encode(),
    "truncated": cut,
    "beheaded": beheaded,
    "without a quote": unquoted,
    "without quotes": lambda e, n: json.dumps(e).replace('"', "").encode(),
    "a Python literal": lambda e, n: str(e).encode(),
    "encoded twice": lambda e, n: json.dumps(json.dumps(e)).encode(),
    "concatenated": lambda e, n: json.dumps(e).encode() * 2,
    "framed": lambda e, n: b"\x00\x00\x00\x00\x09" + json.dumps(e).encode(),
    "as text": lambda e, n: f"level=info body={e}".encode(),
    "as UTF-16": lambda e, n: json.dumps(e).encode("utf-16"),
    "with rotten bytes": rotten,
    "far in": lambda e, n: b'{"more": "' + b"-" * (4096 - n % 300) + b'", "event": ' + json.dumps(e).encode() + b"}",
}


def shown_of(secret: str, text: str) -> list[str]:
    """Runs of four characters of the secret that are in the text; runs of mere punctuation tell nothing."""
    runs = {secret[i : i + 4] for i in range(len(secret) - 3)}
    return [run for run in runs if any(c.isalnum() for c in run) and run in text]


@given(planted(), st.sampled_from(sorted(WRITERS)), st.integers(0, 10_000))
@settings(max_examples=600, deadline=None)
@example((["ACCT4711"], {**EVENT, "timestamp": "yesterday", "client_id": "ACCT4711"}), "valid", 0)
@example((["ACCT4711"], {**EVENT, "features": {"age": "ACCT4711"}}), "truncated", 100)
def test_no_four_characters_of_a_secret_are_in_a_dead_letter(
    found: tuple[list[str], Any], writer: str, number: int
) -> None:
    secrets, event = found
    assume(not any("JSON" in secret for secret in secrets))  # a word of our own in what a letter says
    value = WRITERS[writer](event, number)
    texts = [redacted(value, SHOWN).decode()]
    for letter in letters(value):
        texts += [letter.head.decode(), letter.detail]
    for text in texts:
        assert len(text.encode()) <= HEAD_BYTES
        for secret in secrets:
            assert not shown_of(secret, text)


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
@settings(max_examples=300, deadline=None)
def test_any_bytes_become_a_bounded_printable_head(value: bytes) -> None:
    head = redacted(value, SHOWN).decode()
    assert len(head.encode()) <= HEAD_BYTES
    assert head.isprintable()
