"""A rehearsal on texts: it asks as much as clients of the traffic do, but nothing that its encoder learned from or that thieves brought."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import text_models

from consumers.fit import fit, rehearsal
from consumers.log.files import FileLog
from consumers.log.references import ReferenceLine, read_reference
from consumers.schemas import understand
from consumers.text_fitting import POOLED_OF_ONE, LearnedTexts, generic_texts, learn_texts
from detector.fitting.texts import fold_of
from detector.query import QueryBatch

LARGEST = 100
BROUGHT = [g.text for g in generic_texts()[4000:4060]]
"""What a thief in the traffic asks."""


@pytest.fixture(scope="module")
def learned() -> LearnedTexts:
    asked = text_models.questions()
    raw = read_reference(
        [json.dumps(text_models.event(None, text)).encode() for text in asked[:120]], text_models.MODEL
    )
    events = [text_models.event(f"c{i // LARGEST}", text, i) for i, text in enumerate(asked[200:1800])]
    events += [text_models.event("thief", text, i) for i, text in enumerate(BROUGHT)]
    lines = [ReferenceLine("", json.dumps(event).encode()) for event in events]
    schema = understand(raw, None).schema
    return learn_texts(raw, schema, lines, text_models.MODEL, frozenset(), np.random.default_rng(0))


def test_pools_hold_few_texts_of_a_client_that_their_encoder_has_not_seen(learned: LearnedTexts) -> None:
    asked = text_models.questions()
    client = {text: f"c{i // LARGEST}" for i, text in enumerate(asked[200:1800])}
    whose: dict[str, int] = {}
    for k, pool in enumerate(learned.pools):
        for text in pool:
            owner = client.get(text)
            assert fold_of(owner if owner is not None else text) == k
            if owner is not None:
                whose[owner] = whose.get(owner, 0) + 1
    assert len(whose) == 16
    assert 20 < min(whose.values()) <= max(whose.values()) <= POOLED_OF_ONE


def test_what_a_thief_brought_is_in_no_pool(learned: LearnedTexts) -> None:
    pooled = {text for pool in learned.pools for text in pool}
    assert len(pooled & {*BROUGHT}) <= 0.1 * len(BROUGHT)


def test_tools_ask_more_than_the_reference_and_no_more_than_a_client(learned: LearnedTexts) -> None:
    """A larger one would be judged unlike a client of its size, whose masses are damped beyond what the calibration covers."""

    def played(honest: QueryBatch | None) -> list[int]:
        asked = rehearsal(_asked(1, 1), learned.schema, 0, learned, honest).queries
        return [len(np.unique(asked.salt[asked.who == i])) for i in range(len(asked.clients))]

    assert max(played(None)) > max(map(len, learned.pools)) > 2 * len(learned.reference)
    assert 200 < max(played(_asked(3, 300))) <= 300


def test_of_a_model_that_writes_no_exposure_is_estimated_and_the_fit_says_so(tmp_path: Path) -> None:
    def written(line: bytes) -> bytes:
        return json.dumps(json.loads(line) | {"prediction": {"text": "In the app, under Settings."}}).encode()

    traffic = tmp_path / "traffic.jsonl"
    traffic.write_bytes(b"\n".join(map(written, text_models.log(0, 25)[1])) + b"\n")
    reference = [written(json.dumps(text_models.event(None, text)).encode()) for text in text_models.questions()[:300]]
    fitted = fit(text_models.MODEL, reference, FileLog([str(traffic)]), exposure=True)
    assert fitted.baseline.map.schema.task == "generation"
    assert fitted.baseline.estimator is None
    assert any("no estimate of exposure" in line for line in fitted.said)


def _asked(clients: int, each: int) -> QueryBatch:
    """Clients, each with its number of different queries."""
    n = clients * each
    who = np.repeat(np.arange(clients, dtype=np.int32), each)
    return QueryBatch(
        [f"c{i}" for i in range(clients)], who, np.zeros((n, 1)), np.zeros(n, np.int32), np.full((n, 1), np.nan, np.float32),
        np.zeros(n), np.zeros(n, np.int64), np.ones(n, np.float32), np.arange(n), salt=np.arange(n, dtype=np.uint64) % each + 1,
    )  # fmt: skip
