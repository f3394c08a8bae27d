"""What the tests of real gateways share: a model server, Redis, QueryWarden in front of it, and an operator's hand on it."""

from __future__ import annotations

import http.client
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from gateways.peers import EXAMPLES
from servers import MissingServer, Redis, Server, _listens, free_port

from consumers import entries
from consumers.secrets import Secrets
from consumers.store import DECISION_CELLS, Entry, Operation, Restriction
from consumers.store.redis import connect

KEY = "a-key-of-this-gateway"
TENANT = "default"
ROOT = Path(__file__).resolve().parents[2]


class Service(Server):
    """QueryWarden as gateways see it, over a Redis."""

    name = "querywarden"

    def __init__(self, store_url: str) -> None:
        super().__init__()
        self.grpc_port = free_port()
        self.store_url = store_url
        self.secrets_file = self.folder / "secrets.json"
        self.secrets = Secrets.load(self.secrets_file, create=True)

    def command(self) -> Sequence[str]:
        program = str(Path(__file__).with_name("service.py"))
        where = [self.store_url, str(self.secrets_file), str(self.port), str(self.grpc_port), KEY]
        return ["env", f"PYTHONPATH={ROOT}:{os.environ.get('PYTHONPATH', '')}", sys.executable, program, *where]

    def probe(self) -> bool:
        return _listens(self.port) and _listens(self.grpc_port) and self.synced()

    def synced(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v1/authz", headers={"X-QueryWarden-Key": KEY, "X-API-Key": "probe"})
            return connection.getresponse().getheader("x-querywarden-degrade") == "round=6"
        except OSError:
            return False
        finally:
            connection.close()


class Backend:
    """A model server, a Redis and QueryWarden; `say` is an operator's decision, written as the API writes it."""

    def __init__(self, redis: Redis, service: Service, model_port: int) -> None:
        self.redis, self.service, self.model_port = redis, service, model_port
        self.store = connect(redis.url, timeout_s=2.0)

    def ports(self) -> tuple[int, int, int, str]:
        return self.model_port, self.service.port, self.service.grpc_port, KEY

    def hashed(self, client: str) -> str:
        return self.service.secrets.client_hash(TENANT, client)

    def say(self, client: str, state: str, seconds: int = 60, model: str = "*") -> None:
        hashed, until_s = self.hashed(client), int(time.time()) + seconds
        value = entries.Ruling(hashed, model, state, until_s, False, "test", "", "someone", int(time.time()))
        put = Entry(TENANT, "decision", entries.entry_key(model, hashed), entries.packed(value), until_s)
        self._operate(Operation(puts=[put]))

    def undo(self, client: str, model: str = "*") -> None:
        self._operate(Operation(drops=[(TENANT, "decision", entries.entry_key(model, self.hashed(client)))]))

    def _operate(self, operation: Operation) -> None:
        revision, _ = self.store.operator_entries("decision")
        self.store.operate(revision, operation)


def example_module(name: str) -> ModuleType:
    """A Python example, imported from its file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def model_port() -> Iterator[int]:
    """The example's model server, which also tells which of our headers reached it (in ``X-Seen-…``)."""
    answers: Any = example_module("model_server").Answers

    class Telling(answers):  # type: ignore[misc]
        def end_headers(self) -> None:
            for name, value in self.headers.items():
                if name.lower().startswith("x-querywarden-"):
                    self.send_header(name.lower().replace("x-querywarden-", "X-Seen-"), value)
            super().end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", free_port()), Telling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def started(server: Server) -> Iterator[Any]:
    """A server, started; its log is shown when it dies at once."""
    try:
        server.start()
        yield server
    finally:
        server.remove()


def or_skip(kind: type[Server], *arguments: Any, **words: str) -> Server:
    """A server that is installed; otherwise skip, or fail under CI=true."""
    try:
        return kind(*arguments, **words)
    except MissingServer as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def backend(model_port: int) -> Iterator[Backend]:
    for redis in started(or_skip(Redis)):
        for service in started(Service(redis.url)):
            backend = Backend(redis, service, model_port)
            yield backend
            backend.store.close()


__all__ = ["DECISION_CELLS", "KEY", "Restriction"]
