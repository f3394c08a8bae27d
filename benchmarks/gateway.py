"""The gateway benchmark: how fast ``/v1/authz`` answers, on one core, over real loopback HTTP, with Redis running and stopped.

    python -m benchmarks.gateway [--short] [--out FILE]

Rules of the file:

* The service is the product's: `querywarden serve` as wired from settings, over a real Redis, asked with a real gateway key by another
  process over 32 kept-alive connections. The server is pinned to one core, Redis and the asking process to another.
* Requests come at a fixed rate whatever the answers do, and a request's time runs from when it was due: a server that stalls is not
  asked less (no coordinated omission). The server-side time is taken around the application inside the server.
* A scenario passes when at least 5,000 requests a second were answered and the server-side p99 is at most 1 ms. The controls must fail:
  an answer that asks the store each time, with Redis running and stopped. A bar that nothing fails shows nothing.
* The store is filled through its own port. Half of the restricted clients are asked about, among as many others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import multiprocessing
import os
import platform
import random
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gateway.json"
TENANT, MODEL = "default", "fraud-v3"
RATE_S = 5_200
BAR_RATE_S, BAR_P99_MS = 5_000, 1.0
CONNECTIONS = 32
ASKED_CLIENTS = 20_000
WARM_UP_S = 2.0
PRIORITY = -20


@dataclass(frozen=True, slots=True)
class Scenario:
    """restrictions: how many clients are restricted; redis: running | stopped; control: asks the store."""

    name: str
    restrictions: int
    redis: str = "running"
    control: bool = False


SCENARIOS = (
    Scenario("nobody restricted", 0),
    Scenario("1,000 restricted", 1_000),
    Scenario("100,000 restricted", 100_000),
    Scenario("100,000 restricted, Redis stopped", 100_000, "stopped"),
    Scenario("control: asks the store each time", 1_000, "running", control=True),
    Scenario("control, Redis stopped", 1_000, "stopped", control=True),
)

# ----------------------------------------------------------------------------------------------------- the server


class Timed:
    """The application with a clock around it. answers: seconds, one each, since the last `take`."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.times = array("d")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began = time.perf_counter()
        await self.app(scope, receive, send)
        self.times.append(time.perf_counter() - began)


class AsksTheStore:
    """The control: what a gateway does that has no memory. Otherwise the same."""

    def __init__(self, gateway: Any, store: Any) -> None:
        self.gateway, self.store = gateway, store

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(Exception):
            await asyncio.to_thread(self.store.operator_entries, "decision")
        await self.gateway(scope, receive, send)


def serve(pipe: Connection, folder: str, url: str, core: int | None, control: bool) -> None:
    """A server process: says its port, then times on request, until told to end."""
    _pin(core)
    import threading

    from consumers import config
    from consumers.http import server as serving
    from consumers.telemetry.metrics import Metrics
    from consumers.wiring.adapters import open_store
    from consumers.wiring.serve import build_application

    settings = config.Settings(
        store={"url": url, "timeout_s": 1.0}, secrets={"file": f"{folder}/secrets.json"}, state_dir=folder, mode="block"
    )
    with contextlib.ExitStack() as stack:
        application = build_application(settings, stack, Metrics())
        if control:
            logging.disable()  # it answers connections that were given up long ago, and says so each time
            store = stack.enter_context(open_store(settings))
            application.routing.gateway = AsksTheStore(application.gateway, store)
        timed = Timed(application)
        listener = serving.listen("127.0.0.1:0")
        ended = threading.Event()

        def commands() -> None:
            while (said := pipe.recv()) != "end":
                if said == "ready":
                    pipe.send(application.ready() or "ready")
                elif said == "take":
                    taken, timed.times = timed.times, array("d")
                    used = time.process_time()
                    pipe.send((taken.tobytes(), used, _resident_mb()))
            ended.set()

        pipe.send(listener.getsockname()[1])
        threading.Thread(target=commands, daemon=True).start()
        serving.run(timed, listener, ended.is_set)  # type: ignore[arg-type]  # it only has to be an application


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _pin(core: int | None) -> None:
    """On one core, and before everybody else on it where the system lets us: other work on the machine is not what is measured."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    _first(0)


def _first(pid: int) -> None:
    # no real-time class: it would stand still for 50 ms of every busy second
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, PRIORITY)


# ------------------------------------------------------------------------------------------------------ who asks


class Asking(asyncio.Protocol):
    """One connection: sends what is due, times what comes back."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.due: list[float] = []
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, request: bytes, due_s: float) -> None:
        self.due.append(due_s)
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length: ")
            length = int(head[at + 16 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            self.load.statuses[int(head[9:12])] += 1
            self.load.times.append(time.perf_counter() - self.due.pop(0))


class Load:
    """Requests at a fixed rate over some connections, round and round; a late answer delays none of the others."""

    def __init__(self) -> None:
        self.times = array("d")
        self.statuses: Counter[int] = Counter()
        self.sent = 0

    async def run(self, port: int, requests: Sequence[bytes], rate_s: float, seconds: float) -> float:
        """Seconds until the last answer, or until 3 s after the last request."""
        loop = asyncio.get_running_loop()
        made = [await loop.create_connection(lambda: Asking(self), "127.0.0.1", port) for _ in range(CONNECTIONS)]
        lines = [protocol for _, protocol in made]
        began = time.perf_counter()
        total = int(rate_s * seconds)
        while self.sent < total:
            due = min(total, int((time.perf_counter() - began) * rate_s) + 1)
            while self.sent < due:
                lines[self.sent % CONNECTIONS].send(requests[self.sent % len(requests)], began + self.sent / rate_s)
                self.sent += 1
            await asyncio.sleep(0.0002)
        patience = time.perf_counter() + 3
        while len(self.times) < self.sent and time.perf_counter() < patience:
            await asyncio.sleep(0.005)
        took = time.perf_counter() - began
        for transport, _ in made:
            transport.abort()
        return took


def ask(pipe: Connection, core: int | None) -> None:
    """An asking process: runs the loads it is told, until told to end."""
    _pin(core)
    import uvloop

    while (said := pipe.recv()) != "end":
        port, requests, rate_s, seconds = said
        load = Load()
        took = uvloop.run(load.run(port, requests, rate_s, seconds))
        pipe.send((load.sent, took, load.times.tobytes(), dict(load.statuses)))


def requests_of(key: str, clients: Sequence[str]) -> list[bytes]:
    """What a gateway sends: the client's headers and its own."""
    usual = (
        "Host: models.example\r\nUser-Agent: python-requests/2.32\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
        "X-Forwarded-For: 192.0.2.10\r\nX-Request-Id: 6f2d3b0c-30f4-4d2c-8f7b-0a9e1d1f2a3b\r\nContent-Length: 0\r\n"
    )
    return [
        f"POST /v1/authz/v1/models/{MODEL}:predict HTTP/1.1\r\n{usual}X-QueryWarden-Key: {key}\r\n"
        f"X-QueryWarden-Model: {MODEL}\r\nX-API-Key: {client}\r\n\r\n".encode()
        for client in clients
    ]


# --------------------------------------------------------------------------------------------------- the scenarios


def fill(store: Any, secrets: Any, count: int) -> None:
    """Restrict clients 0 … count − 1 of the model: two thirds throttled, one third blocked, for a day."""
    from collections import defaultdict

    from consumers.store import DECISION_CELLS, DecisionRow, Outcome, decision_cell
    from detector.policy import State
    from detector.query import ClientKey

    until_s = int(time.time()) + 86_400
    cells: dict[int, dict[ClientKey, DecisionRow]] = defaultdict(dict)
    for n in range(count):
        key = ClientKey(TENANT, MODEL, secrets.client_hash(TENANT, f"client-{n}"))
        state: State = "block" if n % 3 == 0 else "throttle"
        cells[decision_cell(key, DECISION_CELLS)][key] = DecisionRow(b"", state, 0.99, until_s, state)
    for cell in range(DECISION_CELLS):
        token = f"benchmark-{cell}"
        revision = store.claim_decisions(cell, "benchmark", token, 60_000).revision
        rows = list(cells[cell].items())
        for first in range(0, len(rows), 500):
            outcome = Outcome(cell=cell, rows=dict(rows[first : first + 500]))
            revision = store.record(token, revision, outcome, "benchmark", 60_000)
        store.release_decisions(cell, "benchmark")


def quantiles_ms(seconds: array[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
    return {
        name: round(1e3 * ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)], 4) if ordered else math.nan
        for name, q in at.items()
    }


@contextlib.contextmanager
def process(target: Any, *arguments: Any) -> Iterator[Connection]:
    ours, theirs = multiprocessing.Pipe()
    spawned = multiprocessing.get_context("spawn").Process(target=target, args=(theirs, *arguments), daemon=True)
    spawned.start()
    try:
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.send("end")
        spawned.join(15)
        if spawned.is_alive():
            spawned.kill()


def measure(scenario: Scenario, seconds: float, cores: tuple[int | None, int | None]) -> dict[str, Any]:
    """Figures of a scenario."""
    from support.servers import Redis

    from consumers.operators.audited_write import Actor
    from consumers.operators.operate import Operations
    from consumers.secrets import Secrets
    from consumers.store.redis import connect

    redis = Redis()
    try:
        redis.start()
        if cores[1] is not None and redis.process is not None:
            os.sched_setaffinity(redis.process.pid, {cores[1]})
            _first(redis.process.pid)
        secrets = Secrets.load(redis.folder / "secrets.json", create=True)
        store = connect(redis.url, timeout_s=10.0)
        store.prepare(secrets.key_id)
        _, key = Operations(store, secrets).create_key(Actor("benchmark", "admin", TENANT), "benchmark", "gateway")
        fill(store, secrets, scenario.restrictions)
        rng = random.Random(1)
        asked = [f"client-{rng.randrange(max(1, 2 * scenario.restrictions))}" for _ in range(ASKED_CLIENTS)]
        requests = requests_of(str(key), asked)
        where = (str(redis.folder), redis.url, cores[0], scenario.control)
        with process(serve, *where) as server, process(ask, cores[1]) as asking:
            port = server.recv()
            server.send("ready")
            while server.recv() != "ready":
                time.sleep(0.2)
                server.send("ready")
            asking.send((port, requests, RATE_S, WARM_UP_S))
            asking.recv()
            if scenario.redis == "stopped":
                redis.pause()
                time.sleep(0.5)
            server.send("take")
            _, used_before, _ = server.recv()
            asking.send((port, requests, RATE_S, seconds))
            sent, took, times, statuses = asking.recv()
            server.send("take")
            inside, used, resident_mb = server.recv()
            if scenario.redis == "stopped":
                redis.resume()
        store.close()
    finally:
        redis.remove()
    whole, server_side = array("d", times), array("d", inside)
    rate_s = len(whole) / took
    server_ms = quantiles_ms(server_side)
    return {
        **asdict(scenario),
        "offered_per_s": RATE_S,
        "sent": sent,
        "answered": len(whole),
        "answered_per_s": round(rate_s, 1),
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "server": server_ms,
        "end_to_end": quantiles_ms(whole),
        "server_core_used": round((used - used_before) / took, 3),
        "server_resident_mb": round(resident_mb, 1),
        "passes": bool(rate_s >= BAR_RATE_S and server_ms["p99_ms"] <= BAR_P99_MS and len(whole) == sent),
    }


def conditions(cores: tuple[int | None, int | None]) -> dict[str, Any]:
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "pinned": {"server": cores[0], "redis and who asks": cores[1]},
        "load_average_before": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("uvicorn", "uvloop", "httptools", "redis")},
        "connections": CONNECTIONS,
        "scheduling": f"nice {PRIORITY}" if os.geteuid() == 0 else "as everybody",
    }


def _lines(path: str) -> Sequence[str]:
    with contextlib.suppress(OSError):
        return Path(path).read_text().splitlines()
    return ()


def shown(figures: Mapping[str, Any]) -> str:
    s, e = figures["server"], figures["end_to_end"]
    return (
        f"{figures['name']:36} {figures['answered_per_s']:8.0f}/s  server p50 {s['p50_ms']:.3f} p99 {s['p99_ms']:.3f} ms"
        f"  end to end p50 {e['p50_ms']:.2f} p99 {e['p99_ms']:.2f} ms  core {figures['server_core_used']:.0%}"
        f"  {'passes' if figures['passes'] else 'FAILS'}{' (as it must)' if figures['control'] and not figures['passes'] else ''}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="2 s a scenario, no file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    cores: tuple[int | None, int | None] = (0, 1) if (os.cpu_count() or 1) > 1 else (None, None)
    _pin(cores[1])  # filling the store would take minutes on a busy machine
    found: dict[str, Any] = {"bar": {"per_s": BAR_RATE_S, "server_p99_ms": BAR_P99_MS}, "conditions": conditions(cores)}
    rows = []
    for scenario in SCENARIOS:
        rows.append(measure(scenario, 2.0 if options.short else 6.0, cores))
        print(shown(rows[-1]), flush=True)
    found["scenarios"] = rows
    if not options.short:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(row["passes"] != row["control"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
