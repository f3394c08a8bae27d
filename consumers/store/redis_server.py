"""The client, the scripts and the servers that all parts of the Redis store share.

Rules: the client retries nothing by itself; one object may be used by several threads.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import redis

from consumers.errors import ConfigError, Unavailable
from consumers.store import DECISION_CELLS
from consumers.store.layout import check_decision_cell, decision_prefix, profile_prefix
from consumers.store.scripts import Scripts, read_scripts, translated

LAYOUT_KEY = "qw:layout"
CELLS_KEY = "qw:cells"
DETECTORS_KEY = "qw:detectors"

_REGISTER_EVERY_S = 30.0


class RedisServer:
    """One object may be used by several threads.

    client          a `redis.Redis` or `redis.RedisCluster` that retries nothing by itself
    min_replicas    how many replicas must confirm a write that the log could not bring back (never a commit)
    decision_cells  as the store was made with
    warnings        what could not be checked, one line each
    """

    def __init__(
        self,
        client: Any,
        *,
        min_replicas: int = 0,
        scripts: Mapping[str, str] | None = None,
        decision_cells: int = DECISION_CELLS,
    ) -> None:
        self.decision_cells = decision_cells
        self._client = client
        self._cluster = isinstance(client, redis.RedisCluster)
        self._scripts = Scripts(client, dict(scripts or read_scripts()))
        self._min_replicas = min_replicas
        self._registered: dict[str, float] = {}
        self.warnings: list[str] = []

    def pressure(self) -> float:
        shares = [0.0]
        with translated():
            for server in self._servers():
                memory = self._client.info("memory", **server)
                if memory.get("maxmemory"):
                    shares.append(memory["used_memory"] / memory["maxmemory"])
        return max(shares)

    def replicas(self) -> int | None:
        """The fewest connected replicas that any primary has; None where INFO is not permitted."""
        with translated():
            try:
                found = [self._client.info("replication", **where) for where in self._servers()]
            except redis.exceptions.NoPermissionError:
                return None
        return min(int(one.get("connected_slaves", 0)) for one in found)

    def close(self) -> None:
        self._client.close()

    # --- for the cells

    def _keep(self, name: str, key: str, arguments: Sequence[str | bytes | int], cell: str = "") -> list[Any]:
        """Run a script whose effect the log could not bring back."""
        return self._scripts.run_replicated(name, key, arguments, self._min_replicas, cell)

    def _decision_prefix(self, cell: int) -> str:
        return decision_prefix(cell, self.decision_cells)

    def _decision_meta(self, cell: int) -> str:
        check_decision_cell(cell, self.decision_cells)
        return f"{decision_prefix(cell, self.decision_cells)}meta"

    def _at_once(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Answers to plain commands (each: method, arguments...) in one round trip a server; in order within one key's."""
        if not commands:
            return []
        with translated(), self._client.pipeline(transaction=False) as pipe:
            for method, *arguments in commands:
                getattr(pipe, method)(*arguments)
            return list(pipe.execute())

    def _servers(self) -> list[dict[str, Any]]:
        """Arguments that address each primary of a cluster; the one server otherwise."""
        if self._cluster:
            return [{"target_nodes": node} for node in self._client.get_primaries()]
        return [{}]

    def _check_servers(self) -> None:
        """Refuse servers that are too old or that would drop state to make room."""
        with translated():
            for where in self._servers():
                try:
                    about = {**self._client.info("server", **where), **self._client.info("memory", **where)}
                except redis.exceptions.NoPermissionError:
                    self.warnings.append("redis: INFO is not permitted: version and maxmemory-policy were not checked")
                    about = {}
                version = str(about.get("redis_version", "7.0.0"))
                if int(version.partition(".")[0]) < 7:
                    raise ConfigError(f"store: Redis {version} is too old, 7.0 is the oldest that works")
                policy = about.get("maxmemory_policy", "noeviction")
                if policy != "noeviction":
                    raise ConfigError(
                        f"store: maxmemory-policy is {policy}; it must be noeviction, otherwise data is lost"
                    )
                try:
                    self._client.time(**where)
                except redis.exceptions.NoPermissionError:
                    self.warnings.append("redis: TIME is not permitted: old alerts and touched lists are not trimmed")

    def _register(self, cell: str) -> None:
        with translated():
            self._client.sadd(CELLS_KEY, cell)
        self._registered[cell] = time.monotonic()

    def _register_again(self, cell: str) -> None:
        """A failover may cost the list of cells a name whose cell it spared, and nobody would read that cell."""
        if time.monotonic() - self._registered.get(cell, 0.0) >= _REGISTER_EVERY_S:
            try:
                self._register(cell)
            except Unavailable:  # the commit is stored all the same; the next one tries again
                self._registered.pop(cell, None)


def profile_meta(cell: str) -> str:
    return f"{profile_prefix(cell)}meta"
