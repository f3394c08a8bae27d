"""The whole path beside others, and how its cost grows: from a real Kafka to a real Redis, processor time a query.

    python -m benchmarks.whole_path [--short] [--out FILE]

Rules of the file:

* A figure is processor time (user and system) of the process that reads, from its first poll with events on. Each loop runs several
  times, all of them in turns; the median and the least of the runs are kept. Only ratios within one run travel to another machine.
* Peers run in an environment of their own (`peer_loops.py`); one that cannot be installed or fails stands in the table with the reason.
* Growth: one thing grows, the rest is as usual (64 columns, 10 classes, a client a hundred queries). Wide events are fewer events.
  *Age* is what a client asked before: twenty clients, each query measured by how many their clients had asked by then.
* The control parses each event twice more with the standard library, in front of everything else. A run that does not see it to be slower
  by half than ours ends with an error and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.throughput import conditions, redis_url
from benchmarks.traffic import Ours, Traffic
from consumers.ingest.cell import Cell
from consumers.ingest.step import Ingest
from consumers.log import Records
from consumers.log.formats import Decoded
from detector.query import ClientKey
from examples.servers import Kafka

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "whole_path.json"
PEERS = ROOT / ".venv-bench" / "bin" / "python"
PARTITIONS = 4
SLOWER_BY = 1.5
OURS, CONTROL, READING = "QueryWarden, everything", "control: each event parsed twice more", "QueryWarden, reading only"
STOCK = "kafka-python + orjson"
LOOPS = (
    "kafka-python, records only", STOCK, "confluent-kafka, values only", "confluent-kafka + orjson",
    "quix-streams, keyed count with state", "bytewax, keyed count with state",
)  # fmt: skip
COLUMNS, CLASSES, CLIENTS = (8, 64, 256, 1024), (2, 10, 100), (1_000, 10_000, 100_000, 1_000_000)
AGES = (1_000, 3_000)


class SlowIngest(Ingest):
    """Ours with something needless in front."""

    def decode(self, cell: Cell, records: Records) -> tuple[Decoded, dict[str, list[ClientKey]]]:
        for value in records.values:
            json.loads(value)
            json.loads(value)
        return super().decode(cell, records)


@dataclass(slots=True)
class Stand:
    """The servers of one run, and what is measured on them. numbers: for topics, groups and databases of their own."""

    bootstrap: str
    redis: str
    folder: Path
    say: Callable[[str], None]
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 100_000)))

    def produced(self, traffic: Traffic, events: int) -> str:
        from support.kafka_producer import produce

        topic = f"bench-{next(self.numbers)}"
        lines, keys = traffic.lines(events)
        produce(self.bootstrap, topic, lines, keys=keys, partitions=PARTITIONS)
        return topic

    def ours(self, topic: str, traffic: Traffic) -> Ours:
        return Ours(self.bootstrap, topic, traffic.baseline(), self.folder)

    def read(self, ours: Ours, events: int, **more: Any) -> float:
        """Microseconds a query, into an empty database that is emptied again."""
        import redis

        url = f"{self.redis}/1"
        try:
            return ours.read(url, events, f"ours-{next(self.numbers)}", **more)
        finally:
            with redis.Redis.from_url(url) as raw:
                raw.flushdb()

    def peer(self, loop: str, topic: str, events: int) -> float:
        """Microseconds an event. Raises RuntimeError with the last line of what it said."""
        command = [str(PEERS), str(ROOT / "benchmarks" / "peer_loops.py"), loop, self.bootstrap, topic, str(events)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError("no answer within ten minutes") from None
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["no reason given"])[-1][:200])
        found = json.loads(done.stdout.splitlines()[-1])
        return float(found["cpu_s"] / found["events"] * 1e6)


def beside(stand: Stand, events: int, runs: int) -> list[dict[str, Any]]:
    """Ours, the control and the peers in turns over one topic."""
    traffic = Traffic()
    topic = stand.produced(traffic, events)
    ours = stand.ours(topic, traffic)
    measured: dict[str, Callable[[], float]] = {
        OURS: lambda: stand.read(ours, events),
        CONTROL: lambda: stand.read(ours, events, reading=SlowIngest),
        READING: lambda: ours.only_read(events, f"ours-{next(stand.numbers)}"),
        **{loop: (lambda loop=loop: stand.peer(loop, topic, events)) for loop in LOOPS},  # type: ignore[misc]
    }
    took: dict[str, list[float]] = {name: [] for name in measured}
    failed: dict[str, str] = {}
    stand.read(ours, events)  # compiles
    for _ in range(runs):
        for name, measure in measured.items():
            if name not in failed:
                try:
                    took[name].append(measure())
                except (RuntimeError, OSError) as error:
                    failed[name] = str(error)
    rows = []
    for name, values in took.items():
        row: dict[str, Any] = {"name": name, "failed": failed[name]} if name in failed else _row(name, values)
        stand.say(f"{name:40} {row.get('median_us', 0):8.2f} µs an event {row.get('failed', '')}")
        rows.append(row)
    return rows


def _row(name: str, values: Sequence[float]) -> dict[str, Any]:
    runs = [round(value, 2) for value in values]
    return {"name": name, "median_us": round(median(values), 2), "least_us": min(runs), "runs": runs}


def growth(
    stand: Stand, what: str, shapes: Sequence[tuple[int, Traffic]], events: int, runs: int
) -> list[dict[str, Any]]:
    """Microseconds a query for each shape; one run before that is not counted."""
    rows = []
    for size, traffic in shapes:
        n = max(6000, min(events, 64 * events // traffic.width))
        ours = stand.ours(stand.produced(traffic, n), traffic)
        stand.read(ours, n)
        row = {"size": size, "queries": n, **_row(what, [stand.read(ours, n) for _ in range(runs)])}
        stand.say(f"{what:10} {size:9,} {row['median_us']:8.2f} µs a query")
        rows.append(row)
    return rows


def ages(stand: Stand, events: int, runs: int) -> list[dict[str, Any]]:
    """Microseconds a query, by how many its client had asked before; from the first poll with records on."""
    clients = 20
    traffic = Traffic(clients=clients)
    ours = stand.ours(stand.produced(traffic, events), traffic)
    limits = [age for age in AGES if age * clients < events] + [events // clients]
    took: dict[int, list[float]] = {limit: [] for limit in limits}
    for run in range(runs + 1):
        marks: list[tuple[int, float]] = []
        stand.read(ours, events, each=lambda done, marks=marks: marks.append((done, time.process_time())))
        marks = [mark for mark in marks if mark[0]]
        before = 0
        for limit in limits:
            inside = [mark for mark in marks if before * clients <= mark[0] <= limit * clients]
            (first, began), (last, ended) = inside[0], inside[-1]
            if run and last > first:
                took[limit].append((ended - began) / (last - first) * 1e6)
            before = limit
    rows = [
        {"size": limit, "queries": events, **_row("age", values)} for limit, values in took.items() if values
    ]  # fmt: skip
    for row in rows:
        stand.say(f"age, up to {row['size']:9,} {row['median_us']:8.2f} µs a query")
    return rows


def peer_versions() -> dict[str, str]:
    if not PEERS.exists():
        return {}
    command = [str(PEERS), str(ROOT / "benchmarks" / "peer_loops.py"), "versions"]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def run(short: bool, say: Callable[[str], None], events: int = 0, runs: int = 0) -> dict[str, Any]:
    """events, runs: others than usual, for a slow machine."""
    events, runs = events or (12_000 if short else 50_000), runs or (1 if short else 5)
    few = events // 2
    found: dict[str, Any] = {
        "conditions": conditions(events) | {"peers": peer_versions(), "runs": runs, "partitions": PARTITIONS}
    }
    found["conditions"]["event_bytes"] = Traffic().event_bytes
    broker = Kafka()
    try:
        broker.start()
        with tempfile.TemporaryDirectory(prefix="querywarden-bench-") as name, redis_url() as url:
            stand = Stand(broker.bootstrap, url, Path(name), say)
            found["beside"] = beside(stand, events, runs)
            check_control(found["beside"])
            turns = min(runs, 3)
            widths, classes, clients = (COLUMNS[:2], CLASSES[:1], CLIENTS[:1]) if short else (COLUMNS, CLASSES, CLIENTS)
            found["growth"] = {
                "columns": growth(stand, "columns", [(w, Traffic(width=w)) for w in widths], few, turns),
                "classes": growth(stand, "classes", [(c, Traffic(classes=c)) for c in classes], few, turns),
                "clients": growth(stand, "clients", [(c, Traffic(clients=c)) for c in clients], few, turns),
                "age": ages(stand, 2 * events, turns),
            }
    finally:
        broker.remove()
    return found


def check_control(rows: Sequence[dict[str, Any]]) -> None:
    """Raise SystemExit where the slow control does not look slow: then nothing here is worth anything."""
    cost = {row["name"]: row["median_us"] for row in rows if "median_us" in row}
    if cost[CONTROL] < SLOWER_BY * cost[OURS]:
        raise SystemExit(
            f"the slow control costs {cost[CONTROL]} µs and ours {cost[OURS]}: not seen to be slower by half"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="few events, one run, no file")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--events", type=int, default=0, help="events of a run; growth and age take half and twice as many"
    )
    parser.add_argument("--runs", type=int, default=0, help="runs of each loop")
    options = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT / "tests")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = run(options.short, lambda line: print(line, flush=True), options.events, options.runs)
    if not options.short:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
