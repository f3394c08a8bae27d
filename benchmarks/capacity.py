"""The plan of an installation from measured constants: processes, partitions, shards, memory, network, cost.

    python -m benchmarks.capacity --queries-per-second 1e6 --clients 1e8
    python -m benchmarks.capacity --write      the plans of docs/capacity.md, into results/capacity.json

Rules of the file:

* Constants come from `benchmarks/results/scale.json`, what a machine costs from the options. Nothing else is assumed but what `Plan` says.
* A query costs a + b × (clients written a query), ours and the store alike. How many clients a poll writes depends on how long the poll
  is, and that on how busy the process is: `simulate` runs one process against drawn arrivals and finds both. A plan is as many processes as
  keep the simulated one below `busy`, and it must get over a burst.
* Clients differ: how much each asks is log-normal (σ = 1.5, as in the benchmark's log), so half of them ask a third of the mean or less.
* Figures are for cores like the one that was measured, which was shared with a broker and a store. They leave out what grows with
  neither queries nor clients.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "scale.json"
PLANS = RESULTS.with_name("capacity.json")
SIZES = ((1_000.0, 1e5), (30_000.0, 3e6), (1_000_000.0, 1e8))
"""Queries a second and clients of the plans on the page."""
SPREAD = 1.5
"""Sigma of the log of how much a client asks."""
AT_ONCE = 5000
"""Most queries of a poll."""
BUSY, STORE_BUSY = 0.6, 0.5
"""Share of a core that may be used on average: of ingest and detect, and of a Redis server, which has one thread."""
MEMORY_USED = 0.6
"""Share of a shard's memory that profiles may take; the rest is for fragments, replication buffers, decisions and growth."""
SHARD_BYTES = 32 * 2**30
RETENTION_H = 24
REPLICAS = 3
LOOK_EVERY_S = 300.0
"""How often detect comes round to a client that keeps asking."""
CORE_HOUR, GIB_HOUR, DISK_GIB_HOUR = 0.04, 0.005, 0.0001
"""Prices, of nobody in particular: set your own."""
MONTH_H = 730


@dataclass(frozen=True, slots=True)
class Constants:
    """What was measured, processor µs: a query and, on top, a client that is written; of ours and of the store. Bytes likewise."""

    query_us: float
    client_us: float
    store_query_us: float
    store_client_us: float
    broker_us: float
    detect_us: float
    event_bytes: float
    store_bytes: float
    in_bytes: float
    out_bytes: float

    @classmethod
    def read(cls, path: Path = RESULTS) -> Constants:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls.of(found, found["conditions"]["event_bytes"])

    @classmethod
    def of(cls, found: dict[str, Any], event_bytes: float) -> Constants:
        """The sizes are those of the usual log, whose clients have asked some hundred queries on average."""
        cost, usual = found["cost"], found["processes"][0]
        few, every = cost["few"], cost["every"]
        profile = usual["store_in_bytes"] / usual["written_a_query"]
        overhead = cost["store_bytes_a_client"] / (every["store_in_bytes"] / every["written_a_query"])
        query, client = line(few, every, "ours_us")
        store_query, store_client = line(few, every, "store_us")
        return cls(
            query, client, store_query, store_client, few["broker_us"], cost["detect"]["us"], event_bytes,
            profile * overhead, profile, profile,
        )  # fmt: skip


def line(few: dict[str, Any], every: dict[str, Any], what: str) -> tuple[float, float]:
    """a and b of a + b × (clients written a query), through two measured points; neither below zero."""
    x0, x1 = few["written_a_query"], every["written_a_query"]
    slope = max(0.0, (every[what] - few[what]) / (x1 - x0))
    return max(0.0, few[what] - slope * x0), slope


@dataclass(frozen=True, slots=True)
class Simulated:
    """How one ingest process did. written: clients a query; lag_s: the age of the oldest unread query, at most and at the end."""

    busy: float
    poll: float
    written: float
    most_lag_s: float
    end_lag_s: float


def simulate(
    constants: Constants,
    rate: float,
    clients: float,
    rng: np.random.Generator,
    seconds: float = 30.0,
    burst: float = 1.0,
    burst_s: float = 0.0,
    pause_s: float = 0.05,
) -> Simulated:
    """One ingest process that reads `rate` queries a second of `clients` clients.

    burst, burst_s  in the first `burst_s` seconds, `burst` times the rate arrives
    pause_s         how long Kafka waits to fill an answer
    """
    shares = np.cumsum(rng.lognormal(0, SPREAD, max(1, min(int(clients), 1_000_000))))
    shares /= shares[-1]
    now_s, read, used_s, polls, written, most_lag_s, lag_s = 0.0, 0.0, 0.0, 0, 0.0, 0.0, 0.0

    def arrived(at_s: float) -> float:
        return rate * (at_s + (burst - 1) * min(at_s, burst_s))

    while now_s < seconds:
        waiting = arrived(now_s) - read
        if waiting < min(AT_ONCE, rate * pause_s):
            now_s += pause_s
            waiting = arrived(now_s) - read
        some = int(min(waiting, AT_ONCE))
        if some:
            distinct = len(np.unique(np.searchsorted(shares, rng.random(some))))
            took_s = (constants.query_us * some + constants.client_us * distinct) / 1e6
            now_s, used_s, read, polls, written = (
                now_s + took_s,
                used_s + took_s,
                read + some,
                polls + 1,
                written + distinct,
            )
            lag_s = (arrived(now_s) - read) / rate
            most_lag_s = max(most_lag_s, lag_s)
    return Simulated(used_s / now_s, read / max(1, polls), written / max(1.0, read), most_lag_s, lag_s)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to set up."""

    queries_a_second: float
    clients: float
    ingest: int
    partitions: int
    detect: int
    decision_cells: int
    shards: int
    store_gib: float
    broker_cores: float
    log_gib: float
    kafka_mb_s: float
    store_mb_s: float
    month: float
    one: Simulated
    burst: Simulated


def plan(constants: Constants, rate: float, clients: float, seed: int = 0) -> Plan:
    """As few processes as keep each below `BUSY` and get over a minute of twice the rate; the rest follows from it."""

    def one(processes: int, **more: float) -> Simulated:
        return simulate(constants, rate / processes, clients / processes, np.random.default_rng(seed), **more)

    least = max(1, math.ceil(rate * constants.query_us / 1e6 / BUSY))
    most = max(least, math.ceil(rate * (constants.query_us + constants.client_us) / 1e6 / BUSY))
    while least < most:  # the fewest that are below; more processes write more clients a query, never fewer
        middle = (least + most) // 2
        if one(middle, seconds=10.0).busy <= BUSY:
            most = middle
        else:
            least = middle + 1
    ingest = least
    steady = one(ingest)
    burst = one(ingest, seconds=360.0, burst=2.0, burst_s=60.0) if rate / ingest < 1e5 else steady
    touched = touched_a_second(rate, clients, LOOK_EVERY_S, np.random.default_rng(seed))
    detect = max(1, math.ceil(touched * constants.detect_us / 1e6 / BUSY))
    store_us = constants.store_query_us + constants.store_client_us * steady.written
    store_bytes = clients * constants.store_bytes
    shards = max(1, math.ceil(rate * store_us / 1e6 / STORE_BUSY), math.ceil(store_bytes / (SHARD_BYTES * MEMORY_USED)))
    store_gib = store_bytes / MEMORY_USED / 2**30
    broker_cores = rate * constants.broker_us / 1e6 / BUSY
    log_gib = rate * constants.event_bytes * 3600 * RETENTION_H * REPLICAS / 2**30
    cores = ingest + detect + 2 * shards + REPLICAS * broker_cores
    month = MONTH_H * (cores * CORE_HOUR + 2 * store_gib * GIB_HOUR + log_gib * DISK_GIB_HOUR)
    return Plan(
        rate, clients, ingest, partitions(ingest), detect, cells(detect, shards), shards, store_gib, broker_cores, log_gib,
        rate * constants.event_bytes / 1e6, rate * steady.written * (constants.in_bytes + constants.out_bytes) / 1e6,
        month, steady, burst,
    )  # fmt: skip


def touched_a_second(rate: float, clients: float, every_s: float, rng: np.random.Generator) -> float:
    """Clients that ask at least once between two looks of detect, a second."""
    drawn = rng.lognormal(0, SPREAD, 200_000)
    asked = rate * every_s / clients * drawn / drawn.mean()
    return float(clients * np.mean(1 - np.exp(-asked)) / every_s)


def partitions(processes: int) -> int:
    """Twice the processes, rounded up to a power of two: they can grow, and shares are even."""
    return int(2 ** math.ceil(math.log2(2 * processes)))


def cells(detect: int, shards: int) -> int:
    """At least four a detect process and a shard, a power of two, 32 to 1,024."""
    return int(min(1024, max(32, 2 ** math.ceil(math.log2(4 * max(detect, shards))))))


def shown(p: Plan) -> str:
    one, burst = p.one, p.burst
    prices = f"{CORE_HOUR} a core and hour, {GIB_HOUR} a GiB of memory, {DISK_GIB_HOUR} a GiB of disk"
    lines = {
        "ingest": f"{p.ingest:,} processes, {one.busy:.0%} of a core each; polls of {one.poll:,.0f}; {one.written:.2f} clients a query",
        "burst": f"a minute of twice the rate: {burst.most_lag_s:.0f} s behind at most, {burst.end_lag_s:.1f} s five minutes later",
        "kafka": f"{p.partitions:,} partitions; {p.kafka_mb_s:,.0f} MB/s in, and as much out",
        "brokers": f"{p.broker_cores:.1f} cores a replica; {p.log_gib:,.0f} GiB for {RETENTION_H} h on {REPLICAS} replicas",
        "store": f"{p.shards:,} shards, {p.store_gib:,.0f} GiB, and as much for a replica of each; {p.store_mb_s:,.0f} MB/s",
        "detect": f"{p.detect:,} processes: a client is looked at every {LOOK_EVERY_S:.0f} s; {p.decision_cells} decision cells",
        "cost": f"{p.month:,.0f} a month at {prices}",
    }
    head = f"{p.queries_a_second:,.0f} queries/s of {p.clients:,.0f} clients"
    return "\n".join([head, *(f"  {name:8} {text}" for name, text in lines.items())])


def plans(constants: Constants) -> list[dict[str, Any]]:
    """The plans of the page, as JSON keeps them."""
    return [asdict(plan(constants, rate, clients)) for rate, clients in SIZES]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queries-per-second", type=float, default=1e6)
    parser.add_argument("--clients", type=float, default=1e8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write the plans of the page")
    options = parser.parse_args(argv)
    if options.write:
        PLANS.write_text(json.dumps(plans(Constants.read(options.results)), indent=1) + "\n", encoding="utf-8")
        return 0
    print(shown(plan(Constants.read(options.results), options.queries_per_second, options.clients)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
