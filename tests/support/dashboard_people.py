"""A dashboard without a port, and people of every role who look at it."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.applications import Starlette
from starlette.testclient import TestClient
from support import seeded_dashboard
from support.seeded_dashboard import MODEL, SECRETS, TENANT

from consumers.http.auth import Authenticator, KeyRing
from consumers.http.dashboard import actions, handlers
from consumers.http.dashboard.handlers import Dashboard
from consumers.http.dashboard.session import Sessions
from consumers.operators.operate import Operations
from consumers.readers.queries import Reader
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline

HOST = "127.0.0.1:8080"
CLIENT = SECRETS.client_hash(TENANT, "acct-90114")
SUBJECT = {"client": CLIENT, "model": MODEL}
BLOCK = SUBJECT | {"act": "block", "reason": "r", "ttl_s": "900"}


class World:
    """A dashboard without a port; every `browser` has cookies of its own."""

    def __init__(self, folder: Path, baseline: Baseline, fill: bool = True) -> None:
        self.now = float(seeded_dashboard.NOW_S)
        clock = lambda: self.now  # noqa: E731
        self.store = EmbeddedStore(
            folder / "people.sqlite", now_s=clock
        )  # or what ends in 15 minutes ends in a long session
        self.store.prepare(SECRETS.key_id)
        self.operations = Operations(self.store, SECRETS, clock)
        if fill:
            seeded_dashboard.seed(self.store, baseline)
        self.keys = seeded_dashboard.people(self.operations) if fill else {}
        self.ring = KeyRing(SECRETS, clock)
        self.ring.refresh(self.store)
        self.dashboard = Dashboard(
            reader=Reader(self.store, SECRETS, TENANT, clock, {MODEL: baseline}),
            auth=Authenticator(self.ring, tenant=TENANT, open_on_loopback=True),
            sessions=Sessions(b"k" * 32),
            baselines={MODEL: baseline},
            now_s=clock,
        )
        self.app = Starlette(
            routes=[*handlers.routes(self.dashboard), *actions.routes(self.dashboard, self.operations)]
        )

    def browser(self, role: str = "", host: str = HOST) -> TestClient:
        client = TestClient(self.app, base_url=f"http://{host}", follow_redirects=False, client=("127.0.0.1", 50_000))
        if role:
            form = {"csrf": token(client, "/login"), "key": self.keys[role], "next": "/"}
            assert client.post("/login", data=form).status_code == 303
        return client

    def rulings(self) -> int:
        return len(self.store.operator_entries("decision", TENANT)[1])


def token(client: TestClient, path: str = "/decisions") -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', client.get(path).text)
    assert found is not None
    return found[1]
