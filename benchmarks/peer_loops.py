"""What others do with the same topic, one loop each: read, parse, and at most count. Run by `benchmarks/whole_path.py`, never by hand.

    .venv-bench/bin/python benchmarks/peer_loops.py LOOP BOOTSTRAP TOPIC EVENTS
    .venv-bench/bin/python benchmarks/peer_loops.py versions

Rules of the file:

* It runs in an environment of its own (`requirements/bench.txt`), so it imports nothing of the project and its peers by name.
* It prints one line of JSON: events, and processor seconds of this process (user and system, all threads) while they were handled.
* The clock starts when the first events are there, and those do not count: imports and joining the group are once, whatever comes.
* Each is set up as its own manual recommends for throughput: large polls, no commit a message, no changelog topic.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

AT_ONCE = 10_000
FIRST = 1000
PACKAGES = ("kafka-python", "confluent-kafka", "orjson", "quixstreams", "bytewax")
Counted = tuple[int, float]
"""Events after the first ones, and processor seconds for them."""
Loop = Callable[[str, str, int], Counted]


def _group() -> str:
    return f"peer-{os.getpid()}-{time.time_ns()}"


def kafka_python(bootstrap: str, topic: str, events: int, parse: bool = True) -> Counted:
    kafka, loads = importlib.import_module("kafka"), importlib.import_module("orjson").loads
    consumer = kafka.KafkaConsumer(
        topic, bootstrap_servers=bootstrap, group_id=_group(), auto_offset_reset="earliest", enable_auto_commit=False,
        max_poll_records=AT_ONCE,
    )  # fmt: skip
    done, first, began = 0, 0, 0.0
    while done < events:
        for found in consumer.poll(timeout_ms=200, max_records=AT_ONCE).values():
            if parse:
                for record in found:
                    loads(record.value)
            done += len(found)
        if done and not first:
            first, began = done, time.process_time()
    took = time.process_time() - began
    consumer.close()
    return done - first, took


def confluent(bootstrap: str, topic: str, events: int, parse: bool = True) -> Counted:
    """Without `parse`: values as bytes, joined a poll at a time, which is what a decoder of columns needs of them."""
    confluent_kafka, loads = importlib.import_module("confluent_kafka"), importlib.import_module("orjson").loads
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": bootstrap, "group.id": _group(), "auto.offset.reset": "earliest", "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
        }
    )  # fmt: skip
    consumer.subscribe([topic])
    done, first, began = 0, 0, 0.0
    while done < events:
        found = consumer.consume(AT_ONCE, timeout=0.2)
        if parse:
            for message in found:
                loads(message.value())
        else:
            b"".join([message.value() for message in found])
            [message.offset() for message in found]
        done += len(found)
        if done and not first:
            first, began = done, time.process_time()
    took = time.process_time() - began
    consumer.close()
    return done - first, took


def quixstreams(bootstrap: str, topic: str, events: int) -> Counted:
    """A count a key in its state store, RocksDB; no changelog topic."""
    quix = importlib.import_module("quixstreams")
    with tempfile.TemporaryDirectory() as folder:
        app = quix.Application(
            broker_address=bootstrap, consumer_group=_group(), auto_offset_reset="earliest", state_dir=folder,
            use_changelog_topics=False, loglevel="ERROR",
        )  # fmt: skip
        seen, began = 0, 0.0

        def count(value: Any, state: Any) -> Any:
            nonlocal seen, began
            seen += 1
            if seen == FIRST:
                began = time.process_time()
            state.set("n", state.get("n", 0) + 1)
            return value

        app.dataframe(app.topic(topic, value_deserializer="json", key_deserializer="str")).apply(count, stateful=True)
        app.run(count=events, timeout=120)
        took = time.process_time() - began
    return seen - FIRST, took


def bytewax(bootstrap: str, topic: str, events: int) -> Counted:
    """A count a key in its own keyed state, in memory; no recovery store."""
    op, loads = importlib.import_module("bytewax.operators"), importlib.import_module("orjson").loads
    source = importlib.import_module("bytewax.connectors.kafka").KafkaSource
    testing = importlib.import_module("bytewax.testing")
    flow = importlib.import_module("bytewax.dataflow").Dataflow("bench")
    seen, began = 0, 0.0

    def count(state: int | None, message: Any) -> tuple[int, int]:
        nonlocal seen, began
        seen += 1
        if seen == FIRST:
            began = time.process_time()
        loads(message.value)
        return (state or 0) + 1, 0

    messages = op.input("in", flow, source([bootstrap], [topic], tail=False, batch_size=AT_ONCE))
    counted = op.stateful_map("count", op.key_on("key", messages, lambda message: message.key.decode()), count)
    op.output("out", op.filter("drop", counted, lambda pair: False), testing.TestingSink([]))
    testing.run_main(flow)
    took = time.process_time() - began
    if seen < events:
        raise RuntimeError(f"bytewax saw {seen} of {events} events")
    return seen - FIRST, took


LOOPS: dict[str, Loop] = {
    "kafka-python, records only": lambda b, t, n: kafka_python(b, t, n, parse=False),
    "kafka-python + orjson": kafka_python,
    "confluent-kafka, values only": lambda b, t, n: confluent(b, t, n, parse=False),
    "confluent-kafka + orjson": confluent,
    "quix-streams, keyed count with state": quixstreams,
    "bytewax, keyed count with state": bytewax,
}


def main() -> None:
    if sys.argv[1] == "versions":
        print(json.dumps({name: metadata.version(name) for name in PACKAGES}))
        return
    loop, bootstrap, topic, events = sys.argv[1:]
    done, took = LOOPS[loop](bootstrap, topic, int(events))
    print(json.dumps({"events": done, "cpu_s": took}))


if __name__ == "__main__":
    main()
