"""Scripts whose halves lie in different topics and partitions, so that they meet in the store.

Rules:

* In which order halves arrive in a join cell is up to the run. The simulated store remembers the order (`ProfileCell.history`), in the same
  history as the profiles. The oracle asks two things: that the order holds each record of the ledger once, each partition's in their order;
  and that profiles and counters are those of the slow twin of the join over that order.
"""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from simulation import joined, scene
from simulation.cells import ProfileCell
from simulation.joined import JoinedScript
from simulation.scene import Folded, Script, Sent

from consumers.log import QueryLog
from consumers.log.halves import ROW_BITS
from consumers.log.mappings.handed import HandedLog, HandedRecord, Meeting
from consumers.log.mappings.mapped import MappedLog
from consumers.log.mappings.records import Translator, cell_of
from consumers.store import JoinStore

TOPICS = ("gateway", "models")


@dataclass(slots=True)
class ApartScript(JoinedScript):
    """cells: join cells; sources: partitions of the topics; parts: (partition, offset) of each record → number of its join cell."""

    sources: list[str] = field(default_factory=list)
    parts: dict[tuple[str, int], int] = field(default_factory=dict)

    def log_cells(self) -> list[str]:
        return self.sources

    def at_end(self, cell: str, state: ProfileCell | None, ends: Mapping[str, int]) -> bool:
        if state is None:
            return not any(ends.values())
        handed = all(state.handed.get(source, 0) >= ends[source] for source in self.sources)
        return handed and (state.offset or 0) >= (state.numbered or 0) << ROW_BITS

    def place(self, cell: str, offset: int) -> str:
        """Dead letters name the record in its own log."""
        raise NotImplementedError("the place depends on the order of arrival: see `folded`")

    def fold(self, cell: str, base: int | None, erased: Mapping[str, int], poison: frozenset[int]) -> Folded:
        return Folded({}, {}, frozenset())  # nothing is known before there is an order

    def folded(self, cell: str, state: ProfileCell, poison: frozenset[int]) -> Folded:
        """What the order of arrival makes of the records."""
        order = [_origin(content) for content in state.history]
        values = {(sent.cell, sent.offset): sent.value for burst in self.halves for sent in burst}
        queries, waiting, counted = list[Sent](), list[Any](), Counter[str]()
        for number, origin in enumerate(order):
            try:
                half = json.loads(values[origin])
            except ValueError:
                queries.append(Sent(cell, number << ROW_BITS, 0, "", values[origin]))
                continue
            queries += joined.twin(cell, number, half, waiting, counted)
        made = JoinedScript(
            self.number, [cell], self.clients, [queries], {cell: len(order) << ROW_BITS}, counted={cell: counted}
        )
        found = Script.fold(made, cell, state.base, state.erased, poison)
        places = frozenset("{}@{}".format(*order[offset >> ROW_BITS]) for offset in found.dead)
        return Folded(found.profiles, found.counters, found.dead, places)

    def unlike_the_ledger(self, cell: str, state: ProfileCell) -> tuple[int, int, int]:
        """Records that never arrived, that arrived again, and partitions whose records arrived in another order."""
        order = [_origin(content) for content in state.history]
        number = self.cells.index(cell)
        must, found = {origin for origin, part in self.parts.items() if part == number}, Counter(order)
        disordered = 0
        for source in self.sources:
            offsets = [offset for name, offset in order if name == source]
            disordered += offsets != sorted(offsets)
        return len(must - found.keys()), sum(found.values()) - len(must & found.keys()), disordered


def _origin(content: bytes) -> tuple[str, int]:
    source, _, offset = msgspec.msgpack.decode(content, type=HandedRecord).place.rpartition("@")
    return source, int(offset)


def mapping(cells: int) -> Any:
    own = joined.MAPPING
    assert own.join is not None
    return msgspec.structs.replace(own, join=msgspec.structs.replace(own.join, through="store", cells=cells))


def reading(
    log: QueryLog, store: JoinStore, clock: Callable[[], float], nonce: Callable[[], str], cells: int, forgetful: bool
) -> MappedLog:
    """A member's log: it hands in what it reads of the topics, and reads the join cells that are its own."""
    translator = Translator(mapping(cells), str)
    through = HandedLog(log, Meeting(store, bytes, bytes, clock, nonce), translator, TOPICS)
    return (joined.Forgetful if forgetful else MappedLog)(through, translator)


@functools.cache
def script(number: int) -> ApartScript:
    rng = random.Random(f"apart {number}")
    draw = np.random.default_rng(number)
    cells = rng.choice([1, 1, 2])
    sources = [f"gateway:{p}" for p in range(rng.choice([2, 3]))] + [f"models:{p}" for p in range(rng.choice([1, 2]))]
    clients = [f"acct-{i}" for i in range(rng.randint(3, 5))]
    queries = rng.randint(25, 45)
    rows = scene.honest(queries, draw)
    late = rng.choice([1, 3, 8])
    records = list[tuple[float, str, dict[str, Any]]]()
    for i in range(queries):
        event = json.loads(scene.event(i, rng.choice(clients), rows[i], scene.START_MS + i * 60_000))
        name = "shared" if rng.random() < 0.1 else f"e{i}"
        who = event["client_id"]
        request = {"half": "request", "id": name, "who": who, "at": event["timestamp"], "row": event["features"]}
        response = {"half": "response", "id": name, "answer": event["prediction"]}
        for half, topic in ((request, "gateway"), (response, "models")):
            for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 1, 1, 1, 2]) if rng.random() < 0.4 else 1):
                source = rng.choice([source for source in sources if source.startswith(topic)])
                records.append((i + rng.random() * late, source, half))
    records.sort(key=lambda record: record[0])
    names = [f"joined.halves:{n}" for n in range(cells)]
    made = ApartScript(number, names, clients, [], dict.fromkeys(names, 0), sources=sources)
    ends = dict.fromkeys(sources, 0)
    burst = list[Sent]()
    for _, source, half in records:
        offset = ends[source] + (rng.randint(1, 3) if rng.random() < 0.1 else 0)
        ends[source] = offset + 1 + (1 if rng.random() < 0.1 else 0)
        value, spoilt = json.dumps(half).encode(), rng.random() < 0.03
        if spoilt:
            value = value[: len(value) // 2]
        made.parts[source, offset] = 0 if spoilt or cells == 1 else cell_of((half["id"],), cells)
        burst.append(Sent(source, offset, ends[source], "", value))
        if len(burst) >= rng.choice([5, 10, 20]):
            made.halves.append(burst)
            burst = []
    made.halves.append(burst)
    return made
