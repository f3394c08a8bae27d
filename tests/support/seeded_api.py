"""A service with two tenants, for the tests of the API: seeded through the store's own protocol, answered in process or on a port."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from starlette.testclient import TestClient
from support.rows import stored_row

from consumers.enforcement.refresher import Refresher
from consumers.enforcement.restrictions import Restrictions
from consumers.http import server
from consumers.http.api.application import build
from consumers.http.api.context import Api
from consumers.http.auth import Authenticator, Certificates, KeyRing, Tokens
from consumers.http.gateway import Gateway
from consumers.http.identities import Identities
from consumers.http.middleware.stack import MiddlewareStack
from consumers.http.producer import LogProducer
from consumers.http.restriction_feed import DecisionFeed
from consumers.http.token_buckets import TokenBuckets
from consumers.log.formats import NativeFormat
from consumers.log.writers import FileWriter
from consumers.operators.audit import Mirror
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.readers.gateways import Modes
from consumers.readers.queries import Reader
from consumers.records.alert import packed_alert
from consumers.records.decision import StoredDecision, campaign_key, packed_decision
from consumers.records.frameworks import FRAMEWORKS
from consumers.records.operator_entries import ROLES
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, Outcome, ServiceStore, decision_cell
from consumers.store.embedded import EmbeddedStore
from consumers.telemetry.metrics import Metrics
from consumers.times import rfc3339
from detector.query import ClientKey

OURS, FOREIGN = "acme", "rival"
MODEL = "fraud-v3"
MODELS = {OURS: MODEL, FOREIGN: "churn-v1"}
SECRETS = Secrets(b"s" * 16, b"p" * 32, b"k" * 32)
CLIENTS = ("thief", "scraper", "clerk", "robot")
STATES = ("block", "throttle", "watch", "clear")
CAMPAIGN = "c-1"
CAMPAIGNS = {OURS: CAMPAIGN, FOREIGN: "c-2"}


def client_hash(client: str, tenant: str = OURS) -> str:
    return SECRETS.client_hash(tenant, client)


def alert_id(client: str, tenant: str = OURS) -> str:
    return SECRETS.client_hash(tenant, "alert:" + client)


def decided(client: str, p: float, state: str, **more: Any) -> StoredDecision:
    evidence = [{"signal": "novelty_roots", "statistic": 12.5, "p_value": p, "text": "12 of 40 queries are odd"}]
    now = int(time.time())
    fields: dict[str, Any] = {
        "client_id": client, "state": state, "reason": "extraction", "since_s": now - 60, "until_s": now + 3600 if state != "clear" else 0,
        "episode": 0, "enforced": "clear", "queries": 40, "distinct": 30.0, "suspicion": 1 - p, "p_value": p, "calibrated": True,
        "in_order": True, "family": "unknown", "evidence": evidence, "trail": [[10, 0.5, 1000], [40, 1 - p, 2000]], "cells": ["q:0"],
        "coverage": [3, 0, 1], "last_ms": now * 1000, "update": -1, "alert": None,
        "history": [[now - 60, state, "extraction", 1 - p]],
    }  # fmt: skip
    return stored_row(**(fields | more))


def alert_of(one: StoredDecision, tenant: str, update: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "alert_id": alert_id(one.client_id, tenant), "time": rfc3339(one.last_ms), "kind": "client", "client_id": one.client_id,
        "campaign_id": None, "model_id": MODELS[tenant], "state": one.decision.state, "suspicion": one.assessment.suspicion,
        "queries_seen": one.assessment.queries, "extraction": None, "family": one.assessment.family,
        "evidence": msgspec.to_builtins(one.assessment.evidence), "update": update, "calibrated": True,
        "reason": one.decision.reason, "enforced": "clear", "tenant": tenant, "frameworks": list(FRAMEWORKS),
    } | more  # fmt: skip


def keep(
    store: ServiceStore, tenant: str, rows: Sequence[StoredDecision], alerts: Sequence[dict[str, Any]] = ()
) -> None:
    """Write rows and alerts, as detect would."""
    cells: dict[int, Outcome] = {}
    model = MODELS[tenant]
    for one in rows:
        key = ClientKey(tenant, model, client_hash(one.client_id, tenant))
        cell = decision_cell(key, DECISION_CELLS)
        cells.setdefault(cell, Outcome(cell)).rows[key] = packed_decision(one, SECRETS, tenant)
    for body in alerts:
        cell = decision_cell(ClientKey(tenant, model, client_hash(body["client_id"], tenant)), DECISION_CELLS)
        cells.setdefault(cell, Outcome(cell)).alerts.append(packed_alert(body, int(time.time() * 1000), SECRETS))
    for cell, outcome in cells.items():
        claim = store.claim_decisions(cell, "seed", "0" * 32, 60_000)
        store.record("0" * 32, claim.revision, outcome, "seed", 60_000)
        store.release_decisions(cell, "seed")


def seed(store: ServiceStore, tenant: str = OURS) -> None:
    rows = [
        decided(
            f"{c}@{tenant}" if tenant != OURS else c,
            10.0 ** (i - 5),
            s,
            campaign_id=CAMPAIGNS[tenant] if i < 2 else None,
        )
        for i, (c, s) in enumerate(zip(CLIENTS, STATES, strict=True))
    ]
    alerts = [alert_of(one, tenant) for one in rows[:2]]
    keep(store, tenant, rows, alerts)


@dataclass
class World:
    """store and parts of a service; keys: (tenant, role) → key."""

    store: EmbeddedStore
    front: MiddlewareStack
    operations: Operations
    ring: KeyRing
    reader: Reader
    view: Restrictions
    refresher: Refresher
    written: Path
    mirror: Mirror
    keys: dict[tuple[str, str], str] = field(default_factory=dict)

    def client(self, role: str | None = "admin", tenant: str = OURS, **more: Any) -> TestClient:
        headers = {} if role is None else {"Authorization": f"Bearer {self.keys[tenant, role]}"}
        return TestClient(self.front, headers=headers, raise_server_exceptions=False, follow_redirects=False, **more)

    def keep_campaign(self, row: StoredDecision, alert: dict[str, Any]) -> None:
        """A campaign's own row and alert, as detect would write them."""
        key = campaign_key(OURS, MODEL, row.client_id)
        outcome = Outcome(decision_cell(key, DECISION_CELLS))
        outcome.rows[key] = packed_decision(row, SECRETS, OURS)
        outcome.alerts.append(packed_alert(alert, int(time.time() * 1000), SECRETS))
        claim = self.store.claim_decisions(outcome.cell, "seed", "0" * 32, 60_000)
        self.store.record("0" * 32, claim.revision, outcome, "seed", 60_000)
        self.store.release_decisions(outcome.cell, "seed")

    def key(self, role: str, tenant: str = OURS, name: str = "") -> str:
        _, text = self.operations.create_key(Actor("setup", "admin", tenant), name or f"{role}-more", role)
        self.ring.refresh(self.store)
        assert text is not None
        return text


@contextlib.contextmanager
def world(
    folder: Path,
    *,
    tokens: Tokens | None = None,
    certificates: Certificates | None = None,
    open_on_loopback: bool = False,
    filled: bool = True,
    rate_per_s: float = 0.0,
    burst: int = 200,
    write: Callable[[Sequence[tuple[bytes, bytes]]], list[bool]] | None = None,
    format: NativeFormat | None = None,
    baselines: Mapping[str, Any] | None = None,
) -> Iterator[World]:
    store = EmbeddedStore(folder / "world.sqlite")
    store.prepare(SECRETS.key_id)
    mirror = Mirror(folder / "audit.jsonl")
    operations = Operations(store, SECRETS, mirror=mirror)
    keys: dict[tuple[str, str], str] = {}
    if filled:
        for tenant in (OURS, FOREIGN):
            seed(store, tenant)
            for role in ROLES:
                _, text = operations.create_key(Actor("setup", "admin", tenant), f"{role}-key", role)
                assert text is not None
                keys[tenant, role] = text
    ring = KeyRing(SECRETS)
    ring.refresh(store)
    auth = Authenticator(ring, tokens, certificates, OURS, open_on_loopback)
    metrics = Metrics()
    view = Restrictions("block")
    gateway = Gateway(view, Identities(["x-api-key"], SECRETS), auth.gateway, metrics)
    refresher = Refresher(store, view, metrics)
    refresher.turn()
    reader = Reader(store, SECRETS, OURS, baselines=baselines or {}, modes=Modes("block"))
    written = folder / "queries.jsonl"
    producer = LogProducer(format or NativeFormat({}, True), write or FileWriter(written).write, OURS)
    feed = DecisionFeed(view, lambda key: reader.of(key.tenant).named(key.model, key.client))
    app = build(Api(reader, operations, ring, feed, producer))
    front = MiddlewareStack(
        app,
        auth,
        metrics,
        lambda: None,
        gateway,
        Gateway.matches,
        known=TokenBuckets(rate_per_s, burst),
        unknown=TokenBuckets(rate_per_s, burst),
    )
    yield World(store, front, operations, ring, reader, view, refresher, written, mirror, keys)
    store.close()


@contextlib.contextmanager
def on_a_port(front: MiddlewareStack, tls: server.Tls | None = None) -> Iterator[int]:
    """The application behind the real server; gives its port."""
    listener = server.listen("127.0.0.1:0")
    port = int(listener.getsockname()[1])
    ended = threading.Event()
    failed: list[BaseException] = []

    def answer() -> None:
        try:
            server.run(front, listener, ended.is_set, tls)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield port
    finally:
        ended.set()
        thread.join(20)
        assert not thread.is_alive()
    assert not failed
