"""A Redis whose append-only file broke in the middle, as a full disk leaves it: refused at the start, repaired, and a lossy restart."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from crash.cluster import DiskRedis
from support.servers import MissingServer


@pytest.fixture
def server() -> Iterator[DiskRedis]:
    made = DiskRedis(64)
    try:
        made.launch()
        made.wait_ready()
    except MissingServer as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    yield made
    made.kill()
    made.remove()


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
