"""A store as a busy week leaves it, without the week: decision rows, alerts, a campaign, people's decisions; and the app that serves it.

Rows are written through the store's own protocol; the baseline is the small one of `victims`, so that charts show real honest clients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from support import victims
from support.rows import stored_row

from consumers.http.auth import Authenticator, KeyRing
from consumers.http.dashboard import actions, handlers
from consumers.http.dashboard.handlers import Dashboard
from consumers.http.dashboard.health_page import Pulse, ShownSink
from consumers.http.dashboard.session import Sessions
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.records.alert import packed_alert
from consumers.records.decision import StoredDecision, packed_decision
from consumers.records.frameworks import FRAMEWORKS
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, Checkpoint, DeadLetter, Outcome, Store, decision_cell
from consumers.store.embedded import EmbeddedStore
from consumers.times import rfc3339
from detector.baseline import Baseline
from detector.features import REGIONS
from detector.policy import FLAGGED, STATES
from detector.query import ClientKey
from detector.signals import SIGNAL_NAMES, SIGNALS

TENANT, MODEL = "default", victims.MODEL
NOW_S = int(time.time())
SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
ADMIN = Actor("setup", "admin", TENANT)

SUSPECTS: Sequence[tuple[str, str, str, float, int, str]] = (
    ("partner-eu-7f21", "block", "extraction", 3.1e-5, 14_212, "novelty_roots"),
    ("acct-90114", "block", "extraction", 2.4e-4, 6_120, "step_roots"),
    ("svc-pricing-batch", "throttle", "budget_unsupported", 6.5e-4, 3_410, "mix_roots"),
    ("key-5d1f0c", "throttle", "suspicious", 0.0041, 1_874, "margin_roots"),
    ("key-5d1f0d", "throttle", "suspicious", 0.0052, 1_790, "margin_roots"),
    ("key-5d1f0e", "throttle", "suspicious", 0.0068, 1_655, "margin_roots"),
    ("research-uni-nl", "throttle", "too_few_to_block", 0.0009, 402, "jitter_roots"),
    ("acct-12288", "watch", "unusual", 0.021, 905, "lattice_roots"),
    ("mobile-app-beta", "watch", "unusual", 0.034, 22_400, "part_roots"),
)


def row(
    client_id: str, state: str, reason: str, p: float, queries: int, signal: str, baseline: Baseline, **more: Any
) -> StoredDecision:
    """A stored decision that hangs together: trail, history, evidence and coverage of one client."""
    rng = np.random.default_rng(zlib.crc32(client_id.encode("utf-8", "surrogatepass")))
    last_ms = NOW_S * 1000 - int(rng.integers(2_000, 9_000_000))
    i = SIGNAL_NAMES.index(signal)
    scale = float(baseline.calibration.scale[i])
    mass = scale * (0.4 if p > 0.05 else 1.5 + 2 * math.log10(0.05 / p))
    evidence = []
    for name, part in ((signal, 1.0), ("residual_roots", 0.35), ("flipped", 0.12)) if p < 0.5 else ():
        text = SIGNALS[SIGNAL_NAMES.index(name)].text.format(count=f"{int(mass * part) + 20:,}", base=f"{queries:,}")
        text += f"; the excess of {mass * part:,.0f} compares with {scale:,.0f} for the oddest honest client"
        evidence.append({"signal": name, "statistic": mass * part, "p_value": min(1.0, p / part**3), "text": text})
    steps = np.unique(np.geomspace(20, queries, 14).astype(int)) if p < 0.9 else np.array([queries])
    depth = np.linspace(0.1, 1.0, len(steps)) ** 1.4
    trail = [[int(q), 1 - p ** float(d), int(last_ms - (queries - q) * 900)] for q, d in zip(steps, depth, strict=True)]
    history = [
        [int(last_ms / 1000 - queries * (0.9 - 0.3 * k)) + 600, s, reason if s == state else "unusual", 1 - p ** (0.5 + 0.2 * k)]
        for k, s in enumerate(STATES[1 : STATES.index(state) + 1])
    ]  # fmt: skip
    coverage = baseline.map.region_share if p > 0.05 else rng.dirichlet(np.full(REGIONS, 0.15))
    alert = None
    if state in FLAGGED:
        early = {name: 0.6 * share for name, share in (more.get("extraction") or {}).items()} or None
        alert = {
            "alert_id": SECRETS.client_hash(TENANT, "alert" + client_id), "time": rfc3339(last_ms - 3_000_000),
            "kind": "client", "client_id": client_id, "campaign_id": more.get("campaign_id"), "model_id": MODEL,
            "state": state, "suspicion": 1 - p, "queries_seen": queries // 3, "extraction": early,
            "family": SIGNALS[i].family, "evidence": evidence, "update": 0, "calibrated": True, "reason": reason,
            "enforced": "clear", "tenant": TENANT, "frameworks": list(FRAMEWORKS),
        }  # fmt: skip
    fields: dict[str, Any] = {
        "client_id": client_id, "state": state, "reason": reason, "since_s": last_ms // 1000 - 4_000 if state != "clear" else 0,
        "until_s": NOW_S + 60_000 if alert else 0, "episode": 0, "enforced": "clear", "queries": queries, "distinct": queries * 0.83,
        "suspicion": 1 - p, "p_value": p, "calibrated": True, "in_order": True, "family": SIGNALS[i].family if p < 0.5 else "unknown",
        "evidence": evidence, "trail": trail, "cells": ["files:0"], "coverage": np.round(coverage * queries).astype(int).tolist(),
        "last_ms": last_ms, "update": 0 if alert else -1, "alert": alert, "history": history,
    }  # fmt: skip
    return stored_row(**(fields | more))


def keep(store: Store, rows: Sequence[tuple[str, StoredDecision]]) -> None:
    """Write (model, row)s and their alerts, as detect would."""
    cells: dict[int, Outcome] = {}
    for model, one in rows:
        key = ClientKey(TENANT, model, SECRETS.client_hash(TENANT, one.client_id))
        outcome = cells.setdefault(
            decision_cell(key, DECISION_CELLS),
            Outcome(decision_cell(key, DECISION_CELLS)),
        )
        outcome.rows[key] = packed_decision(one, SECRETS, TENANT)
        if one.alert:
            body = one.alert | {"model_id": model}
            at = one.last_ms - 3_000_000
            outcome.alerts.append(packed_alert(body, at, SECRETS))
    for cell, outcome in cells.items():
        claim = store.claim_decisions(cell, "seed", "0" * 32, 60_000)
        store.record("0" * 32, claim.revision, outcome, "seed", 60_000)
        store.release_decisions(cell, "seed")


def seed(store: Store, baseline: Baseline, *, exposure: bool = True) -> None:
    """The busy week."""
    rows = []
    for n, (client, state, reason, p, queries, signal) in enumerate(SUSPECTS):
        more: dict[str, Any] = {}
        if exposure and n < 7:
            fidelity = 0.92 - 0.06 * n
            more["extraction"] = {"fidelity": fidelity, "low": fidelity - 0.07, "high": min(1.0, fidelity + 0.05)}
        if client.startswith("key-5d1f0"):
            more |= {"campaign_id": "c-2f9a61", "links": ["a" * 32, "b" * 32] if client[-1] != "e" else ["b" * 32]}
        rows.append((MODEL, row(client, state, reason, p, queries, signal, baseline, **more)))
    rng = np.random.default_rng(3)
    for n in range(64):
        p = float(np.clip(rng.uniform(), 0.06, 1.0))
        rows.append(
            (
                MODEL,
                row(
                    f"acct-{20_000 + 37 * n}",
                    "clear",
                    "no_evidence",
                    p,
                    int(rng.integers(20, 4_000)),
                    "part_roots",
                    baseline,
                ),
            )
        )
    rows.append(("fraud-v3", row("acct-77", "watch", "unusual", 0.03, 512, "part_roots", baseline)))
    keep(store, rows)
    claim = store.claim("files:0", "1" * 32)
    dead = [
        DeadLetter("files:0", n, reason, "", "0" * 64, b"")
        for n, reason in enumerate(["not_json"] * 3 + ["dimension"] * 9 + ["nan"])
    ]
    store.commit("1" * 32, Checkpoint("files:0", claim.next_offset, 90_000, dead=dead, counters={"queries": 88_000}))


def people(operations: Operations) -> dict[str, str]:
    """Keys by role, a few decisions, notes and an allowlist entry."""
    keys = {}
    for role in ("viewer", "analyst", "operator", "gateway"):
        _, text = operations.create_key(ADMIN, f"{role}-key", role)
        assert text is not None
        keys[role] = text
    maria = Actor("maria", "operator", TENANT)
    partner = operations.subject(TENANT, MODEL, "partner-eu-7f21")
    operations.decide(maria, partner, "block", ttl_s=14_400, reason="confirmed with the account team")
    operations.note(
        Actor("li", "analyst", TENANT),
        ClientKey(TENANT, MODEL, partner.client),
        "Same card as the account closed in March.",
    )
    operations.allow(maria, operations.subject(TENANT, MODEL, "acct-20037"), ttl_s=86_400, reason="our own load test")
    return keys


@dataclasses.dataclass
class Served:
    """A dashboard on a port of this machine."""

    url: str
    store: EmbeddedStore
    dashboard: Dashboard
    operations: Operations
    keys: dict[str, str]


@contextlib.contextmanager
def served(
    folder: Path, baseline: Baseline, *, fill: bool = True, port: int = 0, exposure: bool = True
) -> Iterator[Served]:
    store = EmbeddedStore(folder / "dashboard.sqlite")
    store.prepare(SECRETS.key_id)
    if fill:
        seed(store, baseline, exposure=exposure)
    operations = Operations(store, SECRETS, time.time)
    keys = people(operations) if fill else {}
    ring = KeyRing(SECRETS, time.time)
    ring.refresh(store)
    reader = Reader(store, SECRETS, TENANT, time.time, {MODEL: baseline})
    sinks = [ShownSink("kafka:extraction-alerts", 0), ShownSink("webhook:soc", 2, "away since 09:12")]
    dashboard = Dashboard(
        reader=reader,
        auth=Authenticator(ring, tenant=TENANT, open_on_loopback=True),
        sessions=Sessions(SECRETS.derived("dashboard")),
        baselines={MODEL: baseline},
        now_s=time.time,
        pulse=lambda tenant: Pulse(0.4, "", sinks),
    )
    app = Starlette(routes=[*handlers.routes(dashboard), *actions.routes(dashboard, operations)])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{port}", store, dashboard, operations, keys)
    finally:
        server.should_exit = True
        thread.join(10)
        store.close()
