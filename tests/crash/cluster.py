"""Real processes for the crash tests: a broker, two Redis, workers of the command line, and fault proxies between them.

* The broker has two listeners: ours, which the producer uses, and one that is advertised as the proxy's port, for the workers.
* Redis A and B, one the primary and one its replica, AOF every second, each on a small disk of its own (tmpfs) where we may mount one.
  Workers reach the primary through a proxy; a fail-over points the proxy at the other.
* Workers are `querywarden ingest` and `querywarden detect`, started from the console command with nothing but an environment. A
  supervisor starts again what ended, as an orchestrator would, and writes down every end that nobody ordered.
* What workers count is read from their /metrics all the time, since a killed process tells nothing.

Everything is stopped by its own pid. A child dies with the *thread* that started it (PR_SET_PDEATHSIG), so one thread starts them all.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis
from crash.faultproxy import FaultProxy
from crash.flaky import FlakyWebhook
from support import servers
from support.servers import Kafka, Redis, free_port, wait_until

from consumers.store.layout import profile_prefix
from examples.servers import KAFKA_PROPERTIES

QUERYWARDEN = Path(sys.executable).with_name("querywarden")
RESTART_S = 0.3
PATIENCE_S = 120.0
PARTITIONS = 6
SESSION_MS = 3000
SAMPLE = re.compile(r"^(querywarden_commits_total|querywarden_records_total|querywarden_alerts_total)\{(.*)\} (\S+)$")


class ProxiedKafka(Kafka):
    """A broker of our own with a second listener, which it advertises as the port of a proxy."""

    ready_within_s = 180.0

    def __init__(self, proxied_as: int) -> None:
        super().__init__()
        self.inner_port = free_port()
        text = KAFKA_PROPERTIES.format(port=self.port, controller_port=self.controller_port, data=self.folder / "data")
        more = {
            "listeners": f",PROXIED://127.0.0.1:{self.inner_port}",
            "advertised.listeners": f",PROXIED://127.0.0.1:{proxied_as}",
            "listener.security.protocol.map": ",PROXIED:PLAINTEXT",
        }
        lines = [line + more.get(line.partition("=")[0], "") for line in text.splitlines()]
        # a killed broker may come back as soon as its last life has been given up
        lines += [
            "inter.broker.listener.name=PLAINTEXT",
            "broker.session.timeout.ms=3000",
            "broker.heartbeat.interval.ms=500",
        ]
        self._text = "\n".join(lines) + "\n"

    def launch(self) -> None:
        if not self.properties.exists():
            self._format()
        super().launch()

    def _format(self) -> None:
        self.properties.write_text(self._text)
        tool = [
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "cXctY3Jhc2gtdGVzdHMtMQ",
            "-c",
            str(self.properties),
            "--standalone",
        ]
        subprocess.run(self._java("-Xmx256m", "-XX:+UseSerialGC", *tool), check=True, capture_output=True)


class Disk:
    """A folder with an end: a tmpfs of `megabytes` where we may mount one, otherwise an ordinary folder that can't be filled."""

    def __init__(self, megabytes: int) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="querywarden-disk-"))
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(self.path)]
        self.limited = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
        self.ballast = self.path / "ballast"

    def fill(self) -> None:
        """To the last byte."""
        with contextlib.suppress(OSError), self.ballast.open("wb", buffering=0) as out:
            for size in (1 << 20, 4096, 1):
                block = b"\0" * size
                with contextlib.suppress(OSError):
                    while out.write(block) == size:
                        pass

    def free(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def remove(self) -> None:
        if self.limited:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)
        shutil.rmtree(self.path, ignore_errors=True)


class DiskRedis(Redis):
    """Redis with an append-only file, written to disk every second, on a disk of its own."""

    ready_within_s = 180.0

    def __init__(self, megabytes: int) -> None:
        self.disk = Disk(megabytes)
        super().__init__(self.disk.path)
        options = ["--appendonly", "yes", "--appendfsync", "everysec", "--repl-diskless-sync-delay", "0"]
        self.base = [*options, "--repl-backlog-size", "64mb", "--aof-rewrite-incremental-fsync", "no"]
        self.options = self.base

    def client(self, patience_s: float = 3.0) -> redis.Redis:
        """Straight to it. A fault is played with `PATIENCE_S`: a busy machine must not end the chaos."""
        return redis.Redis(port=self.port, socket_timeout=patience_s, socket_connect_timeout=patience_s)

    def forget(self) -> None:
        """Delete its data (it must not run)."""
        for path in self.disk.path.iterdir():
            if path.suffix != ".log":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def repair(self) -> None:
        """What an operator does when Redis does not read its append-only file any more: cut it where it is broken.

        A short write on a full disk leaves a part of a command in the middle of it, as of 7.0 (redis/redis#14372).
        """
        manifest = self.disk.path / "appendonlydir" / "appendonly.aof.manifest"
        subprocess.run(["redis-check-aof", "--fix", str(manifest)], input=b"y\n", capture_output=True, check=True)

    def follow(self, primary: Redis | None) -> None:
        self.options = [*self.base, "--replicaof", f"127.0.0.1 {primary.port}"] if primary else self.base

    def remove(self) -> None:
        super().remove()
        self.disk.remove()


@dataclass
class Worker:
    """A slot that one process after another fills.

    wanted     whether the supervisor starts it again
    unplanned  exit status and last words of every end that nobody ordered
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    metrics_port: int | None
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    lives: int = 0
    unplanned: list[str] = field(default_factory=list)
    stopped: bool = False
    counts: dict[int, Counter[str]] = field(default_factory=dict)

    def start(self) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command, env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                preexec_fn=servers.die_with_parent,
            )  # fmt: skip
        self.lives += 1
        self.wanted = True

    def send(self, which: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(which)
            self.stopped = which == signal.SIGSTOP

    def end(self, which: signal.Signals, within_s: float = 30.0) -> int:
        """Order it to end; returns its exit status."""
        self.wanted = False
        if self.process is None:
            return 0
        self.send(signal.SIGCONT)
        self.send(which)
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return 255

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def count(self) -> Counter[str]:
        """What all its lives counted, as far as they told."""
        return sum(self.counts.values(), Counter())


class Cluster:
    """See the head of the module. `with Cluster(...) as cluster:` starts the servers; workers are started by `start_workers`."""

    def __init__(self, folder: Path, baseline: Path, seed: int, disk_megabytes: int = 512) -> None:
        self.folder = folder
        self.baseline = baseline
        self.topic = "prediction-queries"
        self.alerts_file = folder / "alerts.jsonl"
        self.kafka_proxy_port = free_port()
        self.kafka = ProxiedKafka(self.kafka_proxy_port)
        self.redis = [DiskRedis(disk_megabytes), DiskRedis(disk_megabytes)]
        self.primary = 0
        self.repaired = 0
        self.seed = seed
        self.workers: list[Worker] = []
        self.webhook = FlakyWebhook(seed)
        self.extra: dict[str, str] = dict(self.webhook.settings)
        self._starter = ThreadPoolExecutor(1, "starter")
        self._supervising = threading.Event()
        self._threads: list[threading.Thread] = []

    # ------------------------------------------------------------------ servers

    def __enter__(self) -> Self:
        try:
            a, b = self.redis
            b.follow(a)
            self.launch(self.kafka)
            self.start(a)
            self.start(b)
            self.store_proxy = FaultProxy(a.port, self.seed)
            self.log_proxy = FaultProxy(self.kafka.inner_port, self.seed + 1, self.kafka_proxy_port)
            self.kafka.wait_ready()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._supervising.clear()
        for worker in self.workers:
            worker.end(signal.SIGKILL)
        for thread in self._threads:
            thread.join(10)
        self.store_proxy.close()
        self.log_proxy.close()
        self.webhook.close()
        for server in (self.kafka, *self.redis):
            if server.log.exists():
                shutil.copy(server.log, self.folder / f"{server.name}-{server.port}.log")
        self._remove()
        self._starter.shutdown()

    def launch(self, server: servers.Server) -> None:
        """Start a server, from whatever thread."""
        self._starter.submit(server.launch).result()

    def start(self, server: servers.Server) -> None:
        self.launch(server)
        try:
            server.wait_ready()
        except RuntimeError as refused:
            if not isinstance(server, DiskRedis) or "redis-check-aof" not in str(refused):
                raise
            server.repair()
            self.repaired += 1
            self.launch(server)
            server.wait_ready()

    def run(self, worker: Worker) -> None:
        self._starter.submit(worker.start).result()

    def _remove(self) -> None:
        for server in (self.kafka, *self.redis):
            server.kill()
            server.remove()

    @property
    def store(self) -> DiskRedis:
        """The Redis that is the primary."""
        return self.redis[self.primary]

    @property
    def replica(self) -> DiskRedis:
        return self.redis[1 - self.primary]

    @property
    def store_url(self) -> str:
        """What the workers are told."""
        return f"redis://127.0.0.1:{self.store_proxy.port}/0"

    @property
    def secrets(self) -> Path:
        """The secrets file of the workers, with the keys that seal their records."""
        return self.folder / "state" / "secrets.json"

    # ------------------------------------------------------------------ workers

    def settings(self) -> dict[str, str]:
        names = {
            "STATE_DIR": self.folder / "state",
            "BASELINES": self.baseline,
            "STORE__URL": self.store_url,
            "STORE__TIMEOUT_S": "1.0",
            "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{self.kafka_proxy_port}",
            "KAFKA__TOPIC": self.topic,
            "KAFKA__SESSION_TIMEOUT_MS": SESSION_MS,
            "KAFKA__HEARTBEAT_INTERVAL_MS": 500,
            "KAFKA__MAX_POLL_INTERVAL_MS": 10_000,
            "KAFKA__MAX_POLL_RECORDS": 500,
            "ALERTS__FILE": self.alerts_file,
        }
        mine = {k: v for k, v in os.environ.items() if not k.startswith("QUERYWARDEN_")} | {"OMP_NUM_THREADS": "1"}
        return mine | {f"QUERYWARDEN_{name}": str(value) for name, value in names.items()} | self.extra

    def add(self, name: str, command: Sequence[str], metrics: bool = True) -> Worker:
        port = free_port() if metrics else None
        bind = {"QUERYWARDEN_METRICS__BIND": f"127.0.0.1:{port}"} if port else {}
        worker = Worker(name, command, self.settings() | bind, self.folder / f"{name}.log", port)
        self.workers.append(worker)
        return worker

    def start_workers(self, ingest: int = 3, detect: int = 2) -> None:
        for kind, count in (("ingest", ingest), ("detect", detect)):
            for i in range(count):
                self.run(self.add(f"{kind}{i}", [str(QUERYWARDEN), kind]))
        self.supervise()

    def supervise(self) -> None:
        self._supervising.set()
        for work in (self._restart, self._scrape):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    def of(self, kind: str) -> list[Worker]:
        return [worker for worker in self.workers if worker.name.startswith(kind)]

    def _restart(self) -> None:
        while self._supervising.is_set():
            for worker in list(self.workers):
                process = worker.process
                if process is not None and worker.wanted and process.poll() is not None:
                    if process.returncode != -signal.SIGKILL:
                        last = worker.said().strip().splitlines()[-1:]
                        worker.unplanned.append(f"{worker.name} ended with {process.returncode}: {last}")
                    time.sleep(RESTART_S)
                    self._run_again(worker)
            time.sleep(0.05)

    def _run_again(self, worker: Worker) -> None:
        if worker.wanted and self._supervising.is_set():
            self.run(worker)

    def _scrape(self) -> None:
        while self._supervising.is_set():
            for worker in list(self.workers):
                self.scrape(worker)
            time.sleep(0.25)

    def scrape(self, worker: Worker) -> None:
        if worker.stopped or worker.metrics_port is None:
            return
        life = worker.lives
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{worker.metrics_port}/metrics", timeout=0.5) as answer:
                text = answer.read().decode()
        except (OSError, http.client.HTTPException):
            return
        found: Counter[str] = Counter()
        for line in text.splitlines():
            if match := SAMPLE.match(line):
                found[f"{match[1].removeprefix('querywarden_').removesuffix('_total')} {_outcome(match[2])}"] += int(
                    float(match[3])
                )
        if life == worker.lives:
            worker.counts[life] = found

    def counted(self) -> Counter[str]:
        return sum((worker.count() for worker in self.workers), Counter())

    def unplanned(self) -> list[str]:
        return [end for worker in self.workers for end in worker.unplanned]

    # ------------------------------------------------------------------ the store, seen directly

    def progress(self) -> int:
        """Sum of the stored offsets, from the primary itself; -1 while it does not answer."""
        try:
            with self.store.client() as client:
                found = [client.hget(f"{profile_prefix(f'{self.topic}:{p}')}meta", "off") for p in range(PARTITIONS)]
        except (redis.exceptions.RedisError, OSError):
            return -1
        return sum(int(offset) for offset in found if isinstance(offset, bytes))

    def metas(self) -> dict[str, dict[str, str]]:
        with self.store.client(PATIENCE_S) as client:
            found: dict[str, dict[str, str]] = {}
            for key in client.scan_iter(match="qw:{i.*}:meta", count=1000):
                raw: Any = client.hgetall(key)
                found[key.decode()] = {k.decode(errors="replace"): v.decode(errors="replace") for k, v in raw.items()}
            return found

    def wait_replica(self, within_s: float = PATIENCE_S) -> None:
        """Until the replica has caught up with the primary."""

        def caught_up() -> bool:
            try:
                with self.store.client() as primary, self.replica.client() as replica:
                    about: Any = replica.info("replication")
                    theirs: Any = primary.info("replication")
            except (redis.exceptions.RedisError, OSError):
                return False
            behind = int(theirs["master_repl_offset"]) - int(about.get("slave_repl_offset", -1))
            return about.get("master_link_status") == "up" and behind < 1 << 16

        wait_until(caught_up, within_s, "replication")


def _outcome(labels: str) -> str:
    match = re.search(r'outcome="([^"]*)"', labels)
    return match[1] if match else ""


@contextlib.contextmanager
def paused(server: servers.Server) -> Iterator[None]:
    server.pause()
    try:
        yield
    finally:
        server.resume()
