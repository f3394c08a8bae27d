"""What counts as the text of an event, and what becomes of an event whose input is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from support import text_models

from consumers.log import Records
from consumers.log.formats import Decoded, NativeFormat
from consumers.log.inputs import InputReader
from consumers.log.texts import written, written_in
from detector.baseline import Baseline
from detector.query import Misfit
from detector.text import digest

MODEL = text_models.MODEL


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "user", "content": "a"}], "a"),
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "s\na"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "a\nc"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, "b"]}], "a\nb"),
        ([{"content": "a"}], "a"),
        ([{"role": "user", "parts": [{"type": "text", "content": "a"}, {"text": "b"}]}], "a\nb"),
        ([{"role": "assistant", "content": "b"}], ""),
    ],
)  # fmt: skip
def test_messages_are_what_the_client_wrote(messages: Any, text: str) -> None:
    found = written("messages", messages)
    assert found is not None
    assert found.text == text


@pytest.mark.parametrize("value", [[], "a", {}, [1], [{"role": "user"}], [{"role": "user", "content": None}], 7])
def test_messages_without_a_text_are_no_input(value: Any) -> None:
    assert written("messages", value) is None


def test_the_assistants_messages_tell_queries_apart_and_nothing_else() -> None:
    first, second = (
        written_in({"messages": [{"role": "assistant", "content": said}, {"role": "user", "content": "go on"}]})
        for said in ("steal this", "and this")
    )
    assert first is not None
    assert second is not None
    assert first.text == second.text
    assert first.digest != second.digest


def decoded(baseline: Baseline, *events: dict[str, Any]) -> Decoded:
    native = NativeFormat({MODEL: InputReader(baseline.map.schema)})
    values = [json.dumps(event).encode() for event in events]
    return native.decode(
        Records("t", values, np.arange(len(values)), len(values), [str(i) for i in range(len(values))])
    )


def test_a_text_is_a_row_and_its_digest(text_baseline: Baseline) -> None:
    event = text_models.event
    out = decoded(
        text_baseline,
        event("a", "Close my loan"),
        event("a", [{"role": "user", "content": "Close my loan"}], form="messages"),
    )
    batch = out.batches[MODEL]
    assert text_baseline.map.schema.encoder is not None
    assert np.array_equal(batch.inputs[0], text_baseline.map.schema.encoder.row("Close my loan"))
    assert np.array_equal(batch.inputs[0], batch.inputs[1])
    assert batch.salt[0] == digest("close MY  loan")
    assert batch.misfit.tolist() == [0, 0]
    assert out.notes == {}
    assert out.dead == []


def test_what_is_no_text_counts_for_its_client(text_baseline: Baseline) -> None:
    event = text_models.event
    good = event("a", "Close my loan")
    numbers = {**{k: v for k, v in good.items() if k != "text"}, "features": [1, 2]}
    nothing = {k: v for k, v in good.items() if k != "text"}
    out = decoded(text_baseline, event("a", 7), numbers, nothing, event("a", [], form="messages"), event("a", ""), good)
    batch, notes = out.batches[MODEL], out.notes[MODEL]
    assert len(batch) == 6
    assert [bool(flag & Misfit.UNREADABLE) for flag in batch.misfit] == [True, True, True, True, False, False]
    assert [notes[i][0].reason for i in range(4)] == ["wrong_type", "unsupported_input", "missing_input", "wrong_type"]
    assert [letter.reason for letter in out.dead] == ["missing_input"]
    assert len(set(batch.salt.tolist())) == 6


def test_a_repeated_text_is_one_distinct_query_however_it_is_written(text_baseline: Baseline) -> None:
    event = text_models.event
    out = decoded(
        text_baseline, event("a", "Close my loan"), event("a", "close  my LOAN"), event("a", "close my loans")
    )
    hashes = text_baseline.map.measure(out.batches[MODEL], bytes(16)).hashes.tolist()
    assert hashes[0] == hashes[1] != hashes[2]
