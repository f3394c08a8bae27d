"""Fixtures for everybody: the real servers, each started once a session and only when a test asks for it.

    kafka_bootstrap   "127.0.0.1:port"            session
    topic             a factory of topics with unique names: ``topic(partitions=4) -> str``
    redis_url         "redis://127.0.0.1:port/n"  an empty database of its own for each test
    valkey_url        the same on Valkey
    baseline          one small baseline of the loan model
    secrets           secrets of a deployment, the same in every test
    new_store         a factory of prepared embedded stores
    served            a seeded HTTP service, see `support.seeded_api`

    new_server        makes a server of the test's own; `support.servers.started` runs it
    model_port        the example's model server, which hears what a gateway tells it

A missing server skips the test with the command that installs it, and fails it under ``CI=true``.

A test that uses one of these, however indirectly, is marked by what it needs (`NEEDS`) and as `server`: nobody keeps a list of them. Under
``--no-servers``, which is `make check`, starting one by another way is an error.
"""

from __future__ import annotations

import itertools
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest
import redis
from kafka import KafkaAdminClient
from support import lanes, seeded_api, text_models, victims
from support.gateway_peers import model_server
from support.servers import Kafka, NewServer, Redis, Server, Valkey, free_port, or_skip

from consumers.secrets import Secrets
from consumers.store.embedded import EmbeddedStore
from detector.baseline import Baseline

# Servers are started by fork, and gRPC's own handlers of a fork can hang the child before it becomes the server.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

NEEDS = MappingProxyType(
    {
        "kafka_broker": "kafka",
        "kafka_bootstrap": "kafka",
        "redis_server": "redis",
        "valkey_server": "valkey",
        "new_server": "server",
        "browser": "browser",
    }
)
"""Fixture → the marker of every test that uses it."""

_databases = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    if config.option.no_servers:

        def refuse(self: Server) -> None:
            raise AssertionError(
                f"{self.name} is started by a test that is not marked `server`: take it from a fixture"
            )

        setattr(Server, "launch", refuse)  # noqa: B010 - mypy lets no method be replaced otherwise


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needed = {NEEDS[name] for name in getattr(item, "fixturenames", ()) if name in NEEDS}
        needed |= {mark.name for mark in item.iter_markers()} & set(NEEDS.values())  # a parameter that asks by itself
        for name in sorted(needed | {"server"} if needed else needed):
            item.add_marker(name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dst-seed", type=int, help="simulation: run this seed only, and print its trace")
    parser.addoption(
        "--lanes", type=Path, metavar="FOLDER", help="run the files that no other process with this folder took"
    )
    parser.addoption("--no-servers", action="store_true", help="let a test fail that starts a server")


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    folder: Path | None = session.config.option.lanes
    if folder is None or session.config.option.collectonly:
        return None
    lanes.run(session, folder)
    return True


def _started(kind: type[Server], request: pytest.FixtureRequest) -> Iterator[Server]:
    server = or_skip(kind)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        server.kill()
        kept = server.keep_log() if request.session.testsfailed else None
        if kept is not None:
            request.config.stash.setdefault(_KEPT, []).append(f"{server.name}: {kept}")
        shutil.rmtree(server.folder, ignore_errors=True)


_KEPT = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_KEPT, []):
        terminalreporter.write_line(f"server log kept: {line}")


@pytest.fixture(scope="session")
def kafka_broker(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """Our own broker, for tests that pause it; they leave it running. Others take `kafka_bootstrap`."""
    for server in _started(Kafka, request):
        assert isinstance(server, Kafka)
        yield server


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> str:
    """Address of a real Kafka broker."""
    running = os.environ.get("QUERYWARDEN_TEST_KAFKA")
    if running:
        return running
    broker: Kafka = request.getfixturevalue("kafka_broker")
    return broker.bootstrap


@pytest.fixture
def topic(kafka_bootstrap: str) -> Iterator[Callable[..., str]]:
    """Factory of topics that nobody else uses; they are deleted afterwards."""
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    made: list[str] = []

    def create(partitions: int = 4, **config: str) -> str:
        name = f"qw-test-{uuid.uuid4().hex[:12]}"
        options = {"num_partitions": partitions, "replication_factor": 1, "configs": config}
        admin.create_topics({name: options}, wait_for_metadata=True)
        made.append(name)
        return name

    try:
        yield create
    finally:
        if made:
            admin.delete_topics(made)
        admin.close()


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a real Redis, shared: tests take `redis_url`."""
    yield from _address(Redis, "QUERYWARDEN_TEST_REDIS", request)


@pytest.fixture(scope="session")
def valkey_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a real Valkey, shared: tests take `valkey_url`."""
    yield from _address(Valkey, "QUERYWARDEN_TEST_VALKEY", request)


def _address(kind: type[Redis], variable: str, request: pytest.FixtureRequest) -> Iterator[str]:
    running = os.environ.get(variable)
    if running:
        yield running.rstrip("/")
        return
    for server in _started(kind, request):
        assert isinstance(server, Redis)
        yield server.url


def _own_database(address: str) -> Iterator[str]:
    """A database that is empty now, and is emptied again afterwards; never one that held somebody's keys."""
    with redis.Redis.from_url(address) as client:
        count = int(client.config_get("databases")["databases"])
    for _ in range(count):
        url = f"{address}/{next(_databases) % count}"
        with redis.Redis.from_url(url) as client:
            if client.dbsize() == 0:
                yield url
                client.flushdb()
                return
    raise RuntimeError(f"{address} has no empty database")


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    yield from _own_database(redis_server)


@pytest.fixture
def valkey_url(valkey_server: str) -> Iterator[str]:
    yield from _own_database(valkey_server)


@pytest.fixture(scope="session")
def baseline() -> Baseline:
    return victims.baseline()


@pytest.fixture(scope="session")
def text_baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    """Of a model whose inputs are texts."""
    return text_models.fitted(tmp_path_factory.mktemp("text")).baseline


@pytest.fixture(scope="session")
def secrets() -> Secrets:
    return Secrets(b"s" * 16, b"p" * 32, b"k" * 32)


@pytest.fixture
def new_store(tmp_path: Path, secrets: Secrets) -> Iterator[Callable[[], EmbeddedStore]]:
    """Factory of prepared stores in files of their own."""
    opened: list[EmbeddedStore] = []

    def create() -> EmbeddedStore:
        store = EmbeddedStore(tmp_path / f"store{len(opened)}.sqlite")
        store.prepare(secrets.key_id)
        opened.append(store)
        return store

    yield create
    for store in opened:
        store.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[seeded_api.World]:
    with seeded_api.world(tmp_path) as world:
        yield world


@pytest.fixture(scope="session")
def new_server() -> NewServer:
    return or_skip


@pytest.fixture(scope="session")
def model_port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", free_port()), model_server())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
