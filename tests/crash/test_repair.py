"""A Redis whose append-only file broke in the middle, as a full disk leaves it: refused at the start, repaired, and a lossy restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash.cluster import DiskRedis
from support.servers import NewServer, started


@pytest.fixture
def server(new_server: NewServer) -> Iterator[DiskRedis]:
    with started(new_server(DiskRedis, 64)) as redis:
        yield redis


def test_what_was_written_before_the_break_is_there_again(server: DiskRedis) -> None:
    with server.client() as client:
        for i in range(100):
            client.set(f"key-{i}", "value")
    server.kill()
    (path,) = (server.disk.path / "appendonlydir").glob("*.incr.aof")
    whole = path.read_bytes()
    middle = whole.index(b"key-60")
    path.write_bytes(whole[: middle - 9] + whole[middle:])
    server.launch()
    with pytest.raises(RuntimeError, match="redis-check-aof"):
        server.wait_ready()
    server.repair()
    server.launch()
    server.wait_ready()
    with server.client() as client:
        assert client.dbsize() == 60
