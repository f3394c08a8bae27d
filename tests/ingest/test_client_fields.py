"""Fields that ingest keeps of a client: who has them, and that polls, the cache and damage make no difference to the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import victims

from consumers.ingest import loop as ingest
from consumers.ingest.admission import AdmissionLimits
from consumers.ingest.cell import Cell
from consumers.ingest.client_fields import ClientField, FieldKeys, client_fields
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.records import links, odd_contents, odd_patches, refusals, sample_events, usage
from consumers.records.links import NO_KEYS
from consumers.secrets import Secrets
from consumers.sharing_keys import SharingKey
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline
from detector.query import ClientKey

COUNTED = {refusals.FIELD}
TYING = {module.FIELD for module in (links, odd_contents, odd_patches, sample_events, usage)}
PEERS = SharingKey(b"e" * 32)
CLIENTS = ("acct-a", "acct-b", "acct-c")
NewStore = Callable[[], EmbeddedStore]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three clients take turns; every query is odd and says whence it comes and what it cost; half have a misfit."""
    rows = 40 * victims.items(120, np.random.default_rng(2))
    lines = [
        victims.line(
            row, client_id=CLIENTS[i % 3], event_id=f"e-{i}", features=["?" if i % 2 else float(row[0]), *map(float, row[1:])],
            metadata={"ip": f"203.0.113.{i % 3}"}, usage={"total_tokens": 7},
            timestamp=f"2026-03-10T00:{i // 60:02d}:{i % 60:02d}Z",
        )
        for i, row in enumerate(rows)
    ]  # fmt: skip
    return victims.write_lines(tmp_path / "log.jsonl", lines)


@pytest.fixture
def reading(baseline: Baseline, secrets: Secrets) -> Ingest:
    return Ingest({victims.MODEL: baseline}, secrets, sharing=(PEERS,))


def stored(log: Path, store: EmbeddedStore, reading: Ingest, poll: int = 1_000) -> dict[ClientKey, dict[str, bytes]]:
    """What the store holds of the clients after the log, beside their spans."""
    one = ingest.IngestLoop(FileLog([log]), store, reading, max_poll_records=poll)
    ingest.run(one, lambda: False, until_end=True, poll_timeout_s=0.0)
    (cell,) = store.cells()
    hashes = [reading.secrets.client_hash("default", name) for name in CLIENTS]
    keys = [reading.overflow(victims.MODEL), *(ClientKey("default", victims.MODEL, client) for client in hashes)]
    found = store.shards(cell, keys).fields
    return {key: {name: found[key][name] for name in found[key] if name in COUNTED | TYING} for key in found}


def entries(reading: Ingest, baseline: Baseline) -> dict[str, ClientField]:
    keys = FieldKeys(reading.secrets, "default", NO_KEYS, reading.sharing)
    return {one.name: one for one in client_fields(baseline, keys, reading.half_horizon_ms)}


def test_the_overflow_client_has_only_what_is_counted(log: Path, new_store: NewStore, reading: Ingest) -> None:
    reading.limits = AdmissionLimits(1, 100)
    found = stored(log, new_store(), reading)
    pool = found.pop(reading.overflow(victims.MODEL))
    assert pool.keys() == COUNTED, "it is many clients, so nothing ties it and it has no query to show"
    assert found
    assert all(one.keys() == COUNTED | TYING for one in found.values())


def test_polls_and_the_cache_make_no_difference(
    log: Path, new_store: NewStore, reading: Ingest, baseline: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = entries(reading, baseline)
    assert by_name.keys() == COUNTED | TYING, "templates belong to texts"

    def values() -> dict[ClientKey, dict[str, Any]]:
        found = stored(log, new_store(), reading, poll)
        return {key: {name: by_name[name].read(blob) for name, blob in mine.items()} for key, mine in found.items()}

    poll = 1_000
    whole = values()
    poll = 1
    monkeypatch.setattr("consumers.ingest.step.MAX_CACHED", 1)
    assert values() == whole, "each client was forgotten and read again before each of its queries"
    assert len(whole) == len(CLIENTS)
    assert all(mine.keys() == COUNTED | TYING and all(mine.values()) for mine in whole.values())


def test_damage_to_one_field_takes_no_other_along(
    log: Path, new_store: NewStore, reading: Ingest, baseline: Baseline
) -> None:
    by_name = entries(reading, baseline)
    (client, whole), *_ = stored(log, new_store(), reading).items()
    for name in sorted(COUNTED | TYING):
        cell = Cell("log:0", "t" * 32, 0, Counter())
        reading.take(cell, {client: {**whole, name: b"\x01damaged"}}, [client])
        kept = {other for other, blob in whole.items() if cell.values(other).get(client) == by_name[other].read(blob)}
        assert kept == (COUNTED | TYING) - {name}
