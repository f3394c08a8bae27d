"""Where stores keep things, for their conformance suite: a SQLite file, a database of a server, a cluster."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from support.servers import Redis

from consumers.store import Store
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import RedisStore, connect


class SQLiteFile:
    def __init__(self, path: Path, kind: type[EmbeddedStore] = EmbeddedStore) -> None:
        self.path, self.kind = path, kind

    def open(self) -> Store:
        return self.kind(self.path)

    def dump(self) -> object:
        db = sqlite3.connect(self.path)
        try:
            return list(db.iterdump())
        finally:
            db.close()

    def wipe(self) -> None:
        for file in self.path.parent.glob(f"{self.path.name}*"):
            file.unlink()


class RedisDatabase:
    def __init__(self, url: str, scripts: dict[str, str] | None = None) -> None:
        self.url, self.scripts = url, scripts
        self.opened: list[RedisStore] = []
        self.raw: Any = redis.Redis.from_url(url)

    def open(self) -> RedisStore:
        store = connect(self.url, timeout_s=20)
        if self.scripts is not None:
            store = RedisStore(redis.Redis.from_url(self.url, socket_timeout=20), scripts=self.scripts)
        self.opened.append(store)
        return store

    def all_keys(self) -> list[bytes]:
        return sorted(self.raw.scan_iter(count=1000))

    def dump(self) -> object:
        read: dict[bytes, Callable[[bytes], object]] = {
            b"string": self.raw.get,
            b"hash": self.raw.hgetall,
            b"set": self.raw.smembers,
            b"zset": lambda key: self.raw.zrange(key, 0, -1, withscores=True),
            b"stream": self.raw.xrange,
        }
        found = {}
        for key in self.all_keys():
            kind = self.raw.type(key)
            if kind != b"none":  # expired since
                found[key] = (kind, read[kind](key), self.raw.ttl(key) >= 0)
        return found

    def wipe(self) -> None:
        self.raw.flushdb()

    def close(self) -> None:
        for store in self.opened:
            store.close()
        self.raw.close()


class RedisCluster(RedisDatabase):
    """Three nodes, all slots: whatever crosses slots fails here."""

    def __init__(self, nodes: list[Redis]) -> None:
        super().__init__(nodes[0].url)
        self.raw.close()
        self.raw = redis.RedisCluster.from_url(nodes[0].url)
        self.url = nodes[0].url.replace("redis://", "redis+cluster://")
        self.wipe()

    def wipe(self) -> None:
        self.raw.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
