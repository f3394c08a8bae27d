"""The ledger: what was sent, written down by us before it is sent. The only oracle; nobody asks the broker.

`Ledger` writes each line to a file, synced, and only then hands it to an idempotent producer that waits for all acknowledgements. A line
is keyed by its client, so the order of one client's lines in the file is their order in the log. Some lines are spoilt on purpose: the
ledger knows which, and they must turn up as dead letters.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from crash.cluster import PARTITIONS
from kafka import KafkaAdminClient, KafkaProducer
from kafka.producer.future import FutureRecordMetadata
from support import victims

ATTACKS = [(family, "plain") for family in
           ("jbda", "noise_uniform", "knockoff_random", "copycat", "mixup", "trnd", "line_search", "in_domain")]  # fmt: skip
BATCH = 200
EVENT_ID = re.compile(rb'"event_id":"[^"]*",')
CLIENT_ID = re.compile(rb'"client_id":"([^"]*)"')

logging.getLogger("kafka").setLevel(logging.CRITICAL)  # brokers come and go here: that is the point


def write_log(path: Path, clients: int, seed: int) -> Path:
    """A log of honest clients and thieves within a day, in time order.

    Only records that are a day ahead of their partition's own time may count at another time in a replay than on Kafka.
    """
    lives = victims.streams(clients, ATTACKS, seed=seed, kinds=victims.CALM, queries=(600, 1500), days=0.9)
    victims.log_of(path, lives)
    return path


def repeated(path: Path, events: int) -> Iterator[tuple[bytes, bytes]]:
    """(client, line) of a log, over and over with clients of other names, `events` in all. Times begin anew with each round.

    Event ids are taken out: what the workers recognise by them as a duplicate would hide a query that was folded twice.
    """
    sent, turn = 0, 0
    while True:
        with path.open("rb") as lines:
            for whole in lines:
                if sent == events:
                    return
                line = EVENT_ID.sub(b"", whole.rstrip(b"\n"), count=1)
                found = CLIENT_ID.search(line)
                assert found is not None
                client = found[1] + (b"-%d" % turn if turn else b"")
                yield client, line[: found.start(1)] + client + line[found.end(1) :]
                sent += 1
        turn += 1


def varied(folder: Path, events: int, clients: int = 165, seed: int = 31) -> Iterator[tuple[bytes, bytes]]:
    """`repeated` without a repetition: each round is a log of its own seed, written when its turn has come."""
    sent, turn = 0, 0
    while sent < events:
        path = write_log(folder / f"round-{turn}.jsonl", clients, seed + turn)
        for client, line in repeated(path, min(events - sent, _length(path))):
            named = client + b"-%d" % turn
            yield named, line.replace(b'"client_id":"' + client + b'"', b'"client_id":"' + named + b'"', 1)
            sent += 1
        path.unlink()
        turn += 1


def _length(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def spoilt(line: bytes, rng: random.Random) -> bytes:
    """The line as no reader may accept it."""
    ways = (
        lambda: line[: rng.randrange(1, len(line) - 1)],
        lambda: line.replace(b'"model_id":"', b'"model_id":"no-', 1),
        lambda: line.replace(b'"client_id":"', b'"client_id":"\\u0000', 1),
        lambda: b"",
        lambda: b"\xff\xfe" + line,
    )
    return rng.choice(ways)()


class Ledger:
    """Sends `lines` at `rate` a second in a thread of its own.

    good, bad  lines sent by client; lines that were spoilt
    enough     set: no more are sent than those under way
    taken      how many the workers have; while they are more than `most_behind` behind none are sent
    """

    def __init__(
        self, path: Path, bootstrap: str, topic: str, lines: Iterator[tuple[bytes, bytes]], rate: float, seed: int,
        partitions: int = PARTITIONS, bad_share: float = 0.01, taken: Callable[[], int] | None = None,
        most_behind: int = 20_000,
    ) -> None:  # fmt: skip
        self.path = path
        self.topic = topic
        self.rate = rate
        self.good: Counter[str] = Counter()
        self.bad = 0
        self.failed: BaseException | None = None
        self.enough = threading.Event()
        self._lines = lines
        self._rng = random.Random(seed)
        self._bad_share = bad_share
        self._taken = taken
        self._most_behind = most_behind
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1}}, wait_for_metadata=True)
        admin.close()
        self._producer = KafkaProducer(
            bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=20, max_block_ms=120_000,
            reconnect_backoff_max_ms=500, compression_type="lz4",
        )  # fmt: skip
        self._thread = threading.Thread(target=self._send, name="ledger", daemon=True)

    @property
    def sent(self) -> int:
        return self.good.total() + self.bad

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        """Wait for the last acknowledgement; raises what kept the producer from it."""
        self._thread.join()
        if self.failed is not None:
            raise self.failed

    def _send(self) -> None:
        try:
            futures: deque[FutureRecordMetadata] = deque()
            began_s = time.monotonic()
            with self.path.open("wb") as book:
                for batch in self._batches():
                    book.write(b"".join(line + b"\n" for _, line in batch))
                    book.flush()
                    os.fsync(book.fileno())
                    futures.extend(self._producer.send(self.topic, line, key=client) for client, line in batch)
                    while futures and futures[0].succeeded():
                        futures.popleft()
                    ahead_s = self.sent / self.rate - (time.monotonic() - began_s)
                    if ahead_s > 0:
                        time.sleep(ahead_s)
                    while self._taken and not self.enough.is_set() and self.sent - self._taken() > self._most_behind:
                        time.sleep(0.5)
            self._producer.flush()
            for future in futures:
                future.get(timeout=60)
        except BaseException as error:
            self.failed = error
        finally:
            self._producer.close()

    def _batches(self) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        batch: list[tuple[bytes, bytes]] = []
        for client, line in self._lines:
            if self.enough.is_set():
                break
            if self._rng.random() < self._bad_share:
                batch.append((client, spoilt(line, self._rng).replace(b"\n", b" ")))
                self.bad += 1
            else:
                batch.append((client, line))
                self.good[client.decode()] += 1
            if len(batch) >= BATCH:
                yield batch
                batch = []
        if batch:
            yield batch
