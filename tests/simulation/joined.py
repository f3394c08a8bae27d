"""Scripts whose queries are logged in two halves, request and response, as records of their own.

Rules:

* What must come of a script is joined by a slow twin: lists that are searched from their beginning, over the whole log at once.
* Halves arrive in either order, some many records apart, some twice, some never, some with an id that another query uses too; more of
  them wait at times than the mapping allows. A cell holds both halves of a query: the log is keyed alike on both sides.
"""

from __future__ import annotations

import functools
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from simulation import scene
from simulation.scene import Folded, Script, Sent

from consumers.log import QueryLog
from consumers.log.halves import NOTHING_WAITS, ROW_BITS, WaitingHalves
from consumers.log.mappings.mapped import MappedLog
from consumers.log.mappings.mapping import mapping_of
from consumers.log.mappings.records import Translator

MOST = 5
MAPPING = mapping_of(
    {
        "name": "halves",
        "join": {
            "id": ["id"],
            "request": {"equal": {"half": ["request"]}},
            "response": {"equal": {"half": ["response"]}},
            "most": MOST,
        },
        "client": {"paths": [{"path": "who"}]},
        "time": {"paths": ["at"]},
        "id": {"paths": ["id"]},
        "model": {"constant": scene.MODEL},
        "input": {"paths": ["row"], "form": "row"},
        "answer": {"paths": ["answer"]},
        "status": {"constant": 200},
    },
    "halves",
)


@dataclass(slots=True)
class JoinedScript(Script):
    """bursts: the queries that two halves make, each where the later one is; halves: what is sent; counted: cell → what the join counts."""

    halves: list[list[Sent]] = field(default_factory=list)
    counted: dict[str, Counter[str]] = field(default_factory=dict)

    def sends(self) -> list[list[Sent]]:
        return self.halves

    def stored(self, offset: int) -> int:
        return offset << ROW_BITS

    def place(self, cell: str, offset: int) -> str:
        return f"{cell}@{offset >> ROW_BITS}"

    def _fold(self, cell: str, base: int | None, erased: frozenset[tuple[str, int]], poison: frozenset[int]) -> Folded:
        folded = Script._fold(self, cell, base, erased, poison)
        folded.counters |= {name: n for name, n in self.counted[cell].items() if n}
        return folded


class Forgetful(MappedLog):
    """The weaker join: halves wait in memory only, and nobody gives them to the next owner."""

    def seek(self, cell: str, offset: int | None, waiting: WaitingHalves = NOTHING_WAITS) -> int:
        return super().seek(cell, offset)


def reading(log: QueryLog, forgetful: bool) -> MappedLog:
    """A member's log, read through the mapping."""
    return (Forgetful if forgetful else MappedLog)(log, Translator(MAPPING, str))


@functools.cache
def script(number: int) -> JoinedScript:
    rng = random.Random(f"halves {number}")
    draw = np.random.default_rng(number)
    cells = [f"halves:{p}" for p in range(rng.choice([2, 2, 3]))]
    clients = [f"acct-{i}" for i in range(rng.randint(3, 5))]
    home = {client: rng.choice(cells) for client in clients}
    queries = rng.randint(25, 45)
    rows = scene.honest(queries, draw)
    late = rng.choice([1, 3, 8])
    records = list[tuple[float, str, dict[str, Any]]]()
    for i in range(queries):
        client = rng.choice(clients)
        event = json.loads(scene.event(i, client, rows[i], scene.START_MS + i * 60_000))
        name = "shared" if rng.random() < 0.1 else f"e{i}"
        request = {"half": "request", "id": name, "who": client, "at": event["timestamp"], "row": event["features"]}
        response = {"half": "response", "id": name, "answer": event["prediction"]}
        for half in (request, response):
            for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 1, 1, 1, 2]) if rng.random() < 0.4 else 1):
                records.append((i + rng.random() * late, home[client], half))
    records.sort(key=lambda record: record[0])
    made = JoinedScript(
        number, cells, clients, [], dict.fromkeys(cells, 0), counted={cell: Counter() for cell in cells}
    )
    waiting: dict[str, list[dict[str, Any]]] = {cell: [] for cell in cells}
    ends = dict.fromkeys(cells, 0)
    burst, queries_of = list[Sent](), list[Sent]()
    for _, cell, half in records:
        offset = ends[cell] + (rng.randint(1, 3) if rng.random() < 0.1 else 0)
        ends[cell] = offset + 1 + (1 if rng.random() < 0.1 else 0)
        value, spoilt = json.dumps(half).encode(), rng.random() < 0.03
        if spoilt:
            value = value[: len(value) // 2]
        burst.append(Sent(cell, offset, ends[cell], "", value))
        if spoilt:
            queries_of.append(Sent(cell, offset << ROW_BITS, 0, "", value))
        else:
            queries_of += twin(cell, offset, half, waiting[cell], made.counted[cell])
        if len(burst) >= rng.choice([5, 10, 20]):
            made.halves.append(burst)
            burst = []
    made.halves.append(burst)
    made.bursts.append(queries_of)
    made.ends = {cell: end << ROW_BITS for cell, end in ends.items()}
    return made


def twin(cell: str, offset: int, half: Mapping[str, Any], waiting: list[Any], counted: Counter[str]) -> list[Sent]:
    """The slow twin: the query that a half completes, if it does."""
    for other in waiting:
        if other["id"] == half["id"] and other["half"] != half["half"]:
            waiting.remove(other)
            counted["joined"] += 1
            request, response = (half, other) if half["half"] == "request" else (other, half)
            event = {
                "event_id": request["id"], "timestamp": request["at"], "client_id": request["who"], "model_id": scene.MODEL,
                "features": request["row"], "prediction": response["answer"], "status": 200,
            }  # fmt: skip
            return [Sent(cell, offset << ROW_BITS, 0, request["who"], json.dumps(event).encode())]
    waiting.append(half)
    if len(waiting) > MOST:
        counted[f"lone_{waiting.pop(0)['half']}s"] += 1
    return []
