"""Join cells of the Redis store: what arrived there lies in one slot with the profiles that are made of it.

Rules:
* Arrivals are a stream whose entries have their numbers: ``p`` proof, ``b`` bytes that arrived up to it, ``c`` content. Meta keeps
  ``numbered`` and ``bytes`` (so far), ``taken`` and ``taken_bytes`` (read by the owner), ``proof`` (the newest), ``source:<cell of a log>``
  (handed in up to here).
* A proof is a hash of the one before, of a nonce and of the number: who finds an arrival with its proof has the same arrivals before it.
"""

from __future__ import annotations

import secrets as entropy

from consumers.store import Arrival, HandIn
from consumers.store import redis_values as values
from consumers.store.redis_server import RedisServer, profile_meta


class RedisJoins(RedisServer):
    """The port `JoinStore`."""

    def sources(self, cell: str) -> dict[str, int]:
        _, sources, _ = self._scripts.run("join_arrivals", profile_meta(cell), [0, 0])
        return {values.text(source): int(offset) for source, offset in values.pairs(sources)}

    def hand_in(self, records: HandIn) -> bool:
        expected = "" if records.expected is None else records.expected
        arguments: list[str | bytes | int] = [entropy.token_hex(8), records.source, expected, records.next_offset]
        arguments += [records.nonce, records.most, records.most_bytes, *records.contents]
        (done,) = self._scripts.run("join_hand_in", profile_meta(records.cell), arguments, records.cell)
        return bool(done)

    def arrivals(self, cell: str, first: int, limit: int) -> tuple[list[Arrival], int]:
        numbered, _, found = self._scripts.run("join_arrivals", profile_meta(cell), [first, max(limit, 1)])
        return [arrival(entry, fields) for entry, fields in found], values.whole(numbered) or 0


def arrival(entry: bytes, fields: list[bytes]) -> Arrival:
    """An entry of the stream."""
    return Arrival(int(entry.partition(b"-")[0]), values.text(fields[1]), fields[5])
