"""Token usage: what of `usage` counts, that it leaves with the horizon, is the same however polls are cut, and what its budget does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import victims

from consumers import replay
from consumers.detect.step import Detect
from consumers.ingest.loop import IngestLoop, run
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.records import usage
from consumers.records.decision import StoredDecision
from consumers.records.usage import MOST_TOKENS
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from consumers.times import rfc3339
from detector.baseline import Baseline
from detector.policy import ExposureBudget, Policy
from detector.query import ClientKey

NewStore = Callable[[], EmbeddedStore]
MODEL = victims.MODEL


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (b'{"total_tokens":30,"prompt_tokens":10,"completion_tokens":5}', 30),
        (b'{"prompt_tokens":10,"completion_tokens":5}', 15),
        (b'{"input_tokens":10,"output_tokens":5,"cache":{"a":[1]}}', 15),
        (b'{"input_tokens":10}', 10),
        (b'{"total_tokens":-4}', 0),
        (b'{"total_tokens":1e400}', 0),
        (b'{"total_tokens":99999999999999999999999}', MOST_TOKENS),
        (b'{"total_tokens":9999999999999}', MOST_TOKENS),
        (b'{"total_tokens":"30"}', 0),
        (b"null", 0), (b"[]", 0), (b"7", 0), (b"{", 0),
    ],
)  # fmt: skip
def test_what_counts(text: bytes, tokens: int) -> None:
    assert usage.tokens_of(text) == tokens


@given(st.binary(max_size=40))
def test_no_bytes_raise(blob: bytes) -> None:
    assert usage.tokens_of(blob) >= 0
    assert usage.together([blob, None]) >= 0


def lines_of(n: int, days: float, **more: Any) -> list[bytes]:
    """A client with ten tokens a query, one query an hour or so, and one that states none."""
    rows = victims.items(2 * n, np.random.default_rng(5))
    times_ms = [round(1000 * (1_773_100_000 + i // 2 * days * 86_400 / n)) for i in range(2 * n)]
    return [
        victims.line(
            row, client_id=("writer", "silent")[i % 2], event_id=f"e-{i}", timestamp=rfc3339(times_ms[i]),
            **({"usage": {"prompt_tokens": 7, "completion_tokens": 3}} if i % 2 == 0 else {}), **more,
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip


def tokens_after(folder: Path, store: EmbeddedStore, reading: Ingest, lines: list[bytes], poll: int) -> dict[str, int]:
    log = FileLog([victims.write_lines(folder / f"log-{poll}.jsonl", lines)])
    run(IngestLoop(log, store, reading, max_poll_records=poll), lambda: False, until_end=True, poll_timeout_s=0.0)
    keys = {c: ClientKey("default", MODEL, reading.secrets.client_hash("default", c)) for c in ("writer", "silent")}
    (cell,) = store.cells()
    fields = store.shards(cell, list(keys.values())).fields
    return {client: usage.together([fields.get(key, {}).get("u")]) for client, key in keys.items()}


def test_tokens_are_added_up_once_whatever_a_poll_holds(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets
) -> None:
    reading = Ingest({MODEL: baseline}, secrets)
    lines = lines_of(40, 0.001)
    for poll in (3, 1000):
        again = [*lines, *lines[:10]]  # sent twice by the producer: counted once
        assert tokens_after(tmp_path, new_store(), reading, again, poll) == {"writer": 400, "silent": 0}
    assert tokens_after(tmp_path, new_store(), reading, lines_of(40, 0.01, sampled_fraction=0.5), 50)["writer"] == 800


def test_a_sum_stops_where_every_reader_still_holds_it(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets
) -> None:
    most = {"usage": {"total_tokens": usage.MOST_TOKENS}, "sampled_fraction": 1e-9}
    lines = [
        victims.line(row, client_id="writer", event_id=f"e-{i}", **most)
        for i, row in enumerate(victims.items(300, np.random.default_rng(5)))
    ]
    reading = Ingest({MODEL: baseline}, secrets)
    assert tokens_after(tmp_path, new_store(), reading, lines, 100)["writer"] == usage.MOST_KEPT


def test_what_is_older_than_the_horizon_is_gone(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets
) -> None:
    reading = Ingest({MODEL: baseline}, secrets, horizon_days=2.0)
    kept = tokens_after(tmp_path, new_store(), reading, lines_of(100, 10.0), 17)["writer"]
    assert 100 <= kept <= 210, "one to two of ten days, a day a window"


def test_a_budget_in_tokens_tells_and_throttles_and_suspects_nobody(
    tmp_path: Path, new_store: NewStore, baseline: Baseline, secrets: Secrets
) -> None:
    def judged(budget: ExposureBudget) -> tuple[dict[str, StoredDecision], list[dict[str, Any]]]:
        detect = Detect({MODEL: baseline}, secrets, Policy(0.01, "block", budget))
        log = FileLog([victims.write_lines(tmp_path / "log.jsonl", lines_of(40, 0.01))])
        result = replay.replay(log, new_store(), Ingest({MODEL: baseline}, secrets), detect)
        return {row.client_id: row for row in result.scores.values()}, result.alerts

    rows, _ = judged(ExposureBudget())
    assert {c: (row.tokens, row.decision.reason) for c, row in rows.items()} == {
        "writer": (400, "no_evidence"), "silent": (0, "no_evidence"),
    }  # fmt: skip
    rows, _ = judged(ExposureBudget(tokens_alert=100, tokens_throttle=300))
    assert rows["writer"].decision.state == "clear"
    assert (rows["writer"].decision.reason, rows["writer"].decision.enforced) == ("token_budget", "throttle")
    assert rows["silent"].decision.reason == "no_evidence"
    assert rows["writer"].score(MODEL)["tokens"] == 400
    assert "tokens" not in rows["silent"].score(MODEL)
