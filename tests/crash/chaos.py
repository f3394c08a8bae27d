"""The faults, and the lanes that play them side by side.

A lane owns what it breaks (ingest workers, detect workers, store, log, network), so faults of different lanes overlap and faults of one
never do. Each lane deals its faults from a bag that is shuffled by the seed; it deals the bag out once at least, then again until the
producer is done. Every fault is healed before its function returns.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import redis
from crash.cluster import PATIENCE_S, SESSION_MS, Cluster, paused
from crash.faultproxy import KINDS, Fault

LEASE_S = 10.0


@dataclass
class Chaos:
    """What was done to a cluster.

    faults       kind → how often
    lost_bytes   of the replication stream, acknowledged by a primary and unknown to the replica that took over, one a fail-over
    recovered_s  from a fail-over to the first offset that moved again
    progress     a number that rises while workers write; -1: not to be had
    """

    cluster: Cluster
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    lost_bytes: list[int] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    failed: list[BaseException] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    progress: Callable[[], int] = field(init=False)
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.progress = self.cluster.progress

    def run(self, plan: Mapping[str, Sequence[str]], busy: Callable[[], bool], calm_s: tuple[float, float]) -> None:
        """Play all lanes until each dealt its bag out once and `busy` is false. Raises what a lane raised."""
        lanes = [
            threading.Thread(target=self._lane, args=(name, bag, busy, calm_s), name=name, daemon=True)
            for name, bag in plan.items()
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        if self.failed:
            self.failed[0].add_note("\n".join(self.story))
            raise self.failed[0]

    def _lane(self, name: str, bag: Sequence[str], busy: Callable[[], bool], calm_s: tuple[float, float]) -> None:
        rng = random.Random(f"{self.seed}:{name}")
        try:
            first = True
            while (first or busy()) and not self.failed:
                for kind in rng.sample(bag, len(bag)):
                    if self.failed or not (first or busy()):
                        break
                    time.sleep(rng.uniform(*calm_s))
                    self.under_load()
                    self.do(kind, rng)
                first = False
        except BaseException as error:
            self.failed.append(error)

    def under_load(self, at_most_s: float = 6.0) -> None:
        """Wait until commits are seen: a fault that strikes a cluster at rest proves nothing."""
        before, until_s = self.progress(), time.monotonic() + at_most_s
        while time.monotonic() < until_s:
            time.sleep(0.1)
            now = self.progress()
            if 0 <= before < now:
                self.faults["(under load)"] += 1
                return
            before = now

    def do(self, kind: str, rng: random.Random) -> None:
        self.story.append(f"{time.monotonic() - self.began_s:6.1f}s {kind}")
        FAULTS[kind.partition(":")[0]](self, rng, kind.partition(":")[2])
        self.faults[kind] += 1

    # ------------------------------------------------------------------ workers

    def kill(self, rng: random.Random, which: str) -> None:
        """SIGKILL; the supervisor starts another."""
        rng.choice(self.cluster.of(which)).send(signal.SIGKILL)

    def zombie(self, rng: random.Random, which: str) -> None:
        """SIGSTOP until everybody has given it up, then SIGCONT: it believes that it still owns what it had."""
        worker = rng.choice(self.cluster.of(which))
        gone_s = LEASE_S if which == "detect" else SESSION_MS / 1000
        process = worker.process
        worker.send(signal.SIGSTOP)
        time.sleep(gone_s * rng.uniform(1.1, 1.3))
        if worker.process is process:
            worker.send(signal.SIGCONT)

    # ------------------------------------------------------------------ store

    def kill_store(self, rng: random.Random, _: str) -> None:
        self.cluster.store.kill()
        time.sleep(rng.uniform(0.1, 1.0))
        self.cluster.start(self.cluster.store)

    def failover(self, rng: random.Random, _: str) -> None:
        """Promote the replica while the primary still takes writes; what it acknowledged since then is lost when it is killed."""
        cluster = self.cluster
        cluster.wait_replica()
        old, new = cluster.store, cluster.replica
        with new.client(PATIENCE_S) as promoted, old.client(PATIENCE_S) as primary:
            promoted.replicaof("NO", "ONE")
            here = _offset(promoted)
            time.sleep(rng.uniform(0.3, 1.3))
            there = _offset(primary)
        old.kill()
        killed_s = time.monotonic()
        self.lost_bytes.append(there - here)
        cluster.primary = 1 - cluster.primary
        cluster.store_proxy.point_at(new.port)
        new.follow(None)
        old.forget()
        old.follow(new)
        cluster.start(old)
        self._recovered(killed_s)
        cluster.wait_replica()

    def _recovered(self, since_s: float) -> None:
        """Note when an offset moved; nothing is noted when nobody writes, or when another lane keeps the log away."""
        before = self.progress()
        while time.monotonic() - since_s < 15:
            if self.progress() > before:
                self.recovered_s.append(time.monotonic() - since_s)
                return
            time.sleep(0.05)

    def pause_store(self, rng: random.Random, _: str) -> None:
        """CLIENT PAUSE: longer than a worker waits for an answer."""
        hold_s = rng.uniform(1.2, 2.5)
        with suppress(redis.exceptions.RedisError), self.cluster.store.client() as client:
            client.execute_command("CLIENT", "PAUSE", int(hold_s * 1000), "ALL")
        time.sleep(hold_s)

    def stop_store(self, rng: random.Random, _: str) -> None:
        with paused(self.cluster.store):
            time.sleep(rng.uniform(1.2, 2.5))

    def full_disk(self, rng: random.Random, _: str) -> None:
        """The disk of the append-only file is full: Redis refuses writes (MISCONF). Without a mount of our own: full memory."""
        store = self.cluster.store
        if not store.disk.limited:
            self.full_memory(rng, "")
            return
        store.disk.fill()
        try:
            time.sleep(rng.uniform(1.5, 2.5))
            with store.client(PATIENCE_S) as client:
                about: Any = client.info("persistence")
            self.faults["(disk seen full)"] += about["aof_last_write_status"] == "err"
        finally:
            store.disk.free()

    def full_memory(self, rng: random.Random, _: str) -> None:
        """No memory left: Redis refuses writes (OOM)."""
        self._squeeze(lambda used: 1 << 20, rng.uniform(1.0, 2.0))

    def tight_memory(self, rng: random.Random, _: str) -> None:
        """Nearly none left, for longer than a worker goes without asking: new clients are counted together."""
        self._squeeze(lambda used: int(used * 1.12), rng.uniform(6.0, 8.0))

    def _squeeze(self, most: Callable[[int], int], hold_s: float) -> None:
        """For so long Redis may take no more than `most` says, given what it takes now, in bytes."""
        with self.cluster.store.client(PATIENCE_S) as client:
            about: Any = client.info("memory")
            client.config_set("maxmemory", most(about["used_memory"]))
            try:
                time.sleep(hold_s)
            finally:
                client.config_set("maxmemory", "0")

    # ------------------------------------------------------------------ log

    def kill_log(self, rng: random.Random, _: str) -> None:
        self.cluster.kafka.kill()
        time.sleep(rng.uniform(0.1, 0.5))
        self.cluster.start(self.cluster.kafka)

    def stop_log(self, rng: random.Random, _: str) -> None:
        with paused(self.cluster.kafka):
            time.sleep(rng.uniform(1.0, 2.5))

    # ------------------------------------------------------------------ network

    def network(self, rng: random.Random, where: str) -> None:
        """``store-KIND`` or ``log-KIND``: the proxy misbehaves for a while."""
        side, _, kind = where.partition("-")
        proxy = self.cluster.store_proxy if side == "store" else self.cluster.log_proxy
        proxy.set(
            Fault(
                kind,
                seconds=rng.uniform(0.05, 0.4),
                bytes_s=rng.randint(100_000, 2_000_000),
                size=rng.randint(64, 20_000),
            )
        )
        try:
            time.sleep(rng.uniform(0.8, 1.6))
        finally:
            proxy.heal()


def _offset(client: redis.Redis) -> int:
    about: Any = client.info("replication")
    return int(about["master_repl_offset"])


FAULTS: dict[str, Callable[[Chaos, random.Random, str], None]] = {
    "kill": Chaos.kill,
    "zombie": Chaos.zombie,
    "kill_store": Chaos.kill_store,
    "failover": Chaos.failover,
    "pause_store": Chaos.pause_store,
    "stop_store": Chaos.stop_store,
    "full_disk": Chaos.full_disk,
    "full_memory": Chaos.full_memory,
    "tight_memory": Chaos.tight_memory,
    "kill_log": Chaos.kill_log,
    "stop_log": Chaos.stop_log,
    "network": Chaos.network,
}

SHORT: dict[str, list[str]] = {
    "ingest": ["kill:ingest", "zombie:ingest", "kill:ingest", "zombie:ingest"],
    "detect": ["kill:detect", "zombie:detect"],
    "store": ["failover", "full_disk", "failover", "kill_store", "pause_store", "stop_store"],
    "log": ["kill_log", "stop_log"],
    "network": [f"network:{side}-{kind}" for side, kind in zip(("store", "log") * 4, KINDS, strict=True)],
}
LONG: dict[str, list[str]] = {
    "ingest": ["kill:ingest", "zombie:ingest"],
    "detect": ["kill:detect", "zombie:detect"],
    "store": ["failover", "failover", "failover", *SHORT["store"], "full_memory"],
    "log": ["stop_log", "stop_log", "kill_log"],
    "network": [f"network:{side}-{kind}" for side in ("store", "log") for kind in KINDS],
}
"""Lane → bag. The short plan is dealt out once, the long one again and again."""
