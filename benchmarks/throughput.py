"""The throughput benchmark: what a query costs on its way from the log to the store, and what a naive way would cost.

    python -m benchmarks.throughput [--short] [--out FILE]

Rules of the file:

* Every figure is CPU time of this process (user + system), so that other work on the machine does not count; the best of several runs,
  ours and its twin taken in turns. Only ratios within one run travel to another machine.
* A twin does the same work the obvious way: the standard library's JSON and one row at a time, one call a row, one write a client. A *loop*
  does less than we do: it reads and parses, and keeps nothing.
* An event has 64 features with six decimals and 10 probabilities, some 0.9 KB; the clients are many, and most ask little.
* Each variant says whether events carry an ``event_id`` (the duplicate window is then in use) and ``metadata`` (links are then kept).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from kafka import KafkaConsumer

from benchmarks.traffic import AT_ONCE, MODEL, START_S, Ours, Traffic, after_the_first, baseline_on, records
from consumers import replay
from consumers.detect.step import Detect
from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.log.files import FileLog
from consumers.log.formats import InputReader, NativeFormat
from consumers.secrets import Secrets
from consumers.store import Checkpoint, Store
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import connect
from detector.baseline import PUBLIC_KEY, Baseline
from detector.policy import Policy
from detector.profile_table import ProfileTable
from examples.servers import Kafka, MissingServer, Redis, Valkey

RESULTS = Path(__file__).resolve().parent / "results" / "throughput.json"
TRAFFIC = Traffic()
IN_A_STEP = 2000
INGESTED, INGEST_RUNS = 120_000, 5
VARIANTS = {"bare": (False, False), "event ids": (True, False), "metadata": (False, True), "both": (True, True)}

# ------------------------------------------------------------------------------------------------------- the events


def events(n: int, variant: str, rng: np.random.Generator) -> list[bytes]:
    """n lines of a log. A client's share of them is log-normal: half of the clients ask fewer than some 30 queries."""
    ids, linked = VARIANTS[variant]
    share = rng.lognormal(0, 1.5, max(20, n // 100))
    who = rng.choice(len(share), n, p=share / share.sum())
    rows = TRAFFIC.rows(n, rng)
    lines = []
    for i, (row, p) in enumerate(zip(rows.tolist(), TRAFFIC.answers(rows).tolist(), strict=True)):
        event: dict[str, Any] = {"event_id": f"q-{i:012d}"} if ids else {}
        second = START_S + i * 5
        event |= {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)), "client_id": f"acct-{who[i]:06d}", "model_id": MODEL,
            "features": row, "prediction": {"label": int(np.argmax(p)), "probabilities": p},
        }  # fmt: skip
        if linked:
            event["metadata"] = {
                "ip": f"198.51.100.{who[i] % 250}",
                "asn": 64_500 + int(who[i] % 40),
                "session": f"s{who[i]}",
            }
        lines.append(json.dumps(event, separators=(",", ":")).encode())
    return lines


def fitted(short: bool) -> Baseline:
    rng = np.random.default_rng(1)
    rows = TRAFFIC.rows(400 if short else 1000, rng)
    return baseline_on(rows, TRAFFIC.exact_answers(rows), events(3000, "bare", rng), rng)


# ------------------------------------------------------------------------------------------------------- the clock


def cpu_us(work: Callable[[], int]) -> float:
    """CPU microseconds an item; `work` returns how many items it did."""
    began = time.process_time()
    items = work()
    return (time.process_time() - began) / items * 1e6


def least_in_turns(ours: Callable[[], float], twin: Callable[[], float], runs: int) -> tuple[float, float]:
    """Least CPU microseconds an item of `runs` of each, which measure themselves, after one that compiles."""
    ours()
    pairs = [(ours(), twin()) for _ in range(runs)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def in_turns(ours: Callable[[], int], twin: Callable[[], int], runs: int) -> tuple[float, float]:
    """Best of `runs` of each, after one that compiles."""
    ours()
    pairs = [(cpu_us(ours), cpu_us(twin)) for _ in range(runs)]
    return min(a for a, _ in pairs), min(b for _, b in pairs)


def row_of(name: str, item: str, took: tuple[float, float], twin: str, loop: bool = False) -> dict[str, Any]:
    ours, other = took
    return {
        "name": name, "item": item, "ours_us": round(ours, 2), "a_second": round(1e6 / ours), "twin": twin, "twin_us": round(other, 2),
        "ratio": round(other / ours, 2), "loop": loop,
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the steps


def naive_decode(lines: Sequence[bytes]) -> int:
    """The standard library, a dictionary and a list a row, an array in the end."""
    rows, times, clients, shares = [], [], [], []
    for line in lines:
        event = json.loads(line)
        rows.append([float(v) for v in event["features"]])
        shares.append([float(v) for v in event["prediction"]["probabilities"]])
        times.append(time.mktime(time.strptime(event["timestamp"], "%Y-%m-%dT%H:%M:%SZ")))
        clients.append(event["client_id"])
    return len(np.array(rows)) + len(shares) - len(times) + len(clients) - len(rows)


def steps(baseline: Baseline, lines: Sequence[bytes], runs: int) -> list[dict[str, Any]]:
    fmt, fmap = NativeFormat({MODEL: InputReader(baseline.map.schema)}), baseline.map
    batch = fmt.decode(records(lines)).batches[MODEL]
    few = batch.take(np.arange(min(300, len(batch))))
    singles = [few.take(np.array([i])) for i in range(len(few))]
    measured = fmap.measure(batch, PUBLIC_KEY)
    alone = [fmap.measure(one, PUBLIC_KEY) for one in singles]

    def profiles() -> ProfileTable:
        return ProfileTable(fmap, baseline.table, baseline.calibration_version, 2**62)

    def measure_all() -> int:
        fmap.measure(batch, PUBLIC_KEY)
        return len(batch)

    def measure_one_by_one() -> int:
        for one in singles:
            fmap.measure(one, PUBLIC_KEY)
        return len(singles)

    def fold_all() -> int:
        profiles().add(list(batch.clients), batch, measured)
        return len(batch)

    def fold_one_by_one() -> int:
        table = profiles()
        for one, m in zip(singles, alone, strict=True):
            table.add(list(one.clients), one, m)
        return len(singles)

    def decode() -> int:
        return len(fmt.decode(records(lines)).batches[MODEL])

    one_row = "one row a call"
    found = [
        row_of(
            "decode", "query", in_turns(decode, lambda: naive_decode(lines), runs), "the standard library's JSON, lists"
        ),
        row_of("measure", "query", in_turns(measure_all, measure_one_by_one, runs), one_row),
        row_of("fold", "query", in_turns(fold_all, fold_one_by_one, runs), one_row),
    ]
    return found


def commits(
    name: str, open_store: Callable[[], Store], reading: Ingest, lines: Sequence[bytes], runs: int
) -> dict[str, Any]:
    """One step's profiles, at once and one client a write."""
    store = open_store()
    store.prepare(reading.secrets.key_id)
    number = iter(range(10_000))

    def checkpoint() -> tuple[str, Checkpoint]:
        cell = f"bench:{next(number)}"
        claim = store.claim(cell, "a" * 32)
        owned = Cell(cell, "a" * 32, claim.next_offset, Counter())
        decoded, keys = reading.decode(owned, records(lines))
        return cell, reading.step(owned, decoded, keys, len(lines))

    prepared = [checkpoint() for _ in range(2 * runs + 1)]

    def at_once() -> int:
        _, point = prepared.pop()
        store.commit("a" * 32, point)
        return len(point.profiles)

    def one_by_one() -> int:
        cell, point = prepared.pop()
        offset = None
        for i, (key, fields) in enumerate(point.profiles.items(), 1):
            store.commit("a" * 32, Checkpoint(cell, offset, i, profiles={key: fields}, counters=point.counters))
            offset = i
        return len(point.profiles)

    took = in_turns(at_once, one_by_one, runs)
    store.close()
    return row_of(f"commit, {name}", "client", took, "one client a write")


# --------------------------------------------------------------------------------------------------- the whole path


def parse_loop(path: Path, loads: Callable[[bytes], Any]) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if loads(line) is not None)


def replays(baseline: Baseline, folder: Path, logs: dict[str, Path], queries: int, runs: int) -> list[dict[str, Any]]:
    """Everything that ``querywarden replay`` does, on SQLite, detect included; less its start, which is what one query costs."""
    secrets = Secrets.load(folder / "secrets.json", create=True)
    number = iter(range(10_000))

    def whole(path: Path) -> int:
        store = EmbeddedStore(folder / f"replay{next(number)}.sqlite", decision_cells=1)  # as `querywarden replay` does
        log = FileLog([str(path)])
        try:
            store.prepare(secrets.key_id)
            reading = Ingest(baselines={MODEL: baseline}, secrets=secrets)
            judging = Detect({MODEL: baseline}, secrets, Policy(0.01, "observe"))
            return replay.replay(log, store, reading, judging).counters["queries"]
        finally:
            log.close()
            store.close()

    found = []
    one = folder / "one.jsonl"
    with logs["bare"].open("rb") as file:
        one.write_bytes(file.readline())
    whole(one)
    start_us = min(cpu_us(lambda: whole(one)) for _ in range(3))
    for variant, path in logs.items():
        ours_us, loop_us = in_turns(lambda p=path: whole(p), lambda p=path: parse_loop(p, orjson.loads), runs)  # type: ignore[misc]
        took = ours_us - start_us / queries, loop_us
        found.append(row_of(f"replay, {variant}", "query", took, "a loop of orjson over the file", loop=True))
    bare = min(cpu_us(lambda: parse_loop(logs["bare"], json.loads)) for _ in range(runs))
    found.append(
        row_of("replay, bare", "query", (found[0]["ours_us"], bare), "a loop of json over the file", loop=True)
    )
    return found


def ingests(baseline: Baseline, broker: Kafka, url: str, folder: Path, lines: Sequence[bytes]) -> dict[str, Any]:
    """Kafka to Redis, against a consumer that reads and parses and does nothing else; both after their first poll with records."""
    from support.kafka_producer import produce

    keys = [line.split(b'"client_id":"', 1)[1].split(b'"', 1)[0] for line in lines]
    produce(broker.bootstrap, "bench", lines, keys=keys, partitions=4)
    number = iter(range(10_000))

    def ours() -> float:
        i = next(number)
        return Ours(broker.bootstrap, "bench", baseline, folder).read(f"{url}/{i + 1}", len(lines), f"bench-{i}")

    def stock() -> float:
        consumer = KafkaConsumer("bench", bootstrap_servers=broker.bootstrap, group_id=f"stock-{next(number)}",
                                 auto_offset_reset="earliest", enable_auto_commit=False, max_poll_records=AT_ONCE)  # fmt: skip

        def parsed() -> int:
            count = 0
            for found in consumer.poll(timeout_ms=200, max_records=AT_ONCE).values():
                for record in found:
                    orjson.loads(record.value)
                count += len(found)
            return count

        took = after_the_first(parsed, len(lines))
        consumer.close()
        return took

    took = least_in_turns(ours, stock, INGEST_RUNS)
    return row_of("ingest, Kafka to Redis, bare", "query", took, "kafka-python and orjson, nothing kept", loop=True)


# --------------------------------------------------------------------------------------------------------------- run


@contextlib.contextmanager
def redis_url() -> Iterator[str]:
    try:
        server: Redis = Redis(options=["--databases", "64"])
    except MissingServer:
        server = Valkey(options=["--databases", "64"])
    server.start()
    try:
        yield server.url
    finally:
        server.remove()


def conditions(queries: int) -> dict[str, Any]:
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        "unknown",
    )  # fmt: skip
    names = ("kafka-python", "msgspec", "numba", "numpy", "orjson", "redis")
    return {
        "cpu": cpu, "cores": os.cpu_count(), "load_average_before": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(), "versions": {name: metadata.version(name) for name in names},
        "queries": queries, "event_bytes": 0,
    }  # fmt: skip


def run(short: bool, kafka: bool, say: Callable[[str], None]) -> dict[str, Any]:
    n, runs = (1200, 1) if short else (30_000, 3)
    found = {"conditions": conditions(n)}
    baseline = fitted(short)
    logs = {variant: events(n, variant, np.random.default_rng(9)) for variant in VARIANTS}
    found["conditions"]["event_bytes"] = round(sum(map(len, logs["bare"])) / n)
    rows: list[dict[str, Any]] = []

    def add(more: Sequence[dict[str, Any]]) -> None:
        for row in more:
            rows.append(row)
            say(shown(row))

    with tempfile.TemporaryDirectory(prefix="querywarden-bench-") as name, redis_url() as url:
        folder = Path(name)
        reading = Ingest(baselines={MODEL: baseline}, secrets=Secrets.load(folder / "secrets.json", create=True))
        some = logs["bare"][:IN_A_STEP]
        add(steps(baseline, some, runs))
        add([commits("SQLite", lambda: EmbeddedStore(folder / "commit.sqlite"), reading, some, runs)])
        add([commits("Redis", lambda: connect(f"{url}/0", timeout_s=10), reading, some, runs)])
        paths = {variant: folder / f"{variant.replace(' ', '-')}.jsonl" for variant in VARIANTS}
        for variant, path in paths.items():
            path.write_bytes(b"\n".join(logs[variant]) + b"\n")
        add(replays(baseline, folder, paths, n, runs))
        if kafka:
            broker = Kafka()
            try:
                broker.start()
                add([ingests(baseline, broker, url, folder, events(INGESTED, "bare", np.random.default_rng(9)))])
            finally:
                broker.remove()
    return found | {"rows": rows}


def shown(row: dict[str, Any]) -> str:
    return (
        f"{row['name']:30} {row['ours_us']:9.2f} µs a {row['item']:7} {row['a_second']:9,}/s   {row['twin']:38} "
        f"{row['twin_us']:9.2f} µs   × {row['ratio']:.2f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few queries, no Kafka, no file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    sys.path[:0] = [str(RESULTS.parents[2] / "tests")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = run(options.short, not options.short, lambda line: print(line, flush=True))
    if not options.short:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
