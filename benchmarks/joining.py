"""What the join of a query's two halves costs ingest: in memory with the offset, through the store, and no join, in turns within one run.

    python -m benchmarks.joining [--short] [--out FILE]

Rules of the file:

* Every figure is CPU time of this process (user + system) a query, from an empty store to everything committed. Redis is another process:
  its own processor time (`INFO cpu`) is told apart.
* The same queries three times: as native events (*none*), as a gateway's and a model server's records in one partition (*partition*,
  `join.through = "partition"`) and in two topics (*store*, `join.through = "store"`). The log is in memory, so the broker costs nothing.
  *partition* less *none* is what reading halves through a mapping and joining them costs, *store* less *partition* what the store does.
* Turns of a block stand in the order none, partition, store, control, and back, so that a drift of the machine falls on all alike.
  Intervals are a bootstrap over blocks (95 %).
* The control is *store* with each record handed in sealed five times. A run in which it is not dearer than *store* keeps nothing.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import logging
import os
import platform
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.throughput import redis_url
from benchmarks.traffic import MODEL, Traffic
from consumers.ingest import loop as ingest
from consumers.ingest.step import Ingest
from consumers.log import Poll, QueryLog, Records
from consumers.log.halves import NOTHING_WAITS, WaitingHalves
from consumers.log.mappings.handed import Meeting
from consumers.log.mappings.mapping import mapping_of
from consumers.log.mappings.records import Translator
from consumers.log.mappings.topics import MappedTopics
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.store.embedded import EmbeddedStore
from consumers.store.redis import connect
from detector.baseline import Baseline

RESULTS = Path(__file__).resolve().parent / "results" / "joining.json"
MODES = ("none", "partition", "store", "control")
ORDER = (*MODES, *reversed(MODES))
DRAWS = 10_000
AGAIN = 5
"""How often the control seals a record."""
MAPPING = """
name = "halves"
[join]
id = ["x-request-id"]
response_id = ["request_id"]
request = { have = ["x-request-id"] }
response = { have = ["request_id"] }
input = "response"
through = "THROUGH"
[client]
paths = [{ path = "x-tenant-id" }]
[time]
paths = ["start_time"]
[model]
constant = "MODEL"
[status]
paths = ["response_code"]
[input]
paths = ["inputs"]
form = "row"
[answer]
paths = ["output"]
label = ["label"]
probabilities = ["probabilities"]
"""
Topics = Mapping[str, Sequence[bytes]]


class MemoryTopics:
    """A query log in memory: topics of one partition each, all of them ours."""

    def __init__(self, topics: Topics) -> None:
        self._values = {f"{topic}:0": list(values) for topic, values in topics.items()}
        self._positions: dict[str, int] = {}
        self._told = False

    def poll(self, timeout_s: float, max_records: int) -> Poll:
        found = Poll(assigned=[] if self._told else list(self._values))
        self._told = True
        most = max(1, max_records // len(self._values))
        for cell, at in list(self._positions.items()):
            values = self._values[cell][at : at + most]
            if values:
                self._positions[cell] = at + len(values)
                offsets = np.arange(at, at + len(values))
                found.batches.append(Records(cell, values, offsets, at + len(values)))
        return found

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        self._positions[cell] = offset or 0
        return offset or 0

    def pause(self, cell: str) -> None:
        self._positions.pop(cell, None)

    def owns(self, cell: str) -> bool:
        return cell in self._values

    def position(self, cell: str) -> int:
        return self._positions.get(cell, 0)

    def ends(self) -> dict[str, int]:
        return {cell: len(values) for cell, values in self._values.items()}

    def is_member(self) -> bool:
        return True

    def topic_id(self, cell: str) -> int:
        return 1

    def lag(self) -> int:
        return 0

    def commit(self, offsets: Mapping[str, int]) -> None: ...

    def close(self) -> None: ...


def halves(lines: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The gateway's and the model server's record of each query."""
    found = []
    for number, event in enumerate(map(json.loads, lines)):
        gateway = {
            "x-request-id": f"r-{number}", "x-tenant-id": event["client_id"], "start_time": event["timestamp"], "response_code": 200,
        }  # fmt: skip
        model = {"request_id": f"r-{number}", "inputs": event["features"], "output": event["prediction"]}
        found.append((json.dumps(gateway).encode(), json.dumps(model).encode()))
    return found


def topics_of(mode: str, lines: Sequence[bytes]) -> Topics:
    if mode == "none":
        return {"queries": lines}
    if mode == "partition":
        return {"queries": [half for pair in halves(lines) for half in pair]}
    return {"gateway": [one for one, _ in halves(lines)], "model": [other for _, other in halves(lines)]}


def log_of(mode: str, topics: Topics, store: Store, secrets: Secrets) -> QueryLog:
    log = MemoryTopics(topics)
    if mode == "none":
        return log
    through = "partition" if mode == "partition" else "store"
    mapping = mapping_of(tomllib.loads(MAPPING.replace("THROUGH", through).replace("MODEL", MODEL)), "halves")
    translator = Translator(mapping, lambda credential: credential, MODEL)
    if mode == "partition":
        return MappedTopics(log, dict.fromkeys(topics, translator))
    seal = functools.partial(secrets.seal_bytes, tenant="default")

    def slowly(content: bytes) -> bytes:
        for _ in range(AGAIN - 1):
            seal(content)
        return seal(content)

    unseal = functools.partial(secrets.unseal_bytes, tenant="default")
    meeting = Meeting(store, slowly if mode == "control" else seal, unseal)
    return MappedTopics(log, dict.fromkeys(topics, translator), meeting=meeting)


def turn(mode: str, topics: Topics, store: Store, baseline: Baseline, secrets: Secrets) -> tuple[float, int]:
    """CPU seconds of reading the log into an empty store, and the queries that were counted."""
    store.prepare(secrets.key_id)
    gc.collect()  # what earlier turns left is collected by none of those that are compared
    began_s = time.process_time()
    reading = ingest.IngestLoop(log_of(mode, topics, store, secrets), store, Ingest({MODEL: baseline}, secrets))
    ingest.run(reading, lambda: False, until_end=True, poll_timeout_s=0.0)
    took_s = time.process_time() - began_s
    return took_s, sum(cell.counters["queries"] for cell in reading.ownership.cells.values())


Opened = Callable[[], Any]
"""Opens an empty store for a turn, as a context: gives it and a function that says the server's own processor time."""


@contextmanager
def sqlite() -> Iterator[tuple[Store, Callable[[], float]]]:
    with tempfile.TemporaryDirectory(prefix="joining-") as folder:
        store = EmbeddedStore(Path(folder) / "store.sqlite")
        try:
            yield store, lambda: 0.0
        finally:
            store.close()


@contextmanager
def redis_at(url: str) -> Iterator[tuple[Store, Callable[[], float]]]:
    import redis

    store = connect(f"{url}/1", timeout_s=10)
    raw = redis.Redis.from_url(f"{url}/1")

    def server_s() -> float:
        told: Any = raw.info("cpu")
        return float(told["used_cpu_user"] + told["used_cpu_sys"])

    try:
        yield store, server_s
    finally:
        store.close()
        raw.flushdb()
        raw.close()


def measured(
    opened: Opened, logs: Mapping[str, Topics], baseline: Baseline, secrets: Secrets, queries: int, blocks: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(blocks, modes) CPU seconds of this process, and of the server, the two turns of a block summed."""
    took, served = np.zeros((blocks, len(MODES))), np.zeros((blocks, len(MODES)))
    for block in range(-1, blocks):
        for mode in MODES if block < 0 else ORDER:  # the first compiles, and fills caches
            with opened() as (store, server_s):
                before_s = server_s()
                took_s, counted = turn(mode, logs[mode], store, baseline, secrets)
                served_s = server_s() - before_s
            if counted != queries:
                raise SystemExit(f"{mode}: {counted} of {queries} queries were counted")
            if block >= 0:
                took[block, MODES.index(mode)] += took_s
                served[block, MODES.index(mode)] += served_s
    return took, served


def figures(took_s: NDArray[np.float64], served_s: NDArray[np.float64], turns: int) -> dict[str, Any]:
    """Microseconds of each mode, and the differences with 95 % intervals. turns: queries of a block and mode."""
    us, server = took_s / turns * 1e6, served_s / turns * 1e6
    drawn = us[np.random.default_rng(5).integers(0, len(us), (DRAWS, len(us)))].mean(1)
    differences = {}
    for more, less in (("partition", "none"), ("store", "partition"), ("control", "store")):
        i, j = MODES.index(more), MODES.index(less)
        low, high = np.quantile(drawn[:, i] - drawn[:, j], (0.025, 0.975))
        whole = us[:, i].mean() - us[:, j].mean()
        differences[f"{more} - {less}"] = [round(float(v), 2) for v in (whole, low, high)]
    return {
        "us_a_query": {mode: round(float(v), 2) for mode, v in zip(MODES, us.mean(0), strict=True)},
        "server_us_a_query": {mode: round(float(v), 2) for mode, v in zip(MODES, server.mean(0), strict=True)},
        "differences": differences,
    }


def run(short: bool, say: Callable[[str], None] = print) -> dict[str, Any]:
    queries, blocks = (400, 2) if short else (6_000, 20)
    load = [round(v, 2) for v in os.getloadavg()]
    traffic = Traffic()
    lines, baseline = traffic.lines(queries)[0], traffic.baseline()
    logs = {mode: topics_of(mode, lines) for mode in MODES}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="joining-") as folder, redis_url() as url:
        secrets = Secrets.create(Path(folder) / "secrets.json")
        for name, opened in (("sqlite", sqlite), ("redis", lambda: redis_at(url))):
            found[name] = figures(*measured(opened, logs, baseline, secrets, queries, blocks), 2 * queries)
            say(f"{name}: {json.dumps(found[name])}")
            _, low, _ = found[name]["differences"]["control - store"]
            if not short and low <= 0:
                raise SystemExit(f"{name}: the control is not seen to be dearer: nothing here is worth anything")
    found["conditions"] = {
        "queries": queries, "blocks": blocks, "event_bytes": traffic.event_bytes, "python": platform.python_version(),
        "load_before": load, "cores": os.cpu_count(),
    }  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="seconds, prints only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.getLogger("querywarden").setLevel(logging.ERROR)  # records that are not handed in yet are no news here
    sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]
    found = run(given.short)
    if not given.short:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
