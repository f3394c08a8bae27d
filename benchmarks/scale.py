"""Scale-out: one and two ingest processes, one and three Redis shards, what detect costs a client, what a client takes in the store.

    python -m benchmarks.scale [--short] [--out FILE]

Rules of the file:

* Every process of ours is a process of its own (`--worker`); servers are real. Processor time is counted for all of them: ours, the store's
  and the broker's. That is what travels. Queries a second do not: all of them share this machine's cores.
* The cost of a query is a + b × (clients written a query): two logs, one of few and one of many clients, give a and b for ours and for the
  store. `benchmarks/capacity.py` plans with them.
* Clients of the second log are known to the store before the clock starts, as they are in a service that has run for a while.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import redis

from benchmarks.throughput import conditions
from benchmarks.traffic import DEAD_TOPIC, MODEL, Traffic, ingesting, records
from consumers.detect import loop as detect
from consumers.detect.step import Detect
from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.log.kafka import connection
from consumers.log.topics import ensure_topics
from consumers.secrets import Secrets
from consumers.store import Checkpoint, Store
from consumers.store.redis import connect
from detector.baseline_file import pack_baseline, read_baseline
from detector.policy import Policy
from examples.servers import Kafka, Redis, free_port

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scale.json"
PARTITIONS = 4
SHARDS = 3
Lines = tuple[list[bytes], list[bytes]]
"""Events and their keys."""
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system seconds of a running process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


# ------------------------------------------------------------------------------------------------------ one process


class Counting:
    """A store that counts the profiles which are written."""

    def __init__(self, store: Store) -> None:
        self._store, self.written = store, 0

    def commit(self, token: str, checkpoint: Checkpoint) -> None:
        self.written += len(checkpoint.profiles)
        self._store.commit(token, checkpoint)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def worker(bootstrap: str, topic: str, url: str, group: str, folder: str, share: str) -> None:
    """Join an empty topic with `share` - 1 others, say so, wait for a line, ingest until the end of the topic, print what was done."""
    baseline = read_baseline((Path(folder) / "bench.baseline").read_bytes())
    secrets = Secrets.load(Path(folder) / "secrets.json")
    store = Counting(connect(url, timeout_s=30))
    store.prepare(secrets.key_id)
    reading = Ingest(baselines={MODEL: baseline}, secrets=secrets)
    owned = Cell("warm:0", "t", 0, Counter())
    some = records(Traffic().lines(500)[0])
    reading.step(owned, *reading.decode(owned, some), len(some.values))
    # Partitions that change hands while the topic is empty look like processes that died at the same record.
    with ingesting(bootstrap, topic, group, cast(Store, store), reading, cautious_after=1000) as (runner, log):
        while len(runner.ownership.cells) != PARTITIONS // int(share):
            runner.turn(0.2)
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:  # the others may still join, for which each must poll
            runner.turn(0.2)
        for said in ("held", ""):
            sys.stdin.readline()
            print(said, flush=True)
        ends = dict(log.ends())
        began, began_s, last_s, queries = time.process_time(), time.monotonic(), 0.0, 0
        while True:
            done = runner.turn(0.2)
            queries += done
            last_s = time.monotonic() if done else last_s
            if not done and all(store.shards(cell, []).offset >= end for cell, end in ends.items()):
                break
        took = time.process_time() - began
        told = {"queries": queries, "written": store.written, "cpu_s": took, "from_s": began_s, "to_s": last_s}
        print(json.dumps(told), flush=True)


class Workers:
    """Ingest processes that share a topic: started while it is empty, let go when it is full."""

    def __init__(self, count: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.scale", "--worker", *arguments, str(count)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self.running = [subprocess.Popen(command, **pipes) for _ in range(count)]
        self._wait("ready")
        self._say("hold")
        self._wait("held")

    def _wait(self, word: str) -> None:
        for process in self.running:
            assert process.stdout is not None
            if process.stdout.readline() != f"{word}\n":
                raise RuntimeError("a worker did not start")

    def _say(self, word: str) -> None:
        for process in self.running:
            assert process.stdin is not None
            process.stdin.write(f"{word}\n")
            process.stdin.flush()

    def go(self) -> list[dict[str, Any]]:
        """What each did."""
        self._say("go")
        answers = [process.communicate(timeout=1200)[0] for process in self.running]
        if any(process.returncode for process in self.running):
            raise RuntimeError("a worker ended with an error")
        return [json.loads(answer.splitlines()[-1]) for answer in answers]


# -------------------------------------------------------------------------------------------------------- a cluster


@contextlib.contextmanager
def shards(count: int) -> Iterator[tuple[str, list[Redis]]]:
    """A Redis, or a cluster of `count` primaries: the store's address, and the servers."""
    cluster = count > 1
    options = ["--cluster-enabled", "yes", "--cluster-port"] if cluster else []
    servers = [Redis(options=[*options, str(free_port())] if cluster else []) for _ in range(count)]
    try:
        for server in servers:
            server.start()
        if cluster:
            where = [f"127.0.0.1:{server.port}" for server in servers]
            command = ["redis-cli", "--cluster", "create", *where, "--cluster-yes"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            deadline = time.monotonic() + 30
            while any(redis.Redis(port=s.port).cluster("info")["cluster_state"] != "ok" for s in servers):
                if time.monotonic() > deadline:
                    raise RuntimeError("the cluster did not form")
                time.sleep(0.1)
        yield (f"redis+cluster://127.0.0.1:{servers[0].port}" if cluster else f"{servers[0].url}/0"), servers
    finally:
        for server in servers:
            server.remove()


# ------------------------------------------------------------------------------------------------------ measurement


class Stand:
    """A broker, topics of two shapes and what belongs to them."""

    def __init__(self, broker: Kafka, folder: Path, say: Callable[[str], None]) -> None:
        self.broker, self.folder, self.say = broker, folder, say
        self.groups = iter(range(10_000))
        self.secrets = Secrets.load(folder / "secrets.json", create=True)
        self.baseline = Traffic().baseline()
        (folder / "bench.baseline").write_bytes(pack_baseline(self.baseline))
        ensure_topics(connection(broker.bootstrap, security_protocol="PLAINTEXT"), [DEAD_TOPIC], 1)

    def ingest(self, processes: int, log: Lines, url: str, servers: Sequence[Redis], topic: str = "") -> dict[str, Any]:
        """What a query of a log costs everybody, the servers included. topic: that was read before; none: a new one."""
        from support.kafka_producer import produce

        topic = topic or f"scale-{next(self.groups)}"
        group = f"group-of-{topic}"
        ensure_topics(connection(self.broker.bootstrap, security_protocol="PLAINTEXT"), [topic], PARTITIONS)
        ready = Workers(processes, self.broker.bootstrap, topic, url, group, str(self.folder))
        produce(self.broker.bootstrap, topic, log[0], keys=log[1])
        pids = [server.process.pid for server in [*servers, self.broker] if server.process is not None]
        infos = [redis.Redis(port=server.port).info() for server in servers]
        before = [cpu_s(pid) for pid in pids]
        found = ready.go()
        *store_s, broker_s = [cpu_s(pid) - was for pid, was in zip(pids, before, strict=True)]
        after = [redis.Redis(port=server.port).info() for server in servers]
        queries = sum(one["queries"] for one in found)
        span_s = max(one["to_s"] for one in found) - min(one["from_s"] for one in found)
        names = ("total_net_input_bytes", "total_net_output_bytes")
        into, out = (sum(b[name] - a[name] for a, b in zip(infos, after, strict=True)) for name in names)
        return {
            "topic": topic, "processes": processes, "shards": len(servers), "queries": queries,
            "ours_us": round(sum(one["cpu_s"] for one in found) / queries * 1e6, 2),
            "store_us": round(sum(store_s) / queries * 1e6, 2), "store_us_each": [round(s / queries * 1e6, 2) for s in store_s],
            "broker_us": round(broker_s / queries * 1e6, 2), "a_second": round(queries / span_s),
            "shares": [one["queries"] for one in found], "written_a_query": round(sum(one["written"] for one in found) / queries, 3),
            "store_in_bytes": round(into / queries), "store_out_bytes": round(out / queries),
        }  # fmt: skip

    def detect(self, url: str) -> dict[str, float]:
        """Assess every client of the store once: microseconds a client."""
        store = connect(url, timeout_s=30)
        judging = Detect({MODEL: self.baseline}, self.secrets, Policy(0.01, "observe"))
        once: Any = {"now_s": lambda: None, "sleep": lambda s: None}
        began = time.process_time()
        detect.run(detect.Runner(store, judging, **once), lambda: False, until_idle=True)
        took = time.process_time() - began
        clients = sum(1 for _ in store.decisions("default"))
        store.close()
        return {"clients": clients, "us": round(took / clients * 1e6, 1)}


def emptied(servers: Sequence[Redis]) -> None:
    for server in servers:
        redis.Redis(port=server.port).flushall()


def medians(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several: the run whose cost of ours is the median, and all their costs."""
    ordered = sorted(runs, key=lambda row: row["ours_us"])
    return ordered[len(ordered) // 2] | {"ours_us_runs": [row["ours_us"] for row in runs]}


def run(short: bool, say: Callable[[str], None], events: int = 0, turns: int = 0) -> dict[str, Any]:
    """events, turns: others than usual, for a slow machine."""
    events, turns = events or (4_000 if short else 120_000), turns or (1 if short else 3)
    many = events // 2
    broker = Kafka()
    found: dict[str, Any] = {"conditions": conditions(events)}
    found["conditions"]["event_bytes"] = Traffic().event_bytes
    try:
        broker.start()
        with tempfile.TemporaryDirectory(prefix="querywarden-scale-") as name:
            stand = Stand(broker, Path(name), say)
            usual = Traffic().lines(events)
            few = Traffic(clients=40).lines(events)
            known = Traffic(clients=many).lines(many * 2, 10)
            every = Traffic(clients=many).lines(many, 11)
            with shards(1) as (url, servers):
                found["processes"] = _processes(stand, usual, url, servers, turns)
                found["cost"] = _cost(stand, few, known, every, url, servers, turns)
            with shards(SHARDS) as (url, servers):
                found["cluster"] = _cluster(stand, usual, url, servers, turns)
    finally:
        broker.remove()
    return found


def _processes(stand: Stand, log: Lines, url: str, servers: Sequence[Redis], turns: int) -> list[dict[str, Any]]:
    """One and two processes, in turns."""
    took: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(turns):
        for processes, rows in took.items():
            emptied(servers)
            rows.append(stand.ingest(processes, log, url, servers))
            stand.say(f"{processes} processes: {rows[-1]}")
    return [medians(rows) for rows in took.values()]


def _cost(
    stand: Stand, few: Lines, known: Lines, every: Lines, url: str, servers: Sequence[Redis], turns: int
) -> dict[str, Any]:
    """A log of few clients and one in which nearly each query is another client's; memory and detect of the latter."""
    rows: dict[str, list[dict[str, Any]]] = {"few": [], "every": []}
    memory: list[float] = []
    for _ in range(turns):
        emptied(servers)
        rows["few"].append(stand.ingest(1, few, url, servers))
        emptied(servers)
        empty = redis.Redis(port=servers[0].port).info()["used_memory"]
        before = stand.ingest(1, known, url, servers)
        raw = redis.Redis(port=servers[0].port)
        keys = sum(1 for key in raw.scan_iter("qw:*p:*", count=5000))
        memory.append((raw.info()["used_memory"] - empty) / keys)
        rows["every"].append(stand.ingest(1, every, url, servers, topic=before["topic"]))
        stand.say(f"few: {rows['few'][-1]}\nevery: {rows['every'][-1]}\nmemory a client: {memory[-1]:.0f} bytes")
    detected = stand.detect(url)
    stand.say(f"detect: {detected}")
    return {
        "few": medians(rows["few"]), "every": medians(rows["every"]), "store_bytes_a_client": round(median(memory)), "detect": detected,
    }  # fmt: skip


def _cluster(stand: Stand, log: Lines, url: str, servers: Sequence[Redis], turns: int) -> dict[str, Any]:
    rows = []
    for _ in range(turns):
        emptied(servers)
        rows.append(stand.ingest(1, log, url, servers))
        stand.say(f"{len(servers)} shards: {rows[-1]}")
    return medians(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few events, one turn, no file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--events", type=int, default=0, help="events of a run")
    parser.add_argument("--runs", type=int, default=0, help="runs of each")
    parser.add_argument("--worker", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.worker:
        worker(*options.worker)
        return 0
    sys.path[:0] = [str(ROOT / "tests")]
    found = run(options.short, lambda line: print(line, flush=True), options.events, options.runs)
    if not options.short:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
