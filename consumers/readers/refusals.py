"""Find a refused client by the reference that it quotes, for support and operators.

Rules: a reference is found among the clients that the store knows now. It is not found any more if its client was erased, or was never
assessed and its operator's decision has ended.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumers.operators.references import References, known_clients
from consumers.readers.models import OperatorDecision
from consumers.readers.queries import Reader


@dataclass(frozen=True, slots=True)
class OnModel:
    """Where a client stands on a model now. until_s: 0 for no end."""

    model_id: str
    state: str
    enforced: str
    until_s: int


@dataclass(frozen=True, slots=True)
class RefusedClient:
    """What a reference stands for, and how the client stands now.

    day     UTC, YYYY-MM-DD
    answer  block | throttle
    cause   empty for a client; else why nobody in particular was refused: anonymous | unsynced | crowded
    """

    reference: str
    day: str
    answer: str
    cause: str
    client_id: str | None
    client_key: str | None
    models: tuple[OnModel, ...] = ()
    decisions: tuple[OperatorDecision, ...] = ()
    allowed: bool = False


def refused(reader: Reader, reference: str) -> RefusedClient | None:
    """What a reference stands for. None: it is none, or of a client that the store does not know. Raises Unavailable."""
    store, tenant = reader.store, reader.tenant
    found = References(reader.secrets).find(tenant, reference, known_clients(store, tenant))
    if found is None:
        return None
    reference = reference.strip().lower()
    if found.cause:
        return RefusedClient(reference, found.day, found.answer, found.cause, None, None)
    clients = [one for m in reader.models() if (one := reader.client(m.model_id, found.client)) is not None]
    decisions = tuple(d for d in reader.decisions() if d.client_key == found.client)
    names = [one.client.client_id for one in clients] + [d.client_id for d in decisions if d.client_id]
    return RefusedClient(
        reference, found.day, found.answer, "", names[0] if names else None, found.client,
        tuple(OnModel(c.model_id, c.state, c.enforced, c.until_s) for c in (one.client for one in clients)),
        decisions,
        any(a.client_key == found.client for a in reader.allowlist()),
    )  # fmt: skip
