"""Layout: names, bounds and lifetimes that both stores share, in one place so that they cannot differ.

Rules:

* A client is written as ``tenant:model:client``, each part percent-encoded, so that no part can imitate another key.
* In Redis a cell is all keys under one hash tag. The tag ends in a number that is chosen so that cells spread evenly over the 16,384
  slots of a cluster: decision cell v of n into the v-th of n equal ranges, partition p of a topic by the bit-reversed order of p (which
  is even for every number of partitions), files by their hash.
* Arguments that no caller may pass (a bug, hence ValueError) are checked here, before anything reaches a store.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import re
import secrets as entropy
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from consumers.errors import CorruptState
from consumers.store import MOST_DECISION_CELLS, SCHEMA_VERSION, Checkpoint, DecisionRow, Operation, Outcome
from detector.query import ClientKey

PROFILE_TTL_S = 30 * 86_400
DECISION_TTL_S = 30 * 86_400
ALERT_TTL_MS = 30 * 86_400_000
FEED_ENTRIES = 10_000
"""How many changes of a decision cell gateways may fall behind, at least."""

OPERATOR_CHANGES = 10_000
"""How many changes of the operator cell readers may fall behind, at least."""

OPERATOR_STEP = 1 << 20
"""Revisions of the operator cell go up by 1 to so many, at random. A counter would be issued again after a fail-over that lost a tail:
a late change would be accepted and a reader would miss what it does not know."""

MAX_OFFSET = 2**53 - 1
"""Redis keeps scores as doubles; offsets beyond would lose digits."""

OPERATORS = "operators"
"""Name of the operator cell in errors."""

RESTRICTED = ("throttle", "block")

LAYOUT = ("schema", "number of decision cells", "secrets")
"""What a store is made with and must keep for life, in people's words."""

_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")
"""What percent-encoding leaves as it is: the usual case, and ten times faster to see than to encode."""

_TEXTS_KEPT = 4_096
"""Clients whose texts are remembered: a turn of detect names each of its clients four times and more."""

SLOTS = 16_384
_STRATA_BITS = 6


def part_text(part: str) -> str:
    """A name that may become part of a key: nothing in it can be taken for a separator."""
    return part if _PLAIN.fullmatch(part) else quote(part, safe="")


@lru_cache(maxsize=_TEXTS_KEPT)
def client_text(client: ClientKey) -> str:
    """One unambiguous line for a client key."""
    return ":".join([part_text(part) for part in client])


@lru_cache(maxsize=_TEXTS_KEPT)
def client_from_text(text: str) -> ClientKey:
    """Inverse of `client_text`. Raises CorruptState for anything that `client_text` never wrote."""
    parts = text.split(":")
    if len(parts) != 3:
        raise CorruptState(f"not a client key: {text[:80]!r}")
    return ClientKey(*(unquote(part) for part in parts))


def model_text(tenant: str, model: str) -> str:
    """One unambiguous line for a model of a tenant: the first two parts of `client_text`."""
    return f"{part_text(tenant)}:{part_text(model)}"


def slot(tag: str) -> int:
    """Cluster slot of a hash tag (CRC16/XMODEM, as Redis computes it)."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


@lru_cache(maxsize=4096)
def profile_prefix(cell: str) -> str:
    """Key prefix of a profile cell: ``qw:{i.<cell>.<n>}:``."""
    strata = 1 << _STRATA_BITS
    name, _, number = cell.rpartition(":")
    start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=2).digest(), "big")
    if number.isascii() and number.isdecimal():
        turn = int(f"{int(number) % strata:0{_STRATA_BITS}b}"[::-1], 2)
    else:
        turn = int.from_bytes(hashlib.blake2b(cell.encode(), digest_size=2).digest(), "big")
    return _spread(f"i.{quote(cell, safe=':')}", (start + turn) % strata, strata)


@lru_cache(maxsize=MOST_DECISION_CELLS)
def decision_prefix(cell: int, cells: int) -> str:
    """Key prefix of a decision cell of `cells`: ``qw:{d.<cell>.<n>}:``."""
    return _spread(f"d.{cell}", cell, cells)


def operator_prefix() -> str:
    """Key prefix of the operator cell."""
    return _spread("o", 0, 1)


def _spread(name: str, stratum: int, strata: int) -> str:
    """The first tag ``name.<n>`` whose slot lies in the given one of `strata` equal ranges of slots."""
    n = 0
    while slot(f"{name}.{n}") * strata // SLOTS != stratum:
        n += 1
    return f"qw:{{{name}.{n}}}:"


def unquoted(text: str) -> str:
    """Inverse of `part_text`."""
    return unquote(text)


def schema_differs(stored: str) -> str:
    """One line for a store of another schema than ours; an older one that can be upgraded never gets here."""
    newer = stored.isdecimal() and int(stored) > SCHEMA_VERSION
    what = "it was written by a newer version, which must be used" if newer else "it cannot be upgraded"
    return f"store: it has schema {stored or 'unknown'}, this version works with schema {SCHEMA_VERSION}: {what}"


def layout_differs(name: str, stored: str | None, ours: str) -> str:
    """One line for a store that was made otherwise."""
    advice = "; set store.decision_cells to it, or move the store (docs/upkeep.md)" if name == LAYOUT[1] else ""
    return f"store: it was made with {name} {stored or 'unknown'}, this process has {ours}{advice}"


def concerns_gateways(before: Sequence[Any] | None, row: DecisionRow) -> bool:
    """Whether a row must be told to gateways that know the one before it: (state, enforced, until_s), None if none."""
    state, enforced, until_s = before or ("clear", "clear", 0)
    if (row.state, row.enforced) != (state, enforced):
        return True
    return row.state in RESTRICTED and row.until_s != until_s


def feed_position(text: str) -> tuple[str, int]:
    """Generation of a feed and the last entry that was seen. What no store ever gave is a position in no feed."""
    generation, _, entry = text.rpartition(":")
    return (generation, int(entry)) if entry.isdecimal() and len(entry) < 19 else ("-", 0)


def check_checkpoint(checkpoint: Checkpoint) -> None:
    """Refuse (ValueError) a checkpoint that would break the protocol whoever the owner is."""
    before, after = checkpoint.expected_offset or 0, checkpoint.next_offset
    if not 0 <= before <= after <= MAX_OFFSET:
        raise ValueError(f"{checkpoint.cell}: a commit cannot go from offset {before} to {after}")
    # A touch at an offset that readers may have passed already would never be seen.
    if checkpoint.profiles and after == before:
        raise ValueError(f"{checkpoint.cell}: profiles changed, but the offset stays at {after}")
    for name, n in checkpoint.counters.items():
        if not 0 <= n < 1 << 63:
            raise ValueError(f"{checkpoint.cell}: counter {name} cannot be {n}")


def profile_ttl_s(checkpoint: Checkpoint, client: ClientKey | None = None) -> int:
    """How long a client's profile lives after a commit; None: the longest that any does."""
    lasts = client is None or client in checkpoint.lasting
    return max(PROFILE_TTL_S, checkpoint.memory_s) if lasts else PROFILE_TTL_S


def check_outcome(outcome: Outcome, cells: int) -> None:
    """Refuse (ValueError) an outcome that no store could keep as it is."""
    check_decision_cell(outcome.cell, cells)
    for client, row in outcome.rows.items():
        if not math.isfinite(row.rank):
            raise ValueError(f"{client.model}/{client.client}: rank {row.rank} is not a number to sort by")


def check_operation(revision: int, operation: Operation) -> None:
    """Refuse (ValueError) an operation that no store could keep as it is."""
    if not 0 <= revision < MAX_OFFSET:
        raise ValueError(f"there is no revision {revision}")
    named = [entry[:3] for entry in operation.puts] + list(operation.drops)
    if len(set(named)) < len(named):
        raise ValueError("one entry is put or dropped twice in one operation")
    for entry in operation.puts:
        if not entry.value:
            raise ValueError(f"{entry.kind}: an empty value says that an entry was dropped")


def operator_step() -> int:
    """By how much the next revision of the operator cell is higher."""
    return 1 + entropy.randbelow(OPERATOR_STEP)


def check_limit(limit: int) -> None:
    if limit < 1:
        raise ValueError(f"a limit of {limit} clients would never get anywhere")


def check_decision_cell(cell: int, cells: int) -> None:
    if not 0 <= cell < cells:
        raise ValueError(f"there is no decision cell {cell}")


def check_lease(lease_ms: int) -> None:
    if lease_ms <= 0:
        raise ValueError(f"a lease of {lease_ms} ms is none")
