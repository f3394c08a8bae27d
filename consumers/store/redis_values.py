"""Replies of Redis as values of the port.

Rules: a reply that none of our scripts can give is `CorruptState`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from consumers.errors import CorruptState
from consumers.store import ENFORCED, Cursor, DeadLetter, DecisionRow, Enforced, Entry, OutboxAlert, Restriction
from consumers.store.layout import client_from_text, unquoted
from detector.query import ClientKey

if TYPE_CHECKING:
    from detector.policy import State

ROW_FIELDS = ("row", "state", "rank", "until_s", "enforced")

T = TypeVar("T")

_ENFORCED = MappingProxyType({one.encode(): one for one in ENFORCED})


def text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


def client(value: bytes) -> ClientKey:
    return client_from_text(value.decode())


def whole(value: bytes | None) -> int | None:
    return None if value is None else int(value)


def pairs(flat: Sequence[T]) -> Iterator[tuple[T, T]]:
    return zip(flat[::2], flat[1::2], strict=True)


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def fields(clients: Sequence[ClientKey], found: Sequence[Sequence[bytes]]) -> dict[ClientKey, dict[str, bytes]]:
    """Stored fields by client; a client without any is left out."""
    return {
        key: {text(name): value for name, value in pairs(flat)}
        for key, flat in zip(clients, found, strict=True)
        if flat
    }


def cursor(value: bytes) -> Cursor:
    generation, _, offset = text(value).rpartition(":")
    return Cursor(generation, int(offset))


def enforced(value: bytes | None) -> Enforced:
    """What gateways do. A row of schema 1 says nothing of it: nothing was done."""
    try:
        return _ENFORCED[value] if value else "clear"
    except KeyError:
        raise CorruptState("a decision has an unknown state") from None


def detected(value: bytes | None) -> State:
    """What was detected; detection asks for no *degrade*, so it is corrupt here."""
    if not value or (state := enforced(value)) == "degrade":
        raise CorruptState("a decision has an unknown state")
    return state


def row(key: ClientKey, values: Sequence[bytes | None]) -> DecisionRow | None:
    content, state, rank, until_s, done = values
    if content is None and state is None:
        return None
    if content is None or state is None or rank is None or until_s is None:
        raise CorruptState(f"decision row of {key.model}/{key.client}: a field is missing")
    return DecisionRow(content, detected(state), float(rank), int(until_s), enforced(done))


def alert(found: Mapping[bytes, bytes]) -> OutboxAlert:
    try:
        return OutboxAlert(text(found[b"uid"]), int(found[b"time_ms"]), found[b"body"])
    except (KeyError, ValueError) as error:
        raise CorruptState("alert in the outbox: a field is missing or malformed") from error


def dead_letter(found: Mapping[bytes, bytes]) -> DeadLetter:
    try:
        place, reason, detail, sha256 = (text(found[name]) for name in (b"place", b"reason", b"detail", b"sha256"))
        return DeadLetter(place, int(found[b"offset"]), reason, detail, sha256, found[b"head"])
    except (KeyError, ValueError) as error:
        raise CorruptState("dead letter: a field is missing or malformed") from error


def restriction(found: Mapping[bytes, bytes]) -> Restriction:
    try:
        states = detected(found[b"state"]), enforced(found[b"enforced"])
        return Restriction(client(found[b"client"]), *states, int(found[b"until_s"]))
    except (KeyError, ValueError) as error:
        raise CorruptState("feed of a decision cell: a field is missing or malformed") from error


def change(found: Mapping[bytes, bytes]) -> Entry:
    try:
        tenant, kind, key = (unquoted(text(found[name])) for name in (b"tenant", b"kind", b"key"))
        return Entry(tenant, kind, key, found[b"value"], int(found[b"expires_s"]))
    except (KeyError, ValueError) as error:
        raise CorruptState("change of the operator cell: a field is missing or malformed") from error


def entry(kind: str, name: bytes, stored: bytes) -> Entry:
    """An entry from its field (``tenant:key``) and its content (``expiry:value``)."""
    try:
        tenant, key = text(name).split(":")
        expires_s, _, value = stored.partition(b":")
        return Entry(unquoted(tenant), kind, unquoted(key), value, int(expires_s))
    except ValueError as error:
        raise CorruptState(f"entry of kind {kind!r}: malformed") from error


def feed_entry(position: str) -> tuple[str, tuple[int, int]]:
    """Generation of a feed and the last entry that was seen. What no store ever gave is a position in no feed."""
    generation, _, at = position.rpartition(":")
    try:
        return generation, entry_id(at)
    except ValueError:
        return "-", (0, 0)


def entry_id(value: str) -> tuple[int, int]:
    """An entry of a stream, comparable. Raises ValueError."""
    ms, sequence = value.split("-")
    return int(ms), int(sequence)
