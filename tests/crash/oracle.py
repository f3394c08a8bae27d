"""The oracle: what the store holds against a clean replay of the ledger. Counts and sets exactly, sums within 1e-8, scores within 1e-6.

While a store's memory is full, clients that it does not know yet are counted together, as one client (`OVERFLOW`). A clean replay
knows no full memory. So queries may be there instead of with their client, one for one and counted as such; such a client is *late*: its
count is judged, the rest of its profile can't be. Where nothing was counted together, nobody is late.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import redis
from crash.cluster import QUERYWARDEN, Cluster
from crash.ledger import Ledger

from consumers.keyring import Keyring
from consumers.records.ledger import OVERFLOW, imbalance
from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from consumers.store.layout import client_from_text
from consumers.store.redis import connect
from consumers.store.sealed import RecordSealer, profile_place, sealed_store
from detector.baseline_file import read_baseline
from detector.fold_arrays import Memory
from detector.profile import Profile
from detector.profile_shape import Shape
from detector.query import ClientKey

FLAGGED = ("throttle", "block")
CLOSE = 1e-6
CELL = re.compile(r"^qw:\{i\.(.+)\.\d+\}:p:")
"""The log cell in the key of a profile (`layout.py`)."""
Row = dict[str, Any]
Spans = Mapping[str, bytes]


@dataclass
class Replayed:
    """What a clean replay of the ledger says."""

    scores: dict[str, Row]
    alerts: dict[str, Row]
    profiles: dict[ClientKey, Spans]


@dataclass
class Verdict:
    """Zeros, if all is well.

    lost, doubled  queries, summed over clients
    wrong          clients whose profile differs in anything
    pooled, late   queries that were counted together while the memory was full, and the clients that they are of
    """

    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    pooled: int = 0
    late: frozenset[str] = frozenset()


def called(command: str, *arguments: str, settings: Mapping[str, str]) -> list[Row]:
    done = subprocess.run(
        [str(QUERYWARDEN), command, *arguments], env=dict(settings), capture_output=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]


def replayed(folder: Path, ledger: Path, baseline: Path, settings: Mapping[str, str]) -> Replayed:
    """Replay the ledger with the same secrets, so that hashes and ids are the same."""
    store, scores, alerts = folder / "replay.sqlite", folder / "scores.jsonl", folder / "first.jsonl"
    called(
        "replay", str(ledger), "--baseline", str(baseline), "--store", str(store), "--scores", str(scores),
        "--alerts", str(alerts), settings=settings,
    )  # fmt: skip
    found: dict[ClientKey, Spans] = {}
    kept = sealed_store(EmbeddedStore(store), Keyring(folder / "state" / "secrets.json"), "auto")
    try:
        clients = [key for key, _ in kept.decisions("default")]
        for cell in kept.cells():
            found |= {key: spans_of(values) for key, values in kept.shards(cell, clients).fields.items() if values}
    finally:
        kept.close()
    return Replayed(rows_of(scores), rows_of(alerts), found)


def rows_of(path: Path) -> dict[str, Row]:
    """Client → row; what is told of a campaign belongs to none."""
    return {row["client_id"]: row for row in map(json.loads, path.read_bytes().splitlines()) if "client_id" in row}


def spans_of(values: Mapping[str, bytes]) -> Spans:
    return {name: blob for name, blob in values.items() if name.startswith("w:")}


def stored(
    url: str, pattern: str = "qw:{i.*}:p:*", apart: Container[ClientKey] = (), secrets: Path | None = None
) -> dict[ClientKey, Spans]:
    """Every profile in a Redis but those `apart`. A client in two cells is a mistake of the harness: the ledger is keyed.

    secrets: the file with the keys that sealed them; None: they are not sealed
    """
    sealer = None if secrets is None else RecordSealer(Keyring(secrets))
    found: dict[ClientKey, Spans] = {}
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=pattern, count=1000):
            name = client_from_text(key.decode().rpartition(":p:")[2])
            if name in apart:
                continue
            values: Any = client.hgetall(key)
            assert name not in found, f"{name} is in two cells"
            fields = {k.decode(): v for k, v in values.items()}
            if sealer is not None:
                place = profile_place(unquote(CELL.findall(key.decode())[0]), name)
                fields = {k: sealer.opened(blob, place + k.encode()).content for k, blob in fields.items()}
            found[name] = spans_of(fields)
    return found


def differences(left: Profile, right: Profile) -> list[str]:
    """Fields that differ: numbers that were counted exactly, sums of floats within 1e-8."""
    found = []
    for one in fields(Profile):
        a, b = getattr(left, one.name), getattr(right, one.name)
        if isinstance(a, Memory):
            arrays: list[tuple[Any, Any]] = list(zip(a, b, strict=True)) if isinstance(b, Memory) else []
            same = bool(arrays) and all(np.array_equal(x, y) for x, y in arrays)
        elif isinstance(a, float) or (isinstance(a, np.ndarray) and a.dtype.kind == "f"):
            same = np.shape(a) == np.shape(b) and bool(np.allclose(a, b, rtol=1e-8, atol=1e-12, equal_nan=True))
        else:
            same = np.array_equal(a, b)
        if not same:
            found.append(one.name)
    return found


def compare(expected: Mapping[ClientKey, Spans], got: Mapping[ClientKey, Spans], shape: Shape) -> Verdict:
    verdict = Verdict()
    for client in expected.keys() | got.keys():
        want, have = expected.get(client, {}), got.get(client, {})
        gap = _queries(want, shape) - _queries(have, shape)
        verdict.lost += max(gap, 0)
        verdict.doubled += max(-gap, 0)
        if want.keys() != have.keys():
            verdict.wrong.append(f"{client.client}: spans {sorted(want)} and {sorted(have)}")
            continue
        for name in want:
            differ = differences(Profile.from_bytes(want[name], shape), Profile.from_bytes(have[name], shape))
            if differ:
                verdict.wrong.append(f"{client.client}: {', '.join(differ)}")
    return verdict


def _queries(spans: Spans, shape: Shape) -> int:
    """Queries of the longest span."""
    return max((Profile.from_bytes(blob, shape).queries for blob in spans.values()), default=0)


def shape_of(baseline: Path) -> Shape:
    read = read_baseline(baseline.read_bytes())
    return Shape.of(read.map, len(read.table.need))


# --------------------------------------------------------------------------------------------- the whole judgement


def judge(cluster: Cluster, ledger: Ledger) -> Verdict:
    """Replay the ledger and hold the store against it."""
    expected = replayed(cluster.folder, ledger.path, cluster.baseline, cluster.settings())
    return assert_exactly_once(cluster, ledger, expected)


def assert_exactly_once(cluster: Cluster, ledger: Ledger, expected: Replayed) -> Verdict:
    """P1, P5 and P18 on a cluster that has drained; raises AssertionError with what is wrong."""
    url = f"redis://127.0.0.1:{cluster.store.port}/0"
    settings = cluster.settings() | {"QUERYWARDEN_STORE__URL": url}
    scores = {row["client_id"]: row for row in called("clients", "--json", settings=settings)}
    counted = {client: row["queries"] for client, row in scores.items()}
    pooled, late = assert_counts(cluster, ledger, counted)
    key_of = keys_of(cluster)
    apart = {key_of(client) for client in late} | {key_of(OVERFLOW)}
    judged = {key: spans for key, spans in expected.profiles.items() if key not in apart}
    verdict = compare(judged, stored(url, apart=apart, secrets=cluster.secrets), shape_of(cluster.baseline))
    verdict.pooled, verdict.late = pooled, late
    assert (verdict.lost, verdict.doubled, verdict.wrong) == (0, 0, []), verdict
    assert scores.keys() - late - {OVERFLOW} == expected.scores.keys() - late
    for client, row in expected.scores.items():
        if client not in late:
            assert abs(scores[client]["suspicion"] - row["suspicion"]) <= CLOSE, client
            assert scores[client]["state"] == row["state"], client
    assert_alerts(cluster, expected, settings, late | {OVERFLOW})
    assert_balance(cluster, ledger)
    return verdict


def assert_counts(cluster: Cluster, ledger: Ledger, counted: Mapping[str, int]) -> tuple[int, frozenset[str]]:
    """Each query is with its client, or was counted together. Returns how many were, and the clients that lack them."""
    pooled = sum(int(meta.get("n:pooled", 0)) for meta in cluster.metas().values())
    assert counted.get(OVERFLOW, 0) == pooled
    gaps = {client: n - counted.get(client, 0) for client, n in ledger.good.items()}
    late = frozenset(client for client, gap in gaps.items() if gap > 0)
    known = {client: n for client, n in counted.items() if client != OVERFLOW and client not in late}
    right = {client: n for client, n in ledger.good.items() if client not in late}
    assert known == right, _first_difference(right, known)
    assert sum(gaps[client] for client in late) == pooled, f"{sum(gaps[c] for c in late)} are missing, {pooled} counted"
    return pooled, late


def keys_of(cluster: Cluster) -> Callable[[str], ClientKey]:
    secrets = Secrets.load(cluster.secrets)
    model = read_baseline(cluster.baseline.read_bytes()).model_id
    return lambda client: ClientKey("default", model, secrets.client_hash("default", client))


def assert_alerts(cluster: Cluster, expected: Replayed, settings: Mapping[str, str], apart: Container[str]) -> None:
    """Every client that the replay flags was reported under the same id; no update twice in the outbox; all of the outbox was sent.

    apart: clients that are not judged.

    A campaign's id is that of its birth, which depends on what was known of its members when somebody looked: only its sending is judged.
    """
    wanted = {row["alert_id"]: client for client, row in expected.alerts.items() if client not in apart}
    sent = delivered(cluster.alerts_file)
    got = {row["alert_id"]: row["client_id"] for row in sent.values() if row.get("client_id", OVERFLOW) not in apart}
    assert got == wanted, f"missing {wanted.keys() - got.keys()}, unexpected {got.keys() - wanted.keys()}"
    store = connect(settings["QUERYWARDEN_STORE__URL"])
    try:
        outbox = [alert.uid for alert in store.alerts()]
    finally:
        store.close()
    assert len(outbox) == len(set(outbox)), [uid for uid, n in Counter(outbox).items() if n > 1]
    assert set(outbox) <= sent.keys()
    assert set(outbox) <= cluster.webhook.taken.keys(), "alerts that the webhook never took"
    assert cluster.webhook.strange == 0, "posts whose signature does not fit"
    listed = called("alerts", "--json", settings=settings)
    assert {row["alert_id"] for row in listed if row.get("client_id", OVERFLOW) not in apart} == wanted.keys()


def delivered(path: Path) -> dict[str, Row]:
    """``alert_id/update`` → alert, of what the sink got."""
    rows = map(json.loads, path.read_bytes().splitlines()) if path.exists() else ()
    return {f"{row['alert_id']}/{row['update']}": row for row in rows}


def assert_balance(cluster: Cluster, ledger: Ledger) -> None:
    """produced = processed + dead + the rest, in each cell and in all, and equal to what the ledger sent. No healthy record is
    quarantined: what the ledger did not spoil is a query."""
    total: Counter[str] = Counter()
    for cell, meta in cluster.metas().items():
        counts = {name[2:]: int(value) for name, value in meta.items() if name.startswith("n:")}
        assert imbalance(counts) == 0, (cell, counts)
        assert "d:poison" not in meta, f"{cell}: {meta['d:poison']} healthy records quarantined"
        total.update(counts)
    assert total["produced"] == ledger.sent
    assert total["queries"] == ledger.good.total()
    assert total["dead"] == ledger.bad
    assert total["gap"] == 0


def _first_difference(ledger: Mapping[str, int], counted: Mapping[str, int]) -> str:
    wrong = {c: (n, counted.get(c, 0)) for c, n in ledger.items() if counted.get(c, 0) != n}
    wrong |= {c: (0, n) for c, n in counted.items() if c not in ledger}
    return f"{len(wrong)} clients (ledger, store): {dict(list(wrong.items())[:5])}"
