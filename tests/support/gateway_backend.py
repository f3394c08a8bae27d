"""QueryWarden as real gateways see it: the service over a Redis, and an operator's hand on it."""

from __future__ import annotations

import base64
import http.client
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from support.servers import Redis, Server, _listens, free_port

from consumers.operators.audited_write import Actor, Subject
from consumers.operators.operate import Operations
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, DecisionRow, Outcome, decision_cell
from consumers.store.redis import connect
from detector.policy import State
from detector.query import ClientKey

TENANT = "default"
OPERATOR = Actor("someone", "admin", TENANT)
ROOT = Path(__file__).resolve().parents[2]


class Service(Server):
    """`querywarden serve` as gateways see it, over a Redis, with a gateway's key. more: further settings of the gateway, as TOML."""

    name = "querywarden"

    def __init__(self, store_url: str, more: str = "", ports: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.port, self.grpc_port = ports or (self.port, free_port())
        self.store_url = store_url
        secrets_file = self.folder / "secrets.json"
        self.secrets = Secrets.load(secrets_file, create=True)
        self.store = connect(store_url, timeout_s=2.0)
        self.store.prepare(self.secrets.key_id)
        self.operations = Operations(self.store, self.secrets)
        _, key = self.operations.create_key(OPERATOR, "test-gateway", "gateway")
        self.key = str(key)
        self.settings = self.folder / "settings.toml"
        self.settings.write_text(
            f"""\
state_dir = "{self.folder}"
mode = "block"
[secrets]
file = "{secrets_file}"
[store]
url = "{store_url}"
timeout_s = 1.0
[http]
bind = "127.0.0.1:{self.port}"
[gateway]
grpc_bind = "127.0.0.1:{self.grpc_port}"
degrade = {{clear = "round=6", degrade = "round=1,canary=0123456789abcdef"}}
{more}
"""
        )

    def command(self) -> Sequence[str]:
        return [
            "env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "consumers", "serve", "--config", str(self.settings)
        ]  # fmt: skip

    def probe(self) -> bool:
        return _listens(self.port) and _listens(self.grpc_port) and self.synced()

    @property
    def edge_key(self) -> str:
        return base64.b64encode(self.secrets.edge_key(TENANT)).decode()

    def synced(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v1/authz", headers={"X-QueryWarden-Key": self.key, "X-API-Key": "probe"})
            return connection.getresponse().getheader("x-querywarden-degrade") == "round=6"
        except OSError:
            return False
        finally:
            connection.close()


class Backend:
    """A model server, a Redis and QueryWarden; `say` is what the API and `querywarden decisions` do."""

    def __init__(self, redis: Redis, service: Service, model_port: int) -> None:
        self.redis, self.service, self.model_port = redis, service, model_port

    def ports(self) -> tuple[int, int, int, str]:
        return self.model_port, self.service.port, self.service.grpc_port, self.service.key

    def say(self, client: str, state: str, seconds: int = 60, model: str = "*") -> None:
        self.service.operations.decide(OPERATOR, self._subject(client, model), state, ttl_s=seconds, reason="test")

    def undo(self, client: str, model: str = "*") -> None:
        self.service.operations.withdraw(OPERATOR, self._subject(client, model))

    def detect(self, client: str, state: State, model: str = "fraud-v3", seconds: int = 60) -> None:
        """A decision as detect records it."""
        key = ClientKey(TENANT, model, self.service.secrets.client_hash(TENANT, client))
        cell = decision_cell(key, DECISION_CELLS)
        until_s = int(time.time()) + seconds if state in ("throttle", "block") else 0
        row = DecisionRow(b"", state, 0.99, until_s, state)
        claim = self.service.store.claim_decisions(cell, "tests", "tests", 10_000)
        self.service.store.record("tests", claim.revision, Outcome(cell, rows={key: row}), "tests", 10_000)

    def _subject(self, client: str, model: str) -> Subject:
        return self.service.operations.subject(TENANT, model, client)
