"""Anchoring: records every canary answer in the audit log, as one row for a batch of new lines of the registry.

One row per answer would flood the chain that also holds people's decisions. A row names the numbers of the lines, the hash of the last
one (which covers every line before it), and how many marked answers each client was given.

Rules:

* At least once: the position is stored after the row was written. A row that is written twice names the same lines and hash.
* Lines that the audit log already covers must still exist, unchanged. Otherwise nothing is recorded, and an operator has to look.
* A row names at most `MOST_CLIENTS` clients; more clients make more rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from consumers import atomic_file
from consumers.errors import ConfigError, CorruptState
from consumers.watermark.registry import GENESIS, Line, lines_of

ACTION = "watermark.canaries"
MOST_CLIENTS = 100
MOST_LINES = 10_000

Record = Callable[[str, str], None]
"""(action, object) → a row of the audit log."""


def anchor(registry: Path, notes: Path, record: Record) -> int:
    """Record what the registry gained; returns the number of lines. notes: file that says how far it was recorded.

    Raises
    ------
    CorruptState
        The registry does not continue what was recorded, or its chain is broken.
    """
    place = str(registry.absolute())
    known = _read(notes)
    n, digest = known.get(place, (0, GENESIS))
    fresh: list[Line] = []
    reached = n == 0
    for line in lines_of(registry):
        if line.n == n:
            reached = line.hash == digest
        elif line.n > n:
            fresh.append(line)
    if not reached:
        raise CorruptState(f"canary registry {registry}: line {n} is not the one that the audit log knows")
    for batch in _batches(fresh):
        record(ACTION, _about(registry, batch))
        known[place] = (batch[-1].n, batch[-1].hash)
        with atomic_file.whole(notes) as draft:
            draft.write_text(json.dumps({where: list(at) for where, at in known.items()}) + "\n")
    return len(fresh)


def _about(registry: Path, batch: Sequence[Line]) -> str:
    given: Counter[str] = Counter()
    for line in batch:
        given[line.client] += (line.kind == "canary") + line.count
    by_client = ",".join(f"{client}={count}" for client, count in sorted(given.items()) if count)
    keys = ",".join(sorted({line.key_id for line in batch}))
    last = batch[-1]
    return f"registry:{registry.name} key:{keys} lines:{batch[0].n}-{last.n} head:{last.hash} answers:{given.total()} {by_client}".strip()


def _batches(lines: Sequence[Line]) -> Iterator[list[Line]]:
    batch: list[Line] = []
    clients: set[str] = set()
    for line in lines:
        if len(batch) >= MOST_LINES or (len(clients) >= MOST_CLIENTS and line.client not in clients):
            yield batch
            batch, clients = [], set()
        batch.append(line)
        clients.add(line.client)
    if batch:
        yield batch


def _read(notes: Path) -> dict[str, tuple[int, str]]:
    try:
        content = json.loads(notes.read_text())
        return {str(place): (int(n), str(digest)) for place, (n, digest) in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{notes}: cannot be read; without it rows would be written again: {type(error).__name__}"
        ) from error
