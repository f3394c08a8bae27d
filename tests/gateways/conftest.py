"""What the tests of real gateways share: Redis, QueryWarden in front of a model server, and an operator's hand on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.gateway_backend import Backend, Service
from support.servers import NewServer, Redis, started


@pytest.fixture(scope="session")
def backend(model_port: int, new_server: NewServer) -> Iterator[Backend]:
    with started(new_server(Redis)) as redis, started(Service(redis.url)) as service:
        yield Backend(redis, service, model_port)
        service.store.close()
